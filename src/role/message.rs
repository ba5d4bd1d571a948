//! What role machines say to each other, and the bytes of it. Bounded, and no bytes panic.

use super::codec::{Reader, Write};
use super::done::{OpMark, put_maybe, read_maybe};
use super::history::History;
use super::input::RefusalKind;
use super::policy::{Generation, PendingGeneration};
use super::state::{Role, State};
use crate::base::{CommittedLsn, Incarnation, Lsn, Mono, NodeId, Term};

/// Longest encoded message.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// What a node says of its log and of what it knows; the body of a promise and of a dry answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub incarnation: Incarnation,
    /// Term of the last frame in the log, never the promised term.
    pub last_term: Term,
    pub end: Lsn,
    pub committed: CommittedLsn,
    /// Log whole, not a learner, not building, not damaged.
    pub whole: bool,
    pub history: History,
    pub policy: Generation,
    pub pending: Vec<PendingGeneration>,
}

/// A leader as somebody sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderSeen {
    pub node: NodeId,
    pub term: Term,
    /// Milliseconds since it was last heard; 0 when the speaker is the leader.
    pub heard_ms: u64,
}

/// The answer to a promise request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromiseAnswer {
    /// Durable, drained, flushed.
    Promised(Box<Report>),
    /// A read lease that this node granted still runs: ask again then.
    Wait { ms: u64 },
    /// This node promised a higher term, or leads and is alive (`leading`).
    Refused { promised: Term, leading: bool },
}

/// A leader's word that it gave its read lease back: nothing granted for heartbeats sent up to `upto`, by its own
/// clock, counts any more. Anybody may pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    pub leader: NodeId,
    pub term: Term,
    pub upto: Mono,
}

/// What came of a switchover, told to the node that was asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done {
        leader: NodeId,
        term: Term,
    },
    /// A dry run: it would work.
    Would {
        text: String,
    },
    Refused {
        kind: RefusalKind,
        text: String,
    },
}

/// A message between role machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleMessage {
    /// Would a recruit work? Binds nobody.
    Dry {
        attempt: u64,
    },
    DryReply {
        attempt: u64,
        promised: Term,
        leader: Option<LeaderSeen>,
        lease_ms: u64,
        report: Box<Report>,
    },
    /// Promise `term`. `force`: stop granting leases at once so that the wait ends.
    Promise {
        term: Term,
        force: bool,
        /// The old leader's release, when it handed over to this candidate.
        released: Option<Release>,
    },
    PromiseReply {
        term: Term,
        answer: PromiseAnswer,
    },
    /// A leader that has started `term` (its term-start frame is in its log) says so.
    Announce {
        term: Term,
        history: History,
        end: Lsn,
        committed: CommittedLsn,
    },
    /// Who leads?
    StatusProbe,
    Status {
        promised: Term,
        leader: Option<LeaderSeen>,
        role: Role,
        state: State,
        end: Lsn,
        committed: CommittedLsn,
    },
    /// Step aside for an operator's failover.
    Yield {
        attempt: u64,
    },
    YieldReply {
        attempt: u64,
        granted: bool,
    },
    /// Promises need not wait for this leader's read lease.
    LeaseRelease(Release),
    /// This node promised `promised`, so sessions of lower terms are over.
    Fenced {
        promised: Term,
    },
    /// A switchover was asked for on a standby. `ask` tells one question from another; `term` is the one that the
    /// asking node follows.
    SwitchoverAsk {
        ask: u64,
        term: Term,
        to: NodeId,
        dry_run: bool,
        timeout_ms: u64,
        /// The op id under which it was asked for.
        mark: Option<OpMark>,
    },
    SwitchoverAnswer {
        ask: u64,
        outcome: Outcome,
    },
    /// The primary's writes are held and its log ends at `end`: say when all of it is flushed there.
    Prepare {
        attempt: u64,
        term: Term,
        end: Lsn,
    },
    Prepared {
        attempt: u64,
    },
    /// Take over: everything up to `end` is committed, and the lease is given back.
    Handover {
        attempt: u64,
        end: Lsn,
        release: Release,
        /// The op id under which the switchover was asked for: it goes into the frame that starts the term.
        mark: Option<OpMark>,
    },
    /// The target does not take over; it did not start a term.
    HandoverFailed {
        attempt: u64,
        text: String,
    },
}

const DRY: u8 = 1;
const DRY_REPLY: u8 = 2;
const PROMISE: u8 = 3;
const PROMISE_REPLY: u8 = 4;
const ANNOUNCE: u8 = 5;
const STATUS_PROBE: u8 = 6;
const STATUS: u8 = 7;
const YIELD: u8 = 8;
const YIELD_REPLY: u8 = 9;
const LEASE_RELEASE: u8 = 10;
const FENCED: u8 = 11;
const SWITCHOVER_ASK: u8 = 12;
const SWITCHOVER_ANSWER: u8 = 13;
const PREPARE: u8 = 14;
const PREPARED: u8 = 15;
const HANDOVER: u8 = 16;
const HANDOVER_FAILED: u8 = 17;

impl RoleMessage {
    /// Appends the message; at most [`MESSAGE_BYTES_MAX`] bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let before = out.len();
        match self {
            RoleMessage::Dry { attempt } => {
                out.u8(DRY);
                out.u64(*attempt);
            }
            RoleMessage::DryReply { attempt, promised, leader, lease_ms, report } => {
                out.u8(DRY_REPLY);
                out.u64(*attempt);
                out.term(*promised);
                put_leader(out, leader.as_ref());
                out.u64(*lease_ms);
                put_report(out, report);
            }
            RoleMessage::Promise { term, force, released } => {
                out.u8(PROMISE);
                out.term(*term);
                out.flag(*force);
                out.flag(released.is_some());
                released.iter().for_each(|release| put_release(out, release));
            }
            RoleMessage::PromiseReply { term, answer } => {
                out.u8(PROMISE_REPLY);
                out.term(*term);
                put_answer(out, answer);
            }
            RoleMessage::Announce { term, history, end, committed } => {
                out.u8(ANNOUNCE);
                out.term(*term);
                out.history(history);
                out.lsn(*end);
                out.lsn(committed.lsn());
            }
            RoleMessage::StatusProbe => out.u8(STATUS_PROBE),
            RoleMessage::Status { promised, leader, role, state, end, committed } => {
                out.u8(STATUS);
                out.term(*promised);
                put_leader(out, leader.as_ref());
                out.u8(role.code());
                out.u8(state.code());
                out.lsn(*end);
                out.lsn(committed.lsn());
            }
            RoleMessage::Yield { attempt } => {
                out.u8(YIELD);
                out.u64(*attempt);
            }
            RoleMessage::YieldReply { attempt, granted } => {
                out.u8(YIELD_REPLY);
                out.u64(*attempt);
                out.flag(*granted);
            }
            RoleMessage::LeaseRelease(release) => {
                out.u8(LEASE_RELEASE);
                put_release(out, release);
            }
            RoleMessage::Fenced { promised } => {
                out.u8(FENCED);
                out.term(*promised);
            }
            RoleMessage::SwitchoverAsk { ask, term, to, dry_run, timeout_ms, mark } => {
                out.u8(SWITCHOVER_ASK);
                out.u64(*ask);
                out.term(*term);
                out.node(*to);
                out.flag(*dry_run);
                out.u64(*timeout_ms);
                put_maybe(out, mark.as_ref());
            }
            RoleMessage::SwitchoverAnswer { ask, outcome } => {
                out.u8(SWITCHOVER_ANSWER);
                out.u64(*ask);
                put_outcome(out, outcome);
            }
            RoleMessage::Prepare { attempt, term, end } => {
                out.u8(PREPARE);
                out.u64(*attempt);
                out.term(*term);
                out.lsn(*end);
            }
            RoleMessage::Prepared { attempt } => {
                out.u8(PREPARED);
                out.u64(*attempt);
            }
            RoleMessage::Handover { attempt, end, release, mark } => {
                out.u8(HANDOVER);
                out.u64(*attempt);
                out.lsn(*end);
                put_release(out, release);
                put_maybe(out, mark.as_ref());
            }
            RoleMessage::HandoverFailed { attempt, text } => {
                out.u8(HANDOVER_FAILED);
                out.u64(*attempt);
                out.text(text);
            }
        }
        assert!(out.len() - before <= MESSAGE_BYTES_MAX);
    }

    /// Decodes exactly `bytes`; `None` when they are no message.
    pub fn decode(bytes: &[u8]) -> Option<RoleMessage> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        let mut r = Reader::new(bytes);
        let message = match r.u8()? {
            DRY => RoleMessage::Dry { attempt: r.u64()? },
            DRY_REPLY => RoleMessage::DryReply {
                attempt: r.u64()?,
                promised: r.term()?,
                leader: leader(&mut r)?,
                lease_ms: r.u64()?,
                report: Box::new(report(&mut r)?),
            },
            PROMISE => RoleMessage::Promise {
                term: r.term()?,
                force: r.flag()?,
                released: if r.flag()? { Some(release(&mut r)?) } else { None },
            },
            PROMISE_REPLY => RoleMessage::PromiseReply { term: r.term()?, answer: answer(&mut r)? },
            ANNOUNCE => RoleMessage::Announce {
                term: r.term()?,
                history: r.history()?,
                end: r.lsn()?,
                committed: r.committed()?,
            },
            STATUS_PROBE => RoleMessage::StatusProbe,
            STATUS => RoleMessage::Status {
                promised: r.term()?,
                leader: leader(&mut r)?,
                role: Role::from_code(r.u8()?)?,
                state: State::from_code(r.u8()?)?,
                end: r.lsn()?,
                committed: r.committed()?,
            },
            YIELD => RoleMessage::Yield { attempt: r.u64()? },
            YIELD_REPLY => RoleMessage::YieldReply { attempt: r.u64()?, granted: r.flag()? },
            LEASE_RELEASE => RoleMessage::LeaseRelease(release(&mut r)?),
            FENCED => RoleMessage::Fenced { promised: r.term()? },
            SWITCHOVER_ASK => RoleMessage::SwitchoverAsk {
                ask: r.u64()?,
                term: r.term()?,
                to: r.node()?,
                dry_run: r.flag()?,
                timeout_ms: r.u64()?,
                mark: read_maybe(&mut r)?,
            },
            SWITCHOVER_ANSWER => RoleMessage::SwitchoverAnswer { ask: r.u64()?, outcome: outcome(&mut r)? },
            PREPARE => RoleMessage::Prepare { attempt: r.u64()?, term: r.term()?, end: r.lsn()? },
            PREPARED => RoleMessage::Prepared { attempt: r.u64()? },
            HANDOVER => RoleMessage::Handover {
                attempt: r.u64()?,
                end: r.lsn()?,
                release: release(&mut r)?,
                mark: read_maybe(&mut r)?,
            },
            HANDOVER_FAILED => RoleMessage::HandoverFailed { attempt: r.u64()?, text: r.text()? },
            _ => return None,
        };
        r.done().then_some(message)
    }
}

fn put_release(out: &mut Vec<u8>, release: &Release) {
    out.node(release.leader);
    out.term(release.term);
    out.u64(release.upto.0);
}

fn release(r: &mut Reader<'_>) -> Option<Release> {
    Some(Release { leader: r.node()?, term: r.term()?, upto: Mono(r.u64()?) })
}

/// The first of the tags, one for each kind of refusal.
const REFUSED: u8 = 2;

fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    match outcome {
        Outcome::Done { leader, term } => {
            out.u8(0);
            out.node(*leader);
            out.term(*term);
        }
        Outcome::Would { text } => {
            out.u8(1);
            out.text(text);
        }
        Outcome::Refused { kind, text } => {
            out.u8(REFUSED + *kind as u8);
            out.text(text);
        }
    }
}

fn outcome(r: &mut Reader<'_>) -> Option<Outcome> {
    match r.u8()? {
        0 => Some(Outcome::Done { leader: r.node()?, term: r.term()? }),
        1 => Some(Outcome::Would { text: r.text()? }),
        tag => {
            let kind = *RefusalKind::ALL.get(usize::from(tag - REFUSED))?;
            Some(Outcome::Refused { kind, text: r.text()? })
        }
    }
}

fn put_leader(out: &mut Vec<u8>, leader: Option<&LeaderSeen>) {
    out.flag(leader.is_some());
    if let Some(seen) = leader {
        out.node(seen.node);
        out.term(seen.term);
        out.u64(seen.heard_ms);
    }
}

fn leader(r: &mut Reader<'_>) -> Option<Option<LeaderSeen>> {
    if !r.flag()? {
        return Some(None);
    }
    Some(Some(LeaderSeen { node: r.node()?, term: r.term()?, heard_ms: r.u64()? }))
}

fn put_report(out: &mut Vec<u8>, report: &Report) {
    out.u128(report.incarnation.0);
    out.term(report.last_term);
    out.lsn(report.end);
    out.lsn(report.committed.lsn());
    out.flag(report.whole);
    out.history(&report.history);
    out.generation(&report.policy);
    out.pending(&report.pending);
}

fn report(r: &mut Reader<'_>) -> Option<Report> {
    Some(Report {
        incarnation: Incarnation(r.u128()?),
        last_term: r.term()?,
        end: r.lsn()?,
        committed: r.committed()?,
        whole: r.flag()?,
        history: r.history()?,
        policy: r.generation()?,
        pending: r.pending()?,
    })
}

fn put_answer(out: &mut Vec<u8>, answer: &PromiseAnswer) {
    match answer {
        PromiseAnswer::Promised(report) => {
            out.u8(0);
            put_report(out, report);
        }
        PromiseAnswer::Wait { ms } => {
            out.u8(1);
            out.u64(*ms);
        }
        PromiseAnswer::Refused { promised, leading } => {
            out.u8(2);
            out.term(*promised);
            out.flag(*leading);
        }
    }
}

fn answer(r: &mut Reader<'_>) -> Option<PromiseAnswer> {
    match r.u8()? {
        0 => Some(PromiseAnswer::Promised(Box::new(report(r)?))),
        1 => Some(PromiseAnswer::Wait { ms: r.u64()? }),
        2 => Some(PromiseAnswer::Refused { promised: r.term()?, leading: r.flag()? }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;
    use crate::base::limits::PENDING_MAX;
    use crate::role::policy::Voter;

    fn term(number: u64) -> Term {
        Term { number, id: u128::MAX }
    }

    fn full_report() -> Report {
        let voter = |n: u16| Voter { node: NodeId(n), incarnation: Incarnation(u128::from(n)) };
        let policy = Generation {
            number: 4,
            voters: (1..=9).map(voter).collect(),
            k: 4,
            first: true,
            forced: false,
            standbys: (10..=32).map(voter).collect(),
            absent: (10..=32).map(NodeId).collect(),
            store: true,
            full_k: 0,
        };
        let mut history = History::new();
        (0..256).for_each(|i| history.append(term(i + 1), Lsn(i)));
        Report {
            incarnation: Incarnation(1),
            last_term: term(256),
            end: Lsn(300),
            committed: CommittedLsn(Lsn(200)),
            whole: true,
            history,
            pending: (0..PENDING_MAX as u64)
                .map(|i| PendingGeneration { generation: policy.clone(), start: Lsn(i), end: Lsn(i + 1) })
                .collect(),
            policy,
        }
    }

    fn all() -> Vec<RoleMessage> {
        let seen = Some(LeaderSeen { node: NodeId(3), term: term(2), heard_ms: 12 });
        let history = full_report().history;
        let (end, committed) = (Lsn(7), CommittedLsn(Lsn(6)));
        let release = Release { leader: NodeId(2), term: term(1), upto: Mono(77) };
        let mut all = vec![
            RoleMessage::Dry { attempt: 7 },
            RoleMessage::DryReply {
                attempt: 7,
                promised: term(3),
                leader: seen,
                lease_ms: 9,
                report: Box::new(full_report()),
            },
            RoleMessage::Promise { term: term(4), force: true, released: None },
            RoleMessage::Promise { term: term(4), force: false, released: Some(release) },
            RoleMessage::PromiseReply {
                term: term(4),
                answer: PromiseAnswer::Promised(Box::new(full_report())),
            },
            RoleMessage::PromiseReply { term: term(4), answer: PromiseAnswer::Wait { ms: 500 } },
            RoleMessage::PromiseReply {
                term: term(4),
                answer: PromiseAnswer::Refused { promised: term(9), leading: true },
            },
            RoleMessage::Announce { term: term(4), history, end, committed },
            RoleMessage::StatusProbe,
            RoleMessage::Yield { attempt: 1 },
            RoleMessage::YieldReply { attempt: 1, granted: true },
            RoleMessage::LeaseRelease(release),
            RoleMessage::SwitchoverAsk {
                ask: 1,
                term: term(2),
                to: NodeId(3),
                dry_run: true,
                timeout_ms: 5000,
                mark: None,
            },
            RoleMessage::SwitchoverAnswer {
                ask: 1,
                outcome: Outcome::Done { leader: NodeId(3), term: term(9) },
            },
            RoleMessage::SwitchoverAnswer { ask: 1, outcome: Outcome::Would { text: "yes".into() } },
            RoleMessage::Prepare { attempt: 5, term: term(2), end },
            RoleMessage::Prepared { attempt: 5 },
            RoleMessage::Handover { attempt: 5, end, release, mark: None },
            RoleMessage::Handover { attempt: 5, end, release, mark: Some(OpMark { id: 1, request: 2 }) },
            RoleMessage::HandoverFailed { attempt: 5, text: "busy".into() },
            RoleMessage::Fenced { promised: term(1) },
        ];
        for kind in RefusalKind::ALL {
            let outcome = Outcome::Refused { kind, text: "no".into() };
            all.push(RoleMessage::SwitchoverAnswer { ask: 1, outcome });
        }
        for role in Role::ALL {
            for state in State::ALL {
                all.push(RoleMessage::Status {
                    promised: term(1),
                    leader: None,
                    role,
                    state,
                    end,
                    committed,
                });
            }
        }
        all
    }

    #[test]
    fn messages_survive_their_bytes_and_nothing_else_does() {
        for message in all() {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            assert_eq!(RoleMessage::decode(&bytes), Some(message.clone()));
            for len in (0..bytes.len()).rev().take(64).chain(0..bytes.len().min(64)) {
                assert_eq!(RoleMessage::decode(&bytes[..len]), None, "{message:?} cut to {len}");
            }
            bytes.push(0);
            assert_eq!(RoleMessage::decode(&bytes), None);
        }
    }

    #[test]
    fn noise_never_panics() {
        let mut rng = Prng::new(3);
        for message in all() {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            for _ in 0..300 {
                let mut noisy = bytes.clone();
                for _ in 0..rng.between(1, 4) {
                    let at = rng.below(noisy.len().min(400) as u64) as usize;
                    noisy[at] = rng.next_u64() as u8;
                }
                if let Some(read) = RoleMessage::decode(&noisy) {
                    read.encode(&mut Vec::new());
                }
            }
        }
    }
}
