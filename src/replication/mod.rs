//! Room `replication`: under construction.
