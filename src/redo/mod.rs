//! Room `redo`: under construction.
