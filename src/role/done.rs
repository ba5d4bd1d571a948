//! Op ids that outlive a process: what was asked for under an op id says so in the log, in the very frame that does it.
//!
//! The frame that starts a term or records a policy generation carries the op behind it ([`OpRecord`]). So it is
//! committed exactly when the deed is, it reaches whoever holds the frame, and it is cut off together with the frame.
//! Each node keeps the newest [`OPS_KEPT`] of them in its control file. Asked again, under the same op id, a node that
//! knows the op answers what came of it and does nothing.
//!
//! Who has not received the frame cannot know. A primary has every committed frame, so a change of policy and a
//! switchover, which a primary carries out, are never done twice. A candidate has them when it has the log that it would
//! lead with: it looks again there, and starts no term for a deed that is done.

use super::codec::{Reader, Write};
use super::input::{CommandResult, Done, Effect, LogView, Refusal};
use super::machine::{RoleMachine, Work};
use crate::base::limits::OPS_KEPT;
use crate::base::{Digest, Lsn, NodeId, Term};

/// Names a request: the op id that its caller chose, and what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpMark {
    /// Digest of the op id.
    pub id: u128,
    /// Digest of the request, so that another one under the same id is told apart.
    pub request: u64,
}

impl OpMark {
    pub fn new(id: &str, request: &[u8]) -> OpMark {
        OpMark { id: Digest::of(id.as_bytes()).0, request: Digest::of(request).0 as u64 }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A term was started.
    Led { leader: NodeId, term: Term },
    /// A policy generation was recorded.
    Policy { generation: u64 },
}

/// The record behind a term start or a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpRecord {
    pub mark: OpMark,
    pub deed: Deed,
}

/// An op in this log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownOp {
    pub op: OpRecord,
    /// First byte and end of its frame.
    pub start: Lsn,
    pub end: Lsn,
}

const LED: u8 = 0;
const POLICY: u8 = 1;

impl OpRecord {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_mark(out, &self.mark);
        match self.deed {
            Deed::Led { leader, term } => {
                out.u8(LED);
                out.node(leader);
                out.term(term);
            }
            Deed::Policy { generation } => {
                out.u8(POLICY);
                out.u64(generation);
            }
        }
    }

    /// Decodes exactly `bytes`; `None` when they are no such record.
    pub fn decode(bytes: &[u8]) -> Option<OpRecord> {
        let mut reader = Reader::new(bytes);
        let op = OpRecord::read(&mut reader)?;
        reader.done().then_some(op)
    }

    fn read(reader: &mut Reader<'_>) -> Option<OpRecord> {
        let mark = read_mark(reader)?;
        let deed = match reader.u8()? {
            LED => Deed::Led { leader: reader.node()?, term: reader.term()? },
            POLICY => Deed::Policy { generation: reader.u64()? },
            _ => return None,
        };
        Some(OpRecord { mark, deed })
    }
}

pub(super) fn put_mark(out: &mut Vec<u8>, mark: &OpMark) {
    out.u128(mark.id);
    out.u64(mark.request);
}

pub(super) fn read_mark(reader: &mut Reader<'_>) -> Option<OpMark> {
    Some(OpMark { id: reader.u128()?, request: reader.u64()? })
}

/// A mark that may be missing, in a message.
pub(super) fn put_maybe(out: &mut Vec<u8>, mark: Option<&OpMark>) {
    out.flag(mark.is_some());
    mark.into_iter().for_each(|mark| put_mark(out, mark));
}

pub(super) fn read_maybe(reader: &mut Reader<'_>) -> Option<Option<OpMark>> {
    Some(if reader.flag()? { Some(read_mark(reader)?) } else { None })
}

/// The list in the control file.
pub(super) fn put_known(out: &mut Vec<u8>, ops: &[KnownOp]) {
    assert!(ops.len() <= OPS_KEPT, "the machine keeps no more");
    out.u8(ops.len() as u8);
    for known in ops {
        known.op.encode(out);
        out.lsn(known.start);
        out.lsn(known.end);
    }
}

pub(super) fn read_known(reader: &mut Reader<'_>) -> Option<Vec<KnownOp>> {
    let count = usize::from(reader.u8()?);
    if count > OPS_KEPT {
        return None;
    }
    (0..count)
        .map(|_| Some(KnownOp { op: OpRecord::read(reader)?, start: reader.lsn()?, end: reader.lsn()? }))
        .collect()
}

impl RoleMachine {
    /// What to answer instead of doing it: it was done, something else was, or it is being done.
    pub(super) fn asked_before(&self, log: &LogView, mark: Option<OpMark>) -> Option<CommandResult> {
        let mark = mark?;
        self.op_known(log, mark).or_else(|| self.being_done(mark))
    }

    /// What this log says of a request, if it says anything.
    pub fn op_known(&self, log: &LogView, mark: OpMark) -> Option<CommandResult> {
        let known = self.control.ops.iter().rev().find(|known| known.op.mark.id == mark.id)?;
        Some(if known.op.mark.request != mark.request {
            Err(Refusal::OpReused)
        } else if log.committed.lsn() < known.end {
            Err(Refusal::OutcomeUnknown { stage: "it is in the log, and not known to be committed yet" })
        } else {
            let start = match known.op.deed {
                Deed::Led { term, .. } => self.control.history.start_of(term),
                Deed::Policy { .. } => None,
            };
            Ok(Done::Before { deed: known.op.deed, start: start.unwrap_or(known.start) })
        })
    }

    /// The same request came another way and is being worked on.
    fn being_done(&self, mark: OpMark) -> Option<CommandResult> {
        let recruit = match &self.work {
            Work::Recruit(recruit) => recruit.mark,
            _ => None,
        };
        let under_way = [
            recruit,
            self.wish.as_ref().and_then(|wish| wish.mark),
            self.queued.as_ref().and_then(|queued| queued.mark),
            self.change.as_ref().and_then(|change| change.mark),
            self.switch.as_ref().and_then(|switch| switch.mark),
            self.away.as_ref().and_then(|away| away.mark),
        ];
        let same = under_way.into_iter().flatten().find(|known| known.id == mark.id)?;
        Some(Err(if same.request == mark.request {
            Refusal::OutcomeUnknown { stage: "the same request is being worked on" }
        } else {
            Refusal::OpReused
        }))
    }

    /// A frame of this log carries an op.
    pub(super) fn op_appended(&mut self, known: KnownOp) {
        if self.control.ops.iter().any(|old| (old.op, old.end) == (known.op, known.end)) {
            return;
        }
        // (term, LSN) names one record: whatever was thought to stand here or above was cut off.
        self.cut_ops(known.start);
        if self.control.ops.len() == OPS_KEPT {
            self.control.ops.remove(0);
        }
        self.control.ops.push(known);
        self.ops_unsaved = true;
    }

    /// Saves the ops once they are committed, when nothing waits for this disk as urgently as for the frame itself. Until
    /// then a restart finds them in the log: no checkpoint passes what is not committed.
    pub(super) fn settle_ops(&mut self, log: &LogView, out: &mut Vec<Effect>) {
        let newest = self.control.ops.last().map_or(Lsn::ZERO, |known| known.end);
        if self.ops_unsaved && log.committed.lsn() >= newest {
            self.persist(out);
        }
    }

    /// A log that ends at `end` holds no records above it. True when that changed something.
    pub(super) fn cut_ops(&mut self, end: Lsn) -> bool {
        let before = self.control.ops.len();
        self.control.ops.retain(|known| known.end <= end);
        self.control.ops.len() != before
    }

    /// The op behind the frame that is about to be appended, as it stands in the log.
    pub(super) fn op_bytes(mark: Option<OpMark>, deed: Deed) -> Option<Vec<u8>> {
        let mark = mark?;
        let mut bytes = Vec::new();
        OpRecord { mark, deed }.encode(&mut bytes);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn another_request_under_one_id_is_told_apart() {
        let one = OpMark::new("a", b"failover");
        assert_eq!(one, OpMark::new("a", b"failover"));
        assert_eq!(one.id, OpMark::new("a", b"policy").id);
        assert_ne!(one, OpMark::new("a", b"policy"));
        assert_ne!(one.id, OpMark::new("b", b"failover").id);
    }

    proptest! {
        #[test]
        fn an_op_survives_its_bytes(id: u128, request: u64, led: bool, number: u64, cut in 0usize..40) {
            let deed = if led {
                Deed::Led { leader: NodeId(3), term: Term { number, id } }
            } else {
                Deed::Policy { generation: number }
            };
            let op = OpRecord { mark: OpMark { id, request }, deed };
            let mut bytes = Vec::new();
            op.encode(&mut bytes);
            prop_assert_eq!(OpRecord::decode(&bytes), Some(op));
            prop_assert_eq!(OpRecord::decode(&bytes[..bytes.len().saturating_sub(1 + cut)]), None);
            prop_assert_eq!(OpRecord::decode(&[&bytes[..], &[0]].concat()), None);
        }
    }
}
