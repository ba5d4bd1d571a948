//! Durability, crashes, late writes, locks, disk faults.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use super::*;
use crate::io::Open;

const A: HostId = HostId(0);

/// What a run over many seeds came to.
fn outcomes<T: Ord>(seeds: u64, run: impl Fn(u64) -> T) -> BTreeSet<T> {
    (0..seeds).map(run).collect()
}

#[test]
fn what_is_written_is_read_back() {
    let mut rig = Rig::new(1, 1);
    let file = rig.create(A, "/f");
    for i in 0..20 {
        rig.submit_write(A, i, file, i, i as u8 + 1, i % 2 == 0);
    }
    rig.run(secs(1));
    let order: Vec<Token> = rig
        .take(A)
        .iter()
        .map(|e| match e {
            Event::Written { token, result: Ok(()) } => *token,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order.len(), 20);
    assert!(!order.is_sorted(), "writes complete in any order");
    rig.seam(A).submit(Op::Read { token: 9, file, offset: 18 * 4096, len: 8 * 4096 });
    let read = rig.wait(A, |e| match e {
        Event::Read { token: 9, result: Ok(buf) } => Some(buf.to_vec()),
        _ => None,
    });
    assert_eq!(read.len(), 2 * 4096, "short at the end of the file");
    assert!(read[..4096].iter().all(|b| *b == 19) && read[4096..].iter().all(|b| *b == 20));
    assert_eq!(rig.seam(A).file_len(file).unwrap(), 20 * 4096);
    assert_eq!(rig.seam(A).read_now(file, 4096, 4096).unwrap()[0], 2);
    assert!(rig.seam(A).read_now(file, 1 << 20, 4096).unwrap().is_empty());
}

#[test]
fn a_power_cut_spares_what_is_durable_and_only_that() {
    let made = outcomes(60, |seed| {
        let mut rig = Rig::new(seed, 1);
        let file = rig.create(A, "/f");
        rig.write(A, file, 0, 1, true);
        rig.write(A, file, 1, 2, false);
        rig.flush(A, file);
        rig.write(A, file, 2, 3, false);
        rig.world.power_cut(A);
        rig.content(A, "/f").unwrap()
    });
    assert!(made.iter().all(|c| c[..2] == [1, 2]), "{made:?}");
    assert!(made.contains(&vec![1, 2]) && made.contains(&vec![1, 2, 3]), "{made:?}");
}

#[test]
fn a_flush_covers_only_what_completed_before_it_was_submitted() {
    let made = outcomes(80, |seed| {
        let mut rig = Rig::new(seed, 1);
        let file = rig.create(A, "/f");
        rig.write(A, file, 0, 1, false);
        rig.seam(A).submit(Op::Flush { token: 4, file });
        rig.submit_write(A, 5, file, 1, 2, false);
        rig.flushed(A, 4).unwrap();
        let both = rig.events[&A].iter().any(|e| matches!(e, Event::Written { token: 5, .. }));
        rig.world.power_cut(A);
        (both, rig.content(A, "/f").unwrap().get(1) == Some(&2), rig.content(A, "/f").unwrap()[0])
    });
    assert!(made.iter().all(|(.., first)| *first == 1), "{made:?}");
    assert!(
        made.contains(&(true, false, 1)),
        "a write that completed during the flush can be lost: {made:?}"
    );
}

/// A power cut in the middle of a durable overwrite leaves any mix of sectors, but whole sectors.
#[test]
fn a_write_in_flight_is_torn_at_sectors() {
    for sector in [512usize, 4096] {
        let mut config = SimConfig::default();
        config.disk.sector_bytes = sector;
        let made = outcomes(100, |seed| {
            let mut rig = Rig::with(seed, 1, config.clone());
            let file = rig.create(A, "/f");
            rig.write(A, file, 0, 1, true);
            rig.submit_write(A, 5, file, 0, 2, true);
            rig.world.power_cut(A);
            let bytes = rig.world.file(A, Path::new("/f")).unwrap();
            for s in bytes.chunks(sector) {
                assert!(s.iter().all(|b| *b == s[0]), "a sector is whole");
            }
            bytes.chunks(512).filter(|s| s[0] == 2).count()
        });
        assert!(made.contains(&0) && made.contains(&8), "{made:?}");
        assert_eq!(made.len() > 2, sector == 512, "torn in between: {made:?}");
    }
}

/// kill -9 loses nothing that was reported, and what was in flight may land after the successor has started. The
/// successor that waits for the lock never sees the file change under it.
#[test]
fn late_writes_land_before_the_lock_is_free() {
    let mut landed_late = 0;
    let mut waited = 0;
    for seed in 0..60 {
        let mut rig = Rig::new(seed, 1);
        rig.seam(A).lock_folder(Path::new("/")).unwrap();
        assert_eq!(rig.seam(A).lock_folder(Path::new("/")).unwrap_err().kind(), ErrorKind::WouldBlock);
        let file = rig.create(A, "/f");
        rig.write(A, file, 0, 1, false);
        for i in 1..6 {
            rig.submit_write(A, i, file, i, 7, true);
        }
        rig.world.kill(A);
        rig.start(A);
        let at_start = rig.content(A, "/f").unwrap();
        assert_eq!(at_start[0], 1, "a reported write survives the process");
        let began = rig.world.now();
        while let Err(e) = rig.seam(A).lock_folder(Path::new("/")) {
            assert_eq!(e.kind(), ErrorKind::WouldBlock);
            waited += 1;
            rig.run(ms(1));
            assert!(rig.world.now() - began < ms(100), "the lock frees itself");
        }
        let at_lock = rig.content(A, "/f").unwrap();
        rig.run(secs(1));
        assert_eq!(rig.content(A, "/f").unwrap(), at_lock, "seed {seed}: nothing lands after the lock");
        landed_late += u32::from(at_lock != at_start);
        assert!(rig.take(A).is_empty(), "nobody hears of the old process's writes");
    }
    assert!(landed_late > 20 && waited > 60, "{landed_late} {waited}");
}

/// A write that hangs on a stalled disk holds the lock for as long as it hangs.
#[test]
fn a_stalled_late_write_keeps_the_lock() {
    let mut config = SimConfig::default();
    config.disk.cancel_on_kill = 0.0;
    let mut rig = Rig::with(3, 1, config);
    rig.seam(A).lock_folder(Path::new("/")).unwrap();
    let file = rig.create(A, "/f");
    rig.world.stall_disk(A, Stall::Everything);
    rig.submit_write(A, 1, file, 0, 9, false);
    rig.run(secs(1));
    rig.world.kill(A);
    rig.start(A);
    rig.run(secs(30));
    assert!(rig.seam(A).lock_folder(Path::new("/")).is_err());
    rig.world.release_disk(A);
    rig.run(secs(1));
    rig.seam(A).lock_folder(Path::new("/")).unwrap();
    assert_eq!(rig.content(A, "/f").unwrap(), [9]);
}

/// Replace a file the careful way; crash before every single operation, both ways, under many seeds. The name must
/// always hold the old or the new content, whole, and the new one once the protocol is through.
fn replace(rig: &mut Rig) -> std::io::Result<()> {
    let seam = rig.seam(A);
    let file = seam.open(Path::new("/new"), Open::Create)?;
    seam.write_now(file, 0, &blocks(2, 3))?;
    seam.flush_now(file)?;
    seam.rename(Path::new("/new"), Path::new("/f"))?;
    seam.sync_folder(Path::new("/"))
}

#[test]
fn a_crash_at_every_operation_of_a_careful_replacement() {
    let mut seen = BTreeSet::new();
    for crash in [Crash::Kill, Crash::PowerCut] {
        for ops in 0..=5 {
            for seed in 0..30 {
                let mut rig = Rig::new(seed, 1);
                let file = rig.create(A, "/f");
                rig.seam(A).write_now(file, 0, &blocks(1, 3)).unwrap();
                rig.seam(A).flush_now(file).unwrap();
                rig.world.crash_after_ops(A, ops, crash);
                let done = replace(&mut rig);
                assert_eq!(done.is_ok(), ops == 5, "operation {ops} was the last");
                if ops < 5 {
                    assert_eq!(done.unwrap_err().kind(), ErrorKind::ConnectionAborted);
                    rig.run(ms(1));
                    assert_eq!(rig.crashed, [A], "the crash is reported at the end of the turn");
                    assert!(!rig.world.is_up(A));
                } else {
                    rig.world.power_cut(A);
                }
                rig.start(A);
                let content = rig.content(A, "/f").unwrap();
                assert!(
                    content == [1, 1, 1] || content == [2, 2, 2],
                    "{crash:?} at {ops}, seed {seed}: {content:?}"
                );
                seen.insert((crash == Crash::Kill, ops, content[0]));
            }
        }
    }
    assert!(seen.contains(&(false, 5, 2)) && !seen.contains(&(false, 5, 1)), "through means durable");
    assert!(seen.contains(&(false, 4, 1)) && seen.contains(&(false, 4, 2)), "renamed but not synced: either");
    assert!(seen.contains(&(true, 4, 2)) && !seen.contains(&(true, 4, 1)), "a kill keeps a rename");
    assert!(seen.contains(&(false, 3, 1)) && !seen.contains(&(false, 3, 2)), "flushed but not renamed: old");
}

/// The careless way must be caught: without the flush, the name can hold torn content.
#[test]
fn a_careless_replacement_is_caught() {
    let caught = (0..60).any(|seed| {
        let mut rig = Rig::new(seed, 1);
        let file = rig.create(A, "/f");
        rig.seam(A).write_now(file, 0, &blocks(1, 3)).unwrap();
        rig.seam(A).flush_now(file).unwrap();
        let new = rig.seam(A).open(Path::new("/new"), Open::Create).unwrap();
        rig.seam(A).write_now(new, 0, &blocks(2, 3)).unwrap();
        rig.seam(A).rename(Path::new("/new"), Path::new("/f")).unwrap();
        rig.seam(A).sync_folder(Path::new("/")).unwrap();
        rig.world.power_cut(A);
        rig.content(A, "/f").unwrap() != [2, 2, 2]
    });
    assert!(caught);
}

#[test]
fn the_nth_operation_fails_once() {
    let mut rig = Rig::new(1, 1);
    let file = rig.create(A, "/f");
    rig.world.fail_nth(A, DiskOp::Write, 2);
    let results: Vec<bool> = (0..5)
        .map(|i| {
            rig.submit_write(A, i, file, i, 1, false);
            rig.written(A, i).is_ok()
        })
        .collect();
    assert_eq!(results, [true, true, false, true, true]);
    rig.world.fail_nth(A, DiskOp::Read, 0);
    assert!(rig.seam(A).read_now(file, 0, 4096).is_err());
    assert!(rig.seam(A).read_now(file, 0, 4096).is_ok());
    rig.world.fail_nth(A, DiskOp::Flush, 0);
    assert!(rig.seam(A).sync_folder(Path::new("/")).is_err());
    rig.world.fail_flushes(A, true);
    for token in 0..3 {
        rig.seam(A).submit(Op::Flush { token, file });
        assert!(rig.flushed(A, token).is_err());
    }
    rig.submit_write(A, 8, file, 0, 1, true);
    assert!(rig.written(A, 8).is_err(), "a durable write flushes too");
    rig.submit_write(A, 8, file, 0, 1, false);
    assert!(rig.written(A, 8).is_ok());
    rig.world.fail_flushes(A, false);
    assert!(rig.seam(A).flush_now(file).is_ok());
}

#[test]
fn a_durable_write_is_only_durable_on_an_honest_disk() {
    let survived = outcomes(40, |seed| {
        let mut rig = Rig::new(seed, 1);
        let file = rig.create(A, "/f");
        rig.world.lie_about_flushes(A, true);
        rig.write(A, file, 0, 1, true);
        rig.flush(A, file);
        rig.world.power_cut(A);
        rig.content(A, "/f").unwrap() == [1]
    });
    assert_eq!(survived.len(), 2, "kept or lost");
}

#[test]
fn lost_and_misdirected_writes_report_success() {
    let mut rig = Rig::new(1, 1);
    let file = rig.create(A, "/f");
    for block in 0..4 {
        rig.write(A, file, block, 1, true);
    }
    rig.world.misdirect_write(A, 0, Some(2));
    rig.write(A, file, 1, 9, true);
    assert_eq!(rig.content(A, "/f").unwrap(), [1, 1, 1, 9]);
    rig.world.misdirect_write(A, 0, None);
    rig.write(A, file, 0, 5, true);
    assert_eq!(rig.content(A, "/f").unwrap(), [1, 1, 1, 9]);
}

#[test]
fn a_full_disk_refuses_new_blocks_only() {
    let mut rig = Rig::new(1, 1);
    let file = rig.create(A, "/f");
    rig.world.set_quota(A, Some(3 * 4096));
    for block in 0..3 {
        rig.write(A, file, block, 1, false);
    }
    assert_eq!(rig.seam(A).free_bytes(Path::new("/")).unwrap(), 0);
    rig.submit_write(A, 7, file, 3, 1, false);
    assert_eq!(rig.written(A, 7).unwrap_err().kind(), ErrorKind::StorageFull);
    rig.write(A, file, 2, 2, false);
    assert!(rig.seam(A).open(Path::new("/g"), Open::Create).is_err());
    rig.seam(A).remove(Path::new("/f")).unwrap();
    assert_eq!(rig.seam(A).free_bytes(Path::new("/")).unwrap(), 0, "still open");
    rig.seam(A).close_file(file);
    assert_eq!(rig.seam(A).free_bytes(Path::new("/")).unwrap(), 0, "and the removal is not durable");
    rig.seam(A).sync_folder(Path::new("/")).unwrap();
    assert_eq!(rig.seam(A).free_bytes(Path::new("/")).unwrap(), 3 * 4096);
}

#[test]
fn a_stalled_flush_returns_when_released() {
    let mut rig = Rig::new(1, 1);
    let file = rig.create(A, "/f");
    rig.world.stall_disk(A, Stall::Flushes);
    rig.submit_write(A, 1, file, 0, 1, false);
    rig.submit_write(A, 2, file, 1, 1, true);
    rig.written(A, 1).unwrap();
    rig.seam(A).submit(Op::Flush { token: 3, file });
    rig.run(secs(20));
    assert!(rig.take(A).is_empty(), "they hang");
    let before = rig.seam(A).now();
    assert_eq!(rig.seam(A).flush_now(file).unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(rig.seam(A).now() - before >= ms(9_900), "a call that hangs takes its time");
    rig.world.release_disk(A);
    rig.written(A, 2).unwrap();
    rig.flushed(A, 3).unwrap();
}

#[test]
fn a_slow_disk_is_slow() {
    let mut rig = Rig::new(1, 1);
    let file = rig.create(A, "/f");
    let took = |rig: &mut Rig| {
        let before = rig.world.now();
        for _ in 0..50 {
            rig.write(A, file, 0, 1, true);
        }
        rig.world.now() - before
    };
    let usual = took(&mut rig);
    rig.world.slow_disk(A, 100.0);
    let slow = took(&mut rig);
    assert!(slow > usual * 30, "{usual:?} {slow:?}");
}

#[test]
fn bits_flip_on_the_medium() {
    let mut rig = Rig::new(1, 1);
    let file = rig.create(A, "/f");
    rig.write(A, file, 0, 0, true);
    assert!(rig.world.flip_bit(A, Path::new("/f"), 100, 3));
    assert!(!rig.world.flip_bit(A, Path::new("/f"), 4096, 0), "past the end");
    assert!(!rig.world.flip_bit(A, Path::new("/g"), 0, 0), "no such file");
    rig.world.power_cut(A);
    let bytes = rig.world.file(A, Path::new("/f")).unwrap();
    assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
    assert_eq!(bytes[100], 8);
}

#[test]
fn a_disk_can_be_cloned_and_rolled_back() {
    let mut rig = Rig::new(1, 2);
    rig.seam(A).create_folder(Path::new("/d")).unwrap();
    rig.seam(A).sync_folder(Path::new("/")).unwrap();
    let file = rig.create(A, "/d/f");
    rig.write(A, file, 0, 1, true);
    let image = rig.world.disk_image(A);
    rig.write(A, file, 0, 2, true);
    assert_eq!(image.file(Path::new("/d/f")).unwrap()[0], 1);
    assert_eq!(image.paths().count(), 1);
    for host in [A, HostId(1)] {
        rig.world.kill(host);
        rig.run(secs(1));
        rig.world.restore_disk(host, &image);
        rig.world.power_cut(host);
        rig.start(host);
        assert_eq!(rig.content(host, "/d/f").unwrap(), [1]);
        assert_eq!(rig.seam(host).list(Path::new("/d")).unwrap(), ["f"]);
    }
    assert_eq!(rig.world.files(A), [Path::new("/d/f")]);
}

#[test]
fn a_read_only_handle_refuses_writes() {
    let mut rig = Rig::new(1, 1);
    rig.create(A, "/f");
    let file = rig.seam(A).open(Path::new("/f"), Open::ReadOnly).unwrap();
    assert!(rig.seam(A).write_now(file, 0, &blocks(1, 1)).is_err());
    rig.submit_write(A, 1, file, 0, 1, false);
    assert!(rig.written(A, 1).is_err());
    rig.seam(A).close_file(file);
    assert!(rig.seam(A).read_now(file, 0, 4096).is_err(), "a closed handle is no handle");
    let again = rig.open(A, "/f");
    assert!(rig.seam(A).read_now(again, 0, 4096).unwrap().is_empty());
}
