//! Crashes at any moment, again and again, on the same disk.

use super::*;
use crate::base::planted::{Bug, plant};

/// What one run found wrong.
type Outcome = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(format!($($text)*));
        }
    };
}

fn random_size(rng: &mut Prng) -> usize {
    match rng.below(10) {
        0 => payload_of(rng.between(1, 16) as usize),
        1..3 => rng.between(13, 60_000) as usize,
        _ => rng.between(13, 6_000) as usize,
    }
}

/// A lone leader writes, crashes, recovers and goes on in a new term, several times.
fn leader_life(seed: u64) -> Outcome {
    let mut rng = Prng::new(seed);
    let config = config(rng.between(1, 5) as usize, rng.chance(0.5));
    let mut history = History::default();
    let mut disk = Disk::new(SEGMENT);
    let mut model: Vec<Sealed> = Vec::new();
    let mut promised = Lsn::ZERO;
    let mut known_commit = Lsn::ZERO;

    for life in 1..=6 {
        let recovered = recover_disk(&mut disk, &history, known_commit);
        let end = recovered.end.end;
        ensure!(
            !matches!(recovered.verdict, Verdict::Damaged { .. }),
            "life {life}: {:?}",
            recovered.verdict
        );
        ensure!(end >= promised, "life {life}: flushed to {promised}, recovered only to {end}");
        ensure!(recovered.known_committed.lsn() >= known_commit, "life {life}: known commit went back");
        model.retain(|(header, _)| header.end() <= end);
        ensure!(all_frames(&mut disk, end) == model, "life {life}: other frames than were sealed");
        let own_term = term(life);
        history.start(own_term, end);

        if rng.chance(0.2) {
            // The power fails while the end of the log is written again.
            let mut half = recovered.clone();
            half.unsettled.truncate(1);
            settle(&mut disk, SEGMENT, &mut half).map_err(|error| error.to_string())?;
            disk.cut_power(&mut rng);
            history.0.pop();
            continue;
        }
        let mut rig = Rig::resume(config, &recovered, disk);
        promised = promised.max(rig.wal.flushed().lsn());
        let steps = rng.between(0, 120);
        let mut settled = false;
        for _ in 0..steps {
            if rng.chance(0.4) {
                push(&mut rig.wal, random_size(&mut rng));
            }
            if rig.wal.wants_seal() {
                let from = rig.wal.end().end;
                rig.seal(&[], own_term).map_err(|error| format!("seal: {error}"))?;
                model.extend(rig.frames(from));
            }
            rig.pump();
            if rng.chance(0.7) {
                rig.complete_one(&mut rng);
            }
            ensure!(rig.wal.flushed().lsn() <= rig.wal.end().end, "flushed beyond the end");
            promised = promised.max(rig.wal.flushed().lsn());
            known_commit = known_commit.max(rig.wal.flushed().lsn());
            // As soon as new bytes may go to the disk, nothing old may stand beyond the recovered end.
            if !settled && (rig.wal.idle() || rig.wal.written() > end) {
                settled = true;
                let stale = stale_beyond(&mut rig.disk, rig.wal.end().end);
                ensure!(stale.is_none(), "life {life}: a stale frame stands at {stale:?}");
            }
        }
        disk = rig.disk;
        if rng.chance(0.5) {
            disk.kill_process(&mut rng);
            if rng.chance(0.3) {
                disk.fail_flushes();
            }
            if rng.chance(0.5) {
                continue;
            }
        }
        disk.cut_power(&mut rng);
    }
    Ok(())
}

#[test]
fn what_was_flushed_survives_every_crash() {
    for seed in 0..200 {
        if let Err(error) = leader_life(seed) {
            panic!("seed {seed}: {error}");
        }
    }
}

#[test]
fn acknowledging_before_the_flush_is_noticed() {
    let _bug = plant(Bug::AckBeforeFlush);
    assert!((0..50).any(|seed| leader_life(seed).is_err()));
}

#[test]
fn appending_over_stale_frames_is_noticed() {
    let _bug = plant(Bug::AppendOverStaleFrames);
    assert!((0..50).any(|seed| leader_life(seed).is_err()));
}

#[test]
fn a_hole_with_several_writes_in_flight_is_a_torn_tail() {
    let mut rig = Rig::new(config(4, true));
    rig.seal(&[100], term(1)).unwrap();
    rig.drain();
    let end = rig.wal.end().end;
    for _ in 0..3 {
        rig.seal(&[100], term(1)).unwrap();
    }
    rig.pump();
    let ids = rig.under_way();
    assert_eq!(ids.len(), 3);
    rig.complete(ids[1]);
    rig.complete(ids[2]);
    assert_eq!(rig.wal.flushed().lsn(), end, "nothing is durable behind a hole");
    let recovered = rig.recover(&History::of(term(1)), end);
    // The first of the three is in flight: the reader sees a hole there.
    assert_eq!(recovered.end.end, end);
    assert_eq!(recovered.verdict, Verdict::Torn { zero_from: end, zero_to: end + 3 * 4096 });
    assert_eq!(recovered.frames, 2 - 1);
}

#[test]
fn a_killed_process_leaves_nothing_called_durable_that_was_not_flushed() {
    let mut rig = Rig::new(config(4, false));
    rig.drain();
    rig.seal(&[100], term(1)).unwrap();
    rig.pump();
    let write = rig.under_way()[0];
    rig.complete(write);
    let mut rng = Prng::new(1);
    rig.disk.kill_process(&mut rng);
    let recovered = rig.recover(&History::of(term(1)), Lsn::ZERO);
    assert_eq!(recovered.end.end, Lsn(4096), "the write had reached the disk's cache");
    assert_eq!(recovered.unsettled, [(Lsn::ZERO, Lsn(4096))], "nobody flushed it yet");
    let rig = Rig::resume(config(4, false), &recovered, rig.disk);
    assert_eq!(rig.wal.flushed().lsn(), Lsn(4096));
    let sure = rig.disk.clone();
    (0..20).for_each(|seed| {
        let mut disk = sure.clone();
        disk.cut_power(&mut Prng::new(seed));
        assert_eq!(recover_disk(&mut disk, &History::of(term(1)), Lsn::ZERO).end.end, Lsn(4096));
    });
}

/// A failed flush leaves bytes that can be read and that no later flush makes durable: a restart that only flushed them
/// would acknowledge what the next loss of power takes away.
#[test]
fn what_a_failed_flush_left_is_written_again_before_it_counts() {
    let mut rig = Rig::new(config(4, false));
    rig.drain();
    rig.seal(&[100], term(1)).unwrap();
    rig.drain();
    rig.seal(&[100], term(1)).unwrap();
    rig.pump();
    let write = rig.under_way()[0];
    rig.complete(write);
    rig.disk.fail_flushes();
    let mut disk = rig.disk;
    disk.kill_process(&mut Prng::new(1));
    let history = History::of(term(1));
    let recovered = recover_disk(&mut disk, &history, Lsn(4096));
    assert_eq!(recovered.end.end, Lsn(8192), "the frame can be read");
    assert_eq!(
        recovered.unsettled,
        [(Lsn(4096), Lsn(8192))],
        "and the known commit proves the one before it"
    );
    let ends_after_power_cuts = |disk: &Disk| -> Vec<Lsn> {
        let cut = |seed| {
            let mut disk = disk.clone();
            disk.cut_power(&mut Prng::new(seed));
            recover_disk(&mut disk, &history, Lsn(4096)).end.end
        };
        (0..20).map(cut).collect()
    };
    let mut flushed_only = disk.clone();
    LogRewriter::flush(&mut flushed_only, 0).unwrap();
    assert!(ends_after_power_cuts(&flushed_only).contains(&Lsn(4096)), "a flush alone saves nothing");
    let rig = Rig::resume(config(4, false), &recovered, disk);
    assert_eq!(rig.wal.flushed().lsn(), Lsn(8192));
    assert!(ends_after_power_cuts(&rig.disk).iter().all(|end| *end == Lsn(8192)));
}

#[test]
fn old_frames_of_a_recycled_segment_never_pass() {
    let mut rig = Rig::new(config(2, true));
    while rig.wal.end().end.0 < 3 * SEGMENT {
        rig.seal(&[9_000], term(1)).unwrap();
        rig.drain();
    }
    let end = rig.wal.end().end;
    // Segment 0 comes back as the segment after the last one, full of frames that were valid in their place.
    let old = rig.disk.remove(0);
    let next = rig.disk.segments().unwrap().last().unwrap() + 1;
    rig.disk.create_from(next, old);
    let history = History::of(term(1));
    let term_at = |at| history.term_at(at);
    let from = Lsn(SEGMENT);
    let params = RecoverParams {
        cluster: CLUSTER,
        segment_bytes: SEGMENT,
        from,
        before: None,
        term_at: &term_at,
        known_commit: end,
        own_mark: Lsn::ZERO,
        own_term: Some(term(1)),
        repair_mark: Lsn::ZERO,
    };
    let recovered = recover(&mut rig.disk, &params).unwrap();
    assert_eq!((recovered.end, recovered.verdict), (rig.wal.end(), Verdict::Clean));
    assert_eq!(recovered.first, from);
    assert_eq!(stale_beyond(&mut rig.disk, end), None);
}

#[test]
fn a_disk_that_does_not_answer_is_not_a_torn_tail() {
    let mut rig = Rig::new(config(2, true));
    rig.seal(&[100], term(1)).unwrap();
    rig.drain();
    rig.disk.broken = Some(0);
    let history = History::of(term(1));
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
        repair_mark: Lsn::ZERO,
    };
    assert!(matches!(recover(&mut rig.disk, &params), Err(RecoverError::Read { .. })));
}

#[test]
fn redo_may_start_at_any_frame() {
    let mut rig = Rig::new(config(2, true));
    while rig.wal.end().end.0 < 3 * SEGMENT / 2 {
        rig.seal(&[5_000], term(1)).unwrap();
        rig.drain();
    }
    let frames = rig.frames(Lsn::ZERO);
    let history = History::of(term(1));
    let term_at = |at| history.term_at(at);
    for at in frames.iter().map(|(header, _)| header.first).chain([rig.wal.end().end]) {
        let params = RecoverParams {
            cluster: CLUSTER,
            segment_bytes: SEGMENT,
            from: at,
            before: None,
            term_at: &term_at,
            known_commit: at,
            own_mark: Lsn::ZERO,
            own_term: Some(term(1)),
            repair_mark: Lsn::ZERO,
        };
        let recovered = recover(&mut rig.disk, &params).unwrap();
        assert_eq!((recovered.end, recovered.verdict), (rig.wal.end(), Verdict::Clean), "from {at}");
        assert_eq!(recovered.first, Lsn::ZERO);
        assert_eq!(recovered.frames as usize, frames.iter().filter(|(h, _)| h.first >= at).count());
    }
}
