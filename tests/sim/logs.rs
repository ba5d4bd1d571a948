//! The nodes' logs, read from their disks: one byte string per (term, position), one leader per term, and the order in
//! which everything that was committed happened.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use baton::base::limits::BLOCK_BYTES;
use baton::base::{AlignedBuf, ClusterId, Digest, Lsn, NodeId, Term};
use baton::io::sim::{HostId, World};
use baton::record::Record;
use baton::record::key::{Meta, split};
use baton::wal::{FrameScan, Geometry, LogFile, LogReader};

/// Segment files of a host.
struct Disk<'a> {
    world: &'a World,
    host: HostId,
    spare: Option<AlignedBuf>,
}

impl LogReader for Disk<'_> {
    fn segments(&mut self) -> io::Result<Vec<u64>> {
        let names = self.world.files(self.host);
        let numbers = names.iter().filter_map(|path| match LogFile::parse(path.file_name()?.to_str()?)? {
            LogFile::Segment(number) => Some(number),
            LogFile::Spare(_) => None,
        });
        let mut numbers: Vec<u64> = numbers.collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<Option<AlignedBuf>> {
        let mut buffer = match self.spare.take() {
            Some(spare) if spare.capacity() >= len => spare,
            _ => AlignedBuf::zeroed(len),
        };
        buffer.set_len(len);
        let path = PathBuf::from(format!("/data/wal/{}", LogFile::Segment(segment)));
        let read = self.world.read_file(self.host, &path, offset, &mut buffer);
        Ok(read.map(|count| {
            buffer.set_len(count);
            buffer
        }))
    }

    fn recycle(&mut self, buffer: AlignedBuf) {
        self.spare = Some(buffer);
    }
}

/// A change of one key by the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    pub at: Lsn,
    pub value: Option<u64>,
}

/// The whole log of one node.
#[derive(Default)]
pub struct Order {
    pub end: Lsn,
    pub frames: BTreeMap<Lsn, Digest>,
    /// Where each term's frames begin in this log.
    terms: BTreeMap<Lsn, Term>,
    /// Terms that were started in this log, and where.
    starts: Vec<(Term, Lsn)>,
    pub keys: BTreeMap<Vec<u8>, Vec<Change>>,
}

/// What was seen in any log at any time.
#[derive(Default)]
pub struct Logs {
    frames: BTreeMap<(Term, Lsn), (Digest, u16)>,
    leaders: BTreeMap<Term, NodeId>,
    /// Frames that some node knew to be committed, and the term in which they were at the latest.
    committed: BTreeMap<Lsn, (Digest, u16, Term)>,
    /// Frames that each node itself knew to be committed: its own log never loses them.
    own: BTreeMap<u16, BTreeMap<Lsn, Digest>>,
    /// An operator may give up committed frames for all others: only what a node knew itself is asked of it.
    pub forced: bool,
    /// Until where each node's log was looked at; everything below is known already unless it was cut.
    pub checked: u64,
}

/// A frame that stands on a node's disk at or behind `end`, where its log ends.
pub fn stale_beyond(world: &World, host: HostId, segment_bytes: u64, end: Lsn) -> Option<Lsn> {
    let mut disk = Disk { world, host, spare: None };
    let geometry = Geometry::new(ClusterId(0xC1), segment_bytes);
    let segments = disk.segments().ok()?;
    for segment in segments.into_iter().filter(|segment| *segment >= end.segment(segment_bytes)) {
        let start = segment * segment_bytes;
        let from = end.0.max(start) - start;
        let bytes = disk.read(segment, from, segment_bytes as usize).ok()??;
        for (i, block) in (0u64..).zip(bytes.chunks(BLOCK_BYTES)) {
            let at = Lsn(start + from + i * BLOCK_BYTES as u64);
            let Ok(header) = geometry.header(at, block) else { continue };
            let used = bytes.get(i as usize * BLOCK_BYTES..).and_then(|rest| rest.get(..header.used()));
            if used.is_some_and(|used| header.verify(used).is_ok()) {
                return Some(at);
            }
        }
    }
    None
}

/// The number in front of a value's padding.
pub fn number(value: &[u8]) -> Option<u64> {
    let digits = value.split(|b| *b == b':').next().unwrap_or_default();
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl Logs {
    /// Reads a node's log and compares it with everything that was seen before. `marks`: what the node said, one time
    /// after the other, it knows to be committed.
    pub fn look(
        &mut self,
        world: &World,
        host: HostId,
        node: u16,
        segment_bytes: u64,
        marks: &BTreeSet<Lsn>,
    ) -> Result<Order, String> {
        let mut disk = Disk { world, host, spare: None };
        let geometry = Geometry::new(ClusterId(0xC1), segment_bytes);
        let committed = marks.last().copied().unwrap_or(Lsn::ZERO);
        let mut order = Order::default();
        let mut fresh = Vec::new();
        for frame in FrameScan::new(&mut disk, geometry, Lsn::ZERO, Lsn::MAX, None) {
            let Ok(frame) = frame else { break };
            let header = frame.header;
            self.checked += 1;
            order.end = header.end();
            order.frames.insert(header.first, header.digest);
            if order.terms.last_key_value().is_none_or(|(_, last)| *last != header.term) {
                order.terms.insert(header.first, header.term);
            }
            let (digest, by) =
                *self.frames.entry((header.term, header.first)).or_insert((header.digest, node));
            if digest != header.digest {
                let (term, at) = (header.term, header.first);
                return Err(format!(
                    "two truths at {at} of term {term}: nodes {by} and {node} hold other bytes"
                ));
            }
            if header.end() <= committed {
                self.own.entry(node).or_default().insert(header.first, header.digest);
                let (digest, by, _) = *self.committed.entry(header.first).or_insert_with(|| {
                    fresh.push((header.first, header.end()));
                    (header.digest, node, header.term)
                });
                if digest != header.digest && !self.forced {
                    return Err(format!(
                        "nodes {by} and {node} take different frames at {} for committed",
                        header.first
                    ));
                }
            }
            for record in frame.records() {
                let Ok((record, _)) = record else { return Err(format!("bad record at {}", header.first)) };
                self.record(&record, header.first, &mut order)?;
            }
        }
        // A commit index covers a frame in the term of the last frame below it, or in an earlier one.
        for (first, end) in fresh {
            let mark = marks.range(end..).next().expect("a mark covers it");
            let term = order.terms.range(..*mark).next_back().map(|(_, term)| *term);
            let entry = self.committed.get_mut(&first).expect("just inserted");
            entry.2 = entry.2.max(term.unwrap_or(entry.2));
        }
        let own = self.own.get(&node).into_iter().flatten();
        match own.into_iter().find(|(at, digest)| order.frames.get(at) != Some(digest)) {
            Some((at, _)) => Err(format!("node {node} lost the frame at {at}, which it knew as committed")),
            None => Ok(order),
        }
    }

    /// A node's disk was replaced or ruined: what its log held is no longer asked of it.
    pub fn forget(&mut self, node: u16) {
        self.own.remove(&node);
    }

    /// Whoever starts a term holds everything that was ever committed in an earlier one.
    pub fn complete(&self, node: u16, order: &Order) -> Result<(), String> {
        let Some((started, at)) = order.starts.iter().max() else { return Ok(()) };
        for (committed, (digest, by, term)) in &self.committed {
            if term < started && order.frames.get(committed) != Some(digest) {
                return Err(format!(
                    "term {started} starts at {at} in the log of node {node} without the frame at {committed}, which \
                     node {by} knew as committed in term {term}"
                ));
            }
        }
        Ok(())
    }

    fn record(&mut self, record: &Record<'_>, at: Lsn, order: &mut Order) -> Result<(), String> {
        match *record {
            Record::TermStart { term, leader, .. } => {
                let first = *self.leaders.entry(term).or_insert(leader);
                if first != leader {
                    return Err(format!("term {term} was started by {first} and by {leader}"));
                }
                order.starts.push((term, at));
            }
            Record::Put { key, value, .. } => {
                let (user, _) = split(key).map_err(|e| format!("{e:?}"))?;
                let meta = Meta::decode(value).map_err(|e| format!("{e:?}"))?;
                order.keys.entry(user).or_default().push(Change { at, value: number(meta.body) });
            }
            Record::Delete { key, .. } => {
                let (user, _) = split(key).map_err(|e| format!("{e:?}"))?;
                order.keys.entry(user).or_default().push(Change { at, value: None });
            }
            _ => {}
        }
        Ok(())
    }

    /// Everything that anybody ever took for committed stands in this log.
    pub fn holds_committed(&self, order: &Order) -> Result<(), String> {
        for (at, (digest, by, _)) in &self.committed {
            if order.frames.get(at) != Some(digest) {
                return Err(format!("the frame at {at}, which node {by} knew as committed, is gone"));
            }
        }
        Ok(())
    }

    pub fn terms(&self) -> BTreeSet<Term> {
        self.leaders.keys().copied().collect()
    }
}
