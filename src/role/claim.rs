//! What a candidate asks of the control store (`protocol` 4.3), the generation that its term starts with, and the frame
//! that starts it.
//!
//! With a store no term starts without its word. The candidate has its promises and the log that it will lead; it reads
//! what stands in the store, judges its promises by that as well, and swaps in its term together with everything that
//! its log may bring into force. So two sides that both lack the other one can never both be granted a generation that
//! needs no other one: the second swap meets the first one's generation and asks for its voters.

use super::candidate::{Recruit, Stage, Step};
use super::change::Stored;
use super::done::{Deed, KnownOp, OpRecord};
use super::input::{Effect, Evidence, LogView, Refusal, TermStart};
use super::lead::Leading;
use super::machine::{Phase, RoleMachine, Work};
use super::policy::{Generation, PendingGeneration, Voter};
use super::recruit::{self, Tally, no_quorum, nodes};
use super::state::{Role, State};
use super::stored::{Decision, StoredPolicy, Talked};
use crate::base::{Incarnation, Lsn, Mono};

impl RoleMachine {
    /// An operator who accepts losses on a last server does not wait for a store that may be lost as well.
    pub(super) fn asks_store(&self, r: &Recruit) -> bool {
        self.config.store && !(r.alone && r.force)
    }

    /// The dry round reads the store: a recruit that it could not grant disturbs nobody.
    pub(super) fn read_store(&mut self, now: Mono, r: &mut Recruit, out: &mut Vec<Effect>) {
        if !self.config.store || r.store_read {
            return;
        }
        let talk = *r.talk.get_or_insert_with(|| self.store_talk());
        match self.store_step(now, talk, &mut |_, _| Ok(None), out) {
            Talked::Wait => return,
            Talked::Done => {
                r.store_read = true;
                r.stored = self.store.value.as_ref().map(Stored::new);
            }
            Talked::Refused(_) => {}
        }
        r.talk = None;
    }

    /// Too few to commit, and yet nothing can be lost: an operator's request may be granted by the store.
    pub(super) fn may_shrink(&self, r: &Recruit, tallies: &[Tally]) -> bool {
        let asked = r.op.is_some() || (r.wish && r.own.is_none());
        let marked = || recruit::binding(r.told()).iter().all(|generation| generation.store);
        asked
            && self.asks_store(r)
            && tallies.iter().all(Tally::lossless)
            && !tallies.iter().all(Tally::enough)
            && marked()
    }

    /// The log is the one that will be led. With a store its word comes next.
    pub(super) fn claim(&mut self, now: Mono, log: &LogView, r: &mut Recruit, out: &mut Vec<Effect>) -> Step {
        // This log holds everything that was committed, and perhaps what is asked for here: then no term is started.
        if let Some(result) = r.mark.and_then(|mark| self.op_known(log, mark)) {
            let wished = self.wish.as_mut().filter(|_| r.wish).and_then(|wish| wish.op.take());
            out.extend(r.op.take().or(wished).map(|op| Effect::Reply { op, result }));
            let stage = "it stands in the log already, under this op id";
            return self.fail(now, r, Refusal::OutcomeUnknown { stage }, false, out);
        }
        if !self.asks_store(r) {
            return self.start(log, r, out);
        }
        r.stage = Stage::Claim { talk: self.store_talk() };
        Step::Moved
    }

    pub(super) fn claiming(
        &mut self,
        now: Mono,
        log: &LogView,
        r: &mut Recruit,
        talk: u64,
        out: &mut Vec<Effect>,
    ) -> Step {
        let mut decide =
            |machine: &RoleMachine, stands: Option<&StoredPolicy>| machine.judge_claim(r, stands);
        match self.store_step(now, talk, &mut decide, out) {
            Talked::Done => self.start(log, r, out),
            Talked::Refused(refusal) => {
                let again = matches!(refusal, Refusal::Superseded { .. });
                self.fail(now, r, refusal, again, out)
            }
            Talked::Wait if now >= r.deadline => {
                let stage = "whether it granted the term was not seen";
                self.fail(now, r, Refusal::StoreSilent { stage }, false, out)
            }
            Talked::Wait => Step::Stay,
        }
    }

    /// May this term be granted over what stands in the store?
    fn judge_claim(&self, r: &mut Recruit, stands: Option<&StoredPolicy>) -> Decision {
        r.stored = stands.map(Stored::new);
        match stands {
            Some(stands) if stands.term > r.term => {
                return Err(Refusal::Superseded { term: stands.term });
            }
            None if recruit::binding(r.told()).iter().any(|generation| generation.store) => {
                let reason = "it is empty, and this cluster had put its policy there";
                return Err(Refusal::StoreUnusable { reason });
            }
            _ => {}
        }
        let tallies = r.tallies(&r.promises);
        let short = |tally: &&Tally| if r.shrink || r.alone { !tally.lossless() } else { !tally.enough() };
        if let Some(short) = tallies.iter().find(short) {
            return Err(no_quorum(short));
        }
        // What was committed once is in this log, known to be or not.
        let known = stands.map(|stands| &stands.policy).filter(|p| p.number > self.control.policy.number);
        let policy = known.unwrap_or(&self.control.policy).clone();
        let in_log = self.control.pending.iter().map(|pending| pending.generation.clone());
        let mut pending: Vec<Generation> = in_log.filter(|g| g.number > policy.number).collect();
        pending.extend(self.new_generation(r));
        Ok(Some(StoredPolicy { mark: 0, term: r.term, leader: self.control.node, policy, pending }))
    }

    /// The first frame of the term.
    pub(super) fn append(&mut self, log: &LogView, r: &mut Recruit, out: &mut Vec<Effect>) -> Step {
        let generation = self.new_generation(r);
        let policy = generation.as_ref().map(|generation| {
            let mut bytes = Vec::new();
            generation.encode(&mut bytes);
            bytes
        });
        self.appending = Some((r.term, generation, r.mark));
        let led = Deed::Led { leader: self.control.node, term: r.term };
        out.push(Effect::AppendTermStart(TermStart {
            term: r.term,
            leader: self.control.node,
            incarnation: self.control.incarnation,
            previous_term: log.last_term,
            previous_end: log.end,
            policy,
            op: RoleMachine::op_bytes(r.mark, led),
        }));
        r.stage = Stage::Append;
        Step::Stay
    }

    pub(super) fn term_appended(&mut self, start: Lsn, end: Lsn, out: &mut Vec<Effect>) {
        let Some((term, generation, mark)) = self.appending.take() else { return };
        assert_eq!(self.control.history.start_of(term), Some(start), "a term starts where its history says");
        if let Some(mark) = mark {
            let op = OpRecord { mark, deed: Deed::Led { leader: self.control.node, term } };
            self.op_appended(KnownOp { op, start, end });
        }
        if let Some(generation) = generation {
            self.add_pending(PendingGeneration { generation, start, end }, out);
        }
        match &self.work {
            Work::Recruit(recruit) if recruit.term == term && matches!(recruit.stage, Stage::Append) => {}
            // Something stronger came while the frame was sealed: it is a frame like any other now.
            _ => return,
        }
        let Work::Recruit(recruit) = std::mem::replace(&mut self.work, Work::None) else { return };
        let asked = recruit.op.map(|op| (op, recruit.deadline));
        let wished = self.wish.take().and_then(|wish| wish.op.map(|op| (op, wish.give_up)));
        let evidence = Evidence::new("leading")
            .with("term", term)
            .with("start", start)
            .with("promises", nodes(recruit.promises.keys()))
            .with("copies besides the own", self.in_force().iter().map(|g| g.k).max().unwrap_or(0));
        out.push(Effect::Evidence(evidence.clone()));
        self.lease = Default::default();
        self.phase = Phase::Leading(Leading {
            term,
            start,
            end,
            served: false,
            held: false,
            suspended: false,
            retry_at: None,
            yielded_until: None,
            op: asked.or(wished),
            evidence,
        });
        self.show(Role::Primary, State::Promoting, out);
        out.push(Effect::Lead { term });
        let announcement = self.announcement(end).expect("it leads");
        self.to_all(announcement, out);
    }

    /// Those that promised, without the rest, until the rest is back.
    fn shrunk(&self, r: &Recruit, number: u64, me: Voter) -> Generation {
        let newest = self.newest();
        let here = |voter: &Voter| {
            let told = r.promises.get(&voter.node);
            voter.node == me.node || told.is_some_and(|report| recruit::counts(newest, voter.node, report))
        };
        let (mut voters, gone): (Vec<Voter>, Vec<Voter>) = newest.voters.iter().partition(|v| here(v));
        if !voters.iter().any(|voter| voter.node == me.node) {
            voters.push(me);
        }
        let k = newest.k.min(voters.len() as u8 - 1);
        let meant = newest.full_k.max(newest.k);
        let mut standbys: Vec<Voter> =
            newest.standbys.iter().copied().filter(|voter| voter.node != me.node).collect();
        standbys.extend(&gone);
        let left = newest.absent.iter().copied().filter(|node| *node != me.node);
        let absent = left.chain(gone.iter().map(|voter| voter.node)).collect();
        let full_k = if meant > k { meant } else { 0 };
        Generation {
            number,
            voters,
            k,
            first: newest.first,
            forced: true,
            standbys,
            absent,
            store: true,
            full_k,
        }
    }

    /// The generation that must start with the term: the first one, a lone survivor's, or one that gives a leader
    /// without a vote its seat.
    pub(super) fn new_generation(&self, r: &Recruit) -> Option<Generation> {
        let me = Voter { node: self.control.node, incarnation: self.control.incarnation };
        let newest = self.newest();
        let highest =
            r.told().map(|(policy, pending)| pending.last().map_or(policy.number, |p| p.generation.number));
        let number = highest.max().unwrap_or(0).max(newest.number) + 1;
        let life = |member: &Voter| {
            let told = r.promises.get(&member.node).or(r.reports.get(&member.node));
            let incarnation = if newest.is_seed() {
                told.map_or(Incarnation(0), |report| report.incarnation)
            } else {
                member.incarnation
            };
            if member.node == me.node { me } else { Voter { node: member.node, incarnation } }
        };
        let without_me = |members: &[Voter]| -> Vec<Voter> {
            members.iter().filter(|member| member.node != me.node).map(life).collect()
        };
        if r.shrink {
            return Some(self.shrunk(r, number, me));
        }
        if r.alone {
            let mut standbys = without_me(&newest.voters);
            standbys.extend(without_me(&newest.standbys));
            let forced = Generation {
                number,
                voters: vec![me],
                k: 0,
                first: false,
                forced: true,
                standbys,
                absent: vec![],
                // Where it was not asked, it is told anew by the leader.
                store: self.asks_store(r),
                full_k: 0,
            };
            return Some(forced);
        }
        if newest.is_seed() && newest.lists(me.node, me.incarnation) {
            let voters = newest.voters.iter().map(life).collect();
            let standbys = newest.standbys.iter().map(life).collect();
            return Some(Generation { number, voters, standbys, store: self.config.store, ..newest.clone() });
        }
        // One change at a time: a seat is given only while no other generation waits to be committed.
        if newest.lists(me.node, me.incarnation) || !self.control.pending.is_empty() {
            return None;
        }
        let mut voters: Vec<Voter> = newest.voters.iter().map(life).collect();
        let absent = voters.iter().rposition(|voter| !r.promises.contains_key(&voter.node));
        let leaves = std::mem::replace(&mut voters[absent.unwrap_or(newest.voters.len() - 1)], me);
        let mut standbys = without_me(&newest.standbys);
        standbys.push(leaves);
        let absent = newest.absent.iter().copied().filter(|node| *node != me.node).collect();
        Some(Generation { number, voters, standbys, absent, ..newest.clone() })
    }
}
