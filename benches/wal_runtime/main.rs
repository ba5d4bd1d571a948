//! The same log room, driven by three runtimes: our own ring loop, tokio-uring and glommio. The table that this prints
//! stands in `ARCHITECTURE.md`.
//!
//! N appenders each append a record of 100 bytes, wait until it is durable, and append again. The room forms groups and
//! says what to write; the runtime only carries out durable writes and wakes who waited.
//!
//! `cargo bench --features runtime-bench --bench wal_runtime [-- --seconds 3 --dir FOLDER --runtime own]`

mod glommio_run;
mod own_run;
mod tokio_run;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use baton::base::limits::GROUP_BYTES_EAGER;
use baton::base::{ClusterId, CommittedLsn, ShardId, SharedSlice, Stamp, Term, WallMs};
use baton::record::Record;
use baton::wal::{LogEnd, Recovered, SealMarks, Wal, WalConfig, WalEffect};

const SEGMENT: u64 = 16 << 20;
/// Segments share two files, round and round.
const FILES: u64 = 2;
const FRAMES_IN_FLIGHT: usize = 4;
const WARM_UP: Duration = Duration::from_millis(300);

/// A durable write that the runtime is to carry out.
pub struct Job {
    pub id: u64,
    pub file: usize,
    pub offset: u64,
    pub data: SharedSlice,
}

/// Somebody who waits for a group.
struct Waiting {
    stamp: Stamp,
    since: Instant,
    ticket: Rc<RefCell<TicketState>>,
}

#[derive(Default)]
struct TicketState {
    done: bool,
    waker: Option<Waker>,
}

/// Ready when the appended record is durable.
pub struct Ticket(Rc<RefCell<TicketState>>);

impl Future for Ticket {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        if state.done {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The log and everybody who waits for it.
pub struct Room {
    wal: Wal,
    waiting: VecDeque<Waiting>,
    latency: Histogram<u64>,
    writes: u64,
    measure_from: Instant,
    end: Instant,
}

impl Room {
    fn new(seconds: f64) -> Room {
        let config = WalConfig {
            cluster: ClusterId(1),
            segment_bytes: SEGMENT,
            frames_in_flight: FRAMES_IN_FLIGHT,
            eager_bytes: GROUP_BYTES_EAGER,
            durable_writes: true,
            recent_bytes: 4 << 20,
        };
        let measure_from = Instant::now() + WARM_UP;
        Room {
            wal: Wal::resume(config, &Recovered::empty(LogEnd::GENESIS)),
            waiting: VecDeque::new(),
            latency: Histogram::new(3).expect("a valid precision"),
            writes: 0,
            measure_from,
            end: measure_from + Duration::from_secs_f64(seconds),
        }
    }

    pub fn over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Nothing is on its way and nobody waits.
    pub fn quiet(&self) -> bool {
        self.waiting.is_empty() && self.wal.idle()
    }

    pub fn append(&mut self, key: u64) -> Ticket {
        let (key, value) = (key.to_be_bytes(), [7; 100]);
        self.wal.writer().push(Record::Put { shard: ShardId(0), key: &key, value: &value, created: false });
        self.wal.writer().end_transaction();
        let ticket = Rc::new(RefCell::new(TicketState::default()));
        let (stamp, since) = (self.wal.open_stamp(), Instant::now());
        self.waiting.push_back(Waiting { stamp, since, ticket: ticket.clone() });
        Ticket(ticket)
    }

    /// Seals what is due and says what to write now.
    pub fn jobs(&mut self, out: &mut Vec<Job>) {
        while self.wal.wants_seal() {
            let commit = CommittedLsn(self.wal.flushed().lsn());
            let marks = SealMarks { term: Term { number: 1, id: 1 }, commit, clock: WallMs(1) };
            self.wal.seal(marks).expect("a whole log");
        }
        while let Some(effect) = self.wal.next_effect() {
            match effect {
                WalEffect::Write { id, segment, offset, data, durable: true } => {
                    self.writes += 1;
                    out.push(Job { id, file: (segment % FILES) as usize, offset, data });
                }
                WalEffect::EnsureSegment { segment } => self.wal.segment_ready(segment),
                other => unreachable!("durable writes need no {other:?}"),
            }
        }
    }

    /// A write is durable: wakes those whose group that completes, and says how many.
    pub fn completed(&mut self, id: u64) -> usize {
        self.wal.completed(id, Ok(()));
        let flushed = self.wal.flushed().lsn();
        let stamp = self.wal.stamp_at(flushed);
        let (now, mut count) = (Instant::now(), 0);
        while self.waiting.front().is_some_and(|waiting| waiting.stamp <= stamp) {
            let Waiting { since, ticket, .. } = self.waiting.pop_front().expect("just seen");
            if now >= self.measure_from && now < self.end {
                let us = now.duration_since(since).as_micros() as u64;
                self.latency.record(us).expect("the histogram grows with its values");
            }
            let mut ticket = ticket.borrow_mut();
            ticket.done = true;
            if let Some(waker) = ticket.waker.take() {
                waker.wake();
            }
            count += 1;
        }
        count
    }
}

/// The one task that talks to the room: others ring, it looks.
#[derive(Default)]
pub struct Bell {
    rung: bool,
    waker: Option<Waker>,
}

pub fn ring(bell: &Rc<RefCell<Bell>>) {
    let mut bell = bell.borrow_mut();
    bell.rung = true;
    if let Some(waker) = bell.waker.take() {
        waker.wake();
    }
}

/// Waits until somebody rings.
pub struct Rung(pub Rc<RefCell<Bell>>);

impl Future for Rung {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut bell = self.0.borrow_mut();
        if std::mem::take(&mut bell.rung) {
            return Poll::Ready(());
        }
        bell.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// One appender as a task.
pub async fn appender(room: Rc<RefCell<Room>>, bell: Rc<RefCell<Bell>>, key: u64) {
    while !room.borrow().over() {
        let ticket = room.borrow_mut().append(key);
        ring(&bell);
        ticket.await;
    }
    ring(&bell);
}

/// Files full of zeroes, so that no write changes anything but data.
fn prepare(folder: &Path) -> Vec<PathBuf> {
    let zeroes = vec![0u8; 1 << 20];
    let paths: Vec<PathBuf> = (0..FILES).map(|n| folder.join(format!("wal_runtime.{n}"))).collect();
    for path in &paths {
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).open(path).expect("a writable folder");
        (0..SEGMENT)
            .step_by(1 << 20)
            .for_each(|at| file.write_all_at(&zeroes, at).expect("room on the disk"));
        file.sync_all().expect("a working disk");
    }
    paths
}

/// CPU time of this process, all threads, in seconds.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = text.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

type Run = fn(Rc<RefCell<Room>>, usize, &[PathBuf]);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option =
        |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1).cloned());
    let smoke = args.iter().any(|arg| arg == "--test");
    let seconds: f64 =
        option("--seconds").map_or(if smoke { 0.2 } else { 3.0 }, |text| text.parse().expect("seconds"));
    let folder = option("--dir").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let only = option("--runtime");
    let paths = prepare(&folder);
    let runs: [(&str, Run); 3] =
        [("own ring loop", own_run::run), ("tokio-uring", tokio_run::run), ("glommio", glommio_run::run)];
    println!("| appenders | runtime | appends/s | p50 µs | p99 µs | CPU µs/append | appends/write |");
    println!("|---|---|---|---|---|---|---|");
    for appenders in [1, 16, 128] {
        for (name, run) in runs {
            if only.as_ref().is_some_and(|only| !name.starts_with(only.as_str())) {
                continue;
            }
            let (cpu, room) = (cpu_seconds(), Rc::new(RefCell::new(Room::new(seconds))));
            run(room.clone(), appenders, &paths);
            let (cpu, room) = (cpu_seconds() - cpu, room.borrow());
            let count = room.latency.len().max(1) as f64;
            // Warm-up costs as much per append as the rest.
            let all = count * (seconds + WARM_UP.as_secs_f64()) / seconds;
            println!(
                "| {appenders} | {name} | {:.0} | {} | {} | {:.1} | {:.1} |",
                count / seconds,
                room.latency.value_at_quantile(0.5),
                room.latency.value_at_quantile(0.99),
                cpu * 1e6 / all,
                all / room.writes.max(1) as f64,
            );
            std::io::stdout().flush().expect("a terminal or a file");
        }
    }
    paths.iter().for_each(|path| std::fs::remove_file(path).expect("it was made here"));
}
