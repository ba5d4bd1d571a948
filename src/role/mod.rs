//! Room `role`: under construction.
