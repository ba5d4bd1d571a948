//! One file's bytes: what a reader sees, what is durable, and what lies between.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::base::Prng;
use crate::base::limits::BLOCK_BYTES;

/// A block without the zeros at its end, which most blocks of a log are full of. It is never changed in place, so images
/// share it.
pub(super) type Block = Rc<[u8]>;

thread_local! {
    /// Every block of zeros of every disk of this thread: new segments are full of them.
    static ZEROS: Block = Rc::from([]);
}

/// `bytes` without the zeros at their end.
pub(super) fn trimmed(bytes: &[u8]) -> &[u8] {
    static NOTHING: [u8; 1024] = [0; 1024];
    let mut bytes = bytes;
    // Comparing memory is many times faster than looking at each byte.
    for step in [NOTHING.len(), 64] {
        while let Some(rest) = bytes.strip_suffix(&NOTHING[..step]) {
            bytes = rest;
        }
    }
    &bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)]
}

pub(super) fn block_of(bytes: &[u8]) -> Block {
    assert_eq!(bytes.len(), BLOCK_BYTES, "writes are whole blocks");
    match trimmed(bytes) {
        [] => ZEROS.with(Block::clone),
        some => Rc::from(some),
    }
}

/// A copy of `old` to be changed; a hole is zeros.
fn copy_of(old: Option<&Block>) -> [u8; BLOCK_BYTES] {
    let mut copy = [0; BLOCK_BYTES];
    if let Some(old) = old {
        copy[..old.len()].copy_from_slice(old);
    }
    copy
}

/// Fills `out` with the bytes of a block from `within` on; a hole is zeros.
fn show(block: Option<&Block>, within: usize, out: &mut [u8]) {
    let some = block.and_then(|block| block.get(within..)).unwrap_or_default();
    let count = some.len().min(out.len());
    out[..count].copy_from_slice(&some[..count]);
    out[count..].fill(0);
}

/// The content of one file at one moment. Blocks that were never written are holes and read as zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pub(super) blocks: BTreeMap<u64, Block>,
    pub(super) len: u64,
}

impl Image {
    fn put(&mut self, at: u64, block: Block) {
        self.blocks.insert(at, block);
        self.len = self.len.max((at + 1) * BLOCK_BYTES as u64);
    }

    /// Replaces only the sectors of `block` for which `keep` says so. Says whether any was replaced.
    fn put_torn(
        &mut self,
        at: u64,
        block: &Block,
        sector_bytes: usize,
        mut keep: impl FnMut() -> bool,
    ) -> bool {
        let mut mixed = copy_of(self.blocks.get(&at));
        let mut touched = false;
        for (old, new) in mixed.chunks_mut(sector_bytes).zip(copy_of(Some(block)).chunks(sector_bytes)) {
            if keep() {
                old.copy_from_slice(new);
                touched = true;
            }
        }
        if touched {
            self.put(at, block_of(&mixed));
        }
        touched
    }

    /// Copies bytes from `offset` on; what lies past the end is left as it is. Returns the number of bytes copied.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let wanted = (self.len.saturating_sub(offset)).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let within = (at % BLOCK_BYTES as u64) as usize;
            let n = (BLOCK_BYTES - within).min(wanted - done);
            show(self.blocks.get(&(at / BLOCK_BYTES as u64)), within, &mut out[done..done + n]);
            done += n;
        }
        wanted
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; self.len as usize];
        self.read(0, &mut out);
        out
    }

    fn flip(&mut self, byte: u64, bit: u8) {
        let at = byte / BLOCK_BYTES as u64;
        let mut block = copy_of(self.blocks.get(&at));
        block[(byte % BLOCK_BYTES as u64) as usize] ^= 1 << (bit % 8);
        self.blocks.insert(at, block_of(&block));
    }
}

/// A completed write that no flush has covered.
#[derive(Debug)]
struct Unsynced {
    number: u64,
    first_block: u64,
    /// `None` where a later write of the same block became durable.
    blocks: Vec<Option<Block>>,
    /// A flush over it failed: no later flush makes it durable.
    doomed: bool,
}

/// What a power cut does to one write that is not durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CutFate {
    Kept,
    Torn,
    Lost,
}

/// How a power cut chooses; drawn once per cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct CutMood {
    pub(super) keep: f64,
    pub(super) tear: f64,
    pub(super) sector_bytes: usize,
}

impl CutMood {
    fn choose(&self, rng: &mut Prng) -> CutFate {
        if rng.chance(self.keep) {
            CutFate::Kept
        } else if rng.chance(self.tear) {
            CutFate::Torn
        } else {
            CutFate::Lost
        }
    }
}

/// A file's content with its durability.
#[derive(Debug, Default)]
pub(super) struct Inode {
    /// What a reader sees.
    pub(super) seen: Image,
    durable: Image,
    unsynced: Vec<Unsynced>,
    completed: u64,
    /// Handles of live processes.
    pub(super) open: u32,
}

impl Inode {
    /// A file that is durable as it stands.
    pub(super) fn of(image: Image) -> Inode {
        Inode { seen: image.clone(), durable: image, ..Inode::default() }
    }

    /// Number of the last completed write; a flush submitted now covers everything up to it.
    pub(super) fn mark(&self) -> u64 {
        self.completed
    }

    /// Blocks that a write there would add to the file.
    pub(super) fn added_blocks(&self, offset: u64, len: usize) -> u64 {
        let first = offset / BLOCK_BYTES as u64;
        let count = (len / BLOCK_BYTES) as u64;
        count - self.seen.blocks.range(first..first + count).count() as u64
    }

    /// A write reached the drive; with `durable` also its medium.
    pub(super) fn complete(&mut self, offset: u64, data: &[u8], durable: bool) {
        let first_block = offset / BLOCK_BYTES as u64;
        self.completed += 1;
        let mut blocks = Vec::with_capacity(data.len() / BLOCK_BYTES);
        for (i, bytes) in data.chunks(BLOCK_BYTES).enumerate() {
            let block = block_of(bytes);
            self.seen.put(first_block + i as u64, block.clone());
            blocks.push(Some(block));
        }
        let write = Unsynced { number: self.completed, first_block, blocks, doomed: false };
        if durable {
            self.settle(write);
        } else {
            self.unsynced.push(write);
        }
    }

    /// A write failed half way: some of its sectors may be on the drive, none of them durable.
    pub(super) fn complete_partly(&mut self, offset: u64, data: &[u8], sector_bytes: usize, rng: &mut Prng) {
        let first_block = offset / BLOCK_BYTES as u64;
        let share = rng.below(101) as f64 / 100.0;
        self.completed += 1;
        let mut blocks = Vec::with_capacity(data.len() / BLOCK_BYTES);
        for (i, bytes) in data.chunks(BLOCK_BYTES).enumerate() {
            let at = first_block + i as u64;
            let touched = self.seen.put_torn(at, &block_of(bytes), sector_bytes, || rng.chance(share));
            blocks.push(if touched { self.seen.blocks.get(&at).cloned() } else { None });
        }
        self.unsynced.push(Unsynced { number: self.completed, first_block, blocks, doomed: true });
    }

    /// A flush succeeded that was submitted when the mark stood at `mark`.
    pub(super) fn flush(&mut self, mark: u64) {
        let (covered, rest): (Vec<_>, Vec<_>) =
            self.unsynced.drain(..).partition(|w| w.number <= mark && !w.doomed);
        self.unsynced = rest;
        for write in covered {
            self.settle(write);
        }
    }

    /// A flush failed that was submitted when the mark stood at `mark`: the kernel forgets what it did not write.
    pub(super) fn flush_failed(&mut self, mark: u64) {
        for write in self.unsynced.iter_mut().filter(|w| w.number <= mark) {
            write.doomed = true;
        }
    }

    fn settle(&mut self, write: Unsynced) {
        for (i, block) in write.blocks.into_iter().enumerate() {
            let Some(block) = block else { continue };
            let at = write.first_block + i as u64;
            self.durable.put(at, block);
            // An older write of this block can no longer come back.
            for older in self.unsynced.iter_mut().filter(|w| w.number < write.number) {
                let slot = at.checked_sub(older.first_block);
                if let Some(slot) = slot.and_then(|slot| older.blocks.get_mut(slot as usize)) {
                    *slot = None;
                }
            }
        }
    }

    /// The machine lost power while `in_flight` writes (offset, bytes) were under way.
    /// Tells `note` the fate of each write that was not durable.
    pub(super) fn power_cut(
        &mut self,
        in_flight: &[(u64, &[u8])],
        mood: CutMood,
        rng: &mut Prng,
        mut note: impl FnMut(CutFate),
    ) {
        let mut pending = std::mem::take(&mut self.unsynced);
        for (offset, data) in in_flight {
            let blocks = data.chunks(BLOCK_BYTES).map(|bytes| Some(block_of(bytes))).collect();
            pending.push(Unsynced {
                number: 0,
                first_block: offset / BLOCK_BYTES as u64,
                blocks,
                doomed: false,
            });
        }
        for write in pending {
            let fate = mood.choose(rng);
            note(fate);
            let share = match fate {
                CutFate::Kept => 1.0,
                CutFate::Lost => 0.0,
                CutFate::Torn => rng.below(101) as f64 / 100.0,
            };
            let end = (write.first_block + write.blocks.len() as u64) * BLOCK_BYTES as u64;
            for (i, block) in write.blocks.iter().enumerate() {
                let Some(block) = block else { continue };
                let at = write.first_block + i as u64;
                match fate {
                    CutFate::Kept => self.durable.put(at, block.clone()),
                    CutFate::Lost => {}
                    CutFate::Torn => {
                        self.durable.put_torn(at, block, mood.sector_bytes, || rng.chance(share));
                    }
                }
            }
            // The new length may have reached the journal without the bytes: a run of zeros.
            if fate != CutFate::Kept && rng.chance(0.1) {
                self.durable.len = self.durable.len.max(end);
            }
        }
        self.seen = self.durable.clone();
        self.open = 0;
    }

    /// Decay of the medium. False when there is no such byte.
    pub(super) fn flip_bit(&mut self, byte: u64, bit: u8) -> bool {
        if byte >= self.seen.len {
            return false;
        }
        self.seen.flip(byte, bit);
        if byte < self.durable.len {
            self.durable.flip(byte, bit);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOODS: [CutMood; 3] = [
        CutMood { keep: 0.0, tear: 0.0, sector_bytes: 512 },
        CutMood { keep: 0.4, tear: 0.5, sector_bytes: 512 },
        CutMood { keep: 0.0, tear: 1.0, sector_bytes: 512 },
    ];

    fn filled(byte: u8, blocks: usize) -> Vec<u8> {
        vec![byte; blocks * BLOCK_BYTES]
    }

    #[derive(Clone, Debug)]
    enum Act {
        Write { block: u64, blocks: usize, durable: bool },
        Mark,
        Flush,
        FlushFailed,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            6 => (0u64..6, 1usize..3, any::<bool>())
                .prop_map(|(block, blocks, durable)| Act::Write { block, blocks, durable }),
            2 => Just(Act::Mark),
            2 => Just(Act::Flush),
            1 => Just(Act::FlushFailed),
        ]
    }

    proptest! {
        /// The model keeps, for each sector, every value it may have after a power cut: the last durable one and
        /// all that were written over it since. The file must stay inside, and must equal the last write before.
        #[test]
        fn synced_is_never_lost_and_nothing_is_invented(
            acts in prop::collection::vec(act(), 1..40), seed: u64, mood in 0usize..3,
        ) {
            let mut inode = Inode::default();
            let mut legal: BTreeMap<u64, Vec<(u64, u8, bool)>> = BTreeMap::new();
            let (mut number, mut mark) = (0u64, 0u64);
            for (i, act) in acts.iter().enumerate() {
                let value = i as u8 + 1;
                match *act {
                    Act::Write { block, blocks, durable } => {
                        inode.complete(block * BLOCK_BYTES as u64, &filled(value, blocks), durable);
                        number += 1;
                        for at in block..block + blocks as u64 {
                            let values = legal.entry(at).or_insert_with(|| vec![(0, 0, false)]);
                            if durable { values.clear(); }
                            values.push((number, value, false));
                        }
                    }
                    Act::Mark => mark = inode.mark(),
                    Act::Flush => {
                        inode.flush(mark);
                        for values in legal.values_mut() {
                            // Everything older than the newest covered write is gone.
                            let covered = values.iter().rposition(|(n, _, doomed)| *n <= mark && !doomed);
                            values.drain(..covered.unwrap_or(0));
                        }
                    }
                    Act::FlushFailed => {
                        inode.flush_failed(mark);
                        for (n, _, doomed) in legal.values_mut().flatten() {
                            *doomed |= *n <= mark && *n != 0;
                        }
                    }
                }
            }
            for (at, values) in &legal {
                let seen = inode.seen.blocks.get(at).expect("written");
                prop_assert!(copy_of(Some(seen)).iter().all(|b| *b == values.last().unwrap().1));
            }
            let mut rng = Prng::new(seed);
            inode.power_cut(&[], MOODS[mood], &mut rng, |_| {});
            for (at, values) in &legal {
                let mut block = [0u8; BLOCK_BYTES];
                inode.seen.read(at * BLOCK_BYTES as u64, &mut block);
                for sector in block.chunks(512) {
                    prop_assert!(sector.iter().all(|b| *b == sector[0]), "a sector is atomic");
                    prop_assert!(
                        values.iter().any(|(_, v, _)| *v == sector[0]),
                        "block {at} holds {} of {values:?}", sector[0]
                    );
                }
            }
        }
    }

    #[test]
    fn a_cut_really_loses_keeps_and_tears() {
        let mut seen = [0u32; 3];
        for seed in 0..200 {
            let mut inode = Inode::of(Image::default());
            inode.complete(0, &filled(1, 1), true);
            inode.complete(0, &filled(2, 1), false);
            inode.power_cut(&[], MOODS[1], &mut Prng::new(seed), |_| {});
            let block = inode.seen.bytes();
            let twos = block.chunks(512).filter(|s| s[0] == 2).count();
            seen[match twos {
                0 => 0,
                8 => 2,
                _ => 1,
            }] += 1;
        }
        assert!(seen.iter().all(|n| *n > 10), "lost, torn, kept: {seen:?}");
    }

    #[test]
    fn a_failed_flush_is_not_healed_by_the_next() {
        let lost = (0..100).any(|seed| {
            let mut inode = Inode::default();
            inode.complete(0, &filled(9, 1), false);
            inode.flush_failed(inode.mark());
            inode.flush(inode.mark());
            inode.power_cut(&[], MOODS[1], &mut Prng::new(seed), |_| {});
            inode.seen.len == 0
        });
        assert!(lost, "the second flush must not have saved it");
    }

    #[test]
    fn in_flight_writes_may_land_in_a_cut() {
        let outcomes: std::collections::BTreeSet<usize> = (0..200)
            .map(|seed| {
                let mut inode = Inode::default();
                inode.complete(0, &filled(1, 1), true);
                inode.power_cut(&[(0, &filled(2, 1))], MOODS[1], &mut Prng::new(seed), |_| {});
                inode.seen.bytes().chunks(512).filter(|s| s[0] == 2).count()
            })
            .collect();
        assert!(outcomes.contains(&0) && outcomes.contains(&8) && outcomes.len() > 3, "{outcomes:?}");
    }
}
