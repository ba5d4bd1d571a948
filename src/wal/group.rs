//! The open group: records of commands executed since the last seal, and the stamps of groups already sealed.

use std::collections::VecDeque;

use super::WalError;
use crate::base::{Lsn, Stamp};
use crate::record::{RecordReader, RecordWriter};

/// A run of whole transactions that becomes one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub start: usize,
    pub end: usize,
    pub records: u32,
    pub transactions: u32,
}

/// Cuts a payload into parts of at most `max` bytes, at transaction borders only.
pub(super) fn cut(writer: &RecordWriter, max: usize) -> Result<Vec<Part>, WalError> {
    let bytes = writer.bytes();
    if bytes.len() <= max {
        let (records, transactions) = (writer.records(), writer.transactions());
        return Ok(vec![Part { start: 0, end: bytes.len(), records, transactions }]);
    }
    let mut parts: Vec<Part> = Vec::new();
    let mut part = Part { start: 0, end: 0, records: 0, transactions: 0 };
    let mut reader = RecordReader::new(bytes);
    let mut records = 0;
    while let Some(item) = reader.next() {
        let (_, last) = item.expect("the writer's own records are well formed");
        records += 1;
        if !last {
            continue;
        }
        let end = bytes.len() - reader.remaining();
        if end - part.end > max {
            return Err(WalError::TooLarge { bytes: end - part.end, max });
        }
        if end - part.start > max {
            parts.push(part);
            part = Part { start: part.end, end: part.end, records: 0, transactions: 0 };
        }
        part.end = end;
        part.records += std::mem::take(&mut records);
        part.transactions += 1;
    }
    parts.push(part);
    Ok(parts)
}

/// Which stamp ended where. Entries leave when the commit index passes them.
#[derive(Debug)]
pub(super) struct Stamps {
    open: Stamp,
    sealed: VecDeque<(Stamp, Lsn)>,
    passed: Stamp,
}

impl Stamps {
    pub fn new() -> Self {
        Stamps { open: Stamp(1), sealed: VecDeque::new(), passed: Stamp::COMMITTED }
    }

    pub fn open(&self) -> Stamp {
        self.open
    }

    /// The open group was sealed and ends at `end`.
    pub fn seal(&mut self, end: Lsn) -> Stamp {
        let stamp = self.open;
        assert!(self.sealed.back().is_none_or(|(_, before)| *before < end));
        self.sealed.push_back((stamp, end));
        self.open = Stamp(stamp.0 + 1);
        stamp
    }

    /// The greatest stamp that ends at or before `lsn`. Calls never go back, so what was passed is forgotten.
    pub fn at(&mut self, lsn: Lsn) -> Stamp {
        while let Some((stamp, _)) = self.sealed.front().copied().filter(|(_, end)| *end <= lsn) {
            self.passed = stamp;
            self.sealed.pop_front();
        }
        self.passed
    }

    pub fn end_of(&self, stamp: Stamp) -> Option<Lsn> {
        let at = self.sealed.binary_search_by_key(&stamp, |(stamp, _)| *stamp).ok()?;
        Some(self.sealed[at].1)
    }

    /// Groups that end beyond `to` are gone, the open one too. A stamp is never handed out twice.
    pub fn truncate(&mut self, to: Lsn) {
        while self.sealed.back().is_some_and(|(_, end)| *end > to) {
            self.sealed.pop_back();
        }
        self.open = Stamp(self.open.0 + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ShardId;
    use crate::record::Record;

    #[test]
    fn stamps_follow_the_watermark() {
        let mut stamps = Stamps::new();
        assert_eq!(stamps.at(Lsn(1 << 20)), Stamp::COMMITTED);
        for end in [4096u64, 8192, 20480] {
            stamps.seal(Lsn(end));
        }
        assert_eq!(stamps.open(), Stamp(4));
        assert_eq!(stamps.end_of(Stamp(2)), Some(Lsn(8192)));
        assert_eq!(stamps.at(Lsn(4095)), Stamp(0));
        assert_eq!(stamps.at(Lsn(12288)), Stamp(2));
        assert_eq!(stamps.end_of(Stamp(2)), None, "passed and forgotten");
        stamps.truncate(Lsn(12288));
        assert_eq!(stamps.at(Lsn(1 << 30)), Stamp(2), "the third group was dropped");
        assert_eq!(stamps.open(), Stamp(5), "a stamp is never handed out twice");
    }

    #[test]
    fn a_group_is_cut_between_transactions_only() {
        let mut writer = RecordWriter::new();
        for transaction in 0..10u8 {
            for _ in 0..=transaction % 3 {
                writer.push(Record::Delete { shard: ShardId(0), key: &[transaction; 88] });
            }
            writer.end_transaction();
        }
        let parts = cut(&writer, 350).unwrap();
        assert!(parts.len() > 1);
        assert_eq!(parts[0].start, 0);
        assert_eq!(parts.last().unwrap().end, writer.len());
        assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
        for part in &parts {
            assert!(part.end - part.start <= 350);
            let records: Vec<_> =
                RecordReader::new(&writer.bytes()[part.start..part.end]).map(Result::unwrap).collect();
            assert!(records.last().unwrap().1, "a part ends with a whole transaction");
            assert_eq!(records.len(), part.records as usize);
            assert_eq!(records.iter().filter(|(_, last)| *last).count(), part.transactions as usize);
        }
        assert_eq!(cut(&writer, 299), Err(WalError::TooLarge { bytes: 300, max: 299 }));
        assert_eq!(cut(&writer, 1 << 20).unwrap().len(), 1);
    }
}
