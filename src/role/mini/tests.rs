//! Seeded runs of the mini cluster, healthy and with planted bugs.

use std::collections::BTreeSet;

use super::{Plan, run};
use crate::base::planted::{Bug, plant};
use crate::role::state::{MOVES, RARE_MOVES, Role, State};

fn plan(seed: u64) -> Plan {
    let nodes = [3, 3, 3, 2, 5, 1, 4][(seed % 7) as usize];
    Plan {
        nodes,
        wipes: seed.is_multiple_of(3),
        lossy: false,
        duels: seed % 4 == 3,
        late: false,
        changes: !seed.is_multiple_of(3) && seed.is_multiple_of(2),
        store: seed.is_multiple_of(4),
        retries: false,
        fault_ms: [400, 1500][(seed / 7 % 2) as usize],
    }
}

fn seeds() -> u64 {
    std::env::var("ROLE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

#[test]
fn nothing_committed_is_lost_and_the_cluster_recovers() {
    let one = std::env::var("ROLE_SEED").ok().and_then(|n| n.parse::<u64>().ok());
    let range = one.map_or(0..seeds(), |seed| seed..seed + 1);
    let (mut served, mut moves) = (0, BTreeSet::new());
    for seed in range {
        match std::panic::catch_unwind(|| run(seed, plan(seed))) {
            Ok(Ok(world)) => {
                served += world.served;
                moves.extend(world.moves);
            }
            Ok(Err(text)) => panic!("ROLE_SEED={seed}: {text}"),
            Err(_) => panic!("ROLE_SEED={seed}: an assertion stopped a node"),
        }
    }
    // Every move that was made is in the table (the machine itself would have stopped), and nothing is in the table
    // that no run makes.
    let seat = |(role, state): (Role, State)| (role.seat(), state);
    let made: BTreeSet<_> = moves.into_iter().map(|(from, to)| (seat(from), seat(to))).collect();
    let never: Vec<_> = MOVES.iter().filter(|step| !made.contains(step)).collect();
    let unlisted: Vec<_> = made.iter().filter(|step| !MOVES.contains(step)).collect();
    let unexpected = unlisted.iter().filter(|step| !RARE_MOVES.contains(step)).count();
    assert_eq!(unexpected, 0, "{unlisted:?}");
    assert!(one.is_some() || seeds() < 300 || never.is_empty(), "never made: {never:?}");
    assert!(one.is_some() || served as u64 > seeds() * 2, "leaders changed {served} times only");
}

#[test]
fn forced_takeovers_never_truncate_below_a_known_commit() {
    for seed in 0..seeds() / 3 {
        let plan = Plan { lossy: true, wipes: false, ..plan(seed) };
        if let Err(text) = run(seed, plan) {
            panic!("seed {seed}: {text}");
        }
    }
}

#[test]
fn duels_of_unequal_speed_lose_nothing() {
    for seed in 0..seeds() / 3 {
        let plan = Plan { duels: true, late: true, nodes: 3, ..plan(seed) };
        if let Err(text) = run(seed, plan) {
            panic!("seed {seed}: {text}");
        }
    }
}

/// How a planted bug has to show itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// An oracle sees a lost write, two truths or a stale read.
    Unsafe,
    /// The same, but only under forced, lossy commands.
    UnsafeWhenForced,
    /// An oracle sees it soonest in a small cluster that loses a disk.
    UnsafeWhenWiped,
    /// An oracle sees it soonest when operators ask two nodes at once.
    UnsafeInDuels,
    /// An oracle sees it soonest in a cluster of four whose policy changes and whose recruits read a store.
    UnsafeWithStore,
    /// The cluster never recovers, or the machine's own assertions stop it first.
    Stuck,
}

fn stuck(text: &str) -> bool {
    text.starts_with("no progress") || text.starts_with("command")
}

fn finds(bug: Bug, shows: Shows) {
    let _bug = plant(bug);
    let found = (0..6000).find_map(|seed| {
        let mut plan = Plan { lossy: shows == Shows::UnsafeWhenForced, ..plan(seed) };
        if shows == Shows::UnsafeWhenWiped {
            (plan.wipes, plan.nodes) = (true, 3);
        }
        if shows == Shows::UnsafeInDuels {
            (plan.duels, plan.late, plan.nodes) = (true, true, 3);
            (plan.wipes, plan.changes, plan.store) = (false, false, false);
        }
        if shows == Shows::UnsafeWithStore {
            (plan.wipes, plan.nodes) = (false, 4);
            (plan.changes, plan.store) = (true, true);
        }
        let outcome = std::panic::catch_unwind(|| run(seed, plan).map(|_| ()));
        match outcome {
            Ok(Ok(())) => None,
            Ok(Err(text)) if shows == Shows::Stuck || !stuck(&text) => Some((seed, text)),
            Err(_) if shows == Shows::Stuck => Some((seed, "an assertion stopped the node".to_owned())),
            Ok(Err(_)) | Err(_) => None,
        }
    });
    let (seed, text) = found.expect("the planted bug was not found");
    println!("{}: seed {seed}: {}", bug.name(), text.lines().next().unwrap_or_default());
}

macro_rules! finds {
    ($($name:ident: $bug:ident, $shows:ident;)*) => {
        $(#[test]
        fn $name() {
            finds(Bug::$bug, Shows::$shows);
        })*
    };
}

finds! {
    finds_a_resumed_term: ResumeOwnTermAfterRestart, Unsafe;
    finds_a_reported_promise: ReportPromisedTerm, Unsafe;
    finds_terms_ordered_by_number: OrderTermsByNumberOnly, UnsafeInDuels;
    finds_acks_after_a_promise: AckAfterPromise, Unsafe;
    finds_a_wiped_voter: CountWipedOrBuildingNode, UnsafeWhenWiped;
    finds_a_single_control_slot: OneSlotControlFallback, Unsafe;
    finds_frames_judged_by_the_promise: JudgeFramesByPromisedTerm, Stuck;
    finds_an_ignored_session_term: IgnoreSessionTerm, Unsafe;
    finds_reads_without_a_lease: ReadWithoutLease, Unsafe;
    finds_service_before_the_term_starts: ServeBeforeTermStartCommits, Unsafe;
    finds_a_promoted_laggard: PromoteTheLaggard, Unsafe;
    finds_a_policy_published_too_early: PublishPolicyInWrongOrder, UnsafeWithStore;
    finds_a_cut_below_the_known_commit: TruncateBelowKnownCommit, UnsafeWhenForced;
}
