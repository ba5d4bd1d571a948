//! Sizes and durations as people write them: `64MiB`, `10s`.

use std::time::Duration;

/// Units of size, largest first. Decimal and binary prefixes mean what the standards say.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Units of time in microseconds, tried in this order so that `ms` is not read as `m`.
const TIMES: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let number = text[..digits].replace('_', "").parse().ok()?;
    Some((number, text[digits..].trim_start()))
}

/// Reads `64MiB`, `1GB`, `4096B`. `None` when it is no size or does not fit 64 bits.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text.trim())?;
    let (_, scale) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*scale)
}

/// Reads `500ms`, `10s`, `2m`. `None` when it is no duration or does not fit.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_number(text.trim())?;
    let (_, scale) = TIMES.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*scale).map(Duration::from_micros)
}

/// Writes a size in the largest binary unit that divides it: reading it back gives the same number.
pub fn show_size(bytes: u64) -> String {
    for (name, scale) in &SIZES[..4] {
        if bytes >= *scale && bytes.is_multiple_of(*scale) {
            return format!("{}{name}", bytes / scale);
        }
    }
    format!("{bytes}B")
}

/// Writes a duration in the largest unit that divides it.
pub fn show_duration(duration: Duration) -> String {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let (name, scale) = TIMES
        .iter()
        .rev()
        .find(|(_, scale)| micros > 0 && micros.is_multiple_of(*scale))
        .unwrap_or(&TIMES[1]);
    format!("{}{name}", micros / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_durations_read_as_written() {
        assert_eq!(size("64MiB"), Some(64 << 20));
        assert_eq!(size("1 GB"), Some(1_000_000_000));
        assert_eq!(size("16_384B"), Some(16384));
        assert_eq!(size("10"), None, "a size needs its unit");
        assert_eq!(size("99999999999TiB"), None);
        assert_eq!(size("MiB"), None);
        assert_eq!(duration("10s"), Some(Duration::from_secs(10)));
        assert_eq!(duration("5m"), Some(Duration::from_secs(300)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("10"), None);
        assert_eq!(duration("10 parsec"), None);
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::ZERO), "0ms");
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bytes in 0u64..1 << 50, millis in 0u64..1 << 40) {
            prop_assert_eq!(size(&show_size(bytes)), Some(bytes));
            let time = Duration::from_millis(millis);
            prop_assert_eq!(duration(&show_duration(time)), Some(time));
        }

        #[test]
        fn any_text_is_safe(text: String) {
            let _ = size(&text);
            let _ = duration(&text);
        }
    }
}
