//! Rolling upgrades: three nodes go from one format version to the next, one after the other.

use std::time::Duration;

use baton::admin::{Exit, Response, Verb};
use baton::base::NodeId;
use baton::io::sim::SimConfig;
use baton::role::Command;

use super::cluster::Cluster;
use super::wait_serving;

/// The next build's newest format; the dummy that stands for it has the same bytes.
const NEXT: u16 = 2;

fn pass(cluster: &mut Cluster, ms: u64) {
    let until = cluster.world.now() + Duration::from_millis(ms);
    while cluster.world.now() < until {
        cluster.run(until);
        cluster.client_events.clear();
    }
}

fn write(cluster: &mut Cluster, primary: u16, keys: std::ops::Range<u32>) {
    let conn = cluster.connect(primary).expect("the primary listens");
    for i in keys {
        let reply = cluster.call(conn, format!("SET key{i} {i}\r\n").as_bytes(), Duration::from_secs(3));
        assert_eq!(reply.as_deref(), Some(&b"+OK\r\n"[..]), "write {i}");
    }
}

fn restart(cluster: &mut Cluster, node: u16, format: Option<u16>) {
    cluster.kill(node);
    pass(cluster, 200);
    cluster.machines[usize::from(node) - 1].format = format;
    cluster.start(node, None);
}

/// Every node is Normal and holds what the primary committed.
fn level(cluster: &mut Cluster, primary: u16) {
    for _ in 0..200 {
        pass(cluster, 50);
        let rows: Vec<_> = (1..=3).filter_map(|node| cluster.status(node)).collect();
        let end = cluster.status(primary).map(|row| row["committed_lsn"].clone());
        if rows.len() == 3
            && rows.iter().all(|row| row["state"] == "Normal" && Some(&row["applied_lsn"]) == end.as_ref())
        {
            return;
        }
    }
    panic!("never level: {:#?}", cluster.rows());
}

fn finalize(cluster: &mut Cluster, node: u16) -> Response {
    cluster.admin(node, Verb::FinalizeUpgrade, Duration::from_secs(5)).expect("an answer")
}

fn written(cluster: &mut Cluster, node: u16) -> u64 {
    let answer = cluster.admin(node, Verb::Query, Duration::from_secs(5)).expect("an answer");
    answer.result["format"]["written"].as_u64().expect("a number")
}

#[test]
fn a_cluster_is_upgraded_node_by_node_and_finalized() {
    let mut cluster = Cluster::new(41, 3, SimConfig::default(), "");
    wait_serving(&mut cluster, 1);
    write(&mut cluster, 1, 0..20);

    // Mixed, with an old and then with a new primary.
    restart(&mut cluster, 2, Some(NEXT));
    write(&mut cluster, 1, 20..40);
    level(&mut cluster, 1);
    let to = Command::Switchover { to: Some(NodeId(2)), dry_run: false, timeout: Duration::from_secs(3) };
    cluster.with_node(1, |node| node.ask_role(to, Box::new(|_| {})));
    wait_serving(&mut cluster, 2);
    write(&mut cluster, 2, 40..60);
    restart(&mut cluster, 3, Some(NEXT));
    level(&mut cluster, 2);

    // Node 1 is not upgraded: it is named, and nothing changes.
    let refused = finalize(&mut cluster, 2);
    assert!(!refused.ok && refused.exit() == Exit::Refused, "{refused:?}");
    assert!(format!("{refused:?}").contains("node 1 speaks up to format 1"), "{refused:?}");
    cluster.kill(1);
    pass(&mut cluster, 500);
    let refused = finalize(&mut cluster, 2);
    assert!(format!("{refused:?}").contains("node 1 is not connected"), "{refused:?}");
    assert_eq!(written(&mut cluster, 2), 1);
    // Until here every node may go back.
    restart(&mut cluster, 3, None);
    write(&mut cluster, 2, 60..70);
    restart(&mut cluster, 3, Some(NEXT));

    cluster.machines[0].format = Some(NEXT);
    cluster.start(1, None);
    level(&mut cluster, 2);
    // Asked of a standby, it is passed on to the primary.
    let done = finalize(&mut cluster, 3);
    assert!(done.ok && done.result["format"] == NEXT && done.result["changed"] == true, "{done:?}");
    assert_eq!(finalize(&mut cluster, 2).result["changed"], false, "once and for good");
    write(&mut cluster, 2, 70..90);
    level(&mut cluster, 2);
    assert!((1..=3).all(|node| written(&mut cluster, node) == u64::from(NEXT)));

    // Back with one node: its build refuses the folder and touches nothing.
    cluster.kill(3);
    pass(&mut cluster, 500);
    let image = |cluster: &Cluster| {
        let (world, host) = (&cluster.world, cluster.machines[2].host);
        world.files(host).into_iter().map(|path| (path.clone(), world.file(host, &path))).collect::<Vec<_>>()
    };
    let before = image(&cluster);
    cluster.machines[2].format = None;
    cluster.start(3, None);
    let problem = cluster.problems.pop().expect("it does not start");
    assert!(problem.contains("written by a newer baton (format 2"), "{problem}");
    assert!(image(&cluster) == before, "nothing is touched");

    cluster.machines[2].format = Some(NEXT);
    cluster.start(3, None);
    write(&mut cluster, 2, 90..100);
    level(&mut cluster, 2);
    // The format outlives its primary.
    let to = Command::Switchover { to: Some(NodeId(3)), dry_run: false, timeout: Duration::from_secs(3) };
    cluster.with_node(2, |node| node.ask_role(to, Box::new(|_| {})));
    wait_serving(&mut cluster, 3);
    assert_eq!(written(&mut cluster, 3), u64::from(NEXT));
}
