//! One machine's disk.

/// A whole disk's content, detached from its machine.
#[derive(Clone, Debug, Default)]
pub struct DiskImage {}
