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
