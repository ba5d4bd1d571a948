//! Samples at one moment, and the Prometheus text format (version 0.0.4).

use std::fmt::Write;

use super::latency::Latency;

/// What Prometheus calls the type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A number, or a histogram as (upper bound in seconds, records up to it), records in all, sum in seconds.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    Number(u64),
    Histogram { buckets: Vec<(f64, u64)>, count: u64, sum: f64 },
}

/// One sample.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    pub name: String,
    pub help: String,
    pub kind: Kind,
    pub labels: Vec<(String, String)>,
    pub value: Value,
}

/// Upper bounds of the buckets, in microseconds: the span from a cached read to a stalled disk.
const BOUNDS_US: [u64; 16] = [
    50, 100, 200, 400, 800, 1_500, 3_000, 6_000, 12_500, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    5_000_000, 30_000_000,
];

/// Samples in the order they were added.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    samples: Vec<Sample>,
}

impl Snapshot {
    pub fn new() -> Snapshot {
        Snapshot::default()
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Samples of one name must be pushed one after the other: they form one family.
    pub fn push(&mut self, name: &str, help: &str, kind: Kind, labels: &[(&str, &str)], number: u64) {
        self.add(name, help, kind, labels, Value::Number(number));
    }

    pub fn push_latency(&mut self, name: &str, help: &str, labels: &[(&str, &str)], latency: &Latency) {
        let buckets = BOUNDS_US.iter().map(|us| (*us as f64 / 1e6, latency.count_up_to(*us))).collect();
        let value = Value::Histogram { buckets, count: latency.count(), sum: latency.sum_us() as f64 / 1e6 };
        self.add(name, help, Kind::Histogram, labels, value);
    }

    fn add(&mut self, name: &str, help: &str, kind: Kind, labels: &[(&str, &str)], value: Value) {
        let labels = labels.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect();
        self.samples.push(Sample { name: name.into(), help: help.into(), kind, labels, value });
    }

    /// The text that `/metrics` serves.
    pub fn prometheus(&self) -> String {
        let mut out = String::new();
        let mut family = "";
        for sample in &self.samples {
            if sample.name != family {
                let help = sample.help.replace('\\', "\\\\").replace('\n', "\\n");
                let _ = writeln!(out, "# HELP {} {help}", sample.name);
                let _ = writeln!(out, "# TYPE {} {}", sample.name, sample.kind.word());
                family = &sample.name;
            }
            sample.write(&mut out);
        }
        out
    }
}

impl Sample {
    fn write(&self, out: &mut String) {
        let name = &self.name;
        match &self.value {
            Value::Number(number) => {
                let _ = writeln!(out, "{name}{} {number}", self.label_text(None));
            }
            Value::Histogram { buckets, count, sum } => {
                for (bound, up_to) in buckets {
                    let _ =
                        writeln!(out, "{name}_bucket{} {up_to}", self.label_text(Some(&bound.to_string())));
                }
                let _ = writeln!(out, "{name}_bucket{} {count}", self.label_text(Some("+Inf")));
                let _ = writeln!(out, "{name}_sum{} {sum}", self.label_text(None));
                let _ = writeln!(out, "{name}_count{} {count}", self.label_text(None));
            }
        }
    }

    fn label_text(&self, bound: Option<&str>) -> String {
        let own = self.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let pairs: Vec<String> = own
            .chain(bound.map(|le| ("le", le)))
            .map(|(key, value)| format!("{key}=\"{}\"", escape(value)))
            .collect();
        if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut snapshot = Snapshot::new();
        snapshot.push("a_total", "Counts\nthings.", Kind::Counter, &[("peer", "n\"2")], 3);
        snapshot.push("a_total", "Counts\nthings.", Kind::Counter, &[("peer", "n3")], 4);
        let mut latency = Latency::default();
        latency.record(Duration::from_micros(60));
        latency.record(Duration::from_secs(60));
        snapshot.push_latency("b_seconds", "Takes.", &[], &latency);
        let text = snapshot.prometheus();
        let head = "# HELP a_total Counts\\nthings.\n# TYPE a_total counter\na_total{peer=\"n\\\"2\"} 3\na_total{peer=\"n3\"} 4\n";
        assert!(text.starts_with(head), "{text}");
        assert!(
            text.contains("b_seconds_bucket{le=\"0.00005\"} 0\nb_seconds_bucket{le=\"0.0001\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("b_seconds_bucket{le=\"30\"} 1\nb_seconds_bucket{le=\"+Inf\"} 2\n"), "{text}");
        assert!(text.ends_with("b_seconds_sum 60.00006\nb_seconds_count 2\n"), "{text}");
    }
}
