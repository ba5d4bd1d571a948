//! Switchovers of whole nodes under client load.

use std::sync::mpsc;
use std::time::Duration;

use baton::base::NodeId;
use baton::io::sim::SimConfig;
use baton::role::{Command, CommandResult, Done};

use super::cluster::Cluster;
use super::wait_serving;

fn ask(cluster: &mut Cluster, node: u16, to: Option<u16>) -> mpsc::Receiver<CommandResult> {
    let (sender, receiver) = mpsc::channel();
    let command = Command::Switchover { to: to.map(NodeId), dry_run: false, timeout: Duration::from_secs(3) };
    let waiter = Box::new(move |result| drop(sender.send(result)));
    cluster.with_node(node, |running| running.ask_role(command, waiter));
    receiver
}

fn pass(cluster: &mut Cluster, ms: u64) {
    let until = cluster.world.now() + Duration::from_millis(ms);
    while cluster.world.now() < until {
        cluster.run(until);
        cluster.client_events.clear();
    }
}

#[test]
fn a_switchover_there_and_back_keeps_every_write() {
    let mut cluster = Cluster::new(21, 3, SimConfig::default(), "");
    wait_serving(&mut cluster, 1);
    let mut written = 0;
    for (from, asked, to) in [(1u16, 1u16, 2u16), (2, 3, 3), (3, 3, 1)] {
        let conn = cluster.connect(from).expect("the primary listens");
        for _ in 0..50 {
            let text = format!("SET key{written} value{written}\r\n");
            let reply = cluster.call(conn, text.as_bytes(), Duration::from_secs(3));
            assert_eq!(reply.as_deref(), Some(&b"+OK\r\n"[..]), "write {written}");
            written += 1;
        }
        let before = cluster.world.now();
        let answers = ask(&mut cluster, asked, Some(to));
        let mut result = None;
        for _ in 0..600 {
            pass(&mut cluster, 5);
            result = answers.try_recv().ok();
            if result.is_some() {
                break;
            }
        }
        let took = cluster.world.now().since(before);
        assert!(
            matches!(result, Some(Ok(Done::SwitchedOver { leader, .. })) if leader == NodeId(to)),
            "{from} to {to}: {result:?} {:#?}",
            cluster.rows()
        );
        println!("{from} to {to}, asked on {asked}: answered after {took:?} of the simulated world");
        wait_serving(&mut cluster, to);
    }
    let conn = cluster.connect(1).expect("the primary listens");
    for i in 0..written {
        let reply = cluster.call(conn, format!("GET key{i}\r\n").as_bytes(), Duration::from_secs(3));
        let want = format!("${}\r\nvalue{i}\r\n", format!("value{i}").len());
        assert_eq!(reply.as_deref(), Some(want.as_bytes()), "read {i}");
    }
}

/// Either side dies at many moments: some node serves again without anybody's help.
#[test]
fn a_death_in_the_middle_of_a_switchover_heals_by_itself() {
    for (round, dead) in [(0u64, 1u16), (1, 2), (2, 1), (3, 2), (4, 1), (5, 2)] {
        let mut cluster = Cluster::new(300 + round, 3, SimConfig::default(), "");
        wait_serving(&mut cluster, 1);
        drop(ask(&mut cluster, 1, Some(2)));
        pass(&mut cluster, round * 2);
        cluster.kill(dead);
        pass(&mut cluster, 300);
        cluster.start(dead, None);
        let mut serving = None;
        for _ in 0..100 {
            pass(&mut cluster, 200);
            serving = (1..=3u16).find(|node| cluster.serves(*node));
            if serving.is_some() {
                break;
            }
        }
        assert!(serving.is_some(), "round {round}: {:#?}", cluster.rows());
    }
}

/// The lights go out and come back in another order.
#[test]
fn a_blackout_ends_without_an_operator() {
    let mut cluster = Cluster::new(77, 3, SimConfig::default(), "");
    wait_serving(&mut cluster, 1);
    let conn = cluster.connect(1).expect("the primary listens");
    let reply = cluster.call(conn, b"SET kept yes\r\n", Duration::from_secs(3));
    assert_eq!(reply.as_deref(), Some(&b"+OK\r\n"[..]));
    (1..=3).for_each(|node| cluster.power_cut(node));
    for node in [3, 1, 2] {
        pass(&mut cluster, 400);
        cluster.start(node, None);
    }
    wait_serving(&mut cluster, 1);
    let conn = cluster.connect(1).expect("the primary listens");
    let reply = cluster.call(conn, b"GET kept\r\n", Duration::from_secs(3));
    assert_eq!(reply.as_deref(), Some(&b"$3\r\nyes\r\n"[..]));
}
