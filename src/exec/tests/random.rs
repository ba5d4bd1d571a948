//! Random sequences of commands against the plainest possible database: a map from keys to values with an expiry.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::disk::DiskStore;
use super::world::{SHARDS, TestStore, World, show};
use crate::base::Stamp;
use crate::exec::{Outcome, expire_cycle};
use crate::record::{Record, RecordReader};
use crate::resp::OwnedArgs;

/// A command of the sequence, or something that happens around it.
#[derive(Clone, Debug)]
enum Act {
    Say(Vec<String>),
    /// All of them in one EXEC.
    Together(Vec<Vec<String>>),
    Advance(u64),
    Seal,
    Commit,
    Collect,
    Walk(u8),
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "d", "", "k\u{1}", "k\u{0}\u{1}", "k\u{0}"])
        .prop_map(str::to_string)
}

fn text() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "1", "41", "-7", "x", "1.5", "9223372036854775807", "long long value"])
        .prop_map(str::to_string)
}

fn command() -> impl Strategy<Value = Vec<String>> {
    let one = |name: &'static str| key().prop_map(move |k| vec![name.to_string(), k]);
    let two = |name: &'static str| (key(), text()).prop_map(move |(k, v)| vec![name.to_string(), k, v]);
    let keys = |name: &'static str| (key(), key()).prop_map(move |(a, b)| vec![name.to_string(), a, b]);
    let option = prop::sample::select(vec!["", "NX", "XX", "GET", "KEEPTTL", "PX 50", "PX 5000", "IFEQ 1"]);
    let set = (key(), text(), option).prop_map(|(k, v, option)| {
        let mut words = vec!["SET".to_string(), k, v];
        words.extend(option.split(' ').filter(|w| !w.is_empty()).map(str::to_string));
        words
    });
    let pexpire = (key(), -10i64..200).prop_map(|(k, ms)| vec!["PEXPIRE".to_string(), k, ms.to_string()]);
    let mset = (key(), text(), key(), text()).prop_map(|(a, v, b, w)| vec!["MSET".to_string(), a, v, b, w]);
    prop_oneof![
        6 => set,
        4 => one("GET"),
        2 => two("APPEND"),
        2 => one("INCR"),
        2 => one("DEL"),
        1 => one("GETDEL"),
        2 => two("SETNX"),
        1 => one("STRLEN"),
        1 => one("EXISTS"),
        2 => pexpire,
        1 => one("PERSIST"),
        2 => one("PTTL"),
        2 => keys("RENAME"),
        1 => keys("RENAMENX"),
        2 => keys("MGET"),
        2 => mset,
        1 => Just(vec!["KEYS".to_string(), "*".to_string()]),
        1 => Just(vec!["FLUSHALL".to_string()]),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        20 => command().prop_map(Act::Say),
        4 => prop::collection::vec(command(), 1..5).prop_map(Act::Together),
        3 => (1u64..100).prop_map(Act::Advance),
        2 => Just(Act::Seal),
        2 => Just(Act::Commit),
        1 => Just(Act::Collect),
        1 => (1u8..5).prop_map(Act::Walk),
    ]
}

/// The database to compare with.
#[derive(Default)]
struct Plain {
    keys: BTreeMap<String, (String, Option<u64>)>,
    now: u64,
}

impl Plain {
    fn collect(&mut self) {
        self.keys.retain(|_, (_, at)| at.is_none_or(|at| at > self.now));
    }

    /// The reply to `words`, as scripts write it.
    fn say(&mut self, words: &[String]) -> String {
        self.collect();
        let now = self.now;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let bulk = |text: &str| format!("{:?}", text);
        let value = |entry: Option<&(String, Option<u64>)>| entry.map_or("nil".into(), |(v, _)| bulk(v));
        match words.as_slice() {
            ["GET", k] => value(self.keys.get(*k)),
            ["MGET", a, b] => format!("[{}, {}]", value(self.keys.get(*a)), value(self.keys.get(*b))),
            ["SET", k, v, options @ ..] => {
                let old = self.keys.get(*k).cloned();
                let fits = match options {
                    ["NX"] => old.is_none(),
                    ["XX"] => old.is_some(),
                    ["IFEQ", wanted] => old.as_ref().is_some_and(|(v, _)| v == wanted),
                    _ => true,
                };
                let expires = match options {
                    ["KEEPTTL"] => old.as_ref().and_then(|(_, at)| *at),
                    ["PX", ms] => Some(now + ms.parse::<u64>().unwrap()),
                    _ => None,
                };
                if fits {
                    self.keys.insert(k.to_string(), (v.to_string(), expires));
                }
                match (options, fits) {
                    (["GET"], _) => value(old.as_ref()),
                    (_, true) => "+OK".into(),
                    (_, false) => "nil".into(),
                }
            }
            ["MSET", a, v, b, w] => {
                self.keys.insert(a.to_string(), (v.to_string(), None));
                self.keys.insert(b.to_string(), (w.to_string(), None));
                "+OK".into()
            }
            ["SETNX", k, v] => {
                let free = !self.keys.contains_key(*k);
                if free {
                    self.keys.insert(k.to_string(), (v.to_string(), None));
                }
                format!(":{}", i32::from(free))
            }
            ["APPEND", k, v] => {
                let entry = self.keys.entry(k.to_string()).or_default();
                entry.0.push_str(v);
                format!(":{}", entry.0.len())
            }
            ["INCR", k] => {
                let old = self.keys.get(*k).map_or("0", |(v, _)| v.as_str());
                match old.parse::<i64>() {
                    Err(_) => "-ERR value is not an integer or out of range".into(),
                    Ok(i64::MAX) => "-ERR increment or decrement would overflow".into(),
                    Ok(n) => {
                        self.keys.entry(k.to_string()).or_default().0 = (n + 1).to_string();
                        format!(":{}", n + 1)
                    }
                }
            }
            ["DEL", k] => format!(":{}", i32::from(self.keys.remove(*k).is_some())),
            ["GETDEL", k] => value(self.keys.remove(*k).as_ref()),
            ["STRLEN", k] => format!(":{}", self.keys.get(*k).map_or(0, |(v, _)| v.len())),
            ["EXISTS", k] => format!(":{}", i32::from(self.keys.contains_key(*k))),
            ["PEXPIRE", k, ms] => {
                let ms: i64 = ms.parse().unwrap();
                match self.keys.get_mut(*k) {
                    None => ":0".into(),
                    Some(_) if ms <= 0 => {
                        self.keys.remove(*k);
                        ":1".into()
                    }
                    Some(entry) => {
                        entry.1 = Some(now + ms as u64);
                        ":1".into()
                    }
                }
            }
            ["PERSIST", k] => match self.keys.get_mut(*k) {
                Some((_, at)) if at.is_some() => {
                    *at = None;
                    ":1".into()
                }
                _ => ":0".into(),
            },
            ["PTTL", k] => match self.keys.get(*k) {
                None => ":-2".into(),
                Some((_, None)) => ":-1".into(),
                Some((_, Some(at))) => format!(":{}", at - now),
            },
            ["RENAME" | "RENAMENX", a, _] if !self.keys.contains_key(*a) => "-ERR no such key".into(),
            ["RENAME", a, b] => {
                let entry = self.keys.remove(*a).unwrap();
                self.keys.insert(b.to_string(), entry);
                "+OK".into()
            }
            ["RENAMENX", a, b] => {
                let free = !self.keys.contains_key(*b);
                if free {
                    let entry = self.keys.remove(*a).unwrap();
                    self.keys.insert(b.to_string(), entry);
                }
                format!(":{}", i32::from(free))
            }
            ["KEYS", "*"] => {
                let mut keys: Vec<String> = self.keys.keys().map(|k| shown_key(k)).collect();
                keys.sort();
                format!("[{}]", keys.join(", "))
            }
            ["FLUSHALL"] => {
                self.keys.clear();
                "+OK".into()
            }
            other => unreachable!("{other:?}"),
        }
    }
}

fn shown_key(key: &str) -> String {
    show(&{
        let mut out = Vec::new();
        crate::resp::Reply::new(&mut out, Default::default()).bulk(key.as_bytes());
        out
    })
}

/// KEYS has no order of its own.
fn in_order(command: &str, reply: String) -> String {
    if command != "KEYS" || !reply.starts_with('[') {
        return reply;
    }
    let inner = reply.trim_start_matches('[').trim_end_matches(']');
    let mut keys: Vec<&str> = if inner.is_empty() { Vec::new() } else { inner.split(", ").collect() };
    keys.sort_unstable();
    format!("[{}]", keys.join(", "))
}

fn play<S: TestStore>(world: &mut World<S>, acts: &[Act]) {
    let mut plain = Plain { now: world.now.0, ..Plain::default() };
    let say = |world: &mut World<S>, words: &[String]| {
        let (reply, outcome) = world.run(1, &OwnedArgs::of(words));
        assert!(matches!(outcome, Outcome::Done { .. }));
        in_order(&words[0], show(&reply))
    };
    for act in acts {
        match act {
            Act::Say(words) => assert_eq!(say(world, words), plain.say(words), "{words:?}"),
            Act::Together(commands) => {
                say(world, &["MULTI".to_string()]);
                for words in commands {
                    assert_eq!(say(world, words), "+QUEUED");
                }
                let (reply, _) = world.run(1, &OwnedArgs::of(["EXEC"]));
                let crate::resp::Value::Array(replies) = crate::resp::decode(&reply).unwrap() else {
                    panic!("{}", show(&reply))
                };
                for (words, reply) in commands.iter().zip(&replies) {
                    let got = in_order(&words[0], super::world::show_value(reply));
                    assert_eq!(got, plain.say(words), "{words:?} in {commands:?}");
                }
            }
            Act::Advance(ms) => {
                world.advance(*ms);
                plain.now += ms;
            }
            Act::Seal => world.seal(),
            Act::Commit => world.commit(),
            Act::Collect => {
                world.engine(|engine| expire_cycle(engine, 5));
            }
            Act::Walk(count) => {
                plain.collect();
                let mut found = scan_all(world, *count);
                found.sort();
                found.dedup();
                let wanted: Vec<Vec<u8>> = plain.keys.keys().map(|k| k.as_bytes().to_vec()).collect();
                assert_eq!(found, wanted);
            }
        }
    }
    let counted = say(world, &["DBSIZE".to_string()]);
    say(world, &["KEYS".to_string(), "*".to_string()]);
    plain.collect();
    let exact = say(world, &["DBSIZE".to_string()]);
    assert!(counted.len() >= exact.len());
    assert_eq!(exact, format!(":{}", plain.keys.len()));
    world.seal();
}

fn scan_all<S: TestStore>(world: &mut World<S>, count: u8) -> Vec<Vec<u8>> {
    let mut cursor = b"0".to_vec();
    let mut found = Vec::new();
    loop {
        let args = OwnedArgs::of([b"SCAN", cursor.as_slice(), b"COUNT", count.to_string().as_bytes()]);
        let (reply, _) = world.run(1, &args);
        let crate::resp::Value::Array(parts) = crate::resp::decode(&reply).unwrap() else {
            panic!("no pair")
        };
        let (next, keys) = (parts[0].text().unwrap(), &parts[1]);
        let crate::resp::Value::Array(keys) = keys else { panic!("no keys") };
        found.extend(keys.iter().map(|key| key.text().unwrap().to_vec()));
        if next == b"0" {
            return found;
        }
        cursor = next.to_vec();
    }
}

/// What a standby makes of the records.
fn redo(log: &[u8]) -> Vec<(usize, Vec<u8>, Vec<u8>)> {
    let mut entries = BTreeMap::new();
    for record in RecordReader::new(log) {
        match record.unwrap().0 {
            Record::Put { shard, key, value, created } => {
                let old = entries.insert((shard.index(), key.to_vec()), value.to_vec());
                assert_eq!(created, old.is_none());
            }
            Record::Delete { shard, key } => {
                assert!(entries.remove(&(shard.index(), key.to_vec())).is_some(), "deletes name what exists");
            }
            Record::ClearShard { shard } => entries.retain(|(own, _), _| *own != shard.index()),
            other => panic!("{other:?}"),
        }
    }
    entries.into_iter().map(|((shard, key), value)| (shard, key, value)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn commands_agree_with_a_plain_map(acts in prop::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        play(&mut world, &acts);
        prop_assert_eq!(redo(&world.log), world.store.contents(), "records say what the store holds");
    }

    #[test]
    fn misses_change_nothing(acts in prop::collection::vec(act(), 1..40)) {
        let mut world = World::new();
        world.store.misses = true;
        play(&mut world, &acts);
        prop_assert_eq!(redo(&world.log), world.store.contents());
    }

    #[test]
    fn a_demotion_takes_back_all_that_was_not_committed(
        before in prop::collection::vec(command(), 0..15),
        after in prop::collection::vec(command(), 1..25),
    ) {
        let mut world = World::over(DiskStore::new(SHARDS));
        before.iter().for_each(|words| world.send(1, &OwnedArgs::of(words)));
        world.commit();
        let (committed, picture) = (Stamp(world.stamp.0 - 1), world.store.picture());
        for words in &after {
            world.send(1, &OwnedArgs::of(words));
            world.seal();
        }
        world.store.release();
        world.store.rollback_above(committed);
        prop_assert_eq!(world.store.picture(), picture);
    }

    #[test]
    fn the_real_store_under_a_tiny_cache_agrees_too(acts in prop::collection::vec(act(), 1..30)) {
        play(&mut World::over(DiskStore::new(SHARDS)), &acts);
    }
}
