//! Determinism, dead seams, wake-ups, crash points, plans, cost.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::base::Prng;
use crate::io::Open;

const PORT: u16 = 7000;

/// A process that does a bit of everything, driven by its own chance: writes, flushes, renames, dials its peers, sends
/// beats, echoes what it hears, crashes at nothing.
struct Busy {
    seam: SimSeam,
    peers: Vec<SocketAddr>,
    file: Option<FileId>,
    conns: Vec<(ConnId, bool)>,
    token: Token,
    next_beat: Mono,
    beat: Duration,
}

impl Busy {
    fn start(mut seam: SimSeam, me: SocketAddr, peers: Vec<SocketAddr>, beat: Duration) -> Busy {
        let path = Path::new("/data");
        let file = match seam.open(path, Open::Existing) {
            Ok(file) => Some(file),
            Err(_) => seam.open(path, Open::Create).ok(),
        };
        if let Ok((listener, _)) = seam.listen(me) {
            seam.submit(Op::Accept { listener });
        }
        for addr in &peers {
            seam.submit(Op::Connect { token: u64::from(addr.port()), addr: *addr });
        }
        let next_beat = seam.now() + beat;
        Busy { seam, peers, file, conns: Vec::new(), token: 0, next_beat, beat }
    }

    fn turn(&mut self) -> Option<Mono> {
        let mut events = Vec::new();
        self.seam.reap(Some(self.next_beat), &mut events);
        for event in events {
            self.apply(event);
        }
        let now = self.seam.now();
        if now >= self.next_beat {
            self.next_beat = now + self.beat;
            self.act();
        }
        Some(self.next_beat)
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Accepted { conn, .. } | Event::Connected { result: Ok(conn), .. } => {
                self.conns.push((conn, false));
                self.seam.submit(Op::Receive { conn });
            }
            Event::Connected { result: Err(_), .. } => {
                let addr = self.peers[self.seam.random() as usize % self.peers.len()];
                self.seam.submit(Op::Connect { token: 1, addr });
            }
            Event::Sent { conn, .. } => {
                if let Some(c) = self.conns.iter_mut().find(|c| c.0 == conn) {
                    c.1 = false;
                }
            }
            Event::Closed { conn, .. } => {
                self.conns.retain(|c| c.0 != conn);
                if self.conns.len() < self.peers.len() {
                    let addr = self.peers[self.seam.random() as usize % self.peers.len()];
                    self.seam.submit(Op::Connect { token: 1, addr });
                }
            }
            _ => {}
        }
    }

    fn act(&mut self) {
        let draw = self.seam.random();
        if let Some(file) = self.file {
            self.token += 1;
            let offset = draw % 16 * 4096;
            let data = blocks(draw as u8, 1 + draw as usize % 3);
            self.seam.submit(Op::Write {
                token: self.token,
                file,
                offset,
                data,
                durable: draw.is_multiple_of(3),
            });
            if draw.is_multiple_of(5) {
                self.seam.submit(Op::Flush { token: self.token, file });
            }
        }
        for i in 0..self.conns.len() {
            let (conn, busy) = self.conns[i];
            if !busy {
                self.conns[i].1 = true;
                let data = Outgoing::Owned(vec![draw as u8; 1 + draw as usize % 3000]);
                self.seam.submit(Op::Send { token: 0, conn, data });
            }
        }
        if self.seam.buggify("close a connection") && !self.conns.is_empty() {
            let (conn, _) = self.conns[draw as usize % self.conns.len()];
            self.seam.submit(Op::Close { conn });
        }
    }
}

/// Runs a cluster of busy processes under a fault plan, then in calm; returns the trace hash and what happened.
fn busy_world(
    seed: u64,
    nodes: u8,
    length: Duration,
    beat: Duration,
    faults: bool,
) -> (u64, Stats, Vec<String>) {
    let world = World::new(seed, SimConfig::default());
    let hosts: Vec<HostId> = (0..nodes).map(|n| world.add_host(ip(n + 1))).collect();
    let start = |host: HostId| {
        let peers = hosts.iter().filter(|h| **h != host).map(|h| addr(*h, PORT)).collect();
        Busy::start(world.seam(host), addr(host, PORT), peers, beat)
    };
    let mut running: BTreeMap<HostId, Busy> = hosts.iter().map(|h| (*h, start(*h))).collect();
    let mut config = SwarmConfig::new(hosts.clone(), Vec::new(), length);
    config.mean_gap = Span::millis(300, 2000);
    let mut plan = if faults { FaultPlan::swarm(seed, &config).steps } else { Vec::new() };
    plan.push(Step { at: length * 2, fault: Fault::Start(hosts[0]) });
    for step in plan {
        loop {
            match world.next_before(Mono(0) + step.at) {
                Some(Due::Turn(host)) => {
                    let deadline = running.get_mut(&host).expect("running").turn();
                    world.wake_at(host, deadline);
                }
                Some(Due::Crashed(host)) => drop(running.remove(&host)),
                None => break,
            }
        }
        world.apply(&step.fault);
        match step.fault {
            Fault::Start(host) if !world.is_up(host) => drop(running.insert(host, start(host))),
            Fault::Kill(host) | Fault::PowerCut(host) => drop(running.remove(&host)),
            _ => {}
        }
        if step.at == length {
            world.calm();
        }
    }
    (world.trace_hash(), world.stats(), world.last_events())
}

#[test]
fn a_seed_names_one_run() {
    let mut hashes = BTreeSet::new();
    let mut total = Stats::default();
    for seed in 0..12 {
        let (hash, stats, lines) = busy_world(seed, 4, secs(20), ms(20), true);
        let (again, stats_again, lines_again) = busy_world(seed, 4, secs(20), ms(20), true);
        assert_eq!(lines, lines_again, "seed {seed} went two ways");
        assert_eq!((hash, stats), (again, stats_again), "seed {seed} went two ways");
        assert!(hashes.insert(hash), "two seeds gave one run");
        total.turns += stats.turns;
        total.kills += stats.kills;
        total.power_cuts += stats.power_cuts;
        total.writes_torn += stats.writes_torn;
        total.late_writes += stats.late_writes;
        total.connections_failed += stats.connections_failed;
        total.bytes_received += stats.bytes_received;
    }
    assert!(total.turns > 100_000 && total.bytes_received > 10_000_000, "{total:?}");
    let rare =
        [total.kills, total.power_cuts, total.writes_torn, total.late_writes, total.connections_failed];
    assert!(rare.iter().all(|n| *n > 0), "the plans reached everything: {total:?}");
}

/// The price of an idle cluster of three with beats every 200 ms, in scheduler steps: what makes hours affordable.
#[test]
fn an_idle_cluster_is_cheap() {
    let (_, stats, _) = busy_world(1, 3, secs(50), ms(200), false);
    let steps = (stats.events + stats.turns) / 100;
    assert!(steps < 300, "{steps} steps for each simulated second");
    assert!(stats.turns > 1000 && stats.bytes_received > 0, "{stats:?}");
}

#[test]
fn the_trace_tells_content_from_content() {
    let hash = |byte| {
        let mut rig = Rig::new(1, 1);
        let file = rig.create(HostId(0), "/f");
        rig.write(HostId(0), file, 0, byte, true);
        (rig.world.trace_hash(), rig.world.last_events())
    };
    assert_eq!(hash(1), hash(1));
    assert_ne!(hash(1).0, hash(2).0);
    assert_eq!(hash(1).1, hash(2).1, "the lines show no content");
    assert!(hash(1).1.iter().any(|line| line.contains("write durable")));
}

#[test]
fn a_dead_process_can_do_no_harm() {
    let a = HostId(0);
    let mut rig = Rig::new(1, 2);
    let (conn, _) = rig.connect(a, HostId(1), PORT);
    let file = rig.create(a, "/f");
    let mut old = rig.seams.remove(&a).unwrap();
    rig.start(a);
    let drawn = {
        let mut fresh = Rig::new(1, 2);
        fresh.connect(a, HostId(1), PORT);
        fresh.create(a, "/f");
        fresh.start(a);
        fresh.seam(a).random()
    };
    old.random();
    assert_eq!(rig.seam(a).random(), drawn, "the dead do not shift the draws of the living");
    let before = rig.world.trace_hash();
    let aborted = |e: std::io::Error| assert_eq!(e.kind(), std::io::ErrorKind::ConnectionAborted);
    aborted(old.open(Path::new("/g"), Open::Create).unwrap_err());
    aborted(old.remove(Path::new("/f")).unwrap_err());
    aborted(old.sync_folder(Path::new("/")).unwrap_err());
    aborted(old.lock_folder(Path::new("/")).unwrap_err());
    aborted(old.list(Path::new("/")).unwrap_err());
    aborted(old.file_len(file).unwrap_err());
    aborted(old.write_now(file, 0, &blocks(1, 1)).unwrap_err());
    aborted(old.flush_now(file).unwrap_err());
    aborted(old.read_now(file, 0, 4096).unwrap_err());
    aborted(old.listen(addr(a, 1)).unwrap_err());
    old.close_file(file);
    old.submit(Op::Close { conn });
    old.submit(Op::Flush { token: 1, file });
    old.reap(None, &mut Vec::new());
    old.waker().wake();
    assert!(!old.buggify("anything"));
    drop(old);
    assert_eq!(rig.world.trace_hash(), before);
    assert!(rig.world.is_up(a), "and dropping it does not kill its successor");
    rig.run(secs(1));
    assert!(rig.take(a).is_empty());
}

#[test]
fn dropping_a_live_seam_ends_its_process() {
    let mut rig = Rig::new(1, 2);
    let (_, there) = rig.connect(HostId(0), HostId(1), PORT);
    rig.seams.remove(&HostId(0));
    assert!(!rig.world.is_up(HostId(0)));
    rig.closed(HostId(1), there);
}

#[test]
fn a_waker_wakes_from_another_thread() {
    let a = HostId(0);
    let mut rig = Rig::new(1, 2);
    rig.run(ms(1));
    let waker = rig.seam(a).waker();
    std::thread::spawn(move || {
        waker.wake();
        waker.wake();
    })
    .join()
    .unwrap();
    rig.run(ms(1));
    let events = rig.take(a);
    assert!(matches!(events[..], [Event::Woken]), "{events:?}");
    assert!(rig.take(HostId(1)).is_empty());
}

#[test]
fn a_planned_crash_strikes_inside_the_turn() {
    let a = HostId(0);
    for (crash, survives) in [(Crash::Kill, true), (Crash::PowerCut, false)] {
        let kept = (0..40).filter(|seed| {
            let mut config = SimConfig::default();
            config.disk.cancel_on_kill = 0.0;
            let mut rig = Rig::with(*seed, 1, config);
            let file = rig.create(a, "/f");
            let before = rig.world.ops(a);
            rig.world.crash_after_ops(a, 2, crash);
            for i in 0..4 {
                rig.submit_write(a, i, file, i, 1, true);
            }
            assert_eq!(rig.world.ops(a), before + 2, "the other two had no effect");
            rig.run(secs(1));
            assert_eq!(rig.crashed, [a]);
            let content = rig.content(a, "/f").unwrap();
            assert!(content.len() <= 2, "{content:?}");
            content == [1, 1]
        });
        let kept = kept.count();
        assert_eq!(kept == 40, survives, "{crash:?}: {kept}");
    }
}

#[test]
fn buggify_points_live_by_seed_and_can_be_switched_off() {
    let fired = |seed: u64, on: bool| {
        let mut rig = Rig::new(seed, 1);
        rig.world.set_buggify(on);
        for _ in 0..200 {
            for point in ["one", "two", "three", "four"] {
                rig.seam(HostId(0)).buggify(point);
            }
        }
        rig.world.buggified()
    };
    let runs: Vec<_> = (0..30).map(|seed| fired(seed, true)).collect();
    assert!(
        runs.iter().any(|r| r.is_empty()) && runs.iter().any(|r| r.len() >= 2),
        "alive in some worlds only"
    );
    assert!(runs.iter().flat_map(|r| r.values()).all(|n| *n < 40), "and then rarely");
    assert!((0..30).all(|seed| fired(seed, false).is_empty()));
}

/// Several hosts due at one moment take their turns in an order that the seed chooses.
#[test]
fn ties_are_broken_by_the_seed() {
    let orders: BTreeSet<Vec<Due>> = (0..20)
        .map(|seed| {
            let rig = Rig::new(seed, 3);
            std::iter::from_fn(|| rig.world.next()).take(3).collect()
        })
        .collect();
    assert!(orders.len() > 3, "{orders:?}");
}

#[test]
fn calm_ends_every_lasting_fault() {
    let a = HostId(0);
    let mut rig = Rig::new(1, 3);
    let file = rig.create(a, "/f");
    let mut rng = Prng::new(1);
    rig.world.stall_disk(a, Stall::Everything);
    rig.submit_write(a, 1, file, 0, 1, true);
    rig.run(secs(1));
    rig.world.slow_disk(a, 1000.0);
    rig.world.fail_flushes(a, true);
    rig.world.fail_nth(a, DiskOp::Write, 0);
    rig.world.set_quota(a, Some(0));
    rig.world.lie_about_flushes(a, true);
    rig.world.set_drift(a, 400_000);
    rig.world.isolate(a);
    rig.world.set_link(a, HostId(1), LinkFault::lossy(0.9));
    rig.world.fail_accept(HostId(1));
    rig.world.crash_after_ops(a, rng.below(1), Crash::PowerCut);
    rig.world.pause(a);
    rig.run(secs(5));
    rig.world.calm();
    rig.written(a, 1).unwrap();
    rig.write(a, file, 1, 2, true);
    rig.flush(a, file);
    let before = rig.world.now();
    let (conn, there) = rig.connect(a, HostId(1), PORT);
    rig.send(a, conn, vec![1; 10_000]);
    rig.sent(a, conn).unwrap();
    rig.run(ms(50));
    assert_eq!(rig.received(HostId(1), there).len(), 10_000);
    assert!(rig.world.now() - before < ms(200));
    let (true_before, local_before) = (rig.world.now(), rig.world.local_now(a));
    rig.run(secs(1));
    let (truly, local) = (rig.world.now() - true_before, rig.world.local_now(a) - local_before);
    assert!(truly.abs_diff(local) < ms(1), "{truly:?} {local:?}");
    rig.world.power_cut(a);
    assert_eq!(rig.content(a, "/f").unwrap(), [1, 2]);
}
