//! The one list of keys: the checker, `baton check-config --keys` and `docs/config.md` all follow it.

/// A key of `baton.toml`.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    /// What stands on the right side, unit included.
    pub unit: &'static str,
    pub default: &'static str,
    pub range: &'static str,
    pub meaning: &'static str,
}

const fn key(
    name: &'static str,
    unit: &'static str,
    default: &'static str,
    range: &'static str,
    meaning: &'static str,
) -> Key {
    Key { name, unit, default, range, meaning }
}

pub const KEYS: &[Key] = &[
    key("cluster", "text", "required", "1 to 63 of a-z 0-9 - _", "name of the cluster, for people"),
    key("node", "number", "required", "1 to 32", "this node's id in the membership"),
    key("data", "path", "the folder of the file", "absolute, or relative to the file", "data folder"),
    key(
        "client_listen",
        "address:port",
        "127.0.0.1:7379",
        "IP address and port",
        "where RESP clients connect",
    ),
    key(
        "peer_listen",
        "address:port",
        "127.0.0.1:8379",
        "IP address and port",
        "where the other nodes connect",
    ),
    key("http_listen", "address:port", "none", "IP address and port", "/metrics and /health over HTTP"),
    key(
        "cores",
        "number",
        "by the machine",
        "1 to 64",
        "loops of this node: its own, and network loops for clients",
    ),
    key(
        "redo_workers",
        "number",
        "cores, at most 4",
        "1 to 16",
        "threads that apply large amounts of log, the event loop among them",
    ),
    key("memory", "size", "1GiB", "64MiB to 1TiB", "page cache and in-memory changes together"),
    key(
        "sync",
        "rule",
        "by cluster size",
        "ANY k (..) or FIRST k (..)",
        "who must hold a write before it commits",
    ),
    key("degrade", "word", "never", "never, or after <time>", "what happens when too few voters are left"),
    key(
        "commit",
        "level",
        "on",
        "off local remote_write remote_receive on remote_apply",
        "default reply level",
    ),
    key("commit_timeout", "duration", "10s", "1ms to 1h", "longest wait of a reply for its commit"),
    key("reads", "word", "linearizable", "linearizable, local", "what a read on the primary promises"),
    key("client_password", "text", "none", "1 to 512 bytes", "password that clients send with AUTH"),
    key("peer_secret", "text", "none", "16 to 512 bytes", "secret with which nodes authenticate each other"),
    key("max_clients", "number", "10000", "1 to 60000", "client connections served at once"),
    key("log_retention", "size", "max(16GiB, 10% of disk)", "two segments to 64TiB", "log kept for standbys"),
    key("shards", "number", "64", "1 to 256", "virtual shards; fixed for the cluster at init"),
    key(
        "segment_bytes",
        "size",
        "64MiB",
        "64KiB to 1GiB, a power of two",
        "size of a log file; fixed at init",
    ),
    key("staleness_bound", "duration", "none", "1ms to 1d", "a standby further behind refuses reads"),
    key("scrub_rate", "size", "4MiB", "0B (off) to 16GiB", "bytes per second that the scrubber reads"),
    key("scrub_every", "duration", "1h", "1s to 30d", "pause of the scrubber between two passes"),
    key(
        "voter_timeout",
        "duration",
        "none",
        "5s to 7d",
        "a voter silent for this long loses its vote until it is back",
    ),
    key(
        "stall_timeout",
        "duration",
        "5s",
        "100ms to 10m",
        "a disk that does not answer for this long: a primary steps down",
    ),
    key(
        "busy_poll",
        "duration",
        "200us",
        "0ms to 10ms",
        "how long a busy node looks again before it sleeps; 0ms: never",
    ),
    key("wal_sync", "word", "auto", "auto, dsync, fdatasync", "how log writes are made durable"),
    key("frames_in_flight", "number", "calibrated", "1 to 16", "log writes under way at the same time"),
    key(
        "store",
        "word",
        "none",
        "none, or dir:<absolute path>",
        "control store that grants failovers and changes of the policy",
    ),
    key(
        "promote_trigger_file",
        "path",
        "none",
        "absolute, or relative to the file",
        "a file whose appearance promotes this node",
    ),
    key("log_level", "word", "info", "error, warn, info, debug, trace", "how much the node's own log says"),
    key("log_format", "word", "human", "human, json", "form of the node's own log"),
    key("member", "tables", "this node alone", "1 to 32 tables", "[[member]]: the nodes of the cluster"),
];

pub const MEMBER_KEYS: &[Key] = &[
    key("node", "number", "required", "1 to 32", "id of the member"),
    key("host", "text", "the peer address", "1 to 255 bytes", "name shown in status"),
    key("client", "address:port", "none", "IP address and port", "where its clients connect, for redirects"),
    key("peer", "address:port", "required", "IP address and port", "where the other nodes reach it"),
    key(
        "priority",
        "number",
        "100",
        "0 to 1000",
        "higher is preferred as the next primary; shown to clients in INFO",
    ),
    key(
        "nofailover",
        "true/false",
        "false",
        "true, false",
        "never takes over in a switchover; a failover of it needs --force",
    ),
    key(
        "upstream",
        "number",
        "the primary",
        "id of another member",
        "makes it a cascaded standby below that member",
    ),
    key(
        "apply_delay",
        "duration",
        "none",
        "1ms to 30d",
        "as a standby it applies each commit that much later",
    ),
];

/// The known key nearest to `typed`, when it is near enough to be meant.
pub fn nearest(typed: &str, keys: &[Key]) -> Option<&'static str> {
    let typed: String = typed.chars().take(64).collect::<String>().to_ascii_lowercase().replace('-', "_");
    let (distance, name) = keys.iter().map(|key| (edits(&typed, key.name), key.name)).min()?;
    (distance <= 2 || distance * 3 <= name.len()).then_some(name)
}

/// Edit distance (Levenshtein), one row at a time.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_recognised_and_strangers_are_not() {
        assert_eq!(nearest("comit_timeout", KEYS), Some("commit_timeout"));
        assert_eq!(nearest("client-listen", KEYS), Some("client_listen"));
        assert_eq!(nearest("Node", KEYS), Some("node"));
        assert_eq!(nearest("priorty", MEMBER_KEYS), Some("priority"));
        assert_eq!(nearest("replication_slots_everywhere", KEYS), None);
    }

    #[test]
    fn every_key_is_described_once() {
        for keys in [KEYS, MEMBER_KEYS] {
            for (i, key) in keys.iter().enumerate() {
                assert!(keys[..i].iter().all(|other| other.name != key.name), "{} is listed twice", key.name);
                assert!(!key.meaning.is_empty() && !key.range.is_empty() && !key.default.is_empty());
            }
        }
    }
}
