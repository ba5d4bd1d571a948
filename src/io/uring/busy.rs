//! Busy polling: looking again for a moment before the loop's thread sleeps.
//!
//! To sleep and to be woken costs tens of microseconds, on a virtual machine much more, and a lone client pays it at each
//! of the four hand-overs of a write. So a loop whose waits are short looks again instead of sleeping, and gives its
//! processor to whoever wants it between two looks. The rule adapts: the last waits say how long the next one will be.
//! An idle loop's waits are long, so it always sleeps.

use std::time::Duration;

use crate::base::Mono;
use crate::io::Event;

/// So many short waits in a row make a loop busy: more than a heartbeat and its answer take.
const SHORT_IN_A_ROW: u8 = 4;
/// How long sends alone may hold back what the loop has to do: they are news that can wait.
const SENDS_ALONE_MAX: Duration = Duration::from_micros(50);

/// When to look again instead of sleeping.
#[derive(Clone, Debug)]
pub(super) struct Busy {
    limit: Duration,
    /// How many of the last waits were short, without a long one between them.
    short: u8,
    /// Waits that ended while looking, and without any sleep.
    #[cfg(test)]
    pub caught: u64,
}

impl Busy {
    pub(super) fn new(limit: Duration) -> Busy {
        Busy {
            limit,
            short: 0,
            #[cfg(test)]
            caught: 0,
        }
    }

    /// Until when to look again in a wait that begins `now`; `None`: sleep at once.
    pub(super) fn until(&self, now: Mono) -> Option<Mono> {
        (self.short >= SHORT_IN_A_ROW).then(|| now + self.limit)
    }

    /// A wait from `since` to `now` is over.
    pub(super) fn waited(&mut self, since: Mono, now: Mono) {
        let short = !self.limit.is_zero() && now.since(since) <= self.limit;
        self.short = if short { self.short.saturating_add(1) } else { 0 };
    }
}

/// Whether what arrived in a wait from `since` on is worth a turn of the node. Ends of sends alone are not for a moment:
/// the loop has begun them itself, just now.
pub(super) fn is_news(arrived: &[Event], since: Mono, now: Mono) -> bool {
    let urgent = arrived.iter().any(|event| !matches!(event, Event::Sent { .. }));
    urgent || (!arrived.is_empty() && now.since(since) >= SENDS_ALONE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{ConnId, Outgoing};

    const fn us(time: u64) -> Mono {
        Mono(time * 1000)
    }

    fn wait(busy: &mut Busy, times: u8, time: u64) {
        (0..times).for_each(|_| busy.waited(us(0), us(time)));
    }

    #[test]
    fn short_waits_are_polled_and_long_ones_slept() {
        let mut busy = Busy::new(Duration::from_micros(100));
        wait(&mut busy, SHORT_IN_A_ROW - 1, 90);
        assert_eq!(busy.until(us(200)), None, "a heartbeat and its answer are no load");
        wait(&mut busy, 200, 100);
        assert_eq!(busy.until(us(200)), Some(us(300)));
        wait(&mut busy, 1, 101);
        assert_eq!(busy.until(us(400)), None);
        wait(&mut busy, SHORT_IN_A_ROW, 50);
        assert_eq!(busy.until(us(500)), Some(us(600)), "waits have become short again");
    }

    #[test]
    fn none_is_never_polled() {
        let mut busy = Busy::new(Duration::ZERO);
        wait(&mut busy, 2 * SHORT_IN_A_ROW, 0);
        assert_eq!(busy.until(us(5)), None);
    }

    #[test]
    fn ends_of_sends_wait_for_company_but_not_for_long() {
        let sent =
            || Event::Sent { token: 1, conn: ConnId(1), data: Outgoing::Owned(Vec::new()), result: Ok(()) };
        assert!(!is_news(&[], us(0), us(1000)));
        assert!(!is_news(&[sent(), sent()], us(0), us(20)));
        assert!(is_news(&[sent()], us(0), us(50)));
        assert!(is_news(&[sent(), Event::Woken], us(0), us(1)));
    }
}
