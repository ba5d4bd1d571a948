//! Keys as such: deleting, renaming, counting, and walking over all of them.
//!
//! SCAN's cursor is a number, and the keys of a shard are ordered by their bytes, so the node keeps a bounded table from
//! cursors to positions. A cursor names its shard and, by a fingerprint, the first key not yet returned. The same place
//! always has the same cursor. A cursor whose position was evicted, or that another node gave out, goes on at the start
//! of its shard: keys may come twice, as SCAN allows, and none that is there all the time is left out. (The price: with
//! more iterations under way at once than the table holds, one may start its shard again for as long as that lasts.)
//! Cursors stay below 2^53, because some client libraries keep them in a double.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::call::{Call, Step, Stop};
use super::errors;
use super::expire::delete_found;
use super::glob;
use crate::base::limits::{SCAN_ENTRIES_MAX, SCAN_POSITION_BYTES_MAX, SCAN_POSITIONS_MAX};
use crate::base::{Digest, ShardId, Stamp};
use crate::record::key::{self, Meta};
use crate::resp::{Reply, parse_i64};

pub(super) fn del(call: &mut Call<'_, '_>) -> Step {
    let mut deleted = 0;
    for user_key in call.args.from(1).iter() {
        call.seek(user_key);
        if call.head()?.is_some() {
            call.remove()?;
            deleted += 1;
        }
    }
    call.integer(deleted)
}

/// EXISTS and TOUCH: a key named twice counts twice.
pub(super) fn exists(call: &mut Call<'_, '_>) -> Step {
    let mut found = 0;
    for user_key in call.args.from(1).iter() {
        call.seek(user_key);
        found += i64::from(call.head()?.is_some());
    }
    call.integer(found)
}

pub(super) fn type_of(call: &mut Call<'_, '_>) -> Step {
    call.seek(call.args.at(1));
    let name = call.head()?.map_or("none", |head| head.kind.name());
    call.reply().simple(name);
    Ok(())
}

pub(super) fn rename(call: &mut Call<'_, '_>) -> Step {
    match move_key(call, true)? {
        Some(_) => call.ok(),
        None => call.error(errors::NO_SUCH_KEY),
    }
}

pub(super) fn renamenx(call: &mut Call<'_, '_>) -> Step {
    match move_key(call, false)? {
        Some(moved) => call.integer(i64::from(moved)),
        None => call.error(errors::NO_SUCH_KEY),
    }
}

/// Moves an entry with its expiry. `None` without a source; false when the target exists and must not be replaced.
fn move_key(call: &mut Call<'_, '_>, replace: bool) -> Step<Option<bool>> {
    let (from, to) = (call.args.at(1), call.args.at(2));
    call.seek(from);
    let entry = call.value(|meta, _| {
        meta.map(|meta| {
            let mut entry = Vec::new();
            meta.encode(&mut entry);
            (entry, meta.expires)
        })
    })?;
    let Some((entry, expires)) = entry else { return Ok(None) };
    if from == to {
        return Ok(Some(replace));
    }
    call.seek(to);
    let target = if replace { call.present()? } else { call.head()?.is_some() };
    if target && !replace {
        return Ok(Some(false));
    }
    call.put_entry(&entry, !target)?;
    if let Some(at) = expires {
        call.note_due(at);
    }
    call.seek(from);
    call.remove()?;
    Ok(Some(true))
}

fn shard_ids(call: &Call<'_, '_>) -> impl Iterator<Item = ShardId> + use<> {
    (0..call.engine.shards).map(ShardId)
}

/// Counts what is stored. Expired keys count until they are collected, as in Redis.
pub(super) fn dbsize(call: &mut Call<'_, '_>) -> Step {
    let total = count_all(call);
    call.integer(total as i64)
}

pub(super) fn count_all(call: &mut Call<'_, '_>) -> u64 {
    let mut total = 0;
    for shard in shard_ids(call) {
        let (count, stamp) = call.engine.store.count(shard);
        call.saw(stamp);
        total += count;
    }
    total
}

pub(super) fn flushall(call: &mut Call<'_, '_>) -> Step {
    let mode_fits = match call.args.get(1) {
        None => true,
        Some(mode) => mode.eq_ignore_ascii_case(b"SYNC") || mode.eq_ignore_ascii_case(b"ASYNC"),
    };
    if !mode_fits || call.args.len() > 2 {
        return call.error(errors::SYNTAX);
    }
    // A key that does not exist is not changed by a flush: its watchers may go on.
    for prefix in call.engine.state.watches.keys() {
        let (user_key, _) = key::split(&[&prefix[..], &[key::TAG_META]].concat()).expect("made by this room");
        call.seek(&user_key);
        if call.present()? {
            call.trace.flushed.push(prefix);
        }
    }
    for shard in shard_ids(call) {
        let (count, stamp) = call.engine.store.count(shard);
        let last = call.engine.store.last_stamp(shard);
        call.saw(stamp.max(last));
        if count > 0 {
            call.clear_shard(shard)?;
        }
    }
    call.ok()
}

/// What SCAN and KEYS look for.
struct Filter<'a> {
    pattern: Option<&'a [u8]>,
    type_name: Option<&'a [u8]>,
}

impl Filter<'_> {
    fn takes(&self, user_key: &[u8], meta: &Meta<'_>) -> bool {
        self.pattern.is_none_or(|pattern| pattern == b"*" || glob::matches(pattern, user_key, false))
            && self.type_name.is_none_or(|name| name.eq_ignore_ascii_case(meta.kind.name().as_bytes()))
    }
}

/// Keys found by one slice of a walk.
#[derive(Default)]
struct Slice {
    /// As RESP bulk strings.
    bulks: Vec<u8>,
    found: u64,
    examined: usize,
    /// Store keys of the expired ones.
    expired: Vec<Vec<u8>>,
    damaged: bool,
    /// Where to go on; `None` at the end of the shard.
    next: Option<Vec<u8>>,
}

/// Looks at up to `limit` entries of `shard`.
fn slice(
    call: &mut Call<'_, '_>,
    shard: ShardId,
    from: Option<&[u8]>,
    limit: usize,
    filter: &Filter<'_>,
) -> Step<Slice> {
    let mut slice = Slice::default();
    let now = call.now();
    let stamp = call.engine.store.last_stamp(shard);
    call.saw(stamp);
    let from = from.map_or(Bound::Unbounded, Bound::Included);
    let next = call.engine.store.scan_heads(shard, from, limit, &mut |store_key, value| {
        slice.examined += 1;
        let Ok((user_key, tag)) = key::split(store_key) else {
            slice.damaged = true;
            return;
        };
        if tag != key::TAG_META {
            return;
        }
        match Meta::decode(value) {
            Err(_) => slice.damaged = true,
            Ok(meta) if meta.expired(now) => slice.expired.push(store_key.to_vec()),
            Ok(meta) if filter.takes(&user_key, &meta) => {
                slice.found += 1;
                Reply::new(&mut slice.bulks, Default::default()).bulk(&user_key);
            }
            Ok(_) => {}
        }
    })?;
    if slice.damaged {
        return Err(Stop::Fail(errors::CORRUPT_ENTRY));
    }
    slice.next = next;
    Ok(slice)
}

/// Where a SCAN stands.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Position {
    shard: u16,
    /// The first entry not yet looked at; `None` is the start of the shard.
    from: Option<Box<[u8]>>,
}

/// Positions by the cursors that name them. The oldest go when there is no room.
#[derive(Debug, Default)]
pub struct Positions {
    by_cursor: BTreeMap<u64, Box<[u8]>>,
    age: VecDeque<u64>,
    bytes: usize,
}

/// Bits of a cursor that tell positions of one shard apart; zero there is the start of the shard.
const FINGERPRINT_BITS: u32 = 45;
const FINGERPRINTS: u64 = 1 << FINGERPRINT_BITS;

impl Positions {
    fn cursor_of(&mut self, position: &Position) -> u64 {
        let shard = u64::from(position.shard) << FINGERPRINT_BITS;
        let Some(from) = &position.from else { return shard };
        let mut print = Digest::of(from).0 as u64 % FINGERPRINTS;
        let cursor = loop {
            let cursor = shard | print;
            match self.by_cursor.get(&cursor) {
                _ if print == 0 => {}
                None => break cursor,
                Some(same) if same == from => return cursor,
                Some(_) => {}
            }
            print = (print + 1) % FINGERPRINTS;
        };
        self.by_cursor.insert(cursor, from.clone());
        self.age.push_back(cursor);
        self.bytes += from.len();
        while self.age.len() > SCAN_POSITIONS_MAX || self.bytes > SCAN_POSITION_BYTES_MAX {
            let oldest = self.age.pop_front().expect("too many positions are some positions");
            self.bytes -= self.by_cursor.remove(&oldest).expect("every aged cursor is known").len();
        }
        cursor
    }

    fn position_of(&self, cursor: u64) -> Position {
        let shard = u16::try_from(cursor >> FINGERPRINT_BITS).unwrap_or(u16::MAX);
        Position { shard, from: self.by_cursor.get(&cursor).cloned() }
    }
}

struct ScanOptions<'a> {
    filter: Filter<'a>,
    count: usize,
}

fn scan_options<'a>(call: &Call<'a, '_>) -> Result<ScanOptions<'a>, &'static str> {
    let mut options = ScanOptions { filter: Filter { pattern: None, type_name: None }, count: 10 };
    let mut at = 2;
    while let Some(option) = call.args.get(at) {
        let value = call.args.get(at + 1).ok_or(errors::SYNTAX)?;
        match option.to_ascii_uppercase().as_slice() {
            b"COUNT" => match parse_i64(value).ok_or(errors::NOT_INTEGER)? {
                count @ 1.. => options.count = (count as u64).min(SCAN_ENTRIES_MAX as u64) as usize,
                _ => return Err(errors::SYNTAX),
            },
            b"MATCH" => options.filter.pattern = Some(value),
            b"TYPE" => options.filter.type_name = Some(value),
            _ => return Err(errors::SYNTAX),
        }
        at += 2;
    }
    Ok(options)
}

/// Reads a cursor as C reads an unsigned number: an empty text is zero, a sign is taken, a zero byte ends it.
fn cursor(text: &[u8]) -> Option<u64> {
    let text = errors::shown(text, text.len());
    let (negative, digits) = match text {
        [] => return Some(0),
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if negative { number.wrapping_neg() } else { number })
}

pub(super) fn scan(call: &mut Call<'_, '_>) -> Step {
    let Some(cursor) = cursor(call.args.at(1)) else { return call.error(errors::INVALID_CURSOR) };
    let options = match scan_options(call) {
        Ok(options) => options,
        Err(text) => return call.error(text),
    };
    let mut at = call.engine.state.positions.position_of(cursor);
    let (mut bulks, mut found, mut left) = (Vec::new(), 0, options.count);
    let mut expired = Vec::new();
    while left > 0 && at.shard < call.engine.shards {
        let shard = ShardId(at.shard);
        let slice = slice(call, shard, at.from.as_deref(), left, &options.filter)?;
        // A slice over nothing but deleted entries costs something too.
        left = left.saturating_sub(slice.examined.max(usize::from(slice.next.is_some())));
        found += slice.found;
        bulks.extend_from_slice(&slice.bulks);
        if !slice.expired.is_empty() {
            expired.push((shard, slice.expired));
        }
        at = match slice.next {
            Some(next) => Position { shard: at.shard, from: Some(next.into()) },
            None => Position { shard: at.shard + 1, from: None },
        };
    }
    for (shard, store_keys) in expired {
        delete_found(call, shard, &store_keys)?;
    }
    let next = match at.shard < call.engine.shards {
        true => call.engine.state.positions.cursor_of(&at),
        false => 0,
    };
    let mut reply = call.reply();
    reply.array(2);
    reply.bulk_i64(next as i64);
    reply.array(found as usize);
    call.out.extend_from_slice(&bulks);
    Ok(())
}

/// How far a KEYS has come. It works in slices and lets others in between, so unlike in Redis its answer is not of one
/// moment: a key that is there all the time is in it, one that comes or goes meanwhile may be.
#[derive(Debug, Default)]
pub struct KeysWalk {
    pattern: Vec<u8>,
    shard: u16,
    from: Option<Vec<u8>>,
    observed: Stamp,
    found: u64,
    bulks: Vec<u8>,
}

pub(super) fn keys(call: &mut Call<'_, '_>) -> Step {
    let pattern = call.args.at(1);
    let mut walk = match call.session.walk.take() {
        Some(walk) if walk.pattern == pattern => walk,
        _ => Box::new(KeysWalk { pattern: pattern.to_vec(), ..KeysWalk::default() }),
    };
    let start = (walk.shard, walk.from.clone());
    let result = keys_slices(call, &mut walk);
    match result {
        Err(Stop::Fail(text)) => Err(Stop::Fail(text)),
        Err(stop) if !call.in_exec => {
            // Slices that are done stay done, with the keys they deleted.
            let moved = start != (walk.shard, walk.from.clone());
            if moved {
                walk.observed = call.observed();
            }
            call.session.walk = Some(walk);
            Err(if moved { Stop::Again } else { stop })
        }
        result => result,
    }
}

/// One slice, or inside EXEC all of them. The walk moves on only when its slice is done for good.
fn keys_slices(call: &mut Call<'_, '_>, walk: &mut KeysWalk) -> Step {
    let filter = Filter { pattern: Some(call.args.at(1)), type_name: None };
    let mut left = SCAN_ENTRIES_MAX;
    call.trace.observed = call.trace.observed.max(walk.observed);
    while walk.shard < call.engine.shards {
        if left == 0 && !call.in_exec {
            return Err(Stop::Again);
        }
        let shard = ShardId(walk.shard);
        let slice = slice(call, shard, walk.from.as_deref(), left.max(1), &filter)?;
        delete_found(call, shard, &slice.expired)?;
        // What the store did not finish in one call is enough for one slice.
        left = if slice.next.is_some() { 0 } else { left.saturating_sub(slice.examined) };
        walk.found += slice.found;
        walk.bulks.extend_from_slice(&slice.bulks);
        walk.from = slice.next;
        if walk.from.is_none() {
            walk.shard += 1;
        }
        if walk.bulks.len() > crate::base::limits::REPLY_BYTES_MAX {
            return Err(Stop::Fail(errors::REPLY_TOO_LONG));
        }
    }
    call.reply().array(walk.found as usize);
    call.out.extend_from_slice(&walk.bulks);
    call.reply_fits()
}

/// How many keys RANDOMKEY steps over at most.
const RANDOM_STEPS: u64 = 64;
/// How many expired keys it meets before it gives up.
const RANDOM_TRIES: usize = 100;

/// A key of a shard chosen by its number of keys. Inside the shard it goes a random number of keys on from where the
/// last answer was, so every key comes up in the long run, though not with equal chance in the short.
pub(super) fn randomkey(call: &mut Call<'_, '_>) -> Step {
    let everything = Filter { pattern: None, type_name: None };
    for _ in 0..RANDOM_TRIES {
        let total = count_all(call);
        if total == 0 {
            break;
        }
        let mut rank = call.engine.state.rng.below(total);
        let mut chosen = (ShardId(0), 0);
        for shard in shard_ids(call) {
            let (count, _) = call.engine.store.count(shard);
            if rank < count {
                chosen = (shard, count);
                break;
            }
            rank -= count;
        }
        let (shard, count) = chosen;
        let steps = call.engine.state.rng.below(count.min(RANDOM_STEPS)) as usize + 1;
        let from = std::mem::take(&mut call.engine.state.random_from);
        let met = slice(call, shard, Some(&from), steps, &everything)?;
        delete_found(call, shard, &met.expired)?;
        if let Some(last) = last_bulk(&met.bulks) {
            call.reply().bulk(last);
            // Behind the key itself.
            key::meta_key(last, &mut call.engine.state.random_from);
            call.engine.state.random_from.push(0);
            return Ok(());
        }
        // Round again from the start, or over the deleted entries that the store passed.
        call.engine.state.random_from = met.next.unwrap_or_default();
    }
    call.null()
}

/// The last of several RESP bulk strings.
fn last_bulk(mut bulks: &[u8]) -> Option<&[u8]> {
    let mut last = None;
    while !bulks.is_empty() {
        let line = bulks.iter().position(|b| *b == b'\r').expect("written by this room");
        let len = parse_i64(&bulks[1..line]).expect("written by this room") as usize;
        last = Some(&bulks[line + 2..line + 2 + len]);
        bulks = &bulks[line + 4 + len..];
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(shard: u16, from: &[u8]) -> Position {
        Position { shard, from: Some(from.into()) }
    }

    #[test]
    fn cursors_name_positions_and_fit_into_a_double() {
        let mut table = Positions::default();
        let mut cursors = Vec::new();
        for shard in [0, 7, 255] {
            for n in 0..1000u32 {
                let position = at(shard, &n.to_be_bytes());
                let cursor = table.cursor_of(&position);
                assert!(cursor > 0 && cursor < 1 << 53);
                assert_eq!(table.cursor_of(&position), cursor, "one place, one cursor");
                assert_eq!(table.position_of(cursor), position);
                cursors.push(cursor);
            }
        }
        cursors.sort_unstable();
        cursors.dedup();
        assert_eq!(cursors.len(), 3000);
        let start = Position { shard: 9, from: None };
        let cursor = table.cursor_of(&start);
        assert_eq!(table.position_of(cursor), start);
        assert_eq!(table.position_of(0), Position { shard: 0, from: None });
    }

    #[test]
    fn cursors_are_read_as_in_redis() {
        let good = [
            ("", 0),
            ("0", 0),
            ("00", 0),
            ("+7", 7),
            ("7\0x", 7),
            ("-1", u64::MAX),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, number) in good {
            assert_eq!(cursor(text.as_bytes()), Some(number), "{text:?}");
        }
        for bad in ["+", "-", " 1", "1 ", "0x0", "a", "--1", "18446744073709551616"] {
            assert_eq!(cursor(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_a_lost_cursor_starts_its_shard_again() {
        let mut table = Positions::default();
        let first = table.cursor_of(&at(3, b"first"));
        for n in 0..2 * SCAN_POSITIONS_MAX as u64 {
            let _ = table.cursor_of(&at(4, &n.to_be_bytes()));
        }
        assert_eq!(table.by_cursor.len(), SCAN_POSITIONS_MAX);
        assert_eq!(table.age.len(), SCAN_POSITIONS_MAX);
        assert_eq!(table.position_of(first), Position { shard: 3, from: None });
        let long = vec![1u8; 8192];
        for n in 0..2 * SCAN_POSITION_BYTES_MAX / long.len() {
            let _ = table.cursor_of(&at(5, &[&long[..], &n.to_be_bytes()].concat()));
        }
        assert!(table.bytes <= SCAN_POSITION_BYTES_MAX);
        assert_eq!(table.bytes, table.by_cursor.values().map(|key| key.len()).sum::<usize>());
    }
}
