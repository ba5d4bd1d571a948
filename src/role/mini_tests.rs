//! Seeded runs of the mini cluster, healthy and with planted bugs.

use super::mini::{Plan, run};
use crate::base::planted::{Bug, plant};

fn plan(seed: u64) -> Plan {
    let nodes = [3, 3, 3, 2, 5, 1, 4][(seed % 7) as usize];
    Plan {
        nodes,
        wipes: seed.is_multiple_of(3),
        lossy: false,
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
    let mut served = 0;
    for seed in range {
        match run(seed, plan(seed)) {
            Ok(world) => served += world.served,
            Err(text) => panic!("ROLE_SEED={seed}: {text}"),
        }
    }
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

/// The seed at which a planted bug shows, and what showed.
fn found(bug: Bug, lossy: bool) -> Option<(u64, String)> {
    let _bug = plant(bug);
    (0..4000).find_map(|seed| {
        let plan = Plan { lossy, ..plan(seed) };
        let outcome = std::panic::catch_unwind(|| run(seed, plan).map(|_| ()));
        match outcome {
            Ok(Ok(())) => None,
            Ok(Err(text)) => Some((seed, text)),
            Err(_) => Some((seed, "an assertion stopped the node".to_owned())),
        }
    })
}

macro_rules! finds {
    ($($name:ident: $bug:ident $(, $lossy:literal)?;)*) => {
        $(#[test]
        fn $name() {
            let lossy = false $(|| $lossy)?;
            let (seed, text) = found(Bug::$bug, lossy).expect("the planted bug was not found");
            eprintln!("{:?}: seed {seed}: {}", Bug::$bug, text.lines().next().unwrap_or_default());
        })*
    };
}

finds! {
    finds_a_resumed_term: ResumeOwnTermAfterRestart;
    finds_a_reported_promise: ReportPromisedTerm;
    finds_terms_ordered_by_number: OrderTermsByNumberOnly;
    finds_acks_after_a_promise: AckAfterPromise;
    finds_a_wiped_voter: CountWipedOrBuildingNode;
    finds_a_single_control_slot: OneSlotControlFallback;
    finds_frames_judged_by_the_promise: JudgeFramesByPromisedTerm;
    finds_an_ignored_session_term: IgnoreSessionTerm;
    finds_reads_without_a_lease: ReadWithoutLease;
    finds_service_before_the_term_starts: ServeBeforeTermStartCommits;
    finds_a_promoted_laggard: PromoteTheLaggard;
    finds_a_cut_below_the_known_commit: TruncateBelowKnownCommit, true;
}
