//! A process's view of the world.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::core::{Core, Handle, WakeFlag, dead};
use super::disk::Work;
use super::names::InodeId;
use crate::base::limits::BLOCK_BYTES;
use crate::base::{AlignedBuf, Mono, SharedSlice, WallMs};
use crate::io::{Event, FileId, ListenerId, Op, Open, Seam, Waker};

/// One process's seam. When the process was killed, or another was started on its host, every call is without effect.
/// Dropping the seam of a live process ends that process as kill -9 would.
pub struct SimSeam {
    core: Rc<RefCell<Core>>,
    host: usize,
    process: u64,
    wake: Arc<WakeFlag>,
}

impl Drop for SimSeam {
    fn drop(&mut self) {
        // The harness may drop it in the middle of an unwinding call.
        if let Ok(mut core) = self.core.try_borrow_mut()
            && core.alive(self.host, self.process)
        {
            core.kill(self.host);
        }
    }
}

fn bad_handle() -> io::Error {
    io::Error::from_raw_os_error(9)
}

/// O_DIRECT refuses anything else; a node that tries has a bug.
fn assert_aligned(offset: u64, len: usize) {
    let block = BLOCK_BYTES as u64;
    assert!(offset.is_multiple_of(block), "file offset {offset} is not a multiple of {BLOCK_BYTES}");
    assert!(len.is_multiple_of(BLOCK_BYTES), "file length {len} is not a multiple of {BLOCK_BYTES}");
}

fn assert_aligned_data(offset: u64, data: &SharedSlice) {
    assert_aligned(offset, data.len());
    assert!((data.as_ptr() as usize).is_multiple_of(512), "the memory of a write is not aligned");
}

impl SimSeam {
    pub(super) fn new(core: Rc<RefCell<Core>>, host: usize) -> SimSeam {
        let process = core.borrow_mut().start(host);
        let wake = core.borrow_mut().process(host).wake.clone();
        SimSeam { core, host, process, wake }
    }

    /// Runs a call that changes something outside the process, unless the process is dead.
    fn effect<T>(
        &mut self,
        what: &'static str,
        call: impl FnOnce(&mut Core) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut core = self.core.borrow_mut();
        if !core.alive(self.host, self.process) || !core.effective(self.host) {
            return Err(dead());
        }
        let (at, ops) = (core.host_now(self.host), core.hosts[self.host].ops);
        core.trace.note(at, self.host, what, ops, 0);
        call(&mut core)
    }

    /// Runs a call that only asks.
    fn query<T>(&self, call: impl FnOnce(&mut Core) -> io::Result<T>) -> io::Result<T> {
        let mut core = self.core.borrow_mut();
        if core.alive(self.host, self.process) { call(&mut core) } else { Err(dead()) }
    }

    /// Runs a folder operation, which costs a little.
    fn change_names<T>(
        &mut self,
        what: &'static str,
        path: &Path,
        call: impl FnOnce(&mut super::disk::Disk) -> io::Result<T>,
    ) -> io::Result<T> {
        let host = self.host;
        self.effect(what, |core| {
            core.trace.bytes(path.as_os_str().as_encoded_bytes());
            let Core { hosts, config, .. } = core;
            let disk = &mut hosts[host].disk;
            let cost = disk.name_cost(&config.disk);
            let result = call(disk);
            core.spend(host, cost);
            result
        })
    }

    fn now_work(core: &mut Core, host: usize, work: Work) -> io::Result<Option<AlignedBuf>> {
        let Core { hosts, config, .. } = core;
        let (took, result) = hosts[host].disk.run_now(work, &config.disk);
        core.spend(host, took);
        result
    }
}

fn handle(core: &mut Core, host: usize, file: FileId) -> io::Result<Handle> {
    core.process(host).files.get(&file).copied().ok_or_else(bad_handle)
}

fn writable(core: &mut Core, host: usize, file: FileId) -> io::Result<InodeId> {
    let handle = handle(core, host, file)?;
    if handle.writable { Ok(handle.inode) } else { Err(bad_handle()) }
}

/// Starts one operation of a live process.
fn submit(core: &mut Core, host: usize, op: Op) {
    match op {
        Op::Read { token, file, offset, len } => {
            assert_aligned(offset, len);
            match handle(core, host, file) {
                Ok(h) => core.submit_disk(host, Work::Read { token, inode: h.inode, offset, len }),
                Err(e) => core.give(host, Event::Read { token, result: Err(e) }),
            }
        }
        Op::Write { token, file, offset, data, durable } => {
            assert_aligned_data(offset, &data);
            core.trace.bytes(&data);
            match writable(core, host, file) {
                Ok(inode) => core.submit_disk(host, Work::Write { token, inode, offset, data, durable }),
                Err(e) => core.give(host, Event::Written { token, result: Err(e) }),
            }
        }
        Op::Flush { token, file } => match handle(core, host, file) {
            Ok(h) => core.submit_disk(host, Work::Flush { token, inode: h.inode }),
            Err(e) => core.give(host, Event::Flushed { token, result: Err(e) }),
        },
        Op::SyncFolder { token, path } => {
            let Core { hosts, config, .. } = core;
            let (took, result) = hosts[host].disk.sync_folder(&path, &config.disk);
            core.spend(host, took);
            core.give(host, Event::Flushed { token, result });
        }
        Op::Accept { listener } => core.accept(host, listener),
        Op::Connect { token, addr } => core.dial(host, token, addr),
        Op::Receive { conn } => core.receive(host, conn, true),
        Op::PauseReceive { conn } => core.receive(host, conn, false),
        Op::Send { token, conn, data } => core.send(host, token, conn, data),
        Op::Close { conn } => core.close(host, conn),
    }
}

/// What an operation looks like in the trace: its name, subject and size.
fn describe(op: &Op) -> (&'static str, u64, u64) {
    match op {
        Op::Read { token, offset, .. } => ("read", *token, *offset),
        Op::Write { token, offset, durable: false, .. } => ("write", *token, *offset),
        Op::Write { token, offset, durable: true, .. } => ("write durable", *token, *offset),
        Op::Flush { token, file } => ("flush", *token, u64::from(file.0)),
        Op::SyncFolder { token, .. } => ("sync folder", *token, 0),
        Op::Accept { listener } => ("accept", u64::from(listener.0), 0),
        Op::Connect { token, addr } => ("connect", *token, u64::from(addr.port())),
        Op::Receive { conn } => ("receive", conn.0, 0),
        Op::PauseReceive { conn } => ("pause receive", conn.0, 0),
        Op::Send { conn, data, .. } => ("send", conn.0, data.len() as u64),
        Op::Close { conn } => ("close", conn.0, 0),
    }
}

/// Puts a reaped event into the trace.
fn record(core: &mut Core, host: usize, event: &Event) {
    let ok = |failed: bool| u64::from(!failed);
    let (what, subject, detail) = match event {
        Event::Read { token, result } => {
            if let Ok(bytes) = result {
                core.trace.bytes(bytes);
            }
            ("got read", *token, ok(result.is_err()))
        }
        Event::Written { token, result } => ("got written", *token, ok(result.is_err())),
        Event::Flushed { token, result } => ("got flushed", *token, ok(result.is_err())),
        Event::Accepted { conn, .. } => ("got accepted", conn.0, 0),
        Event::AcceptFailed { listener, .. } => ("got accept failed", u64::from(listener.0), 0),
        Event::Connected { token, result } => {
            ("got connected", *token, result.as_ref().map_or(0, |conn| conn.0))
        }
        Event::Received { conn, bytes } => {
            core.trace.bytes(bytes);
            ("got received", conn.0, bytes.len() as u64)
        }
        Event::Sent { conn, result, .. } => ("got sent", conn.0, ok(result.is_err())),
        Event::Closed { conn, reason } => ("got closed", conn.0, *reason as u64),
        Event::Woken => ("got woken", 0, 0),
    };
    core.trace.note(core.now, host, what, subject, detail);
}

impl Seam for SimSeam {
    fn now(&self) -> Mono {
        self.core.borrow().local(self.host)
    }

    fn wall(&self) -> WallMs {
        let core = self.core.borrow();
        core.hosts[self.host].clock.wall(core.host_now(self.host), core.config.clock.epoch_ms)
    }

    fn random(&mut self) -> u64 {
        let mut core = self.core.borrow_mut();
        // What a dead process draws must not shift what its successor gets.
        if core.alive(self.host, self.process) { core.hosts[self.host].rng.next_u64() } else { 0 }
    }

    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        let host = self.host;
        let take = |core: &mut Core, inode| {
            let process = core.process(host);
            process.next_file += 1;
            let file = FileId(process.next_file);
            process.files.insert(file, Handle { inode, writable: how != Open::ReadOnly });
            Ok(file)
        };
        match how {
            Open::Create => {
                let inode = self.change_names("create", path, |disk| disk.open(path, how))?;
                self.query(|core| take(core, inode))
            }
            Open::Existing | Open::ReadOnly => self.query(|core| {
                let inode = core.hosts[host].disk.open(path, how)?;
                take(core, inode)
            }),
        }
    }

    fn close_file(&mut self, file: FileId) {
        let mut core = self.core.borrow_mut();
        if core.alive(self.host, self.process)
            && let Some(handle) = core.process(self.host).files.remove(&file)
        {
            core.hosts[self.host].disk.close(handle.inode);
        }
    }

    fn file_len(&mut self, file: FileId) -> io::Result<u64> {
        self.query(|core| {
            let handle = handle(core, self.host, file)?;
            Ok(core.hosts[self.host].disk.len(handle.inode))
        })
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.change_names("rename", to, |disk| disk.rename(from, to))
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.change_names("remove", path, |disk| disk.remove(path))
    }

    fn create_folder(&mut self, path: &Path) -> io::Result<()> {
        self.change_names("create folder", path, |disk| disk.create_folder(path))
    }

    fn list(&mut self, path: &Path) -> io::Result<Vec<String>> {
        self.query(|core| core.hosts[self.host].disk.list(path))
    }

    fn sync_folder(&mut self, path: &Path) -> io::Result<()> {
        let host = self.host;
        self.effect("sync folder", |core| {
            let Core { hosts, config, .. } = core;
            let (took, result) = hosts[host].disk.sync_folder(path, &config.disk);
            core.spend(host, took);
            result
        })
    }

    fn free_bytes(&mut self, path: &Path) -> io::Result<u64> {
        self.query(|core| core.hosts[self.host].disk.free_of(path))
    }

    fn lock_folder(&mut self, path: &Path) -> io::Result<()> {
        let (host, process) = (self.host, self.process);
        self.effect("lock folder", |core| {
            let now = core.host_now(host);
            core.hosts[host].disk.lock(path, process, now)
        })
    }

    fn listen(&mut self, addr: SocketAddr) -> io::Result<(ListenerId, SocketAddr)> {
        let host = self.host;
        self.effect("listen", |core| core.listen(host, addr))
    }

    fn submit(&mut self, op: Op) {
        let host = self.host;
        let mut core = self.core.borrow_mut();
        if !core.alive(host, self.process) {
            return;
        }
        // Reads and arming a receive change nothing outside: a crash there equals a crash before.
        let effective = !matches!(op, Op::Read { .. } | Op::Receive { .. } | Op::PauseReceive { .. });
        if effective && !core.effective(host) {
            return;
        }
        let (what, subject, detail) = describe(&op);
        let at = core.host_now(host);
        core.trace.note(at, host, what, subject, detail);
        submit(&mut core, host, op);
    }

    fn reap(&mut self, deadline: Option<Mono>, out: &mut Vec<Event>) {
        let mut core = self.core.borrow_mut();
        let host = self.host;
        if !core.alive(host, self.process) {
            return;
        }
        let ahead = deadline.filter(|d| *d > core.local(host));
        core.set_deadline(host, ahead);
        let waiting = core.process(host).inbox.len();
        let split = core.config.split_reap;
        let count = if waiting > 1 && core.rng.chance(split) {
            core.rng.between(1, waiting as u64) as usize
        } else {
            waiting
        };
        for _ in 0..count {
            let event = core.process(host).inbox.pop_front().expect("counted");
            record(&mut core, host, &event);
            if let Event::Received { conn, bytes } = &event {
                core.taken(conn.0, bytes.len());
            }
            out.push(event);
        }
        core.reaped(host);
    }

    fn read_now(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<AlignedBuf> {
        assert_aligned(offset, len);
        let host = self.host;
        self.query(|core| {
            let inode = handle(core, host, file)?.inode;
            let read = Self::now_work(core, host, Work::Read { token: 0, inode, offset, len })?;
            Ok(read.expect("a read yields bytes"))
        })
    }

    fn write_now(&mut self, file: FileId, offset: u64, data: &SharedSlice) -> io::Result<()> {
        assert_aligned_data(offset, data);
        let host = self.host;
        self.effect("write now", |core| {
            core.trace.bytes(data);
            let inode = writable(core, host, file)?;
            let work = Work::Write { token: 0, inode, offset, data: data.clone(), durable: false };
            Self::now_work(core, host, work).map(|_| ())
        })
    }

    fn flush_now(&mut self, file: FileId) -> io::Result<()> {
        let host = self.host;
        self.effect("flush now", |core| {
            let inode = handle(core, host, file)?.inode;
            Self::now_work(core, host, Work::Flush { token: 0, inode }).map(|_| ())
        })
    }

    fn waker(&self) -> Arc<dyn Waker> {
        self.wake.clone()
    }

    fn buggify(&mut self, point: &'static str) -> bool {
        let mut core = self.core.borrow_mut();
        core.alive(self.host, self.process) && core.buggify(point)
    }
}
