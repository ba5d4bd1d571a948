//! Little-endian reading and writing of the room's small values. Readers return `None` instead of panicking and never
//! allocate from a count that the bytes claim before checking it against a limit.

use super::history::History;
use super::policy::{Generation, PendingGeneration, Voter};
use crate::base::limits::{HISTORY_MAX, NODES_MAX, PENDING_MAX, VOTERS_MAX};
use crate::base::{CommittedLsn, Incarnation, Lsn, NodeId, Term};

/// Longest text in a message; a longer one is cut.
pub(super) const TEXT_BYTES_MAX: usize = 1024;

/// Bytes yet to be read.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(rest: &'a [u8]) -> Reader<'a> {
        Reader { rest }
    }
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }
    pub fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }
    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
    pub fn u128(&mut self) -> Option<u128> {
        Some(u128::from_le_bytes(self.take(16)?.try_into().ok()?))
    }
    pub fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
    pub fn lsn(&mut self) -> Option<Lsn> {
        Some(Lsn(self.u64()?))
    }
    pub fn committed(&mut self) -> Option<CommittedLsn> {
        Some(CommittedLsn(self.lsn()?))
    }
    pub fn term(&mut self) -> Option<Term> {
        Some(Term { number: self.u64()?, id: self.u128()? })
    }
    pub fn node(&mut self) -> Option<NodeId> {
        let id = self.u16()?;
        (1..=NODES_MAX as u16).contains(&id).then_some(NodeId(id))
    }
    pub fn history(&mut self) -> Option<History> {
        let count = usize::from(self.u16()?);
        if count > HISTORY_MAX {
            return None;
        }
        let entries: Option<Vec<_>> = (0..count).map(|_| Some((self.term()?, self.lsn()?))).collect();
        History::from_entries(entries?)
    }
    fn members(&mut self, max: usize) -> Option<Vec<Voter>> {
        let count = usize::from(self.u8()?);
        if count > max {
            return None;
        }
        (0..count)
            .map(|_| Some(Voter { node: self.node()?, incarnation: Incarnation(self.u128()?) }))
            .collect()
    }
    pub fn generation(&mut self) -> Option<Generation> {
        let number = self.u64()?;
        let k = self.u8()?;
        let first = self.flag()?;
        let how = self.u8()?;
        if how & 0b1100 != 0 {
            return None;
        }
        let (forced, store, full_k) = (how & 1 != 0, how & 2 != 0, how >> 4);
        let voters = self.members(VOTERS_MAX)?;
        let standbys = self.members(NODES_MAX)?;
        let count = usize::from(self.u8()?);
        if count > standbys.len() {
            return None;
        }
        let absent = (0..count).map(|_| self.node()).collect::<Option<Vec<_>>>()?;
        let generation = Generation { number, voters, k, first, forced, standbys, absent, store, full_k };
        generation.is_sound().then_some(generation)
    }
    pub fn pending(&mut self) -> Option<Vec<PendingGeneration>> {
        let count = usize::from(self.u8()?);
        if count > PENDING_MAX {
            return None;
        }
        let mut pending: Vec<PendingGeneration> = Vec::with_capacity(count);
        for _ in 0..count {
            let generation = self.generation()?;
            let (start, end) = (self.lsn()?, self.lsn()?);
            if start >= end || pending.last().is_some_and(|before| before.end > start) {
                return None;
            }
            pending.push(PendingGeneration { generation, start, end });
        }
        Some(pending)
    }
    /// A text of at most [`TEXT_BYTES_MAX`] bytes.
    pub fn text(&mut self) -> Option<String> {
        let len = usize::from(self.u16()?);
        if len > TEXT_BYTES_MAX {
            return None;
        }
        std::str::from_utf8(self.take(len)?).ok().map(str::to_owned)
    }
    /// True when everything was read: trailing bytes are as wrong as missing ones.
    pub fn done(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Appends values in the order in which [`Reader`] takes them.
pub(super) trait Write {
    fn bytes(&mut self, bytes: &[u8]);

    fn u8(&mut self, v: u8) {
        self.bytes(&[v]);
    }
    fn u16(&mut self, v: u16) {
        self.bytes(&v.to_le_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }
    fn u128(&mut self, v: u128) {
        self.bytes(&v.to_le_bytes());
    }
    fn flag(&mut self, v: bool) {
        self.u8(u8::from(v));
    }
    fn lsn(&mut self, v: Lsn) {
        self.u64(v.0);
    }
    fn term(&mut self, v: Term) {
        self.u64(v.number);
        self.u128(v.id);
    }
    fn node(&mut self, v: NodeId) {
        self.u16(v.0);
    }
    fn history(&mut self, v: &History) {
        self.u16(v.entries().len() as u16);
        for (term, start) in v.entries() {
            self.term(*term);
            self.lsn(*start);
        }
    }
    fn members(&mut self, v: &[Voter]) {
        self.u8(v.len() as u8);
        for voter in v {
            self.node(voter.node);
            self.u128(voter.incarnation.0);
        }
    }
    fn generation(&mut self, v: &Generation) {
        assert!(v.is_sound(), "an unsound generation is never written");
        self.u64(v.number);
        self.u8(v.k);
        self.flag(v.first);
        self.u8(u8::from(v.forced) | u8::from(v.store) << 1 | v.full_k << 4);
        self.members(&v.voters);
        self.members(&v.standbys);
        self.u8(v.absent.len() as u8);
        v.absent.iter().for_each(|node| self.node(*node));
    }
    fn pending(&mut self, v: &[PendingGeneration]) {
        assert!(v.len() <= PENDING_MAX, "the machine keeps no more");
        self.u8(v.len() as u8);
        for pending in v {
            self.generation(&pending.generation);
            self.lsn(pending.start);
            self.lsn(pending.end);
        }
    }
    fn text(&mut self, v: &str) {
        let mut end = v.len().min(TEXT_BYTES_MAX);
        while !v.is_char_boundary(end) {
            end -= 1;
        }
        self.u16(end as u16);
        self.bytes(&v.as_bytes()[..end]);
    }
}

impl Write for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
