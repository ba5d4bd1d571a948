//! The control file: everything a node must never forget, in two copies written one after the other.

use std::fmt;

use super::codec::{Reader, Write};
use super::done::{KnownOp, put_known, read_known};
use super::history::History;
use super::policy::{Generation, PendingGeneration};
use crate::base::limits::{BLOCK_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SHARDS_MAX};
use crate::base::planted::{Bug, planted};
use crate::base::{ClusterId, CommittedLsn, Digest, Incarnation, NodeId, Term, format};

/// Bytes of one encoded control image, a whole number of blocks.
pub const CONTROL_BYTES: usize = 16 << 10;
/// Longest cluster name.
pub const CLUSTER_NAME_MAX: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"BATONCTL");
/// The digest covers everything in front of it.
const DIGEST_AT: usize = CONTROL_BYTES - 16;

const _: () = assert!(CONTROL_BYTES.is_multiple_of(BLOCK_BYTES) && CONTROL_BYTES <= 64 << 10);

/// What the data folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataStatus {
    /// A whole log and store: its promise counts.
    Whole,
    /// Joining: it may stream, it never counts.
    Learner,
    /// A build is under way (or was interrupted).
    Building,
    /// Below a known-durable mark something is missing: repair from a peer.
    Damaged,
    /// The log is whole, but a shard is not what the log makes of it: it may vote and stream, never lead.
    Sick,
}

impl DataStatus {
    /// The log is whole: promises count, the lease may be granted.
    pub fn votes(self) -> bool {
        matches!(self, DataStatus::Whole | DataStatus::Sick)
    }
}

/// The durable state of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlState {
    /// Number of this image: rises with every change.
    pub generation: u64,
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub shards: u16,
    pub segment_bytes: u64,
    pub status: DataStatus,
    /// Sessions of lower terms are refused.
    pub promised: Term,
    pub history: History,
    /// The newest generation known to be committed (the seed before there is one).
    pub policy: Generation,
    /// Generations whose records are in the log and not known to be committed, in the order of the log.
    pub pending: Vec<PendingGeneration>,
    /// A lower bound of what is committed.
    pub known_committed: CommittedLsn,
    /// The newest term that this node itself started.
    pub last_led: Term,
    /// How often a process started on this folder.
    pub starts: u64,
    /// The format that this log is written in, and the version of this file: once the cluster has finalized a newer one,
    /// no older build opens the folder.
    pub format: u16,
    /// A switchover that this node took part in and whose end it has not seen.
    pub operation: Option<Operation>,
    /// The newest changes of leader and policy in the log that were asked for under an op id, in the order of the log.
    pub ops: Vec<KnownOp>,
}

/// This node's part in a switchover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The old primary.
    HandingOver,
    /// The next one.
    TakingOver,
}

/// The durable record of a switchover under way (`protocol` 6): whoever restarts knows what was going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub part: Part,
    /// The other side.
    pub peer: NodeId,
    /// The term of the old primary.
    pub term: Term,
}

/// One of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ControlCopy {
    A,
    B,
}

/// Why no control state can be used. Every text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// Both copies are unreadable.
    BothBad { a: &'static str, b: &'static str },
    /// The folder belongs to another cluster.
    ForeignCluster { found: ClusterId },
    /// The folder belongs to another node.
    ForeignNode { found: NodeId },
    /// Two valid images with one number.
    Disagree { generation: u64 },
    /// Written by another build.
    OtherFormat { version: u16 },
}

/// Why one copy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadCopy {
    Unreadable(&'static str),
    OtherFormat(u16),
}

/// The usable state and which copy must be rewritten from it before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub state: ControlState,
    pub heal: Option<ControlCopy>,
}

impl ControlState {
    /// A fresh folder, as `baton init` makes it: nothing promised, nothing written.
    pub fn fresh(
        cluster: (ClusterId, &str),
        node: (NodeId, Incarnation),
        shards: u16,
        segment_bytes: u64,
        policy: Generation,
        status: DataStatus,
    ) -> ControlState {
        assert!(cluster.1.len() <= CLUSTER_NAME_MAX, "the configuration checks the name");
        ControlState {
            generation: 1,
            cluster: cluster.0,
            cluster_name: cluster.1.to_owned(),
            node: node.0,
            incarnation: node.1,
            shards,
            segment_bytes,
            status,
            promised: Term::NONE,
            history: History::new(),
            policy,
            pending: Vec::new(),
            known_committed: CommittedLsn::ZERO,
            last_led: Term::NONE,
            starts: 0,
            format: format::oldest(),
            operation: None,
            ops: Vec::new(),
        }
    }

    /// The image, [`CONTROL_BYTES`] long. The digest stands in the last bytes, for every version of the format.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CONTROL_BYTES);
        out.u64(MAGIC);
        out.u16(self.format);
        out.u64(self.generation);
        out.u128(self.cluster.0);
        out.u8(self.cluster_name.len() as u8);
        out.bytes(self.cluster_name.as_bytes());
        out.node(self.node);
        out.u128(self.incarnation.0);
        out.u16(self.shards);
        out.u64(self.segment_bytes);
        out.u8(match self.status {
            DataStatus::Whole => 0,
            DataStatus::Learner => 1,
            DataStatus::Building => 2,
            DataStatus::Damaged => 3,
            DataStatus::Sick => 4,
        });
        out.term(self.promised);
        out.history(&self.history);
        out.generation(&self.policy);
        out.pending(&self.pending);
        out.lsn(self.known_committed.lsn());
        out.term(self.last_led);
        out.u64(self.starts);
        // Images of before this field end in zeroes here, which say "none".
        out.flag(self.operation.is_some());
        if let Some(operation) = &self.operation {
            out.flag(operation.part == Part::TakingOver);
            out.node(operation.peer);
            out.term(operation.term);
        }
        put_known(&mut out, &self.ops);
        assert!(out.len() <= DIGEST_AT, "the limits of the parts keep the whole within its size");
        out.resize(DIGEST_AT, 0);
        let digest = Digest::of(&out);
        out.u128(digest.0);
        out
    }

    /// Reads one copy.
    pub fn decode(bytes: &[u8]) -> Result<ControlState, BadCopy> {
        let image = bytes.get(..CONTROL_BYTES).ok_or(BadCopy::Unreadable("it is too short"))?;
        let mut tail = Reader::new(&image[DIGEST_AT..]);
        let mut reader = Reader::new(&image[..DIGEST_AT]);
        if reader.u64() != Some(MAGIC) {
            return Err(BadCopy::Unreadable("it has no control magic"));
        }
        if tail.u128() != Some(Digest::of(&image[..DIGEST_AT]).0) {
            return Err(BadCopy::Unreadable("its checksum does not match"));
        }
        match reader.u16() {
            Some(version) if format::speaks(version) => {
                decode_body(&mut reader, version).ok_or(BadCopy::Unreadable("a field is out of range"))
            }
            Some(version) => Err(BadCopy::OtherFormat(version)),
            None => Err(BadCopy::Unreadable("it is too short")),
        }
    }
}

/// What `init` may have chosen: a start looks at every block of a segment that is there.
fn can_be_a_segment(bytes: u64) -> bool {
    bytes.is_power_of_two() && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes)
}

fn decode_body(reader: &mut Reader<'_>, format: u16) -> Option<ControlState> {
    let generation = reader.u64()?;
    let cluster = ClusterId(reader.u128()?);
    let name_len = usize::from(reader.u8()?);
    if name_len > CLUSTER_NAME_MAX {
        return None;
    }
    let cluster_name = std::str::from_utf8(reader.take(name_len)?).ok()?.to_owned();
    let state = ControlState {
        generation,
        cluster,
        cluster_name,
        node: reader.node()?,
        incarnation: Incarnation(reader.u128()?),
        shards: reader.u16().filter(|shards| (1..=SHARDS_MAX).contains(shards))?,
        segment_bytes: reader.u64().filter(|bytes| can_be_a_segment(*bytes))?,
        status: match reader.u8()? {
            0 => DataStatus::Whole,
            1 => DataStatus::Learner,
            2 => DataStatus::Building,
            3 => DataStatus::Damaged,
            4 => DataStatus::Sick,
            _ => return None,
        },
        promised: reader.term()?,
        history: reader.history()?,
        policy: reader.generation()?,
        pending: reader.pending()?,
        known_committed: reader.committed()?,
        last_led: reader.term()?,
        starts: reader.u64()?,
        format,
        operation: operation(reader)?,
        ops: read_known(reader)?,
    };
    Some(state)
}

fn operation(reader: &mut Reader<'_>) -> Option<Option<Operation>> {
    if !reader.flag()? {
        return Some(None);
    }
    let part = if reader.flag()? { Part::TakingOver } else { Part::HandingOver };
    Some(Some(Operation { part, peer: reader.node()?, term: reader.term()? }))
}

/// Chooses the newest valid copy. `None` for a copy that could not be read. `cluster` and `node`: what the
/// configuration expects, when it names them.
pub fn choose(
    a: Option<&[u8]>,
    b: Option<&[u8]>,
    cluster: Option<ClusterId>,
    node: Option<NodeId>,
) -> Result<Chosen, ControlError> {
    let read = |copy: Option<&[u8]>| {
        ControlState::decode(copy.ok_or(BadCopy::Unreadable("the file cannot be read"))?)
    };
    let (a, b) = (read(a), read(b));
    for copy in [&a, &b] {
        match copy {
            Err(BadCopy::OtherFormat(version)) => {
                return Err(ControlError::OtherFormat { version: *version });
            }
            Ok(state) if cluster.is_some_and(|expected| expected != state.cluster) => {
                return Err(ControlError::ForeignCluster { found: state.cluster });
            }
            Ok(state) if node.is_some_and(|expected| expected != state.node) => {
                return Err(ControlError::ForeignNode { found: state.node });
            }
            _ => {}
        }
    }
    let chosen = match (a, b) {
        (Ok(a), Ok(b)) if a.generation == b.generation => {
            if a != b {
                return Err(ControlError::Disagree { generation: a.generation });
            }
            Chosen { state: a, heal: None }
        }
        (Ok(a), Ok(b)) if a.generation > b.generation => Chosen { state: a, heal: Some(ControlCopy::B) },
        (Ok(_), Ok(b)) => Chosen { state: b, heal: Some(ControlCopy::A) },
        (Ok(a), Err(_)) => Chosen { state: a, heal: Some(ControlCopy::B) },
        (Err(_), Ok(b)) => Chosen { state: b, heal: Some(ControlCopy::A) },
        (Err(a), Err(b)) => return Err(ControlError::BothBad { a: a.reason(), b: b.reason() }),
    };
    Ok(chosen)
}

/// The copies that a new image goes to, in this order, each flushed before the next and all before anything depends
/// on it. So whichever copy decays later, the other one still holds every promise.
pub fn copies_to_write(generation: u64) -> &'static [ControlCopy] {
    if planted(Bug::OneSlotControlFallback) {
        return if generation.is_multiple_of(2) { &[ControlCopy::A] } else { &[ControlCopy::B] };
    }
    &[ControlCopy::A, ControlCopy::B]
}

impl BadCopy {
    fn reason(&self) -> &'static str {
        match self {
            BadCopy::Unreadable(reason) => reason,
            BadCopy::OtherFormat(_) => "it has another format version",
        }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlError::BothBad { a, b } => write!(
                f,
                "both control copies are unusable (control.a: {a}; control.b: {b}): what this node promised is \
                 forgotten, so it must not vote; rejoin it with a build as a new incarnation"
            ),
            ControlError::Disagree { generation } => write!(
                f,
                "the control copies hold two different images of generation {generation}: a copy was put there by \
                 hand; rejoin this node with a build as a new incarnation"
            ),
            ControlError::ForeignCluster { found } => {
                write!(
                    f,
                    "the data folder belongs to cluster {found}: check the folder and the cluster's name"
                )
            }
            ControlError::ForeignNode { found } => {
                write!(f, "the data folder belongs to node {found}: check the folder and the node's id")
            }
            ControlError::OtherFormat { version } if *version > format::newest() => write!(
                f,
                "this folder was written by a newer baton (format {version}, this build reads up to {}): start the newer \
                 build; nothing was touched",
                format::newest()
            ),
            ControlError::OtherFormat { version } => write!(
                f,
                "the control file has format version {version}, this build reads {} to {}: upgrade one version at a time",
                format::oldest(),
                format::newest()
            ),
        }
    }
}
impl std::error::Error for ControlError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::{HISTORY_MAX, OPS_KEPT, PENDING_MAX};
    use crate::base::planted::plant;
    use crate::base::{Lsn, Prng};
    use crate::role::done::{Deed, OpMark, OpRecord};
    use crate::role::policy::{SyncPolicy, Voter};

    fn sample(generation: u64) -> ControlState {
        let members: Vec<NodeId> = (1..=4).map(NodeId).collect();
        let policy = Generation::seed(&members, &SyncPolicy::Auto).unwrap();
        let mut state = ControlState::fresh(
            (ClusterId(7), "demo"),
            (NodeId(2), Incarnation(9)),
            64,
            64 << 20,
            policy,
            DataStatus::Whole,
        );
        state.generation = generation;
        state.promised = Term { number: generation, id: 3 };
        state
    }

    /// Every part as large as its limit allows.
    fn largest() -> ControlState {
        let mut state = sample(u64::MAX);
        state.cluster_name = "x".repeat(CLUSTER_NAME_MAX);
        (0..HISTORY_MAX as u64)
            .for_each(|i| state.history.append(Term { number: i + 1, id: u128::MAX }, Lsn(i)));
        let voter = |n: u16| Voter { node: NodeId(n), incarnation: Incarnation(u128::MAX) };
        let generation = Generation {
            number: 2,
            voters: (1..=9).map(voter).collect(),
            k: 8,
            first: true,
            forced: true,
            standbys: (10..=32).map(voter).collect(),
            absent: (10..=32).map(NodeId).collect(),
            store: true,
            full_k: 0,
        };
        state.pending = (0..PENDING_MAX as u64)
            .map(|i| PendingGeneration { generation: generation.clone(), start: Lsn(i), end: Lsn(i + 1) })
            .collect();
        state.operation =
            Some(Operation { part: Part::TakingOver, peer: NodeId(32), term: Term { number: 9, id: 9 } });
        state.policy = generation;
        let led = |i: u64| Deed::Led { leader: NodeId(32), term: Term { number: i, id: u128::MAX } };
        state.ops = (0..OPS_KEPT as u64)
            .map(|i| KnownOp {
                op: OpRecord { mark: OpMark { id: u128::MAX - u128::from(i), request: i }, deed: led(i) },
                start: Lsn(i),
                end: Lsn(i + 1),
            })
            .collect();
        state
    }

    #[test]
    fn an_image_survives_its_bytes_at_every_size() {
        for state in [sample(1), largest()] {
            let bytes = state.encode();
            assert_eq!(bytes.len(), CONTROL_BYTES);
            assert_eq!(ControlState::decode(&bytes), Ok(state));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = largest().encode();
        let mut rng = Prng::new(5);
        for _ in 0..2000 {
            let mut bad = bytes.clone();
            let bit = rng.below(bad.len() as u64 * 8) as usize;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ControlState::decode(&bad).is_err(), "flip of bit {bit} passed");
        }
        for len in [0, 1, 100, CONTROL_BYTES - 1] {
            assert!(ControlState::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn the_newest_copy_wins_and_the_other_is_healed() {
        let (old, new) = (sample(4).encode(), sample(5).encode());
        let pick = |a: Option<&[u8]>, b: Option<&[u8]>| {
            choose(a, b, None, None).map(|c| (c.state.generation, c.heal))
        };
        assert_eq!(pick(Some(&new), Some(&old)), Ok((5, Some(ControlCopy::B))));
        assert_eq!(pick(Some(&old), Some(&new)), Ok((5, Some(ControlCopy::A))));
        assert_eq!(pick(Some(&new), Some(&new)), Ok((5, None)));
        assert_eq!(pick(Some(&new[..99]), Some(&old)), Ok((4, Some(ControlCopy::A))));
        assert_eq!(pick(Some(&new), None), Ok((5, Some(ControlCopy::B))));
    }

    #[test]
    fn what_must_be_refused_is_refused() {
        let good = sample(4).encode();
        let refusal =
            |a: &[u8], b: &[u8], cluster, node| choose(Some(a), Some(b), cluster, node).unwrap_err();
        assert!(matches!(refusal(&[], &[], None, None), ControlError::BothBad { .. }));
        assert!(matches!(
            refusal(&good, &good, Some(ClusterId(8)), None),
            ControlError::ForeignCluster { found: ClusterId(7) }
        ));
        assert!(matches!(
            refusal(&good, &[], None, Some(NodeId(1))),
            ControlError::ForeignNode { found: NodeId(2) }
        ));
        let mut other = sample(4);
        other.starts = 99;
        assert!(matches!(
            refusal(&good, &other.encode(), None, None),
            ControlError::Disagree { generation: 4 }
        ));
        let mut newer = good.clone();
        newer[8] = 2;
        let digest = Digest::of(&newer[..DIGEST_AT]).0.to_le_bytes();
        newer[DIGEST_AT..].copy_from_slice(&digest);
        assert!(matches!(refusal(&newer, &good, None, None), ControlError::OtherFormat { version: 2 }));
    }

    /// One copy may decay at any time; with both written before a promise is spoken, the promise survives that.
    #[test]
    fn a_spoken_promise_survives_the_loss_of_either_copy() {
        let survives = || {
            let mut copies = [sample(1).encode(), sample(1).encode()];
            for generation in 2..=5 {
                for copy in copies_to_write(generation) {
                    copies[*copy as usize] = sample(generation).encode();
                }
            }
            let [a, b] = &copies;
            [choose(None, Some(b), None, None), choose(Some(a), None, None, None)]
                .into_iter()
                .all(|chosen| chosen.unwrap().state.promised.number == 5)
        };
        assert!(survives());
        let _bug = plant(Bug::OneSlotControlFallback);
        assert!(!survives());
    }
}
