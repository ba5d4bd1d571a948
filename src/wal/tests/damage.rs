//! Damage and torn tails are told apart, and damage is repaired by a peer's frames.

use super::*;
use crate::base::format;
use crate::base::planted::{Bug, plant};

/// A log of many frames, each sealed after the one before it was durable.
fn whole_log(seed: u64) -> (Rig, Vec<Sealed>) {
    let mut rng = Prng::new(seed);
    let mut rig = Rig::new(config(2, true));
    while rig.wal.end().end.0 < 2 * SEGMENT {
        rig.seal(&[rng.between(20, 12_000) as usize], term(1)).unwrap();
        rig.drain();
    }
    let frames = rig.frames(Lsn::ZERO);
    (rig, frames)
}

fn flip(disk: &mut Disk, header: &FrameHeader, rng: &mut Prng) {
    let at = header.first + rng.below(header.used() as u64);
    disk.flip_bit(at.segment(SEGMENT), at.offset(SEGMENT) as usize, rng.below(8) as u32);
}

#[test]
fn a_flipped_bit_in_the_durable_log_is_damage() {
    let history = History::of(term(1));
    for seed in 0..60 {
        let mut rng = Prng::new(seed);
        let (mut rig, frames) = whole_log(seed);
        // All but the last two: the frame after next carries a durable end beyond the flipped one.
        let victim = frames[rng.below(frames.len() as u64 - 2) as usize].0;
        flip(&mut rig.disk, &victim, &mut rng);
        let recovered = rig.recover(&history, Lsn::ZERO);
        let at = victim.first;
        let mark = frames.last().unwrap().0.durable.lsn();
        let stale_to = rig.wal.end().end;
        assert_eq!(recovered.end.end, at);
        assert_eq!(recovered.verdict, Verdict::Damaged { at, mark, stale_to }, "seed {seed}");
        assert_eq!(recovered.known_committed.lsn(), at.min(recovered.known_committed.lsn()));
    }
}

#[test]
fn a_hole_taken_for_the_end_is_noticed() {
    let (mut rig, frames) = whole_log(3);
    flip(&mut rig.disk, &frames[1].0, &mut Prng::new(3));
    let history = History::of(term(1));
    assert!(matches!(rig.recover(&history, Lsn::ZERO).verdict, Verdict::Damaged { .. }));
    let _bug = plant(Bug::TreatHoleAsEndOfLog);
    assert_eq!(rig.recover(&history, Lsn::ZERO).verdict, Verdict::Clean);
}

#[test]
fn a_flipped_bit_in_the_last_frame_is_damage_only_when_a_mark_covers_it() {
    let history = History::of(term(1));
    for seed in 0..40 {
        let mut rng = Prng::new(seed);
        let (mut rig, frames) = whole_log(seed);
        let last = frames.last().unwrap().0;
        flip(&mut rig.disk, &last, &mut rng);
        let torn = rig.recover(&history, last.first);
        assert_eq!(torn.end.end, last.first);
        assert!(!matches!(torn.verdict, Verdict::Damaged { .. }));
        let damaged = rig.recover(&history, last.end());
        let Verdict::Damaged { at, mark, .. } = damaged.verdict else { panic!("{:?}", damaged.verdict) };
        assert_eq!((at, mark), (last.first, last.end()));
    }
}

/// The same hole under the same frames: what counts is whether this node itself had flushed what is missing.
#[test]
fn the_marks_of_another_leader_make_no_damage() {
    let history = History::of(term(1));
    let term_at = |at| history.term_at(at);
    for seed in 0..40 {
        let mut rng = Prng::new(seed);
        let (mut rig, frames) = whole_log(seed);
        let victim = frames[rng.below(frames.len() as u64 - 2) as usize].0;
        flip(&mut rig.disk, &victim, &mut rng);
        let (at, stale_to) = (victim.first, rig.wal.end().end);
        let mut judge = |own_mark, own_term| {
            let params = RecoverParams {
                cluster: CLUSTER,
                segment_bytes: SEGMENT,
                from: Lsn::ZERO,
                before: None,
                term_at: &term_at,
                known_commit: Lsn::ZERO,
                own_mark,
                own_term,
                repair_mark: Lsn::ZERO,
            };
            recover(&mut rig.disk, &params).unwrap().verdict
        };
        // A standby that had flushed up to the hole lost nothing that it ever vouched for.
        assert_eq!(judge(at, None), Verdict::Torn { zero_from: at, zero_to: stale_to }, "seed {seed}");
        // One that had flushed further did.
        let mark = victim.end();
        assert_eq!(judge(mark, None), Verdict::Damaged { at, mark, stale_to }, "seed {seed}");
        // And the leader of that term wrote the marks itself.
        assert!(matches!(judge(at, Some(term(1))), Verdict::Damaged { .. }), "seed {seed}");
    }
}

#[test]
fn a_missing_segment_is_damage() {
    let (mut rig, frames) = whole_log(5);
    rig.disk.remove(0);
    let recovered = rig.recover(&History::of(term(1)), Lsn::ZERO);
    assert_eq!(recovered.end, LogEnd::GENESIS);
    let mark = frames.last().unwrap().0.durable.lsn();
    assert!(matches!(recovered.verdict, Verdict::Damaged { mark: m, .. } if m == mark));
}

#[test]
fn frames_of_a_term_that_history_disowns_are_no_evidence() {
    let (mut rig, frames) = whole_log(6);
    let fork = frames[3].0.first;
    let mut history = History::of(term(1));
    history.start(term(2), fork);
    let recovered = rig.recover(&history, fork);
    assert_eq!(recovered.end.end, fork);
    assert_eq!(recovered.verdict, Verdict::Torn { zero_from: fork, zero_to: rig.wal.end().end });
}

#[test]
fn a_damaged_log_takes_no_group() {
    let (mut rig, frames) = whole_log(7);
    flip(&mut rig.disk, &frames[2].0, &mut Prng::new(1));
    let recovered = rig.recover(&History::of(term(1)), Lsn::ZERO);
    let mut rig = Rig::resume(config(2, true), &recovered, rig.disk);
    assert!(matches!(rig.seal(&[50], term(2)), Err(WalError::Damaged { .. })));
}

/// A peer brings the missing frames; crashes on the way never make a damaged log look whole.
#[test]
fn a_peer_repairs_a_damaged_log() {
    let history = History::of(term(1));
    for seed in 0..80 {
        let mut rng = Prng::new(seed);
        let (rig, frames) = whole_log(seed);
        let (whole, end) = (rig.disk.images(), rig.wal.end());
        let mut disk = rig.disk;
        let victim = frames[rng.below(frames.len() as u64 - 2) as usize].0;
        flip(&mut disk, &victim, &mut rng);
        let mark = frames.last().unwrap().0.durable.lsn();
        loop {
            let term_at = |at| history.term_at(at);
            let params = RecoverParams {
                cluster: CLUSTER,
                segment_bytes: SEGMENT,
                from: Lsn::ZERO,
                before: None,
                term_at: &term_at,
                known_commit: Lsn::ZERO,
                own_mark: Lsn::ZERO,
                own_term: Some(term(1)),
                repair_mark: mark,
            };
            let recovered = recover(&mut disk, &params).unwrap();
            let damaged = matches!(recovered.verdict, Verdict::Damaged { .. });
            assert_eq!(damaged, recovered.end.end < mark, "seed {seed}");
            let mut rig = Rig::resume(config(rng.between(1, 4) as usize, rng.chance(0.5)), &recovered, disk);
            let crash_after = rng.below(40);
            for _ in 0..crash_after {
                let at = rig.wal.end().end;
                if let Some((header, used)) = frames.iter().find(|(header, _)| header.first == at) {
                    rig.wal.receive(header, used).unwrap();
                }
                rig.pump();
                rig.complete_one(&mut rng);
                assert!(rig.wal.damaged().is_some() || rig.wal.flushed().lsn() >= mark || !damaged);
            }
            if rig.wal.end() == end {
                rig.drain();
                assert_eq!(rig.wal.damaged(), None);
                assert_eq!(stale_beyond(&mut rig.disk, end.end), None);
                assert_eq!(all_frames(&mut rig.disk, end.end), frames);
                let repaired = rig.disk.images();
                assert!(whole.iter().all(|(segment, bytes)| repaired.get(segment) == Some(bytes)));
                break;
            }
            disk = rig.disk;
            disk.cut_power(&mut rng);
        }
    }
}

/// A new leader's log ends before the damaged node's stale frames: they are cleared once the log is whole.
#[test]
fn stale_frames_beyond_a_repair_are_cleared() {
    let (mut rig, frames) = whole_log(11);
    let victim = frames[1].0;
    flip(&mut rig.disk, &victim, &mut Prng::new(1));
    let recovered = rig.recover(&History::of(term(1)), Lsn::ZERO);
    let Verdict::Damaged { mark, stale_to, .. } = recovered.verdict else {
        panic!("{:?}", recovered.verdict)
    };
    let mut rig = Rig::resume(config(2, true), &recovered, rig.disk);
    for (header, used) in frames.iter().filter(|(h, _)| h.first >= victim.first && h.end() <= mark) {
        rig.wal.receive(header, used).unwrap();
    }
    assert!(rig.wal.end().end < stale_to);
    rig.drain();
    assert_eq!(rig.wal.damaged(), None);
    assert_eq!(stale_beyond(&mut rig.disk, rig.wal.end().end), None);
}

#[test]
fn truncation_does_not_wipe_the_evidence_of_damage() {
    let (mut rig, frames) = whole_log(12);
    let victim = frames[4].0;
    flip(&mut rig.disk, &victim, &mut Prng::new(1));
    let recovered = rig.recover(&History::of(term(1)), Lsn::ZERO);
    let mut rig = Rig::resume(config(2, true), &recovered, rig.disk);
    assert!(matches!(rig.wal.truncate(rig.wal.end()), Err(TruncateError::Damaged { .. })));
    rig.drain();
    let again = rig.recover(&History::of(term(1)), Lsn::ZERO);
    assert_eq!(again.verdict, recovered.verdict);
}

/// The repair has overwritten the frame that told of the damage: only the mark kept in the control file still tells.
#[test]
fn an_unfinished_repair_is_remembered_by_its_mark() {
    let (mut rig, frames) = whole_log(13);
    let victim = frames[2].0;
    flip(&mut rig.disk, &victim, &mut Prng::new(1));
    let history = History::of(term(1));
    let Verdict::Damaged { at, mark, .. } = rig.recover(&history, Lsn::ZERO).verdict else {
        panic!("damaged")
    };
    for (header, _) in frames.iter().filter(|(header, _)| header.first >= at) {
        rig.disk.flip_bit(header.segment, header.first.offset(SEGMENT) as usize, 0);
    }
    assert_eq!(rig.recover(&history, Lsn::ZERO).verdict, Verdict::Clean, "no evidence is left");
    let term_at = |at| history.term_at(at);
    let params = RecoverParams {
        cluster: CLUSTER,
        segment_bytes: SEGMENT,
        from: Lsn::ZERO,
        before: None,
        term_at: &term_at,
        known_commit: Lsn::ZERO,
        own_mark: Lsn::ZERO,
        own_term: Some(term(1)),
        repair_mark: mark,
    };
    let recovered = recover(&mut rig.disk, &params).unwrap();
    assert_eq!(recovered.verdict, Verdict::Damaged { at, mark, stale_to: at });
}

#[test]
fn a_cut_below_the_damage_ends_it() {
    let mut rig = Rig::new(config(2, true));
    for _ in 0..6 {
        push(&mut rig.wal, 5_000);
        let marks = SealMarks { term: term(1), commit: CommittedLsn::ZERO, clock: WallMs(1) };
        rig.wal.seal(marks).unwrap();
        rig.drain();
    }
    let frames = rig.frames(Lsn::ZERO);
    flip(&mut rig.disk, &frames[3].0, &mut Prng::new(1));
    let mut history = History::of(term(1));
    let recovered = rig.recover(&history, Lsn::ZERO);
    assert!(matches!(recovered.verdict, Verdict::Damaged { .. }));
    let mut rig = Rig::resume(config(2, true), &recovered, rig.disk);
    let fork = LogEnd::after(&frames[1].0);
    history.start(term(2), fork.end);
    rig.wal.truncate(fork).unwrap();
    rig.drain();
    assert_eq!(rig.wal.damaged(), None);
    assert_eq!(stale_beyond(&mut rig.disk, fork.end), None);
    assert_eq!(rig.recover(&history, Lsn::ZERO).verdict, Verdict::Clean);
}

#[test]
fn a_log_without_one_readable_frame_takes_what_a_peer_brings() {
    let (mut rig, frames) = whole_log(15);
    let end = rig.wal.end();
    let start = frames.iter().position(|(header, _)| header.segment == 1).unwrap();
    rig.disk.remove(0);
    frames[start..].iter().for_each(|(header, _)| {
        rig.disk.flip_bit(header.segment, header.first.offset(SEGMENT) as usize, 0);
    });
    let history = History::of(term(1));
    let term_at = |at| history.term_at(at);
    let params = RecoverParams {
        cluster: CLUSTER,
        segment_bytes: SEGMENT,
        from: Lsn(SEGMENT),
        before: None,
        term_at: &term_at,
        known_commit: Lsn(SEGMENT),
        own_mark: Lsn::ZERO,
        own_term: Some(term(1)),
        repair_mark: Lsn::ZERO,
    };
    let recovered = recover(&mut rig.disk, &params).unwrap();
    assert!(matches!(recovered.verdict, Verdict::Damaged { at: Lsn(SEGMENT), .. }));
    assert!(!recovered.end.chain_known());
    let mut rig = Rig::resume(config(2, true), &recovered, rig.disk);
    assert!(matches!(rig.seal(&[20], term(2)), Err(WalError::Damaged { .. })));
    for (header, used) in &frames[start..] {
        rig.wal.receive(header, used).unwrap();
    }
    rig.drain();
    assert_eq!((rig.wal.end(), rig.wal.damaged()), (end, None));
    // Somebody who kept the end spares the node all that.
    let before = Some(LogEnd::after(&frames[start - 1].0));
    let recovered = recover(&mut rig.disk, &RecoverParams { before, ..params }).unwrap();
    assert_eq!((recovered.end, recovered.verdict), (end, Verdict::Clean));
}

/// A frame that is right in itself and stands in its place, but follows another predecessor.
#[test]
fn a_frame_of_another_chain_ends_the_log() {
    let (mut rig, frames) = whole_log(16);
    let (mut header, mut used) = frames[1].clone();
    header.previous.0 ^= 1;
    header.seal(&mut used);
    used.resize((header.length as usize).min(used.len().next_multiple_of(4096)), 0);
    let op = rig.disk.write(0, header.first.0, &used, true);
    rig.disk.complete(op);
    assert_eq!(rig.recover(&History::of(term(1)), Lsn::ZERO).end.end, header.first);
    let bytes = rig.disk.read(0, 0, SEGMENT as usize).unwrap().unwrap().share();
    assert!(
        matches!(rig.wal.parse_disk(Lsn::ZERO, &bytes), Err(ScanError::Bad { at, .. }) if at == header.first)
    );
}

/// The disk put a good write into the wrong place of the same segment.
#[test]
fn a_misdirected_frame_is_nothing() {
    let (mut rig, frames) = whole_log(17);
    let victim = frames[1].0;
    let (_, other) = &frames[0];
    let mut bytes = other.clone();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    let op = rig.disk.write(0, victim.first.0, &bytes, true);
    rig.disk.complete(op);
    let recovered = rig.recover(&History::of(term(1)), Lsn::ZERO);
    assert_eq!(recovered.end.end, victim.first);
    assert!(matches!(recovered.verdict, Verdict::Damaged { .. }));
    let geometry = rig.wal.geometry();
    let why = geometry.frame(victim.first, &bytes).unwrap_err();
    assert_eq!(why.0, "frame of another position");
}

/// Frames of a newer format are neither torn nor damaged: an older build must not judge, cut or zero them.
#[test]
fn a_log_of_a_newer_baton_is_refused_as_such() {
    let history = History::of(term(1));
    for (old, crash_after) in [(5, 0), (0, 0), (5, 1)] {
        let mut rig = Rig::new(config(2, true));
        for _ in 0..old {
            rig.seal(&[700], term(1)).unwrap();
            rig.drain();
        }
        let at = rig.wal.end().end;
        format::play_on_this_thread(Some(format::FORMAT_VERSION + 1));
        rig.wal.write_format(format::FORMAT_VERSION + 1);
        for _ in 0..3 {
            rig.seal(&[9_000], term(1)).unwrap();
            rig.drain();
        }
        assert!(try_recover(&mut rig.disk, &history, Lsn::ZERO).is_ok(), "the newer build reads both");
        format::play_on_this_thread(None);
        if crash_after == 1 {
            // Even with a hole in front of them: what stands behind it is the newer build's to judge.
            rig.disk.flip_bit(at.segment(SEGMENT), at.offset(SEGMENT) as usize + 200, 3);
        }
        let refused = try_recover(&mut rig.disk, &history, Lsn::ZERO);
        let Err(RecoverError::Newer { at: found, version }) = refused else { panic!("{refused:?}") };
        assert!(version == format::FORMAT_VERSION + 1 && found >= at, "{found} {version}");
        assert!(crash_after == 1 || found == at);
        let text = RecoverError::Newer { at: found, version }.to_string();
        assert!(text.contains("written by a newer baton (format 2, this build reads up to 1)"), "{text}");
    }
}
