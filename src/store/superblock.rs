//! The superblock: the roots of all shards, in two slots written in turn. Drawn in `docs/format.md`.
//!
//! Alternating slots are enough here (the control file needs more), because pages and log are kept for the older
//! slot as well: falling back to it only means more redo.

use super::{PageNo, SLOT_BYTES, StoreError};
use crate::base::limits::{BLOCK_BYTES, PAGE_FILE_PAGES_MAX, SHARDS_MAX};
use crate::base::{AlignedBuf, ClusterId, Digest, Lsn, ShardId, SharedSlice};
use crate::record::MERGE_VERSION;

const MAGIC: [u8; 4] = *b"BTNS";
const VERSION: u16 = 1;
const HEADER: usize = 64;
const ROOT_BYTES: usize = 48;
const PRESENT: u8 = 1;
const OVERFLOW: u8 = 2;

/// The current root and two earlier ones: divergence is judged by recomputing from an earlier root.
pub(super) const ROOTS_KEPT: usize = 3;

const _: () = assert!(HEADER + SHARDS_MAX as usize * ROOTS_KEPT * ROOT_BYTES + 16 <= SLOT_BYTES as usize);
const _: () = assert!((SLOT_BYTES as usize).is_multiple_of(BLOCK_BYTES));

/// One checkpoint of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Root {
    /// Zero: an empty tree.
    pub page: PageNo,
    /// Digest of the root page; zero for an empty tree.
    pub digest: Digest,
    /// Log position of the checkpoint.
    pub at: Lsn,
    /// Live user keys.
    pub keys: u64,
    pub level: u8,
    pub overflow: bool,
}

impl Root {
    pub const EMPTY: Root =
        Root { page: PageNo(0), digest: Digest::ZERO, at: Lsn::ZERO, keys: 0, level: 0, overflow: false };

    pub fn is_empty(&self) -> bool {
        self.page == PageNo(0)
    }

    /// What nodes compare: everything about the checkpoint that is not local.
    pub fn summary(&self, shard: ShardId) -> Digest {
        let mut bytes = [0u8; 40];
        bytes[..16].copy_from_slice(&self.digest.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.at.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.keys.to_le_bytes());
        bytes[32..34].copy_from_slice(&shard.0.to_le_bytes());
        bytes[34..36].copy_from_slice(&MERGE_VERSION.to_le_bytes());
        bytes[36] = self.level;
        Digest::of(&bytes)
    }
}

/// What one slot says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub sequence: u64,
    pub file_pages: u64,
    /// For each shard its retained roots, newest first, at least one.
    pub roots: Vec<Vec<Root>>,
}

impl Slot {
    /// Offset of the slot that holds this sequence number.
    pub fn offset(&self) -> u64 {
        (self.sequence % 2) * SLOT_BYTES
    }

    /// Position of the oldest root of a shard that this slot can fall back to.
    pub fn oldest(&self, shard: usize) -> Lsn {
        self.roots[shard].last().expect("at least one root").at
    }

    pub fn encode(&self, cluster: ClusterId) -> SharedSlice {
        let shards = self.roots.len();
        let used = HEADER + shards * ROOTS_KEPT * ROOT_BYTES + 16;
        let mut bytes = AlignedBuf::zeroed(used.next_multiple_of(BLOCK_BYTES));
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&MERGE_VERSION.to_le_bytes());
        bytes[8..10].copy_from_slice(&(shards as u16).to_le_bytes());
        bytes[10..12].copy_from_slice(&(ROOTS_KEPT as u16).to_le_bytes());
        bytes[12..16].copy_from_slice(&(used as u32).to_le_bytes());
        bytes[16..32].copy_from_slice(&cluster.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.file_pages.to_le_bytes());
        for (shard, roots) in self.roots.iter().enumerate() {
            assert!((1..=ROOTS_KEPT).contains(&roots.len()), "each shard keeps one to three roots");
            for (i, root) in roots.iter().enumerate() {
                let at = HEADER + (shard * ROOTS_KEPT + i) * ROOT_BYTES;
                let out = &mut bytes[at..at + ROOT_BYTES];
                out[..8].copy_from_slice(&root.page.0.to_le_bytes());
                out[8..24].copy_from_slice(&root.digest.0.to_le_bytes());
                out[24..32].copy_from_slice(&root.at.0.to_le_bytes());
                out[32..40].copy_from_slice(&root.keys.to_le_bytes());
                out[40] = root.level;
                out[41] = PRESENT | if root.overflow { OVERFLOW } else { 0 };
            }
        }
        let digest = Digest::of(&bytes[..used - 16]);
        bytes[used - 16..used].copy_from_slice(&digest.0.to_le_bytes());
        bytes.share()
    }

    /// `Ok(None)`: the slot is not whole (torn, damaged, or never written), or declares a page file that cannot be.
    pub fn decode(bytes: &[u8], cluster: ClusterId, shards: u16) -> Result<Option<Slot>, StoreError> {
        let Some(used) = whole(bytes) else { return Ok(None) };
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if u16_at(4) != VERSION {
            return Err(StoreError::UnknownVersion(u16_at(4)));
        }
        if u16_at(6) != MERGE_VERSION {
            return Err(StoreError::UnknownVersion(u16_at(6)));
        }
        let found = ClusterId(u128::from_le_bytes(bytes[16..32].try_into().expect("sixteen bytes")));
        if found != cluster {
            return Err(StoreError::OtherCluster(found));
        }
        if u16_at(8) != shards {
            return Err(StoreError::OtherShardCount(u16_at(8)));
        }
        let expected = HEADER + usize::from(shards) * ROOTS_KEPT * ROOT_BYTES + 16;
        if usize::from(u16_at(10)) != ROOTS_KEPT || used != expected {
            return Ok(None);
        }
        let (sequence, file_pages) = (u64_at(bytes, 32), u64_at(bytes, 40));
        if file_pages > PAGE_FILE_PAGES_MAX {
            return Ok(None);
        }
        let roots = (0..usize::from(shards)).map(|shard| decode_roots(bytes, shard, file_pages)).collect();
        Ok(Option::map(roots, |roots| Slot { sequence, file_pages, roots }))
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The used length of a slot whose digest is right.
fn whole(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < HEADER + 16 || bytes[..4] != MAGIC {
        return None;
    }
    let used = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
    if used < HEADER + 16 || used > bytes.len() {
        return None;
    }
    let digest = u128::from_le_bytes(bytes[used - 16..used].try_into().expect("sixteen bytes"));
    (Digest::of(&bytes[..used - 16]).0 == digest).then_some(used)
}

fn decode_roots(bytes: &[u8], shard: usize, file_pages: u64) -> Option<Vec<Root>> {
    let mut roots: Vec<Root> = Vec::with_capacity(ROOTS_KEPT);
    for i in 0..ROOTS_KEPT {
        let at = HEADER + (shard * ROOTS_KEPT + i) * ROOT_BYTES;
        let root = &bytes[at..at + ROOT_BYTES];
        if root[41] & PRESENT == 0 {
            break;
        }
        let digest = Digest(u128::from_le_bytes(root[8..24].try_into().expect("sixteen bytes")));
        let root = Root {
            page: PageNo(u64_at(root, 0)),
            digest,
            at: Lsn(u64_at(root, 24)),
            keys: u64_at(root, 32),
            level: root[40],
            overflow: root[41] & OVERFLOW != 0,
        };
        if root.page.0 >= file_pages || roots.last().is_some_and(|newer| newer.at <= root.at) {
            return None;
        }
        roots.push(root);
    }
    (!roots.is_empty()).then_some(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_impossible_page_file_is_not_believed() {
        let cluster = ClusterId(1);
        let mut slot = sample(3, 4);
        slot.file_pages = PAGE_FILE_PAGES_MAX;
        assert!(Slot::decode(&slot.encode(cluster), cluster, 3).unwrap().is_some());
        slot.file_pages += 1;
        assert!(Slot::decode(&slot.encode(cluster), cluster, 3).unwrap().is_none());
    }

    fn sample(shards: u16, sequence: u64) -> Slot {
        let root = |shard: u16, i: u64| Root {
            page: PageNo(1 + u64::from(shard) * 3 + i),
            digest: Digest(u128::from(shard) << 64 | u128::from(i)),
            at: Lsn(100 - i),
            keys: 7,
            level: 2,
            overflow: i == 1,
        };
        let roots = (0..shards).map(|s| (0..1 + u64::from(s % 3)).map(|i| root(s, i)).collect()).collect();
        Slot { sequence, file_pages: 4096, roots }
    }

    #[test]
    fn a_slot_survives_its_bytes() {
        for shards in [1, 64, SHARDS_MAX] {
            let slot = sample(shards, 5);
            let bytes = slot.encode(ClusterId(9));
            assert!(bytes.len() as u64 <= SLOT_BYTES && bytes.len().is_multiple_of(BLOCK_BYTES));
            assert_eq!(Slot::decode(&bytes, ClusterId(9), shards), Ok(Some(slot)));
            assert_eq!(
                Slot::decode(&bytes, ClusterId(8), shards),
                Err(StoreError::OtherCluster(ClusterId(9)))
            );
            let other = Slot::decode(&bytes, ClusterId(9), shards - 1);
            assert_eq!(other, Err(StoreError::OtherShardCount(shards)));
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = sample(2, 1).encode(ClusterId(9));
        for bit in 0..(HEADER + 2 * ROOTS_KEPT * ROOT_BYTES + 16) * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Slot::decode(&bad, ClusterId(9), 2), Ok(None), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(bytes: Vec<u8>) {
            prop_assert_eq!(Slot::decode(&bytes, ClusterId(1), 4), Ok(None));
        }
    }
}
