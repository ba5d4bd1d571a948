//! Op ids: a change asked for twice under one id happens once, and both callers get the one answer.
//!
//! This table is the memory of one process. Changes of the leader and of the policy are in the log with their op ids
//! too (`role`), so that other nodes and later processes know them; for everything else the guard after a restart is
//! the request itself.

use std::collections::{BTreeMap, VecDeque};

use super::request::{Request, Verb};
use super::response::{ErrorCode, Response};
use crate::base::limits::{OP_WAITERS_MAX, OPS_REMEMBERED_MAX};

/// What to do with a request.
#[derive(Debug)]
pub enum Admitted<W> {
    /// It is new: carry it out and call [`OpTable::finished`] with the answer.
    New(W),
    /// Answered already, or not acceptable: send this back.
    Answer(W, Box<Response>),
    /// The same request is under way; the waiter is told together with the first one.
    Joined,
}

#[derive(Debug)]
struct Op<W> {
    verb: Verb,
    answer: Option<Response>,
    waiters: Vec<W>,
}

/// The changes of this process's life, newest `OPS_REMEMBERED_MAX`. `W` is whoever waits for an answer.
#[derive(Debug)]
pub struct OpTable<W> {
    ops: BTreeMap<String, Op<W>>,
    /// Finished ops in order of finishing: the oldest is forgotten first. Ops under way are never forgotten.
    finished: VecDeque<String>,
    under_way: usize,
    /// Callers of questions that take a while (a dry run), by op id; nothing about them is remembered.
    questions: BTreeMap<String, Vec<W>>,
}

impl<W> Default for OpTable<W> {
    fn default() -> Self {
        OpTable { ops: BTreeMap::new(), finished: VecDeque::new(), under_way: 0, questions: BTreeMap::new() }
    }
}

impl<W> OpTable<W> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges a request. Questions are always new; only changes are remembered.
    pub fn admit(&mut self, request: &Request, waiter: W) -> Admitted<W> {
        if !request.verb.changes() {
            return Admitted::New(waiter);
        }
        if let Some(op) = self.ops.get_mut(&request.op) {
            if op.verb != request.verb {
                let message = format!("op id {:?} was used for another request", request.op);
                let answer =
                    Response::failed(&request.op, ErrorCode::OpReused, message, "choose a new op id");
                return Admitted::Answer(waiter, Box::new(answer));
            }
            if let Some(answer) = &op.answer {
                return Admitted::Answer(waiter, Box::new(answer.clone()));
            }
            if op.waiters.len() < OP_WAITERS_MAX {
                op.waiters.push(waiter);
                return Admitted::Joined;
            }
            return Admitted::Answer(waiter, Box::new(too_many(&request.op)));
        }
        if self.under_way >= OPS_REMEMBERED_MAX {
            return Admitted::Answer(waiter, Box::new(too_many(&request.op)));
        }
        let op = Op { verb: request.verb.clone(), answer: None, waiters: Vec::new() };
        self.ops.insert(request.op.clone(), op);
        self.under_way += 1;
        Admitted::New(waiter)
    }

    /// Leaves the waiter of an admitted request here, until [`OpTable::finished`] gives it back.
    pub fn attach(&mut self, request: &Request, waiter: W) {
        match self.ops.get_mut(&request.op) {
            Some(op) if request.verb.changes() => op.waiters.push(waiter),
            _ => self.questions.entry(request.op.clone()).or_default().push(waiter),
        }
    }

    /// Notes the answer of a request that was admitted as new, and gives back who else waits for it. An answer that
    /// says "nothing happened, ask again" is not remembered: asking again must be possible. Nor is "nobody knows", where
    /// the log may know better by now.
    pub fn finished(&mut self, request: &Request, answer: &Response) -> Vec<W> {
        if !request.verb.changes() {
            return self.questions.remove(&request.op).unwrap_or_default();
        }
        let Some(op) = self.ops.get_mut(&request.op) else { return Vec::new() };
        let waiters = std::mem::take(&mut op.waiters);
        if op.answer.is_none() {
            self.under_way -= 1;
        }
        let again = |code: ErrorCode| match code {
            ErrorCode::Busy => true,
            ErrorCode::UnknownOutcome => request.verb.is_kept_by_all(),
            _ => false,
        };
        if answer.error.as_ref().is_some_and(|error| again(error.code)) {
            self.ops.remove(&request.op);
            return waiters;
        }
        if op.answer.replace(answer.clone()).is_none() {
            self.finished.push_back(request.op.clone());
        }
        if self.finished.len() > OPS_REMEMBERED_MAX {
            let oldest = self.finished.pop_front().expect("just seen");
            self.ops.remove(&oldest);
        }
        waiters
    }
}

fn too_many(op: &str) -> Response {
    Response::failed(op, ErrorCode::Busy, "too many requests wait already", "ask again in a moment")
}

#[cfg(test)]
mod tests {
    use super::super::request::{Failover, StopMode};
    use super::*;
    use serde_json::json;

    fn failover(op: &str) -> Request {
        Request::new(op, Verb::Failover(Failover::default()))
    }

    #[test]
    fn a_change_happens_once_and_everybody_gets_its_answer() {
        let mut table = OpTable::new();
        let request = failover("a");
        assert!(matches!(table.admit(&request, 1), Admitted::New(1)));
        assert!(matches!(table.admit(&request, 2), Admitted::Joined));
        let answer = Response::done(&request, json!({"term": 2}));
        assert_eq!(table.finished(&request, &answer), [2]);
        match table.admit(&request, 3) {
            Admitted::Answer(3, again) => assert_eq!(*again, answer),
            other => panic!("asked again it must get the same answer, got {other:?}"),
        }
    }

    #[test]
    fn a_waiter_left_behind_comes_back_with_the_answer() {
        let dry = Verb::Failover(Failover { dry_run: true, ..Failover::default() });
        for request in [failover("a"), Request::new("d", dry)] {
            let mut table = OpTable::new();
            let Admitted::New(waiter) = table.admit(&request, 7) else { panic!("it is new") };
            table.attach(&request, waiter);
            let answer = Response::done(&request, json!(1));
            assert_eq!(table.finished(&request, &answer), [7]);
            assert_eq!(table.finished(&request, &answer), [0; 0]);
        }
    }

    #[test]
    fn one_id_cannot_name_two_requests() {
        let mut table = OpTable::new();
        table.admit(&failover("a"), ());
        let stop = Request::new("a", Verb::Stop { mode: StopMode::Fast });
        match table.admit(&stop, ()) {
            Admitted::Answer((), answer) => assert_eq!(answer.error.unwrap().code, ErrorCode::OpReused),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_busy_answer_is_forgotten_so_that_asking_again_works() {
        let mut table = OpTable::new();
        let request = failover("a");
        table.admit(&request, ());
        table.finished(&request, &too_many("a"));
        assert!(matches!(table.admit(&request, ()), Admitted::New(())));
    }

    #[test]
    fn what_nobody_knew_is_asked_again_where_the_log_may_know() {
        let unknown = |request: &Request| {
            Response::failed(&request.op, ErrorCode::UnknownOutcome, "not seen", "ask again")
        };
        let mut table = OpTable::new();
        let request = failover("a");
        table.admit(&request, ());
        table.finished(&request, &unknown(&request));
        assert!(matches!(table.admit(&request, ()), Admitted::New(())));
        let reload = Request::new("r", Verb::Reload { text: String::new(), folder: String::new() });
        table.admit(&reload, ());
        table.finished(&reload, &unknown(&reload));
        assert!(matches!(table.admit(&reload, ()), Admitted::Answer((), _)), "it might happen twice");
    }

    #[test]
    fn questions_are_never_remembered_and_memory_is_bounded() {
        let mut table = OpTable::new();
        let question = Request::new("q", Verb::Status);
        for _ in 0..3 {
            assert!(matches!(table.admit(&question, ()), Admitted::New(())));
        }
        for i in 0..3 * OPS_REMEMBERED_MAX {
            let request = failover(&format!("op{i}"));
            assert!(matches!(table.admit(&request, ()), Admitted::New(())));
            table.finished(&request, &Response::done(&request, json!(i)));
        }
        assert_eq!(table.ops.len(), OPS_REMEMBERED_MAX);
        let newest = failover(&format!("op{}", 3 * OPS_REMEMBERED_MAX - 1));
        assert!(matches!(table.admit(&newest, ()), Admitted::Answer((), _)));
    }
}
