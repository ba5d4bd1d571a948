//! The kernel ring backend.

mod pool;

pub use pool::LentBuffer;
