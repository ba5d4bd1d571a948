//! Room `rebuild`: under construction.
