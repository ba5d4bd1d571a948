//! Every error text of the data port in one place. The first word decides what a client library does: resolve the
//! primary again, retry, or give up. What Redis also says is worded as Redis words it.

use crate::base::Lsn;

pub const SYNTAX: &str = "ERR syntax error";
pub const NOT_INTEGER: &str = "ERR value is not an integer or out of range";
pub const INT_RANGE: &str = "ERR value is out of range, value must between -2147483648 and 2147483647";
pub const NOT_FLOAT: &str = "ERR value is not a valid float";
pub const NOT_FINITE: &str = "ERR increment would produce NaN or Infinity";
pub const OVERFLOW: &str = "ERR increment or decrement would overflow";
pub const DECREMENT_OVERFLOW: &str = "ERR decrement would overflow";
pub const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
pub const NO_SUCH_KEY: &str = "ERR no such key";
pub const OFFSET_RANGE: &str = "ERR offset is out of range";
pub const VALUE_TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
pub const KEY_TOO_LONG: &str = "ERR key exceeds the maximum allowed size of 4096 bytes";
pub const REPLY_TOO_LONG: &str = "ERR reply would exceed the maximum allowed size, nothing was changed";
pub const INVALID_CURSOR: &str = "ERR invalid cursor";
pub const DB_INDEX: &str = "ERR DB index is out of range";

pub const NESTED_MULTI: &str = "ERR MULTI calls can not be nested";
pub const EXEC_WITHOUT_MULTI: &str = "ERR EXEC without MULTI";
pub const DISCARD_WITHOUT_MULTI: &str = "ERR DISCARD without MULTI";
pub const WATCH_IN_MULTI: &str = "ERR WATCH inside MULTI is not allowed";
pub const EXEC_ABORT: &str = "EXECABORT Transaction discarded because of previous errors.";
pub const NOT_IN_MULTI: &str = "ERR Command not allowed inside a transaction";
pub const QUEUE_FULL: &str = "ERR too many commands or bytes queued in this transaction";
pub const WATCHES_FULL: &str = "ERR too many keys watched by this connection";
/// The records of one transaction do not fit into one log frame.
pub const TRANSACTION_TOO_BIG: &str =
    "TOOBIG transaction does not fit into one log frame, nothing was changed";

pub const NO_AUTH: &str = "NOAUTH Authentication required.";
pub const NO_AUTH_HELLO: &str = "NOAUTH HELLO must be called with the client already authenticated, otherwise the \
     HELLO AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version \
     at the same time";
pub const WRONG_PASS: &str = "WRONGPASS invalid username-password pair or user is disabled.";
pub const AUTH_WITHOUT_PASSWORD: &str = "ERR AUTH <password> called without any password configured for the \
     default user. Are you sure your configuration is correct?";
pub const NO_PROTO: &str = "NOPROTO unsupported protocol version";
pub const CLUSTER_DISABLED: &str = "ERR This instance has cluster support disabled";
pub const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";

pub const WAIT_ON_REPLICA: &str = "ERR WAIT cannot be used with replica instances. Please also note that since Redis \
     4.0 if a replica is configured to be writable (which is not the default) writes to replicas are just local and are \
     not propagated.";
pub const WAITAOF_ON_REPLICA: &str = "ERR WAITAOF cannot be used with replica instances. Please also note that writes \
     to replicas are just local and are not propagated.";

/// A standby takes no writes.
pub const READONLY: &str = "READONLY You can't write against a read only replica.";
/// A standby that lags behind its bound, or has lost its primary, answers no reads.
pub const MASTER_DOWN: &str =
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.";
/// The node recovers or redoes its log.
pub const LOADING: &str = "LOADING baton is recovering its data, try again";
/// The node has no role yet, or is giving its role away.
pub const NOT_SERVING: &str =
    "CLUSTERDOWN this node serves no clients at present, ask the cluster for its primary";
/// The node is told to stop. Refused before anything was appended.
pub const STOPPING: &str = "CLUSTERDOWN this node is stopping, nothing was written";
/// The leader cannot show that no other node has taken over (`protocol` 2.10).
pub const NO_LEASE: &str = "CLUSTERDOWN the primary has no read lease, nothing was read";
/// Refused before anything was appended: definitely not done (`protocol` 2.9).
pub const NO_REPLICAS: &str = "NOREPLICAS Not enough good replicas to write.";
/// The disk has no room for more log. Refused before anything was appended; reads go on.
pub const DISK_FULL: &str =
    "MISCONF disk full: no room for more log, writes are refused until space is freed";
/// A shard of this node is not what its own log makes of it (`protocol` 7.2).
pub const SICK: &str = "MISCONF this node's copy of the data is not sound, ask another node";
/// Delta memory is used up until a checkpoint completes.
pub const OUT_OF_MEMORY: &str = "OOM command not allowed until a checkpoint has freed memory.";
/// A stored entry does not decode. The scrubber finds and repairs its page.
pub const CORRUPT_ENTRY: &str = "MISCONF a stored entry is damaged, nothing was changed";

/// What of a client's word an error text shows: as in Redis, up to a zero byte and at most `most` bytes.
pub(super) fn shown(word: &[u8], most: usize) -> &[u8] {
    let end = word.iter().position(|byte| *byte == 0).unwrap_or(word.len());
    &word[..end.min(most)]
}

/// After the append and without a commit nobody can say more (`protocol` 2.9). Never "failed".
pub fn unknown_outcome(lsn: Lsn) -> String {
    format!("UNKNOWN outcome unknown at lsn {lsn}")
}
