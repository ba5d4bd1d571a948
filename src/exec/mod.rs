//! Redis commands on shards. One call of [`execute`] runs one command to its end: it reads and changes the store,
//! pushes the records of the change, and appends the reply.
//!
//! This room is *not* a place that waits. It holds no socket, no page, no commit index: it says what the reply must
//! wait for ([`Outcome`]) and the node sees to it. The tables that outlive a command and belong to no connection
//! (watched keys, SCAN positions, counters) are one value, [`ExecState`], that the node owns.
//!
//! Invariants:
//! - one command, or one EXEC, is one transaction: its changes and its records stand or fall together. Every outcome
//!   that is not `Done` or `Close` leaves store, records and reply as they were ([`Outcome::Again`] ends a slice);
//! - `observed` covers every entry, tombstone and count that the reply depends on, refusals included, so that nothing
//!   uncommitted can be learned from a reply that waits for it (`protocol` 2.5);
//! - on a primary a key found expired is deleted by a record, and the reply waits for that record; on a standby it is
//!   hidden by the clock that the log carries, and nothing is written (`protocol` 2.7);
//! - randomness and time come from the caller: equal inputs give equal outcomes.
//!
//! The price: every put looks its key up first, because the log must say whether the put creates the key. Keys are
//! ordered by their bytes, so a numeric SCAN cursor needs a table of positions ([`keys`]). As in Redis, EXEC does not
//! take back what its other commands did when one of them answers an error.

mod call;
mod client;
mod connection;
mod due;
pub mod errors;
mod expire;
mod glob;
mod host;
mod keys;
mod multi;
mod numbers;
mod roles;
mod server;
mod session;
mod shards;
mod strings;
mod table;
mod watch;

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::base::limits;
use crate::base::{Lsn, Prng, Stamp, WallMs};
use crate::record::RecordWriter;
use crate::resp::{Args, Reply};
use crate::store::{Miss, UndoMark};

use call::{Call, Stop};
pub use expire::{ExpireCycle, expire_cycle};
pub use host::{ClientFacts, Host, ReplicaRole, ReplicaState, Role};
pub use session::{CommitLevel, Session};
pub use shards::Shards;
pub use table::CommandStats;
use table::flags;
pub use watch::WatchTable;

/// What INFO and HELLO give as `redis_version`: libraries choose commands by it.
pub const REDIS_VERSION: &str = "7.0.15";

/// What a command works on. Put together anew for every call; it borrows everything.
pub struct Engine<'a> {
    pub store: &'a mut dyn Shards,
    /// Records of the open group.
    pub writer: &'a mut RecordWriter,
    /// Names the open group.
    pub stamp: Stamp,
    /// The expiry clock: the leader's own, or on a standby the one that the log carries.
    pub now: WallMs,
    pub mode: Mode,
    pub host: &'a mut dyn Host,
    pub state: &'a mut ExecState,
    pub shards: u16,
    /// Bytes of records that one frame can hold, by its own maximum and by the size of a segment.
    pub payload_max: usize,
}

/// What this node may do for clients at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Primary {
        writes: Writes,
    },
    /// `stale`: behind its bound, or cut off. Reads are refused then.
    Standby {
        stale: bool,
    },
    /// Recovering, pending, demoting: the error that data commands get.
    Closed(&'static str),
}

/// What a primary does with writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writes {
    Open,
    /// Not now (a switchover drains, delta memory is used up): [`Outcome::Held`].
    Held,
    /// Refused with this error before anything is appended.
    Refused(&'static str),
}

/// What has to happen with a command and its reply.
#[must_use]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The reply (perhaps empty: CLIENT REPLY OFF) is in `out` and may leave once everything up to `observed` is
    /// committed; [`Stamp::COMMITTED`] waits for nothing. `wrote`: records were pushed.
    Done { observed: Stamp, wrote: bool },
    /// Like `Done`; the connection closes behind the reply.
    Close { observed: Stamp, wrote: bool },
    /// A page is missing. Nothing changed: run the command again when it is there.
    Miss(Miss),
    /// A write while writes are held. Nothing changed: run the command again when they are not.
    Held,
    /// The open group has no room for this transaction. Nothing changed: seal the group and run the command again.
    GroupFull,
    /// A long command did one slice and gives way; its progress is in the session. Let go of the pages held for it,
    /// serve others, run it again. `wrote`: the slice pushed records, a transaction of its own.
    Again { wrote: bool },
    /// Hold the reply until the condition is met or its time is up, then [`WaitRequest::reply`].
    Wait(WaitRequest),
    /// Hold the reply until the position is known or applied.
    Lsn(LsnRequest),
    /// Hand this to the role machine; the reply is its answer.
    Role(RoleRequest),
}

/// BATON.LSN or BATON.WAITLSN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LsnRequest {
    /// Where the connection's last write ends; [`Stamp::COMMITTED`] when it wrote nothing.
    Own { stamp: Stamp },
    /// Until everything up to `lsn` is applied here. Zero waits without limit.
    Applied { lsn: Lsn, timeout_ms: u64 },
}

/// REPLICAOF and FAILOVER.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RoleRequest {
    /// REPLICAOF NO ONE: make this node the primary.
    Promote,
    /// Hand over to the standby whose clients connect there, or to whichever fits. Zero: the default time.
    Failover {
        to: Option<(String, u16)>,
        timeout_ms: u64,
    },
    Abort,
}

/// WAIT or WAITAOF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitRequest {
    /// The connection's last write.
    pub stamp: Stamp,
    /// WAITAOF: whether our own disk counts too.
    pub local: Option<bool>,
    pub replicas: u32,
    /// Zero waits without limit.
    pub timeout_ms: u64,
}

impl WaitRequest {
    /// Writes the answer: how many standbys have the write, and for WAITAOF whether our own disk does.
    pub fn reply(&self, local: bool, replicas: u32, reply: &mut Reply<'_>) {
        if self.local.is_some() {
            reply.array(2);
            reply.integer(i64::from(local));
        }
        reply.integer(i64::from(replicas));
    }
}

/// What commands share beyond the store: owned by the node, one per process.
#[derive(Debug)]
pub struct ExecState {
    pub watches: WatchTable,
    pub stats: CommandStats,
    pub(crate) positions: keys::Positions,
    pub(crate) due: due::DueKeys,
    pub(crate) cycle_at: (u16, Option<Vec<u8>>),
    pub(crate) random_from: Vec<u8>,
    pub(crate) rng: Prng,
    /// Buffers that commands borrow, so that the usual ones allocate nothing.
    pub(crate) key: Vec<u8>,
    pub(crate) encoded: Vec<u8>,
}

impl ExecState {
    /// `seed` feeds RANDOMKEY alone.
    pub fn new(seed: u64) -> ExecState {
        ExecState {
            watches: WatchTable::default(),
            stats: CommandStats::default(),
            positions: keys::Positions::default(),
            due: due::DueKeys::default(),
            cycle_at: (0, None),
            random_from: Vec::new(),
            rng: Prng::new(seed),
            key: Vec::new(),
            encoded: Vec::new(),
        }
    }

    /// The connection is gone.
    pub fn forget(&mut self, session: u64) {
        self.watches.forget(session);
    }
}

/// Runs the command `args` for `session` and appends its reply to `out`.
pub fn execute(session: &mut Session, args: Args<'_>, engine: &mut Engine<'_>, out: &mut Vec<u8>) -> Outcome {
    use session::ReplyMode;
    let reply_mode = session.reply_mode;
    if reply_mode == ReplyMode::SkipNext {
        session.reply_mode = ReplyMode::Skipping;
    }
    let Some(name) = args.get(0) else {
        // As in Redis an empty request uses up a skipped reply.
        session.take_mute();
        return Outcome::Done { observed: Stamp::COMMITTED, wrote: false };
    };
    let start = out.len();
    // A refusal shows nothing of the data, so it waits for nothing.
    session.touched_data = false;
    let command = table::find(name);
    if command.is_none_or(|id| table::COMMANDS[usize::from(id)].name != "keys") {
        session.walk = None;
    }
    let outcome = match command {
        Some(id) => dispatch(id, session, args, engine, out),
        None => unknown(session, args, engine, out),
    };
    match &outcome {
        // CLIENT REPLY answers by the mode that it sets, and sets the one for the next command.
        Outcome::Done { .. } | Outcome::Close { .. } => {
            if session.reply_mode != ReplyMode::SkipNext && session.take_mute() {
                out.truncate(start);
            }
        }
        // The command is over; whoever answers it asks [`Session::take_mute`].
        Outcome::Wait(_) | Outcome::Lsn(_) | Outcome::Role(_) => {}
        // The same command comes again: its mute is not used up.
        _ => session.reply_mode = reply_mode,
    }
    outcome
}

/// The checks in front of every known command, in the order of Redis.
fn dispatch(
    id: u8,
    session: &mut Session,
    args: Args<'_>,
    engine: &mut Engine<'_>,
    out: &mut Vec<u8>,
) -> Outcome {
    let spec = &table::COMMANDS[usize::from(id)];
    let sub = match spec.sub(args) {
        Ok(sub) => sub,
        Err(name) => {
            let mut text = b"ERR unknown subcommand '".to_vec();
            text.extend_from_slice(errors::shown(name, 128));
            text.extend_from_slice(b"'. Try ");
            text.extend_from_slice(spec.name.to_ascii_uppercase().as_bytes());
            text.extend_from_slice(b" HELP.");
            return reject(id, session, engine, out, &text);
        }
    };
    let (full_name, arity) = sub.map_or((spec.name, spec.arity), |sub| (sub.full, sub.arity));
    session.last_command = full_name;
    if !table::arity_fits(arity, args.len()) {
        let text = format!("ERR wrong number of arguments for '{full_name}' command");
        return reject(id, session, engine, out, text.as_bytes());
    }
    if !session.authenticated && spec.flags & flags::NO_AUTH == 0 {
        return reject(id, session, engine, out, errors::NO_AUTH.as_bytes());
    }
    let queued = session.in_multi() && spec.flags & flags::IMMEDIATE == 0;
    if queued && (spec.flags | sub.map_or(0, |sub| sub.flags)) & flags::NO_MULTI != 0 {
        return reject(id, session, engine, out, errors::NOT_IN_MULTI.as_bytes());
    }
    if spec.keys_of(args).any(|key| key.len() > limits::KEY_BYTES_MAX) {
        return reject(id, session, engine, out, errors::KEY_TOO_LONG.as_bytes());
    }
    // An EXEC is what its commands are, and with watched keys its answer tells about data in any case.
    let effective = match &session.multi {
        Some(queue) if spec.name == "exec" && !queue.broken => {
            let data = queue.flags & flags::DATA != 0 || engine.state.watches.count(session.id) > 0;
            (spec.flags | queue.flags) & !flags::ALIVE & if data { !flags::STALE } else { !0 }
        }
        _ => spec.flags,
    };
    match permitted(effective, engine.mode) {
        Permission::Granted => {}
        Permission::Held if queued => {}
        Permission::Held => return Outcome::Held,
        Permission::Refused(text) => return reject(id, session, engine, out, text.as_bytes()),
    }
    session.touched_data = effective & (flags::STALE | flags::ALIVE) == 0;
    if queued {
        session.queue(id, spec.flags, args, out);
        return Outcome::Done { observed: Stamp::COMMITTED, wrote: false };
    }
    run(id, session, args, engine, out)
}

enum Permission {
    Granted,
    Held,
    Refused(&'static str),
}

fn permitted(command: u16, mode: Mode) -> Permission {
    let write = command & flags::WRITE != 0;
    let data = command & flags::STALE == 0;
    match mode {
        Mode::Standby { .. } if write => Permission::Refused(errors::READONLY),
        Mode::Standby { stale: true } if data => Permission::Refused(errors::MASTER_DOWN),
        Mode::Closed(text) if data || write => Permission::Refused(text),
        Mode::Primary { writes: Writes::Refused(text) } if write => Permission::Refused(text),
        Mode::Primary { writes: Writes::Held } if write => Permission::Held,
        _ => Permission::Granted,
    }
}

/// Answers an error before the command ran. A transaction being queued is broken by it.
fn reject(id: u8, session: &mut Session, engine: &mut Engine<'_>, out: &mut Vec<u8>, text: &[u8]) -> Outcome {
    let spec = &table::COMMANDS[usize::from(id)];
    engine.state.stats.rejected(id);
    if spec.name == "exec" {
        session.multi = None;
        engine.state.watches.forget(session.id);
        let why = text.strip_prefix(b"ERR ").unwrap_or(text);
        let text = [b"EXECABORT Transaction discarded because of: ", why].concat();
        Reply::new(out, session.proto).error_bytes(&text);
    } else {
        if let Some(queue) = &mut session.multi {
            queue.broken = true;
        }
        Reply::new(out, session.proto).error_bytes(text);
    }
    Outcome::Done { observed: Stamp::COMMITTED, wrote: false }
}

fn unknown(session: &mut Session, args: Args<'_>, engine: &mut Engine<'_>, out: &mut Vec<u8>) -> Outcome {
    const DONE: Outcome = Outcome::Done { observed: Stamp::COMMITTED, wrote: false };
    let name = args.at(0);
    // A browser that was made to speak to this port says these words. What follows them is not ours to run.
    if name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:") {
        return Outcome::Close { observed: Stamp::COMMITTED, wrote: false };
    }
    let ours = name.get(..6).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"baton."));
    if ours && session.authenticated && !session.in_multi() {
        let start = out.len();
        let mut reply = Reply::new(out, session.proto);
        if engine.host.extension(session, args, &mut reply) {
            return DONE;
        }
        out.truncate(start);
    }
    if let Some(queue) = &mut session.multi {
        queue.broken = true;
    }
    engine.state.stats.unknown += 1;
    let mut text = b"ERR unknown command '".to_vec();
    text.extend_from_slice(errors::shown(name, 128));
    text.extend_from_slice(b"', with args beginning with: ");
    let preview = text.len();
    for arg in args.iter().skip(1) {
        let used = text.len() - preview;
        if used >= 128 {
            break;
        }
        text.push(b'\'');
        text.extend_from_slice(errors::shown(arg, 128 - used));
        text.extend_from_slice(b"' ");
    }
    Reply::new(out, session.proto).error_bytes(&text);
    DONE
}

/// Where a command found the world.
struct Before {
    store: UndoMark,
    writer: crate::record::records::WriterMark,
    records: u32,
    writer_len: usize,
    out_len: usize,
}

impl Before {
    fn of(engine: &Engine<'_>, out: &[u8]) -> Before {
        Before {
            store: engine.store.mark(),
            writer: engine.writer.mark(),
            records: engine.writer.records(),
            writer_len: engine.writer.len(),
            out_len: out.len(),
        }
    }

    fn restore(&self, engine: &mut Engine<'_>, out: &mut Vec<u8>) {
        if engine.writer.records() != self.records {
            engine.store.undo_to(self.store);
            engine.writer.rewind(self.writer);
        }
        out.truncate(self.out_len);
    }
}

/// Runs a permitted command as one transaction.
fn run(id: u8, session: &mut Session, args: Args<'_>, engine: &mut Engine<'_>, out: &mut Vec<u8>) -> Outcome {
    let before = Before::of(engine, out);
    let mut call = Call::new(id, session, args, engine, out);
    let result = (call.spec.run)(&mut call);
    let trace = call.finish();
    match result {
        Ok(()) => {
            let wrote = seal(&before, &trace, session, engine);
            for (shard, watched) in trace.watched {
                engine.state.watches.watch(session.id, shard, watched);
            }
            let failed = out.get(before.out_len) == Some(&b'-');
            engine.state.stats.executed(id, failed, trace.hits, trace.misses, trace.expired);
            let observed = if wrote { trace.observed.max(engine.stamp) } else { trace.observed };
            match session.closing {
                true => Outcome::Close { observed, wrote },
                false => Outcome::Done { observed, wrote },
            }
        }
        Err(Stop::Again) => {
            let wrote = seal(&before, &trace, session, engine);
            out.truncate(before.out_len);
            Outcome::Again { wrote }
        }
        Err(stop) => {
            before.restore(engine, out);
            match stop {
                Stop::Miss(miss) => Outcome::Miss(miss),
                Stop::Held => Outcome::Held,
                Stop::GroupFull => Outcome::GroupFull,
                Stop::Wait(request) => Outcome::Wait(request),
                Stop::Lsn(request) => Outcome::Lsn(request),
                Stop::Role(request) => Outcome::Role(request),
                Stop::Again => unreachable!("taken by the arm above"),
                Stop::Fail(text) => {
                    engine.state.stats.executed(id, true, 0, 0, 0);
                    Reply::new(out, session.proto).error(text);
                    Outcome::Done { observed: trace.observed, wrote: false }
                }
            }
        }
    }
}

/// Ends the transaction and tells the watchers of what it changed. Says whether there was anything.
fn seal(before: &Before, trace: &call::Trace, session: &mut Session, engine: &mut Engine<'_>) -> bool {
    let wrote = engine.writer.records() != before.records;
    if wrote {
        engine.writer.end_transaction();
        session.last_write = engine.stamp;
        let pushed: Range<usize> = before.writer_len..engine.writer.len();
        engine.state.watches.changed(&engine.writer.bytes()[pushed], &trace.flushed, engine.stamp);
    }
    wrote
}
