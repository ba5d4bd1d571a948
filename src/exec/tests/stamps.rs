//! What replies wait for, what is refused, and what comes again.

use super::disk::DiskStore;
use super::world::{PAYLOAD_MAX, SHARDS, TestStore, World, show, words};
use crate::base::limits::{
    KEY_BYTES_MAX, QUEUED_COMMANDS_MAX, REPLY_BYTES_MAX, VALUE_BYTES_MAX, WATCHED_KEYS_MAX,
};
use crate::base::planted::{Bug, plant};
use crate::base::{Lsn, ShardId, Stamp};
use crate::exec::{LsnRequest, Mode, Outcome, RoleRequest, Writes, errors, expire_cycle, table};
use crate::record::key::{Meta, ValueType, meta_key};
use crate::record::{Record, RecordReader};
use crate::resp::{OwnedArgs, RequestLimits};

const NOTHING: Stamp = Stamp::COMMITTED;

/// The reply's stamp and whether records were pushed.
fn observed<S: TestStore>(world: &mut World<S>, line: &str) -> (Stamp, bool) {
    match world.run(1, &words(line)).1 {
        Outcome::Done { observed, wrote } => (observed, wrote),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn replies_wait_for_what_they_could_have_seen() {
    let mut world = World::new();
    assert_eq!(observed(&mut world, "GET a"), (NOTHING, false));
    assert_eq!(observed(&mut world, "SET a 1"), (Stamp(1), true));
    world.seal();
    // Values, counts and errors of another's uncommitted write.
    for line in
        ["GET a", "EXISTS a nope", "STRLEN a", "TTL a", "TYPE a", "MGET nope a", "SETNX a 2", "SET a 2 NX"]
    {
        assert_eq!(observed(&mut world, line), (Stamp(1), false), "{line}");
    }
    assert_eq!(observed(&mut world, "INCRBY a x"), (NOTHING, false), "an error of the request alone");
    assert_eq!(observed(&mut world, "APPEND a b"), (Stamp(2), true));
    world.seal();
    assert_eq!(
        observed(&mut world, "INCR a"),
        (Stamp(2), false),
        "not an integer, as of an uncommitted write"
    );
    assert_eq!(observed(&mut world, "SET a 1 IFEQ zzz"), (Stamp(2), false));
    assert_eq!(observed(&mut world, "RENAMENX a a"), (Stamp(2), false));
    world.commit();
    assert_eq!(observed(&mut world, "GET a"), (NOTHING, false));
    let deleted = world.stamp;
    assert_eq!(observed(&mut world, "DEL a"), (deleted, true));
    world.seal();
    // A nil after an uncommitted delete waits for it.
    for line in [
        "GET a",
        "EXISTS a",
        "DEL a",
        "TTL a",
        "RENAME a b",
        "PERSIST a",
        "SET a 1 XX",
        "GETDEL a",
        "EXPIRE a 1",
    ] {
        assert_eq!(observed(&mut world, line), (deleted, false), "{line}");
    }
}

#[test]
fn commands_over_whole_shards_wait_for_the_last_change_of_each() {
    let mut world = World::new();
    world.send(1, &words("MSET a 1 b 2 c 3 d 4 e 5"));
    world.commit();
    let stamp = world.stamp;
    world.send(1, &words("DEL a"));
    world.seal();
    for line in ["DBSIZE", "KEYS *", "KEYS nothing", "SCAN 0 COUNT 1000", "RANDOMKEY", "INFO keyspace"] {
        assert_eq!(observed(&mut world, line), (stamp, false), "{line}");
    }
    let flushed = world.stamp;
    assert_eq!(observed(&mut world, "FLUSHALL"), (flushed, true));
    world.seal();
    assert_eq!(observed(&mut world, "GET never"), (flushed, false), "a nil after an uncommitted flush");
    assert_eq!(observed(&mut world, "FLUSHALL"), (flushed, false), "nothing is logged for nothing");
    assert_eq!(observed(&mut world, "RANDOMKEY"), (flushed, false));
}

#[test]
fn exec_waits_for_all_of_it_and_its_nil_for_the_change() {
    let mut world = World::new();
    world.send(1, &words("SET a 1"));
    world.commit();
    world.send(1, &words("WATCH a"));
    let changed = world.stamp;
    world.send(2, &words("SET a 2"));
    world.seal();
    for line in ["MULTI", "GET zzz"] {
        assert_eq!(observed(&mut world, line), (NOTHING, false));
    }
    assert_eq!(observed(&mut world, "EXEC"), (changed, false));
    for line in ["MULTI", "GET zzz", "GET a"] {
        assert_eq!(observed(&mut world, line), (NOTHING, false));
    }
    assert_eq!(observed(&mut world, "EXEC"), (changed, false));
}

#[test]
fn a_key_found_expired_is_deleted_and_waited_for() {
    for line in ["GET t", "KEYS *", "SCAN 0", "EXISTS t", "MGET x t", "TTL t", "RANDOMKEY", "SET t 1 XX"] {
        let mut world = World::new();
        world.send(1, &words("SET t v PX 10"));
        world.commit();
        world.advance(20);
        let stamp = world.stamp;
        assert_eq!(observed(&mut world, line), (stamp, true), "{line}");
        let (record, last) = RecordReader::new(world.writer.bytes()).next().unwrap().unwrap();
        assert!(matches!(record, Record::Delete { .. }) && last, "{line}");
        assert_eq!(world.say(1, "DBSIZE"), ":0");
    }
}

#[test]
fn the_planted_bug_hides_a_key_without_a_record() {
    let _planted = plant(Bug::ExpiryByLocalClock);
    let mut world = World::new();
    world.say(1, "SET t v PX 10");
    world.commit();
    world.advance(20);
    assert_eq!(world.say(1, "GET t"), "nil");
    assert!(world.writer.is_empty());
}

#[test]
fn an_exec_with_watched_keys_speaks_of_data() {
    let mut world = World::new();
    world.say(1, "MULTI");
    world.say(1, "ECHO x");
    world.say(1, "EXEC");
    assert!(!world.sessions[&1].touched_data());
    world.say(1, "WATCH a");
    world.say(1, "MULTI");
    world.say(1, "ECHO x");
    world.say(1, "EXEC");
    assert!(world.sessions[&1].touched_data());
    world.say(1, "GET a");
    assert!(world.sessions[&1].touched_data());
}

#[test]
fn a_refusal_shows_nothing_of_the_data() {
    let mut world = World::new();
    world.say(1, "GET a");
    assert!(world.sessions[&1].touched_data());
    world.mode = Mode::Primary { writes: Writes::Refused(errors::NO_REPLICAS) };
    assert!(world.say(1, "SET a 1").starts_with("-NOREPLICAS"));
    assert!(!world.sessions[&1].touched_data(), "it need not wait for a lease that will not come");
    world.say(1, "GET a");
    assert!(world.sessions[&1].touched_data());
    world.say(1, "NOSUCH");
    assert!(!world.sessions[&1].touched_data());
}

#[test]
fn a_web_page_sends_no_commands() {
    let mut world = World::new();
    for first in ["POST / HTTP/1.1", "Host: 127.0.0.1", "host: x"] {
        let mut out = Vec::new();
        let outcome = world.run_once(1, &words(first), &mut out);
        assert!(matches!(outcome, Outcome::Close { wrote: false, .. }), "{outcome:?}");
        assert!(out.is_empty());
    }
}

#[test]
fn held_writes_come_again_and_reads_go_on() {
    let mut world = World::new();
    world.send(1, &words("MSET a 1 b 2"));
    world.send(1, &words("SET t v PX 10"));
    world.commit();
    world.mode = Mode::Primary { writes: Writes::Held };
    let mut out = Vec::new();
    assert_eq!(world.run_once(1, &words("SET a 2"), &mut out), Outcome::Held);
    assert_eq!(world.say(1, "GET a"), "\"1\"");
    // Only a record may hide an expired key.
    world.advance(20);
    assert_eq!(world.run_once(1, &words("MGET a t"), &mut out), Outcome::Held);
    let keys = loop {
        match world.run_once(1, &words("KEYS *"), &mut out) {
            Outcome::Again { wrote: false } => {}
            other => break other,
        }
    };
    assert_eq!(keys, Outcome::Held);
    // A transaction is held as a whole and comes again as a whole.
    assert_eq!(world.say(1, "MULTI"), "+OK");
    assert_eq!(world.say(1, "SET a 3"), "+QUEUED");
    assert_eq!(world.run_once(1, &words("EXEC"), &mut out), Outcome::Held);
    assert_eq!(world.run_once(1, &words("EXEC"), &mut out), Outcome::Held);
    assert!(out.is_empty());
    world.mode = Mode::Primary { writes: Writes::Open };
    assert_eq!(world.say(1, "EXEC"), "[+OK]");
    assert_eq!(world.say(1, "MGET a t"), "[\"3\", nil]");
}

#[test]
fn a_transaction_is_one_frame_or_nothing() {
    let mut world = World::new();
    let value = "x".repeat(PAYLOAD_MAX / 3);
    let set = |key: &str| OwnedArgs::of(["SET", key, value.as_str()]);
    world.send(1, &set("a"));
    world.commit();
    // Fits alone, not behind another transaction: the group is sealed first.
    let before = world.groups;
    for key in ["b", "c", "d"] {
        assert_eq!(show(&world.run(1, &set(key)).0), "+OK");
    }
    assert_eq!(world.groups, before + 1);
    world.seal();
    // Too big at all: refused, and nothing is left of it.
    world.send(1, &words("WATCH zzz"));
    world.send(1, &words("MULTI"));
    for key in ["e", "f", "g", "h"] {
        world.send(1, &set(key));
    }
    let (reply, outcome) = world.run(1, &words("EXEC"));
    assert_eq!(show(&reply), format!("-{}", errors::TRANSACTION_TOO_BIG));
    assert_eq!(outcome, Outcome::Done { observed: NOTHING, wrote: false }, "nobody seals an empty group");
    assert!(world.writer.is_empty() && world.state.watches.is_empty());
    assert_eq!(world.say(1, "EXISTS e f g h"), ":0");
    assert_eq!(world.say(1, "EXEC"), format!("-{}", errors::EXEC_WITHOUT_MULTI));
    let (reply, _) = world.run(1, &OwnedArgs::of(["MSET", "i", &value, "j", &value, "k", &value]));
    assert_eq!(show(&reply), format!("-{}", errors::TRANSACTION_TOO_BIG));
    assert_eq!(world.say(1, "EXISTS i j k"), ":0");
}

#[test]
fn keys_values_replies_and_queues_have_limits() {
    let mut world = World::new();
    world.careful = false;
    world.payload_max = 16 << 20;
    let long = "k".repeat(KEY_BYTES_MAX);
    assert_eq!(show(&world.run(1, &OwnedArgs::of(["SET", &long, "v"])).0), "+OK");
    let longer = "k".repeat(KEY_BYTES_MAX + 1);
    for request in [vec!["GET", &longer], vec!["MSET", "a", "1", &longer, "2"], vec!["DEL", "a", &longer]] {
        let (reply, _) = world.run(1, &OwnedArgs::of(request));
        assert_eq!(show(&reply), format!("-{}", errors::KEY_TOO_LONG));
    }
    assert_eq!(world.say(1, "EXISTS a"), ":0", "refused as a whole");
    assert_eq!(
        world.say(1, &format!("SETRANGE v {VALUE_BYTES_MAX} x")),
        format!("-{}", errors::VALUE_TOO_LONG)
    );
    assert_eq!(world.say(1, &format!("SETRANGE v {} x", VALUE_BYTES_MAX - 1)), format!(":{VALUE_BYTES_MAX}"));
    assert_eq!(world.say(1, "APPEND v y"), format!("-{}", errors::VALUE_TOO_LONG));
    assert_eq!(world.say(1, "STRLEN v"), format!(":{VALUE_BYTES_MAX}"));
    let many = vec!["v"; REPLY_BYTES_MAX / VALUE_BYTES_MAX + 1];
    let (reply, _) = world.run(1, &OwnedArgs::of(std::iter::once("MGET").chain(many)));
    assert_eq!(show(&reply), format!("-{}", errors::REPLY_TOO_LONG));
    world.send(1, &words("MULTI"));
    for _ in 0..QUEUED_COMMANDS_MAX {
        world.send(1, &words("PING"));
    }
    assert_eq!(world.say(1, "PING"), format!("-{}", errors::QUEUE_FULL));
    assert_eq!(world.say(1, "EXEC"), format!("-{}", errors::EXEC_ABORT));
    let keys: Vec<String> = (0..WATCHED_KEYS_MAX).map(|n| n.to_string()).collect();
    let watch = std::iter::once("WATCH").chain(keys.iter().map(String::as_str));
    assert_eq!(show(&world.run(1, &OwnedArgs::of(watch)).0), "+OK");
    assert_eq!(world.say(1, "WATCH more"), format!("-{}", errors::WATCHES_FULL));
}

#[test]
fn other_types_are_not_strings() {
    let mut world = World::new();
    let shard = ShardId::of_key(b"list", SHARDS);
    let (mut key, mut entry) = (Vec::new(), Vec::new());
    meta_key(b"list", &mut key);
    Meta { kind: ValueType::List, expires: None, body: b"" }.encode(&mut entry);
    world.store.shards().put(shard, &key, &entry, true, Stamp(1));
    world.stamp = Stamp(2);
    let wrong = format!("-{}", errors::WRONG_TYPE);
    for line in [
        "GET list",
        "APPEND list x",
        "STRLEN list",
        "GETRANGE list 0 1",
        "SETRANGE list 0 x",
        "INCR list",
        "INCRBYFLOAT list 1",
        "GETSET list x",
        "GETDEL list",
        "GETEX list",
        "SET list x GET",
        "SET list x IFEQ y",
    ] {
        let (reply, outcome) = world.run(1, &words(line));
        assert_eq!(show(&reply), wrong, "{line}");
        assert_eq!(outcome, Outcome::Done { observed: Stamp(1), wrote: false }, "{line}");
    }
    assert_eq!(world.say(1, "MGET list"), "[nil]");
    assert_eq!(world.say(1, "TYPE list"), "+list");
    assert_eq!(world.say(1, "SCAN 0 TYPE list"), "[\"0\", [\"list\"]]");
    assert_eq!(world.say(1, "EXPIRE list 100"), ":1");
    assert_eq!(world.say(1, "TYPE list"), "+list");
    assert_eq!(world.say(1, "SET list x"), "+OK");
    assert_eq!(world.say(1, "GET list"), "\"x\"");
}

#[test]
fn a_damaged_entry_is_an_error_and_no_panic() {
    let mut world = World::new();
    let shard = ShardId::of_key(b"bad", SHARDS);
    let mut key = Vec::new();
    meta_key(b"bad", &mut key);
    world.store.shards().put(shard, &key, &[77, 1, 2], true, Stamp(1));
    for line in
        ["GET bad", "INCR bad", "TTL bad", "MGET x bad", "KEYS *", "SCAN 0", "EXPIRE bad 1", "DEL bad"]
    {
        assert_eq!(world.say(1, line), format!("-{}", errors::CORRUPT_ENTRY), "{line}");
    }
    world.engine(|engine| expire_cycle(engine, 100));
}

#[test]
fn keys_gives_way_and_still_finds_everything() {
    let mut world = World::new();
    world.careful = false;
    for n in 0..SHARDS as usize * 5000 {
        world.send(1, &OwnedArgs::of(["SET", format!("key:{n}").as_str(), "v"]));
        if n % 500 == 0 {
            world.commit();
        }
    }
    world.send(1, &words("SET t v PX 10"));
    world.commit();
    world.advance(20);
    let (reply, outcome) = world.run(1, &words("KEYS key:*"));
    assert!(world.slices >= 4);
    let shown = show(&reply);
    assert_eq!(shown.matches("\"key:").count(), SHARDS as usize * 5000);
    assert!(
        matches!(outcome, Outcome::Done { observed, .. } if observed != NOTHING),
        "it deleted the expired key"
    );
    // Inside EXEC it is one moment.
    let slices = world.slices;
    for line in ["MULTI", "SET fresh 1", "KEYS fr*", "EXEC"] {
        world.send(1, &words(line));
    }
    assert_eq!(world.slices, slices);
    assert_eq!(world.say(1, "KEYS fr*"), "[\"fresh\"]");
}

#[test]
fn scan_returns_every_key_that_is_there_all_the_time() {
    let mut world = World::over(DiskStore::new(SHARDS));
    world.careful = false;
    let mut rng = crate::base::Prng::new(7);
    for n in 0..400 {
        world.send(1, &OwnedArgs::of(["SET", format!("stays:{n}").as_str(), "v"]));
    }
    world.commit();
    let mut found = std::collections::BTreeSet::new();
    let (mut cursor, mut calls) = ("0".to_string(), 0);
    loop {
        let (reply, _) = world.run(1, &words(&format!("SCAN {cursor} COUNT 7 MATCH stays:*")));
        let value = crate::resp::decode(&reply).unwrap();
        let crate::resp::Value::Array(parts) = &value else { panic!("no pair") };
        let crate::resp::Value::Array(keys) = &parts[1] else { panic!("no keys") };
        found.extend(keys.iter().map(|key| key.text().unwrap().to_vec()));
        cursor = String::from_utf8(parts[0].text().unwrap().to_vec()).unwrap();
        calls += 1;
        if cursor == "0" {
            break;
        }
        // Others come and go; now and then the node forgets its positions.
        for _ in 0..5 {
            let n = rng.below(300);
            let line = if rng.chance(0.5) { format!("SET comes:{n} v") } else { format!("DEL comes:{n}") };
            world.send(2, &words(&line));
        }
        if calls % 40 == 0 {
            world.state.positions = Default::default();
            world.commit();
        }
        assert!(calls < 2000, "the iteration ends");
    }
    assert_eq!(found.len(), 400);
    assert!(world.misses > 0, "the tree was read from its pages");
}

#[test]
fn expired_keys_are_collected_promptly_or_in_time() {
    let mut world = World::new();
    for n in 0..50 {
        world.send(1, &words(&format!("SET soon:{n} v PX {}", 10 + n)));
        world.send(1, &words(&format!("SET stays:{n} v")));
    }
    world.commit();
    assert_eq!(world.engine(|engine| expire_cycle(engine, 20)).deleted, 0);
    world.advance(1000);
    let first = world.engine(|engine| expire_cycle(engine, 20));
    assert!(first.deleted >= 10 && first.more_due, "{first:?}");
    world.commit();
    // A node that has just been promoted remembers nothing: the walk finds them.
    world.state.due = Default::default();
    let mut deleted = first.deleted;
    for _ in 0..60 {
        deleted += world.engine(|engine| expire_cycle(engine, 10)).deleted;
        world.seal();
    }
    assert_eq!((deleted, world.say(1, "DBSIZE")), (50, ":50".to_string()));
    // Misses hold it up and lose nothing.
    world.send(1, &words("SET late v PX 10"));
    world.advance(20);
    world.store.misses = true;
    let missed = world.engine(|engine| expire_cycle(engine, 10));
    assert!(missed.deleted == 0 && missed.miss.is_some());
    world.store.bring(missed.miss.unwrap());
    assert_eq!(world.engine(|engine| expire_cycle(engine, 2)).deleted, 1);
    // A standby collects nothing.
    world.store.misses = false;
    world.mode = Mode::Standby { stale: false };
    assert_eq!(world.engine(|engine| expire_cycle(engine, 10)), Default::default());
}

#[test]
fn rolled_back_changes_and_applied_records_reach_the_watchers() {
    let mut world = World::new();
    world.send(1, &words("SET a 1"));
    world.commit();
    world.send(1, &words("WATCH a"));
    world.state.watches.change_all(Stamp(0));
    assert_eq!(world.say(1, "MULTI"), "+OK");
    assert_eq!(world.say(1, "EXEC"), "nil-array");
    // On a standby the records come from elsewhere.
    world.mode = Mode::Standby { stale: false };
    world.send(1, &words("WATCH a"));
    let mut key = Vec::new();
    meta_key(b"a", &mut key);
    let shard = ShardId::of_key(b"a", SHARDS);
    world.state.watches.note(&Record::Delete { shard, key: &key }, Stamp::COMMITTED);
    assert_eq!(world.say(1, "MULTI"), "+OK");
    assert_eq!(world.say(1, "EXEC"), "nil-array");
}

#[test]
fn a_connection_that_ends_is_forgotten() {
    let mut world = World::new();
    world.send(1, &words("WATCH a b c"));
    assert!(!world.state.watches.is_empty());
    assert!(matches!(world.run(1, &words("QUIT")).1, Outcome::Close { .. }));
    assert!(world.state.watches.is_empty());
}

#[test]
fn request_limits_follow_the_login() {
    let mut world = World::new();
    world.node.password = Some("secret".into());
    world.send(1, &words("PING"));
    assert_eq!(world.sessions[&1].limits(), &RequestLimits::UNAUTHENTICATED);
    world.send(1, &words("AUTH secret"));
    assert_eq!(world.sessions[&1].limits(), &RequestLimits::AUTHENTICATED);
}

#[test]
fn waits_name_the_connections_last_write() {
    let mut world = World::new();
    world.node.acked = 2;
    world.send(1, &words("SET a 1"));
    world.seal();
    world.send(2, &words("SET b 1"));
    let (reply, outcome) = world.run(1, &words("WAIT 2 100"));
    let Outcome::Wait(request) = outcome else { panic!("{outcome:?}") };
    assert_eq!(
        (request.stamp, request.replicas, request.timeout_ms, request.local),
        (Stamp(1), 2, 100, None)
    );
    assert_eq!(show(&reply), ":2");
}

#[test]
fn a_mute_holds_for_waits_and_is_used_up_by_them() {
    let mut world = World::new();
    for (mute, muted_behind) in [("SKIP", false), ("OFF", true)] {
        world.send(1, &words(&format!("CLIENT REPLY {mute}")));
        let (reply, outcome) = world.run(1, &words("WAIT 0 1"));
        assert!(matches!(outcome, Outcome::Wait(_)) && reply.is_empty(), "{mute}");
        let (reply, _) = world.run(1, &words("PING"));
        assert_eq!(reply.is_empty(), muted_behind, "{mute}");
    }
    // A request that cannot be read is the next command, too.
    world.send(1, &words("CLIENT REPLY ON"));
    world.send(1, &words("CLIENT REPLY SKIP"));
    let session = world.sessions.get_mut(&1).expect("it spoke");
    assert!(session.take_mute() && !session.take_mute());
}

#[test]
fn every_command_is_found_in_any_case() {
    let names: Vec<&str> = table::COMMANDS.iter().map(|spec| spec.name).collect();
    assert!(names.is_sorted(), "in order of the alphabet, each once");
    for (id, spec) in table::COMMANDS.iter().enumerate() {
        let upper = spec.name.to_ascii_uppercase();
        assert_eq!(table::find(upper.as_bytes()), Some(id as u8));
        assert_eq!(table::find(spec.name.as_bytes()), Some(id as u8));
        assert_eq!(table::find(format!("{upper}x").as_bytes()), None);
        let (write, read) = (spec.flags & table::flags::WRITE, spec.flags & table::flags::READ);
        assert!(write == 0 || read == 0);
        assert!((write | read == 0) || spec.flags & table::flags::STALE == 0, "{} is about data", spec.name);
        assert!(spec.arity != 0 && !spec.summary.is_empty());
    }
    assert_eq!(table::find(b""), None);
    assert_eq!(table::find(&[b'a'; 1000]), None);
}

#[test]
fn positions_and_role_commands_are_handed_to_the_node() {
    let mut world = World::new();
    assert_eq!(world.run(1, &words("BATON.LSN")).1, Outcome::Lsn(LsnRequest::Own { stamp: NOTHING }));
    world.send(1, &words("SET a 1"));
    let (reply, outcome) = world.run(1, &words("BATON.LSN"));
    assert_eq!(outcome, Outcome::Lsn(LsnRequest::Own { stamp: Stamp(1) }));
    assert!(reply.is_empty(), "the node answers when the position is known");
    let applied = LsnRequest::Applied { lsn: Lsn((1 << 32) + 16), timeout_ms: 50 };
    assert_eq!(world.run(1, &words("BATON.WAITLSN 1/10 50")).1, Outcome::Lsn(applied));
    let role = |request| Outcome::Role(request);
    assert_eq!(world.run(1, &words("REPLICAOF no ONE")).1, role(RoleRequest::Promote));
    assert_eq!(world.run(1, &words("FAILOVER ABORT")).1, role(RoleRequest::Abort));
    let to = Some(("127.0.0.1".to_string(), 7001));
    let failover = RoleRequest::Failover { to, timeout_ms: 5 };
    assert_eq!(world.run(1, &words("FAILOVER TIMEOUT 5 TO 127.0.0.1 7001")).1, role(failover));
}

#[test]
fn a_ping_speaks_for_no_data_and_a_transaction_with_data_does() {
    let mut world = World::new();
    world.send(1, &words("PING"));
    assert!(!world.sessions[&1].touched_data());
    for line in ["MULTI", "PING", "GET a", "EXEC"] {
        world.send(1, &words(line));
    }
    assert!(world.sessions[&1].touched_data(), "the PING in it does not hide the GET");
}
