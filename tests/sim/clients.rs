//! Simulated clients: they look for the primary, write values that are written once, read them back, and remember
//! what they were told.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::time::Duration;

use baton::base::{Mono, Prng};
use baton::io::sim::{HostId, SimSeam, World};
use baton::io::{ConnId, Event, Op, Outgoing, Seam};
use baton::resp::{ReplyLimits, ReplyParser, Value, decode};

use super::cluster::client_addr;
use super::history::{History, Kind, Outcome};
use super::logs::number;

/// Registers, then counters, then a pair that is always written together.
pub const REGISTERS: usize = 4;
pub const COUNTERS: usize = 2;
pub const PAIR: usize = REGISTERS + COUNTERS;
pub const KEYS: usize = PAIR + 2;
/// Behind them, where the weather asks for it: keys that expire.
const EXPIRING: usize = 2;
/// What a client with ballast sends at once: so many values of so many bytes.
const BALLAST: (usize, usize) = (40, 40_000);

/// A client gives an answer up after this.
const PATIENCE: Duration = Duration::from_secs(4);

pub fn key_name(key: usize) -> String {
    format!("key{key}")
}

/// What a standby showed.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "every field is shown when a run fails")]
pub struct StandbyRead {
    /// One process seen through one connection.
    pub session: u64,
    pub node: u16,
    pub key: usize,
    pub value: Option<u64>,
    pub at: Mono,
}

/// What a reply belongs to.
#[derive(Debug)]
enum Wanted {
    /// Its text does not matter unless it is an error.
    Nothing,
    Auth,
    Role,
    One(usize),
    /// Replies of EXEC.
    All([usize; 2]),
    Standby(usize),
}

#[derive(Debug)]
enum Phase {
    Idle {
        until: Mono,
    },
    Dialing {
        token: u64,
    },
    /// Connected; requests flow.
    Ready {
        conn: ConnId,
        next: Mono,
        leaving: bool,
    },
}

/// What a client is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// Reads and writes at the primary.
    Work,
    /// Reads at whatever standby.
    Watch,
    /// Heavy writes that nobody checks, sent to [`Shared::ballast`] only.
    Ballast,
}

struct Client {
    job: Job,
    /// Writes at level `local`: its answers promise nothing.
    weak: bool,
    target: u16,
    phase: Phase,
    input: Vec<u8>,
    parser: ReplyParser,
    wanted: VecDeque<(Wanted, Mono)>,
    primary: bool,
    session: u64,
    budget: u32,
}

/// What all clients of a run share.
pub struct Shared {
    pub history: History,
    pub standby_reads: Vec<StandbyRead>,
    pub problems: Vec<String>,
    pub last_ack: Mono,
    pub errors: BTreeMap<String, u64>,
    next_value: u64,
    next_session: u64,
    pub nodes: u16,
    /// Nobody asks for anything new.
    pub quiet: bool,
    /// Clients think this long at most between requests.
    pub think: Duration,
    /// Some keys expire.
    pub expiring: bool,
    /// The node that gets ballast.
    pub ballast: Option<u16>,
}

impl Shared {
    pub fn new(nodes: u16) -> Shared {
        Shared {
            history: History::default(),
            standby_reads: Vec::new(),
            problems: Vec::new(),
            last_ack: Mono(0),
            errors: BTreeMap::new(),
            next_value: 0,
            next_session: 0,
            nodes,
            quiet: false,
            think: Duration::from_millis(25),
            expiring: false,
            ballast: None,
        }
    }
}

/// The clients of one host.
pub struct ClientHost {
    pub host: HostId,
    seam: SimSeam,
    world: World,
    clients: Vec<Client>,
    by_conn: BTreeMap<ConnId, usize>,
    rng: Prng,
    events: Vec<Event>,
    next_token: u64,
}

impl ClientHost {
    pub fn new(world: &World, host: HostId, jobs: &[Job], mut rng: Prng) -> ClientHost {
        let seam = world.seam(host);
        let clients = jobs
            .iter()
            .enumerate()
            .map(|(i, job)| Client {
                job: *job,
                // The first is never weak: somebody must notice that service is back.
                weak: i > 0 && *job == Job::Work && rng.chance(0.1),
                target: 1,
                phase: Phase::Idle { until: Mono(rng.below(50_000_000)) },
                input: Vec::new(),
                parser: ReplyParser::new(),
                wanted: VecDeque::new(),
                primary: false,
                session: 0,
                budget: 0,
            })
            .collect();
        let world = world.clone();
        ClientHost {
            host,
            seam,
            world,
            clients,
            by_conn: BTreeMap::new(),
            rng,
            events: Vec::new(),
            next_token: 0,
        }
    }

    /// One turn of the host: answers in, requests out.
    pub fn turn(&mut self, shared: &mut Shared) {
        let now = self.world.now();
        let mut events = std::mem::take(&mut self.events);
        self.seam.reap(Some(Mono(0)), &mut events);
        for event in events.drain(..) {
            self.handle(event, now, shared);
        }
        self.events = events;
        for i in 0..self.clients.len() {
            self.act(i, now, shared);
        }
        // Who has nothing to ask for wakes up for events only.
        let next = self.clients.iter().map(|c| match c.phase {
            Phase::Idle { until } if !shared.quiet => until,
            Phase::Idle { .. } | Phase::Dialing { .. } => now + PATIENCE,
            Phase::Ready { next, .. } => match c.wanted.front() {
                Some((_, since)) => *since + PATIENCE,
                None if shared.quiet => now + PATIENCE,
                None => next,
            },
        });
        // The host's clock drifts a little against true time: one look too early costs nothing.
        let wait = next.min().map_or(PATIENCE, |at| at.since(now)).max(Duration::from_micros(50));
        let local = self.world.local_now(self.host);
        self.world.wake_at(self.host, Some(local + wait));
    }

    fn handle(&mut self, event: Event, now: Mono, shared: &mut Shared) {
        match event {
            Event::Connected { token, result } => {
                let client = self
                    .clients
                    .iter()
                    .position(|c| matches!(c.phase, Phase::Dialing { token: t } if t == token));
                match (client, result) {
                    (Some(i), Ok(conn)) => self.connected(i, conn, now, shared),
                    (Some(i), Err(_)) => self.go_elsewhere(i, now, shared),
                    (None, Ok(conn)) => self.seam.submit(Op::Close { conn }),
                    (None, Err(_)) => {}
                }
            }
            Event::Received { conn, bytes } => {
                if let Some(i) = self.by_conn.get(&conn).copied() {
                    self.clients[i].input.extend_from_slice(&bytes);
                    self.replies(i, now, shared);
                }
            }
            Event::Closed { conn, .. } => {
                if let Some(i) = self.by_conn.remove(&conn) {
                    self.go_elsewhere(i, now, shared);
                }
            }
            _ => {}
        }
    }

    fn connected(&mut self, i: usize, conn: ConnId, now: Mono, shared: &mut Shared) {
        self.seam.submit(Op::Receive { conn });
        self.by_conn.insert(conn, i);
        shared.next_session += 1;
        let client = &mut self.clients[i];
        client.phase = Phase::Ready { conn, next: now, leaving: false };
        client.session = shared.next_session;
        client.primary = false;
        client.budget = self.rng.between(20, 400) as u32;
        client.wanted.push_back((Wanted::Auth, now));
        let mut text = b"AUTH sim\r\n".to_vec();
        if client.weak {
            client.wanted.push_back((Wanted::Nothing, now));
            text.extend_from_slice(b"BATON.COMMIT local\r\n");
        }
        if client.job != Job::Ballast {
            client.wanted.push_back((Wanted::Role, now));
            text.extend_from_slice(b"ROLE\r\n");
        }
        self.seam.submit(Op::Send { token: 0, conn, data: Outgoing::Owned(text) });
    }

    /// Ends the connection, if there is one: open requests stay without an answer. Then another node is tried.
    fn go_elsewhere(&mut self, i: usize, now: Mono, shared: &Shared) {
        let client = &mut self.clients[i];
        if let Phase::Ready { conn, .. } = client.phase
            && self.by_conn.remove(&conn).is_some()
        {
            self.seam.submit(Op::Close { conn });
        }
        client.wanted.clear();
        client.input.clear();
        client.parser = ReplyParser::new();
        if self.rng.chance(0.8) {
            client.target = self.rng.between(1, u64::from(shared.nodes)) as u16;
        }
        client.phase = Phase::Idle { until: now + Duration::from_micros(self.rng.between(500, 60_000)) };
    }

    fn act(&mut self, i: usize, now: Mono, shared: &mut Shared) {
        let client = &mut self.clients[i];
        match client.phase {
            Phase::Idle { until }
                if until <= now && client.job == Job::Ballast && shared.ballast.is_none() =>
            {
                client.phase = Phase::Idle { until: now + Duration::from_millis(20) };
            }
            Phase::Idle { until } if until <= now && !shared.quiet => {
                if client.job == Job::Ballast {
                    client.target = shared.ballast.expect("checked above");
                }
                self.next_token += 1;
                client.phase = Phase::Dialing { token: self.next_token };
                let addr = client_addr(client.target);
                self.seam.submit(Op::Connect { token: self.next_token, addr });
            }
            Phase::Ready { conn, next, leaving } => {
                if client.wanted.front().is_some_and(|(_, since)| now.since(*since) >= PATIENCE) {
                    return self.go_elsewhere(i, now, shared);
                }
                if client.wanted.is_empty() {
                    if leaving || client.budget == 0 {
                        return self.go_elsewhere(i, now, shared);
                    }
                    if next <= now && !shared.quiet {
                        self.ask(i, conn, now, shared);
                    }
                }
            }
            _ => {}
        }
    }

    /// Sends a few requests at once.
    fn ask(&mut self, i: usize, conn: ConnId, now: Mono, shared: &mut Shared) {
        let mut text = Vec::new();
        let requests = if self.rng.chance(0.5) { 1 } else { self.rng.between(1, 5) };
        for _ in 0..requests {
            self.clients[i].budget = self.clients[i].budget.saturating_sub(1);
            match self.clients[i].job {
                Job::Watch => {
                    let key = self.rng.below(KEYS as u64) as usize;
                    line(&mut text, "GET", key);
                    self.clients[i].wanted.push_back((Wanted::Standby(key), now));
                }
                Job::Work => self.work(i, &mut text, now, shared),
                Job::Ballast => {
                    for n in 0..BALLAST.0 {
                        text.extend_from_slice(
                            format!("SET ballast{n} {}\r\n", "x".repeat(BALLAST.1)).as_bytes(),
                        );
                        self.clients[i].wanted.push_back((Wanted::Nothing, now));
                    }
                }
            }
        }
        self.seam.submit(Op::Send { token: 0, conn, data: Outgoing::Owned(text) });
        let think = self.rng.below(shared.think.as_nanos() as u64 + 1);
        if let Phase::Ready { next, .. } = &mut self.clients[i].phase {
            *next = now + Duration::from_nanos(think);
        }
    }

    fn work(&mut self, i: usize, text: &mut Vec<u8>, now: Mono, shared: &mut Shared) {
        if shared.expiring && self.rng.chance(0.5) {
            return self.work_that_expires(i, text, now, shared);
        }
        let at = now.0;
        let rng = &mut self.rng;
        let wanted = &mut self.clients[i].wanted;
        let mut value = |rng: &mut Prng| {
            shared.next_value += 1;
            let padding = match rng.below(10) {
                0 => rng.below(8_000) as usize,
                1..=3 => rng.below(300) as usize,
                _ => 0,
            };
            (shared.next_value, padding)
        };
        let history = &mut shared.history;
        let mut one = |key: usize, kind: Kind| {
            wanted.push_back((Wanted::One(history.call(i, key, kind, at)), now));
        };
        match rng.below(100) {
            0..30 => {
                let key = rng.below(REGISTERS as u64) as usize;
                let (number, padding) = value(rng);
                set(text, key, number, padding);
                one(key, Kind::Set(number));
            }
            30..60 => {
                let key = rng.below(PAIR as u64) as usize;
                line(text, "GET", key);
                one(key, Kind::Get);
            }
            60..75 => {
                let key = REGISTERS + rng.below(COUNTERS as u64) as usize;
                line(text, "INCR", key);
                one(key, Kind::Incr);
            }
            75..80 => {
                let key = rng.below(REGISTERS as u64) as usize;
                line(text, "DEL", key);
                one(key, Kind::Del);
            }
            80..90 => {
                let (number, padding) = value(rng);
                let ids = [0, 1].map(|k| history.call(i, PAIR + k, Kind::Set(number), at));
                transaction(text, |text, key| set(text, key, number, padding), wanted, ids, now);
            }
            _ => {
                let ids = [0, 1].map(|k| history.call(i, PAIR + k, Kind::Get, at));
                transaction(text, |text, key| line(text, "GET", key), wanted, ids, now);
            }
        }
    }

    /// Writes or reads a key with a time to live. From the moment of the write on it may be gone, once and for good.
    fn work_that_expires(&mut self, i: usize, text: &mut Vec<u8>, now: Mono, shared: &mut Shared) {
        let key = KEYS + self.rng.below(EXPIRING as u64) as usize;
        let (name, at, history) = (key_name(key), now.0, &mut shared.history);
        let id = if self.rng.chance(0.2) {
            shared.next_value += 1;
            let value = shared.next_value;
            let ttl = self.rng.between(10, 2_000);
            text.extend_from_slice(format!("SET {name} {value} PX {ttl}\r\n").as_bytes());
            let id = history.call(i, key, Kind::Set(value), at);
            history.call(i, key, Kind::Expire(value), at);
            id
        } else {
            text.extend_from_slice(format!("GET {name}\r\n").as_bytes());
            history.call(i, key, Kind::Get, at)
        };
        self.clients[i].wanted.push_back((Wanted::One(id), now));
    }

    fn replies(&mut self, i: usize, now: Mono, shared: &mut Shared) {
        let mut input = std::mem::take(&mut self.clients[i].input);
        let mut used = 0;
        loop {
            let client = &mut self.clients[i];
            let rest = &input[used..];
            let len = match client.parser.parse(rest, &ReplyLimits::default()) {
                Ok(Some(len)) => len,
                Ok(None) => break,
                Err(error) => {
                    shared.problems.push(format!("a reply cannot be parsed: {error}"));
                    return;
                }
            };
            let bytes = &rest[..len];
            let Some((wanted, _)) = client.wanted.pop_front() else {
                let text = String::from_utf8_lossy(bytes).into_owned();
                if !text.starts_with("-ERR max number") {
                    shared.problems.push(format!("a reply that nobody asked for: {text}"));
                }
                return;
            };
            let value = decode(bytes).expect("a reply that parsed");
            if !self.reply(i, wanted, &value, now, shared) {
                return;
            }
            used += len;
        }
        input.drain(..used);
        self.clients[i].input = input;
    }

    /// Says whether the connection goes on.
    fn reply(&mut self, i: usize, wanted: Wanted, value: &Value<'_>, now: Mono, shared: &mut Shared) -> bool {
        if let Value::Error(text) = value {
            let word = String::from_utf8_lossy(text).split(' ').next().unwrap_or_default().to_string();
            *shared.errors.entry(word).or_default() += 1;
        }
        match wanted {
            Wanted::Nothing => {}
            Wanted::Auth => {
                if value.text() != Some(b"OK") {
                    self.leave(i);
                }
            }
            Wanted::Role => {
                let master = matches!(value, Value::Array(items) if items.first().and_then(|v| v.text()) == Some(b"master"));
                self.clients[i].primary = master;
                let fits = master == (self.clients[i].job == Job::Work);
                if !fits {
                    self.go_elsewhere(i, now, shared);
                    return false;
                }
            }
            Wanted::One(id) => self.answered(i, id, value, now, shared),
            Wanted::All(ids) => {
                let values = match value {
                    Value::Array(values) if values.len() == ids.len() => values.clone(),
                    other => vec![other.clone(); ids.len()],
                };
                let shown: Vec<Option<u64>> = values.iter().map(|v| v.text().and_then(number)).collect();
                let read = matches!(values[0], Value::Bulk(_) | Value::Null);
                if read && shown.windows(2).any(|pair| pair[0] != pair[1]) {
                    shared
                        .problems
                        .push(format!("a transaction read half of another one: {shown:?} at {}", now.0));
                }
                for (id, value) in ids.into_iter().zip(&values) {
                    self.answered(i, id, value, now, shared);
                }
            }
            Wanted::Standby(key) => {
                let client = &self.clients[i];
                let (session, node) = (client.session, client.target);
                let value = match value {
                    Value::Null => None,
                    Value::Bulk(text) => number(text),
                    _ => {
                        self.leave(i);
                        return true;
                    }
                };
                shared.standby_reads.push(StandbyRead { session, node, key, value, at: now });
            }
        }
        true
    }

    /// No further requests on this connection.
    fn leave(&mut self, i: usize) {
        if let Phase::Ready { leaving, .. } = &mut self.clients[i].phase {
            *leaving = true;
        }
    }

    fn answered(&mut self, i: usize, id: usize, value: &Value<'_>, now: Mono, shared: &mut Shared) {
        let kind = shared.history.operations[id].kind;
        let weak = self.clients[i].weak && kind != Kind::Get;
        let outcome = match value {
            Value::Error(text) => {
                self.leave(i);
                let word = text.split(|b| *b == b' ').next().unwrap_or_default();
                match word {
                    b"UNKNOWN" => Outcome::Doubt,
                    b"READONLY" | b"NOREPLICAS" | b"MISCONF" | b"LOADING" | b"CLUSTERDOWN"
                    | b"MASTERDOWN" | b"OOM" | b"EXECABORT" | b"IOERR" => Outcome::Refused,
                    _ => {
                        let text = String::from_utf8_lossy(text).into_owned();
                        shared.problems.push(format!("an answer that nothing explains: {text}"));
                        Outcome::Doubt
                    }
                }
            }
            _ if weak => Outcome::Weak,
            Value::Null => Outcome::Done(None),
            Value::Bulk(text) => Outcome::Done(number(text)),
            Value::Integer(count) if kind == Kind::Del => Outcome::Done((*count > 0).then_some(1)),
            Value::Integer(count) => Outcome::Done(Some(*count as u64)),
            _ => Outcome::Done(None),
        };
        if matches!(outcome, Outcome::Done(_)) && kind != Kind::Get {
            shared.last_ack = now;
        }
        match outcome {
            Outcome::Doubt => {}
            _ => shared.history.answer(id, outcome, now.0),
        }
    }
}

/// A request about one key.
fn line(text: &mut Vec<u8>, verb: &str, key: usize) {
    write!(text, "{verb} key{key}\r\n").expect("memory takes bytes");
}

/// Writes a number that is written once, and padding behind it.
fn set(text: &mut Vec<u8>, key: usize, number: u64, padding: usize) {
    write!(text, "SET key{key} {number}:").expect("memory takes bytes");
    text.resize(text.len() + padding, b'x');
    text.extend_from_slice(b"\r\n");
}

fn transaction(
    text: &mut Vec<u8>,
    ask: impl Fn(&mut Vec<u8>, usize),
    wanted: &mut VecDeque<(Wanted, Mono)>,
    ids: [usize; 2],
    now: Mono,
) {
    text.extend_from_slice(b"MULTI\r\n");
    wanted.push_back((Wanted::Nothing, now));
    for k in 0..ids.len() {
        ask(text, PAIR + k);
        wanted.push_back((Wanted::Nothing, now));
    }
    text.extend_from_slice(b"EXEC\r\n");
    wanted.push_back((Wanted::All(ids), now));
}
