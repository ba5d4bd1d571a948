//! Client connections: bytes in, commands executed in order, replies held at their gates, bytes out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::limits::{
    CLIENT_BUFFER_KEPT_MAX, CLIENT_INPUT_BYTES_CROWDED, CLIENT_INPUT_BYTES_SOFT, CLIENT_OUTPUT_BYTES_SOFT,
};
use crate::base::{Mono, NodeId, Stamp};
use crate::exec::{
    self, CommitLevel, Engine, ExecState, LsnRequest, Mode, Outcome, RoleRequest, Session, WaitRequest,
    Writes, errors,
};
use crate::io::{ConnId, ListenerId, Op, Outgoing, ReceivedBytes, Seam};
use crate::resp::{Parse, RequestParser};
use crate::role::DataStatus;
use crate::store::PageNo;

use super::crowd::Crowd;
use super::gates::{Level, Need, Replies, Watermarks};
use super::host::{HostView, NoHost};
use super::outbox::Outbox;
use super::{Node, token};

/// Commands of one client run before others get their turn.
const COMMANDS_PER_TURN: usize = 512;
/// How often held replies are checked for having waited too long.
const TIMEOUT_EVERY: Duration = Duration::from_millis(250);
/// Entries that one round of active expiry looks at.
const EXPIRE_BUDGET: usize = 64;

/// Why a client's next command does not run now.
#[derive(Debug)]
pub(super) enum Waiting {
    Nothing,
    /// A page of the store is being read.
    Page,
    /// WAIT or WAITAOF.
    Replicas {
        request: WaitRequest,
        until: Option<Mono>,
    },
    /// BATON.LSN or BATON.WAITLSN.
    Lsn {
        request: LsnRequest,
        until: Option<Mono>,
    },
    /// The role machine's answer.
    Role,
    /// Writes are held, the open group is full, or a long command gave way: run again in the next turn.
    Turn,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    pub session: Session,
    pub peer: SocketAddr,
    pub opened: Mono,
    pub active: Mono,
    pub(super) conn: ConnId,
    parser: RequestParser,
    input: Vec<u8>,
    /// Bytes of `input` that were carried out.
    used: usize,
    pub(super) replies: Replies,
    outbox: Outbox,
    pub(super) waiting: Waiting,
    paused: bool,
    /// Close once everything is out.
    pub(super) closing: bool,
    held_pages: Vec<PageNo>,
    /// What its replies took when that was counted last.
    pub(super) counted: usize,
    /// When a send ended last, or began after everything was out.
    took_at: Mono,
}

impl Client {
    pub fn input_bytes(&self) -> usize {
        self.input.len() - self.used
    }
    pub fn output_bytes(&self) -> usize {
        self.replies.memory() + self.outbox.unsent()
    }
    /// Since when the other side takes nothing of what was sent to it.
    pub(super) fn takes_nothing_since(&self) -> Option<Mono> {
        (self.outbox.unsent() > 0 && !self.closing).then_some(self.took_at)
    }
    /// Empty buffers of more than this are given back.
    fn shrink(&mut self, kept: usize) {
        if self.input.is_empty() && self.input.capacity() > kept {
            self.input = Vec::new();
        }
        self.replies.shrink(kept);
        self.outbox.shrink(kept);
    }
}

/// All clients of this node.
pub struct Clients {
    /// `None` while the client's command is being executed.
    pub map: BTreeMap<ConnId, Option<Box<Client>>>,
    pub by_session: BTreeMap<u64, ConnId>,
    /// Refused connections that still get their error line.
    refused: BTreeMap<ConnId, Outbox>,
    next_session: u64,
    /// First closed gate of each client.
    gates: BTreeMap<(Gate, Stamp), Vec<ConnId>>,
    /// Run again in the next turn.
    pub(super) again: Vec<ConnId>,
    pub(super) crowd: Crowd,
    /// Run again when writes go on.
    held: Vec<ConnId>,
    pub(super) replicas_waiting: Vec<ConnId>,
    pub(super) lsn_waiting: Vec<ConnId>,
    /// Role commands that clients sent, and answers for those who wait.
    pub(super) role_requests: Vec<(ConnId, RoleRequest)>,
    pub(super) told: Vec<(ConnId, Result<(), String>)>,
    /// The newest group with a write whose reply waits until standbys have applied it.
    pub apply_awaited: Stamp,
    pub accept_again: Vec<ListenerId>,
    /// Sessions to close, asked for by CLIENT KILL.
    pub kill: Vec<u64>,
    input_total: usize,
    input_budget: usize,
    timeouts_at: Mono,
    pub state: ExecState,
    scratch: Vec<u8>,
}

/// Which watermark a gate waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Gate {
    Committed,
    Local,
    RemoteWrite,
    RemoteApply,
    Lease,
}

fn gate_of(need: &Need, marks: &Watermarks) -> (Gate, Stamp) {
    if need.observed > marks.committed {
        return (Gate::Committed, need.observed);
    }
    if need.wrote != Stamp::COMMITTED {
        let (gate, reached) = match need.level {
            Level::Off => return (Gate::Lease, Stamp::COMMITTED),
            Level::Local => (Gate::Local, marks.local),
            Level::RemoteWrite => (Gate::RemoteWrite, marks.remote_write),
            Level::On => (Gate::Committed, marks.committed),
            Level::RemoteApply => (Gate::RemoteApply, marks.remote_apply),
        };
        if need.wrote > reached {
            return (gate, need.wrote);
        }
    }
    (Gate::Lease, Stamp::COMMITTED)
}

impl Clients {
    pub fn new(input_budget: usize, output_budget: usize, seed: u64) -> Clients {
        Clients {
            map: BTreeMap::new(),
            by_session: BTreeMap::new(),
            refused: BTreeMap::new(),
            next_session: 0,
            gates: BTreeMap::new(),
            again: Vec::new(),
            crowd: Crowd::new(output_budget),
            held: Vec::new(),
            replicas_waiting: Vec::new(),
            lsn_waiting: Vec::new(),
            role_requests: Vec::new(),
            told: Vec::new(),
            apply_awaited: Stamp::COMMITTED,
            accept_again: Vec::new(),
            kill: Vec::new(),
            input_total: 0,
            input_budget,
            timeouts_at: Mono(0),
            state: ExecState::new(seed),
            scratch: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn take(&mut self, conn: ConnId) -> Option<Box<Client>> {
        self.map.get_mut(&conn)?.take()
    }

    pub(super) fn put(&mut self, mut client: Box<Client>) {
        let (conn, now) = (client.conn, client.output_bytes());
        self.crowd.count(client.counted, now);
        client.counted = now;
        if let Some(place) = self.map.get_mut(&conn) {
            *place = Some(client);
        }
    }

    /// Somebody waits for more than flushes on standbys.
    pub fn waits_for_more(&self) -> bool {
        !self.replicas_waiting.is_empty()
    }

    /// Somebody waits until a position is known or applied.
    pub fn waits_for_lsn(&self) -> bool {
        !self.lsn_waiting.is_empty()
    }

    /// Replies that wait at a gate, as clients.
    pub fn gated(&self) -> usize {
        self.gates.values().map(Vec::len).sum()
    }
}

fn level_of(level: CommitLevel) -> Level {
    match level {
        CommitLevel::Off => Level::Off,
        CommitLevel::Local => Level::Local,
        CommitLevel::RemoteWrite => Level::RemoteWrite,
        CommitLevel::On => Level::On,
        CommitLevel::RemoteApply => Level::RemoteApply,
    }
}

impl<S: Seam> Node<S> {
    pub(super) fn client_accepted(&mut self, conn: ConnId, peer: SocketAddr) {
        self.metrics.count.connections_accepted += 1;
        if self.clients.len() >= self.config.max_clients || self.stopping.is_some() {
            self.metrics.count.connections_refused += 1;
            let mut outbox = Outbox::new(conn);
            outbox.append(b"-ERR max number of clients reached\r\n");
            outbox.pump(&mut self.seam, token::SEND);
            self.clients.refused.insert(conn, outbox);
            return;
        }
        self.clients.next_session += 1;
        let id = self.clients.next_session;
        let client = Client {
            session: Session::new(id, self.config.client_password.is_none()),
            peer,
            opened: self.now,
            active: self.now,
            conn,
            parser: RequestParser::new(),
            input: Vec::new(),
            used: 0,
            replies: Replies::default(),
            outbox: Outbox::new(conn),
            waiting: Waiting::Nothing,
            paused: false,
            closing: false,
            held_pages: Vec::new(),
            counted: 0,
            took_at: self.now,
        };
        self.clients.map.insert(conn, Some(Box::new(client)));
        self.clients.by_session.insert(id, conn);
        self.seam.submit(Op::Receive { conn });
    }

    pub(super) fn client_bytes(&mut self, conn: ConnId, bytes: &ReceivedBytes) {
        let Some(mut client) = self.clients.take(conn) else { return };
        self.metrics.count.client_bytes_in += bytes.len() as u64;
        if !client.closing {
            client.active = self.now;
            self.clients.input_total += bytes.len();
            client.input.extend_from_slice(bytes);
            self.run_client(&mut client);
            if client.input_bytes() > 0 && self.clients.input_total > self.clients.input_budget {
                self.refuse_client(&mut client, "ERR client buffers are over their memory budget");
            }
        }
        self.settle_client(client);
    }

    /// Answers an error of the connection and closes it behind that.
    fn refuse_client(&mut self, client: &mut Client, text: &str) {
        let out = client.replies.buffer();
        out.push(b'-');
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(b"\r\n");
        client.replies.close_gate(Need::NOTHING, self.now);
        client.closing = true;
    }

    pub(super) fn resume_client(&mut self, conn: ConnId) {
        let Some(mut client) = self.clients.take(conn) else { return };
        client.waiting = Waiting::Nothing;
        self.run_client(&mut client);
        self.settle_client(client);
    }

    /// What this node may do for clients now.
    pub(super) fn mode(&self) -> Mode {
        if self.role.control().status == DataStatus::Sick {
            return Mode::Closed(errors::SICK);
        }
        if self.serving {
            let writes = if self.stopping.is_some() {
                Writes::Refused(errors::STOPPING)
            } else if self.disk_full() {
                Writes::Refused(errors::DISK_FULL)
            } else if self.too_few_voters() {
                Writes::Refused(errors::NO_REPLICAS)
            } else if self.writes_held || self.data.store.delta_full() {
                Writes::Held
            } else {
                Writes::Open
            };
            return Mode::Primary { writes };
        }
        // A leader that has promised, or whose clients are held, shows speculative shards and has no lease.
        if self.executed || self.role.leading().is_some() || self.exit.is_some() {
            return Mode::Closed(errors::NOT_SERVING);
        }
        if self.pending {
            return Mode::Closed(errors::NOT_SERVING);
        }
        // A delayed standby has reached what it showed before when the next frame is too young to be applied.
        if self.data.applied.lsn() < self.readable_from && self.data.delayed_until.is_none() {
            return Mode::Closed(errors::LOADING);
        }
        let bound = self.config.staleness_bound;
        let silent = self.leader_silence();
        let stale = match (bound, silent) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(bound), Some(silent)) => silent > bound || self.apply_age() > bound,
        };
        Mode::Standby { stale }
    }

    /// Carries out the requests that stand whole in the client's buffer.
    pub(super) fn run_client(&mut self, client: &mut Client) {
        let mut budget = COMMANDS_PER_TURN;
        while matches!(client.waiting, Waiting::Nothing) && !client.closing {
            if client.output_bytes() >= CLIENT_OUTPUT_BYTES_SOFT {
                break;
            }
            if budget == 0 {
                self.wait_turn(client);
                break;
            }
            budget -= 1;
            match client.parser.parse(&client.input[client.used..], client.session.limits()) {
                Ok(Parse::Incomplete) => break,
                Ok(Parse::Request { consumed }) => {
                    if self.waits_for_room(client) || !self.run_command(client) {
                        break;
                    }
                    client.used += consumed;
                }
                Err(error) => match client.session.take_mute() {
                    true => client.closing = true,
                    false => self.refuse_client(client, &format!("ERR {error}")),
                },
            }
        }
        self.trim_input(client);
    }

    fn trim_input(&mut self, client: &mut Client) {
        if client.used == 0 {
            return;
        }
        self.clients.input_total -= client.used;
        if client.used == client.input.len() {
            client.input.clear();
        } else {
            client.input.drain(..client.used);
        }
        client.used = 0;
    }

    /// Runs the parsed command. Says whether it is over (its bytes are used up).
    fn run_command(&mut self, client: &mut Client) -> bool {
        let mode = self.mode();
        let wall = self.seam.wall();
        let now = self.clock_at(wall);
        let stamp = self.open_stamp();
        let payload_max = self.log.wal.transaction_bytes_max();
        let end = self.log.wal.end().end;
        let flushed = self.log.wal.flushed();
        let shards = self.control_shards();
        let mut host = HostView {
            clients: &mut self.clients.map,
            by_session: &self.clients.by_session,
            kill: &mut self.clients.kill,
            current: (client.session.id, client.peer, client.opened, client.active),
            config: &self.config,
            metrics: &mut self.metrics,
            role: &self.role,
            streams: &self.streams,
            groups: &self.groups,
            identity: &self.identity,
            now: self.now,
            started: self.started,
            wall,
            end,
            flushed,
            committed: self.committed,
            applied: self.data.applied,
            memory: self.data_memory,
            serving: self.serving,
        };
        let args = client.parser.args(&client.input[client.used..]);
        let blind = blind_write(&args);
        let mut engine = Engine {
            store: &mut self.data.store,
            writer: self.log.wal.writer(),
            stamp,
            now,
            mode,
            host: &mut host,
            state: &mut self.clients.state,
            shards,
            payload_max,
        };
        let outcome = exec::execute(&mut client.session, args, &mut engine, client.replies.buffer());
        let (observed, wrote, close) = match outcome {
            Outcome::Done { observed, wrote } => (observed, wrote, false),
            Outcome::Close { observed, wrote } => (observed, wrote, true),
            other => return self.not_done(client, other),
        };
        self.release_pages(client);
        match wrote {
            true => self.metrics.count.commands_written += 1,
            false => self.metrics.count.commands_read += 1,
        }
        let level = client.session.level.unwrap_or(self.default_level());
        let level = level_of(level);
        if wrote && level == Level::RemoteApply {
            self.clients.apply_awaited = stamp;
        }
        let data = self.serving && client.session.touched_data();
        let need = Need {
            observed: if wrote && blind && level < Level::On { Stamp::COMMITTED } else { observed },
            wrote: if wrote { stamp } else { Stamp::COMMITTED },
            level,
            lease: data,
        };
        client.replies.close_gate(if data { need } else { Need { lease: false, ..need } }, self.now);
        client.closing |= close;
        true
    }

    /// Deletes keys whose time is up, a few at a time: each by a record of its own that nobody waits for.
    pub(super) fn expire_some(&mut self) {
        let mode = self.mode();
        if mode != (Mode::Primary { writes: Writes::Open }) {
            return;
        }
        let now = self.clock();
        let stamp = self.open_stamp();
        let payload_max = self.log.wal.transaction_bytes_max();
        let shards = self.control_shards();
        let mut host = NoHost;
        let mut engine = Engine {
            store: &mut self.data.store,
            writer: self.log.wal.writer(),
            stamp,
            now,
            mode,
            host: &mut host,
            state: &mut self.clients.state,
            shards,
            payload_max,
        };
        let done = exec::expire_cycle(&mut engine, EXPIRE_BUDGET);
        if let Some(miss) = done.miss {
            for page in self.data.store.wanted(miss) {
                self.read_page(page);
            }
        }
    }

    /// Everything but an outcome that answers. Says whether the command is over.
    fn not_done(&mut self, client: &mut Client, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Miss(miss) => {
                self.metrics.count.page_misses += 1;
                if self.data.store.is_damaged(miss.page)
                    && let Some(why) = self.repairs.failure(miss.page)
                {
                    let text = format!(
                        "IOERR page {} of shard {} is damaged ({why}), nothing was changed",
                        miss.page.0, miss.shard
                    );
                    self.answer_client(client, |reply| reply.error(&text));
                    self.release_pages(client);
                    return true;
                }
                client.waiting = Waiting::Page;
                self.data.store.hold(miss.page);
                client.held_pages.push(miss.page);
                self.park(client.conn, miss);
                false
            }
            Outcome::Held if self.writes_held => {
                client.waiting = Waiting::Turn;
                self.clients.held.push(client.conn);
                false
            }
            Outcome::Held => {
                self.wait_turn(client);
                false
            }
            Outcome::GroupFull => {
                self.seal_due();
                self.wait_turn(client);
                false
            }
            Outcome::Again { .. } => {
                self.release_pages(client);
                self.wait_turn(client);
                false
            }
            // The command is over; its reply comes when what it waits for has come about.
            Outcome::Wait(request) => {
                self.wait_replicas(client, request);
                true
            }
            Outcome::Lsn(request) => {
                self.wait_lsn(client, request);
                true
            }
            Outcome::Role(request) => {
                self.wait_role(client, request);
                true
            }
            Outcome::Done { .. } | Outcome::Close { .. } => unreachable!("answered by the caller"),
        }
    }

    fn release_pages(&mut self, client: &mut Client) {
        for page in client.held_pages.drain(..) {
            self.data.store.release(page);
        }
    }

    fn wait_turn(&mut self, client: &mut Client) {
        client.waiting = Waiting::Turn;
        self.clients.again.push(client.conn);
    }

    /// Commands stand ready that only waited for their turn. Those held for memory wait for a checkpoint instead.
    pub(super) fn turn_wanted(&self) -> bool {
        !self.clients.again.is_empty() && !self.data.store.delta_full()
    }

    fn default_level(&self) -> CommitLevel {
        match self.config.commit {
            crate::config::CommitLevel::Off => CommitLevel::Off,
            crate::config::CommitLevel::Local => CommitLevel::Local,
            crate::config::CommitLevel::RemoteWrite => CommitLevel::RemoteWrite,
            crate::config::CommitLevel::On => CommitLevel::On,
            crate::config::CommitLevel::RemoteApply => CommitLevel::RemoteApply,
        }
    }

    /// Sends what may leave, adjusts reading, and puts the client back (or ends it).
    pub(super) fn settle_client(&mut self, mut client: Box<Client>) {
        let marks = self.current_marks();
        let mut out = std::mem::take(&mut self.clients.scratch);
        client.replies.release(&marks, &mut out);
        self.metrics.count.client_bytes_out += out.len() as u64;
        if client.outbox.unsent() == 0 {
            client.took_at = self.now;
        }
        client.outbox.append_owned(&mut out);
        out.clear();
        if out.capacity() <= CLIENT_BUFFER_KEPT_MAX {
            self.clients.scratch = out;
        }
        client.outbox.pump(&mut self.seam, token::SEND);
        if let Some(need) = client.replies.waiting_for() {
            let key = gate_of(need, &marks);
            let waiting = self.clients.gates.entry(key).or_default();
            if waiting.last() != Some(&client.conn) {
                waiting.push(client.conn);
            }
        } else if client.closing && client.outbox.is_drained() {
            self.seam.submit(Op::Close { conn: client.conn });
        }
        // What waits unread counts for all clients together. When much of that is used up, those that have whole requests
        // here read on later, so that a crowd of them is slowed down and not sent away.
        let crowded = self.clients.input_total > self.clients.input_budget / 4;
        let enough = if crowded { CLIENT_INPUT_BYTES_CROWDED } else { CLIENT_INPUT_BYTES_SOFT };
        let full = client.output_bytes() >= CLIENT_OUTPUT_BYTES_SOFT
            || (!matches!(client.waiting, Waiting::Nothing) && client.input_bytes() > enough);
        if full != client.paused && !client.closing {
            client.paused = full;
            let conn = client.conn;
            self.seam.submit(if full { Op::PauseReceive { conn } } else { Op::Receive { conn } });
        }
        client.shrink(self.clients.buffer_kept());
        self.clients.put(client);
    }

    pub(super) fn client_sent(&mut self, conn: ConnId, data: Outgoing) {
        if let Some(outbox) = self.clients.refused.get_mut(&conn) {
            outbox.sent(data);
            if outbox.is_drained() {
                self.seam.submit(Op::Close { conn });
            }
            return;
        }
        let Some(mut client) = self.clients.take(conn) else { return };
        client.outbox.sent(data);
        client.took_at = self.now;
        // Output has room again: go on with what the client sent meanwhile.
        if client.input_bytes() > 0 {
            self.run_client(&mut client);
        }
        self.settle_client(client);
        self.room_made();
    }

    pub(super) fn client_closed(&mut self, conn: ConnId) {
        self.clients.refused.remove(&conn);
        let Some(Some(mut client)) = self.clients.map.remove(&conn) else { return };
        self.release_pages(&mut client);
        self.clients.input_total -= client.input.len();
        self.clients.crowd.count(client.counted, 0);
        self.room_made();
        self.clients.by_session.remove(&client.session.id);
        self.clients.state.forget(client.session.id);
    }

    fn current_marks(&self) -> Watermarks {
        if !self.executed || self.acks_stopped {
            // Nothing that waits may leave; what waits for nothing still does.
            return Watermarks::NONE;
        }
        Watermarks { lease: self.serving && self.lease_holds(), ..self.marks }
    }

    /// Lets replies go whose gates have opened.
    pub(super) fn release_gates(&mut self) {
        for session in std::mem::take(&mut self.clients.kill) {
            if let Some(conn) = self.clients.by_session.get(&session) {
                self.seam.submit(Op::Close { conn: *conn });
            }
        }
        for conn in std::mem::take(&mut self.clients.again) {
            self.resume_client(conn);
        }
        if std::mem::take(&mut self.gates_moved) {
            self.open_gates(true);
        }
    }

    /// Lets replies go; `run`: clients whose replies left go on with what they sent meanwhile.
    pub(super) fn open_gates(&mut self, run: bool) {
        let marks = self.current_marks();
        let mut open = Vec::new();
        for (gate, mark) in [
            (Gate::Committed, marks.committed),
            (Gate::Local, marks.local),
            (Gate::RemoteWrite, marks.remote_write),
            (Gate::RemoteApply, marks.remote_apply),
        ] {
            while let Some(entry) = self.clients.gates.range((gate, Stamp(0))..=(gate, mark)).next() {
                let key = *entry.0;
                open.extend(self.clients.gates.remove(&key).expect("just seen"));
            }
        }
        if marks.lease
            && let Some(conns) = self.clients.gates.remove(&(Gate::Lease, Stamp::COMMITTED))
        {
            open.extend(conns);
        }
        for conn in open {
            if let Some(mut client) = self.clients.take(conn) {
                if run && client.input_bytes() > 0 {
                    self.run_client(&mut client);
                }
                self.settle_client(client);
            }
        }
        if run {
            self.answer_waits();
        }
    }

    /// Writes go on: what waited for that runs in the next turn.
    pub(super) fn run_held_clients(&mut self) {
        let held = std::mem::take(&mut self.clients.held);
        self.clients.again.extend(held);
    }

    /// This node leads no more. Commands that were held never ran: their clients are told where to go.
    pub(super) fn redirect_held_clients(&mut self, successor: Option<NodeId>) {
        let place = successor.and_then(|node| self.config.member(node)).map(|member| match member.client {
            Some(addr) => format!("; the primary is node {} at {addr}", member.node),
            None => format!("; the primary is node {} on host {}", member.node, member.host),
        });
        let text = format!(
            "READONLY You can't write against a read only replica: this node has handed over{}",
            place.unwrap_or_default()
        );
        for conn in std::mem::take(&mut self.clients.held) {
            let Some(mut client) = self.clients.take(conn) else { continue };
            client.waiting = Waiting::Nothing;
            self.give_up_on(&mut client);
            self.refuse_client(&mut client, &text);
            self.settle_client(client);
        }
    }

    pub(super) fn client_timers(&mut self) {
        if self.now < self.clients.timeouts_at {
            return;
        }
        self.clients.timeouts_at = self.now + TIMEOUT_EVERY;
        self.close_who_take_nothing();
        let limit = self.config.commit_timeout;
        let late: Vec<ConnId> = self
            .clients
            .map
            .iter()
            .filter_map(|(conn, c)| c.as_ref().map(|c| (conn, c)))
            .filter(|(_, c)| c.replies.waiting_since().is_some_and(|since| self.now.since(since) > limit))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in late {
            let Some(mut client) = self.clients.take(conn) else { continue };
            self.give_up_on(&mut client);
            self.settle_client(client);
        }
    }

    /// Turns every held reply of a client into the truth: a write's outcome is unknown, a read has no answer.
    fn give_up_on(&mut self, client: &mut Client) {
        let groups = &self.groups;
        let metrics = &mut self.metrics;
        client.replies.replace_held(|need| {
            if need.wrote == Stamp::COMMITTED {
                metrics.count.replies_error += 1;
                return format!("-{}", errors::NO_LEASE);
            }
            metrics.count.replies_unknown += 1;
            match groups.end_of(need.wrote) {
                Some(lsn) => format!("-UNKNOWN outcome unknown at lsn {lsn}"),
                None => "-UNKNOWN outcome unknown at lsn of the open group".to_string(),
            }
        });
    }

    /// Demotion: writes in doubt are answered UNKNOWN, then every connection closes.
    pub(super) fn close_clients_unknown(&mut self) {
        let conns: Vec<ConnId> = self.clients.map.keys().copied().collect();
        for conn in conns {
            let Some(mut client) = self.clients.take(conn) else { continue };
            self.give_up_on(&mut client);
            client.closing = true;
            self.settle_client(client);
        }
        self.clients.gates.clear();
    }

    /// Serving began: connections that were refused data until now go on.
    pub(super) fn serving_changed(&mut self) {
        self.gates_moved = true;
        // What a standby's clients watched may have changed under another leader.
        let stamp = self.open_stamp();
        self.clients.state.watches.change_all(stamp);
        self.publish_status();
    }

    /// The primary has had too few connected voters for longer than a commit may take: a write would only wait for
    /// its time-out, so it is refused before it is appended.
    fn too_few_voters(&self) -> bool {
        self.voters_missing_since.is_some_and(|since| self.now.since(since) > self.config.commit_timeout)
    }
}

/// A write whose OK says nothing about the data that was there.
fn blind_write(args: &crate::resp::Args<'_>) -> bool {
    // An empty line is a request without words.
    args.get(0).is_some_and(|name| {
        (name.eq_ignore_ascii_case(b"set") && args.len() == 3) || name.eq_ignore_ascii_case(b"mset")
    })
}
