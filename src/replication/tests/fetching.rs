//! Bounded ranges of the log.

use super::{CLUSTER, TestLog, term};
use crate::base::Lsn;
use crate::replication::chain::{Chain, ChainError};
use crate::replication::fetch::*;
use crate::replication::sender::{Step, wal_removed};
use crate::replication::wire::*;

fn long_log() -> TestLog {
    let mut log = TestLog::new();
    log.begin(term(1));
    (0..40u8).for_each(|i| log.append(&vec![i; 900_000]));
    log
}

fn fetcher(log: &TestLog, have: usize, to: Lsn) -> (TestLog, Fetcher) {
    let mut own = log.clone();
    own.truncate(log.frames[have].0.first);
    let chain = Chain::new(CLUSTER, log.history.clone(), own.tip());
    (own, Fetcher::new(chain, to))
}

/// Serves one request to its end; says what the fetcher made of it.
fn serve(log: &TestLog, own: &mut TestLog, fetcher: &mut Fetcher) -> Fetched {
    let Message::LogFetch { from, to } = fetcher.request() else { panic!() };
    assert!(to.since(from) <= RANGE_BYTES);
    let mut server = FetchServer::new(from, to);
    let mut decoder = Decoder::new();
    decoder.authenticated(CLUSTER, 1);
    loop {
        let view = log.view(term(1));
        let out = match server.next(&view, log) {
            Step::Load { from, bytes } => server.loaded(&view, Ok(log.read(from, bytes))),
            step => step,
        };
        let Step::Send(out) = out else { panic!("{out:?}") };
        decoder.push(&out.to_vec()).unwrap();
        match decoder.next().unwrap().expect("a whole message").message {
            Message::FetchedFrames { head, bytes } => {
                for frame in fetcher.on_frames(&head, bytes).unwrap() {
                    let slice = crate::base::SharedSlice::copy_of(&frame.used);
                    own.frames.push((frame.header, slice));
                }
            }
            Message::FetchDone { end } => {
                assert!(server.is_over() && end == fetcher.chain().tip().end);
                return fetcher.on_done();
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_range_is_fetched_in_bounded_steps_from_disk_and_memory() {
    let mut log = long_log();
    log.memory_from = log.frames[20].0.first;
    let (mut own, mut fetcher) = fetcher(&log, 3, log.tip().end);
    let mut rounds = 0;
    while serve(&log, &mut own, &mut fetcher) == Fetched::More {
        rounds += 1;
        assert!(rounds < 10);
    }
    assert!(rounds >= 1, "the range is larger than one request");
    assert_eq!(own.bytes(), log.bytes());
}

#[test]
fn a_fetch_ends_at_the_frame_that_reaches_its_end() {
    let log = long_log();
    let to = log.frames[5].0.end();
    let (mut own, mut fetcher) = fetcher(&log, 3, to);
    assert_eq!(serve(&log, &mut own, &mut fetcher), Fetched::Done);
    assert_eq!(own.tip().end, to);
    let late =
        FramesHead { first: to, end: to + 4096, commit: Default::default(), count: 1, eager_acks: false };
    assert!(matches!(fetcher.on_frames(&late, Default::default()), Err(ChainError::Head(_))));
}

#[test]
fn a_source_that_is_too_short_or_has_lost_the_log_says_so() {
    let mut log = long_log();
    let end = log.tip().end;
    let (mut own, mut beyond) = fetcher(&log, 38, end + 4096);
    assert_eq!(serve(&log, &mut own, &mut beyond), Fetched::Short);
    log.oldest = log.frames[10].0.first;
    let mut server = FetchServer::new(log.frames[3].0.first, end);
    let Step::Refuse(refusal) = server.next(&log.view(term(1)), &log) else { panic!() };
    assert_eq!(refusal, wal_removed(log.frames[3].0.first, log.oldest));
    assert!(matches!(server.next(&log.view(term(1)), &log), Step::Idle));
}

#[test]
fn a_made_up_position_is_refused() {
    let mut log = long_log();
    let (at, end) = (log.frames[2].0.first, log.tip().end);
    log.memory_from = end;
    for loaded in [log.read(log.frames[4].0.first, 1), Vec::new()] {
        let mut server = FetchServer::new(at, end);
        let view = log.view(term(1));
        assert!(matches!(server.next(&view, &log), Step::Load { .. }));
        let Step::Refuse(refusal) = server.loaded(&view, Ok(loaded)) else { panic!() };
        assert_eq!(refusal.reason, RefuseReason::ChainMismatch { at });
        assert!(server.is_over());
    }
}
