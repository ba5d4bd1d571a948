//! What is searched, and what came of it. `tests/model/machine.txt` keeps the counts.
//!
//! `MODEL_DEEPER=1` allows every run one deviation more, `MODEL_WORLDS` gives a set up after that many different worlds,
//! `MODEL_ONLY` searches the sets with this text in their names, and `MODEL_TRACE` tells a broken run event by event.

use super::search::{Deviations, Found, Seen, replay, search};
use super::stories::*;
use super::world::{Ask, Back, Broken, Crash, Story};
use crate::base::planted::{Bug, plant};

const LATE: Deviations = Deviations { late: true, ..Deviations::NONE };
const DEATHS: Deviations = Deviations {
    late: true,
    crashes: &[(Crash::Loses, Back::Soon), (Crash::Keeps, Back::Late)],
    ..Deviations::NONE
};
const ALL: Deviations = Deviations { frozen: true, isolate: true, write: true, ..COMMON };
const COMMON: Deviations = Deviations { behind: true, lost: true, asks: &[Ask::Forced], ..DEATHS };

/// A story with the deviations that are tried on it, one in each run.
struct Set {
    name: &'static str,
    story: Story,
    kinds: &'static str,
    deviations: Deviations,
}

const fn set(name: &'static str, story: Story, kinds: &'static str, deviations: Deviations) -> Set {
    Set { name, story, kinds, deviations }
}

const SETS: &[Set] = &[
    set("a dead primary is replaced and returns", FAILOVER, "common", COMMON),
    set("a living primary is made to yield", FORCED, "common", COMMON),
    set("a switchover", SWITCHOVER, "all", ALL),
    set("two operators ask two nodes while the primary is cut off", DUEL, "all", ALL),
    set("a promise is all that is left of an attempt", FORGOTTEN, "deaths", DEATHS),
    set("a primary returns with a long tail when its successor dies", LONG_TAIL, "deaths", DEATHS),
    set("two voters from now on, and the primary dies", FEWER_VOTERS, "common", COMMON),
    set("two copies from now on, and a standby leads", MORE_COPIES, "deaths", DEATHS),
    set("all die and return", BLACKOUT, "deaths", DEATHS),
    set("a standby restarts, follows a later term, and promises", LATER_TERM, "deaths", DEATHS),
    set("a standby restarts while another one is asked to lead", SAME_TERM, "common", COMMON),
    set("both grantors restart while the primary is cut off", GRANTORS, "common", COMMON),
    set("a voter loses its disk, and the primary dies", WIPED, "deaths", DEATHS),
    set("two voters from now on, with a control store", STORE, "deaths", DEATHS),
    set("four nodes, a control store, and a vote for the fourth", FOUR, "deaths", DEATHS),
    set("five nodes, and the primary dies", FIVE, "late", LATE),
    set("five nodes, and restarted standbys promise later terms", FIVE_LATER, "late", LATE),
    set("a standby goes on alone by force", ALONE, "deaths", DEATHS),
];

fn wanted(name: &str) -> Option<usize> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

fn tell_again(story: Story, found: &Found) {
    if std::env::var_os("MODEL_TRACE").is_some() {
        replay(story, found);
    }
}

#[test]
fn nothing_breaks_in_any_world_within_the_bounds() {
    let limit = wanted("MODEL_WORLDS").unwrap_or(usize::MAX);
    let most = 1 + wanted("MODEL_DEEPER").unwrap_or(0) as u8;
    let (mut worlds, mut steps) = (0, 0);
    let only = std::env::var("MODEL_ONLY").unwrap_or_default();
    for Set { name, story, kinds, deviations } in SETS.iter().filter(|set| set.name.contains(&only)) {
        let seen = search(*story, deviations, most, limit);
        if let Some(found) = &seen.found {
            tell_again(*story, found);
            panic!("{name}: {found}");
        }
        let Seen { worlds: new, steps: made, runs, longest, recoveries, .. } = seen;
        let cut = if seen.cut { "; given up there" } else { "" };
        println!(
            "{name} ({kinds}, {most}): {new} worlds, {made} steps, {runs} runs of up to {longest} steps, \
             {recoveries} worlds on the way back{cut}"
        );
        worlds += new;
        steps += made;
    }
    println!("together: {worlds} worlds, {steps} steps, nothing broken");
    assert!(worlds > 100_000 || !only.is_empty(), "the searches must not be empty: {worlds}");
}

/// Fewest deviations first. How the broken machine shows itself is part of what is wanted.
fn falls(name: &str, story: Story, deviations: &Deviations, most: u8, shows: &str) {
    for tried in 0..=most {
        let seen = search(story, deviations, tried, usize::MAX);
        let Some(found) = seen.found else { continue };
        tell_again(story, &found);
        assert!(found.why.contains(shows), "{name} shows itself otherwise: {found}");
        println!("{name}: {tried} deviations, after {} worlds: {found}", seen.worlds);
        return;
    }
    panic!("{name} is not found within {most} deviations");
}

#[test]
fn every_broken_machine_is_found() {
    const LOST: &str = "without the committed entry";
    let with = |crash, back: &'static [(Crash, Back)]| Deviations { behind: crash, crashes: back, ..LATE };
    let decays = with(false, &[(Crash::Decays, Back::Soon)]);
    let torn = Deviations { late: false, ..with(true, &[(Crash::Loses, Back::Soon)]) };
    let asked = Deviations { asks: &[Ask::Forced], ..Deviations::NONE };
    let cut = Deviations { isolate: true, ..Deviations::NONE };
    let behind = Deviations { behind: true, asks: &[Ask::Failover], ..Deviations::NONE };
    // What is unsafe must be seen as such: that such a cluster may not recover either does not count.
    let only_unsafe = |story: Story| Story { recovers: false, ..story };
    for (bug, story, deviations, most, shows) in [
        (Bug::IgnoreSessionTerm, FAILOVER, LATE, 1, "acknowledges"),
        (Bug::ResumeOwnTermAfterRestart, FAILOVER, LATE, 0, "is led by"),
        (Bug::ReportPromisedTerm, LONG_TAIL, LATE, 0, LOST),
        (Bug::OrderTermsByNumberOnly, FORCED, asked, 1, "after it promised"),
        (Bug::AckAfterPromise, FORCED, LATE, 0, "acknowledges"),
        (Bug::CountWipedOrBuildingNode, WIPED, LATE, 0, LOST),
        (Bug::OneSlotControlFallback, FORGOTTEN, decays, 1, "after it promised"),
        (Bug::PublishPolicyInWrongOrder, STORE, LATE, 2, LOST),
        (Bug::ReadWithoutLease, DUEL, cut, 1, "reads"),
        (Bug::ServeBeforeTermStartCommits, LONG_TAIL, LATE, 0, "reads"),
        (Bug::TruncateBelowKnownCommit, ALONE, LATE, 1, "below its known commit"),
        (Bug::PromoteTheLaggard, FAILOVER, LATE, 1, LOST),
    ] {
        let _bug = plant(bug);
        falls(bug.name(), only_unsafe(story), &deviations, most, shows);
    }
    {
        // It keeps a laggard from catching up, and loses nothing.
        let bug = Bug::JudgeFramesByPromisedTerm;
        let _bug = plant(bug);
        falls(bug.name(), FAILOVER, &LATE, 1, "does not recover");
    }
    for (name, broken, story, deviations, most, shows) in [
        ("a restart forgets its grants", Broken::ForgetsItsGrants, GRANTORS, LATE, 0, "reads"),
        ("any term ends the hold of a restart", Broken::OutlivesAnyTerm, SAME_TERM, behind, 2, "reads"),
        (
            "a promise leaves before it is durable",
            Broken::SpeaksBeforeItIsDurable,
            FORGOTTEN,
            torn,
            2,
            "after it promised",
        ),
    ] {
        falls(name, only_unsafe(Story { broken, ..story }), &deviations, most, shows);
    }
}
