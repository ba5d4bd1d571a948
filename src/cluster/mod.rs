//! Room `cluster`: under construction.
