//! One machine, fed by hand: the order of effects, and what is refused.

use super::History;
use super::control::{ControlState, DataStatus};
use super::input::{Command, Done, Effect, Input, LogView, Refusal};
use super::machine::{RoleConfig, RoleMachine, Verdict};
use super::message::{LeaderSeen, PromiseAnswer, Release, Report, RoleMessage};
use super::policy::Generation;
use super::state::{Repair, Role, State};
use crate::base::{ClusterId, CommittedLsn, FlushedLsn, Incarnation, Lsn, Mono, NodeId, Term};
use std::time::Duration;

const LEASE: Duration = Duration::from_millis(1000);

fn term(number: u64) -> Term {
    Term { number, id: 7 }
}

fn life(node: u16) -> Incarnation {
    Incarnation(u128::from(node))
}

fn generation(voters: &[u16], k: u8) -> Generation {
    Generation::of(1, voters.iter().copied(), k)
}

fn history(entries: &[(u64, u64)]) -> History {
    History::from_entries(entries.iter().map(|(t, s)| (term(*t), Lsn(*s))).collect()).unwrap()
}

/// Node 1 of a cluster that has been through term 1.
struct Bench {
    machine: RoleMachine,
    now: Mono,
    log: LogView,
    out: Vec<Effect>,
}

impl Bench {
    fn new(policy: Generation, peers: &[u16]) -> Bench {
        Bench::with(policy, peers, |_| {})
    }

    fn with(policy: Generation, peers: &[u16], change: impl FnOnce(&mut ControlState)) -> Bench {
        let mut control = ControlState::fresh(
            (ClusterId(1), "bench"),
            (NodeId(1), life(1)),
            64,
            64 << 20,
            policy,
            DataStatus::Whole,
        );
        control.promised = term(1);
        control.history = history(&[(1, 0)]);
        change(&mut control);
        let peers = peers.iter().map(|n| NodeId(*n)).collect();
        let config = RoleConfig {
            peers,
            cascade: false,
            lease: LEASE,
            traits: Default::default(),
            voter_timeout: None,
            store: false,
            degrade: None,
            seed: 3,
        };
        let log = LogView {
            end: Lsn(100),
            last_term: term(1),
            flushed: FlushedLsn(Lsn(100)),
            committed: CommittedLsn(Lsn(80)),
            whole: true,
        };
        let mut bench =
            Bench { machine: RoleMachine::new(config, control, Mono(0)), now: Mono(0), log, out: vec![] };
        bench.give(Input::Tick);
        bench.settle();
        // The restart hold of the lease is over.
        bench.now = Mono(0) + LEASE;
        bench
    }

    fn give(&mut self, input: Input) -> Vec<Effect> {
        self.out.clear();
        self.machine.handle(self.now, &self.log, input, &mut self.out);
        self.out.clone()
    }

    fn from(&mut self, node: u16, message: RoleMessage) -> Vec<Effect> {
        self.give(Input::Peer { from: NodeId(node), incarnation: life(node), message })
    }

    fn persisted(&mut self) -> Vec<Effect> {
        let generation = self.machine.control().generation;
        self.give(Input::Persisted { generation })
    }

    /// Answers every persist and drain until nothing more is asked.
    fn settle(&mut self) -> Vec<Effect> {
        let mut all = self.out.clone();
        for _ in 0..10 {
            let drains: Vec<u64> = self.out.iter().filter_map(drain_of).collect();
            let persists = self.out.iter().any(|e| matches!(e, Effect::Persist { .. }));
            if drains.is_empty() && !persists {
                break;
            }
            let mut more = Vec::new();
            for ticket in drains {
                more.extend(self.give(Input::Drained { ticket }));
            }
            if persists {
                more.extend(self.persisted());
            }
            all.extend(more.clone());
            self.out = more;
        }
        all
    }

    fn announce(&mut self, node: u16, t: u64, entries: &[(u64, u64)]) -> Vec<Effect> {
        let (history, end) = (history(entries), Lsn(500));
        self.from(
            node,
            RoleMessage::Announce { term: term(t), history, end, committed: CommittedLsn(Lsn(80)) },
        )
    }

    fn follow(&mut self, node: u16, t: u64, entries: &[(u64, u64)]) {
        self.announce(node, t, entries);
        let effects = self.settle();
        assert!(effects.contains(&Effect::Follow { leader: NodeId(node), term: term(t) }), "{effects:?}");
    }

    /// Through a dry round and promises of `voters` to a led term.
    fn lead(&mut self, voters: &[u16]) -> Term {
        self.give(Input::Command { op: 1, mark: None, command: FAILOVER });
        self.answer_dry(voters, None);
        self.wait(700);
        self.settle();
        for node in voters {
            let report = self.report_of(*node);
            let t = self.machine.control().promised;
            self.from(
                *node,
                RoleMessage::PromiseReply { term: t, answer: PromiseAnswer::Promised(Box::new(report)) },
            );
            self.settle();
        }
        let start = self.out.clone();
        assert!(start.iter().any(|e| matches!(e, Effect::AppendTermStart(_))), "{start:?}");
        let t = self.machine.control().promised;
        (self.log.end, self.log.last_term) = (Lsn(110), t);
        self.give(Input::TermAppended { start: Lsn(100), end: Lsn(110) });
        self.settle();
        t
    }

    fn wait(&mut self, ms: u64) -> Vec<Effect> {
        self.now = self.now + Duration::from_millis(ms);
        self.give(Input::Tick)
    }

    fn report_of(&self, node: u16) -> Report {
        Report {
            incarnation: life(node),
            last_term: term(1),
            end: Lsn(100),
            committed: CommittedLsn(Lsn(80)),
            whole: true,
            history: history(&[(1, 0)]),
            policy: self.machine.control().policy.clone(),
            pending: vec![],
        }
    }

    /// Voters answer the dry round that was just sent.
    fn answer_dry(&mut self, voters: &[u16], leader: Option<LeaderSeen>) {
        let attempt = self.out.iter().find_map(|e| match e {
            Effect::Send { message: RoleMessage::Dry { attempt }, .. } => Some(*attempt),
            _ => None,
        });
        let attempt = attempt.expect("a dry round was sent");
        let mut all = Vec::new();
        for node in voters {
            let report = Box::new(self.report_of(*node));
            let reply = RoleMessage::DryReply { attempt, promised: term(1), leader, lease_ms: 0, report };
            all.extend(self.from(*node, reply));
        }
        self.out = all;
    }

    fn replies(&self) -> Vec<&Effect> {
        self.out.iter().filter(|e| matches!(e, Effect::Reply { .. })).collect()
    }
}

const FAILOVER: Command = Command::Failover { dry_run: false, alone: false, force: false };

fn drain_of(effect: &Effect) -> Option<u64> {
    match effect {
        Effect::Drain { ticket } => Some(*ticket),
        _ => None,
    }
}

fn promise(t: u64) -> RoleMessage {
    RoleMessage::Promise { term: term(t), force: false, released: None }
}

fn answers(effects: &[Effect]) -> Vec<&PromiseAnswer> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Send { message: RoleMessage::PromiseReply { answer, .. }, .. } => Some(answer),
            _ => None,
        })
        .collect()
}

#[test]
fn a_promise_is_spoken_only_when_acks_are_stopped_it_is_durable_and_the_log_is_flushed() {
    for drained_first in [false, true] {
        let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
        bench.follow(2, 2, &[(1, 0), (2, 100)]);
        let effects = bench.from(3, promise(5));
        let kinds: Vec<_> = effects.iter().map(std::mem::discriminant).collect();
        let at =
            |wanted: &Effect| kinds.iter().position(|kind| *kind == std::mem::discriminant(wanted)).unwrap();
        let ticket = effects.iter().find_map(drain_of).unwrap();
        let control = Box::new(bench.machine.control().clone());
        assert!(at(&Effect::StopAcks) < at(&Effect::Persist { state: control }));
        assert!(at(&Effect::StopAcks) < at(&Effect::Drain { ticket }));
        assert!(!bench.machine.may_ack(NodeId(2), term(2)));
        assert!(!bench.machine.grant(bench.now, NodeId(2), term(2), bench.now));
        let drained = Input::Drained { ticket };
        let generation = bench.machine.control().generation;
        let durable = Input::Persisted { generation };
        let (first, second) = if drained_first { (drained, durable) } else { (durable, drained) };
        assert!(answers(&bench.give(first)).is_empty());
        let spoken = bench.give(second);
        let [PromiseAnswer::Promised(report)] = answers(&spoken)[..] else { panic!("{spoken:?}") };
        assert_eq!(
            (report.last_term, report.end),
            (term(1), Lsn(100)),
            "the last frame's term, never the promised"
        );
        assert!(spoken.contains(&Effect::Unfollow));
        assert_eq!(bench.machine.accepts_session(NodeId(2), term(2)), Verdict::Refuse(term(5)));
        assert_eq!(bench.machine.accepts_pull(term(5)), Verdict::Accept);
    }
}

#[test]
fn lower_terms_are_refused_and_equal_ones_repeated() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.from(3, promise(5));
    bench.settle();
    let lower = bench.from(2, promise(4));
    assert!(
        matches!(answers(&lower)[..], [PromiseAnswer::Refused { promised, leading: false }] if *promised == term(5))
    );
    let again = bench.from(3, promise(5));
    assert!(matches!(answers(&again)[..], [PromiseAnswer::Promised(_)]));
    let other_id = RoleMessage::Promise { term: Term { number: 5, id: 6 }, force: false, released: None };
    let lower_id = bench.from(2, other_id);
    assert!(matches!(answers(&lower_id)[..], [PromiseAnswer::Refused { .. }]), "terms are pairs");
}

#[test]
fn a_promise_waits_for_the_granted_lease_unless_released_or_the_process_is_gone() {
    let granted = || {
        let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
        bench.follow(2, 2, &[(1, 0), (2, 100)]);
        assert!(bench.machine.grant(bench.now, NodeId(2), term(2), bench.now));
        bench
    };
    let mut bench = granted();
    let early = bench.from(3, promise(5));
    assert!(matches!(answers(&early)[..], [PromiseAnswer::Wait { ms: 1000 }]));
    assert_eq!(bench.machine.control().promised, term(2), "a promise that waits is no promise");
    bench.give(Input::PeerDown { node: NodeId(2), process_gone: false });
    assert!(matches!(answers(&bench.from(3, promise(5)))[..], [PromiseAnswer::Wait { .. }]));
    bench.wait(1000);
    assert!(answers(&bench.from(3, promise(5))).is_empty());
    assert_eq!(bench.machine.control().promised, term(5));

    let mut gone = granted();
    gone.give(Input::PeerDown { node: NodeId(2), process_gone: true });
    gone.from(3, promise(5));
    assert_eq!(gone.machine.control().promised, term(5));

    let mut released = granted();
    released
        .from(2, RoleMessage::LeaseRelease(Release { leader: NodeId(2), term: term(2), upto: released.now }));
    released.from(3, promise(5));
    assert_eq!(released.machine.control().promised, term(5));
}

#[test]
fn a_restarted_node_waits_one_lease_before_its_first_promise() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.now = Mono(0);
    assert!(matches!(answers(&bench.from(3, promise(5)))[..], [PromiseAnswer::Wait { .. }]));
}

#[test]
fn a_restarted_primary_leads_nothing() {
    let bench = Bench::with(generation(&[1, 2, 3], 1), &[2, 3], |control| control.last_led = term(1));
    assert_eq!((bench.machine.leading(), bench.machine.serving()), (None, false));
    assert!(bench.machine.commit_rule().is_none() && !bench.machine.accepts_ack(term(1)));
    assert_eq!(bench.machine.role(), Role::Standby);
    assert_eq!(bench.machine.control().starts, 1);
}

#[test]
fn a_diverged_tail_is_cut_only_after_the_new_history_is_durable() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let effects = bench.announce(2, 3, &[(1, 0), (3, 90)]);
    let ticket = effects.iter().find_map(drain_of).unwrap();
    assert_eq!(bench.machine.accepts_session(NodeId(2), term(3)), Verdict::AdoptFirst);
    bench.persisted();
    let ordered = bench.give(Input::Drained { ticket });
    assert!(
        matches!(&ordered[..], [Effect::Persist { state }] if state.history == history(&[(1, 0), (3, 90)]))
    );
    assert_eq!(bench.machine.control().history, history(&[(1, 0)]), "the log still has its old tail");
    let cut = bench.persisted();
    let [Effect::Truncate { ticket, to: Lsn(90) }] = cut[..] else { panic!("{cut:?}") };
    bench.log.end = Lsn(90);
    bench.log.flushed = FlushedLsn(Lsn(90));
    let followed = bench.give(Input::Truncated { ticket });
    assert!(followed.contains(&Effect::Follow { leader: NodeId(2), term: term(3) }));
    assert_eq!((bench.machine.role(), bench.machine.state()), (Role::Standby, State::Catchup));
    assert!(bench.machine.accepts_frame(term(3), Lsn(90)) && !bench.machine.accepts_frame(term(1), Lsn(90)));
}

#[test]
fn an_interrupted_adoption_leaves_history_and_log_in_agreement() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let effects = bench.announce(2, 3, &[(1, 0), (3, 90)]);
    let ticket = effects.iter().find_map(drain_of).unwrap();
    bench.persisted();
    bench.give(Input::Drained { ticket });
    let interrupted = bench.from(3, promise(5));
    let last = interrupted.iter().rev().find_map(|e| match e {
        Effect::Persist { state } => Some(state.history.clone()),
        _ => None,
    });
    assert_eq!(last, Some(history(&[(1, 0)])));
    bench.settle();
    bench.follow(3, 5, &[(1, 0), (5, 100)]);
}

#[test]
fn nothing_below_the_known_commit_is_ever_cut() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.announce(2, 3, &[(1, 0), (3, 70)]);
    let effects = bench.settle();
    assert!(
        !effects.iter().any(|e| matches!(e, Effect::Truncate { .. } | Effect::Follow { .. })),
        "{effects:?}"
    );
    assert_eq!(bench.machine.state(), State::NeedRepair(Repair::Wal));
    assert_eq!(bench.machine.control().promised, term(3), "it fences all the same");
    assert!(
        bench.announce(2, 3, &[(1, 0), (3, 70)]).is_empty(),
        "the same term is not tried again and again"
    );
}

#[test]
fn a_lower_announcement_is_answered_with_the_promise() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.from(3, promise(5));
    bench.settle();
    let effects = bench.announce(2, 3, &[(1, 0), (3, 100)]);
    let fenced = RoleMessage::Fenced { promised: term(5) };
    assert_eq!(effects, [Effect::Send { to: NodeId(2), message: fenced }]);
}

#[test]
fn a_failover_serves_only_when_its_first_frame_commits() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let t = bench.lead(&[2]);
    assert_eq!((bench.machine.leading(), bench.machine.serving()), (Some(t), false));
    assert_eq!((bench.machine.role(), bench.machine.state()), (Role::Primary, State::Promoting));
    assert_eq!(bench.machine.commit_rule().unwrap().floor, Lsn(110));
    assert!(!bench.machine.may_read(bench.now));
    bench.log.flushed = FlushedLsn(Lsn(110));
    bench.log.committed = CommittedLsn(Lsn(100));
    assert!(bench.give(Input::CommitMoved).is_empty(), "the old tail alone is not enough");
    bench.log.committed = CommittedLsn(Lsn(110));
    let effects = bench.give(Input::CommitMoved);
    assert!(effects.contains(&Effect::Serve { term: t }));
    assert!(matches!(bench.replies()[..], [Effect::Reply { op: 1, result: Ok(Done::Primary { .. }) }]));
    assert!(!bench.machine.may_read(bench.now), "no lease yet");
    let granted = Input::Granted { from: NodeId(2), incarnation: life(2), term: t, sent: bench.now };
    bench.give(granted);
    assert!(bench.machine.may_read(bench.now));
    assert!(!bench.machine.may_read(bench.now + LEASE));
    let sure = bench.from(3, promise(900));
    assert!(matches!(answers(&sure)[..], [PromiseAnswer::Refused { leading: true, .. }]));
}

#[test]
fn a_dry_run_binds_nobody() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let command = Command::Failover { dry_run: true, alone: false, force: false };
    bench.give(Input::Command { op: 4, mark: None, command });
    bench.answer_dry(&[2, 3], None);
    let out = bench.out.clone();
    assert!(matches!(&out[..], [Effect::Reply { op: 4, result: Ok(Done::Would { .. }) }]), "{out:?}");
    assert_eq!(bench.machine.control().promised, term(1));
}

#[test]
fn a_living_primary_is_left_alone_and_yields_only_to_force() {
    let seen = Some(LeaderSeen { node: NodeId(2), term: term(1), heard_ms: 0 });
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.give(Input::Command { op: 4, mark: None, command: FAILOVER });
    bench.answer_dry(&[2, 3], seen);
    let alive = Refusal::PrimaryAlive { node: NodeId(2), term: term(1) };
    assert!(matches!(bench.replies()[..], [Effect::Reply { op: 4, result: Err(why) }] if *why == alive));

    let mut forced = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let command = Command::Failover { dry_run: false, alone: false, force: true };
    forced.give(Input::Command { op: 4, mark: None, command });
    forced.answer_dry(&[2, 3], seen);
    assert!(forced.replies().is_empty());
    let asked = |e: &Effect| matches!(e, Effect::Send { to: NodeId(2), message: RoleMessage::Yield { .. } });
    assert!(forced.out.iter().any(asked));
    assert!(!forced.out.iter().any(|e| matches!(e, Effect::Persist { .. })), "it promises after the yield");
}

#[test]
fn wiped_and_building_voters_do_not_count() {
    for wiped in [true, false] {
        let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
        let out = bench.give(Input::Command { op: 4, mark: None, command: FAILOVER });
        let attempt = out.iter().find_map(|e| match e {
            Effect::Send { message: RoleMessage::Dry { attempt }, .. } => Some(*attempt),
            _ => None,
        });
        let mut report = Box::new(bench.report_of(2));
        let incarnation = if wiped { Incarnation(77) } else { life(2) };
        (report.incarnation, report.whole) = (incarnation, wiped);
        let attempt = attempt.unwrap();
        let message = RoleMessage::DryReply { attempt, promised: term(1), leader: None, lease_ms: 0, report };
        bench.give(Input::Peer { from: NodeId(2), incarnation, message });
        bench.wait(700);
        let result = match bench.replies()[..] {
            [Effect::Reply { result: Err(Refusal::NoQuorum { have, need, missing, .. }), .. }] => {
                (*have, *need, missing.clone())
            }
            ref other => panic!("{other:?}"),
        };
        assert_eq!(result, (1, 2, vec![NodeId(2), NodeId(3)]));
    }
}

#[test]
fn alone_is_refused_when_not_needed_and_when_it_could_lose_unless_forced() {
    let alone = |force| Command::Failover { dry_run: true, alone: true, force };
    let ask = |voters: &[u16], peers: &[u16], answering: &[u16], force: bool| {
        let mut bench = Bench::new(generation(voters, 1), peers);
        bench.give(Input::Command { op: 4, mark: None, command: alone(force) });
        bench.answer_dry(answering, None);
        if bench.replies().is_empty() {
            bench.wait(700);
        }
        match bench.replies()[..] {
            [Effect::Reply { result, .. }] => result.clone(),
            ref other => panic!("{other:?}"),
        }
    };
    assert!(matches!(ask(&[1, 2], &[2], &[2], false), Err(Refusal::AloneNotNeeded { .. })));
    assert!(
        matches!(ask(&[1, 2], &[2], &[], false), Ok(Done::Would { .. })),
        "a pair's survivor has everything"
    );
    assert!(matches!(ask(&[1, 2, 3], &[2, 3], &[], false), Err(Refusal::LossPossible { .. })));
    assert!(matches!(ask(&[1, 2, 3], &[2, 3], &[], true), Ok(Done::Would { .. })));
}

#[test]
fn acks_wait_for_a_durable_policy_record_and_so_does_the_leader() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.follow(2, 2, &[(1, 0), (2, 100)]);
    let next = Generation { number: 2, ..generation(&[1, 2], 1) };
    bench.log.end = Lsn(120);
    bench.log.flushed = FlushedLsn(Lsn(120));
    bench.give(Input::PolicyAppended { generation: next.clone(), start: Lsn(110), end: Lsn(120) });
    assert_eq!(bench.machine.ack_limit(), Lsn(110));
    bench.persisted();
    assert_eq!(bench.machine.ack_limit(), Lsn::MAX);
    assert_eq!(bench.machine.control().policy.number, 1);
    bench.log.committed = CommittedLsn(Lsn(120));
    bench.give(Input::CommitMoved);
    assert_eq!(bench.machine.control().policy, next);
}

#[test]
fn a_primary_holds_on_against_a_promise_and_falls_to_a_started_term() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let t = bench.lead(&[2]);
    bench.log.flushed = FlushedLsn(Lsn(110));
    bench.log.committed = CommittedLsn(Lsn(110));
    bench.give(Input::CommitMoved);
    let higher = Term { number: t.number + 5, id: 1 };
    bench.give(Input::SessionRefused { by: NodeId(3), promised: higher });
    assert!(bench.machine.serving());
    bench.wait(2500);
    let dry = |e: &Effect| matches!(e, Effect::Send { message: RoleMessage::Dry { .. }, .. });
    assert!(bench.out.iter().any(dry), "it recruits above the promise: {:?}", bench.out);
    assert!(!bench.out.iter().any(|e| matches!(e, Effect::Demote { .. })));
    let history = history(&[(1, 0)]);
    let mut started = history.clone();
    started.append(higher, Lsn(105));
    let message = RoleMessage::Announce {
        term: higher,
        history: started,
        end: Lsn(115),
        committed: CommittedLsn::ZERO,
    };
    let effects = bench.from(3, message);
    assert!(effects.iter().any(|e| matches!(e, Effect::Demote { .. })));
    assert_eq!((bench.machine.role(), bench.machine.state()), (Role::Standby, State::Demoting));
}

#[test]
fn a_failed_log_latches() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let effects = bench.give(Input::LogFailed);
    assert!(effects.contains(&Effect::StopAcks) && matches!(effects.last(), Some(Effect::Latch { .. })));
    assert!(bench.from(3, promise(5)).is_empty());
    let refused = bench.give(Input::Command { op: 9, mark: None, command: FAILOVER });
    assert_eq!(refused, [Effect::Reply { op: 9, result: Err(Refusal::LogFailed) }]);
    assert_eq!(bench.machine.state(), State::NeedRepair(Repair::Io));
}

#[test]
fn a_node_that_builds_neither_leads_nor_counts() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let status = DataStatus::Building;
    bench.give(Input::DataChanged { status, incarnation: life(1), history: None, policy: None });
    assert_eq!(bench.machine.state(), State::Building);
    bench.give(Input::Command { op: 4, mark: None, command: FAILOVER });
    bench.answer_dry(&[2, 3], None);
    assert!(matches!(
        bench.replies()[..],
        [Effect::Reply { result: Err(Refusal::NotPromotable { .. }), .. }]
    ));
    bench.from(3, promise(5));
    let spoken = bench.settle();
    assert!(matches!(answers(&spoken)[..], [PromiseAnswer::Promised(report)] if !report.whole));
}

#[test]
fn a_candidate_waits_for_its_own_grant_before_it_promises_itself() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.follow(2, 2, &[(1, 0), (2, 100)]);
    assert!(bench.machine.grant(bench.now, NodeId(2), term(2), bench.now));
    let command = Command::Failover { dry_run: false, alone: false, force: true };
    bench.give(Input::Command { op: 4, mark: None, command });
    bench.answer_dry(&[2, 3], None);
    let attempt = bench.out.iter().find_map(|e| match e {
        Effect::Send { to: NodeId(2), message: RoleMessage::Yield { attempt } } => Some(*attempt),
        _ => None,
    });
    // The old leader yields, but word of the released lease is lost.
    bench.from(2, RoleMessage::YieldReply { attempt: attempt.unwrap(), granted: true });
    bench.wait(990);
    assert_eq!(bench.machine.control().promised, term(2));
    assert!(!bench.machine.grant(bench.now, NodeId(2), term(2), bench.now), "the wait is not made longer");
    let bound = bench.wait(10);
    assert!(bound.iter().any(|e| matches!(e, Effect::Persist { state } if state.promised > term(2))));
}

#[test]
fn a_leader_that_promised_commits_answers_and_grants_nothing_more() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let t = bench.lead(&[2]);
    bench.log.flushed = FlushedLsn(Lsn(110));
    bench.log.committed = CommittedLsn(Lsn(110));
    bench.give(Input::CommitMoved);
    bench.give(Input::Granted { from: NodeId(2), incarnation: life(2), term: t, sent: bench.now });
    assert!(bench.machine.may_read(bench.now) && bench.machine.commit_rule().is_some());
    let higher = Term { number: t.number + 1, id: 1 };
    let effects = bench.from(3, RoleMessage::Promise { term: higher, force: true, released: None });
    assert!(effects.contains(&Effect::StopAcks));
    assert!(effects.iter().any(|e| matches!(e, Effect::HoldClients { .. })));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Demote { .. })), "a mere promise demotes nobody");
    assert!(bench.machine.commit_rule().is_none() && !bench.machine.accepts_ack(t));
    assert!(!bench.machine.may_read(bench.now) && bench.machine.lease_until().is_none());
    assert_eq!((bench.machine.role(), bench.machine.state()), (Role::Primary, State::WaitPromoting));
}

fn numbered(number: u64, voters: &[u16]) -> Generation {
    Generation { number, ..generation(voters, 1) }
}

#[test]
fn two_generations_that_wait_both_bind_and_the_log_decides_which_stay() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    let policy = |number, voters: &[u16], start, end| Input::PolicyAppended {
        generation: numbered(number, voters),
        start: Lsn(start),
        end: Lsn(end),
    };
    bench.give(policy(2, &[1, 2], 82, 83));
    bench.give(policy(3, &[2, 3], 90, 91));
    let waiting = |bench: &Bench| -> Vec<u64> {
        bench.machine.control().pending.iter().map(|pending| pending.generation.number).collect()
    };
    assert_eq!(waiting(&bench), [2, 3]);
    assert_eq!(bench.machine.control().policy.number, 1, "nothing is known to be committed");
    assert_eq!(bench.machine.ack_limit(), Lsn(82), "not durable yet");
    bench.log.committed = CommittedLsn(Lsn(85));
    bench.give(Input::CommitMoved);
    assert_eq!((waiting(&bench), bench.machine.control().policy.number), (vec![3], 2));
    // The log went another way from 90 on: another record may stand there.
    bench.give(policy(4, &[1, 3], 90, 92));
    assert_eq!(waiting(&bench), [4]);
    bench.log.committed = CommittedLsn(Lsn(92));
    bench.give(Input::CommitMoved);
    assert_eq!((waiting(&bench), bench.machine.control().policy.number), (vec![], 4));
}

#[test]
fn a_generation_too_many_is_never_acknowledged() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.log.end = Lsn(300);
    bench.log.flushed = FlushedLsn(Lsn(300));
    for number in 2..10 {
        let (start, end) = (Lsn(100 + number * 10), Lsn(101 + number * 10));
        bench.give(Input::PolicyAppended { generation: numbered(number, &[1, 2]), start, end });
    }
    bench.persisted();
    assert_eq!(bench.machine.control().pending.len(), crate::base::limits::PENDING_MAX);
    assert_eq!(bench.machine.ack_limit(), Lsn(180));
}

#[test]
fn a_sick_node_votes_and_acknowledges_but_does_not_lead() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.follow(2, 2, &[(1, 0), (2, 100)]);
    let sick =
        Input::DataChanged { status: DataStatus::Sick, incarnation: life(1), history: None, policy: None };
    let effects = bench.give(sick);
    assert!(effects.iter().all(|e| matches!(e, Effect::Persist { .. })), "the stream goes on: {effects:?}");
    assert!(
        bench.machine.grant(bench.now, NodeId(2), term(2), bench.now)
            && bench.machine.may_ack(NodeId(2), term(2))
    );
    bench.wait(1_500);
    bench.give(Input::Command { op: 4, mark: None, command: FAILOVER });
    bench.answer_dry(&[2, 3], None);
    assert!(matches!(
        bench.replies()[..],
        [Effect::Reply { result: Err(Refusal::NotPromotable { .. }), .. }]
    ));
    bench.from(3, promise(5));
    let spoken = bench.settle();
    assert!(matches!(answers(&spoken)[..], [PromiseAnswer::Promised(report)] if report.whole));
}

#[test]
fn a_sick_leader_steps_down() {
    let mut bench = Bench::new(generation(&[1, 2, 3], 1), &[2, 3]);
    bench.lead(&[2]);
    let (status, incarnation) = (DataStatus::Sick, life(1));
    let effects = bench.give(Input::DataChanged { status, incarnation, history: None, policy: None });
    let place = |wanted: fn(&Effect) -> bool| effects.iter().position(wanted).expect("it is ordered");
    assert!(place(|e| *e == Effect::StopAcks) < place(|e| matches!(e, Effect::Demote { .. })));
    assert!(
        effects.iter().any(|e| matches!(e, Effect::Persist { state } if state.status == DataStatus::Sick))
    );
    assert_ne!(bench.machine.role(), Role::Primary);
    assert!(bench.machine.leading().is_none());
}
