//! The page: 16 KiB, drawn byte by byte in `docs/format.md`.
//!
//! A page has two parts. The **canonical** part (header and body) says what the page means; its digest stands in the
//! parent and is equal on every node. The **local** part (at the end) says where this node keeps the children; it
//! is covered by a checksum over the whole page, seeded with the page's own number, so that a page that landed in
//! another place never passes.

use super::key::Key;
use super::{HEAD_BYTES, PageNo, STORE_KEY_BYTES_MAX, STORE_VALUE_BYTES_MAX};
use crate::base::limits::{PAGE_BYTES, PAGE_FILE_PAGES_MAX};
use crate::base::{Digest, Lsn, ShardId};

const MAGIC: [u8; 4] = *b"BTNP";
const VERSION: u16 = 1;
pub(super) const HEADER: usize = 32;
const TRAILER: usize = 32;
const CHECKSUM_AT: usize = PAGE_BYTES - 16;
const LOCAL_END: usize = PAGE_BYTES - TRAILER;

/// Bytes of a page that entries may fill, their local part included.
pub(super) const CAPACITY: usize = PAGE_BYTES - HEADER - TRAILER;
/// Longer values leave the leaf and go to overflow pages.
pub(super) const INLINE_MAX: usize = 4096;

const LEAF_HEAD: usize = 7;
const BIG_BODY: usize = HEAD_BYTES + 16 + 2;
const CHILD_HEAD: usize = 37;
const BIG_LOCAL: usize = 16;
const CHILD_LOCAL: usize = 8;
const FLAG_OVERFLOW: u8 = 1;

const _: () = assert!(2 + LEAF_HEAD + STORE_KEY_BYTES_MAX + INLINE_MAX <= CAPACITY);
/// An inner page takes two children at least, so levels shrink (the first child's fence is not stored).
const _: () = assert!(2 * (2 + CHILD_HEAD + CHILD_LOCAL) + STORE_KEY_BYTES_MAX <= CAPACITY);
const _: () = assert!(pages_of_big(STORE_VALUE_BYTES_MAX) * BIG_LOCAL < CAPACITY);
const _: () = assert!(CAPACITY <= u16::MAX as usize);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Leaf = 1,
    Inner = 2,
    /// First page of a long value: its first bytes, and where the rest is.
    BigHead = 3,
    BigRest = 4,
}

/// A long value as its leaf entry describes it. `page` and `check` are local.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Big {
    pub len: u32,
    pub digest: Digest,
    pub head: [u8; HEAD_BYTES],
    pub page: PageNo,
    pub check: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Value {
    Inline(Box<[u8]>),
    Big(Big),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub key: Key,
    pub value: Value,
}

impl Entry {
    pub fn cost(&self) -> usize {
        2 + LEAF_HEAD
            + self.key.len()
            + match &self.value {
                Value::Inline(bytes) => bytes.len(),
                Value::Big(_) => BIG_BODY + BIG_LOCAL,
            }
    }
}

/// A child as its parent describes it. Only `page` is local.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Child {
    /// Not above any key of the child, above every key of its left neighbour. Stored empty for a first child, because
    /// the parent's own fence bounds it.
    pub fence: Key,
    pub page: PageNo,
    pub digest: Digest,
    pub birth: Lsn,
    /// Leaf entries below.
    pub entries: u64,
    /// Used bytes and entries of the child page: joins are decided without reading it.
    pub size: u16,
    pub count: u16,
    /// Some leaf below has overflow pages.
    pub overflow: bool,
}

impl Child {
    /// Bytes in an inner page; a first child's fence is not stored.
    pub fn cost(&self, first: bool) -> usize {
        2 + CHILD_HEAD + CHILD_LOCAL + if first { 0 } else { self.fence.len() }
    }
}

/// A leaf value as it lies in a page.
#[derive(Clone, Copy, Debug)]
pub(super) enum ValueAt<'a> {
    Inline(&'a [u8]),
    Big(Big),
}

// ---- reading a verified page ----

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}
fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"))
}
fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"))
}
fn u128_at(page: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(page[at..at + 16].try_into().expect("sixteen bytes"))
}

pub(super) fn kind_is(page: &[u8], kind: Kind) -> bool {
    page[6] == kind as u8
}
pub(super) fn level(page: &[u8]) -> u8 {
    page[7]
}
pub(super) fn shard(page: &[u8]) -> ShardId {
    ShardId(u16_at(page, 8))
}
pub(super) fn count(page: &[u8]) -> usize {
    usize::from(u16_at(page, 10))
}
fn used(page: &[u8]) -> usize {
    u32_at(page, 12) as usize
}
pub(super) fn birth(page: &[u8]) -> Lsn {
    Lsn(u64_at(page, 16))
}
pub(super) fn total(page: &[u8]) -> u64 {
    u64_at(page, 24)
}
fn local_len(page: &[u8]) -> usize {
    u32_at(page, LOCAL_END + 8) as usize
}
fn local(page: &[u8]) -> &[u8] {
    &page[LOCAL_END - local_len(page)..LOCAL_END]
}
fn offset(page: &[u8], i: usize) -> usize {
    usize::from(u16_at(page, HEADER + 2 * i))
}

/// Digest of what the page means.
pub(super) fn content_digest(page: &[u8]) -> Digest {
    Digest::of(&page[..used(page)])
}
/// Short form of the checksum over everything, for pointers inside local parts.
pub(super) fn check_of(page: &[u8]) -> u64 {
    u64_at(page, CHECKSUM_AT)
}

pub(super) fn leaf_key(page: &[u8], i: usize) -> &[u8] {
    let at = offset(page, i);
    let len = usize::from(u16_at(page, at));
    &page[at + LEAF_HEAD..at + LEAF_HEAD + len]
}

pub(super) fn leaf_value(page: &[u8], i: usize) -> ValueAt<'_> {
    let at = offset(page, i);
    let key_len = usize::from(u16_at(page, at));
    let len = u32_at(page, at + 3);
    let body = at + LEAF_HEAD + key_len;
    if page[at + 2] & FLAG_OVERFLOW == 0 {
        return ValueAt::Inline(&page[body..body + len as usize]);
    }
    let mut head = [0; HEAD_BYTES];
    head.copy_from_slice(&page[body..body + HEAD_BYTES]);
    let digest = Digest(u128_at(page, body + HEAD_BYTES));
    let ordinal = usize::from(u16_at(page, body + HEAD_BYTES + 16));
    let local = &local(page)[ordinal * BIG_LOCAL..];
    ValueAt::Big(Big { len, digest, head, page: PageNo(u64_at(local, 0)), check: u64_at(local, 8) })
}

/// The first [`HEAD_BYTES`] of a long value, in place.
pub(super) fn leaf_big_head(page: &[u8], i: usize) -> &[u8] {
    let at = offset(page, i);
    let body = at + LEAF_HEAD + usize::from(u16_at(page, at));
    &page[body..body + HEAD_BYTES]
}

pub(super) fn leaf_entry(page: &[u8], i: usize) -> Entry {
    let value = match leaf_value(page, i) {
        ValueAt::Inline(bytes) => Value::Inline(Box::from(bytes)),
        ValueAt::Big(big) => Value::Big(big),
    };
    Entry { key: Key::from(leaf_key(page, i)), value }
}

/// The first entry that is not below `key`, and whether it is `key`.
pub(super) fn leaf_search(page: &[u8], key: &[u8]) -> (usize, bool) {
    let (mut low, mut high) = (0, count(page));
    while low < high {
        let middle = (low + high) / 2;
        match leaf_key(page, middle).cmp(key) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Equal => return (middle, true),
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    (low, false)
}

pub(super) fn child_fence(page: &[u8], i: usize) -> &[u8] {
    let at = offset(page, i);
    let len = usize::from(u16_at(page, at));
    &page[at + CHILD_HEAD..at + CHILD_HEAD + len]
}

/// Where the child is and what it must be: all that a look-up needs.
pub(super) fn child_link(page: &[u8], i: usize) -> (PageNo, Digest) {
    let digest = Digest(u128_at(page, offset(page, i) + 21));
    (PageNo(u64_at(local(page), i * CHILD_LOCAL)), digest)
}

pub(super) fn child(page: &[u8], i: usize) -> Child {
    let at = offset(page, i);
    let (number, digest) = child_link(page, i);
    Child {
        fence: Key::from(child_fence(page, i)),
        page: number,
        digest,
        overflow: page[at + 2] & FLAG_OVERFLOW != 0,
        size: u16_at(page, at + 3),
        count: u16_at(page, at + 5),
        birth: Lsn(u64_at(page, at + 7)),
        entries: u64::from(u32_at(page, at + 15)) | u64::from(u16_at(page, at + 19)) << 32,
    }
}

/// The child whose range holds `key`.
pub(super) fn inner_search(page: &[u8], key: &[u8]) -> usize {
    let (mut low, mut high) = (1, count(page));
    while low < high {
        let middle = (low + high) / 2;
        if child_fence(page, middle) <= key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low - 1
}

/// The bytes of a long value that lie in this overflow page.
pub(super) fn big_data(page: &[u8]) -> &[u8] {
    &page[HEADER..used(page)]
}

/// Page number and check of what a page of a long value, or a leaf with long values, links to, in order.
pub(super) fn big_rest(page: &[u8]) -> impl Iterator<Item = (PageNo, u64)> + '_ {
    local(page).chunks_exact(BIG_LOCAL).map(|link| (PageNo(u64_at(link, 0)), u64_at(link, 8)))
}

/// Overflow pages of a value of `len` bytes.
pub(super) const fn pages_of_big(len: usize) -> usize {
    // The head gives up one link for each further page.
    let mut pages = 1;
    while CAPACITY * pages < len + BIG_LOCAL * (pages - 1) {
        pages += 1;
    }
    pages
}

/// Which bytes of a value of `len` bytes lie in its overflow page `i`.
pub(super) fn big_part(len: usize, i: usize) -> std::ops::Range<usize> {
    let first = (CAPACITY - BIG_LOCAL * (pages_of_big(len) - 1)).min(len);
    match i {
        0 => 0..first,
        _ => first + (i - 1) * CAPACITY..(first + i * CAPACITY).min(len),
    }
}

// ---- making a page ----

struct Maker {
    page: Vec<u8>,
    at: usize,
}

impl Maker {
    fn new(kind: Kind, level: u8, shard: ShardId, count: usize, birth: Lsn, total: u64) -> Maker {
        let mut page = vec![0; PAGE_BYTES];
        page[..4].copy_from_slice(&MAGIC);
        page[4..6].copy_from_slice(&VERSION.to_le_bytes());
        page[6] = kind as u8;
        page[7] = level;
        page[8..10].copy_from_slice(&shard.0.to_le_bytes());
        page[10..12].copy_from_slice(&u16::try_from(count).expect("entries of one page").to_le_bytes());
        page[16..24].copy_from_slice(&birth.0.to_le_bytes());
        page[24..32].copy_from_slice(&total.to_le_bytes());
        Maker { page, at: HEADER }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.page[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn slot(&mut self, i: usize) {
        let at = u16::try_from(self.at).expect("inside the page").to_le_bytes();
        self.page[HEADER + 2 * i..HEADER + 2 * i + 2].copy_from_slice(&at);
    }

    fn finish(mut self, number: PageNo, local: &[u8]) -> Vec<u8> {
        let used = self.at;
        assert!(used + local.len() <= LOCAL_END, "a page never overflows: its maker counted");
        self.page[12..16].copy_from_slice(&(used as u32).to_le_bytes());
        self.page[LOCAL_END - local.len()..LOCAL_END].copy_from_slice(local);
        self.page[LOCAL_END..LOCAL_END + 8].copy_from_slice(&number.0.to_le_bytes());
        self.page[LOCAL_END + 8..LOCAL_END + 12].copy_from_slice(&(local.len() as u32).to_le_bytes());
        let sum = checksum(&self.page, number);
        self.page[CHECKSUM_AT..].copy_from_slice(&sum.0.to_le_bytes());
        self.page
    }
}

fn checksum(page: &[u8], number: PageNo) -> Digest {
    Digest::seeded(&page[..CHECKSUM_AT], number.0)
}

/// Makes a leaf page.
pub(super) fn make_leaf(shard: ShardId, birth: Lsn, number: PageNo, entries: &[Entry]) -> Vec<u8> {
    let mut maker = Maker::new(Kind::Leaf, 0, shard, entries.len(), birth, entries.len() as u64);
    let mut local = Vec::new();
    maker.at += 2 * entries.len();
    for (i, entry) in entries.iter().enumerate() {
        maker.slot(i);
        maker.put(&(entry.key.len() as u16).to_le_bytes());
        match &entry.value {
            Value::Inline(bytes) => {
                maker.put(&[0]);
                maker.put(&(bytes.len() as u32).to_le_bytes());
                maker.put(&entry.key);
                maker.put(bytes);
            }
            Value::Big(big) => {
                let ordinal = (local.len() / BIG_LOCAL) as u16;
                maker.put(&[FLAG_OVERFLOW]);
                maker.put(&big.len.to_le_bytes());
                maker.put(&entry.key);
                maker.put(&big.head);
                maker.put(&big.digest.0.to_le_bytes());
                maker.put(&ordinal.to_le_bytes());
                local.extend_from_slice(&big.page.0.to_le_bytes());
                local.extend_from_slice(&big.check.to_le_bytes());
            }
        }
    }
    maker.finish(number, &local)
}

/// Makes an inner page at `level` over `children` of level - 1.
pub(super) fn make_inner(
    shard: ShardId,
    birth: Lsn,
    number: PageNo,
    level: u8,
    children: &[Child],
) -> Vec<u8> {
    let entries = children.iter().map(|c| c.entries).sum();
    let mut maker = Maker::new(Kind::Inner, level, shard, children.len(), birth, entries);
    let mut local = Vec::with_capacity(children.len() * CHILD_LOCAL);
    maker.at += 2 * children.len();
    for (i, child) in children.iter().enumerate() {
        let fence: &[u8] = if i == 0 { &[] } else { &child.fence };
        maker.slot(i);
        maker.put(&(fence.len() as u16).to_le_bytes());
        maker.put(&[if child.overflow { FLAG_OVERFLOW } else { 0 }]);
        maker.put(&child.size.to_le_bytes());
        maker.put(&child.count.to_le_bytes());
        maker.put(&child.birth.0.to_le_bytes());
        maker.put(&child.entries.to_le_bytes()[..6]);
        maker.put(&child.digest.0.to_le_bytes());
        maker.put(fence);
        local.extend_from_slice(&child.page.0.to_le_bytes());
    }
    maker.finish(number, &local)
}

/// Makes overflow page `i` of `value`. The head (`i` = 0) is made last, because it names the `rest`.
pub(super) fn make_big(
    shard: ShardId,
    birth: Lsn,
    number: PageNo,
    value: &[u8],
    i: usize,
    rest: &[(PageNo, u64)],
) -> Vec<u8> {
    let kind = if i == 0 { Kind::BigHead } else { Kind::BigRest };
    let part = big_part(value.len(), i);
    let total = if i == 0 { value.len() } else { part.start } as u64;
    let mut maker = Maker::new(kind, 0, shard, 0, birth, total);
    maker.put(&value[part]);
    let mut local = Vec::with_capacity(rest.len() * BIG_LOCAL);
    for (page, check) in rest {
        local.extend_from_slice(&page.0.to_le_bytes());
        local.extend_from_slice(&check.to_le_bytes());
    }
    maker.finish(number, &local)
}

// ---- making a page again ----

/// What the page means, without what is local to this node.
pub(super) fn canonical(page: &[u8]) -> &[u8] {
    &page[..used(page)]
}

/// Bytes of the local part that a page of this meaning has. `canonical` comes from another node: nothing about it is
/// believed yet, but it is as long as it says.
pub(super) fn local_bytes(canonical: &[u8]) -> Option<usize> {
    if canonical.len() < HEADER || used(canonical) != canonical.len() || canonical.len() > LOCAL_END {
        return None;
    }
    let count = count(canonical);
    let len = match canonical[6] {
        k if k == Kind::Inner as u8 => count * CHILD_LOCAL,
        k if k == Kind::Leaf as u8 => {
            let offsets = HEADER..HEADER + 2 * count;
            let bigs = canonical.get(offsets)?.chunks_exact(2).filter(|at| {
                let at = usize::from(u16::from_le_bytes([at[0], at[1]]));
                canonical.get(at + 2).is_some_and(|flags| flags & FLAG_OVERFLOW != 0)
            });
            bigs.count() * BIG_LOCAL
        }
        _ => return None,
    };
    (canonical.len() + len <= LOCAL_END).then_some(len)
}

/// The local part of this length that stands in a page, however damaged the rest is.
pub(super) fn salvaged_local(page: &[u8], len: usize) -> Option<&[u8]> {
    (page.len() == PAGE_BYTES).then(|| &page[LOCAL_END - len..LOCAL_END])
}

/// The links to `rests` further pages that stand in a first page, however damaged the rest is.
pub(super) fn salvaged_links(page: &[u8], rests: usize) -> Option<Vec<(PageNo, u64)>> {
    let local = salvaged_local(page, rests * BIG_LOCAL)?;
    Some(local.chunks_exact(BIG_LOCAL).map(|link| (PageNo(u64_at(link, 0)), u64_at(link, 8))).collect())
}

/// Whether these bytes begin like a page: a cheap look before the checksum.
pub(super) fn is_page(page: &[u8]) -> bool {
    page.len() == PAGE_BYTES && page[..4] == MAGIC
}

/// The checksum that stands in a page, right or not.
pub(super) fn checksum_in(page: &[u8]) -> Option<u128> {
    (page.len() == PAGE_BYTES).then(|| u128_at(page, CHECKSUM_AT))
}

/// A page of this meaning in place `number` with this local part: what its maker made.
pub(super) fn remake(canonical: &[u8], number: PageNo, local: &[u8]) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    page[..canonical.len()].copy_from_slice(canonical);
    Maker { page, at: canonical.len() }.finish(number, local)
}

/// The local part of an inner page with these children.
pub(super) fn local_of_children(children: &[PageNo]) -> Vec<u8> {
    children.iter().flat_map(|child| child.0.to_le_bytes()).collect()
}

/// The digest of child `i`, which needs no local part.
pub(super) fn child_digest(page: &[u8], i: usize) -> Option<Digest> {
    let at = HEADER + 2 * i;
    let at = usize::from(u16::from_le_bytes([*page.get(at)?, *page.get(at + 1)?])) + 21;
    page.get(at..at + 16).map(|bytes| Digest(u128_at(bytes, 0)))
}

// ---- judging bytes from the disk ----

/// Checks that `page` was written for place `number` and that every offset and length in it stays inside it. What
/// the page should *mean* is judged by the digest in its parent.
pub(super) fn verify(page: &[u8], number: PageNo) -> Result<(), &'static str> {
    if page.len() != PAGE_BYTES {
        return Err("page is cut off");
    }
    if checksum(page, number).0 != u128_at(page, CHECKSUM_AT) {
        return Err("page checksum does not match its place");
    }
    if page[..4] != MAGIC {
        return Err("no page magic");
    }
    if u16_at(page, 4) != VERSION {
        return Err("page of another format version");
    }
    let (used, local_len) = (used(page), local_len(page));
    if used < HEADER || local_len > CAPACITY || used + local_len > LOCAL_END {
        return Err("page lengths disagree");
    }
    match page[6] {
        k if k == Kind::Leaf as u8 => verify_leaf(page, used, local_len),
        k if k == Kind::Inner as u8 => verify_inner(page, used, local_len),
        k if k == Kind::BigHead as u8 => verify_big_head(page, used, local_len),
        k if k == Kind::BigRest as u8 && local_len == 0 => Ok(()),
        _ => Err("unknown page kind"),
    }
}

fn verify_leaf(page: &[u8], used: usize, local_len: usize) -> Result<(), &'static str> {
    let count = count(page);
    let mut at = HEADER + 2 * count;
    let mut bigs = 0;
    if count == 0 || at > used || level(page) != 0 || total(page) != count as u64 {
        return Err("leaf counts disagree");
    }
    for i in 0..count {
        if offset(page, i) != at || at + LEAF_HEAD > used {
            return Err("leaf entry out of place");
        }
        let key_len = usize::from(u16_at(page, at));
        let len = u32_at(page, at + 3) as usize;
        let body = at + LEAF_HEAD + key_len;
        let big = page[at + 2] & FLAG_OVERFLOW != 0;
        let body_len = if big { BIG_BODY } else { len };
        if key_len > STORE_KEY_BYTES_MAX || body_len > used || body + body_len > used {
            return Err("leaf entry is too long");
        }
        if big {
            let ordinal = usize::from(u16_at(page, body + HEAD_BYTES + 16));
            if ordinal != bigs || len <= INLINE_MAX || len > STORE_VALUE_BYTES_MAX {
                return Err("overflow entry disagrees");
            }
            bigs += 1;
        }
        if i > 0 && leaf_key(page, i - 1) >= &page[at + LEAF_HEAD..body] {
            return Err("leaf keys out of order");
        }
        at = body + body_len;
    }
    if at != used || bigs * BIG_LOCAL != local_len {
        return Err("leaf lengths disagree");
    }
    if big_rest(page).all(|(number, _)| can_be(number)) { Ok(()) } else { Err("long value without a page") }
}

/// Whether a page file can have this page: the place of any other one is no number.
fn can_be(number: PageNo) -> bool {
    (1..PAGE_FILE_PAGES_MAX).contains(&number.0)
}

fn verify_inner(page: &[u8], used: usize, local_len: usize) -> Result<(), &'static str> {
    let count = count(page);
    let mut at = HEADER + 2 * count;
    if count == 0 || at > used || level(page) == 0 || local_len != count * CHILD_LOCAL {
        return Err("inner counts disagree");
    }
    for i in 0..count {
        if offset(page, i) != at || at + CHILD_HEAD > used {
            return Err("child out of place");
        }
        let end = at + CHILD_HEAD + usize::from(u16_at(page, at));
        if end > used || (i == 0 && end != at + CHILD_HEAD) {
            return Err("child fence is too long");
        }
        if i > 0 && child_fence(page, i - 1) >= &page[at + CHILD_HEAD..end] {
            return Err("fences out of order");
        }
        if !can_be(child_link(page, i).0) {
            return Err("child without a page");
        }
        at = end;
    }
    if at != used { Err("inner lengths disagree") } else { Ok(()) }
}

fn verify_big_head(page: &[u8], used: usize, local_len: usize) -> Result<(), &'static str> {
    let len = usize::try_from(total(page)).unwrap_or(usize::MAX);
    if len > STORE_VALUE_BYTES_MAX
        || local_len != (pages_of_big(len) - 1) * BIG_LOCAL
        || used - HEADER != big_part(len, 0).len()
    {
        return Err("overflow head disagrees");
    }
    if big_rest(page).all(|(number, _)| can_be(number)) { Ok(()) } else { Err("long value without a page") }
}
