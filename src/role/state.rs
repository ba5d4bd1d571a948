//! Shown roles and states, and the one table of moves between them.

use std::fmt;

/// What a node is, as openGauss users know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// No leader known and none asked for, or an empty cluster.
    Pending,
    Primary,
    Standby,
    CascadeStandby,
}

/// Why a node needs attention.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Repair {
    /// Its log forks below its own known commit, or is damaged: build it.
    Wal,
    /// It finds no leader to stream from.
    Disconnected,
    /// A log or control write failed.
    Io,
}

/// How a node fares in its role.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    Starting,
    Normal,
    Catchup,
    NeedRepair(Repair),
    WaitPromoting,
    Promoting,
    Demoting,
    Building,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Pending => "Pending",
            Role::Primary => "Primary",
            Role::Standby => "Standby",
            Role::CascadeStandby => "Cascade Standby",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "Starting",
            State::Normal => "Normal",
            State::Catchup => "Catchup",
            State::NeedRepair(Repair::Wal) => "Need repair(WAL)",
            State::NeedRepair(Repair::Disconnected) => "Need repair(Disconnected)",
            State::NeedRepair(Repair::Io) => "Need repair(IO)",
            State::WaitPromoting => "Wait promoting",
            State::Promoting => "Promoting",
            State::Demoting => "Demoting",
            State::Building => "Building",
        })
    }
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Pending, Role::Primary, Role::Standby, Role::CascadeStandby];

    /// One byte on the wire: the place in [`Role::ALL`].
    pub fn code(self) -> u8 {
        Role::ALL.iter().position(|role| *role == self).expect("all roles are listed") as u8
    }
    pub fn from_code(code: u8) -> Option<Role> {
        Role::ALL.get(usize::from(code)).copied()
    }
}

impl State {
    pub const ALL: [State; 10] = [
        State::Starting,
        State::Normal,
        State::Catchup,
        State::NeedRepair(Repair::Wal),
        State::NeedRepair(Repair::Disconnected),
        State::NeedRepair(Repair::Io),
        State::WaitPromoting,
        State::Promoting,
        State::Demoting,
        State::Building,
    ];

    /// One byte on the wire: the place in [`State::ALL`].
    pub fn code(self) -> u8 {
        State::ALL.iter().position(|state| *state == self).expect("all states are listed") as u8
    }
    pub fn from_code(code: u8) -> Option<State> {
        State::ALL.get(usize::from(code)).copied()
    }
}

/// Where a node sits in the table of moves; a cascade standby moves as a standby does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Seat {
    Pending,
    Standby,
    Primary,
}

impl Role {
    pub fn seat(self) -> Seat {
        match self {
            Role::Pending => Seat::Pending,
            Role::Standby | Role::CascadeStandby => Seat::Standby,
            Role::Primary => Seat::Primary,
        }
    }
}

/// One move: from a seat and a state to a seat and a state.
pub type Move = ((Seat, State), (Seat, State));

/// Moves that the life of a cluster makes: starts, failovers, switchovers, crashes, partitions. The miniature cluster
/// of this room's tests makes each of them, and no other.
pub const MOVES: &[Move] = &[
    // Starting.
    ((Seat::Pending, State::Starting), (Seat::Pending, State::Normal)),
    ((Seat::Pending, State::Starting), (Seat::Pending, State::WaitPromoting)),
    ((Seat::Pending, State::Starting), (Seat::Standby, State::Catchup)),
    ((Seat::Pending, State::Normal), (Seat::Standby, State::Catchup)),
    ((Seat::Standby, State::Starting), (Seat::Standby, State::Catchup)),
    ((Seat::Standby, State::Starting), (Seat::Standby, LONELY)),
    ((Seat::Standby, State::Starting), (Seat::Standby, State::WaitPromoting)),
    // Following.
    ((Seat::Standby, State::Catchup), (Seat::Standby, State::Normal)),
    ((Seat::Standby, State::Catchup), (Seat::Standby, LONELY)),
    ((Seat::Standby, State::Normal), (Seat::Standby, State::Catchup)),
    ((Seat::Standby, State::Normal), (Seat::Standby, LONELY)),
    ((Seat::Standby, LONELY), (Seat::Standby, State::Catchup)),
    // Being a candidate.
    ((Seat::Standby, State::Catchup), (Seat::Standby, State::WaitPromoting)),
    ((Seat::Standby, State::Normal), (Seat::Standby, State::WaitPromoting)),
    ((Seat::Standby, LONELY), (Seat::Standby, State::WaitPromoting)),
    ((Seat::Standby, State::WaitPromoting), (Seat::Standby, LONELY)),
    ((Seat::Standby, State::WaitPromoting), (Seat::Standby, State::Promoting)),
    ((Seat::Standby, State::Promoting), (Seat::Standby, LONELY)),
    ((Seat::Pending, State::WaitPromoting), (Seat::Pending, State::Promoting)),
    // Leading: made only out of Promoting.
    ((Seat::Pending, State::Promoting), (Seat::Primary, State::Promoting)),
    ((Seat::Standby, State::Promoting), (Seat::Primary, State::Promoting)),
    ((Seat::Primary, State::Promoting), (Seat::Primary, State::Normal)),
    ((Seat::Primary, State::Promoting), (Seat::Primary, State::WaitPromoting)),
    ((Seat::Primary, State::Normal), (Seat::Primary, State::WaitPromoting)),
    ((Seat::Primary, State::WaitPromoting), (Seat::Primary, State::Normal)),
    ((Seat::Primary, State::WaitPromoting), (Seat::Primary, State::Promoting)),
    // Stepping down: only through Demoting.
    ((Seat::Primary, State::Promoting), (Seat::Standby, State::Demoting)),
    ((Seat::Primary, State::Normal), (Seat::Standby, State::Demoting)),
    ((Seat::Primary, State::WaitPromoting), (Seat::Standby, State::Demoting)),
    ((Seat::Standby, State::Demoting), (Seat::Standby, State::Catchup)),
    ((Seat::Standby, State::Demoting), (Seat::Standby, LONELY)),
    ((Seat::Standby, State::Demoting), (Seat::Standby, State::Promoting)),
];

/// Moves that need a damaged or built data folder, or an operator's word at a rare moment.
pub const RARE_MOVES: &[Move] = &[
    ((Seat::Pending, State::Normal), (Seat::Pending, State::WaitPromoting)),
    ((Seat::Pending, State::WaitPromoting), (Seat::Pending, State::Normal)),
    ((Seat::Pending, State::Promoting), (Seat::Pending, State::Normal)),
    ((Seat::Pending, State::WaitPromoting), (Seat::Standby, State::Catchup)),
    ((Seat::Pending, State::Promoting), (Seat::Standby, State::Catchup)),
    ((Seat::Pending, State::NeedRepair(Repair::Wal)), (Seat::Standby, State::Catchup)),
    ((Seat::Pending, State::NeedRepair(Repair::Wal)), (Seat::Pending, State::Starting)),
    ((Seat::Pending, State::Building), (Seat::Pending, State::Starting)),
    ((Seat::Standby, State::NeedRepair(Repair::Wal)), (Seat::Standby, State::Catchup)),
    ((Seat::Standby, State::NeedRepair(Repair::Wal)), (Seat::Standby, State::Starting)),
    ((Seat::Standby, State::NeedRepair(Repair::Wal)), (Seat::Standby, State::WaitPromoting)),
    ((Seat::Standby, LONELY), (Seat::Standby, State::Starting)),
    ((Seat::Standby, State::Building), (Seat::Standby, State::Starting)),
    ((Seat::Standby, State::WaitPromoting), (Seat::Standby, State::Catchup)),
    ((Seat::Standby, State::Promoting), (Seat::Standby, State::Catchup)),
    ((Seat::Standby, State::Demoting), (Seat::Standby, State::WaitPromoting)),
];

/// States that a node which is not primary may fall into from any other: its data or its disk is the matter.
pub const FALLS: [State; 3] =
    [State::Building, State::NeedRepair(Repair::Wal), State::NeedRepair(Repair::Io)];

const LONELY: State = State::NeedRepair(Repair::Disconnected);

/// The one door: may a node that shows `from` show `to` next? Whatever no table lists is forbidden.
///
/// A primary is made only out of `Promoting`, and becomes a standby only through `Demoting`. A latched node stays
/// latched. A node keeps its kind: a standby never becomes a cascade standby without starting anew.
pub fn allowed(from: (Role, State), to: (Role, State)) -> bool {
    if from == to {
        return true;
    }
    let (seats, states) = ((from.0.seat(), to.0.seat()), (from.1, to.1));
    let kind = |role| matches!(role, Role::CascadeStandby);
    if seats == (Seat::Standby, Seat::Standby) && kind(from.0) != kind(to.0) {
        return false;
    }
    if states.0 == State::NeedRepair(Repair::Io) {
        return false;
    }
    let same = seats.0 == seats.1 || seats == (Seat::Pending, Seat::Standby);
    if FALLS.contains(&states.1) && seats.0 != Seat::Primary && same {
        return true;
    }
    let step = ((seats.0, states.0), (seats.1, states.1));
    MOVES.contains(&step) || RARE_MOVES.contains(&step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_lead_back() {
        assert!(Role::ALL.into_iter().all(|role| Role::from_code(role.code()) == Some(role)));
        assert!(State::ALL.into_iter().all(|state| State::from_code(state.code()) == Some(state)));
        assert_eq!((Role::from_code(4), State::from_code(10)), (None, None));
    }

    fn moves() -> impl Iterator<Item = ((Role, State), (Role, State))> {
        let shown = || Role::ALL.into_iter().flat_map(|role| State::ALL.map(|state| (role, state)));
        shown().flat_map(move |from| shown().map(move |to| (from, to)))
    }

    #[test]
    fn a_primary_is_made_and_unmade_only_through_its_doors() {
        for (from, to) in moves().filter(|(from, to)| from != to && allowed(*from, *to)) {
            if from.0 != Role::Primary && to.0 == Role::Primary {
                assert_eq!((from.1, to.1), (State::Promoting, State::Promoting));
            }
            if from.0 == Role::Primary && to.0 != Role::Primary {
                assert_eq!(to.1, State::Demoting);
            }
        }
    }

    #[test]
    fn a_latched_node_stays_latched() {
        let latched = State::NeedRepair(Repair::Io);
        assert!(moves().all(|(from, to)| from.1 != latched || from == to || !allowed(from, to)));
        assert!(
            Role::ALL
                .into_iter()
                .filter(|role| *role != Role::Primary)
                .all(|role| { State::ALL.into_iter().all(|state| allowed((role, state), (role, latched))) })
        );
    }
}
