//! The configuration: what the operator typed, checked once, with one clear sentence for every mistake.
//!
//! [`written`] reads the TOML text as it stands and remembers the line of every key; [`check`] turns it into a
//! [`Config`] ([`meant`]) whose values have units, types and passed every cross-check. The rest of the node sees only [`Config`].
//! This room reads no file, opens no socket and looks up no name: it maps text to a value.
//!
//! Invariants:
//! - any text whatever yields a [`Config`] or a non-empty list of mistakes, never a panic;
//! - every mistake of the text is reported at once, each with its line, what is wrong, and what to do;
//! - a [`Config`] that exists is consistent: no later code re-checks it;
//! - a secret never appears in `Debug`, in logs, or in `baton query`.
//!
//! Price: the TOML seeds the policy and the membership only. After `baton init` the truth is in the log and in the
//! control file (`protocol` section 4.1); editing `sync` in the file of a living cluster changes nothing by itself.

pub mod check;
pub mod keys;
pub mod meant;
pub mod mistake;
pub mod sync;
#[cfg(test)]
mod tests;
pub mod units;
pub mod written;

pub use check::parse;
pub use keys::{KEYS, Key, MEMBER_KEYS};
pub use meant::{
    CommitLevel, Config, Degrade, LogFormat, LogLevel, Member, Reads, Secret, StoreChoice, WalSync,
};
pub use mistake::{Mistake, Mistakes};
pub use sync::{SyncKind, SyncRule};
