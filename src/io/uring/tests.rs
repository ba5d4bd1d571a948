//! The ring backend against the real kernel.

mod files;
mod net;
mod spread;

use std::time::Duration;

use super::*;
use crate::base::Prng;
use crate::io::{ConnId, Outgoing};

fn seam() -> UringSeam {
    UringSeam::new(UringConfig::default()).unwrap()
}

/// Events as they come, each handed out once.
struct Inbox {
    events: Vec<Event>,
}

impl Inbox {
    fn new() -> Inbox {
        Inbox { events: Vec::new() }
    }

    /// Waits for the first event that `wanted` picks; the others stay for later. Fails after 30 s.
    fn wait<T>(&mut self, seam: &mut UringSeam, mut wanted: impl FnMut(&Event) -> Option<T>) -> (T, Event) {
        let deadline = seam.now() + Duration::from_secs(30);
        let mut seen = 0;
        loop {
            while seen < self.events.len() {
                if let Some(found) = wanted(&self.events[seen]) {
                    return (found, self.events.remove(seen));
                }
                seen += 1;
            }
            assert!(seam.now() < deadline, "the event never came; waiting: {:?}", self.events);
            seam.reap(Some(deadline), &mut self.events);
        }
    }

    fn read(&mut self, seam: &mut UringSeam, wanted: u64) -> io::Result<AlignedBuf> {
        let is = |event: &Event| matches!(event, Event::Read { token, .. } if *token == wanted).then_some(());
        match self.wait(seam, is).1 {
            Event::Read { result, .. } => result,
            _ => unreachable!(),
        }
    }

    fn written(&mut self, seam: &mut UringSeam, wanted: u64) -> io::Result<()> {
        let is =
            |event: &Event| matches!(event, Event::Written { token, .. } if *token == wanted).then_some(());
        match self.wait(seam, is).1 {
            Event::Written { result, .. } => result,
            _ => unreachable!(),
        }
    }

    fn flushed(&mut self, seam: &mut UringSeam, wanted: u64) -> io::Result<()> {
        let is =
            |event: &Event| matches!(event, Event::Flushed { token, .. } if *token == wanted).then_some(());
        match self.wait(seam, is).1 {
            Event::Flushed { result, .. } => result,
            _ => unreachable!(),
        }
    }

    fn accepted(&mut self, seam: &mut UringSeam) -> ConnId {
        self.wait(seam, |event| match event {
            Event::Accepted { conn, .. } => Some(*conn),
            _ => None,
        })
        .0
    }

    fn connected(&mut self, seam: &mut UringSeam, wanted: u64) -> io::Result<ConnId> {
        let is =
            |event: &Event| matches!(event, Event::Connected { token, .. } if *token == wanted).then_some(());
        match self.wait(seam, is).1 {
            Event::Connected { result, .. } => result,
            _ => unreachable!(),
        }
    }

    fn sent(&mut self, seam: &mut UringSeam, wanted: u64) -> (Outgoing, io::Result<()>) {
        let is = |event: &Event| matches!(event, Event::Sent { token, .. } if *token == wanted).then_some(());
        match self.wait(seam, is).1 {
            Event::Sent { data, result, .. } => (data, result),
            _ => unreachable!(),
        }
    }

    fn received(&mut self, seam: &mut UringSeam, from: ConnId) -> ReceivedBytes {
        let is = |event: &Event| matches!(event, Event::Received { conn, .. } if *conn == from).then_some(());
        match self.wait(seam, is).1 {
            Event::Received { bytes, .. } => bytes,
            _ => unreachable!(),
        }
    }

    /// Collects exactly `len` bytes, letting each buffer go at once.
    fn bytes(&mut self, seam: &mut UringSeam, from: ConnId, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            all.extend_from_slice(&self.received(seam, from));
        }
        assert_eq!(all.len(), len);
        all
    }

    fn closed(&mut self, seam: &mut UringSeam, wanted: ConnId) -> CloseReason {
        self.wait(seam, |event| match event {
            Event::Closed { conn, reason } if *conn == wanted => Some(*reason),
            _ => None,
        })
        .0
    }
}

fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut chance = Prng::new(seed);
    (0..len).map(|_| chance.next_u64() as u8).collect()
}

#[test]
fn a_waker_reaches_a_waiting_loop_from_other_threads_and_never_gets_lost() {
    let mut seam = seam();
    let rounds = 2000;
    let (answer, question) = std::sync::mpsc::channel::<()>();
    let waker = seam.waker();
    let thread = std::thread::spawn(move || {
        for _ in 0..rounds {
            waker.wake();
            question.recv().unwrap();
        }
    });
    let mut events = Vec::new();
    for _ in 0..rounds {
        seam.reap(None, &mut events);
        assert!(matches!(events[..], [Event::Woken]), "{events:?}");
        events.clear();
        answer.send(()).unwrap();
    }
    thread.join().unwrap();
}

#[test]
fn wakes_before_the_loop_looks_become_one_event() {
    let mut seam = seam();
    for _ in 0..1000 {
        seam.waker().wake();
    }
    let mut events = Vec::new();
    seam.reap(None, &mut events);
    assert!(matches!(events[..], [Event::Woken]), "{events:?}");
    events.clear();
    seam.reap(Some(seam.now()), &mut events);
    assert!(events.is_empty(), "{events:?}");
}

#[test]
fn a_turn_ends_at_its_deadline() {
    let mut seam = seam();
    let mut events = Vec::new();
    let deadline = seam.now() + Duration::from_millis(30);
    seam.reap(Some(deadline), &mut events);
    assert!(seam.now() >= deadline && events.is_empty());
}

#[test]
fn numbers_of_chance_do_not_repeat() {
    let mut seam = seam();
    let numbers: std::collections::BTreeSet<u64> = (0..10_000).map(|_| seam.random()).collect();
    assert_eq!(numbers.len(), 10_000);
}

#[test]
fn the_clocks_run() {
    let seam = seam();
    let (mono, wall) = (seam.now(), seam.wall());
    assert!(seam.now() >= mono && wall.0 > 1_600_000_000_000);
    assert!(seam.describe().contains("io_uring"));
}

#[test]
fn short_waits_end_without_sleep_and_long_ones_sleep() {
    let busy_poll = Duration::from_secs(20);
    let mut seam = UringSeam::new(UringConfig { busy_poll, ..UringConfig::default() }).unwrap();
    let mut inbox = Inbox::new();
    let ring = |seam: &mut UringSeam, inbox: &mut Inbox| {
        let waker = seam.waker();
        let other = std::thread::spawn(move || waker.wake());
        inbox.wait(seam, |event| matches!(event, Event::Woken).then_some(()));
        other.join().unwrap();
    };
    (0..10).for_each(|_| ring(&mut seam, &mut inbox));
    assert_eq!(seam.busy.caught, 6, "four short waits make it busy");
    // Every wait is longer than this limit.
    seam.busy = busy::Busy::new(Duration::from_nanos(1));
    (0..10).for_each(|_| ring(&mut seam, &mut inbox));
    assert_eq!(seam.busy.caught, 0);
}
