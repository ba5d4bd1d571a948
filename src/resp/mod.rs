//! Room `resp`: under construction.
