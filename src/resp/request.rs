//! The server's side in: requests out of a growing input buffer, without an allocation per argument.

use std::ops::Index;

use super::inline;
use super::{ProtocolError, parse_i64};
use crate::base::limits;

/// What one request may hold. Chosen per call, so that a client's first command after AUTH is already read by the
/// wider limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    pub args_max: usize,
    pub argument_bytes_max: usize,
    /// The whole request with its framing; for a request in parts also what stands between them.
    pub request_bytes_max: usize,
    /// An inline request or a line with a count.
    pub line_bytes_max: usize,
    authenticated: bool,
}

impl RequestLimits {
    /// For a client that has not shown a password yet.
    pub const UNAUTHENTICATED: RequestLimits = RequestLimits {
        args_max: limits::UNAUTHENTICATED_ARGS_MAX,
        argument_bytes_max: limits::UNAUTHENTICATED_BYTES_MAX,
        request_bytes_max: limits::UNAUTHENTICATED_BYTES_MAX,
        line_bytes_max: limits::UNAUTHENTICATED_BYTES_MAX,
        authenticated: false,
    };
    /// For everyone else.
    pub const AUTHENTICATED: RequestLimits = RequestLimits {
        args_max: limits::REQUEST_ARGS_MAX,
        argument_bytes_max: limits::ARGUMENT_BYTES_MAX,
        request_bytes_max: limits::REQUEST_BYTES_MAX,
        line_bytes_max: limits::INLINE_BYTES_MAX,
        authenticated: true,
    };
}

/// What a look at the input gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parse {
    /// The request is not whole yet. Call again with the same bytes and more behind them.
    Incomplete,
    /// A request stands in the first `consumed` bytes; [`RequestParser::args`] shows it until the next call.
    /// A request without arguments (an empty line, `*0`) asks for nothing and gets no reply.
    Request { consumed: usize },
}

/// Reads requests one at a time. Between calls that answer [`Parse::Incomplete`] the input may only grow at its end;
/// after a [`Parse::Request`] the caller drops the consumed bytes and the next call starts at the next request.
#[derive(Debug, Default)]
pub struct RequestParser {
    state: State,
    /// Bytes of the input that are understood.
    at: usize,
    /// Bytes behind `at` already searched for a line end.
    searched: usize,
    /// Where each argument stands: in the input, or in `inline` for an inline request.
    ranges: Vec<(u32, u32)>,
    inline: Vec<u8>,
    is_inline: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// Arguments still to come.
    Arguments { left: u32 },
    /// The argument in front has this many bytes; `left` counts it.
    Argument { left: u32, len: u32 },
    /// The last answer was a request or an error; the next call starts anew.
    Answered,
}

/// A parser that has seen one request with many arguments does not keep the memory for ever.
const RANGES_KEPT: usize = 256;
const INLINE_BYTES_KEPT: usize = 1024;

impl RequestParser {
    pub fn new() -> RequestParser {
        RequestParser::default()
    }

    /// Looks for one request at the start of `input`.
    pub fn parse(&mut self, input: &[u8], limits: &RequestLimits) -> Result<Parse, ProtocolError> {
        if self.state == State::Answered {
            self.reset();
        }
        let result = self.advance(input, limits);
        if !matches!(result, Ok(Parse::Incomplete)) {
            self.state = State::Answered;
        }
        result
    }

    /// The arguments of the request just answered. `input` is the slice that `parse` saw.
    pub fn args<'a>(&'a self, input: &'a [u8]) -> Args<'a> {
        assert_eq!(self.state, State::Answered, "arguments are read between a request and the next call");
        Args { bytes: if self.is_inline { &self.inline } else { input }, ranges: &self.ranges }
    }

    fn reset(&mut self) {
        self.state = State::Start;
        self.at = 0;
        self.searched = 0;
        self.is_inline = false;
        self.ranges.clear();
        self.ranges.shrink_to(RANGES_KEPT);
        self.inline.clear();
        self.inline.shrink_to(INLINE_BYTES_KEPT);
    }

    fn advance(&mut self, input: &[u8], limits: &RequestLimits) -> Result<Parse, ProtocolError> {
        loop {
            let progressed = match self.state {
                State::Start => match input.first() {
                    None => return Ok(Parse::Incomplete),
                    Some(b'*') => self.count(input, limits)?,
                    Some(_) => return self.line(input, limits),
                },
                State::Arguments { left: 0 } => return Ok(Parse::Request { consumed: self.at }),
                State::Arguments { left } => self.length(left, input, limits)?,
                State::Argument { left, len } => self.argument(left, len as usize, input)?,
                State::Answered => unreachable!("a call starts by leaving this state"),
            };
            if !progressed {
                return Ok(Parse::Incomplete);
            }
        }
    }

    /// The `*<count>` line.
    fn count(&mut self, input: &[u8], limits: &RequestLimits) -> Result<bool, ProtocolError> {
        let too_long = ProtocolError::of("Protocol error: too big mbulk count string");
        let invalid = ProtocolError::of("Protocol error: invalid multibulk length");
        let Some(line) = self.header_line(input, limits, too_long, &invalid)? else { return Ok(false) };
        let count = parse_i64(&line[1..]).filter(|n| *n <= i64::from(i32::MAX)).ok_or(invalid.clone())?;
        if count > limits.args_max as i64 {
            return Err(match limits.authenticated {
                true => invalid,
                false => ProtocolError::of("Protocol error: unauthenticated multibulk length"),
            });
        }
        self.state = State::Arguments { left: count.max(0) as u32 };
        Ok(true)
    }

    /// A `$<length>` line.
    fn length(&mut self, left: u32, input: &[u8], limits: &RequestLimits) -> Result<bool, ProtocolError> {
        match input.get(self.at) {
            None => return Ok(false),
            Some(b'$') => {}
            Some(other) => {
                let got = if matches!(other, b'\r' | b'\n') { ' ' } else { char::from(*other) };
                return Err(ProtocolError(format!("Protocol error: expected '$', got '{got}'").into()));
            }
        }
        let too_long = ProtocolError::of("Protocol error: too big bulk count string");
        let invalid = ProtocolError::of("Protocol error: invalid bulk length");
        let Some(line) = self.header_line(input, limits, too_long, &invalid)? else { return Ok(false) };
        let len = parse_i64(&line[1..]).filter(|n| *n >= 0).ok_or(invalid.clone())?;
        let room = limits.request_bytes_max.saturating_sub(self.at);
        if len > limits.argument_bytes_max as i64 {
            return Err(match limits.authenticated {
                true => invalid,
                false => ProtocolError::of("Protocol error: unauthenticated bulk length"),
            });
        }
        if len as usize > room {
            return Err(ProtocolError::of("Protocol error: request too large"));
        }
        self.state = State::Argument { left, len: len as u32 };
        Ok(true)
    }

    /// The bytes of one argument and the line end behind them. Waiting for a large one costs nothing per call.
    fn argument(&mut self, left: u32, len: usize, input: &[u8]) -> Result<bool, ProtocolError> {
        let end = self.at + len;
        let Some(line_end) = input.get(end..end + 2) else { return Ok(false) };
        if line_end != b"\r\n" {
            return Err(ProtocolError::of("Protocol error: expected CRLF after bulk payload"));
        }
        self.ranges.push((self.at as u32, end as u32));
        self.at = end + 2;
        self.state = State::Arguments { left: left - 1 };
        Ok(true)
    }

    /// The line at `self.at` without its line end, or `None` while it is not whole. Moves behind it.
    fn header_line<'a>(
        &mut self,
        input: &'a [u8],
        limits: &RequestLimits,
        too_long: ProtocolError,
        invalid: &ProtocolError,
    ) -> Result<Option<&'a [u8]>, ProtocolError> {
        let Some(at) = self.find(b'\r', input, limits.line_bytes_max, too_long)? else { return Ok(None) };
        match input.get(at + 1) {
            None => Ok(None),
            Some(b'\n') => {
                let line = &input[self.at..at];
                self.at = at + 2;
                self.searched = 0;
                Ok(Some(line))
            }
            Some(_) => Err(invalid.clone()),
        }
    }

    /// The first `wanted` byte behind `self.at`. The line in front of it may have `max` bytes at most, and the answer
    /// does not depend on how the bytes arrived.
    fn find(
        &mut self,
        wanted: u8,
        input: &[u8],
        max: usize,
        too_long: ProtocolError,
    ) -> Result<Option<usize>, ProtocolError> {
        let window = &input[self.at..input.len().min(self.at + max + 1)];
        match window[self.searched..].iter().position(|b| *b == wanted) {
            Some(offset) => {
                // Stay in front of the byte: the one behind it may not have arrived.
                self.searched += offset;
                Ok(Some(self.at + self.searched))
            }
            None if window.len() > max => Err(too_long),
            None => {
                self.searched = window.len();
                Ok(None)
            }
        }
    }

    /// An inline request: a line of words.
    fn line(&mut self, input: &[u8], limits: &RequestLimits) -> Result<Parse, ProtocolError> {
        let too_long = ProtocolError::of("Protocol error: too big inline request");
        let Some(end) = self.find(b'\n', input, limits.line_bytes_max, too_long.clone())? else {
            return Ok(Parse::Incomplete);
        };
        self.is_inline = true;
        let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
        inline::split(line, &mut self.inline, &mut self.ranges)
            .map_err(|_| ProtocolError::of("Protocol error: unbalanced quotes in request"))?;
        if self.ranges.len() > limits.args_max {
            return Err(too_long);
        }
        Ok(Parse::Request { consumed: end + 1 })
    }
}

/// The arguments of one request: the command's name first. A cheap view that can be copied.
#[derive(Clone, Copy)]
pub struct Args<'a> {
    bytes: &'a [u8],
    ranges: &'a [(u32, u32)],
}

impl<'a> Args<'a> {
    pub fn len(&self) -> usize {
        self.ranges.len()
    }
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let (start, end) = *self.ranges.get(index)?;
        Some(&self.bytes[start as usize..end as usize])
    }
    /// The argument at `index`, which exists. Lives as long as the bytes, not as long as this view.
    pub fn at(&self, index: usize) -> &'a [u8] {
        self.get(index).expect("the command's arity covers the argument")
    }
    /// The arguments from `index` on.
    pub fn from(&self, index: usize) -> Args<'a> {
        Args { bytes: self.bytes, ranges: self.ranges.get(index..).unwrap_or(&[]) }
    }
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        self.ranges.iter().map(move |(start, end)| &bytes[*start as usize..*end as usize])
    }
    /// Bytes of all arguments, framing left out.
    pub fn payload_bytes(&self) -> usize {
        self.ranges.iter().map(|(start, end)| (end - start) as usize).sum()
    }
    /// A copy that owns its bytes: for commands that wait (MULTI, a page that is being read).
    pub fn to_owned(&self) -> OwnedArgs {
        let mut owned = OwnedArgs {
            bytes: Vec::with_capacity(self.payload_bytes()),
            ranges: Vec::with_capacity(self.len()),
        };
        self.iter().for_each(|arg| owned.push(arg));
        owned
    }
}

impl Index<usize> for Args<'_> {
    type Output = [u8];
    fn index(&self, index: usize) -> &[u8] {
        self.at(index)
    }
}

impl std::fmt::Debug for Args<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(|arg| String::from_utf8_lossy(arg))).finish()
    }
}

/// Arguments with their own memory.
#[derive(Clone, Default)]
pub struct OwnedArgs {
    bytes: Vec<u8>,
    ranges: Vec<(u32, u32)>,
}

impl OwnedArgs {
    /// Arguments put together by the program itself: tests, the demo, commands of the node.
    pub fn of<A: AsRef<[u8]>>(args: impl IntoIterator<Item = A>) -> OwnedArgs {
        let mut owned = OwnedArgs::default();
        args.into_iter().for_each(|arg| owned.push(arg.as_ref()));
        owned
    }

    fn push(&mut self, arg: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(arg);
        let end = u32::try_from(self.bytes.len()).expect("a request stays far below 4 GiB");
        self.ranges.push((start as u32, end));
    }

    pub fn view(&self) -> Args<'_> {
        Args { bytes: &self.bytes, ranges: &self.ranges }
    }
}

impl std::fmt::Debug for OwnedArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.view().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::write_request;
    use proptest::prelude::*;

    const ALL: RequestLimits = RequestLimits::AUTHENTICATED;

    type Outcome = Result<Vec<Vec<Vec<u8>>>, ProtocolError>;

    /// Feeds `bytes` in pieces that end at `cuts` and collects every request, or the first error.
    fn feed(
        bytes: &[u8],
        cuts: &[usize],
        limits: &RequestLimits,
    ) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
        let mut parser = RequestParser::new();
        let (mut input, mut requests) = (Vec::new(), Vec::new());
        let mut edges: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
        edges.push(bytes.len());
        edges.sort_unstable();
        let mut from = 0;
        for edge in edges {
            input.extend_from_slice(&bytes[from..edge]);
            from = edge;
            loop {
                match parser.parse(&input, limits) {
                    Ok(Parse::Incomplete) => break,
                    Ok(Parse::Request { consumed }) => {
                        requests.push(parser.args(&input).iter().map(<[u8]>::to_vec).collect());
                        input.drain(..consumed);
                    }
                    Err(error) => return (requests, Some(error)),
                }
            }
        }
        (requests, None)
    }

    fn whole(bytes: &[u8]) -> Outcome {
        match feed(bytes, &[], &ALL) {
            (requests, None) => Ok(requests),
            (_, Some(error)) => Err(error),
        }
    }

    fn refused(bytes: &[u8], limits: &RequestLimits) -> String {
        feed(bytes, &[], limits).1.map_or_else(|| "accepted".into(), |e| e.0.into_owned())
    }

    #[test]
    fn requests_are_read_in_both_forms() {
        let got = whole(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n*1\r\n$0\r\n\r\nset a \"b c\"\n").unwrap();
        let wanted: Vec<Vec<&[u8]>> =
            vec![vec![b"GET", b"a"], vec![b"PING"], vec![b""], vec![b"set", b"a", b"b c"]];
        assert_eq!(got, wanted);
    }

    #[test]
    fn empty_requests_ask_for_nothing() {
        assert_eq!(whole(b"*0\r\n*-1\r\n\r\n  \r\nPING\r\n").unwrap().concat(), [b"PING"]);
    }

    #[test]
    fn errors_read_as_in_redis() {
        let cases: &[(&[u8], &str)] = &[
            (b"*3000000000\r\n", "Protocol error: invalid multibulk length"),
            (b"*70000\r\n", "Protocol error: invalid multibulk length"),
            (b"*x\r\n", "Protocol error: invalid multibulk length"),
            (b"*\r\n", "Protocol error: invalid multibulk length"),
            (b"*1\rx", "Protocol error: invalid multibulk length"),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n", "Protocol error: expected '$', got 'f'"),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$-10\r\n", "Protocol error: invalid bulk length"),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$2000000000\r\n", "Protocol error: invalid bulk length"),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$blabla\r\n", "Protocol error: invalid bulk length"),
            (b"*1\r\nfoo\r\n", "Protocol error: expected '$', got 'f'"),
            (b"*1\r\n\r\n", "Protocol error: expected '$', got ' '"),
            (b"*1\r\n$1\r\nabc", "Protocol error: expected CRLF after bulk payload"),
            (b"set \"\"\"test-key\"\"\" test-value\r\n", "Protocol error: unbalanced quotes in request"),
        ];
        for (bytes, text) in cases {
            assert_eq!(refused(bytes, &ALL), *text, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn lines_and_requests_have_an_end() {
        let long = vec![b'1'; ALL.line_bytes_max + 1];
        assert_eq!(refused(&long, &ALL), "Protocol error: too big inline request");
        let with = |prefix: &[u8]| [prefix, &long].concat();
        assert_eq!(refused(&with(b"*"), &ALL), "Protocol error: too big mbulk count string");
        assert_eq!(refused(&with(b"*1\r\n$"), &ALL), "Protocol error: too big bulk count string");
        let mut big = b"*3\r\n".to_vec();
        for _ in 0..2 {
            big.extend_from_slice(format!("${}\r\n", 7 << 20).as_bytes());
            big.resize(big.len() + (7 << 20), b'x');
            big.extend_from_slice(b"\r\n");
        }
        assert_eq!(refused(&big, &ALL), "Protocol error: request too large");
    }

    #[test]
    fn strangers_get_the_strict_limits() {
        let strict = RequestLimits::UNAUTHENTICATED;
        assert_eq!(refused(b"*11\r\n", &strict), "Protocol error: unauthenticated multibulk length");
        assert_eq!(refused(b"*1\r\n$16385\r\n", &strict), "Protocol error: unauthenticated bulk length");
        assert_eq!(refused(&[b'a'; 16385], &strict), "Protocol error: too big inline request");
        assert_eq!(refused(b"a b c d e f g h i j k\n", &strict), "Protocol error: too big inline request");
        let mut parts = b"*10\r\n".to_vec();
        for _ in 0..5 {
            parts.extend_from_slice(b"$4000\r\n");
            parts.resize(parts.len() + 4000, b'x');
            parts.extend_from_slice(b"\r\n");
        }
        assert_eq!(refused(&parts, &strict), "Protocol error: request too large");
        assert_eq!(refused(b"*2\r\n$4\r\nAUTH\r\n$1\r\nx\r\n", &strict), "accepted");
    }

    #[test]
    fn a_large_argument_is_not_looked_at_again_and_again() {
        // Quadratic work would take minutes here: eight million bytes, one at a time.
        let len = 8 << 20;
        let mut bytes = format!("*1\r\n${len}\r\n").into_bytes();
        bytes.resize(bytes.len() + len, b'x');
        bytes.extend_from_slice(b"\r\n");
        let mut parser = RequestParser::new();
        for end in 0..bytes.len() {
            assert_eq!(parser.parse(&bytes[..end], &ALL), Ok(Parse::Incomplete));
        }
        assert_eq!(parser.parse(&bytes, &ALL), Ok(Parse::Request { consumed: bytes.len() }));
        assert_eq!(parser.args(&bytes)[0].len(), len);
    }

    #[test]
    fn memory_follows_bytes_and_not_declared_sizes() {
        let mut parser = RequestParser::new();
        assert_eq!(parser.parse(b"*65536\r\n$8388608\r\n", &ALL), Ok(Parse::Incomplete));
        assert!(parser.ranges.capacity() < 64 && parser.inline.capacity() < 64);
    }

    fn noise() -> impl Strategy<Value = Vec<u8>> {
        // Bytes that mean something make deep states likely.
        let piece = prop_oneof![
            4 => prop::sample::select(b"*$\r\n \"'\\x012389-abc\0".to_vec()).prop_map(|b| vec![b]),
            2 => prop::sample::select(vec!["*1\r\n", "*2\r\n", "$1\r\n", "$0\r\n\r\n", "a\r\n", "\r\n", "*-1\r\n"])
                .prop_map(|s| s.as_bytes().to_vec()),
            1 => any::<u8>().prop_map(|b| vec![b]),
        ];
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(bytes in noise(), cuts in prop::collection::vec(any::<usize>(), 0..12)) {
            let every: Vec<usize> = (0..bytes.len()).collect();
            let whole = feed(&bytes, &[], &ALL);
            prop_assert_eq!(&whole, &feed(&bytes, &cuts, &ALL));
            prop_assert_eq!(&whole, &feed(&bytes, &every, &ALL));
            let strict = RequestLimits::UNAUTHENTICATED;
            prop_assert_eq!(feed(&bytes, &[], &strict), feed(&bytes, &cuts, &strict));
        }

        #[test]
        fn requests_round_trip(
            requests in prop::collection::vec(prop::collection::vec(any::<Vec<u8>>(), 1..5), 0..5),
            cuts in prop::collection::vec(any::<usize>(), 0..8),
        ) {
            let mut bytes = Vec::new();
            for request in &requests {
                write_request(request, &mut bytes);
            }
            let (got, error) = feed(&bytes, &cuts, &ALL);
            prop_assert_eq!(error, None);
            prop_assert_eq!(got, requests);
        }
    }
}
