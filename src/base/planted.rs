//! Planted bugs: every safety rule can be broken on purpose, to prove that the simulator notices (`protocol` section 9).
//!
//! Without the feature `planted` (and outside unit tests) [`planted`] is a constant `false`: the compiler removes the
//! broken branches from every build that serves. With it, a bug is active on the thread that planted it, so that
//! tests running side by side do not infect each other; the simulator runs a whole cluster on one thread.

/// The rules that can be broken, in the order of `protocol` section 9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Bug {
    AckBeforeFlush,
    AckBeforeQuorum,
    IgnoreSessionTerm,
    JudgeFramesByPromisedTerm,
    ResumeOwnTermAfterRestart,
    ReportPromisedTerm,
    OrderTermsByNumberOnly,
    AckAfterPromise,
    CountWipedOrBuildingNode,
    OneSlotControlFallback,
    PublishPolicyInWrongOrder,
    ReadWithoutLease,
    ServeBeforeTermStartCommits,
    TruncateBelowKnownCommit,
    TreatHoleAsEndOfLog,
    AppendOverStaleFrames,
    ApplyPastCommit,
    PromoteTheLaggard,
    SpeculativeValueSurvivesDemotion,
    ExpiryByLocalClock,
}

impl Bug {
    pub const ALL: [Bug; 20] = [
        Bug::AckBeforeFlush,
        Bug::AckBeforeQuorum,
        Bug::IgnoreSessionTerm,
        Bug::JudgeFramesByPromisedTerm,
        Bug::ResumeOwnTermAfterRestart,
        Bug::ReportPromisedTerm,
        Bug::OrderTermsByNumberOnly,
        Bug::AckAfterPromise,
        Bug::CountWipedOrBuildingNode,
        Bug::OneSlotControlFallback,
        Bug::PublishPolicyInWrongOrder,
        Bug::ReadWithoutLease,
        Bug::ServeBeforeTermStartCommits,
        Bug::TruncateBelowKnownCommit,
        Bug::TreatHoleAsEndOfLog,
        Bug::AppendOverStaleFrames,
        Bug::ApplyPastCommit,
        Bug::PromoteTheLaggard,
        Bug::SpeculativeValueSurvivesDemotion,
        Bug::ExpiryByLocalClock,
    ];

    /// The name used on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Bug::AckBeforeFlush => "ack-before-flush",
            Bug::AckBeforeQuorum => "ack-before-quorum",
            Bug::IgnoreSessionTerm => "ignore-session-term",
            Bug::JudgeFramesByPromisedTerm => "judge-frames-by-promised-term",
            Bug::ResumeOwnTermAfterRestart => "resume-own-term-after-restart",
            Bug::ReportPromisedTerm => "report-promised-term",
            Bug::OrderTermsByNumberOnly => "order-terms-by-number-only",
            Bug::AckAfterPromise => "ack-after-promise",
            Bug::CountWipedOrBuildingNode => "count-wiped-or-building-node",
            Bug::OneSlotControlFallback => "one-slot-control-fallback",
            Bug::PublishPolicyInWrongOrder => "publish-policy-in-wrong-order",
            Bug::ReadWithoutLease => "read-without-lease",
            Bug::ServeBeforeTermStartCommits => "serve-before-term-start-commits",
            Bug::TruncateBelowKnownCommit => "truncate-below-known-commit",
            Bug::TreatHoleAsEndOfLog => "treat-hole-as-end-of-log",
            Bug::AppendOverStaleFrames => "append-over-stale-frames",
            Bug::ApplyPastCommit => "apply-past-commit",
            Bug::PromoteTheLaggard => "promote-the-laggard",
            Bug::SpeculativeValueSurvivesDemotion => "speculative-value-survives-demotion",
            Bug::ExpiryByLocalClock => "expiry-by-local-clock",
        }
    }

    pub fn from_name(name: &str) -> Option<Bug> {
        Bug::ALL.into_iter().find(|bug| bug.name() == name)
    }
}

#[cfg(any(test, feature = "planted"))]
mod active {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Keeps a bug active on this thread until dropped.
    #[must_use]
    pub struct Planted {
        before: Option<Bug>,
    }

    /// Breaks one rule on this thread.
    pub fn plant(bug: Bug) -> Planted {
        Planted { before: ACTIVE.replace(Some(bug)) }
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            ACTIVE.set(self.before);
        }
    }

    #[inline]
    pub fn planted(bug: Bug) -> bool {
        ACTIVE.get() == Some(bug)
    }
}

#[cfg(any(test, feature = "planted"))]
pub use active::{Planted, plant, planted};

/// Whether `bug` was planted: never, in a build that serves.
#[cfg(not(any(test, feature = "planted")))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_lives_as_long_as_its_guard() {
        assert!(Bug::ALL.into_iter().all(|bug| !planted(bug)));
        {
            let _outer = plant(Bug::AckBeforeFlush);
            {
                let _inner = plant(Bug::ReadWithoutLease);
                assert!(planted(Bug::ReadWithoutLease) && !planted(Bug::AckBeforeFlush));
            }
            assert!(planted(Bug::AckBeforeFlush));
            std::thread::spawn(|| assert!(!planted(Bug::AckBeforeFlush))).join().unwrap();
        }
        assert!(!planted(Bug::AckBeforeFlush));
    }

    #[test]
    fn names_lead_back_to_their_bugs() {
        assert!(Bug::ALL.into_iter().all(|bug| Bug::from_name(bug.name()) == Some(bug)));
        assert_eq!(Bug::from_name("no-such-bug"), None);
    }
}
