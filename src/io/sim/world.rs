//! The world as a harness sees it: lifecycle, time, faults, oracles.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::config::{LinkFault, SimConfig};
use super::core::Core;
use super::disk::{Disk, DiskImage};
use super::seam::SimSeam;
use super::swarm::Fault;
use crate::base::Mono;

/// A machine of the world, numbered from 0 in the order of [`World::add_host`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub u16);

/// What [`World::next`] came to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Due {
    /// The process of this host takes a turn now.
    Turn(HostId),
    /// [`World::crash_after_ops`] struck in the host's last turn. The process is dead: drop the node.
    Crashed(HostId),
}

/// How a process ends against its will.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// kill -9: the machine lives on, writes in flight may still land, peers soon hear of it.
    Kill,
    /// Power cut: what was not durable is kept, lost or torn; peers hear nothing.
    PowerCut,
}

/// A kind of disk operation, for faults.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DiskOp {
    Read,
    Write,
    /// Flushes and folder syncs.
    Flush,
}

/// Which operations of a stalled disk hang until [`World::release_disk`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stall {
    /// Flushes and durable writes.
    Flushes,
    Everything,
}

/// Counters, for reports and for tests that must know that something really happened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    pub events: u64,
    pub turns: u64,
    pub kills: u64,
    pub power_cuts: u64,
    pub writes_kept: u64,
    pub writes_lost: u64,
    pub writes_torn: u64,
    pub late_writes: u64,
    pub segments: u64,
    pub bytes_received: u64,
    pub connections_failed: u64,
    pub faults_applied: u64,
}

/// The shared world; clones are handles to the same one.
#[derive(Clone)]
pub struct World {
    pub(super) core: Rc<RefCell<Core>>,
}

fn index(host: HostId) -> usize {
    usize::from(host.0)
}

impl World {
    fn disk<T>(&self, host: HostId, call: impl FnOnce(&mut Disk) -> T) -> T {
        call(&mut self.core.borrow_mut().hosts[index(host)].disk)
    }

    pub fn new(seed: u64, config: SimConfig) -> World {
        World { core: Rc::new(RefCell::new(Core::new(seed, config))) }
    }

    // ---- Lifecycle.

    /// Adds a machine: powered, with an empty disk (only the folder `/`) and no process.
    pub fn add_host(&self, ip: IpAddr) -> HostId {
        self.core.borrow_mut().add_host(ip)
    }

    /// Starts a process on the host and schedules its first turn. A process that still runs there is killed first;
    /// a machine without power boots.
    pub fn seam(&self, host: HostId) -> SimSeam {
        SimSeam::new(self.core.clone(), index(host))
    }

    /// Whether a process runs on the host.
    pub fn is_up(&self, host: HostId) -> bool {
        self.core.borrow().hosts[index(host)].process.is_some()
    }

    /// kill -9. No-op when no process runs.
    pub fn kill(&self, host: HostId) {
        self.core.borrow_mut().kill(index(host));
    }

    /// The machine loses power, whether or not a process runs on it.
    pub fn power_cut(&self, host: HostId) {
        self.core.borrow_mut().power_cut(index(host));
    }

    /// The next `ops` effective operations of the host's process (submissions, folder changes, `*_now`; not queries)
    /// are carried out; all later ones have no effect, and at the end of that turn the crash happens and
    /// [`World::next`] returns [`Due::Crashed`]. Counts from now, across turns.
    pub fn crash_after_ops(&self, host: HostId, ops: u64, crash: Crash) {
        let mut core = self.core.borrow_mut();
        let h = &mut core.hosts[index(host)];
        assert!(h.process.is_some(), "only a process can crash");
        h.crash_at = Some((h.ops + ops, crash));
    }

    /// Effective operations of the host since the world began, counted as [`World::crash_after_ops`] counts.
    pub fn ops(&self, host: HostId) -> u64 {
        self.core.borrow().hosts[index(host)].ops
    }

    // ---- Time.

    /// Advances to the next turn. `None`: nothing will ever happen again unless the harness does something.
    pub fn next(&self) -> Option<Due> {
        self.next_before(Mono(u64::MAX))
    }

    /// Advances to the next turn due at or before `limit` (true time); with `None` the world stands at `limit`.
    pub fn next_before(&self, limit: Mono) -> Option<Due> {
        self.core.borrow_mut().next_before(limit.0)
    }

    /// Sets when the host wants its next turn at the latest, on the host's own monotonic clock: what its turn returned.
    /// Replaces the deadline that [`crate::io::Seam::reap`] recorded.
    pub fn wake_at(&self, host: HostId, deadline: Option<Mono>) {
        self.core.borrow_mut().set_deadline(index(host), deadline);
    }

    /// True time since the world began.
    pub fn now(&self) -> Mono {
        Mono(self.core.borrow().now)
    }

    /// What the host's monotonic clock shows.
    pub fn local_now(&self, host: HostId) -> Mono {
        self.core.borrow().local(index(host))
    }

    /// How long the host's process is still inside something slow: a start on a slow disk, for example.
    pub fn busy_for(&self, host: HostId) -> std::time::Duration {
        let core = self.core.borrow();
        std::time::Duration::from_nanos(core.host_now(index(host)) - core.now)
    }

    /// SIGSTOP: no turns until [`World::resume`]; disk and kernel buffers go on.
    pub fn pause(&self, host: HostId) {
        let mut core = self.core.borrow_mut();
        let (now, host) = (core.now, index(host));
        if core.hosts[host].process.is_some() {
            core.hosts[host].paused = true;
            core.schedule(host);
            core.trace.note(now, host, "pause", 0, 0);
        }
    }

    pub fn resume(&self, host: HostId) {
        self.core.borrow_mut().resume(index(host));
    }

    /// Rate of the host's monotonic clock against true time, in parts per million. -1_000_000 stops it.
    pub fn set_drift(&self, host: HostId, ppm: i32) {
        let mut core = self.core.borrow_mut();
        let at = core.host_now(index(host));
        core.hosts[index(host)].clock.set_ppm(at, ppm);
        core.schedule(index(host));
    }

    pub fn jump_wall(&self, host: HostId, by_ms: i64) {
        self.core.borrow_mut().hosts[index(host)].clock.jump_wall(by_ms);
    }

    // ---- Network faults.

    /// Cuts the link between `a` and `b` in both directions.
    pub fn partition(&self, a: HostId, b: HostId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Cuts one direction.
    pub fn cut(&self, from: HostId, to: HostId) {
        self.core.borrow_mut().cut(index(from), index(to));
    }

    /// Mends both directions; delays and losses of the links stay.
    pub fn heal(&self, a: HostId, b: HostId) {
        let mut core = self.core.borrow_mut();
        core.mend(index(a), index(b));
        core.mend(index(b), index(a));
    }

    /// Cuts the host off from all others.
    pub fn isolate(&self, host: HostId) {
        let hosts = self.core.borrow().hosts.len();
        for other in (0..hosts).map(|h| HostId(h as u16)).filter(|h| *h != host) {
            self.partition(host, other);
        }
    }

    /// Mends all links; delays and losses stay.
    pub fn heal_all(&self) {
        let hosts = self.core.borrow().hosts.len() as u16;
        for (a, b) in (0..hosts).flat_map(|a| (0..a).map(move |b| (HostId(a), HostId(b)))) {
            self.heal(a, b);
        }
    }

    /// Degrades one direction.
    pub fn set_link(&self, from: HostId, to: HostId, fault: LinkFault) {
        self.core.borrow_mut().set_link(index(from), index(to), fault);
    }

    /// Flips one bit of the next segment from one host to another: a flip that TCP's weak sum let through.
    pub fn corrupt_segment(&self, from: HostId, to: HostId) {
        self.core.borrow_mut().link(index(from), index(to)).flips += 1;
    }

    /// Both ends of every connection between two hosts are reset, as by a middlebox. Such a reset is a forgery: a
    /// protocol that takes a reset for the end of the other process (protocol section 2) is outside its promise here.
    pub fn reset_connections(&self, a: HostId, b: HostId) {
        self.core.borrow_mut().reset_connections(index(a), index(b));
    }

    /// The next accept of the host fails for want of descriptors.
    pub fn fail_accept(&self, host: HostId) {
        self.core.borrow_mut().hosts[index(host)].fail_accepts += 1;
    }

    /// The byte streams sent from one host to another so far, one per connection, in the order they were opened.
    /// Needs [`super::NetConfig::capture`].
    pub fn captured(&self, from: HostId, to: HostId) -> Vec<Vec<u8>> {
        self.core.borrow().captured(index(from), index(to))
    }

    /// Replay: opens a connection from the host to `addr` that belongs to no process, sends `bytes` on it and swallows
    /// whatever comes back.
    pub fn inject(&self, from: HostId, addr: SocketAddr, bytes: Vec<u8>) {
        self.core.borrow_mut().inject(index(from), addr, bytes);
    }

    // ---- Disk faults.

    /// The `nth` (0 = the next) operation of this kind fails with EIO, once. What a failed write left behind is
    /// anything between nothing and all; what a failed flush covered will not become durable by a later one.
    pub fn fail_nth(&self, host: HostId, op: DiskOp, nth: u64) {
        self.disk(host, |disk| disk.arm_failure(op, nth));
    }

    /// From now on every flush, folder sync and durable write fails.
    pub fn fail_flushes(&self, host: HostId, fail: bool) {
        self.disk(host, |disk| disk.fail_flushes = fail);
    }

    /// The `nth` (0 = the next) write is reported as done but goes nowhere (`None`) or this many blocks too far.
    pub fn misdirect_write(&self, host: HostId, nth: u64, blocks: Option<i64>) {
        self.disk(host, |disk| disk.arm_misdirection(nth, blocks));
    }

    /// Flushes and durable writes report success without making anything durable.
    pub fn lie_about_flushes(&self, host: HostId, lie: bool) {
        self.disk(host, |disk| disk.lie = lie);
    }

    /// Bytes that fit on the host's disk.
    pub fn set_quota(&self, host: HostId, bytes: Option<u64>) {
        self.disk(host, |disk| disk.quota = bytes);
    }

    /// Multiplies the time that every operation submitted from now on takes.
    pub fn slow_disk(&self, host: HostId, factor: f64) {
        self.disk(host, |disk| disk.slow = factor.max(0.0));
    }

    pub fn stall_disk(&self, host: HostId, stall: Stall) {
        self.disk(host, |disk| disk.stall = Some(stall));
    }

    pub fn release_disk(&self, host: HostId) {
        self.core.borrow_mut().release_disk(index(host));
    }

    /// Flips one bit on the medium. False when there is no such byte.
    pub fn flip_bit(&self, host: HostId, path: &Path, byte: u64, bit: u8) -> bool {
        self.disk(host, |disk| disk.flip_bit(path, byte, bit))
    }

    // ---- Disks from outside.

    /// What a reader on the host would see in the file now.
    pub fn file(&self, host: HostId, path: &Path) -> Option<Vec<u8>> {
        self.disk(host, |disk| disk.file(path))
    }

    /// The part of it that begins at `offset`; says how many bytes there are.
    pub fn read_file(&self, host: HostId, path: &Path, offset: u64, out: &mut [u8]) -> Option<usize> {
        self.disk(host, |disk| disk.read_file(path, offset, out))
    }

    /// All files of the host, sorted.
    pub fn files(&self, host: HostId) -> Vec<PathBuf> {
        self.disk(host, |disk| disk.files())
    }

    /// A copy of the whole disk as a reader sees it now.
    pub fn disk_image(&self, host: HostId) -> DiskImage {
        self.disk(host, |disk| disk.image())
    }

    /// Replaces the disk (all of it durable): a cloned disk, a rolled-back snapshot, or an empty one. No process may run.
    pub fn restore_disk(&self, host: HostId, image: &DiskImage) {
        assert!(!self.is_up(host), "a disk is not swapped under a process");
        self.disk(host, |disk| disk.restore(image));
    }

    // ---- Chance, plans, oracles.

    /// Switches `buggify` on or off for all hosts.
    pub fn set_buggify(&self, on: bool) {
        self.core.borrow_mut().buggify = on;
    }

    /// How often each `buggify` point fired.
    pub fn buggified(&self) -> BTreeMap<&'static str, u64> {
        self.core.borrow().buggified.clone()
    }

    /// Carries out one step of a plan. Starting a process is the harness's own work.
    pub fn apply(&self, fault: &Fault) {
        self.core.borrow_mut().stats.faults_applied += 1;
        match *fault {
            Fault::Start(host) => {
                let h = &mut self.core.borrow_mut().hosts[index(host)];
                h.crash_at = h.crash_at.filter(|_| h.dying);
            }
            Fault::CrashAfter { host, ops, crash } => {
                if self.is_up(host) {
                    self.crash_after_ops(host, ops, crash);
                }
            }
            Fault::Kill(host) => self.kill(host),
            Fault::PowerCut(host) => self.power_cut(host),
            Fault::Pause(host) => self.pause(host),
            Fault::Resume(host) => self.resume(host),
            Fault::Cut { from, to } => self.cut(from, to),
            Fault::Mend { from, to } => self.core.borrow_mut().mend(index(from), index(to)),
            Fault::Link { from, to, fault } => self.set_link(from, to, fault),
            Fault::Reset { a, b } => self.reset_connections(a, b),
            Fault::CorruptSegment { from, to } => self.corrupt_segment(from, to),
            Fault::SlowDisk { host, factor } => self.slow_disk(host, factor),
            Fault::StallDisk { host, stall } => self.stall_disk(host, stall),
            Fault::ReleaseDisk(host) => self.release_disk(host),
            Fault::Fail { host, op, nth } => self.fail_nth(host, op, nth),
            Fault::Drift { host, ppm } => self.set_drift(host, ppm),
            Fault::JumpWall { host, by_ms } => self.jump_wall(host, by_ms),
        }
    }

    /// Ends every lasting fault: links, pauses, disks, drift beyond the configured, armed failures, `buggify`.
    /// What is dead stays dead.
    pub fn calm(&self) {
        self.heal_all();
        self.set_buggify(false);
        let mut core = self.core.borrow_mut();
        for host in 0..core.hosts.len() {
            core.resume(host);
            core.release_disk(host);
            let at = core.host_now(host);
            let Core { hosts, config, .. } = &mut *core;
            hosts[host].disk.calm(&config.disk);
            hosts[host].clock.calm(at);
            hosts[host].fail_accepts = 0;
            hosts[host].crash_at = hosts[host].crash_at.filter(|_| hosts[host].dying);
            core.schedule(host);
            for other in 0..core.hosts.len() {
                core.set_link(host, other, LinkFault::NONE);
                core.link(host, other).flips = 0;
            }
        }
    }

    /// A running hash over everything that was submitted and everything that happened.
    pub fn trace_hash(&self) -> u64 {
        self.core.borrow().trace.hash()
    }

    /// The last few hundred things that happened, oldest first, for the report of a failed seed.
    pub fn last_events(&self) -> Vec<String> {
        self.core.borrow().trace.lines()
    }

    pub fn stats(&self) -> Stats {
        self.core.borrow().stats
    }
}
