//! Connections: integrity, backpressure, partitions, deaths.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::*;
use crate::base::Prng;
use crate::io::CloseReason;

const A: HostId = HostId(0);
const B: HostId = HostId(1);

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Prng::new(seed).fill(&mut bytes);
    bytes
}

/// Both directions at once, gathered writes, pauses, a lossy slow link, cuts that heal in time: every byte arrives
/// once and in order.
#[test]
fn streams_arrive_whole_and_in_order() {
    let mut cuts = 0;
    for seed in 0..40 {
        let mut rng = Prng::new(seed);
        let mut config = SimConfig::default();
        config.net.split = 0.5;
        config.net.window_bytes = 8 << 10;
        let mut rig = Rig::with(seed, 2, config);
        let (a, b) = rig.connect(A, B, 7000);
        rig.world.set_link(
            A,
            B,
            LinkFault { delay: Span::millis(0, 20), loss: 0.05, bytes_per_second: Some(1 << 20) },
        );
        let ends = [(A, a), (B, b)];
        let mut sent: [Vec<u8>; 2] = Default::default();
        let mut busy = [false; 2];
        for round in 0..200 {
            for (i, (host, conn)) in ends.into_iter().enumerate() {
                let done = |e: &Event| matches!(e, Event::Sent { result: Ok(()), .. });
                if rig.events[&host].iter().any(done) {
                    rig.events.get_mut(&host).unwrap().retain(|e| !done(e));
                    busy[i] = false;
                }
                if !busy[i] && round < 150 {
                    let bytes = noise(rng.next_u64(), rng.between(0, 20_000) as usize);
                    sent[i].extend_from_slice(&bytes);
                    let cut = rng.below(bytes.len() as u64 + 1) as usize;
                    let tail = SharedSlice::copy_of(&bytes[cut..]);
                    let at = rng.below(tail.len() as u64 + 1) as usize;
                    let slices = vec![tail.slice(0..at), tail.slice(at..tail.len())];
                    let data = Outgoing::Shared { head: bytes[..cut].to_vec(), slices };
                    rig.seam(host).submit(Op::Send { token: 1, conn, data });
                    busy[i] = true;
                }
                match rng.below(4) {
                    0 => rig.seam(host).submit(Op::PauseReceive { conn }),
                    _ => rig.seam(host).submit(Op::Receive { conn }),
                }
            }
            if rng.chance(0.03) {
                cuts += 1;
                rig.world.partition(A, B);
                rig.run(ms(rng.below(1500)));
                rig.world.heal(A, B);
            }
            rig.run(Duration::from_micros(rng.below(20_000)));
        }
        for (host, conn) in ends {
            rig.seam(host).submit(Op::Receive { conn });
        }
        rig.run(secs(100));
        assert_eq!(rig.received(B, b), sent[0], "seed {seed}");
        assert_eq!(rig.received(A, a), sent[1], "seed {seed}");
        assert!(sent[0].len() > 20_000);
        rig.seam(A).submit(Op::Close { conn: a });
        assert_eq!(rig.closed(A, a), CloseReason::Local);
        assert_eq!(rig.closed(B, b), CloseReason::Finished);
    }
    assert!(cuts > 40);
}

#[test]
fn a_receiver_that_pauses_holds_the_sender_back() {
    let mut rig = Rig::new(1, 2);
    let (a, b) = rig.connect_quietly(A, B, 7000);
    rig.send(A, a, noise(1, 1 << 20));
    rig.run(secs(30));
    assert!(rig.take(A).is_empty() && rig.take(B).is_empty(), "neither sent nor received");
    rig.seam(B).submit(Op::Receive { conn: b });
    rig.sent(A, a).unwrap();
    rig.run(secs(1));
    assert_eq!(rig.received(B, b), noise(1, 1 << 20));
}

#[test]
fn a_paused_process_is_only_owed_one_window() {
    let mut rig = Rig::new(1, 2);
    let (a, b) = rig.connect(A, B, 7000);
    rig.world.pause(B);
    rig.send(A, a, noise(1, 1 << 20));
    rig.run(secs(60));
    assert!(rig.take(A).is_empty(), "a frozen peer is silent, not dead");
    rig.world.resume(B);
    rig.sent(A, a).unwrap();
    rig.run(secs(1));
    assert_eq!(rig.received(B, b).len(), 1 << 20);
}

#[test]
fn dials_succeed_are_refused_or_time_out() {
    let mut rig = Rig::new(1, 3);
    let dial = |rig: &mut Rig, to: SocketAddr| {
        let before = rig.world.now();
        rig.seam(A).submit(Op::Connect { token: 1, addr: to });
        let result = rig.connected(A, 1).map_err(|e| e.kind());
        (result, rig.world.now() - before)
    };
    let (result, took) = dial(&mut rig, addr(B, 1));
    assert!(result == Err(ErrorKind::ConnectionRefused) && took < ms(10), "{took:?}");
    let (result, took) = dial(&mut rig, SocketAddr::new(ip(99), 1));
    assert!(result == Err(ErrorKind::TimedOut) && took >= secs(3), "{took:?}");
    rig.seam(B).listen(addr(B, 7)).unwrap();
    assert!(dial(&mut rig, addr(B, 7)).0.is_ok(), "the kernel answers before the process accepts");
    rig.world.cut(B, A);
    assert_eq!(dial(&mut rig, addr(B, 7)).0, Err(ErrorKind::TimedOut), "no answer comes back");
    rig.world.heal(A, B);
    rig.world.kill(B);
    assert_eq!(dial(&mut rig, addr(B, 7)).0, Err(ErrorKind::ConnectionRefused));
    rig.world.power_cut(B);
    assert_eq!(dial(&mut rig, addr(B, 7)).0, Err(ErrorKind::TimedOut));
}

#[test]
fn a_dial_outlasts_a_short_partition() {
    let mut rig = Rig::new(1, 2);
    rig.seam(B).listen(addr(B, 7)).unwrap();
    rig.world.partition(A, B);
    rig.seam(A).submit(Op::Connect { token: 1, addr: addr(B, 7) });
    rig.run(secs(1));
    rig.world.heal(A, B);
    rig.connected(A, 1).unwrap();
}

#[test]
fn listeners_check_their_address() {
    let mut rig = Rig::new(1, 2);
    assert_eq!(rig.seam(A).listen(addr(B, 1)).unwrap_err().kind(), ErrorKind::AddrNotAvailable);
    rig.seam(A).listen(addr(A, 1)).unwrap();
    assert_eq!(rig.seam(A).listen(addr(A, 1)).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(rig.seam(A).listen("0.0.0.0:1".parse().unwrap()).unwrap_err().kind(), ErrorKind::AddrInUse);
    let (listener, bound) = rig.seam(A).listen("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_ne!(bound.port(), 0);
    rig.seam(A).submit(Op::Accept { listener });
    rig.seam(A).submit(Op::Connect { token: 2, addr: bound });
    rig.connected(A, 2).unwrap();
    rig.seam(B).submit(Op::Connect { token: 2, addr: bound });
    assert!(rig.connected(B, 2).is_err(), "loopback stays on its host");
}

#[test]
fn a_failed_accept_leaves_the_connection_waiting() {
    let mut rig = Rig::new(1, 2);
    let (listener, at) = rig.seam(B).listen(addr(B, 7)).unwrap();
    rig.world.fail_accept(B);
    rig.seam(B).submit(Op::Accept { listener });
    rig.seam(A).submit(Op::Connect { token: 1, addr: at });
    rig.wait(B, |e| matches!(e, Event::AcceptFailed { .. }).then_some(()));
    rig.run(secs(1));
    assert!(rig.take(B).is_empty());
    rig.seam(B).submit(Op::Accept { listener });
    rig.wait(B, |e| matches!(e, Event::Accepted { peer, .. } if peer.ip() == ip(1)).then_some(()));
}

/// After kill -9 the peer hears a finish or a reset within milliseconds, after all that was already on its way.
#[test]
fn a_killed_process_is_heard_of_soon() {
    let reasons: BTreeSet<bool> = (0..30)
        .map(|seed| {
            let mut rig = Rig::new(seed, 2);
            let (a, b) = rig.connect(A, B, 7000);
            rig.send(A, a, noise(1, 1000));
            rig.sent(A, a).unwrap();
            let before = rig.world.now();
            rig.world.kill(A);
            let reason = rig.closed(B, b);
            assert!(rig.world.now() - before < ms(20));
            assert_eq!(rig.received(B, b), noise(1, 1000), "what was sent arrives first");
            assert!(matches!(reason, CloseReason::Finished | CloseReason::Reset), "{reason:?}");
            reason == CloseReason::Reset
        })
        .collect();
    assert_eq!(reasons.len(), 2, "both variants occur");
}

#[test]
fn a_power_cut_is_silent_until_somebody_talks_to_the_dead() {
    let mut rig = Rig::new(1, 2);
    let (a, _) = rig.connect(A, B, 7000);
    rig.world.power_cut(B);
    rig.run(secs(3600));
    assert!(rig.take(A).is_empty(), "an idle connection notices nothing");
    rig.send(A, a, vec![1; 100]);
    rig.sent(A, a).unwrap();
    let before = rig.world.now();
    assert_eq!(rig.closed(A, a), CloseReason::Failed);
    assert!(rig.world.now() - before >= secs(7));
    rig.run(secs(60));
    assert!(rig.take(A).is_empty(), "nothing comes after a close");
}

#[test]
fn a_rebooted_machine_resets_the_connections_of_its_past() {
    let mut rig = Rig::new(1, 2);
    let (a, _) = rig.connect(A, B, 7000);
    rig.world.power_cut(B);
    rig.send(A, a, vec![1; 100]);
    rig.run(secs(2));
    rig.start(B);
    assert_eq!(rig.closed(A, a), CloseReason::Reset);
    assert!(rig.take(B).is_empty());
}

#[test]
fn a_connection_outlasts_a_short_partition_and_fails_in_a_long_one() {
    for (cut, survives) in [(secs(4), true), (secs(20), false)] {
        let mut rig = Rig::new(1, 2);
        let (a, b) = rig.connect(A, B, 7000);
        rig.world.partition(A, B);
        rig.send(A, a, vec![7; 5000]);
        rig.run(cut);
        assert!(rig.received(B, b).is_empty());
        rig.world.heal(A, B);
        rig.run(secs(5));
        assert_eq!(rig.received(B, b).len() == 5000, survives);
        let failed =
            rig.take(A).iter().any(|e| matches!(e, Event::Closed { reason: CloseReason::Failed, .. }));
        assert_eq!(failed, !survives);
        if !survives {
            assert!(rig.take(B).is_empty(), "the other side is half open");
            rig.send(B, b, vec![1]);
            assert_eq!(rig.closed(B, b), CloseReason::Reset, "until it speaks");
        }
    }
}

/// A cut from A to B only: B's bytes reach A, but B never hears that they did.
#[test]
fn one_way_partitions_fail_one_side_first() {
    let mut rig = Rig::new(1, 2);
    let (a, b) = rig.connect(A, B, 7000);
    rig.world.cut(A, B);
    rig.send(B, b, vec![3; 100]);
    rig.run(secs(1));
    assert_eq!(rig.received(A, a).len(), 100);
    assert_eq!(rig.closed(B, b), CloseReason::Failed);
    assert!(!rig.take(A).iter().any(|e| matches!(e, Event::Closed { .. })));
}

#[test]
fn other_links_are_untouched_by_a_partition() {
    let mut rig = Rig::new(1, 3);
    let (a, b) = rig.connect(A, B, 7000);
    let (c, d) = rig.connect(A, HostId(2), 7000);
    rig.world.isolate(B);
    rig.send(A, c, vec![1; 10]);
    rig.send(A, a, vec![1; 10]);
    rig.run(secs(1));
    assert_eq!(rig.received(HostId(2), d).len(), 10);
    assert_eq!(rig.received(B, b).len(), 0);
}

#[test]
fn a_close_ends_the_send_first_and_comes_once() {
    let mut rig = Rig::new(1, 2);
    let (a, b) = rig.connect_quietly(A, B, 7000);
    rig.send(A, a, vec![1; 1 << 20]);
    rig.seam(A).submit(Op::Receive { conn: a });
    rig.run(secs(1));
    rig.seam(A).submit(Op::Close { conn: a });
    rig.seam(A).submit(Op::Close { conn: a });
    rig.run(secs(1));
    let events = rig.take(A);
    assert!(
        matches!(
            events[..],
            [Event::Sent { result: Err(_), .. }, Event::Closed { reason: CloseReason::Local, .. }]
        ),
        "{events:?}"
    );
    rig.seam(B).submit(Op::Receive { conn: b });
    assert_eq!(rig.closed(B, b), CloseReason::Finished);
    rig.send(A, a, vec![1]);
    assert!(rig.sent(A, a).is_err(), "a closed connection sends nothing");
    rig.run(secs(1));
    assert!(rig.take(A).is_empty());
}

/// The peer closed, and this process sends before it has seen that: the failed send still comes before the close.
#[test]
fn nothing_follows_a_close() {
    for seed in 0..30 {
        let mut rig = Rig::new(seed, 2);
        let (a, b) = rig.connect(A, B, 7000);
        rig.seam(B).submit(Op::Close { conn: b });
        rig.world.pause(A);
        rig.run(secs(1));
        rig.send(A, a, vec![1; 10]);
        rig.world.resume(A);
        rig.run(secs(1));
        let events = rig.take(A);
        assert!(
            matches!(
                events[..],
                [Event::Sent { result: Err(_), .. }, Event::Closed { reason: CloseReason::Finished, .. }]
            ),
            "{events:?}"
        );
    }
}

#[test]
fn closing_with_unread_bytes_resets_the_peer() {
    let mut rig = Rig::new(1, 2);
    let (a, b) = rig.connect_quietly(A, B, 7000);
    rig.seam(A).submit(Op::Receive { conn: a });
    rig.send(A, a, vec![1; 10]);
    rig.run(secs(1));
    rig.seam(B).submit(Op::Close { conn: b });
    assert_eq!(rig.closed(A, a), CloseReason::Reset);
}

#[test]
fn a_middlebox_resets_both_ends() {
    let mut rig = Rig::new(1, 2);
    let (a, b) = rig.connect(A, B, 7000);
    rig.world.reset_connections(A, B);
    assert_eq!(rig.closed(A, a), CloseReason::Reset);
    assert_eq!(rig.closed(B, b), CloseReason::Reset);
}

#[test]
fn old_bytes_can_be_replayed_on_a_new_connection() {
    let mut config = SimConfig::default();
    config.net.capture = true;
    let mut rig = Rig::with(1, 2, config);
    let (a, _) = rig.connect(A, B, 7000);
    rig.send(A, a, noise(4, 300_000));
    rig.run(secs(1));
    let old = rig.world.captured(A, B);
    assert_eq!(old, [noise(4, 300_000)]);
    rig.world.inject(A, addr(B, 7000), old[0].clone());
    let conn = rig.wait(B, |e| match e {
        Event::Accepted { conn, .. } => Some(*conn),
        _ => None,
    });
    rig.seam(B).submit(Op::Receive { conn });
    rig.send(B, conn, vec![1; 1 << 20]);
    rig.sent(B, conn).unwrap();
    rig.run(secs(1));
    assert_eq!(rig.received(B, conn), noise(4, 300_000));
}

#[test]
fn latency_and_bandwidth_are_felt() {
    let mut rig = Rig::new(1, 2);
    let (a, b) = rig.connect(A, B, 7000);
    rig.world.set_link(
        A,
        B,
        LinkFault { bytes_per_second: Some(100_000), ..LinkFault::slow(Span::millis(300, 300)) },
    );
    rig.send(A, a, vec![1; 200_000]);
    rig.run(ms(290));
    assert!(rig.received(B, b).is_empty());
    rig.run(ms(2_000));
    assert!(rig.received(B, b).len() < 200_000);
    rig.run(ms(1_000));
    assert_eq!(rig.received(B, b).len(), 200_000);
}

#[test]
fn a_bit_can_flip_on_the_wire() {
    let mut rig = Rig::new(1, 2);
    let (a, b) = rig.connect(A, B, 7000);
    rig.world.corrupt_segment(A, B);
    rig.send(A, a, vec![0; 200_000]);
    rig.run(secs(1));
    let got = rig.received(B, b);
    assert_eq!((got.len(), got.iter().map(|byte| byte.count_ones()).sum::<u32>()), (200_000, 1));
}

/// A sender out of room whose peer's answers are cut off for good gives up: nothing in the world probes for ever.
#[test]
fn hopeless_probing_ends() {
    let mut rig = Rig::new(1, 2);
    let (a, b) = rig.connect_quietly(A, B, 7000);
    rig.send(A, a, vec![1; 1 << 20]);
    rig.run(secs(1));
    rig.world.cut(B, A);
    rig.seam(B).submit(Op::Receive { conn: b });
    rig.world.reset_connections(A, B);
    assert!(rig.sent(A, a).is_err());
    rig.seam(A).submit(Op::Receive { conn: a });
    rig.run(secs(60));
    assert_eq!(rig.world.next(), None);
}

/// Loopback is quick enough for the receiver to make room before the sender hears that its send is done.
#[test]
fn a_host_talks_to_itself() {
    let mut rig = Rig::new(1, 1);
    let (a, b) = rig.connect(A, A, 7000);
    for round in 1..=2000 {
        rig.send(A, a, vec![1; 100]);
        rig.sent(A, a).unwrap();
        if round % 100 == 0 {
            rig.run(ms(1));
            assert_eq!(rig.received(A, b).len(), round * 100);
        }
    }
    assert!(!rig.take(A).iter().any(|e| matches!(e, Event::Sent { .. })), "one event for each send");
}
