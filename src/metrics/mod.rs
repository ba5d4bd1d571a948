//! What the node counts and measures, and its form for Prometheus.
//!
//! The hot path touches plain `u64` fields and one histogram increment: no atomics, no locks, no strings, because one
//! loop owns a [`Metrics`] and answers a request for it by a [`Snapshot`]. No sockets here.
//!
//! Invariants:
//! - counters never go down while the process lives;
//! - names and units follow the Prometheus rules (seconds, bytes, `_total`), and every sample has a help text;
//! - a latency beyond the histogram's range counts in its last bucket, never nowhere.

mod latency;
mod snapshot;

pub use latency::Latency;
pub use snapshot::{Kind, Sample, Snapshot, Value};

/// Declares the plain fields together with their names and help texts, so that none is forgotten in the snapshot.
macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident, $kind:expr; $($field:ident = $metric:literal, $help:literal;)+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $(#[doc = $help] pub $field: u64),+ }

        impl $name {
            fn add_to(&self, snapshot: &mut Snapshot) {
                $(snapshot.push($metric, $help, $kind, &[], self.$field);)+
            }
        }
    };
}

numbers! {
    /// Only ever grow.
    Counters, Kind::Counter;
    connections_accepted = "baton_connections_accepted_total", "Client connections accepted.";
    connections_refused = "baton_connections_refused_total", "Client connections refused because max_clients was reached.";
    commands_read = "baton_commands_read_total", "Commands that read.";
    commands_written = "baton_commands_written_total", "Commands that wrote.";
    commands_other = "baton_commands_other_total", "Commands that neither read nor wrote data.";
    replies_error = "baton_replies_error_total", "Error replies of every kind.";
    replies_unknown = "baton_replies_unknown_total", "Writes answered UNKNOWN: their outcome was open.";
    replies_noreplicas = "baton_replies_noreplicas_total", "Writes refused before append for want of voters.";
    client_bytes_in = "baton_client_bytes_in_total", "Bytes received from clients.";
    client_bytes_out = "baton_client_bytes_out_total", "Bytes sent to clients.";
    peer_bytes_in = "baton_peer_bytes_in_total", "Bytes received from peers.";
    peer_bytes_out = "baton_peer_bytes_out_total", "Bytes sent to peers.";
    frames_sealed = "baton_wal_frames_sealed_total", "Log frames sealed by this node as leader.";
    frames_received = "baton_wal_frames_received_total", "Log frames received from a leader.";
    frames_refused = "baton_wal_frames_refused_total", "Log frames or messages refused: bad digest, wrong term, wrong place.";
    wal_bytes_written = "baton_wal_bytes_written_total", "Log bytes written to disk.";
    wal_writes = "baton_wal_writes_total", "Durable log writes.";
    records_applied = "baton_records_applied_total", "Committed records applied to shards.";
    page_misses = "baton_page_misses_total", "Pages read from disk on behalf of a command.";
    pages_damaged = "baton_pages_damaged_total", "Pages found that are not what their parent says.";
    pages_repaired = "baton_pages_repaired_total", "Damaged pages made whole again.";
    page_repairs_failed = "baton_page_repairs_failed_total", "Tries to repair a page that found no good copy.";
    pages_served = "baton_pages_served_total", "Pages and long values sent to nodes that repair theirs.";
    scrub_pages = "baton_scrub_pages_total", "Pages read by the scrubber.";
    scrub_bad = "baton_scrub_pages_bad_total", "Pages that the scrubber found damaged.";
    scrub_passes = "baton_scrub_passes_total", "Whole passes of the scrubber.";
    roots_compared = "baton_roots_compared_total", "Checkpoints compared with another node's.";
    pages_written = "baton_pages_written_total", "Pages written by checkpoints.";
    checkpoints_done = "baton_checkpoints_done_total", "Shard checkpoints finished.";
    terms_started = "baton_terms_started_total", "Terms that this node started as leader.";
    demotions = "baton_demotions_total", "Times that this node stopped leading.";
    fenced = "baton_fenced_total", "Messages of an older term refused.";
    loop_turns = "baton_loop_turns_total", "Turns of the event loop.";
}

numbers! {
    /// Go up and down.
    Gauges, Kind::Gauge;
    clients_connected = "baton_clients_connected", "Clients connected now.";
    peers_connected = "baton_peers_connected", "Peers connected now.";
    replies_waiting = "baton_replies_waiting", "Replies that wait for their commit.";
    appended_lsn = "baton_appended_lsn", "End of the log as sealed in memory.";
    flushed_lsn = "baton_flushed_lsn", "End of the log that is durable here.";
    committed_lsn = "baton_committed_lsn", "End of the log that the policy made permanent.";
    applied_lsn = "baton_applied_lsn", "End of the log that readers see here.";
    term = "baton_term", "Number of the term this node follows or leads.";
    is_primary = "baton_is_primary", "1 while this node leads.";
    keys = "baton_keys", "User keys, expired ones not yet removed included.";
    delta_bytes = "baton_delta_bytes", "Memory of changes since the last checkpoints.";
    cache_bytes = "baton_cache_bytes", "Memory of cached pages.";
    pages_damaged_now = "baton_pages_damaged", "Damaged pages that are not repaired yet.";
    root_disputes = "baton_root_disputes", "Shards whose roots differ from another node's.";
    wal_kept_bytes = "baton_wal_kept_bytes", "Log bytes kept on disk.";
    disk_free_bytes = "baton_disk_free_bytes", "Free bytes of the data folder's file system.";
}

/// Everything one node counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub count: Counters,
    pub gauge: Gauges,
    /// From append to the node's own durable flush.
    pub flush: Latency,
    /// From append to commit.
    pub commit: Latency,
    /// From the arrival of a command to its reply.
    pub reply: Latency,
    /// Length of one turn of the event loop, waiting left out.
    pub turn: Latency,
}

impl Metrics {
    pub fn new() -> Metrics {
        Metrics::default()
    }

    /// A copy for rendering; the caller may add samples with labels (one per peer, one per error prefix).
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new();
        self.count.add_to(&mut snapshot);
        self.gauge.add_to(&mut snapshot);
        for (name, help, latency) in [
            ("baton_flush_seconds", "From append to the node's own durable flush.", &self.flush),
            ("baton_commit_seconds", "From append to commit.", &self.commit),
            ("baton_reply_seconds", "From the arrival of a command to its reply.", &self.reply),
            ("baton_turn_seconds", "Length of one turn of the event loop.", &self.turn),
        ] {
            snapshot.push_latency(name, help, &[], latency);
        }
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_field_reaches_the_text_and_names_are_unique() {
        let mut metrics = Metrics::new();
        metrics.count.commands_written = 41;
        metrics.gauge.is_primary = 1;
        metrics.commit.record(Duration::from_micros(700));
        let snapshot = metrics.snapshot();
        let mut names: Vec<&str> = snapshot.samples().iter().map(|sample| sample.name.as_str()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        let text = snapshot.prometheus();
        assert!(text.contains("\nbaton_commands_written_total 41\n"), "{text}");
        assert!(text.contains("\nbaton_is_primary 1\n"), "{text}");
        assert!(text.contains("# TYPE baton_commit_seconds histogram\n"), "{text}");
        assert!(text.contains("baton_commit_seconds_count 1\n"), "{text}");
    }
}
