//! Log positions. An LSN is a byte offset in the one log stream of the cluster.

use std::fmt;
use std::ops::{Add, Sub};

/// A position in the log: byte offset from the start of the stream, 4 KiB aligned at frame borders.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    pub const ZERO: Lsn = Lsn(0);
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The segment that holds this position.
    pub fn segment(self, segment_bytes: u64) -> u64 {
        self.0 / segment_bytes
    }

    /// The byte offset inside its segment.
    pub fn offset(self, segment_bytes: u64) -> u64 {
        self.0 % segment_bytes
    }

    /// Bytes from `earlier` to here, zero when `earlier` lies ahead.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

impl Sub<Lsn> for Lsn {
    type Output = u64;
    fn sub(self, earlier: Lsn) -> u64 {
        self.0 - earlier.0
    }
}

impl fmt::Display for Lsn {
    /// PostgreSQL's form: high and low half in hex (`0/16B3748`), so that operators can compare by eye.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! watermark {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub Lsn);

        impl $name {
            pub const ZERO: $name = $name(Lsn::ZERO);

            /// The position, as a plain log position.
            pub fn lsn(self) -> Lsn {
                self.0
            }

            /// Moves forward to `to`; a watermark never moves back through this door. Says whether it moved.
            pub fn advance(&mut self, to: Lsn) -> bool {
                let moved = to > self.0;
                if moved {
                    self.0 = to;
                }
                moved
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

watermark!(
    /// End of the log as sealed in memory.
    AppendedLsn
);
watermark!(
    /// End of the contiguous log prefix that is durable on this node.
    FlushedLsn
);
watermark!(
    /// End of the log prefix that the policy makes permanent. One commit index per cluster.
    CommittedLsn
);
watermark!(
    /// End of the committed prefix that this node's shards show to readers.
    AppliedLsn
);

/// Names the group of commands that made a change, on the node that executed it, until the group is sealed into a
/// frame and gets its LSN. Purely local and in memory. `Stamp::COMMITTED` (0) marks what was committed before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Stamp(pub u64);

impl Stamp {
    pub const COMMITTED: Stamp = Stamp(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_never_moves_back() {
        let mut w = FlushedLsn(Lsn(4096));
        assert!(!w.advance(Lsn(4096)));
        assert!(!w.advance(Lsn(0)));
        assert!(w.advance(Lsn(8192)));
        assert_eq!(w.lsn(), Lsn(8192));
    }

    #[test]
    fn segments_divide_the_stream() {
        let at = Lsn(3 * 64 + 5);
        assert_eq!((at.segment(64), at.offset(64)), (3, 5));
        assert_eq!(Lsn(0x1_0000_0010).to_string(), "1/10");
    }
}
