//! Scripts: `> command` and the reply it must have. Those named `redis-*` hold the replies of a real redis-server;
//! those named `baton-*` say where we differ or go further.
//!
//! `2> ...` speaks as another client, `~> ...` sorts an array before it is compared. `@advance MS` moves the clock,
//! `@mode WORD` changes what the node may do, `@password WORD` sets one, `@seal` closes the group, `@commit` commits.
//! `{id}` in a reply stands for the connection's number.

use super::disk::DiskStore;
use super::world::{SHARDS, TestStore, World, show, show_value, words};
use crate::exec::{Mode, Outcome, Writes, errors};
use crate::resp::{Value, decode};

/// How the same script is run: the replies must not depend on it.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Plain,
    /// Every command in a group of its own.
    Sealed,
    /// Everything committed behind every command.
    Committed,
}

fn play<S: TestStore>(name: &str, text: &str, manner: Manner, mut world: World<S>) -> World<S> {
    let mut asked: Option<(String, String, usize)> = None;
    for (number, line) in text.lines().enumerate() {
        if let Some((command, reply, at)) = asked.take() {
            assert_eq!(reply, line, "{name}:{at}: {command}");
            continue;
        }
        match line.split_once("> ") {
            Some((who, command)) if who.trim_end_matches('~').chars().all(|c| c.is_ascii_digit()) => {
                let sorted = who.ends_with('~');
                let id = who.trim_end_matches('~').parse().unwrap_or(1);
                let (reply, outcome) = world.run(id, &words(command));
                if let Outcome::Done { observed, .. } = outcome {
                    assert!(observed <= world.stamp);
                }
                let shown = if sorted { show_sorted(&reply) } else { show(&reply) };
                let shown = shown.replace(&format!("\"id\": :{id},"), "\"id\": {id},");
                let shown = shown.replace(&format!("\"id\", :{id},"), "\"id\", {id},");
                asked = Some((command.to_string(), shown, number + 1));
                match manner {
                    Manner::Sealed => world.seal(),
                    Manner::Committed => world.commit(),
                    Manner::Plain => {}
                }
            }
            _ => direct(&mut world, line),
        }
    }
    world
}

fn direct<S: TestStore>(world: &mut World<S>, line: &str) {
    let mut words = line.split(' ');
    match (words.next().unwrap_or(""), words.next()) {
        ("@advance", Some(ms)) => world.advance(ms.parse().unwrap()),
        ("@password", Some(word)) => world.node.password = Some(word.into()),
        ("@seal", None) => world.seal(),
        ("@commit", None) => world.commit(),
        ("@mode", Some(mode)) => {
            world.node.standby = matches!(mode, "standby" | "stale");
            world.mode = match mode {
                "primary" => Mode::Primary { writes: Writes::Open },
                "lonely" => Mode::Primary { writes: Writes::Refused(errors::NO_REPLICAS) },
                "standby" => Mode::Standby { stale: false },
                "stale" => Mode::Standby { stale: true },
                "loading" => Mode::Closed(errors::LOADING),
                other => panic!("unknown mode {other}"),
            };
        }
        (text, _) if text.is_empty() || text.starts_with('#') => {}
        _ => panic!("unknown directive {line}"),
    }
}

fn show_sorted(reply: &[u8]) -> String {
    match decode(reply).unwrap() {
        Value::Array(values) => {
            let mut shown: Vec<String> = values.iter().map(show_value).collect();
            shown.sort();
            format!("[{}]", shown.join(", "))
        }
        other => show_value(&other),
    }
}

macro_rules! scripts {
    ($($name:ident: $file:literal,)*) => {$(
        #[test]
        fn $name() {
            let text = include_str!(concat!("../testdata/", $file));
            for manner in [Manner::Plain, Manner::Sealed, Manner::Committed] {
                play($file, text, manner, World::new());
            }
            // Every look-up misses once.
            let mut world = World::new();
            world.store.misses = true;
            assert!(play($file, text, Manner::Plain, world).misses > 0);
            // The real store: everything in the deltas, then everything in the tree and nothing in the cache.
            play($file, text, Manner::Sealed, World::over(DiskStore::new(SHARDS)));
            play($file, text, Manner::Committed, World::over(DiskStore::new(SHARDS)));
        }
    )*};
}

scripts! {
    strings_answer_as_redis: "redis-strings.txt",
    numbers_answer_as_redis: "redis-numbers.txt",
    keys_answer_as_redis: "redis-keys.txt",
    expiry_answers_as_redis: "redis-expire.txt",
    transactions_answer_as_redis: "redis-multi.txt",
    connections_answer_as_redis: "redis-connection.txt",
    random_commands_answer_as_redis: "redis-random.txt",
    what_is_ours_answers_as_we_say: "baton-own.txt",
    modes_answer_as_we_say: "baton-modes.txt",
}
