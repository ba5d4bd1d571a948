//! Cascaded standbys: 1 streams to 2, 2 to 4, 4 to 5; node 3 is a direct standby.

use std::time::Duration;

use baton::admin::{Failover, Verb};
use baton::base::NodeId;
use baton::io::sim::SimConfig;
use baton::role::Command;
use serde_json::Value;

use super::cluster::Cluster;
use super::wait_serving;

const TREE: [(u16, u16); 2] = [(4, 2), (5, 4)];

fn cluster(seed: u64) -> Cluster {
    let mut cluster = Cluster::with_tree(seed, 5, SimConfig::default(), "", &TREE);
    wait_serving(&mut cluster, 1);
    cluster
}

fn pass(cluster: &mut Cluster, ms: u64) {
    let until = cluster.world.now() + Duration::from_millis(ms);
    while cluster.world.now() < until {
        cluster.run(until);
        cluster.client_events.clear();
    }
}

/// Runs the world until `done` says so of the rows of all nodes.
fn until(cluster: &mut Cluster, ms: u64, what: &str, done: impl Fn(&dyn Fn(u16, &str) -> Value) -> bool) {
    for _ in 0..ms / 20 {
        pass(cluster, 20);
        let rows: Vec<Option<Value>> = (1..=5).map(|node| cluster.status(node)).collect();
        let field = |node: u16, name: &str| {
            rows[usize::from(node) - 1].as_ref().map_or(Value::Null, |row| row[name].clone())
        };
        if done(&field) {
            return;
        }
    }
    panic!("not within {ms} ms: {what}: {:#?}", cluster.rows());
}

fn write(cluster: &mut Cluster, node: u16, keys: std::ops::Range<u32>) {
    let conn = cluster.connect(node).expect("the primary listens");
    for i in keys {
        let text = format!("SET key{i} value{i}\r\n");
        let reply = cluster.call(conn, text.as_bytes(), Duration::from_secs(3));
        assert_eq!(reply.as_deref(), Some(&b"+OK\r\n"[..]), "write {i}");
    }
}

fn holds(cluster: &mut Cluster, node: u16, keys: u32) {
    let conn = cluster.connect(node).expect("it listens");
    for i in 0..keys {
        let reply = cluster.call(conn, format!("GET key{i}\r\n").as_bytes(), Duration::from_secs(3));
        let want = format!("${}\r\nvalue{i}\r\n", format!("value{i}").len());
        assert_eq!(reply.as_deref(), Some(want.as_bytes()), "node {node}, read {i}");
    }
}

/// Nodes 4 and 5 stream from these, and have everything that node `primary` has.
fn level(cluster: &mut Cluster, ms: u64, primary: u16, upstreams: [Option<u16>; 2]) {
    until(cluster, ms, &format!("level below {upstreams:?}"), |field| {
        let end = field(primary, "committed_lsn");
        (4..=5).zip(upstreams).all(|(node, upstream)| {
            field(node, "state") == "Normal"
                && upstream.is_none_or(|upstream| field(node, "upstream") == upstream)
                && field(node, "applied_lsn") == end
                && field(node, "role") == "Cascade Standby"
        })
    });
}

#[test]
fn cascades_stream_through_two_levels_and_find_another_upstream() {
    let mut cluster = cluster(31);
    write(&mut cluster, 1, 0..100);
    level(&mut cluster, 3000, 1, [Some(2), Some(4)]);
    holds(&mut cluster, 5, 100);

    cluster.kill(2);
    until(&mut cluster, 3000, "4 streams from elsewhere", |field| {
        field(4, "upstream") == 3 || field(4, "upstream") == 1
    });
    write(&mut cluster, 1, 100..150);
    level(&mut cluster, 3000, 1, [None, Some(4)]);
    holds(&mut cluster, 5, 150);

    cluster.start(2, None);
    until(&mut cluster, 30_000, "4 streams from 2 again", |field| field(4, "upstream") == 2);
    write(&mut cluster, 1, 150..160);
    level(&mut cluster, 3000, 1, [Some(2), Some(4)]);
}

/// The links stand, but nothing of the leader comes through the upstream: it follows nobody any more.
#[test]
fn an_upstream_that_lost_its_own_stream_is_left() {
    let mut cluster = cluster(32);
    level(&mut cluster, 3000, 1, [Some(2), Some(4)]);
    let host = |node: u16| cluster.machines[usize::from(node) - 1].host;
    let (one, two, three) = (host(1), host(2), host(3));
    for other in [one, three] {
        cluster.world.partition(two, other);
        cluster.world.partition(other, two);
    }
    until(&mut cluster, 8000, "4 left 2", |field| field(4, "upstream") == 3 || field(4, "upstream") == 1);
    write(&mut cluster, 1, 0..20);
    level(&mut cluster, 3000, 1, [None, Some(4)]);
    cluster.world.calm();
    until(&mut cluster, 40_000, "4 streams from 2 again", |field| field(4, "upstream") == 2);
}

#[test]
fn the_tree_follows_a_switchover_and_the_next_one() {
    let mut cluster = cluster(33);
    write(&mut cluster, 1, 0..50);
    // To the upstream of node 4: it streams from the primary then.
    let command =
        |to| Command::Switchover { to: Some(NodeId(to)), dry_run: false, timeout: Duration::from_secs(3) };
    cluster.with_node(1, |node| node.ask_role(command(2), Box::new(|_| {})));
    wait_serving(&mut cluster, 2);
    write(&mut cluster, 2, 50..80);
    level(&mut cluster, 5000, 2, [Some(2), Some(4)]);
    // And on to another one.
    cluster.with_node(2, |node| node.ask_role(command(3), Box::new(|_| {})));
    wait_serving(&mut cluster, 3);
    write(&mut cluster, 3, 80..100);
    level(&mut cluster, 5000, 3, [Some(2), Some(4)]);
    holds(&mut cluster, 5, 100);
}

/// A cascaded standby leads after a recruit of the voters, and its child streams from it.
#[test]
fn a_cascaded_standby_is_promoted_by_the_voters() {
    let mut cluster = cluster(34);
    write(&mut cluster, 1, 0..50);
    level(&mut cluster, 3000, 1, [Some(2), Some(4)]);
    cluster.kill(1);
    let answer = cluster.admin(4, Verb::Failover(Failover::default()), Duration::from_secs(20));
    assert!(answer.as_ref().is_some_and(|answer| answer.ok), "{answer:?}");
    wait_serving(&mut cluster, 4);
    write(&mut cluster, 4, 50..80);
    until(&mut cluster, 5000, "5 is level with 4", |field| {
        field(5, "upstream") == 4 && field(5, "applied_lsn") == field(4, "committed_lsn")
    });
    holds(&mut cluster, 5, 80);
    cluster.start(1, None);
    until(&mut cluster, 10_000, "1 follows 4", |field| {
        field(1, "upstream") == 4 && field(1, "state") == "Normal"
    });
}

/// Cascades never count: with both voters besides the primary gone, nothing commits, however many hold it.
#[test]
fn cascades_never_make_a_commit() {
    let mut cluster = cluster(35);
    level(&mut cluster, 3000, 1, [Some(2), Some(4)]);
    cluster.kill(2);
    cluster.kill(3);
    until(&mut cluster, 5000, "4 streams from the primary", |field| field(4, "upstream") == 1);
    let before = cluster.status(1).expect("it runs")["committed_lsn"].as_u64();
    let conn = cluster.connect(1).expect("the primary listens");
    let reply = cluster.call(conn, b"SET lonely 1\r\n", Duration::from_secs(3));
    assert_ne!(reply.as_deref(), Some(&b"+OK\r\n"[..]));
    assert_eq!(cluster.status(1).expect("it runs")["committed_lsn"].as_u64(), before);
}
