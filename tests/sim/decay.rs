//! Bits that flip: in memory, where a disputed checkpoint must tell who is wrong, and on disks at rest, where pages are
//! repaired from the other nodes.

use std::path::Path;
use std::time::Duration;

use baton::admin::{Failover, Verb};
use baton::base::Prng;
use baton::io::ConnId;
use baton::io::sim::{DiskOp, SimConfig};
use serde_json::Value;

use super::cluster::Cluster;
use super::{wait_serving, watch};

const PAGE: usize = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
const SCRUBBED: &str = "scrub_rate = \"64MiB\"\nscrub_every = \"1s\"";

fn pages_file() -> &'static Path {
    Path::new("/data/pages")
}

fn sleep(cluster: &mut Cluster, ms: u64) {
    let until = cluster.world.now() + Duration::from_millis(ms);
    while cluster.world.now() < until {
        cluster.run(until);
        cluster.client_events.clear();
    }
}

fn value_of(key: usize, round: usize) -> String {
    format!("{key}.{round}.").repeat(40 + (key * 7 + round) % 60)
}

fn set(cluster: &mut Cluster, conn: ConnId, key: usize, value: &str) {
    let request = format!("*3\r\n$3\r\nSET\r\n$4\r\nk{key:03}\r\n${}\r\n{value}\r\n", value.len());
    let reply = cluster.call(conn, request.as_bytes(), PATIENCE);
    assert_eq!(reply.as_deref(), Some(&b"+OK\r\n"[..]), "key {key}");
}

fn get(cluster: &mut Cluster, conn: ConnId, key: usize) -> String {
    let reply = cluster.call(conn, format!("GET k{key:03}\r\n").as_bytes(), PATIENCE);
    String::from_utf8(reply.expect("a reply comes")).expect("text")
}

fn bulk(value: &str) -> String {
    format!("${}\r\n{value}\r\n", value.len())
}

fn row(cluster: &mut Cluster, node: u16) -> Value {
    cluster.status(node).unwrap_or(Value::Null)
}

fn pages_of(cluster: &mut Cluster, node: u16) -> Value {
    let response = cluster.admin(node, Verb::Query, PATIENCE).expect("an answer comes");
    response.result["pages"].clone()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} in {value}"))
}

/// Writes until the node says that it is sick; `false` when it never does.
fn write_until_sick(cluster: &mut Cluster, conn: ConnId, node: u16) -> bool {
    for n in 0..2_000 {
        let request = format!("SET other{} {n}\r\n", n % 50);
        if cluster.call(conn, request.as_bytes(), PATIENCE).is_none() {
            // A primary that steps down closes its clients.
            sleep(cluster, 200);
        }
        let row = row(cluster, node);
        if row["state"] == "Need repair"
            && row["detail"].as_str().is_some_and(|d| d.starts_with("checkpoint"))
        {
            return true;
        }
    }
    false
}

#[test]
fn a_bit_flipped_in_a_standbys_memory_makes_that_standby_sick() {
    watch::begin();
    let mut cluster = Cluster::new(31, 3, SimConfig::default(), "");
    wait_serving(&mut cluster, 1);
    let conn = cluster.connect(1).expect("the primary listens");
    set(&mut cluster, conn, 1, "precious");
    sleep(&mut cluster, 50);
    assert!(cluster.machines[1].node.as_mut().expect("it runs").flip_bit_in_memory(b"k001"));
    assert!(write_until_sick(&mut cluster, conn, 2), "{:#?}", cluster.rows());
    for node in [1, 3] {
        assert_eq!(row(&mut cluster, node)["state"], "Normal", "node {node} is sound");
    }
    // It goes on receiving and acknowledging, and answers no reads.
    let before = row(&mut cluster, 2)["flushed_lsn"].as_u64();
    set(&mut cluster, conn, 2, "after");
    sleep(&mut cluster, 300);
    assert!(row(&mut cluster, 2)["flushed_lsn"].as_u64() > before);
    let reader = cluster.connect(2).expect("it listens");
    assert!(get(&mut cluster, reader, 1).starts_with("-MISCONF"), "a sick node answers no reads");
    // It is not promoted, but its log and its vote are good for another one, also after a restart.
    cluster.kill(2);
    cluster.start(2, None);
    sleep(&mut cluster, 1_000);
    cluster.kill(1);
    let refused = cluster.admin(2, Verb::Failover(Failover::default()), Duration::from_secs(20));
    assert!(refused.is_some_and(|response| !response.ok), "a sick node is not promoted");
    let done = cluster.admin(3, Verb::Failover(Failover::default()), Duration::from_secs(20));
    assert!(done.as_ref().is_some_and(|response| response.ok), "{done:?}");
    wait_serving(&mut cluster, 3);
    let conn = cluster.connect(3).expect("the new primary listens");
    assert_eq!(get(&mut cluster, conn, 1), bulk("precious"));
    assert_eq!(get(&mut cluster, conn, 2), bulk("after"));
    assert!(cluster.problems.is_empty(), "{:?}", cluster.problems);
}

#[test]
fn a_bit_flipped_in_the_primarys_memory_makes_it_step_down() {
    watch::begin();
    let mut cluster = Cluster::new(32, 3, SimConfig::default(), "");
    wait_serving(&mut cluster, 1);
    let conn = cluster.connect(1).expect("the primary listens");
    for key in 0..20 {
        set(&mut cluster, conn, key, "precious");
    }
    sleep(&mut cluster, 50);
    assert!(cluster.machines[0].node.as_mut().expect("it runs").flip_bit_in_memory(b"k001"));
    assert!(write_until_sick(&mut cluster, conn, 1), "{:#?}", cluster.rows());
    assert_ne!(row(&mut cluster, 1)["role"], "Primary");
    for node in [2, 3] {
        let row = row(&mut cluster, node);
        assert!(!row["detail"].as_str().unwrap_or_default().starts_with("checkpoint"), "{row}");
    }
    let done = cluster.admin(2, Verb::Failover(Failover::default()), Duration::from_secs(20));
    assert!(done.as_ref().is_some_and(|response| response.ok), "{done:?}");
    wait_serving(&mut cluster, 2);
    let conn = cluster.connect(2).expect("the new primary listens");
    for key in 0..20 {
        assert_eq!(get(&mut cluster, conn, key), bulk("precious"), "no write is lost");
    }
}

#[test]
fn a_node_whose_every_page_decayed_while_it_was_down_is_repaired() {
    watch::begin();
    let mut cluster = Cluster::new(33, 3, SimConfig::default(), SCRUBBED);
    wait_serving(&mut cluster, 1);
    let conn = cluster.connect(1).expect("the primary listens");
    for round in 0..3 {
        for key in 0..600 {
            set(&mut cluster, conn, key, &value_of(key, round));
        }
    }
    sleep(&mut cluster, 2_000);
    cluster.kill(3);
    let host = cluster.machines[2].host;
    let file = cluster.world.file(host, pages_file()).expect("it has pages");
    let mut rng = Prng::new(33);
    let mut flipped = 0;
    for (i, page) in file.chunks_exact(PAGE).enumerate() {
        if page.starts_with(b"BTNP") {
            // Inside the header and the first entries: content, never only unused bytes.
            let at = (i * PAGE) as u64 + rng.below(400);
            assert!(cluster.world.flip_bit(host, pages_file(), at, (rng.below(8)) as u8));
            flipped += 1;
        }
    }
    cluster.start(3, None);
    sleep(&mut cluster, 8_000);
    let pages = pages_of(&mut cluster, 3);
    let row = row(&mut cluster, 3);
    assert_eq!((number(&pages, "damaged"), &row["state"]), (0, &Value::from("Normal")), "{pages} {row}");
    assert!(number(&pages, "repaired") > 12 && flipped > 20, "{flipped} flipped: {pages}");
    let reader = cluster.connect(3).expect("it listens");
    for key in 0..600 {
        assert_eq!(get(&mut cluster, reader, key), bulk(&value_of(key, 2)), "key {key}");
    }
    println!("{flipped} pages flipped; {pages}");
}

/// Disks decay under load: nobody ever reads a wrong value, and in the end every page is whole.
#[test]
fn decaying_disks_are_repaired_under_load() {
    watch::begin();
    let base = super::number_from("BATON_SIM_SEED").unwrap_or(1);
    let seeds = super::number_from("BATON_SIM_DECAY_SEEDS").unwrap_or(4);
    let (mut repaired, mut flips, mut errors) = (0, 0, 0);
    for seed in base..base + seeds {
        let mut cluster = Cluster::new(seed, 3, SimConfig::default(), SCRUBBED);
        let mut rng = Prng::new(seed ^ 0xDECA);
        wait_serving(&mut cluster, 1);
        let conns = [1, 2, 3].map(|node| cluster.connect(node).expect("it listens"));
        let mut latest = vec![None; 150];
        for step in 0..1_200 {
            let key = rng.below(150) as usize;
            if rng.chance(0.5) {
                set(&mut cluster, conns[0], key, &value_of(key, step));
                latest[key] = Some(step);
            } else {
                let node = rng.below(3) as usize;
                let got = get(&mut cluster, conns[node], key);
                // A standby may lag: it shows the key's present value, or an earlier one, whole.
                let right = match (node, latest[key]) {
                    (_, None) => got == "$-1\r\n",
                    (0, Some(round)) => got == bulk(&value_of(key, round)),
                    (_, Some(round)) => {
                        got == "$-1\r\n" || (0..=round).any(|round| got == bulk(&value_of(key, round)))
                    }
                };
                errors += usize::from(got.starts_with("-IOERR"));
                assert!(right || got.starts_with("-IOERR"), "seed {seed}, node {}: {got}", node + 1);
            }
            if rng.chance(0.05) {
                let host = cluster.machines[rng.below(3) as usize].host;
                let len = cluster.world.file(host, pages_file()).map_or(0, |file| file.len() as u64);
                if len > PAGE as u64 {
                    let at = rng.between(PAGE as u64, len - 1);
                    flips += usize::from(cluster.world.flip_bit(host, pages_file(), at, rng.below(8) as u8));
                }
            }
        }
        sleep(&mut cluster, 5_000);
        for node in 1..=3 {
            let (pages, row) = (pages_of(&mut cluster, node), row(&mut cluster, node));
            assert_eq!(
                (number(&pages, "damaged"), &row["state"]),
                (0, &Value::from("Normal")),
                "seed {seed}, node {node}: {pages} {row}"
            );
            repaired += number(&pages, "repaired");
        }
    }
    println!("{seeds} seeds: {flips} bits flipped, {repaired} pages repaired, {errors} reads refused");
    assert!(repaired > 0);
}

/// One control copy is ruined, and the disk does not read the other one just now. What cannot be read is not bad: the
/// node starts when the disk reads again, with everything that it promised. Only two bad copies are the end of it.
#[test]
fn a_control_copy_that_cannot_be_read_is_not_taken_for_bad() {
    watch::begin();
    for unreadable in [0, 1] {
        let mut cluster = Cluster::new(7_700 + unreadable, 1, SimConfig::default(), "");
        wait_serving(&mut cluster, 1);
        let host = cluster.machines[0].host;
        let copies = ["/data/control.a", "/data/control.b"].map(Path::new);
        cluster.kill(1);
        sleep(&mut cluster, 200);
        assert!(cluster.world.flip_bit(host, copies[1 - unreadable as usize], 100, 3));
        // A start reads a, then b, before anything else.
        cluster.world.fail_nth(host, DiskOp::Read, unreadable);
        cluster.start(1, None);
        assert!(cluster.machines[0].node.is_none(), "the disk did not let it start");
        assert_eq!(cluster.problems, Vec::<String>::new());
        wait_serving(&mut cluster, 1);

        cluster.kill(1);
        sleep(&mut cluster, 200);
        for copy in copies {
            assert!(cluster.world.flip_bit(host, copy, 100, 3));
        }
        cluster.start(1, None);
        let problem = cluster.problems.pop().expect("it does not start");
        assert!(problem.contains("both control copies are unusable"), "{problem}");
    }
}
