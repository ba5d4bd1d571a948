//! A disk that keeps what was flushed, may keep or lose the rest in 512-byte sectors, and completes in any order.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::super::{LogReader, LogRewriter};
use crate::base::{AlignedBuf, Prng, SharedSlice};

const SECTOR: usize = 512;

/// An operation under way.
#[derive(Clone, Debug)]
pub enum DiskOp {
    Write { serial: u64, segment: u64, durable: bool },
    Flush { segment: u64, covers: Vec<u64> },
}

#[derive(Clone, Debug)]
struct Pending {
    serial: u64,
    offset: usize,
    data: Vec<u8>,
    completed: bool,
    /// A flush over it failed: readers see it, and no later flush makes it durable.
    doomed: bool,
}

#[derive(Clone, Debug)]
struct File {
    durable: Vec<u8>,
    /// Not durable yet, in the order of submission.
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
pub struct Disk {
    segment_bytes: u64,
    files: BTreeMap<u64, File>,
    serial: u64,
    /// Reads that touch this segment fail.
    pub broken: Option<u64>,
}

impl Disk {
    pub fn new(segment_bytes: u64) -> Disk {
        Disk { segment_bytes, files: BTreeMap::new(), serial: 0, broken: None }
    }

    pub fn create(&mut self, segment: u64) {
        let zeros = vec![0; self.segment_bytes as usize];
        self.create_from(segment, zeros);
    }

    /// A recycled segment keeps its old bytes.
    pub fn create_from(&mut self, segment: u64, durable: Vec<u8>) {
        assert!(!self.files.contains_key(&segment));
        self.files.insert(segment, File { durable, pending: Vec::new() });
    }

    pub fn remove(&mut self, segment: u64) -> Vec<u8> {
        self.files.remove(&segment).expect("present").durable
    }

    pub fn write(&mut self, segment: u64, offset: u64, data: &[u8], durable: bool) -> DiskOp {
        self.serial += 1;
        let serial = self.serial;
        let offset = offset as usize;
        assert!(data.len().is_multiple_of(4096) && offset.is_multiple_of(4096) && !data.is_empty());
        assert!(offset + data.len() <= self.segment_bytes as usize);
        let file = self.files.get_mut(&segment).expect("a write goes to a segment that is in place");
        // Two writes under way over the same bytes have no order: the log must never do that.
        let overlap =
            |p: &Pending| !p.completed && p.offset < offset + data.len() && offset < p.offset + p.data.len();
        assert!(!file.pending.iter().any(overlap), "overlapping writes under way");
        file.pending.push(Pending { serial, offset, data: data.to_vec(), completed: false, doomed: false });
        DiskOp::Write { serial, segment, durable }
    }

    pub fn flush(&mut self, segment: u64) -> DiskOp {
        let file = self.files.get(&segment).expect("a flush goes to a segment that is in place");
        let covers = file.pending.iter().filter(|p| p.completed && !p.doomed).map(|p| p.serial).collect();
        DiskOp::Flush { segment, covers }
    }

    /// A flush of every file fails. What had completed is forgotten by the kernel as dirty, block by block: each is
    /// over only when something newer of the same block is durable.
    pub fn fail_flushes(&mut self) {
        for file in self.files.values_mut() {
            for pending in std::mem::take(&mut file.pending) {
                if !pending.completed {
                    file.pending.push(pending);
                    continue;
                }
                file.pending.extend(pending.data.chunks(4096).zip(0..).map(|(block, i)| Pending {
                    offset: pending.offset + i * 4096,
                    data: block.to_vec(),
                    doomed: true,
                    ..pending
                }));
            }
        }
    }

    pub fn complete(&mut self, op: DiskOp) {
        match op {
            DiskOp::Write { serial, segment, durable } => {
                let file = self.files.get_mut(&segment).unwrap();
                file.pending.iter_mut().filter(|p| p.serial == serial).for_each(|p| p.completed = true);
                if durable {
                    file.settle(&[serial]);
                }
            }
            DiskOp::Flush { segment, covers } => self.files.get_mut(&segment).unwrap().settle(&covers),
        }
    }

    /// The power fails: of everything not durable any subset of sectors has landed.
    pub fn cut_power(&mut self, rng: &mut Prng) {
        for file in self.files.values_mut() {
            for pending in std::mem::take(&mut file.pending) {
                file.land(&pending, rng);
            }
        }
    }

    /// The process dies: completed writes stand in the disk's cache, the others land in part.
    pub fn kill_process(&mut self, rng: &mut Prng) {
        for file in self.files.values_mut() {
            let mut image = file.image();
            for pending in file.pending.iter_mut().filter(|p| !p.completed) {
                let range = pending.offset..pending.offset + pending.data.len();
                let keep = rng.below(101);
                for (sector, old) in pending.data.chunks_mut(SECTOR).zip(image[range].chunks_mut(SECTOR)) {
                    if rng.below(100) >= keep {
                        sector.copy_from_slice(old);
                    }
                }
                pending.completed = true;
            }
            image.clear();
        }
    }

    pub fn flip_bit(&mut self, segment: u64, byte: usize, bit: u32) {
        self.files.get_mut(&segment).unwrap().durable[byte] ^= 1 << bit;
    }

    /// Every segment's bytes as a reader sees them.
    pub fn images(&self) -> BTreeMap<u64, Vec<u8>> {
        self.files.iter().map(|(segment, file)| (*segment, file.image())).collect()
    }
}

impl LogRewriter for Disk {
    fn write(&mut self, segment: u64, offset: u64, data: &SharedSlice) -> io::Result<()> {
        let op = Disk::write(self, segment, offset, data, false);
        self.complete(op);
        Ok(())
    }

    fn flush(&mut self, segment: u64) -> io::Result<()> {
        let op = Disk::flush(self, segment);
        self.complete(op);
        Ok(())
    }
}

impl Pending {
    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.data.len()
    }
}

impl File {
    /// What a read returns: the durable bytes under the completed writes.
    fn image(&self) -> Vec<u8> {
        let mut image = self.durable.clone();
        for pending in self.pending.iter().filter(|p| p.completed) {
            image[pending.offset..pending.offset + pending.data.len()].copy_from_slice(&pending.data);
        }
        image
    }

    /// Makes these writes durable, and with each the older ones under it: the disk's cache holds one version.
    fn settle(&mut self, serials: &[u64]) {
        let ranges: Vec<_> =
            self.pending.iter().filter(|p| serials.contains(&p.serial)).map(Pending::range).collect();
        let newest = serials.iter().copied().max().unwrap_or(0);
        let durable = &mut self.durable;
        self.pending.retain(|p| {
            let over = |range: &Range<usize>| range.start <= p.offset && p.range().end <= range.end;
            if p.doomed {
                return p.serial > newest || !ranges.iter().any(over);
            }
            let under = |range: &Range<usize>| range.start < p.range().end && p.range().start < range.end;
            let settled = p.serial <= newest && p.completed && ranges.iter().any(under);
            if settled {
                durable[p.offset..p.offset + p.data.len()].copy_from_slice(&p.data);
            }
            !settled
        });
    }

    fn land(&mut self, pending: &Pending, rng: &mut Prng) {
        let keep = match rng.below(4) {
            0 => 0,
            1 => 100,
            _ => rng.below(101),
        };
        for (at, sector) in pending.data.chunks(SECTOR).enumerate() {
            if rng.below(100) < keep {
                let from = pending.offset + at * SECTOR;
                self.durable[from..from + sector.len()].copy_from_slice(sector);
            }
        }
    }
}

impl LogReader for Disk {
    fn segments(&mut self) -> io::Result<Vec<u64>> {
        Ok(self.files.keys().copied().collect())
    }

    fn read(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<Option<AlignedBuf>> {
        if self.broken == Some(segment) {
            return Err(io::Error::other("medium error"));
        }
        let Some(file) = self.files.get(&segment) else { return Ok(None) };
        let image = file.image();
        let from = (offset as usize).min(image.len());
        let to = (from + len).min(image.len());
        let mut buf = AlignedBuf::zeroed(to - from);
        buf.copy_from_slice(&image[from..to]);
        Ok(Some(buf))
    }
}
