//! Where the log of a stopped node ends, and whether it is whole (`protocol` section 5).
//!
//! At the first bad frame x the question is: did *this* node ever promise that anything at or beyond x is durable? m is
//! the highest such promise: its own mark, the known commit of its control file (no node knows a commit beyond its own
//! flush), and the durable end carried by frames beyond x that this node sealed itself. m > x is damage, and a peer must
//! repair it. Otherwise the tail is torn: with several writes in flight a crash leaves holes, and nothing beyond x was
//! ever acknowledged here. A whole frame of a newer format is neither: its baton may have acknowledged it, so recovery
//! ends there and touches nothing. The durable end in a frame of another leader tells of that leader's disk and nothing of this
//! one: after a loss of power everywhere, standbys that took it for their own promise would all call themselves damaged.
//!
//! Bytes that can be read need not be durable. After a failed flush, or a mere kill, they may stand in a cache alone, and a
//! flush that failed once may succeed the next time without having written them. So whatever lies above the last proof
//! of a flush is *unsettled*: [`settle`] writes it again and flushes it before anybody may count on it.

use std::collections::BTreeSet;
use std::io;

use super::check::written_end;
use super::scan::{Found, TermAt, Window};
use super::{FrameScan, Geometry, LogEnd, LogReader, RecoverError, ScanError, ScannedFrame};
use crate::base::limits::BLOCK_BYTES;
use crate::base::planted::{Bug, planted};
use crate::base::{ClusterId, CommittedLsn, Lsn, SharedSlice, Term, WallMs};

/// What the control file and the store know about the log.
pub struct RecoverParams<'a> {
    pub cluster: ClusterId,
    pub segment_bytes: u64,
    /// The oldest position needed, a frame border: redo starts here.
    pub from: Lsn,
    /// The log's end at `from`, when somebody kept it (a fresh build, say). Without it the chain is picked up from the
    /// start of the segment.
    pub before: Option<LogEnd>,
    /// The term that history assigns to a position.
    pub term_at: &'a dyn Fn(Lsn) -> Option<Term>,
    /// The known-committed mark of the control file.
    pub known_commit: Lsn,
    /// Everything below was durable here once: the node's own mark, as far as history still holds it.
    pub own_mark: Lsn,
    /// The term of frames that this very node sealed, if it is the newest of the log: their marks tell of this disk.
    pub own_term: Option<Term>,
    /// The mark of a damage whose repair was begun and not finished, zero otherwise. A node that starts with a damaged
    /// log keeps this durable until the log is whole, because the repair overwrites the evidence.
    pub repair_mark: Lsn,
}

/// What the end of the log looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The log just ends.
    Clean,
    /// A crash left a torn or incomplete tail; the log zeroes `zero_from..zero_to` before it appends.
    Torn { zero_from: Lsn, zero_to: Lsn },
    /// What was durable up to `mark` is not readable at `at`: not promotable until a peer has repaired it. Frames of
    /// this log stand on disk up to `stale_to`.
    Damaged { at: Lsn, mark: Lsn, stale_to: Lsn },
}

/// A recovered log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Behind the last good frame.
    pub end: LogEnd,
    /// The highest commit index that the log and the mark know, within the log.
    pub known_committed: CommittedLsn,
    pub verdict: Verdict,
    /// What was read and perhaps never became durable, ascending: [`settle`] it before the log is resumed.
    pub unsettled: Vec<(Lsn, Lsn)>,
    /// The oldest position that senders may read from.
    pub first: Lsn,
    /// The segments present, ascending.
    pub segments: Vec<u64>,
    /// Frames and records between `from` and the end.
    pub frames: u64,
    pub records: u64,
    /// The leader's clock in the last frame.
    pub clock: WallMs,
}

impl Recovered {
    /// A log without a single frame, which starts behind `end`: of a new cluster, or of a freshly built node.
    pub fn empty(end: LogEnd) -> Recovered {
        Recovered {
            end,
            known_committed: CommittedLsn(end.end),
            verdict: Verdict::Clean,
            unsettled: Vec::new(),
            first: end.end,
            segments: Vec::new(),
            frames: 0,
            records: 0,
            clock: WallMs(0),
        }
    }
}

/// Reads the log from `from` to its end and judges the end. Nothing is written: [`super::Wal::resume`] does that.
pub fn recover(reader: &mut dyn LogReader, params: &RecoverParams<'_>) -> Result<Recovered, RecoverError> {
    recover_watched(reader, params, &mut |_| {})
}

/// Like [`recover`], and shows every good frame to `watch`, so that nobody has to read the log again for what is in it.
pub fn recover_watched(
    reader: &mut dyn LogReader,
    params: &RecoverParams<'_>,
    watch: &mut dyn FnMut(&ScannedFrame),
) -> Result<Recovered, RecoverError> {
    let geometry = Geometry::new(params.cluster, params.segment_bytes);
    let mut segments = reader.segments().map_err(RecoverError::List)?;
    segments.sort_unstable();
    segments.dedup();

    let before = match params.before {
        Some(before) => Some(before),
        None => chain_before(reader, geometry, params)?,
    };
    let mut scan = FrameScan::new(reader, geometry, params.from, Lsn::MAX, before).judged_by(params.term_at);
    let mut clock = WallMs(0);
    let (mut frames, mut records, mut commit) = (0, 0, params.known_commit);
    // Redo starts at a checkpoint, and no checkpoint counts before the log up to it is durable.
    let proven = params.own_mark.max(params.known_commit).max(params.from);
    let mut unsettled: Vec<(Lsn, Lsn)> = Vec::new();
    loop {
        match scan.next().expect("a scan without a limit ends with an error only") {
            Ok(frame) => {
                note_unsettled(&mut unsettled, proven, frame.header.first, written_end(&frame.header));
                frames += 1;
                records += u64::from(frame.header.records);
                commit = commit.max(frame.header.commit.lsn());
                clock = frame.header.clock;
                watch(&frame);
            }
            Err(ScanError::Bad { .. }) => break,
            Err(error) => return Err(read_error(error)),
        }
    }
    let (end, chain_known) = (scan.end(), scan.chain_known());
    keep_last_segments(&mut unsettled, geometry, end.end);
    let beyond = look_beyond(&mut scan.window, geometry, end.end, &segments, params)?;
    let first = oldest_readable(&mut scan.window, geometry, params.from, &segments, params.term_at)?;

    let x = end.end;
    let mut mark = params.known_commit.max(params.repair_mark).max(params.own_mark).max(beyond.mark);
    if !chain_known {
        // Not one frame is readable and nobody knows what the next must follow: a peer has to bring at least one.
        mark = mark.max(x + BLOCK_BYTES as u64);
    }
    let verdict = if planted(Bug::TreatHoleAsEndOfLog) {
        Verdict::Clean
    } else if mark > x {
        Verdict::Damaged { at: x, mark, stale_to: beyond.stale_to.max(x) }
    } else if beyond.stale_to > x {
        Verdict::Torn { zero_from: x, zero_to: beyond.stale_to }
    } else {
        Verdict::Clean
    };
    let known_committed = CommittedLsn(commit.max(beyond.commit).min(x));
    Ok(Recovered { end, known_committed, verdict, unsettled, first, segments, frames, records, clock })
}

/// Remembers what a frame occupies on disk, unless it is proven to be durable. Neighbours become one range.
fn note_unsettled(unsettled: &mut Vec<(Lsn, Lsn)>, proven: Lsn, first: Lsn, end: Lsn) {
    if end <= proven {
        return;
    }
    match unsettled.last_mut() {
        Some(last) if last.1 == first => last.1 = end,
        _ => unsettled.push((first, end)),
    }
}

/// Unflushed bytes of any one process lie in two neighbouring segments at most: what lies before them was flushed.
fn keep_last_segments(unsettled: &mut Vec<(Lsn, Lsn)>, geometry: Geometry, end: Lsn) {
    let last = end.0.saturating_sub(1) / geometry.segment_bytes;
    let low = Lsn(last.saturating_sub(1) * geometry.segment_bytes);
    unsettled.retain(|(_, to)| *to > low);
    unsettled.iter_mut().for_each(|(from, _)| *from = (*from).max(low));
}

/// Segment files while a start settles what was read.
pub trait LogRewriter: LogReader {
    fn write(&mut self, segment: u64, offset: u64, data: &SharedSlice) -> io::Result<()>;
    /// Makes every write of the segment durable.
    fn flush(&mut self, segment: u64) -> io::Result<()>;
}

/// One read and write of settling.
const SETTLE_BYTES: u64 = 1 << 20;

/// Makes what was read durable: the same bytes are written again in their places, and flushed. Flushing alone is not
/// enough, because what a failed flush did not write is not dirty any more. Returns the number of bytes.
pub fn settle(
    files: &mut dyn LogRewriter,
    segment_bytes: u64,
    recovered: &mut Recovered,
) -> Result<u64, RecoverError> {
    let mut touched = BTreeSet::new();
    let mut bytes = 0;
    for (from, to) in &recovered.unsettled {
        let mut at = *from;
        while at < *to {
            let failed = |error| RecoverError::Settle { at, error };
            let (segment, offset) = (at.segment(segment_bytes), at.offset(segment_bytes));
            let len = SETTLE_BYTES.min(*to - at).min(segment_bytes - offset);
            let data = files.read(segment, offset, len as usize).map_err(failed)?;
            let data = data
                .filter(|data| data.len() as u64 == len)
                .ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
            files.write(segment, offset, &data.share()).map_err(failed)?;
            touched.insert(segment);
            bytes += len;
            at = at + len;
        }
    }
    for segment in touched {
        let at = Lsn(segment * segment_bytes);
        files.flush(segment).map_err(|error| RecoverError::Settle { at, error })?;
    }
    recovered.unsettled.clear();
    Ok(bytes)
}

/// The chain at `from`, picked up from the start of its segment, which is a frame border whenever the log reaches back
/// that far. `None` when it does not, or when something before `from` is unreadable: that part is not needed.
fn chain_before(
    reader: &mut dyn LogReader,
    geometry: Geometry,
    params: &RecoverParams<'_>,
) -> Result<Option<LogEnd>, RecoverError> {
    if params.from == Lsn::ZERO {
        return Ok(Some(LogEnd::GENESIS));
    }
    let segment = (params.from.0 - 1) / params.segment_bytes;
    let start = Lsn(segment * params.segment_bytes);
    let mut scan = FrameScan::new(reader, geometry, start, params.from, None).judged_by(params.term_at);
    match scan.by_ref().find_map(Result::err) {
        Some(ScanError::Bad { .. }) => Ok(None),
        Some(error) => Err(read_error(error)),
        None => Ok(Some(scan.end()).filter(|end| end.end == params.from)),
    }
}

/// What stands at and beyond the first bad frame.
struct Beyond {
    /// The highest durable end that an own frame there carries.
    mark: Lsn,
    commit: Lsn,
    /// End of the last frame there, valid, stale or torn.
    stale_to: Lsn,
}

/// Looks at every block that this log could have written from `x` on: all segments in place. A recycled segment names
/// its old number in every header, so its old frames are nothing here.
fn look_beyond(
    window: &mut Window<'_>,
    geometry: Geometry,
    x: Lsn,
    segments: &[u64],
    params: &RecoverParams<'_>,
) -> Result<Beyond, RecoverError> {
    let mut beyond = Beyond { mark: Lsn::ZERO, commit: Lsn::ZERO, stale_to: Lsn::ZERO };
    for segment in segments.iter().copied().filter(|segment| *segment >= x.segment(geometry.segment_bytes)) {
        let Some(start) = segment.checked_mul(geometry.segment_bytes) else { continue };
        let end = start.saturating_add(geometry.segment_bytes);
        let mut at = x.max(Lsn(start));
        while at.0 < end {
            let next = match window.frame_at(at).map_err(read_error)? {
                Found::Frame(header, _) => {
                    if (params.term_at)(at) == Some(header.term) {
                        if params.own_term == Some(header.term) {
                            // A commit is durable on its leader, so its carried index is a promise as well.
                            let marks = header.durable.lsn().max(header.commit.lsn());
                            beyond.mark = beyond.mark.max(marks);
                        }
                        beyond.commit = beyond.commit.max(header.commit.lsn());
                    }
                    beyond.stale_to = beyond.stale_to.max(written_end(&header));
                    written_end(&header)
                }
                Found::Torn(header, _) => {
                    beyond.stale_to = beyond.stale_to.max(written_end(&header));
                    at + BLOCK_BYTES as u64
                }
                Found::Nothing(_) => at + BLOCK_BYTES as u64,
            };
            at = next;
        }
    }
    Ok(beyond)
}

/// The log reaches back over every older segment that is present without a gap and starts with a frame of its own.
fn oldest_readable(
    window: &mut Window<'_>,
    geometry: Geometry,
    from: Lsn,
    segments: &[u64],
    term_at: TermAt<'_>,
) -> Result<Lsn, RecoverError> {
    let mut first = from;
    let mut segment = from.segment(geometry.segment_bytes);
    loop {
        let start = Lsn(segment * geometry.segment_bytes);
        if start < first {
            if segments.binary_search(&segment).is_err() {
                return Ok(first);
            }
            match window.frame_at(start).map_err(read_error)? {
                Found::Frame(header, _) if term_at(start) == Some(header.term) => first = start,
                _ => return Ok(first),
            }
        }
        if segment == 0 {
            return Ok(first);
        }
        segment -= 1;
    }
}

fn read_error(error: ScanError) -> RecoverError {
    match error {
        ScanError::Io { at, error } => RecoverError::Read { at, error },
        ScanError::Newer { at, version } => RecoverError::Newer { at, version },
        ScanError::Bad { .. } => unreachable!("looking at one position reports bad bytes as a finding"),
    }
}
