//! Every safety rule is broken on purpose, and the simulator must notice (`protocol` section 9).

use baton::base::planted::Bug;

use super::seeds::run_with;
use super::run::Weather;
use super::watch;

/// Seeds tried per bug.
const SEEDS_MAX: u64 = 120;

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

#[test]
fn survey() {
    let only = std::env::var("BATON_SIM_BUG").ok();
    for bug in Bug::ALL {
        if only.as_ref().is_some_and(|name| name != bug.name()) {
            continue;
        }
        let begun = std::time::Instant::now();
        let found = find(bug, super::number_from("BATON_SIM_SEED").unwrap_or(1));
        let text = match &found {
            Some((seeds, why)) => format!("seed {seeds}: {}", why.lines().next().unwrap_or_default()),
            None => "NOT FOUND".into(),
        };
        println!("{:40} {:6.1} s {text}", bug.name(), begun.elapsed().as_secs_f64());
    }
}

/// The same weather without a bug: whatever is found above is the bug's doing.
#[test]
fn directed_weather_alone_breaks_no_promise() {
    watch::begin();
    let base = super::base_seed();
    let count = super::number_from("BATON_SIM_WEATHER_SEEDS").unwrap_or(12);
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
