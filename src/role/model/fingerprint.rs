//! What makes two worlds the same: a hash over what they print, with every time taken relative to the clock.

use std::cell::Cell;
use std::fmt::{self, Debug, Write};

use crate::base::{Digest, Mono};

/// What lies further back than this is merely long ago: no rule compares with more, and no message is as old.
const LONG_AGO: u64 = 3_250_000_000;

/// Takes debug output. `Mono(123)` counts as its distance from now.
struct Printed {
    text: Vec<u8>,
    now: u64,
    /// How much of `Mono(123)` has been seen: nothing, the name, the bracket.
    seen: u8,
}

impl Write for Printed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match (self.seen, text) {
            (_, "Mono") => self.seen = 1,
            (1, "(") => self.seen = 2,
            (2, digits) => {
                self.seen = 0;
                let at: u64 = digits.parse().expect("a time prints as one number");
                let told = match at {
                    0 | u64::MAX => at,
                    at => (at + LONG_AGO).saturating_sub(self.now).max(1),
                };
                self.text.extend_from_slice(&told.to_le_bytes());
            }
            (_, text) => self.text.extend_from_slice(text.as_bytes()),
        }
        Ok(())
    }
}

thread_local! {
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The hash of what `value` prints at `now`.
pub fn print(now: Mono, value: &impl Debug) -> u64 {
    let mut printed = Printed { text: ROOM.take(), now: now.0, seen: 0 };
    write!(printed, "{value:?}").expect("printing into memory does not fail");
    let hash = Digest::of(&printed.text).0 as u64;
    printed.text.clear();
    ROOM.set(printed.text);
    hash
}

#[test]
fn times_count_by_their_distance() {
    let at = |now: u64, time: u64| print(Mono(now), &(Mono(time), 7));
    assert_eq!(at(10_000_000_000, 10_500_000_000), at(20_000_000_000, 20_500_000_000));
    assert_ne!(at(10_000_000_000, 10_500_000_000), at(20_000_000_000, 20_500_000_001));
    assert_ne!(at(10_000_000_000, 9_500_000_000), at(20_000_000_000, 19_400_000_000));
    assert_eq!(at(10_000_000_000, 2_000_000_000), at(20_000_000_000, 2_000_000_000), "both long ago");
    assert_ne!(at(10_000_000_000, u64::MAX), at(10_000_000_000, 0));
    assert_ne!(print(Mono(1), &(1, 2)), print(Mono(1), &(2, 1)));
}
