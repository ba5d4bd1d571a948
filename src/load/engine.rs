//! The load loop: many connections, one thread, one seam.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::report::{LatencySummary, Report, Slice};
use super::workload::{Generator, Workload};
use crate::base::Mono;
use crate::base::limits::{LOAD_CLIENTS_MAX, LOAD_ERROR_WORDS_MAX};
use crate::io::{ConnId, Event, Op, Outgoing, Seam};
use crate::metrics::Latency;
use crate::resp::{ReplyLimits, ReplyParser, write_request};

/// What to run.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The servers; a client goes to the next one when its own is gone or says READONLY.
    pub servers: Vec<SocketAddr>,
    /// Servers of a reading workload's reads, when those are others: then each client either writes or reads.
    pub readers: Vec<SocketAddr>,
    pub clients: usize,
    /// Commands sent together before their replies are awaited.
    pub pipeline: usize,
    /// Ends each batch with WAIT for this many replicas, and counts its commands when that is answered. For servers
    /// whose replies do not wait for replicas by themselves. 0: no WAIT.
    pub wait: u32,
    pub duration: Duration,
    pub workload: Workload,
    pub value_bytes: usize,
    pub keys: u64,
    pub password: Option<String>,
    /// Write every key once before a workload that reads is measured.
    pub fill: bool,
    pub seed: u64,
}

/// Now and then told to whoever watches.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Progress {
    pub filling: bool,
    pub elapsed: Duration,
    /// Successes so far.
    pub ok: u64,
    /// Error replies so far.
    pub errors: u64,
}

/// Why there is nothing to report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// An option makes no sense.
    Options(String),
    /// No server could be reached for the whole patience.
    Unreachable { server: SocketAddr, reason: String },
    /// The server refused the password.
    Refused(String),
    /// Filling the keys did not finish.
    Fill(String),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Options(what) => f.write_str(what),
            LoadError::Unreachable { server, reason } => write!(f, "cannot reach {server}: {reason}"),
            LoadError::Refused(reason) => write!(f, "the server refused the password: {reason}"),
            LoadError::Fill(reason) => write!(f, "the keys could not be written before the run: {reason}"),
        }
    }
}
impl std::error::Error for LoadError {}

const SLICE: Duration = Duration::from_millis(100);
const REDIAL: Duration = Duration::from_millis(50);
/// How long the first connection may take, and how long filling may stand still.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long replies are awaited after the end.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a server may wait for its replicas.
const WAIT_TIMEOUT_MS: &str = "5000";
/// Commands of one batch while filling.
const FILL_BATCH: u64 = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    /// Dials again at this time.
    Resting(Mono),
    Dialling,
    /// The reply to AUTH is awaited.
    Greeting(ConnId),
    Up(ConnId),
    /// Closing: the rest of its events are ignored.
    Closing(ConnId),
}

struct Client {
    /// Reads only, at the readers' servers.
    reader: bool,
    server: usize,
    link: Link,
    sending: bool,
    waiting: usize,
    /// Successes of the batch whose WAIT is not answered yet.
    unconfirmed: u64,
    /// The server said READONLY: go on to the next one when the batch is over.
    leaving: bool,
    sent_at: Mono,
    input: Vec<u8>,
    parser: ReplyParser,
    /// The send buffer while it is not on its way.
    spare: Vec<u8>,
}

/// What is being done with the connections.
enum Phase {
    /// Writes keys `next..keys`, without measuring.
    Fill {
        next: u64,
    },
    Measure,
    /// Readers go to their servers.
    Part,
    /// Nothing new is sent.
    Drain,
}

struct Engine<'a, S: Seam> {
    seam: &'a mut S,
    options: &'a LoadOptions,
    generator: Generator,
    clients: Vec<Client>,
    by_conn: HashMap<ConnId, usize>,
    phase: Phase,
    /// Batches of the fill phase still under way.
    filling: usize,
    began: Mono,
    latency: Latency,
    report: Report,
    last_ok: Mono,
    longest_gap: Duration,
    ever_connected: bool,
    failure: Option<LoadError>,
}

/// Runs the load and reports. `watch` is called about once a second.
pub fn run<S: Seam>(
    seam: &mut S,
    options: &LoadOptions,
    watch: &mut dyn FnMut(Progress),
) -> Result<Report, LoadError> {
    check(options)?;
    let began = seam.now();
    let generator = Generator::new(options.workload, options.keys, options.value_bytes, options.seed);
    let clients = (0..options.clients)
        .map(|i| Client {
            reader: false,
            server: i % options.servers.len(),
            link: Link::Resting(began),
            sending: false,
            waiting: 0,
            unconfirmed: 0,
            leaving: false,
            sent_at: began,
            input: Vec::new(),
            parser: ReplyParser::new(),
            spare: Vec::new(),
        })
        .collect();
    let mut engine = Engine {
        seam,
        options,
        generator,
        clients,
        by_conn: HashMap::new(),
        phase: Phase::Measure,
        filling: 0,
        began,
        latency: Latency::default(),
        report: Report::default(),
        last_ok: began,
        longest_gap: Duration::ZERO,
        ever_connected: false,
        failure: None,
    };
    if options.fill && options.workload.reads() {
        engine.phase = Phase::Fill { next: 0 };
        engine.fill(watch)?;
    }
    engine.part_readers()?;
    engine.measure(watch)?;
    Ok(engine.finish())
}

fn check(options: &LoadOptions) -> Result<(), LoadError> {
    let wrong = |what: String| Err(LoadError::Options(what));
    if options.servers.is_empty() {
        return wrong("name at least one server".into());
    }
    if options.clients == 0 || options.clients > LOAD_CLIENTS_MAX {
        return wrong(format!("clients must be 1 to {LOAD_CLIENTS_MAX}"));
    }
    if options.pipeline == 0 || options.pipeline > 10_000 {
        return wrong("the pipeline must be 1 to 10000".into());
    }
    if options.keys == 0 || options.keys > 1_000_000_000_000 {
        return wrong("keys must be 1 to 1000000000000".into());
    }
    if options.value_bytes > crate::base::limits::VALUE_BYTES_MAX {
        return wrong(format!("values may have {} bytes", crate::base::limits::VALUE_BYTES_MAX));
    }
    Ok(())
}

impl<S: Seam> Engine<'_, S> {
    /// Writes every key once.
    fn fill(&mut self, watch: &mut dyn FnMut(Progress)) -> Result<(), LoadError> {
        let mut moved = (self.seam.now(), 0);
        loop {
            self.turn(self.seam.now() + SLICE)?;
            let now = self.seam.now();
            if self.report.ok != moved.1 {
                moved = (now, self.report.ok);
            }
            watch(self.progress(true));
            let done =
                matches!(self.phase, Phase::Fill { next } if next >= self.options.keys) && self.filling == 0;
            if self.report.error_count() > 0 {
                let word = self.report.errors.keys().next().cloned().unwrap_or_default();
                return Err(LoadError::Fill(format!("the server answered {word}")));
            }
            if self.report.lost > 0 {
                return Err(LoadError::Fill("a connection was lost".into()));
            }
            if done {
                return Ok(());
            }
            if now.since(moved.0) > PATIENCE {
                return Err(LoadError::Fill("the server stopped answering".into()));
            }
        }
    }

    /// Sends the clients that read to their own servers, and waits until they are there.
    fn part_readers(&mut self) -> Result<(), LoadError> {
        let writers = match self.options.workload {
            _ if self.options.readers.is_empty() => return Ok(()),
            Workload::Mixed { writes_percent } => {
                (self.clients.len() * usize::from(writes_percent)).div_ceil(100)
            }
            _ => 0,
        };
        self.phase = Phase::Part;
        self.ever_connected = false;
        for index in writers..self.clients.len() {
            let client = &mut self.clients[index];
            // The first of them goes to the first server when the connection before is gone.
            (client.reader, client.server) = (true, index - writers + self.options.readers.len() - 1);
            self.hang_up(index);
        }
        let all_up = |engine: &Self| engine.clients.iter().all(|client| matches!(client.link, Link::Up(_)));
        self.dial_until(self.options.readers[0], all_up)
    }

    /// Dials and waits, at most for the patience; `server` is named when that was in vain.
    fn dial_until(&mut self, server: SocketAddr, done: impl Fn(&Self) -> bool) -> Result<(), LoadError> {
        let begin = self.seam.now();
        let mut reason = String::from("no answer");
        while !done(self) {
            if let Err(LoadError::Unreachable { reason: why, .. }) = self.turn_dialling(begin + PATIENCE) {
                reason = why;
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if self.seam.now().since(begin) >= PATIENCE {
                return Err(LoadError::Unreachable { server, reason });
            }
        }
        Ok(())
    }

    /// Where a client's commands go.
    fn servers_of(&self, index: usize) -> &[SocketAddr] {
        match self.clients[index].reader {
            true => &self.options.readers,
            false => &self.options.servers,
        }
    }

    fn server_of(&self, index: usize) -> SocketAddr {
        let servers = self.servers_of(index);
        servers[self.clients[index].server % servers.len()]
    }

    fn measure(&mut self, watch: &mut dyn FnMut(Progress)) -> Result<(), LoadError> {
        self.phase = Phase::Measure;
        self.report = Report::default();
        self.latency.reset();
        self.longest_gap = Duration::ZERO;
        if self.ever_connected {
            self.began = self.seam.now();
        } else {
            self.connect_first()?;
        }
        let end = self.began + self.options.duration;
        let mut told = self.began;
        self.last_ok = self.began;
        self.feed_all();
        while self.seam.now() < end {
            let wake = end.min(self.seam.now() + SLICE);
            self.turn(wake)?;
            if self.seam.now().since(told) >= Duration::from_secs(1) {
                told = self.seam.now();
                watch(self.progress(false));
            }
        }
        self.longest_gap = self.longest_gap.max(end.since(self.last_ok));
        self.report.seconds = self.options.duration.as_secs_f64();
        self.phase = Phase::Drain;
        while self.clients.iter().any(|client| client.waiting > 0) && self.seam.now() < end + DRAIN {
            self.turn(end + DRAIN)?;
        }
        Ok(())
    }

    /// The clock of the run starts with the first connection: start-up of the load is not the server's fault.
    fn connect_first(&mut self) -> Result<(), LoadError> {
        self.dial_until(self.options.servers[0], |engine| engine.ever_connected)?;
        self.began = self.seam.now();
        Ok(())
    }

    fn progress(&self, filling: bool) -> Progress {
        let elapsed = self.seam.now().since(self.began);
        Progress { filling, elapsed, ok: self.report.ok, errors: self.report.error_count() }
    }

    fn turn(&mut self, until: Mono) -> Result<(), LoadError> {
        match self.turn_dialling(until) {
            Err(error) if !self.ever_connected && self.seam.now().since(self.began) >= PATIENCE => Err(error),
            _ => self.failure.take().map_or(Ok(()), Err),
        }
    }

    /// One turn: dial who is due, wait for events, handle them. An error only says that a dial failed.
    fn turn_dialling(&mut self, until: Mono) -> Result<(), LoadError> {
        let now = self.seam.now();
        let mut wake = until;
        for index in 0..self.clients.len() {
            if let Link::Resting(due) = self.clients[index].link {
                if due > now {
                    wake = wake.min(due);
                    continue;
                }
                if matches!(self.phase, Phase::Drain) {
                    continue;
                }
                self.clients[index].link = Link::Dialling;
                let addr = self.server_of(index);
                self.seam.submit(Op::Connect { token: index as u64, addr });
            }
        }
        let mut events = Vec::with_capacity(64);
        self.seam.reap(Some(wake), &mut events);
        let now = self.seam.now();
        let mut failed = Ok(());
        for event in events {
            match event {
                Event::Connected { token, result } => {
                    let index = token as usize;
                    match result {
                        Ok(conn) => self.connected(index, conn),
                        Err(error) => {
                            let server = self.server_of(index);
                            failed = Err(LoadError::Unreachable { server, reason: error.to_string() });
                            self.rest(index, now);
                        }
                    }
                }
                Event::Received { conn, bytes } => self.received(conn, &bytes, now),
                Event::Sent { conn, data, .. } => self.sent(conn, data),
                Event::Closed { conn, .. } => self.closed(conn, now),
                _ => {}
            }
        }
        failed
    }

    fn rest(&mut self, index: usize, now: Mono) {
        let servers = self.servers_of(index).len();
        let client = &mut self.clients[index];
        client.server = (client.server + 1) % servers;
        client.link = Link::Resting(now + REDIAL);
        self.report.reconnects += u64::from(self.ever_connected);
    }

    fn connected(&mut self, index: usize, conn: ConnId) {
        self.by_conn.insert(conn, index);
        self.seam.submit(Op::Receive { conn });
        let client = &mut self.clients[index];
        client.input.clear();
        client.parser = ReplyParser::new();
        (client.sending, client.waiting, client.leaving) = (false, 0, false);
        client.unconfirmed = 0;
        match &self.options.password {
            Some(password) => {
                client.link = Link::Greeting(conn);
                let mut bytes = Vec::new();
                write_request(&["AUTH", password], &mut bytes);
                (client.sending, client.waiting) = (true, 1);
                self.seam.submit(Op::Send { token: 0, conn, data: Outgoing::Owned(bytes) });
            }
            None => self.up(index, conn),
        }
    }

    fn up(&mut self, index: usize, conn: ConnId) {
        self.clients[index].link = Link::Up(conn);
        self.ever_connected = true;
        self.feed(index);
    }

    fn feed_all(&mut self) {
        (0..self.clients.len()).for_each(|index| self.feed(index));
    }

    /// Sends the next batch when the client has nothing under way.
    fn feed(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Link::Up(conn) = client.link else { return };
        if client.sending || client.waiting > 0 {
            return;
        }
        let mut bytes = std::mem::take(&mut client.spare);
        bytes.clear();
        client.waiting = match &mut self.phase {
            Phase::Drain | Phase::Part => 0,
            Phase::Measure => {
                let apart = !self.options.readers.is_empty();
                for _ in 0..self.options.pipeline {
                    match apart {
                        false => self.generator.next(&mut bytes),
                        true => self.generator.next_of(client.reader, &mut bytes),
                    }
                }
                if self.options.wait > 0 {
                    let replicas = self.options.wait.to_string();
                    write_request(&["WAIT", &replicas, WAIT_TIMEOUT_MS], &mut bytes);
                }
                self.options.pipeline + usize::from(self.options.wait > 0)
            }
            Phase::Fill { next } => {
                let end = self.options.keys.min(*next + FILL_BATCH);
                (*next..end).for_each(|key| self.generator.set(key, &mut bytes));
                let count = (end - *next) as usize;
                *next = end;
                self.filling += usize::from(count > 0);
                count
            }
        };
        if client.waiting == 0 {
            client.spare = bytes;
            return;
        }
        client.sending = true;
        client.sent_at = self.seam.now();
        self.seam.submit(Op::Send { token: 0, conn, data: Outgoing::Owned(bytes) });
    }

    fn sent(&mut self, conn: ConnId, data: Outgoing) {
        let Some(index) = self.by_conn.get(&conn).copied() else { return };
        let client = &mut self.clients[index];
        client.sending = false;
        if let Outgoing::Owned(bytes) = data {
            client.spare = bytes;
        }
        self.feed(index);
    }

    fn received(&mut self, conn: ConnId, bytes: &[u8], now: Mono) {
        let Some(index) = self.by_conn.get(&conn).copied() else { return };
        if matches!(self.clients[index].link, Link::Closing(_)) {
            return;
        }
        let mut input = std::mem::take(&mut self.clients[index].input);
        // The usual case is whole replies: they are read where the seam put them.
        let used = if input.is_empty() {
            let used = self.replies(index, bytes, now);
            input.extend_from_slice(&bytes[used..]);
            0
        } else {
            input.extend_from_slice(bytes);
            self.replies(index, &input, now)
        };
        input.drain(..used);
        self.clients[index].input = input;
        if self.clients[index].waiting == 0 {
            if self.clients[index].leaving {
                self.hang_up(index);
            } else if let Link::Greeting(conn) = self.clients[index].link {
                self.up(index, conn);
            } else {
                if matches!(self.phase, Phase::Fill { .. }) {
                    self.filling = self.filling.saturating_sub(1);
                }
                self.feed(index);
            }
        }
    }

    /// Takes the whole replies at the start of `bytes` and says how long they are.
    fn replies(&mut self, index: usize, bytes: &[u8], now: Mono) -> usize {
        let mut used = 0;
        while self.clients[index].waiting > 0 {
            match self.clients[index].parser.parse(&bytes[used..], &ReplyLimits::default()) {
                Ok(Some(len)) => {
                    self.clients[index].waiting -= 1;
                    self.reply(index, &bytes[used..used + len], now);
                    used += len;
                }
                Ok(None) => break,
                Err(error) => {
                    self.note_error(&format!("PROTOCOL {error}"));
                    self.hang_up(index);
                    return bytes.len();
                }
            }
            if matches!(self.clients[index].link, Link::Closing(_)) {
                return bytes.len();
            }
        }
        used
    }

    fn reply(&mut self, index: usize, reply: &[u8], now: Mono) {
        let error = reply.first().is_some_and(|mark| matches!(mark, b'-' | b'!'));
        if matches!(self.clients[index].link, Link::Greeting(_)) {
            if error {
                self.failure =
                    Some(LoadError::Refused(String::from_utf8_lossy(&reply[1..]).trim_end().into()));
            }
            return;
        }
        let measured = matches!(self.phase, Phase::Measure);
        let confirms = self.options.wait > 0 && !matches!(self.phase, Phase::Fill { .. });
        if error {
            let text = String::from_utf8_lossy(&reply[1..]).into_owned();
            self.note_error(&text);
            if let Some(slice) = self.slice(now).filter(|_| measured) {
                slice.errors += 1;
            }
            if text.starts_with("READONLY") && self.servers_of(index).len() > 1 {
                self.clients[index].leaving = true;
            }
            return;
        }
        match confirms {
            false => self.succeeded(index, 1, now),
            true if self.clients[index].waiting > 0 => self.clients[index].unconfirmed += 1,
            true => self.confirmed(index, reply, now),
        }
    }

    /// The answer to WAIT decides over the batch in front of it.
    fn confirmed(&mut self, index: usize, reply: &[u8], now: Mono) {
        let count = std::mem::take(&mut self.clients[index].unconfirmed);
        let number = std::str::from_utf8(reply).ok().and_then(|text| text.strip_prefix(':'));
        let replicas: u32 = number.and_then(|text| text.trim_end().parse().ok()).unwrap_or(0);
        match replicas >= self.options.wait {
            true => self.succeeded(index, count, now),
            false => (0..count).for_each(|_| self.note_error("UNREPLICATED")),
        }
    }

    fn succeeded(&mut self, index: usize, count: u64, now: Mono) {
        if count == 0 || matches!(self.phase, Phase::Drain) {
            return;
        }
        self.report.ok += count;
        if !matches!(self.phase, Phase::Measure) {
            return;
        }
        let took = now.since(self.clients[index].sent_at);
        (0..count).for_each(|_| self.latency.record(took));
        self.longest_gap = self.longest_gap.max(now.since(self.last_ok));
        self.last_ok = now;
        if let Some(slice) = self.slice(now) {
            slice.ok += count;
            slice.max_us = slice.max_us.max(took.as_micros() as u64);
        }
    }

    fn slice(&mut self, now: Mono) -> Option<&mut Slice> {
        let at = (now.since(self.began).as_millis() / SLICE.as_millis()) as usize;
        let slices = &mut self.report.slices;
        // A reply can be reaped just behind the end; it belongs to the last slice.
        let last = (self.options.duration.as_millis() / SLICE.as_millis()) as usize;
        let at = at.min(last);
        if slices.len() <= at {
            slices.resize(at + 1, Slice::default());
        }
        slices.get_mut(at)
    }

    fn note_error(&mut self, text: &str) {
        if matches!(self.phase, Phase::Drain) {
            return;
        }
        let word: String = text.split([' ', '\r']).next().unwrap_or("").chars().take(24).collect();
        let errors = &mut self.report.errors;
        let word = if errors.len() >= LOAD_ERROR_WORDS_MAX && !errors.contains_key(&word) {
            "OTHER".into()
        } else {
            word
        };
        *errors.entry(word).or_default() += 1;
    }

    /// Leaves this server; what is under way counts as lost.
    fn hang_up(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if let Link::Up(conn) | Link::Greeting(conn) = client.link {
            client.link = Link::Closing(conn);
            self.seam.submit(Op::Close { conn });
        }
    }

    fn closed(&mut self, conn: ConnId, now: Mono) {
        let Some(index) = self.by_conn.remove(&conn) else { return };
        let client = &mut self.clients[index];
        if !matches!(self.phase, Phase::Drain) {
            self.report.lost += client.waiting as u64;
        }
        client.waiting = 0;
        client.sending = false;
        self.rest(index, now);
    }

    fn finish(mut self) -> Report {
        for index in 0..self.clients.len() {
            self.hang_up(index);
        }
        let mut report = self.report;
        report.workload = self.options.workload.name().into();
        report.clients = self.options.clients;
        report.readers = self.clients.iter().filter(|client| client.reader).count();
        report.pipeline = self.options.pipeline;
        report.value_bytes = self.options.value_bytes;
        report.keys = self.options.keys;
        report.throughput = report.ok as f64 / report.seconds;
        report.latency_us = LatencySummary::of(&self.latency);
        report.longest_gap_ms = self.longest_gap.as_secs_f64() * 1000.0;
        report.slice_ms = SLICE.as_millis() as u64;
        report
    }
}

#[cfg(test)]
mod tests;
