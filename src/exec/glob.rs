//! Patterns as KEYS, SCAN and CONFIG GET know them: `*`, `?`, `[a-z]`, `[^a]`, and `\` in front of a plain byte.

/// Whether `text` matches `pattern` as a whole. Takes time proportional to the product of both lengths at most.
pub(super) fn matches(pattern: &[u8], text: &[u8], ignore_case: bool) -> bool {
    // As in Redis, where even a star needs a byte to look at. (KEYS and SCAN take a lone star for everything.)
    if text.is_empty() {
        return pattern.is_empty();
    }
    let (mut p, mut t) = (0, 0);
    // Where to go on when the bytes behind the last star do not fit: the star takes one byte more.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        let fits = match (pattern.get(p), text.get(t)) {
            (None, None) => return true,
            (Some(_), Some(byte)) => one(&pattern[p..], *byte, ignore_case),
            _ => None,
        };
        match (fits, retry) {
            (Some(used), _) => {
                p += used;
                t += 1;
            }
            (None, Some((after_star, taken))) if taken < text.len() => {
                retry = Some((after_star, taken + 1));
                p = after_star;
                t = taken + 1;
            }
            (None, _) => return false,
        }
    }
}

/// Whether the first element of `pattern`, which is no star, takes `byte`: then its length.
fn one(pattern: &[u8], byte: u8, ignore_case: bool) -> Option<usize> {
    let fold = |b: u8| if ignore_case { b.to_ascii_lowercase() } else { b };
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (taken, used) = in_class(class, byte, &fold);
            taken.then_some(1 + used)
        }
        [b'\\', escaped, ..] => (fold(*escaped) == fold(byte)).then_some(2),
        [plain, ..] => (fold(*plain) == fold(byte)).then_some(1),
        [] => None,
    }
}

/// Whether the class that starts behind its `[` holds `byte`, and its length with the `]`. A class that is never
/// closed ends with the pattern.
fn in_class(class: &[u8], byte: u8, fold: &dyn Fn(u8) -> u8) -> (bool, usize) {
    let byte = fold(byte);
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match &class[at.min(class.len())..] {
            [] => return (found != negated, class.len()),
            [b']', ..] => return (found != negated, at + 1),
            [b'\\', escaped, ..] => {
                found |= fold(*escaped) == byte;
                at += 2;
            }
            [low, b'-', high, ..] => {
                let (low, high) = (fold(*low.min(high)), fold(*low.max(high)));
                found |= (low..=high).contains(&byte);
                at += 3;
            }
            [plain, ..] => {
                found |= fold(*plain) == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let yes = [
            ("", ""),
            ("*", "abc"),
            ("a*c", "abbbc"),
            ("a*b*c", "axbxbxc"),
            ("h?llo", "hello"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hallo"),
            ("h[a-b]llo", "hbllo"),
            ("h[b-a]llo", "hbllo"),
            ("\\*", "*"),
            ("a\\", "a\\"),
            ("[\\]]", "]"),
            ("[abc", "b"),
            ("***a", "xa"),
            ("[a-", "-"),
        ];
        let no = [
            ("", "a"),
            ("a", ""),
            ("a*c", "ab"),
            ("h?llo", "hllo"),
            ("h[^e]llo", "hello"),
            ("h[ae]llo", "hillo"),
            ("\\*", "a"),
            ("a*", "ba"),
            ("[]", "a"),
            ("?", ""),
            ("*", ""),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern.as_bytes(), text.as_bytes(), false), "{pattern} {text}");
        }
        for (pattern, text) in no {
            assert!(!matches(pattern.as_bytes(), text.as_bytes(), false), "{pattern} {text}");
        }
        assert!(matches(b"MaX*", b"maxmemory", true) && !matches(b"MaX*", b"maxmemory", false));
    }

    #[test]
    fn hostile_patterns_end() {
        let pattern = b"a*".repeat(2000);
        assert!(!matches(&[&pattern[..], b"b"].concat(), &b"a".repeat(4000), false));
    }
}
