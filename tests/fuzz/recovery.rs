//! Recovery of a log folder of several segments: frames as a node writes them, then holes, torn blocks, stale frames and
//! foreign bytes, wherever the script wants them.

use std::collections::BTreeMap;
use std::io;

use baton::base::{AlignedBuf, CommittedLsn, Digest, FlushedLsn, Lsn, SharedSlice, Term, WallMs};
use baton::record::{FrameHeader, FrameKind, HEADER_BYTES, padded};
use baton::wal::{
    FrameScan, Geometry, LogReader, LogRewriter, RecoverParams, Recovered, Verdict, recover, settle,
};

use super::script::Script;
use super::seeds::payload;
use super::targets::{CLUSTER, SEGMENT, way, word};

const BLOCK: usize = 4096;
const SEGMENTS: usize = 3;
const STEPS_MAX: usize = 40;

/// The segments of a folder, in memory.
#[derive(Clone, Default)]
struct Disk {
    segments: BTreeMap<u64, Vec<u8>>,
}

impl Disk {
    /// The bytes from `at` to the end of its segment.
    fn at(&mut self, at: Lsn) -> &mut [u8] {
        let segment = self.segments.entry(at.0 / SEGMENT).or_default();
        segment.resize(SEGMENT as usize, 0);
        &mut segment[(at.0 % SEGMENT) as usize..]
    }
}

impl LogReader for Disk {
    fn segments(&mut self) -> io::Result<Vec<u64>> {
        Ok(self.segments.keys().copied().collect())
    }

    fn read(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<Option<AlignedBuf>> {
        let Some(bytes) = self.segments.get(&segment) else { return Ok(None) };
        let rest = &bytes[bytes.len().min(offset as usize)..];
        let mut buf = AlignedBuf::zeroed(len.min(rest.len().next_multiple_of(BLOCK)));
        let len = buf.len().min(rest.len());
        buf[..len].copy_from_slice(&rest[..len]);
        buf.set_len(len);
        Ok(Some(buf))
    }
}

impl LogRewriter for Disk {
    fn write(&mut self, segment: u64, offset: u64, data: &SharedSlice) -> io::Result<()> {
        let to = self.segments.get_mut(&segment).expect("what was read is there");
        to[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn term(number: u64) -> Term {
    Term { number, id: u128::from(number) * 11 }
}

/// What the script has written.
struct Writer {
    disk: Disk,
    /// Where the next frame goes.
    at: Lsn,
    previous: Digest,
    term: Term,
    /// Where terms begin.
    history: Vec<(Term, Lsn)>,
    /// Frame borders, and the end of what follows without a hole from the start.
    borders: Vec<Lsn>,
    /// Frames that stand in the log as they were written, with the bytes that count.
    written: Vec<(Lsn, Vec<u8>)>,
}

impl Writer {
    fn new() -> Writer {
        Writer {
            disk: Disk::default(),
            at: Lsn::ZERO,
            previous: Digest::ZERO,
            term: term(1),
            history: vec![(term(1), Lsn::ZERO)],
            borders: vec![Lsn::ZERO],
            written: Vec::new(),
        }
    }

    fn frame(&mut self, script: &mut Script<'_>, filler: bool) {
        let records = script.byte() % 12;
        let body = if filler { Vec::new() } else { payload(u64::from(records)) };
        let room = SEGMENT - self.at.0 % SEGMENT;
        let length = if filler { room } else { padded(body.len()) as u64 };
        if length > room || (self.at.0 + length) > SEGMENT * SEGMENTS as u64 {
            return;
        }
        let mark = |byte: u8| Lsn(self.at.0.saturating_sub(u64::from(byte % 8) * BLOCK as u64));
        let mut header = FrameHeader {
            version: baton::base::format::FORMAT_VERSION,
            kind: if filler { FrameKind::Filler } else { FrameKind::Data },
            cluster: CLUSTER,
            term: self.term,
            segment: self.at.0 / SEGMENT,
            first: self.at,
            length: length as u32,
            payload_len: body.len() as u32,
            records: u32::from(if filler { 0 } else { records }),
            transactions: u32::from(if filler { 0 } else { records }),
            previous: self.previous,
            durable: FlushedLsn(mark(script.byte())),
            commit: CommittedLsn(mark(script.byte())),
            clock: WallMs(u64::from(script.byte())),
            digest: Digest::ZERO,
        };
        let mut bytes = vec![0; length as usize];
        bytes[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(&body);
        header.seal(&mut bytes);
        let used = HEADER_BYTES + body.len();
        self.disk.at(self.at)[..used].copy_from_slice(&bytes[..used]);
        self.written.push((self.at, bytes[..used].to_vec()));
        self.previous = header.digest;
        self.at = header.end();
        self.borders.push(self.at);
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 12 {
            0..=4 => self.frame(script, false),
            5 => self.frame(script, true),
            6 => {
                self.term = term(self.term.number + 1 + u64::from(script.byte() % 2));
                self.history.push((self.term, self.at));
            }
            // A frame that never reached the disk: the next ones follow it all the same.
            7 => {
                let from = self.at;
                self.frame(script, false);
                let len = (self.at.0 - from.0) as usize;
                self.disk.at(from)[..len].fill(0);
            }
            // The log was cut here: what follows is another log, over the old one.
            8 => {
                let to = script.below(self.borders.len());
                self.at = self.borders[to];
                self.borders.truncate(to + 1);
                self.previous = self
                    .written
                    .iter()
                    .rev()
                    .find(|(first, bytes)| {
                        FrameHeader::decode(bytes).is_ok_and(|h| h.end() == self.at) && *first < self.at
                    })
                    .map_or(Digest::ZERO, |(_, bytes)| FrameHeader::decode(bytes).expect("just read").digest);
                self.history.retain(|(_, start)| *start <= self.at);
                if self.history.last().is_none_or(|(_, start)| *start < self.at || self.at == Lsn::ZERO) {
                    self.term = term(self.term.number + 1);
                    self.history.retain(|(_, start)| *start < self.at);
                    self.history.push((self.term, self.at));
                } else {
                    self.term = self.history.last().expect("just looked").0;
                }
            }
            9 => {
                let block = script.below(SEGMENTS * SEGMENT as usize / BLOCK) as u64 * BLOCK as u64;
                self.disk.at(Lsn(block))[..BLOCK].fill(0);
            }
            10 => {
                let block = script.below(SEGMENTS * SEGMENT as usize / BLOCK) as u64 * BLOCK as u64;
                let bytes = &mut self.disk.at(Lsn(block))[..BLOCK];
                script.edit(bytes);
                if script.flag() {
                    let rest = self.disk.at(Lsn(block));
                    super::targets::seal_frames(rest);
                }
            }
            // A file that is shorter than it should be, or gone.
            _ => {
                let segment = script.below(SEGMENTS) as u64;
                if let Some(bytes) = self.disk.segments.get_mut(&segment)
                    && segment * SEGMENT > self.at.0
                {
                    bytes.clear();
                }
            }
        }
    }

    fn border(&self, script: &mut Script<'_>) -> Lsn {
        self.borders[script.below(self.borders.len())]
    }

    /// How far the log holds from its beginning on, judged by what was written and still stands: nothing of the room under test.
    fn holds(&mut self) -> Lsn {
        let (mut end, mut last) = (Lsn::ZERO, Digest::ZERO);
        // The newest frame written in a place is the one that stands there.
        loop {
            let Some((_, bytes)) = self.written.iter().rev().find(|(first, _)| *first == end).cloned() else {
                return end;
            };
            let header = FrameHeader::decode(&bytes).expect("we wrote it");
            let stands = self.disk.segments.contains_key(&(end.0 / SEGMENT)) && {
                let there = self.disk.at(end);
                there.len() >= bytes.len() && there[..bytes.len()] == bytes
            };
            let of_history =
                self.history.iter().rev().find(|(_, start)| *start <= end).map(|(term, _)| *term);
            if !stands || header.previous != last || of_history != Some(header.term) {
                return end;
            }
            (end, last) = (header.end(), header.digest);
        }
    }
}

fn same(a: &Recovered, b: &Recovered) {
    assert_eq!(a, b, "a second look finds something else");
}

pub fn recovery(data: &[u8]) -> u64 {
    let mut script = Script::new(data);
    // What the control file and the mark say.
    let head = script.take(8);
    let mut writer = Writer::new();
    for _ in 0..STEPS_MAX {
        if script.is_over() {
            break;
        }
        writer.step(&mut script);
    }
    let mut head = Script::new(head);
    let from = if head.flag() { writer.border(&mut head) } else { Lsn::ZERO };
    let known_commit = if head.flag() { writer.border(&mut head) } else { Lsn::ZERO };
    let own_mark = if head.flag() { writer.border(&mut head) } else { Lsn::ZERO };
    let own_term = head.flag().then_some(writer.term);
    let history = writer.history.clone();
    let term_at = |at: Lsn| history.iter().rev().find(|(_, start)| *start <= at).map(|(term, _)| *term);
    let params = RecoverParams {
        cluster: CLUSTER,
        segment_bytes: SEGMENT,
        from,
        before: None,
        term_at: &term_at,
        known_commit,
        own_mark,
        own_term,
        repair_mark: Lsn::ZERO,
    };
    let mut disk = writer.disk.clone();
    let found = match recover(&mut disk, &params) {
        Ok(found) => found,
        Err(error) => return way(word(&error)),
    };
    let end = found.end.end;
    assert!(end >= from && end.0.is_multiple_of(BLOCK as u64));
    assert!(found.known_committed.lsn() <= end, "it calls committed what is not there");
    same(&found, &recover(&mut disk, &params).expect("it was readable"));

    // What it counts is there, frame by frame, and what stands whole in front is counted.
    let geometry = Geometry::new(CLUSTER, SEGMENT);
    let mut scan = FrameScan::new(&mut disk, geometry, from, end, None).judged_by(&term_at);
    let whole = scan.by_ref().map_while(Result::ok).count() as u64;
    assert_eq!((whole, scan.end().end), (found.frames, end), "recovery counts other frames than stand there");
    if from == Lsn::ZERO {
        let holds = writer.holds();
        assert!(end >= holds, "frames that stand up to {holds} are given up at {end}");
    }
    let mark = known_commit.max(own_mark);
    match found.verdict {
        Verdict::Damaged { at, mark, stale_to } => assert!(at == end && mark > at && stale_to >= at),
        _ => assert!(
            mark <= end,
            "what was vouched for up to {mark} is gone, and it calls the log whole at {end}"
        ),
    }

    // Written again it is the same log; with the torn part zeroed it is a clean one.
    let mut settled = found.clone();
    settle(&mut disk, SEGMENT, &mut settled).expect("memory can be written");
    same(&found, &recover(&mut disk, &params).expect("it was readable"));
    if let Verdict::Torn { zero_from, zero_to } = found.verdict {
        assert!(zero_from == end && zero_to > zero_from);
        let mut at = zero_from;
        while at < zero_to {
            let rest = disk.at(at);
            let len = rest.len().min((zero_to.0 - at.0) as usize);
            rest[..len].fill(0);
            at = at + len.max(BLOCK) as u64;
        }
        let again = recover(&mut disk, &params).expect("it was readable");
        assert_eq!((again.end, again.verdict), (found.end, Verdict::Clean), "zeroed, and not clean");
    }
    way((
        word(&found.verdict),
        found.frames.min(12),
        found.unsettled.len(),
        found.segments.len(),
        from == Lsn::ZERO,
    ))
}
