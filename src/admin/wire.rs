//! Lines of JSON, both ways, length-bounded. Bytes in, values out; no socket.

use serde_json::Value;

use super::request::{Request, Verb};
use super::response::{ErrorCode, Response};
use crate::base::limits::{ADMIN_LINE_BYTES_MAX, OP_ID_BYTES_MAX};

/// One line with its line feed.
pub fn encode_request(request: &Request) -> Vec<u8> {
    let mut line = serde_json::to_vec(request).expect("a request is plain data");
    line.push(b'\n');
    line
}

/// One line with its line feed. An answer too long for a line becomes an error answer of the same op.
pub fn encode_response(response: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(response).expect("an answer is plain data");
    if line.len() >= ADMIN_LINE_BYTES_MAX {
        let message = format!("the answer has {} bytes, more than a line may have", line.len());
        let short = Response::failed(&response.op, ErrorCode::Failed, message, "ask for less at a time");
        line = serde_json::to_vec(&short).expect("an answer is plain data");
    }
    line.push(b'\n');
    line
}

fn malformed(op: &str, what: impl std::fmt::Display) -> Response {
    let hint = "a request is one line like {\"v\":1,\"op\":\"x1\",\"verb\":\"status\"}";
    Response::failed(op, ErrorCode::Malformed, format!("not a request: {what}"), hint)
}

/// Reads a request. The error is the answer to send back, boxed because it is rare and large.
pub fn decode_request(line: &[u8]) -> Result<Request, Box<Response>> {
    let value: Value = serde_json::from_slice(line).map_err(|error| Box::new(malformed("", error)))?;
    let Value::Object(mut fields) = value else {
        return Err(Box::new(malformed("", "it is no JSON object")));
    };
    let op = match fields.remove("op") {
        Some(Value::String(op)) if is_op(&op) => op,
        Some(_) => return Err(Box::new(malformed("", "op is not 1 to 64 printable characters"))),
        None => return Err(Box::new(malformed("", "it has no op"))),
    };
    let version = match fields.remove("v") {
        None => super::VERSION,
        Some(value) => match value.as_u64().and_then(|v| u16::try_from(v).ok()) {
            Some(version) if version >= 1 => version,
            _ => return Err(Box::new(malformed(&op, "v is no version"))),
        },
    };
    if version > super::VERSION {
        let message = format!("the request has version {version}, this node knows up to {}", super::VERSION);
        let hint = "use the baton command of this node's version";
        return Err(Box::new(Response::failed(&op, ErrorCode::UnsupportedVersion, message, hint)));
    }
    let other = fields.keys().find(|name| *name != "verb").cloned();
    let verb: Verb =
        serde_json::from_value(Value::Object(fields)).map_err(|error| Box::new(malformed(&op, error)))?;
    // The variants with fields refuse strange ones by themselves.
    if let Some(name) = other.filter(|_| verb.has_no_fields()) {
        let what = format!("`{}` has no field `{name}`", verb.name());
        return Err(Box::new(malformed(&op, what)));
    }
    Ok(Request { v: version, op, verb })
}

fn is_op(op: &str) -> bool {
    (1..=OP_ID_BYTES_MAX).contains(&op.len()) && op.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reads an answer.
pub fn decode_response(line: &[u8]) -> Result<Response, String> {
    serde_json::from_slice(line).map_err(|error| format!("the node's answer is not an answer: {error}"))
}

/// Cuts a stream of bytes into lines. Memory is bounded by the longest legal line.
#[derive(Debug, Default)]
pub struct LineSplitter {
    pending: Vec<u8>,
}

/// The sender's line is longer than any request or answer; the connection is to be closed after saying so.
#[derive(Debug, PartialEq, Eq)]
pub struct LineTooLong;

impl LineSplitter {
    pub fn new() -> LineSplitter {
        LineSplitter::default()
    }

    /// Takes bytes and gives back the whole lines, without line feeds.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, LineTooLong> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = bytes.split_at(end);
            if self.pending.len() + head.len() > ADMIN_LINE_BYTES_MAX {
                return Err(LineTooLong);
            }
            let mut line = std::mem::take(&mut self.pending);
            line.extend_from_slice(head);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if !line.is_empty() {
                lines.push(line);
            }
            bytes = &tail[1..];
        }
        if self.pending.len() + bytes.len() > ADMIN_LINE_BYTES_MAX {
            return Err(LineTooLong);
        }
        self.pending.extend_from_slice(bytes);
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::{Failover, StopMode};
    use super::*;
    use proptest::prelude::*;

    fn requests() -> Vec<Request> {
        let verbs = vec![
            Verb::Ping,
            Verb::Status,
            Verb::Query,
            Verb::ClusterStatus { detail: true },
            Verb::Failover(Failover {
                alone: true,
                expect_term: Some(7),
                timeout_ms: 5,
                ..Failover::default()
            }),
            Verb::Stop { mode: StopMode::Immediate },
            Verb::WalKeepers,
            Verb::ConfigShow,
            Verb::Metrics,
            Verb::PolicyShow,
        ];
        verbs.into_iter().enumerate().map(|(i, verb)| Request::new(format!("op-{i}"), verb)).collect()
    }

    #[test]
    fn requests_survive_their_line_and_carry_their_verb() {
        for request in requests() {
            let line = encode_request(&request);
            assert_eq!(decode_request(&line).unwrap(), request);
            let json: Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(json["verb"], request.verb.name());
        }
    }

    #[test]
    fn left_out_fields_have_defaults_and_misspelt_ones_are_refused() {
        let verb = decode_request(br#"{"op":"a","verb":"failover"}"#).unwrap().verb;
        assert_eq!(verb, Verb::Failover(Failover::default()));
        let verb = decode_request(br#"{"op":"a","verb":"stop"}"#).unwrap().verb;
        assert_eq!(verb, Verb::Stop { mode: StopMode::Fast });
        for bad in [
            r#"{"op":"a","verb":"failover","dryrun":true}"#,
            r#"{"op":"a","verb":"stop","mode":"smart"}"#,
            r#"{"op":"a","verb":"status","detail":true}"#,
            r#"{"op":"a","verb":"reboot"}"#,
            r#"{"op":"a"}"#,
            r#"{"verb":"ping"}"#,
            r#"{"op":"","verb":"ping"}"#,
            r#"{"op":7,"verb":"ping"}"#,
            r#"{"op":"a","v":0,"verb":"ping"}"#,
            r#"[1]"#,
            "",
            "nonsense",
        ] {
            let answer = decode_request(bad.as_bytes()).unwrap_err();
            assert_eq!(answer.error.as_ref().unwrap().code, ErrorCode::Malformed, "{bad}");
            assert!(!answer.ok);
        }
        let answer = decode_request(br#"{"op":"a","v":99,"verb":"ping"}"#).unwrap_err();
        assert_eq!((answer.op.as_str(), answer.error.unwrap().code), ("a", ErrorCode::UnsupportedVersion));
    }

    #[test]
    fn an_answer_too_long_for_a_line_becomes_an_error() {
        let request = Request::new("x", Verb::Metrics);
        let response = Response::done(&request, Value::String("m".repeat(ADMIN_LINE_BYTES_MAX)));
        let line = encode_response(&response);
        assert!(line.len() < 1000);
        let back = decode_response(&line).unwrap();
        assert_eq!((back.op.as_str(), back.ok), ("x", false));
    }

    #[test]
    fn a_line_without_end_is_cut_off_at_the_bound() {
        let mut splitter = LineSplitter::new();
        let chunk = vec![b'x'; 64 << 10];
        let mut taken = 0;
        while splitter.push(&chunk).is_ok() {
            taken += chunk.len();
            assert!(taken <= ADMIN_LINE_BYTES_MAX);
        }
        assert_eq!(taken, ADMIN_LINE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe_to_read(bytes: Vec<u8>) {
            let _ = decode_request(&bytes);
            let _ = decode_response(&bytes);
        }

        #[test]
        fn any_json_is_safe_to_read(op in ".{0,80}", verb in ".{0,20}", v: i64, extra in ".{0,20}") {
            let value = serde_json::json!({"op": op, "verb": verb, "v": v, extra: 1});
            let _ = decode_request(value.to_string().as_bytes());
        }

        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(
            lines in proptest::collection::vec("[a-z]{1,20}", 0..20),
            cut in 1usize..7,
        ) {
            let stream: Vec<u8> = lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
            let mut splitter = LineSplitter::new();
            let mut got = Vec::new();
            for chunk in stream.chunks(cut) {
                got.extend(splitter.push(chunk).unwrap());
            }
            let got: Vec<String> = got.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
            prop_assert_eq!(got, lines);
        }
    }
}
