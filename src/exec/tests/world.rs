//! The node around the room, as small as it can be: clients, a clock, an open group, and somebody who reads pages.

use std::collections::BTreeMap;

use super::model::ModelStore;
use crate::base::{Stamp, WallMs};
use crate::exec::{ClientFacts, Engine, ExecState, Host, Mode, Outcome, Role, Session, Writes, execute};
use crate::record::{RecordReader, RecordWriter};
use crate::resp::{Args, OwnedArgs, Reply, Value, decode};

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
        let known = args.at(0).eq_ignore_ascii_case(b"BATON.LSN");
        if known {
            reply.bulk(b"0/1000");
        }
        known
    }
}

pub struct World {
    pub store: ModelStore,
    pub writer: RecordWriter,
    pub state: ExecState,
    pub node: Node,
    pub mode: Mode,
    pub now: WallMs,
    pub stamp: Stamp,
    pub sessions: BTreeMap<u64, Session>,
    pub payload_max: usize,
    /// Commands ended by each kind of detour, to show that the detours were taken.
    pub misses: u64,
    pub slices: u64,
    pub groups: u64,
}

impl World {
    pub fn new() -> World {
        let mut settings = BTreeMap::new();
        settings.insert("timeout".to_string(), "0".to_string());
        World {
            store: ModelStore::new(SHARDS),
            writer: RecordWriter::new(),
            state: ExecState::new(1),
            node: Node { settings, now_ms: 1_700_000_000_000, ..Node::default() },
            mode: Mode::Primary { writes: Writes::Open },
            now: WallMs(1_700_000_000_000),
            stamp: Stamp(1),
            sessions: BTreeMap::new(),
            payload_max: PAYLOAD_MAX,
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
            self.writer.clear();
            self.stamp.0 += 1;
            self.groups += 1;
        }
    }

    pub fn engine<R>(&mut self, with: impl FnOnce(&mut Engine<'_>) -> R) -> R {
        let mut view = NodeView { node: &mut self.node, others: &self.sessions };
        with(&mut Engine {
            store: &mut self.store,
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
        let before = (self.store.picture(), self.writer.bytes().to_vec(), self.writer.transactions());
        let out_len = out.len();
        let outcome = self.engine(|engine| execute(&mut session, args.view(), engine, out));
        self.sessions.insert(id, session);
        let detour =
            matches!(outcome, Outcome::Miss(_) | Outcome::Held | Outcome::GroupFull | Outcome::Wait(_));
        if detour {
            let after = (self.store.picture(), self.writer.bytes().to_vec(), self.writer.transactions());
            assert_eq!(before, after, "{args:?} changed something before {outcome:?}");
        }
        if detour || matches!(outcome, Outcome::Again { .. }) {
            assert_eq!(out.len(), out_len, "{args:?} answered before {outcome:?}");
        }
        outcome
    }

    /// Runs a command to its end, through every detour.
    pub fn run(&mut self, id: u64, args: &OwnedArgs) -> (Vec<u8>, Outcome) {
        let mut out = b"prefix".to_vec();
        let outcome = loop {
            match self.run_once(id, args, &mut out) {
                Outcome::Miss(miss) => {
                    assert!(self.store.held.insert(miss.page), "a page in memory does not miss");
                    self.misses += 1;
                }
                Outcome::GroupFull => {
                    assert!(!self.writer.is_empty(), "an empty group is not full");
                    self.seal();
                }
                Outcome::Again { .. } => {
                    self.store.held.clear();
                    self.slices += 1;
                }
                Outcome::Wait(request) => {
                    request.reply(true, self.node.acked, &self.sessions[&id], &mut out);
                    break Outcome::Wait(request);
                }
                other => break other,
            }
        };
        self.store.held.clear();
        if matches!(outcome, Outcome::Close { .. }) {
            self.sessions.remove(&id);
            self.state.forget(id);
        }
        assert_eq!(&out[..6], b"prefix");
        (out.split_off(6), outcome)
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
