//! Room `exec`: under construction.
