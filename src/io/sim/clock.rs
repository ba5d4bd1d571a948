//! One machine's clocks: a line through true time that bends when its rate changes.

use crate::base::{Mono, Prng, WallMs};

const MILLION: i128 = 1_000_000;
const NANOS_PER_MS: u64 = 1_000_000;
/// Times below this can be multiplied by two million within 64 bits.
const SHORT: u64 = 1 << 42;

#[derive(Clone, Debug)]
pub(super) struct Clock {
    /// True time of the last bend, and what the monotonic clock showed then.
    bend_true: u64,
    bend_local: u64,
    ppm: i32,
    home_ppm: i32,
    wall_offset_ms: i64,
}

impl Clock {
    pub(super) fn new(ppm: i32, wall_offset_ms: i64, rng: &mut Prng) -> Clock {
        // A machine has been up for some time; no two clocks start alike.
        Clock { bend_true: 0, bend_local: uptime(rng), ppm, home_ppm: ppm, wall_offset_ms }
    }

    pub(super) fn local(&self, now: u64) -> Mono {
        let passed = now.saturating_sub(self.bend_true);
        // Most stretches are short enough for a division in one word; the result is the same.
        if let (true, Ok(rate)) = (passed < SHORT, u64::try_from(MILLION as i64 + i64::from(self.ppm)))
            && rate <= 2 * MILLION as u64
        {
            return Mono(self.bend_local.saturating_add(passed * rate / MILLION as u64));
        }
        let passed = i128::from(passed);
        let local = i128::from(self.bend_local) + passed * (MILLION + i128::from(self.ppm)) / MILLION;
        Mono(u64::try_from(local).unwrap_or(u64::MAX))
    }

    /// The first true time at which the monotonic clock shows `local` or more.
    pub(super) fn when(&self, local: Mono) -> u64 {
        let rate = MILLION + i128::from(self.ppm);
        let ahead = i128::from(local.0) - i128::from(self.bend_local);
        if ahead <= 0 {
            return self.bend_true;
        }
        if rate == 0 {
            return u64::MAX;
        }
        let passed = match (u64::try_from(ahead), u64::try_from(rate)) {
            (Ok(ahead), Ok(rate)) if ahead < SHORT => i128::from((ahead * MILLION as u64).div_ceil(rate)),
            _ => (ahead * MILLION + rate - 1) / rate,
        };
        u64::try_from(i128::from(self.bend_true) + passed).unwrap_or(u64::MAX)
    }

    pub(super) fn wall(&self, now: u64, epoch_ms: u64) -> WallMs {
        WallMs((epoch_ms + now / NANOS_PER_MS).saturating_add_signed(self.wall_offset_ms))
    }

    /// Changes the rate from `now` on; the clock itself does not jump.
    pub(super) fn set_ppm(&mut self, now: u64, ppm: i32) {
        assert!(i128::from(ppm) >= -MILLION, "a monotonic clock never goes back");
        self.bend_local = self.local(now).0;
        self.bend_true = now.max(self.bend_true);
        self.ppm = ppm;
    }

    pub(super) fn calm(&mut self, now: u64) {
        self.set_ppm(now, self.home_ppm);
    }

    pub(super) fn jump_wall(&mut self, by_ms: i64) {
        self.wall_offset_ms = self.wall_offset_ms.saturating_add(by_ms);
    }

    /// The boot-time clock starts anew.
    pub(super) fn reboot(&mut self, now: u64, rng: &mut Prng) {
        self.bend_true = now;
        self.bend_local = uptime(rng);
    }
}

/// Between one second and about a quarter of an hour.
fn uptime(rng: &mut Prng) -> u64 {
    rng.between(1_000_000_000, 1_000_000_000_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_deadline_is_met_and_never_early(
            seed: u64, ppm in -600i32..600, later_ppm in -600i32..600,
            bend in 0u64..1 << 40, ahead in 0u64..1 << 40,
        ) {
            let mut clock = Clock::new(ppm, 0, &mut Prng::new(seed));
            let before = clock.local(bend);
            clock.set_ppm(bend, later_ppm);
            prop_assert_eq!(clock.local(bend), before, "a bend is no jump");
            let deadline = Mono(before.0 + ahead);
            let at = clock.when(deadline);
            prop_assert!(clock.local(at) >= deadline);
            prop_assert!(at == bend || clock.local(at - 1) < deadline);
        }
    }

    #[test]
    fn rates_and_wall_time() {
        let mut clock = Clock::new(500, -20, &mut Prng::new(1));
        let start = clock.local(0);
        let second = 1_000_000_000;
        assert_eq!(clock.local(second).0 - start.0, 1_000_500_000);
        assert_eq!(clock.wall(second, 10_000), WallMs(10_980));
        clock.jump_wall(-3_600_000);
        assert_eq!(clock.wall(second, 10_000), WallMs(0), "clamped at the epoch");
        clock.set_ppm(second, -1_000_000);
        assert_eq!(clock.local(second), clock.local(9 * second), "stopped");
        assert_eq!(clock.when(Mono(u64::MAX)), u64::MAX);
        clock.calm(9 * second);
        assert!(clock.local(10 * second) > clock.local(9 * second));
    }
}
