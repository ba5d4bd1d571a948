//! The same stream over two real logs: what one node's log wrote stands byte for byte on the other's disk.

use std::collections::BTreeMap;

use super::{CLUSTER, peer, term};
use crate::base::limits::{BLOCK_BYTES, SEGMENT_BYTES_MIN};
use crate::base::{AppliedLsn, CommittedLsn, Lsn, NodeId, Prng, ShardId, SharedSlice, WallMs};
use crate::record::Record;
use crate::replication::receiver::{Position, Receiver};
use crate::replication::sender::{Frame, LogSource, LogView, Pulled, Sender, Step};
use crate::replication::wire::{Decoder, LogTip, Message, Path};
use crate::role::History;
use crate::wal::{LogEnd, Recovered, SealMarks, Wal, WalConfig, WalEffect};

/// A log and the disk under it, which does what it is told at once.
struct Node {
    wal: Wal,
    disk: BTreeMap<u64, Vec<u8>>,
}

impl LogSource for Node {
    fn frames_from(&self, at: Lsn, max_bytes: usize) -> Pulled {
        self.wal.read_from(at, max_bytes).into()
    }
}

impl Node {
    fn new(recent_bytes: usize) -> Node {
        let config = WalConfig {
            cluster: CLUSTER,
            segment_bytes: SEGMENT_BYTES_MIN,
            frames_in_flight: 2,
            eager_bytes: 0,
            durable_writes: true,
            recent_bytes,
        };
        Node { wal: Wal::resume(config, &Recovered::empty(LogEnd::GENESIS)), disk: BTreeMap::new() }
    }

    fn settle(&mut self) {
        while let Some(effect) = self.wal.next_effect() {
            match effect {
                WalEffect::Write { id, segment, offset, data, .. } => {
                    let at = offset as usize;
                    self.disk.get_mut(&segment).expect("in place")[at..at + data.len()]
                        .copy_from_slice(&data);
                    self.wal.completed(id, Ok(()));
                }
                WalEffect::Flush { id, .. } => self.wal.completed(id, Ok(())),
                WalEffect::EnsureSegment { segment } => {
                    self.disk.insert(segment, vec![0; SEGMENT_BYTES_MIN as usize]);
                    self.wal.segment_ready(segment);
                }
            }
        }
    }

    fn load(&self, from: Lsn, bytes: usize) -> Vec<Frame> {
        let segment = &self.disk[&from.segment(SEGMENT_BYTES_MIN)];
        let at = from.offset(SEGMENT_BYTES_MIN) as usize;
        let mut len = bytes.next_multiple_of(BLOCK_BYTES);
        loop {
            let slice = SharedSlice::copy_of(&segment[at..(at + len).min(segment.len())]);
            let parsed = self.wal.parse_disk(from, &slice).expect("our own disk");
            match parsed.need {
                Some(need) => len = need,
                None => return parsed.frames,
            }
        }
    }

    fn tip(&self) -> LogTip {
        self.wal.end().into()
    }
}

#[test]
fn a_real_log_streams_from_disk_and_memory_and_arrives_byte_for_byte() {
    let mut rng = Prng::new(11);
    let (mut leader, mut standby) = (Node::new(64 << 10), Node::new(64 << 10));
    let mut history = History::new();
    history.append(term(1), Lsn::ZERO);
    let write = |leader: &mut Node, rng: &mut Prng| {
        let value = vec![rng.next_u64() as u8; rng.between(1, 20_000) as usize];
        leader.wal.writer().push(Record::Put {
            shard: ShardId(1),
            key: b"key",
            value: &value,
            created: true,
        });
        leader.wal.writer().end_transaction();
        let marks = SealMarks { term: term(1), commit: CommittedLsn::ZERO, clock: WallMs(1) };
        leader.wal.seal(marks).unwrap();
        leader.settle();
    };
    (0..200).for_each(|_| write(&mut leader, &mut rng));

    let own = Position {
        tip: standby.tip(),
        flushed: standby.wal.flushed(),
        applied: AppliedLsn::ZERO,
        committed: CommittedLsn::ZERO,
        history: History::new(),
    };
    let mut sender: Option<Sender> = None;
    let mut receiver: Option<Receiver> = None;
    let mut decoder = Decoder::new();
    decoder.authenticated(CLUSTER, 1);
    let (mut loads, mut turns) = (0, 0);
    while turns < 300 || standby.wal.flushed().lsn() < leader.tip().end {
        turns += 1;
        assert!(turns < 2000, "no progress at {}", standby.tip().end);
        if turns < 300 && turns % 3 == 0 {
            write(&mut leader, &mut rng);
        }
        let view = LogView {
            cluster: CLUSTER,
            version: 1,
            session: term(1),
            history: &history,
            tip: leader.tip(),
            oldest: leader.wal.first(),
            commit: CommittedLsn::ZERO,
            path: Path::of(NodeId(1)),
            eager_acks: false,
        };
        let sender = sender.get_or_insert_with(|| Sender::new(peer(2), &own.request(false), &view).unwrap());
        let step = match sender.next(&view, &leader) {
            Step::Load { from, bytes } => {
                loads += 1;
                sender.loaded(&view, Ok(leader.load(from, bytes)))
            }
            step => step,
        };
        if let Step::Send(out) = step {
            decoder.push(&out.to_vec()).unwrap();
        }
        while let Some(envelope) = decoder.next().unwrap() {
            match envelope.message {
                Message::StreamStart(start) => {
                    let started = Receiver::start(CLUSTER, term(1), term(1), &own, &start);
                    receiver = Some(started.unwrap());
                }
                Message::Frames { head, bytes } => {
                    let receiver = receiver.as_mut().expect("a stream start came first");
                    for frame in receiver.on_frames(term(1), &head, bytes).unwrap() {
                        standby.wal.receive(&frame.header, &frame.used).unwrap();
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        standby.settle();
        let Some(receiver) = &mut receiver else { continue };
        receiver.written(standby.wal.written());
        receiver.flushed(standby.wal.flushed());
        if let Some(ack) = receiver.take_ack() {
            sender.on_ack(&ack).unwrap();
        }
    }
    assert!(loads > 3, "the older part came from disk");
    assert_eq!(standby.tip(), leader.tip());
    assert!(leader.tip().end.segment(SEGMENT_BYTES_MIN) > 5, "segments and their fillers were crossed");
    let bytes = |node: &Node| {
        let all: Vec<u8> = node.disk.values().flatten().copied().collect();
        all[..node.tip().end.0 as usize].to_vec()
    };
    assert!(bytes(&standby) == bytes(&leader));
}
