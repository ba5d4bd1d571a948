//! The answers, their error codes, and the exit codes of the command line.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request::Request;

/// Exit code of every `baton` verb.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    /// It was tried and it failed.
    Failed = 1,
    /// The command line or the configuration is wrong; nothing was tried.
    Usage = 2,
    /// The node does not run, or does not answer.
    Down = 3,
    /// The node refused: wrong role, or a rule forbids it now. Nothing changed.
    Refused = 4,
    /// Time ran out: it may or may not have happened.
    Unknown = 5,
    /// A check found a broken promise (bench, demo).
    Broken = 6,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// What kind of error; stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The line is no request.
    Malformed,
    /// The line is too long.
    TooLong,
    /// The request has a version this node does not know.
    UnsupportedVersion,
    /// The op id was used for another request.
    OpReused,
    /// The node's loop did not take the request or did not answer in time; nothing is known to have changed.
    Busy,
    /// A rule forbids it now; nothing changed.
    Refused,
    /// The node has the wrong role for it; nothing changed.
    WrongRole,
    /// Not enough voters agree or answer; nothing changed.
    NoQuorum,
    /// It could not be finished in time and was undone.
    Timeout,
    /// It could not be finished in time and may still happen.
    UnknownOutcome,
    /// It was tried and it failed.
    Failed,
    /// The node is stopping.
    Stopping,
    /// The caller may not ask.
    Forbidden,
}

impl ErrorCode {
    pub const ALL: [ErrorCode; 13] = [
        ErrorCode::Malformed,
        ErrorCode::TooLong,
        ErrorCode::UnsupportedVersion,
        ErrorCode::OpReused,
        ErrorCode::Busy,
        ErrorCode::Refused,
        ErrorCode::WrongRole,
        ErrorCode::NoQuorum,
        ErrorCode::Timeout,
        ErrorCode::UnknownOutcome,
        ErrorCode::Failed,
        ErrorCode::Stopping,
        ErrorCode::Forbidden,
    ];

    pub fn exit(self) -> Exit {
        match self {
            ErrorCode::Malformed
            | ErrorCode::TooLong
            | ErrorCode::UnsupportedVersion
            | ErrorCode::OpReused => Exit::Usage,
            ErrorCode::Busy | ErrorCode::Timeout | ErrorCode::UnknownOutcome => Exit::Unknown,
            ErrorCode::Refused | ErrorCode::WrongRole | ErrorCode::NoQuorum | ErrorCode::Forbidden => {
                Exit::Refused
            }
            ErrorCode::Failed => Exit::Failed,
            ErrorCode::Stopping => Exit::Down,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AdminError {
    pub code: ErrorCode,
    /// One sentence: what is wrong.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}
impl std::error::Error for AdminError {}

/// The answer to one request. An error may still carry a `result`: the last known status of a busy node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Response {
    pub v: u16,
    pub op: String,
    pub ok: bool,
    #[serde(default)]
    pub result: Value,
    #[serde(default)]
    pub error: Option<AdminError>,
}

impl Response {
    pub fn done(request: &Request, result: Value) -> Response {
        Response { v: super::VERSION, op: request.op.clone(), ok: true, result, error: None }
    }

    /// A result that serialises; one that does not is a bug of the node, answered as a failure.
    pub fn done_with(request: &Request, result: &impl Serialize) -> Response {
        match serde_json::to_value(result) {
            Ok(value) => Response::done(request, value),
            Err(error) => {
                let message = format!("the answer could not be written: {error}");
                Response::failed(&request.op, ErrorCode::Failed, message, "report this")
            }
        }
    }

    pub fn failed(
        op: &str,
        code: ErrorCode,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Response {
        let error = AdminError { code, message: message.into(), hint: hint.into() };
        Response { v: super::VERSION, op: op.to_string(), ok: false, result: Value::Null, error: Some(error) }
    }

    pub fn exit(&self) -> Exit {
        match &self.error {
            Some(error) => error.code.exit(),
            None if self.ok => Exit::Ok,
            None => Exit::Failed,
        }
    }
}

/// One reason why log is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Keeper {
    /// `recovery`, `standby 2`, `checkpoint of shard 7`, `build of node 4`, `senders in memory`...
    pub reason: String,
    /// First position that must stay.
    pub from_lsn: u64,
    /// Log bytes from there to the end.
    pub bytes: u64,
}

/// The answer to `wal_keepers`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WalKeepers {
    pub first_lsn: u64,
    pub end_lsn: u64,
    pub kept_bytes: u64,
    pub budget_bytes: u64,
    pub keepers: Vec<Keeper>,
}
