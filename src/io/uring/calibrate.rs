//! Measures, at start, which way of making log frames durable is cheapest on this disk.

use std::io;
use std::path::Path;

use super::UringSeam;

/// The outcome of [`calibrate`].
#[derive(Clone, Debug)]
pub struct Calibration {
    /// True: each log write carries RWF_DSYNC. False: plain writes, then one flush that covers them.
    pub durable_writes: bool,
    /// Log frames to keep on their way to the disk at once.
    pub frames_in_flight: usize,
    /// Whether flushes run on the helper thread (already applied to the seam).
    pub flush_thread: bool,
    /// One line with the numbers, for the log.
    pub report: String,
}

/// Writes to a scratch file in `folder` for at most about 300 ms, removes it, and chooses. Call it before other
/// operations are under way.
pub fn calibrate(_seam: &mut UringSeam, _folder: &Path) -> io::Result<Calibration> {
    panic!("not built yet")
}
