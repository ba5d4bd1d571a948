//! Rolling upgrades: in which format this log is written, and the order to go on to the newest one.
//!
//! Nodes of two neighbouring versions work together in the older one. When all of them run the newer build,
//! `baton cluster finalize-upgrade` makes the primary write the newer format, for good: the control file of every node
//! that holds such a frame names it, and an older build refuses the folder before it touches anything.

use crate::admin::{ErrorCode, Request, Response};
use crate::base::format;
use crate::cluster::query::FormatStatus;
use crate::io::Seam;
use crate::role::Input;

use super::Node;
use super::admin::Answer;

/// A format that is on its way into the control file.
pub struct Finalizing {
    version: u16,
    /// The control image that names it.
    image: u64,
    request: Request,
    reply: Answer,
}

impl<S: Seam> Node<S> {
    pub(super) fn format_status(&self) -> FormatStatus {
        FormatStatus {
            written: self.role.control().format,
            speaks_oldest: format::oldest(),
            speaks_newest: format::newest(),
        }
    }

    /// Members that keep the newest format of this build from being written, each with the reason.
    fn not_ready(&self, wanted: u16) -> Vec<String> {
        let members = self.config.peers();
        members
            .filter_map(|member| {
                let session = self.links.any_to(member.node).and_then(|conn| self.links.session(conn));
                match session {
                    None => Some(format!("node {} is not connected", member.node)),
                    Some(session) if session.version < wanted => {
                        Some(format!("node {} speaks up to format {}", member.node, session.version))
                    }
                    Some(_) => None,
                }
            })
            .collect()
    }

    pub(super) fn finalize_upgrade(&mut self, request: Request, reply: Answer) {
        if self.role.leading().is_none() {
            return self.pass_on(request, reply);
        }
        let (written, wanted) = (self.role.control().format, format::newest());
        if written == wanted {
            let done = serde_json::json!({ "format": wanted, "changed": false });
            return reply(Response::done(&request, done));
        }
        let not_ready = self.not_ready(wanted);
        if !not_ready.is_empty() || self.finalizing.is_some() || !self.serving {
            let text = match not_ready.is_empty() {
                true => "the primary is not ready".to_string(),
                false => format!("format {wanted} cannot be finalized yet: {}", not_ready.join("; ")),
            };
            let hint = "upgrade and start every member, then ask again; nothing was changed";
            return reply(Response::failed(&request.op, ErrorCode::Refused, text, hint));
        }
        self.tell_role(Input::FormatWanted { version: wanted });
        self.pump_role();
        let image = self.role.control().generation;
        self.asked("finalize-upgrade", &request.op);
        self.note_format(written, wanted);
        self.chronicle.asked.clear();
        tracing::info!(
            from = written,
            to = wanted,
            "finalizing the upgrade: a newer format is written from now on"
        );
        self.finalizing = Some(Finalizing { version: wanted, image, request, reply });
    }

    /// The control file is durable up to this image: what waited for it goes on.
    pub(super) fn format_persisted(&mut self, image: u64) {
        let Some(waiting) = self.finalizing.take_if(|waiting| waiting.image <= image) else { return };
        self.log.wal.write_format(waiting.version);
        let done = serde_json::json!({ "format": waiting.version, "changed": true });
        (waiting.reply)(Response::done(&waiting.request, done));
    }

    /// A frame of the newer format came into this log: from here on no older build may open the folder.
    pub(super) fn format_received(&mut self, version: u16) {
        if version > self.role.control().format {
            tracing::info!(version, "the cluster writes a newer format from here on");
            self.note_format(self.role.control().format, version);
            self.tell_role(Input::FormatWanted { version });
        }
    }

    fn note_format(&mut self, from: u16, to: u16) {
        if self.chronicle.format < to {
            self.chronicle.format = to;
            let why = "for good: an older build refuses this folder".into();
            self.note("format", &from.to_string(), &to.to_string(), None, why);
        }
    }
}
