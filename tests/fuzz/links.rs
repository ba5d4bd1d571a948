//! The handshake of two nodes with somebody in between, who reads everything, changes, drops, doubles, reflects and invents
//! messages, makes every checksum right, and knows everything but the secret.
//!
//! A side that establishes the link has heard exactly what the other side of this very conversation said. Whatever comes
//! in, a side ends or waits; it never panics, and it answers each message at most once.

use baton::base::{ClusterId, Incarnation, NodeId, Term};
use baton::replication::handshake::{Acceptor, Admission, Dialer, Identity, Secret, Turn};
use baton::replication::wire::{Message, encode};
use baton::replication::{Decoder, Envelope, Stamped};

use super::script::Script;
use super::targets::{CLUSTER, seal_envelopes, way, word};

fn identity(script: &mut Script<'_>, node: u16) -> Identity {
    let cluster = match script.byte() % 8 {
        0 => ClusterId(0),
        1 => ClusterId(9),
        _ => CLUSTER,
    };
    Identity {
        cluster,
        node: NodeId(node),
        incarnation: Incarnation(u128::from(script.byte() % 3) + 7),
        run: u128::from(node),
        session: Term { number: u64::from(script.byte() % 4), id: 5 },
    }
}

fn secret(known: bool) -> Secret {
    Secret::new(if known { b"the secret" } else { b"another one" }, false).expect("not empty")
}

enum Side {
    Dialer(Dialer),
    Acceptor(Acceptor),
}

/// One end: its decoder, and everything it heard and said, in order.
struct End {
    side: Side,
    decoder: Decoder,
    heard: Vec<Envelope>,
    said: Vec<Envelope>,
    established: bool,
    over: bool,
    ways: Vec<String>,
}

impl End {
    fn new(side: Side) -> End {
        let (heard, said) = (Vec::new(), Vec::new());
        End { side, decoder: Decoder::new(), heard, said, established: false, over: false, ways: Vec::new() }
    }

    fn stamped(&self) -> Stamped {
        match &self.side {
            Side::Dialer(dialer) => dialer.stamped(),
            Side::Acceptor(acceptor) => acceptor.stamped(),
        }
    }

    fn say(&mut self, message: Message, out: &mut Vec<Vec<u8>>) {
        let stamped = self.stamped();
        let mut bytes = Vec::new();
        encode(&stamped, &message, &mut bytes);
        self.said.push(Envelope { stamped, message });
        out.push(bytes);
    }

    /// Takes bytes in, in pieces; what it answers goes to `out`.
    fn hear(&mut self, bytes: &[u8], size: usize, admitted: Admission, out: &mut Vec<Vec<u8>>) {
        for piece in bytes.chunks(size.max(1)) {
            if self.over || self.decoder.push(piece).is_err() {
                self.over = true;
                return;
            }
            loop {
                let envelope = match self.decoder.next() {
                    Ok(Some(envelope)) => envelope,
                    Ok(None) => break,
                    Err(_) => {
                        self.over = true;
                        return;
                    }
                };
                self.heard.push(envelope.clone());
                let Envelope { stamped, message } = envelope;
                let turn = match &mut self.side {
                    Side::Dialer(dialer) => dialer.on_message(&stamped, message, &|_| admitted),
                    Side::Acceptor(acceptor) => acceptor.on_message(&stamped, message, &|_| admitted),
                };
                match turn {
                    Turn::Send(message) => self.say(message, out),
                    Turn::Established { session, send } => {
                        assert!(!self.established && admitted == Admission::Admitted);
                        assert!(session.cluster != ClusterId(0), "a link of no cluster");
                        self.established = true;
                        self.over = true;
                        send.into_iter().for_each(|message| self.say(message, out));
                        return;
                    }
                    Turn::Failed { error, send } => {
                        self.ways.push(word(&error));
                        assert!(!error.to_string().is_empty());
                        self.over = true;
                        send.into_iter().for_each(|message| self.say(message, out));
                        return;
                    }
                }
            }
        }
    }
}

/// What the one in between makes of a message.
fn tamper(
    script: &mut Script<'_>,
    bytes: &[u8],
    reflected: &mut Vec<Vec<u8>>,
    records: &mut Vec<Vec<u8>>,
) -> Vec<u8> {
    records.push(bytes.to_vec());
    let mut bytes = bytes.to_vec();
    match script.byte() % 12 {
        0 => {
            script.edit(&mut bytes);
            if script.flag() {
                seal_envelopes(&mut bytes);
            }
        }
        1 => bytes.clear(),
        2 => bytes.extend_from_slice(&bytes.clone()),
        3 => reflected.push(bytes.clone()),
        4 => bytes = records[script.below(records.len())].clone(),
        5 => {
            let len = script.below(bytes.len() + 1);
            bytes.truncate(len);
        }
        6 => {
            let count = usize::from(script.byte());
            let mut own = script.take(count).to_vec();
            seal_envelopes(&mut own);
            own.extend_from_slice(&bytes);
            bytes = own;
        }
        _ => {}
    }
    bytes
}

pub fn handshake(data: &[u8]) -> u64 {
    let mut script = Script::new(data);
    let kinds = script.byte();
    let same_secret = kinds & 1 == 0;
    let admitted = match kinds >> 1 & 7 {
        0 => Admission::Unknown,
        1 => Admission::Duplicate,
        _ => Admission::Admitted,
    };
    let (ours, theirs) =
        (identity(&mut script, 1), identity(&mut script, if kinds & 16 == 0 { 2 } else { 1 }));
    let size = usize::from(script.byte()).max(1);
    let dialer = Dialer::new(ours, NodeId(2), secret(true), [3; 32]);
    let hello = dialer.hello();
    let mut ends = [
        End::new(Side::Dialer(dialer)),
        End::new(Side::Acceptor(Acceptor::new(theirs, secret(same_secret), [4; 32]))),
    ];
    let mut records = Vec::new();
    // What is on its way to each end.
    let mut under_way: [Vec<Vec<u8>>; 2] = [Vec::new(), Vec::new()];
    ends[0].say(hello, &mut under_way[1]);
    for _ in 0..16 {
        let Some(to) = [1, 0].into_iter().find(|to| !under_way[*to].is_empty()) else { break };
        let bytes = under_way[to].remove(0);
        let (mut reflected, mut answers) = (Vec::new(), Vec::new());
        let bytes = tamper(&mut script, &bytes, &mut reflected, &mut records);
        ends[to].hear(&bytes, size, admitted, &mut answers);
        under_way[1 - to].append(&mut answers);
        under_way[1 - to].append(&mut reflected);
    }
    let [dialer, acceptor] = &ends;
    for (own, other) in [(dialer, acceptor), (acceptor, dialer)] {
        if own.established {
            assert!(same_secret, "a link without the secret");
            assert!(own.heard.len() == 2, "a handshake of {} messages", own.heard.len());
            assert_eq!(own.heard[..], other.said[..2], "a link over words that the other side never said");
        }
    }
    // The dialer hears the proof of an acceptor that has heard the dialer's.
    assert!(!dialer.established || acceptor.established, "the dialer is alone");
    way((
        ends.iter().map(|end| (end.established, end.heard.len(), end.ways.clone())).collect::<Vec<_>>(),
        kinds & 31,
    ))
}

pub fn seeds() -> Vec<Vec<u8>> {
    let quiet = [0xff; 16];
    let mut all: Vec<Vec<u8>> =
        (0..32).map(|kinds| [vec![kinds, 7, 0, 1, 7, 1, 1, 200], quiet.to_vec()].concat()).collect();
    for (at, act) in (0..3).flat_map(|at| (0..7u8).map(move |act| (at, act))) {
        let mut script = [vec![4, 7, 0, 1, 7, 1, 1, 200], vec![0xff; at]].concat();
        script.extend_from_slice(&[act, 80, 0, 1, 9, 1]);
        script.extend_from_slice(&quiet);
        all.push(script);
    }
    all
}
