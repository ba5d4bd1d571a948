//! The read lease (`protocol` 2.10), both sides.
//!
//! The leader counts a grant from the moment it *sent* the heartbeat that the grant answers; the grantor from the moment
//! it answered, which is later. So the grantor's wait always outlasts the leader's trust, whatever the network does.

use std::collections::BTreeMap;
use std::time::Duration;

use super::policy::Generation;
use crate::base::{Incarnation, Mono, NodeId, Term};

/// The leader's side: which voter granted until when.
#[derive(Clone, Debug, Default)]
pub struct LeaderLease {
    until: BTreeMap<NodeId, (Incarnation, Mono)>,
    /// Grants for heartbeats sent up to here do not count: the lease was given back.
    released: Option<Mono>,
    /// The same for single voters, whose connection this leader is about to close.
    forgotten: BTreeMap<NodeId, Mono>,
}

impl LeaderLease {
    /// A voter answered the heartbeat sent at `sent`.
    pub fn granted(&mut self, from: NodeId, incarnation: Incarnation, sent: Mono, lease: Duration) {
        let forgotten = self.forgotten.get(&from).is_some_and(|forgotten| sent <= *forgotten);
        if forgotten || self.released.is_some_and(|released| sent <= released) {
            return;
        }
        // Two boot-time clocks may drift apart by far less than a 32nd; the leader's trust ends that much earlier.
        let until = sent + (lease - lease / 32);
        let entry = self.until.entry(from).or_insert((incarnation, until));
        if entry.0 != incarnation || entry.1 < until {
            *entry = (incarnation, until);
        }
    }

    /// Gives everything back: nothing granted for a heartbeat sent until now counts any more.
    pub fn release(&mut self, now: Mono) {
        self.until.clear();
        self.released = Some(now);
    }

    /// The connection to a voter ends: it may take that for the end of this process and forget its grant.
    pub fn forget(&mut self, voter: NodeId, now: Mono) {
        self.until.remove(&voter);
        self.forgotten.insert(voter, now);
    }

    /// Until when every generation's grantors together keep every recruit quorum away; `None` when they do not.
    pub fn until<'a>(
        &self,
        generations: impl IntoIterator<Item = &'a Generation>,
        leader: NodeId,
        incarnation: Incarnation,
    ) -> Option<Mono> {
        generations
            .into_iter()
            .map(|generation| {
                let needed = generation.others_needed(leader, incarnation);
                if needed == 0 {
                    return Some(Mono(u64::MAX));
                }
                let mut ends: Vec<Mono> = self
                    .until
                    .iter()
                    .filter(|(node, (life, _))| **node != leader && generation.lists(**node, *life))
                    .map(|(_, (_, until))| *until)
                    .collect();
                ends.sort_unstable_by(|a, b| b.cmp(a));
                ends.get(needed - 1).copied()
            })
            .min()
            .flatten()
    }
}

/// The grantor's side: until when promises must wait.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    holder: Option<(NodeId, Term)>,
    /// When the holder sent the newest heartbeat that was answered with a grant, by its clock.
    sent: Mono,
    until: Mono,
    /// A process that granted and died forgets to whom: for one lease after its start it behaves as if it had granted.
    restart: Mono,
    /// An ordered failover is waiting: grant nothing until then.
    closed_until: Mono,
}

impl Grants {
    /// `could_have_granted`: an earlier process on this folder may have granted a lease just before.
    pub fn new(started: Mono, lease: Duration, could_have_granted: bool) -> Grants {
        let restart = if could_have_granted { started + lease } else { Mono(0) };
        Grants { restart, ..Grants::default() }
    }

    /// Grants `holder` one lease from `now`, for a heartbeat that it sent at `sent`, unless closed.
    pub fn grant(&mut self, now: Mono, holder: (NodeId, Term), sent: Mono, lease: Duration) -> bool {
        if now < self.closed_until {
            return false;
        }
        let before = if self.holder == Some(holder) { self.sent } else { Mono(0) };
        self.holder = Some(holder);
        self.sent = before.max(sent);
        self.until = self.until.max(now + lease);
        true
    }

    /// The leader gave back what was granted for heartbeats sent up to `upto`. A grant for a later one stands: the
    /// word of a release may come late, after the leader has taken its lease again.
    pub fn release(&mut self, leader: NodeId, term: Term, upto: Mono) {
        if self.holder == Some((leader, term)) && self.sent <= upto {
            self.until = Mono(0);
        }
    }

    /// The process of `node` ended: nobody reads under its lease any more.
    pub fn process_gone(&mut self, node: NodeId) {
        if self.holder.is_some_and(|(holder, _)| holder == node) {
            self.until = Mono(0);
        }
    }

    /// A term is followed that no earlier process of this folder followed: it was started by a recruit that met every set
    /// of grantors of every older term, so nobody reads under a lease that such a process granted.
    pub fn outlived(&mut self) {
        self.restart = Mono(0);
    }

    /// Grants nothing more until `until`, so that the running grant can end.
    pub fn close(&mut self, until: Mono) {
        self.closed_until = self.closed_until.max(until);
    }

    /// Grants again.
    pub fn open(&mut self) {
        self.closed_until = Mono(0);
    }

    /// How long a promise must still wait.
    pub fn remaining(&self, now: Mono) -> Duration {
        self.until.max(self.restart).since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(1000);
    const HOLDER: (NodeId, Term) = (NodeId(1), Term { number: 1, id: 1 });

    fn ms(ms: u64) -> Mono {
        Mono(ms * 1_000_000)
    }

    fn generation(voters: u16, k: u8) -> Generation {
        Generation::of(1, 1..=voters, k)
    }

    #[test]
    fn the_grantor_always_waits_longer_than_the_leader_trusts() {
        for delay in 0..2000 {
            let (sent, answered) = (ms(5000), ms(5000 + delay));
            let mut grants = Grants::default();
            assert!(grants.grant(answered, HOLDER, sent, LEASE));
            let mut lease = LeaderLease::default();
            lease.granted(NodeId(2), Incarnation(2), sent, LEASE);
            let until = lease.until(&[generation(3, 1)], NodeId(1), Incarnation(1)).unwrap();
            assert!(answered + grants.remaining(answered) > until);
        }
    }

    #[test]
    fn as_many_grants_as_copies_and_only_of_listed_voters() {
        let mut lease = LeaderLease::default();
        let five = [generation(5, 2)];
        let until = |lease: &LeaderLease| lease.until(&five, NodeId(1), Incarnation(1));
        lease.granted(NodeId(2), Incarnation(2), ms(100), LEASE);
        assert_eq!(until(&lease), None);
        lease.granted(NodeId(3), Incarnation(77), ms(900), LEASE);
        lease.granted(NodeId(9), Incarnation(9), ms(900), LEASE);
        assert_eq!(until(&lease), None, "another life of node 3 and a stranger do not count");
        lease.granted(NodeId(3), Incarnation(3), ms(200), LEASE);
        assert_eq!(until(&lease), Some(ms(100) + (LEASE - LEASE / 32)));
        lease.granted(NodeId(2), Incarnation(2), ms(50), LEASE);
        assert_eq!(until(&lease), Some(ms(100) + (LEASE - LEASE / 32)), "a late answer shortens nothing");
        assert_eq!(
            LeaderLease::default().until(&[generation(1, 0)], NodeId(1), Incarnation(1)),
            Some(Mono(u64::MAX))
        );
        assert_eq!(lease.until(&[generation(5, 2), generation(3, 2)], NodeId(9), Incarnation(9)), None);
    }

    #[test]
    fn a_released_lease_stays_released() {
        let mut lease = LeaderLease::default();
        let three = [generation(3, 1)];
        lease.granted(NodeId(2), Incarnation(2), ms(100), LEASE);
        lease.release(ms(200));
        lease.granted(NodeId(2), Incarnation(2), ms(190), LEASE);
        assert_eq!(
            lease.until(&three, NodeId(1), Incarnation(1)),
            None,
            "that heartbeat left before the release"
        );
        lease.granted(NodeId(2), Incarnation(2), ms(201), LEASE);
        assert!(lease.until(&three, NodeId(1), Incarnation(1)).is_some());
    }

    #[test]
    fn a_voter_whose_connection_ends_is_not_counted_on() {
        let mut lease = LeaderLease::default();
        let three = [generation(3, 1)];
        lease.granted(NodeId(2), Incarnation(2), ms(100), LEASE);
        lease.forget(NodeId(2), ms(150));
        lease.granted(NodeId(2), Incarnation(2), ms(140), LEASE);
        assert_eq!(lease.until(&three, NodeId(1), Incarnation(1)), None);
        lease.granted(NodeId(2), Incarnation(2), ms(160), LEASE);
        assert!(lease.until(&three, NodeId(1), Incarnation(1)).is_some());
    }

    #[test]
    fn a_grant_ends_by_time_release_or_death_of_its_holder_only() {
        let fresh = || {
            let mut grants = Grants::default();
            assert!(grants.grant(ms(100), HOLDER, ms(90), LEASE));
            grants
        };
        assert_eq!(fresh().remaining(ms(600)), Duration::from_millis(500));
        assert_eq!(fresh().remaining(ms(1100)), Duration::ZERO);
        let mut other = fresh();
        other.release(NodeId(2), HOLDER.1, ms(90));
        other.release(HOLDER.0, Term { number: 2, id: 1 }, ms(90));
        other.release(HOLDER.0, HOLDER.1, ms(89));
        other.process_gone(NodeId(2));
        assert_eq!(other.remaining(ms(600)), Duration::from_millis(500));
        let mut released = fresh();
        released.release(HOLDER.0, HOLDER.1, ms(90));
        assert_eq!(released.remaining(ms(600)), Duration::ZERO);
        let mut gone = fresh();
        gone.process_gone(HOLDER.0);
        assert_eq!(gone.remaining(ms(600)), Duration::ZERO);
    }

    #[test]
    fn a_restarted_process_waits_as_if_it_had_granted() {
        let mut grants = Grants::new(ms(100), LEASE, true);
        grants.process_gone(HOLDER.0);
        assert_eq!(grants.remaining(ms(600)), Duration::from_millis(500));
        assert_eq!(Grants::new(ms(100), LEASE, false).remaining(ms(100)), Duration::ZERO);
        assert!(grants.grant(ms(500), HOLDER, ms(490), LEASE));
        grants.outlived();
        assert_eq!(grants.remaining(ms(600)), Duration::from_millis(900), "its own grants stand");
        let mut grants = Grants::new(ms(100), LEASE, true);
        grants.outlived();
        assert_eq!(grants.remaining(ms(600)), Duration::ZERO);
    }

    #[test]
    fn closed_grants_run_out() {
        let mut grants = Grants::default();
        assert!(grants.grant(ms(100), HOLDER, ms(90), LEASE));
        grants.close(ms(2000));
        assert!(!grants.grant(ms(900), HOLDER, ms(890), LEASE));
        assert_eq!(grants.remaining(ms(1100)), Duration::ZERO);
        assert!(grants.grant(ms(2000), HOLDER, ms(1990), LEASE));
    }
}
