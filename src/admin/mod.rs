//! Room `admin`: under construction.
