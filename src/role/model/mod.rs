//! The role machine itself, checked like a model: a small cluster of real [`super::RoleMachine`]s in a world that can
//! be copied, and a systematic search over what the network, the disks, the processes and the operators may do to it.
//!
//! Every world has one *usual* next step: the oldest message, flush or control write is done, and when none waits, a
//! quarter of a second passes. A *deviation* is anything else: something is late or lost, a node dies, an operator asks.
//! Within a set (a story, a list of deviations that are tried, how many of them one run may hold) the search makes every
//! choice at every step once. Two worlds are the same when nodes, logs, messages under way and what the oracles remember
//! are, with all times taken relative to the clock; a world that was met before with as many deviations left is not
//! followed again.
//!
//! It is deliberately not the miniature cluster next door, whose seeds mix far more faults in one run than a search can
//! afford, nor the model of `tests/model`, which is written from the rules and knows no messages.
//!
//! The price: one message is late in two ways (behind everything else that waits, or for more than a lease), clocks run
//! at one speed, and time passes in steps.

mod fingerprint;
mod net;
mod oracle;
mod process;
mod search;
mod sets;
mod stories;
mod world;
