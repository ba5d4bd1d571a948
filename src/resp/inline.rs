//! Inline requests: one line of words, quoted as in a shell, for people with a terminal and for health checks.

/// The line's words could not be told apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unbalanced;

/// Splits `line` (without its line end) into words by the rules of Redis. The unquoted bytes go to `bytes`, one range per
/// word to `words`. As in Redis a zero byte ends the line.
pub(super) fn split(line: &[u8], bytes: &mut Vec<u8>, words: &mut Vec<(u32, u32)>) -> Result<(), Unbalanced> {
    let line = line.split(|b| *b == 0).next().unwrap_or(line);
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        // A vertical tab separates words too, though Rust's ASCII white space leaves it out.
        while let [0x0B, more @ ..] = rest {
            rest = more.trim_ascii_start();
        }
        if rest.is_empty() {
            return Ok(());
        }
        let start = bytes.len();
        rest = word(rest, bytes)?;
        words.push((start as u32, bytes.len() as u32));
    }
}

/// Takes one word off the front of `line`, which starts with one.
fn word<'a>(line: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], Unbalanced> {
    let mut rest = line;
    loop {
        rest = match rest {
            [] | [b' ' | b'\n' | b'\r' | b'\t', ..] => return Ok(rest),
            [b'"', more @ ..] => return closed(double_quoted(more, out)?),
            [b'\'', more @ ..] => return closed(single_quoted(more, out)?),
            [byte, more @ ..] => {
                out.push(*byte);
                more
            }
        }
    }
}

/// A closing quote must end its word.
fn closed(rest: &[u8]) -> Result<&[u8], Unbalanced> {
    match rest {
        [] => Ok(rest),
        [byte, ..] if byte.is_ascii_whitespace() || *byte == 0x0B => Ok(rest),
        _ => Err(Unbalanced),
    }
}

fn double_quoted<'a>(mut rest: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], Unbalanced> {
    loop {
        rest = match rest {
            [] => return Err(Unbalanced),
            [b'"', more @ ..] => return Ok(more),
            [b'\\', b'x', high, low, more @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(nibble(*high) << 4 | nibble(*low));
                more
            }
            [b'\\', escaped, more @ ..] => {
                out.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                more
            }
            [byte, more @ ..] => {
                out.push(*byte);
                more
            }
        }
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], Unbalanced> {
    loop {
        rest = match rest {
            [] => return Err(Unbalanced),
            [b'\\', b'\'', more @ ..] => {
                out.push(b'\'');
                more
            }
            [b'\'', more @ ..] => return Ok(more),
            [byte, more @ ..] => {
                out.push(*byte);
                more
            }
        }
    }
}

fn nibble(hex: u8) -> u8 {
    match hex {
        b'0'..=b'9' => hex - b'0',
        _ => (hex | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, Unbalanced> {
        let (mut bytes, mut ranges) = (Vec::new(), Vec::new());
        split(line, &mut bytes, &mut ranges)?;
        Ok(ranges.iter().map(|(a, b)| bytes[*a as usize..*b as usize].to_vec()).collect())
    }

    fn expect(line: &str, wanted: &[&[u8]]) {
        assert_eq!(words(line.as_bytes()).unwrap(), wanted, "{line}");
    }

    #[test]
    fn words_are_split_as_redis_does() {
        expect("", &[]);
        expect("  \t\x0B ", &[]);
        expect("set a b", &[b"set", b"a", b"b"]);
        expect("  set\ta\x0Bc  b ", &[b"set", b"a\x0Bc", b"b"]);
        expect(r#"set "a b" 'c d'"#, &[b"set", b"a b", b"c d"]);
        expect(r#"x "\x41\x4g\n\r\t\b\a\q\"" y"#, &[b"x", b"Ax4g\n\r\t\x08\x07q\"", b"y"]);
        expect(r"x 'it\'s \n'", &[b"x", br"it's \n"]);
        expect(r#"x "" ''"#, &[b"x", b"", b""]);
        expect(r#"x ab"c d""#, &[b"x", b"abc d"]);
        expect("get a\0 b", &[b"get", b"a"]);
    }

    #[test]
    fn unbalanced_quotes_are_refused() {
        for line in [r#"x "abc"#, "x 'abc", r#"x "a"b"#, "x 'a'b", r#"x "a\"#, "x \"a\0\""] {
            assert_eq!(words(line.as_bytes()), Err(Unbalanced), "{line}");
        }
    }
}
