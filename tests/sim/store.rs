//! The control store of the simulated cluster, and whole nodes that decide through it.

use std::collections::BTreeSet;
use std::time::Duration;

use baton::admin::{Failover, Verb};
use baton::base::{Mono, Prng};
use baton::io::sim::{SimConfig, SimSeam};
use baton::node::Node;
use baton::role::{StoreAnswer, StoreRequest, StoredPolicy};

use super::cluster::{Cluster, STORED};
use super::wait_serving;

/// One key in one order for everybody; answers come late, get lost, or say that nothing is known.
pub struct SimStore {
    revision: u64,
    value: Option<Vec<u8>>,
    under_way: Vec<UnderWay>,
    rng: Prng,
    /// It is out now and then, and keeps answers to itself.
    pub flaky: bool,
    pub out_until: Mono,
    /// Every question takes at least so many milliseconds.
    pub slow_ms: u64,
    /// Until then it does what it is asked and keeps the answers to itself.
    pub mute_until: Mono,
    /// Nodes that do not reach it.
    pub beyond: BTreeSet<u16>,
}

struct UnderWay {
    node: u16,
    /// The process that asked is gone.
    orphan: bool,
    ticket: u64,
    done_at: Mono,
    told_at: Mono,
    request: Option<StoreRequest>,
    answer: Option<StoreAnswer>,
}

impl SimStore {
    pub fn new(seed: u64) -> SimStore {
        SimStore {
            revision: 0,
            value: None,
            under_way: Vec::new(),
            rng: Prng::new(seed ^ 0x5705_e000),
            flaky: false,
            out_until: Mono(0),
            slow_ms: 0,
            mute_until: Mono(0),
            beyond: BTreeSet::new(),
        }
    }

    /// What stands in it.
    pub fn policy(&self) -> Option<StoredPolicy> {
        StoredPolicy::decode(self.value.as_deref()?)
    }

    /// No more trouble with it.
    pub fn mend(&mut self) {
        (self.slow_ms, self.out_until, self.mute_until) = (0, Mono(0), Mono(0));
        self.beyond.clear();
    }

    /// The process is gone, and nobody hears the answers; what it asked for may still be done.
    pub fn forget(&mut self, node: u16) {
        for asked in self.under_way.iter_mut().filter(|asked| asked.node == node) {
            (asked.orphan, asked.told_at) = (true, Mono(u64::MAX));
        }
    }

    /// When the next answer for a node is due.
    pub fn due(&self, node: u16) -> Option<Mono> {
        self.under_way.iter().filter(|asked| asked.node == node).map(|asked| asked.told_at).min()
    }

    /// Takes a node's questions and gives it the answers that are due.
    pub fn serve(&mut self, now: Mono, number: u16, node: &mut Node<SimSeam>) {
        while let Some((ticket, request)) = node.store_question() {
            let done_at = now + Duration::from_millis(self.slow_ms + self.rng.between(0, 20));
            // A process asks one thing after the other.
            let before = self.under_way.iter().filter(|asked| asked.node == number && !asked.orphan);
            let done_at = before.map(|asked| asked.done_at).fold(done_at, Mono::max);
            let mut told_at = done_at + Duration::from_millis(self.rng.between(0, 10));
            if now < self.mute_until || (self.flaky && self.rng.chance(0.02)) {
                told_at = Mono(u64::MAX);
            }
            let (request, answer, orphan) = (Some(request), None, false);
            self.under_way.push(UnderWay { node: number, orphan, ticket, done_at, told_at, request, answer });
        }
        self.under_way.sort_by_key(|asked| asked.done_at);
        let mut under_way = std::mem::take(&mut self.under_way);
        for asked in under_way.iter_mut().filter(|asked| asked.done_at <= now) {
            if let Some(request) = asked.request.take() {
                let reached = !self.beyond.contains(&asked.node);
                asked.answer = Some(if reached { self.carry_out(now, request) } else { StoreAnswer::Silent });
            }
        }
        under_way.retain(|asked| asked.answer.is_none() || asked.told_at != Mono(u64::MAX));
        let mut later = Vec::new();
        for asked in under_way {
            match asked.answer {
                Some(answer) if asked.node == number && asked.told_at <= now => {
                    node.store_answer(asked.ticket, answer);
                }
                answer => later.push(UnderWay { answer, ..asked }),
            }
        }
        self.under_way = later;
    }

    fn carry_out(&mut self, now: Mono, request: StoreRequest) -> StoreAnswer {
        if self.flaky && self.rng.chance(0.01) {
            self.out_until = now + Duration::from_millis(self.rng.between(50, 3_000));
        }
        if now < self.out_until {
            return StoreAnswer::Silent;
        }
        let unknown = self.flaky && self.rng.chance(0.05);
        match request {
            StoreRequest::Swap { .. } if unknown && self.rng.chance(0.5) => StoreAnswer::Unknown,
            StoreRequest::Swap { expect, value } if expect == self.revision => {
                (self.revision, self.value) = (expect + 1, Some(value));
                if unknown { StoreAnswer::Unknown } else { StoreAnswer::Done { revision: expect + 1 } }
            }
            _ => StoreAnswer::Stands { revision: self.revision, value: self.value.clone() },
        }
    }
}

fn pass(cluster: &mut Cluster, ms: u64) {
    let until = cluster.world.now() + Duration::from_millis(ms);
    while cluster.world.now() < until {
        cluster.run(until);
        cluster.client_events.clear();
    }
}

fn part(cluster: &Cluster, a: u16, b: u16) {
    let host = |node: u16| cluster.machines[usize::from(node) - 1].host;
    cluster.world.partition(host(a), host(b));
}

fn leads(cluster: &mut Cluster, node: u16) -> bool {
    cluster.status(node).is_some_and(|row| row["role"] == "Primary" && row["state"] == "Normal")
}

fn failover(cluster: &mut Cluster, node: u16) {
    let wish = Failover { timeout_ms: 8_000, ..Failover::default() };
    drop(cluster.order(node, Verb::Failover(wish)));
}

#[test]
fn a_pair_goes_on_with_one_copy_and_comes_back_to_two() {
    let mut cluster = Cluster::new(61, 2, SimConfig::default(), STORED);
    wait_serving(&mut cluster, 1);
    pass(&mut cluster, 1_000);
    cluster.kill(1);
    failover(&mut cluster, 2);
    pass(&mut cluster, 4_000);
    assert!(leads(&mut cluster, 2), "{:#?}", cluster.rows());
    let conn = cluster.connect(2).expect("it serves");
    let reply = cluster.call(conn, b"SET one copy\r\n", Duration::from_secs(2));
    assert_eq!(reply.as_deref(), Some(&b"+OK\r\n"[..]));
    cluster.start(1, None);
    pass(&mut cluster, 8_000);
    // With two copies again, either one may go. Here the primary degrades by itself.
    cluster.kill(1);
    pass(&mut cluster, 5_000);
    let conn = cluster.connect(2).expect("it serves");
    let reply = cluster.call(conn, b"SET one again\r\n", Duration::from_secs(2));
    assert_eq!(reply.as_deref(), Some(&b"+OK\r\n"[..]), "{:#?}", cluster.rows());
}

#[test]
fn of_two_parted_nodes_the_store_grants_one() {
    for seed in 0..8 {
        let mut cluster = Cluster::new(70 + seed, 2, SimConfig::default(), STORED);
        wait_serving(&mut cluster, 1);
        pass(&mut cluster, 1_000);
        part(&cluster, 1, 2);
        pass(&mut cluster, 1_000 + 150 * seed);
        failover(&mut cluster, 2);
        pass(&mut cluster, 10_000);
        let mut writes = 0;
        for node in [1, 2] {
            if let Some(conn) = cluster.connect(node) {
                let reply = cluster.call(conn, b"SET who leads\r\n", Duration::from_secs(1));
                writes += u32::from(reply.as_deref() == Some(&b"+OK\r\n"[..]));
            }
        }
        assert_eq!(writes, 1, "seed {seed}: {:#?}", cluster.rows());
        cluster.world.heal_all();
        pass(&mut cluster, 10_000);
        let leading = [1, 2].map(|node| leads(&mut cluster, node));
        assert_eq!(leading.iter().filter(|leads| **leads).count(), 1, "seed {seed}: {:#?}", cluster.rows());
    }
}
