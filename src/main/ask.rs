//! One request over a node's admin socket, and its answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use baton::admin::{Exit, LineSplitter, Request, Response, Verb, decode_response, encode_request};
use baton::node::control::{SOCKET_FILE, SocketPath};

use super::Fail;

/// What the control thread adds to its own patience at most.
const GRACE: Duration = Duration::from_secs(2);

/// A fresh op id: 64 random bits.
pub fn fresh_op() -> Result<String, Fail> {
    let mut bytes = [0u8; 8];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(|error| Fail::failed(format!("no random numbers: {error}"), ""))?;
    Ok(format!("cli-{:016x}", u64::from_le_bytes(bytes)))
}

/// Asks with a fresh op id.
pub fn ask(data: &Path, verb: Verb) -> Result<Response, Fail> {
    ask_as(data, &Request::new(fresh_op()?, verb))
}

/// Asks; the answer may itself be an error of the node.
pub fn ask_as(data: &Path, request: &Request) -> Result<Response, Fail> {
    let mut stream = connect(data)?;
    let patience = request.verb.patience() + GRACE;
    let lost = |error: io::Error| {
        if request.verb.changes() {
            let hint =
                format!("it may have happened: look at `baton query`, or ask again with --op {}", request.op);
            return Fail::new(
                Exit::Unknown,
                "unknown_outcome",
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        format!("the node says nothing for {:.0} s", patience.as_secs_f64())
                    }
                    _ => format!("the answer was lost: {error}"),
                },
                hint,
            );
        }
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let message = format!("the node says nothing for {:.0} s", patience.as_secs_f64());
                Fail::new(
                    Exit::Down,
                    "down",
                    message,
                    "its process stands still, or the machine is overloaded",
                )
            }
            _ => {
                Fail::new(Exit::Down, "down", format!("the node went away: {error}"), "ask again in a moment")
            }
        }
    };
    stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.set_write_timeout(Some(GRACE)))
        .map_err(lost)?;
    stream.write_all(&encode_request(request)).map_err(lost)?;
    let line = read_line(&mut stream).map_err(lost)?;
    decode_response(&line).map_err(|what| Fail::failed(what, "is the node of another version?"))
}

fn connect(data: &Path) -> Result<UnixStream, Fail> {
    let path = SocketPath::new(data, SOCKET_FILE);
    path.and_then(|path| UnixStream::connect(path.as_path())).map_err(|error| {
        let message = format!("no node runs in {}", data.display());
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Fail::new(Exit::Down, "down", message, "`baton start` starts it")
            }
            io::ErrorKind::PermissionDenied => {
                let message = format!("no right to ask the node in {}", data.display());
                Fail::new(Exit::Refused, "forbidden", message, "ask as the user that runs the node")
            }
            _ => Fail::new(Exit::Down, "down", format!("{message}: {error}"), ""),
        }
    })
}

fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut splitter = LineSplitter::new();
    let mut chunk = vec![0u8; 16 << 10];
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let lines = splitter
            .push(&chunk[..read])
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"))?;
        if let Some(line) = lines.into_iter().next() {
            return Ok(line);
        }
    }
}

/// The result, or the node's refusal as this process's own failure.
pub fn result(response: Response) -> Result<serde_json::Value, Fail> {
    match response.error {
        None if response.ok => Ok(response.result),
        None => Err(Fail::failed("the node refused without saying why", "")),
        Some(error) => {
            let word = serde_json::to_value(error.code).ok().and_then(|code| code.as_str().map(String::from));
            let mut message = error.message;
            if let Some(last) = response.result.get("last_known").filter(|last| !last.is_null()) {
                message =
                    format!("{message}; last known: {} {}", last["role"], last["state"]).replace('"', "");
            }
            Err(Fail::new(error.code.exit(), &word.unwrap_or_default(), message, error.hint))
        }
    }
}

/// Asks and reads the result as `T`.
pub fn typed<T: serde::de::DeserializeOwned>(data: &Path, verb: Verb) -> Result<T, Fail> {
    let value = result(ask(data, verb)?)?;
    serde_json::from_value(value).map_err(|error| {
        Fail::failed(format!("the node's answer has another form: {error}"), "is it of another version?")
    })
}
