//! Files, flushes and the folder lock.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::*;
use crate::base::limits::BLOCK_BYTES;

fn block(fill: u8, blocks: usize) -> SharedSlice {
    let mut buf = AlignedBuf::zeroed(blocks * BLOCK_BYTES);
    buf.fill(fill);
    buf.share()
}

#[test]
fn what_was_written_is_read_back_durable_or_flushed() {
    for flush_thread in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut seam = UringSeam::new(UringConfig { flush_thread, ..UringConfig::default() }).unwrap();
        let mut inbox = Inbox::new();
        let path = folder.path().join("file");
        let file = seam.open(&path, Open::Create).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        seam.submit(Op::Write { token: 1, file, offset: 4096, data: block(7, 2), durable: true });
        seam.submit(Op::Write { token: 2, file, offset: 0, data: block(5, 1), durable: false });
        inbox.written(&mut seam, 1).unwrap();
        inbox.written(&mut seam, 2).unwrap();
        seam.submit(Op::Flush { token: 3, file });
        inbox.flushed(&mut seam, 3).unwrap();
        assert_eq!(seam.file_len(file).unwrap(), 3 * 4096);

        seam.submit(Op::Read { token: 4, file, offset: 0, len: 4 * 4096 });
        let found = inbox.read(&mut seam, 4).unwrap();
        assert_eq!(found.len(), 3 * 4096, "shorter than asked only at the end");
        assert!(found[..4096].iter().all(|&byte| byte == 5) && found[4096..].iter().all(|&byte| byte == 7));

        seam.submit(Op::Read { token: 5, file, offset: 1 << 20, len: 4096 });
        assert!(inbox.read(&mut seam, 5).unwrap().is_empty());
        assert!(inbox.events.is_empty(), "one event per operation: {:?}", inbox.events);
    }
}

#[test]
fn the_immediate_forms_agree_with_the_queued_ones() {
    let folder = tempfile::tempdir().unwrap();
    let mut seam = seam();
    let mut inbox = Inbox::new();
    let file = seam.open(&folder.path().join("file"), Open::Create).unwrap();
    seam.write_now(file, 8192, &block(9, 3)).unwrap();
    seam.flush_now(file).unwrap();
    seam.submit(Op::Read { token: 1, file, offset: 8192, len: 3 * 4096 });
    assert!(inbox.read(&mut seam, 1).unwrap().iter().all(|&byte| byte == 9));
    let all = seam.read_now(file, 0, 1 << 20).unwrap();
    assert_eq!(all.len(), 5 * 4096);
    assert!(all[..8192].iter().all(|&byte| byte == 0) && all[8192..].iter().all(|&byte| byte == 9));
}

#[test]
fn a_file_whose_end_is_no_block_border_is_read_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, random_bytes(1, 10_001)).unwrap();
    let mut seam = seam();
    let mut inbox = Inbox::new();
    let file = seam.open(&path, Open::ReadOnly).unwrap();
    seam.submit(Op::Read { token: 1, file, offset: 0, len: 4 * 4096 });
    assert_eq!(inbox.read(&mut seam, 1).unwrap()[..], random_bytes(1, 10_001)[..]);
    assert_eq!(seam.read_now(file, 8192, 4096).unwrap()[..], random_bytes(1, 10_001)[8192..]);
    seam.submit(Op::Write { token: 2, file, offset: 0, data: block(1, 1), durable: false });
    assert!(inbox.written(&mut seam, 2).is_err(), "opened for reading only");
}

#[test]
fn a_thousand_writes_at_once_all_land() {
    let folder = tempfile::tempdir().unwrap();
    // Few slots, so that both queues overflow.
    let mut seam = UringSeam::new(UringConfig { entries: 8, ..UringConfig::default() }).unwrap();
    let mut inbox = Inbox::new();
    let file = seam.open(&folder.path().join("file"), Open::Create).unwrap();
    for index in 0..1000u64 {
        let data = block(index as u8, 1);
        seam.submit(Op::Write { token: index, file, offset: index * 4096, data, durable: index % 100 == 0 });
    }
    for index in 0..1000 {
        inbox.written(&mut seam, index).unwrap();
    }
    assert!(inbox.events.is_empty());
    let found = seam.read_now(file, 0, 1000 * 4096).unwrap();
    for (index, block) in found.chunks(4096).enumerate() {
        assert!(block.iter().all(|&byte| byte == index as u8), "block {index}");
    }
}

#[test]
fn a_file_closed_with_operations_under_way_ends_them_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut seam = UringSeam::new(UringConfig { flush_thread: true, ..UringConfig::default() }).unwrap();
    let mut inbox = Inbox::new();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let first = seam.open(&one, Open::Create).unwrap();
    seam.submit(Op::Write { token: 1, file: first, offset: 0, data: block(1, 1), durable: false });
    seam.submit(Op::Flush { token: 2, file: first });
    seam.close_file(first);
    // Would get the same descriptor, if the first were closed already, and then the first one's write.
    let second = seam.open(&two, Open::Create).unwrap();
    assert_ne!(first, second);
    inbox.written(&mut seam, 1).unwrap();
    inbox.flushed(&mut seam, 2).unwrap();
    assert_eq!(std::fs::read(&one).unwrap(), vec![1; 4096]);
    assert!(std::fs::read(&two).unwrap().is_empty());
    let third = seam.open(&one, Open::Existing).unwrap();
    assert_ne!(first, third, "the place is used again, the id is not");
}

#[test]
#[should_panic(expected = "was closed")]
fn an_operation_on_a_closed_file_is_a_bug() {
    let folder = tempfile::tempdir().unwrap();
    let mut seam = seam();
    let file = seam.open(&folder.path().join("file"), Open::Create).unwrap();
    seam.close_file(file);
    seam.submit(Op::Flush { token: 1, file });
}

#[test]
fn a_ring_that_ends_waits_for_its_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let mut seam = seam();
    let file = seam.open(&path, Open::Create).unwrap();
    for index in 0..200u64 {
        let data = block(3, 4);
        seam.submit(Op::Write { token: index, file, offset: index * 16384, data, durable: true });
    }
    drop(seam);
    let found = std::fs::read(&path).unwrap();
    assert!(found.len() == 200 * 16384 && found.iter().all(|&byte| byte == 3));
}

#[test]
fn folder_operations_do_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let mut seam = seam();
    let wal = folder.path().join("wal");
    seam.create_folder(&wal).unwrap();
    assert_eq!(seam.create_folder(&wal).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::metadata(&wal).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(seam.rename(&wal, &folder.path().join("no/such")).is_err());
    assert!(seam.create_folder(&folder.path().join("no/such")).is_err());
    for name in ["b", "a", "c"] {
        let file = seam.open(&wal.join(name), Open::Create).unwrap();
        seam.close_file(file);
    }
    assert_eq!(seam.open(&wal.join("a"), Open::Create).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(seam.open(&wal.join("x"), Open::Existing).unwrap_err().kind(), io::ErrorKind::NotFound);
    seam.rename(&wal.join("c"), &wal.join("d")).unwrap();
    seam.remove(&wal.join("b")).unwrap();
    seam.create_folder(&wal.join("folder")).unwrap();
    seam.sync_folder(&wal).unwrap();
    assert_eq!(seam.list(&wal).unwrap(), ["a", "d"]);
    assert!(seam.free_bytes(&wal).unwrap() > 0);
}

#[test]
fn a_memory_file_system_is_accepted_and_told() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    let mut seam = seam();
    let mut inbox = Inbox::new();
    let file = seam.open(&folder.path().join("file"), Open::Create).unwrap();
    let disk = tempfile::tempdir().unwrap();
    let on_disk = seam.open(&disk.path().join("file"), Open::Create).unwrap();
    assert!(!seam.is_direct(file));
    if seam.is_direct(on_disk) {
        assert_eq!(seam.warnings().len(), 1, "{:?}", seam.warnings());
    }
    seam.submit(Op::Write { token: 1, file, offset: 0, data: block(1, 1), durable: true });
    inbox.written(&mut seam, 1).unwrap();
    assert_eq!(seam.read_now(file, 0, 8192).unwrap()[..], [1; 4096]);
}

#[test]
fn a_folder_is_locked_once_and_free_after_its_ring() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = seam();
    let mut second = seam();
    first.lock_folder(folder.path()).unwrap();
    assert_eq!(second.lock_folder(folder.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(second.lock_folder(folder.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(first);
    second.lock_folder(folder.path()).unwrap();
}

#[test]
fn the_ring_itself_holds_the_lock_when_its_process_has_let_go_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = seam();
    let mut second = seam();
    first.lock_folder(folder.path()).unwrap();
    // What the end of a process does first: it closes its descriptors. The ring goes later.
    drop(first.lock.take().unwrap());
    assert_eq!(second.lock_folder(folder.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(first);
    let deadline = second.now() + Duration::from_secs(20);
    while let Err(error) = second.lock_folder(folder.path()) {
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(second.now() < deadline, "the lock goes with the ring");
        std::thread::yield_now();
    }
}

/// Variable that turns `the_victim_of_the_kill_test` into the child process of the test below.
const VICTIM_FOLDER: &str = "BATON_TEST_VICTIM_FOLDER";

/// Does nothing unless another test started it as a process of its own.
#[test]
fn the_victim_of_the_kill_test() {
    let Ok(folder) = std::env::var(VICTIM_FOLDER) else { return };
    let folder = Path::new(&folder);
    let mut seam = seam();
    seam.lock_folder(folder).unwrap();
    let file = seam.open(&folder.join("file"), Open::Existing).unwrap();
    println!("VICTIM locked");
    std::io::stdout().flush().unwrap();
    let data = block(1, 256);
    let mut events = Vec::new();
    for token in 0..32 {
        seam.submit(Op::Write { token, file, offset: token << 20, data: data.clone(), durable: true });
    }
    loop {
        seam.reap(None, &mut events);
        for event in events.drain(..) {
            let Event::Written { token, .. } = event else { continue };
            seam.submit(Op::Write { token, file, offset: token << 20, data: data.clone(), durable: true });
        }
    }
}

#[test]
fn a_killed_process_keeps_the_lock_until_its_last_write_has_landed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), vec![0u8; 32 << 20]).unwrap();
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["io::uring::tests::files::the_victim_of_the_kill_test", "--exact", "--nocapture"])
            .env(VICTIM_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("VICTIM locked")), "the victim started");
        let mut seam = seam();
        assert_eq!(seam.lock_folder(folder.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // Let it write for a moment: until the file carries its bytes.
        let file = seam.open(&folder.path().join("file"), Open::Existing).unwrap();
        while seam.read_now(file, 31 << 20, 4096).unwrap()[0] != 1 {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let deadline = seam.now() + Duration::from_secs(20);
        while let Err(error) = seam.lock_folder(folder.path()) {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert!(seam.now() < deadline, "the lock of a dead process is freed in the end");
            std::thread::yield_now();
        }
        // Under the lock nobody else writes: what stands there now must stay.
        seam.write_now(file, 0, &block(2, 32 << 8)).unwrap();
        for _ in 0..3 {
            let found = seam.read_now(file, 0, 32 << 20).unwrap();
            assert!(found.iter().all(|&byte| byte == 2), "a write landed after the lock was free");
        }
    }
}
