//! A latency histogram: 1 µs to 100 s with two significant digits, 40 KiB, one increment per record.

use std::time::Duration;

use hdrhistogram::Histogram;

const HIGHEST_US: u64 = 100_000_000;

/// Durations, kept in microseconds.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
    sum_us: u64,
}

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, HIGHEST_US, 2).expect("constant bounds are valid");
        Latency { histogram, sum_us: 0 }
    }
}

impl Latency {
    pub fn record(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(HIGHEST_US);
        self.sum_us += us;
        self.histogram.saturating_record(us);
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The value below which `share` (0.0..=1.0) of all records lie, in microseconds; 0 without records.
    pub fn quantile_us(&self, share: f64) -> u64 {
        if self.histogram.is_empty() { 0 } else { self.histogram.value_at_quantile(share) }
    }

    pub fn max_us(&self) -> u64 {
        self.histogram.max()
    }

    pub fn mean_us(&self) -> f64 {
        self.histogram.mean()
    }

    /// Records at or below `us`.
    pub fn count_up_to(&self, us: u64) -> u64 {
        self.histogram.count_between(0, us)
    }

    /// Adds what another one recorded.
    pub fn merge(&mut self, other: &Latency) {
        self.histogram.add(&other.histogram).expect("same bounds");
        self.sum_us += other.sum_us;
    }

    pub fn reset(&mut self) {
        self.histogram.reset();
        self.sum_us = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_two_digits_and_nothing_is_lost() {
        let mut latency = Latency::default();
        for us in 1..=10_000u64 {
            latency.record(Duration::from_micros(us));
        }
        latency.record(Duration::from_secs(3600));
        assert_eq!(latency.count(), 10_001);
        let p50 = latency.quantile_us(0.5) as f64;
        assert!((p50 / 5000.0 - 1.0).abs() < 0.02, "{p50}");
        assert!(latency.max_us() >= HIGHEST_US);
        let mut twice = latency.clone();
        twice.merge(&latency);
        assert_eq!(twice.count(), 20_002);
        assert_eq!(Latency::default().quantile_us(0.99), 0);
    }
}
