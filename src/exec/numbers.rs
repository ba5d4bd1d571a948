//! Counters: integers and decimal fractions kept as strings.

use super::call::{Call, Head, Step};
use super::errors;
use crate::record::key::ValueType;
use crate::resp::{format_i64, parse_i64};

pub(super) fn incr(call: &mut Call<'_, '_>) -> Step {
    add(call, 1)
}
pub(super) fn decr(call: &mut Call<'_, '_>) -> Step {
    add(call, -1)
}

pub(super) fn incrby(call: &mut Call<'_, '_>) -> Step {
    match parse_i64(call.args.at(2)) {
        Some(by) => add(call, by),
        None => call.error(errors::NOT_INTEGER),
    }
}

pub(super) fn decrby(call: &mut Call<'_, '_>) -> Step {
    match parse_i64(call.args.at(2)) {
        Some(i64::MIN) => call.error(errors::DECREMENT_OVERFLOW),
        Some(by) => add(call, -by),
        None => call.error(errors::NOT_INTEGER),
    }
}

/// A number read from a key: what it is and what else there is to keep.
struct Found<N> {
    number: N,
    head: Option<Head>,
}

/// Reads the key in hand as a number, an absent one as `zero`; `None` when an error was answered.
fn number<N>(
    call: &mut Call<'_, '_>,
    zero: N,
    read: impl FnOnce(&[u8]) -> Option<N>,
    not_a_number: &str,
) -> Step<Option<Found<N>>> {
    call.value(|meta, reply| match meta {
        None => Some(Found { number: zero, head: None }),
        Some(meta) if meta.kind != ValueType::String => {
            reply.error(errors::WRONG_TYPE);
            None
        }
        Some(meta) => {
            let number = read(meta.body);
            if number.is_none() {
                reply.error(not_a_number);
            }
            let head = Some(Head { kind: meta.kind, expires: meta.expires });
            number.map(|number| Found { number, head })
        }
    })
}

fn add(call: &mut Call<'_, '_>, by: i64) -> Step {
    call.seek(call.args.at(1));
    let Some(found) = number(call, 0, parse_i64, errors::NOT_INTEGER)? else { return Ok(()) };
    let Some(sum) = found.number.checked_add(by) else { return call.error(errors::OVERFLOW) };
    let mut text = Vec::with_capacity(20);
    format_i64(sum, &mut text);
    call.put_string(&text, found.head.and_then(|head| head.expires), found.head.is_none())?;
    call.integer(sum)
}

pub(super) fn incrbyfloat(call: &mut Call<'_, '_>) -> Step {
    call.seek(call.args.at(1));
    let zero = Number::Decimal(Decimal { units: 0, scale: 0 });
    let Some(found) = number(call, zero, Number::parse, errors::NOT_FLOAT)? else { return Ok(()) };
    let Some(by) = Number::parse(call.args.at(2)) else { return call.error(errors::NOT_FLOAT) };
    let Some(text) = found.number.plus(by) else { return call.error(errors::NOT_FINITE) };
    call.put_string(text.as_bytes(), found.head.and_then(|head| head.expires), found.head.is_none())?;
    call.reply().bulk(text.as_bytes());
    Ok(())
}

/// A number for INCRBYFLOAT. Redis adds in 80-bit floating point and prints 17 decimals, which hides the error of the
/// usual sums (0.1 + 0.2 is 0.3). Exact decimal sums give the same digits for these; what does not fit into them
/// is added in 64-bit floating point.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Decimal(Decimal),
    Float(f64),
}

/// `units / 10^scale`
#[derive(Clone, Copy, Debug, PartialEq)]
struct Decimal {
    units: i128,
    scale: u32,
}

/// Decimals that Redis prints.
const SCALE_MAX: u32 = 17;

impl Number {
    fn parse(text: &[u8]) -> Option<Number> {
        let text = std::str::from_utf8(text).ok()?;
        let float: f64 = text.parse().ok()?;
        if float.is_nan() {
            return None;
        }
        Some(Decimal::parse(text).map_or(Number::Float(float), Number::Decimal))
    }

    /// The sum as text, `None` when it is not finite.
    fn plus(self, other: Number) -> Option<String> {
        if let (Number::Decimal(a), Number::Decimal(b)) = (self, other)
            && let Some(sum) = a.plus(b)
        {
            return Some(sum.text());
        }
        let sum = self.float() + other.float();
        sum.is_finite().then(|| {
            let exact = format!("{sum}");
            let decimals = exact.split_once('.').map_or(0, |(_, decimals)| decimals.len());
            if decimals <= SCALE_MAX as usize {
                return exact;
            }
            let cut = format!("{sum:.17}");
            let cut = cut.trim_end_matches('0').trim_end_matches('.');
            if cut == "-0" { "0".into() } else { cut.into() }
        })
    }

    fn float(self) -> f64 {
        match self {
            Number::Float(float) => float,
            Number::Decimal(decimal) => decimal.text().parse().expect("a decimal is a number"),
        }
    }
}

impl Decimal {
    fn parse(text: &str) -> Option<Decimal> {
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            Some(at) => (&text[..at], text[at + 1..].parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (negative, digits) = match mantissa.as_bytes() {
            [b'-', ..] => (true, &mantissa[1..]),
            [b'+', ..] => (false, &mantissa[1..]),
            _ => (false, mantissa),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let mut units: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            let digit = digit.is_ascii_digit().then(|| i128::from(digit - b'0'))?;
            units = units.checked_mul(10)?.checked_add(digit)?;
        }
        let mut scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
        while scale > 0 && units % 10 == 0 {
            units /= 10;
            scale -= 1;
        }
        if scale < 0 {
            units = units.checked_mul(10i128.checked_pow(scale.unsigned_abs())?)?;
            scale = 0;
        }
        let scale = u32::try_from(scale).ok().filter(|scale| *scale <= SCALE_MAX)?;
        Some(Decimal { units: if negative { -units } else { units }, scale })
    }

    fn plus(self, other: Decimal) -> Option<Decimal> {
        let scale = self.scale.max(other.scale);
        let at_scale = |d: Decimal| d.units.checked_mul(10i128.pow(scale - d.scale));
        Some(Decimal { units: at_scale(self)?.checked_add(at_scale(other)?)?, scale })
    }

    fn text(self) -> String {
        let one = 10u128.pow(self.scale);
        let magnitude = self.units.unsigned_abs();
        let sign = if self.units < 0 { "-" } else { "" };
        let whole = format!("{sign}{}", magnitude / one);
        if magnitude.is_multiple_of(one) {
            return whole;
        }
        let decimals = format!("{:0width$}", magnitude % one, width = self.scale as usize);
        format!("{whole}.{}", decimals.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_read_as_in_redis() {
        let cases = [
            ("0.1", "0.2", "0.3"),
            ("3", "1.1", "4.1"),
            ("1", "-1.1", "-0.1"),
            ("10.50", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("17179869184", "1.5", "17179869185.5"),
            ("-0", "0", "0"),
            ("-1.5", "1.5", "0"),
            ("1e30", "1", "1000000000000000000000000000001"),
            ("1e-20", "0", "0"),
            (".5", "5.", "5.5"),
            ("99999999999999999999999999999999999999999", "0", "100000000000000000000000000000000000000000"),
        ];
        for (a, b, sum) in cases {
            let number = |text: &str| Number::parse(text.as_bytes()).unwrap();
            assert_eq!(number(a).plus(number(b)).as_deref(), Some(sum), "{a} + {b}");
        }
        for bad in ["", " 1", "1 ", "abc", "nan", "1e", "1.2.3", "--1", "0x10"] {
            assert_eq!(Number::parse(bad.as_bytes()), None, "{bad}");
        }
        let infinite = Number::parse(b"inf").unwrap();
        assert_eq!(infinite.plus(infinite), None);
        assert_eq!(Number::parse(b"1e308").unwrap().plus(Number::parse(b"1e308").unwrap()), None);
    }
}
