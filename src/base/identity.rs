//! Who is who: cluster, node, incarnation, term, shard.

use std::fmt;

/// A node's number in the membership, 1..=[`super::limits::NODES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

impl NodeId {
    /// openGauss numbers datanode instances from 6001.
    pub fn instance(self) -> u32 {
        6000 + u32::from(self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:08x}..", (self.0 >> 96) as u32)
            }
        }
        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(text, 16).map($name)
            }
        }
    };
}

random_id!(
    /// Random 128-bit name of a cluster, made once by the first `baton init`.
    ClusterId
);
random_id!(
    /// Random 128-bit name of one data folder's life: made by `baton init` or by a finished full build.
    Incarnation
);

/// A term: number and random id, ordered **as a pair**.
///
/// Two candidates can both choose number 2; by number alone both would win (`protocol` section 1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term {
    pub number: u64,
    pub id: u128,
}

impl Term {
    /// Below every real term: nothing promised, nothing written.
    pub const NONE: Term = Term { number: 0, id: 0 };

    pub fn is_none(self) -> bool {
        self == Term::NONE
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.number, (self.id >> 96) as u32)
    }
}
impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A virtual shard, 0..V where V is fixed for the life of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The shard that owns a user key. All elements of one collection share their key's shard.
    pub fn of_key(user_key: &[u8], shards: u16) -> ShardId {
        let hash = xxhash_rust::xxh3::xxh3_64(user_key);
        // Multiply-shift keeps the map even for any V and avoids a division.
        ShardId(((u128::from(hash) * u128::from(shards)) >> 64) as u16)
    }

    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_order_as_a_pair() {
        let a = Term { number: 2, id: 1 };
        let b = Term { number: 2, id: 9 };
        assert!(a < b && b < Term { number: 3, id: 0 });
        assert!(Term::NONE < Term { number: 1, id: 0 });
    }

    #[test]
    fn keys_spread_over_all_shards() {
        let mut hit = [0u32; 64];
        for i in 0..64_000u32 {
            hit[ShardId::of_key(&i.to_le_bytes(), 64).index()] += 1;
        }
        assert!(hit.iter().all(|n| (700..1300).contains(n)), "{hit:?}");
    }
}
