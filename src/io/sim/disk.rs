//! One machine's disk: files, operations under way, locks and faults. Time is given; the queue of the world tells
//! when an operation lands.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::config::{DiskConfig, nanos};
use super::image::{CutFate, CutMood, Image, Inode};
use super::names::{Entry, InodeId, Names};
use super::world::{DiskOp, Stall, Stats};
use crate::base::limits::BLOCK_BYTES;
use crate::base::{AlignedBuf, Prng, SharedSlice};
use crate::io::{Event, Open, Token};

/// A whole disk's content, detached from its machine. Copies share their blocks.
#[derive(Clone, Debug, Default)]
pub struct DiskImage {
    pub(super) folders: Vec<PathBuf>,
    pub(super) files: BTreeMap<PathBuf, Image>,
}

impl DiskImage {
    /// Content of one file.
    pub fn file(&self, path: &Path) -> Option<Vec<u8>> {
        self.files.get(path).map(Image::bytes)
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }
}

/// An operation as the disk sees it.
#[derive(Debug)]
pub(super) enum Work {
    Read { token: Token, inode: InodeId, offset: u64, len: usize },
    Write { token: Token, inode: InodeId, offset: u64, data: SharedSlice, durable: bool },
    Flush { token: Token, inode: InodeId },
}

impl Work {
    fn kind(&self) -> DiskOp {
        match self {
            Work::Read { .. } => DiskOp::Read,
            Work::Write { .. } => DiskOp::Write,
            Work::Flush { .. } => DiskOp::Flush,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Work::Read { len, .. } => *len,
            Work::Write { data, .. } => data.len(),
            Work::Flush { .. } => 0,
        }
    }

    fn flushes(&self) -> bool {
        matches!(self, Work::Flush { .. } | Work::Write { durable: true, .. })
    }
}

/// What will become of an operation, settled when it is submitted.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Fine,
    Fail,
    Lose,
    Misdirect(i64),
}

#[derive(Debug)]
struct InFlight {
    process: u64,
    /// Its process was killed: it lands, but nobody hears of it.
    orphan: bool,
    parked: bool,
    fate: Fate,
    /// For a flush: what it covers.
    mark: u64,
    work: Work,
}

/// What came of an operation whose time was up.
pub(super) enum Landed {
    /// It hangs on a stalled disk.
    Parked,
    /// Its process is gone, or it was cancelled.
    Silent,
    Event(Event),
}

#[derive(Debug)]
struct Lock {
    process: u64,
    /// Set when the process was killed: the moment its last descriptor is gone.
    free_at: Option<u64>,
}

pub(super) struct Disk {
    names: Names,
    inodes: BTreeMap<InodeId, Inode>,
    next_inode: InodeId,
    in_flight: BTreeMap<u64, InFlight>,
    next_op: u64,
    locks: BTreeMap<PathBuf, Lock>,
    rng: Prng,

    pub(super) quota: Option<u64>,
    pub(super) slow: f64,
    pub(super) stall: Option<Stall>,
    pub(super) fail_flushes: bool,
    pub(super) lie: bool,
    /// Armed failures: operations of that kind still to go before one fails.
    armed: Vec<(DiskOp, u64, Fate)>,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

fn enospc() -> io::Error {
    io::Error::from_raw_os_error(28)
}

/// Paths compare by their components: `/a/./b/` is `/a/b`.
fn clean(path: &Path) -> PathBuf {
    path.components().filter(|c| !matches!(c, Component::CurDir)).collect()
}

impl Disk {
    pub(super) fn new(config: &DiskConfig, rng: Prng) -> Disk {
        Disk {
            names: Names::new(),
            inodes: BTreeMap::new(),
            next_inode: 1,
            in_flight: BTreeMap::new(),
            next_op: 1,
            locks: BTreeMap::new(),
            rng,
            quota: config.quota,
            slow: 1.0,
            stall: None,
            fail_flushes: false,
            lie: false,
            armed: Vec::new(),
        }
    }

    // ---- Names.

    pub(super) fn open(&mut self, path: &Path, how: Open) -> io::Result<InodeId> {
        let path = clean(path);
        let id = match how {
            Open::Existing | Open::ReadOnly => self.names.file(&path)?,
            Open::Create => {
                if self.free() == 0 {
                    return Err(enospc());
                }
                self.names.create(&path, Entry::File(self.next_inode))?;
                self.inodes.insert(self.next_inode, Inode::default());
                self.next_inode += 1;
                self.next_inode - 1
            }
        };
        self.inode(id).open += 1;
        Ok(id)
    }

    pub(super) fn close(&mut self, id: InodeId) {
        let inode = self.inode(id);
        assert!(inode.open > 0, "a handle is closed once");
        inode.open -= 1;
        self.collect();
    }

    pub(super) fn len(&self, id: InodeId) -> u64 {
        self.inodes[&id].seen.len
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.names.rename(&clean(from), &clean(to))
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.names.remove(&clean(path))
    }

    pub(super) fn create_folder(&mut self, path: &Path) -> io::Result<()> {
        self.names.create(&clean(path), Entry::Folder)
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.names.list(&clean(path))
    }

    /// Says how long it took.
    pub(super) fn sync_folder(&mut self, path: &Path, config: &DiskConfig) -> (u64, io::Result<()>) {
        let path = clean(path);
        let took = (config.sync_folder.draw(&mut self.rng) as f64 * self.slow) as u64;
        if self.stall.is_some() {
            return (nanos(config.stalled_now), Err(io::ErrorKind::TimedOut.into()));
        }
        if let Err(e) = self.names.folder(&path) {
            return (took, Err(e));
        }
        match self.fate(DiskOp::Flush) {
            Fate::Fail => return (took, Err(eio())),
            Fate::Lose => return (took, Ok(())),
            Fate::Fine | Fate::Misdirect(_) => {}
        }
        let done = self.names.sync(&path);
        self.collect();
        (took, done)
    }

    /// What creating or renaming costs.
    pub(super) fn name_cost(&mut self, config: &DiskConfig) -> u64 {
        config.sync_folder.draw(&mut self.rng) / 5
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|i| i.seen.blocks.len() as u64 * BLOCK_BYTES as u64).sum()
    }

    pub(super) fn free(&self) -> u64 {
        self.quota.map_or(1 << 40, |quota| quota.saturating_sub(self.used()))
    }

    pub(super) fn free_of(&self, path: &Path) -> io::Result<u64> {
        let path = clean(path);
        match self.names.find(&path) {
            Some(_) => Ok(self.free()),
            None => Err(io::Error::new(io::ErrorKind::NotFound, path.display().to_string())),
        }
    }

    /// Drops files that no name, handle or operation can reach any more.
    fn collect(&mut self) {
        let mut keep: BTreeSet<InodeId> = self.names.reachable();
        keep.extend(self.in_flight.values().map(|op| match op.work {
            Work::Read { inode, .. } | Work::Write { inode, .. } | Work::Flush { inode, .. } => inode,
        }));
        self.inodes.retain(|id, inode| inode.open > 0 || keep.contains(id));
    }

    fn inode(&mut self, id: InodeId) -> &mut Inode {
        self.inodes.get_mut(&id).expect("an open or pending file exists")
    }

    // ---- Locks.

    pub(super) fn lock(&mut self, path: &Path, process: u64, now: u64) -> io::Result<()> {
        let path = clean(path);
        self.names.folder(&path)?;
        if let Some(lock) = self.locks.get(&path) {
            let landed = !self.in_flight.values().any(|op| op.process == lock.process);
            let free = lock.free_at.is_some_and(|at| at <= now) && landed;
            if !free {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        self.locks.insert(path, Lock { process, free_at: None });
        Ok(())
    }

    // ---- Operations.

    fn fate_of(&mut self, work: &Work) -> Fate {
        let fate = self.fate(work.kind());
        if self.fail_flushes && work.flushes() { Fate::Fail } else { fate }
    }

    fn fate(&mut self, op: DiskOp) -> Fate {
        let mut fate = Fate::Fine;
        self.armed.retain_mut(|(kind, to_go, armed)| {
            if *kind != op {
                return true;
            }
            if *to_go == 0 {
                fate = *armed;
                return false;
            }
            *to_go -= 1;
            true
        });
        match op {
            DiskOp::Flush if self.fail_flushes => Fate::Fail,
            DiskOp::Flush if self.lie && matches!(fate, Fate::Fine) => Fate::Lose,
            _ => fate,
        }
    }

    pub(super) fn arm_failure(&mut self, op: DiskOp, nth: u64) {
        self.armed.push((op, nth, Fate::Fail));
    }

    pub(super) fn arm_misdirection(&mut self, nth: u64, blocks: Option<i64>) {
        self.armed.push((DiskOp::Write, nth, blocks.map_or(Fate::Lose, Fate::Misdirect)));
    }

    fn latency(&mut self, work: &Work, config: &DiskConfig) -> u64 {
        let base = match work.kind() {
            DiskOp::Read => config.read,
            DiskOp::Write => config.write,
            DiskOp::Flush => config.flush,
        };
        let mut took = base.draw(&mut self.rng);
        if matches!(work, Work::Write { durable: true, .. }) {
            took += config.flush.draw(&mut self.rng);
        }
        if self.rng.chance(config.spike_chance) {
            took += config.spike.draw(&mut self.rng);
        }
        // Two gigabytes a second.
        took += work.bytes() as u64 / 2;
        (took as f64 * self.slow) as u64
    }

    /// Starts an operation; it lands after the returned time.
    pub(super) fn start(&mut self, process: u64, work: Work, config: &DiskConfig) -> (u64, u64) {
        let took = self.latency(&work, config);
        let fate = self.fate_of(&work);
        let mark = match work {
            Work::Flush { inode, .. } => self.inode(inode).mark(),
            _ => 0,
        };
        let id = self.next_op;
        self.next_op += 1;
        self.in_flight.insert(id, InFlight { process, orphan: false, parked: false, fate, mark, work });
        (id, took)
    }

    fn hangs(&self, work: &Work) -> bool {
        match self.stall {
            None => false,
            Some(Stall::Everything) => true,
            Some(Stall::Flushes) => work.flushes(),
        }
    }

    /// The time of an operation is up.
    pub(super) fn land(&mut self, id: u64, config: &DiskConfig, stats: &mut Stats) -> Landed {
        let Some(op) = self.in_flight.get(&id) else { return Landed::Silent };
        if self.hangs(&op.work) {
            self.in_flight.get_mut(&id).expect("just seen").parked = true;
            return Landed::Parked;
        }
        let op = self.in_flight.remove(&id).expect("just seen");
        let event = match op.work {
            Work::Read { token, inode, offset, len } => {
                Event::Read { token, result: self.read(op.fate, inode, offset, len) }
            }
            Work::Write { token, inode, offset, data, durable } => {
                let result = self.write(op.fate, inode, offset, &data, durable, config);
                Event::Written { token, result }
            }
            Work::Flush { token, inode } => {
                Event::Flushed { token, result: self.flush(op.fate, inode, op.mark) }
            }
        };
        if op.orphan {
            stats.late_writes += 1;
            return Landed::Silent;
        }
        Landed::Event(event)
    }

    fn read(&mut self, fate: Fate, inode: InodeId, offset: u64, len: usize) -> io::Result<AlignedBuf> {
        if matches!(fate, Fate::Fail) {
            return Err(eio());
        }
        let image = &self.inode(inode).seen;
        // Never allocate more than the file holds.
        let len = len.min(image.len.saturating_sub(offset) as usize);
        let mut buf = AlignedBuf::zeroed(len);
        image.read(offset, &mut buf);
        Ok(buf)
    }

    fn write(
        &mut self,
        fate: Fate,
        id: InodeId,
        offset: u64,
        data: &[u8],
        durable: bool,
        config: &DiskConfig,
    ) -> io::Result<()> {
        let added = self.inodes[&id].added_blocks(offset, data.len()) * BLOCK_BYTES as u64;
        if added > self.free() {
            return Err(enospc());
        }
        let durable = durable && !self.lie;
        let inode = self.inodes.get_mut(&id).expect("an open or pending file exists");
        match fate {
            Fate::Fine => inode.complete(offset, data, durable),
            Fate::Lose => {}
            Fate::Misdirect(blocks) => {
                let shifted = offset.saturating_add_signed(blocks.saturating_mul(BLOCK_BYTES as i64));
                inode.complete(shifted / BLOCK_BYTES as u64 * BLOCK_BYTES as u64, data, durable);
            }
            Fate::Fail => {
                inode.complete_partly(offset, data, config.sector_bytes, &mut self.rng);
                return Err(eio());
            }
        }
        Ok(())
    }

    fn flush(&mut self, fate: Fate, inode: InodeId, mark: u64) -> io::Result<()> {
        let inode = self.inode(inode);
        match fate {
            Fate::Fine | Fate::Misdirect(_) => inode.flush(mark),
            Fate::Lose => {}
            Fate::Fail => {
                inode.flush_failed(mark);
                return Err(eio());
            }
        }
        Ok(())
    }

    /// Carries out an operation at once and says how long it took. On a stalled disk it gives up: a write may then
    /// have happened or not.
    pub(super) fn run_now(
        &mut self,
        work: Work,
        config: &DiskConfig,
    ) -> (u64, io::Result<Option<AlignedBuf>>) {
        let took = self.latency(&work, config);
        let fate = self.fate_of(&work);
        let hangs = self.hangs(&work);
        if hangs && !(matches!(work, Work::Write { .. }) && self.rng.chance(0.5)) {
            return (nanos(config.stalled_now), Err(io::ErrorKind::TimedOut.into()));
        }
        let result = match work {
            Work::Read { inode, offset, len, .. } => self.read(fate, inode, offset, len).map(Some),
            Work::Write { inode, offset, ref data, durable, .. } => {
                self.write(fate, inode, offset, data, durable, config).map(|()| None)
            }
            Work::Flush { inode, .. } => {
                let mark = self.inode(inode).mark();
                self.flush(fate, inode, mark).map(|()| None)
            }
        };
        if hangs {
            return (nanos(config.stalled_now), Err(io::ErrorKind::TimedOut.into()));
        }
        (took, result)
    }

    /// Lets everything that hangs go on: the operations to land, each after its time.
    pub(super) fn release(&mut self, config: &DiskConfig) -> Vec<(u64, u64)> {
        self.stall = None;
        let parked: Vec<u64> = self.in_flight.iter().filter(|(_, op)| op.parked).map(|(id, _)| *id).collect();
        let rng = &mut self.rng;
        for id in &parked {
            self.in_flight.get_mut(id).expect("just seen").parked = false;
        }
        parked.into_iter().map(|id| (id, config.write.draw(rng))).collect()
    }

    // ---- Crashes and decay.

    /// kill -9 of `process` with the given open handles. Returns the writes that will still land, each after its time.
    pub(super) fn kill(
        &mut self,
        process: u64,
        handles: &[InodeId],
        now: u64,
        config: &DiskConfig,
    ) -> Vec<(u64, u64)> {
        for id in handles {
            self.inode(*id).open -= 1;
        }
        let rng = &mut self.rng;
        let mut late = Vec::new();
        self.in_flight.retain(|id, op| {
            if op.process != process || op.orphan {
                return true;
            }
            if !matches!(op.work, Work::Write { .. }) || rng.chance(config.cancel_on_kill) {
                return false;
            }
            op.orphan = true;
            if !op.parked {
                late.push((*id, config.late_write.draw(rng)));
            }
            true
        });
        let grace = config.late_write.draw(rng) / 10;
        for lock in self.locks.values_mut().filter(|lock| lock.process == process) {
            let last = late.iter().map(|(_, after)| *after).max().unwrap_or(0);
            lock.free_at = Some(now + last.max(grace));
        }
        self.collect();
        late
    }

    pub(super) fn power_cut(&mut self, config: &DiskConfig, stats: &mut Stats) {
        let mut mood = CutMood { keep: config.keep, tear: config.tear, sector_bytes: config.sector_bytes };
        match self.rng.below(6) {
            0 => mood = CutMood { keep: 0.0, tear: 0.0, ..mood },
            1 => mood.keep = 0.95,
            2 => mood = CutMood { keep: 0.0, tear: 1.0, ..mood },
            _ => {}
        }
        let mut landing: BTreeMap<InodeId, Vec<(u64, SharedSlice)>> = BTreeMap::new();
        for op in std::mem::take(&mut self.in_flight).into_values() {
            if let Work::Write { inode, offset, data, .. } = op.work {
                landing.entry(inode).or_default().push((offset, data));
            }
        }
        for (id, inode) in &mut self.inodes {
            let mut writes = landing.remove(id).unwrap_or_default();
            // The drive finishes them in any order.
            for i in (1..writes.len()).rev() {
                writes.swap(i, self.rng.below(i as u64 + 1) as usize);
            }
            let writes: Vec<(u64, &[u8])> = writes.iter().map(|(at, data)| (*at, &**data)).collect();
            inode.power_cut(&writes, mood, &mut self.rng, |fate| match fate {
                CutFate::Kept => stats.writes_kept += 1,
                CutFate::Torn => stats.writes_torn += 1,
                CutFate::Lost => stats.writes_lost += 1,
            });
        }
        let ordered = self.rng.chance(config.ordered_entries);
        self.names.power_cut(ordered, &mut self.rng);
        self.locks.clear();
        self.collect();
    }

    pub(super) fn flip_bit(&mut self, path: &Path, byte: u64, bit: u8) -> bool {
        match self.names.file(&clean(path)) {
            Ok(inode) => self.inode(inode).flip_bit(byte, bit),
            Err(_) => false,
        }
    }

    /// Ends every lasting fault but the stall, which [`Disk::release`] ends.
    pub(super) fn calm(&mut self, config: &DiskConfig) {
        self.quota = config.quota;
        self.slow = 1.0;
        self.fail_flushes = false;
        self.lie = false;
        self.armed.clear();
    }

    // ---- From outside.

    pub(super) fn image(&self) -> DiskImage {
        let mut image = DiskImage::default();
        for (path, entry) in self.names.entries() {
            match entry {
                Entry::Folder => image.folders.push(path.clone()),
                Entry::File(inode) => {
                    image.files.insert(path.clone(), self.inodes[&inode].seen.clone());
                }
            }
        }
        image
    }

    pub(super) fn restore(&mut self, image: &DiskImage) {
        self.names = Names::new();
        self.inodes.clear();
        self.in_flight.clear();
        self.locks.clear();
        for folder in image.folders.iter().filter(|f| f.parent().is_some_and(|p| p != Path::new(""))) {
            self.names.create(folder, Entry::Folder).expect("parents come first");
        }
        for (path, content) in &image.files {
            self.names.create(path, Entry::File(self.next_inode)).expect("its folder was made");
            self.inodes.insert(self.next_inode, Inode::of(content.clone()));
            self.next_inode += 1;
        }
        self.names.make_durable();
    }

    pub(super) fn file(&self, path: &Path) -> Option<Vec<u8>> {
        let inode = self.names.file(&clean(path)).ok()?;
        Some(self.inodes[&inode].seen.bytes())
    }

    pub(super) fn read_file(&self, path: &Path, offset: u64, out: &mut [u8]) -> Option<usize> {
        let inode = self.names.file(&clean(path)).ok()?;
        Some(self.inodes[&inode].seen.read(offset, out))
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        let files = self.names.entries().filter(|(_, entry)| matches!(entry, Entry::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }
}
