//! The one mutable state behind every handle: hosts, processes, the queue of things to come, the scheduler.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::clock::Clock;
use super::config::{SimConfig, nanos};
use super::disk::{Disk, Landed, Work};
use super::names::InodeId;
use super::net::Net;
use super::trace::Trace;
use super::world::{Crash, Due, HostId, Stats};
use crate::base::{Mono, Prng};
use crate::io::{Event, FileId, Waker};

/// Something that will happen. Stamps and missing subjects make stale entries harmless.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum What {
    Landed {
        host: usize,
        op: u64,
    },
    /// The head of what this end sent reaches the other.
    Arrive {
        end: u64,
    },
    /// The receiver made room.
    Room {
        end: u64,
    },
    SendDone {
        end: u64,
    },
    /// A reset reaches this end.
    Reset {
        end: u64,
    },
    /// This end has waited since then for an acknowledgement.
    Silence {
        end: u64,
        since: u64,
    },
    Dial {
        dial: u64,
    },
    Dialled {
        dial: u64,
    },
    DialRefused {
        dial: u64,
    },
    DialTimeout {
        dial: u64,
    },
}

/// A place in the future: the time, then a seeded order among what is due at the same time.
type Place = (u64, u64);

/// No turn to come.
const NEVER: Place = (u64::MAX, u64::MAX);

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Turn { host: usize },
    Happens(What),
}

/// The future, by time; equal times in a seeded order. A host has one turn to come at most, and it moves with every
/// event: turns stand apart, where a move costs nothing.
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<(Place, What)>>,
    /// One for each host.
    turns: Vec<Place>,
    ties: Prng,
    pushed: u32,
}

impl Queue {
    fn new(ties: Prng) -> Queue {
        Queue { heap: BinaryHeap::new(), turns: Vec::new(), ties, pushed: 0 }
    }

    fn place(&mut self, at: u64) -> Place {
        self.pushed = self.pushed.wrapping_add(1);
        let tie = self.ties.next_u64() << 32;
        (at, tie | u64::from(self.pushed))
    }

    pub(super) fn push(&mut self, at: u64, what: What) {
        let place = self.place(at);
        self.heap.push(Reverse((place, what)));
    }

    /// When the host's next turn is due.
    fn set_turn(&mut self, host: usize, at: Option<u64>) {
        let at = at.unwrap_or(u64::MAX);
        if self.turns[host].0 != at {
            self.turns[host] = if at == u64::MAX { NEVER } else { self.place(at) };
        }
    }

    fn pop_before(&mut self, limit: u64) -> Option<(u64, Next)> {
        let (host, turn) =
            (0..).zip(self.turns.iter().copied()).min_by_key(|(_, turn)| *turn).unwrap_or((0, NEVER));
        let head = self.heap.peek().map_or(NEVER, |Reverse((place, _))| *place);
        let first = turn.min(head);
        if first == NEVER || first.0 > limit {
            return None;
        }
        if turn < head {
            self.turns[host] = NEVER;
            return Some((turn.0, Next::Turn { host }));
        }
        self.heap.pop().map(|Reverse(((at, _), what))| (at, Next::Happens(what)))
    }
}

const FIRST_FRESH_PORT: u16 = 40_000;

/// A file handle of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle {
    pub(super) inode: InodeId,
    pub(super) writable: bool,
}

/// Set by any thread, seen by the scheduler before its next step.
pub(super) struct WakeFlag {
    woken: AtomicBool,
    any: Arc<AtomicBool>,
}

impl Waker for WakeFlag {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.any.store(true, Ordering::Release);
    }
}

pub(super) struct Process {
    pub(super) id: u64,
    pub(super) inbox: VecDeque<Event>,
    pub(super) files: BTreeMap<FileId, Handle>,
    pub(super) next_file: u32,
    pub(super) wake: Arc<WakeFlag>,
    /// The deadline it asked for, on its own clock.
    deadline: Option<Mono>,
    /// When it notices what is in its inbox.
    noticed: Option<u64>,
}

pub(super) struct Host {
    pub(super) ip: IpAddr,
    pub(super) powered: bool,
    pub(super) paused: bool,
    pub(super) process: Option<Process>,
    pub(super) processes: u64,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    /// For [`crate::io::Seam::random`].
    pub(super) rng: Prng,
    next_port: u16,
    pub(super) fail_accepts: u32,
    /// Its process is busy until then with its last turn.
    busy_until: u64,
    /// How far its process has got within a turn.
    pub(super) lead: u64,
    pub(super) ops: u64,
    pub(super) crash_at: Option<(u64, Crash)>,
    pub(super) dying: bool,
}

pub(super) struct Core {
    pub(super) config: SimConfig,
    pub(super) seed: u64,
    pub(super) now: u64,
    pub(super) queue: Queue,
    pub(super) hosts: Vec<Host>,
    pub(super) net: Net,
    pub(super) rng: Prng,
    pub(super) trace: Trace,
    pub(super) stats: Stats,
    pub(super) buggify: bool,
    pub(super) buggify_rng: Prng,
    pub(super) buggified: BTreeMap<&'static str, u64>,
    dying: Vec<usize>,
    any_wake: Arc<AtomicBool>,
}

/// What a call on a dead process's seam gets.
pub(super) fn dead() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the process is dead")
}

impl Host {
    /// A port that no recent connection of this machine used.
    pub(super) fn fresh_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_FRESH_PORT);
        self.next_port
    }
}

impl Core {
    pub(super) fn new(seed: u64, config: SimConfig) -> Core {
        let sector = config.disk.sector_bytes;
        assert!(sector == 512 || sector == 4096, "disks tear at 512 or 4096 bytes");
        let mut rng = Prng::new(seed);
        Core {
            queue: Queue::new(rng.fork()),
            net: Net::new(rng.fork()),
            buggify_rng: rng.fork(),
            rng,
            seed,
            now: 0,
            hosts: Vec::new(),
            trace: Trace::new(seed),
            stats: Stats::default(),
            buggify: true,
            buggified: BTreeMap::new(),
            dying: Vec::new(),
            any_wake: Arc::new(AtomicBool::new(false)),
            config,
        }
    }

    // ---- Lifecycle.

    pub(super) fn add_host(&mut self, ip: IpAddr) -> HostId {
        assert!(self.hosts.iter().all(|h| h.ip != ip), "two machines cannot share {ip}");
        assert!(self.hosts.len() < super::net::HOSTS_MAX, "a world has at most {}", super::net::HOSTS_MAX);
        let clock = &self.config.clock;
        let ppm = self.rng.below(u64::from(clock.drift_ppm) * 2 + 1) as i32 - clock.drift_ppm as i32;
        let wall = nanos(clock.wall_offset) / 1_000_000;
        let wall_offset_ms = self.rng.below(wall * 2 + 1) as i64 - wall as i64;
        let host = Host {
            ip,
            powered: true,
            paused: false,
            process: None,
            processes: 0,
            disk: Disk::new(&self.config.disk, self.rng.fork()),
            clock: Clock::new(ppm, wall_offset_ms, &mut self.rng),
            rng: self.rng.fork(),
            next_port: FIRST_FRESH_PORT,
            fail_accepts: 0,
            busy_until: 0,
            lead: 0,
            ops: 0,
            crash_at: None,
            dying: false,
        };
        self.hosts.push(host);
        self.queue.turns.push(NEVER);
        HostId(self.hosts.len() as u16 - 1)
    }

    /// Starts a process and returns its number.
    pub(super) fn start(&mut self, host: usize) -> u64 {
        self.kill(host);
        let h = &mut self.hosts[host];
        h.processes += 1;
        let id = h.processes;
        if !h.powered {
            h.powered = true;
            h.clock.reboot(self.now, &mut self.rng);
            h.lead = self.now;
        }
        h.paused = false;
        // What its predecessor was still busy with ended with it.
        h.lead = self.now;
        h.busy_until = self.now;
        h.process = Some(Process {
            id,
            inbox: VecDeque::new(),
            files: BTreeMap::new(),
            next_file: 3,
            wake: Arc::new(WakeFlag { woken: AtomicBool::new(false), any: self.any_wake.clone() }),
            deadline: None,
            noticed: Some(self.now),
        });
        self.trace.note(self.now, host, "start", id, 0);
        self.net_revived(host);
        self.schedule(host);
        id
    }

    pub(super) fn kill(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let Some(process) = h.process.take() else { return };
        self.queue.set_turn(host, None);
        h.dying = false;
        h.crash_at = None;
        h.paused = false;
        self.stats.kills += 1;
        self.trace.note(self.now, host, "kill", process.id, 0);
        let handles: Vec<InodeId> = process.files.values().map(|f| f.inode).collect();
        for (op, after) in h.disk.kill(process.id, &handles, self.now, &self.config.disk) {
            self.queue.push(self.now + after, What::Landed { host, op });
        }
        self.net_killed(host);
    }

    pub(super) fn power_cut(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if !h.powered {
            return;
        }
        h.powered = false;
        h.paused = false;
        h.dying = false;
        h.crash_at = None;
        h.process = None;
        self.queue.set_turn(host, None);
        h.disk.power_cut(&self.config.disk, &mut self.stats);
        self.stats.power_cuts += 1;
        self.trace.note(self.now, host, "power cut", h.processes, 0);
        self.net_unpowered(host);
    }

    /// Counts an effective operation of a process; false when the process is beyond its planned crash.
    pub(super) fn effective(&mut self, host: usize) -> bool {
        let h = &mut self.hosts[host];
        if h.dying {
            return false;
        }
        if h.crash_at.is_some_and(|(at, _)| h.ops >= at) {
            h.dying = true;
            self.dying.push(host);
            return false;
        }
        h.ops += 1;
        true
    }

    pub(super) fn alive(&self, host: usize, process: u64) -> bool {
        let h = &self.hosts[host];
        !h.dying && h.process.as_ref().is_some_and(|p| p.id == process)
    }

    pub(super) fn process(&mut self, host: usize) -> &mut Process {
        self.hosts[host].process.as_mut().expect("checked to be alive")
    }

    // ---- Time.

    /// The true time at which the host's process is: ahead of the world while it does something slow in its turn.
    pub(super) fn host_now(&self, host: usize) -> u64 {
        self.hosts[host].lead.max(self.now)
    }

    pub(super) fn local(&self, host: usize) -> Mono {
        self.hosts[host].clock.local(self.host_now(host))
    }

    /// The process spent this long inside a call.
    pub(super) fn spend(&mut self, host: usize, took: u64) {
        let lead = self.host_now(host).saturating_add(took);
        let h = &mut self.hosts[host];
        h.lead = lead;
        h.busy_until = h.busy_until.max(lead);
    }

    pub(super) fn set_deadline(&mut self, host: usize, deadline: Option<Mono>) {
        if let Some(process) = self.hosts[host].process.as_mut() {
            process.deadline = deadline;
            self.schedule(host);
        }
    }

    /// Brings the queued turn of a host in line with what it waits for.
    pub(super) fn schedule(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let Some(process) = h.process.as_ref() else { return };
        let deadline = process.deadline.map(|local| h.clock.when(local));
        let wanted = match (deadline, process.noticed) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let wanted = wanted.map(|at| at.max(h.busy_until).max(self.now));
        self.queue.set_turn(host, wanted.filter(|_| !h.paused));
    }

    /// Puts an event into a process's inbox.
    pub(super) fn give(&mut self, host: usize, event: Event) {
        let now = self.now;
        let Some(process) = self.hosts[host].process.as_mut() else { return };
        process.inbox.push_back(event);
        if process.noticed.is_none() {
            process.noticed = Some(now);
            self.schedule(host);
        }
    }

    /// The inbox was emptied, or left partly full.
    pub(super) fn reaped(&mut self, host: usize) {
        let now = self.now;
        let process = self.process(host);
        process.noticed = if process.inbox.is_empty() { None } else { Some(now) };
        self.schedule(host);
    }

    pub(super) fn resume(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if !h.paused {
            return;
        }
        h.paused = false;
        h.busy_until = h.busy_until.max(self.now);
        self.trace.note(self.now, host, "resume", 0, 0);
        self.schedule(host);
    }

    pub(super) fn next_before(&mut self, limit: u64) -> Option<Due> {
        loop {
            if let Some(host) = self.dying.pop() {
                if let Some(due) = self.carry_out_crash(host) {
                    return Some(due);
                }
                continue;
            }
            if self.any_wake.swap(false, Ordering::AcqRel) {
                self.deliver_wakes();
            }
            let Some((at, next)) = self.queue.pop_before(limit) else {
                if limit != u64::MAX {
                    self.now = self.now.max(limit);
                }
                return None;
            };
            assert!(at >= self.now, "time does not run back");
            self.now = at;
            match next {
                Next::Turn { host } if self.begin_turn(host) => return Some(Due::Turn(HostId(host as u16))),
                Next::Turn { .. } => {}
                Next::Happens(what) => self.happen(what),
            }
        }
    }

    fn carry_out_crash(&mut self, host: usize) -> Option<Due> {
        let h = &mut self.hosts[host];
        if !h.dying {
            // It was killed in another way in the meantime.
            return None;
        }
        match h.crash_at.take().expect("a dying process has a planned crash").1 {
            Crash::Kill => self.kill(host),
            Crash::PowerCut => self.power_cut(host),
        }
        Some(Due::Crashed(HostId(host as u16)))
    }

    fn deliver_wakes(&mut self) {
        for host in 0..self.hosts.len() {
            let woken =
                self.hosts[host].process.as_ref().is_some_and(|p| p.wake.woken.swap(false, Ordering::AcqRel));
            if woken {
                self.give(host, Event::Woken);
            }
        }
    }

    fn begin_turn(&mut self, host: usize) -> bool {
        let h = &mut self.hosts[host];
        let process = h.process.as_mut().expect("only a process has turns");
        assert!(!h.paused, "what is paused has no turns");
        // Something slow began after this turn was queued. A turn before its end would let the clock run back.
        if h.busy_until > self.now {
            self.schedule(host);
            return false;
        }
        if process.deadline.is_some_and(|local| local <= h.clock.local(self.now)) {
            process.deadline = None;
        }
        process.noticed = None;
        h.lead = self.now;
        h.busy_until = self.now + self.config.turn.draw(&mut self.rng).max(1);
        self.stats.turns += 1;
        self.trace.note(self.now, host, "turn", process.id, process.inbox.len() as u64);
        true
    }

    fn happen(&mut self, what: What) {
        self.stats.events += 1;
        match what {
            What::Landed { host, op } => {
                let landed = self.hosts[host].disk.land(op, &self.config.disk, &mut self.stats);
                self.trace.note(self.now, host, "landed", op, 0);
                if let Landed::Event(event) = landed {
                    self.give(host, event);
                }
            }
            What::Arrive { end } => self.arrive(end),
            What::Room { end } => self.room(end),
            What::SendDone { end } => self.send_done(end),
            What::Reset { end } => self.reset_arrives(end),
            What::Silence { end, since } => self.silence(end, since),
            What::Dial { dial } => self.dial_arrives(dial),
            What::Dialled { dial } => self.dialled(dial),
            What::DialRefused { dial } => self.dial_refused(dial),
            What::DialTimeout { dial } => self.dial_timeout(dial),
        }
    }

    // ---- Disk operations.

    pub(super) fn submit_disk(&mut self, host: usize, work: Work) {
        let start = self.host_now(host);
        let h = &mut self.hosts[host];
        let process = h.process.as_ref().expect("checked to be alive").id;
        let (op, took) = h.disk.start(process, work, &self.config.disk);
        self.queue.push(start.saturating_add(took), What::Landed { host, op });
    }

    pub(super) fn release_disk(&mut self, host: usize) {
        for (op, after) in self.hosts[host].disk.release(&self.config.disk) {
            self.queue.push(self.now + after, What::Landed { host, op });
        }
    }

    // ---- Chance.

    pub(super) fn buggify(&mut self, point: &'static str) -> bool {
        if !self.buggify {
            return false;
        }
        let draw = xxhash_rust::xxh3::xxh3_64_with_seed(point.as_bytes(), self.seed);
        let alive = (draw >> 11) as f64 / ((1u64 << 53) as f64) < self.config.buggify_alive;
        let fires = alive && self.buggify_rng.chance(self.config.buggify_fire);
        if fires {
            *self.buggified.entry(point).or_insert(0) += 1;
        }
        fires
    }
}
