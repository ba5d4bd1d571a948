//! Room `metrics`: under construction.
