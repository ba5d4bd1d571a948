//! Writers on real sockets that remember what they were told, for the judge in [`super::checker`].

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::checker::{KeyModel, Outcome, Verdict, Violation};
use super::client::{Answer, Client};
use super::report::LatencySummary;
use crate::metrics::Latency;

/// How to write.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Every node of the cluster: writers look for the one that takes writes.
    pub servers: Vec<SocketAddr>,
    pub password: Option<String>,
    pub writers: usize,
    pub keys_per_writer: usize,
    /// Longer without an answer is "in doubt".
    pub patience: Duration,
    /// Begins every key, so that runs do not meet.
    pub prefix: String,
}

const DIAL: Duration = Duration::from_millis(500);
/// Rest after a refusal or a failed dial, so that an outage is not spent spinning: shorter at first, so that a short
/// outage is measured as short as it is.
const REST: Duration = Duration::from_millis(10);
const REST_FIRST: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    begin: Instant,
    acknowledged: AtomicU64,
    /// Microseconds since `begin` of the newest acknowledged write, and the longest pause between two.
    last_us: AtomicU64,
    gap_us: AtomicU64,
    /// The same longest pause since it was asked for last.
    window_us: AtomicU64,
    /// The first acknowledged write since somebody asked for it; 0 until there is one.
    first_us: AtomicU64,
    /// From sending to answer, of the writes acknowledged since it was asked for last.
    latency: Mutex<Latency>,
}

impl Shared {
    fn acknowledged(&self, took: Duration) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.latency.lock().unwrap_or_else(PoisonError::into_inner).record(took);
        self.note_first();
        self.note_gap();
    }

    fn note_gap(&self) {
        let now = self.begin.elapsed().as_micros() as u64;
        let before = self.last_us.fetch_max(now, Ordering::Relaxed);
        self.gap_us.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
        self.window_us.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
    }

    fn note_first(&self) {
        if self.first_us.load(Ordering::Relaxed) == 0 {
            let now = (self.begin.elapsed().as_micros() as u64).max(1);
            let _ = self.first_us.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Running writers.
#[derive(Debug)]
pub struct Prober {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Writer>>,
    options: ProbeOptions,
}

/// Everything the writers know when they have stopped.
#[derive(Clone, Debug)]
pub struct History {
    keys: BTreeMap<String, KeyModel>,
    verdict: Verdict,
    password: Option<String>,
    patience: Duration,
}

impl Prober {
    pub fn start(options: ProbeOptions) -> Prober {
        assert!(!options.servers.is_empty() && options.writers > 0 && options.keys_per_writer > 0);
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            begin: Instant::now(),
            acknowledged: AtomicU64::new(0),
            last_us: AtomicU64::new(0),
            gap_us: AtomicU64::new(0),
            window_us: AtomicU64::new(0),
            first_us: AtomicU64::new(0),
            latency: Mutex::default(),
        });
        let writers = (0..options.writers)
            .map(|number| {
                let writer = Writer::new(number, options.clone(), shared.clone());
                std::thread::spawn(move || writer.run())
            })
            .collect();
        Prober { shared, writers, options }
    }

    /// Acknowledged writes so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Time since the newest acknowledged write.
    pub fn silence(&self) -> Duration {
        let last = Duration::from_micros(self.shared.last_us.load(Ordering::Relaxed));
        self.shared.begin.elapsed().saturating_sub(last)
    }

    /// The longest time without an acknowledged write since the last call.
    pub fn take_gap(&self) -> Duration {
        Duration::from_micros(self.shared.window_us.swap(0, Ordering::Relaxed))
    }

    /// Latencies of the writes acknowledged since the last call.
    pub fn take_latency(&self) -> LatencySummary {
        let mut latency = self.shared.latency.lock().unwrap_or_else(PoisonError::into_inner);
        LatencySummary::of(&std::mem::take(&mut *latency))
    }

    /// Forgets the first acknowledged write; the value is the moment, for [`Prober::first_since`].
    pub fn mark(&self) -> Duration {
        self.shared.first_us.store(0, Ordering::Relaxed);
        self.shared.begin.elapsed()
    }

    /// Time from a [`Prober::mark`] to the first write acknowledged after it.
    pub fn first_since(&self, mark: Duration) -> Option<Duration> {
        match self.shared.first_us.load(Ordering::Relaxed) {
            0 => None,
            first => Some(Duration::from_micros(first).saturating_sub(mark)),
        }
    }

    /// Stops the writers, after the request that each has under way.
    pub fn stop(self) -> History {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut keys = BTreeMap::new();
        let mut verdict = Verdict::default();
        for writer in self.writers {
            let writer = writer.join().expect("a writer does not panic");
            verdict.add(writer.verdict);
            keys.extend(writer.keys);
        }
        self.shared.note_gap();
        verdict.longest_gap_ms = self.shared.gap_us.load(Ordering::Relaxed) / 1000;
        History { keys, verdict, password: self.options.password, patience: self.options.patience }
    }
}

impl History {
    /// Reads every key back from `server`, retrying until `patience` is over, and judges. The server must be the
    /// primary, or a standby that has caught up.
    pub fn verify(mut self, server: SocketAddr, patience: Duration) -> Verdict {
        let end = Instant::now() + patience;
        let mut client = None;
        for (key, model) in &mut self.keys {
            match read_until(&mut client, server, self.password.as_deref(), self.patience, key, end) {
                Some(read) => {
                    self.verdict.keys_read_back += 1;
                    self.verdict.violations.extend(judge(model, key, &read).err());
                }
                None => self.verdict.keys_unreadable += 1,
            }
        }
        self.verdict
    }
}

fn read_until(
    client: &mut Option<Client>,
    server: SocketAddr,
    password: Option<&str>,
    patience: Duration,
    key: &str,
    end: Instant,
) -> Option<Answer> {
    loop {
        if client.is_none() {
            *client = Client::connect(server, password, patience).ok();
        }
        if let Some(open) = client {
            match open.call(&[b"GET", key.as_bytes()]) {
                Ok(Answer::Error(_)) => {}
                Ok(answer) => return Some(answer),
                Err(_) => *client = None,
            }
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(REST);
    }
}

fn value(key: &str, number: u64) -> String {
    format!("{key}#{number}")
}

/// Judges what a GET of `key` answered.
fn judge(model: &mut KeyModel, key: &str, answer: &Answer) -> Result<(), Violation> {
    let foreign = |read: String| Violation::Foreign { key: key.into(), read };
    match answer {
        Answer::Nil => model.read(key, None),
        Answer::Text(text) => {
            let text = String::from_utf8_lossy(text);
            let number = text.strip_prefix(key).and_then(|rest| rest.strip_prefix('#'));
            match number.and_then(|number| number.parse().ok()) {
                Some(number) => model.read(key, Some(number)),
                None => Err(foreign(text.into_owned())),
            }
        }
        other => Err(foreign(format!("{other:?}"))),
    }
}

struct Slot {
    key: String,
    next: u64,
    /// Some write to the key was acknowledged.
    acknowledged: bool,
}

/// One writing thread.
#[derive(Debug)]
struct Writer {
    number: usize,
    options: ProbeOptions,
    shared: Arc<Shared>,
    keys: BTreeMap<String, KeyModel>,
    verdict: Verdict,
    server: usize,
    fresh: u64,
    rest: Duration,
}

impl Writer {
    fn new(number: usize, options: ProbeOptions, shared: Arc<Shared>) -> Writer {
        let server = number % options.servers.len();
        let (keys, verdict) = (BTreeMap::new(), Verdict::default());
        Writer { number, options, shared, keys, verdict, server, fresh: 0, rest: REST_FIRST }
    }

    fn fresh_slot(&mut self) -> Slot {
        self.fresh += 1;
        let key = format!("{}:{}:{}", self.options.prefix, self.number, self.fresh);
        self.keys.insert(key.clone(), KeyModel::new());
        Slot { key, next: 1, acknowledged: false }
    }

    /// Leaves every key that holds an acknowledged write as it is: behind a lost connection may stand another primary,
    /// and a later write there would hide that this one is gone.
    fn retire(&mut self, slots: &mut [Slot]) {
        for slot in slots.iter_mut().filter(|slot| slot.acknowledged) {
            *slot = self.fresh_slot();
        }
    }

    fn run(mut self) -> Writer {
        let mut slots: Vec<Slot> = (0..self.options.keys_per_writer).map(|_| self.fresh_slot()).collect();
        let mut client: Option<Client> = None;
        let mut turn = 0usize;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let Some(open) = &mut client else {
                client = self.dial();
                continue;
            };
            turn += 1;
            let at = (turn - turn / 8) % slots.len();
            // Every eighth turn reads what the turn before wrote.
            let alive = if turn.is_multiple_of(8) {
                self.read(open, &slots[at].key)
            } else {
                let (outcome, alive) = self.write(open, &mut slots[at]);
                if outcome == Outcome::InDoubt {
                    // The open write may land at any later time: the key is left to it, so that a later
                    // acknowledged write stands on a key where nothing can hide its loss.
                    slots[at] = self.fresh_slot();
                }
                alive
            };
            if !alive {
                client = None;
                self.retire(&mut slots);
                self.server = (self.server + 1) % self.options.servers.len();
            }
        }
        self
    }

    fn take_rest(&mut self) {
        std::thread::sleep(self.rest);
        self.rest = (self.rest * 2).min(REST);
    }

    fn dial(&mut self) -> Option<Client> {
        let server = self.options.servers[self.server];
        let password = self.options.password.as_deref();
        match Client::connect(server, password, DIAL.max(self.options.patience)) {
            Ok(client) => Some(client),
            Err(_) => {
                self.server = (self.server + 1) % self.options.servers.len();
                self.take_rest();
                None
            }
        }
    }

    /// One write: its outcome, and whether to stay with this server.
    fn write(&mut self, client: &mut Client, slot: &mut Slot) -> (Outcome, bool) {
        let number = slot.next;
        slot.next += 1;
        let value = value(&slot.key, number);
        let sent = Instant::now();
        let answer = client.call(&[b"SET", slot.key.as_bytes(), value.as_bytes()]);
        let took = sent.elapsed();
        let (outcome, alive) = classify(&answer);
        match outcome {
            Outcome::Acknowledged => {
                self.verdict.acknowledged += 1;
                self.shared.acknowledged(took);
                self.rest = REST_FIRST;
                slot.acknowledged = true;
            }
            Outcome::InDoubt => self.verdict.in_doubt += 1,
            Outcome::Refused => {
                self.verdict.refused += 1;
                self.take_rest();
            }
        }
        self.keys.get_mut(&slot.key).expect("a slot's key is known").wrote(number, outcome);
        (outcome, alive)
    }

    /// A read in between; false when the connection is gone. Standbys may lag, so only a server that takes writes is
    /// judged: a refused write makes the writer leave it.
    fn read(&mut self, client: &mut Client, key: &str) -> bool {
        match client.call(&[b"GET", key.as_bytes()]) {
            Ok(Answer::Error(_)) => true,
            Ok(answer) => {
                let model = self.keys.get_mut(key).expect("a slot's key is known");
                // Reads of the same key from a server that turned standby are not promises about the newest state.
                if let Err(violation) = judge(&mut model.clone(), key, &answer) {
                    if takes_writes(client) {
                        self.verdict.violations.push(violation);
                    }
                } else {
                    let _ = judge(model, key, &answer);
                }
                true
            }
            Err(_) => false,
        }
    }
}

/// Asks the server itself; a standby says READONLY to any write.
fn takes_writes(client: &mut Client) -> bool {
    matches!(client.call(&[b"DEL", b"baton:probe:nothing"]), Ok(Answer::Number(_)))
}

fn classify(answer: &io::Result<Answer>) -> (Outcome, bool) {
    match answer {
        Ok(Answer::Error(text)) => (Outcome::of_reply(Some(text)), !text.starts_with(b"READONLY")),
        Ok(_) => (Outcome::Acknowledged, true),
        Err(_) => (Outcome::InDoubt, false),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Mutex;

    use super::*;
    use crate::resp::{Parse, RequestLimits, RequestParser};

    /// A register server that breaks its promises on demand.
    #[derive(Default)]
    struct Liar {
        /// Every n-th write is acknowledged but not done.
        forget_every: Option<u64>,
        /// Every n-th write is refused but done.
        sneak_every: Option<u64>,
        /// Every n-th write ends the connection, and all acknowledged before is forgotten.
        fall_back_every: Option<u64>,
        /// Every n-th write ends the connection, after it was done when the flag says so.
        hang_up_every: Option<(u64, bool)>,
    }

    struct Server {
        addr: SocketAddr,
        data: Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>,
    }

    fn serve(liar: Liar) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let data = Arc::new(Mutex::new(BTreeMap::new()));
        let (liar, shared, count) = (Arc::new(liar), data.clone(), Arc::new(AtomicU64::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (liar, data, count) = (liar.clone(), shared.clone(), count.clone());
                std::thread::spawn(move || converse(stream.unwrap(), &liar, &data, &count));
            }
        });
        Server { addr, data }
    }

    fn converse(
        mut stream: TcpStream,
        liar: &Liar,
        data: &Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
        count: &AtomicU64,
    ) {
        let mut parser = RequestParser::new();
        let (mut input, mut chunk) = (Vec::new(), [0u8; 1024]);
        loop {
            match parser.parse(&input, &RequestLimits::AUTHENTICATED) {
                Ok(Parse::Request { consumed }) => {
                    let args = parser.args(&input);
                    let reply = match args.at(0) {
                        b"GET" => match data.lock().unwrap().get(args.at(1)) {
                            Some(value) => {
                                [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
                            }
                            None => b"$-1\r\n".to_vec(),
                        },
                        b"SET" => {
                            let n = count.fetch_add(1, Ordering::Relaxed) + 1;
                            let on = |every: Option<u64>| every.is_some_and(|every| n.is_multiple_of(every));
                            let hang_up = on(liar.hang_up_every.map(|(every, _)| every));
                            if !on(liar.forget_every) && (!hang_up || liar.hang_up_every.unwrap().1) {
                                data.lock().unwrap().insert(args.at(1).to_vec(), args.at(2).to_vec());
                            }
                            if on(liar.fall_back_every) {
                                data.lock().unwrap().clear();
                                return;
                            }
                            if hang_up {
                                return;
                            }
                            if on(liar.sneak_every) {
                                b"-NOREPLICAS not enough\r\n".to_vec()
                            } else {
                                b"+OK\r\n".to_vec()
                            }
                        }
                        _ => b":0\r\n".to_vec(),
                    };
                    input.drain(..consumed);
                    stream.write_all(&reply).unwrap();
                }
                Ok(Parse::Incomplete) => match stream.read(&mut chunk) {
                    Ok(read) if read > 0 => input.extend_from_slice(&chunk[..read]),
                    _ => return,
                },
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn probe(liar: Liar, meddle: impl FnOnce(&Server)) -> Verdict {
        let server = serve(liar);
        let options = ProbeOptions {
            servers: vec![server.addr],
            password: None,
            writers: 2,
            keys_per_writer: 4,
            patience: Duration::from_secs(5),
            prefix: "t".into(),
        };
        let prober = Prober::start(options);
        while prober.acknowledged() < 200 {
            std::thread::yield_now();
        }
        let (mark, before) = (prober.mark(), prober.acknowledged());
        while prober.acknowledged() < before.max(300) + 10 {
            std::thread::yield_now();
        }
        assert!(prober.first_since(mark).is_some());
        let latency = prober.take_latency();
        assert!(0 < latency.p50 && latency.p50 <= latency.p99 && latency.p99 <= latency.max, "{latency:?}");
        let history = prober.stop();
        meddle(&server);
        history.verify(server.addr, Duration::from_secs(5))
    }

    #[test]
    fn an_honest_server_is_believed() {
        let verdict = probe(Liar::default(), |_| {});
        assert!(verdict.holds(), "{verdict}");
        assert!(verdict.acknowledged >= 300 && verdict.keys_read_back == 8);
    }

    #[test]
    fn broken_connections_are_doubts_and_no_accusations() {
        for done in [false, true] {
            let verdict = probe(Liar { hang_up_every: Some((17, done)), ..Liar::default() }, |_| {});
            assert!(verdict.holds(), "{verdict}");
            assert!(verdict.in_doubt > 5, "{verdict}");
        }
    }

    #[test]
    fn forgotten_writes_are_found() {
        let verdict = probe(Liar { forget_every: Some(13), ..Liar::default() }, |_| {});
        assert!(verdict.violations.iter().any(|v| matches!(v, Violation::Lost { .. })), "{verdict}");
    }

    #[test]
    fn refused_writes_that_happened_are_found() {
        let verdict = probe(Liar { sneak_every: Some(7), ..Liar::default() }, |_| {});
        assert!(verdict.violations.iter().any(|v| matches!(v, Violation::Phantom { .. })), "{verdict}");
    }

    #[test]
    fn a_failover_that_loses_the_tail_is_found() {
        let verdict = probe(Liar::default(), |server| {
            let mut data = server.data.lock().unwrap();
            let key = data.keys().next().unwrap().clone();
            data.remove(&key);
        });
        assert_eq!(verdict.violations.len(), 1, "{verdict}");
    }

    #[test]
    fn a_loss_is_found_although_the_writers_go_on() {
        let verdict = probe(Liar { fall_back_every: Some(100), ..Liar::default() }, |_| {});
        // The keys of the connection that broke hold what nobody wrote over.
        assert!(verdict.violations.iter().any(|v| matches!(v, Violation::Lost { .. })), "{verdict}");
        assert!(verdict.keys_read_back > 8, "{verdict}");
    }

    #[test]
    fn an_unreachable_server_proves_nothing() {
        let history = History {
            keys: [("k".to_string(), KeyModel::new())].into(),
            verdict: Verdict::default(),
            password: None,
            patience: Duration::from_millis(50),
        };
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let verdict = history.verify(nobody, Duration::from_millis(50));
        assert!(!verdict.holds() && verdict.keys_unreadable == 1);
    }
}
