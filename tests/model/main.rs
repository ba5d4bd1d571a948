//! A bounded model of the safety rules, searched to its end: three nodes, terms, promises, one change of policy,
//! switchover, restarts and rejoins. It is a model, written from the rules and not from the code of the role room; what
//! the code does is watched by that room's miniature cluster, and searched by its `model`, whose counts are in
//! `machine.txt`.
//!
//! Every interleaving within the bounds is visited once, breadth first, beginning with a cluster that serves. Two facts are checked at each commit: what was
//! ever committed stays the beginning of everything that is committed later, and nobody cuts below what it knows to be
//! committed. Each broken variant must fail. `verdict.txt` beside this file holds the counts of the last search.

use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};

const NODES: usize = 3;
/// Terms that candidates may draw, positions in a log, acknowledgements on their way at once.
const TERMS: u8 = 3;
const LENGTH: usize = 4;
const FLIGHTS: usize = 1;
/// Steps from a serving cluster, for the rules as they are and for the broken ones.
const DEPTH: usize = 11;
const DEPTH_BROKEN: usize = 12;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    ResumesItsTermAfterRestart,
    LeadsWithItsOwnLogWhateverOthersHold,
    RecruitsWithOnePromise,
    AcknowledgesAfterAPromise,
    TakesAnAppendedPolicyForCommitted,
}

/// One record: the term that wrote it, and whether it is the policy record.
type Entry = (u8, bool);

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Node {
    promised: u8,
    log: Vec<Entry>,
    /// What it knows to be committed.
    known: usize,
    leads: Option<u8>,
    /// Handing over: it takes no writes.
    held: bool,
    /// What each node acknowledged in the term it leads.
    acked: [usize; NODES],
    candidate: Option<Candidate>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Candidate {
    term: u8,
    promises: [bool; NODES],
    best: Vec<Entry>,
    known: usize,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct World {
    nodes: [Node; NODES],
    /// Acknowledgements on their way: to, from, term, end.
    flying: Vec<(usize, usize, u8, usize)>,
    drawn: u8,
    committed: Vec<Entry>,
}

/// The first policy asks for one copy besides the leader's, the second one for two: commits become harder and recruits
/// easier, so a recruit that takes it for committed too early misses what the first one allowed.
fn copies(generation: usize) -> usize {
    generation + 1
}

fn policy_at(log: &[Entry]) -> Option<usize> {
    log.iter().position(|(_, policy)| *policy)
}

fn common(a: &[Entry], b: &[Entry]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

impl World {
    /// How many copies besides the leader's a commit needs, in this leader's eyes: both policies until the second one
    /// is committed.
    fn commit_needs(&self, leader: usize, end: usize, broken: Broken) -> usize {
        let node = &self.nodes[leader];
        match policy_at(&node.log) {
            Some(at)
                if at < end || node.known > at || broken == Broken::TakesAnAppendedPolicyForCommitted =>
            {
                copies(1)
            }
            _ => copies(0),
        }
    }

    /// How many promises a recruit needs.
    fn recruit_needs(candidate: &Candidate, broken: Broken) -> usize {
        if broken == Broken::RecruitsWithOnePromise {
            return 1;
        }
        let second = policy_at(&candidate.best)
            .is_some_and(|at| candidate.known > at || broken == Broken::TakesAnAppendedPolicyForCommitted);
        NODES - copies(usize::from(second))
    }

    fn steps(&self, broken: Broken, out: &mut Vec<Result<World, String>>) {
        for n in 0..NODES {
            self.candidacy(n, broken, out);
            self.restart(n, broken, out);
            if self.nodes[n].leads.is_some() {
                self.leader(n, broken, out);
            }
        }
        for i in 0..self.flying.len() {
            let mut next = self.clone();
            let (to, from, term, end) = next.flying.remove(i);
            let leader = &mut next.nodes[to];
            if leader.leads == Some(term) {
                leader.acked[from] = leader.acked[from].max(end);
            }
            out.push(Ok(next));
        }
    }

    fn candidacy(&self, n: usize, broken: Broken, out: &mut Vec<Result<World, String>>) {
        let node = &self.nodes[n];
        if self.drawn < TERMS && node.leads.is_none() && node.candidate.is_none() {
            let mut next = self.clone();
            next.stand(n);
            out.push(Ok(next));
        }
        let Some(candidate) = &node.candidate else { return };
        for v in (0..NODES).filter(|v| !candidate.promises[*v] && self.nodes[*v].promised < candidate.term) {
            let mut next = self.clone();
            let voter = &mut next.nodes[v];
            voter.promised = candidate.term;
            voter.candidate = None;
            let (log, known) = (voter.log.clone(), voter.known);
            let mine = next.nodes[n].candidate.as_mut().expect("it stands");
            mine.promises[v] = true;
            mine.known = mine.known.max(known);
            let rank = |log: &[Entry]| (log.last().map_or(0, |(term, _)| *term), log.len());
            if rank(&log) > rank(&mine.best) && broken != Broken::LeadsWithItsOwnLogWhateverOthersHold {
                mine.best = log;
            }
            out.push(Ok(next));
        }
        let promises = candidate.promises.iter().filter(|promised| **promised).count();
        let fresh = node.promised == candidate.term && candidate.best.len() < LENGTH;
        if promises >= World::recruit_needs(candidate, broken) && fresh {
            let mut next = self.clone();
            let node = &mut next.nodes[n];
            let Candidate { term, best, known, .. } = node.candidate.take().expect("it stands");
            node.log = best;
            node.known = known.min(node.log.len());
            node.log.push((term, false));
            (node.leads, node.held, node.acked) = (Some(term), false, [0; NODES]);
            out.push(Ok(next));
        }
    }

    fn stand(&mut self, n: usize) {
        self.drawn += 1;
        let (term, node) = (self.drawn, &mut self.nodes[n]);
        node.promised = term;
        let mut promises = [false; NODES];
        promises[n] = true;
        node.candidate = Some(Candidate { term, promises, best: node.log.clone(), known: node.known });
    }

    fn restart(&self, n: usize, broken: Broken, out: &mut Vec<Result<World, String>>) {
        let node = &self.nodes[n];
        if node.leads.is_none() && node.candidate.is_none() {
            return;
        }
        let mut next = self.clone();
        let restarted = &mut next.nodes[n];
        restarted.candidate = None;
        restarted.held = false;
        if broken == Broken::ResumesItsTermAfterRestart && node.leads.is_some() {
            // What was not flushed is gone, although it had been sent.
            if restarted.log.len() > restarted.known + 1 {
                restarted.log.pop();
            }
            restarted.acked = node.acked;
        } else {
            restarted.leads = None;
            restarted.acked = [0; NODES];
        }
        out.push(Ok(next));
    }

    fn leader(&self, n: usize, broken: Broken, out: &mut Vec<Result<World, String>>) {
        let node = &self.nodes[n];
        let term = node.leads.expect("it leads");
        // A leader that promised a higher term counts nothing of its own any more.
        if node.promised != term {
            let mut next = self.clone();
            (next.nodes[n].leads, next.nodes[n].held) = (None, false);
            return out.push(Ok(next));
        }
        let serves = node.log.get(..node.known).is_some_and(|log| log.iter().any(|(t, _)| *t == term));
        if serves && !node.held && node.log.len() < LENGTH {
            let kinds: &[bool] = if policy_at(&node.log).is_none() { &[false, true] } else { &[false] };
            for policy in kinds {
                let mut next = self.clone();
                next.nodes[n].log.push((term, *policy));
                out.push(Ok(next));
            }
        }
        for f in (0..NODES).filter(|f| *f != n) {
            self.stream(n, f, term, broken, out);
            // A switchover: everything is committed and on the target, no write begins, the target stands.
            let follower = &self.nodes[f];
            let drained = node.known == node.log.len() && follower.log == node.log;
            if serves && drained && !node.held && follower.promised == term && self.drawn < TERMS {
                let mut next = self.clone();
                next.nodes[n].held = true;
                next.stand(f);
                out.push(Ok(next));
            }
        }
        if node.held {
            let mut next = self.clone();
            next.nodes[n].held = false;
            out.push(Ok(next));
        }
        self.commit(n, term, broken, out);
    }

    /// One record, or the cut that makes room for it, and the acknowledgement that follows.
    fn stream(&self, n: usize, f: usize, term: u8, broken: Broken, out: &mut Vec<Result<World, String>>) {
        let (leader, follower) = (&self.nodes[n], &self.nodes[f]);
        let deaf = broken == Broken::AcknowledgesAfterAPromise && follower.leads.is_none();
        if follower.promised > term && !deaf {
            return;
        }
        let same = common(&leader.log, &follower.log);
        let mut next = self.clone();
        let node = &mut next.nodes[f];
        if follower.promised <= term {
            (node.promised, node.leads, node.candidate, node.held) = (term, None, None, false);
        }
        if same < follower.log.len() {
            if same < follower.known {
                out.push(Err(format!("node {f} would cut to {same} below its known commit")));
                return;
            }
            node.log.truncate(same);
        } else if same < leader.log.len() {
            node.log.push(leader.log[same]);
        }
        node.known = node.known.max(leader.known.min(node.log.len()));
        let end = common(&leader.log, &node.log);
        let silent = next.clone();
        if next.flying.len() < FLIGHTS {
            next.flying.push((n, f, term, end));
            out.push(Ok(next));
        }
        if silent != *self {
            out.push(Ok(silent));
        }
    }

    fn commit(&self, n: usize, term: u8, broken: Broken, out: &mut Vec<Result<World, String>>) {
        let node = &self.nodes[n];
        for end in node.known + 1..=node.log.len() {
            let own = node.log[..end].iter().any(|(t, _)| *t == term);
            let copies = (0..NODES).filter(|f| *f != n && node.acked[*f] >= end).count();
            let needed = self.commit_needs(n, end, broken);
            if copies < needed || !own {
                continue;
            }
            let mut next = self.clone();
            next.nodes[n].known = end;
            let log = &node.log[..end];
            if common(log, &self.committed) < log.len().min(self.committed.len()) {
                out.push(Err(format!("{log:?} is committed where {:?} was", self.committed)));
                continue;
            }
            if log.len() > self.committed.len() {
                next.committed = log.to_vec();
            }
            out.push(Ok(next));
        }
    }
}

/// Two states with one fingerprint would be taken for one: with a few million states and 64 bits, hardly ever.
fn fingerprint(world: &World) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Node 0 leads term 1, and its first record is committed and known to be committed everywhere.
fn serving() -> World {
    let first: Entry = (1, false);
    let node = Node { promised: 1, log: vec![first], known: 1, ..Node::default() };
    let mut world = World { drawn: 1, committed: vec![first], ..World::default() };
    world.nodes = [node.clone(), node.clone(), node];
    world.nodes[0].leads = Some(1);
    world.nodes[0].acked = [0, 1, 1];
    world
}

/// Visits everything within the bounds. The number of states, or what was broken first and at which depth.
fn search(broken: Broken) -> Result<usize, (usize, String)> {
    let start = serving();
    let deepest = if broken == Broken::Nothing { DEPTH } else { DEPTH_BROKEN };
    let mut seen = HashSet::from([fingerprint(&start)]);
    let mut queue = VecDeque::from([(start, 0)]);
    let mut steps = Vec::new();
    while let Some((world, depth)) = queue.pop_front() {
        if depth == deepest {
            continue;
        }
        world.steps(broken, &mut steps);
        for step in steps.drain(..) {
            let next = step.map_err(|why| (depth + 1, why))?;
            if seen.insert(fingerprint(&next)) {
                queue.push_back((next, depth + 1));
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn the_rules_hold_in_every_reachable_state() {
    let states = search(Broken::Nothing).unwrap_or_else(|(depth, why)| panic!("at depth {depth}: {why}"));
    println!("every state within the bounds: {states}");
    assert!(states > 10_000, "the model must not be empty: {states}");
}

#[test]
fn every_broken_rule_is_found() {
    for broken in [
        Broken::ResumesItsTermAfterRestart,
        Broken::LeadsWithItsOwnLogWhateverOthersHold,
        Broken::RecruitsWithOnePromise,
        Broken::AcknowledgesAfterAPromise,
        Broken::TakesAnAppendedPolicyForCommitted,
    ] {
        match search(broken) {
            Ok(states) => panic!("{broken:?} passed in all {states} states"),
            Err((depth, why)) => println!("{broken:?}: at depth {depth}: {why}"),
        }
    }
}
