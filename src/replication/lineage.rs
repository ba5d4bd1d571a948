//! Which term owns which part of the log, and where two logs part.
//!
//! A history is a slice of (term, first LSN), ascending in both: term `i` owns `start(i)..start(i + 1)`, the last one
//! everything behind it. (term, LSN) names one byte string for ever, so two logs agree exactly as far as their
//! histories agree and both reach.

use super::wire::LogTip;
use crate::base::{Lsn, Term};

/// The term that owns a frame beginning at `first`.
pub fn term_at(history: &[(Term, Lsn)], first: Lsn) -> Option<Term> {
    let after = history.partition_point(|(_, start)| *start <= first);
    after.checked_sub(1).map(|at| history[at].0)
}

/// Where `term` begins and where it ends in a log that ends at `end`.
fn range_of(history: &[(Term, Lsn)], end: Lsn, term: Term) -> Option<(Lsn, Lsn)> {
    let at = history.iter().position(|(t, _)| *t == term)?;
    let next = history.get(at + 1).map_or(end, |(_, start)| *start);
    Some((history[at].1, next.min(end)))
}

/// How a downstream log stands to ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// By history theirs is a prefix of ours (their last digest still has to be compared).
    Prefix,
    /// Theirs goes on where ours ends, in the same term.
    Ahead,
    /// They agree up to here and no further.
    Forked(Lsn),
    /// Our history was shortened and no longer knows their term: it cannot be decided.
    Unknown,
}

/// Compares a downstream log (its tip and history) with our history and end.
pub fn relation(ours: &[(Term, Lsn)], our_end: Lsn, tip: &LogTip, theirs: &[(Term, Lsn)]) -> Relation {
    if tip.end == Lsn::ZERO {
        return Relation::Prefix;
    }
    if let Some((start, end)) = range_of(ours, our_end, tip.term) {
        let newest = ours.last().is_some_and(|(term, _)| *term == tip.term);
        return match () {
            () if tip.end <= start => Relation::Forked(fork(ours, our_end, tip.end, theirs)),
            () if tip.end <= end => Relation::Prefix,
            () if newest => Relation::Ahead,
            () => Relation::Forked(end),
        };
    }
    if ours.first().is_none_or(|(oldest, start)| tip.term < *oldest && *start > Lsn::ZERO) {
        return Relation::Unknown;
    }
    Relation::Forked(fork(ours, our_end, tip.end, theirs))
}

/// The end of the longest part that both histories assign to the same terms at the same places.
pub fn fork(ours: &[(Term, Lsn)], our_end: Lsn, their_end: Lsn, theirs: &[(Term, Lsn)]) -> Lsn {
    theirs
        .iter()
        .rev()
        .find_map(|(term, start)| {
            let (our_start, our_stop) = range_of(ours, our_end, *term)?;
            let (_, their_stop) = range_of(theirs, their_end, *term)?;
            (our_start == *start).then(|| our_stop.min(their_stop).max(*start))
        })
        .unwrap_or(Lsn::ZERO)
}
