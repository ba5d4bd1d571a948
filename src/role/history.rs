//! The term history: which term wrote which part of the log.
//!
//! A list of (term, start LSN). A frame is valid only if the history assigns its term to its LSN, and (term, LSN) names
//! one byte string for ever; so two logs that have the same term at one position are equal up to there. That is what
//! the fork point rests on.

use crate::base::limits::HISTORY_MAX;
use crate::base::planted::{Bug, planted};
use crate::base::{Lsn, Term};

/// True when `term` is at least `promised`, as a pair.
pub fn at_least(term: Term, promised: Term) -> bool {
    if planted(Bug::OrderTermsByNumberOnly) {
        return term.number >= promised.number;
    }
    term >= promised
}

/// True when `later` may follow `earlier` in a history.
fn rises(earlier: Term, later: Term) -> bool {
    if planted(Bug::OrderTermsByNumberOnly) {
        return earlier.number <= later.number;
    }
    earlier < later
}

/// True when both are the same term, number and id.
pub fn same(a: Term, b: Term) -> bool {
    if planted(Bug::OrderTermsByNumberOnly) {
        return a.number == b.number;
    }
    a == b
}

/// Terms and where they start, both strictly ascending. At most [`HISTORY_MAX`] entries: the oldest go first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct History {
    entries: Vec<(Term, Lsn)>,
}

impl History {
    pub fn new() -> History {
        History::default()
    }

    /// Checks what came from disk or network. `None` when it is no history.
    pub fn from_entries(entries: Vec<(Term, Lsn)>) -> Option<History> {
        let ascending = entries.windows(2).all(|w| rises(w[0].0, w[1].0) && w[0].1 < w[1].1);
        let real = entries.iter().all(|(term, _)| !term.is_none());
        (ascending && real && entries.len() <= HISTORY_MAX).then_some(History { entries })
    }

    pub fn entries(&self) -> &[(Term, Lsn)] {
        &self.entries
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The newest term, whether or not a frame of it exists.
    pub fn last(&self) -> Option<(Term, Lsn)> {
        self.entries.last().copied()
    }

    /// The term that wrote (or would write) the byte at `at`; `None` below the oldest entry kept.
    pub fn term_at(&self, at: Lsn) -> Option<Term> {
        let after = self.entries.partition_point(|(_, start)| *start <= at);
        after.checked_sub(1).map(|i| self.entries[i].0)
    }

    /// Where the part that `term` wrote begins.
    pub fn start_of(&self, term: Term) -> Option<Lsn> {
        self.entries.iter().find(|(t, _)| *t == term).map(|(_, start)| *start)
    }

    /// Drops the terms that start at `end` or behind it: they wrote nothing in a log that ends there.
    pub fn truncate_to(&mut self, end: Lsn) {
        self.entries.retain(|(_, start)| *start < end);
    }

    /// Adds a term that starts at `start`, after dropping those that would start there or later without a byte.
    pub fn append(&mut self, term: Term, start: Lsn) {
        self.truncate_to(start);
        assert!(self.entries.last().is_none_or(|(last, _)| rises(*last, term)), "terms only rise");
        if self.entries.len() == HISTORY_MAX {
            self.entries.remove(0);
        }
        self.entries.push((term, start));
    }

    /// The largest position up to which a log (`self`, `end`) agrees with a log (`other`, `other_end`).
    /// `other_end` is [`Lsn::MAX`] for a living leader, whose log contains all of its own term.
    ///
    /// `None` when the histories cannot tell: everything that they have in common was dropped, or one term starts at two
    /// places, which no correct node produces.
    pub fn fork(&self, end: Lsn, other: &History, other_end: Lsn) -> Option<Lsn> {
        if end == Lsn::ZERO || other_end == Lsn::ZERO {
            return Some(Lsn::ZERO);
        }
        let bound = end.min(other_end);
        for (i, (term, start)) in self.entries.iter().enumerate().rev() {
            let Some(j) = other.entries.iter().position(|(t, _)| t == term) else { continue };
            if other.entries[j].1 != *start {
                return None;
            }
            if *start >= bound {
                continue;
            }
            let own_stop = self.entries.get(i + 1).map_or(Lsn::MAX, |(_, s)| *s);
            let other_stop = other.entries.get(j + 1).map_or(Lsn::MAX, |(_, s)| *s);
            return Some(bound.min(own_stop).min(other_stop));
        }
        let complete = |h: &History| h.entries.first().is_some_and(|(_, start)| *start == Lsn::ZERO);
        (complete(self) && complete(other)).then_some(Lsn::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn term(number: u64) -> Term {
        Term { number, id: 1 }
    }

    fn history(entries: &[(u64, u64)]) -> History {
        History::from_entries(entries.iter().map(|(t, s)| (term(*t), Lsn(*s))).collect()).unwrap()
    }

    #[test]
    fn terms_own_their_stretch() {
        let h = history(&[(1, 0), (4, 10)]);
        assert_eq!(h.term_at(Lsn(0)), Some(term(1)));
        assert_eq!(h.term_at(Lsn(9)), Some(term(1)));
        assert_eq!(h.term_at(Lsn(10)), Some(term(4)));
        assert_eq!(history(&[(4, 10)]).term_at(Lsn(9)), None);
        assert_eq!(h.start_of(term(4)), Some(Lsn(10)));
    }

    #[test]
    fn what_is_no_history_is_refused() {
        let bad = |entries: &[(u64, u64)]| {
            History::from_entries(entries.iter().map(|(t, s)| (term(*t), Lsn(*s))).collect()).is_none()
        };
        assert!(bad(&[(2, 0), (1, 5)]) && bad(&[(1, 5), (2, 5)]) && bad(&[(1, 0), (1, 5)]));
        assert!(History::from_entries(vec![(Term::NONE, Lsn(0))]).is_none());
        let long = (0..=HISTORY_MAX as u64).map(|i| (term(i + 1), Lsn(i))).collect();
        assert!(History::from_entries(long).is_none());
    }

    #[test]
    fn a_new_term_replaces_terms_that_wrote_nothing() {
        let mut h = history(&[(1, 0), (2, 10)]);
        h.append(term(3), Lsn(10));
        assert_eq!(h, history(&[(1, 0), (3, 10)]));
        h.append(term(4), Lsn(12));
        assert_eq!(h, history(&[(1, 0), (3, 10), (4, 12)]));
    }

    #[test]
    fn the_oldest_terms_go_first() {
        let mut h = History::new();
        (0..HISTORY_MAX as u64 + 5).for_each(|i| h.append(term(i + 1), Lsn(i)));
        assert_eq!(h.entries().len(), HISTORY_MAX);
        assert_eq!(h.term_at(Lsn(4)), None);
        assert_eq!(h.term_at(Lsn(5)), Some(term(6)));
        let young = history(&[(1, 0), (2, 1)]);
        assert_eq!(young.fork(Lsn(9), &h, Lsn::MAX), None, "the common part was dropped");
    }

    #[test]
    fn forks_of_the_usual_stories() {
        let leader = history(&[(1, 0), (3, 10)]);
        // The old primary wrote past the point where its successor started.
        assert_eq!(history(&[(1, 0)]).fork(Lsn(15), &leader, Lsn::MAX), Some(Lsn(10)));
        // A standby that is merely behind.
        assert_eq!(history(&[(1, 0)]).fork(Lsn(7), &leader, Lsn::MAX), Some(Lsn(7)));
        // It adopted the history but has no frame of the new term yet.
        assert_eq!(leader.fork(Lsn(7), &leader, Lsn::MAX), Some(Lsn(7)));
        // A term that the leader never saw.
        assert_eq!(history(&[(1, 0), (2, 8)]).fork(Lsn(9), &leader, Lsn::MAX), Some(Lsn(8)));
        // The source's log ends inside a term that both have.
        assert_eq!(leader.fork(Lsn(20), &leader, Lsn(14)), Some(Lsn(14)));
        // Nothing in common.
        assert_eq!(history(&[(2, 0)]).fork(Lsn(9), &leader, Lsn::MAX), Some(Lsn(0)));
        assert_eq!(history(&[]).fork(Lsn(0), &leader, Lsn::MAX), Some(Lsn(0)));
        // One term, two starts: nobody correct writes this.
        assert_eq!(history(&[(1, 0), (3, 9)]).fork(Lsn(20), &leader, Lsn::MAX), None);
    }

    proptest! {
        /// Against the definition: logs grown by branching from each other, compared position by position.
        #[test]
        fn fork_agrees_with_the_logs(steps in proptest::collection::vec((0usize..3, 0usize..3, 0usize..12, 1u64..6), 1..20)) {
            let mut logs: [Vec<u64>; 3] = Default::default();
            for (i, (to, from, keep, len)) in steps.into_iter().enumerate() {
                let mut grown = logs[from].clone();
                if to == from {
                    grown.truncate(grown.len().saturating_sub(keep));
                }
                grown.extend(std::iter::repeat_n(i as u64 + 1, len as usize));
                logs[to] = grown;
            }
            let history_of = |log: &[u64]| {
                let mut h = History::new();
                for (at, t) in log.iter().enumerate() {
                    if h.last().map(|(last, _)| last.number) != Some(*t) {
                        h.append(term(*t), Lsn(at as u64));
                    }
                }
                h
            };
            for a in &logs {
                for b in &logs {
                    let fork = history_of(a).fork(Lsn(a.len() as u64), &history_of(b), Lsn(b.len() as u64)).unwrap();
                    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
                    prop_assert_eq!(fork, Lsn(common as u64));
                }
            }
        }
    }
}
