//! From whom a standby streams: the leader, or, for a cascaded standby, the best upstream that will have it.
//!
//! The configured upstream comes first. When it is away or refuses for longer than a short patience, other direct
//! standbys are asked, then the leader, then other cascaded standbys; every node begins elsewhere in that list and waits
//! a little longer or shorter, so that the children of a node that died do not arrive together at the next one. A child
//! goes back to the configured upstream once that has been reachable for a while; each way back that fails, or does not
//! last, doubles the wait for the next.
//!
//! Nothing here is a matter of safety: whoever streams is checked by session term, history and path.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::base::{Mono, NodeId, Prng};

/// How long a configured upstream that can be reached may refuse before another is asked, and one that cannot.
const PATIENCE_LINKED: Duration = Duration::from_millis(1000);
const PATIENCE_AWAY: Duration = Duration::from_millis(200);
/// Chance adds up to this to either.
const SPREAD_MS: u64 = 400;
/// When nobody would have this node, it begins again after this.
const ROUND_PAUSE: Duration = Duration::from_millis(700);
/// An upstream that passes nothing on from the leader for this long is left.
const SILENCE_MAX: Duration = Duration::from_millis(2500);
/// An upstream whose own log has been behind the leader's for this long is left.
const BEHIND_MAX: Duration = Duration::from_secs(10);
/// The first wait before a child goes back to its configured upstream, and the longest.
const RETURN_MIN: Duration = Duration::from_secs(5);
const RETURN_MAX: Duration = Duration::from_secs(300);
/// A stream from the configured upstream that lasted this long is a good one.
const LASTED: Duration = Duration::from_secs(60);

/// What the node knows of a member that might stream to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    /// A link to it stands.
    pub linked: bool,
    /// The configuration gives it no upstream.
    pub direct: bool,
}

/// Why a running stream is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing of the leader comes through any more.
    Silent,
    /// Its log stays behind the leader's.
    Behind,
    /// The configured upstream is reachable again.
    Return,
    /// This node has become a voter, or lost its upstream in the configuration: it streams from the leader alone.
    LeaderOnly,
}

/// What a child sees of its upstream.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    /// When something of the leader came through last.
    pub heard: Mono,
    /// For how long the upstream's log has been behind the leader's.
    pub behind: Duration,
}

/// The choice of one node's upstream. `configured` is given with every question, because a cascaded standby that votes
/// streams from the leader: `None` means "the leader, always".
#[derive(Debug)]
pub struct Parent {
    rng: Prng,
    /// Where this node begins in the list of others.
    offset: usize,
    /// Who streams to this node, since when.
    current: Option<(NodeId, Mono)>,
    /// Refused in this search.
    tried: BTreeSet<NodeId>,
    /// Until then nobody but the configured upstream is asked. `None` until a search has begun.
    patient_until: Option<Mono>,
    paused_until: Mono,
    /// Who streamed last instead of the configured upstream.
    last: Option<NodeId>,
    return_wait: Duration,
    return_at: Mono,
    silence_max: Duration,
}

impl Parent {
    pub fn new(seed: u64) -> Parent {
        let mut rng = Prng::new(seed);
        let offset = rng.below(64) as usize;
        let silence_max = SILENCE_MAX + Duration::from_millis(rng.below(SPREAD_MS));
        Parent {
            rng,
            offset,
            current: None,
            tried: BTreeSet::new(),
            patient_until: None,
            paused_until: Mono(0),
            last: None,
            return_wait: RETURN_MIN,
            return_at: Mono(0),
            silence_max,
        }
    }

    /// Another leader or term: everybody finds its place anew, the configured upstream first.
    pub fn begin_anew(&mut self) {
        self.current = None;
        self.tried.clear();
        self.patient_until = None;
        self.paused_until = Mono(0);
    }

    /// Whom to ask now, if anybody: somebody with a link.
    pub fn choose(
        &mut self,
        now: Mono,
        leader: NodeId,
        configured: Option<NodeId>,
        members: &[Candidate],
    ) -> Option<NodeId> {
        let linked = |node: NodeId| members.iter().any(|other| other.node == node && other.linked);
        let Some(configured) = configured else { return Some(leader).filter(|node| linked(*node)) };
        let patience = if linked(configured) { PATIENCE_LINKED } else { PATIENCE_AWAY };
        let spread = Duration::from_millis(self.rng.below(SPREAD_MS));
        let patient_until = *self.patient_until.get_or_insert(now + patience + spread);
        if now < patient_until {
            return Some(configured).filter(|node| linked(*node));
        }
        if now < self.paused_until {
            return None;
        }
        let order = self.order(leader, configured, members);
        let next = order.iter().copied().find(|node| linked(*node) && !self.tried.contains(node));
        if next.is_none() {
            self.tried.clear();
            self.paused_until = now + ROUND_PAUSE + spread;
        }
        next
    }

    /// Everybody who may be asked, the best first.
    fn order(&self, leader: NodeId, configured: NodeId, members: &[Candidate]) -> Vec<NodeId> {
        let others = |direct: bool| {
            let mut nodes: Vec<NodeId> = members
                .iter()
                .filter(|other| other.direct == direct && other.node != leader && other.node != configured)
                .map(|other| other.node)
                .collect();
            if !nodes.is_empty() {
                let turn = self.offset % nodes.len();
                nodes.rotate_left(turn);
            }
            nodes
        };
        let mut order = vec![configured];
        order.extend(self.last);
        order.extend(others(true));
        order.push(leader);
        order.extend(others(false));
        order
    }

    /// `node` would not stream, or did not answer.
    pub fn refused(&mut self, now: Mono, node: NodeId) {
        // The refusal of the configured upstream counts when the patience with it is over.
        if self.patient_until.is_none_or(|until| now >= until) {
            self.tried.insert(node);
        }
    }

    /// `node` streams.
    pub fn started(&mut self, now: Mono, node: NodeId, configured: Option<NodeId>) {
        self.current = Some((node, now));
        self.tried.clear();
        self.patient_until = None;
        if configured.is_some_and(|wanted| wanted != node) {
            self.last = Some(node);
            self.return_at = now + self.return_wait + Duration::from_millis(self.rng.below(SPREAD_MS) * 4);
            self.return_wait = (self.return_wait * 2).min(RETURN_MAX);
        }
    }

    /// No stream runs: the link ended, or this node left. Said as often as one likes.
    pub fn lost(&mut self, now: Mono) {
        if let Some((_, since)) = self.current.take()
            && now.since(since) >= LASTED
        {
            self.return_wait = RETURN_MIN;
        }
    }

    /// Should the running stream be left? The node ends it then, and asks anew.
    pub fn leave(
        &mut self,
        now: Mono,
        leader: NodeId,
        configured: Option<NodeId>,
        members: &[Candidate],
        signs: &Signs,
    ) -> Option<Leave> {
        let (current, since) = self.current?;
        let why = match configured {
            None if current != leader => Leave::LeaderOnly,
            None => return None,
            Some(_) if now.since(signs.heard.max(since)) > self.silence_max => Leave::Silent,
            Some(_) if current != leader && signs.behind > BEHIND_MAX => Leave::Behind,
            Some(wanted) if wanted != current && now >= self.return_at => {
                if !members.iter().any(|other| other.node == wanted && other.linked) {
                    // It has to be reachable for a while first.
                    self.return_at = now + RETURN_MIN;
                    return None;
                }
                Leave::Return
            }
            Some(_) => return None,
        };
        self.lost(now);
        // No patience: whoever was left is not asked again at once, and a return is tried once.
        self.patient_until = Some(now);
        if matches!(why, Leave::Silent | Leave::Behind) {
            self.tried.insert(current);
        }
        Some(why)
    }

    /// The upstream turned out to stream from this node.
    pub fn looped(&mut self, now: Mono, node: NodeId) {
        self.lost(now);
        self.patient_until = Some(now);
        self.tried.insert(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: NodeId = NodeId(1);
    const WANTED: NodeId = NodeId(2);

    fn at(ms: u64) -> Mono {
        Mono(ms * 1_000_000)
    }

    /// Nodes 1 to 3 stream directly, 4 and 5 are cascaded; the asker is node 9.
    fn members(away: &[u16]) -> Vec<Candidate> {
        let one = |id| Candidate { node: NodeId(id), linked: !away.contains(&id), direct: id < 4 };
        (1..=5).map(one).collect()
    }

    /// The nodes asked from `from` on when everybody refuses, each once, with their time in ms.
    fn asked(parent: &mut Parent, from: u64, members: &[Candidate], count: usize) -> Vec<(u16, u64)> {
        let mut out: Vec<(u16, u64)> = Vec::new();
        for ms in (from..from + 20_000).step_by(50) {
            if let Some(node) = parent.choose(at(ms), LEADER, Some(WANTED), members) {
                parent.refused(at(ms), node);
                if out.last().is_none_or(|(last, _)| *last != node.0) {
                    out.push((node.0, ms));
                }
            }
            if out.len() == count {
                break;
            }
        }
        out
    }

    #[test]
    fn the_configured_upstream_is_asked_first_and_others_after_some_patience() {
        let mut parent = Parent::new(7);
        let order = asked(&mut parent, 0, &members(&[]), 5);
        let nodes: Vec<u16> = order.iter().map(|(node, _)| *node).collect();
        assert_eq!(nodes[..3], [2, 3, 1], "configured, another direct standby, the leader");
        assert!(nodes[3..] == [4, 5] || nodes[3..] == [5, 4], "cascades last: {nodes:?}");
        assert!(order[1].1 >= 1000, "patience with an upstream that is there: {order:?}");

        let away = asked(&mut Parent::new(7), 0, &members(&[2]), 1);
        assert_eq!(away[0].0, 3);
        assert!((200..=650).contains(&away[0].1), "less with one that is gone: {away:?}");
    }

    #[test]
    fn children_of_a_dead_node_spread() {
        let many: Vec<Candidate> =
            (1..=9).map(|id| Candidate { node: NodeId(id), linked: id != 2, direct: true }).collect();
        let first: BTreeSet<(u16, u64)> =
            (0..16).map(|seed| asked(&mut Parent::new(seed), 0, &many, 1)[0]).collect();
        let nodes: BTreeSet<u16> = first.iter().map(|(node, _)| *node).collect();
        let times: BTreeSet<u64> = first.iter().map(|(_, ms)| *ms).collect();
        assert!(nodes.len() >= 4 && times.len() >= 4, "{first:?}");
    }

    #[test]
    fn a_voter_streams_from_the_leader_alone() {
        let mut parent = Parent::new(1);
        assert_eq!(parent.choose(at(0), LEADER, None, &members(&[])), Some(LEADER));
        assert_eq!(parent.choose(at(9000), LEADER, None, &members(&[1])), None);
        parent.started(at(0), NodeId(3), Some(WANTED));
        let signs = Signs { heard: at(100), behind: Duration::ZERO };
        assert_eq!(parent.leave(at(100), LEADER, None, &members(&[]), &signs), Some(Leave::LeaderOnly));
    }

    #[test]
    fn silence_and_lag_end_a_stream_and_the_upstream_is_not_asked_again_at_once() {
        for (ms, heard, behind, why) in [
            (5_000, 1_000, Duration::ZERO, Leave::Silent),
            (5_000, 4_900, Duration::from_secs(11), Leave::Behind),
        ] {
            let mut parent = Parent::new(3);
            parent.started(at(0), WANTED, Some(WANTED));
            let fine = Signs { heard: at(4_900), behind: Duration::from_secs(3) };
            assert_eq!(parent.leave(at(5_000), LEADER, Some(WANTED), &members(&[]), &fine), None);
            let signs = Signs { heard: at(heard), behind };
            assert_eq!(parent.leave(at(ms), LEADER, Some(WANTED), &members(&[]), &signs), Some(why));
            assert_eq!(parent.choose(at(ms), LEADER, Some(WANTED), &members(&[])), Some(NodeId(3)));
        }
    }

    #[test]
    fn the_way_back_waits_longer_each_time_that_it_does_not_last() {
        let mut parent = Parent::new(3);
        let (mut now, mut waits) = (0, Vec::new());
        for _ in 0..4 {
            parent.started(at(now), NodeId(3), Some(WANTED));
            let begun = now;
            loop {
                now += 50;
                let signs = Signs { heard: at(now), behind: Duration::ZERO };
                match parent.leave(at(now), LEADER, Some(WANTED), &members(&[]), &signs) {
                    None => {}
                    Some(why) => break assert_eq!(why, Leave::Return),
                }
            }
            waits.push(now - begun);
            assert_eq!(
                parent.choose(at(now), LEADER, Some(WANTED), &members(&[])),
                Some(WANTED),
                "tried once"
            );
            parent.refused(at(now), WANTED);
            let back = parent.choose(at(now), LEADER, Some(WANTED), &members(&[]));
            assert_eq!(back, Some(NodeId(3)), "then back to where it was");
        }
        assert!(waits.windows(2).all(|pair| pair[1] > pair[0] + 2_000), "{waits:?}");
        // Not while the configured upstream is away.
        parent.started(at(now), NodeId(3), Some(WANTED));
        let later = now + 600_000;
        let signs = Signs { heard: at(later), behind: Duration::ZERO };
        assert_eq!(parent.leave(at(later), LEADER, Some(WANTED), &members(&[2]), &signs), None);
        assert_eq!(parent.leave(at(later), LEADER, Some(WANTED), &members(&[]), &signs), None, "nor at once");
    }
}
