//! The node: rooms, drivers and seam put together.
//!
//! One event loop owns everything: the log, the shards, the clients, the links to other nodes. A turn reaps what has
//! happened, lets the rooms decide, and submits what follows. Nothing in here blocks, and the same code runs on the
//! kernel's ring and in the simulator.
//!
//! This room decides nothing about safety by itself: terms and promises are decided in `role`, what an acknowledgement
//! is worth in `replication`, what is durable in `wal`, what is visible in `store`. It carries orders out, in order.
//!
//! Invariants:
//! - no reply leaves before what it observed is committed ([`gates`]);
//! - nothing above the commit index is applied from the log; what this node executed as primary is taken back on
//!   demotion;
//! - after `StopAcks` no acknowledgement, grant or reply leaves until the role machine says so;
//! - in each turn flushes and acknowledgements go before redo and merges.
//!
//! Price: one loop serves one core; what takes long is cut into slices, and each slice is a little slower for it.

mod admin;
mod boot;
mod cascade;
mod chronicle;
mod clients;
pub mod control;
mod control_file;
mod crew;
mod crowd;
mod cut;
mod data;
pub mod dir_store;
mod disk_watch;
mod files;
mod forward;
mod gates;
mod groups;
mod host;
mod init;
mod inspect_tail;
mod links;
mod log;
mod mark;
mod outbox;
mod rates;
mod redo;
mod reload;
mod repair;
mod roles;
mod roots;
mod run;
mod stall;
mod status;
mod store_link;
mod stream;
mod streams;
mod token;
mod upgrade;
mod waits;
mod walk;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use crate::base::limits::LEASE;
use crate::base::{CommittedLsn, Incarnation, Lsn, Mono, NodeId, Stamp, WallMs};
use crate::config::Config;
use crate::io::{Event, ListenerId, Op, Seam};
use crate::metrics::Metrics;
use crate::replication::Identity;
use crate::role::{CommandResult, Effect, Input, RoleMachine};
use crate::store::StoreMemory;

use control::{ControlMessage, StatusBoard};
use control_file::ControlFile;
use data::Data;
use files::Folder;
use gates::Watermarks;
use groups::Groups;
use links::{LinkEvent, Links};
use log::Log;
use streams::Streams;
use token::Purpose;

pub use boot::{BootError, BootOptions};
pub use chronicle::{read as read_history, rows_of};
pub use init::{InitDone, InitOptions, Inspect, NodeError, init, init_on, inspect};
pub use inspect_tail::describe as describe_tail;
pub use mark::Mark;
pub use run::{RunOptions, StartRole, processors, role_fits, run};
pub use status::Glance;

/// Frames with more records than this carry no policy record: those travel nearly alone.
const POLICY_FRAME_RECORDS_MAX: u32 = 8;
/// How often slow timers are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Log bytes between two checkpoints of the same shard.
const CHECKPOINT_BYTES: u64 = 256 << 20;

/// What the loop should do after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Another turn when something happens, or at this moment.
    Until(Mono),
    /// The node is done; the process exits with this code.
    Exit(u8),
}

/// One node.
pub struct Node<S: Seam> {
    seam: disk_watch::DiskWatch<S>,
    disk: stall::DiskHealth,
    config: Arc<Config>,
    folder: Folder,
    identity: Identity,
    now: Mono,
    started: Mono,
    events: Vec<Event>,
    deadline: Mono,
    tick_at: Mono,
    metrics: Metrics,

    control: ControlFile,
    mark: mark::MarkFile,
    role: RoleMachine,
    role_inputs: VecDeque<Input>,
    role_effects: Vec<Effect>,
    /// Questions to the role machine from inside this process.
    role_waiters: BTreeMap<u64, Box<dyn FnOnce(CommandResult) + Send>>,
    role_asked: u64,
    store_link: store_link::StoreLink,
    /// A switchover drains: no command that writes begins, no checkpoint is logged.
    writes_held: bool,
    /// Between `StopAcks` and the next `Follow` or `Lead`.
    acks_stopped: bool,
    drain: Option<u64>,
    term_start_end: Lsn,

    log: Log,
    log_moved: bool,
    log_failure_told: bool,
    repair_told: bool,
    /// There is no room for the next log segment.
    log_starved: bool,
    groups: Groups,
    committed: CommittedLsn,
    /// When standbys are told of the commit index by itself, if no frame has carried it until then.
    announce_at: Option<Mono>,
    acks_moved: bool,

    data: Data,
    data_memory: StoreMemory,
    delta_budget: usize,
    checkpoint_bytes: u64,
    clock_floor: WallMs,
    /// Client commands are executed here.
    serving: bool,
    /// Frames of this run's own term were executed before they were logged: redo leaves them alone.
    executed: bool,
    serve_after: Option<Lsn>,
    /// Reads wait until redo has reached what was known to be committed at start.
    readable_from: Lsn,
    roots: roots::Roots,
    repairs: repair::Repairs,
    walk: walk::WalkPace,
    /// Since when the connected voters are too few for a commit.
    voters_missing_since: Option<Mono>,

    links: Links,
    link_events: Vec<LinkEvent>,
    streams: Streams,
    peer_listener: ListenerId,

    clients: clients::Clients,
    client_listener: ListenerId,
    marks: Watermarks,
    gates_moved: bool,

    mailbox: Option<Receiver<ControlMessage>>,
    board: Option<Arc<StatusBoard>>,
    admin: admin::Admin,
    chronicle: chronicle::Chronicle,
    /// `-M pending`: this node streams from nobody until it is told to.
    pending: bool,
    finalizing: Option<upgrade::Finalizing>,
    exit: Option<u8>,
    stopping: Option<admin::Stopping>,
}

impl<S: Seam> Node<S> {
    fn me(&self) -> NodeId {
        self.config.node
    }

    fn identity_full(&self) -> &Identity {
        &self.identity
    }

    fn control_shards(&self) -> u16 {
        self.role.control().shards
    }

    /// The clock that frames carry and keys expire by: never behind what was carried before (protocol 2.7).
    fn clock(&self) -> WallMs {
        self.clock_at(self.seam.wall())
    }

    /// [`Node::clock`] for a caller that has just looked at the wall clock.
    fn clock_at(&self, wall: WallMs) -> WallMs {
        if self.executed { wall.max(self.clock_floor).max(self.data.clock) } else { self.data.clock }
    }

    /// Ends the node because its disk or its data cannot be trusted any more.
    fn fail(&mut self, reason: &str) {
        if self.exit.is_none() {
            tracing::error!(reason, "this node stops");
            self.exit = Some(1);
        }
        self.serving = false;
        self.acks_stopped = true;
    }

    /// Gives the loop its mailbox of admin requests and the board for its status.
    pub fn attach(&mut self, mailbox: Receiver<ControlMessage>, board: Arc<StatusBoard>) {
        self.mailbox = Some(mailbox);
        self.board = Some(board);
        self.publish_status();
    }

    pub fn client_addr_listener(&self) -> ListenerId {
        self.client_listener
    }

    /// One turn of the loop.
    pub fn turn(&mut self) -> Turn {
        let mut events = std::mem::take(&mut self.events);
        self.seam.reap(Some(self.deadline), &mut events);
        self.now = self.seam.now();
        self.metrics.count.loop_turns += 1;
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;
        self.work();
        match self.exit {
            Some(code) => Turn::Exit(code),
            None => Turn::Until(self.deadline),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Received { conn, bytes } => {
                if self.links.owns(conn) {
                    self.metrics.count.peer_bytes_in += bytes.len() as u64;
                    self.peer_bytes(conn, &bytes);
                } else {
                    self.client_bytes(conn, &bytes);
                }
            }
            Event::Sent { conn, data, .. } => {
                if self.links.owns(conn) {
                    self.links.sent(&mut self.seam, conn, data);
                    self.feed_frames(conn);
                } else {
                    self.client_sent(conn, data);
                }
            }
            Event::Accepted { listener, conn, peer } => {
                if listener == self.peer_listener {
                    let nonce = self.nonce();
                    self.links.accepted(&mut self.seam, conn, self.now, nonce);
                } else {
                    self.client_accepted(conn, peer);
                }
            }
            Event::AcceptFailed { listener, error } => {
                tracing::warn!(%error, "cannot accept connections for the moment");
                self.clients.accept_again.push(listener);
            }
            Event::Connected { token, result } => {
                if let Purpose::Dial(node) = token::purpose(token) {
                    let nonce = self.nonce();
                    self.links.connected(&mut self.seam, node, result, self.now, nonce);
                }
            }
            Event::Closed { conn, reason } => {
                if self.links.owns(conn) {
                    if let Some(event) = self.links.closed(conn, reason, self.now) {
                        self.link_event(event);
                    }
                } else {
                    self.client_closed(conn);
                }
            }
            Event::Read { token, result } => match token::purpose(token) {
                Purpose::PageRead(page) => self.page_arrived(page, result),
                Purpose::LogRead(id) => self.log_read_arrived(id, result),
                Purpose::RepairRead(page) => self.repair_read_arrived(page, result),
                Purpose::RepairSearch(page) => self.search_read_arrived(page, result),
                Purpose::ScrubRead(page) => self.scrub_read_arrived(page, result),
                Purpose::WalkRead(page) => self.walk_read_arrived(page, result),
                other => unreachable!("no reads for {other:?}"),
            },
            Event::Written { token, result } | Event::Flushed { token, result } => {
                self.written(token, result)
            }
            Event::Woken => {
                self.take_mail();
                self.take_store_answers();
            }
        }
        self.pump_role();
    }

    fn written(&mut self, token: crate::io::Token, result: std::io::Result<()>) {
        match token::purpose(token) {
            Purpose::Wal(id) => self.wal_completed(id, result),
            Purpose::Segment(id) => self.segment_completed(id, result),
            Purpose::PageWrite(page) => self.page_written(page, result),
            Purpose::RepairWrite(page) => self.repair_written(page, result),
            Purpose::PageFlush(round) => self.pages_flushed(round, result),
            Purpose::PageGrow => self.grown(result),
            Purpose::Superblock => self.superblock_written(result),
            Purpose::Mark => self.mark_written(result),
            Purpose::Tail => self.tail_written(result),
            Purpose::Control => match result {
                Ok(()) => {
                    if let Some(generation) = self.control.written(&mut self.seam) {
                        self.tell_role(Input::Persisted { generation });
                        self.format_persisted(generation);
                        // A rule that waited for the control file may let the commit index move now.
                        self.log_moved = true;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the control file cannot be written");
                    self.fail("the control file cannot be written");
                }
            },
            other => unreachable!("no writes for {other:?}"),
        }
    }

    fn peer_bytes(&mut self, conn: crate::io::ConnId, bytes: &crate::io::ReceivedBytes) {
        // Only a handshake asks who the members are.
        let members: Vec<(NodeId, Option<Incarnation>)> = match self.links.session(conn) {
            Some(_) => Vec::new(),
            None => {
                let bound = |node| self.role.bound_incarnation(node);
                self.config.members.iter().map(|m| (m.node, bound(m.node))).collect()
            }
        };
        let mut events = std::mem::take(&mut self.link_events);
        self.links.received(&mut self.seam, conn, bytes, self.now, &members, &mut events);
        for event in events.drain(..) {
            self.link_event(event);
            self.pump_role();
        }
        self.link_events = events;
    }

    fn nonce(&mut self) -> [u8; 32] {
        let mut nonce = [0u8; 32];
        nonce[..16].copy_from_slice(&self.seam.random_u128().to_le_bytes());
        nonce[16..].copy_from_slice(&self.seam.random_u128().to_le_bytes());
        nonce
    }

    /// Everything that follows from the events of a turn, urgent things first.
    fn work(&mut self) {
        if self.now >= self.tick_at {
            self.tick();
        }
        // All that is submitted in a turn starts together at its end. So replies are let go first: the commands that
        // they make room for belong to the group that is sealed now, and its frame carries the newest commit index.
        self.log_progress();
        self.pump_role();
        self.release_gates();
        self.seal_due();
        // Standbys first: handing a write to the disk takes longer than handing bytes to a socket, and the standby's
        // write is the last to end.
        self.feed_all();
        self.drive_log();
        // Right behind a seal the open group is empty, which is where a checkpoint record must stand.
        self.log_checkpoints();
        let applied = self.data.applied;
        let applying = self.apply_some();
        if self.data.applied > applied && self.clients.waits_for_lsn() {
            self.gates_moved = true;
        }
        if applying || self.log_moved {
            self.standby_progress();
        }
        let merging = self.merge_some() | self.settle_some() | self.walk_some();
        self.drive_repairs();
        self.check_serve();
        self.pump_role();
        self.drive_log();
        self.drive_keeper();
        self.continue_stop();
        self.set_deadline(applying || merging);
    }

    /// Flushes and acknowledgements that arrived become commit, acknowledgements and answers to the role machine.
    fn log_progress(&mut self) {
        if std::mem::take(&mut self.log_moved) || self.acks_moved {
            self.advance_commit();
            self.standby_progress();
            self.check_truncated();
            self.check_drained();
            self.check_fetch();
        } else {
            self.standby_progress();
        }
    }

    fn tick(&mut self) {
        self.tick_at = self.now + TICK;
        self.watch_disks();
        self.tell_role(Input::Tick);
        self.take_store_answers();
        self.pump_role();
        self.links.tick(&mut self.seam, self.now);
        self.beat();
        self.mind_upstream();
        self.request_stream();
        self.drive_fetch();
        self.check_drained();
        self.check_truncated();
        self.drive_mark();
        self.client_timers();
        self.expire_some();
        self.share_roots();
        self.admin_timers();
        if self.log_starved {
            self.drive_keeper();
        }
        self.retry_growing();
        self.repair_timers();
        for listener in std::mem::take(&mut self.clients.accept_again) {
            self.seam.submit(Op::Accept { listener });
        }
        self.data_memory = self.data.store.memory();
        self.publish_status();
        self.gates_moved = true;
    }

    fn set_deadline(&mut self, more: bool) {
        let sealable = self.executed && self.drain.is_none() && self.log.wal.wants_seal();
        let busy = more || sealable || !self.role_inputs.is_empty() || self.gates_moved || self.turn_wanted();
        self.deadline = match busy {
            true => self.now,
            // Heartbeats, dials and probes are looked at in ticks alone: no other moment would serve them.
            false => self.announce_at.map_or(self.tick_at, |at| at.min(self.tick_at)),
        };
    }

    /// The read lease holds, or this node's policy needs none.
    fn lease_holds(&self) -> bool {
        match self.config.reads {
            crate::config::Reads::Local => true,
            crate::config::Reads::Linearizable => self.role.may_read(self.now),
        }
    }

    fn metrics_role_changed(&mut self) {
        self.metrics.gauge.is_primary = u64::from(self.role.leading().is_some());
        self.publish_status();
    }

    fn open_stamp(&self) -> Stamp {
        self.log.wal.open_stamp()
    }

    /// The seam, for tests and for the process around the loop.
    pub fn seam_mut(&mut self) -> &mut S {
        self.seam.inner()
    }
}

const _: () = assert!(TICK.as_millis() * 4 <= LEASE.as_millis());
