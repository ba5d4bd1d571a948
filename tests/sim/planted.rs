//! Every safety rule is broken on purpose, and the simulator must notice (`protocol` section 9).

use baton::base::planted::Bug;

use super::run::Weather;
use super::seeds::run_with;
use super::watch;

/// Seeds tried per bug.
const SEEDS_MAX: u64 = 40;

/// Where each bug shows itself soonest.
fn weather(bug: Bug) -> Weather {
    match bug {
        Bug::AckBeforeFlush | Bug::TreatHoleAsEndOfLog | Bug::AppendOverStaleFrames => Weather::PowerCuts,
        Bug::ResumeOwnTermAfterRestart | Bug::OneSlotControlFallback => Weather::PowerCuts,
        Bug::OrderTermsByNumberOnly => Weather::Duels,
        Bug::CountWipedOrBuildingNode => Weather::Wipes,
        _ => Weather::CutPrimary,
    }
}

/// Finds one bug; says with which seed and by what.
pub fn find(bug: Bug, base: u64) -> Option<(u64, String)> {
    watch::begin();
    let seeds = super::number_from("BATON_SIM_BUG_SEEDS").unwrap_or(SEEDS_MAX);
    (base..base + seeds).find_map(|seed| match run_with(seed, weather(bug), Some(bug)) {
        Ok(_) => None,
        // Slow recovery proves nothing about safety.
        Err(failure) if failure.why.starts_with("no normal service") => None,
        Err(failure) => Some((seed - base + 1, failure.why)),
    })
}

/// Bugs that this simulator finds within [`SEEDS_MAX`] seeds.
const FOUND_HERE: [Bug; 7] = [
    Bug::AckBeforeFlush,
    Bug::AckBeforeQuorum,
    Bug::ResumeOwnTermAfterRestart,
    Bug::CountWipedOrBuildingNode,
    Bug::ReadWithoutLease,
    Bug::ApplyPastCommit,
    Bug::SpeculativeValueSurvivesDemotion,
];

/// Bugs that this weather does not bring to light in the whole cluster, and what it probably takes to see them: guesses
/// to start from, not findings. None of them counts as found.
const NOT_FOUND_HERE: [(Bug, &str); 13] = [
    (Bug::IgnoreSessionTerm, "it needs a deposed leader whose session reaches a voter that promised"),
    (Bug::JudgeFramesByPromisedTerm, "it may show as slow recovery only, which is not counted"),
    (Bug::ReportPromisedTerm, "it needs an aborted attempt on a short log, then a race of two candidates"),
    (Bug::OrderTermsByNumberOnly, "it needs two candidates that draw one number and both win"),
    (Bug::AckAfterPromise, "it needs an acknowledgement in flight at the moment of a promise"),
    (Bug::OneSlotControlFallback, "it needs a control copy damaged between two writes"),
    (
        Bug::PublishPolicyInWrongOrder,
        "no control store is attached to the policy; the role room's own cluster finds it",
    ),
    (
        Bug::ServeBeforeTermStartCommits,
        "it needs a winner that dies between its first answer and its first commit",
    ),
    (Bug::TruncateBelowKnownCommit, "it needs a forced takeover without a quorum"),
    (Bug::TreatHoleAsEndOfLog, "it needs a hole below an acknowledged frame"),
    (Bug::AppendOverStaleFrames, "it needs two crashes around one torn tail"),
    (Bug::PromoteTheLaggard, "it needs a candidate behind its only voter"),
    (Bug::ExpiryByLocalClock, "the clients set no expiry"),
];

#[test]
fn planted_bugs_are_found() {
    let only = std::env::var("BATON_SIM_BUG").ok().map(|name| Bug::from_name(&name).expect("a bug's name"));
    let bugs = only.map_or(FOUND_HERE.to_vec(), |bug| vec![bug]);
    let mut missed = Vec::new();
    for bug in bugs {
        let found = find(bug, super::number_from("BATON_SIM_SEED").unwrap_or(1));
        match found {
            Some((seeds, why)) => {
                println!("{}: {seeds} seeds: {}", bug.name(), why.lines().next().unwrap_or_default())
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn every_bug_is_found_or_listed() {
    for bug in Bug::ALL {
        let listed = NOT_FOUND_HERE.iter().any(|(b, why)| *b == bug && !why.is_empty());
        assert!(FOUND_HERE.contains(&bug) != listed, "{} is in one list, not in both", bug.name());
    }
}

/// The same weather without a bug: whatever is found above is the bug's doing.
#[test]
fn directed_weather_alone_breaks_no_promise() {
    watch::begin();
    let base = super::base_seed();
    let count = super::number_from("BATON_SIM_WEATHER_SEEDS").unwrap_or(6);
    println!("base seed {base}");
    let mut failed = Vec::new();
    for weather in [Weather::Duels, Weather::Wipes, Weather::PowerCuts, Weather::CutPrimary] {
        for seed in base..base + count {
            if let Err(failure) = run_with(seed, weather, None) {
                println!("{weather:?}: {}", failure.text());
                failed.push((weather, seed, failure.why));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}
