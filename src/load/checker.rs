//! The judge: what may a key hold, after what its one writer did and heard?
//!
//! Every key has one writer at a time, and every value is written once, so a value names the write that made it. A
//! write ends in one of three ways ([`Outcome`]). From these alone the model knows which values a later read may show:
//! the newest acknowledged one, or one whose outcome is open (it may land at any later moment, once). Whatever else is
//! read proves a broken promise.
//!
//! Source: the register checks of Jepsen, narrowed to single-writer keys, where they need no search.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How a write ended for its writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The server promised it.
    Acknowledged,
    /// The connection ended, time ran out, or the server said UNKNOWN: it may or may not have happened.
    InDoubt,
    /// The server said that it did not happen.
    Refused,
}

impl Outcome {
    /// Sorts a reply to a write: only UNKNOWN leaves the outcome open, every other error promises that nothing was
    /// done.
    pub fn of_reply(error: Option<&[u8]>) -> Outcome {
        match error {
            None => Outcome::Acknowledged,
            Some(text) if text.starts_with(b"UNKNOWN") => Outcome::InDoubt,
            Some(_) => Outcome::Refused,
        }
    }
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Violation {
    /// An acknowledged write is gone: the read shows an older state.
    Lost { key: String, acknowledged: u64, read: Option<u64> },
    /// A refused write is there.
    Phantom { key: String, refused: u64 },
    /// A value that nobody wrote to this key.
    Foreign { key: String, read: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Lost { key, acknowledged, read: Some(read) } => {
                write!(f, "{key}: write {acknowledged} was acknowledged, but the older {read} is there")
            }
            Violation::Lost { key, acknowledged, read: None } => {
                write!(f, "{key}: write {acknowledged} was acknowledged, but the key is gone")
            }
            Violation::Phantom { key, refused } => {
                write!(f, "{key}: write {refused} was refused, but it is there")
            }
            Violation::Foreign { key, read } => write!(f, "{key}: nobody wrote {read:?}"),
        }
    }
}

/// What is known of one key. Writes are numbered upwards by their writer, from 1.
#[derive(Clone, Debug, Default)]
pub struct KeyModel {
    /// The newest write that certainly happened.
    settled: Option<u64>,
    /// Writes that may still land.
    open: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    /// The highest write begun.
    begun: u64,
}

impl KeyModel {
    pub fn new() -> KeyModel {
        KeyModel::default()
    }

    /// Notes how write `number` ended.
    pub fn wrote(&mut self, number: u64, outcome: Outcome) {
        assert!(number > self.begun, "the writer numbers its writes upwards");
        self.begun = number;
        match outcome {
            Outcome::Acknowledged => self.settled = Some(number),
            Outcome::InDoubt => {
                self.open.insert(number);
            }
            Outcome::Refused => {
                self.refused.insert(number);
            }
        }
    }

    /// Whether a write's outcome is open.
    pub fn in_doubt(&self) -> bool {
        !self.open.is_empty()
    }

    /// Judges a read of the current state (on a primary, or on a standby that has caught up) and learns from it: a
    /// write in doubt that is seen has happened.
    pub fn read(&mut self, key: &str, read: Option<u64>) -> Result<(), Violation> {
        if read == self.settled {
            return Ok(());
        }
        let Some(number) = read else {
            let acknowledged = self.settled.expect("nothing settled and nothing read is equal");
            return Err(Violation::Lost { key: key.into(), acknowledged, read: None });
        };
        if self.open.remove(&number) {
            self.settled = Some(number);
            return Ok(());
        }
        if self.refused.contains(&number) {
            return Err(Violation::Phantom { key: key.into(), refused: number });
        }
        match self.settled {
            Some(acknowledged) if number <= self.begun => {
                Err(Violation::Lost { key: key.into(), acknowledged, read: Some(number) })
            }
            _ => Err(Violation::Foreign { key: key.into(), read: number.to_string() }),
        }
    }
}

/// The sum over all keys.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    pub acknowledged: u64,
    pub in_doubt: u64,
    pub refused: u64,
    pub keys_read_back: u64,
    /// Reads that were not answered when reading back: without them nothing is proved.
    pub keys_unreadable: u64,
    pub violations: Vec<Violation>,
    /// Longest time without an acknowledged write, all writers together.
    pub longest_gap_ms: u64,
}

impl Verdict {
    /// True when every promise was kept and everything could be read back.
    pub fn holds(&self) -> bool {
        self.violations.is_empty() && self.keys_unreadable == 0
    }

    pub fn add(&mut self, other: Verdict) {
        self.acknowledged += other.acknowledged;
        self.in_doubt += other.in_doubt;
        self.refused += other.refused;
        self.keys_read_back += other.keys_read_back;
        self.keys_unreadable += other.keys_unreadable;
        self.violations.extend(other.violations);
        self.longest_gap_ms = self.longest_gap_ms.max(other.longest_gap_ms);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} writes acknowledged, {} in doubt, {} refused; {} keys read back: {}",
            self.acknowledged,
            self.in_doubt,
            self.refused,
            self.keys_read_back,
            match (self.violations.len(), self.keys_unreadable) {
                (0, 0) => "every promise was kept".to_string(),
                (0, unreadable) => format!("{unreadable} keys could not be read, so nothing is proved"),
                (broken, _) => format!("{broken} BROKEN PROMISES"),
            }
        )?;
        for violation in self.violations.iter().take(20) {
            write!(f, "\n  {violation}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use Outcome::{Acknowledged, InDoubt, Refused};

    fn model(writes: &[Outcome]) -> KeyModel {
        let mut model = KeyModel::new();
        writes.iter().zip(1..).for_each(|(outcome, number)| model.wrote(number, *outcome));
        model
    }

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        let lost = |writes: &[Outcome], read| model(writes).read("k", read).unwrap_err();
        assert!(matches!(lost(&[Acknowledged], None), Violation::Lost { acknowledged: 1, read: None, .. }));
        assert!(matches!(
            lost(&[Acknowledged, Acknowledged], Some(1)),
            Violation::Lost { acknowledged: 2, read: Some(1), .. }
        ));
        assert!(matches!(lost(&[Acknowledged, InDoubt], None), Violation::Lost { acknowledged: 1, .. }));
        assert!(matches!(lost(&[Acknowledged, Refused, Acknowledged], Some(1)), Violation::Lost { .. }));
    }

    #[test]
    fn a_refused_write_that_is_there_is_found() {
        let got = model(&[Acknowledged, Refused]).read("k", Some(2)).unwrap_err();
        assert_eq!(got, Violation::Phantom { key: "k".into(), refused: 2 });
        assert!(matches!(model(&[Refused]).read("k", Some(1)), Err(Violation::Phantom { .. })));
    }

    #[test]
    fn a_value_of_nobody_is_found() {
        assert!(matches!(model(&[]).read("k", Some(3)), Err(Violation::Foreign { .. })));
        assert!(matches!(model(&[Acknowledged]).read("k", Some(9)), Err(Violation::Foreign { .. })));
    }

    #[test]
    fn an_open_write_may_be_there_or_not_but_not_come_and_go() {
        let mut seen = model(&[Acknowledged, InDoubt]);
        assert_eq!(seen.read("k", Some(1)), Ok(()));
        assert_eq!(seen.read("k", Some(2)), Ok(()), "it may land late");
        assert!(
            matches!(seen.read("k", Some(1)), Err(Violation::Lost { acknowledged: 2, .. })),
            "but not vanish"
        );
        assert_eq!(model(&[InDoubt]).read("k", None), Ok(()));
        assert_eq!(model(&[InDoubt]).read("k", Some(1)), Ok(()));
    }

    #[test]
    fn an_open_write_may_land_after_a_later_acknowledged_one_but_only_once() {
        let mut late = model(&[InDoubt, Acknowledged]);
        assert_eq!(late.read("k", Some(1)), Ok(()));
        late.wrote(3, Acknowledged);
        assert_eq!(late.read("k", Some(3)), Ok(()));
        assert!(late.read("k", Some(1)).is_err());
    }

    #[test]
    fn replies_are_sorted_by_their_word() {
        assert_eq!(Outcome::of_reply(None), Acknowledged);
        assert_eq!(Outcome::of_reply(Some(b"UNKNOWN outcome unknown at lsn 0/10")), InDoubt);
        for refused in ["READONLY x", "NOREPLICAS x", "LOADING x", "ERR x", "OOM x"] {
            assert_eq!(Outcome::of_reply(Some(refused.as_bytes())), Refused);
        }
    }

    #[test]
    fn what_cannot_be_read_proves_nothing() {
        let mut verdict = Verdict { acknowledged: 5, keys_read_back: 5, ..Verdict::default() };
        assert!(verdict.holds());
        verdict.add(Verdict { keys_unreadable: 1, ..Verdict::default() });
        assert!(!verdict.holds());
    }

    /// An honest register: every write in doubt lands at once, later, or never.
    fn honest(writes: &[(u8, u8)]) -> (KeyModel, Vec<Option<u64>>) {
        let mut model = KeyModel::new();
        let mut value = None;
        let mut delayed = Vec::new();
        let mut history = vec![None];
        for (number, (outcome, fate)) in (1u64..).zip(writes) {
            match outcome % 3 {
                0 => {
                    value = Some(number);
                    model.wrote(number, Acknowledged);
                }
                1 => model.wrote(number, Refused),
                _ => {
                    match fate % 3 {
                        0 => value = Some(number),
                        1 => delayed.push(number),
                        _ => {}
                    }
                    model.wrote(number, InDoubt);
                }
            }
            if fate % 5 == 4
                && let Some(late) = delayed.pop()
            {
                value = Some(late);
            }
            history.push(value);
            assert_eq!(model.read("k", value), Ok(()), "an honest register was accused");
        }
        (model, history)
    }

    proptest! {
        #[test]
        fn an_honest_register_is_never_accused(writes in proptest::collection::vec((0u8..3, 0u8..15), 0..40)) {
            honest(&writes);
        }

        /// After reads have settled everything, any return to an earlier, different state is noticed.
        #[test]
        fn a_rollback_behind_an_acknowledged_write_is_always_noticed(
            writes in proptest::collection::vec((0u8..2, 0u8..15), 1..40),
            back in 0usize..40,
        ) {
            let (mut model, history) = honest(&writes);
            let now = *history.last().unwrap();
            let old = history[back % history.len()];
            prop_assert_eq!(model.read("k", old).is_err(), old != now);
        }
    }
}
