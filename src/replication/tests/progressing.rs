//! The commit index against brute force, and what may count.

use proptest::prelude::*;

use super::{peer, term};
use crate::base::planted::{Bug, plant};
use crate::base::{AppliedLsn, CommittedLsn, FlushedLsn, Incarnation, Lsn, Mono, NodeId};
use crate::replication::handshake::Peer;
use crate::replication::progress::*;
use crate::replication::wire::Ack;
use crate::role::{CommitRule, Generation, SyncPolicy, Voter};
use std::time::Duration;

const NOW: Mono = Mono(1_000_000);

fn voter(node: u16) -> Voter {
    Voter { node: NodeId(node), incarnation: Incarnation(u128::from(node)) }
}

fn generation(number: u64, nodes: &[u16], k: u8) -> Generation {
    Generation::of(number, nodes.iter().copied(), k)
}

/// Node 1 leads.
fn rule(generations: Vec<Generation>, floor: u64) -> CommitRule {
    CommitRule { leader: NodeId(1), incarnation: Incarnation(1), generations, floor: Lsn(floor) }
}

fn ack(written: u64, flushed: u64, applied: u64) -> Ack {
    Ack {
        written: Lsn(written),
        flushed: FlushedLsn(Lsn(flushed)),
        applied: AppliedLsn(Lsn(applied)),
        matched: Lsn(written),
        committed: CommittedLsn::ZERO,
    }
}

/// A table in which these nodes stream and have flushed that much.
fn table(flushed: &[(u16, u64)]) -> Progress {
    let mut progress = Progress::new(term(5));
    for (node, at) in flushed {
        progress.stream_started(&peer(*node), StreamKind::default(), NOW);
        assert!(progress.on_ack(&peer(*node), term(5), &ack(*at, *at, 0), NOW));
    }
    progress
}

fn commit(progress: &mut Progress, own: u64, rule: &CommitRule) -> Option<u64> {
    progress.commit_index(FlushedLsn(Lsn(own)), rule).map(|committed| committed.lsn().0)
}

/// What the words say: the highest position at or above the floor that the leader has flushed and that, in every
/// generation, so many listed voters besides the leader have flushed.
fn brute_force(own: u64, flushed: &[(u16, u64)], rule: &CommitRule) -> Option<u64> {
    let holds = |at: u64| {
        rule.generations.iter().all(|g| {
            let listed = |node: u16| node != 1 && g.voters.contains(&voter(node));
            let others = flushed.iter().filter(|(node, f)| listed(*node) && *f >= at).count();
            let needed = usize::from(g.k) + usize::from(!g.voters.contains(&voter(1)));
            others >= needed
        })
    };
    (rule.floor.0.max(1)..=own).rev().find(|at| holds(*at))
}

fn any_generation() -> impl Strategy<Value = Generation> {
    (prop::collection::btree_set(1u16..8, 1..6), 0u8..4)
        .prop_map(|(nodes, k)| generation(1, &nodes.into_iter().collect::<Vec<_>>(), k))
}

proptest! {
    #[test]
    fn the_commit_index_is_what_the_words_say(
        own in 0u64..30,
        flushed in prop::collection::btree_map(2u16..9, 0u64..30, 0..7),
        generations in prop::collection::vec(any_generation(), 1..3),
        floor in 0u64..20,
    ) {
        let flushed: Vec<(u16, u64)> = flushed.into_iter().collect();
        let rule = rule(generations, floor);
        let mut progress = table(&flushed);
        prop_assert_eq!(commit(&mut progress, own, &rule), brute_force(own, &flushed, &rule));
        let marks = progress.watermarks(FlushedLsn(Lsn(own)), &rule);
        prop_assert!(marks.on.lsn() <= marks.remote_write && marks.remote_apply.lsn() <= marks.on.lsn());
        prop_assert!(marks.remote_write <= marks.local.lsn().max(marks.on.lsn()));
    }

    /// FIRST waits for more than ANY does, never for less.
    #[test]
    fn first_never_commits_what_any_would_not(
        own in 0u64..30,
        flushed in prop::collection::btree_map(2u16..7, 0u64..30, 0..6),
        gone in prop::collection::vec(2u16..7, 0..3),
        nodes in prop::collection::btree_set(1u16..7, 2..6),
        k in 0u8..4,
    ) {
        let flushed: Vec<(u16, u64)> = flushed.into_iter().collect();
        let any = generation(1, &nodes.into_iter().collect::<Vec<_>>(), k);
        let first = Generation { first: true, ..any.clone() };
        let mut progress = table(&flushed);
        gone.iter().for_each(|node| progress.disconnected(&peer(*node)));
        let by_first = commit(&mut progress, own, &rule(vec![first], 0));
        let by_any = commit(&mut table(&flushed), own, &rule(vec![any], 0));
        prop_assert!(by_first <= by_any);
    }
}

#[test]
fn first_waits_for_the_first_connected_voters() {
    let first = Generation { first: true, ..generation(1, &[1, 3, 2, 4], 1) };
    let rule = rule(vec![first], 0);
    let mut progress = table(&[(2, 90), (3, 40), (4, 80)]);
    assert_eq!(commit(&mut progress, 100, &rule), Some(40), "node 3 is first");
    progress.disconnected(&peer(3));
    assert_eq!(commit(&mut progress, 100, &rule), Some(90), "then node 2");
}

#[test]
fn the_index_never_moves_back() {
    let rule = rule(vec![generation(1, &[1, 2, 3], 1)], 0);
    let mut progress = table(&[(2, 50)]);
    assert_eq!(commit(&mut progress, 60, &rule), Some(50));
    // The standby reconnects and has said nothing yet.
    progress.stream_started(&peer(2), StreamKind::default(), NOW);
    assert_eq!(progress.get(NodeId(2), Incarnation(2)).unwrap().flushed, FlushedLsn::ZERO);
    assert_eq!(commit(&mut progress, 70, &rule), Some(50));
    progress.on_ack(&peer(2), term(5), &ack(65, 65, 0), NOW);
    assert_eq!(commit(&mut progress, 70, &rule), Some(65));
    progress.disconnected(&peer(2));
    assert_eq!(commit(&mut progress, 70, &rule), Some(65), "what was committed stays committed");
    assert!(!progress.on_ack(&peer(2), term(5), &ack(70, 70, 0), NOW), "a link that ended says nothing");
    progress.forget(NodeId(2));
    assert_eq!(progress.peers().count(), 0);
}

#[test]
fn acks_of_another_term_or_of_an_unknown_stream_do_not_count() {
    let rule = rule(vec![generation(1, &[1, 2, 3], 1)], 0);
    let mut progress = table(&[(2, 10)]);
    let old = crate::base::Term { number: 5, id: 1 };
    for session in [term(4), term(6), old] {
        assert!(!progress.on_ack(&peer(2), session, &ack(50, 50, 50), NOW));
    }
    assert!(!progress.on_ack(&peer(3), term(5), &ack(50, 50, 50), NOW), "no stream was started");
    assert_eq!(commit(&mut progress, 60, &rule), Some(10));
    assert_eq!((progress.count_written(Lsn(50)), progress.count_flushed(Lsn(10))), (0, 1));
}

#[test]
fn wiped_strange_and_cascading_nodes_do_not_count() {
    let rule = rule(vec![generation(1, &[1, 2, 3], 1)], 0);
    let mut progress = table(&[(7, 90)]);
    let wiped = Peer { incarnation: Incarnation(99), ..peer(2) };
    progress.stream_started(&wiped, StreamKind::default(), NOW);
    progress.on_ack(&wiped, term(5), &ack(90, 90, 90), NOW);
    progress.stream_started(&peer(3), StreamKind { cascade: true, delayed: false }, NOW);
    progress.on_ack(&peer(3), term(5), &ack(90, 90, 90), NOW);
    assert_eq!(commit(&mut progress, 100, &rule), None);
    assert_eq!(progress.count_flushed(Lsn(90)), 2, "WAIT counts standbys, not voters");
    progress.stream_started(&peer(3), StreamKind::default(), NOW);
    progress.on_ack(&peer(3), term(5), &ack(80, 80, 0), NOW);
    assert_eq!(commit(&mut progress, 100, &rule), Some(80));
}

#[test]
fn nothing_commits_below_the_first_frame_of_the_term() {
    let rule = rule(vec![generation(1, &[1, 2, 3], 1)], 64);
    let mut progress = table(&[(2, 63)]);
    assert_eq!(commit(&mut progress, 100, &rule), None);
    assert_eq!(progress.committed(), CommittedLsn::ZERO);
    progress.on_ack(&peer(2), term(5), &ack(64, 64, 0), NOW);
    assert_eq!(commit(&mut progress, 100, &rule), Some(64), "the old tail comes with it");
}

#[test]
fn only_connected_standbys_count() {
    let rule = rule(vec![generation(1, &[1, 2, 3], 1)], 0);
    let mut progress = table(&[(2, 50)]);
    progress.disconnected(&peer(2));
    assert_eq!(commit(&mut progress, 60, &rule), None);
    progress.stream_started(&peer(2), StreamKind::default(), NOW);
    progress.on_ack(&peer(2), term(5), &ack(50, 50, 0), NOW);
    assert_eq!(commit(&mut progress, 60, &rule), Some(50));
}

#[test]
fn alone_the_own_flush_decides_and_two_generations_must_agree() {
    let mut progress = table(&[]);
    assert_eq!(commit(&mut progress, 30, &rule(vec![generation(1, &[1], 0)], 0)), Some(30));
    let joint = rule(vec![generation(1, &[1], 0), generation(2, &[1, 2], 1)], 0);
    let mut progress = table(&[(2, 20)]);
    assert_eq!(commit(&mut progress, 30, &joint), Some(20));
    // A leader that does not vote is replaced by one more voter.
    let outside = rule(vec![generation(1, &[2, 3, 4], 1)], 0);
    let mut progress = table(&[(2, 20), (3, 15), (4, 9)]);
    assert_eq!(commit(&mut progress, 30, &outside), Some(15));
}

#[test]
fn levels_move_replies_apart_from_the_commit_index() {
    let rule = rule(vec![generation(1, &[1, 2, 3], 1)], 0);
    let mut progress = table(&[]);
    progress.stream_started(&peer(2), StreamKind { delayed: true, cascade: false }, NOW);
    progress.stream_started(&peer(3), StreamKind::default(), NOW);
    progress.on_ack(&peer(2), term(5), &ack(90, 50, 50), NOW);
    progress.on_ack(&peer(3), term(5), &ack(60, 40, 30), NOW);
    commit(&mut progress, 100, &rule);
    let marks = progress.watermarks(FlushedLsn(Lsn(100)), &rule);
    assert_eq!(marks.local, FlushedLsn(Lsn(100)));
    assert_eq!(marks.remote_write, Lsn(90));
    assert_eq!(marks.on, CommittedLsn(Lsn(50)));
    assert_eq!(marks.remote_apply, AppliedLsn(Lsn(30)), "a delayed standby's apply does not count");
    assert_eq!(
        (progress.count_written(Lsn(60)), progress.count_flushed(Lsn(45)), progress.count_applied(Lsn(30))),
        (2, 1, 2)
    );
}

#[test]
fn planted_bugs_break_their_rule() {
    let rule = rule(vec![generation(1, &[1, 2, 3], 1)], 0);
    {
        let _bug = plant(Bug::AckBeforeQuorum);
        assert_eq!(commit(&mut table(&[]), 30, &rule), Some(30));
    }
    {
        let _bug = plant(Bug::IgnoreSessionTerm);
        let mut progress = table(&[(2, 1)]);
        progress.on_ack(&peer(2), term(4), &ack(20, 20, 0), NOW);
        assert_eq!(commit(&mut progress, 30, &rule), Some(20));
    }
    {
        let _bug = plant(Bug::CountWipedOrBuildingNode);
        let mut progress = table(&[]);
        let wiped = Peer { incarnation: Incarnation(99), ..peer(2) };
        progress.stream_started(&wiped, StreamKind::default(), NOW);
        progress.on_ack(&wiped, term(5), &ack(25, 25, 0), NOW);
        assert_eq!(commit(&mut progress, 30, &rule), Some(25));
        let nodes = [NodeId(1), NodeId(2), NodeId(3)];
        let seed = Generation::seed(&nodes, &SyncPolicy::Auto).expect("three nodes have defaults");
        let first = self::rule(vec![seed, generation(1, &[1, 2, 3], 1)], 0);
        assert_eq!(commit(&mut progress, 30, &first), Some(25), "while the first generation is pending");
    }
}

#[test]
fn lag_is_the_age_of_the_oldest_missing_position() {
    let at = |ms: u64| Mono(ms * 1_000_000);
    let mut clock = LagClock::new();
    assert_eq!(clock.age(Lsn::ZERO, at(5)), Duration::ZERO);
    (1..=3u64).for_each(|i| clock.note(Lsn(i * 10), at(i * 100)));
    clock.note(Lsn(30), at(900));
    assert_eq!(clock.age(Lsn(30), at(1000)), Duration::ZERO);
    assert_eq!(clock.age(Lsn(29), at(1000)), Duration::from_millis(700));
    assert_eq!(clock.age(Lsn(10), at(1000)), Duration::from_millis(800));
    clock.forget_below(Lsn(20));
    assert_eq!(clock.age(Lsn(20), at(1000)), Duration::from_millis(700));
}

#[test]
fn a_lag_clock_is_bounded_and_never_understates() {
    let mut clock = LagClock::new();
    (1..=100_000u64).for_each(|i| clock.note(Lsn(i), Mono(i * 1000)));
    let now = Mono(100_001 * 1000);
    for reached in [0u64, 1, 17, 50_000, 99_000, 99_999] {
        let exact = now.since(Mono((reached + 1) * 1000));
        let got = clock.age(Lsn(reached), now);
        assert!(got >= exact, "{reached}: {got:?} < {exact:?}");
        // Coarse for old positions, exact for new ones.
        assert!(got <= exact * 3 + Duration::from_micros(1), "{reached}: {got:?} against {exact:?}");
    }
    assert_eq!(clock.age(Lsn(100_000), now), Duration::ZERO);
    assert!(format!("{clock:?}").matches("0/").count() <= 2048);
}
