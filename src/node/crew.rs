//! The threads of parallel redo. Each owns one lane of shards for the time of a batch; between batches they sleep.
//!
//! The loop hands every other lane out, runs its own, and waits for the rest: within a batch nobody else looks at the
//! store, so there is nothing to lock. Jobs travel by value.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::redo::Job;

/// A batch with fewer log bytes is applied in place: waking a thread costs more than it would save.
const FORK_BYTES: usize = 128 << 10;

/// Who runs the lanes of redo.
pub struct Crew {
    lanes: usize,
    threads: Option<Threads>,
}

impl Crew {
    /// No threads: the lanes run one after another on the loop, to the same result.
    pub fn alone(lanes: usize) -> Crew {
        assert!(lanes > 0, "somebody has to apply the log");
        Crew { lanes, threads: None }
    }

    /// One thread for each lane but the loop's own.
    pub fn employ(&mut self) -> io::Result<()> {
        if self.lanes > 1 {
            self.threads = Some(Threads::start(self.lanes - 1)?);
        }
        Ok(())
    }

    /// Into how many lanes a batch of this many log bytes is divided.
    pub fn lanes(&self, bytes: usize) -> usize {
        match &self.threads {
            // Without threads nothing is saved or lost: a simulated node takes the way of a large batch always.
            None => self.lanes,
            Some(_) if bytes >= FORK_BYTES => self.lanes,
            Some(_) => 1,
        }
    }

    /// Runs the jobs of a batch and gives them back in the same order.
    pub fn run(&self, jobs: &mut Vec<Job>) {
        match &self.threads {
            None => jobs.iter_mut().for_each(Job::run),
            Some(threads) => threads.run(jobs),
        }
    }
}

struct Threads {
    doors: Vec<Sender<Job>>,
    done: Receiver<Job>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(count: usize) -> io::Result<Threads> {
        let (finished, done) = channel();
        let (mut doors, mut handles) = (Vec::new(), Vec::new());
        for number in 1..=count {
            let (door, jobs) = channel::<Job>();
            let finished = finished.clone();
            let thread = std::thread::Builder::new().name(format!("redo-{number}"));
            handles.push(thread.spawn(move || {
                for mut job in jobs {
                    job.run();
                    if finished.send(job).is_err() {
                        return;
                    }
                }
            })?);
            doors.push(door);
        }
        Ok(Threads { doors, done, handles })
    }

    fn run(&self, jobs: &mut Vec<Job>) {
        let mut own = Vec::new();
        let mut out = 0;
        for job in jobs.drain(..) {
            // The same lane always goes to the same thread, whose cache knows its shards.
            match job.lane().checked_sub(1).and_then(|thread| self.doors.get(thread)) {
                Some(door) if !job.is_empty() => {
                    out += 1;
                    door.send(job).expect("a redo thread lives as long as its crew");
                }
                _ => own.push(job),
            }
        }
        own.iter_mut().for_each(Job::run);
        jobs.extend(own);
        jobs.extend((0..out).map(|_| self.done.recv().expect("a redo thread lives as long as its crew")));
        jobs.sort_by_key(Job::lane);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Closing the doors ends the threads.
        self.doors.clear();
        for handle in self.handles.drain(..) {
            let ended = handle.join();
            debug_assert!(ended.is_ok(), "redo does not panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ClusterId, ShardId, SharedSlice, WallMs};
    use crate::record::key::meta_key;
    use crate::record::{FrameHeader, FrameKind, HEADER_BYTES, Record, RecordWriter, padded};
    use crate::redo::{FrameCursor, Redo};
    use crate::store::{Store, StoreConfig};

    fn store() -> Store {
        Store::create(StoreConfig {
            cluster: ClusterId(1),
            shards: 8,
            cache_bytes: 1 << 20,
            delta_bytes: 1 << 20,
        })
    }

    fn frame() -> (FrameHeader, SharedSlice) {
        let mut writer = RecordWriter::new();
        for n in 0..2000u16 {
            let mut key = Vec::new();
            meta_key(&(n % 700).to_be_bytes(), &mut key);
            let (shard, value) = (ShardId(n % 700 % 8), n.to_be_bytes());
            writer.push(Record::Put { shard, key: &key, value: &value, created: n < 700 });
        }
        let header = FrameHeader {
            version: crate::base::format::FORMAT_VERSION,
            kind: FrameKind::Data,
            cluster: ClusterId(1),
            term: crate::base::Term::NONE,
            segment: 0,
            first: crate::base::Lsn(4096),
            length: padded(writer.len()) as u32,
            payload_len: writer.len() as u32,
            records: writer.records(),
            transactions: 0,
            previous: crate::base::Digest::ZERO,
            durable: Default::default(),
            commit: crate::base::CommittedLsn::ZERO,
            clock: WallMs(0),
            digest: crate::base::Digest::ZERO,
        };
        let whole = [&[0; HEADER_BYTES], writer.bytes()].concat();
        (header, SharedSlice::copy_of(&whole))
    }

    fn applied(crew: &Crew) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut store = store();
        let redo = Redo::new(&store);
        let lanes = crew.lanes(usize::MAX);
        let mut batch =
            redo.split(&mut store, &[frame()], FrameCursor::default(), lanes, &mut |_| {}).unwrap();
        crew.run(&mut batch.jobs);
        assert!(batch.jobs.iter().map(Job::lane).eq(0..lanes), "the jobs come back in order");
        redo.join(&mut store, &mut batch).unwrap();
        let mut seen = Vec::new();
        for shard in (0..8).map(ShardId) {
            let mut visit = |key: &[u8], value: &[u8]| seen.push((key.to_vec(), value.to_vec()));
            store.scan(shard, std::ops::Bound::Unbounded, 10_000, &mut visit).unwrap();
        }
        seen
    }

    #[test]
    fn threads_come_to_the_same_shards_as_one_loop() {
        let alone = applied(&Crew::alone(1));
        assert_eq!(alone.len(), 700);
        assert_eq!(applied(&Crew::alone(3)), alone);
        let mut crew = Crew::alone(4);
        crew.employ().unwrap();
        assert_eq!(crew.lanes(FORK_BYTES - 1), 1, "a small batch wakes nobody");
        for _ in 0..50 {
            assert_eq!(applied(&crew), alone);
        }
    }
}
