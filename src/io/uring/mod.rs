//! The kernel ring backend.
