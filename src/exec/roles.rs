//! Commands about positions in the log and about who leads. This room only reads them; the node carries them out.

use super::call::{Call, Step, Stop};
use super::{LsnRequest, RoleRequest, errors};
use crate::base::Lsn;
use crate::resp::parse_i64;

/// `BATON.LSN`: where this connection's last write ends, to be given to BATON.WAITLSN on a standby. 0 without a write.
pub(super) fn own_lsn(call: &mut Call<'_, '_>) -> Step {
    Err(Stop::Lsn(LsnRequest::Own { stamp: call.session.last_write }))
}

/// `BATON.WAITLSN lsn timeout-ms`: afterwards a read here sees at least the log up to `lsn`.
pub(super) fn wait_lsn(call: &mut Call<'_, '_>) -> Step {
    let Some(lsn) = parse_lsn(call.args.at(1)) else {
        return call.error("ERR lsn is no position: a number of bytes, or high/low in hex");
    };
    match parse_i64(call.args.at(2)).map(u64::try_from) {
        None => call.error("ERR timeout is not an integer or out of range"),
        Some(Err(_)) => call.error("ERR timeout is negative"),
        Some(Ok(timeout_ms)) => Err(Stop::Lsn(LsnRequest::Applied { lsn, timeout_ms })),
    }
}

/// A position as BATON.LSN answers it, or as status shows it.
fn parse_lsn(text: &[u8]) -> Option<Lsn> {
    let text = std::str::from_utf8(text).ok()?;
    match text.split_once('/') {
        Some((high, low)) => {
            let hex = |part: &str| u32::from_str_radix(part, 16).ok();
            Some(Lsn(u64::from(hex(high)?) << 32 | u64::from(hex(low)?)))
        }
        None => text.parse().ok().filter(|at| *at <= i64::MAX as u64).map(Lsn),
    }
}

/// `REPLICAOF NO ONE` promotes. Whom a standby follows is decided by terms, never by a client.
pub(super) fn replicaof(call: &mut Call<'_, '_>) -> Step {
    let (host, port) = (call.args.at(1), call.args.at(2));
    if host.eq_ignore_ascii_case(b"no") && port.eq_ignore_ascii_case(b"one") {
        return Err(Stop::Role(RoleRequest::Promote));
    }
    if parse_i64(port).is_none_or(|port| !(0..=65_535).contains(&port)) {
        return call.error("ERR Invalid master port");
    }
    call.error(
        "ERR a standby follows the primary of its cluster by itself: use FAILOVER or `baton switchover` to change who leads",
    )
}

/// `FAILOVER [TO host port [FORCE]] [ABORT] [TIMEOUT ms]`, read as Redis reads it.
pub(super) fn failover(call: &mut Call<'_, '_>) -> Step {
    let (mut to, mut force, mut abort, mut timeout) = (None, false, false, None);
    let mut at = 1;
    while at < call.args.len() {
        let word = call.args.at(at);
        if word.eq_ignore_ascii_case(b"TO") && at + 2 < call.args.len() && to.is_none() {
            let Some(port) = parse_i64(call.args.at(at + 2)).and_then(|port| u16::try_from(port).ok()) else {
                return call.error(errors::NOT_INTEGER);
            };
            to = Some((String::from_utf8_lossy(call.args.at(at + 1)).into_owned(), port));
            at += 3;
        } else if word.eq_ignore_ascii_case(b"TIMEOUT") && at + 1 < call.args.len() && timeout.is_none() {
            match parse_i64(call.args.at(at + 1)) {
                None => return call.error(errors::NOT_INTEGER),
                Some(ms) if ms <= 0 => return call.error("ERR FAILOVER timeout must be greater than 0"),
                Some(ms) => timeout = Some(ms.unsigned_abs()),
            }
            at += 2;
        } else if word.eq_ignore_ascii_case(b"FORCE") && !force {
            force = true;
            at += 1;
        } else if word.eq_ignore_ascii_case(b"ABORT") && call.args.len() == 2 {
            abort = true;
            at += 1;
        } else {
            return call.error(errors::SYNTAX);
        }
    }
    if abort {
        return Err(Stop::Role(RoleRequest::Abort));
    }
    if force && (to.is_none() || timeout.is_none()) {
        return call.error("ERR FAILOVER with force option requires both a timeout and target HOST and IP.");
    }
    if force {
        return call.error(
            "ERR FORCE would drop acknowledged writes: a failover that is not done in time is undone. \
             `baton failover --force` on the target goes on without the primary",
        );
    }
    Err(Stop::Role(RoleRequest::Failover { to, timeout_ms: timeout.unwrap_or(0) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_in_both_spellings() {
        assert_eq!(parse_lsn(b"8192"), Some(Lsn(8192)));
        assert_eq!(parse_lsn(b"1/2000"), Some(Lsn((1 << 32) + 0x2000)));
        for bad in [&b"-1"[..], b"", b"x", b"1/", b"1/100000000", b"18446744073709551615", b"\xff"] {
            assert_eq!(parse_lsn(bad), None, "{bad:?}");
        }
    }
}
