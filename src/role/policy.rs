//! Policy generations: who votes, how many copies make a commit, and what a recruit must therefore gather.
//!
//! Committed = flushed on the leader and on `k` other voters; recruit quorum = `|V| - k`. A leader that is not itself a
//! voter needs `k + 1` of them, because only voters meet a recruit quorum. The same count holds for the read lease.

use std::fmt;

use super::codec::{Reader, Write};
use crate::base::limits::{NODES_MAX, VOTERS_MAX};
use crate::base::planted::{Bug, planted};
use crate::base::{FlushedLsn, Incarnation, Lsn, NodeId};

/// A member, bound to the data folder it had when the generation was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Voter {
    pub node: NodeId,
    /// `Incarnation(0)` in the seed generation: not bound yet.
    pub incarnation: Incarnation,
}

/// One policy generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// 0 is the seed from the configuration; the first leader of a cluster writes generation 1.
    pub number: u64,
    /// Leader included. In the order of `FIRST k (...)` when `first` is set.
    pub voters: Vec<Voter>,
    /// Copies besides the leader's.
    pub k: u8,
    /// `FIRST`: wait for the first `k` connected voters in order. Chooses whom to wait for, never shrinks the voters.
    pub first: bool,
    /// Installed by force: it replaces its predecessor without the predecessor's agreement.
    pub forced: bool,
    /// Members that stream but never vote.
    pub standbys: Vec<Voter>,
    /// Those of the standbys that lost their vote because they were silent for too long. They get it back by
    /// themselves.
    pub absent: Vec<NodeId>,
    /// The control store is told of every change and grants every promotion: nobody leads without asking it.
    pub store: bool,
    /// Degraded: fewer copies are asked for than the cluster is meant to have, and this is how many it is meant to have
    /// besides the leader's. 0: nothing was lowered.
    pub full_k: u8,
}

/// A generation whose record is in the log but not known to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingGeneration {
    pub generation: Generation,
    /// First byte of the frame that holds the record.
    pub start: Lsn,
    /// End of that frame: committed to here, the generation is in force alone.
    pub end: Lsn,
}

/// The commit rule in force, for the replication room: all of `generations` must agree, and nothing commits before the
/// term-start frame does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRule {
    pub leader: NodeId,
    pub incarnation: Incarnation,
    pub generations: Vec<Generation>,
    /// End of the term-start frame. A lower commit candidate is no commit.
    pub floor: Lsn,
}

/// `sync = "ANY k (1,2,3)" | "FIRST k (...)" | "auto"` as typed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    Auto,
    Any { k: u8, voters: Vec<NodeId> },
    First { k: u8, voters: Vec<NodeId> },
}

/// What is wrong with a `sync` setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncError(pub &'static str);

impl Generation {
    /// The seed generation of a cluster of `members`, by the defaults of `protocol` section 1 or by `sync`.
    pub fn seed(members: &[NodeId], sync: &SyncPolicy) -> Result<Generation, SyncError> {
        let mut all = members.to_vec();
        all.sort_unstable();
        all.dedup();
        if all.len() != members.len() || all.is_empty() || all.len() > NODES_MAX {
            return Err(SyncError("the members must be 1 to 32 different nodes"));
        }
        let (voters, k, first) = match sync {
            SyncPolicy::Auto => {
                let (voters, k) = defaults(all.len());
                (all[..voters].to_vec(), k, false)
            }
            SyncPolicy::Any { k, voters } => (voters.clone(), *k, false),
            SyncPolicy::First { k, voters } => (voters.clone(), *k, true),
        };
        if voters.iter().any(|node| !all.contains(node)) {
            return Err(SyncError("sync names a node that is no member"));
        }
        let unbound = |node: NodeId| Voter { node, incarnation: Incarnation(0) };
        let standbys = all.iter().copied().filter(|node| !voters.contains(node)).map(unbound).collect();
        let voters = voters.into_iter().map(unbound).collect();
        let generation = Generation {
            number: 0,
            voters,
            k,
            first,
            forced: false,
            standbys,
            absent: vec![],
            store: false,
            full_k: 0,
        };
        if generation.is_sound() { Ok(generation) } else { Err(SyncError(K_TOO_LARGE)) }
    }

    /// What every generation keeps to, wherever it comes from.
    pub fn is_sound(&self) -> bool {
        let mut nodes: Vec<NodeId> = self.members().map(|voter| voter.node).collect();
        let count = nodes.len();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.len() == count
            && count <= NODES_MAX
            && (1..=VOTERS_MAX).contains(&self.voters.len())
            && usize::from(self.k) < self.voters.len()
            && (self.full_k == 0 || (self.full_k > self.k && usize::from(self.full_k) < VOTERS_MAX))
            && self.absent.len() <= self.standbys.len()
            && self.absent.iter().all(|node| self.standbys.iter().any(|standby| standby.node == *node))
    }

    /// Fewer copies are asked for than the cluster is meant to have.
    pub fn is_degraded(&self) -> bool {
        self.full_k > 0
    }

    /// Voters, then standbys.
    pub fn members(&self) -> impl Iterator<Item = &Voter> {
        self.voters.iter().chain(&self.standbys)
    }

    /// True when this is the unbound seed: it knows node ids but no incarnations.
    pub fn is_seed(&self) -> bool {
        self.number == 0
    }

    /// Counting voters that a recruit needs. The seed needs every voter once, so it needs no copies to commit: the
    /// generation that the first leader writes on top of it asks for those.
    pub fn recruit_quorum(&self) -> usize {
        if self.is_seed() { self.voters.len() } else { self.voters.len() - usize::from(self.k) }
    }

    /// Other voters whose flush a commit (or whose grant a lease) needs, for a leader that is or is not a voter.
    pub fn others_needed(&self, leader: NodeId, incarnation: Incarnation) -> usize {
        let voters = if self.is_seed() { 1 } else { usize::from(self.k) + 1 };
        voters - usize::from(self.lists(leader, incarnation))
    }

    /// True when this very incarnation of the node votes.
    pub fn lists(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.voters
            .iter()
            .any(|voter| voter.node == node && (self.is_seed() || voter.incarnation == incarnation))
    }

    /// How many more voters may die before a failover without loss is impossible, with `alive` voters now.
    pub fn failures_survived(&self, alive: usize) -> usize {
        alive.saturating_sub(self.recruit_quorum())
    }

    /// How many more voters may die before writes stop, with `alive` voters now.
    pub fn failures_until_writes_stop(&self, alive: usize) -> usize {
        alive.saturating_sub(usize::from(self.k) + 1)
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.generation(self);
    }

    /// Decodes exactly `bytes`; `None` when they are no sound generation.
    pub fn decode(bytes: &[u8]) -> Option<Generation> {
        let mut reader = Reader::new(bytes);
        let generation = reader.generation()?;
        reader.done().then_some(generation)
    }

    /// The largest position that this generation lets a leader with `own` flushed commit.
    fn commit(
        &self,
        leader: NodeId,
        incarnation: Incarnation,
        own: Lsn,
        followers: &[(NodeId, Incarnation, FlushedLsn)],
    ) -> Lsn {
        let needed = self.others_needed(leader, incarnation);
        if needed == 0 {
            return own;
        }
        let mut flushed: Vec<Lsn> = Vec::with_capacity(VOTERS_MAX);
        for voter in self.voters.iter().filter(|voter| voter.node != leader) {
            let found =
                followers.iter().find(|(node, life, _)| *node == voter.node && self.lists(*node, *life));
            flushed.extend(found.map(|(_, _, lsn)| lsn.lsn()));
        }
        if flushed.len() < needed {
            return Lsn::ZERO;
        }
        if self.first {
            flushed.truncate(needed);
        }
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        own.min(flushed[needed - 1])
    }
}

impl CommitRule {
    /// The commit index that these flush positions allow; `None` when the term-start frame is not committed by them.
    /// `followers`: voters connected in the current session only, each node once.
    pub fn commit(&self, own: FlushedLsn, followers: &[(NodeId, Incarnation, FlushedLsn)]) -> Option<Lsn> {
        let agreed = self
            .generations
            .iter()
            .map(|generation| generation.commit(self.leader, self.incarnation, own.lsn(), followers))
            .min()
            .expect("a rule has at least one generation");
        let floor = if planted(Bug::ServeBeforeTermStartCommits) { Lsn(1) } else { self.floor };
        (agreed >= floor).then_some(agreed)
    }
}

/// Voters and `k` for a cluster of `members` nodes (`protocol` section 1).
fn defaults(members: usize) -> (usize, u8) {
    match members {
        1 => (1, 0),
        2 => (2, 1),
        3 | 4 => (3, 1),
        _ => (5, 2),
    }
}

const K_TOO_LARGE: &str =
    "sync must name at most 9 different voters, leader included, and ask for fewer copies than voters";

impl SyncPolicy {
    /// Reads `ANY k (1, 2, 3)`, `FIRST k (...)` or `auto`. The list names the voters, whoever leads included.
    pub fn parse(text: &str) -> Result<SyncPolicy, SyncError> {
        const FORM: SyncError = SyncError("sync is `auto`, `ANY k (1, 2, 3)` or `FIRST k (1, 2, 3)`");
        let text = text.trim();
        if text.eq_ignore_ascii_case("auto") {
            return Ok(SyncPolicy::Auto);
        }
        let (head, list) = text.strip_suffix(')').and_then(|t| t.split_once('(')).ok_or(FORM)?;
        let mut words = head.split_whitespace();
        let (kind, k, end) = (words.next(), words.next(), words.next());
        let k: u8 = k.and_then(|k| k.parse().ok()).filter(|_| end.is_none()).ok_or(FORM)?;
        let mut voters = Vec::new();
        for item in list.split(',') {
            let id: u16 = item.trim().parse().map_err(|_| FORM)?;
            if !(1..=NODES_MAX as u16).contains(&id) || voters.contains(&NodeId(id)) {
                return Err(SyncError("sync lists node ids 1 to 32, each once"));
            }
            voters.push(NodeId(id));
        }
        if voters.len() > VOTERS_MAX || usize::from(k) >= voters.len() {
            return Err(SyncError(K_TOO_LARGE));
        }
        match kind {
            Some(word) if word.eq_ignore_ascii_case("any") => Ok(SyncPolicy::Any { k, voters }),
            Some(word) if word.eq_ignore_ascii_case("first") => Ok(SyncPolicy::First { k, voters }),
            _ => Err(FORM),
        }
    }
}

impl fmt::Display for SyncError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
impl std::error::Error for SyncError {}

#[cfg(test)]
impl Generation {
    /// A plain one. Each voter's incarnation has the node's number.
    pub fn of(number: u64, voters: impl IntoIterator<Item = u16>, k: u8) -> Generation {
        let voter = |n: u16| Voter { node: NodeId(n), incarnation: Incarnation(u128::from(n)) };
        Generation {
            number,
            voters: voters.into_iter().map(voter).collect(),
            k,
            first: false,
            forced: false,
            standbys: vec![],
            absent: vec![],
            store: false,
            full_k: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nodes(n: u16) -> Vec<NodeId> {
        (1..=n).map(NodeId).collect()
    }

    fn bound(voters: u16, k: u8) -> Generation {
        Generation::of(1, 1..=voters, k)
    }

    fn at(node: u16, lsn: u64) -> (NodeId, Incarnation, FlushedLsn) {
        (NodeId(node), Incarnation(u128::from(node)), FlushedLsn(Lsn(lsn)))
    }

    fn rule(generations: Vec<Generation>, leader: u16) -> CommitRule {
        CommitRule {
            leader: NodeId(leader),
            incarnation: Incarnation(u128::from(leader)),
            generations,
            floor: Lsn(1),
        }
    }

    #[test]
    fn defaults_follow_the_cluster_size() {
        let shape = |n| {
            let g = Generation::seed(&nodes(n), &SyncPolicy::Auto).unwrap();
            (g.voters.len(), g.k, g.standbys.len())
        };
        assert_eq!([shape(1), shape(2), shape(3), shape(4)], [(1, 0, 0), (2, 1, 0), (3, 1, 0), (3, 1, 1)]);
        assert_eq!([shape(5), shape(9)], [(5, 2, 0), (5, 2, 4)]);
    }

    #[test]
    fn sync_settings_are_read_or_refused_with_the_form() {
        let any = SyncPolicy::Any { k: 1, voters: nodes(3) };
        assert_eq!(SyncPolicy::parse(" any 1 ( 1, 2 ,3)"), Ok(any));
        assert_eq!(
            SyncPolicy::parse("FIRST 2 (3,1,2)"),
            Ok(SyncPolicy::First { k: 2, voters: vec![NodeId(3), NodeId(1), NodeId(2)] })
        );
        assert_eq!(SyncPolicy::parse("AUTO"), Ok(SyncPolicy::Auto));
        for bad in
            ["", "ANY", "ANY 1", "ANY 1 (1", "ANY x (1,2)", "ANY 2 (1,2)", "ANY 1 (1,1)", "ANY 1 (0,1)"]
                .into_iter()
                .chain([
                    "SOME 1 (1,2)",
                    "ANY 1 1 (1,2)",
                    "ANY 1 ()",
                    "ANY 1 (1,40)",
                    "ANY 1 (1,2,3,4,5,6,7,8,9,10)",
                ])
        {
            assert!(SyncPolicy::parse(bad).is_err(), "{bad:?} passed");
        }
        assert!(Generation::seed(&nodes(2), &SyncPolicy::parse("ANY 1 (1,2,3)").unwrap()).is_err());
    }

    #[test]
    fn the_seed_needs_everybody_once_and_then_commits_alone() {
        let seed = Generation::seed(&nodes(3), &SyncPolicy::Auto).unwrap();
        assert_eq!(seed.recruit_quorum(), 3);
        assert_eq!(seed.others_needed(NodeId(2), Incarnation(5)), 0);
        assert_eq!(rule(vec![seed, bound(3, 1)], 1).commit(FlushedLsn(Lsn(9)), &[at(2, 4)]), Some(Lsn(4)));
    }

    #[test]
    fn commit_needs_own_flush_and_k_listed_others() {
        let rule1 = rule(vec![bound(3, 1)], 1);
        assert_eq!(rule1.commit(FlushedLsn(Lsn(10)), &[at(2, 7), at(3, 5)]), Some(Lsn(7)));
        assert_eq!(rule1.commit(FlushedLsn(Lsn(6)), &[at(2, 7), at(3, 5)]), Some(Lsn(6)));
        assert_eq!(rule1.commit(FlushedLsn(Lsn(10)), &[]), None);
        let stranger = (NodeId(2), Incarnation(99), FlushedLsn(Lsn(7)));
        assert_eq!(rule1.commit(FlushedLsn(Lsn(10)), &[stranger]), None);
        assert_eq!(rule1.commit(FlushedLsn(Lsn(10)), &[at(1, 9), at(4, 9)]), None);
    }

    #[test]
    fn a_leader_without_a_vote_needs_one_voter_more() {
        let rule = rule(vec![bound(3, 1)], 4);
        assert_eq!(rule.commit(FlushedLsn(Lsn(10)), &[at(2, 7)]), None);
        assert_eq!(rule.commit(FlushedLsn(Lsn(10)), &[at(2, 7), at(3, 5)]), Some(Lsn(5)));
    }

    #[test]
    fn first_waits_for_the_order_and_never_commits_more_than_any() {
        let any = bound(5, 2);
        let first = Generation { first: true, ..any.clone() };
        let acks = [at(2, 3), at(3, 9), at(4, 8), at(5, 7)];
        assert_eq!(rule(vec![any], 1).commit(FlushedLsn(Lsn(10)), &acks), Some(Lsn(8)));
        assert_eq!(rule(vec![first.clone()], 1).commit(FlushedLsn(Lsn(10)), &acks), Some(Lsn(3)));
        assert_eq!(rule(vec![first], 1).commit(FlushedLsn(Lsn(10)), &acks[1..]), Some(Lsn(8)));
    }

    #[test]
    fn nothing_commits_before_the_term_start_frame() {
        let mut rule = rule(vec![bound(3, 1)], 1);
        rule.floor = Lsn(8);
        assert_eq!(rule.commit(FlushedLsn(Lsn(9)), &[at(2, 7)]), None);
        assert_eq!(rule.commit(FlushedLsn(Lsn(9)), &[at(2, 8)]), Some(Lsn(8)));
    }

    proptest! {
        /// Every set that can commit meets every recruit quorum, for leaders with and without a vote.
        #[test]
        fn commits_and_recruits_always_meet(voters in 1u16..=9, k in 0u8..9, leader in 1u16..=12, mask in 0u16..512) {
            prop_assume!(u16::from(k) < voters);
            let generation = bound(voters, k);
            let acks: Vec<_> = (1..=voters).filter(|n| mask & (1 << (n - 1)) != 0).map(|n| at(n, 8)).collect();
            let committed = rule(vec![generation.clone()], leader).commit(FlushedLsn(Lsn(8)), &acks).is_some();
            let holders = (1..=voters).filter(|n| *n == leader || acks.iter().any(|a| a.0.0 == *n)).count();
            let recruiters_left = usize::from(voters) - holders;
            prop_assert!(!committed || recruiters_left < generation.recruit_quorum());
        }

        #[test]
        fn a_generation_survives_its_bytes(voters in 1u16..=9, k in 0u8..9, first: bool, forced: bool, store: bool, degraded: bool, extra in 0u16..8) {
            prop_assume!(u16::from(k) < voters);
            let standbys = (0..extra).map(|i| Voter { node: NodeId(20 + i), incarnation: Incarnation(7) }).collect();
            let absent = (0..extra / 2).map(|i| NodeId(20 + i)).collect();
            let full_k = if degraded && k < 8 { k + 1 } else { 0 };
            let g = Generation { first, forced, store, full_k, standbys, absent, ..bound(voters, k) };
            let mut bytes = Vec::new();
            g.encode(&mut bytes);
            prop_assert_eq!(Generation::decode(&bytes), Some(g));
            prop_assert_eq!(Generation::decode(&bytes[..bytes.len() - 1]), None);
            bytes.push(0);
            prop_assert_eq!(Generation::decode(&bytes), None);
        }
    }
}
