//! Senders, redo and `inspect` read the log back.

use super::*;
use crate::record::FrameKind;

fn log(blocks: &[usize]) -> Rig {
    let mut rig = Rig::new(config(2, true));
    for blocks in blocks {
        rig.seal(&[payload_of(*blocks)], term(1)).unwrap();
        rig.drain();
    }
    rig
}

#[test]
fn old_frames_come_from_disk_and_new_ones_from_memory() {
    let mut rig = log(&[3; 60]);
    assert!(matches!(rig.wal.read_from(Lsn::ZERO, 1 << 20), ReadLog::OnDisk { segment: 0, offset: 0, .. }));
    let end = rig.wal.end().end;
    assert!(matches!(rig.wal.read_from(end, 1), ReadLog::End));
    assert!(matches!(rig.wal.read_from(end + 4096, 1), ReadLog::NoBorder));
    assert!(matches!(rig.wal.read_from(Lsn(end.0 - 4096), 1), ReadLog::NoBorder));
    // Every start yields the same frames, whichever way they come.
    let all = rig.frames(Lsn::ZERO);
    for (at, (header, _)) in all.iter().enumerate() {
        assert_eq!(rig.frames(header.first), all[at..]);
    }
    assert_eq!(all_frames(&mut rig.disk, end), all);
}

#[test]
fn a_read_brings_one_frame_at_least_and_no_more_than_asked() {
    let rig = log(&[1; 8]);
    let count = |bytes| match rig.wal.read_from(Lsn::ZERO, bytes) {
        ReadLog::Frames(frames) => frames.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!((count(1), count(3 * 4096), count(1 << 20)), (1, 3, 8));
}

#[test]
fn a_frame_longer_than_the_read_says_how_much_it_needs() {
    let mut rig = log(&[5, 1]);
    let bytes = rig.disk.read(0, 0, 8192).unwrap().unwrap().share();
    let parsed = rig.wal.parse_disk(Lsn::ZERO, &bytes).unwrap();
    assert_eq!((parsed.frames.len(), parsed.next, parsed.need), (0, Lsn::ZERO, Some(5 * 4096)));
    let bytes = rig.disk.read(0, 0, 6 * 4096).unwrap().unwrap().share();
    let parsed = rig.wal.parse_disk(Lsn::ZERO, &bytes).unwrap();
    assert_eq!((parsed.frames.len(), parsed.next, parsed.need), (2, Lsn(6 * 4096), None));
    // The second frame is cut off: it is left for the next read.
    let mut rig = log(&[1, 5]);
    let bytes = rig.disk.read(0, 0, 3 * 4096).unwrap().unwrap().share();
    let parsed = rig.wal.parse_disk(Lsn::ZERO, &bytes).unwrap();
    assert_eq!((parsed.frames.len(), parsed.next, parsed.need), (1, Lsn(4096), None));
}

#[test]
fn damage_on_the_way_to_a_sender_is_found() {
    let mut rig = log(&[1; 4]);
    rig.disk.flip_bit(0, 4096 + 500, 3);
    let bytes = rig.disk.read(0, 0, 4 * 4096).unwrap().unwrap().share();
    assert!(matches!(rig.wal.parse_disk(Lsn::ZERO, &bytes), Err(ScanError::Bad { at: Lsn(4096), .. })));
    let mut scan = FrameScan::new(&mut rig.disk, rig.wal.geometry(), Lsn::ZERO, Lsn(4 * 4096), None);
    assert!(scan.next().unwrap().is_ok());
    assert!(matches!(scan.next(), Some(Err(ScanError::Bad { at: Lsn(4096), .. }))));
    assert!(scan.next().is_none());
}

#[test]
fn a_log_knows_which_ends_it_holds() {
    let mut rig = log(&[3; 60]);
    let frames = rig.frames(Lsn::ZERO);
    let in_memory = match rig.wal.read_from(frames[frames.len() - 5].0.first, 1) {
        ReadLog::Frames(frames) => frames[0].0.first,
        other => panic!("{other:?}"),
    };
    for (header, _) in &frames {
        let end = LogEnd::after(header);
        let other = LogEnd { last_digest: crate::base::Digest(1), ..end };
        if end.end >= in_memory {
            assert_eq!((rig.wal.holds(&end), rig.wal.holds(&other)), (Some(true), Some(false)));
        }
        assert_ne!(rig.wal.holds(&end), Some(false));
    }
    assert_eq!(rig.wal.holds(&LogEnd::after(&frames[2].0)), None, "long ago: the disk must be asked");
    assert_eq!(rig.wal.holds(&LogEnd::GENESIS), Some(true));
    let beyond = LogEnd { end: rig.wal.end().end + 4096, ..rig.wal.end() };
    assert_eq!(rig.wal.holds(&beyond), Some(false));
}

#[test]
fn what_the_keeper_recycled_is_gone() {
    let mut rig = log(&[7; 12]);
    rig.wal.forget_before(Lsn(SEGMENT));
    assert!(matches!(rig.wal.read_from(Lsn::ZERO, 1), ReadLog::Gone { first: Lsn(SEGMENT) }));
    assert_eq!(rig.frames(Lsn(SEGMENT))[0].0.first, Lsn(SEGMENT));
}

#[test]
fn a_scan_gives_every_record_in_order() {
    let mut rig = Rig::new(config(2, true));
    rig.seal(&[100, 200, 40_000], term(1)).unwrap();
    rig.seal(&[40_000], term(1)).unwrap();
    rig.drain();
    let end = rig.wal.end().end;
    let sizes: Vec<usize> = FrameScan::new(&mut rig.disk, rig.wal.geometry(), Lsn::ZERO, end, None)
        .map(Result::unwrap)
        .flat_map(|frame| frame.records().map(|r| r.unwrap().1 as usize).collect::<Vec<_>>())
        .collect();
    assert_eq!(sizes, [1, 1, 1, 1], "four transactions of one record");
}

#[test]
fn inspect_describes_a_whole_segment() {
    let mut rig = log(&[2, 12, 1, 4]);
    let rows = inspect_segment(&mut rig.disk, rig.wal.geometry(), 0, true).unwrap();
    let frames: Vec<_> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Frame { header, chained } => Some((header.kind, header.first.0 / 4096, *chained)),
            _ => None,
        })
        .collect();
    assert_eq!(
        frames,
        [
            (FrameKind::Data, 0, false),
            (FrameKind::Data, 2, true),
            (FrameKind::Data, 14, true),
            (FrameKind::Filler, 15, true)
        ]
    );
    assert_eq!(rows.iter().filter(|row| matches!(row, Row::Record { .. })).count(), 3);
    let text: Vec<String> = rows.iter().map(Row::to_string).collect();
    assert!(text[0].starts_with("0/0 frame term 1-00000001 length 8192"), "{}", text[0]);

    rig.disk.flip_bit(1, 500, 1);
    let rows = inspect_segment(&mut rig.disk, rig.wal.geometry(), 1, false).unwrap();
    assert!(matches!(rows[0], Row::Region { what: Region::Torn(_), .. }));
    assert!(
        matches!(rows.last(), Some(Row::Region { what: Region::Zero, to: Lsn(0x20000), .. })),
        "{rows:?}"
    );

    let old = rig.disk.remove(0);
    rig.disk.create_from(5, old);
    let rows = inspect_segment(&mut rig.disk, rig.wal.geometry(), 5, false).unwrap();
    assert!(matches!(rows[0], Row::Region { what: Region::Recycled { segment: 0 }, .. }));
}

mod noise {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Bytes from a disk never panic, whatever they are.
        #[test]
        fn any_disk_can_be_recovered_and_inspected(seed: u64, flips in 1usize..200) {
            let mut rng = Prng::new(seed);
            let mut rig = log(&[1, 3, 2, 9, 4, 1, 1]);
            for _ in 0..flips {
                let byte = rng.below(SEGMENT) as usize;
                // Mostly headers: that is where lengths and positions stand.
                let byte = if rng.chance(0.7) { byte / 4096 * 4096 + byte % 144 } else { byte };
                rig.disk.flip_bit(rng.below(2), byte, rng.below(8) as u32);
            }
            let history = History::of(term(1));
            let recovered = rig.recover(&history, Lsn::ZERO);
            prop_assert!(recovered.end.end <= rig.wal.end().end);
            for segment in 0..3 {
                inspect_segment(&mut rig.disk, rig.wal.geometry(), segment, true).unwrap();
                let bytes = rig.disk.read(segment, 0, SEGMENT as usize).unwrap();
                if let Some(bytes) = bytes {
                    let _ = rig.wal.parse_disk(Lsn(segment * SEGMENT), &bytes.share());
                }
            }
        }
    }
}
