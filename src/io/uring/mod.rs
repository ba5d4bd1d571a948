//! The kernel ring backend: one ring per event loop, entered once per turn.
//!
//! A node has one such loop of its own. With more cores it gets network loops beside it (`network`, `spread`, `mail`):
//! threads with a ring each that receive and send for client connections, while everything else stays on the node's
//! loop. The node sees one seam and one stream of events all the same.
//!
//! What it is: [`UringSeam`] carries out the [`Seam`] with io_uring. `ring` owns the queues shared with the kernel,
//! `flight` the operations that the kernel is carrying out, `files` and `net` what completions mean, `pool` the
//! receive buffers, `wake` the way in for other threads, `sys` the few system calls that the standard library lacks.
//!
//! What it is not: it schedules nothing, retries no failed write, and knows nothing of frames or clients.
//!
//! Invariants:
//! - memory and descriptors that the kernel may touch belong to a flight (or to an entry that counts its flights)
//!   until the last completion was drained; nothing is cancelled by forgetting it;
//! - a write or read is reported whole; a file operation is never cancelled;
//! - a connection is closed, and reported closed, only when none of its operations is left in the kernel;
//! - no operation is dropped: a full submission queue is handed over early, an overflowing completion queue is
//!   drained in later turns.
//!
//! The price: every operation in flight costs a slot of about 150 bytes, and an idle connection with a receive under
//! way holds one; in exchange no turn allocates per event, and one system call per turn moves everything.

mod busy;
mod calibrate;
mod config;
mod files;
mod flight;
mod mail;
mod net;
mod network;
mod pool;
mod ring;
mod spread;
mod sys;
#[cfg(test)]
mod tests;
mod wake;

pub use calibrate::{Calibration, calibrate};
pub use config::{UringConfig, ZERO_COPY_BYTES_MIN, ZeroCopy};
pub use net::NETWORK_LOOPS_MAX;
pub use pool::LentBuffer;
pub use sys::{give_back_holes, give_back_large_buffers, raise_descriptor_limit};

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use io_uring::{cqueue, opcode};

use self::busy::Busy;
use self::files::Files;
use self::flight::{Flight, Flights};
use self::net::Net;
use self::pool::BufferPool;
use self::ring::{Completion, NOBODY, Ring, Wait};
use self::spread::Spread;
use self::wake::{Bell, Flusher};
use super::{CloseReason, Event, FileId, ListenerId, Op, Open, ReceivedBytes, Seam, Waker};
use crate::base::{AlignedBuf, Mono, SharedSlice, WallMs};

/// How long the end of a ring waits for operations in flight before it leaves their memory to them for good.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// One event loop's ring with its files, sockets and receive buffers. Stays on the thread that made it.
pub struct UringSeam {
    config: UringConfig,
    ring: Ring,
    flights: Flights,
    files: Files,
    net: Net,
    pool: Option<Rc<BufferPool>>,
    bell: Arc<Bell>,
    flusher: Option<Flusher>,
    /// Flushes that the helper thread has not reported yet.
    flushes_outside: usize,
    busy: Busy,
    /// Sends submitted since the kernel was entered last.
    fresh_sends: u32,
    /// Events that arose while an operation was submitted.
    ready: Vec<Event>,
    /// Kept for its capacity.
    drained: Vec<Completion>,
    chance: Chance,
    lock: Option<File>,
    /// The network loops, if there are any.
    spread: Option<Spread>,
    warned_of_memory: bool,
    warnings: Vec<String>,
    /// Buffers of long reads that came back: fresh memory would be zeroed, and its pages faulted in, for each read.
    spare_reads: Vec<AlignedBuf>,
}

impl UringSeam {
    /// Sets up the ring. The error is one sentence that names the probable cause and what to change.
    pub fn new(config: UringConfig) -> io::Result<UringSeam> {
        let ring = Ring::open(config.entries)?;
        let mut warnings = Vec::new();
        let pool =
            config.shared_buffers.then(|| Rc::new(BufferPool::new(config.buffers, config.buffer_bytes)));
        let pool = pool.filter(|pool| match ring.offer_buffers(pool) {
            Ok(()) => true,
            Err(error) => {
                warnings.push(format!(
                    "the kernel takes no shared receive buffers ({error}): receives are slower"
                ));
                false
            }
        });
        let flush_thread = config.flush_thread;
        let bell = Bell::new()?;
        let spread = match config.network_loops {
            0 => None,
            _ => Some(Spread::start(&config, bell.clone(), &mut warnings)?),
        };
        let mut seam = UringSeam {
            net: Net::new(config.multishot),
            busy: Busy::new(config.busy_poll),
            config,
            ring,
            flights: Flights::new(),
            files: Files::default(),
            pool,
            bell,
            flusher: None,
            flushes_outside: 0,
            fresh_sends: 0,
            ready: Vec::new(),
            drained: Vec::new(),
            chance: Chance::new(),
            lock: None,
            spread,
            warned_of_memory: false,
            spare_reads: Vec::new(),
            warnings,
        };
        seam.launch(Flight::Wake { fd: seam.bell.fd(), count: Box::new(0) });
        seam.set_flush_thread(flush_thread)?;
        Ok(seam)
    }

    /// Whether `file` is read and written past the page cache. False on memory file systems (tests, demos), where
    /// "durable" means nothing.
    pub fn is_direct(&self, file: FileId) -> bool {
        self.is_direct_file(file)
    }

    /// What the machine did not offer, one sentence each, for the start-up log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Which kernel features are in use, in one line.
    pub fn describe(&self) -> String {
        let receive = match &self.pool {
            Some(pool) if self.net.multishot_receive => {
                format!("{} shared receive buffers of {} bytes", pool.count(), pool.buffer_bytes())
            }
            _ => "single receives".to_string(),
        };
        let flush = if self.config.flush_thread { "helper thread" } else { "ring" };
        let loops = match &self.spread {
            Some(spread) => format!("; clients on {} network loops", spread.loops()),
            None => String::new(),
        };
        format!("io_uring: {}; {receive}; flushes on the {flush}{loops}", self.ring.mode())
    }

    /// Chooses between ring flushes and the helper thread; flushes already submitted are not affected.
    pub fn set_flush_thread(&mut self, on: bool) -> io::Result<()> {
        if on && self.flusher.is_none() {
            self.flusher = Some(Flusher::start(self.bell.clone())?);
        }
        self.config.flush_thread = on;
        Ok(())
    }

    /// Hands an operation to the kernel; its completions will carry the returned key.
    fn launch(&mut self, flight: Flight) -> u64 {
        let key = self.flights.insert(flight);
        self.relaunch(key);
        key
    }

    /// Hands the next round of an operation to the kernel.
    fn relaunch(&mut self, key: u64) {
        let flight = self.flights.get(key).expect("an operation is launched while it is known");
        let entry = flight.entry().user_data(key);
        self.push(entry);
    }

    #[allow(unsafe_code)]
    fn push(&mut self, entry: io_uring::squeue::Entry) {
        // SAFETY: an entry comes from `Flight::entry`, whose pointers lead into memory of a flight that `flights`
        // keeps until its last completion was drained (and the end of the ring waits for that, or leaks it), or
        // from `cancel`, which names no memory. Descriptors are owned by the flight, or by a file or connection
        // that is kept while it has flights.
        unsafe { self.ring.push(entry) };
    }

    /// One visit to the kernel: starts what was prepared, waits as told, and handles what has completed.
    fn turn(&mut self, wait: Wait, out: &mut Vec<Event>) {
        self.feed_starved();
        let sends = std::mem::take(&mut self.fresh_sends);
        self.ring.enter(wait, sends);
        self.complete_all(out);
    }

    /// Starts what was prepared and waits until `until` without sleeping. False when nothing has come by then.
    fn look_again(&mut self, since: Mono, until: Mono, before: usize, out: &mut Vec<Event>) -> bool {
        let mut look = true;
        loop {
            if look {
                self.turn(Wait::No, out);
            }
            if let Some(spread) = &mut self.spread {
                spread.tell();
                spread.collect(out);
            }
            let now = self.now();
            if busy::is_news(&out[before..], since, now) {
                self.busy.waited(since, now);
                #[cfg(test)]
                {
                    self.busy.caught += 1;
                }
                return true;
            }
            if now >= until {
                return out.len() > before;
            }
            std::thread::yield_now();
            look = self.ring.has_news();
        }
    }

    /// Asks the kernel to end an operation early; the operation itself reports how it ended.
    fn cancel(&mut self, key: u64) {
        self.push(opcode::AsyncCancel::new(key).build().user_data(NOBODY));
    }

    fn complete_all(&mut self, out: &mut Vec<Event>) {
        let mut drained = std::mem::take(&mut self.drained);
        self.ring.drain(&mut drained);
        for done in drained.drain(..) {
            self.complete(done, out);
        }
        self.drained = drained;
    }

    fn complete(&mut self, done: Completion, out: &mut Vec<Event>) {
        let key = done.key;
        let Some(flight) = self.flights.get(key) else {
            debug_assert!(false, "completion {done:?} belongs to no operation");
            return;
        };
        // Operations with many completions stay where they are.
        match flight {
            Flight::Send(_) => return self.send_completed(key, done, out),
            Flight::ReceiveMany { conn, .. } => {
                let conn = *conn;
                if !cqueue::more(done.flags) {
                    self.flights.remove(key);
                }
                let bytes = self.lent_bytes(done);
                return self.receive_completed(conn, done, bytes, out);
            }
            Flight::Accept { listener, .. } => {
                let listener = *listener;
                if !cqueue::more(done.flags) {
                    self.flights.remove(key);
                }
                return self.accept_completed(listener, done, out);
            }
            Flight::Wake { .. } => {
                self.relaunch(key);
                if self.bell.answer() {
                    out.push(Event::Woken);
                }
                return self.collect_flushes(out);
            }
            _ => {}
        }
        match self.flights.remove(key).expect("it was just found") {
            Flight::Read(read) => self.read_completed(read, done.result, out),
            Flight::Write(write) => self.write_completed(write, done.result, out),
            Flight::Flush { token, file, .. } => self.flush_completed(token, file, done.result, out),
            Flight::Connect { token, fd, addr, .. } => {
                self.connect_completed(token, fd, &addr, done.result, out);
            }
            Flight::ReceiveOnce { conn, mut into, .. } => {
                into.truncate(usize::try_from(done.result).unwrap_or(0));
                self.receive_completed(conn, done, Some(ReceivedBytes::Owned(into)), out);
            }
            Flight::Send(_) | Flight::ReceiveMany { .. } | Flight::Accept { .. } | Flight::Wake { .. } => {
                unreachable!("handled above")
            }
        }
    }

    /// The receive buffer that the kernel picked for this completion, if it picked one.
    fn lent_bytes(&self, done: Completion) -> Option<ReceivedBytes> {
        let index = cqueue::buffer_select(done.flags)?;
        let pool = self.pool.as_ref().expect("the kernel picks only from a pool");
        Some(ReceivedBytes::Lent(pool.lend(index, u32::try_from(done.result).unwrap_or(0))))
    }
}

impl Seam for UringSeam {
    fn now(&self) -> Mono {
        sys::boot_time()
    }

    fn wall(&self) -> WallMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn random(&mut self) -> u64 {
        self.chance.next()
    }

    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        self.open_file(path, how)
    }

    fn close_file(&mut self, file: FileId) {
        self.close_open_file(file);
    }

    fn file_len(&mut self, file: FileId) -> io::Result<u64> {
        self.open_file_len(file)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        if from.parent() != to.parent() {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        std::fs::rename(from, to)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create_folder(&mut self, path: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o700).create(path)
    }

    fn list(&mut self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync_folder(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn free_bytes(&mut self, path: &Path) -> io::Result<u64> {
        sys::free_bytes(path)
    }

    fn lock_folder(&mut self, path: &Path) -> io::Result<()> {
        self.lock_data_folder(path)
    }

    fn listen(&mut self, addr: SocketAddr) -> io::Result<(ListenerId, SocketAddr)> {
        self.start_listening(addr)
    }

    fn spread(&mut self, listener: ListenerId) {
        self.spread_listener(listener);
    }

    fn submit(&mut self, op: Op) {
        // Some operations end at once; their events wait for the next reap.
        let mut ready = std::mem::take(&mut self.ready);
        let op = match &mut self.spread {
            Some(spread) => spread.submit(op, &mut ready),
            None => Some(op),
        };
        self.ready = ready;
        if let Some(op) = op {
            self.submit_here(op);
        }
    }

    fn reap(&mut self, deadline: Option<Mono>, out: &mut Vec<Event>) {
        let before = out.len();
        out.append(&mut self.ready);
        let may_wait = out.len() == before;
        let since = self.now();
        if let Some(until) = self.busy.until(since).filter(|_| may_wait) {
            let until = deadline.map_or(until, |deadline| until.min(deadline));
            if until > since && self.look_again(since, until, before, out) {
                return;
            }
        }
        loop {
            let mut wait = match deadline {
                _ if out.len() > before => Wait::No,
                None => Wait::Forever,
                Some(deadline) => match deadline.since(self.now()) {
                    Duration::ZERO => Wait::No,
                    left => Wait::AtMost(left),
                },
            };
            let last = matches!(wait, Wait::No);
            if let Some(spread) = &mut self.spread {
                spread.tell();
                if !last && !spread.park() {
                    wait = Wait::No;
                }
            }
            self.turn(wait, out);
            if let Some(spread) = &mut self.spread {
                spread.unpark();
                spread.collect(out);
            }
            if out.len() > before || last {
                if may_wait && !last {
                    self.busy.waited(since, self.now());
                }
                return;
            }
        }
    }

    fn read_now(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<AlignedBuf> {
        self.read_at_once(file, offset, len)
    }

    fn write_now(&mut self, file: FileId, offset: u64, data: &SharedSlice) -> io::Result<()> {
        self.write_at_once(file, offset, data)
    }

    fn flush_now(&mut self, file: FileId) -> io::Result<()> {
        self.flush_at_once(file)
    }

    fn recycle(&mut self, buf: AlignedBuf) {
        self.keep_spare(buf);
    }

    fn waker(&self) -> Arc<dyn Waker> {
        self.bell.clone()
    }
}

impl UringSeam {
    fn submit_here(&mut self, op: Op) {
        let mut ready = std::mem::take(&mut self.ready);
        match op {
            Op::Read { token, file, offset, len } => self.start_read(token, file, offset, len),
            Op::Write { token, file, offset, data, durable } => {
                self.start_write(token, file, offset, data, durable);
            }
            Op::Flush { token, file } => self.start_flush(token, file),
            Op::SyncFolder { token, path } => match File::open(path) {
                Ok(folder) => self.start_folder_sync(token, folder),
                Err(error) => ready.push(Event::Flushed { token, result: Err(error) }),
            },
            Op::Accept { listener } => self.start_accept(listener),
            Op::Connect { token, addr } => self.start_connect(token, addr, &mut ready),
            Op::Receive { conn } => self.start_receive(conn),
            Op::PauseReceive { conn } => self.pause_receive(conn),
            Op::Send { token, conn, data } => self.start_send(token, conn, data, &mut ready),
            Op::Close { conn } => self.end(conn, CloseReason::Local, &mut ready),
        }
        self.ready = ready;
    }
}

impl Drop for UringSeam {
    /// Ends what can be ended, waits for what must land, and only then frees memory and lets go of the folder lock.
    fn drop(&mut self) {
        // Joins the threads of the network loops, which ends their connections.
        self.spread = None;
        // Joins the helper thread, and with it waits for its flushes.
        self.flusher = None;
        for key in self.flights.keys(Flight::may_cancel) {
            self.cancel(key);
        }
        let deadline = self.now() + DRAIN_MAX;
        while self.flights.len() > 0 {
            let left = deadline.since(self.now());
            if left.is_zero() {
                break;
            }
            self.ring.enter(Wait::AtMost(left), 0);
            self.ring.drain(&mut self.drained);
            for done in std::mem::take(&mut self.drained) {
                self.bury(done);
            }
        }
        if self.flights.len() > 0 {
            // The kernel still holds this memory, so it is never freed; the lock stays with the ring.
            std::mem::forget(std::mem::replace(&mut self.flights, Flights::new()));
            std::mem::forget(self.pool.take());
            return;
        }
        if let Some(pool) = self.pool.take()
            && self.ring.withdraw_buffers().is_err()
        {
            std::mem::forget(pool);
        }
        if let Some(lock) = self.lock.take() {
            // The ring's share would go a little later than this process expects; nothing is in flight any more.
            let _ = lock.unlock();
        }
    }
}

impl UringSeam {
    /// Lets go of an operation that ended while the ring is being closed.
    fn bury(&mut self, done: Completion) {
        drop(self.lent_bytes(done));
        if let Some(Flight::Accept { .. }) = self.flights.get(done.key)
            && done.result >= 0
        {
            drop(sys::own(done.result));
        }
        if !cqueue::more(done.flags) {
            self.flights.remove(done.key);
        }
    }
}

/// Unpredictable numbers, fetched from the kernel many at a time.
struct Chance {
    bytes: [u8; 512],
    used: usize,
}

impl Chance {
    fn new() -> Chance {
        Chance { bytes: [0; 512], used: 512 }
    }

    fn next(&mut self) -> u64 {
        if self.used == self.bytes.len() {
            sys::fill_random(&mut self.bytes);
            self.used = 0;
        }
        let place = &mut self.bytes[self.used..self.used + 8];
        let number = u64::from_ne_bytes(place[..8].try_into().expect("eight bytes"));
        // A number is given out once and not kept in memory.
        place.fill(0);
        self.used += 8;
        number
    }
}
