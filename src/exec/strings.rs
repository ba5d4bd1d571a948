//! Strings: reading, writing, cutting.

use super::call::{Call, Head, Step};
use super::errors;
use super::expire::{self, Basis, Unit};
use crate::base::WallMs;
use crate::base::limits::VALUE_BYTES_MAX;
use crate::record::key::{Meta, ValueType};
use crate::resp::parse_i64;

fn string_body<'m>(meta: &Meta<'m>) -> Option<&'m [u8]> {
    (meta.kind == ValueType::String).then_some(meta.body)
}

/// Answers the value of the key in hand: null when absent, an error for another type. Says which of the two
/// [`Head`]s it found; `Err` of the inner result means that the error is written.
fn answer_value(call: &mut Call<'_, '_>) -> Step<Result<Option<Head>, ()>> {
    call.value(|meta, reply| match meta {
        None => {
            reply.null();
            Ok(None)
        }
        Some(meta) => match string_body(&meta) {
            Some(body) => {
                reply.bulk(body);
                Ok(Some(Head { kind: meta.kind, expires: meta.expires }))
            }
            None => {
                reply.error(errors::WRONG_TYPE);
                Err(())
            }
        },
    })
}

pub(super) fn get(call: &mut Call<'_, '_>) -> Step {
    call.seek(call.args.at(1));
    answer_value(call)?.ok();
    Ok(())
}

pub(super) fn mget(call: &mut Call<'_, '_>) -> Step {
    let keys = call.args.from(1);
    call.reply().array(keys.len());
    for key in keys.iter() {
        call.seek(key);
        call.value(|meta, reply| match meta.as_ref().and_then(string_body) {
            Some(body) => reply.bulk(body),
            None => reply.null(),
        })?;
        call.reply_fits()?;
    }
    Ok(())
}

pub(super) fn strlen(call: &mut Call<'_, '_>) -> Step {
    call.seek(call.args.at(1));
    call.value(|meta, reply| match meta {
        None => reply.integer(0),
        Some(meta) => match string_body(&meta) {
            Some(body) => reply.integer(body.len() as i64),
            None => reply.error(errors::WRONG_TYPE),
        },
    })
}

pub(super) fn getrange(call: &mut Call<'_, '_>) -> Step {
    let (Some(start), Some(end)) = (parse_i64(call.args.at(2)), parse_i64(call.args.at(3))) else {
        return call.error(errors::NOT_INTEGER);
    };
    call.seek(call.args.at(1));
    call.value(|meta, reply| match meta {
        None => reply.bulk(b""),
        Some(meta) => match string_body(&meta) {
            Some(body) => reply.bulk(slice(body, start, end)),
            None => reply.error(errors::WRONG_TYPE),
        },
    })
}

/// The bytes `start..=end`; negative positions count from the end.
fn slice(body: &[u8], start: i64, end: i64) -> &[u8] {
    let len = body.len() as i64;
    if len == 0 || (start < 0 && end < 0 && start > end) {
        return &[];
    }
    let place = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let (start, end) = (place(start), place(end).min(len - 1));
    if start > end { &[] } else { &body[start as usize..=end as usize] }
}

pub(super) fn getdel(call: &mut Call<'_, '_>) -> Step {
    call.seek(call.args.at(1));
    match answer_value(call)? {
        Ok(Some(_)) => call.remove(),
        _ => Ok(()),
    }
}

pub(super) fn getset(call: &mut Call<'_, '_>) -> Step {
    if !value_fits(call, 0, call.args.at(2).len()) {
        return Ok(());
    }
    call.seek(call.args.at(1));
    match answer_value(call)? {
        Ok(old) => call.put_string(call.args.at(2), None, old.is_none()),
        Err(()) => Ok(()),
    }
}

/// When a key is to expire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    /// SET drops an expiry, GETEX leaves it.
    Default,
    Keep,
    Persist,
    Until {
        unit: Unit,
        basis: Basis,
        argument: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Condition {
    Always,
    Absent,
    Present,
    /// The value equals this argument.
    Equals(usize),
}

impl Life {
    /// An option may be given again, and the last one counts; different ones exclude each other.
    fn may_follow(self, earlier: Life) -> bool {
        match (earlier, self) {
            (Life::Default, _) => true,
            (Life::Until { unit: a, basis: b, .. }, Life::Until { unit: c, basis: d, .. }) => {
                (a, b) == (c, d)
            }
            (earlier, later) => earlier == later,
        }
    }
}

struct SetOptions {
    life: Life,
    condition: Condition,
    get: bool,
}

/// An option that sets the expiry, with the place of its number.
fn until(option: &[u8], argument: usize) -> Option<Life> {
    let (unit, basis) = match option.to_ascii_uppercase().as_slice() {
        b"EX" => (Unit::Seconds, Basis::Now),
        b"PX" => (Unit::Milliseconds, Basis::Now),
        b"EXAT" => (Unit::Seconds, Basis::Epoch),
        b"PXAT" => (Unit::Milliseconds, Basis::Epoch),
        _ => return None,
    };
    Some(Life::Until { unit, basis, argument })
}

/// The options of SET behind its value; `None` for a syntax error.
fn set_options(call: &Call<'_, '_>) -> Option<SetOptions> {
    let mut options = SetOptions { life: Life::Default, condition: Condition::Always, get: false };
    let mut at = 3;
    while let Some(option) = call.args.get(at) {
        let next = call.args.get(at + 1).map(|_| at + 1);
        let word = option.to_ascii_uppercase();
        match (word.as_slice(), next) {
            (b"NX", _) if matches!(options.condition, Condition::Always | Condition::Absent) => {
                options.condition = Condition::Absent;
            }
            (b"XX", _) if matches!(options.condition, Condition::Always | Condition::Present) => {
                options.condition = Condition::Present;
            }
            (b"IFEQ", Some(value)) if options.condition == Condition::Always => {
                options.condition = Condition::Equals(value);
                at += 1;
            }
            (b"GET", _) => options.get = true,
            (b"KEEPTTL", _) if matches!(options.life, Life::Default | Life::Keep) => {
                options.life = Life::Keep;
            }
            (_, Some(number)) => {
                options.life = until(option, number).filter(|life| life.may_follow(options.life))?;
                at += 1;
            }
            _ => return None,
        }
        at += 1;
    }
    Some(options)
}

pub(super) fn set(call: &mut Call<'_, '_>) -> Step {
    if call.args.len() == 3 {
        return set_plain(call, call.args.at(1), call.args.at(2), None);
    }
    let Some(options) = set_options(call) else { return call.error(errors::SYNTAX) };
    let expires = match options.life {
        Life::Until { unit, basis, argument } => match expiry(call, unit, basis, argument) {
            Some(at) => Some(at),
            None => return Ok(()),
        },
        _ => None,
    };
    let (key, value) = (call.args.at(1), call.args.at(2));
    if options.condition == Condition::Always && !options.get && options.life != Life::Keep {
        return set_plain(call, key, value, expires);
    }
    if !value_fits(call, 0, value.len()) {
        return Ok(());
    }
    call.seek(key);
    let out_from = call.out.len();
    let (found, fits) = match options.condition {
        Condition::Equals(argument) => match compare(call, argument)? {
            Some(answer) => answer,
            None => return call.error(errors::WRONG_TYPE),
        },
        condition if options.get => match answer_value(call)? {
            Ok(found) => (found, holds(condition, found)),
            Err(()) => return Ok(()),
        },
        condition => {
            let found = call.head()?;
            (found, holds(condition, found))
        }
    };
    if options.get {
        // The old value is the answer, whether it is replaced or not.
        if matches!(options.condition, Condition::Equals(_)) {
            call.out.truncate(out_from);
            answer_value(call)?.ok();
        }
    } else if fits {
        call.reply().ok();
    } else {
        call.reply().null();
    }
    if !fits {
        return Ok(());
    }
    let expires = match options.life {
        Life::Keep => found.and_then(|head| head.expires),
        _ => expires,
    };
    call.put_string(value, expires, found.is_none())
}

fn holds(condition: Condition, found: Option<Head>) -> bool {
    match condition {
        Condition::Always | Condition::Equals(_) => true,
        Condition::Absent => found.is_none(),
        Condition::Present => found.is_some(),
    }
}

/// The key in hand, and whether its value equals an argument; `None` when it is no string.
fn compare(call: &mut Call<'_, '_>, argument: usize) -> Step<Option<(Option<Head>, bool)>> {
    let wanted = call.args.at(argument);
    call.value(|meta, _| match meta {
        None => Some((None, false)),
        Some(meta) => string_body(&meta)
            .map(|body| (Some(Head { kind: meta.kind, expires: meta.expires }), body == wanted)),
    })
}

/// Replaces whatever stands under `key`. The commonest command: one look-up, one put.
fn set_plain(call: &mut Call<'_, '_>, key: &[u8], value: &[u8], expires: Option<WallMs>) -> Step {
    if !value_fits(call, 0, value.len()) {
        return Ok(());
    }
    call.seek(key);
    let present = call.present()?;
    call.put_string(value, expires, !present)?;
    call.ok()
}

/// Reads an expiry argument; `None` when an error was answered.
fn expiry(call: &mut Call<'_, '_>, unit: Unit, basis: Basis, argument: usize) -> Option<WallMs> {
    let Some(number) = parse_i64(call.args.at(argument)) else {
        call.reply().error(errors::NOT_INTEGER);
        return None;
    };
    let at = expire::moment(number, unit, basis, call.now()).filter(|_| number > 0);
    if at.is_none() {
        let text = format!("ERR invalid expire time in '{}' command", call.spec.name);
        call.reply().error(&text);
    }
    at.map(|ms| WallMs(ms.max(0) as u64))
}

/// Whether `old + added` bytes make a legal string; answers the error when not.
fn value_fits(call: &mut Call<'_, '_>, old: usize, added: usize) -> bool {
    let fits = old.checked_add(added).is_some_and(|len| len <= VALUE_BYTES_MAX);
    if !fits {
        call.reply().error(errors::VALUE_TOO_LONG);
    }
    fits
}

pub(super) fn setex(call: &mut Call<'_, '_>) -> Step {
    set_with_expiry(call, Unit::Seconds)
}
pub(super) fn psetex(call: &mut Call<'_, '_>) -> Step {
    set_with_expiry(call, Unit::Milliseconds)
}

fn set_with_expiry(call: &mut Call<'_, '_>, unit: Unit) -> Step {
    match expiry(call, unit, Basis::Now, 2) {
        Some(at) => set_plain(call, call.args.at(1), call.args.at(3), Some(at)),
        None => Ok(()),
    }
}

pub(super) fn setnx(call: &mut Call<'_, '_>) -> Step {
    if !value_fits(call, 0, call.args.at(2).len()) {
        return Ok(());
    }
    call.seek(call.args.at(1));
    if call.head()?.is_some() {
        return call.integer(0);
    }
    call.put_string(call.args.at(2), None, true)?;
    call.integer(1)
}

/// The key-value pairs of MSET are whole and every value is legal; answers the error when not.
fn pairs_fit(call: &mut Call<'_, '_>) -> bool {
    if call.args.len().is_multiple_of(2) {
        let text = format!("ERR wrong number of arguments for '{}' command", call.spec.name);
        call.reply().error(&text);
        return false;
    }
    let longest = call.args.iter().skip(2).step_by(2).map(<[u8]>::len).max().unwrap_or(0);
    value_fits(call, 0, longest)
}

pub(super) fn mset(call: &mut Call<'_, '_>) -> Step {
    if !pairs_fit(call) {
        return Ok(());
    }
    put_pairs(call)?;
    call.ok()
}

pub(super) fn msetnx(call: &mut Call<'_, '_>) -> Step {
    if !pairs_fit(call) {
        return Ok(());
    }
    for at in (1..call.args.len()).step_by(2) {
        call.seek(call.args.at(at));
        if call.head()?.is_some() {
            return call.integer(0);
        }
    }
    put_pairs(call)?;
    call.integer(1)
}

fn put_pairs(call: &mut Call<'_, '_>) -> Step {
    for at in (1..call.args.len()).step_by(2) {
        call.seek(call.args.at(at));
        let present = call.present()?;
        call.put_string(call.args.at(at + 1), None, !present)?;
    }
    Ok(())
}

/// The old string with its expiry, an empty one for an absent key; `None` when an error was answered.
fn old_string(call: &mut Call<'_, '_>) -> Step<Option<(Vec<u8>, Option<Head>)>> {
    call.value(|meta, reply| match meta {
        None => Some((Vec::new(), None)),
        Some(meta) => match string_body(&meta) {
            Some(body) => Some((body.to_vec(), Some(Head { kind: meta.kind, expires: meta.expires }))),
            None => {
                reply.error(errors::WRONG_TYPE);
                None
            }
        },
    })
}

pub(super) fn append(call: &mut Call<'_, '_>) -> Step {
    call.seek(call.args.at(1));
    let Some((mut body, found)) = old_string(call)? else { return Ok(()) };
    let tail = call.args.at(2);
    if !value_fits(call, body.len(), tail.len()) {
        return Ok(());
    }
    body.extend_from_slice(tail);
    call.put_string(&body, found.and_then(|head| head.expires), found.is_none())?;
    call.integer(body.len() as i64)
}

pub(super) fn setrange(call: &mut Call<'_, '_>) -> Step {
    let Some(offset) = parse_i64(call.args.at(2)) else { return call.error(errors::NOT_INTEGER) };
    let Ok(offset) = usize::try_from(offset) else { return call.error(errors::OFFSET_RANGE) };
    let patch = call.args.at(3);
    call.seek(call.args.at(1));
    let Some((mut body, found)) = old_string(call)? else { return Ok(()) };
    if patch.is_empty() {
        return call.integer(body.len() as i64);
    }
    if !value_fits(call, offset, patch.len()) {
        return Ok(());
    }
    let end = offset + patch.len();
    if body.len() < end {
        body.resize(end, 0);
    }
    body[offset..end].copy_from_slice(patch);
    call.put_string(&body, found.and_then(|head| head.expires), found.is_none())?;
    call.integer(body.len() as i64)
}

/// The options of GETEX; `None` for a syntax error.
fn getex_life(call: &Call<'_, '_>) -> Option<Life> {
    let mut life = Life::Default;
    let mut at = 2;
    while let Some(option) = call.args.get(at) {
        let next = if option.eq_ignore_ascii_case(b"PERSIST") {
            Life::Persist
        } else {
            at += 1;
            call.args.get(at)?;
            until(option, at)?
        };
        life = Some(next).filter(|next| next.may_follow(life))?;
        at += 1;
    }
    Some(life)
}

pub(super) fn getex(call: &mut Call<'_, '_>) -> Step {
    let Some(life) = getex_life(call) else { return call.error(errors::SYNTAX) };
    call.seek(call.args.at(1));
    let out_from = call.out.len();
    let found = match answer_value(call)? {
        Ok(Some(found)) => found,
        _ => return Ok(()),
    };
    let expires = match life {
        Life::Default | Life::Keep => return Ok(()),
        Life::Persist if found.expires.is_none() => return Ok(()),
        Life::Persist => None,
        Life::Until { unit, basis, argument } => {
            let value_end = call.out.len();
            let Some(at) = expiry(call, unit, basis, argument) else {
                // A bad time is answered instead of the value.
                call.out.drain(out_from..value_end);
                return Ok(());
            };
            if at <= call.now() {
                return call.remove();
            }
            Some(at)
        }
    };
    expire::rewrite(call, expires)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_as_in_redis() {
        let cases: &[(i64, i64, &str)] = &[
            (0, 3, "Hell"),
            (0, -1, "Hello"),
            (-4, -1, "ello"),
            (-9, 1, "He"),
            (3, 2, ""),
            (5, 9, ""),
            (-1, -2, ""),
            (0, 99, "Hello"),
            (i64::MIN, i64::MAX, "Hello"),
            (2, -9, ""),
            (0, -9, "H"),
        ];
        for (start, end, wanted) in cases {
            assert_eq!(slice(b"Hello", *start, *end), wanted.as_bytes(), "{start} {end}");
        }
    }
}
