//! From stamps to positions: which sealed group ends where.

use std::collections::VecDeque;

use crate::base::{Lsn, Stamp};

/// Sealed groups kept; older ones than this are known to lie below every watermark that matters.
const GROUPS_MAX: usize = 1 << 16;

/// The sealed groups of this run, oldest first.
#[derive(Debug, Default)]
pub struct Groups {
    ends: VecDeque<(Stamp, Lsn)>,
    /// Stamp of the newest group that was forgotten, and its end.
    floor: (Stamp, Lsn),
}

impl Groups {
    pub fn sealed(&mut self, stamp: Stamp, end: Lsn) {
        assert!(self.ends.back().is_none_or(|(s, e)| *s < stamp && *e < end), "groups are sealed in order");
        if self.ends.len() == GROUPS_MAX {
            self.floor = self.ends.pop_front().expect("full");
        }
        self.ends.push_back((stamp, end));
    }

    /// The newest stamp whose group ends at or before `lsn`.
    pub fn at(&self, lsn: Lsn) -> Stamp {
        // Mostly everything that is sealed is asked for.
        let count = match self.ends.back() {
            Some((_, end)) if *end <= lsn => self.ends.len(),
            _ => self.ends.partition_point(|(_, end)| *end <= lsn),
        };
        match count {
            0 if lsn >= self.floor.1 => self.floor.0,
            0 => Stamp::COMMITTED,
            n => self.ends[n - 1].0,
        }
    }

    /// Where a group ends; `None` when it is not sealed, or long forgotten.
    pub fn end_of(&self, stamp: Stamp) -> Option<Lsn> {
        let at = self.ends.binary_search_by_key(&stamp, |(s, _)| *s).ok()?;
        Some(self.ends[at].1)
    }

    /// A leadership begins or ends: every stamp up to `stamp` that is still around is committed. Stamps go on counting.
    pub fn clear(&mut self, stamp: Stamp, committed: Lsn) {
        self.ends.clear();
        self.floor = (stamp, committed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_names_the_newest_group_below_it() {
        let mut groups = Groups::default();
        for i in 1..=5u64 {
            groups.sealed(Stamp(i), Lsn(i * 4096));
        }
        assert_eq!(groups.at(Lsn(0)), Stamp(0));
        assert_eq!(groups.at(Lsn(4096 * 3)), Stamp(3));
        assert_eq!(groups.at(Lsn(4096 * 3 + 1)), Stamp(3));
        assert_eq!(groups.at(Lsn::MAX), Stamp(5));
        assert_eq!((groups.end_of(Stamp(4)), groups.end_of(Stamp(9))), (Some(Lsn(4096 * 4)), None));
        groups.clear(Stamp(5), Lsn(4096 * 5));
        assert_eq!((groups.at(Lsn(4096 * 5)), groups.end_of(Stamp(4))), (Stamp(5), None));
    }
}
