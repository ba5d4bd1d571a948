//! Whatever a client sends, on a node without a disk: each request has one well-formed answer, or none where the protocol
//! says so; what cannot go on has changed nothing; the records say exactly what was done, so that a standby that applies
//! them holds the same; and what is rolled back is gone.
//!
//! Requests named `@...` are for the harness: they seal, commit, roll back, let time pass, and change the client.

use std::collections::BTreeMap;
use std::ops::Bound;

use baton::base::{Lsn, ShardId, Stamp, WallMs};
use baton::exec::{
    ClientFacts, Engine, ExecState, Host, Mode, Outcome, Role, Session, Writes, execute, expire_cycle,
};
use baton::record::key::{TAG_META, split};
use baton::record::{RecordReader, RecordWriter};
use baton::redo::{Applied, Redo};
use baton::resp::{Args, OwnedArgs, Parse, Reply, RequestLimits, RequestParser, decode};
use baton::store::{Store, StoreConfig};

use super::script::Script;
use super::targets::{CLUSTER, SHARDS, way, word};

const PASSWORD: &[u8] = b"pw";
/// Slices of one command before it counts as endless.
const SLICES_MAX: usize = 10_000;

/// What a node tells commands.
#[derive(Default)]
struct Surroundings {
    password: bool,
    standby: bool,
    closed: Vec<u64>,
    now_ms: u64,
}

struct View<'a> {
    node: &'a mut Surroundings,
    others: &'a BTreeMap<u64, Session>,
}

impl Host for View<'_> {
    fn info(&self, section: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(section.as_bytes());
        out.extend_from_slice(b"_line:1\r\n");
    }
    fn role(&self) -> Role {
        match self.node.standby {
            false => Role::Master { offset: 0, replicas: Vec::new() },
            true => Role::Replica {
                host: "10.0.0.9".into(),
                port: 6379,
                state: baton::exec::ReplicaState::Connected,
                offset: 42,
            },
        }
    }
    fn time_us(&self) -> u64 {
        self.node.now_ms * 1000
    }
    fn visit_clients(&self, visit: &mut dyn FnMut(&Session, &ClientFacts)) {
        self.others.values().for_each(|session| visit(session, &ClientFacts::default()));
    }
    fn facts(&self, _: u64) -> ClientFacts {
        ClientFacts { addr: "10.0.0.1:9".into(), laddr: "10.0.0.2:6379".into(), ..ClientFacts::default() }
    }
    fn close_client(&mut self, session: u64) {
        self.node.closed.push(session);
    }
    fn password_required(&self) -> bool {
        self.node.password
    }
    fn password_ok(&self, user: &[u8], password: &[u8]) -> bool {
        user == b"default" && password == PASSWORD
    }
    fn visit_config(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("timeout", "0");
    }
    fn config_set(&mut self, name: &str, _: &str) -> Result<(), String> {
        if name == "timeout" { Ok(()) } else { Err("can't set immutable config".into()) }
    }
    fn reset_stats(&mut self) {}
    fn replicas_acked(&self, _: Stamp) -> u32 {
        1
    }
    fn extension(&mut self, _: &mut Session, _: Args<'_>, _: &mut Reply<'_>) -> bool {
        false
    }
}

fn store() -> Store {
    Store::create(StoreConfig { cluster: CLUSTER, shards: SHARDS, cache_bytes: 0, delta_bytes: 1 << 20 })
}

struct Node {
    store: Store,
    writer: RecordWriter,
    state: ExecState,
    around: Surroundings,
    mode: Mode,
    now: WallMs,
    stamp: Stamp,
    committed: Stamp,
    sessions: BTreeMap<u64, Session>,
    payload_max: usize,
    /// Sealed and not yet committed, with the stamps of their groups.
    sealed: Vec<(Stamp, Vec<u8>)>,
    /// A standby: applies what is committed.
    twin: Store,
    redo: Redo,
    applied: Lsn,
}

impl Node {
    fn new(script: &mut Script<'_>) -> Node {
        let twin = store();
        let (kind, password) = (script.byte(), script.flag());
        let mode = match kind % 8 {
            0 => Mode::Standby { stale: false },
            1 => Mode::Standby { stale: true },
            2 => Mode::Closed("LOADING not yet"),
            3 => Mode::Primary { writes: Writes::Refused("NOREPLICAS too few") },
            4 => Mode::Primary { writes: Writes::Held },
            _ => Mode::Primary { writes: Writes::Open },
        };
        let standby = matches!(mode, Mode::Standby { .. });
        Node {
            store: store(),
            writer: RecordWriter::new(),
            state: ExecState::new(1),
            around: Surroundings { password, standby, now_ms: 1_700_000_000_000, ..Surroundings::default() },
            mode,
            now: WallMs(1_700_000_000_000),
            stamp: Stamp(1),
            committed: Stamp::COMMITTED,
            sessions: BTreeMap::new(),
            payload_max: if kind & 64 == 0 { 60_000 } else { 600 },
            sealed: Vec::new(),
            redo: Redo::new(&twin),
            twin,
            applied: Lsn(4096),
        }
    }

    fn engine<R>(&mut self, with: impl FnOnce(&mut Engine<'_>) -> R) -> R {
        let mut view = View { node: &mut self.around, others: &self.sessions };
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

    fn run_once(&mut self, id: u64, args: Args<'_>, out: &mut Vec<u8>) -> Outcome {
        let open = !self.around.password;
        let mut session = self.sessions.remove(&id).unwrap_or_else(|| Session::new(id, open));
        let records = self.writer.len();
        let len = out.len();
        let outcome = self.engine(|engine| execute(&mut session, args, engine, out));
        self.sessions.insert(id, session);
        match &outcome {
            Outcome::Done { observed, wrote } | Outcome::Close { observed, wrote } => {
                assert!(*observed <= self.stamp, "it saw the future");
                assert_eq!(*wrote, self.writer.len() > records, "it says it wrote, or did not");
            }
            Outcome::Again { .. } => assert_eq!(out.len(), len, "it answered and goes on"),
            _ => {
                assert_eq!(out.len(), len, "it answered before {outcome:?}");
                assert_eq!(records, self.writer.len(), "it wrote before {outcome:?}");
            }
        }
        let writable = matches!(self.mode, Mode::Primary { writes: Writes::Open });
        assert!(writable || self.writer.is_empty(), "a node that may not write wrote");
        outcome
    }

    /// Runs a request to its end; says how it ended.
    fn run(&mut self, id: u64, args: &OwnedArgs) -> String {
        let mut out = Vec::new();
        for _ in 0..SLICES_MAX {
            let outcome = self.run_once(id, args.view(), &mut out);
            match outcome {
                Outcome::Miss(miss) => panic!("there is no page to miss: {miss:?}"),
                Outcome::GroupFull => {
                    assert!(!self.writer.is_empty(), "an empty group is not full");
                    self.seal();
                    continue;
                }
                Outcome::Again { .. } => continue,
                Outcome::Wait(request) => {
                    let session = self.sessions.get_mut(&id).expect("it asked");
                    if !session.take_mute() {
                        request.reply(true, 1, &mut Reply::new(&mut out, session.proto));
                    }
                }
                Outcome::Close { .. } => {
                    self.sessions.remove(&id);
                    self.state.forget(id);
                }
                Outcome::Held | Outcome::Lsn(_) | Outcome::Role(_) => assert!(out.is_empty()),
                Outcome::Done { .. } => {}
            }
            if !out.is_empty() {
                let reply = decode(&out).unwrap_or_else(|error| {
                    panic!("a reply that no client reads ({error:?}): {}", String::from_utf8_lossy(&out))
                });
                return word(&reply).chars().filter(|c| c.is_ascii_alphabetic()).take(16).collect();
            }
            return String::new();
        }
        panic!("a command that does not end");
    }

    fn seal(&mut self) {
        if self.writer.is_empty() {
            return;
        }
        let mut open = false;
        for record in RecordReader::new(self.writer.bytes()) {
            open = !record.expect("whole records").1;
        }
        assert!(!open, "a group ends with a whole transaction");
        assert!(self.writer.len() <= self.payload_max.max(60_000), "a group that no frame holds");
        self.sealed.push((self.stamp, self.writer.bytes().to_vec()));
        self.writer.clear();
        self.stamp.0 += 1;
    }

    fn commit(&mut self) {
        self.seal();
        let Some((newest, _)) = self.sealed.last() else { return };
        self.committed = *newest;
        self.store.commit_through(self.committed);
        for (_, payload) in std::mem::take(&mut self.sealed) {
            for record in RecordReader::new(&payload) {
                let (record, _) = record.expect("whole records");
                let applied = self.redo.apply_record(&mut self.twin, record, self.applied);
                assert_eq!(applied, Ok(Applied::Changed), "a standby cannot redo {record:?}");
                self.applied = self.applied + 64;
            }
        }
    }

    /// Demotion: everything that is not committed never was.
    fn roll_back(&mut self) {
        self.store.rollback_above(self.committed);
        self.writer.clear();
        self.sealed.clear();
        self.state.watches.change_all(self.stamp);
        self.stamp.0 += 1;
    }

    fn harness(&mut self, id: &mut u64, name: &[u8]) {
        match name {
            b"@s" => self.seal(),
            b"@c" => self.commit(),
            b"@r" => {
                self.roll_back();
                self.compare();
            }
            b"@t" => self.pass(1_000),
            b"@d" => self.pass(100_000_000),
            b"@e" => {
                if matches!(self.mode, Mode::Primary { writes: Writes::Open }) {
                    let _ = self.engine(|engine| expire_cycle(engine, 16));
                }
            }
            b"@h" => {
                if let Mode::Primary { writes } = &mut self.mode {
                    *writes = if *writes == Writes::Open { Writes::Held } else { Writes::Open };
                    // What is open was written while it was allowed.
                    self.seal();
                }
            }
            _ => *id = u64::from(name[1]) % 3,
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now.0 += ms;
        self.around.now_ms += ms;
    }

    /// Primary and standby hold the same, and count it right.
    fn compare(&mut self) {
        for shard in (0..SHARDS).map(ShardId) {
            let own = contents(&mut self.store, shard);
            assert_eq!(own, contents(&mut self.twin, shard), "the standby holds something else");
            let keys = own.iter().filter(|(key, _)| split(key).is_ok_and(|(_, tag)| tag == TAG_META)).count();
            assert_eq!(self.store.count(shard).0, keys as u64, "the count is wrong");
            assert_eq!(self.twin.count(shard).0, keys as u64, "the standby's count is wrong");
        }
    }
}

pub fn contents(store: &mut Store, shard: ShardId) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    let mut from: Option<Vec<u8>> = None;
    loop {
        let bound = from.as_ref().map_or(Bound::Unbounded, |key| Bound::Included(key.as_slice()));
        let next = store.scan(shard, bound, 64, &mut |key, value| all.push((key.to_vec(), value.to_vec())));
        from = next.expect("everything is in memory");
        if from.is_none() {
            return all;
        }
    }
}

/// Input: two bytes for the node, one for the size of the pieces, then what the client sends.
pub fn commands(data: &[u8]) -> u64 {
    let mut script = Script::new(data);
    let mut node = Node::new(&mut script);
    let size = usize::from(script.byte()).max(1) * 4;
    let mut parser = RequestParser::new();
    let (mut buffer, mut ways, mut id) = (Vec::new(), Vec::new(), 0);
    'read: for piece in script.rest().chunks(size) {
        buffer.extend_from_slice(piece);
        loop {
            let limits: &RequestLimits =
                node.sessions.get(&id).map_or(&RequestLimits::AUTHENTICATED, Session::limits);
            let consumed = match parser.parse(&buffer, limits) {
                Err(_) => break 'read,
                Ok(Parse::Incomplete) => break,
                Ok(Parse::Request { consumed }) => consumed,
            };
            let args = parser.args(&buffer).to_owned();
            buffer.drain(..consumed);
            match args.view().get(0) {
                Some(name) if name.len() == 2 && name[0] == b'@' => node.harness(&mut id, name),
                _ => ways.push(node.run(id, &args)),
            }
            if buffer.is_empty() {
                break;
            }
        }
    }
    node.commit();
    node.compare();
    ways.truncate(6);
    way(ways)
}
