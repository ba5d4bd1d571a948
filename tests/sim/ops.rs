//! Op ids in whole clusters: whoever lost an answer asks any node again, and nothing happens twice.

use std::time::Duration;

use baton::admin::{ErrorCode, Failover, PolicySet, Response, Verb};
use baton::io::sim::SimConfig;

use super::cluster::{Cluster, STORED};
use super::wait_serving;

fn ask(cluster: &mut Cluster, node: u16, op: &str, verb: Verb) -> Response {
    let told = cluster.order_as(node, op, verb).expect("it runs");
    cluster.await_answer(&told, Duration::from_secs(20)).expect("it answers")
}

fn policy() -> Verb {
    // The second time this would be refused for its generation alone.
    let rule = "ANY 2 (1, 2, 3, 4)".to_string();
    Verb::PolicySet(PolicySet { rule, expect_generation: 1, ..PolicySet::default() })
}

fn failover() -> Verb {
    Verb::Failover(Failover { expect_term: Some(1), force: true, ..Failover::default() })
}

fn pass(cluster: &mut Cluster, ms: u64) {
    let until = cluster.world.now() + Duration::from_millis(ms);
    while cluster.run(until) {
        cluster.client_events.clear();
    }
}

#[test]
fn a_lost_answer_is_found_on_any_node() {
    for (seed, extra) in [(81, ""), (82, STORED)] {
        let mut cluster = Cluster::new(seed, 5, SimConfig::default(), extra);
        wait_serving(&mut cluster, 1);
        pass(&mut cluster, 1_000);
        // The primary does it and dies before whoever asked it hears of that.
        let lost = cluster.order_as(5, "p", policy()).expect("it runs");
        while cluster.admin(1, Verb::PolicyShow, Duration::from_secs(1)).unwrap().result["generation"] != 2 {
            pass(&mut cluster, 1);
        }
        pass(&mut cluster, 300);
        cluster.kill(1);
        drop(lost);
        pass(&mut cluster, 300);
        // A standby without a primary knows it from its log.
        let again = ask(&mut cluster, 3, "p", policy());
        assert!(again.ok && again.result["generation"] == 2, "{again:?}");
        let led = ask(&mut cluster, 2, "f", failover());
        assert!(led.ok, "{led:?}");
        wait_serving(&mut cluster, 2);
        cluster.start(1, None);
        pass(&mut cluster, 2_000);
        cluster.kill(2);
        pass(&mut cluster, 300);
        for node in [1, 3, 4, 5] {
            let again = ask(&mut cluster, node, "f", failover());
            assert!(again.ok && again.result["leader"] == 2, "node {node}: {again:?}");
            for name in ["term", "term_id", "start_lsn"] {
                assert_eq!(again.result[name], led.result[name], "node {node}");
            }
        }
        // Nor does a loss of power everywhere make anybody forget.
        for node in 1..=5 {
            cluster.power_cut(node);
        }
        for node in 1..=5 {
            cluster.start(node, None);
        }
        pass(&mut cluster, 3_000);
        for node in 1..=5 {
            let again = ask(&mut cluster, node, "p", policy());
            assert!(again.ok && again.result["generation"] == 2, "node {node}: {again:?}");
            let again = ask(&mut cluster, node, "f", failover());
            assert!(again.ok && again.result["term"] == led.result["term"], "node {node}: {again:?}");
            let other = ask(&mut cluster, node, "f", policy());
            assert_eq!(other.error.map(|error| error.code), Some(ErrorCode::OpReused), "node {node}");
        }
    }
}
