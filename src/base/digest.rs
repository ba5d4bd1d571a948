//! Content digests: XXH3-128. Good against decay, tears and misdirected writes; not against an attacker
//! (peers are authenticated for that).

use std::fmt;

/// An XXH3-128 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub u128);

impl Digest {
    pub const ZERO: Digest = Digest(0);

    pub fn of(bytes: &[u8]) -> Digest {
        Digest(xxhash_rust::xxh3::xxh3_128(bytes))
    }

    /// Digest of `bytes` under `seed`, so that the same bytes in another place do not pass.
    pub fn seeded(bytes: &[u8], seed: u64) -> Digest {
        Digest(xxhash_rust::xxh3::xxh3_128_with_seed(bytes, seed))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}..", (self.0 >> 96) as u32)
    }
}
