//! A batch of frames divided by shard, so that several cores can apply it.

use super::{FrameCursor, Judged, Redo, RedoError, change, record_lsn};
use crate::base::{Lsn, ShardId, SharedSlice, Stamp};
use crate::record::{FrameHeader, HEADER_BYTES, Record, RecordReader};
use crate::store::{Store, Top};

/// Where a record lies: its frame in the batch, and its offset in that frame's payload.
#[derive(Clone, Copy, Debug)]
struct Place {
    frame: u32,
    offset: u32,
}

/// The share of one lane: the tops of its shards and the places of their records, in log order. It depends on nothing
/// that another lane touches.
#[derive(Debug)]
pub struct Job {
    lane: usize,
    lanes: usize,
    /// By `shard / lanes`; only shards with a record in this batch.
    tops: Vec<Option<Top>>,
    places: Vec<Place>,
    frames: Vec<SharedSlice>,
    result: Result<(), RedoError>,
}

impl Job {
    fn new(lane: usize, lanes: usize, shards: u16) -> Job {
        let mut tops = Vec::new();
        tops.resize_with(usize::from(shards).div_ceil(lanes), || None);
        Job { lane, lanes, tops, places: Vec::new(), frames: Vec::new(), result: Ok(()) }
    }

    /// Which lane this is: a worker that always gets the same lane finds its shards in its own cache.
    pub fn lane(&self) -> usize {
        self.lane
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Applies the records, up to the first that cannot be applied.
    pub fn run(&mut self) {
        self.result = self.apply();
    }

    fn apply(&mut self) -> Result<(), RedoError> {
        for place in &self.places {
            let payload = &self.frames[place.frame as usize][HEADER_BYTES..];
            let next = RecordReader::new(&payload[place.offset as usize..]).next();
            let (record, _) = next.expect("the split saw a record here")?;
            let shard = record.shard().expect("the split saw its shard");
            let top = self.tops[shard.index() / self.lanes].as_mut().expect("the split took the top out");
            change(top, &record)?;
        }
        Ok(())
    }
}

/// Why a batch ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// All frames are in it.
    End,
    /// The shard freezes behind the batch, then the next batch begins.
    Checkpoint { shard: ShardId, at: Lsn },
    /// The shard's previous checkpoint is not durable yet: nothing behind it is applied (protocol 7.1).
    Stalled(ShardId),
}

/// Frames divided into lanes. [`Redo::join`] ends it.
#[derive(Debug)]
#[must_use]
pub struct Batch {
    pub jobs: Vec<Job>,
    /// Frames that end in this batch.
    pub frames: usize,
    /// Position in the frame behind them.
    pub cursor: FrameCursor,
    pub stop: Stop,
}

impl Redo {
    /// Divides frames, of which the first is applied up to `cursor` already, into `lanes` jobs. Term starts and policies
    /// go to `control`. Every job must be run and brought back to [`Redo::join`] before anybody looks at the store.
    pub fn split(
        &self,
        store: &mut Store,
        frames: &[(FrameHeader, SharedSlice)],
        cursor: FrameCursor,
        lanes: usize,
        control: &mut dyn FnMut(Record<'_>),
    ) -> Result<Batch, RedoError> {
        let shards = store.shards();
        let jobs = (0..lanes).map(|lane| Job::new(lane, lanes, shards)).collect();
        let mut batch = Batch { jobs, frames: 0, cursor, stop: Stop::End };
        match self.fill(store, frames, &mut batch, control) {
            Ok(()) => {
                let slices: Vec<_> = frames.iter().map(|(_, used)| used.clone()).collect();
                batch.jobs.iter_mut().for_each(|job| job.frames.clone_from(&slices));
                Ok(batch)
            }
            Err(error) => {
                put_back(store, &mut batch);
                Err(error)
            }
        }
    }

    fn fill(
        &self,
        store: &mut Store,
        frames: &[(FrameHeader, SharedSlice)],
        batch: &mut Batch,
        control: &mut dyn FnMut(Record<'_>),
    ) -> Result<(), RedoError> {
        let lanes = batch.jobs.len();
        for (frame, (header, used)) in frames.iter().enumerate() {
            let payload = &used[HEADER_BYTES..];
            let mut reader = RecordReader::new(&payload[batch.cursor.0..]);
            loop {
                let offset = payload.len() - reader.remaining();
                let Some(next) = reader.next() else { break };
                let (record, _) = next?;
                match self.judge(record, record_lsn(header.first, offset))? {
                    Judged::Skip => {}
                    Judged::Control(record) => control(record),
                    Judged::Change(shard) => {
                        let job = &mut batch.jobs[shard.index() % lanes];
                        let top = &mut job.tops[shard.index() / lanes];
                        top.get_or_insert_with(|| store.take_top(shard));
                        let frame = u32::try_from(frame).expect("a batch is short");
                        let offset = u32::try_from(offset).expect("a frame is shorter than 4 GiB");
                        job.places.push(Place { frame, offset });
                    }
                    Judged::Checkpoint { shard, .. } if store.merging(shard) => {
                        (batch.cursor, batch.stop) = (FrameCursor(offset), Stop::Stalled(shard));
                        return Ok(());
                    }
                    Judged::Checkpoint { shard, at } => {
                        let behind = payload.len() - reader.remaining();
                        (batch.cursor, batch.stop) = (FrameCursor(behind), Stop::Checkpoint { shard, at });
                        return Ok(());
                    }
                }
            }
            batch.frames = frame + 1;
            batch.cursor = FrameCursor::default();
        }
        Ok(())
    }

    /// Ends a batch whose jobs have run: the tops go back, and the shard of a checkpoint record freezes.
    pub fn join(&self, store: &mut Store, batch: &mut Batch) -> Result<(), RedoError> {
        put_back(store, batch);
        batch.jobs.iter().try_for_each(|job| job.result)?;
        if let Stop::Checkpoint { shard, at } = batch.stop {
            store.freeze(shard, at, Stamp::COMMITTED);
        }
        Ok(())
    }
}

fn put_back(store: &mut Store, batch: &mut Batch) {
    let lanes = batch.jobs.len();
    for job in &mut batch.jobs {
        for (i, top) in job.tops.iter_mut().enumerate() {
            if let Some(top) = top.take() {
                store.put_top(ShardId((i * lanes + job.lane) as u16), top);
            }
        }
    }
}
