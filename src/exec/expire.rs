//! Expiry: setting it, showing it, and collecting what is due.
//!
//! Two things find expired keys besides the commands that stumble on them: a bounded memory of what was given an expiry
//! on this node ([`super::due`]), which is prompt, and a slow walk over all shards, which is complete. A full index of
//! all expiries would not be bounded, since data may exceed memory.

use std::ops::Bound;

use super::call::{Call, Step};
use super::errors;
use super::{Engine, ExecState, Mode, Writes};
use crate::base::{ShardId, WallMs};
use crate::record::key::Meta;
use crate::record::records::RECORD_HEAD;
use crate::record::{Record, key};
use crate::resp::parse_i64;
use crate::store::Miss;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
}

/// What an expiry counts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Basis {
    Now,
    Epoch,
}

/// The moment in milliseconds since the epoch, before it when negative; `None` when it is out of range.
pub(super) fn moment(number: i64, unit: Unit, basis: Basis, now: WallMs) -> Option<i64> {
    let ms = match unit {
        Unit::Seconds => number.checked_mul(1000)?,
        Unit::Milliseconds => number,
    };
    match basis {
        Basis::Epoch => Some(ms),
        Basis::Now => ms.checked_add(i64::try_from(now.0).ok()?),
    }
}

pub(super) fn expire(call: &mut Call<'_, '_>) -> Step {
    set_expiry(call, Unit::Seconds, Basis::Now)
}
pub(super) fn pexpire(call: &mut Call<'_, '_>) -> Step {
    set_expiry(call, Unit::Milliseconds, Basis::Now)
}
pub(super) fn expireat(call: &mut Call<'_, '_>) -> Step {
    set_expiry(call, Unit::Seconds, Basis::Epoch)
}
pub(super) fn pexpireat(call: &mut Call<'_, '_>) -> Step {
    set_expiry(call, Unit::Milliseconds, Basis::Epoch)
}

#[derive(Default)]
struct Conditions {
    absent: bool,
    present: bool,
    later: bool,
    earlier: bool,
}

impl Conditions {
    /// Answers the error and gives `None` when the options make no sense.
    fn parse(call: &mut Call<'_, '_>) -> Step<Option<Conditions>> {
        let mut wanted = Conditions::default();
        for option in call.args.from(3).iter() {
            match option.to_ascii_uppercase().as_slice() {
                b"NX" => wanted.absent = true,
                b"XX" => wanted.present = true,
                b"GT" => wanted.later = true,
                b"LT" => wanted.earlier = true,
                _ => {
                    call.error_about("ERR Unsupported option ", option, "")?;
                    return Ok(None);
                }
            }
        }
        if wanted.absent && (wanted.present || wanted.later || wanted.earlier) {
            call.error("ERR NX and XX, GT or LT options at the same time are not compatible")?;
            return Ok(None);
        }
        if wanted.later && wanted.earlier {
            call.error("ERR GT and LT options at the same time are not compatible")?;
            return Ok(None);
        }
        Ok(Some(wanted))
    }

    /// A key that never expires counts as expiring after any moment.
    fn hold(&self, current: Option<WallMs>, at: i64) -> bool {
        let current = current.map(|at| at.0 as i64);
        !(self.absent && current.is_some()
            || self.present && current.is_none()
            || self.later && current.is_none_or(|current| at <= current)
            || self.earlier && current.is_some_and(|current| at >= current))
    }
}

fn set_expiry(call: &mut Call<'_, '_>, unit: Unit, basis: Basis) -> Step {
    let Some(conditions) = Conditions::parse(call)? else { return Ok(()) };
    let Some(number) = parse_i64(call.args.at(2)) else { return call.error(errors::NOT_INTEGER) };
    let Some(at) = moment(number, unit, basis, call.now()) else {
        let text = format!("ERR invalid expire time in '{}' command", call.spec.name);
        return call.error(&text);
    };
    call.seek(call.args.at(1));
    let Some(head) = call.head()? else { return call.integer(0) };
    if !conditions.hold(head.expires, at) {
        return call.integer(0);
    }
    if at <= call.now().0 as i64 {
        call.remove()?;
    } else {
        rewrite(call, Some(WallMs(at as u64)))?;
    }
    call.integer(1)
}

pub(super) fn persist(call: &mut Call<'_, '_>) -> Step {
    call.seek(call.args.at(1));
    match call.head()? {
        Some(head) if head.expires.is_some() => {
            rewrite(call, None)?;
            call.integer(1)
        }
        _ => call.integer(0),
    }
}

/// Gives the live key in hand another expiry and leaves the rest as it is.
pub(super) fn rewrite(call: &mut Call<'_, '_>, expires: Option<WallMs>) -> Step {
    let entry = call.value(|meta, _| {
        let meta = meta.expect("the key was live a moment ago");
        let mut entry = Vec::new();
        Meta { expires, ..meta }.encode(&mut entry);
        entry
    })?;
    call.put_entry(&entry, false)?;
    if let Some(at) = expires {
        call.note_due(at);
    }
    Ok(())
}

/// Answers -2 for an absent key, -1 for one that does not expire, else what `show` makes of the moment.
fn show_expiry(call: &mut Call<'_, '_>, show: impl FnOnce(WallMs, WallMs) -> u64) -> Step {
    call.seek(call.args.at(1));
    let answer = match call.head()?.map(|head| head.expires) {
        None => -2,
        Some(None) => -1,
        Some(Some(at)) => show(at, call.now()) as i64,
    };
    call.integer(answer)
}

pub(super) fn ttl(call: &mut Call<'_, '_>) -> Step {
    show_expiry(call, |at, now| (at.0.saturating_sub(now.0) + 500) / 1000)
}
pub(super) fn pttl(call: &mut Call<'_, '_>) -> Step {
    show_expiry(call, |at, now| at.0.saturating_sub(now.0))
}
pub(super) fn expiretime(call: &mut Call<'_, '_>) -> Step {
    show_expiry(call, |at, _| at.0.saturating_add(500) / 1000)
}
pub(super) fn pexpiretime(call: &mut Call<'_, '_>) -> Step {
    show_expiry(call, |at, _| at.0)
}

/// What one round of collecting did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExpireCycle {
    /// Entries looked at.
    pub examined: usize,
    /// Keys deleted, each by a transaction of its own. No client waits for them.
    pub deleted: usize,
    /// More keys are due now than the budget allowed: come again soon.
    pub more_due: bool,
    /// A page was missing. Hand it in before the next round, or do not: the walk waits at it.
    pub miss: Option<Miss>,
}

/// Looks at about `budget` entries and deletes those that have expired. Does nothing on a node that takes no writes.
///
/// The keys remembered as due come first; half of the budget goes to the walk in any case, so that it comes round.
pub fn expire_cycle(engine: &mut Engine<'_>, budget: usize) -> ExpireCycle {
    let mut done = ExpireCycle::default();
    if engine.mode != (Mode::Primary { writes: Writes::Open }) {
        return done;
    }
    let prompt = budget.div_ceil(2);
    while done.examined < prompt && done.miss.is_none() {
        let Some((shard, store_key)) = engine.state.due.first_due(engine.now) else { break };
        let store_key = store_key.to_vec();
        done.examined += 1;
        match collect(engine, shard, &store_key) {
            Ok(deleted) => done.deleted += usize::from(deleted),
            Err(Full::Miss(miss)) => {
                done.miss = Some(miss);
                return done;
            }
            Err(Full::Group) => return ExpireCycle { more_due: true, ..done },
        }
        engine.state.due.remove_first();
    }
    done.more_due = engine.state.due.first_due(engine.now).is_some();
    walk(engine, budget - prompt, &mut done);
    done
}

enum Full {
    Miss(Miss),
    /// The open group takes no more; the rest waits for the next.
    Group,
}

/// Deletes the entry if it has expired by now.
fn collect(engine: &mut Engine<'_>, shard: ShardId, store_key: &[u8]) -> Result<bool, Full> {
    let seen = engine.store.head(shard, store_key).map_err(Full::Miss)?;
    // What does not decode is left to the scrubber.
    let expired =
        seen.value.and_then(|bytes| Meta::decode(bytes).ok()).is_some_and(|meta| meta.expired(engine.now));
    if !expired {
        return Ok(false);
    }
    if engine.writer.len() + RECORD_HEAD + store_key.len() > engine.payload_max {
        return Err(Full::Group);
    }
    let from = engine.writer.len();
    engine.writer.push(Record::Delete { shard, key: store_key });
    engine.writer.end_transaction();
    engine.store.delete(shard, store_key, true, engine.stamp);
    let (state, stamp) = (&mut *engine.state, engine.stamp);
    let ExecState { watches, stats, .. } = state;
    watches.changed(&engine.writer.bytes()[from..], &[], stamp);
    stats.expired += 1;
    Ok(true)
}

/// Goes on over the shards from where the last round stopped.
fn walk(engine: &mut Engine<'_>, budget: usize, done: &mut ExpireCycle) {
    if budget == 0 {
        return;
    }
    let (shard, from) = std::mem::take(&mut engine.state.cycle_at);
    let shard = ShardId(shard % engine.shards);
    let mut expired: Vec<Vec<u8>> = Vec::new();
    let mut examined = 0;
    let bound = from.as_deref().map_or(Bound::Unbounded, Bound::Included);
    let now = engine.now;
    let visited = engine.store.scan_heads(shard, bound, budget, &mut |store_key, value| {
        examined += 1;
        let is_meta = store_key.last() == Some(&key::TAG_META);
        if is_meta && Meta::decode(value).is_ok_and(|meta| meta.expired(now)) {
            expired.push(store_key.to_vec());
        }
    });
    let next = match visited {
        Ok(next) => next,
        Err(miss) => {
            engine.state.cycle_at = (shard.0, from);
            done.miss = Some(miss);
            return;
        }
    };
    done.examined += examined;
    for store_key in expired {
        match collect(engine, shard, &store_key) {
            Ok(deleted) => done.deleted += usize::from(deleted),
            Err(_) => {
                engine.state.cycle_at = (shard.0, from);
                done.more_due = true;
                return;
            }
        }
    }
    engine.state.cycle_at = match next {
        Some(next) => (shard.0, Some(next)),
        None => ((shard.0 + 1) % engine.shards, None),
    };
}

/// Deletes keys that a walk over a shard found expired, so that what is hidden stays hidden. At most this many get a
/// record: the clock of the frame that carries one of them covers the others.
const DELETED_AT_ONCE: usize = 512;

/// Part of SCAN, KEYS and RANDOMKEY.
pub(super) fn delete_found(call: &mut Call<'_, '_>, shard: ShardId, store_keys: &[Vec<u8>]) -> Step {
    for store_key in store_keys.iter().take(DELETED_AT_ONCE) {
        call.seek_entry(shard, store_key);
        call.found_expired()?;
    }
    Ok(())
}
