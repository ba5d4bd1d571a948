//! The cluster simulator: real nodes, simulated world.

mod cluster;

use std::time::Duration;

use baton::admin::{Failover, Verb};
use baton::io::sim::SimConfig;
use cluster::Cluster;

fn wait_serving(cluster: &mut Cluster, node: u16) {
    for _ in 0..200 {
        let until = cluster.world.now() + Duration::from_millis(50);
        cluster.run(until);
        if let Some(conn) = cluster.connect(node)
            && let Some(reply) = cluster.call(conn, b"SET probe 1\r\n", Duration::from_secs(3))
            && reply == b"+OK\r\n"
        {
            return;
        }
    }
    panic!("node {node} never served: {:#?}", cluster.rows());
}

#[test]
fn three_nodes_replicate_and_fail_over() {
    let mut cluster = Cluster::new(1, 3, SimConfig::default(), "");
    wait_serving(&mut cluster, 1);
    let conn = cluster.connect(1).expect("the primary listens");
    for i in 0..200 {
        let reply = cluster.call(conn, format!("SET key{i} value{i}\r\n").as_bytes(), Duration::from_secs(3));
        assert_eq!(reply.as_deref(), Some(&b"+OK\r\n"[..]), "write {i}");
    }
    cluster.kill(1);
    let response = cluster
        .admin(2, Verb::Failover(Failover::default()), Duration::from_secs(20))
        .expect("an answer comes");
    assert!(response.ok, "{response:?}");
    wait_serving(&mut cluster, 2);
    let conn = cluster.connect(2).expect("the new primary listens");
    for i in 0..200 {
        let reply = cluster.call(conn, format!("GET key{i}\r\n").as_bytes(), Duration::from_secs(3));
        let want = format!("${}\r\nvalue{i}\r\n", format!("value{i}").len());
        assert_eq!(reply.as_deref(), Some(want.as_bytes()), "read {i}");
    }
}
