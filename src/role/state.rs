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

/// The one door: may a node that shows `from` show `to` next? Whatever is not listed is forbidden.
///
/// A primary is made only out of `Promoting`, and becomes a standby only through `Demoting`. A latched node stays
/// latched.
pub fn allowed(from: (Role, State), to: (Role, State)) -> bool {
    use State::*;
    if from == to {
        return true;
    }
    let was_primary = from.0 == Role::Primary;
    let stays = from.0 == to.0;
    // A pending node becomes a standby when it finds a leader, and in no other way.
    let joins = from.0 == Role::Pending && to.0 != Role::Primary;
    match to {
        _ if from.1 == NeedRepair(Repair::Io) => false,
        (Role::Primary, Promoting) => from.1 == Promoting || (was_primary && from.1 == WaitPromoting),
        (Role::Primary, Normal) => was_primary && matches!(from.1, Promoting | WaitPromoting),
        (Role::Primary, WaitPromoting) => was_primary && matches!(from.1, Promoting | Normal),
        (Role::Standby | Role::CascadeStandby, Demoting) => was_primary,
        _ if was_primary => false,
        (_, Starting) => stays && matches!(from.1, Building | NeedRepair(_)),
        (Role::Pending, Normal) => stays && from.1 != Building,
        (_, Normal) => stays && from.1 == Catchup,
        (Role::Standby | Role::CascadeStandby, Catchup) => (stays || joins) && from.1 != Building,
        (_, NeedRepair(Repair::Wal)) => stays || joins,
        (_, NeedRepair(_) | Building) => stays,
        (_, WaitPromoting) => stays && from.1 != Building,
        (_, Promoting) => stays && matches!(from.1, WaitPromoting | Demoting),
        _ => false,
    }
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
