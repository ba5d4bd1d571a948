//! The stories, the deviations, and what the searches came to.

use super::search::{Deviations, Seen, replay, search};
use super::world::{Act, Ask, Back, Broken, Crash, Story};
use crate::base::planted::{Bug, plant};

const STORY: Story = Story {
    nodes: 3,
    store: false,
    lossy: false,
    writes: 3,
    script: &[],
    until: 3000,
    broken: Broken::Nothing,
    seed: 7,
};

const fn dies(node: usize, back: Back) -> Act {
    Act::Crash(node, Crash::Keeps, back)
}

const FAILOVER: Story =
    Story { script: &[(500, dies(0, Back::Late)), (750, Act::Ask(1, Ask::Failover))], ..STORY };
const FORCED: Story = Story { script: &[(500, Act::Ask(1, Ask::Forced))], ..STORY };
const SWITCHOVER: Story = Story { script: &[(500, Act::Ask(0, Ask::SwitchTo(2)))], ..STORY };
const DUEL: Story = Story {
    script: &[(500, Act::Isolate(0)), (750, Act::Ask(1, Ask::Forced)), (750, Act::Ask(2, Ask::Forced))],
    until: 4000,
    ..STORY
};
const FEWER_VOTERS: Story = Story {
    script: &[
        (500, Act::Ask(0, Ask::Policy(&[1, 2], 1))),
        (1000, dies(0, Back::Late)),
        (1250, Act::Ask(1, Ask::Failover)),
    ],
    ..STORY
};
const MORE_COPIES: Story = Story {
    script: &[(500, Act::Ask(0, Ask::Policy(&[1, 2, 3], 2))), (1000, Act::Ask(2, Ask::Forced))],
    ..STORY
};
const BLACKOUT: Story = Story {
    script: &[(500, dies(0, Back::Soon)), (500, dies(1, Back::Soon)), (500, dies(2, Back::Soon))],
    until: 3500,
    ..STORY
};
const LATER_TERM: Story = Story {
    script: &[
        (500, dies(1, Back::Soon)),
        (500, Act::Ask(2, Ask::Forced)),
        (2500, Act::Ask(0, Ask::Forced)),
    ],
    until: 4000,
    ..STORY
};
const SAME_TERM: Story = Story {
    script: &[(250, Act::Slow(0, 2)), (1250, dies(1, Back::Soon)), (1250, Act::Ask(2, Ask::Forced))],
    ..STORY
};
const WIPED: Story = Story {
    script: &[(500, Act::Wipe(1)), (1000, dies(0, Back::Late)), (1250, Act::Ask(2, Ask::Failover))],
    ..STORY
};
const STORE: Story = Story {
    store: true,
    script: &[
        (500, Act::Ask(0, Ask::Policy(&[1, 2], 1))),
        (1000, dies(0, Back::Late)),
        (1250, Act::Ask(1, Ask::Failover)),
    ],
    ..STORY
};
const FOUR: Story = Story {
    nodes: 4,
    store: true,
    script: &[
        (500, Act::Ask(0, Ask::Policy(&[1, 2, 4], 1))),
        (1000, dies(0, Back::Late)),
        (1250, Act::Ask(1, Ask::Failover)),
    ],
    until: 2500,
    ..STORY
};
const FIVE: Story = Story {
    nodes: 5,
    writes: 2,
    script: &[(500, dies(0, Back::Late)), (750, Act::Ask(1, Ask::Failover))],
    until: 2500,
    ..STORY
};
const ALONE: Story = Story {
    lossy: true,
    script: &[(500, Act::Isolate(0)), (750, dies(2, Back::Late)), (1000, Act::Ask(1, Ask::Alone))],
    until: 4500,
    ..STORY
};

/// What happens when nothing deviates, by name.
const STORIES: &[(&str, Story)] = &[
    ("a dead primary is replaced and returns", FAILOVER),
    ("a living primary is made to yield", FORCED),
    ("a switchover", SWITCHOVER),
    ("two operators ask two nodes while the primary is cut off", DUEL),
    ("two voters from now on, and the primary dies", FEWER_VOTERS),
    ("two copies from now on, and a standby leads", MORE_COPIES),
    ("all die and return", BLACKOUT),
    ("a standby restarts, follows a later term, and promises", LATER_TERM),
    ("a standby restarts while another one, far behind, is asked to lead", SAME_TERM),
    ("a voter loses its disk, and the primary dies", WIPED),
    ("with a control store two voters from now on, and the primary dies", STORE),
    ("the same with four nodes, one of which gets a vote", FOUR),
    ("five nodes, and the primary dies", FIVE),
    ("a standby goes on alone by force", ALONE),
];

#[test]
fn explore() {
    let limit = std::env::var("LIMIT").map_or(200_000, |l| l.parse().unwrap());
    let most: u8 = std::env::var("MOST").map_or(1, |l| l.parse().unwrap());
    for (name, story) in STORIES {
        let t = std::time::Instant::now();
        let seen = search(*story, &Deviations::ALL, most, limit);
        println!("{name}: {} worlds {} steps {} runs {} recov longest {} cut {} {} {:?}", seen.worlds, seen.steps, seen.runs, seen.recoveries, seen.longest, seen.cut, seen.found.as_ref().map(|f| f.to_string()).unwrap_or_default(), t.elapsed());
        if let Some(f) = seen.found { if std::env::var("REPLAY").is_ok() { replay(*story, &f);} }
    }
}

fn hunt(name: &str, broken: Broken, deviations: &Deviations, stories: &[Story], max: u8) {
    let limit = std::env::var("LIMIT").map_or(200_000, |l| l.parse().unwrap());
    for d in 0..=max {
        for (i, story) in stories.iter().enumerate() {
            let t = std::time::Instant::now();
            let seen = search(Story { broken, ..*story }, deviations, d, limit);
            match seen.found {
                Some(f) => { println!("{name}: {d} #{i}: {} worlds {f} {:?}", seen.worlds, t.elapsed()); if std::env::var("REPLAY").is_ok() { replay(*story, &f);} return }
                None => println!("  {name}: {d} #{i}: {} worlds {} steps cut {} {:?}", seen.worlds, seen.steps, seen.cut, t.elapsed()),
            }
        }
    }
    println!("{name}: NOT FOUND");
}

#[test]
fn bugs() {
    const N: Deviations = Deviations::NONE;
    let late = Deviations { late: true, ..N };
    let decays = Deviations { late: true, crashes: &[(Crash::Decays, Back::Soon)], ..N };
    let dies = Deviations { late: true, crashes: &[(Crash::Keeps, Back::Late)], ..N };
    for (bug, dev, stories, max) in [
        (Bug::IgnoreSessionTerm, late, &[FAILOVER][..], 2),
        (Bug::JudgeFramesByPromisedTerm, late, &[FAILOVER, FORCED], 1),
        (Bug::ResumeOwnTermAfterRestart, late, &[FAILOVER], 1),
        (Bug::ReportPromisedTerm, dies, &[FORCED, FAILOVER], 2),
        (Bug::OrderTermsByNumberOnly, Deviations { asks: &[Ask::Forced], ..late}, &[FORCED, DUEL], 2),
        (Bug::AckAfterPromise, late, &[FORCED], 1),
        (Bug::CountWipedOrBuildingNode, late, &[WIPED], 2),
        (Bug::OneSlotControlFallback, decays, &[FORCED, FAILOVER, SWITCHOVER], 2),
        (Bug::PublishPolicyInWrongOrder, dies, &[STORE], 2),
        (Bug::ReadWithoutLease, Deviations { isolate: true, ..late}, &[DUEL], 2),
        (Bug::ServeBeforeTermStartCommits, Deviations { crashes: &[(Crash::Loses, Back::Soon)], ..late}, &[FAILOVER], 2),
        (Bug::TruncateBelowKnownCommit, late, &[ALONE], 2),
        (Bug::PromoteTheLaggard, late, &[FAILOVER], 2),
    ] {
        let _bug = plant(bug);
        hunt(bug.name(), Broken::Nothing, &dev, stories, max);
    }
    let cut = Deviations { isolate: true, crashes: &[(Crash::Keeps, Back::Soon)], ..late };
    hunt("forgets", Broken::ForgetsItsGrants, &cut, &[SAME_TERM, LATER_TERM], 2);
    hunt("outlives any", Broken::OutlivesAnyTerm, &cut, &[SAME_TERM, LATER_TERM], 2);
    hunt("speaks early", Broken::SpeaksBeforeItIsDurable, &cut, &[FORCED, FAILOVER], 2);
}
