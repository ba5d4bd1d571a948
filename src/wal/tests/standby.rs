//! A standby receives frames verbatim.

use super::*;
use crate::record::Corrupt;

/// A leader's frames, and its disk when all is durable.
fn leader(seed: u64, bytes: u64) -> (Rig, Vec<Sealed>) {
    let mut rng = Prng::new(seed);
    let mut rig = Rig::new(config(rng.between(1, 5) as usize, rng.chance(0.5)));
    while rig.wal.end().end.0 < bytes {
        push(&mut rig.wal, rng.between(13, 20_000) as usize);
        if rig.wal.wants_seal() {
            rig.seal(&[], term(1)).unwrap();
        }
        rig.pump();
        rig.complete_one(&mut rng);
    }
    rig.drain();
    let frames = rig.frames(Lsn::ZERO);
    (rig, frames)
}

#[test]
fn leader_and_standby_logs_are_equal_byte_for_byte() {
    for seed in 0..40 {
        let mut rng = Prng::new(seed);
        let (leader, frames) = leader(seed, 3 * SEGMENT);
        let mut standby = Rig::new(config(rng.between(1, 4) as usize, rng.chance(0.5)));
        for (header, used) in &frames {
            standby.wal.receive(header, used).unwrap();
            if rng.chance(0.5) {
                standby.pump();
                standby.complete_one(&mut rng);
            }
        }
        standby.drain();
        assert_eq!(standby.wal.end(), leader.wal.end());
        assert_eq!(standby.wal.flushed(), leader.wal.flushed());
        assert_eq!(standby.disk.images(), leader.disk.images(), "seed {seed}");
        assert_eq!(standby.frames(Lsn::ZERO), frames);
    }
}

/// What a standby has acknowledged survives; what it lost it fetches again, to equal bytes.
#[test]
fn a_standby_survives_crashes_and_catches_up() {
    let history = History::of(term(1));
    for seed in 0..60 {
        let mut rng = Prng::new(seed);
        let (leader, frames) = leader(seed, 2 * SEGMENT);
        let mut disk = Disk::new(SEGMENT);
        let mut acked = Lsn::ZERO;
        loop {
            let recovered = recover_disk(&mut disk, &history, Lsn::ZERO);
            assert!(recovered.end.end >= acked, "seed {seed}: acked {acked}, found {}", recovered.end.end);
            let mut standby =
                Rig::resume(config(rng.between(1, 4) as usize, rng.chance(0.5)), &recovered, disk);
            for _ in 0..rng.below(60) {
                let at = standby.wal.end().end;
                if let Some((header, used)) = frames.iter().find(|(header, _)| header.first == at) {
                    standby.wal.receive(header, used).unwrap();
                }
                standby.pump();
                standby.complete_one(&mut rng);
                acked = acked.max(standby.wal.flushed().lsn());
            }
            if standby.wal.end() == leader.wal.end() {
                standby.drain();
                let (own, theirs) = (standby.disk.images(), leader.disk.images());
                assert!(theirs.iter().all(|(segment, bytes)| own.get(segment) == Some(bytes)));
                break;
            }
            disk = standby.disk;
            if rng.chance(0.3) {
                disk.kill_process(&mut rng);
            } else {
                disk.cut_power(&mut rng);
            }
        }
    }
}

#[test]
fn neighbours_that_wait_leave_as_one_write() {
    let (_, frames) = leader(1, SEGMENT / 2);
    let mut standby = Rig::new(config(1, true));
    standby.drain();
    let mut writes = 0;
    for (header, used) in &frames {
        standby.wal.receive(header, used).unwrap();
        while let Some(effect) = standby.wal.next_effect() {
            writes += usize::from(matches!(effect, WalEffect::Write { .. }));
        }
    }
    assert_eq!(writes, 1, "the first write is under way, the rest waits together");
    assert_eq!(standby.wal.in_flight(), 2);
}

#[test]
fn frames_out_of_place_are_refused() {
    let (_, frames) = leader(2, SEGMENT);
    let mut standby = Rig::new(config(2, true));
    let wal = &mut standby.wal;
    let (second, used_second) = &frames[1];
    assert_eq!(
        wal.receive(second, used_second),
        Err(WalError::Gap { end: Lsn::ZERO, first: second.first }),
        "gap"
    );
    wal.receive(&frames[0].0, &frames[0].1).unwrap();
    assert_eq!(
        wal.receive(&frames[0].0, &frames[0].1),
        Err(WalError::Overlap { end: second.first, first: Lsn::ZERO }),
        "overlap"
    );

    let resealed = |change: &dyn Fn(&mut FrameHeader)| {
        let mut header = *second;
        change(&mut header);
        let mut used = used_second.clone();
        header.seal(&mut used);
        (header, used)
    };
    let corrupt = |text| Err(WalError::Corrupt(Corrupt(text)));
    let (header, used) = resealed(&|h| h.previous.0 ^= 1);
    assert_eq!(wal.receive(&header, &used), Err(WalError::Diverged { at: second.first }));
    let (header, used) = resealed(&|h| h.segment = 9);
    assert_eq!(wal.receive(&header, &used), corrupt("frame of another segment"));
    let (header, used) = resealed(&|h| h.cluster.0 ^= 1);
    assert_eq!(wal.receive(&header, &used), corrupt("frame of another cluster"));
    let (header, used) = resealed(&|h| h.term = Term::NONE);
    assert_eq!(wal.receive(&header, &used), Err(WalError::TermWentBack { at: second.first }));
    let (header, used) = resealed(&|h| h.commit = CommittedLsn(h.first + 4096));
    assert_eq!(wal.receive(&header, &used), corrupt("frame carries a mark beyond its own position"));
    let mut noisy = used_second.clone();
    *noisy.last_mut().unwrap() ^= 1;
    assert_eq!(wal.receive(second, &noisy), corrupt("frame digest does not match"));
    assert_eq!(wal.receive(second, &used_second[..second.used() - 1]), corrupt("frame is cut off"));
    let (other, _) = resealed(&|h| h.clock = WallMs(5));
    assert_eq!(wal.receive(&other, used_second), corrupt("header and bytes of a frame disagree"));

    assert_eq!(wal.end().end, second.first, "nothing of all that was taken");
    wal.receive(second, used_second).unwrap();
}

#[test]
fn padding_may_come_along_or_be_left_out() {
    let (_, frames) = leader(3, SEGMENT / 4);
    let mut bare = Rig::new(config(2, true));
    let mut padded = Rig::new(config(2, true));
    for (header, used) in &frames {
        bare.wal.receive(header, used).unwrap();
        let mut full = used.clone();
        full.resize(header.length as usize, 0xEE);
        padded.wal.receive(header, &full).unwrap();
    }
    bare.drain();
    padded.drain();
    assert_eq!(bare.disk.images(), padded.disk.images());
}

#[test]
fn a_standby_whose_disk_hangs_pushes_back() {
    let mut standby = Rig::new(config(2, true));
    let mut source = Rig::new(config(1, true));
    let refused = (0..4000).find_map(|_| {
        let from = source.wal.end().end;
        source.seal(&[payload_of(16)], term(1)).unwrap();
        source.drain();
        let (header, used) = source.frames(from).pop().unwrap();
        source.disk.remove(header.segment);
        standby.wal.receive(&header, &used).err()
    });
    assert!(matches!(refused, Some(WalError::Backlog { bytes }) if bytes <= 80 << 20), "{refused:?}");
}

#[test]
fn a_promoted_standby_goes_on_where_the_leader_ended() {
    let (_, frames) = leader(4, SEGMENT);
    let mut standby = Rig::new(config(2, true));
    for (header, used) in &frames {
        standby.wal.receive(header, used).unwrap();
    }
    let end = standby.wal.end();
    assert!(!standby.wal.wants_seal());
    let sealed = standby.seal(&[100], term(2)).unwrap();
    assert_eq!((sealed.first, sealed.stamp), (end.end, Stamp(1)));
    standby.drain();
    let header = standby.frames(end.end)[0].0;
    assert_eq!((header.previous, header.term), (end.last_digest, term(2)));
    // And an old leader's frame is no longer welcome.
    let (mut old, mut used) = frames[0].clone();
    old.first = standby.wal.end().end;
    old.segment = old.first.segment(SEGMENT);
    old.previous = standby.wal.end().last_digest;
    old.seal(&mut used);
    assert!(matches!(standby.wal.receive(&old, &used), Err(WalError::TermWentBack { .. })));
}
