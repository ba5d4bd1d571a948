//! The command line against real processes: what an operator types, what comes back, and with which exit code.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use baton::base::Digest;
use baton::load::{Answer, Client};
use baton::role::control::CONTROL_BYTES;
use baton::store::SLOT_BYTES;
use serde_json::Value;

const BATON: &str = env!("CARGO_BIN_EXE_baton");

/// A folder on the build's own disk: the system's temporary folder may lie in memory.
struct Lab {
    dir: PathBuf,
}

impl Lab {
    fn new(name: &str) -> Lab {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Lab { dir }
    }

    fn path(&self) -> &str {
        self.dir.to_str().expect("a plain path")
    }

    fn node(&self, node: u16) -> String {
        self.dir.join(node.to_string()).to_str().expect("a plain path").to_string()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = baton(&["sandbox", "down", "--dir", self.path(), "--purge"]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn baton(args: &[&str]) -> Output {
    Command::new(BATON).args(args).env_remove("BATON_DATA").output().expect("the command runs")
}

/// Runs with `--json`, expects this exit code, and gives the one JSON value that must stand on standard output.
fn json(args: &[&str], exit: i32) -> Value {
    let output = baton(&[args, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "baton {args:?}\n{text}\n{complaint}");
    assert_eq!(text.trim().lines().count(), 1, "one line of JSON: {text}");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn mistakes_are_said_before_anything_happens() {
    let lab = Lab::new("mistakes");
    std::fs::create_dir_all(&lab.dir).unwrap();
    let file = lab.dir.join("baton.toml");
    std::fs::write(&file, "cluster = \"a\"\nnoed = 1\nsync = \"ANY 9 (1)\"\n").unwrap();
    let file = file.to_str().unwrap();
    let output = baton(&["check-config", file]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("baton.toml:2: noed: there is no such key (did you mean `node`?)"), "{text}");
    assert!(text.contains("baton.toml:3: sync: "), "{text}");
    assert_eq!(json(&["run", "--config", file], 2)["ok"], false);
    assert_eq!(json(&["start", "--config", file], 2)["error"]["code"], "usage");
    assert_eq!(json(&["query"], 2)["error"]["code"], "usage", "no node is named");
    assert_eq!(json(&["check-config", "--keys"], 0)["keys"][0]["key"], "cluster");
}

#[test]
fn a_node_that_was_never_started_is_down() {
    let lab = Lab::new("down");
    let dir = lab.node(1);
    let made = json(&["init", "-D", &dir, "--cluster", "a", "--node", "1"], 0);
    assert_eq!(made["cluster_id"].as_str().unwrap().len(), 32);
    json(&["init", "-D", &dir], 1);
    json(&["init", "-D", &dir, "--cluster", "a", "--node", "2"], 2);
    let bare = json(&["run", "-D", lab.path()], 2)["error"]["message"].to_string();
    assert!(bare.contains("is the disk mounted?"), "{bare}");
    assert_eq!(json(&["status", "-D", &dir], 3)["role"], "Down");
    assert_eq!(json(&["query", "-D", &dir], 3)["error"]["code"], "down");
    assert_eq!(json(&["stop", "-D", &dir], 0)["stopped"], false);
    assert_eq!(json(&["inspect", "control", "-D", &dir], 0)["cluster_id"], made["cluster_id"]);
}

#[test]
fn a_restarted_node_keeps_its_role_and_its_data() {
    let lab = Lab::new("restart");
    let dir = lab.node(1);
    let ports = ["--client-listen", "127.0.0.1:16901", "--peer-listen", "127.0.0.1:16902"];
    json(&[&["init", "-D", &dir, "--cluster", "a", "--node", "1"][..], &ports[..]].concat(), 0);
    assert_eq!(json(&["start", "-D", &dir, "-M", "primary"], 0)["status"]["role"], "Primary");
    json(&["bench", "-D", &dir, "--clients", "2", "--seconds", "1", "--keys", "10"], 0);
    let before = json(&["wal", "keepers", "-D", &dir], 0)["end_lsn"].as_u64().unwrap();
    for mode in ["fast", "immediate"] {
        let again = json(&["restart", "-D", &dir, "-m", mode], 0);
        assert_eq!(
            (&again["started"], &again["status"]["role"]),
            (&true.into(), &"Primary".into()),
            "{again}"
        );
    }
    assert!(json(&["wal", "keepers", "-D", &dir], 0)["end_lsn"].as_u64().unwrap() > before);
    assert_eq!(json(&["stop", "-D", &dir], 0)["stopped"], true);
    assert_eq!(json(&["status", "-D", &dir], 3)["role"], "Down");
}

/// Sends one command to a node of a sandbox.
fn say(node: &Value, words: &[&[u8]]) -> Answer {
    let addr = node["client"].as_str().unwrap().parse().unwrap();
    let mut client = Client::connect(addr, None, Duration::from_secs(60)).unwrap();
    client.call(words).unwrap()
}

#[test]
fn without_its_voter_a_primary_refuses_writes_before_they_begin() {
    let lab = Lab::new("lonely");
    let up = ["sandbox", "up", "--dir", lab.path(), "--nodes", "2", "--commit-timeout", "300ms"];
    let status = json(&up, 0);
    let primary = &status["nodes"][0];
    assert_eq!(say(primary, &[b"SET", b"a", b"1"]), Answer::Text(b"OK".into()));
    json(&["sandbox", "kill", "2", "--dir", lab.path()], 0);
    let mut doubts = 0;
    let refusal = loop {
        match say(primary, &[b"SET", b"a", b"2"]) {
            // Until it is known that the voter stays away.
            Answer::Error(text) if text.starts_with(b"UNKNOWN") => doubts += 1,
            Answer::Error(text) => break String::from_utf8(text).unwrap(),
            other => panic!("{other:?}"),
        }
        assert!(doubts < 100);
    };
    assert!(refusal.starts_with("NOREPLICAS"), "{refusal}");
    let shown = json(&["sandbox", "status", "--dir", lab.path()], 0);
    assert_ne!(shown["cluster_state"], "Normal");
    assert_eq!(shown["nodes"][1]["client"], status["nodes"][1]["client"], "also of a node that is down");
}

#[test]
fn a_demo_that_is_kept_can_be_used() {
    let lab = Lab::new("kept");
    let show = json(&["demo", "--dir", lab.path(), "--keep", "--steady", "500ms", "--power-cuts", "3"], 0);
    assert_eq!((&show["holds"], &show["dir"]), (&true.into(), &lab.path().into()));
    let load = &show["acts"].as_array().unwrap().iter().find(|act| act["name"] == "steady").unwrap()["load"];
    assert!(load["throughput"].as_f64().unwrap() > 1.0, "{load}");
    assert!(load["latency_us"]["p99"].as_u64().unwrap() > 0 && load["lag"]["samples"].is_u64(), "{load}");
    let fenced = show["acts"].as_array().unwrap().iter().filter(|act| act["name"] == "rejoin");
    assert_eq!(fenced.filter(|act| act["what"].as_str().unwrap().contains("is fenced (")).count(), 2);
    assert_eq!(json(&["sandbox", "status", "--dir", lab.path()], 0)["cluster_state"], "Normal");
}

#[test]
fn a_sandbox_lives_fails_over_and_goes_away() {
    let lab = Lab::new("sandbox");
    let up = ["sandbox", "up", "--dir", lab.path(), "--nodes", "3"];
    let status = json(&up, 0);
    assert_eq!(status["cluster_state"], "Normal");
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(status["nodes"][0]["role"], "Primary");
    assert_eq!(json(&up, 0)["cluster_id"], status["cluster_id"], "bringing up twice changes nothing");
    json(&["sandbox", "up", "--dir", lab.path(), "--nodes", "2"], 4);
    assert_eq!(json(&["start", "-D", &lab.node(1)], 0)["already_running"], true);

    let bench = ["bench", "-D", &lab.node(1), "--clients", "4", "--seconds", "1", "--keys", "100"];
    let report = json(&bench, 0);
    assert!(report["ok"].as_u64().unwrap() > 100, "{report}");
    assert_eq!(report["errors"], serde_json::json!({}));

    let query = json(&["query", "-D", &lab.node(1)], 0);
    assert_eq!(query["senders"].as_array().unwrap().len(), 2);
    assert_eq!(query["failures_survived"], 1);
    assert!(json(&["wal", "keepers", "-D", &lab.node(1)], 0)["end_lsn"].as_u64().unwrap() > 0);
    json(&["inspect", "wal", "-D", &lab.node(1)], 4);

    json(&["sandbox", "kill", "1", "--dir", lab.path()], 0);
    json(&["sandbox", "kill", "1", "--dir", lab.path()], 3);
    assert_eq!(json(&["status", "-D", &lab.node(1)], 3)["role"], "Down");
    assert_eq!(json(&["sandbox", "status", "--dir", lab.path()], 0)["cluster_state"], "Unavailable");

    let term = status["term"].as_u64().unwrap();
    let (right, wrong) = (term.to_string(), (term + 5).to_string());
    json(&["failover", "-D", &lab.node(2), "--expect-term", &wrong], 4);
    let dry = json(&["failover", "-D", &lab.node(2), "--dry-run"], 0);
    assert_eq!(dry["dry_run"], true);
    let op = ["failover", "-D", &lab.node(2), "--expect-term", &right, "--op", "the-same"];
    let done = json(&op, 0);
    assert!(done["term"].as_u64().unwrap() > term);
    assert_eq!(
        json(&op, 0),
        done,
        "asked again under one op id: the same answer, although the term has moved on"
    );

    json(&["sandbox", "start", "1", "--dir", lab.path()], 0);
    assert_eq!(json(&up, 0)["cluster_state"], "Normal", "the old primary follows the new one");
    json(&["sandbox", "down", "--dir", lab.path()], 0);
    assert_eq!(json(&["sandbox", "status", "--dir", lab.path()], 3)["cluster_state"], "Unavailable");
    assert_eq!(json(&up, 0)["cluster_state"], "Normal", "a whole cluster starts again");
}

#[test]
fn what_an_operator_changes_is_done_once_and_remembered() {
    let lab = Lab::new("operate");
    json(&["sandbox", "up", "--dir", lab.path(), "--nodes", "3"], 0);
    let (one, two) = (lab.node(1), lab.node(2));
    let policy = json(&["policy", "show", "-D", &two], 0);
    assert_eq!((&policy["failures_survived"], &policy["writes_survive"]), (&1.into(), &1.into()), "{policy}");
    assert_eq!(policy, json(&["policy", "show", "-D", &one], 0), "a standby asks the primary");

    for node in [&one, &two] {
        let refused = json(&["switchover", "-D", node, "--to", "9"], 4);
        assert!(refused["error"]["message"].as_str().unwrap().contains("no member"), "{refused}");
        json(&["switchover", "-D", node, "--expect-term", "99"], 4);
        json(&["policy", "set", "ANY 7 (1, 2, 3)", "-D", node], 4);
    }
    json(&["start", "-D", &one, "-M", "standby"], 4);
    json(&["start", "-D", &two, "-M", "cascade_standby"], 2);
    json(&["failover", "-D", &two, "--force", "--expect-term", "99"], 4);
    assert_eq!(json(&["policy", "show", "-D", &one], 0), policy, "refusals change nothing");

    let file = lab.dir.join("1").join("baton.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("commit_timeout = \"7s\"\nlog_level = \"debug\"\n{text}")).unwrap();
    let reloaded = json(&["reload", "-D", &one], 0);
    assert_eq!(reloaded["applied"][0]["key"], "commit_timeout", "{reloaded}");
    assert_eq!(reloaded["restart"][0]["key"], "log_level", "{reloaded}");

    let set = |node: &str| {
        let rule = ["policy", "set", "ANY 2 (1, 2, 3)", "--expect-generation", "1", "--op", "mine"];
        json(&[&rule[..], &["-D", node]].concat(), 0)
    };
    assert_eq!(set(&two)["generation"], 2);
    let again = set(&lab.node(3));
    assert_eq!((&again["generation"], &again["before"]), (&2.into(), &true.into()), "{again}");

    let stopped = json(&["cluster", "stop", "--dir", lab.path()], 0);
    assert!(stopped["standbys"].as_array().unwrap().iter().all(|row| row["holds"] == true), "{stopped}");
    let rows = json(&["cluster", "history", "-D", &one], 0)["rows"].clone();
    let whats: Vec<&str> = rows.as_array().unwrap().iter().map(|row| row["what"].as_str().unwrap()).collect();
    for what in ["start", "role", "serve", "config", "stop"] {
        assert!(whats.contains(&what), "{what} is missing in {whats:?}, read while the node is down");
    }
    assert_eq!(json(&["inspect", "tail", "-D", &one], 0)["tails"], serde_json::json!([]));
    let primary = json(&["cluster", "start", "--dir", lab.path()], 0)["primary"].as_u64().unwrap();
    assert!((1..=3).contains(&primary));
    assert_eq!(set(&lab.node(3)), again, "a restart of everybody makes nobody forget");
}

#[test]
fn a_switchover_goes_there_and_back() {
    let lab = Lab::new("switchover");
    json(&["sandbox", "up", "--dir", lab.path(), "--nodes", "3"], 0);
    let two = lab.node(2);
    let dry = json(&["switchover", "-D", &two, "--dry-run"], 0);
    assert_eq!(dry["dry_run"], true, "{dry}");
    let once = ["switchover", "-D", &two, "--expect-term", "1", "--op", "once"];
    let done = json(&once, 0);
    assert_eq!((&done["leader"], &done["term"]), (&2.into(), &2.into()), "{done}");
    assert_eq!(json(&once, 0), done, "the same op id: the same answer, although the term has moved on");
    json(&["switchover", "-D", &two, "--expect-term", "1"], 4);
    let report = json(&["drill", "--dir", lab.path(), "--times", "2", "--writers", "4"], 0);
    assert_eq!((&report["completed"], &report["lost"]), (&2.into(), &0.into()), "{report}");
    let refused = json(&["switchover", "-D", &lab.node(1), "--to", "2"], 4);
    assert!(refused["error"]["message"].as_str().unwrap().contains("primary already"), "{refused}");
}

/// Adds a key to a node's configuration, or replaces it.
fn set(dir: &str, key: &str, value: &str) {
    let file = Path::new(dir).join("baton.toml");
    let old = std::fs::read_to_string(&file).unwrap();
    let others: Vec<&str> = old.lines().filter(|line| !line.starts_with(&format!("{key} ="))).collect();
    std::fs::write(&file, format!("{key} = {value}\n{}\n", others.join("\n"))).unwrap();
}

/// The names of a running node's threads.
fn threads(dir: &str) -> Vec<String> {
    let pid = std::fs::read_to_string(Path::new(dir).join("baton.pid")).unwrap();
    let pid = pid.split_whitespace().next().unwrap();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap().trim().to_string())
        .collect()
}

#[test]
fn a_node_with_three_cores_serves_hundreds_of_clients_and_stops() {
    let lab = Lab::new("cores");
    let dir = lab.node(1);
    let ports = ["--client-listen", "127.0.0.1:16911", "--peer-listen", "127.0.0.1:16912"];
    json(&[&["init", "-D", &dir, "--cluster", "a", "--node", "1"][..], &ports[..]].concat(), 0);
    set(&dir, "cores", "3");
    let file = format!("{dir}/baton.toml");
    let checked = json(&["check-config", &file], 0);
    assert_eq!((&checked["cores"], &checked["cores_why"]), (&3.into(), &"as configured".into()));
    json(&["start", "-D", &dir, "-M", "primary"], 0);
    let names = threads(&dir);
    for name in ["net-1", "net-2"] {
        assert!(names.iter().any(|other| other == name), "{names:?}");
    }
    for (workload, pipeline) in [("set", "1"), ("get", "8"), ("mixed", "16")] {
        let load = ["--clients", "500", "--pipeline", pipeline, "--seconds", "2", "--keys", "1000"];
        let bench = [&["bench", "-D", &dir, "--workload", workload][..], &load[..]].concat();
        let report = json(&bench, 0);
        assert!(report["ok"].as_u64().unwrap() > 1000, "{report}");
        assert_eq!(report["errors"], serde_json::json!({}), "{workload}");
    }
    for mode in ["fast", "immediate"] {
        let again = json(&["restart", "-D", &dir, "-m", mode], 0);
        assert_eq!(
            (&again["started"], &again["status"]["role"]),
            (&true.into(), &"Primary".into()),
            "{again}"
        );
    }
    assert_eq!(json(&["stop", "-D", &dir], 0)["stopped"], true);
}

#[test]
fn nodes_with_different_cores_replicate_and_fail_over() {
    let lab = Lab::new("mixed-cores");
    let up = ["sandbox", "up", "--dir", lab.path(), "--nodes", "3"];
    json(&up, 0);
    for (node, cores) in [(2, "3"), (3, "2")] {
        set(&lab.node(node), "cores", cores);
        json(&["restart", "-D", &lab.node(node)], 0);
    }
    assert_eq!(json(&up, 0)["cluster_state"], "Normal");
    let load = |node: u16| {
        let bench = ["bench", "-D", &lab.node(node), "--clients", "50", "--seconds", "1", "--keys", "100"];
        let report = json(&bench, 0);
        assert!(report["ok"].as_u64().unwrap() > 100, "{report}");
        assert_eq!(report["errors"], serde_json::json!({}));
    };
    load(1);
    json(&["sandbox", "kill", "1", "--dir", lab.path()], 0);
    json(&["failover", "-D", &lab.node(2)], 0);
    load(2);
    json(&["sandbox", "start", "1", "--dir", lab.path()], 0);
    // The new primary is killed in its turn, network loops and all, and starts again on the same folder.
    json(&["sandbox", "kill", "2", "--dir", lab.path()], 0);
    json(&["failover", "-D", &lab.node(3)], 0);
    load(3);
    json(&["sandbox", "start", "2", "--dir", lab.path()], 0);
    assert_eq!(json(&up, 0)["cluster_state"], "Normal");
}

/// Whole files, checksums included, of a build that does not exist yet. A node may neither read them as its own nor take
/// them for damage and fall back to something older.
#[test]
fn files_of_another_format_are_refused() {
    let lab = Lab::new("formats");
    let dir = lab.node(1);
    let ports = ["--client-listen", "127.0.0.1:16911", "--peer-listen", "127.0.0.1:16912"];
    json(&[&["init", "-D", &dir, "--cluster", "a", "--node", "1"][..], &ports[..]].concat(), 0);
    let path = |name: &str| Path::new(&dir).join(name);

    // Where the version stands in each file, and how many bytes the digest behind them covers.
    let newer = |image: &mut [u8], at: usize, covered: usize| {
        image[at..at + 2].copy_from_slice(&99u16.to_le_bytes());
        let digest = Digest::of(&image[..covered]).0.to_le_bytes();
        image[covered..covered + 16].copy_from_slice(&digest);
    };
    let refused = |what: &str| {
        let output = baton(&["start", "-D", &dir, "-M", "primary"]);
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {text}");
        assert!(text.contains("version 99") || text.contains("format 99"), "{what} is not named: {text}");
        assert_eq!(json(&["status", "-D", &dir], 3)["role"], "Down");
    };

    for name in ["control.a", "control.b"] {
        let whole = std::fs::read(path(name)).unwrap();
        let mut image = whole.clone();
        newer(&mut image, 8, CONTROL_BYTES - 16);
        std::fs::write(path(name), &image).unwrap();
        refused(name);
        std::fs::write(path(name), &whole).unwrap();
    }
    let whole = std::fs::read(path("superblock")).unwrap();
    for slot in [0, SLOT_BYTES as usize] {
        let mut image = whole.clone();
        let used = u32::from_le_bytes(image[slot + 12..slot + 16].try_into().unwrap()) as usize;
        newer(&mut image[slot..], 4, used - 16);
        std::fs::write(path("superblock"), &image).unwrap();
        refused("superblock");
    }
    std::fs::write(path("superblock"), &whole).unwrap();
    assert_eq!(json(&["start", "-D", &dir, "-M", "primary"], 0)["status"]["role"], "Primary");
    json(&["stop", "-D", &dir], 0);
}
