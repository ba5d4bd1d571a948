//! The format versions that this build speaks: of frames, records, control file and peer messages, all under one number.
//!
//! A build speaks its newest version and the one before it. Peers talk in the newest one that both speak, and a log is
//! written in the version that the cluster has finalized, so that nodes can be upgraded one after the other and, until
//! `baton cluster finalize-upgrade`, go back.
//!
//! With the feature `next-format` (tests only) a thread or a process can play a build of the next version. Version 2 is
//! then a dummy: the same bytes under a higher number.

/// The newest version of this build.
pub const FORMAT_VERSION: u16 = 1;

#[cfg(any(test, feature = "next-format"))]
mod played {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU16, Ordering};

    static EVERYWHERE: AtomicU16 = AtomicU16::new(super::FORMAT_VERSION);
    thread_local! {
        static HERE: Cell<Option<u16>> = const { Cell::new(None) };
    }

    /// This thread plays a build whose newest version is that one; `None` ends the play.
    pub fn play_on_this_thread(version: Option<u16>) {
        HERE.set(version);
    }

    /// The whole process plays it.
    pub fn play_everywhere(version: u16) {
        EVERYWHERE.store(version, Ordering::Relaxed);
    }

    pub fn newest() -> u16 {
        HERE.get().unwrap_or_else(|| EVERYWHERE.load(Ordering::Relaxed))
    }
}

#[cfg(any(test, feature = "next-format"))]
pub use played::{newest, play_everywhere, play_on_this_thread};

/// The newest version that is spoken here.
#[cfg(not(any(test, feature = "next-format")))]
#[inline(always)]
pub const fn newest() -> u16 {
    FORMAT_VERSION
}

/// The oldest version that is spoken here.
pub fn oldest() -> u16 {
    newest().saturating_sub(1).max(1)
}

/// Whether bytes of this version can be read here.
pub fn speaks(version: u16) -> bool {
    (oldest()..=newest()).contains(&version)
}
