//! Store keys as the maps hold them: short keys stand inside the map's nodes, so that a look-up follows no pointer
//! per comparison; long keys are counted, so that the undo log shares them.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

const SHORT_MAX: usize = 22;

/// An immutable key of any length, 24 bytes in place.
#[derive(Clone)]
pub(super) enum Key {
    Short(u8, [u8; SHORT_MAX]),
    Long(Arc<[u8]>),
}

const _: () = assert!(size_of::<Key>() == 24);

impl Key {
    pub const EMPTY: Key = Key::Short(0, [0; SHORT_MAX]);

    /// Whether making a key of this length costs no allocation.
    pub fn is_free(len: usize) -> bool {
        len <= SHORT_MAX
    }

    /// Bytes outside the map's node.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Key::Short(..) => 0,
            Key::Long(bytes) => bytes.len() + 16,
        }
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Key {
        if bytes.len() > SHORT_MAX {
            return Key::Long(Arc::from(bytes));
        }
        let mut short = [0; SHORT_MAX];
        short[..bytes.len()].copy_from_slice(bytes);
        Key::Short(bytes.len() as u8, short)
    }
}

impl Deref for Key {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Key::Short(len, bytes) => &bytes[..usize::from(*len)],
            Key::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}
impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        **self == **other
    }
}
impl Eq for Key {}
impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        match (self, other) {
            // Zeroes behind a short key change no order between keys that differ before them; where they decide
            // nothing, one key is the other with zeroes behind it, and the shorter comes first.
            (Key::Short(len, bytes), Key::Short(other_len, other_bytes)) => {
                words(bytes).cmp(&words(other_bytes)).then(len.cmp(other_len))
            }
            _ => (**self).cmp(&**other),
        }
    }
}
/// The bytes of a short key as numbers in the same order: two comparisons instead of a loop.
fn words(bytes: &[u8; SHORT_MAX]) -> (u128, u64) {
    let (head, tail) = (bytes.first_chunk(), bytes.last_chunk());
    let head = u128::from_be_bytes(*head.expect("longer than sixteen bytes"));
    (head, u64::from_be_bytes(*tail.expect("longer than eight bytes")))
}

const _: () = assert!(SHORT_MAX >= 16 && SHORT_MAX <= 24, "the two words overlap or touch");

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

/// The shortest key that is above `left` and not above `right`: a fence between two neighbours.
pub(super) fn fence_between(left: &[u8], right: &[u8]) -> Key {
    assert!(left < right, "neighbours are in order");
    let common = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    Key::from(&right[..=common])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn short_keys_order_as_their_bytes(a in prop::collection::vec(0u8..2, 0..23), b in prop::collection::vec(0u8..2, 0..23)) {
            prop_assert_eq!(Key::from(&a[..]).cmp(&Key::from(&b[..])), a.cmp(&b));
        }

        #[test]
        fn keys_order_as_their_bytes(a in prop::collection::vec(0u8..3, 0..40), b in prop::collection::vec(0u8..3, 0..40)) {
            let (ka, kb) = (Key::from(&a[..]), Key::from(&b[..]));
            prop_assert_eq!(ka.cmp(&kb), a.cmp(&b));
            prop_assert_eq!(&*ka, &a[..]);
            if a < b {
                let fence = fence_between(&a, &b);
                prop_assert!(a[..] < *fence && *fence <= b[..]);
                prop_assert!(fence.len() == 1 || a[..] >= fence[..fence.len() - 1], "a shorter fence would do");
            }
        }
    }
}
