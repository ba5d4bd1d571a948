//! The world as a harness sees it: lifecycle, time, faults, oracles.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::config::{LinkFault, SimConfig};
use super::core::Core;
use super::disk::DiskImage;
use super::seam::SimSeam;
use super::swarm::Fault;
use crate::base::Mono;

/// A machine of the world, numbered from 0 in the order of [`World::add_host`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub u16);

/// What [`World::next`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

impl World {
    pub fn new(seed: u64, config: SimConfig) -> World {
        World { core: Rc::new(RefCell::new(Core::new(seed, config))) }
    }

    // ---- Lifecycle.

    /// Adds a machine: powered, with an empty disk (only the folder `/`) and no process.
    pub fn add_host(&self, ip: IpAddr) -> HostId {
        unimplemented!("{ip}")
    }

    /// Starts a process on the host and schedules its first turn. A process that still runs there is killed first;
    /// a machine without power boots.
    pub fn seam(&self, host: HostId) -> SimSeam {
        unimplemented!("{host:?}")
    }

    /// Whether a process runs on the host.
    pub fn is_up(&self, host: HostId) -> bool {
        unimplemented!("{host:?}")
    }

    /// kill -9. No-op when no process runs.
    pub fn kill(&self, host: HostId) {
        unimplemented!("{host:?}")
    }

    /// The machine loses power, whether or not a process runs on it.
    pub fn power_cut(&self, host: HostId) {
        unimplemented!("{host:?}")
    }

    /// The next `ops` effective operations of the host's process (submissions, folder changes, `*_now`; not queries)
    /// are carried out; all later ones have no effect, and at the end of that turn the crash happens and
    /// [`World::next`] returns [`Due::Crashed`]. Counts from now, across turns.
    pub fn crash_after_ops(&self, host: HostId, ops: u64, crash: Crash) {
        unimplemented!("{host:?} {ops} {crash:?}")
    }

    /// Effective operations of the host since the world began, counted as [`World::crash_after_ops`] counts.
    pub fn ops(&self, host: HostId) -> u64 {
        unimplemented!("{host:?}")
    }

    // ---- Time.

    /// Advances to the next turn. `None`: nothing will ever happen again unless the harness does something.
    pub fn next(&self) -> Option<Due> {
        self.next_before(Mono(u64::MAX))
    }

    /// Advances to the next turn due at or before `limit` (true time); with `None` the world stands at `limit`.
    pub fn next_before(&self, limit: Mono) -> Option<Due> {
        unimplemented!("{limit:?}")
    }

    /// Sets when the host wants its next turn at the latest, on the host's own monotonic clock: what its turn returned.
    /// Replaces the deadline that [`crate::io::Seam::reap`] recorded.
    pub fn wake_at(&self, host: HostId, deadline: Option<Mono>) {
        unimplemented!("{host:?} {deadline:?}")
    }

    /// True time since the world began.
    pub fn now(&self) -> Mono {
        unimplemented!()
    }

    /// What the host's monotonic clock shows.
    pub fn local_now(&self, host: HostId) -> Mono {
        unimplemented!("{host:?}")
    }

    /// SIGSTOP: no turns until [`World::resume`]; disk and kernel buffers go on.
    pub fn pause(&self, host: HostId) {
        unimplemented!("{host:?}")
    }

    pub fn resume(&self, host: HostId) {
        unimplemented!("{host:?}")
    }

    /// Rate of the host's monotonic clock against true time, in parts per million. -1_000_000 stops it.
    pub fn set_drift(&self, host: HostId, ppm: i32) {
        unimplemented!("{host:?} {ppm}")
    }

    pub fn jump_wall(&self, host: HostId, by_ms: i64) {
        unimplemented!("{host:?} {by_ms}")
    }

    // ---- Network faults.

    /// Cuts the link between `a` and `b` in both directions.
    pub fn partition(&self, a: HostId, b: HostId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Cuts one direction.
    pub fn cut(&self, from: HostId, to: HostId) {
        unimplemented!("{from:?} {to:?}")
    }

    /// Mends both directions; delays and losses of the links stay.
    pub fn heal(&self, a: HostId, b: HostId) {
        unimplemented!("{a:?} {b:?}")
    }

    /// Cuts the host off from all others.
    pub fn isolate(&self, host: HostId) {
        unimplemented!("{host:?}")
    }

    /// Mends all links; delays and losses stay.
    pub fn heal_all(&self) {
        unimplemented!()
    }

    /// Degrades one direction.
    pub fn set_link(&self, from: HostId, to: HostId, fault: LinkFault) {
        unimplemented!("{from:?} {to:?} {fault:?}")
    }

    /// Both ends of every connection between two hosts are reset, as by a middlebox.
    pub fn reset_connections(&self, a: HostId, b: HostId) {
        unimplemented!("{a:?} {b:?}")
    }

    /// The next accept of the host fails for want of descriptors.
    pub fn fail_accept(&self, host: HostId) {
        unimplemented!("{host:?}")
    }

    /// The byte streams sent from one host to another so far, one per connection, in the order they were opened.
    /// Needs [`super::NetConfig::capture`].
    pub fn captured(&self, from: HostId, to: HostId) -> Vec<Vec<u8>> {
        unimplemented!("{from:?} {to:?}")
    }

    /// Replay: opens a connection from the host to `addr` that belongs to no process, sends `bytes` on it and swallows
    /// whatever comes back.
    pub fn inject(&self, from: HostId, addr: SocketAddr, bytes: Vec<u8>) {
        unimplemented!("{from:?} {addr:?} {bytes:?}")
    }

    // ---- Disk faults.

    /// The `nth` (0 = the next) operation of this kind fails with EIO, once. What a failed write left behind is
    /// anything between nothing and all; what a failed flush covered will not become durable by a later one.
    pub fn fail_nth(&self, host: HostId, op: DiskOp, nth: u64) {
        unimplemented!("{host:?} {op:?} {nth}")
    }

    /// From now on every flush fails.
    pub fn fail_flushes(&self, host: HostId, fail: bool) {
        unimplemented!("{host:?} {fail}")
    }

    /// The `nth` (0 = the next) write is reported as done but goes nowhere (`None`) or this many blocks too far.
    pub fn misdirect_write(&self, host: HostId, nth: u64, blocks: Option<i64>) {
        unimplemented!("{host:?} {nth} {blocks:?}")
    }

    /// Flushes and durable writes report success without making anything durable.
    pub fn lie_about_flushes(&self, host: HostId, lie: bool) {
        unimplemented!("{host:?} {lie}")
    }

    /// Bytes that fit on the host's disk.
    pub fn set_quota(&self, host: HostId, bytes: Option<u64>) {
        unimplemented!("{host:?} {bytes:?}")
    }

    /// Multiplies the time that every operation submitted from now on takes.
    pub fn slow_disk(&self, host: HostId, factor: f64) {
        unimplemented!("{host:?} {factor}")
    }

    pub fn stall_disk(&self, host: HostId, stall: Stall) {
        unimplemented!("{host:?} {stall:?}")
    }

    pub fn release_disk(&self, host: HostId) {
        unimplemented!("{host:?}")
    }

    /// Flips one bit on the medium. False when there is no such byte.
    pub fn flip_bit(&self, host: HostId, path: &Path, byte: u64, bit: u8) -> bool {
        unimplemented!("{host:?} {path:?} {byte} {bit}")
    }

    // ---- Disks from outside.

    /// What a reader on the host would see in the file now.
    pub fn file(&self, host: HostId, path: &Path) -> Option<Vec<u8>> {
        unimplemented!("{host:?} {path:?}")
    }

    /// All files of the host, sorted.
    pub fn files(&self, host: HostId) -> Vec<PathBuf> {
        unimplemented!("{host:?}")
    }

    /// A copy of the whole disk as a reader sees it now.
    pub fn disk_image(&self, host: HostId) -> DiskImage {
        unimplemented!("{host:?}")
    }

    /// Replaces the disk (all of it durable): a cloned disk, a rolled-back snapshot, or an empty one. No process may run.
    pub fn restore_disk(&self, host: HostId, image: &DiskImage) {
        unimplemented!("{host:?} {image:?}")
    }

    // ---- Chance, plans, oracles.

    /// Switches `buggify` on or off for all hosts.
    pub fn set_buggify(&self, on: bool) {
        unimplemented!("{on}")
    }

    /// How often each `buggify` point fired.
    pub fn buggified(&self) -> BTreeMap<&'static str, u64> {
        unimplemented!()
    }

    /// Carries out one step of a plan. [`Fault::Start`] is the harness's own work and does nothing here.
    pub fn apply(&self, fault: &Fault) {
        unimplemented!("{fault:?}")
    }

    /// Ends every lasting fault: links, pauses, disks, drift beyond the configured, armed failures, `buggify`.
    /// What is dead stays dead.
    pub fn calm(&self) {
        unimplemented!()
    }

    /// A running hash over everything that was submitted and everything that happened.
    pub fn trace_hash(&self) -> u64 {
        unimplemented!()
    }

    /// The last few hundred things that happened, oldest first, for the report of a failed seed.
    pub fn last_events(&self) -> Vec<String> {
        unimplemented!()
    }

    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
}
