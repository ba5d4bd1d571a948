//! Messages out of a byte stream that arrives in pieces of any size.

use bytes::{Buf, BytesMut};
use zerocopy::FromBytes;

use super::codec::{self, MAGIC, RawEnvelope};
use super::{ENVELOPE_BYTES, Envelope, HANDSHAKE_VERSION, Kind, WireError};
use crate::base::ClusterId;
use crate::base::limits::PEER_MESSAGE_BYTES_MAX;

/// Bytes that may wait unread beside one whole message: what a few receive buffers bring at once.
const SLACK_BYTES: usize = 1 << 20;

/// Collects bytes and cuts them into messages.
///
/// Memory grows with bytes that really arrived, never with a length that somebody declared. Before authentication
/// only small handshake messages pass. The first error is final: it is returned for ever.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    link: Option<(ClusterId, u16)>,
    failed: Option<WireError>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::new()
    }
}

impl Decoder {
    /// For a fresh connection: handshake messages only.
    pub fn new() -> Decoder {
        Decoder { buffer: BytesMut::new(), link: None, failed: None }
    }

    /// From now on every message must carry this cluster and version; all kinds but the handshake's are legal.
    pub fn authenticated(&mut self, cluster: ClusterId, version: u16) {
        assert!(self.link.is_none(), "a link is authenticated once");
        self.link = Some((cluster, version));
    }

    /// Takes received bytes. Drain with [`Decoder::next`] before pushing more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let limit = match self.link {
            None => 4 * (ENVELOPE_BYTES + super::HANDSHAKE_BODY_BYTES_MAX) + SLACK_BYTES,
            Some(_) => PEER_MESSAGE_BYTES_MAX + SLACK_BYTES,
        };
        if self.buffer.len() + bytes.len() > limit {
            return Err(self.fail(WireError::Unread));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole message, `None` when more bytes are needed.
    #[allow(clippy::should_implement_trait, reason = "an iterator would end for ever at the first None")]
    pub fn next(&mut self) -> Result<Option<Envelope>, WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.step() {
            Ok(envelope) => Ok(envelope),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Bytes received and not yet decoded.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    fn fail(&mut self, error: WireError) -> WireError {
        self.buffer = BytesMut::new();
        self.failed = Some(error.clone());
        error
    }

    fn step(&mut self) -> Result<Option<Envelope>, WireError> {
        let Ok((raw, _)) = RawEnvelope::read_from_prefix(&self.buffer) else {
            return Ok(None);
        };
        let kind = self.check(&raw)?;
        let whole = ENVELOPE_BYTES + raw.body_len.get() as usize;
        if self.buffer.len() < whole {
            return Ok(None);
        }
        let (envelope, body) = self.buffer[..whole].split_at(ENVELOPE_BYTES);
        if codec::digest(envelope, kind.covered(body)).0 != raw.digest.get() {
            return Err(WireError::Damaged(kind));
        }
        let mut message = self.buffer.split_to(whole).freeze();
        if whole > SLACK_BYTES {
            // One large message must not leave its memory with the link for ever.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        message.advance(ENVELOPE_BYTES);
        Ok(Some(Envelope { stamped: codec::stamped(&raw), message: codec::decode_body(kind, message)? }))
    }

    /// Everything that the envelope alone can tell, before its body is waited for.
    fn check(&self, raw: &RawEnvelope) -> Result<Kind, WireError> {
        if raw.magic.get() != MAGIC {
            return Err(WireError::NoMagic);
        }
        let kind = Kind::from_number(raw.kind).ok_or(WireError::UnknownKind(raw.kind))?;
        let version = match self.link {
            None if !kind.is_handshake() => return Err(WireError::NotAuthenticated(kind)),
            Some(_) if kind.is_handshake() && kind != Kind::Goodbye => {
                return Err(WireError::AlreadyAuthenticated(kind));
            }
            None => HANDSHAKE_VERSION,
            Some((cluster, version)) => {
                let got = ClusterId(raw.cluster.get());
                if got != cluster {
                    return Err(WireError::OtherCluster { got, want: cluster });
                }
                version
            }
        };
        if raw.version.get() != version {
            return Err(WireError::OtherVersion { got: raw.version.get(), want: version });
        }
        if raw.flags != 0 || raw.reserved.get() != 0 {
            return Err(WireError::Malformed { kind, what: "reserved bits are set" });
        }
        let bytes = u64::from(raw.body_len.get());
        if bytes > kind.body_bytes_max() as u64 {
            return Err(WireError::TooLong { kind, bytes });
        }
        Ok(kind)
    }
}
