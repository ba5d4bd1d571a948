//! How fast a log that is behind catches up: two counters, looked at now and then.

use std::time::Duration;

use crate::base::{Lsn, Mono};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The progress of one receiver towards the end of its leader's log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    seen: Option<(Mono, Lsn, Lsn)>,
    /// Bytes per second, smoothed: what arrives, and by how much the end moves away.
    arrives: f64,
    grows: f64,
}

impl Rate {
    /// Notes where both ends are now.
    pub fn look(&mut self, now: Mono, reached: Lsn, end: Lsn) {
        let Some((at, before, end_before)) = self.seen else {
            self.seen = Some((now, reached, end));
            return;
        };
        let passed = now.since(at);
        if passed < LOOK_EVERY {
            return;
        }
        if reached < before || end < end_before {
            *self = Rate { seen: Some((now, reached, end)), ..Rate::default() };
            return;
        }
        let seconds = passed.as_secs_f64();
        self.arrives = self.arrives / 2.0 + reached.since(before) as f64 / seconds / 2.0;
        self.grows = self.grows / 2.0 + end.since(end_before) as f64 / seconds / 2.0;
        self.seen = Some((now, reached, end));
    }

    /// When the lag will be gone at this speed; `None` while it does not shrink.
    pub fn eta(&self, lag_bytes: u64) -> Option<Duration> {
        if lag_bytes == 0 {
            return Some(Duration::ZERO);
        }
        let gains = self.arrives - self.grows;
        (gains >= 1.0).then(|| Duration::from_secs_f64((lag_bytes as f64 / gains).min(1e9)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_its_share() {
        let mut rate = Rate::default();
        for second in 0..20u64 {
            rate.look(Mono(second * 1_000_000_000), Lsn(second * 3_000_000), Lsn(1 << 30));
        }
        let left = rate.eta(30_000_000).unwrap().as_secs_f64();
        assert!((9.9..10.1).contains(&left), "{left}");
        assert_eq!(rate.eta(0), Some(Duration::ZERO));
    }

    #[test]
    fn a_lag_that_grows_has_no_end() {
        let mut rate = Rate::default();
        for second in 0..9u64 {
            rate.look(Mono(second * 1_000_000_000), Lsn(second * 1000), Lsn(second * 5000));
        }
        assert_eq!(rate.eta(32_000), None);
        rate.look(Mono(20_000_000_000), Lsn(0), Lsn(0));
        assert_eq!(rate.eta(1), None, "a log that was cut begins anew");
    }
}
