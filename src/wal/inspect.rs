//! A segment as rows for a human: frames, their records, and what lies between them.

use std::fmt;

use super::check::written_end;
use super::scan::{Found, Window};
use super::{Geometry, LogReader, ScanError};
use crate::base::limits::BLOCK_BYTES;
use crate::base::{Lsn, SharedSlice};
use crate::record::{Corrupt, FrameHeader, FrameKind, HEADER_BYTES, Record, RecordReader};

/// What blocks hold that are not a frame of this segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Region {
    /// Never written, or zeroed.
    Zero,
    /// A frame of the segment's earlier life, before it was recycled.
    Recycled { segment: u64 },
    /// A frame that belongs here but is not whole.
    Torn(Corrupt),
    /// The file ends before.
    Missing,
    /// Neither zero nor a frame: the body of an overwritten or torn frame.
    Other,
}

/// One row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Row {
    Frame {
        header: FrameHeader,
        /// Whether it follows the frame in the row before it.
        chained: bool,
    },
    Record {
        frame: Lsn,
        index: usize,
        text: String,
        ends_transaction: bool,
    },
    Region {
        from: Lsn,
        to: Lsn,
        what: Region,
    },
}

/// Describes a whole segment, with its records when asked. Frames are judged by themselves: history is not consulted.
pub fn inspect_segment(
    reader: &mut dyn LogReader,
    geometry: Geometry,
    segment: u64,
    with_records: bool,
) -> Result<Vec<Row>, ScanError> {
    let mut rows = Vec::new();
    let mut window = Window::new(reader, geometry);
    let Some(start) = segment.checked_mul(geometry.segment_bytes) else { return Ok(rows) };
    let end = Lsn(start.saturating_add(geometry.segment_bytes));
    let mut at = Lsn(start);
    let mut before: Option<FrameHeader> = None;
    while at < end {
        match window.frame_at(at)? {
            Found::Frame(header, used) => {
                let chained = before.is_some_and(|b| b.digest == header.previous && b.end() == at);
                rows.push(Row::Frame { header, chained });
                if with_records {
                    records(&header, &used, &mut rows);
                }
                before = Some(header);
                at = written_end(&header);
                if header.kind == FrameKind::Filler {
                    at = header.end();
                }
            }
            Found::Torn(_, why) => at = region(&mut rows, at, Region::Torn(why)),
            Found::Nothing(_) => {
                let block = window.block_at(at)?;
                at = region(&mut rows, at, describe(&block, segment));
            }
        }
    }
    Ok(rows)
}

fn describe(block: &[u8], segment: u64) -> Region {
    if block.len() < BLOCK_BYTES {
        return Region::Missing;
    }
    if block.iter().all(|byte| *byte == 0) {
        return Region::Zero;
    }
    match FrameHeader::decode(block) {
        Ok(header) if header.segment != segment => Region::Recycled { segment: header.segment },
        _ => Region::Other,
    }
}

/// Adds a block to the last row when that says the same, or opens a new row.
fn region(rows: &mut Vec<Row>, at: Lsn, what: Region) -> Lsn {
    let next = at + BLOCK_BYTES as u64;
    match rows.last_mut() {
        Some(Row::Region { to, what: same, .. }) if *same == what && *to == at => *to = next,
        _ => rows.push(Row::Region { from: at, to: next, what }),
    }
    next
}

fn records(header: &FrameHeader, used: &SharedSlice, rows: &mut Vec<Row>) {
    for (index, item) in RecordReader::new(&used[HEADER_BYTES..]).enumerate() {
        let (text, ends_transaction) = match item {
            Ok((record, last)) => (record_text(&record), last),
            Err(why) => (format!("unreadable record: {why}"), false),
        };
        rows.push(Row::Record { frame: header.first, index, text, ends_transaction });
    }
}

fn record_text(record: &Record<'_>) -> String {
    match record {
        Record::Put { shard, key, value, created } => {
            let verb = if *created { "insert" } else { "put" };
            format!("{verb} shard {shard} {} ({} bytes)", key.escape_ascii(), value.len())
        }
        Record::Delete { shard, key } => format!("delete shard {shard} {}", key.escape_ascii()),
        Record::DeleteRange { shard, start, end } => {
            format!("delete range shard {shard} {}..{}", start.escape_ascii(), end.escape_ascii())
        }
        Record::ClearShard { shard } => format!("clear shard {shard}"),
        Record::Checkpoint { shard, merge_version, .. } => {
            format!("checkpoint shard {shard} merge version {merge_version}")
        }
        Record::TermStart { term, leader, previous_term, previous_end, .. } => {
            format!("term {term} starts, leader {leader}, after term {previous_term} at {previous_end}")
        }
        Record::Policy { generation } => format!("policy generation ({} bytes)", generation.len()),
        Record::Op { op } => format!("op id ({} bytes)", op.len()),
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Row::Frame { header, chained } => {
                let kind = match header.kind {
                    FrameKind::Data => "frame",
                    FrameKind::Filler => "filler",
                };
                write!(
                    f,
                    "{} {kind} term {} length {} records {} transactions {} durable {} commit {} clock {}{}",
                    header.first,
                    header.term,
                    header.length,
                    header.records,
                    header.transactions,
                    header.durable.lsn(),
                    header.commit.lsn(),
                    header.clock,
                    if *chained { "" } else { " (chain starts)" },
                )
            }
            Row::Record { frame, index, text, ends_transaction } => {
                write!(f, "{frame}   #{index} {text}{}", if *ends_transaction { " ;" } else { "" })
            }
            Row::Region { from, to, what } => {
                let what = match what {
                    Region::Zero => "zero".to_string(),
                    Region::Recycled { segment } => format!("old frames of segment {segment:x}"),
                    Region::Torn(why) => format!("torn: {why}"),
                    Region::Missing => "missing: the file ends".to_string(),
                    Region::Other => "no frame".to_string(),
                };
                write!(f, "{from}..{to} {what}")
            }
        }
    }
}
