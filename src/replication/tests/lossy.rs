//! A leader and a standby over a link that loses, cuts and bends bytes, while both crash and leaders change. Whatever
//! happens, an ack is true when it leaves, nothing committed is lost, and in the end the logs are equal byte for byte.

use std::collections::VecDeque;

use super::{CLUSTER, TestLog, peer, term};
use crate::base::planted::{Bug, plant};
use crate::base::{AppliedLsn, CommittedLsn, FlushedLsn, Lsn, Prng, SharedSlice, Term};
use crate::replication::receiver::{Position, Receiver};
use crate::replication::sender::{Sender, Step};
use crate::replication::wire::*;

/// A standby's disk: what is durable, and what would be lost in a crash.
struct Standby {
    log: TestLog,
    flushed: Lsn,
    applied: Lsn,
    receiver: Option<Receiver>,
    decoder: Decoder,
}

/// One connection: bytes on their way to the standby, messages on their way back.
#[derive(Default)]
struct Link {
    down: VecDeque<u8>,
    up: VecDeque<(Term, Message)>,
    /// The stream breaks after so many more bytes.
    breaks_after: usize,
}

struct World {
    rng: Prng,
    leader: TestLog,
    session: Term,
    sender: Option<Sender>,
    standby: Standby,
    link: Option<Link>,
    /// End of what the leader has counted as held by the standby.
    acked: Lsn,
    matches: u32,
    divergences: u32,
}

impl World {
    fn new(seed: u64) -> World {
        let mut leader = TestLog::new();
        leader.begin(term(1));
        World {
            rng: Prng::new(seed),
            leader,
            session: term(1),
            sender: None,
            standby: Standby {
                log: TestLog::new(),
                flushed: Lsn::ZERO,
                applied: Lsn::ZERO,
                receiver: None,
                decoder: Decoder::new(),
            },
            link: None,
            acked: Lsn::ZERO,
            matches: 0,
            divergences: 0,
        }
    }

    fn connect(&mut self, breaks_after: usize) {
        self.standby.decoder = Decoder::new();
        self.standby.decoder.authenticated(CLUSTER, 1);
        let request = Message::StreamRequest(self.position().request(false));
        let up = VecDeque::from([(self.session, request)]);
        self.link = Some(Link { down: VecDeque::new(), up, breaks_after });
    }

    fn disconnect(&mut self) {
        self.link = None;
        self.sender = None;
        self.standby.receiver = None;
    }

    fn position(&self) -> Position {
        Position {
            tip: self.standby.log.tip(),
            flushed: FlushedLsn(self.standby.flushed),
            applied: AppliedLsn(self.standby.applied),
            committed: CommittedLsn(self.standby.applied),
            history: self.standby.log.history.clone(),
        }
    }

    fn write(&mut self) {
        match self.rng.below(12) {
            0 => self.leader.fill(4096 * 3),
            1 => self.leader.append(&vec![1; 20_000]),
            n => self.leader.append(&vec![n as u8; 10 + n as usize * 500]),
        }
        let tip = self.leader.tip().end;
        if self.rng.chance(0.1) {
            self.leader.memory_from = Lsn(self.rng.below(tip.0 / 4096) * 4096);
        }
        self.leader.commit = CommittedLsn(self.acked.min(tip));
    }

    /// The leader dies; another log that has all that was acked, and perhaps more, goes on in a new term.
    fn change_leader(&mut self) {
        self.disconnect();
        let keep: Vec<Lsn> =
            self.leader.frames.iter().map(|(h, _)| h.end()).filter(|end| *end >= self.acked).collect();
        let cut = keep[self.rng.below(keep.len() as u64) as usize];
        self.leader.truncate(cut);
        self.session = term(self.session.number + 1);
        self.leader.begin(self.session);
        self.leader.memory_from = Lsn::ZERO;
    }

    /// The standby loses power: what was not flushed is gone.
    fn crash_standby(&mut self) {
        self.disconnect();
        let keep: Vec<Lsn> = self.standby.log.frames.iter().map(|(h, _)| h.end()).collect();
        let lost = keep.into_iter().rev().take_while(|end| *end > self.standby.flushed).count();
        let frames = self.standby.log.frames.len() - lost;
        self.standby.log.frames.truncate(frames);
        let end = self.standby.log.tip().end;
        self.standby.log.history.truncate_to(end);
        assert_eq!(end, self.standby.flushed);
    }

    fn leader_turn(&mut self) {
        let Some(link) = &mut self.link else { return };
        while let Some((session, message)) = link.up.pop_front() {
            match message {
                Message::StreamRequest(request) => {
                    match Sender::new(peer(2), &request, &self.leader.view(self.session)) {
                        Ok(sender) => self.sender = Some(sender.with_window(100_000)),
                        Err(refusal) => {
                            let view = self.leader.view(self.session);
                            let mut bytes = Vec::new();
                            encode(&view.stamped(), &Message::StreamRefuse(refusal), &mut bytes);
                            link.down.extend(bytes);
                        }
                    }
                }
                Message::Ack(ack) => {
                    assert_eq!(session, self.session);
                    self.sender.as_mut().expect("a stream").on_ack(&ack).unwrap();
                    self.acked = self.acked.max(ack.flushed.lsn());
                }
                other => panic!("{other:?}"),
            }
        }
        let view = self.leader.view(self.session);
        let Some(sender) = &mut self.sender else { return };
        for _ in 0..3 {
            let step = match sender.next(&view, &self.leader) {
                Step::Load { from, bytes } => sender.loaded(&view, Ok(self.leader.read(from, bytes))),
                step => step,
            };
            match step {
                Step::Send(out) => link.down.extend(out.to_vec()),
                Step::Refuse(refusal) => panic!("{refusal}"),
                Step::Idle | Step::Load { .. } => break,
            }
        }
    }

    /// Some bytes arrive; the link may end in the middle of them, or bend one.
    fn carry(&mut self) {
        let Some(link) = &mut self.link else { return };
        let count = self.rng.between(1, 9000).min(link.down.len() as u64) as usize;
        let mut bytes: Vec<u8> = link.down.drain(..count).collect();
        let breaks = bytes.len() >= link.breaks_after;
        bytes.truncate(link.breaks_after);
        link.breaks_after -= bytes.len();
        if breaks && !bytes.is_empty() && self.rng.chance(0.3) {
            let at = self.rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.rng.below(8);
        }
        if self.standby.decoder.push(&bytes).is_err() || self.deliver().is_err() || breaks {
            self.disconnect();
        }
    }

    fn deliver(&mut self) -> Result<(), ()> {
        while let Some(envelope) = self.standby.decoder.next().map_err(|_| ())? {
            let session = envelope.stamped.session;
            match envelope.message {
                Message::StreamStart(start) => {
                    let own = self.position();
                    let receiver = Receiver::start(CLUSTER, session, self.session, &own, &start);
                    self.standby.receiver = Some(receiver.map_err(|_| ())?);
                    // What history says about this log is durable before its frames are.
                    self.standby.log.history = start.history;
                    self.matches += 1;
                }
                Message::StreamRefuse(refusal) => {
                    let RefuseReason::Diverged { fork } = refusal.reason else { panic!("{refusal}") };
                    assert!(fork >= self.acked, "an acknowledged frame would be dropped");
                    assert!(fork >= self.standby.applied);
                    self.standby.log.truncate(fork);
                    self.standby.flushed = self.standby.flushed.min(fork);
                    self.divergences += 1;
                    return Err(());
                }
                Message::Frames { head, bytes } => {
                    let receiver = self.standby.receiver.as_mut().ok_or(())?;
                    for frame in receiver.on_frames(session, &head, bytes).map_err(|_| ())? {
                        let slice = SharedSlice::copy_of(&frame.used);
                        self.standby.log.frames.push((frame.header, slice));
                    }
                }
                Message::Commit(commit) => {
                    let receiver = self.standby.receiver.as_mut().ok_or(())?;
                    receiver.on_commit(session, commit).map_err(|_| ())?;
                }
                other => panic!("{other:?}"),
            }
        }
        Ok(())
    }

    fn standby_turn(&mut self) {
        let (Some(receiver), Some(link)) = (&mut self.standby.receiver, &mut self.link) else { return };
        if self.rng.chance(0.6) {
            // The flush covers some whole frames.
            let ends: Vec<Lsn> = self.standby.log.frames.iter().map(|(h, _)| h.end()).collect();
            let ahead: Vec<Lsn> = ends.into_iter().filter(|end| *end > self.standby.flushed).collect();
            if !ahead.is_empty() {
                self.standby.flushed = ahead[self.rng.below(ahead.len() as u64) as usize];
                receiver.flushed(FlushedLsn(self.standby.flushed));
            }
        }
        assert!(receiver.commit().lsn() <= receiver.matched());
        assert!(receiver.redo_limit().lsn() <= self.standby.flushed);
        assert!(receiver.redo_limit().lsn() <= self.acked, "committed means acknowledged here");
        self.standby.applied = self.standby.applied.max(receiver.redo_limit().lsn());
        receiver.applied(AppliedLsn(self.standby.applied));
        if let Some(ack) = receiver.take_ack() {
            assert!(ack.flushed.lsn() <= self.standby.flushed, "an ack that is not true");
            link.up.push_back((receiver.session(), Message::Ack(ack)));
        }
    }

    fn chance_event(&mut self) {
        if self.link.is_none() {
            let far = self.rng.chance(0.3);
            let breaks_after = self.rng.below(if far { 2_000_000 } else { 60_000 }) as usize;
            self.connect(breaks_after);
        }
        match self.rng.below(400) {
            0..60 => self.write(),
            60..64 => self.crash_standby(),
            64 => self.change_leader(),
            65..70 => self.disconnect(),
            _ => {}
        }
    }

    fn turn(&mut self) {
        self.leader_turn();
        self.carry();
        self.standby_turn();
    }
}

fn run(seed: u64, turns: u32) -> (u32, u32) {
    let mut world = World::new(seed);
    for _ in 0..turns {
        world.chance_event();
        world.turn();
    }
    // The link heals: from any state the standby catches up.
    let mut healing = 0;
    while world.acked < world.leader.tip().end {
        if world.link.is_none() {
            world.connect(usize::MAX);
        }
        world.turn();
        healing += 1;
        assert!(healing < 20_000, "seed {seed}: no progress at {}", world.acked);
    }
    assert_eq!(world.standby.log.bytes(), world.leader.bytes(), "seed {seed}");
    assert_eq!(world.standby.log.history, world.leader.history, "seed {seed}");
    (world.matches, world.divergences)
}

#[test]
fn the_logs_end_equal_whatever_the_link_does() {
    let (mut matches, mut divergences) = (0, 0);
    for seed in 0..60 {
        let (m, d) = run(seed, 1500);
        matches += m;
        divergences += d;
    }
    assert!(matches > 500 && divergences > 20, "too tame: {matches} sessions, {divergences} forks");
}

/// The same world notices a standby that acknowledges what it has only received.
#[test]
#[should_panic(expected = "an ack that is not true")]
fn an_ack_before_the_flush_is_noticed() {
    let _bug = plant(Bug::AckBeforeFlush);
    run(1, 1500);
}

/// And a standby that refuses old-term frames never catches up again after a change of leader.
#[test]
#[should_panic(expected = "no progress")]
fn judging_frames_by_the_session_is_noticed() {
    let _bug = plant(Bug::JudgeFramesByPromisedTerm);
    for seed in 0..20 {
        run(seed, 1500);
    }
}
