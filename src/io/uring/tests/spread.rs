//! Network loops under stress: many connections, ends from both sides at any moment, slow readers, tiny queues.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::*;

/// Queues and buffers that are always full somewhere, and the usual ones.
fn configs() -> [UringConfig; 2] {
    let usual = UringConfig { network_loops: 3, ..UringConfig::default() };
    let tight = UringConfig {
        entries: 2,
        buffers: 2,
        buffer_bytes: 512,
        network_buffers: 2,
        network_queue: 1,
        ..usual.clone()
    };
    [tight, usual]
}

/// A connection of the echo server.
#[derive(Default)]
struct Served {
    waiting: Vec<u8>,
    /// Its token, and the turn in which it was submitted.
    sending: Option<(u64, u64)>,
    paused: bool,
    /// The turn in which the server has asked for its end.
    closed: Option<u64>,
}

/// Sends back what it receives, one send at a time, and reads no further while much waits: as the node does.
struct Echo {
    seam: UringSeam,
    addr: SocketAddr,
    conns: BTreeMap<ConnId, Served>,
    /// The most bytes that ever waited for one client.
    most: usize,
    token: u64,
    turn: u64,
    accepted: usize,
    ended: usize,
    chance: Prng,
    /// One in so many events makes the server close the connection; zero: never.
    close_one_in: u64,
}

const WAITING_MAX: usize = 64 << 10;

impl Echo {
    fn new(config: UringConfig, seed: u64, close_one_in: u64) -> Echo {
        let mut seam = UringSeam::new(config).unwrap();
        let (listener, addr) = seam.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        seam.spread(listener);
        seam.submit(Op::Accept { listener });
        let chance = Prng::new(seed);
        let conns = BTreeMap::new();
        Echo { seam, addr, conns, most: 0, token: 0, turn: 0, accepted: 0, ended: 0, chance, close_one_in }
    }

    /// One turn. Every event is checked against what may come on its connection.
    fn turn(&mut self) {
        let mut events = Vec::new();
        let deadline = self.seam.now() + Duration::from_secs(30);
        self.seam.reap(Some(deadline), &mut events);
        assert!(!events.is_empty(), "{} connections hang", self.conns.len());
        self.turn += 1;
        for event in events {
            let id = match event {
                Event::Accepted { conn, .. } => {
                    self.accepted += 1;
                    assert!(self.conns.insert(conn, Served::default()).is_none());
                    self.seam.submit(Op::Receive { conn });
                    conn
                }
                Event::Received { conn, bytes } => {
                    let served = self.conns.get_mut(&conn).expect("nothing comes after the end");
                    let late = served.closed.is_some_and(|turn| turn < self.turn);
                    assert!(!late && !bytes.is_empty(), "no bytes come after the turn of the close");
                    served.waiting.extend_from_slice(&bytes);
                    self.most = self.most.max(served.waiting.len());
                    conn
                }
                Event::Sent { conn, token, data, .. } => {
                    // The one exception: a send that was submitted in the turn in which the end was reaped.
                    if let Some(served) = self.conns.get_mut(&conn) {
                        assert_eq!(
                            served.sending.take().map(|(token, _)| token),
                            Some(token),
                            "an end for each send"
                        );
                        assert!(!data.is_empty());
                    }
                    conn
                }
                Event::Closed { conn, reason } => {
                    let served = self.conns.remove(&conn).expect("one end per connection");
                    let late = served.sending.is_some_and(|(_, turn)| turn < self.turn);
                    assert!(!late, "the end of a send comes before the end of its connection");
                    assert!(served.closed.is_some() || reason != CloseReason::Local, "{reason:?}");
                    self.ended += 1;
                    conn
                }
                Event::Woken => continue,
                other => panic!("{other:?}"),
            };
            self.settle(id);
        }
    }

    fn settle(&mut self, conn: ConnId) {
        let Some(served) = self.conns.get_mut(&conn) else { return };
        if self.close_one_in > 0 && self.chance.next_u64().is_multiple_of(self.close_one_in) {
            served.closed = Some(self.turn);
            self.seam.submit(Op::Close { conn });
        }
        if served.sending.is_none() && !served.waiting.is_empty() {
            self.token += 1;
            served.sending = Some((self.token, self.turn));
            let data = Outgoing::Owned(std::mem::take(&mut served.waiting));
            self.seam.submit(Op::Send { token: self.token, conn, data });
        }
        let full = served.waiting.len() >= WAITING_MAX;
        if full != served.paused {
            served.paused = full;
            self.seam.submit(if full { Op::PauseReceive { conn } } else { Op::Receive { conn } });
        }
    }
}

/// A client: sends numbered bytes in bursts, reads back what it feels like, and goes away in one of many ways.
/// What comes back must be what was sent, in order.
fn client(addr: SocketAddr, chance: &mut Prng) {
    let mut socket = TcpStream::connect(addr).unwrap();
    let start = chance.next_u64() as u8;
    let nth = |at: usize| start.wrapping_add((at / 3) as u8);
    let (mut sent, mut seen) = (0, 0);
    let mut part = vec![0; 1 << 16];
    let mut take = |socket: &mut TcpStream, seen: &mut usize| match socket.read(&mut part) {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            for byte in &part[..count] {
                assert_eq!(*byte, nth(*seen), "at {seen}");
                *seen += 1;
            }
            true
        }
    };
    for _ in 0..chance.next_u64() % 12 {
        let burst: Vec<u8> = (sent..sent + 1 + (chance.next_u64() % 20_000) as usize).map(nth).collect();
        // The echo must never wait for a client that itself waits to be read.
        if socket.write_all(&burst).is_err() {
            return;
        }
        sent += burst.len();
        while seen < sent && !chance.next_u64().is_multiple_of(4) {
            if !take(&mut socket, &mut seen) {
                return;
            }
        }
    }
    match chance.next_u64() % 4 {
        0 => {}
        1 => super::super::sys::discard_on_close(&socket.into()),
        _ => {
            let _ = socket.shutdown(Shutdown::Write);
            while take(&mut socket, &mut seen) {}
            assert!(seen <= sent);
        }
    }
}

#[test]
fn ends_from_both_sides_at_any_moment_lose_nothing_and_come_once() {
    for (seed, config) in configs().into_iter().enumerate() {
        for close_one_in in [0, 50] {
            storm(config.clone(), seed as u64, close_one_in);
        }
    }
}

fn storm(config: UringConfig, seed: u64, close_one_in: u64) {
    const THREADS: usize = 16;
    const EACH: usize = 40;
    let mut echo = Echo::new(config, seed, close_one_in);
    let addr = echo.addr;
    let left = Arc::new(AtomicUsize::new(THREADS));
    let peers: Vec<JoinHandle<()>> = (0..THREADS)
        .map(|number| {
            let (left, waker) = (left.clone(), echo.seam.waker());
            std::thread::spawn(move || {
                let mut chance = Prng::new(seed * 1000 + number as u64);
                (0..EACH).for_each(|_| client(addr, &mut chance));
                left.fetch_sub(1, Ordering::Release);
                waker.wake();
            })
        })
        .collect();
    while left.load(Ordering::Acquire) > 0 || !echo.conns.is_empty() {
        echo.turn();
    }
    peers.into_iter().for_each(|peer| peer.join().unwrap());
    // A client that has gone before it was accepted is never seen.
    assert_eq!(echo.accepted, echo.ended);
    assert!((THREADS * EACH / 2..=THREADS * EACH).contains(&echo.accepted), "{}", echo.accepted);
}

/// A client that writes and never reads is read no further than the limit and what was on its way: buffers and the
/// queue of its loop.
#[test]
fn a_client_that_never_reads_is_held_in_bounds() {
    for config in [0, 3].map(|network_loops| UringConfig { network_loops, ..UringConfig::default() }) {
        let on_the_way =
            usize::from(config.network_buffers.max(config.buffers)) * config.buffer_bytes as usize;
        let mut echo = Echo::new(config, 1, 0);
        let addr = echo.addr;
        let peer = std::thread::spawn(move || {
            let mut socket = TcpStream::connect(addr).unwrap();
            socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut written = 0;
            // Far more than sockets and limits hold together.
            while written < 256 << 20 {
                match socket.write(&[7; 1 << 16]) {
                    Ok(count) => written += count,
                    Err(error) => {
                        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
                        break;
                    }
                }
            }
            assert!(written < 256 << 20, "nothing held the client back");
        });
        while echo.ended == 0 {
            echo.turn();
        }
        peer.join().unwrap();
        assert!(echo.most <= WAITING_MAX + on_the_way, "{} bytes waited", echo.most);
    }
}

#[test]
fn a_seam_that_ends_under_load_ends_its_connections_and_threads() {
    for config in configs() {
        let mut echo = Echo::new(config, 5, 0);
        let addr = echo.addr;
        let peers: Vec<JoinHandle<()>> = (0..40)
            .map(|number| {
                std::thread::spawn(move || {
                    let mut socket = TcpStream::connect(addr).unwrap();
                    let mut part = [0; 1000];
                    // Every second one never reads, so that its sends are under way at the end.
                    while socket.write_all(&[1; 1000]).is_ok() {
                        if number % 2 == 0 && socket.read(&mut part).is_ok_and(|count| count == 0) {
                            break;
                        }
                    }
                })
            })
            .collect();
        while echo.accepted < peers.len() {
            echo.turn();
        }
        (0..200).for_each(|_| echo.turn());
        let held = {
            let mut events = Vec::new();
            while !events.iter().any(|event| matches!(event, Event::Received { .. })) {
                echo.seam.reap(None, &mut events);
            }
            events
        };
        // Waits for the threads; the writers then meet the end of their connections.
        drop(echo);
        peers.into_iter().for_each(|peer| peer.join().unwrap());
        // Received bytes outlive their loop.
        for event in held {
            if let Event::Received { bytes, .. } = event {
                assert!(bytes.iter().all(|&byte| byte == 1));
            }
        }
    }
}

#[test]
fn a_send_after_the_end_is_answered_and_nothing_else() {
    let mut echo = Echo::new(UringConfig { network_loops: 1, ..UringConfig::default() }, 1, 0);
    let mut inbox = Inbox::new();
    let peer = TcpStream::connect(echo.addr).unwrap();
    let conn = inbox.accepted(&mut echo.seam);
    // The loop ends the connection while nobody looks; the send meets that end on its way or before it starts.
    echo.seam.submit(Op::Receive { conn });
    echo.seam.reap(Some(echo.seam.now()), &mut inbox.events);
    drop(peer);
    for token in 1.. {
        echo.seam.submit(Op::Send { token, conn, data: Outgoing::Owned(vec![0; 100]) });
        if inbox.sent(&mut echo.seam, token).1.is_err() {
            break;
        }
    }
    inbox.closed(&mut echo.seam, conn);
    echo.seam.submit(Op::Send { token: 0, conn, data: Outgoing::Owned(vec![1]) });
    assert!(inbox.sent(&mut echo.seam, 0).1.is_err());
    echo.seam.submit(Op::Close { conn });
    echo.seam.submit(Op::Receive { conn });
    echo.seam.reap(Some(echo.seam.now()), &mut inbox.events);
    assert!(inbox.events.is_empty(), "{:?}", inbox.events);
}
