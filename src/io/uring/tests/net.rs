//! Sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use super::super::net::loop_of;
use super::super::sys::for_tests as sys;
use super::*;

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A seam that listens, and one accepted connection with the peer's plain socket.
fn pair(config: UringConfig) -> (UringSeam, Inbox, ConnId, TcpStream) {
    let mut seam = UringSeam::new(config).unwrap();
    let mut inbox = Inbox::new();
    let (listener, addr) = seam.listen(loopback()).unwrap();
    seam.spread(listener);
    seam.submit(Op::Accept { listener });
    let peer = TcpStream::connect(addr).unwrap();
    peer.set_nodelay(true).unwrap();
    let conn = inbox.accepted(&mut seam);
    (seam, inbox, conn, peer)
}

/// Every way of receiving: with all kernel features, with overflowing queues, without multishot, without shared
/// buffers; each of them on one loop and on three.
fn configs() -> Vec<UringConfig> {
    let small = UringConfig { buffers: 8, network_buffers: 8, buffer_bytes: 4096, ..UringConfig::default() };
    let kinds = |all: UringConfig| {
        let no_multishot = UringConfig { multishot: false, ..all.clone() };
        let no_buffers = UringConfig { shared_buffers: false, ..all.clone() };
        let tiny = UringConfig { entries: 1, network_queue: 1, ..all.clone() };
        [all, tiny, no_multishot, no_buffers]
    };
    on_loops(small).into_iter().flat_map(kinds).collect()
}

/// On the node's loop alone, with two network loops beside it, and with these and busy polling.
fn on_loops(config: UringConfig) -> [UringConfig; 3] {
    let busy = Duration::from_millis(5);
    [(0, Duration::ZERO), (2, Duration::ZERO), (2, busy)].map(|(network_loops, busy_poll)| UringConfig {
        network_loops,
        busy_poll,
        ..config.clone()
    })
}

/// On one loop, on three and on three with busy polling, each with and without copying.
fn copying_or_not() -> Vec<UringConfig> {
    let kinds = [ZeroCopy::Never, ZeroCopy::Everywhere];
    let kinds = kinds.map(|zero_copy| UringConfig { zero_copy, ..UringConfig::default() });
    kinds.into_iter().flat_map(on_loops).collect()
}

/// Resets the connection instead of closing it in order.
fn reset(socket: TcpStream) {
    super::super::sys::discard_on_close(&socket.into());
}

#[test]
fn bytes_come_and_go_in_order_with_pauses_in_between() {
    for config in configs() {
        let (mut seam, mut inbox, conn, mut peer) = pair(config);
        let data = random_bytes(2, 3 << 20);
        let theirs = data.clone();
        let echo = thread::spawn(move || {
            let mut writer = peer.try_clone().unwrap();
            let to_send = theirs.clone();
            let sender = thread::spawn(move || writer.write_all(&to_send).unwrap());
            let mut back = vec![0; theirs.len()];
            peer.read_exact(&mut back).unwrap();
            sender.join().unwrap();
            assert!(back == theirs);
            peer
        });
        let (mut got, mut token) = (Vec::new(), 0);
        seam.submit(Op::Receive { conn });
        while got.len() < data.len() {
            let bytes = inbox.received(&mut seam, conn);
            got.extend_from_slice(&bytes);
            token += 1;
            seam.submit(Op::Send { token, conn, data: Outgoing::Owned(bytes.to_vec()) });
            drop(bytes);
            if token % 7 == 0 {
                // Pause and resume in one turn and over turns; the last word counts.
                seam.submit(Op::PauseReceive { conn });
                seam.submit(Op::Receive { conn });
                seam.submit(Op::PauseReceive { conn });
                inbox.sent(&mut seam, token).1.unwrap();
                seam.submit(Op::Receive { conn });
            } else {
                inbox.sent(&mut seam, token).1.unwrap();
            }
        }
        assert!(got == data);
        drop(echo.join().unwrap());
        assert_eq!(inbox.closed(&mut seam, conn), CloseReason::Finished);
        assert!(inbox.events.is_empty(), "nothing after the end: {:?}", inbox.events);
    }
}

#[test]
fn a_paused_connection_stays_silent_until_resumed() {
    // How soon a pause is in force on another thread nobody can say; what it bounds there has a test of its own.
    for config in configs().into_iter().filter(|config| config.network_loops == 0) {
        let (mut seam, mut inbox, conn, mut peer) = pair(config);
        seam.submit(Op::Receive { conn });
        peer.write_all(b"one").unwrap();
        assert_eq!(inbox.bytes(&mut seam, conn, 3), b"one");
        seam.submit(Op::PauseReceive { conn });
        // A round through the kernel, after which the pause is in force.
        let deadline = seam.now() + Duration::from_millis(20);
        seam.reap(Some(deadline), &mut inbox.events);
        peer.write_all(b"two").unwrap();
        let deadline = seam.now() + Duration::from_millis(50);
        seam.reap(Some(deadline), &mut inbox.events);
        assert!(inbox.events.is_empty(), "{:?}", inbox.events);
        seam.submit(Op::Receive { conn });
        assert_eq!(inbox.bytes(&mut seam, conn, 3), b"two");
    }
}

#[test]
fn gathered_sends_of_megabytes_reach_a_slow_reader_whole() {
    for config in copying_or_not() {
        let (mut seam, mut inbox, conn, mut peer) = pair(config);
        // More slices than one gathered write takes, and large ones.
        let slices: Vec<SharedSlice> = (0..1500u64)
            .map(|index| SharedSlice::copy_of(&random_bytes(index, 1 + (index as usize * 37) % 9000)))
            .chain((0..4).map(|index| SharedSlice::copy_of(&random_bytes(index, 1 << 20))))
            .collect();
        let head = b"head".to_vec();
        let mut wanted = head.clone();
        slices.iter().for_each(|slice| wanted.extend_from_slice(slice));
        let len = wanted.len();
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            let mut part = [0; 50_000];
            while got.len() < len {
                let count = peer.read(&mut part).unwrap();
                assert!(count > 0);
                got.extend_from_slice(&part[..count]);
                thread::yield_now();
            }
            (got, peer)
        });
        seam.submit(Op::Send { token: 1, conn, data: Outgoing::Shared { head, slices } });
        let (data, result) = inbox.sent(&mut seam, 1);
        result.unwrap();
        assert_eq!(data.len(), len, "the buffers come back");
        let (got, mut peer) = reader.join().unwrap();
        assert!(got == wanted);
        // And once more, after the kernel has said that loopback copies anyway.
        let slice = SharedSlice::copy_of(&random_bytes(9, 100_000));
        seam.submit(Op::Send {
            token: 2,
            conn,
            data: Outgoing::Shared { head: Vec::new(), slices: vec![slice.clone()] },
        });
        let mut got = vec![0; 100_000];
        let reader = thread::spawn(move || {
            peer.read_exact(&mut got).unwrap();
            got
        });
        inbox.sent(&mut seam, 2).1.unwrap();
        assert!(reader.join().unwrap() == slice[..]);
        seam.submit(Op::Send { token: 3, conn, data: Outgoing::Owned(Vec::new()) });
        inbox.sent(&mut seam, 3).1.unwrap();
    }
}

#[test]
fn large_owned_sends_arrive_whole_without_copy_as_well() {
    for config in copying_or_not() {
        let (mut seam, mut inbox, conn, mut peer) = pair(config);
        let data = random_bytes(3, 5 << 20);
        let reader = thread::spawn(move || {
            let mut got = vec![0; 5 << 20];
            peer.read_exact(&mut got).unwrap();
            got
        });
        seam.submit(Op::Send { token: 1, conn, data: Outgoing::Owned(data.clone()) });
        let (back, result) = inbox.sent(&mut seam, 1);
        result.unwrap();
        assert!(matches!(back, Outgoing::Owned(bytes) if bytes == data));
        assert!(reader.join().unwrap() == data);
    }
}

#[test]
fn an_orderly_end_a_reset_and_a_local_end_are_told_apart() {
    for config in configs() {
        let (mut seam, mut inbox, conn, mut peer) = pair(config.clone());
        seam.submit(Op::Receive { conn });
        peer.write_all(b"bye").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(inbox.bytes(&mut seam, conn, 3), b"bye");
        assert_eq!(inbox.closed(&mut seam, conn), CloseReason::Finished);

        let (mut seam, mut inbox, conn, peer) = pair(config.clone());
        seam.submit(Op::Receive { conn });
        reset(peer);
        assert_eq!(inbox.closed(&mut seam, conn), CloseReason::Reset);

        let (mut seam, mut inbox, conn, mut peer) = pair(config);
        seam.submit(Op::Receive { conn });
        seam.submit(Op::Close { conn });
        seam.submit(Op::Close { conn });
        assert_eq!(inbox.closed(&mut seam, conn), CloseReason::Local);
        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
        // All of these come too late and harm nobody.
        seam.submit(Op::Close { conn });
        seam.submit(Op::Receive { conn });
        seam.submit(Op::PauseReceive { conn });
        seam.submit(Op::Send { token: 7, conn, data: Outgoing::Owned(vec![1]) });
        assert!(inbox.sent(&mut seam, 7).1.is_err());
        assert!(inbox.events.is_empty(), "{:?}", inbox.events);
    }
}

#[test]
fn a_send_to_a_peer_that_reset_the_connection_fails_and_ends_it() {
    for config in on_loops(UringConfig::default()) {
        let (mut seam, mut inbox, conn, peer) = pair(config);
        let data = Outgoing::Owned(vec![0; 64 << 20]);
        seam.submit(Op::Send { token: 1, conn, data });
        seam.reap(Some(seam.now()), &mut inbox.events);
        reset(peer);
        assert!(inbox.sent(&mut seam, 1).1.is_err());
        assert_eq!(inbox.closed(&mut seam, conn), CloseReason::Reset);
        assert!(inbox.events.is_empty());
    }
}

#[test]
fn a_connection_closed_with_operations_under_way_reports_them_first_and_its_end_last() {
    for config in copying_or_not() {
        let (mut seam, mut inbox, conn, peer) = pair(config);
        seam.submit(Op::Receive { conn });
        seam.submit(Op::Send { token: 1, conn, data: Outgoing::Owned(vec![7; 64 << 20]) });
        seam.reap(Some(seam.now()), &mut inbox.events);
        seam.submit(Op::Close { conn });
        let reader = thread::spawn(move || {
            let mut peer = peer;
            let _ = std::io::copy(&mut peer, &mut std::io::sink());
        });
        while !inbox.events.iter().any(|event| matches!(event, Event::Closed { .. })) {
            seam.reap(None, &mut inbox.events);
        }
        // The peer may have taken everything before the cancellation came, so the result is either.
        let [Event::Sent { token: 1, data, .. }, Event::Closed { reason, .. }] = &inbox.events[..] else {
            panic!("{} events", inbox.events.len())
        };
        assert_eq!((data.len(), *reason), (64 << 20, CloseReason::Local));
        reader.join().unwrap();
    }
}

#[test]
fn slow_consumers_with_few_buffers_lose_nothing() {
    let config = UringConfig { buffers: 4, network_buffers: 4, buffer_bytes: 4096, ..UringConfig::default() };
    for config in on_loops(config) {
        starve(config.clone());
        starve(UringConfig { entries: 1, network_queue: 1, ..config });
    }
}

/// Eight connections share the few buffers, and every one gets all its bytes in order.
fn starve(config: UringConfig) {
    let mut seam = UringSeam::new(config).unwrap();
    let mut inbox = Inbox::new();
    let (listener, addr) = seam.listen(loopback()).unwrap();
    seam.spread(listener);
    seam.submit(Op::Accept { listener });
    let (mut conns, mut peers) = (Vec::new(), Vec::new());
    for seed in 0..8u64 {
        let mut peer = TcpStream::connect(addr).unwrap();
        conns.push(inbox.accepted(&mut seam));
        peers.push(thread::spawn(move || {
            peer.write_all(&random_bytes(seed, 300_000)).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
        }));
    }
    for &conn in &conns {
        seam.submit(Op::Receive { conn });
    }
    let mut got = vec![Vec::new(); conns.len()];
    let mut ended = 0;
    let mut held = std::collections::VecDeque::new();
    let mut events = Vec::new();
    while ended < conns.len() {
        // Holds up to all four buffers over turns, so that every connection starves now and then.
        let deadline = seam.now() + Duration::from_millis(1);
        seam.reap(Some(deadline), &mut events);
        if events.is_empty() {
            held.pop_front();
        }
        for event in events.drain(..) {
            match event {
                Event::Received { conn, bytes } => {
                    let place = conns.iter().position(|id| *id == conn).unwrap();
                    got[place].extend_from_slice(&bytes);
                    held.push_back(bytes);
                }
                Event::Closed { reason: CloseReason::Finished, .. } => ended += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    peers.into_iter().for_each(|peer| peer.join().unwrap());
    for (seed, got) in got.iter().enumerate() {
        assert!(*got == random_bytes(seed as u64, 300_000), "connection {seed}");
    }
    // Buffers may outlive their ring.
    drop(seam);
    assert!(held.iter().all(|bytes| bytes.len() <= 4096));
}

#[test]
fn a_starved_connection_may_pause_resume_and_close() {
    let config = UringConfig { buffers: 1, network_buffers: 1, buffer_bytes: 4096, ..UringConfig::default() };
    on_loops(config).into_iter().for_each(starve_pause_and_close);
}

fn starve_pause_and_close(config: UringConfig) {
    let (mut seam, mut inbox, conn, mut peer) = pair(config);
    seam.submit(Op::Receive { conn });
    peer.write_all(&[1; 4096 * 3]).unwrap();
    let held = inbox.received(&mut seam, conn);
    let deadline = seam.now() + Duration::from_millis(30);
    seam.reap(Some(deadline), &mut inbox.events);
    assert!(inbox.events.is_empty(), "no buffer, no bytes");
    seam.submit(Op::PauseReceive { conn });
    seam.submit(Op::Receive { conn });
    let first = held.len();
    drop(held);
    let rest = inbox.bytes(&mut seam, conn, 4096 * 3 - first);
    assert!(rest.iter().all(|&byte| byte == 1));
    peer.write_all(&[2; 4096 * 3]).unwrap();
    let held = inbox.received(&mut seam, conn);
    seam.submit(Op::Close { conn });
    assert_eq!(inbox.closed(&mut seam, conn), CloseReason::Local);
    drop(held);
}

#[test]
fn thousands_of_connections_come_and_go_without_leaking_descriptors() {
    on_loops(UringConfig::default()).into_iter().for_each(come_and_go);
}

fn come_and_go(config: UringConfig) {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let loops = usize::from(config.network_loops);
    let mut seam = UringSeam::new(config).unwrap();
    let mut inbox = Inbox::new();
    let (listener, addr) = seam.listen(loopback()).unwrap();
    seam.spread(listener);
    seam.submit(Op::Accept { listener });
    let mut seen = std::collections::BTreeSet::new();
    let mut most = 0;
    let before = open();
    for round in 0..100u64 {
        let mut dialled = Vec::new();
        for index in 0..30 {
            seam.submit(Op::Connect { token: index, addr });
        }
        for index in 0..30 {
            dialled.push(inbox.connected(&mut seam, index).unwrap());
        }
        let accepted: Vec<ConnId> = (0..30).map(|_| inbox.accepted(&mut seam)).collect();
        for &conn in dialled.iter().chain(&accepted) {
            assert!(seen.insert(conn), "an id is never used again");
            seam.submit(Op::Receive { conn });
        }
        // The loops share them evenly.
        let shares =
            (1..=loops).map(|number| accepted.iter().filter(|&&conn| loop_of(conn) == number).count());
        assert!(shares.into_iter().all(|share| share * loops == accepted.len()));
        most = most.max(open());
        let (first, second) = if round % 2 == 0 { (&dialled, &accepted) } else { (&accepted, &dialled) };
        for &conn in first {
            seam.submit(Op::Close { conn });
        }
        for &conn in first {
            assert_eq!(inbox.closed(&mut seam, conn), CloseReason::Local);
        }
        for &conn in second {
            assert_eq!(inbox.closed(&mut seam, conn), CloseReason::Finished);
        }
        assert!(inbox.events.is_empty(), "{:?}", inbox.events);
    }
    assert_eq!(seen.len(), 6000);
    // Other tests of this process open files too, a few hundred at most; a leak here would be thousands.
    assert!(open() < before + 1000, "before {before}, at most {most}, now {}", open());
    assert_eq!(seam.flights.len(), 2, "the listener and the waker");
}

#[test]
fn a_dial_that_nobody_answers_fails_for_its_reason() {
    let config = UringConfig { connect_timeout: Duration::from_millis(300), ..UringConfig::default() };
    let mut seam = UringSeam::new(config).unwrap();
    let mut inbox = Inbox::new();
    // A port that was just free refuses.
    let addr = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    seam.submit(Op::Connect { token: 1, addr });
    assert_eq!(inbox.connected(&mut seam, 1).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);

    // A listener whose queue is full lets dials hang.
    let full = TcpListener::bind(loopback()).unwrap();
    sys::shrink_backlog(full.as_raw_fd());
    let addr = full.local_addr().unwrap();
    let mut taken = Vec::new();
    let mut outcome = Ok(());
    for token in 10..14 {
        seam.submit(Op::Connect { token, addr });
        match inbox.connected(&mut seam, token) {
            Ok(conn) => taken.push(conn),
            Err(error) => outcome = Err(error.kind()),
        }
    }
    assert!(!taken.is_empty());
    assert_eq!(outcome, Err(io::ErrorKind::TimedOut));
}

#[test]
fn a_peer_that_reads_no_more_is_given_up_by_close_without_waiting() {
    for config in copying_or_not() {
        let (mut seam, mut inbox, conn, peer) = pair(config);
        seam.submit(Op::Receive { conn });
        seam.submit(Op::Send { token: 1, conn, data: Outgoing::Owned(vec![1; 4 << 20]) });
        let deadline = seam.now() + Duration::from_millis(20);
        seam.reap(Some(deadline), &mut inbox.events);
        let before = seam.now();
        seam.submit(Op::Close { conn });
        inbox.sent(&mut seam, 1).1.unwrap_err();
        assert_eq!(inbox.closed(&mut seam, conn), CloseReason::Local);
        assert!(seam.now().since(before) < Duration::from_secs(5));
        drop(peer);
    }
}

/// Variable that turns `the_child_without_descriptors` into a process of its own.
const POOR_CHILD: &str = "BATON_TEST_POOR_CHILD";

/// Does nothing unless the test below started it: it lowers a limit of the whole process.
#[test]
fn the_child_without_descriptors() {
    if std::env::var(POOR_CHILD).is_err() {
        return;
    }
    let mut seam = seam();
    let mut inbox = Inbox::new();
    let (listener, addr) = seam.listen(loopback()).unwrap();
    seam.submit(Op::Accept { listener });
    assert!(raise_descriptor_limit().unwrap() > 40);
    sys::limit_descriptors(40);
    let mut peers = Vec::new();
    while let Ok(peer) = TcpStream::connect(addr) {
        peers.push(peer);
    }
    // Those wait in the kernel's queue: there is no descriptor for them on this side.
    let is_failure = |event: &Event| match event {
        Event::AcceptFailed { error, .. } => error.raw_os_error(),
        _ => None,
    };
    assert_eq!(inbox.wait(&mut seam, is_failure).0, libc::EMFILE);
    seam.submit(Op::Accept { listener });
    assert_eq!(inbox.wait(&mut seam, is_failure).0, libc::EMFILE);
    let waiting = peers.len() / 2;
    peers.truncate(waiting);
    // With descriptors back, all of them are accepted, those too whose peer has already gone.
    seam.submit(Op::Accept { listener });
    let mut accepted = 0;
    while accepted < waiting {
        seam.reap(None, &mut inbox.events);
        for event in inbox.events.split_off(0) {
            match event {
                Event::Accepted { conn, peer, .. } => {
                    accepted += usize::from(peers.iter().any(|known| known.local_addr().unwrap() == peer));
                    seam.submit(Op::Close { conn });
                }
                Event::AcceptFailed { .. } => seam.submit(Op::Accept { listener }),
                Event::Closed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn running_out_of_descriptors_fails_the_accept_and_can_be_overcome() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["io::uring::tests::net::the_child_without_descriptors", "--exact", "--nocapture"])
        .env(POOR_CHILD, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn an_address_in_use_is_refused_with_the_address() {
    let mut seam = seam();
    let (_, addr) = seam.listen(loopback()).unwrap();
    let error = seam.listen(addr).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&addr.to_string()));
}

#[test]
fn the_newer_address_family_works_alike() {
    let mut seam = seam();
    let mut inbox = Inbox::new();
    // A machine may have it switched off.
    let Ok((listener, addr)) = seam.listen("[::1]:0".parse().unwrap()) else { return };
    seam.submit(Op::Accept { listener });
    seam.submit(Op::Connect { token: 1, addr });
    let dialled = inbox.connected(&mut seam, 1).unwrap();
    let accepted = inbox.accepted(&mut seam);
    seam.submit(Op::Receive { conn: accepted });
    seam.submit(Op::Send { token: 2, conn: dialled, data: Outgoing::Owned(b"hello".to_vec()) });
    assert_eq!(inbox.bytes(&mut seam, accepted, 5), b"hello");
}
