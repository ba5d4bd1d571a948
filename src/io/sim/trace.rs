//! What happened: a running hash over all of it, and the last of it in words.

use std::collections::VecDeque;

use super::image::trimmed;

const REMEMBERED: usize = 400;

/// One thing that happened. `subject` and `detail` are whatever identifies it: token, connection, length.
#[derive(Clone, Copy, Debug)]
struct Line {
    at: u64,
    host: u16,
    what: &'static str,
    subject: u64,
    detail: u64,
}

#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    lines: VecDeque<Line>,
}

fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

impl Trace {
    pub(super) fn new(seed: u64) -> Trace {
        Trace { hash: mix(0x6261_746F_6E00, seed), lines: VecDeque::with_capacity(REMEMBERED) }
    }

    pub(super) fn note(&mut self, at: u64, host: usize, what: &'static str, subject: u64, detail: u64) {
        let host = host as u16;
        let kind = xxhash_rust::xxh3::xxh3_64(what.as_bytes());
        for value in [at, u64::from(host) ^ kind, subject, detail] {
            self.hash = mix(self.hash, value);
        }
        if self.lines.len() == REMEMBERED {
            self.lines.pop_front();
        }
        self.lines.push_back(Line { at, host, what, subject, detail });
    }

    /// Content that the lines leave out.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let some = trimmed(bytes);
        self.hash = mix(mix(self.hash, bytes.len() as u64), xxhash_rust::xxh3::xxh3_64(some));
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let show = |l: &Line| {
            let (seconds, nanos) = (l.at / 1_000_000_000, l.at % 1_000_000_000);
            format!("{seconds}.{nanos:09} host {} {} {} {}", l.host, l.what, l.subject, l.detail)
        };
        self.lines.iter().map(show).collect()
    }
}
