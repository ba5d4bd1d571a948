//! What a run measured: the JSON of `baton bench --json`, and its text.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::metrics::Latency;

/// Microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LatencySummary {
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl LatencySummary {
    pub fn of(latency: &Latency) -> LatencySummary {
        LatencySummary {
            mean: latency.mean_us(),
            p50: latency.quantile_us(0.5),
            p90: latency.quantile_us(0.9),
            p99: latency.quantile_us(0.99),
            p999: latency.quantile_us(0.999),
            max: latency.max_us(),
        }
    }
}

/// One tenth of a second of the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Slice {
    pub ok: u64,
    pub errors: u64,
    /// Highest latency of a success in the slice, microseconds.
    pub max_us: u64,
}

/// Replication lag of the slowest direct standby, seen from outside during the run.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LagSummary {
    pub samples: u64,
    pub mean_bytes: f64,
    pub max_bytes: u64,
    pub max_ms: Option<u64>,
}

impl LagSummary {
    /// `samples` are (bytes, milliseconds) of the slowest standby at each look.
    pub fn of(samples: &[(u64, Option<u64>)]) -> Option<LagSummary> {
        let max_bytes = samples.iter().map(|(bytes, _)| *bytes).max()?;
        let sum: f64 = samples.iter().map(|(bytes, _)| *bytes as f64).sum();
        Some(LagSummary {
            samples: samples.len() as u64,
            mean_bytes: sum / samples.len() as f64,
            max_bytes,
            max_ms: samples.iter().filter_map(|(_, ms)| *ms).max(),
        })
    }
}

/// The result of one run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub workload: String,
    pub clients: usize,
    /// Connections that read elsewhere than the others write.
    pub readers: usize,
    pub pipeline: usize,
    pub value_bytes: usize,
    pub keys: u64,
    pub seconds: f64,
    /// Replies that were no errors.
    pub ok: u64,
    /// Successes per second.
    pub throughput: f64,
    pub latency_us: LatencySummary,
    /// Error replies by their first word.
    pub errors: BTreeMap<String, u64>,
    /// Commands whose connection ended before their reply.
    pub lost: u64,
    pub reconnects: u64,
    /// Longest time without any success, start and end of the run included.
    pub longest_gap_ms: f64,
    pub lag: Option<LagSummary>,
    pub slice_ms: u64,
    pub slices: Vec<Slice>,
}

impl Report {
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The form for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let l = &self.latency_us;
        let ms = |us: u64| us as f64 / 1000.0;
        let _ = writeln!(
            out,
            "{}: {} clients, pipeline {}, {} byte values, {} keys, {:.1} s",
            self.workload, self.clients, self.pipeline, self.value_bytes, self.keys, self.seconds
        );
        if self.readers > 0 {
            let _ = writeln!(out, "  {} of the clients read from standbys", self.readers);
        }
        let _ = writeln!(out, "  throughput   {:>12.0} per second ({} in all)", self.throughput, self.ok);
        let _ = writeln!(
            out,
            "  latency ms   p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
            ms(l.p50),
            ms(l.p90),
            ms(l.p99),
            ms(l.p999),
            ms(l.max)
        );
        let _ = writeln!(out, "  longest gap  {:>12.1} ms without a success", self.longest_gap_ms);
        if self.lost > 0 || self.reconnects > 0 {
            let _ =
                writeln!(out, "  connections  {} reconnects, {} commands lost", self.reconnects, self.lost);
        }
        for (word, count) in &self.errors {
            let _ = writeln!(out, "  error        {word}: {count}");
        }
        if let Some(lag) = &self.lag {
            let time = lag.max_ms.map_or_else(String::new, |ms| format!(", {ms} ms"));
            let _ = writeln!(
                out,
                "  standby lag  mean {:.0} bytes, max {} bytes{time} ({} samples)",
                lag.mean_bytes, lag.max_bytes, lag.samples
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_summed_over_its_samples() {
        assert_eq!(LagSummary::of(&[]), None);
        let lag = LagSummary::of(&[(10, None), (30, Some(4))]).unwrap();
        assert_eq!((lag.samples, lag.max_bytes, lag.max_ms), (2, 30, Some(4)));
        assert!((lag.mean_bytes - 20.0).abs() < 1e-9);
    }

    #[test]
    fn a_report_survives_its_json() {
        let mut report = Report { workload: "set".into(), ok: 5, lost: 1, ..Report::default() };
        report.errors.insert("READONLY".into(), 3);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert!(report.text().contains("READONLY: 3"));
    }
}
