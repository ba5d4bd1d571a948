//! The one mutable state behind every handle.

use super::config::SimConfig;

pub(super) struct Core {}

impl Core {
    pub(super) fn new(_seed: u64, _config: SimConfig) -> Core {
        Core {}
    }
}
