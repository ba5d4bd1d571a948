//! The client's side: requests out, replies in.

use super::number::format_i64;
use super::{ProtocolError, parse_i64};

/// Appends a request with these arguments.
pub fn write_request<A: AsRef<[u8]>>(args: &[A], out: &mut Vec<u8>) {
    out.push(b'*');
    format_i64(args.len() as i64, out);
    out.extend_from_slice(b"\r\n");
    for arg in args {
        let arg = arg.as_ref();
        out.push(b'$');
        format_i64(arg.len() as i64, out);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// What one reply may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyLimits {
    /// The whole reply.
    pub bytes_max: usize,
    /// Values of the reply, nested ones included.
    pub values_max: usize,
    /// Arrays inside arrays.
    pub depth_max: usize,
}

impl Default for ReplyLimits {
    fn default() -> Self {
        ReplyLimits { bytes_max: 64 << 20, values_max: 1 << 20, depth_max: 16 }
    }
}

/// Finds where each reply ends in a growing buffer. It keeps counters only; [`decode`] then shows the bytes as a value.
#[derive(Debug, Default)]
pub struct ReplyParser {
    at: usize,
    searched: usize,
    values: usize,
    /// Values still missing in each open aggregate.
    open: Vec<u64>,
    done: bool,
}

/// The longest head of a value that is no line of text.
const HEAD_BYTES_MAX: usize = 64;

impl ReplyParser {
    pub fn new() -> ReplyParser {
        ReplyParser::default()
    }

    /// The length of the reply at the start of `input`, or `None` while it is not whole: then call again with the same
    /// bytes and more behind them. After a length the next call starts at the next reply.
    pub fn parse(&mut self, input: &[u8], limits: &ReplyLimits) -> Result<Option<usize>, ProtocolError> {
        if self.done {
            self.open.clear();
            (self.at, self.searched, self.values, self.done) = (0, 0, 0, false);
        }
        let result = self.advance(input, limits);
        self.done = !matches!(result, Ok(None));
        result
    }

    fn advance(&mut self, input: &[u8], limits: &ReplyLimits) -> Result<Option<usize>, ProtocolError> {
        loop {
            let Some(mark) = input.get(self.at) else { return Ok(None) };
            let Some(head) = self.line(input, *mark, limits)? else { return Ok(None) };
            let Some((&mark, text)) = head.split_first() else {
                return Err(ProtocolError::of("reply of an unknown form"));
            };
            let mut end = self.at + head.len() + 2;
            let opened = match shape(mark, text)? {
                Shape::Flat => 0,
                Shape::Blob(len) => {
                    let len = usize::try_from(len).unwrap_or(usize::MAX);
                    let stop = end.checked_add(len).and_then(|n| n.checked_add(2));
                    match stop.filter(|stop| *stop <= limits.bytes_max) {
                        None => return Err(ProtocolError::of("reply too large")),
                        Some(stop) if stop > input.len() => return Ok(None),
                        Some(stop) if input[stop - 2..stop] != *b"\r\n" => {
                            return Err(ProtocolError::of("bulk reply without its line end"));
                        }
                        Some(stop) => end = stop,
                    }
                    0
                }
                Shape::Many(count) => count,
                // What the attributes belong to follows them and takes their place.
                Shape::Attribute(count) => count + 1,
            };
            self.values += 1;
            if opened > (limits.values_max.saturating_sub(self.values)) as u64
                || self.values > limits.values_max
            {
                return Err(ProtocolError::of("reply with too many values"));
            }
            if end > limits.bytes_max {
                return Err(ProtocolError::of("reply too large"));
            }
            self.at = end;
            self.searched = 0;
            if opened > 0 {
                if self.open.len() == limits.depth_max {
                    return Err(ProtocolError::of("reply nested too deeply"));
                }
                self.open.push(opened);
            } else if self.close() {
                return Ok(Some(self.at));
            }
        }
    }

    /// Counts a finished value. Says whether it finished the whole reply.
    fn close(&mut self) -> bool {
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return false;
            }
            self.open.pop();
        }
        true
    }

    /// The line at `self.at`, its line end left out.
    fn line<'a>(
        &mut self,
        input: &'a [u8],
        mark: u8,
        limits: &ReplyLimits,
    ) -> Result<Option<&'a [u8]>, ProtocolError> {
        let max = if matches!(mark, b'+' | b'-' | b'(') { limits.bytes_max } else { HEAD_BYTES_MAX };
        let window = &input[self.at..input.len().min(self.at.saturating_add(max).saturating_add(1))];
        match window[self.searched..].iter().position(|b| *b == b'\r') {
            Some(offset) => {
                self.searched += offset;
                match input.get(self.at + self.searched + 1) {
                    None => Ok(None),
                    Some(b'\n') => Ok(Some(&window[..self.searched])),
                    Some(_) => Err(ProtocolError::of("reply line with a bad end")),
                }
            }
            None if window.len() > max => Err(ProtocolError::of("reply line too long")),
            None => {
                self.searched = window.len();
                Ok(None)
            }
        }
    }
}

/// What follows a value's first line.
enum Shape {
    Flat,
    /// This many bytes and a line end.
    Blob(u64),
    /// This many values.
    Many(u64),
    /// This many values, then the one they describe.
    Attribute(u64),
}

fn shape(mark: u8, text: &[u8]) -> Result<Shape, ProtocolError> {
    let bad = || ProtocolError::of("reply of an unknown form");
    let count = || parse_i64(text).and_then(|n| u64::try_from(n).ok()).ok_or_else(bad);
    Ok(match mark {
        b'+' | b'-' | b'(' => Shape::Flat,
        b':' if parse_i64(text).is_some() => Shape::Flat,
        b',' if parse_double(text).is_some() => Shape::Flat,
        b'#' if text == b"t" || text == b"f" => Shape::Flat,
        b'_' if text.is_empty() => Shape::Flat,
        b'$' | b'*' if text == b"-1" => Shape::Flat,
        b'$' | b'!' => Shape::Blob(count()?),
        b'=' => match count()? {
            len @ 4.. => Shape::Blob(len),
            _ => return Err(bad()),
        },
        b'*' | b'~' | b'>' => Shape::Many(count()?),
        b'%' => Shape::Many(count()?.saturating_mul(2)),
        b'|' => Shape::Attribute(count()?.saturating_mul(2).min(u64::MAX - 1)),
        _ => return Err(bad()),
    })
}

fn parse_double(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A reply, borrowing from the bytes it was decoded from.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    Simple(&'a [u8]),
    /// The error's code word and text.
    Error(&'a [u8]),
    Integer(i64),
    Bulk(&'a [u8]),
    Null,
    Array(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
    Set(Vec<Value<'a>>),
    Push(Vec<Value<'a>>),
    Double(f64),
    Boolean(bool),
    BigNumber(&'a [u8]),
    Verbatim {
        format: &'a [u8],
        text: &'a [u8],
    },
}

impl<'a> Value<'a> {
    /// The bytes of a text of any kind.
    pub fn text(&self) -> Option<&'a [u8]> {
        match self {
            Value::Simple(text) | Value::Bulk(text) | Value::Verbatim { text, .. } => Some(text),
            _ => None,
        }
    }

    pub fn error(&self) -> Option<&'a [u8]> {
        match self {
            Value::Error(text) => Some(text),
            _ => None,
        }
    }
}

/// The value whose extent [`ReplyParser::parse`] found: `bytes` is exactly that reply. Attributes are left out.
pub fn decode(bytes: &[u8]) -> Result<Value<'_>, ProtocolError> {
    let mut rest = bytes;
    let value = one(&mut rest, 0)?;
    match rest {
        [] => Ok(value),
        _ => Err(ProtocolError::of("bytes behind the reply")),
    }
}

/// Deeper than any limit a parser uses, and shallow enough for the stack.
const DECODE_DEPTH_MAX: usize = 64;

fn one<'a>(rest: &mut &'a [u8], depth: usize) -> Result<Value<'a>, ProtocolError> {
    let cut = || ProtocolError::of("reply is cut off");
    if depth > DECODE_DEPTH_MAX {
        return Err(ProtocolError::of("reply nested too deeply"));
    }
    let end = rest.windows(2).position(|pair| pair == b"\r\n").ok_or_else(cut)?;
    let (mark, text) = rest[..end].split_first().ok_or_else(cut)?;
    *rest = &rest[end + 2..];
    match shape(*mark, text)? {
        Shape::Flat => Ok(flat(*mark, text)),
        Shape::Blob(len) => {
            let len = usize::try_from(len).map_err(|_| cut())?;
            let (blob, behind) = rest.split_at_checked(len).ok_or_else(cut)?;
            *rest = behind.strip_prefix(b"\r\n").ok_or_else(cut)?;
            Ok(match mark {
                b'!' => Value::Error(blob),
                b'=' => Value::Verbatim { format: &blob[..3], text: &blob[4..] },
                _ => Value::Bulk(blob),
            })
        }
        Shape::Attribute(count) => {
            for _ in 0..count {
                one(rest, depth + 1)?;
            }
            one(rest, depth + 1)
        }
        Shape::Many(count) => {
            let mut values = Vec::new();
            for _ in 0..count {
                values.push(one(rest, depth + 1)?);
            }
            Ok(match mark {
                b'~' => Value::Set(values),
                b'>' => Value::Push(values),
                b'%' => {
                    let mut pairs = Vec::with_capacity(values.len() / 2);
                    let mut values = values.into_iter();
                    while let (Some(key), Some(value)) = (values.next(), values.next()) {
                        pairs.push((key, value));
                    }
                    Value::Map(pairs)
                }
                _ => Value::Array(values),
            })
        }
    }
}

fn flat(mark: u8, text: &[u8]) -> Value<'_> {
    match mark {
        b'+' => Value::Simple(text),
        b'-' => Value::Error(text),
        b'(' => Value::BigNumber(text),
        b':' => Value::Integer(parse_i64(text).expect("checked with the shape")),
        b',' => Value::Double(parse_double(text).expect("checked with the shape")),
        b'#' => Value::Boolean(text == b"t"),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Proto, Reply};
    use proptest::prelude::*;

    fn write(value: &Value<'_>, reply: &mut Reply<'_>) {
        match value {
            Value::Simple(text) => reply.simple(std::str::from_utf8(text).unwrap()),
            Value::Error(text) => reply.error_bytes(text),
            Value::Integer(n) => reply.integer(*n),
            Value::Bulk(bytes) => reply.bulk(bytes),
            Value::Null => reply.null(),
            Value::Double(n) => reply.double(*n),
            Value::Boolean(b) => reply.boolean(*b),
            Value::Verbatim { format, text } => reply.verbatim((*format).try_into().unwrap(), text),
            Value::BigNumber(_) => unreachable!("not generated"),
            Value::Array(values) => {
                reply.array(values.len());
                values.iter().for_each(|v| write(v, reply));
            }
            Value::Set(values) => {
                reply.set(values.len());
                values.iter().for_each(|v| write(v, reply));
            }
            Value::Push(values) => {
                reply.push(values.len());
                values.iter().for_each(|v| write(v, reply));
            }
            Value::Map(pairs) => {
                reply.map(pairs.len());
                for (key, value) in pairs {
                    write(key, reply);
                    write(value, reply);
                }
            }
        }
    }

    fn values() -> impl Strategy<Value = Value<'static>> {
        let word = prop::sample::select(vec![&b"OK"[..], b"", b"a b", b"\x01"]);
        let leaf = prop_oneof![
            word.clone().prop_map(Value::Simple),
            word.clone().prop_map(Value::Error),
            any::<i64>().prop_map(Value::Integer),
            prop::sample::select(vec![&b""[..], b"\r\n", b"$1\r\nx\r\n", b"abc"]).prop_map(Value::Bulk),
            Just(Value::Null),
            (-1e300..1e300f64).prop_map(Value::Double),
            any::<bool>().prop_map(Value::Boolean),
            word.prop_map(|text| Value::Verbatim { format: b"txt", text }),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            let many = prop::collection::vec(inner.clone(), 0..5);
            prop_oneof![
                many.clone().prop_map(Value::Array),
                many.clone().prop_map(Value::Set),
                many.prop_map(Value::Push),
                prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Value::Map),
            ]
        })
    }

    /// The extents of all replies in `bytes`, fed in pieces that end at `cuts`.
    fn feed(bytes: &[u8], cuts: &[usize]) -> (Vec<Vec<u8>>, Option<ProtocolError>) {
        let mut edges: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
        edges.push(bytes.len());
        edges.sort_unstable();
        let limits = ReplyLimits { bytes_max: 4096, values_max: 100, depth_max: 8 };
        let (mut parser, mut input, mut replies, mut from) = (ReplyParser::new(), Vec::new(), Vec::new(), 0);
        for edge in edges {
            input.extend_from_slice(&bytes[from..edge]);
            from = edge;
            loop {
                match parser.parse(&input, &limits) {
                    Ok(None) => break,
                    Ok(Some(len)) => {
                        decode(&input[..len]).expect("what has an extent has a value");
                        replies.push(input.drain(..len).collect());
                    }
                    Err(error) => return (replies, Some(error)),
                }
            }
        }
        (replies, None)
    }

    fn refused(bytes: &[u8]) -> String {
        feed(bytes, &[]).1.map_or_else(|| "accepted".into(), |e| e.to_string())
    }

    #[test]
    fn limits_hold() {
        assert_eq!(refused(b"$99999999999\r\n"), "reply too large");
        assert_eq!(refused(b"*99999999999\r\n"), "reply with too many values");
        assert_eq!(refused(b"%9223372036854775807\r\n"), "reply with too many values");
        assert_eq!(refused(b"|9223372036854775807\r\n"), "reply with too many values");
        assert_eq!(refused(&b"*1\r\n".repeat(9)), "reply nested too deeply");
        assert_eq!(refused(&[b':'; 100]), "reply line too long");
        assert_eq!(refused(b"?1\r\n"), "reply of an unknown form");
        assert_eq!(refused(b"=3\r\nabc\r\n"), "reply of an unknown form");
        assert_eq!(refused(b"\r\n"), "reply of an unknown form");
    }

    #[test]
    fn attributes_are_stepped_over() {
        let bytes = b"|1\r\n+ttl\r\n:5\r\n*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n";
        assert_eq!(feed(bytes, &[]).0.len(), 1);
        assert_eq!(decode(bytes), Ok(Value::Array(vec![Value::Integer(1), Value::Integer(2)])));
    }

    proptest! {
        #[test]
        fn replies_round_trip_in_any_chunks(
            sent in prop::collection::vec(values(), 1..4),
            cuts in prop::collection::vec(any::<usize>(), 0..10),
        ) {
            let mut bytes = Vec::new();
            sent.iter().for_each(|v| write(v, &mut Reply::new(&mut bytes, Proto::Resp3)));
            let (extents, error) = feed(&bytes, &cuts);
            prop_assert_eq!(error, None);
            let got: Vec<Value<'_>> = extents.iter().map(|bytes| decode(bytes).unwrap()).collect();
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn noise_is_safe_and_chunks_do_not_matter(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "*1\r\n", "*2\r\n", "%1\r\n", "|1\r\n", "$1\r\n", "a\r\n", ":1\r\n", "+x\r\n", "_\r\n", "*-1\r\n",
                "$-1\r\n", "\r", "\n", "9", "-", "=5\r\ntxt:a\r\n", "#t\r\n", ",1.5\r\n", "!1\r\nx\r\n", "\0",
            ]), 0..30),
            cuts in prop::collection::vec(any::<usize>(), 0..10),
        ) {
            let bytes = pieces.concat().into_bytes();
            let every: Vec<usize> = (0..bytes.len()).collect();
            prop_assert_eq!(feed(&bytes, &[]), feed(&bytes, &cuts));
            prop_assert_eq!(feed(&bytes, &[]), feed(&bytes, &every));
        }

        #[test]
        fn any_bytes_are_safe(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = feed(&bytes, &[]);
        }
    }
}
