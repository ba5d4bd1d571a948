//! The cluster simulator: real nodes, simulated world.

mod cascade;
mod clients;
mod cluster;
mod decay;
mod history;
mod logs;
mod operator;
mod ops;
mod planted;
mod run;
mod seeds;
mod store;
mod storm;
mod switchover;
mod upgrade;
mod watch;

use std::time::Duration;

use baton::admin::{Failover, Verb};
use baton::io::sim::SimConfig;
use baton::io::{Op, Outgoing, Seam};
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

fn number_from(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Where fresh seeds begin: `BATON_SIM_SEED`, or the clock.
fn base_seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    number_from("BATON_SIM_SEED").unwrap_or(clock.as_micros() as u64)
}

#[test]
fn fresh_seeds_keep_every_promise() {
    let base = base_seed();
    let count = number_from("BATON_SIM_SEEDS").unwrap_or(300);
    let threads = number_from("BATON_SIM_THREADS").unwrap_or(2) as usize;
    println!("base seed {base}, {count} seeds");
    watch::begin();
    let summary =
        seeds::run_many(base, count, threads, number_from("BATON_SIM_FAILURES").unwrap_or(1) as usize);
    println!("{}", summary.line());
    assert!(summary.failures.is_empty(), "seed {} failed", summary.failures[0].seed);
}

/// Power fails everywhere at once, again and again. What standbys lose unflushed must not leave them without a quorum
/// for ever: nobody had acknowledged it (protocol 5.1).
#[test]
fn blackouts_leave_a_quorum() {
    watch::begin();
    let base = number_from("BATON_SIM_SEED").unwrap_or(7_000);
    for seed in base..base + number_from("BATON_SIM_BLACKOUTS").unwrap_or(20) {
        if let Err(failure) = seeds::run_with(seed, run::Weather::PowerCuts, None) {
            panic!("{}", failure.text());
        }
    }
}

/// The standbys' disks are slow, so the leader is many durable frames ahead when the power fails everywhere. On their
/// disks stand frames, with holes before them, that carry the leader's durable mark. None of it was ever acknowledged by
/// them: they are whole, and lead again by themselves.
#[test]
fn standbys_with_holes_under_the_leaders_mark_are_whole() {
    watch::begin();
    for seed in 0..12 {
        let mut cluster = Cluster::new(seed, 3, SimConfig::default(), "");
        wait_serving(&mut cluster, 1);
        let conn = cluster.connect(1).expect("the primary listens");
        for node in [2, 3] {
            cluster.world.slow_disk(cluster.machines[node - 1].host, 40.0);
        }
        for i in 0..60 {
            let request = format!("SET key{i} value{i}\r\n").into_bytes();
            cluster.client.submit(Op::Send { token: 9, conn, data: Outgoing::Owned(request) });
            let until = cluster.world.now() + Duration::from_micros(2_500);
            while cluster.run(until) {
                cluster.client_events.clear();
            }
        }
        for node in 1..=3 {
            cluster.power_cut(node);
        }
        cluster.world.calm();
        for node in 1..=3 {
            cluster.start(node, None);
        }
        // The former leader stays away: the two standbys are a quorum, if they count.
        cluster.kill(1);
        let response = cluster.admin(2, Verb::Failover(Failover::default()), Duration::from_secs(20));
        assert!(response.as_ref().is_some_and(|r| r.ok), "seed {seed}: {response:?} {:#?}", cluster.rows());
        let serving = (2..=3).find(|node| cluster.glance(*node).is_some_and(|glance| glance.leads()));
        wait_serving(&mut cluster, serving.expect("somebody leads"));
    }
}

/// Seeds that found something once.
#[test]
fn seeds_that_failed_before_hold() {
    watch::begin();
    // A leader that recruited again gave the commit of its new term for an answer to writes that it had thrown away; a
    // candidate waited for ever for a control store that had kept its answer to itself.
    for seed in [910_187, 1_795_279_590_030_820] {
        if let Err(failure) = seeds::run_seed(seed) {
            panic!("{}", failure.text());
        }
    }
    // A stream that was asked for just before a fast-forward took the fast-forward with it when it was refused.
    if let Err(failure) = seeds::run_with(50_002, run::Weather::DamagedControl, None) {
        panic!("{}", failure.text());
    }
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    watch::begin();
    for seed in [11, 12, 13, 14] {
        let trace = |_| {
            seeds::run_seed(seed).map_or_else(|failure| panic!("{}", failure.text()), |report| report.trace)
        };
        let [first, second] = [0, 1].map(trace);
        assert_eq!(first, second, "seed {seed} went two ways");
    }
}
