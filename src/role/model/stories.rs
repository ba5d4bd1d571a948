//! The stories: what happens to a cluster that serves, when nothing deviates.

use super::world::{Act, Ask, Back, Broken, Crash, Story};

/// Three nodes, nothing happens.
pub const STORY: Story = Story {
    nodes: 3,
    store: false,
    lossy: false,
    writes: 3,
    script: &[],
    until: 3000,
    recovers: true,
    broken: Broken::Nothing,
    lease: 1000,
    seed: 7,
};

const fn dies(node: usize, back: Back) -> Act {
    Act::Crash(node, Crash::Keeps, back)
}

pub const FAILOVER: Story =
    Story { script: &[(500, dies(0, Back::Late)), (750, Act::Ask(1, Ask::Failover))], ..STORY };
pub const FORCED: Story = Story { script: &[(500, Act::Ask(1, Ask::Forced))], ..STORY };
pub const SWITCHOVER: Story = Story { script: &[(500, Act::Ask(0, Ask::SwitchTo(2)))], ..STORY };
pub const DUEL: Story = Story {
    script: &[(500, Act::Isolate(0)), (750, Act::Ask(1, Ask::Forced)), (750, Act::Ask(2, Ask::Forced))],
    until: 4000,
    ..STORY
};
pub const FEWER_VOTERS: Story = Story {
    script: &[
        (500, Act::Ask(0, Ask::Policy(&[1, 2], 1))),
        (1000, dies(0, Back::Late)),
        (1250, Act::Ask(1, Ask::Failover)),
    ],
    ..STORY
};
pub const MORE_COPIES: Story = Story {
    script: &[(500, Act::Ask(0, Ask::Policy(&[1, 2, 3], 2))), (1000, Act::Ask(2, Ask::Forced))],
    ..STORY
};
pub const BLACKOUT: Story = Story {
    script: &[(500, dies(0, Back::Soon)), (500, dies(1, Back::Soon)), (500, dies(2, Back::Soon))],
    until: 3500,
    ..STORY
};
/// A standby restarts, and follows and promises later terms within the lease for which a restarted process waits.
pub const LATER_TERM: Story = Story {
    script: &[(500, dies(1, Back::Soon)), (500, Act::Ask(2, Ask::Forced)), (1250, Act::Ask(0, Ask::Forced))],
    until: 3500,
    ..STORY
};
/// The same with two of five, while the primary that they granted to is cut off.
pub const FIVE_LATER: Story = Story {
    nodes: 5,
    writes: 2,
    lease: 2000,
    script: &[
        (500, dies(1, Back::Soon)),
        (500, Act::Ask(3, Ask::Forced)),
        (750, dies(2, Back::Soon)),
        (1000, Act::Isolate(0)),
        (1500, Act::Ask(4, Ask::Forced)),
    ],
    until: 3000,
    ..STORY
};
/// One standby has not heard the primary for long, and the other one, its only grantor, restarts and follows again.
pub const SAME_TERM: Story = Story {
    lease: 2000,
    script: &[
        (250, Act::Slow(0, 2)),
        (2000, Act::Unplug(1)),
        (2250, Act::Slow(0, 2)),
        (2500, Act::Isolate(0)),
    ],
    until: 3750,
    ..STORY
};
/// Both grantors restart while the primary that they granted to is cut off.
pub const GRANTORS: Story = Story {
    lease: 2000,
    script: &[
        (500, Act::Isolate(0)),
        (500, dies(1, Back::Soon)),
        (500, dies(2, Back::Soon)),
        (750, Act::Ask(1, Ask::Failover)),
    ],
    ..STORY
};
/// Who promised is all that is left of an attempt, and the old primary asks again.
pub const FORGOTTEN: Story = Story {
    // With these ids the old primary's next term is the lower one of two with the same number.
    seed: 8,
    script: &[
        (250, dies(0, Back::Late)),
        (500, Act::Ask(1, Ask::Failover)),
        (750, Act::Isolate(1)),
        (1750, dies(1, Back::Late)),
    ],
    until: 4000,
    ..STORY
};
/// The old primary comes back with a long tail, just when the new one dies.
pub const LONG_TAIL: Story = Story {
    script: &[
        (500, Act::Isolate(0)),
        (1250, Act::Ask(1, Ask::Failover)),
        (1500, Act::Isolate(0)),
        (2500, dies(1, Back::Late)),
        (2750, Act::Ask(2, Ask::Failover)),
    ],
    until: 4500,
    ..STORY
};
pub const WIPED: Story = Story {
    script: &[
        (250, Act::Isolate(2)),
        (1000, dies(0, Back::Late)),
        (1250, Act::Wipe(1)),
        (1500, Act::Ask(2, Ask::Failover)),
    ],
    until: 4000,
    ..STORY
};
pub const STORE: Story = Story {
    store: true,
    writes: 2,
    script: &[
        (250, Act::Ask(0, Ask::Policy(&[1, 2], 1))),
        (750, dies(0, Back::Late)),
        (1000, Act::Ask(1, Ask::Failover)),
    ],
    until: 2500,
    ..STORY
};
pub const FOUR: Story = Story {
    nodes: 4,
    script: &[
        (250, Act::Ask(0, Ask::Policy(&[1, 2, 4], 1))),
        (750, dies(0, Back::Late)),
        (1000, Act::Ask(1, Ask::Failover)),
    ],
    ..STORE
};
pub const FIVE: Story = Story {
    nodes: 5,
    writes: 2,
    script: &[(500, dies(0, Back::Late)), (750, Act::Ask(1, Ask::Failover))],
    until: 2500,
    ..STORY
};
pub const ALONE: Story = Story {
    lossy: true,
    recovers: false,
    script: &[(500, Act::Isolate(0)), (750, dies(2, Back::Late)), (1000, Act::Ask(1, Ask::Alone))],
    until: 4500,
    ..STORY
};
