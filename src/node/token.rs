//! Operation tokens: eight bits of purpose, the rest an id.

use crate::base::NodeId;
use crate::io::Token;

/// Sends carry no id: their event names the connection.
pub const SEND: Token = 0;

const SHIFT: u32 = 56;
const DIAL: u64 = 1;
const WAL: u64 = 2;
const SEGMENT: u64 = 3;
const PAGE_READ: u64 = 4;
const PAGE_WRITE: u64 = 5;
const PAGE_FLUSH: u64 = 6;
const SUPERBLOCK: u64 = 7;
const LOG_READ: u64 = 8;
const CONTROL: u64 = 9;
const PAGE_GROW: u64 = 10;
const MARK: u64 = 11;
const TAIL: u64 = 12;
const REPAIR_READ: u64 = 13;
const REPAIR_WRITE: u64 = 14;
const REPAIR_SEARCH: u64 = 15;
const SCRUB_READ: u64 = 16;
const WALK_READ: u64 = 17;

/// A token taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    Send,
    /// Connecting to a member.
    Dial(NodeId),
    /// A write or flush of the wal room, by its id.
    Wal(u64),
    /// An operation of the segment keeper, by its id.
    Segment(u64),
    /// Page number.
    PageRead(u64),
    PageWrite(u64),
    PageFlush(u64),
    PageGrow,
    /// The bytes of a damaged page, read once more.
    RepairRead(u64),
    RepairWrite(u64),
    /// Pages looked through for lost children, from this one on.
    RepairSearch(u64),
    ScrubRead(u64),
    WalkRead(u64),
    Superblock,
    /// Reading the log for somebody who is behind.
    LogRead(u64),
    Control,
    /// The mark of how far the log is durable here.
    Mark,
    /// The file of a dropped tail.
    Tail,
    Unknown,
}

fn make(purpose: u64, id: u64) -> Token {
    assert!(id < 1 << SHIFT);
    (purpose << SHIFT) | id
}

pub fn dial(node: NodeId) -> Token {
    make(DIAL, u64::from(node.0))
}
pub fn wal(id: u64) -> Token {
    make(WAL, id)
}
pub fn segment(id: u64) -> Token {
    make(SEGMENT, id)
}
pub fn page_read(page: u64) -> Token {
    make(PAGE_READ, page)
}
pub fn page_write(page: u64) -> Token {
    make(PAGE_WRITE, page)
}
pub fn page_flush(round: u64) -> Token {
    make(PAGE_FLUSH, round)
}
pub fn page_grow() -> Token {
    make(PAGE_GROW, 0)
}
pub fn repair_read(page: u64) -> Token {
    make(REPAIR_READ, page)
}
pub fn repair_write(page: u64) -> Token {
    make(REPAIR_WRITE, page)
}
pub fn repair_search(page: u64) -> Token {
    make(REPAIR_SEARCH, page)
}
pub fn scrub_read(page: u64) -> Token {
    make(SCRUB_READ, page)
}
pub fn walk_read(page: u64) -> Token {
    make(WALK_READ, page)
}
pub fn superblock() -> Token {
    make(SUPERBLOCK, 0)
}
pub fn log_read(id: u64) -> Token {
    make(LOG_READ, id)
}
pub fn control() -> Token {
    make(CONTROL, 0)
}

pub fn mark() -> Token {
    make(MARK, 0)
}

pub fn tail() -> Token {
    make(TAIL, 0)
}

pub fn purpose(token: Token) -> Purpose {
    let id = token & ((1 << SHIFT) - 1);
    match token >> SHIFT {
        0 => Purpose::Send,
        DIAL => Purpose::Dial(NodeId(id as u16)),
        WAL => Purpose::Wal(id),
        SEGMENT => Purpose::Segment(id),
        PAGE_READ => Purpose::PageRead(id),
        PAGE_WRITE => Purpose::PageWrite(id),
        PAGE_FLUSH => Purpose::PageFlush(id),
        PAGE_GROW => Purpose::PageGrow,
        REPAIR_READ => Purpose::RepairRead(id),
        REPAIR_WRITE => Purpose::RepairWrite(id),
        REPAIR_SEARCH => Purpose::RepairSearch(id),
        SCRUB_READ => Purpose::ScrubRead(id),
        WALK_READ => Purpose::WalkRead(id),
        SUPERBLOCK => Purpose::Superblock,
        LOG_READ => Purpose::LogRead(id),
        CONTROL => Purpose::Control,
        MARK => Purpose::Mark,
        TAIL => Purpose::Tail,
        _ => Purpose::Unknown,
    }
}
