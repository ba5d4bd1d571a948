//! A small blocking RESP client on a real socket: one request, one answer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::resp::{ReplyLimits, ReplyParser, Value, decode, write_request};

/// An answer reduced to what the callers here need.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Text(Vec<u8>),
    Number(i64),
    Nil,
    /// Code word and text.
    Error(Vec<u8>),
    /// An aggregate.
    Other,
}

impl Answer {
    /// The first whole answer in `input` and its length; `None` as long as it is not whole, or is no answer.
    pub fn parse(input: &[u8]) -> Option<(Answer, usize)> {
        let len = ReplyParser::new().parse(input, &ReplyLimits::default()).ok().flatten()?;
        Some((answer(&input[..len]).ok()?, len))
    }
}

/// A connection. After an error it is to be dropped: what is under way is in doubt.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Client {
    /// Connects, and logs in when there is a password.
    pub fn connect(server: SocketAddr, password: Option<&str>, patience: Duration) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&server, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut client = Client { stream, input: Vec::new(), output: Vec::new() };
        if let Some(password) = password {
            match client.call(&[b"AUTH", password.as_bytes()])? {
                Answer::Error(text) => {
                    let text = String::from_utf8_lossy(&text).into_owned();
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
                }
                _ => return Ok(client),
            }
        }
        Ok(client)
    }

    /// Sends one request and waits for its answer, at most as long as the patience given at connecting.
    pub fn call(&mut self, args: &[&[u8]]) -> io::Result<Answer> {
        answer(&self.raw(args)?)
    }

    /// The same, with the answer as it came.
    pub fn raw(&mut self, args: &[&[u8]]) -> io::Result<Vec<u8>> {
        self.output.clear();
        write_request(args, &mut self.output);
        self.stream.write_all(&self.output)?;
        let mut parser = ReplyParser::new();
        let mut chunk = [0u8; 4096];
        loop {
            let whole = parser
                .parse(&self.input, &ReplyLimits::default())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if let Some(len) = whole {
                return Ok(self.input.drain(..len).collect());
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.input.extend_from_slice(&chunk[..read]),
            }
        }
    }
}

fn answer(bytes: &[u8]) -> io::Result<Answer> {
    let value =
        decode(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok(match value {
        Value::Error(text) => Answer::Error(text.to_vec()),
        Value::Integer(number) => Answer::Number(number),
        Value::Null => Answer::Nil,
        other => other.text().map_or(Answer::Other, |text| Answer::Text(text.to_vec())),
    })
}
