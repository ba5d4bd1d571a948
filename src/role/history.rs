//! The term history: which term wrote which part of the log.
//!
//! A list of (term, start LSN). A frame is valid only if the history assigns its term to its LSN, and (term, LSN) names
//! one byte string for ever; so two logs that have the same term at one position are equal up to there. That is what
//! the fork point rests on.

use crate::base::limits::HISTORY_MAX;
use crate::base::{Lsn, Term};

/// True when `term` is at least `promised`, as a pair.
pub fn at_least(term: Term, promised: Term) -> bool {
    term >= promised
}

/// True when both are the same term, number and id.
pub fn same(a: Term, b: Term) -> bool {
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
        let ascending = entries.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1);
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
        assert!(self.entries.last().is_none_or(|(last, _)| *last < term), "terms only rise");
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
