//! The commands: names, shapes and what they do.

use super::call::{Call, Step};
use super::{client, connection, expire, keys, multi, numbers, roles, server, strings};
use crate::resp::Args;

pub(super) mod flags {
    pub const WRITE: u16 = 1;
    pub const READ: u16 = 1 << 1;
    pub const FAST: u16 = 1 << 2;
    pub const ADMIN: u16 = 1 << 3;
    /// Runs before AUTH.
    pub const NO_AUTH: u16 = 1 << 4;
    /// Touches no data: runs on stale standbys and on nodes that serve nobody.
    pub const STALE: u16 = 1 << 5;
    /// Refused between MULTI and EXEC.
    pub const NO_MULTI: u16 = 1 << 6;
    /// Runs between MULTI and EXEC instead of being queued.
    pub const IMMEDIATE: u16 = 1 << 7;
    /// Only in the union of a transaction's flags: one of its commands lacks [`STALE`].
    pub const DATA: u16 = 1 << 8;
    /// Asks whether somebody serves here, and shows no data: its reply needs no lease.
    pub const ALIVE: u16 = 1 << 9;
}
use flags::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Group {
    Connection,
    Generic,
    Server,
    String,
    Transactions,
}

impl Group {
    pub fn name(self) -> &'static str {
        match self {
            Group::Connection => "connection",
            Group::Generic => "generic",
            Group::Server => "server",
            Group::String => "string",
            Group::Transactions => "transactions",
        }
    }
}

pub(super) type Run = fn(&mut Call<'_, '_>) -> Step;

/// One command.
pub(super) struct Spec {
    /// In lower case.
    pub name: &'static str,
    /// Number of arguments, the name included; negative: at least so many.
    pub arity: i16,
    pub flags: u16,
    /// First and last key argument (negative: from the end) and the step between keys; all zero without keys.
    pub keys: (i16, i16, i16),
    pub group: Group,
    pub summary: &'static str,
    pub run: Run,
    /// A container's: the second argument names one of them.
    pub subs: &'static [Sub],
}

/// A subcommand.
pub(super) struct Sub {
    /// `container|name`, in lower case.
    pub full: &'static str,
    /// Counted from the container.
    pub arity: i16,
    /// [`flags::NO_MULTI`] or nothing; the others are the container's.
    pub flags: u16,
    pub run: Run,
}

impl Sub {
    pub fn name(&self) -> &'static str {
        self.full.split_once('|').map_or(self.full, |(_, name)| name)
    }
}

pub(super) fn arity_fits(arity: i16, args: usize) -> bool {
    let wanted = usize::from(arity.unsigned_abs());
    if arity < 0 { args >= wanted } else { args == wanted }
}

impl Spec {
    /// The subcommand that the arguments name, `None` when there is none to name; `Err` holds an unknown name.
    pub fn sub<'a>(&self, args: Args<'a>) -> Result<Option<&'static Sub>, &'a [u8]> {
        match args.get(1) {
            Some(name) if !self.subs.is_empty() => {
                let found = self.subs.iter().find(|sub| sub.name().as_bytes().eq_ignore_ascii_case(name));
                found.map(Some).ok_or(name)
            }
            _ => Ok(None),
        }
    }

    /// The key arguments.
    pub fn keys_of<'a>(&self, args: Args<'a>) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (first, last, step) = self.keys;
        let end = match last {
            _ if first == 0 => 0,
            // The arity makes sure of at least one argument behind the name.
            last if last < 0 => args.len() + 1 - usize::from(last.unsigned_abs()),
            last => last as usize + 1,
        };
        (first as usize..end).step_by(step.max(1) as usize).filter_map(move |at| args.get(at))
    }
}

const fn spec(
    name: &'static str,
    arity: i16,
    flags: u16,
    keys: (i16, i16, i16),
    group: Group,
    summary: &'static str,
    run: Run,
) -> Spec {
    Spec { name, arity, flags, keys, group, summary, run, subs: &[] }
}

const fn container(spec: Spec, subs: &'static [Sub]) -> Spec {
    Spec { subs, ..spec }
}

pub(super) const fn sub(full: &'static str, arity: i16, flags: u16, run: Run) -> Sub {
    Sub { full, arity, flags, run }
}

const NONE: (i16, i16, i16) = (0, 0, 0);
const ONE: (i16, i16, i16) = (1, 1, 1);
const TWO: (i16, i16, i16) = (1, 2, 1);
const ALL: (i16, i16, i16) = (1, -1, 1);
const PAIRS: (i16, i16, i16) = (1, -1, 2);
const W: u16 = WRITE;
const WF: u16 = WRITE | FAST;
const R: u16 = READ;
const RF: u16 = READ | FAST;
/// Sets up or describes the connection or the node.
const S: u16 = STALE;
const SF: u16 = STALE | FAST;
const C: Group = Group::Connection;
const G: Group = Group::Generic;
const V: Group = Group::Server;
const T: Group = Group::String;
const X: Group = Group::Transactions;

const COUNT: usize = 73;

#[rustfmt::skip]
pub(super) static COMMANDS: [Spec; COUNT] = [
    spec("append", 3, WF, ONE, T, "Appends a string to the value of a key. Creates the key if it doesn't exist.", strings::append),
    spec("auth", -2, SF | NO_AUTH, NONE, C, "Authenticates the connection.", connection::auth),
    spec("baton.commit", -1, SF, NONE, C, "Shows or sets when this connection's replies to writes may leave.", connection::commit_level),
    spec("baton.lsn", 1, SF | NO_MULTI, NONE, C, "Returns where this connection's last write ends in the log.", roles::own_lsn),
    spec("baton.waitlsn", 3, S | NO_MULTI, NONE, C, "Waits until this node has applied the log up to a position.", roles::wait_lsn),
    container(spec("client", -2, S, NONE, C, "A container for client connection commands.", client::client), &client::SUBCOMMANDS),
    spec("cluster", -2, S, NONE, V, "Answers that this is no Redis Cluster.", server::cluster),
    container(spec("command", -1, S, NONE, V, "Returns detailed information about all commands.", server::command), &server::COMMAND),
    container(spec("config", -2, S | ADMIN, NONE, V, "A container for server configuration commands.", server::config), &server::CONFIG),
    spec("dbsize", 1, RF, NONE, V, "Returns the number of keys in the database.", keys::dbsize),
    spec("decr", 2, WF, ONE, T, "Decrements the integer value of a key by one. Uses 0 as initial value if the key doesn't exist.", numbers::decr),
    spec("decrby", 3, WF, ONE, T, "Decrements a number from the integer value of a key. Uses 0 as initial value if the key doesn't exist.", numbers::decrby),
    spec("del", -2, W, ALL, G, "Deletes one or more keys.", keys::del),
    spec("discard", 1, SF | IMMEDIATE, NONE, X, "Discards a transaction.", multi::discard),
    spec("echo", 2, SF, NONE, C, "Returns the given string.", connection::echo),
    spec("exec", 1, S | IMMEDIATE, NONE, X, "Executes all commands in a transaction.", multi::exec),
    spec("exists", -2, RF, ALL, G, "Determines whether one or more keys exist.", keys::exists),
    spec("expire", -3, WF, ONE, G, "Sets the expiration time of a key in seconds.", expire::expire),
    spec("expireat", -3, WF, ONE, G, "Sets the expiration time of a key to a Unix timestamp.", expire::expireat),
    spec("expiretime", 2, RF, ONE, G, "Returns the expiration time of a key as a Unix timestamp.", expire::expiretime),
    spec("failover", -1, S | ADMIN | NO_MULTI, NONE, V, "Starts a coordinated failover from a server to one of its replicas.", roles::failover),
    spec("flushall", -1, W, NONE, V, "Removes all keys from all databases.", keys::flushall),
    spec("flushdb", -1, W, NONE, V, "Remove all keys from the current database.", keys::flushall),
    spec("get", 2, RF, ONE, T, "Returns the string value of a key.", strings::get),
    spec("getdel", 2, WF, ONE, T, "Returns the string value of a key after deleting the key.", strings::getdel),
    spec("getex", -2, WF, ONE, T, "Returns the string value of a key after setting its expiration time.", strings::getex),
    spec("getrange", 4, R, ONE, T, "Returns a substring of the string stored at a key.", strings::getrange),
    spec("getset", 3, WF, ONE, T, "Returns the previous string value of a key after setting it to a new value.", strings::getset),
    spec("hello", -1, SF | NO_AUTH, NONE, C, "Handshakes with the Redis server.", connection::hello),
    spec("incr", 2, WF, ONE, T, "Increments the integer value of a key by one. Uses 0 as initial value if the key doesn't exist.", numbers::incr),
    spec("incrby", 3, WF, ONE, T, "Increments the integer value of a key by a number. Uses 0 as initial value if the key doesn't exist.", numbers::incrby),
    spec("incrbyfloat", 3, WF, ONE, T, "Increment the floating point value of a key by a number. Uses 0 as initial value if the key doesn't exist.", numbers::incrbyfloat),
    spec("info", -1, S, NONE, V, "Returns information and statistics about the server.", server::info),
    spec("keys", 2, R, NONE, G, "Returns all key names that match a pattern.", keys::keys),
    spec("lastsave", 1, SF, NONE, V, "Returns the Unix timestamp of the last successful save to disk.", server::lastsave),
    spec("mget", -2, RF, ALL, T, "Atomically returns the string values of one or more keys.", strings::mget),
    spec("mset", -3, W, PAIRS, T, "Atomically creates or modifies the string values of one or more keys.", strings::mset),
    spec("msetnx", -3, W, PAIRS, T, "Atomically modifies the string values of one or more keys only when all keys don't exist.", strings::msetnx),
    spec("multi", 1, SF | IMMEDIATE, NONE, X, "Starts a transaction.", multi::multi),
    spec("persist", 2, WF, ONE, G, "Removes the expiration time of a key.", expire::persist),
    spec("pexpire", -3, WF, ONE, G, "Sets the expiration time of a key in milliseconds.", expire::pexpire),
    spec("pexpireat", -3, WF, ONE, G, "Sets the expiration time of a key to a Unix milliseconds timestamp.", expire::pexpireat),
    spec("pexpiretime", 2, RF, ONE, G, "Returns the expiration time of a key as a Unix milliseconds timestamp.", expire::pexpiretime),
    spec("ping", -1, FAST | ALIVE, NONE, C, "Returns the server's liveliness response.", connection::ping),
    spec("psetex", 4, W, ONE, T, "Sets both string value and expiration time in milliseconds of a key. The key is created if it doesn't exist.", strings::psetex),
    spec("pttl", 2, RF, ONE, G, "Returns the expiration time in milliseconds of a key.", expire::pttl),
    spec("quit", -1, SF | NO_AUTH | IMMEDIATE, NONE, C, "Closes the connection.", connection::quit),
    spec("randomkey", 1, R, NONE, G, "Returns a random key name from the database.", keys::randomkey),
    spec("readonly", 1, SF, NONE, C, "Declares that the connection may read behind the primary.", connection::readonly),
    spec("readwrite", 1, SF, NONE, C, "Takes READONLY back.", connection::readwrite),
    spec("rename", 3, W, TWO, G, "Renames a key and overwrites the destination.", keys::rename),
    spec("renamenx", 3, WF, TWO, G, "Renames a key only when the target key name doesn't exist.", keys::renamenx),
    spec("replicaof", 3, S | ADMIN | NO_MULTI, NONE, V, "Configures a server as replica of another, or promotes it to a master.", roles::replicaof),
    spec("reset", 1, SF | NO_AUTH | IMMEDIATE, NONE, C, "Resets the connection.", connection::reset),
    spec("role", 1, SF | ADMIN, NONE, V, "Returns the replication role.", server::role),
    spec("scan", -2, R, NONE, G, "Iterates over the key names in the database.", keys::scan),
    spec("select", 2, SF, NONE, C, "Changes the selected database.", connection::select),
    spec("set", -3, W, ONE, T, "Sets the string value of a key, ignoring its type. The key is created if it doesn't exist.", strings::set),
    spec("setex", 4, W, ONE, T, "Sets the string value and expiration time of a key. Creates the key if it doesn't exist.", strings::setex),
    spec("setnx", 3, WF, ONE, T, "Set the string value of a key only when the key doesn't exist.", strings::setnx),
    spec("setrange", 4, W, ONE, T, "Overwrites a part of a string value with another by an offset. Creates the key if it doesn't exist.", strings::setrange),
    spec("slaveof", 3, S | ADMIN | NO_MULTI, NONE, V, "Sets a server as a replica of another, or promotes it to being a master.", roles::replicaof),
    spec("strlen", 2, RF, ONE, T, "Returns the length of a string value.", strings::strlen),
    spec("substr", 4, R, ONE, T, "Returns a substring from a string value.", strings::getrange),
    spec("time", 1, SF, NONE, V, "Returns the server time.", server::time),
    spec("touch", -2, RF, ALL, G, "Returns the number of existing keys out of those specified.", keys::exists),
    spec("ttl", 2, RF, ONE, G, "Returns the expiration time in seconds of a key.", expire::ttl),
    spec("type", 2, RF, ONE, G, "Determines the type of value stored at a key.", keys::type_of),
    spec("unlink", -2, WF, ALL, G, "Deletes one or more keys.", keys::del),
    spec("unwatch", 1, SF, NONE, X, "Forgets about watched keys of a transaction.", multi::unwatch),
    spec("wait", 3, S, NONE, G, "Blocks until the replication of all preceding write commands sent by the connection is completed.", server::wait),
    spec("waitaof", 4, S, NONE, G, "Blocks until all of the preceding write commands sent by the connection are durable here and on standbys.", server::waitaof),
    spec("watch", -2, FAST | IMMEDIATE, ALL, X, "Monitors changes to keys to determine the execution of a transaction.", multi::watch),
];

/// Slots of the name table; a power of two, sparsely filled.
const SLOTS: usize = 512;
const EMPTY: u8 = u8::MAX;

/// Open addressing over the upper-cased name, built by the compiler.
static NAMES: [u8; SLOTS] = build();

const fn hash(name: &[u8]) -> usize {
    let mut hash: u32 = 0x811C_9DC5;
    let mut at = 0;
    while at < name.len() {
        // Folds the case of letters; what it does to other bytes only moves them to another slot.
        hash = (hash ^ (name[at] & 0xDF) as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ (hash >> 15)) as usize % SLOTS
}

const fn build() -> [u8; SLOTS] {
    assert!(COUNT < EMPTY as usize);
    let mut slots = [EMPTY; SLOTS];
    let mut id = 0;
    while id < COUNT {
        let mut slot = hash(COMMANDS[id].name.as_bytes());
        while slots[slot] != EMPTY {
            slot = (slot + 1) % SLOTS;
        }
        slots[slot] = id as u8;
        id += 1;
    }
    slots
}

/// Finds a command by its name in any case.
pub(super) fn find(name: &[u8]) -> Option<u8> {
    if name.len() > 16 {
        return None;
    }
    let mut slot = hash(name);
    loop {
        let id = NAMES[slot];
        if id == EMPTY {
            return None;
        }
        if COMMANDS[usize::from(id)].name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(id);
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// How often each command ran.
#[derive(Debug)]
pub struct CommandStats {
    calls: Vec<Calls>,
    pub(super) unknown: u64,
    /// Look-ups by reading commands.
    pub hits: u64,
    pub misses: u64,
    /// Keys deleted because their time had come.
    pub expired: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    pub executed: u64,
    pub rejected: u64,
    pub failed: u64,
}

impl Default for CommandStats {
    fn default() -> Self {
        CommandStats { calls: vec![Calls::default(); COUNT], unknown: 0, hits: 0, misses: 0, expired: 0 }
    }
}

impl CommandStats {
    pub(super) fn executed(&mut self, id: u8, failed: bool, hits: u64, misses: u64, expired: u64) {
        let calls = &mut self.calls[usize::from(id)];
        calls.executed += 1;
        calls.failed += u64::from(failed);
        self.hits += hits;
        self.misses += misses;
        self.expired += expired;
    }

    pub(super) fn rejected(&mut self, id: u8) {
        self.calls[usize::from(id)].rejected += 1;
    }

    /// Every command by name with its counters.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Calls)> {
        COMMANDS.iter().zip(&self.calls).map(|(spec, calls)| (spec.name, *calls))
    }

    pub fn total(&self) -> u64 {
        self.calls.iter().map(|calls| calls.executed).sum()
    }
}
