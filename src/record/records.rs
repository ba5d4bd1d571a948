//! Records inside a frame: a 12-byte head, then key and value bytes.

use super::Corrupt;
use crate::base::{Incarnation, Lsn, NodeId, ShardId, Term};

/// Bytes in front of a record's key.
pub const RECORD_HEAD: usize = 12;
/// Set in `flags` on the last record of a transaction.
const LAST: u8 = 1;
/// Set in `flags` of a put that creates its entry.
const CREATED: u8 = 2;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_RANGE: u8 = 3;
const CLEAR_SHARD: u8 = 4;
const CHECKPOINT: u8 = 5;
const TERM_START: u8 = 6;
const POLICY: u8 = 7;
const OP: u8 = 8;

/// One logical effect. Keys are store keys (see [`super::key`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    Put {
        shard: ShardId,
        key: &'a [u8],
        value: &'a [u8],
        /// No entry was visible under this key before: key counts stay exact without a look-up at redo.
        created: bool,
    },
    /// The entry exists: nothing is logged for deletes that find nothing.
    Delete {
        shard: ShardId,
        key: &'a [u8],
    },
    /// Deletes every key in `start..end`.
    DeleteRange {
        shard: ShardId,
        start: &'a [u8],
        end: &'a [u8],
    },
    ClearShard {
        shard: ShardId,
    },
    /// The shard freezes here: everything before this record in the log, nothing after it, goes into the checkpoint.
    /// It always stands in front of every other record of its frame, so that redo from `at` starts at a frame border.
    /// `at` is the end of the data before that frame, as the primary saw it: the birth LSN of the new pages.
    Checkpoint {
        shard: ShardId,
        merge_version: u16,
        at: Lsn,
    },
    /// First record of a term. `previous_*` is what the winner had recruited on.
    TermStart {
        term: Term,
        leader: NodeId,
        incarnation: Incarnation,
        previous_term: Term,
        previous_end: Lsn,
    },
    /// A policy generation, encoded by the role room.
    Policy {
        generation: &'a [u8],
    },
    /// The op id behind the term start or the policy of the same frame, encoded by the role room.
    Op {
        op: &'a [u8],
    },
}

impl Record<'_> {
    /// The shard whose order the record belongs to; `None` for records of the whole node.
    pub fn shard(&self) -> Option<ShardId> {
        match *self {
            Record::Put { shard, .. }
            | Record::Delete { shard, .. }
            | Record::DeleteRange { shard, .. }
            | Record::ClearShard { shard }
            | Record::Checkpoint { shard, .. } => Some(shard),
            Record::TermStart { .. } | Record::Policy { .. } | Record::Op { .. } => None,
        }
    }
}

/// Appends records to a byte vector and can take a transaction back until it is ended.
#[derive(Default, Debug)]
pub struct RecordWriter {
    bytes: Vec<u8>,
    records: u32,
    transactions: u32,
    last_head: usize,
    open: u32,
}

/// A place to return to with [`RecordWriter::rewind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterMark {
    len: usize,
    records: u32,
}

impl RecordWriter {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, record: Record<'_>) {
        match record {
            Record::Put { shard, key, value, created } => {
                self.raw(PUT, shard.0, key, value);
                if created {
                    self.bytes[self.last_head + 1] |= CREATED;
                }
            }
            Record::Delete { shard, key } => self.raw(DELETE, shard.0, key, &[]),
            Record::DeleteRange { shard, start, end } => self.raw(DELETE_RANGE, shard.0, start, end),
            Record::ClearShard { shard } => self.raw(CLEAR_SHARD, shard.0, &[], &[]),
            Record::Checkpoint { shard, merge_version, at } => {
                let mut value = [0u8; 10];
                value[..2].copy_from_slice(&merge_version.to_le_bytes());
                value[2..].copy_from_slice(&at.0.to_le_bytes());
                self.raw(CHECKPOINT, shard.0, &[], &value);
            }
            Record::TermStart { term, leader, incarnation, previous_term, previous_end } => {
                let mut value = Vec::with_capacity(74);
                value.extend_from_slice(&term.number.to_le_bytes());
                value.extend_from_slice(&term.id.to_le_bytes());
                value.extend_from_slice(&leader.0.to_le_bytes());
                value.extend_from_slice(&incarnation.0.to_le_bytes());
                value.extend_from_slice(&previous_term.number.to_le_bytes());
                value.extend_from_slice(&previous_term.id.to_le_bytes());
                value.extend_from_slice(&previous_end.0.to_le_bytes());
                self.raw(TERM_START, 0, &[], &value);
            }
            Record::Policy { generation } => self.raw(POLICY, 0, &[], generation),
            Record::Op { op } => self.raw(OP, 0, &[], op),
        }
    }

    fn raw(&mut self, kind: u8, shard: u16, key: &[u8], value: &[u8]) {
        self.last_head = self.bytes.len();
        self.bytes.reserve(RECORD_HEAD + key.len() + value.len());
        self.bytes.extend_from_slice(&[kind, 0]);
        self.bytes.extend_from_slice(&shard.to_le_bytes());
        self.bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.records += 1;
        self.open += 1;
    }

    /// Closes the transaction made of the records pushed since the last call. Without such records it does nothing.
    pub fn end_transaction(&mut self) {
        if self.open > 0 {
            self.bytes[self.last_head + 1] |= LAST;
            self.transactions += 1;
            self.open = 0;
        }
    }

    /// Marks the end of the last whole transaction; only the open transaction can be taken back.
    pub fn mark(&self) -> WriterMark {
        assert_eq!(self.open, 0, "a mark stands between transactions");
        WriterMark { len: self.bytes.len(), records: self.records }
    }

    /// Drops every record pushed since `mark`.
    pub fn rewind(&mut self, mark: WriterMark) {
        assert!(mark.len <= self.bytes.len() && self.records - mark.records == self.open);
        self.bytes.truncate(mark.len);
        self.records = mark.records;
        self.open = 0;
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
    pub fn records(&self) -> u32 {
        self.records
    }
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Empties the writer, keeping its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records = 0;
        self.transactions = 0;
        self.last_head = 0;
        self.open = 0;
    }
}

/// Walks the records of a payload. Stops after the first error.
#[derive(Clone)]
pub struct RecordReader<'a> {
    rest: &'a [u8],
}

impl<'a> RecordReader<'a> {
    pub fn new(payload: &'a [u8]) -> Self {
        RecordReader { rest: payload }
    }

    /// Bytes not walked yet: the place of the next record, counted from the end of the payload.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn step(&mut self) -> Result<(Record<'a>, bool), Corrupt> {
        let (head, rest) =
            self.rest.split_at_checked(RECORD_HEAD).ok_or(Corrupt("record head is cut off"))?;
        let shard = ShardId(u16::from_le_bytes([head[2], head[3]]));
        let key_len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let value_len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let (key, rest) = rest.split_at_checked(key_len).ok_or(Corrupt("record key is cut off"))?;
        let (value, rest) = rest.split_at_checked(value_len).ok_or(Corrupt("record value is cut off"))?;
        let record = match head[0] {
            PUT => Record::Put { shard, key, value, created: head[1] & CREATED != 0 },
            DELETE if value.is_empty() => Record::Delete { shard, key },
            DELETE_RANGE => Record::DeleteRange { shard, start: key, end: value },
            CLEAR_SHARD if key.is_empty() && value.is_empty() => Record::ClearShard { shard },
            CHECKPOINT => {
                let value: [u8; 10] =
                    value.try_into().map_err(|_| Corrupt("checkpoint record of a wrong size"))?;
                let (version, at) = (u16::from_le_bytes([value[0], value[1]]), &value[2..]);
                let at = Lsn(u64::from_le_bytes(at.try_into().expect("eight bytes")));
                Record::Checkpoint { shard, merge_version: version, at }
            }
            TERM_START => term_start(value)?,
            POLICY => Record::Policy { generation: value },
            OP => Record::Op { op: value },
            _ => return Err(Corrupt("unknown record kind")),
        };
        self.rest = rest;
        Ok((record, head[1] & LAST != 0))
    }
}

impl<'a> Iterator for RecordReader<'a> {
    /// The record, and whether it ends its transaction.
    type Item = Result<(Record<'a>, bool), Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.step();
        if item.is_err() {
            self.rest = &[];
        }
        Some(item)
    }
}

fn term_start(value: &[u8]) -> Result<Record<'static>, Corrupt> {
    if value.len() != 74 {
        return Err(Corrupt("term start record of a wrong size"));
    }
    let u64_at = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().expect("eight bytes"));
    let u128_at = |at: usize| u128::from_le_bytes(value[at..at + 16].try_into().expect("sixteen bytes"));
    Ok(Record::TermStart {
        term: Term { number: u64_at(0), id: u128_at(8) },
        leader: NodeId(u16::from_le_bytes([value[24], value[25]])),
        incarnation: Incarnation(u128_at(26)),
        previous_term: Term { number: u64_at(42), id: u128_at(50) },
        previous_end: Lsn(u64_at(66)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Record<'static>> {
        vec![
            Record::Put { shard: ShardId(3), key: b"k", value: b"v", created: true },
            Record::Delete { shard: ShardId(3), key: b"k" },
            Record::DeleteRange { shard: ShardId(1), start: b"a", end: b"z" },
            Record::ClearShard { shard: ShardId(63) },
            Record::Checkpoint { shard: ShardId(9), merge_version: 1, at: Lsn(8192) },
            Record::TermStart {
                term: Term { number: 8, id: 1 << 100 },
                leader: NodeId(2),
                incarnation: Incarnation(77),
                previous_term: Term { number: 7, id: 4 },
                previous_end: Lsn(1 << 40),
            },
            Record::Policy { generation: b"bytes" },
            Record::Op { op: b"mark" },
        ]
    }

    #[test]
    fn records_survive_their_bytes() {
        let mut writer = RecordWriter::new();
        for record in all() {
            writer.push(record);
            writer.end_transaction();
        }
        let read: Vec<_> = RecordReader::new(writer.bytes()).map(|r| r.unwrap()).collect();
        assert!(read.iter().all(|(_, last)| *last));
        assert_eq!(read.into_iter().map(|(r, _)| r).collect::<Vec<_>>(), all());
        assert_eq!(writer.transactions() as usize, all().len());
    }

    #[test]
    fn an_open_transaction_can_be_taken_back() {
        let mut writer = RecordWriter::new();
        writer.push(Record::ClearShard { shard: ShardId(1) });
        writer.end_transaction();
        let mark = writer.mark();
        let before = writer.bytes().to_vec();
        writer.push(Record::ClearShard { shard: ShardId(2) });
        writer.push(Record::ClearShard { shard: ShardId(3) });
        writer.rewind(mark);
        assert_eq!(writer.bytes(), before);
        assert_eq!((writer.records(), writer.transactions()), (1, 1));
    }

    #[test]
    fn cut_off_or_noisy_bytes_never_panic() {
        let mut writer = RecordWriter::new();
        all().into_iter().for_each(|r| writer.push(r));
        let bytes = writer.bytes();
        for len in 0..bytes.len() {
            let _ = RecordReader::new(&bytes[..len]).count();
        }
        let mut rng = crate::base::Prng::new(1);
        for _ in 0..10_000 {
            let mut noisy = bytes.to_vec();
            let at = rng.below(noisy.len() as u64) as usize;
            noisy[at] ^= rng.next_u64() as u8;
            let _ = RecordReader::new(&noisy).count();
        }
    }
}
