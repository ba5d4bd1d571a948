//! Room `wal`: under construction.
