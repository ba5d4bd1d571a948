//! The one eventfd by which other threads reach the loop, and the helper thread that flushes.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::sys;
use crate::io::{Token, Waker};

/// Shared between the loop, its wakers and its flusher.
pub(super) struct Bell {
    fd: OwnedFd,
    /// The eventfd was written and the loop has not looked yet: further rings need no system call.
    rung: AtomicBool,
    /// Somebody called [`Waker::wake`] (and not only the flusher rang).
    woken: AtomicBool,
}

impl Bell {
    pub(super) fn new() -> io::Result<Arc<Bell>> {
        let fd = sys::eventfd()?;
        Ok(Arc::new(Bell { fd, rung: AtomicBool::new(false), woken: AtomicBool::new(false) }))
    }

    pub(super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Wakes the loop, without an event for the node.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            sys::signal(&self.fd);
        }
    }

    /// The loop has read the eventfd. Whether a waker called; what rings after this wakes the loop again.
    pub(super) fn answer(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel);
        self.woken.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
impl Bell {
    pub(super) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Sleeps until somebody rings, as a loop does in its ring.
    pub(super) fn wait(&self) {
        sys::for_tests::await_signal(&self.fd);
        self.answer();
    }
}

impl Waker for Bell {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.ring();
    }
}

/// A flush handed to the helper thread.
pub(super) struct Request {
    pub token: Token,
    pub file: u32,
    pub handle: Arc<File>,
}

/// Its outcome: zero or an error number.
pub(super) struct Outcome {
    pub token: Token,
    pub file: u32,
    pub code: i32,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    outcomes: Vec<Outcome>,
    stop: bool,
}

struct Desk {
    queue: Mutex<Queue>,
    arrived: Condvar,
    bell: Arc<Bell>,
}

/// A thread that is blocked in fdatasync most of the time.
pub(super) struct Flusher {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(super) fn start(bell: Arc<Bell>) -> io::Result<Flusher> {
        let desk = Arc::new(Desk { queue: Mutex::default(), arrived: Condvar::new(), bell });
        let theirs = desk.clone();
        let thread = std::thread::Builder::new().name("flusher".into()).spawn(move || work(&theirs))?;
        Ok(Flusher { desk, thread: Some(thread) })
    }

    pub(super) fn submit(&self, request: Request) {
        self.desk.queue.lock().expect("the flusher does not panic").requests.push_back(request);
        self.desk.arrived.notify_one();
    }

    /// Takes what has ended.
    pub(super) fn collect(&self) -> Vec<Outcome> {
        std::mem::take(&mut self.desk.queue.lock().expect("the flusher does not panic").outcomes)
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.desk.queue.lock().expect("the flusher does not panic").stop = true;
        self.desk.arrived.notify_one();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            debug_assert!(ended.is_ok(), "the flusher does not panic");
        }
    }
}

fn work(desk: &Desk) {
    loop {
        let mut batch = {
            let mut queue = desk.queue.lock().expect("the loop does not panic inside the queue");
            while queue.requests.is_empty() {
                if queue.stop {
                    return;
                }
                queue = desk.arrived.wait(queue).expect("the loop does not panic inside the queue");
            }
            std::mem::take(&mut queue.requests)
        };
        let outcomes = flush_all(&mut batch);
        // The handles go before the outcomes are told, so that the loop's close of a file is the last one.
        drop(batch);
        desk.queue.lock().expect("the loop does not panic inside the queue").outcomes.extend(outcomes);
        desk.bell.ring();
    }
}

/// One fdatasync per file, whatever the number of requests: each of them came before the call.
fn flush_all(batch: &mut VecDeque<Request>) -> Vec<Outcome> {
    let mut done: Vec<(u32, i32)> = Vec::new();
    let mut outcomes = Vec::with_capacity(batch.len());
    for request in batch.drain(..) {
        let known = done.iter().find(|(file, _)| *file == request.file).map(|(_, code)| *code);
        let code = known.unwrap_or_else(|| {
            let code = match request.handle.sync_data() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            done.push((request.file, code));
            code
        });
        outcomes.push(Outcome { token: request.token, file: request.file, code });
    }
    outcomes
}
