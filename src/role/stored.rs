//! What the control store holds of a cluster, and the conversation with it: read, decide, compare-and-swap.
//!
//! With a store every decision that moves leadership or the policy is one swap of one value ([`StoredPolicy`]): a
//! promotion before its term starts, a change of policy before (or after) its record. Whoever swaps has judged the very
//! revision that it replaces, so of two that decide at once one loses, reads what the other decided, and judges again
//! (`protocol` 4.2, 4.3). A swap whose outcome is unknown is never assumed: the value is read again, and every value
//! carries a random mark of its writer.
//!
//! Nothing here makes a write safe: promises and acknowledgements do. The store only keeps two sides from both
//! concluding that the other one is out.

use std::time::Duration;

use super::codec::{Reader, Write};
use super::input::{Effect, Refusal, StoreAnswer, StoreRequest};
use super::machine::{Phase, RoleMachine, Work};
use super::policy::Generation;
use crate::base::limits::PENDING_MAX;
use crate::base::{Mono, NodeId, Term};

/// First byte of the value.
const VERSION: u8 = 1;
/// A store that did not answer is asked again after this.
const AGAIN: Duration = Duration::from_millis(250);
/// A store that has not answered for so long counts as not reachable; its answer is waited for nevertheless.
const SILENCE_MAX: Duration = Duration::from_millis(1500);
/// How often a leader looks whether the store holds what it should.
const LOOK_EVERY: Duration = Duration::from_millis(1000);

/// The value of the policy key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPolicy {
    /// Tells this value from every other one, equal in the rest or not.
    pub mark: u64,
    /// The newest term that the store granted, and to whom.
    pub term: Term,
    pub leader: NodeId,
    /// A generation known to be committed.
    pub policy: Generation,
    /// Generations above it that may be in a log. Whoever recruits must satisfy them too.
    pub pending: Vec<Generation>,
}

impl StoredPolicy {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.u64(self.mark);
        out.term(self.term);
        out.node(self.leader);
        out.generation(&self.policy);
        out.u8(self.pending.len() as u8);
        self.pending.iter().for_each(|generation| out.generation(generation));
        out
    }

    /// `None` when these bytes are no such value.
    pub fn decode(bytes: &[u8]) -> Option<StoredPolicy> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return None;
        }
        let (mark, term, leader) = (reader.u64()?, reader.term()?, reader.node()?);
        let policy = reader.generation()?;
        let count = usize::from(reader.u8()?);
        if count > PENDING_MAX + 1 {
            return None;
        }
        let pending = (0..count).map(|_| reader.generation()).collect::<Option<Vec<_>>>()?;
        reader.done().then_some(StoredPolicy { mark, term, leader, policy, pending })
    }

    /// The same but for the mark.
    fn says(&self, other: &StoredPolicy) -> bool {
        StoredPolicy { mark: other.mark, ..self.clone() } == *other
    }
}

/// The store as this process knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct StoreSeen {
    pub revision: u64,
    pub value: Option<StoredPolicy>,
    /// When it last answered; `None` while it does not.
    pub heard: Option<Mono>,
    /// Why what it holds cannot be used.
    pub trouble: Option<&'static str>,
    talks: u64,
    talk: Option<Talk>,
    look_at: Mono,
    /// The leader's own look, see [`RoleMachine::tend_store`].
    tending: Option<u64>,
}

/// The store for those who look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreView<'a> {
    /// It answered the newest question.
    pub reachable: bool,
    /// Counts the changes of the policy key; 0 while nothing is known of it.
    pub revision: u64,
    pub value: Option<&'a StoredPolicy>,
    pub trouble: Option<&'static str>,
}

/// One conversation. A newer one takes its place; late answers to the old one carry its tickets.
#[derive(Clone, Debug)]
struct Talk {
    id: u64,
    ticket: u64,
    answer: Option<StoreAnswer>,
    asked: Mono,
    stage: Stage,
    /// What was last sent to be swapped in.
    sent: Option<StoredPolicy>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Begin,
    Reading,
    Swapping,
    Pause { until: Mono },
}

/// How far a conversation is.
#[derive(Clone, Debug)]
pub(super) enum Talked {
    Wait,
    /// The store holds what was wanted, or was read.
    Done,
    Refused(Refusal),
}

/// What to do with the value that stands in the store: swap this in (the mark is filled in), leave it, or give up.
pub(super) type Decision = Result<Option<StoredPolicy>, Refusal>;

impl RoleMachine {
    /// The control store as last heard of; `None` when the configuration names none.
    pub fn store_view(&self) -> Option<StoreView<'_>> {
        self.config.store.then(|| StoreView {
            reachable: self.store.heard.is_some(),
            revision: self.store.revision,
            value: self.store.value.as_ref(),
            trouble: self.store.trouble,
        })
    }

    /// Begins a conversation. The newest one is the only one.
    pub(super) fn store_talk(&mut self) -> u64 {
        self.store.talks += 1;
        let id = self.store.talks;
        self.store.talk =
            Some(Talk { id, ticket: 0, answer: None, asked: Mono(0), stage: Stage::Begin, sent: None });
        id
    }

    pub(super) fn store_answered(&mut self, ticket: u64, answer: StoreAnswer) {
        if let Some(talk) = self.store.talk.as_mut().filter(|talk| talk.ticket == ticket) {
            talk.answer = Some(answer);
        }
    }

    /// Takes a conversation as far as it goes now. `decide` is called with every new value that is read.
    pub(super) fn store_step(
        &mut self,
        now: Mono,
        id: u64,
        decide: &mut dyn FnMut(&RoleMachine, Option<&StoredPolicy>) -> Decision,
        out: &mut Vec<Effect>,
    ) -> Talked {
        let Some(mut talk) = self.store.talk.take_if(|talk| talk.id == id) else {
            return Talked::Refused(Refusal::StoreSilent { stage: "another question took its place" });
        };
        let talked = self.talk_on(now, &mut talk, decide, out);
        if matches!(talked, Talked::Wait) {
            self.store.talk = Some(talk);
        }
        talked
    }

    fn talk_on(
        &mut self,
        now: Mono,
        talk: &mut Talk,
        decide: &mut dyn FnMut(&RoleMachine, Option<&StoredPolicy>) -> Decision,
        out: &mut Vec<Effect>,
    ) -> Talked {
        let answer = match (talk.stage, talk.answer.take()) {
            (Stage::Begin, _) => {
                self.ask_store(now, talk, StoreRequest::Read, Stage::Reading, out);
                return Talked::Wait;
            }
            (Stage::Pause { until }, _) => {
                if now >= until {
                    self.ask_store(now, talk, StoreRequest::Read, Stage::Reading, out);
                }
                return Talked::Wait;
            }
            (_, None) => {
                if now.since(talk.asked) > SILENCE_MAX {
                    self.store.heard = None;
                    // A change without an answer may have been made or be made yet: it is read again. Questions are
                    // carried out in order, so this one is answered behind it.
                    self.ask_store(now, talk, StoreRequest::Read, Stage::Reading, out);
                }
                return Talked::Wait;
            }
            (_, Some(answer)) => answer,
        };
        match (talk.stage, answer) {
            (_, StoreAnswer::Stands { revision, value }) => {
                if let Err(trouble) = self.learn(now, revision, value.as_deref()) {
                    self.store.trouble = Some(trouble);
                    return Talked::Refused(Refusal::StoreUnusable { reason: trouble });
                }
                let stands = self.store.value.take();
                // The swap whose outcome was unknown is what stands there.
                if talk.sent.is_some() && talk.sent == stands {
                    self.store.value = stands;
                    return Talked::Done;
                }
                let decision = decide(self, stands.as_ref());
                self.store.value = stands;
                match decision {
                    Err(refusal) => Talked::Refused(refusal),
                    Ok(None) => Talked::Done,
                    Ok(Some(mut next)) => {
                        next.mark = self.rng.next_u64();
                        let request =
                            StoreRequest::Swap { expect: self.store.revision, value: next.encode() };
                        talk.sent = Some(next);
                        self.ask_store(now, talk, request, Stage::Swapping, out);
                        Talked::Wait
                    }
                }
            }
            (Stage::Swapping, StoreAnswer::Done { revision }) => {
                (self.store.revision, self.store.value) = (revision, talk.sent.take());
                self.store.heard = Some(now);
                Talked::Done
            }
            (Stage::Swapping, StoreAnswer::Unknown) => {
                self.ask_store(now, talk, StoreRequest::Read, Stage::Reading, out);
                Talked::Wait
            }
            _ => {
                self.store.heard = None;
                talk.stage = Stage::Pause { until: now + AGAIN };
                Talked::Wait
            }
        }
    }

    fn ask_store(
        &mut self,
        now: Mono,
        talk: &mut Talk,
        request: StoreRequest,
        stage: Stage,
        out: &mut Vec<Effect>,
    ) {
        talk.ticket = self.ticket();
        talk.asked = now;
        talk.stage = stage;
        out.push(Effect::Store { ticket: talk.ticket, request });
    }

    /// Takes over what was read. A store that counts backwards was replaced: nothing that it says binds anybody.
    fn learn(&mut self, now: Mono, revision: u64, value: Option<&[u8]>) -> Result<(), &'static str> {
        self.store.heard = Some(now);
        let value = match value.map(StoredPolicy::decode) {
            Some(None) => return Err("its policy key holds something that this build cannot read"),
            Some(Some(value)) => Some(value),
            None => None,
        };
        if revision < self.store.revision && value.is_some() {
            return Err("it holds an older state than it had shown before");
        }
        self.store.trouble = None;
        (self.store.revision, self.store.value) = (revision, value);
        Ok(())
    }

    /// What a leader of `term` has the store hold, over what stands there; see [`Decision`].
    pub(super) fn leaders_word(
        &self,
        now: Mono,
        stands: Option<&StoredPolicy>,
        (policy, pending): (&Generation, &[Generation]),
    ) -> Decision {
        let term = self.leading().unwrap_or(Term::NONE);
        match stands {
            _ if term.is_none() => return Err(Refusal::Superseded { term: self.control.promised }),
            Some(stands) if stands.term > term => {
                return Err(Refusal::Superseded { term: stands.term });
            }
            // An empty store knows of no promotion that it may have granted before it was emptied. While this leader's
            // lease holds, no other recruit can have won, and none can be granted by an empty store.
            None if self.newest().store && !self.may_read(now) => {
                let reason = "it is empty, and this primary's voters do not answer";
                return Err(Refusal::StoreUnusable { reason });
            }
            _ => {}
        }
        let next = StoredPolicy {
            mark: 0,
            term,
            leader: self.control.node,
            policy: policy.clone(),
            pending: pending.to_vec(),
        };
        Ok(Some(next).filter(|next| !stands.is_some_and(|stands| stands.says(next))))
    }

    /// True when the store is known to hold exactly this leader's policy.
    pub(super) fn store_agrees(&self) -> bool {
        let Some(stands) = &self.store.value else { return false };
        self.store.heard.is_some()
            && Some(stands.term) == self.leading()
            && stands.policy == self.control.policy
            && stands.pending.is_empty()
    }

    /// A leader with nothing else to do makes the store hold what is in force: after its promotion, after a change whose
    /// end the store missed, and in an empty store. Everybody else only looks.
    pub(super) fn tend_store(&mut self, now: Mono, out: &mut Vec<Effect>) {
        if !self.config.store {
            return;
        }
        if let Some(id) = self.store.tending {
            let settled = self.control.pending.is_empty() && matches!(self.work, Work::None);
            let leads = matches!(&self.phase, Phase::Leading(l) if l.served && !l.suspended) && settled;
            let mut decide = |machine: &RoleMachine, stands: Option<&StoredPolicy>| {
                if !leads || machine.control.policy.is_seed() {
                    return Ok(None);
                }
                machine.leaders_word(now, stands, (&machine.control.policy, &[]))
            };
            match self.store_step(now, id, &mut decide, out) {
                Talked::Wait => return,
                Talked::Done => {}
                // A term that was granted to somebody else: its leader, or the promises for it, are asked about.
                Talked::Refused(Refusal::Superseded { term }) => self.met_promise(now, term, out),
                Talked::Refused(_) => {}
            }
            self.store.tending = None;
            return;
        }
        let behind = self.leading().is_some() && self.control.pending.is_empty() && !self.store_agrees();
        let pace = if behind { AGAIN } else { LOOK_EVERY };
        // What a procedure left unfinished is over with it.
        let idle = self.change.is_none() && matches!(self.work, Work::None);
        if (self.store.talk.is_none() || idle) && now >= self.store.look_at {
            self.store.look_at = now + pace;
            self.store.tending = Some(self.store_talk());
            self.tend_store(now, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Incarnation;
    use crate::role::policy::Voter;
    use proptest::prelude::*;

    fn generation(number: u64) -> Generation {
        let voters = vec![Voter { node: NodeId(1), incarnation: Incarnation(7) }];
        Generation {
            number,
            voters,
            k: 0,
            first: false,
            forced: true,
            standbys: vec![],
            absent: vec![],
            store: true,
            full_k: 1,
        }
    }

    proptest! {
        #[test]
        fn a_stored_policy_survives_its_bytes(mark: u64, number: u64, pending in 0u64..7, cut in 0usize..40) {
            let value = StoredPolicy {
                mark,
                term: Term { number, id: u128::from(mark) },
                leader: NodeId(3),
                policy: generation(4),
                pending: (0..pending).map(generation).collect(),
            };
            let bytes = value.encode();
            prop_assert_eq!(StoredPolicy::decode(&bytes), Some(value));
            prop_assert_eq!(StoredPolicy::decode(&bytes[..bytes.len() - 1 - cut]), None);
            prop_assert_eq!(StoredPolicy::decode(&[&bytes[..], &[0]].concat()), None);
        }
    }
}
