//! Tallies of a recruit: which generations bind, who counts, whose log is best. Pure functions.

use std::collections::BTreeMap;

use super::input::{Evidence, LogView, Refusal};
use super::message::Report;
use super::policy::{Generation, PendingGeneration};
use crate::base::planted::{Bug, planted};
use crate::base::{NodeId, Term};

/// How far a recruit is under one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    pub generation: u64,
    /// Counting voters that answered.
    pub have: usize,
    /// Enough to meet everything that could have been committed.
    pub recruit: usize,
    /// Enough to commit the term-start frame as well. A term that could not commit would only disturb.
    pub need: usize,
    /// Listed voters that answered, whole or not: a damaged log is repaired by the new leader's stream and then
    /// acknowledges like any other.
    pub copies: usize,
    pub missing: Vec<NodeId>,
}

impl Tally {
    pub fn enough(&self) -> bool {
        self.lossless() && self.copies >= self.need
    }
    /// Nothing that was acknowledged can be missed.
    pub fn lossless(&self) -> bool {
        self.have >= self.recruit
    }
}

/// The generations that a recruit must satisfy, out of everything anybody told: the newest one known to be committed,
/// and every one above it that may be in force. Older ones are superseded.
pub fn binding<'a>(
    known: impl Iterator<Item = (&'a Generation, &'a [PendingGeneration])>,
) -> Vec<Generation> {
    let known: Vec<_> = known.collect();
    let newest = known.iter().map(|(policy, _)| policy.number).max().unwrap_or(0);
    let committed = known.iter().map(|(policy, _)| *policy).filter(|policy| policy.number == newest);
    let pending = known.iter().flat_map(|(_, pending)| pending.iter().map(|p| &p.generation));
    let mut binding: Vec<Generation> = Vec::new();
    for generation in committed.chain(pending.filter(|generation| generation.number > newest)) {
        if !binding.contains(generation) {
            binding.push(generation.clone());
        }
    }
    binding
}

/// A report counts as a vote only from a listed incarnation with a whole log.
pub fn counts(generation: &Generation, node: NodeId, report: &Report) -> bool {
    if planted(Bug::CountWipedOrBuildingNode) {
        return generation.voters.iter().any(|voter| voter.node == node);
    }
    report.whole && generation.lists(node, report.incarnation)
}

/// Counts `reports` under `generation`.
pub fn tally(generation: &Generation, reports: &BTreeMap<NodeId, Report>) -> Tally {
    let (mut have, mut copies, mut missing) = (0, 0, Vec::new());
    for voter in &generation.voters {
        let listed = |report: &Report| {
            counts(generation, voter.node, report) || generation.lists(voter.node, report.incarnation)
        };
        copies += usize::from(reports.get(&voter.node).is_some_and(listed));
        match reports.get(&voter.node) {
            Some(report) if counts(generation, voter.node, report) => have += 1,
            _ => missing.push(voter.node),
        }
    }
    let recruit = generation.recruit_quorum();
    let commit = if generation.is_seed() { 1 } else { usize::from(generation.k) + 1 };
    Tally { generation: generation.number, have, recruit, need: recruit.max(commit), copies, missing }
}

/// Whose log to lead with: the highest (last frame term, end), `me` among equals. `None` when nobody's log is whole.
pub fn best(reports: &BTreeMap<NodeId, Report>, me: NodeId) -> Option<NodeId> {
    let blind = planted(Bug::CountWipedOrBuildingNode);
    reports
        .iter()
        .filter(|(_, report)| report.whole || blind)
        .max_by_key(|(node, report)| (report.last_term, report.end, **node == me))
        .map(|(node, _)| *node)
}

/// Why a tally is short, for an operator.
pub fn no_quorum(short: &Tally) -> Refusal {
    Refusal::NoQuorum {
        generation: short.generation,
        have: short.have,
        need: short.need,
        missing: short.missing.clone(),
    }
}

/// The newest term that a node knows to be started.
pub fn newest_term(report: &Report) -> Term {
    report.history.last().map_or(report.last_term, |(term, _)| term.max(report.last_term))
}

pub fn nodes<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> String {
    nodes.map(NodeId::to_string).collect::<Vec<_>>().join(",")
}

/// What was found, for the operator: who answered, whose log is best, how many votes.
pub fn evidence_of(
    what: &'static str,
    log: &LogView,
    reports: &BTreeMap<NodeId, Report>,
    tallies: &[Tally],
) -> Evidence {
    let logs: Vec<String> =
        reports.iter().map(|(node, report)| format!("{node}:{}@{}", report.end, report.last_term)).collect();
    let votes: Vec<String> = tallies
        .iter()
        .map(|tally| format!("generation {}: {} answer, {} needed", tally.generation, tally.have, tally.need))
        .collect();
    Evidence::new(what)
        .with("logs", logs.join(" "))
        .with("votes", votes.join(", "))
        .with("own end", log.end)
        .with("known commit", log.committed)
}

/// May a lone survivor lead: can nothing be lost, or is that accepted?
pub fn judge_alone(
    force: bool,
    reports: &BTreeMap<NodeId, Report>,
    log: &LogView,
    tallies: &[Tally],
) -> Result<(), Refusal> {
    if force {
        return Ok(());
    }
    if tallies.iter().all(Tally::enough) {
        return Err(Refusal::AloneNotNeeded {
            have: tallies.iter().map(|tally| tally.have).min().unwrap_or(0),
        });
    }
    if !tallies.iter().all(Tally::lossless) {
        let evidence = evidence_of("alone", log, reports, tallies)
            .with("at risk", format!("every write acknowledged above {}", log.committed));
        return Err(Refusal::LossPossible { evidence });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::planted::plant;
    use crate::base::{CommittedLsn, Incarnation, Lsn, Term};
    use crate::role::history::History;

    fn generation(number: u64, voters: &[u16], k: u8) -> Generation {
        Generation::of(number, voters.iter().copied(), k)
    }

    fn report(node: u16, last_term: u64, end: u64) -> (NodeId, Report) {
        let report = Report {
            incarnation: Incarnation(u128::from(node)),
            last_term: Term { number: last_term, id: 1 },
            end: Lsn(end),
            committed: CommittedLsn::ZERO,
            whole: true,
            history: History::new(),
            policy: generation(1, &[1, 2, 3], 1),
            pending: vec![],
        };
        (NodeId(node), report)
    }

    #[test]
    fn old_generations_are_superseded_and_pending_ones_bind() {
        let (one, two, three) =
            (generation(1, &[1, 2, 3], 1), generation(2, &[1, 2, 4], 1), generation(3, &[1, 4], 1));
        let rival = generation(3, &[1, 2], 1);
        let pending =
            |g: &Generation| PendingGeneration { generation: g.clone(), start: Lsn(0), end: Lsn(1) };
        let (p2, p3, pr) = ([pending(&two)], [pending(&three)], [pending(&rival)]);
        let known = [(&one, &p2[..]), (&one, &[])];
        assert_eq!(binding(known.into_iter()), [one.clone(), two.clone()]);
        let known = [(&one, &p2[..]), (&two, &p3[..]), (&two, &pr[..])];
        assert_eq!(binding(known.into_iter()), [two.clone(), three.clone(), rival]);
        let both = [pending(&two), pending(&three)];
        assert_eq!(binding([(&one, &both[..])].into_iter()), [one, two, three], "all of them bind");
    }

    #[test]
    fn only_listed_whole_incarnations_count() {
        let g = generation(1, &[1, 2, 3], 1);
        let mut reports: BTreeMap<_, _> = [report(1, 1, 5), report(2, 1, 5), report(4, 1, 5)].into();
        assert!(tally(&g, &reports).enough());
        reports.get_mut(&NodeId(2)).unwrap().incarnation = Incarnation(99);
        let short = tally(&g, &reports);
        assert!(!short.enough() && short.missing == [NodeId(2), NodeId(3)]);
        let (_, mut building) = report(3, 1, 5);
        building.whole = false;
        reports.insert(NodeId(3), building);
        assert!(!tally(&g, &reports).enough());
        let _bug = plant(Bug::CountWipedOrBuildingNode);
        assert!(tally(&g, &reports).enough());
    }

    #[test]
    fn a_pair_needs_both_to_serve_but_one_to_lose_nothing() {
        let g = generation(1, &[1, 2], 1);
        let reports = [report(2, 1, 5)].into();
        let tally = tally(&g, &reports);
        assert!(tally.lossless() && !tally.enough());
        let (_, mut damaged) = report(1, 1, 3);
        damaged.whole = false;
        let reports = [report(2, 1, 5), (NodeId(1), damaged)].into();
        assert!(super::tally(&g, &reports).enough(), "the damaged half is repaired by the whole one");
        let only_damaged = reports.into_iter().filter(|(node, _)| *node == NodeId(1)).collect();
        assert!(!super::tally(&g, &only_damaged).lossless());
    }

    #[test]
    fn the_last_frame_term_goes_before_length() {
        let reports = [report(1, 2, 50), report(2, 3, 10), report(3, 3, 10)].into();
        assert_eq!(best(&reports, NodeId(2)), Some(NodeId(2)));
        assert_eq!(best(&reports, NodeId(3)), Some(NodeId(3)));
        assert_ne!(best(&reports, NodeId(1)), Some(NodeId(1)));
    }
}
