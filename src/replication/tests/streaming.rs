//! Sender and receiver, rule by rule.

use bytes::Bytes;

use super::{CLUSTER, TestLog, peer, term};
use crate::base::planted::{Bug, plant};
use crate::base::{AppliedLsn, ClusterId, CommittedLsn, Digest, FlushedLsn, Lsn, NodeId, Term};
use crate::replication::chain::{Chain, ChainError};
use crate::replication::receiver::*;
use crate::replication::sender::*;
use crate::replication::wire::*;
use crate::role::History;

const BLOCK: u64 = 4096;

/// A log of two terms: three frames of term 1, two of term 3.
fn two_terms() -> TestLog {
    let mut log = TestLog::new();
    log.begin(term(1));
    log.append(b"a");
    log.append(b"b");
    log.begin(term(3));
    log.append(b"c");
    log
}

fn position(log: &TestLog) -> Position {
    Position {
        tip: log.tip(),
        flushed: FlushedLsn(log.tip().end),
        applied: AppliedLsn::ZERO,
        committed: CommittedLsn::ZERO,
        history: log.history.clone(),
    }
}

fn cut(log: &TestLog, blocks: u64) -> TestLog {
    let mut shorter = log.clone();
    shorter.truncate(Lsn(blocks * BLOCK));
    shorter
}

fn ask(standby: &TestLog, upstream: &TestLog) -> Result<Sender, RefuseReason> {
    let request = position(standby).request(false);
    Sender::new(peer(2), &request, &upstream.view(term(3))).map_err(|refusal| refusal.reason)
}

fn messages(step: Step) -> Vec<Message> {
    let Step::Send(out) = step else { panic!("nothing was sent: {step:?}") };
    let mut decoder = Decoder::new();
    decoder.authenticated(CLUSTER, 1);
    decoder.push(&out.to_vec()).unwrap();
    std::iter::from_fn(|| decoder.next().unwrap()).map(|envelope| envelope.message).collect()
}

fn refusal(step: Step) -> RefuseReason {
    let Step::Refuse(refusal) = step else { panic!("not refused: {step:?}") };
    refusal.reason
}

fn ack(at: u64) -> Ack {
    let lsn = Lsn(at * BLOCK);
    Ack {
        written: lsn,
        flushed: FlushedLsn(lsn),
        applied: AppliedLsn::ZERO,
        matched: lsn,
        committed: CommittedLsn::ZERO,
    }
}

/// A running session: the receiver is at `blocks`, the rest of the log has not arrived.
fn receiver(log: &TestLog, blocks: u64) -> Receiver {
    let own = position(&cut(log, blocks));
    let start = StreamStart {
        from: own.tip.end,
        commit: CommittedLsn::ZERO,
        end: log.tip().end,
        path: Path::of(NodeId(1)),
        history: log.history.clone(),
    };
    Receiver::start(CLUSTER, term(3), term(3), &own, &start).unwrap()
}

/// The frames of `log` from `from` to `to`, as they travel.
fn shipment(log: &TestLog, from: u64, to: u64, commit: u64) -> (FramesHead, Bytes) {
    let mut view = log.view(term(3));
    view.commit = CommittedLsn(Lsn(commit * BLOCK));
    let frames = log.frames.iter().filter(|(h, _)| h.first.0 >= from * BLOCK && h.end().0 <= to * BLOCK);
    let mut out = Outbound::default();
    gather(&view, Kind::Frames, Lsn(from * BLOCK), frames.cloned().collect(), 1 << 20, &mut out);
    match messages(Step::Send(out)).remove(0) {
        Message::Frames { head, bytes } => (head, bytes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_prefix_is_matched_and_gets_the_rest() {
    let log = two_terms();
    for blocks in 0..=5 {
        let mut sender = ask(&cut(&log, blocks), &log).unwrap();
        let sent = messages(sender.next(&log.view(term(3)), &log));
        assert!(matches!(&sent[0], Message::StreamStart(start) if start.from == Lsn(blocks * BLOCK)
            && start.history == log.history));
        match sent.get(1) {
            Some(Message::Frames { head, .. }) => assert_eq!(u64::from(head.count), 5 - blocks),
            other => assert!(other.is_none() && blocks == 5, "{other:?}"),
        }
        assert_eq!((sender.state(), sender.sent()), (SenderState::Streaming, log.tip().end));
        assert!(matches!(sender.next(&log.view(term(3)), &log), Step::Idle));
    }
}

#[test]
fn a_fork_is_found_by_history() {
    let log = two_terms();
    let mut longer = cut(&log, 3);
    longer.append(b"never committed");
    assert_eq!(ask(&longer, &log).unwrap_err(), RefuseReason::Diverged { fork: Lsn(3 * BLOCK) });

    let mut other_term = cut(&log, 2);
    other_term.begin(term(2));
    other_term.append(b"x");
    assert_eq!(ask(&other_term, &log).unwrap_err(), RefuseReason::Diverged { fork: Lsn(2 * BLOCK) });

    let mut stranger = TestLog::new();
    stranger.begin(term(9));
    assert_eq!(ask(&stranger, &log).unwrap_err(), RefuseReason::Diverged { fork: Lsn::ZERO });
}

#[test]
fn a_standby_ahead_of_a_cascading_upstream_waits() {
    let log = two_terms();
    let mut upstream = cut(&log, 4);
    upstream.history = log.history.clone();
    assert_eq!(ask(&log, &upstream).unwrap_err(), RefuseReason::Behind { end: Lsn(4 * BLOCK) });
    // The upstream's log has not reached term 3 yet; its history, told by the leader, has.
    let mut upstream = cut(&log, 2);
    upstream.history = log.history.clone();
    assert_eq!(ask(&log, &upstream).unwrap_err(), RefuseReason::Behind { end: Lsn(2 * BLOCK) });
    let mut longer = cut(&log, 3);
    longer.append(b"never committed");
    assert_eq!(ask(&longer, &upstream).unwrap_err(), RefuseReason::Diverged { fork: Lsn(3 * BLOCK) });
}

#[test]
fn removed_log_means_a_build() {
    let mut log = two_terms();
    log.oldest = Lsn(2 * BLOCK);
    let gone = RefuseReason::WalRemoved { oldest: Lsn(2 * BLOCK) };
    assert_eq!(ask(&cut(&log, 1), &log).unwrap_err(), gone);
    assert_eq!(ask(&TestLog::new(), &log).unwrap_err(), gone);
    assert!(ask(&cut(&log, 2), &log).is_ok());
    let mut sender = ask(&cut(&log, 2), &log).unwrap();
    log.oldest = Lsn(4 * BLOCK);
    let gone = RefuseReason::WalRemoved { oldest: Lsn(4 * BLOCK) };
    assert_eq!(refusal(sender.next(&log.view(term(3)), &log)), gone);
    assert_eq!(sender.state(), SenderState::Stopped);
}

#[test]
fn other_bytes_under_the_same_term_and_position_are_damage() {
    let log = two_terms();
    let mut twin = cut(&log, 4);
    twin.truncate(Lsn(2 * BLOCK));
    twin.append(b"not b");
    for upstream in [log.clone(), cut(&log, 3)] {
        let mut sender = ask(&twin, &upstream).unwrap();
        let step = sender.next(&upstream.view(term(3)), &upstream);
        assert_eq!(refusal(step), RefuseReason::ChainMismatch { at: Lsn(3 * BLOCK) });
    }
    // A tip that its own history does not explain.
    let mut request = position(&cut(&log, 3)).request(false);
    request.tip.term = term(2);
    let refusal = Sender::new(peer(2), &request, &log.view(term(3))).unwrap_err();
    assert_eq!(refusal.reason, RefuseReason::ChainMismatch { at: Lsn(3 * BLOCK) });
}

#[test]
fn a_slow_standby_fills_its_window_and_no_more() {
    let mut log = TestLog::new();
    log.begin(term(3));
    (0..50).for_each(|_| log.append(&[5; 3000]));
    let mut sender = ask(&TestLog::new(), &log).unwrap().with_window(10 * BLOCK);
    let mut steps = 0;
    while let Step::Send(_) = sender.next(&log.view(term(3)), &log) {
        steps += 1;
        assert!(steps < 20, "the window does not hold");
    }
    let sent = sender.sent();
    assert!(sent >= Lsn(10 * BLOCK) && sent <= Lsn(15 * BLOCK), "{sent}");
    assert_eq!(sender.state(), SenderState::Catchup);
    assert_eq!(sender.lag_bytes(log.tip().end), 51 * BLOCK);
    sender.on_ack(&ack(5)).unwrap();
    assert!(matches!(sender.next(&log.view(term(3)), &log), Step::Send(_)));
    assert!(sender.sent() > sent);
    assert_eq!(sender.keeps(), Lsn(5 * BLOCK));
}

#[test]
fn frames_on_disk_are_loaded_and_the_commit_moves_meanwhile() {
    let mut log = two_terms();
    log.memory_from = Lsn(3 * BLOCK);
    let mut sender = ask(&cut(&log, 1), &log).unwrap();
    let Step::Load { from, .. } = sender.next(&log.view(term(3)), &log) else { panic!() };
    assert_eq!(from, Lsn(BLOCK));
    log.commit = CommittedLsn(Lsn(BLOCK));
    assert!(
        matches!(sender.next(&log.view(term(3)), &log), Step::Idle),
        "nothing goes before the stream start"
    );
    let sent =
        messages(sender.loaded(&log.view(term(3)), Ok(log.read(from, 2 * BLOCK as usize)[..1].to_vec())));
    assert!(matches!(sent[..], [Message::StreamStart(_), Message::Frames { .. }]));
    assert_eq!(sender.state(), SenderState::Catchup);
    let Step::Load { from, .. } = sender.next(&log.view(term(3)), &log) else { panic!() };
    log.commit = CommittedLsn(Lsn(2 * BLOCK));
    assert_eq!(messages(sender.next(&log.view(term(3)), &log)), [Message::Commit(log.commit)]);
    assert!(matches!(sender.next(&log.view(term(3)), &log), Step::Idle), "a watermark is told once");
    let sick = Refusal { reason: RefuseReason::Unhealthy, text: String::new() };
    assert_eq!(from, Lsn(2 * BLOCK));
    assert_eq!(refusal(sender.loaded(&log.view(term(3)), Err(sick))), RefuseReason::Unhealthy);
    assert!(matches!(sender.next(&log.view(term(3)), &log), Step::Idle), "a refused sender is over");
}

/// A log that says one thing, once.
struct Scripted(std::cell::Cell<Option<Pulled>>);

impl LogSource for Scripted {
    fn frames_from(&self, _at: Lsn, _max_bytes: usize) -> Pulled {
        self.0.take().expect("asked once")
    }
}

#[test]
fn a_tail_that_is_not_readable_yet_is_waited_for() {
    let log = two_terms();
    let not_yet = || Scripted(std::cell::Cell::new(Some(Pulled::End)));
    let mut sender = ask(&cut(&log, 2), &log).unwrap();
    assert!(matches!(sender.next(&log.view(term(3)), &not_yet()), Step::Idle));
    assert_eq!(sender.state(), SenderState::Matching, "the digest is not judged by another position's");
    assert!(matches!(sender.next(&log.view(term(3)), &log), Step::Send(_)));
}

#[test]
fn a_message_is_measured_by_what_the_standby_must_write() {
    let mut log = TestLog::new();
    log.begin(term(3));
    (0..2000).for_each(|_| log.append(b"small"));
    let mut sender = ask(&TestLog::new(), &log).unwrap();
    sender.next(&log.view(term(3)), &log);
    assert!(sender.sent() <= Lsn(MESSAGE_BYTES_SOFT as u64), "{}", sender.sent());
}

#[test]
fn a_made_up_position_is_refused() {
    let log = two_terms();
    let mismatch = RefuseReason::ChainMismatch { at: Lsn(2 * BLOCK) };
    // What the log may say about a position in the middle of a frame.
    let elsewhere = log.read(Lsn(3 * BLOCK), 1);
    for pulled in [Pulled::NoBorder, Pulled::Memory(elsewhere.clone())] {
        let mut sender = ask(&cut(&log, 2), &log).unwrap();
        let source = Scripted(std::cell::Cell::new(Some(pulled)));
        assert_eq!(refusal(sender.next(&log.view(term(3)), &source)), mismatch);
    }
    for loaded in [elsewhere, Vec::new()] {
        let mut sender = ask(&cut(&log, 2), &log).unwrap();
        let source = Scripted(std::cell::Cell::new(Some(Pulled::OnDisk)));
        assert!(matches!(sender.next(&log.view(term(3)), &source), Step::Load { .. }));
        assert_eq!(refusal(sender.loaded(&log.view(term(3)), Ok(loaded))), mismatch);
    }
}

#[test]
fn a_sender_never_outlives_its_term() {
    let log = two_terms();
    let mut sender = ask(&cut(&log, 1), &log).unwrap();
    assert_eq!(refusal(sender.next(&log.view(term(4)), &log)), RefuseReason::OtherTerm { term: term(4) });
    let mut sender = ask(&cut(&log, 1), &log).unwrap();
    sender.stop();
    assert!(matches!(sender.next(&log.view(term(3)), &log), Step::Idle));
    assert!(matches!(sender.loaded(&log.view(term(3)), Ok(log.read(Lsn(BLOCK), 1))), Step::Idle));
}

#[test]
fn impossible_acks_are_refused() {
    let log = two_terms();
    let mut sender = ask(&cut(&log, 1), &log).unwrap();
    assert!(matches!(sender.on_ack(&ack(1)), Err(SenderError::AckBeyondSent { .. })), "before the stream");
    sender.next(&log.view(term(3)), &log);
    assert!(matches!(sender.on_ack(&ack(6)), Err(SenderError::AckBeyondSent { .. })));
    sender.on_ack(&ack(3)).unwrap();
    assert_eq!(sender.on_ack(&ack(2)), Err(SenderError::AckOutOfOrder), "acks never go back");
    let eager = Ack { flushed: FlushedLsn(Lsn(5 * BLOCK)), ..ack(4) };
    assert_eq!(sender.on_ack(&eager), Err(SenderError::AckOutOfOrder), "flushed but not written");
    assert_eq!(sender.acked(), Some(&ack(3)));
}

#[test]
fn an_idle_stream_still_carries_the_watermark() {
    let mut log = two_terms();
    let mut sender = ask(&log.clone(), &log).unwrap();
    sender.next(&log.view(term(3)), &log);
    log.commit = CommittedLsn(Lsn(5 * BLOCK));
    assert_eq!(messages(sender.next(&log.view(term(3)), &log)), [Message::Commit(log.commit)]);
    log.append(b"d");
    log.commit = CommittedLsn(Lsn(5 * BLOCK));
    let sent = messages(sender.next(&log.view(term(3)), &log));
    assert!(matches!(sent[..], [Message::Frames { head, .. }] if head.commit == log.commit));
}

#[test]
fn frames_are_yielded_in_order_and_where_they_belong() {
    let mut log = two_terms();
    log.fill(3 * BLOCK as usize);
    log.append(b"behind a filler");
    let mut receiver = receiver(&log, 1);
    let (head, bytes) = shipment(&log, 1, 9, 0);
    let frames = receiver.on_frames(term(3), &head, bytes).unwrap();
    let got: Vec<_> = frames.iter().map(|frame| (frame.header, frame.used.to_vec())).collect();
    let want: Vec<_> = log.frames[1..].iter().map(|(header, slice)| (*header, slice.to_vec())).collect();
    assert_eq!(got, want);
    assert_eq!(receiver.tip(), log.tip());
}

#[test]
fn nothing_but_the_next_frame_of_this_log_is_accepted() {
    let log = two_terms();
    let refused = |receiver: &mut Receiver, head: FramesHead, bytes: Bytes| {
        let before = receiver.tip();
        let error = receiver.on_frames(term(3), &head, bytes).unwrap_err();
        assert_eq!(receiver.tip(), before, "all or nothing");
        match error {
            ReceiverError::Chain(error) => error,
            other => panic!("{other:?}"),
        }
    };
    let (head, bytes) = shipment(&log, 2, 4, 0);
    let gap = ChainError::Gap { want: Lsn(BLOCK), got: Lsn(2 * BLOCK) };
    assert_eq!(refused(&mut receiver(&log, 1), head, bytes.clone()), gap);
    let lying = FramesHead { first: Lsn(BLOCK), ..head };
    assert_eq!(refused(&mut receiver(&log, 1), lying, bytes.clone()), gap);
    let miscounted = FramesHead { count: head.count + 1, ..head };
    assert_eq!(refused(&mut receiver(&log, 2), miscounted, bytes.clone()), ChainError::Head("count"));
    let elsewhere = FramesHead { end: head.end + BLOCK, ..head };
    assert_eq!(refused(&mut receiver(&log, 2), elsewhere, bytes.clone()), ChainError::Head("end"));
    let short = bytes.slice(..bytes.len() - 1);
    assert!(matches!(refused(&mut receiver(&log, 2), head, short), ChainError::Corrupt(_)));

    let mut twin = cut(&log, 1);
    twin.append(b"another a");
    twin.append(b"another b");
    let (head, bytes) = shipment(&twin, 2, 3, 0);
    let broken = ChainError::BrokenChain { at: Lsn(2 * BLOCK) };
    assert_eq!(refused(&mut receiver(&log, 2), head, bytes), broken);

    let (head, bytes) = shipment(&log, 0, 1, 0);
    let mut elsewhere = Chain::new(ClusterId(5), log.history.clone(), LogTip::default());
    assert_eq!(elsewhere.accept(&head, bytes), Err(ChainError::OtherCluster(CLUSTER)));
}

#[test]
fn frames_are_judged_by_history_alone() {
    let log = two_terms();
    // Old-term frames are legal in a newer session.
    let (head, bytes) = shipment(&log, 1, 3, 0);
    receiver(&log, 1).on_frames(term(3), &head, bytes).unwrap();
    // A frame of term 1 where history has term 3.
    let mut longer = cut(&log, 3);
    longer.append(b"never committed");
    let (head, bytes) = shipment(&longer, 3, 4, 0);
    let wrong = ChainError::WrongTerm { at: Lsn(3 * BLOCK), frame: term(1), history: Some(term(3)) };
    assert_eq!(receiver(&log, 3).on_frames(term(3), &head, bytes.clone()), Err(ReceiverError::Chain(wrong)));
    let mut unknown = Chain::new(CLUSTER, History::new(), longer_tip(&log));
    assert!(matches!(unknown.accept(&head, bytes), Err(ChainError::WrongTerm { history: None, .. })));
}

fn longer_tip(log: &TestLog) -> LogTip {
    cut(log, 3).tip()
}

#[test]
fn a_session_starts_only_where_both_logs_agree() {
    let log = two_terms();
    let own = position(&cut(&log, 2));
    let start = StreamStart {
        from: own.tip.end,
        commit: CommittedLsn::ZERO,
        end: log.tip().end,
        path: Path::of(NodeId(1)),
        history: log.history.clone(),
    };
    let begin = |session, promised, own: &Position, start: &StreamStart| {
        Receiver::start(CLUSTER, session, promised, own, start).map(|_| ())
    };
    begin(term(3), term(2), &own, &start).unwrap();
    assert_eq!(
        begin(term(3), term(4), &own, &start),
        Err(ReceiverError::Promised { got: term(3), promised: term(4) })
    );
    let same_number = Term { number: 3, id: u128::MAX };
    assert!(begin(term(3), same_number, &own, &start).is_err(), "terms compare as pairs");
    let elsewhere = StreamStart { from: Lsn(BLOCK), ..start.clone() };
    assert!(matches!(begin(term(3), term(3), &own, &elsewhere), Err(ReceiverError::WrongStart { .. })));
    let wrong = Err(ReceiverError::WrongHistory { at: Lsn(2 * BLOCK) });
    let newer = StreamStart { history: log.history.clone(), ..start.clone() };
    assert_eq!(begin(term(2), term(1), &own, &newer), wrong, "history beyond the session");
    let foreign = History::from_entries(vec![(term(2), Lsn::ZERO), (term(3), Lsn(3 * BLOCK))]).unwrap();
    assert_eq!(begin(term(3), term(3), &own, &StreamStart { history: foreign, ..start.clone() }), wrong);
    let shifted = vec![(term(1), Lsn(BLOCK)), (term(3), Lsn(3 * BLOCK))];
    let shifted = History::from_entries(shifted).unwrap();
    assert_eq!(begin(term(3), term(3), &own, &StreamStart { history: shifted, ..start }), wrong);
}

#[test]
fn messages_of_another_session_are_refused() {
    let log = two_terms();
    let mut receiver = receiver(&log, 1);
    let (head, bytes) = shipment(&log, 1, 2, 1);
    let other = Term { number: 3, id: 1 };
    let refused = ReceiverError::OtherSession { got: other, want: term(3) };
    assert_eq!(receiver.on_frames(other, &head, bytes), Err(refused.clone()));
    assert_eq!(receiver.on_commit(other, CommittedLsn(Lsn(BLOCK))), Err(refused.clone()));
    assert_eq!(receiver.on_heartbeat(other, CommittedLsn(Lsn(BLOCK))), Err(refused));
    assert_eq!((receiver.commit(), receiver.matched()), (CommittedLsn::ZERO, Lsn(BLOCK)));
}

#[test]
fn the_watermark_is_capped_at_what_was_matched() {
    let log = two_terms();
    let mut receiver = receiver(&log, 1);
    receiver.on_commit(term(3), CommittedLsn(Lsn(5 * BLOCK))).unwrap();
    assert_eq!(receiver.commit(), CommittedLsn(Lsn(BLOCK)));
    let (head, bytes) = shipment(&log, 1, 4, 2);
    receiver.on_frames(term(3), &head, bytes).unwrap();
    assert_eq!(receiver.commit(), CommittedLsn(Lsn(4 * BLOCK)), "the leader's watermark never goes back");
    assert_eq!(receiver.redo_limit(), CommittedLsn(Lsn(BLOCK)), "redo waits for the own flush");
    receiver.flushed(FlushedLsn(Lsn(3 * BLOCK)));
    assert_eq!(receiver.redo_limit(), CommittedLsn(Lsn(3 * BLOCK)));
    assert_eq!(receiver.leader_commit(), CommittedLsn(Lsn(5 * BLOCK)));
}

#[test]
fn acks_leave_when_the_flush_moved_and_say_no_more_than_it() {
    let log = two_terms();
    let mut receiver = receiver(&log, 1);
    assert_eq!(receiver.take_ack(), Some(ack(1)), "the first ack says where the session began");
    assert_eq!(receiver.take_ack(), None);
    let (head, bytes) = shipment(&log, 1, 4, 0);
    receiver.on_frames(term(3), &head, bytes).unwrap();
    assert_eq!(receiver.take_ack(), None, "received is not flushed");
    receiver.written(Lsn(4 * BLOCK));
    assert_eq!(receiver.take_ack(), None, "nobody waits for writes");
    receiver.flushed(FlushedLsn(Lsn(3 * BLOCK)));
    let want = Ack { written: Lsn(4 * BLOCK), matched: Lsn(4 * BLOCK), ..ack(3) };
    assert_eq!(receiver.take_ack(), Some(want));
    assert_eq!(receiver.take_ack(), None);
    receiver.on_heartbeat(term(3), CommittedLsn(Lsn(2 * BLOCK))).unwrap();
    receiver.applied(AppliedLsn(Lsn(2 * BLOCK)));
    let want = Ack { applied: AppliedLsn(Lsn(2 * BLOCK)), committed: CommittedLsn(Lsn(2 * BLOCK)), ..want };
    assert_eq!(receiver.take_ack(), Some(want), "a heartbeat is answered with the state");
}

#[test]
fn eager_acks_report_every_move() {
    let log = two_terms();
    let mut receiver = receiver(&log, 1);
    receiver.take_ack();
    let (mut head, bytes) = shipment(&log, 1, 2, 0);
    head.eager_acks = true;
    receiver.on_frames(term(3), &head, bytes).unwrap();
    assert!(receiver.take_ack().is_some_and(|ack| ack.matched == Lsn(2 * BLOCK)));
    receiver.written(Lsn(2 * BLOCK));
    assert!(
        receiver
            .take_ack()
            .is_some_and(|ack| ack.written == Lsn(2 * BLOCK) && ack.flushed == FlushedLsn(Lsn(BLOCK)))
    );
    receiver.applied(AppliedLsn(Lsn(BLOCK)));
    assert!(receiver.take_ack().is_some_and(|ack| ack.applied == AppliedLsn(Lsn(BLOCK))));
    assert_eq!(receiver.take_ack(), None);
}

#[test]
fn acks_wait_below_a_limit() {
    let log = two_terms();
    let mut receiver = receiver(&log, 1);
    let (head, bytes) = shipment(&log, 1, 4, 0);
    receiver.on_frames(term(3), &head, bytes).unwrap();
    receiver.hold_acks_above(Lsn(2 * BLOCK));
    receiver.flushed(FlushedLsn(Lsn(4 * BLOCK)));
    assert_eq!(receiver.take_ack(), Some(Ack { matched: Lsn(4 * BLOCK), ..ack(2) }));
    assert_eq!(receiver.take_ack(), None);
    receiver.hold_acks_above(Lsn::MAX);
    assert_eq!(receiver.take_ack(), Some(ack(4)));
}

#[test]
fn after_a_promise_the_session_is_silent() {
    let log = two_terms();
    let mut receiver = receiver(&log, 1);
    let (head, bytes) = shipment(&log, 1, 2, 0);
    receiver.on_frames(term(3), &head, bytes).unwrap();
    receiver.stop_acks();
    receiver.flushed(FlushedLsn(Lsn(2 * BLOCK)));
    assert_eq!(receiver.take_ack(), None);
    let (head, bytes) = shipment(&log, 2, 3, 0);
    assert_eq!(receiver.on_frames(term(3), &head, bytes), Err(ReceiverError::Stopped));
    assert_eq!(receiver.on_commit(term(3), CommittedLsn::ZERO), Err(ReceiverError::Stopped));
}

/// Each planted bug breaks exactly the rule it is named after; without it the same steps are harmless.
#[test]
fn planted_bugs_break_their_rule() {
    let log = two_terms();
    let (head, bytes) = shipment(&log, 1, 4, 0);
    {
        let _bug = plant(Bug::AckBeforeFlush);
        let mut receiver = receiver(&log, 1);
        receiver.on_frames(term(3), &head, bytes.clone()).unwrap();
        assert_eq!(receiver.take_ack(), Some(ack(4)));
    }
    {
        let mut receiver = receiver(&log, 1);
        receiver.on_frames(term(3), &head, bytes.clone()).unwrap();
        receiver.flushed(FlushedLsn(Lsn(4 * BLOCK)));
        receiver.stop_acks();
        let _bug = plant(Bug::AckAfterPromise);
        assert_eq!(receiver.take_ack(), Some(ack(4)));
    }
    {
        let _bug = plant(Bug::IgnoreSessionTerm);
        let mut receiver = receiver(&log, 1);
        receiver.on_frames(term(2), &head, bytes.clone()).unwrap();
    }
    {
        let _bug = plant(Bug::JudgeFramesByPromisedTerm);
        let mut receiver = receiver(&log, 1);
        let before = receiver.tip();
        assert!(matches!(
            receiver.on_frames(term(3), &head, bytes.clone()),
            Err(ReceiverError::Promised { .. })
        ));
        assert_eq!(receiver.tip(), before);
    }
    let digest = receiver(&log, 1).tip().digest;
    assert_ne!(digest, Digest::ZERO);
}

/// A frame of a newer format is no corrupt frame: the standby says what it is.
#[test]
fn a_frame_of_a_newer_format_is_named_as_such() {
    let log = two_terms();
    let (mut header, slice) = log.frames.last().expect("it has frames").clone();
    let mut bytes = slice.to_vec();
    header.version = crate::base::format::newest() + 1;
    header.seal(&mut bytes);
    let mut tip = log.tip();
    (tip.end, tip.digest) = (header.first, header.previous);
    let mut chain = Chain::new(CLUSTER, log.history.clone(), tip);
    let head = FramesHead {
        first: header.first,
        end: header.end(),
        commit: CommittedLsn::ZERO,
        count: 1,
        eager_acks: false,
    };
    let newer = ChainError::Newer { at: header.first, version: header.version };
    assert_eq!(chain.accept(&head, Bytes::from(bytes.clone())), Err(newer));
    // Damaged on the way it is just that.
    *bytes.last_mut().expect("a payload") ^= 1;
    assert!(matches!(chain.accept(&head, Bytes::from(bytes)), Err(ChainError::Corrupt(_))));
}
