//! Requests that another node must carry out: they travel in the status messages of the peer link, and the answer
//! comes back the same way. The peer is authenticated; what it may ask for is what its own operator may.

use serde::{Deserialize, Serialize};

use crate::admin::{ErrorCode, Request, Response, Verb};
use crate::base::limits::{ADMIN_LINE_BYTES_MAX, PASSED_ON_MAX};
use crate::base::{Mono, NodeId};
use crate::io::{ConnId, Seam};
use crate::replication::Message;

use super::Node;
use super::admin::Answer;

/// A request that waits for another node's answer.
pub struct PassedOn {
    request: Request,
    reply: Answer,
    to: NodeId,
    until: Mono,
}

/// What stands in a status request that asks for more than a row.
#[derive(Serialize, Deserialize)]
struct Asked {
    number: u64,
    /// The request line, as on the admin socket.
    line: String,
}

/// What stands in a status reply that answers it.
#[derive(Serialize, Deserialize)]
struct Answered {
    number: u64,
    line: String,
}

impl<S: Seam> Node<S> {
    /// Passes a request to the primary that this node follows.
    pub(super) fn pass_on(&mut self, request: Request, reply: Answer) {
        let leader = self.role.following().map(|(node, _)| node);
        let refuse = |text: String| {
            Response::failed(
                &request.op,
                ErrorCode::WrongRole,
                text,
                "ask the primary itself; nothing was changed",
            )
        };
        let Some(to) = leader else {
            return reply(refuse("this node is not the primary and follows none".into()));
        };
        let Some(conn) = self.links.any_to(to) else {
            return reply(refuse(format!("the primary, node {to}, cannot be reached from here")));
        };
        if self.admin.passed_on.len() >= PASSED_ON_MAX {
            let text = "too many requests wait for the primary already";
            return reply(Response::failed(&request.op, ErrorCode::Busy, text, "ask again in a moment"));
        }
        self.admin.next_op += 1;
        let number = self.admin.next_op;
        let line = String::from_utf8_lossy(&crate::admin::encode_request(&request)).into_owned();
        let json = serde_json::to_vec(&Asked { number, line }).unwrap_or_default();
        let until = self.now + request.verb.patience();
        self.admin.passed_on.insert(number, PassedOn { request, reply, to, until });
        self.links.send(&mut self.seam, conn, self.now, &Message::StatusRequest(json));
    }

    /// A peer passes a request on to this node.
    pub(super) fn asked_by_peer(&mut self, conn: ConnId, from: NodeId, json: &[u8]) {
        let Ok(asked) = serde_json::from_slice::<Asked>(json) else {
            tracing::warn!(%from, "a request that a peer passed on cannot be read");
            return;
        };
        let number = asked.number;
        let request = match crate::admin::decode_request(asked.line.as_bytes()) {
            // Only the primary changes policies and formats; nothing else travels.
            Ok(request)
                if matches!(request.verb, Verb::PolicySet(_) | Verb::FinalizeUpgrade)
                    && self.role.leading().is_some() =>
            {
                request
            }
            Ok(request) => {
                let text = "this node is not the primary";
                let response =
                    Response::failed(&request.op, ErrorCode::WrongRole, text, "look at `baton query`");
                return self.answer_peer(conn, number, &response);
            }
            Err(response) => return self.answer_peer(conn, number, &response),
        };
        // The answer comes in a later turn, from this same thread.
        let slot = std::sync::Arc::new(std::sync::Mutex::new(None));
        let place = slot.clone();
        self.admin.for_peers.push((conn, number, slot));
        let put = move |response| {
            *place.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(response);
        };
        self.admin_request(request, Box::new(put));
        self.answer_peers();
    }

    /// Sends the answers that are there.
    pub(super) fn answer_peers(&mut self) {
        for (conn, number, slot) in std::mem::take(&mut self.admin.for_peers) {
            let response = slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            match response {
                Some(response) => self.answer_peer(conn, number, &response),
                None if self.links.owns(conn) => self.admin.for_peers.push((conn, number, slot)),
                None => {}
            }
        }
    }

    fn answer_peer(&mut self, conn: ConnId, number: u64, response: &Response) {
        let line = String::from_utf8_lossy(&crate::admin::encode_response(response)).into_owned();
        let json = serde_json::to_vec(&Answered { number, line }).unwrap_or_default();
        if json.len() <= 2 * ADMIN_LINE_BYTES_MAX {
            self.links.send(&mut self.seam, conn, self.now, &Message::StatusReply(json));
        }
    }

    /// Takes a status reply that answers a passed-on request; says whether it was one.
    pub(super) fn answered_by_peer(&mut self, from: NodeId, json: &[u8]) -> bool {
        let Ok(answered) = serde_json::from_slice::<Answered>(json) else { return false };
        let mine = self.admin.passed_on.get(&answered.number).is_some_and(|passed| passed.to == from);
        if mine {
            let passed = self.admin.passed_on.remove(&answered.number).expect("just seen");
            let response = crate::admin::decode_response(answered.line.trim_end().as_bytes());
            let response = response.unwrap_or_else(|error| {
                Response::failed(&passed.request.op, ErrorCode::Failed, error, "look at `baton query`")
            });
            // An older build has nothing to finalize, and does not know that there is more.
            let format = response.result["format"].as_u64();
            let newest = u64::from(crate::base::format::newest());
            let older = matches!(passed.request.verb, Verb::FinalizeUpgrade)
                && format.is_some_and(|format| format < newest);
            (passed.reply)(match older {
                true => {
                    let text = format!(
                        "the primary, node {from}, runs an older build that does not speak format {newest}"
                    );
                    let hint =
                        "nothing was changed; `baton switchover` to an upgraded node, then upgrade that one";
                    Response::failed(&passed.request.op, ErrorCode::Refused, text, hint)
                }
                false => response,
            });
        }
        true
    }

    pub(super) fn passed_on_timers(&mut self) {
        self.answer_peers();
        let late: Vec<u64> = self
            .admin
            .passed_on
            .iter()
            .filter(|(_, passed)| self.now > passed.until)
            .map(|(n, _)| *n)
            .collect();
        for number in late {
            let passed = self.admin.passed_on.remove(&number).expect("just seen");
            let text = format!("node {} did not answer in time: it may still happen", passed.to);
            let hint = "look at `baton query` on the primary";
            (passed.reply)(Response::failed(&passed.request.op, ErrorCode::UnknownOutcome, text, hint));
        }
    }
}
