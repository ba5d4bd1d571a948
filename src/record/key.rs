//! Store keys and value heads, shaped for collections from the first day.
//!
//! A store key is `escape(user key) 00 01 tag [element]`: all entries of one user key lie next to each other and
//! user keys keep their byte order. Tag 0 is the meta entry, which for a string holds the value itself.

use super::Corrupt;
use crate::base::WallMs;

/// Ends the user key inside a store key. A zero byte inside the user key is written as `00 FF`.
const END: [u8; 2] = [0x00, 0x01];
/// The entry that carries type, expiry and, for strings, the value.
pub const TAG_META: u8 = 0;
/// Element entries of collections.
pub const TAG_ELEMENT: u8 = 1;

/// The type of a user key, as TYPE answers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ValueType {
    String,
    List,
    Set,
    SortedSet,
    Hash,
}

impl ValueType {
    pub fn name(self) -> &'static str {
        match self {
            ValueType::String => "string",
            ValueType::List => "list",
            ValueType::Set => "set",
            ValueType::SortedSet => "zset",
            ValueType::Hash => "hash",
        }
    }

    fn code(self) -> u8 {
        match self {
            ValueType::String => 0,
            ValueType::List => 1,
            ValueType::Set => 2,
            ValueType::SortedSet => 3,
            ValueType::Hash => 4,
        }
    }
}

/// Appends the meta key of `user_key` to `out`.
pub fn meta_key(user_key: &[u8], out: &mut Vec<u8>) {
    prefix(user_key, out);
    out.push(TAG_META);
}

/// Appends the common prefix of all entries of `user_key` to `out`.
pub fn prefix(user_key: &[u8], out: &mut Vec<u8>) {
    out.reserve(user_key.len() + 3);
    let mut rest = user_key;
    while let Some(at) = rest.iter().position(|b| *b == 0) {
        out.extend_from_slice(&rest[..=at]);
        out.push(0xFF);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&END);
}

/// The user key inside a store key, and the tag behind it.
pub fn split(store_key: &[u8]) -> Result<(Vec<u8>, u8), Corrupt> {
    let mut user = Vec::with_capacity(store_key.len());
    let mut at = 0;
    loop {
        match (store_key.get(at), store_key.get(at + 1)) {
            (Some(0), Some(0xFF)) => {
                user.push(0);
                at += 2;
            }
            (Some(0), Some(1)) => break,
            (Some(0), _) => return Err(Corrupt("store key with a bad escape")),
            (Some(byte), _) => {
                user.push(*byte);
                at += 1;
            }
            (None, _) => return Err(Corrupt("store key without an end mark")),
        }
    }
    let tag = *store_key.get(at + 2).ok_or(Corrupt("store key without a tag"))?;
    Ok((user, tag))
}

/// The head of a meta value: type, expiry, then the type's own bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta<'a> {
    pub kind: ValueType,
    pub expires: Option<WallMs>,
    pub body: &'a [u8],
}

const HAS_EXPIRY: u8 = 1;

impl<'a> Meta<'a> {
    pub fn string(body: &'a [u8], expires: Option<WallMs>) -> Meta<'a> {
        Meta { kind: ValueType::String, expires, body }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(10 + self.body.len());
        out.push(self.kind.code());
        match self.expires {
            None => out.push(0),
            Some(at) => {
                out.push(HAS_EXPIRY);
                out.extend_from_slice(&at.0.to_le_bytes());
            }
        }
        out.extend_from_slice(self.body);
    }

    pub fn decode(bytes: &'a [u8]) -> Result<Meta<'a>, Corrupt> {
        let [kind, flags, rest @ ..] = bytes else { return Err(Corrupt("meta value is cut off")) };
        let kind = match kind {
            0 => ValueType::String,
            1 => ValueType::List,
            2 => ValueType::Set,
            3 => ValueType::SortedSet,
            4 => ValueType::Hash,
            _ => return Err(Corrupt("unknown value type")),
        };
        match *flags {
            0 => Ok(Meta { kind, expires: None, body: rest }),
            HAS_EXPIRY => {
                let (at, body) = rest.split_at_checked(8).ok_or(Corrupt("expiry is cut off"))?;
                let at = u64::from_le_bytes(at.try_into().expect("eight bytes"));
                Ok(Meta { kind, expires: Some(WallMs(at)), body })
            }
            _ => Err(Corrupt("unknown meta flags")),
        }
    }

    /// Whether the key has expired by the clock `now` (the leader's, or the carried one on a standby).
    pub fn expired(&self, now: WallMs) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_round_trip_and_keep_their_order(a: Vec<u8>, b: Vec<u8>) {
            let (mut ka, mut kb) = (Vec::new(), Vec::new());
            meta_key(&a, &mut ka);
            meta_key(&b, &mut kb);
            prop_assert_eq!(split(&ka).unwrap(), (a.clone(), TAG_META));
            prop_assert_eq!(a.cmp(&b), ka.cmp(&kb));
        }

        #[test]
        fn meta_round_trips(body: Vec<u8>, expires: Option<u64>) {
            let meta = Meta::string(&body, expires.map(WallMs));
            let mut bytes = Vec::new();
            meta.encode(&mut bytes);
            prop_assert_eq!(Meta::decode(&bytes).unwrap(), meta);
        }

        #[test]
        fn any_bytes_are_safe(bytes: Vec<u8>) {
            let _ = split(&bytes);
            let _ = Meta::decode(&bytes);
        }
    }
}
