//! What baton asks of a control store: compare-and-swap with revisions, lists, and leases that only detect.
//!
//! A store settles races between nodes that want to decide something at once. It is never asked whether a write is safe:
//! that is the business of promises and acknowledgements, and they hold whatever a store does or does not answer.
//! Everything here blocks and belongs on a thread of its own.

use std::fmt;
use std::time::Duration;

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 200;
/// Longest value in bytes.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Most keys that a list returns.
pub const LIST_MAX: usize = 4096;

/// Counts the changes of one key; 0 names a key that was never written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(pub u64);

/// A value as it stood at a revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub revision: Revision,
    pub value: Vec<u8>,
}

/// The outcome of a compare-and-swap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Swap {
    /// This caller's value stands at this revision.
    Done(Revision),
    /// Another value stood there; this is what stands now.
    Lost(Option<Entry>),
}

/// The outcome of asking for a lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lease {
    Held,
    /// Somebody else holds it, and gave a sign of life within its time.
    Taken(Vec<u8>),
}

/// Why a store did not answer as asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// The request breaks a limit or names an impossible key: nothing was done.
    Refused(String),
    /// The store was not reached or could not write: nothing was done.
    Unreachable(String),
    /// A change may or may not have been made: read the key again before anything is concluded.
    Unknown(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Refused(text) => write!(f, "control store: {text}"),
            StoreError::Unreachable(text) => write!(f, "control store not reached: {text}"),
            StoreError::Unknown(text) => write!(f, "control store: outcome unknown: {text}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// A control store. One value serves one process.
pub trait ControlStore: Send {
    /// The newest value of a key, read so that every earlier finished change is seen.
    fn get(&mut self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Replaces the value of `key` if its revision is still `expect`.
    fn swap(&mut self, key: &str, expect: Revision, value: &[u8]) -> Result<Swap, StoreError>;

    /// Keys that begin with `prefix`, in order, with their values.
    fn list(&mut self, prefix: &str) -> Result<Vec<(String, Entry)>, StoreError>;

    /// Takes the lease `key`, or shows a further sign of life of its holder, this process. A lease whose holder was
    /// silent for `ttl`, judged by this process's own clock, is free.
    fn hold(&mut self, key: &str, who: &[u8], ttl: Duration) -> Result<Lease, StoreError>;

    /// Gives a lease back, if this process holds it.
    fn release(&mut self, key: &str) -> Result<(), StoreError>;

    /// One sentence about what this store is and what it protects from.
    fn about(&self) -> String;
}

/// Lower-case words of letters, digits, `-`, `_` and `.`, joined by `/`.
pub fn check_key(key: &str) -> Result<(), StoreError> {
    let word = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
    };
    if key.len() <= KEY_BYTES_MAX && key.split('/').all(word) {
        return Ok(());
    }
    Err(StoreError::Refused(format!("{key:?} is no key")))
}

/// Values have a limit.
pub fn check_value(value: &[u8]) -> Result<(), StoreError> {
    if value.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(StoreError::Refused(format!("a value of {} bytes, {VALUE_BYTES_MAX} at most", value.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_cannot_leave_their_place() {
        for good in ["policy", "c/0a1b/policy", "lease/coordinator", "n/3/x_y.z-1"] {
            assert!(check_key(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "a//b", "../x", "a/../b", ".hidden", "A", "a b", "a\0", "a/"] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
        assert!(check_key(&"a".repeat(KEY_BYTES_MAX)).is_ok());
        assert!(check_key(&"a".repeat(KEY_BYTES_MAX + 1)).is_err());
        assert!(check_value(&vec![0; VALUE_BYTES_MAX]).is_ok());
        assert!(check_value(&vec![0; VALUE_BYTES_MAX + 1]).is_err());
    }
}
