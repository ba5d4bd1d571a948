//! Layout of the messages about shards and pages: verdicts on disputed roots, pages for repair. All fields
//! little-endian, no padding.
//!
//! ```text
//! 65 RootVerdict     LSN 8, digest 16, base LSN 8, base digest 16, log digest 16, shard 2, finding 2
//! 66 PageFetch       id 8, checkpoint 8, digest 16, length 4 (0 for a page), shard 2, kind 1, level 1, key length 2, key
//! 67 PageReply       id 8, birth 8, code 4 (0: here), reserved 4; the bytes
//!
//! finding: 1 sound, 2 sick, 3 unable · kind: 1 page, 2 long value · code: 1 not here, 2 busy
//! ```

use bytes::{Buf, Bytes};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Finding, NoPage, PAGE_KEY_BYTES_MAX, PageFetch, PageReply, PageWanted, RootVerdict};
use crate::base::limits::VALUE_BYTES_MAX;
use crate::base::{Digest, Lsn, ShardId};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawVerdict {
    lsn: U64,
    digest: U128,
    base: U64,
    base_digest: U128,
    log_digest: U128,
    shard: U16,
    finding: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFetch {
    id: U64,
    checkpoint: U64,
    digest: U128,
    len: U32,
    shard: U16,
    kind: u8,
    level: u8,
    key_len: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawReply {
    id: U64,
    birth: U64,
    code: U32,
    reserved: U32,
}

pub(crate) const VERDICT_BYTES: usize = size_of::<RawVerdict>();
pub(crate) const FETCH_BYTES: usize = size_of::<RawFetch>();
pub(crate) const REPLY_BYTES: usize = size_of::<RawReply>();

const _: () = assert!(VERDICT_BYTES == 68 && FETCH_BYTES == 42 && REPLY_BYTES == 24);

type Fault = &'static str;

pub(crate) fn push_verdict(verdict: &RootVerdict, out: &mut Vec<u8>) {
    let raw = RawVerdict {
        lsn: U64::new(verdict.lsn.0),
        digest: U128::new(verdict.digest.0),
        base: U64::new(verdict.base.0),
        base_digest: U128::new(verdict.base_digest.0),
        log_digest: U128::new(verdict.log_digest.0),
        shard: U16::new(verdict.shard.0),
        finding: U16::new(match verdict.finding {
            Finding::Sound => 1,
            Finding::Sick => 2,
            Finding::Unable => 3,
        }),
    };
    out.extend_from_slice(raw.as_bytes());
}

pub(crate) fn verdict(body: &[u8]) -> Result<RootVerdict, Fault> {
    let raw = RawVerdict::read_from_bytes(body).map_err(|_| "body of a wrong size")?;
    Ok(RootVerdict {
        shard: ShardId(raw.shard.get()),
        finding: match raw.finding.get() {
            1 => Finding::Sound,
            2 => Finding::Sick,
            3 => Finding::Unable,
            _ => return Err("unknown finding"),
        },
        lsn: Lsn(raw.lsn.get()),
        digest: Digest(raw.digest.get()),
        base: Lsn(raw.base.get()),
        base_digest: Digest(raw.base_digest.get()),
        log_digest: Digest(raw.log_digest.get()),
    })
}

pub(crate) fn push_fetch(fetch: &PageFetch, out: &mut Vec<u8>) {
    assert!(fetch.key.len() <= PAGE_KEY_BYTES_MAX, "store keys have a limit");
    let (kind, level, digest, len) = match fetch.wanted {
        PageWanted::Node { level, digest } => (1, level, digest, 0),
        PageWanted::Value { digest, len } => (2, 0, digest, len),
    };
    let raw = RawFetch {
        id: U64::new(fetch.id),
        checkpoint: U64::new(fetch.checkpoint.0),
        digest: U128::new(digest.0),
        len: U32::new(len),
        shard: U16::new(fetch.shard.0),
        kind,
        level,
        key_len: U16::new(fetch.key.len() as u16),
    };
    out.extend_from_slice(raw.as_bytes());
    out.extend_from_slice(&fetch.key);
}

pub(crate) fn fetch(body: &[u8]) -> Result<PageFetch, Fault> {
    let (raw, key) = RawFetch::read_from_prefix(body).map_err(|_| "body is cut off")?;
    if key.len() != usize::from(raw.key_len.get()) || key.len() > PAGE_KEY_BYTES_MAX {
        return Err("key of a wrong length");
    }
    let (digest, len) = (Digest(raw.digest.get()), raw.len.get());
    let wanted = match raw.kind {
        1 if len == 0 => PageWanted::Node { level: raw.level, digest },
        2 if raw.level == 0 && len as usize <= VALUE_BYTES_MAX + 64 => PageWanted::Value { digest, len },
        _ => return Err("neither a page nor a long value"),
    };
    Ok(PageFetch {
        id: raw.id.get(),
        shard: ShardId(raw.shard.get()),
        checkpoint: Lsn(raw.checkpoint.get()),
        wanted,
        key: key.to_vec(),
    })
}

pub(crate) fn push_reply(reply: &PageReply, out: &mut Vec<u8>) {
    let (birth, code, bytes): (Lsn, u32, &[u8]) = match &reply.found {
        Ok((birth, bytes)) => (*birth, 0, bytes),
        Err(NoPage::NotHere) => (Lsn::ZERO, 1, &[]),
        Err(NoPage::Busy) => (Lsn::ZERO, 2, &[]),
    };
    let raw = RawReply {
        id: U64::new(reply.id),
        birth: U64::new(birth.0),
        code: U32::new(code),
        reserved: U32::ZERO,
    };
    out.extend_from_slice(raw.as_bytes());
    out.extend_from_slice(bytes);
}

pub(crate) fn reply(mut body: Bytes) -> Result<PageReply, Fault> {
    let (raw, _) = RawReply::read_from_prefix(&body).map_err(|_| "body is cut off")?;
    body.advance(REPLY_BYTES);
    if raw.reserved.get() != 0 {
        return Err("reserved bytes are set");
    }
    let found = match (raw.code.get(), raw.birth.get(), body.is_empty()) {
        (0, birth, false) => Ok((Lsn(birth), body)),
        (1, 0, true) => Err(NoPage::NotHere),
        (2, 0, true) => Err(NoPage::Busy),
        _ => return Err("an answer that is neither a page nor a refusal"),
    };
    Ok(PageReply { id: raw.id.get(), found })
}
