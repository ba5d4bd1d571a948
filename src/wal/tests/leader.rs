//! Group commit on the leader: sealing, fillers, stamps, watermarks, the latch.

use super::*;
use crate::record::FrameKind;

fn ids(rig: &Rig) -> Vec<u64> {
    rig.under_way()
}

fn ready(config: WalConfig) -> Rig {
    let mut rig = Rig::new(config);
    rig.drain();
    rig
}

#[test]
fn the_watermark_waits_for_the_hole() {
    let mut rig = ready(config(3, true));
    let ends: Vec<Lsn> = (0..3).map(|_| rig.seal(&[100], term(1)).unwrap().end).collect();
    rig.pump();
    let ids = ids(&rig);
    rig.complete(ids[2]);
    assert_eq!(rig.wal.flushed().lsn(), Lsn::ZERO);
    rig.complete(ids[0]);
    assert_eq!(rig.wal.flushed().lsn(), ends[0]);
    rig.complete(ids[1]);
    assert_eq!(rig.wal.flushed().lsn(), ends[2]);
    assert!(rig.wal.idle());
}

#[test]
fn a_flush_covers_only_writes_that_completed_before_it() {
    let mut rig = ready(config(4, false));
    let ends: Vec<Lsn> = (0..3).map(|_| rig.seal(&[100], term(1)).unwrap().end).collect();
    rig.pump();
    let writes = ids(&rig);
    assert_eq!(writes.len(), 3, "writes only, nothing to flush yet");
    rig.complete(writes[1]);
    rig.pump();
    assert_eq!(ids(&rig).len(), 2, "a flush that cannot move the watermark is not worth it");
    rig.complete(writes[0]);
    rig.pump();
    let flush = *ids(&rig).last().unwrap();
    rig.complete(writes[2]);
    rig.pump();
    assert_eq!(ids(&rig), vec![flush], "one flush at a time");
    assert_eq!(rig.wal.written(), ends[2]);
    assert_eq!(rig.wal.flushed().lsn(), Lsn::ZERO);
    rig.complete(flush);
    assert_eq!(rig.wal.flushed().lsn(), ends[1], "the third write completed after the flush had started");
    rig.pump();
    rig.complete(ids(&rig)[0]);
    assert_eq!(rig.wal.flushed().lsn(), ends[2]);
}

#[test]
fn the_group_commit_clocks_itself() {
    let mut rig = ready(config(2, true));
    assert!(!rig.wal.wants_seal(), "nothing to seal");
    push(&mut rig.wal, 50);
    assert!(rig.wal.wants_seal(), "the disk is idle");
    rig.seal(&[], term(1)).unwrap();
    push(&mut rig.wal, 1);
    assert!(!rig.wal.wants_seal(), "a small group waits for the frame before it");
    push(&mut rig.wal, 100);
    assert!(rig.wal.wants_seal(), "a large one does not");
    rig.seal(&[], term(1)).unwrap();
    push(&mut rig.wal, 200);
    assert!(!rig.wal.wants_seal(), "two frames are in flight");
    rig.pump();
    rig.complete(ids(&rig)[0]);
    push(&mut rig.wal, 50);
    assert!(rig.wal.wants_seal());
    let sealed = rig.seal(&[], term(1)).unwrap();
    assert_eq!(rig.frames(sealed.first)[0].0.transactions, 2, "all that arrived leaves together");
}

#[test]
fn a_frame_that_does_not_fit_starts_the_next_segment() {
    let mut rig = ready(config(2, true));
    rig.seal(&[payload_of(10)], term(1)).unwrap();
    let sealed = rig.seal(&[payload_of(7)], term(1)).unwrap();
    let frames = rig.frames(Lsn::ZERO);
    assert_eq!(frames[1].0.kind, FrameKind::Filler);
    assert_eq!(frames[1].0.end(), Lsn(SEGMENT));
    assert_eq!((frames[2].0.first, frames[2].0.segment), (Lsn(SEGMENT), 1));
    assert_eq!(sealed.first, frames[1].0.first);
    assert_eq!(sealed.end, Lsn(SEGMENT + 7 * 4096));
    rig.drain();
    assert_eq!(all_frames(&mut rig.disk, sealed.end), frames);
    assert_eq!(rig.recover(&History::of(term(1)), sealed.end).verdict, Verdict::Clean);
}

#[test]
fn a_segment_filled_to_its_last_byte_needs_no_filler() {
    let mut rig = ready(config(2, true));
    rig.seal(&[payload_of(16)], term(1)).unwrap();
    rig.drain();
    let end = rig.wal.end();
    assert_eq!(end.end, Lsn(SEGMENT));
    let recovered = rig.recover(&History::of(term(1)), end.end);
    assert_eq!((recovered.end, recovered.verdict), (end, Verdict::Clean));
    rig.seal(&[20], term(1)).unwrap();
    assert!(rig.frames(Lsn::ZERO).iter().all(|(header, _)| header.kind == FrameKind::Data));
}

#[test]
fn a_group_larger_than_a_frame_leaves_in_several() {
    let mut rig = ready(config(4, true));
    let sealed = rig.seal(&[40_000, 30_000, 20_000, 100], term(1)).unwrap();
    let frames = rig.frames(Lsn::ZERO);
    let data: Vec<_> = frames.iter().filter(|(h, _)| h.kind == FrameKind::Data).collect();
    assert_eq!(data.iter().map(|(h, _)| h.transactions).collect::<Vec<_>>(), vec![1, 3]);
    assert_eq!(rig.wal.stamp_end(sealed.stamp), Some(sealed.end));
    assert_eq!(rig.wal.open_stamp().0, sealed.stamp.0 + 1);
}

#[test]
fn a_transaction_larger_than_a_frame_is_refused_and_changes_nothing() {
    let mut rig = ready(config(4, true));
    let max = rig.wal.transaction_bytes_max();
    assert_eq!(rig.seal(&[max + 1], term(1)), Err(WalError::TooLarge { bytes: max + 1, max }));
    assert_eq!(rig.wal.end(), LogEnd::GENESIS);
    rig.wal.abandon_open_group();
    rig.seal(&[max], term(1)).unwrap();
}

#[test]
fn stamps_map_to_the_ends_of_their_groups() {
    let mut rig = ready(config(4, true));
    assert_eq!(rig.wal.open_stamp().0, 1);
    let sealed: Vec<_> = [100usize, 40_000, 40_000].map(|size| rig.seal(&[size], term(1)).unwrap()).into();
    for group in &sealed {
        assert_eq!(rig.wal.stamp_end(group.stamp), Some(group.end));
    }
    assert_eq!(rig.wal.stamp_at(Lsn(sealed[0].end.0 - 1)), NO_STAMP);
    assert_eq!(rig.wal.stamp_at(sealed[1].end), sealed[1].stamp);
    // The end of a filler in front of the third group is not the end of the group.
    assert_eq!(rig.wal.stamp_at(Lsn(SEGMENT)), sealed[1].stamp);
    assert_eq!(rig.wal.stamp_at(sealed[2].end), sealed[2].stamp);
}

#[test]
fn every_frame_carries_the_marks_of_its_sealing() {
    let mut rig = ready(config(4, true));
    let first = rig.seal(&[100], term(1)).unwrap();
    rig.drain();
    push(&mut rig.wal, 10);
    let marks = SealMarks { term: term(2), commit: CommittedLsn(first.end), clock: WallMs(123) };
    rig.wal.seal(marks).unwrap();
    let header = rig.frames(first.end)[0].0;
    assert_eq!((header.durable.lsn(), header.commit.lsn()), (first.end, first.end));
    assert_eq!((header.term, header.clock), (term(2), WallMs(123)));
    assert_eq!(rig.wal.known_committed().lsn(), first.end);
    let history = {
        let mut history = History::of(term(1));
        history.start(term(2), first.end);
        history
    };
    rig.drain();
    let recovered = rig.recover(&history, Lsn::ZERO);
    assert_eq!(recovered.known_committed.lsn(), first.end);
    assert_eq!((recovered.clock, recovered.end.last_term), (WallMs(123), term(2)));
}

#[test]
fn the_first_error_stops_the_log_for_ever() {
    for durable in [true, false] {
        let mut rig = ready(config(4, durable));
        rig.seal(&[100], term(1)).unwrap();
        rig.drain();
        let flushed = rig.wal.flushed();
        rig.seal(&[100], term(1)).unwrap();
        rig.seal(&[100], term(1)).unwrap();
        rig.pump();
        let writes = ids(&rig);
        rig.wal.completed(writes[0], Err(WalIoError("no space left".into())));
        rig.wal.completed(writes[1], Ok(()));
        let failure = rig.wal.failed().cloned().expect("latched");
        assert_eq!(failure.error, WalIoError("no space left".into()));
        assert_eq!(rig.wal.flushed(), flushed);
        assert!(rig.wal.next_effect().is_none());
        assert!(!rig.wal.wants_seal());
        assert_eq!(rig.seal(&[5], term(1)), Err(WalError::Failed(failure.clone())));
        assert_eq!(rig.wal.truncate(LogEnd::GENESIS), Err(TruncateError::Failed(failure)));
    }
}

#[test]
fn a_failed_flush_is_never_retried() {
    let mut rig = ready(config(4, false));
    rig.seal(&[100], term(1)).unwrap();
    rig.pump();
    rig.complete(ids(&rig)[0]);
    rig.pump();
    rig.wal.completed(ids(&rig)[0], Err(WalIoError("i/o error".into())));
    assert_eq!(rig.wal.failed().unwrap().what, "log flush");
    assert_eq!(rig.wal.flushed().lsn(), Lsn::ZERO);
    assert!(rig.wal.next_effect().is_none());
}

#[test]
fn writes_wait_for_their_segment() {
    let mut rig = Rig::new(config(4, true));
    rig.seal(&[100], term(1)).unwrap();
    let mut asked = Vec::new();
    while let Some(effect) = rig.wal.next_effect() {
        match effect {
            WalEffect::EnsureSegment { segment } => asked.push(segment),
            other => panic!("{other:?} before the segment is there"),
        }
    }
    assert_eq!(asked, vec![0, 1], "the first and one ahead, asked once");
    rig.wal.segment_ready(1);
    assert!(rig.wal.next_effect().is_none());
    rig.wal.segment_ready(0);
    assert!(matches!(rig.wal.next_effect(), Some(WalEffect::Write { segment: 0, offset: 0, .. })));
}

#[test]
fn a_late_segment_stops_sealing_and_is_bounded() {
    let mut rig = Rig::new(config(2, true));
    for _ in 0..100 {
        push(&mut rig.wal, 100);
        if rig.wal.wants_seal() {
            rig.seal(&[], term(1)).unwrap();
        }
        while rig.wal.next_effect().is_some() {}
    }
    assert_eq!(rig.wal.in_flight(), 2);
    assert!(rig.wal.backlog_bytes() <= 2 * 4096);
}

#[test]
fn unflushed_bytes_stay_in_two_neighbouring_segments() {
    let mut rig = ready(config(16, false));
    for _ in 0..6 {
        rig.seal(&[payload_of(15)], term(1)).unwrap();
    }
    // Segments appear, writes complete, but no flush ever ends.
    let mut segments = std::collections::BTreeSet::new();
    for _ in 0..50 {
        while let Some(effect) = rig.wal.next_effect() {
            match effect {
                WalEffect::EnsureSegment { segment } => rig.wal.segment_ready(segment),
                WalEffect::Write { id, segment, .. } => {
                    segments.insert(segment);
                    rig.wal.completed(id, Ok(()));
                }
                WalEffect::Flush { .. } => {}
            }
        }
    }
    assert_eq!(segments.into_iter().collect::<Vec<_>>(), vec![0, 1]);
}
