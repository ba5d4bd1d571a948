//! Room `node`: under construction.
