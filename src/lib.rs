//! baton: a primary/standby storage node. See `ARCHITECTURE.md` for the tour.

pub mod admin;
pub mod base;
pub mod cluster;
pub mod config;
pub mod exec;
pub mod io;
pub mod load;
pub mod metrics;
pub mod node;
pub mod rebuild;
pub mod record;
pub mod redo;
pub mod replication;
pub mod resp;
pub mod role;
pub mod store;
pub mod wal;
