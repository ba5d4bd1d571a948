//! What loops of one node say to each other, through bounded queues, and how one that sleeps is woken.
//!
//! A loop that wants to sleep says so at its [`Door`] and then looks into its queues once more; who changed a queue looks
//! at the door afterwards. With a full fence on both sides, at least one of the two sees the other: nothing is slept
//! through, and nobody is woken who is awake.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rtrb::{Consumer, Producer, RingBuffer};

use super::wake::Bell;
use crate::io::{CloseReason, ConnId, Outgoing, Token};

/// What the node's loop asks of a network loop.
pub(super) enum Order {
    Adopt { conn: ConnId, fd: OwnedFd, zero_copy: bool },
    Receive { conn: ConnId },
    Pause { conn: ConnId },
    Send { conn: ConnId, token: Token, data: Outgoing },
    Close { conn: ConnId },
}

/// What a network loop answers.
pub(super) enum Report {
    /// Bytes in a buffer of the loop's pool.
    Lent {
        conn: ConnId,
        index: u16,
        len: u32,
    },
    Owned {
        conn: ConnId,
        bytes: Vec<u8>,
    },
    Sent {
        conn: ConnId,
        token: Token,
        data: Outgoing,
        result: io::Result<()>,
    },
    Closed {
        conn: ConnId,
        reason: CloseReason,
    },
}

/// Where others wake a loop, if it sleeps.
pub(super) struct Door {
    bell: Arc<Bell>,
    parked: AtomicBool,
}

impl Door {
    pub(super) fn new(bell: Arc<Bell>) -> Door {
        Door { bell, parked: AtomicBool::new(false) }
    }

    /// The owner is about to sleep; it looks into its queues once more after this.
    pub(super) fn park(&self) {
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(super) fn unpark(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    /// Something has changed that a sleeping owner must look at.
    pub(super) fn knock(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::Relaxed) {
            self.bell.ring();
        }
    }

    /// Wakes the owner whatever it does.
    pub(super) fn ring(&self) {
        self.bell.ring();
    }
}

/// A queue with room for `capacity` items.
pub(super) fn lane<T>(capacity: usize) -> (Outlet<T>, Inlet<T>) {
    let (producer, consumer) = RingBuffer::new(capacity);
    let waiting = Arc::new(AtomicBool::new(false));
    (Outlet { queue: producer, waiting: waiting.clone() }, Inlet { queue: consumer, waiting })
}

/// The end where items go in.
pub(super) struct Outlet<T> {
    queue: Producer<T>,
    /// This side has more than there was room for.
    waiting: Arc<AtomicBool>,
}

impl<T> Outlet<T> {
    pub(super) fn has_room(&self, items: usize) -> bool {
        self.queue.cached_slots() >= items || self.queue.slots() >= items
    }

    /// Gives the item back when the queue is full.
    pub(super) fn push(&mut self, item: T) -> Result<(), T> {
        self.queue.push(item).map_err(|rtrb::PushError::Full(item)| item)
    }

    /// Asks the other side to knock when it has made room. Look for room once more behind the next fence.
    pub(super) fn await_room(&self) {
        self.waiting.store(true, Ordering::Relaxed);
    }
}

/// The end where items come out.
pub(super) struct Inlet<T> {
    queue: Consumer<T>,
    waiting: Arc<AtomicBool>,
}

impl<T> Inlet<T> {
    pub(super) fn len(&self) -> usize {
        self.queue.slots()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        self.queue.pop().ok()
    }

    /// Items were taken: whether the other side waits for their room and wants a knock.
    pub(super) fn made_room(&self) -> bool {
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::Relaxed) && self.waiting.swap(false, Ordering::Relaxed)
    }

    /// The other side is gone for good.
    pub(super) fn is_abandoned(&self) -> bool {
        self.queue.is_abandoned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_back_and_says_who_waits_for_room() {
        let (mut outlet, mut inlet) = lane(2);
        assert!(outlet.has_room(2) && !outlet.has_room(3));
        assert_eq!((outlet.push(1), outlet.push(2), outlet.push(3)), (Ok(()), Ok(()), Err(3)));
        assert!(!outlet.has_room(1) && !inlet.made_room());
        outlet.await_room();
        assert_eq!((inlet.len(), inlet.pop()), (2, Some(1)));
        assert!(inlet.made_room() && !inlet.made_room(), "said once");
        assert!(outlet.has_room(1));
        assert_eq!((inlet.pop(), inlet.pop(), inlet.is_empty()), (Some(2), None, true));
        drop(outlet);
        assert!(inlet.is_abandoned());
    }

    #[test]
    fn a_knock_is_for_sleepers_only() {
        let bell = Bell::new().unwrap();
        let door = Door::new(bell.clone());
        door.knock();
        assert!(!bell.is_rung());
        door.park();
        door.unpark();
        door.knock();
        assert!(!bell.is_rung());
        door.park();
        door.knock();
        assert!(bell.is_rung());
    }

    /// Two threads pass items through queues of one slot, each sleeping whenever it has nothing to do: a wake that got
    /// lost would leave both asleep.
    #[test]
    fn no_wake_is_lost_between_two_sleepers() {
        const ROUNDS: u32 = 20_000;
        let (mut out, mut into) = lane::<u32>(1);
        let (mut back_out, mut back_in) = lane::<u32>(1);
        let doors = [Bell::new().unwrap(), Bell::new().unwrap()].map(|bell| Arc::new(Door::new(bell)));
        let [near, far] = doors.clone();
        let echo = std::thread::spawn(move || {
            let [near, far] = doors;
            let mut held = None;
            let mut echoed = 0;
            while echoed < ROUNDS {
                held = held.or_else(|| into.pop());
                if into.made_room() {
                    near.knock();
                }
                if let Some(item) = held.take() {
                    match back_out.push(item) {
                        Ok(()) => {
                            echoed += 1;
                            near.knock();
                            continue;
                        }
                        Err(item) => held = Some(item),
                    }
                    back_out.await_room();
                }
                far.park();
                let idle = if held.is_some() { !back_out.has_room(1) } else { into.is_empty() };
                if idle {
                    far.bell.wait();
                }
                far.unpark();
            }
        });
        let (mut sent, mut seen) = (0, 0);
        while seen < ROUNDS {
            while let Some(item) = back_in.pop() {
                assert_eq!(item, seen, "in order, none lost");
                seen += 1;
            }
            if back_in.made_room() {
                far.knock();
            }
            while sent < ROUNDS && out.push(sent).is_ok() {
                sent += 1;
                far.knock();
            }
            if seen == ROUNDS {
                break;
            }
            if sent < ROUNDS {
                out.await_room();
            }
            near.park();
            if back_in.is_empty() && !(sent < ROUNDS && out.has_room(1)) {
                near.bell.wait();
            }
            near.unpark();
        }
        echo.join().unwrap();
    }
}
