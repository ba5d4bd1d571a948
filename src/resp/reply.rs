//! The server's side out: replies appended to a byte vector.

use super::number::{format_double, format_i64};

/// The protocol version a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Proto {
    #[default]
    Resp2,
    Resp3,
}

impl Proto {
    /// The version as HELLO numbers it.
    pub fn number(self) -> i64 {
        match self {
            Proto::Resp2 => 2,
            Proto::Resp3 => 3,
        }
    }
}

/// Writes reply values. A type that RESP2 lacks is written as Redis does for RESP2 clients: a map as a flat array, a set
/// or push as an array, a boolean as 0 or 1, a double or verbatim text as a bulk string.
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    proto: Proto,
}

impl<'a> Reply<'a> {
    pub fn new(out: &'a mut Vec<u8>, proto: Proto) -> Reply<'a> {
        Reply { out, proto }
    }

    pub fn proto(&self) -> Proto {
        self.proto
    }

    fn head(&mut self, mark: u8, number: i64) {
        self.out.push(mark);
        format_i64(number, self.out);
        self.out.extend_from_slice(b"\r\n");
    }

    fn line(&mut self, mark: u8, text: &[u8]) {
        self.out.push(mark);
        // A line end inside would break the framing of everything behind it.
        self.out.extend(text.iter().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { *b }));
        self.out.extend_from_slice(b"\r\n");
    }

    fn blob(&mut self, mark: u8, bytes: &[u8]) {
        self.out.reserve(bytes.len() + 16);
        self.head(mark, bytes.len() as i64);
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }
    /// `text` starts with the error's code word.
    pub fn error(&mut self, text: &str) {
        self.error_bytes(text.as_bytes());
    }
    /// Line ends at the end of `text` are left out, as Redis does.
    pub fn error_bytes(&mut self, mut text: &[u8]) {
        while let [head @ .., b'\r' | b'\n'] = text {
            text = head;
        }
        self.line(b'-', text);
    }
    pub fn integer(&mut self, value: i64) {
        self.head(b':', value);
    }
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.blob(b'$', bytes);
    }
    /// An integer as a bulk string.
    pub fn bulk_i64(&mut self, value: i64) {
        let start = self.out.len();
        format_i64(value, self.out);
        let len = self.out.len() - start;
        self.out.truncate(start);
        self.head(b'$', len as i64);
        format_i64(value, self.out);
        self.out.extend_from_slice(b"\r\n");
    }
    /// No value.
    pub fn null(&mut self) {
        self.out.extend_from_slice(match self.proto {
            Proto::Resp2 => b"$-1\r\n".as_slice(),
            Proto::Resp3 => b"_\r\n",
        });
    }
    /// No array: what EXEC answers when a watched key changed.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(match self.proto {
            Proto::Resp2 => b"*-1\r\n".as_slice(),
            Proto::Resp3 => b"_\r\n",
        });
    }
    /// Opens an array; `len` values follow.
    pub fn array(&mut self, len: usize) {
        self.head(b'*', len as i64);
    }
    /// Opens a map; `len` pairs follow.
    pub fn map(&mut self, len: usize) {
        match self.proto {
            Proto::Resp2 => self.head(b'*', 2 * len as i64),
            Proto::Resp3 => self.head(b'%', len as i64),
        }
    }
    pub fn set(&mut self, len: usize) {
        match self.proto {
            Proto::Resp2 => self.head(b'*', len as i64),
            Proto::Resp3 => self.head(b'~', len as i64),
        }
    }
    /// Opens an out-of-band message; `len` values follow.
    pub fn push(&mut self, len: usize) {
        match self.proto {
            Proto::Resp2 => self.head(b'*', len as i64),
            Proto::Resp3 => self.head(b'>', len as i64),
        }
    }
    pub fn boolean(&mut self, value: bool) {
        match self.proto {
            Proto::Resp2 => self.integer(i64::from(value)),
            Proto::Resp3 => self.out.extend_from_slice(if value { b"#t\r\n" } else { b"#f\r\n" }),
        }
    }
    pub fn double(&mut self, value: f64) {
        match self.proto {
            Proto::Resp2 => {
                let mut text = Vec::with_capacity(24);
                format_double(value, &mut text);
                self.bulk(&text);
            }
            Proto::Resp3 => {
                self.out.push(b',');
                format_double(value, self.out);
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }
    /// Text with its format, three letters: `txt` or `mkd`.
    pub fn verbatim(&mut self, format: [u8; 3], text: &[u8]) {
        match self.proto {
            Proto::Resp2 => self.bulk(text),
            Proto::Resp3 => {
                self.head(b'=', text.len() as i64 + 4);
                self.out.extend_from_slice(&format);
                self.out.push(b':');
                self.out.extend_from_slice(text);
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(proto: Proto, write: impl FnOnce(&mut Reply<'_>)) -> String {
        let mut out = Vec::new();
        write(&mut Reply::new(&mut out, proto));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_type_has_its_bytes_in_both_versions() {
        type Write = fn(&mut Reply<'_>);
        let cases: &[(Write, &str, &str)] = &[
            (|r| r.ok(), "+OK\r\n", "+OK\r\n"),
            (|r| r.simple("a\r\nb"), "+a  b\r\n", "+a  b\r\n"),
            (|r| r.error("ERR x\ny"), "-ERR x y\r\n", "-ERR x y\r\n"),
            (|r| r.error("ERR x\r\n\n"), "-ERR x\r\n", "-ERR x\r\n"),
            (|r| r.integer(-7), ":-7\r\n", ":-7\r\n"),
            (|r| r.bulk(b"a\r\n"), "$3\r\na\r\n\r\n", "$3\r\na\r\n\r\n"),
            (|r| r.bulk_i64(-120), "$4\r\n-120\r\n", "$4\r\n-120\r\n"),
            (|r| r.null(), "$-1\r\n", "_\r\n"),
            (|r| r.null_array(), "*-1\r\n", "_\r\n"),
            (|r| r.array(2), "*2\r\n", "*2\r\n"),
            (|r| r.map(2), "*4\r\n", "%2\r\n"),
            (|r| r.set(2), "*2\r\n", "~2\r\n"),
            (|r| r.push(2), "*2\r\n", ">2\r\n"),
            (|r| r.boolean(true), ":1\r\n", "#t\r\n"),
            (|r| r.boolean(false), ":0\r\n", "#f\r\n"),
            (|r| r.double(1.5), "$3\r\n1.5\r\n", ",1.5\r\n"),
            (|r| r.double(f64::INFINITY), "$3\r\ninf\r\n", ",inf\r\n"),
            (|r| r.verbatim(*b"txt", b"hi"), "$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n"),
        ];
        for (write, two, three) in cases {
            assert_eq!(written(Proto::Resp2, write), *two);
            assert_eq!(written(Proto::Resp3, write), *three);
        }
    }
}
