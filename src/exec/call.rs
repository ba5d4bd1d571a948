//! One command while it runs: its arguments, its view of the keys, and the trace of what it saw and did.

use super::host::Host;
use super::session::Session;
use super::table::{self, Spec, flags};
use super::watch::Watched;
use super::{Engine, LsnRequest, Mode, RoleRequest, WaitRequest, Writes, errors};
use crate::base::limits;
use crate::base::planted::{Bug, planted};
use crate::base::{ShardId, Stamp, WallMs};
use crate::record::Record;
use crate::record::key::{self, Meta, ValueType};
use crate::record::records::RECORD_HEAD;
use crate::resp::{Args, Reply};
use crate::store::Miss;

/// Why a command cannot go on. Everything it did is taken back, except after `Again`.
#[derive(Debug)]
pub(super) enum Stop {
    Miss(Miss),
    Held,
    GroupFull,
    Again,
    Wait(WaitRequest),
    Lsn(LsnRequest),
    Role(RoleRequest),
    Fail(&'static str),
}

impl Stop {
    /// The same command will be run again with the same session.
    pub fn comes_again(&self) -> bool {
        matches!(self, Stop::Miss(_) | Stop::Held | Stop::GroupFull)
    }
}

impl From<Miss> for Stop {
    fn from(miss: Miss) -> Stop {
        Stop::Miss(miss)
    }
}

pub(super) type Step<T = ()> = Result<T, Stop>;

/// What is known of a live key without its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub kind: ValueType,
    pub expires: Option<WallMs>,
}

/// What a command leaves behind besides its changes.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub observed: Stamp,
    pub hits: u64,
    pub misses: u64,
    pub expired: u64,
    /// Watched keys that a flush made disappear.
    pub flushed: Vec<Box<[u8]>>,
    /// Keys to watch from the end of this command on: its own delete of an expired one does not count.
    pub watched: Vec<(ShardId, Watched)>,
}

pub(super) struct Call<'c, 'e> {
    pub spec: &'static Spec,
    pub session: &'c mut Session,
    pub args: Args<'c>,
    pub engine: &'c mut Engine<'e>,
    pub out: &'c mut Vec<u8>,
    pub in_exec: bool,
    pub trace: Trace,
    /// The open group held records before this transaction: entries with its stamp may be others'.
    group_used: bool,
    /// Where the transaction's records and the reply begin.
    writer_from: usize,
    out_from: usize,
    /// The key in hand, see [`Call::seek`].
    shard: ShardId,
    key: Vec<u8>,
    encoded: Vec<u8>,
}

impl<'c, 'e> Call<'c, 'e> {
    pub fn new(
        id: u8,
        session: &'c mut Session,
        args: Args<'c>,
        engine: &'c mut Engine<'e>,
        out: &'c mut Vec<u8>,
    ) -> Call<'c, 'e> {
        let key = std::mem::take(&mut engine.state.key);
        let encoded = std::mem::take(&mut engine.state.encoded);
        Call {
            spec: &table::COMMANDS[usize::from(id)],
            in_exec: false,
            trace: Trace::default(),
            group_used: !engine.writer.is_empty(),
            writer_from: engine.writer.len(),
            out_from: out.len(),
            shard: ShardId(0),
            key,
            encoded,
            session,
            args,
            engine,
            out,
        }
    }

    /// Gives the borrowed buffers back.
    pub fn finish(mut self) -> Trace {
        const KEPT: usize = 64 << 10;
        self.encoded.shrink_to(KEPT);
        self.engine.state.key = self.key;
        self.engine.state.encoded = self.encoded;
        self.trace
    }

    /// Runs a queued command inside this EXEC: the same transaction, the same trace.
    pub fn nested(&mut self, id: u8, args: Args<'_>) -> Step {
        let mut inner = Call {
            spec: &table::COMMANDS[usize::from(id)],
            session: &mut *self.session,
            args,
            engine: &mut *self.engine,
            out: &mut *self.out,
            in_exec: true,
            trace: std::mem::take(&mut self.trace),
            group_used: self.group_used,
            writer_from: self.writer_from,
            out_from: self.out_from,
            shard: self.shard,
            key: std::mem::take(&mut self.key),
            encoded: std::mem::take(&mut self.encoded),
        };
        let start = inner.out.len();
        let result = (inner.spec.run)(&mut inner);
        (self.trace, self.key, self.encoded) = (inner.trace, inner.key, inner.encoded);
        if result.is_ok() {
            let failed = self.out.get(start) == Some(&b'-');
            self.engine.state.stats.executed(id, failed, 0, 0, 0);
        }
        result
    }

    pub fn reply(&mut self) -> Reply<'_> {
        Reply::new(self.out, self.session.proto)
    }
    pub fn host(&mut self) -> &mut dyn Host {
        &mut *self.engine.host
    }
    pub fn ok(&mut self) -> Step {
        self.reply().ok();
        Ok(())
    }
    pub fn error(&mut self, text: &str) -> Step {
        self.reply().error(text);
        Ok(())
    }
    /// An error with a client's own word in it.
    pub fn error_about(&mut self, before: &str, word: &[u8], behind: &str) -> Step {
        let word = errors::shown(word, word.len());
        self.reply().error_bytes(&[before.as_bytes(), word, behind.as_bytes()].concat());
        Ok(())
    }
    pub fn integer(&mut self, value: i64) -> Step {
        self.reply().integer(value);
        Ok(())
    }
    pub fn null(&mut self) -> Step {
        self.reply().null();
        Ok(())
    }
    pub fn now(&self) -> WallMs {
        self.engine.now
    }

    /// Checked between the parts of long replies.
    pub fn reply_fits(&self) -> Step {
        match self.out.len() - self.out_from > limits::REPLY_BYTES_MAX {
            true => Err(Stop::Fail(errors::REPLY_TOO_LONG)),
            false => Ok(()),
        }
    }

    /// The reply depends on something with this stamp.
    ///
    /// The stamp of an empty open group can only be this transaction's own. It counts when the transaction ends;
    /// counted here, the refusal of a transaction that was taken back would wait for a group that may never be sealed.
    pub fn saw(&mut self, stamp: Stamp) {
        if stamp < self.engine.stamp || self.group_used {
            self.trace.observed = self.trace.observed.max(stamp);
        }
    }

    /// Takes `user_key` in hand: the calls below are about it.
    pub fn seek(&mut self, user_key: &[u8]) {
        assert!(user_key.len() <= limits::KEY_BYTES_MAX, "keys are checked before the command runs");
        self.shard = ShardId::of_key(user_key, self.engine.shards);
        self.key.clear();
        key::meta_key(user_key, &mut self.key);
    }

    /// Takes an entry in hand whose store key is known already.
    pub fn seek_entry(&mut self, shard: ShardId, store_key: &[u8]) {
        self.shard = shard;
        self.key.clear();
        self.key.extend_from_slice(store_key);
    }

    /// Whether an entry stands under the key, expired or not. Enough for a command that replaces it whatever it is.
    pub fn present(&mut self) -> Step<bool> {
        let seen = self.engine.store.head(self.shard, &self.key)?;
        let (present, stamp) = (seen.value.is_some(), seen.stamp);
        self.saw(stamp);
        Ok(present)
    }

    /// Type and expiry of the key, `None` when it is absent. An expired key is deleted first.
    pub fn head(&mut self) -> Step<Option<Head>> {
        let seen = self.engine.store.head(self.shard, &self.key)?;
        let stamp = seen.stamp;
        let head = match seen.value.map(Meta::decode).transpose() {
            Err(_) => return Err(Stop::Fail(errors::CORRUPT_ENTRY)),
            Ok(None) => None,
            Ok(Some(meta)) => {
                Some((Head { kind: meta.kind, expires: meta.expires }, meta.expired(self.engine.now)))
            }
        };
        self.saw(stamp);
        if let Some((_, true)) = head {
            self.found_expired()?;
        }
        let live = head.filter(|(_, expired)| !expired).map(|(head, _)| head);
        self.looked_up(live.is_some());
        Ok(live)
    }

    /// Shows the key's entry to `use_it`, with a reply to write to; `None` when it is absent. An expired key is
    /// deleted first.
    pub fn value<R>(&mut self, use_it: impl FnOnce(Option<Meta<'_>>, &mut Reply<'_>) -> R) -> Step<R> {
        let seen = self.engine.store.get(self.shard, &self.key)?;
        if seen.stamp < self.engine.stamp || self.group_used {
            self.trace.observed = self.trace.observed.max(seen.stamp);
        }
        let meta = match seen.value.map(Meta::decode).transpose() {
            Err(_) => return Err(Stop::Fail(errors::CORRUPT_ENTRY)),
            Ok(meta) => meta,
        };
        let mut reply = Reply::new(self.out, self.session.proto);
        match meta {
            Some(meta) if !meta.expired(self.engine.now) => {
                let result = use_it(Some(meta), &mut reply);
                self.looked_up(true);
                return Ok(result);
            }
            Some(_) => self.found_expired()?,
            None => {}
        }
        self.looked_up(false);
        Ok(use_it(None, &mut self.reply()))
    }

    fn looked_up(&mut self, hit: bool) {
        if self.spec.flags & flags::READ != 0 {
            self.trace.hits += u64::from(hit);
            self.trace.misses += u64::from(!hit);
        }
    }

    /// The key in hand has expired: a primary deletes it for all nodes, a standby hides it.
    pub fn found_expired(&mut self) -> Step {
        if planted(Bug::ExpiryByLocalClock) {
            return Ok(());
        }
        match self.engine.mode {
            Mode::Primary { writes: Writes::Open } => {
                self.trace.expired += 1;
                self.remove()
            }
            // Hiding a key without a record would let it come back under a new leader with an earlier clock.
            Mode::Primary { writes: Writes::Held } => Err(Stop::Held),
            Mode::Primary { writes: Writes::Refused(text) } => Err(Stop::Fail(text)),
            Mode::Standby { .. } | Mode::Closed(_) => Ok(()),
        }
    }

    /// What a reply to the work so far waits for.
    pub fn observed(&self) -> Stamp {
        match self.engine.writer.len() > self.writer_from {
            true => self.trace.observed.max(self.engine.stamp),
            false => self.trace.observed,
        }
    }

    /// Makes the key a string with this value.
    pub fn put_string(&mut self, body: &[u8], expires: Option<WallMs>, created: bool) -> Step {
        let mut encoded = std::mem::take(&mut self.encoded);
        encoded.clear();
        Meta::string(body, expires).encode(&mut encoded);
        let result = self.put_entry(&encoded, created);
        self.encoded = encoded;
        if let (Ok(()), Some(at)) = (&result, expires) {
            self.note_due(at);
        }
        result
    }

    /// The key in hand expires at this moment: remember it for prompt collection.
    pub fn note_due(&mut self, at: WallMs) {
        self.engine.state.due.add(at, self.shard, &self.key);
    }

    /// Puts an encoded entry under the key in hand.
    pub fn put_entry(&mut self, entry: &[u8], created: bool) -> Step {
        assert!(entry.len() <= limits::VALUE_BYTES_MAX + 16, "values are checked by the command");
        self.room_for(self.key.len() + entry.len())?;
        let (shard, key) = (self.shard, self.key.as_slice());
        self.engine.writer.push(Record::Put { shard, key, value: entry, created });
        self.engine.store.put(shard, key, entry, created, self.engine.stamp);
        Ok(())
    }

    /// Deletes the key in hand, which exists.
    pub fn remove(&mut self) -> Step {
        self.room_for(self.key.len())?;
        let (shard, key) = (self.shard, self.key.as_slice());
        self.engine.writer.push(Record::Delete { shard, key });
        self.engine.store.delete(shard, key, true, self.engine.stamp);
        Ok(())
    }

    pub fn clear_shard(&mut self, shard: ShardId) -> Step {
        self.room_for(0)?;
        self.engine.writer.push(Record::ClearShard { shard });
        self.engine.store.clear_shard(shard, self.engine.stamp);
        Ok(())
    }

    /// One transaction is one frame. A transaction that fits, though not behind what the group holds, comes again.
    fn room_for(&self, payload: usize) -> Step {
        assert!(
            matches!(self.engine.mode, Mode::Primary { writes: Writes::Open }),
            "only an open primary writes"
        );
        let end = self.engine.writer.len() + RECORD_HEAD + payload;
        if end - self.writer_from > self.engine.payload_max {
            Err(Stop::Fail(errors::TRANSACTION_TOO_BIG))
        } else if end > self.engine.payload_max {
            Err(Stop::GroupFull)
        } else {
            Ok(())
        }
    }

    /// The shard of the key in hand.
    pub fn shard(&self) -> ShardId {
        self.shard
    }
}
