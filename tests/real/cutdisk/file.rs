//! One file on a disk with a volatile cache: what readers see, what is durable, and every version of a block between.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use baton::base::Prng;

pub const BLOCK: u64 = 4096;
const SECTOR: usize = 512;

/// A block of a file; `None` is a block of zeroes.
type Block = Option<Arc<[u8; BLOCK as usize]>>;

/// What happens to the unflushed in a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All of it is gone.
    Lose,
    /// All of it had just reached the disk.
    Keep,
    /// Each sector, or each block, for itself.
    Tear,
}

/// What a power cut did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Unflushed blocks that are as if they had never been written.
    pub lost: u64,
    /// Unflushed blocks that arrived.
    pub kept: u64,
    /// Unflushed blocks that are neither the old nor the new one.
    pub torn: u64,
    /// Changes of folders that are undone.
    pub undone: u64,
}

impl Damage {
    pub fn add(&mut self, other: Damage) {
        self.lost += other.lost;
        self.kept += other.kept;
        self.torn += other.torn;
        self.undone += other.undone;
    }
}

/// A point in the file's life: what was written before it is covered by a flush that began there.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    seq: u64,
    size: u64,
}

#[derive(Debug, Default)]
pub struct File {
    live: Vec<Block>,
    size: u64,
    durable: Vec<Block>,
    durable_size: u64,
    /// Versions of each block that are not known to be durable, oldest first. The last one is the live one.
    pending: BTreeMap<u64, Vec<(u64, Block)>>,
    seq: u64,
}

impl File {
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = (offset.saturating_add(len as u64)).min(self.size);
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        for (number, within, range) in pieces(offset, out.len()) {
            if let Some(Some(block)) = self.live.get(number as usize) {
                out[range.clone()].copy_from_slice(&block[within..within + range.len()]);
            }
        }
        out
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.seq += 1;
        for (number, within, range) in pieces(offset, data.len()) {
            let mut bytes = self.bytes_of(number);
            bytes[within..within + range.len()].copy_from_slice(&data[range]);
            self.change(number, bytes);
        }
        self.size = self.size.max(offset + data.len() as u64);
    }

    pub fn truncate(&mut self, size: u64) {
        self.seq += 1;
        if size < self.size {
            let first_gone = size.div_ceil(BLOCK);
            for number in first_gone..self.live.len() as u64 {
                self.change(number, [0; BLOCK as usize]);
            }
            if !size.is_multiple_of(BLOCK) {
                let mut bytes = self.bytes_of(size / BLOCK);
                bytes[(size % BLOCK) as usize..].fill(0);
                self.change(size / BLOCK, bytes);
            }
        }
        self.size = size;
    }

    pub fn mark(&self) -> Mark {
        Mark { seq: self.seq, size: self.size }
    }

    /// What was written before the mark is durable.
    pub fn flush(&mut self, mark: Mark) {
        let blocks = self.live.len() as u64;
        self.flush_blocks(mark, 0..=blocks);
        self.durable_size = mark.size;
    }

    /// What was written before the mark into these bytes is durable, and so is a size that covers them.
    pub fn flush_range(&mut self, mark: Mark, offset: u64, len: u64) {
        let end = offset + len;
        self.flush_blocks(mark, offset / BLOCK..=end.saturating_sub(1) / BLOCK);
        self.durable_size = self.durable_size.max(end.min(mark.size));
    }

    fn flush_blocks(&mut self, mark: Mark, numbers: RangeInclusive<u64>) {
        let touched: Vec<u64> = self.pending.range(numbers).map(|(number, _)| *number).collect();
        for number in touched {
            let versions = self.pending.get_mut(&number).expect("it was just seen");
            let covered = versions.iter().take_while(|(seq, _)| *seq <= mark.seq).count();
            if let Some((_, block)) = versions.drain(..covered).next_back() {
                put(&mut self.durable, number, block);
            }
            if versions.is_empty() {
                self.pending.remove(&number);
            }
        }
    }

    /// The power goes: what is not durable meets its fate, and what remains is all there is.
    pub fn cut(&mut self, fate: Fate, dice: &mut Prng) -> Damage {
        let mut damage = Damage::default();
        // Some files are lucky and some are not, so that some tears are wide and some narrow.
        let luck = [0.0, 0.1, 0.5, 0.9, 1.0][dice.below(5) as usize];
        let by_sector = dice.chance(0.5);
        let keep = |dice: &mut Prng| match fate {
            Fate::Lose => false,
            Fate::Keep => true,
            Fate::Tear => dice.chance(luck),
        };
        for (number, versions) in std::mem::take(&mut self.pending) {
            let old = self.durable.get(number as usize).cloned().flatten();
            let newest = versions.last().expect("a block with no version is removed").1.clone();
            let pick = |dice: &mut Prng| match keep(dice) {
                false => old.clone(),
                // Now and then an earlier version arrived and the newest did not.
                true if fate == Fate::Tear && dice.chance(0.2) => {
                    versions[dice.below(versions.len() as u64) as usize].1.clone()
                }
                true => newest.clone(),
            };
            let block = if by_sector {
                let mut bytes = [0; BLOCK as usize];
                for at in (0..BLOCK as usize).step_by(SECTOR) {
                    if let Some(block) = pick(dice) {
                        bytes[at..at + SECTOR].copy_from_slice(&block[at..at + SECTOR]);
                    }
                }
                packed(bytes)
            } else {
                pick(dice)
            };
            match () {
                () if block == newest => damage.kept += 1,
                () if block == old => damage.lost += 1,
                () => damage.torn += 1,
            }
            put(&mut self.durable, number, block);
        }
        if keep(dice) {
            self.durable_size = self.size;
        }
        self.size = self.durable_size;
        self.live = self.durable.clone();
        // What lies behind the end is not part of the file, whatever its blocks say.
        let size = self.size;
        self.size = self.live.len() as u64 * BLOCK;
        self.truncate(size.min(self.size));
        self.size = size;
        self.durable = self.live.clone();
        self.pending.clear();
        damage
    }

    pub fn has_unflushed(&self) -> bool {
        !self.pending.is_empty() || self.size != self.durable_size
    }

    fn bytes_of(&self, number: u64) -> [u8; BLOCK as usize] {
        self.live.get(number as usize).and_then(Option::as_deref).copied().unwrap_or([0; BLOCK as usize])
    }

    fn change(&mut self, number: u64, bytes: [u8; BLOCK as usize]) {
        let block = packed(bytes);
        self.pending.entry(number).or_default().push((self.seq, block.clone()));
        put(&mut self.live, number, block);
    }
}

fn packed(bytes: [u8; BLOCK as usize]) -> Block {
    bytes.iter().any(|byte| *byte != 0).then(|| Arc::new(bytes))
}

fn put(blocks: &mut Vec<Block>, number: u64, block: Block) {
    let number = number as usize;
    if blocks.len() <= number {
        blocks.resize(number + 1, None);
    }
    blocks[number] = block;
}

/// The parts of a range by blocks: the block, where the part begins in it, and where the part lies in the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let place = offset + at as u64;
        let within = (place % BLOCK) as usize;
        let part = (len - at).min(BLOCK as usize - within);
        let range = at..at + part;
        at += part;
        (part > 0).then_some((place / BLOCK, within, range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(pieces: &[(u64, &[u8])]) -> File {
        let mut file = File::default();
        for (offset, data) in pieces {
            file.write(*offset, data);
        }
        file
    }

    #[test]
    fn what_was_not_flushed_is_forgotten() {
        let mut file = written(&[(0, b"first")]);
        file.flush(file.mark());
        file.write(0, b"other");
        file.write(9000, b"tail");
        assert_eq!(file.read(0, 5), b"other");
        let damage = file.cut(Fate::Lose, &mut Prng::new(1));
        assert_eq!((damage.lost, damage.kept, damage.torn), (2, 0, 0));
        assert_eq!((file.read(0, 100), file.size()), (b"first".to_vec(), 5));
        assert!(!file.has_unflushed());
    }

    #[test]
    fn a_flush_covers_only_what_came_before_it() {
        let mut file = written(&[(0, b"aa")]);
        let mark = file.mark();
        file.write(0, b"bb");
        file.write(10_000, b"cc");
        file.flush(mark);
        assert!(file.has_unflushed());
        file.cut(Fate::Lose, &mut Prng::new(1));
        assert_eq!((file.read(0, 10), file.size()), (b"aa".to_vec(), 2));
    }

    #[test]
    fn a_durable_write_covers_its_own_blocks_and_no_others() {
        let mut file = written(&[(0, &[1; 4096]), (4096, &[2; 4096]), (8192, &[3; 4096])]);
        file.flush_range(file.mark(), 4096, 4096);
        file.cut(Fate::Lose, &mut Prng::new(1));
        assert_eq!(file.size(), 8192);
        assert!(file.read(0, 4096).iter().all(|byte| *byte == 0));
        assert!(file.read(4096, 4096).iter().all(|byte| *byte == 2));
    }

    #[test]
    fn kept_is_as_if_flushed_and_torn_mixes_sectors_of_real_versions() {
        let mut file = written(&[(0, &[7; 5000])]);
        assert_eq!(file.cut(Fate::Keep, &mut Prng::new(1)).kept, 2);
        assert_eq!(file.read(0, 5000), [7; 5000]);
        let mut torn = 0;
        for seed in 0..200 {
            let mut file = written(&[(0, &[1; 65536])]);
            file.flush(file.mark());
            file.write(0, &[2; 65536]);
            file.write(0, &[3; 65536]);
            torn += file.cut(Fate::Tear, &mut Prng::new(seed)).torn;
            let found = file.read(0, 65536);
            assert_eq!(found.len(), 65536);
            for sector in found.chunks(SECTOR) {
                assert!((1..=3).contains(&sector[0]) && sector.iter().all(|byte| *byte == sector[0]));
            }
        }
        assert!(torn > 100, "{torn}");
    }

    #[test]
    fn a_shorter_file_grows_again_with_zeroes() {
        let mut file = written(&[(0, &[5; 10_000])]);
        file.truncate(100);
        file.truncate(200);
        let mut expected = vec![5; 100];
        expected.resize(200, 0);
        assert_eq!(file.read(0, 1000), expected);
        file.flush(file.mark());
        file.cut(Fate::Tear, &mut Prng::new(3));
        assert_eq!(file.read(0, 1000), expected);
    }
}
