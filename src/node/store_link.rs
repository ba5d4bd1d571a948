//! The way to the control store: a thread of its own, because a store folder may hang.
//!
//! The loop hands questions over a bounded queue and never waits; answers come back through a channel and the loop's
//! waker. A queue that is full means that the store hangs: the question is answered as silence. Without a thread the
//! questions wait for whoever runs the node, which is how the simulator plays the store.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

use crate::base::ClusterId;
use crate::base::limits::STORE_QUEUE_MAX;
use crate::cluster::StoreStatus;
use crate::cluster::control_store::{ControlStore, Revision, StoreError, Swap};
use crate::io::{Seam, Waker};
use crate::role::{Input, StoreAnswer, StoreRequest};

use super::Node;
use super::dir_store::DirStore;

/// A question with the ticket that its answer names.
pub type Question = (u64, StoreRequest);

/// Questions go in, answers come out.
type Door = (SyncSender<Question>, Receiver<(u64, StoreAnswer)>);

/// The loop's end.
#[derive(Default)]
pub struct StoreLink {
    door: Option<Door>,
    /// Questions that nobody has fetched yet, where there is no thread.
    waiting: VecDeque<Question>,
}

impl<S: Seam> Node<S> {
    /// Starts the thread that speaks with the store in `folder`.
    pub fn attach_store(&mut self, folder: &Path, waker: Arc<dyn Waker>) -> io::Result<()> {
        let (ask, questions) = sync_channel::<Question>(STORE_QUEUE_MAX);
        let (tell, answers) = channel();
        let mut keeper = Keeper::new(folder, self.role.control().cluster);
        // Nobody waits for its end: it may hang in the store when the process ends.
        std::thread::Builder::new().name("control-store".into()).spawn(move || {
            for (ticket, request) in questions {
                if tell.send((ticket, keeper.carry_out(request))).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        self.store_link.door = Some((ask, answers));
        Ok(())
    }

    pub(super) fn ask_store(&mut self, ticket: u64, request: StoreRequest) {
        let refused = match &self.store_link.door {
            Some((ask, _)) => ask.try_send((ticket, request)).is_err(),
            None if self.store_link.waiting.len() < STORE_QUEUE_MAX => {
                self.store_link.waiting.push_back((ticket, request));
                false
            }
            None => true,
        };
        if refused {
            self.tell_role(Input::StoreAnswered { ticket, answer: StoreAnswer::Silent });
        }
    }

    pub(super) fn take_store_answers(&mut self) {
        let Some((_, answers)) = &self.store_link.door else { return };
        let came: Vec<(u64, StoreAnswer)> = answers.try_iter().collect();
        for (ticket, answer) in came {
            self.tell_role(Input::StoreAnswered { ticket, answer });
        }
    }

    /// The store as this node sees it.
    pub(super) fn store_status(&self) -> Option<StoreStatus> {
        let seen = self.role.store_view()?;
        Some(StoreStatus {
            place: self.config.store.to_string(),
            reachable: seen.reachable,
            revision: seen.revision,
            term: seen.value.map(|value| value.term.number),
            leader: seen.value.map(|value| value.leader.0),
            generation: seen.value.map(|value| value.policy.number),
            pending: seen.value.map_or(vec![], |value| value.pending.iter().map(|g| g.number).collect()),
            trouble: seen.trouble.map(str::to_string),
        })
    }

    /// Without a thread: the next question to the store. Answer it with [`Node::store_answer`], late or never.
    pub fn store_question(&mut self) -> Option<Question> {
        self.store_link.waiting.pop_front()
    }

    pub fn store_answer(&mut self, ticket: u64, answer: StoreAnswer) {
        self.tell_role(Input::StoreAnswered { ticket, answer });
        self.pump_role();
    }
}

/// The key of a cluster's policy.
pub fn policy_key(cluster: ClusterId) -> String {
    format!("c/{:032x}/policy", cluster.0)
}

/// The thread's end.
struct Keeper {
    folder: PathBuf,
    key: String,
    store: Option<DirStore>,
}

impl Keeper {
    fn new(folder: &Path, cluster: ClusterId) -> Keeper {
        Keeper { folder: folder.to_path_buf(), key: policy_key(cluster), store: None }
    }

    fn carry_out(&mut self, request: StoreRequest) -> StoreAnswer {
        let answer = self.try_to(request);
        if let Err(error) = &answer {
            tracing::warn!(%error, folder = %self.folder.display(), "control store");
        }
        match answer {
            Ok(answer) => answer,
            Err(StoreError::Unknown(_)) => StoreAnswer::Unknown,
            Err(StoreError::Refused(_) | StoreError::Unreachable(_)) => StoreAnswer::Silent,
        }
    }

    fn try_to(&mut self, request: StoreRequest) -> Result<StoreAnswer, StoreError> {
        let store = match &mut self.store {
            Some(store) => store,
            None => self.store.insert(DirStore::open(&self.folder)?),
        };
        let stands = |entry: Option<crate::cluster::control_store::Entry>| StoreAnswer::Stands {
            revision: entry.as_ref().map_or(0, |entry| entry.revision.0),
            value: entry.map(|entry| entry.value),
        };
        match request {
            StoreRequest::Read => store.get(&self.key).map(stands),
            StoreRequest::Swap { expect, value } => {
                store.swap(&self.key, Revision(expect), &value).map(|swap| match swap {
                    Swap::Done(revision) => StoreAnswer::Done { revision: revision.0 },
                    Swap::Lost(entry) => stands(entry),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_meet_at_one_key_and_one_of_them_loses() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("store");
        let mut keepers = [1, 1].map(|cluster| Keeper::new(&folder, ClusterId(cluster)));
        let nothing = StoreAnswer::Stands { revision: 0, value: None };
        assert_eq!(keepers[0].carry_out(StoreRequest::Read), nothing);
        let swap = |value: &[u8]| StoreRequest::Swap { expect: 0, value: value.to_vec() };
        assert_eq!(keepers[0].carry_out(swap(b"one")), StoreAnswer::Done { revision: 1 });
        let lost = StoreAnswer::Stands { revision: 1, value: Some(b"one".to_vec()) };
        assert_eq!(keepers[1].carry_out(swap(b"two")), lost);
        assert_eq!(keepers[1].carry_out(StoreRequest::Read), lost);
        assert_eq!(Keeper::new(&folder, ClusterId(2)).carry_out(StoreRequest::Read), nothing);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_silence() {
        let place = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(&place.path().join("no/parent"), ClusterId(1));
        assert_eq!(keeper.carry_out(StoreRequest::Read), StoreAnswer::Silent);
    }
}
