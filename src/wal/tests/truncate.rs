//! Dropping an uncommitted tail and going on in a new term.

use super::*;
use crate::base::planted::{Bug, plant};

fn end_before(frames: &[Sealed], at: Lsn) -> LogEnd {
    frames.iter().map(|(h, _)| LogEnd::after(h)).find(|end| end.end == at).unwrap_or(LogEnd::GENESIS)
}

/// A log with a tail in every stage between memory and stable storage, truncated, overwritten, crashed.
fn life(seed: u64) {
    let mut rng = Prng::new(seed);
    let config = config(rng.between(1, 5) as usize, rng.chance(0.5));
    let mut rig = Rig::new(config);
    for _ in 0..rng.between(1, 60) {
        push(&mut rig.wal, rng.between(13, 15_000) as usize);
        if rig.wal.wants_seal() || rng.chance(0.1) {
            push(&mut rig.wal, 20);
            rig.wal.seal(SealMarks { term: term(1), commit: CommittedLsn::ZERO, clock: WallMs(1) }).unwrap();
        }
        rig.pump();
        rig.complete_one(&mut rng);
    }
    let mut model = rig.frames(Lsn::ZERO);
    let Some(fork) = model.get(rng.below(model.len() as u64 + 1) as usize).map(|(h, _)| h.first) else {
        return;
    };
    let end = end_before(&model, fork);
    let mut history = History::of(term(1));
    history.start(term(2), fork);
    let flushed_before = rig.wal.flushed().lsn();
    rig.wal.truncate(end).unwrap();
    model.retain(|(header, _)| header.first < fork);
    assert_eq!(rig.wal.end(), end);
    assert!(rig.wal.writer().is_empty());
    assert_eq!(rig.wal.flushed().lsn(), flushed_before.min(fork));
    assert_eq!(rig.frames(Lsn::ZERO), model, "seed {seed}");

    let mut promised = rig.wal.flushed().lsn();
    for _ in 0..rng.between(0, 60) {
        if rng.chance(0.5) {
            push(&mut rig.wal, rng.between(13, 15_000) as usize);
        }
        if rig.wal.wants_seal() {
            let from = rig.wal.end().end;
            rig.seal(&[], term(2)).unwrap();
            model.extend(rig.frames(from));
        }
        rig.pump();
        rig.complete_one(&mut rng);
        promised = promised.max(rig.wal.flushed().lsn());
        if rig.wal.idle() {
            let end = rig.wal.end().end;
            assert_eq!(stale_beyond(&mut rig.disk, end), None, "seed {seed}");
        }
    }
    rig.disk.cut_power(&mut rng);
    let recovered = rig.recover(&history, Lsn::ZERO);
    assert!(recovered.end.end >= promised, "seed {seed}");
    model.retain(|(header, _)| header.end() <= recovered.end.end);
    assert_eq!(all_frames(&mut rig.disk, recovered.end.end), model, "seed {seed}");
    assert!(!matches!(recovered.verdict, Verdict::Damaged { .. }), "seed {seed}: {:?}", recovered.verdict);
}

#[test]
fn a_truncated_tail_never_comes_back() {
    (0..150).for_each(life);
}

#[test]
fn nothing_known_to_be_committed_is_truncated() {
    let mut rig = Rig::new(config(2, true));
    let first = rig.seal(&[100], term(1)).unwrap().end;
    let second = rig.seal(&[100], term(1)).unwrap().end;
    rig.drain();
    let frames = rig.frames(Lsn::ZERO);
    rig.wal.note_committed(CommittedLsn(second));
    let to = end_before(&frames, first);
    assert_eq!(
        rig.wal.truncate(to),
        Err(TruncateError::BelowCommitted { to: first, committed: CommittedLsn(second) })
    );
    assert_eq!(rig.wal.end().end, second);
    let _bug = plant(Bug::TruncateBelowKnownCommit);
    assert_eq!(rig.wal.truncate(to), Ok(()));
}

#[test]
fn only_a_border_of_this_log_is_a_place_to_cut() {
    let mut rig = Rig::new(config(2, true));
    let first = rig.seal(&[9_000], term(1)).unwrap().end;
    rig.seal(&[100], term(1)).unwrap();
    let frames = rig.frames(Lsn::ZERO);
    let good = end_before(&frames, first);
    let inside = LogEnd { end: Lsn(4096), ..good };
    assert_eq!(rig.wal.truncate(inside), Err(TruncateError::NotABorder { to: Lsn(4096) }));
    let beyond = LogEnd { end: first + 65536, ..good };
    assert_eq!(rig.wal.truncate(beyond), Err(TruncateError::NotABorder { to: beyond.end }));
    let other = LogEnd { last_digest: crate::base::Digest(1), ..good };
    assert_eq!(rig.wal.truncate(other), Err(TruncateError::NotABorder { to: first }));
    assert_eq!(rig.wal.truncate(good), Ok(()));
}

#[test]
fn new_bytes_wait_until_the_old_ones_are_zeroed_and_flushed() {
    let mut rig = Rig::new(config(2, true));
    rig.seal(&[100], term(1)).unwrap();
    rig.seal(&[100], term(1)).unwrap();
    rig.drain();
    rig.wal.truncate(LogEnd::GENESIS).unwrap();
    rig.seal(&[100], term(2)).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let effect = rig.wal.next_effect().expect("one step at a time");
        assert!(rig.wal.next_effect().is_none());
        match effect {
            WalEffect::Write { id, offset: 0, data, .. } => {
                seen.push(if data.iter().all(|byte| *byte == 0) { "zero" } else { "frame" });
                rig.wal.completed(id, Ok(()));
            }
            WalEffect::Flush { id, segment: 0 } => {
                seen.push("flush");
                rig.wal.completed(id, Ok(()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["zero", "flush", "frame"]);
}

#[test]
fn zeroing_waits_for_writes_under_way() {
    let mut rig = Rig::new(config(2, true));
    rig.drain();
    rig.seal(&[100], term(1)).unwrap();
    rig.pump();
    let write = rig.under_way()[0];
    rig.wal.truncate(LogEnd::GENESIS).unwrap();
    assert!(rig.wal.next_effect().is_none(), "the old write could overtake the zeroes");
    rig.complete(write);
    assert!(matches!(rig.wal.next_effect(), Some(WalEffect::Write { .. })));
}

#[test]
fn a_dropped_tail_can_be_kept_as_a_file() {
    let mut rig = Rig::new(config(2, true));
    rig.seal(&[100], term(1)).unwrap();
    let from = rig.seal(&[payload_of(9)], term(1)).unwrap().end;
    rig.seal(&[payload_of(8)], term(1)).unwrap();
    let mut bytes = Vec::new();
    let tail = rig.frames(from);
    assert_eq!(tail.len(), 2, "a filler and a frame");
    tail.iter().for_each(|(header, used)| append_tail(header, used, &mut bytes));
    assert_eq!(bytes.len(), 9 * 4096);
    let read: Vec<Sealed> = TailFrames::new(rig.wal.geometry(), &bytes)
        .map(|frame| frame.map(|(header, used)| (header, used.to_vec())).unwrap())
        .collect();
    assert_eq!(read, tail);
    bytes[4096 + 200] ^= 1;
    assert!(TailFrames::new(rig.wal.geometry(), &bytes).any(|frame| frame.is_err()));
    assert_eq!(tail_file_name(from, term(1)), format!("tail-{:016x}-1-{:032x}", from.0, 1u128 << 96));
}

#[test]
fn groups_of_the_dropped_tail_lose_their_stamps() {
    let mut rig = Rig::new(config(4, true));
    let kept = rig.seal(&[100], term(1)).unwrap();
    let dropped = rig.seal(&[100], term(1)).unwrap();
    push(&mut rig.wal, 50);
    let frames = rig.frames(Lsn::ZERO);
    rig.wal.truncate(end_before(&frames, kept.end)).unwrap();
    assert_eq!(rig.wal.stamp_end(kept.stamp), Some(kept.end));
    assert_eq!(rig.wal.stamp_end(dropped.stamp), None);
    let next = rig.seal(&[100], term(2)).unwrap();
    assert!(next.stamp > dropped.stamp, "a stamp names one group for ever");
    assert_eq!(rig.wal.stamp_at(next.end), next.stamp);
}

/// A standby cuts its log at any border, also inside a write that carries several frames, at any stage; then it follows
/// a leader of the next term.
fn standby_life(seed: u64) {
    let mut rng = Prng::new(seed);
    let mut source = Rig::new(config(2, true));
    for _ in 0..40 {
        source.seal(&[rng.between(13, 9_000) as usize], term(1)).unwrap();
        source.drain();
    }
    let frames = source.frames(Lsn::ZERO);
    let config = config(rng.between(1, 3) as usize, rng.chance(0.5));
    let mut standby = Rig::new(config);
    let mut history = History::of(term(1));
    let follow = |standby: &mut Rig, frames: &[Sealed], rng: &mut Prng, steps: u64| {
        for _ in 0..steps {
            let at = standby.wal.end().end;
            if let Some((header, used)) = frames.iter().find(|(header, _)| header.first == at) {
                standby.wal.receive(header, used).unwrap();
            }
            if rng.chance(0.6) {
                standby.pump();
            }
            if rng.chance(0.4) {
                standby.complete_one(rng);
            }
        }
    };
    follow(&mut standby, &frames, &mut rng, 30);
    if rng.chance(0.5) {
        // The cut comes while the log still settles after a crash.
        standby.disk.cut_power(&mut rng);
        let recovered = standby.recover(&history, Lsn::ZERO);
        if matches!(recovered.verdict, Verdict::Damaged { .. }) {
            return;
        }
        standby = Rig::resume(config, &recovered, standby.disk);
        follow(&mut standby, &frames, &mut rng, 6);
    }
    let lowest = standby.wal.known_committed().lsn();
    let borders: Vec<LogEnd> = frames
        .iter()
        .map(|(header, _)| LogEnd::after(header))
        .filter(|end| end.end >= lowest && end.end <= standby.wal.end().end)
        .collect();
    if borders.is_empty() {
        return;
    }
    let fork = borders[rng.below(borders.len() as u64) as usize];
    history.start(term(2), fork.end);
    // The next leader's log: the same frames up to the fork, then its own.
    let mut leader = Rig::new(super::config(2, true));
    for (header, used) in frames.iter().filter(|(header, _)| header.end() <= fork.end) {
        leader.wal.receive(header, used).unwrap();
    }
    leader.drain();
    for _ in 0..20 {
        leader.seal(&[rng.between(13, 9_000) as usize], term(2)).unwrap();
        leader.drain();
    }
    let next = leader.frames(Lsn::ZERO);
    standby.wal.truncate(fork).unwrap();
    follow(&mut standby, &next, &mut rng, 15);
    let acked = standby.wal.flushed().lsn();
    if rng.chance(0.5) {
        standby.disk.cut_power(&mut rng);
        let recovered = standby.recover(&history, Lsn::ZERO);
        assert!(recovered.end.end >= acked, "seed {seed}");
        standby = Rig::resume(config, &recovered, standby.disk);
    }
    while standby.wal.end() != leader.wal.end() {
        follow(&mut standby, &next, &mut rng, 1);
    }
    standby.drain();
    assert_eq!(standby.wal.flushed(), leader.wal.flushed());
    assert_eq!(all_frames(&mut standby.disk, leader.wal.end().end), next, "seed {seed}");
    assert_eq!(stale_beyond(&mut standby.disk, leader.wal.end().end), None, "seed {seed}");
}

#[test]
fn a_standby_follows_another_history_after_the_cut() {
    (0..200).for_each(standby_life);
}

#[test]
fn a_cut_while_zeroing_keeps_what_zeroing_still_owes() {
    // A torn tail at 4096..16384; before it is zeroed, frames arrive and are cut again beyond the torn place.
    let mut rig = Rig::new(config(4, true));
    let mut source = Rig::new(config(4, true));
    source.drain();
    for _ in 0..4 {
        source.seal(&[100], term(1)).unwrap();
    }
    let frames = source.frames(Lsn::ZERO);
    rig.drain();
    frames.iter().for_each(|(header, used)| {
        rig.wal.receive(header, used).unwrap();
        rig.pump();
    });
    rig.drain();
    rig.disk.flip_bit(0, 4096 + 150, 1);
    let recovered = rig.recover(&History::of(term(1)), Lsn::ZERO);
    assert_eq!(recovered.verdict, Verdict::Torn { zero_from: Lsn(4096), zero_to: Lsn(16384) });
    let mut rig = Rig::resume(config(4, true), &recovered, rig.disk);
    for (header, used) in &frames[1..3] {
        rig.wal.receive(header, used).unwrap();
    }
    rig.wal.truncate(LogEnd::after(&frames[1].0)).unwrap();
    let Some(WalEffect::Write { offset, data, .. }) = rig.wal.next_effect() else { panic!("zeroes first") };
    assert_eq!((offset, data.len()), (4096, 12288), "all of the torn tail, not only what was cut");
}

#[test]
fn a_cut_of_what_a_restart_read_calls_nothing_durable_that_is_not() {
    let mut rig = Rig::new(config(4, false));
    rig.drain();
    rig.seal(&[100], term(1)).unwrap();
    rig.seal(&[100], term(1)).unwrap();
    let frames = rig.frames(Lsn::ZERO);
    rig.pump();
    rig.under_way().into_iter().for_each(|id| rig.complete(id));
    rig.disk.kill_process(&mut Prng::new(1));
    let recovered = rig.recover(&History::of(term(1)), Lsn::ZERO);
    assert_eq!(recovered.end.end, Lsn(8192));
    let mut rig = Rig::resume(config(4, false), &recovered, rig.disk);
    rig.wal.truncate(LogEnd::after(&frames[0].0)).unwrap();
    rig.drain();
    assert_eq!(rig.wal.flushed().lsn(), Lsn(4096));
    rig.disk.cut_power(&mut Prng::new(3));
    assert_eq!(rig.recover(&History::of(term(1)), Lsn::ZERO).end.end, Lsn(4096));
}
