//! Whole configurations: what is accepted, what is refused, and how it is said.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::base::NodeId;

fn read(text: &str) -> Result<Config, Mistakes> {
    parse(text, Path::new("/data/1"))
}

/// The text must be refused with exactly one mistake, which stands at `line` and says `part`.
fn refused(text: &str, line: usize, part: &str) {
    match read(text) {
        Ok(_) => panic!("accepted, although: {part}"),
        Err(mistakes) => {
            assert_eq!(mistakes.0.len(), 1, "{mistakes}");
            let mistake = &mistakes.0[0];
            assert_eq!(mistake.line, line, "{mistake}");
            assert!(mistake.to_string().contains(part), "{mistake}");
            assert!(!mistake.hint.is_empty(), "every mistake says what to do: {mistake}");
        }
    }
}

const TRIO: &str = r#"
cluster = "orders"
node = 2
client_listen = "127.0.0.1:7002"
peer_listen = "127.0.0.1:8002"
peer_secret = "0123456789abcdef"
[[member]]
node = 3
peer = "127.0.0.1:8003"
host = "c"
[[member]]
node = 1
peer = "127.0.0.1:8001"
client = "127.0.0.1:7001"
[[member]]
node = 2
peer = "127.0.0.1:8002"
priority = 7
nofailover = true
"#;

fn trio_with(line: &str) -> String {
    format!("{line}\n{}", TRIO.trim_start())
}

#[test]
fn two_lines_are_a_whole_configuration() {
    let config = read("cluster = \"a\"\nnode = 1\n").unwrap();
    assert_eq!(config.data, Path::new("/data/1"));
    assert!(config.client_listen.ip().is_loopback() && config.peer_listen.ip().is_loopback());
    assert_eq!(config.http_listen, None);
    assert_eq!(config.sync.to_string(), "ANY 0 (1)");
    assert_eq!((config.commit, config.reads), (CommitLevel::On, Reads::Linearizable));
    assert_eq!(config.degrade, Degrade::Never);
    assert_eq!(config.commit_timeout, Duration::from_secs(10));
    assert_eq!(config.me().peer, config.peer_listen);
    assert_eq!(config.peers().count(), 0);
}

#[test]
fn members_are_sorted_and_seed_the_policy() {
    let config = read(TRIO).unwrap();
    assert_eq!(config.members.iter().map(|m| m.node.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(config.sync.to_string(), "ANY 1 (1, 2, 3)");
    assert_eq!(config.member(NodeId(3)).unwrap().host, "c");
    assert_eq!(config.member(NodeId(1)).unwrap().client, "127.0.0.1:7001".parse::<SocketAddr>().ok());
    assert!(config.me().nofailover && config.me().priority == 7);
    assert_eq!(config.peers().map(|m| m.node.0).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn every_value_is_read_as_written() {
    let config = read(&trio_with(
        "data = \"../d\"\ncores = 1\nmemory = \"2GiB\"\nsync = \"FIRST 2 (3, 1, 2)\"\ncommit = \"remote_receive\"\n\
         commit_timeout = \"250ms\"\nreads = \"local\"\nmax_clients = 5\nlog_retention = \"1GiB\"\nshards = 8\n\
         segment_bytes = \"1MiB\"\nstaleness_bound = \"3s\"\nwal_sync = \"dsync\"\nframes_in_flight = 4\n\
         scrub_rate = \"0B\"\nscrub_every = \"2m\"\nlog_level = \"debug\"\nlog_format = \"json\"\nclient_password = \"p\"\nhttp_listen = \"[::1]:9\"\n\
         degrade = \"never\"\nstore = \"none\"",
    ))
    .unwrap();
    assert_eq!(config.data, Path::new("/data/1/../d"));
    assert_eq!((config.cores, config.memory), (Some(1), 2 << 30));
    assert_eq!((config.sync.kind, config.sync.k), (SyncKind::First, 2));
    assert_eq!(config.commit, CommitLevel::RemoteWrite);
    assert_eq!((config.reads, config.max_clients, config.shards), (Reads::Local, 5, 8));
    assert_eq!((config.log_retention, config.segment_bytes), (Some(1 << 30), 1 << 20));
    assert_eq!(config.staleness_bound, Some(Duration::from_secs(3)));
    assert_eq!((config.wal_sync, config.frames_in_flight), (WalSync::Dsync, Some(4)));
    assert_eq!((config.scrub_rate, config.scrub_every), (0, Duration::from_secs(120)));
    assert_eq!((config.log_level, config.log_format), (LogLevel::Debug, LogFormat::Json));
    assert_eq!(config.client_password.as_ref().unwrap().reveal(), "p");
    assert_eq!(config.http_listen.unwrap().port(), 9);
}

#[test]
fn secrets_never_show_themselves() {
    let config = read(&trio_with("client_password = \"hunter2\"")).unwrap();
    let shown = format!("{config:?}{:?}", config.describe());
    assert!(!shown.contains("hunter2") && !shown.contains("0123456789abcdef"), "{shown}");
}

#[test]
fn the_description_names_every_key_in_order() {
    let config = read(TRIO).unwrap();
    let described: Vec<&str> = config.describe().iter().map(|(key, _)| *key).collect();
    assert_eq!(described, KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
}

#[test]
fn missing_and_misshapen_keys_are_refused() {
    refused("node = 1\n", 0, "cluster: the key is missing");
    refused("cluster = \"a\"\n", 0, "node: the key is missing");
    refused("cluster = \"A b\"\nnode = 1\n", 1, "other characters");
    refused("cluster = \"a\"\nnode = 33\n", 2, "33 does not fit");
    refused("cluster = \"a\"\nnode = -1\n", 2, "-1 does not fit");
    refused("cluster = \"a\"\nnode = \"1\"\n", 2, "whole number");
    refused("cluster = \"a\"\nnode = 99999999999999999999\n", 2, "");
    refused("cluster = 5\nnode = 1\n", 1, "5 does not fit");
    refused("cluster = \"a\"\nnode = 1\nnod = 2\n", 3, "did you mean `node`?");
    refused("cluster = \"a\"\nnode = 1\nnode = 2\n", 3, "");
    refused("cluster = \"a\"\nnode = 1\nmember = 3\n", 3, "[[member]]");
    refused("cluster = \"a\"\nnode = 1\nmember = [3]\n", 3, "[[member]]");
    refused("cluster = \"a\"\nnode = 1\nthis is not toml\n", 3, "");
}

#[test]
fn values_out_of_range_are_refused_with_the_range() {
    let one = |line: &str| format!("cluster = \"a\"\nnode = 1\n{line}\n");
    refused(&one("memory = \"1MiB\""), 3, "from 64MiB to 1TiB");
    refused(&one("memory = 1024"), 3, "with its unit");
    refused(&one("commit_timeout = \"0s\""), 3, "from 1ms to 1h");
    refused(&one("commit_timeout = \"10\""), 3, "like \"10s\"");
    refused(&one("commit = \"always\""), 3, "\"remote_apply\"");
    refused(&one("reads = \"fast\""), 3, "\"linearizable\"");
    refused(&one("wal_sync = true"), 3, "\"fdatasync\"");
    refused(&one("segment_bytes = \"100KiB\""), 3, "power of two");
    refused(&one("log_retention = \"64MiB\""), 3, "from 128MiB");
    refused(&one("frames_in_flight = 17"), 3, "from 1 to 16");
    refused(&one("client_listen = \"localhost:7\""), 3, "names are not looked up");
    refused(&one("peer_secret = \"short\""), 3, "16 to 512 bytes");
    refused(&one("shards = 0"), 3, "from 1 to 256");
    refused(&one("cores = 65"), 3, "from 1 to 64");
    refused(&one("cores = 0"), 3, "from 1 to 64");
}

#[test]
fn cores_follow_the_machine_unless_it_is_shared() {
    let one = |line: &str| read(&format!("cluster = \"a\"\nnode = 1\n{line}\n")).unwrap();
    assert_eq!(one("").cores_on(4).0, 4);
    assert_eq!((one("").cores_on(1).0, one("").cores_on(200).0), (1, 8));
    assert_eq!(one("memory = \"64MiB\"").cores_on(8).0, 4);
    assert_eq!((one("cores = 3").cores_on(1).0, one("cores = 1").cores_on(64).0), (3, 1));
    let member = |node: u16, peer: &str| format!("[[member]]\nnode = {node}\npeer = \"{peer}\"\n");
    let shared = one(&(member(1, "127.0.0.1:8379") + &member(2, "127.0.0.2:8380")));
    assert_eq!(shared.cores_on(4), (1, "other members run on this machine".to_string()));
    let open = "peer_listen = \"10.0.0.1:8379\"\npeer_secret = \"0123456789abcdef\"\n".to_string();
    let apart = one(&(open + &member(1, "10.0.0.1:8379") + &member(2, "10.0.0.2:8379")));
    assert_eq!(apart.cores_on(4).0, 4);
}

#[test]
fn rules_between_keys_are_checked() {
    let one = |line: &str| format!("cluster = \"a\"\nnode = 1\n{line}\n");
    refused(&one("memory = \"64MiB\"\ncores = 5"), 4, "too many for 64MiB");
    refused(&one("degrade = \"after 30s\""), 3, "needs a control store");
    refused(&one("degrade = \"later\""), 3, "after 30s");
    refused(&one("store = \"dir:store\""), 3, "no control store");
    let folder = "store = \"dir:/run/baton-store\"\ndegrade = \"after 30s\"\n";
    let config = read(&one(folder)).unwrap();
    assert_eq!(config.store, crate::config::StoreChoice::Dir("/run/baton-store".into()));
    assert_eq!(config.degrade, Degrade::After(Duration::from_secs(30)));
    let open = "peer_listen = \"10.0.0.1:8379\"\npeer_secret = \"0123456789abcdef\"\n";
    let member = |node: u16, peer: &str| format!("[[member]]\nnode = {node}\npeer = \"{peer}\"\n");
    let apart = folder.to_string() + open + &member(1, "10.0.0.1:8379") + &member(2, "10.0.0.2:8379");
    refused(&one(&apart), 3, "several machines");
    refused(&one("store = \"etcd:http://127.0.0.1:2379\""), 3, "no control store");
    refused(&one("peer_listen = \"0.0.0.0:8000\""), 3, "no peer_secret is set");
    refused(&one("client_listen = \"10.1.2.3:8000\""), 3, "no peer_secret is set");
    refused(&one("http_listen = \"[::]:8000\""), 3, "no peer_secret is set");
    refused(&one("client_listen = \"127.0.0.1:8379\""), 3, "share one port");
    refused(&one("http_listen = \"127.0.0.1:8379\""), 3, "taken by another listener");
    refused(&one("sync = \"ANY 1 (1)\""), 3, "needs at least 2 voters");
    refused(&trio_with("sync = \"ANY 3 (1, 2, 3)\""), 1, "needs at least 4 voters");
    refused(&trio_with("sync = \"ANY 1 (1, 9)\""), 1, "voter 9 is not a member");
    assert!(read(&trio_with("sync = \"ANY 2 (*)\"")).is_ok());
}

#[test]
fn members_that_contradict_each_other_are_refused() {
    refused(&format!("{TRIO}[[member]]\nnode = 1\npeer = \"127.0.0.1:9\"\n"), 20, "node 1 is a member twice");
    refused(
        &format!("{TRIO}[[member]]\nnode = 4\npeer = \"127.0.0.1:8001\"\n"),
        20,
        "share the peer address",
    );
    refused(&format!("{TRIO}[[member]]\nnode = 4\n"), 20, "peer: the key is missing");
    refused(&format!("{TRIO}[[member]]\npeer = \"127.0.0.1:9\"\n"), 20, "node: the key is missing");
    refused(&TRIO.replace("node = 2\nclient", "node = 5\nclient"), 3, "not among the members");
    refused(&TRIO.replace("127.0.0.1:8003", "10.0.0.3:8003"), 5, "it is loopback, but member 3");
    refused(&TRIO.replace("host = \"c\"", "upstream = 9"), 7, "upstream 9 is not a member");
    refused(&TRIO.replace("host = \"c\"", "upstream = 3"), 7, "stream from itself");
    let cascade = read(&TRIO.replace("host = \"c\"", "upstream = 1")).unwrap();
    assert_eq!(cascade.sync.to_string(), "ANY 1 (1, 2)", "a cascaded standby does not vote");
    let mut many = String::from("cluster = \"a\"\nnode = 1\npeer_secret = \"0123456789abcdef\"\n");
    for node in 1..=10 {
        many += &format!("[[member]]\nnode = {node}\npeer = \"127.0.0.1:{}\"\n", 9000 + node);
    }
    refused(&many, 31, "9 members stream from the primary, 8 may");
    let below = |from: u16| {
        let mut text = many.lines().take(3 * 4 + 3).collect::<Vec<_>>().join("\n") + "\n";
        for node in 5..=13 {
            text += &format!(
                "[[member]]\nnode = {node}\npeer = \"127.0.0.1:{}\"\nupstream = {from}\n",
                9000 + node
            );
        }
        text
    };
    refused(&below(2), 7, "9 members stream from member 2, 8 may");
    // A circle, with a tail that leads into it.
    let mut ring = many.lines().take(3 * 2 + 3).collect::<Vec<_>>().join("\n") + "\n";
    for (node, upstream) in [(3, 4), (4, 5), (5, 3), (6, 5)] {
        ring += &format!(
            "[[member]]\nnode = {node}\npeer = \"127.0.0.1:{}\"\nupstream = {upstream}\n",
            9000 + node
        );
    }
    let mistakes = read(&ring).unwrap_err();
    let lines: Vec<usize> = mistakes.0.iter().map(|mistake| mistake.line).collect();
    assert_eq!(lines, [10, 14, 18], "everybody in the circle, not who hangs from it: {mistakes}");
    assert!(mistakes.0.iter().all(|mistake| mistake.to_string().contains("would stream from itself")));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let mistakes = read("cluster = \"\"\nnode = 99\ncommit = \"x\"\nsink = 1\n").unwrap_err();
    assert_eq!(mistakes.0.iter().map(|m| m.line).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

proptest! {
    #[test]
    fn any_text_is_safe(text in "\\PC{0,200}") {
        let _ = read(&text);
    }

    /// Lines made of the right keys and odd values reach every checker.
    #[test]
    fn any_mixture_of_known_keys_is_safe(
        lines in proptest::collection::vec((0usize..40, 0usize..14, "[a-z0-9 .,:()*-]{0,12}"), 0..14)
    ) {
        let names: Vec<&str> = KEYS.iter().chain(MEMBER_KEYS).map(|key| key.name).collect();
        let mut text = String::from("cluster = \"a\"\nnode = 1\n");
        for (key, shape, noise) in lines {
            let name = names.get(key).copied().unwrap_or("[[member]]");
            let value = match shape {
                0 => "1".to_string(),
                1 => "-1".into(),
                2 => i64::MAX.to_string(),
                3 => "1.5".into(),
                4 => "true".into(),
                5 => "\"10s\"".into(),
                6 => "\"1GiB\"".into(),
                7 => "\"127.0.0.1:5\"".into(),
                8 => "\"ANY 1 (1, 2)\"".into(),
                9 => "[1, 2]".into(),
                10 => "{ node = 1 }".into(),
                11 => "1979-05-27".into(),
                _ => format!("\"{noise}\""),
            };
            text += &if name == "[[member]]" { format!("{name}\n") } else { format!("{name} = {value}\n") };
        }
        if let Ok(config) = read(&text) {
            prop_assert!(config.sync.k < config.sync.voters.len());
            prop_assert_eq!(config.me().node, config.node);
        }
    }
}
