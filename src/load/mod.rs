//! Room `load`: under construction.
