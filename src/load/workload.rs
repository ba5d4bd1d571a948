//! What is asked: commands, keys, values. Deterministic for a seed.

use std::io::Write;

use crate::base::Prng;

/// The mixture of commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    Set,
    Get,
    Incr,
    /// GET and SET.
    Mixed {
        writes_percent: u8,
    },
}

impl Workload {
    pub fn name(self) -> &'static str {
        match self {
            Workload::Set => "set",
            Workload::Get => "get",
            Workload::Incr => "incr",
            Workload::Mixed { .. } => "mixed",
        }
    }

    /// Whether it reads values, so that the keys are to be written first.
    pub fn reads(self) -> bool {
        matches!(self, Workload::Get | Workload::Mixed { .. })
    }
}

/// Random bytes that values are cut from, so that no two neighbours are equal and making one costs a copy only.
const POOL_BYTES: usize = 1 << 16;

/// Writes commands.
#[derive(Debug)]
pub struct Generator {
    workload: Workload,
    keys: u64,
    value_bytes: usize,
    prng: Prng,
    pool: Vec<u8>,
}

impl Generator {
    /// `keys` must not be zero.
    pub fn new(workload: Workload, keys: u64, value_bytes: usize, seed: u64) -> Generator {
        assert!(keys > 0);
        let mut prng = Prng::new(seed);
        let mut pool = vec![0u8; POOL_BYTES + value_bytes];
        prng.fill(&mut pool);
        // Printable, so that the data can be looked at with any client.
        pool.iter_mut().for_each(|byte| *byte = b'a' + *byte % 26);
        Generator { workload, keys, value_bytes, prng, pool }
    }

    /// Appends one command of the workload.
    pub fn next(&mut self, out: &mut Vec<u8>) {
        let key = self.prng.below(self.keys);
        match self.workload {
            Workload::Set => self.set(key, out),
            Workload::Get => get(key, out),
            Workload::Incr => incr(key, out),
            Workload::Mixed { writes_percent } => {
                if self.prng.below(100) < u64::from(writes_percent) {
                    self.set(key, out);
                } else {
                    get(key, out);
                }
            }
        }
    }

    /// Appends one command of the workload that only reads, or only writes.
    pub fn next_of(&mut self, read: bool, out: &mut Vec<u8>) {
        let key = self.prng.below(self.keys);
        match read {
            true => get(key, out),
            false => self.set(key, out),
        }
    }

    /// Appends a SET of one key, for filling the key space first.
    pub fn set(&mut self, key: u64, out: &mut Vec<u8>) {
        let at = self.prng.below(POOL_BYTES as u64) as usize;
        let value = &self.pool[at..at + self.value_bytes];
        write!(out, "*3\r\n$3\r\nSET\r\n$16\r\nkey:{key:012}\r\n${}\r\n", value.len()).expect("memory");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

fn get(key: u64, out: &mut Vec<u8>) {
    write!(out, "*2\r\n$3\r\nGET\r\n$16\r\nkey:{key:012}\r\n").expect("memory");
}

fn incr(key: u64, out: &mut Vec<u8>) {
    write!(out, "*2\r\n$4\r\nINCR\r\n$16\r\nctr:{key:012}\r\n").expect("memory");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Parse, RequestLimits, RequestParser};

    #[test]
    fn commands_are_what_a_server_parses() {
        for workload in [Workload::Set, Workload::Get, Workload::Incr, Workload::Mixed { writes_percent: 50 }]
        {
            let mut generator = Generator::new(workload, 1000, 100, 7);
            let mut bytes = Vec::new();
            (0..100).for_each(|_| generator.next(&mut bytes));
            let mut parser = RequestParser::new();
            let mut rest = &bytes[..];
            let mut words = std::collections::BTreeSet::new();
            let mut seen = 0;
            while !rest.is_empty() {
                let used = match parser.parse(rest, &RequestLimits::AUTHENTICATED).unwrap() {
                    Parse::Request { consumed } => consumed,
                    other => panic!("{other:?}"),
                };
                let args = parser.args(rest);
                words.insert(args.at(0).to_vec());
                assert_eq!(args.at(1).len(), 16);
                assert!(args.len() == 2 || args.at(2).len() == 100);
                rest = &rest[used..];
                seen += 1;
            }
            assert_eq!(seen, 100);
            assert_eq!(words.len(), if workload.name() == "mixed" { 2 } else { 1 });
        }
    }
}
