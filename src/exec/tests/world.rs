//! The node around the room, as small as it can be: clients, a clock, an open group, and somebody who reads pages.

use std::collections::BTreeMap;

use super::model::ModelStore;
use crate::base::{Stamp, WallMs};
use crate::exec::{
    ClientFacts, Engine, ExecState, Host, Mode, Outcome, Role, Session, Shards, Writes, execute,
};
use crate::record::{RecordReader, RecordWriter};
use crate::resp::{Args, OwnedArgs, Reply, Value, decode};
use crate::store::Miss;

pub const SHARDS: u16 = 4;
/// One frame of the smallest kind of segment.
pub const PAYLOAD_MAX: usize = 60_000;

/// What the node tells commands.
#[derive(Default)]
pub struct Node {
    pub password: Option<String>,
    pub standby: bool,
    pub closed: Vec<u64>,
    pub settings: BTreeMap<String, String>,
    pub now_ms: u64,
    pub acked: u32,
}

struct NodeView<'a> {
    node: &'a mut Node,
    others: &'a BTreeMap<u64, Session>,
}

fn facts(id: u64) -> ClientFacts {
    ClientFacts { addr: format!("10.0.0.1:{id}"), laddr: "10.0.0.2:6379".into(), ..ClientFacts::default() }
}

impl Host for NodeView<'_> {
    fn info(&self, section: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{section}_line:1\r\n").as_bytes());
    }
    fn role(&self) -> Role {
        match self.node.standby {
            false => Role::Master { offset: 0, replicas: Vec::new() },
            true => Role::Replica {
                host: "10.0.0.9".into(),
                port: 6379,
                state: crate::exec::ReplicaState::Connected,
                offset: 42,
            },
        }
    }
    fn time_us(&self) -> u64 {
        self.node.now_ms * 1000 + 7
    }
    fn visit_clients(&self, visit: &mut dyn FnMut(&Session, &ClientFacts)) {
        self.others.iter().for_each(|(id, session)| visit(session, &facts(*id)));
    }
    fn facts(&self, session: u64) -> ClientFacts {
        facts(session)
    }
    fn close_client(&mut self, session: u64) {
        self.node.closed.push(session);
    }
    fn password_required(&self) -> bool {
        self.node.password.is_some()
    }
    fn password_ok(&self, user: &[u8], password: &[u8]) -> bool {
        user == b"default" && self.node.password.as_ref().is_some_and(|own| own.as_bytes() == password)
    }
    fn visit_config(&self, visit: &mut dyn FnMut(&str, &str)) {
        self.node.settings.iter().for_each(|(name, value)| visit(name, value));
    }
    fn config_set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match self.node.settings.get_mut(name) {
            Some(own) => {
                *own = value.into();
                Ok(())
            }
            None => Err("can't set immutable config".into()),
        }
    }
    fn reset_stats(&mut self) {}
    fn replicas_acked(&self, _: Stamp) -> u32 {
        self.node.acked
    }
    fn extension(&mut self, _: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> bool {
        let known = args.at(0).eq_ignore_ascii_case(b"BATON.PROBE");
        if known {
            reply.bulk(b"0/1000");
        }
        known
    }
}

/// A store that the world can look into.
pub trait TestStore {
    fn shards(&mut self) -> &mut dyn Shards;
    /// Everything a reader could tell.
    fn picture(&mut self) -> String;
    /// The live entries.
    fn contents(&mut self) -> Vec<(usize, Vec<u8>, Vec<u8>)>;
    /// Reads what a look-up missed and keeps it until [`TestStore::release`].
    fn bring(&mut self, miss: Miss);
    fn release(&mut self);
    /// Everything up to this stamp is committed, and that is everything.
    fn commit(&mut self, stamp: Stamp);
}

pub struct World<S = ModelStore> {
    pub store: S,
    pub writer: RecordWriter,
    pub state: ExecState,
    pub node: Node,
    pub mode: Mode,
    pub now: WallMs,
    pub stamp: Stamp,
    pub sessions: BTreeMap<u64, Session>,
    pub payload_max: usize,
    /// Records of all sealed groups.
    pub log: Vec<u8>,
    /// Compares the whole store around every detour. Dear on large ones.
    pub careful: bool,
    /// Commands ended by each kind of detour, to show that the detours were taken.
    missed: Vec<Miss>,
    pub misses: u64,
    pub slices: u64,
    pub groups: u64,
}

impl World {
    pub fn new() -> World {
        World::over(ModelStore::new(SHARDS))
    }
}

impl<S: TestStore> World<S> {
    pub fn over(store: S) -> World<S> {
        let mut settings = BTreeMap::new();
        settings.insert("timeout".to_string(), "0".to_string());
        World {
            store,
            writer: RecordWriter::new(),
            state: ExecState::new(1),
            node: Node { settings, now_ms: 1_700_000_000_000, ..Node::default() },
            mode: Mode::Primary { writes: Writes::Open },
            now: WallMs(1_700_000_000_000),
            stamp: Stamp(1),
            sessions: BTreeMap::new(),
            payload_max: PAYLOAD_MAX,
            log: Vec::new(),
            careful: true,
            missed: Vec::new(),
            misses: 0,
            slices: 0,
            groups: 0,
        }
    }

    pub fn advance(&mut self, ms: u64) {
        self.now.0 += ms;
        self.node.now_ms += ms;
    }

    /// Seals the open group; the next one has another stamp.
    pub fn seal(&mut self) {
        if !self.writer.is_empty() {
            let mut open = false;
            for record in RecordReader::new(self.writer.bytes()) {
                open = !record.expect("whole records").1;
            }
            assert!(!open, "a group ends with a whole transaction");
            self.log.extend_from_slice(self.writer.bytes());
            self.writer.clear();
            self.stamp.0 += 1;
            self.groups += 1;
        }
    }

    /// Seals and commits everything.
    pub fn commit(&mut self) {
        self.seal();
        self.store.commit(self.stamp);
        self.stamp.0 += 1;
    }

    fn picture(&mut self) -> (String, Vec<u8>, u32) {
        if !self.careful {
            return Default::default();
        }
        let store = self.store.picture();
        self.store.release();
        (store, self.writer.bytes().to_vec(), self.writer.transactions())
    }

    pub fn engine<R>(&mut self, with: impl FnOnce(&mut Engine<'_>) -> R) -> R {
        let mut view = NodeView { node: &mut self.node, others: &self.sessions };
        with(&mut Engine {
            store: self.store.shards(),
            writer: &mut self.writer,
            stamp: self.stamp,
            now: self.now,
            mode: self.mode,
            host: &mut view,
            state: &mut self.state,
            shards: SHARDS,
            payload_max: self.payload_max,
        })
    }

    /// One run of a command, whatever comes of it. Checks that detours change nothing.
    pub fn run_once(&mut self, id: u64, args: &OwnedArgs, out: &mut Vec<u8>) -> Outcome {
        let required = self.node.password.is_some();
        let mut session = self.sessions.remove(&id).unwrap_or_else(|| Session::new(id, !required));
        let records = (self.writer.len(), self.writer.transactions());
        let out_len = out.len();
        let outcome = self.engine(|engine| execute(&mut session, args.view(), engine, out));
        self.sessions.insert(id, session);
        let detour =
            matches!(outcome, Outcome::Miss(_) | Outcome::Held | Outcome::GroupFull | Outcome::Wait(_));
        if detour {
            let after = (self.writer.len(), self.writer.transactions());
            assert_eq!(records, after, "{args:?} pushed something before {outcome:?}");
        }
        if detour || matches!(outcome, Outcome::Again { .. }) {
            assert_eq!(out.len(), out_len, "{args:?} answered before {outcome:?}");
        }
        outcome
    }

    /// Runs a command to its end, through every detour.
    pub fn run(&mut self, id: u64, args: &OwnedArgs) -> (Vec<u8>, Outcome) {
        let mut out = b"prefix".to_vec();
        let mut before = self.picture();
        let outcome = loop {
            let outcome = self.run_once(id, args, &mut out);
            if matches!(outcome, Outcome::Miss(_) | Outcome::Held | Outcome::GroupFull) && self.careful {
                // Looking at everything lets go of the pages.
                assert!(before == self.picture(), "{args:?} changed something before {outcome:?}");
            }
            match outcome {
                Outcome::Miss(miss) => {
                    self.missed.push(miss);
                    let missed = self.missed.clone();
                    missed.into_iter().for_each(|miss| self.store.bring(miss));
                    assert!(self.missed.len() < 10_000, "a command gets further with each run");
                    self.misses += 1;
                }
                Outcome::GroupFull => {
                    assert!(!self.writer.is_empty(), "an empty group is not full");
                    self.seal();
                    before = self.picture();
                    self.missed.clear();
                }
                Outcome::Again { .. } => {
                    self.store.release();
                    self.missed.clear();
                    before = self.picture();
                    self.slices += 1;
                }
                Outcome::Wait(request) => {
                    let session = self.sessions.get_mut(&id).expect("it asked");
                    if !session.take_mute() {
                        request.reply(true, self.node.acked, &mut Reply::new(&mut out, session.proto));
                    }
                    break Outcome::Wait(request);
                }
                other => break other,
            }
        };
        self.store.release();
        self.missed.clear();
        if matches!(outcome, Outcome::Close { .. }) {
            self.sessions.remove(&id);
            self.state.forget(id);
        }
        assert_eq!(&out[..6], b"prefix");
        (out.split_off(6), outcome)
    }

    /// Runs a command for what it does.
    pub fn send(&mut self, id: u64, args: &OwnedArgs) {
        let _ = self.run(id, args);
    }

    /// Runs a command given as words and shows its reply.
    pub fn say(&mut self, id: u64, line: &str) -> String {
        let words = words(line);
        show(&self.run(id, &words).0)
    }
}

/// Splits a line as an inline request is split.
pub fn words(line: &str) -> OwnedArgs {
    let mut parser = crate::resp::RequestParser::new();
    let input = [line.as_bytes(), b"\r\n"].concat();
    parser.parse(&input, &crate::resp::RequestLimits::AUTHENTICATED).expect("a script line is well quoted");
    parser.args(&input).to_owned()
}

/// A reply as scripts write it.
pub fn show(reply: &[u8]) -> String {
    if reply.is_empty() {
        return "nothing".into();
    }
    if reply == b"*-1\r\n" {
        return "nil-array".into();
    }
    show_value(&decode(reply).expect("replies are well formed"))
}

pub fn show_value(value: &Value<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let list =
        |values: &[Value<'_>]| format!("[{}]", values.iter().map(show_value).collect::<Vec<_>>().join(", "));
    match value {
        Value::Simple(bytes) => format!("+{}", text(bytes)),
        Value::Error(bytes) => format!("-{}", text(bytes)),
        Value::Integer(n) => format!(":{n}"),
        Value::Null => "nil".into(),
        Value::Bulk(bytes) => quote(bytes),
        Value::Verbatim { text, .. } => format!("={}", quote(text)),
        Value::Boolean(b) => if *b { "#t" } else { "#f" }.into(),
        Value::Double(n) => format!(",{n}"),
        Value::BigNumber(bytes) => format!("({}", text(bytes)),
        Value::Array(values) => list(values),
        Value::Set(values) => format!("~{}", list(values)),
        Value::Push(values) => format!(">{}", list(values)),
        Value::Map(pairs) => {
            let pairs: Vec<_> =
                pairs.iter().map(|(k, v)| format!("{}: {}", show_value(k), show_value(v))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
    }
}

fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(*byte)]),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b' '..=b'~' => out.push(char::from(*byte)),
            other => out.push_str(&format!("\\x{other:02x}")),
        }
    }
    out.push('"');
    out
}
