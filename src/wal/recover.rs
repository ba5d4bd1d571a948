//! Where the log of a stopped node ends, and whether it is whole (`protocol` section 5).
//!
//! At the first bad frame x the question is: was anything at or beyond x promised to be durable? m is the highest such
//! promise: the marks from the control file, and the durable end that valid frames beyond x carry. m > x is damage, and
//! a peer must repair it. Otherwise the tail is torn: with several writes in flight a crash leaves holes, and nothing
//! beyond x was ever acknowledged.

use super::check::written_end;
use super::scan::{Found, TermAt, Window};
use super::{FrameScan, Geometry, LogEnd, LogReader, RecoverError, ScanError, ScannedFrame};
use crate::base::limits::BLOCK_BYTES;
use crate::base::planted::{Bug, planted};
use crate::base::{ClusterId, CommittedLsn, Lsn, Term, WallMs};

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
    loop {
        match scan.next().expect("a scan without a limit ends with an error only") {
            Ok(frame) => {
                frames += 1;
                records += u64::from(frame.header.records);
                commit = commit.max(frame.header.commit.lsn());
                clock = frame.header.clock;
                watch(&frame);
            }
            Err(ScanError::Io { at, error }) => return Err(RecoverError::Read { at, error }),
            Err(ScanError::Bad { .. }) => break,
        }
    }
    let (end, chain_known) = (scan.end(), scan.chain_known());
    let beyond = look_beyond(&mut scan.window, geometry, end.end, &segments, params.term_at)?;
    let first = oldest_readable(&mut scan.window, geometry, params.from, &segments, params.term_at)?;

    let x = end.end;
    let mut mark = params.known_commit.max(params.repair_mark).max(beyond.mark);
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
    Ok(Recovered { end, known_committed, verdict, first, segments, frames, records, clock })
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
        Some(ScanError::Io { at, error }) => Err(RecoverError::Read { at, error }),
        Some(ScanError::Bad { .. }) => Ok(None),
        None => Ok(Some(scan.end()).filter(|end| end.end == params.from)),
    }
}

/// What stands at and beyond the first bad frame.
struct Beyond {
    /// The highest durable end that a valid frame there carries.
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
    term_at: TermAt<'_>,
) -> Result<Beyond, RecoverError> {
    let mut beyond = Beyond { mark: Lsn::ZERO, commit: Lsn::ZERO, stale_to: Lsn::ZERO };
    for segment in segments.iter().copied().filter(|segment| *segment >= x.segment(geometry.segment_bytes)) {
        let Some(start) = segment.checked_mul(geometry.segment_bytes) else { continue };
        let end = start.saturating_add(geometry.segment_bytes);
        let mut at = x.max(Lsn(start));
        while at.0 < end {
            let next = match window.frame_at(at).map_err(read_error)? {
                Found::Frame(header, _) => {
                    if term_at(at) == Some(header.term) {
                        beyond.mark = beyond.mark.max(header.durable.lsn());
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
    // A commit is durable on its leader, so a carried commit index is a promise as well.
    beyond.mark = beyond.mark.max(beyond.commit);
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
        ScanError::Bad { .. } => unreachable!("looking at one position reports bad bytes as a finding"),
    }
}
