//! Every safety rule is broken on purpose, and the simulator must notice (`protocol` section 9).

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use baton::base::planted::Bug;

use super::run::Weather;
use super::seeds::{run_stored, run_with};
use super::watch;

/// Seeds tried per bug.
const SEEDS_MAX: u64 = 80;

/// Where each bug shows itself soonest.
fn weather(bug: Bug) -> Weather {
    match bug {
        Bug::ResumeOwnTermAfterRestart => Weather::PowerCuts,
        Bug::AckBeforeQuorum | Bug::ReadWithoutLease => Weather::CutPrimary,
        Bug::ApplyPastCommit | Bug::SpeculativeValueSurvivesDemotion => Weather::CutPrimary,
        Bug::IgnoreSessionTerm | Bug::AckAfterPromise => Weather::LatePromise,
        Bug::OneSlotControlFallback => Weather::DamagedControl,
        Bug::OrderTermsByNumberOnly => Weather::Duels,
        Bug::CountWipedOrBuildingNode => Weather::Wipes,
        Bug::ReportPromisedTerm => Weather::LongTail,
        Bug::PromoteTheLaggard | Bug::JudgeFramesByPromisedTerm => Weather::Laggard,
        Bug::ServeBeforeTermStartCommits => Weather::SlowNews,
        Bug::TruncateBelowKnownCommit => Weather::ForcedAlone,
        Bug::TreatHoleAsEndOfLog => Weather::DamagedLog,
        Bug::AckBeforeFlush | Bug::AppendOverStaleFrames => Weather::TornTails,
        Bug::ExpiryByLocalClock => Weather::Expiry,
        Bug::PublishPolicyInWrongOrder => Weather::RaisedCopies,
    }
}

/// Bugs that stop the service for good instead of breaking a promise: a standby that judges frames by the promise never
/// takes what was written before it.
const STALLS: [Bug; 1] = [Bug::JudgeFramesByPromisedTerm];

/// How a run words that it ended without service.
const UNAVAILABLE: [&str; 3] = ["no normal service", "nobody serves", "the primary does not answer"];

/// Finds one bug; says with how many seeds and by what.
pub fn find(bug: Bug, weather: Weather, base: u64) -> Option<(u64, String)> {
    watch::begin();
    let seeds = super::number_from("BATON_SIM_BUG_SEEDS").unwrap_or(SEEDS_MAX);
    (base..base + seeds).find_map(|seed| match run_with(seed, weather, Some(bug)) {
        Ok(_) => None,
        Err(failure) if UNAVAILABLE.iter().any(|words| failure.why.starts_with(words)) => {
            // Slow recovery proves nothing, unless the bug is one that stalls and the right build recovers.
            let stalls = STALLS.contains(&bug) && run_with(seed, weather, None).is_ok();
            stalls.then_some((seed - base + 1, failure.why))
        }
        Err(failure) => Some((seed - base + 1, failure.why)),
    })
}

#[test]
fn planted_bugs_are_found() {
    let only = std::env::var("BATON_SIM_BUG").ok().map(|name| Bug::from_name(&name).expect("a bug's name"));
    let bugs: Vec<Bug> = only.map_or(Bug::ALL.to_vec(), |bug| vec![bug]);
    let base = super::number_from("BATON_SIM_SEED").unwrap_or(1);
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let weather = weather(*bug);
                    let begun = Instant::now();
                    match find(*bug, weather, base) {
                        Some((seeds, why)) => println!(
                            "{} in {weather:?}: {seeds} seeds, {:.1} s: {}",
                            bug.name(),
                            begun.elapsed().as_secs_f64(),
                            why.lines().next().unwrap_or_default()
                        ),
                        None => missed.lock().expect("no thread panics with it").push(*bug),
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no thread panics with it");
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn every_directed_weather_aims_at_a_bug() {
    for weather_ in Weather::DIRECTED {
        assert!(Bug::ALL.into_iter().any(|bug| weather(bug) == weather_), "{weather_:?} aims at nothing");
    }
}

/// The same weather without a bug: whatever is found above is the bug's doing.
#[test]
fn directed_weather_alone_breaks_no_promise() {
    watch::begin();
    let base = super::base_seed();
    let count = super::number_from("BATON_SIM_WEATHER_SEEDS").unwrap_or(4);
    println!("base seed {base}");
    let mut failed = Vec::new();
    for weather in Weather::DIRECTED {
        for seed in base..base + count {
            if let Err(failure) = run_with(seed, weather, None) {
                println!("{weather:?}: {}", failure.text());
                failed.push((weather, seed, failure.why));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// Directed weather for clusters that have handed their decisions to a control store, and some of the other weathers
/// with one. A script that never came to what it is for has proved nothing.
#[test]
fn directed_weather_through_a_store_breaks_no_promise() {
    const TOO: [Weather; 5] =
        [Weather::Duels, Weather::PowerCuts, Weather::CutPrimary, Weather::LatePromise, Weather::Laggard];
    watch::begin();
    let base = super::base_seed();
    let count = super::number_from("BATON_SIM_WEATHER_SEEDS").unwrap_or(4);
    println!("base seed {base}");
    let (mut failed, mut idle) = (Vec::new(), Vec::new());
    let halved = (count / 2).max(1);
    for (weather, count) in Weather::DECIDED.map(|w| (w, count)).into_iter().chain(TOO.map(|w| (w, halved))) {
        let (mut climaxes, begun) = (0, Instant::now());
        for seed in base..base + count {
            match run_stored(seed, weather) {
                Ok(report) => climaxes += report.climaxes,
                Err(failure) => {
                    println!("{weather:?}: {}", failure.text());
                    failed.push((weather, seed, failure.why));
                }
            }
        }
        println!("{weather:?}: {climaxes} climaxes, {:.1} s", begun.elapsed().as_secs_f64());
        if climaxes == 0 && Weather::DECIDED.contains(&weather) {
            idle.push(weather);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!(idle.is_empty(), "never came to what they are for: {idle:?}");
}
