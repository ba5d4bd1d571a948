//! The codec: what goes out comes back, in any pieces; what was changed on the way does not.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::{CLUSTER, TestLog, term};
use crate::base::limits::{PEER_MESSAGE_BYTES_MAX, SHARDS_MAX};
use crate::base::{
    AppliedLsn, ClusterId, CommittedLsn, Digest, FlushedLsn, Incarnation, Lsn, Mono, NodeId, Prng, ShardId,
    Term, WallMs,
};
use crate::replication::chain::Chain;
use crate::replication::sender::{Outbound, gather};
use crate::replication::wire::codec::{self, DIGEST_AT};
use crate::replication::wire::*;
use crate::role::History;

const STAMPED: Stamped =
    Stamped { cluster: CLUSTER, session: Term { number: 7, id: 70 }, version: VERSION_MIN };

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&STAMPED, message, &mut out);
    out
}

fn decoder_for(kind: Kind) -> Decoder {
    let mut decoder = Decoder::new();
    if !kind.is_handshake() {
        decoder.authenticated(CLUSTER, VERSION_MIN);
    }
    decoder
}

fn decode(kind: Kind, bytes: &[u8]) -> Result<Option<Envelope>, WireError> {
    let mut decoder = decoder_for(kind);
    decoder.push(bytes)?;
    decoder.next()
}

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn border() -> impl Strategy<Value = Lsn> {
    (0..u64::MAX / 4096).prop_map(|block| Lsn(block * 4096))
}

fn history() -> impl Strategy<Value = History> {
    prop::collection::vec((1u64..5, 1u64..9, any::<u128>()), 0..20).prop_map(|steps| {
        let (mut number, mut start, mut entries) = (0, 0, Vec::new());
        for (terms, blocks, id) in steps {
            number += terms;
            entries.push((Term { number, id }, Lsn(start)));
            start += blocks * 4096;
        }
        History::from_entries(entries).expect("ascending")
    })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    let reason = prop_oneof![
        prop::option::of(1u16..40).prop_map(|node| RefuseReason::NotUpstream { leader: node.map(NodeId) }),
        border().prop_map(|fork| RefuseReason::Diverged { fork }),
        border().prop_map(|oldest| RefuseReason::WalRemoved { oldest }),
        border().prop_map(|at| RefuseReason::ChainMismatch { at }),
        border().prop_map(|end| RefuseReason::Behind { end }),
        any::<(u64, u128)>().prop_map(|(number, id)| RefuseReason::OtherTerm { term: Term { number, id } }),
        Just(RefuseReason::TooMany),
        Just(RefuseReason::Unhealthy),
        Just(RefuseReason::Loop),
        Just(RefuseReason::Left),
    ];
    (reason, "[a-z]{0,64}").prop_map(|(reason, text)| Refusal { reason, text })
}

fn path() -> impl Strategy<Value = Path> {
    prop::collection::btree_set(1u16..40, 0..8)
        .prop_map(|nodes| Path::from_nodes(nodes.into_iter().map(NodeId)).expect("nobody twice"))
}

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..300)
}

fn frames() -> impl Strategy<Value = (FramesHead, Bytes)> {
    (border(), 1u64..100, any::<u64>(), 1u32..9, any::<bool>(), some_bytes()).prop_map(
        |(first, blocks, commit, count, eager_acks, bytes)| {
            let first = Lsn(first.0 / 2 / 4096 * 4096);
            let head = FramesHead {
                first,
                end: first + blocks * 4096,
                commit: CommittedLsn(Lsn(commit)),
                count,
                eager_acks,
            };
            (head, Bytes::from(bytes))
        },
    )
}

fn hello() -> impl Strategy<Value = Message> {
    any::<(u16, u128, u128, u16, u16, u16, [u8; 32])>().prop_map(|(node, inc, run, wants, a, b, nonce)| {
        Message::Hello(Hello {
            node: NodeId(node),
            incarnation: Incarnation(inc),
            run,
            wants: NodeId(wants),
            version_min: a.min(b),
            version_max: a.max(b),
            nonce,
        })
    })
}

fn challenge() -> impl Strategy<Value = Message> {
    any::<(u16, u128, u128, u16, u16, u16, [u8; 32])>().prop_map(|(node, inc, run, version, a, b, nonce)| {
        Message::Challenge(Challenge {
            node: NodeId(node),
            incarnation: Incarnation(inc),
            run,
            version,
            version_min: a.min(b),
            version_max: a.max(b),
            nonce,
        })
    })
}

fn stream_message() -> impl Strategy<Value = Message> {
    let request = (border(), any::<(u64, u128, u128, u64, bool)>(), history()).prop_map(
        |(end, (number, id, digest, committed, cascade), history)| {
            Message::StreamRequest(StreamRequest {
                tip: LogTip { end, term: Term { number, id }, digest: Digest(digest) },
                committed: CommittedLsn(Lsn(committed)),
                cascade,
                history,
            })
        },
    );
    let start =
        (border(), border(), lsn(), path(), history()).prop_map(|(from, end, commit, path, history)| {
            Message::StreamStart(StreamStart { from, commit: CommittedLsn(commit), end, path, history })
        });
    let ack =
        (lsn(), lsn(), lsn(), lsn(), lsn()).prop_map(|(written, flushed, applied, matched, committed)| {
            Message::Ack(Ack {
                written,
                flushed: FlushedLsn(flushed),
                applied: AppliedLsn(applied),
                matched,
                committed: CommittedLsn(committed),
            })
        });
    prop_oneof![
        request,
        start,
        refusal().prop_map(Message::StreamRefuse),
        frames().prop_map(|(head, bytes)| Message::Frames { head, bytes }),
        ack,
        lsn().prop_map(|at| Message::Commit(CommittedLsn(at))),
    ]
}

fn other_message() -> impl Strategy<Value = Message> {
    let beat =
        (any::<(u64, u64, u64, u64, u64, bool)>(), any::<u64>(), path()).prop_map(|(told, tip, path)| {
            let (seq, sent, commit, end, clock, wants_grant) = told;
            Message::Heartbeat(Heartbeat {
                seq,
                sent: Mono(sent),
                commit: CommittedLsn(Lsn(commit)),
                end: Lsn(end),
                clock: WallMs(clock),
                wants_grant,
                tip: Lsn(tip),
                path,
            })
        });
    let roots = prop::collection::vec(any::<(u16, u64, u128)>(), 0..20).prop_map(|roots| {
        let root = |(shard, lsn, digest)| RootEvidence {
            shard: ShardId(shard),
            lsn: Lsn(lsn),
            digest: Digest(digest),
        };
        Message::CheckpointRoots(roots.into_iter().map(root).collect())
    });
    let verdict = any::<(u16, u8, u64, u128, u64, u128, u128)>().prop_map(
        |(shard, finding, lsn, digest, base, base_digest, log_digest)| {
            Message::RootVerdict(RootVerdict {
                shard: ShardId(shard),
                finding: [Finding::Sound, Finding::Sick, Finding::Unable][usize::from(finding % 3)],
                lsn: Lsn(lsn),
                digest: Digest(digest),
                base: Lsn(base),
                base_digest: Digest(base_digest),
                log_digest: Digest(log_digest),
            })
        },
    );
    let fetch = (any::<(u64, u16, u64, u128, u8, bool)>(), 0u32..9_000_000, some_bytes()).prop_map(
        |((id, shard, checkpoint, digest, level, node), len, key)| {
            let digest = Digest(digest);
            let wanted = match node {
                true => PageWanted::Node { level, digest },
                false => PageWanted::Value { digest, len: len.min(8 << 20) },
            };
            let (shard, checkpoint) = (ShardId(shard), Lsn(checkpoint));
            Message::PageFetch(PageFetch { id, shard, checkpoint, wanted, key })
        },
    );
    let reply = (any::<(u64, u64, u8)>(), prop::collection::vec(any::<u8>(), 1..400)).prop_map(
        |((id, birth, how), bytes)| {
            let found = match how % 4 {
                0 => Err(NoPage::NotHere),
                1 => Err(NoPage::Busy),
                _ => Ok((Lsn(birth), Bytes::from(bytes))),
            };
            Message::PageReply(PageReply { id, found })
        },
    );
    prop_oneof![
        beat,
        verdict,
        fetch,
        reply,
        any::<(u64, u64, bool)>().prop_map(|(seq, sent, granted)| {
            Message::HeartbeatAck(HeartbeatAck { seq, sent: Mono(sent), granted })
        }),
        Just(Message::LeaseRelease),
        (border(), lsn()).prop_map(|(from, to)| Message::LogFetch { from, to }),
        frames().prop_map(|(head, bytes)| Message::FetchedFrames { head, bytes }),
        lsn().prop_map(|end| Message::FetchDone { end }),
        refusal().prop_map(Message::FetchRefuse),
        roots,
        some_bytes().prop_map(Message::Role),
        some_bytes().prop_map(|bytes| Message::Build(Bytes::from(bytes))),
        some_bytes().prop_map(Message::StatusRequest),
        some_bytes().prop_map(Message::StatusReply),
    ]
}

fn handshake_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        hello(),
        challenge(),
        any::<[u8; 32]>().prop_map(Message::Proof),
        any::<[u8; 32]>().prop_map(Message::Welcome),
        (0..GoodbyeReason::ALL.len(), "[ -~]{0,100}")
            .prop_map(|(reason, text)| Message::Goodbye { reason: GoodbyeReason::ALL[reason], text }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![1 => handshake_message(), 2 => stream_message(), 3 => other_message()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_message_survives_its_bytes(message in message()) {
        let bytes = encoded(&message);
        let got = decode(message.kind(), &bytes).unwrap().expect("the message is whole");
        prop_assert_eq!(got, Envelope { stamped: STAMPED, message });
    }

    #[test]
    fn pieces_of_any_size_give_the_same_messages(
        messages in prop::collection::vec(prop_oneof![stream_message(), other_message()], 1..12),
        seed in any::<u64>(),
    ) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| encode(&STAMPED, message, &mut bytes));
        let (mut rng, mut rest) = (Prng::new(seed), &bytes[..]);
        let mut decoder = Decoder::new();
        decoder.authenticated(CLUSTER, VERSION_MIN);
        let mut got = Vec::new();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rng.between(1, 200).min(rest.len() as u64) as usize);
            decoder.push(piece).unwrap();
            while let Some(envelope) = decoder.next().unwrap() {
                got.push(envelope.message);
            }
            rest = after;
        }
        prop_assert_eq!(got, messages);
        prop_assert_eq!(decoder.buffered(), 0);
    }

    #[test]
    fn cut_off_messages_wait_for_more(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&message);
        let cut = cut.index(bytes.len());
        prop_assert_eq!(decode(message.kind(), &bytes[..cut]), Ok(None));
    }

    #[test]
    fn random_bytes_are_no_message(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        for kind in [Kind::Hello, Kind::Ack] {
            prop_assert!(!matches!(decode(kind, &bytes), Ok(Some(_))));
        }
    }

    /// The body parsers see what only a peer with a correct checksum could send. What they accept, they would have
    /// written in the same way: no two byte strings mean the same message.
    #[test]
    fn accepted_bodies_are_canonical(
        kind in prop::sample::select(&Kind::ALL[..]),
        template in message(),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut body = if template.kind() == kind { encoded(&template)[ENVELOPE_BYTES..].to_vec() } else { noise };
        for (at, bits) in flips {
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] ^= bits;
            }
        }
        if body.len() > kind.body_bytes_max() {
            return Ok(());
        }
        let bytes = resealed(kind, &body);
        if let Ok(Some(envelope)) = decode(kind, &bytes) {
            prop_assert_eq!(encoded(&envelope.message), bytes);
        }
    }
}

/// An envelope with a correct checksum around any body.
fn resealed(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut bytes = encoded(&Message::LeaseRelease);
    bytes[6] = kind as u8;
    bytes[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    let digest = codec::digest(&bytes[..ENVELOPE_BYTES], kind.covered(body));
    bytes[DIGEST_AT..ENVELOPE_BYTES].copy_from_slice(&digest.0.to_le_bytes());
    bytes
}

/// One message of every kind, in which no field is zero.
fn samples() -> Vec<Message> {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    Kind::ALL
        .iter()
        .map(|kind| {
            loop {
                let message = message().new_tree(&mut runner).expect("a message").current();
                if message.kind() == *kind {
                    break message;
                }
            }
        })
        .collect()
}

#[test]
fn every_flipped_bit_is_found() {
    for message in samples() {
        let bytes = encoded(&message);
        let covered = ENVELOPE_BYTES + message.kind().covered(&bytes[ENVELOPE_BYTES..]).len();
        for bit in 0..covered * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // A longer length only waits for bytes; the checksum then fails. Nothing is ever accepted.
            assert!(!matches!(decode(message.kind(), &bad), Ok(Some(_))), "bit {bit} of {message:?}");
        }
    }
}

#[test]
fn every_flipped_bit_in_shipped_frames_is_found() {
    let mut log = TestLog::new();
    log.begin(term(1));
    log.append(b"some payload");
    let mut out = Outbound::default();
    gather(&log.view(term(1)), Kind::Frames, Lsn::ZERO, log.frames.clone(), 1 << 20, &mut out);
    let bytes = out.to_vec();
    let accepted = |bytes: &[u8]| match decode(Kind::Frames, bytes) {
        Ok(Some(Envelope { message: Message::Frames { head, bytes }, .. })) => {
            let mut chain = Chain::new(CLUSTER, log.history.clone(), LogTip::default());
            chain.accept(&head, bytes).is_ok()
        }
        _ => false,
    };
    assert!(accepted(&bytes));
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!accepted(&bad), "flip of bit {bit} passed");
    }
}

#[test]
fn a_declared_length_allocates_nothing_and_is_bounded() {
    let mut huge = encoded(&Message::LeaseRelease);
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = decode(Kind::LeaseRelease, &huge).unwrap_err();
    assert_eq!(error, WireError::TooLong { kind: Kind::LeaseRelease, bytes: u64::from(u32::MAX) });

    let mut legal = encoded(&Message::LeaseRelease);
    legal[6] = Kind::Frames as u8;
    legal[8..12].copy_from_slice(&((PEER_MESSAGE_BYTES_MAX - ENVELOPE_BYTES) as u32).to_le_bytes());
    let mut decoder = decoder_for(Kind::Frames);
    decoder.push(&legal).unwrap();
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.buffered(), ENVELOPE_BYTES);
}

#[test]
fn a_stranger_cannot_fill_the_memory() {
    let mut decoder = Decoder::new();
    let frames = encoded(&Message::Build(Bytes::from_static(b"x")));
    decoder.push(&frames).unwrap();
    assert_eq!(decoder.next(), Err(WireError::NotAuthenticated(Kind::Build)));
    assert_eq!(
        decoder.push(&frames),
        Err(WireError::NotAuthenticated(Kind::Build)),
        "the first error is final"
    );

    let mut decoder = Decoder::new();
    let chunk = vec![0u8; 64 << 10];
    let pushed = (0..100).take_while(|_| decoder.push(&chunk).is_ok()).count();
    assert!(pushed < 20 && decoder.buffered() == 0);
}

#[test]
fn another_cluster_version_or_phase_is_named() {
    let bytes = encoded(&Message::Commit(CommittedLsn(Lsn(1))));
    let mut decoder = Decoder::new();
    decoder.authenticated(ClusterId(9), VERSION_MIN);
    decoder.push(&bytes).unwrap();
    assert_eq!(decoder.next(), Err(WireError::OtherCluster { got: CLUSTER, want: ClusterId(9) }));

    let mut decoder = Decoder::new();
    decoder.authenticated(CLUSTER, 2);
    decoder.push(&bytes).unwrap();
    assert_eq!(decoder.next(), Err(WireError::OtherVersion { got: 1, want: 2 }));

    let mut decoder = decoder_for(Kind::Ack);
    decoder.push(&encoded(&Message::Proof([0; 32]))).unwrap();
    assert_eq!(decoder.next(), Err(WireError::AlreadyAuthenticated(Kind::Proof)));

    let mut decoder = decoder_for(Kind::Ack);
    decoder
        .push(b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: something that is longer than an envelope\r\n")
        .unwrap();
    assert_eq!(decoder.next(), Err(WireError::NoMagic));
}

#[test]
fn the_largest_frame_fits_one_message() {
    let mut log = TestLog::new();
    log.begin(term(1));
    log.append(&vec![7; crate::base::limits::FRAME_BYTES_MAX - 4096]);
    log.append(b"next");
    let mut out = Outbound::default();
    let from = log.frames[1].0.first;
    let end =
        gather(&log.view(term(1)), Kind::Frames, from, log.read(from, usize::MAX), usize::MAX, &mut out);
    assert!(out.len() <= PEER_MESSAGE_BYTES_MAX && end > from);
    let mut decoder = decoder_for(Kind::Frames);
    for piece in out.to_vec().chunks(100_000) {
        decoder.push(piece).unwrap();
        if let Some(envelope) = decoder.next().unwrap() {
            assert!(matches!(envelope.message, Message::Frames { head, .. } if head.end == end));
            assert_eq!(decoder.buffered(), 0);
            return;
        }
    }
    panic!("the message never came out");
}

#[test]
fn long_texts_are_clipped_at_a_character() {
    let text = "ü".repeat(TEXT_BYTES_MAX);
    let bytes = encoded(&Message::Goodbye { reason: GoodbyeReason::Silent, text });
    let Ok(Some(Envelope { message: Message::Goodbye { text, .. }, .. })) = decode(Kind::Goodbye, &bytes)
    else {
        panic!("not decoded")
    };
    assert_eq!(text, "ü".repeat(TEXT_BYTES_MAX / 2));
}

#[test]
fn kinds_and_reasons_lead_back_from_their_numbers() {
    assert!(Kind::ALL.iter().all(|kind| Kind::from_number(*kind as u8) == Some(*kind)));
    assert!(GoodbyeReason::ALL.iter().all(|r| GoodbyeReason::from_number(*r as u16) == Some(*r)));
    assert_eq!((Kind::from_number(0), Kind::from_number(255)), (None, None));
    let full =
        vec![RootEvidence { shard: ShardId(1), lsn: Lsn(2), digest: Digest(3) }; usize::from(SHARDS_MAX)];
    let bytes = encoded(&Message::CheckpointRoots(full.clone()));
    assert_eq!(
        decode(Kind::CheckpointRoots, &bytes).unwrap().unwrap().message,
        Message::CheckpointRoots(full)
    );
}

/// The bytes on the wire are a contract between versions: this one message is pinned byte by byte.
#[test]
fn the_layout_is_pinned() {
    let ack = Message::Ack(Ack {
        written: Lsn(0x0101),
        flushed: FlushedLsn(Lsn(0x0202)),
        applied: AppliedLsn(Lsn(0x0303)),
        matched: Lsn(0x0404),
        committed: CommittedLsn(Lsn(0x0505)),
    });
    let bytes = encoded(&ack);
    assert_eq!(bytes.len(), ENVELOPE_BYTES + 40);
    assert_eq!(&bytes[..16], b"BTNP\x01\x00\x14\x00\x28\x00\x00\x00\x00\x00\x00\x00");
    assert_eq!(bytes[16..32], CLUSTER.0.to_le_bytes());
    assert_eq!(bytes[32..40], 7u64.to_le_bytes());
    assert_eq!(bytes[40..56], 70u128.to_le_bytes());
    let words: Vec<u64> =
        bytes[72..].chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [0x0101, 0x0202, 0x0303, 0x0404, 0x0505]);
}
