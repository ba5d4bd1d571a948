//! Cascaded standbys as real processes: 1 streams to 2, 2 to 4, 4 to 5; node 3 is a direct standby.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

const BATON: &str = env!("CARGO_BIN_EXE_baton");
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Lab {
    dir: PathBuf,
}

impl Lab {
    fn path(&self) -> &str {
        self.dir.to_str().expect("a plain path")
    }

    fn node(&self, node: u16) -> String {
        self.dir.join(node.to_string()).to_str().expect("a plain path").to_string()
    }

    fn status(&self) -> Value {
        json(&["sandbox", "status", "--dir", self.path()])
    }

    /// Looks until the rows of all nodes are as wanted.
    fn until(&self, what: &str, done: impl Fn(&[Value]) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if done(status["nodes"].as_array().expect("rows")) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {status:#}");
        }
    }

    fn bench(&self, primary: u16) {
        json(&["bench", "-D", &self.node(primary), "--clients", "4", "--seconds", "1", "--keys", "500"]);
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

fn json(args: &[&str]) -> Value {
    let output = baton(&[args, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "baton {args:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).expect("JSON")
}

/// Everybody has flushed and applied what the primary has committed.
fn level(rows: &[Value], primary: usize, nodes: &[usize]) -> bool {
    let end = &rows[primary - 1]["committed_lsn"];
    nodes.iter().all(|node| {
        let row = &rows[node - 1];
        row["state"] == "Normal" && row["lag_bytes"] == 0 && row["applied_lsn"] == *end
    })
}

#[test]
fn a_tree_of_standbys_survives_the_loss_of_a_branch_and_a_switchover() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cascade-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let lab = Lab { dir };
    let tree = ["--upstream", "4:2", "--upstream", "5:4"];
    json(&[&["sandbox", "up", "--dir", lab.path(), "--nodes", "5"][..], &tree[..]].concat());
    lab.bench(1);
    let rows = lab.until("a level tree", |rows| {
        level(rows, 1, &[2, 3, 4, 5]) && rows[3]["upstream"] == 2 && rows[4]["upstream"] == 4
    });
    assert_eq!(rows["cluster_state"], "Normal");
    assert_eq!(rows["policy"]["rule"], "ANY 1 (1, 2, 3)", "cascaded standbys do not vote");
    for node in [3, 4] {
        assert_eq!(rows["nodes"][node]["role"], "Cascade Standby");
        assert_eq!(rows["nodes"][node]["static_role"], "C");
    }
    let seen = json(&["cluster", "status", "-D", &lab.node(1)]);
    assert_eq!(seen["nodes"][4]["sync_state"], "Async", "{seen:#}");
    let query = json(&["query", "-D", &lab.node(4)]);
    assert_eq!((&query["receiver"]["node"], &query["senders"][0]["node"]), (&2.into(), &5.into()));
    assert_eq!(query["receiver"]["peer_role"], "Standby", "{query:#}");

    json(&["sandbox", "kill", "--dir", lab.path(), "2"]);
    lab.bench(1);
    lab.until("4 streams from elsewhere", |rows| {
        let upstream = &rows[3]["upstream"];
        level(rows, 1, &[3, 4, 5]) && (*upstream == 3 || *upstream == 1) && rows[4]["upstream"] == 4
    });

    json(&["switchover", "-D", &lab.node(3)]);
    lab.bench(3);
    lab.until("the tree follows the next primary", |rows| {
        rows[2]["role"] == "Primary" && level(rows, 3, &[1, 4, 5]) && rows[4]["upstream"] == 4
    });

    json(&["sandbox", "start", "--dir", lab.path(), "2"]);
    lab.bench(3);
    lab.until("4 is back at its configured upstream", |rows| {
        level(rows, 3, &[1, 2, 4, 5]) && rows[3]["upstream"] == 2
    });
}
