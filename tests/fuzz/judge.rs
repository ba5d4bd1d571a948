//! One run of a target: what it allocates is counted.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use super::targets::Target;

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The way that the input took, and the bytes that were allocated for it in all. What a target allocates is counted by the
/// whole process, so nothing else may run beside it.
pub fn run(target: &Target, data: &[u8]) -> Result<(u64, usize), String> {
    let region = Region::new(COUNTED);
    let way = (target.run)(data);
    let change = region.change();
    let spent = change.bytes_allocated + change.bytes_reallocated.max(0).unsigned_abs();
    let allowed = data.len() * target.bytes_each + target.bytes_once;
    if spent > allowed {
        return Err(format!("allocates {spent} bytes for an input of {}, {allowed} are allowed", data.len()));
    }
    Ok((way, spent))
}
