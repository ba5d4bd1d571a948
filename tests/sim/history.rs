//! What clients did and saw, and whether one order explains it: a checker after Wing & Gong (1993) with Lowe's memory
//! (2017), one key at a time.
//!
//! An operation without an answer may have taken effect at any later time, or never; one that was refused must not have.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_128;
use zerocopy::IntoBytes;

/// What an operation does to its key. Every written value is written once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Set(u64),
    Get,
    Del,
    Incr,
    /// Nobody asks for it: this value may vanish by itself, once.
    Expire(u64),
}

impl Kind {
    /// Somebody asked for a change.
    pub fn writes(self) -> bool {
        !matches!(self, Kind::Get | Kind::Expire(_))
    }
}

/// What the client learned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// No answer, or one that says so.
    Doubt,
    /// Definitely not done.
    Refused,
    /// SET: nothing. GET: the value. DEL: 1 or nothing. INCR: the new value.
    Done(Option<u64>),
    /// Answered at a level that promises no durability: as good as no answer, for others.
    Weak,
}

#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "every field is shown when a run fails")]
pub struct Operation {
    pub key: usize,
    pub client: usize,
    pub kind: Kind,
    pub call: u64,
    pub ret: u64,
    pub outcome: Outcome,
}

/// Everything that all clients did, in order of calls.
#[derive(Default)]
pub struct History {
    pub operations: Vec<Operation>,
    pub acked_writes: usize,
    pub reads: usize,
}

impl History {
    pub fn call(&mut self, client: usize, key: usize, kind: Kind, now: u64) -> usize {
        self.operations.push(Operation {
            key,
            client,
            kind,
            call: now,
            ret: u64::MAX,
            outcome: Outcome::Doubt,
        });
        self.operations.len() - 1
    }

    pub fn answer(&mut self, id: usize, outcome: Outcome, now: u64) {
        let operation = &mut self.operations[id];
        operation.outcome = outcome;
        operation.ret = now;
        match (outcome, operation.kind) {
            (Outcome::Done(_), Kind::Get) => self.reads += 1,
            (Outcome::Done(_), _) => self.acked_writes += 1,
            _ => {}
        }
    }

    /// One explanation per key, or the first key that has none.
    pub fn check(&self) -> Result<(), String> {
        let mut keys: BTreeMap<usize, Vec<Operation>> = BTreeMap::new();
        for operation in &self.operations {
            let read_nothing = operation.kind == Kind::Get && !matches!(operation.outcome, Outcome::Done(_));
            if operation.outcome != Outcome::Refused && !read_nothing {
                keys.entry(operation.key).or_default().push(*operation);
            }
        }
        for (key, operations) in keys {
            match Search::new(&operations).run() {
                // A search without an end accuses nobody: what it left open is said, and the other oracles judge.
                Err(why) if why == UNDECIDED => println!("key {key}: {why}"),
                result => result.map_err(|why| format!("key {key}: {why}"))?,
            }
        }
        Ok(())
    }
}

/// The search gave up: neither an explanation nor a proof that there is none.
const UNDECIDED: &str = "too many orders to try, left undecided";
/// States visited per key before the search gives up.
const STATES_MAX: usize = 2_000_000;

fn definite(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Done(_))
}

/// What comes after an operation, or `None` when its answer does not fit the state.
fn step(state: Option<u64>, operation: &Operation) -> Option<Option<u64>> {
    let seen = match operation.outcome {
        Outcome::Done(seen) => Some(seen),
        _ => None,
    };
    match operation.kind {
        Kind::Set(value) => Some(Some(value)),
        Kind::Get => (seen == Some(state)).then_some(state),
        Kind::Del => seen.is_none_or(|seen| seen.is_some() == state.is_some()).then_some(None),
        Kind::Expire(value) => (state == Some(value)).then_some(None),
        Kind::Incr => {
            let next = state.unwrap_or(0) + 1;
            seen.is_none_or(|seen| seen == Some(next)).then_some(Some(next))
        }
    }
}

/// Takes a part of what is hashed for its hash: that is a digest already.
#[derive(Default)]
struct Digested(u64);

impl Hasher for Digested {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only digests are hashed");
    }

    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }
}

/// The search over one key.
struct Search<'a> {
    operations: &'a [Operation],
    /// Doubtful operations that could explain an answer; the others are as good as never done.
    useful: Vec<bool>,
    taken: Vec<u64>,
    left: usize,
    /// Below this, every definite operation is taken.
    low: usize,
    /// Operations without an answer that may have happened, in order of calls.
    open: Vec<usize>,
    /// Digests of the places that were reached. Of 128 bits: two places never share one.
    seen: HashSet<u128, BuildHasherDefault<Digested>>,
    place: Vec<u64>,
    /// The longest explained prefix, for the report.
    best: usize,
    best_state: Option<u64>,
    best_blocked: Option<Operation>,
}

/// A point to come back to.
struct Frame {
    state: Option<u64>,
    /// The operation before this point had no answer: the next one must see its effect.
    doubtful: bool,
    /// Next candidate.
    next: usize,
    took: Option<usize>,
    /// [`Search::low`] before `took` was taken.
    low: usize,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Search<'a> {
        let read: BTreeSet<u64> = operations
            .iter()
            .filter(|o| o.kind == Kind::Get)
            .filter_map(|o| match o.outcome {
                Outcome::Done(seen) => seen,
                _ => None,
            })
            .collect();
        let deleted = operations.iter().any(|o| o.kind == Kind::Del && o.outcome == Outcome::Done(Some(1)));
        let useful = |o: &Operation| match o.kind {
            _ if definite(o) => true,
            Kind::Set(value) => deleted || read.contains(&value),
            _ => true,
        };
        let useful: Vec<bool> = operations.iter().map(useful).collect();
        let open = (0..operations.len()).filter(|i| useful[*i] && !definite(&operations[*i])).collect();
        Search {
            useful,
            low: 0,
            open,
            taken: vec![0; operations.len().div_ceil(64)],
            left: operations.iter().filter(|o| definite(o)).count(),
            operations,
            seen: HashSet::default(),
            place: Vec::new(),
            best: 0,
            best_state: None,
            best_blocked: None,
        }
    }

    fn taken(&self, i: usize) -> bool {
        self.taken[i / 64] & (1 << (i % 64)) != 0
    }

    fn flip(&mut self, i: usize) {
        self.taken[i / 64] ^= 1 << (i % 64);
        if definite(&self.operations[i]) {
            self.left = if self.taken(i) { self.left - 1 } else { self.left + 1 };
        }
    }

    fn skip_taken(&mut self) {
        while self.operations.get(self.low).is_some_and(|o| !definite(o) || self.taken(self.low)) {
            self.low += 1;
        }
    }

    /// Notes a place: the state, and which operations are taken, in few words: all definite ones below `low`, these open
    /// ones, and those behind. Says whether it is new.
    fn arrive(&mut self, state: Option<u64>, doubtful: bool) -> bool {
        let mut place = std::mem::take(&mut self.place);
        place.clear();
        place.extend([u64::from(state.is_some()), state.unwrap_or(0), u64::from(doubtful), self.low as u64]);
        let below = self.open.iter().take_while(|i| **i < self.low);
        place.extend(below.filter(|i| self.taken(**i)).map(|i| *i as u64));
        place.push(u64::MAX);
        let behind = &self.taken[(self.low / 64).min(self.taken.len())..];
        let end = behind.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        place.extend_from_slice(&behind[..end]);
        self.place = place;
        self.seen.insert(xxh3_128(self.place.as_bytes()))
    }

    /// The earliest return among definite operations that are not taken: nothing called after it may go first.
    fn horizon(&self) -> (u64, Option<usize>) {
        let mut horizon = (u64::MAX, None);
        for (i, operation) in self.operations.iter().enumerate().skip(self.low) {
            if operation.call > horizon.0 {
                break;
            }
            if definite(operation) && !self.taken(i) && operation.ret < horizon.0 {
                horizon = (operation.ret, Some(i));
            }
        }
        horizon
    }

    fn run(mut self) -> Result<(), String> {
        let total = self.left;
        self.skip_taken();
        let mut stack = vec![Frame { state: None, doubtful: false, next: 0, took: None, low: self.low }];
        while let Some(frame) = stack.last() {
            if self.left == 0 {
                return Ok(());
            }
            let (state, doubtful, next) = (frame.state, frame.doubtful, frame.next);
            let (horizon, blocked) = self.horizon();
            if total - self.left >= self.best {
                (self.best, self.best_state) = (total - self.left, state);
                self.best_blocked = blocked.map(|i| self.operations[i]);
            }
            // Below the first definite operation that is left, only those without an answer can be.
            let from = self.open.partition_point(|i| *i < next);
            let doubtful_ones = self.open[from..].iter().copied().take_while(|i| *i < self.low);
            let found = doubtful_ones
                .chain(next.max(self.low)..self.operations.len())
                .take_while(|i| self.operations[*i].call <= horizon)
                .find_map(|i| self.try_take(i, state, doubtful).map(|after| (i, after)));
            match found {
                Some((i, after)) => {
                    stack.last_mut().expect("looked at above").next = i + 1;
                    let low = self.low;
                    self.flip(i);
                    self.skip_taken();
                    let now_doubtful = !definite(&self.operations[i]);
                    if self.arrive(after, now_doubtful) {
                        let took = Some(i);
                        stack.push(Frame { state: after, doubtful: now_doubtful, next: 0, took, low });
                    } else {
                        self.flip(i);
                        self.low = low;
                    }
                    if self.seen.len() > STATES_MAX {
                        return Err(UNDECIDED.into());
                    }
                }
                None => {
                    let frame = stack.pop().expect("looked at above");
                    if let Some(i) = frame.took {
                        self.flip(i);
                        self.low = frame.low;
                    }
                }
            }
        }
        Err(format!(
            "no order of operations explains the answers; {} of {total} explained, then the value is {:?} and this does \
             not fit: {:?}\n{}",
            self.best,
            self.best_state,
            self.best_blocked,
            self.around()
        ))
    }

    /// The state after taking operation `i` here, when that is allowed and of any use.
    fn try_take(&self, i: usize, state: Option<u64>, doubtful: bool) -> Option<Option<u64>> {
        let operation = &self.operations[i];
        if self.taken(i) || !self.useful[i] {
            return None;
        }
        // An effect that the next operation overwrites unseen might as well not have happened.
        let blind =
            matches!(operation.kind, Kind::Set(_)) || (operation.kind == Kind::Del && !definite(operation));
        if doubtful && blind {
            return None;
        }
        if operation.kind == Kind::Incr && !definite(operation) {
            // Increments without answers are interchangeable: the earliest goes first.
            let earlier = (0..i).any(|j| {
                let other = &self.operations[j];
                other.kind == Kind::Incr && !definite(other) && !self.taken(j)
            });
            if earlier {
                return None;
            }
        }
        step(state, operation)
    }

    fn around(&self) -> String {
        let Some(blocked) = self.best_blocked else { return String::new() };
        let value = |o: &Operation| match (o.kind, o.outcome) {
            (Kind::Set(v), _) => Some(v),
            (_, Outcome::Done(seen)) => seen,
            _ => None,
        };
        let near: Vec<String> = self
            .operations
            .iter()
            .filter(|o| o.call <= blocked.ret && o.ret >= blocked.call.saturating_sub(500_000_000))
            .filter(|o| {
                definite(o)
                    || value(o).is_some_and(|v| Some(v) == value(&blocked) || Some(v) == self.best_state)
            })
            .map(|o| format!("  {o:?}"))
            .collect();
        near[near.len().saturating_sub(40)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(operations: &[(Kind, u64, u64, Outcome)]) -> Result<(), String> {
        let mut history = History::default();
        for (kind, call, ret, outcome) in operations {
            let id = history.call(0, 0, *kind, *call);
            history.answer(id, *outcome, *ret);
            if matches!(outcome, Outcome::Doubt | Outcome::Weak) {
                history.operations[id].ret = u64::MAX;
            }
        }
        history.check()
    }

    use Kind::{Del, Get, Incr, Set};
    use Outcome::{Done, Doubt, Refused};

    #[test]
    fn good_histories_have_an_explanation() {
        history(&[(Set(1), 0, 5, Done(None)), (Get, 6, 7, Done(Some(1)))]).unwrap();
        history(&[(Set(1), 0, 9, Done(None)), (Get, 1, 2, Done(Some(1))), (Get, 3, 4, Done(Some(1)))])
            .unwrap();
        history(&[(Set(1), 0, 1, Doubt), (Get, 2, 3, Done(None)), (Get, 50, 51, Done(Some(1)))]).unwrap();
        history(&[(Incr, 0, 1, Doubt), (Incr, 0, 1, Doubt), (Incr, 5, 6, Done(Some(3)))]).unwrap();
        history(&[(Set(1), 0, 1, Doubt), (Del, 2, 3, Done(Some(1))), (Get, 4, 5, Done(None))]).unwrap();
    }

    #[test]
    fn bad_histories_have_none() {
        let bad: [&[(Kind, u64, u64, Outcome)]; 6] = [
            &[(Set(1), 0, 5, Done(None)), (Get, 6, 7, Done(None))],
            &[(Set(1), 0, 1, Refused), (Get, 2, 3, Done(Some(1)))],
            &[(Set(1), 0, 1, Done(None)), (Set(2), 2, 3, Done(None)), (Get, 4, 5, Done(Some(1)))],
            &[(Set(1), 0, 9, Doubt), (Get, 2, 3, Done(Some(1))), (Get, 4, 5, Done(None))],
            &[(Incr, 0, 1, Done(Some(1))), (Incr, 2, 3, Done(Some(1)))],
            &[(Incr, 0, 1, Doubt), (Incr, 2, 3, Done(Some(3)))],
        ];
        for (i, history_) in bad.iter().enumerate() {
            assert!(history(history_).is_err(), "history {i} was explained");
        }
    }
}
