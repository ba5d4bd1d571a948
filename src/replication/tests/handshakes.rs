//! The handshake: who gets in, who does not, and what each side is told.

use super::{CLUSTER, term};
use crate::base::{ClusterId, Incarnation, NodeId, Term};
use crate::replication::handshake::*;
use crate::replication::wire::*;

fn identity(node: u16) -> Identity {
    Identity {
        cluster: CLUSTER,
        node: NodeId(node),
        incarnation: Incarnation(u128::from(node) << 64),
        run: u128::from(node) + 100,
        session: term(3),
    }
}

fn peer_of(identity: &Identity) -> Peer {
    Peer { node: identity.node, incarnation: identity.incarnation, run: identity.run }
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes(), false).expect("not empty")
}

fn dialer(own: Identity, wants: u16, key: &str) -> Dialer {
    Dialer::new(own, NodeId(wants), secret(key), [own.node.0 as u8; 32])
}

fn acceptor(own: Identity, key: &str) -> Acceptor {
    Acceptor::new(own, secret(key), [own.node.0 as u8 + 100; 32])
}

fn anyone(_: &Peer) -> Admission {
    Admission::Admitted
}

/// Passes a message over the wire as bytes, so that only what the codec carries arrives.
fn carried(stamped: Stamped, message: Message) -> (Stamped, Message) {
    let mut bytes = Vec::new();
    encode(&stamped, &message, &mut bytes);
    let mut decoder = Decoder::new();
    decoder.push(&bytes).unwrap();
    let envelope = decoder.next().unwrap().expect("a whole message");
    (envelope.stamped, envelope.message)
}

/// Runs both sides to their ends.
fn meet(dialer: &mut Dialer, acceptor: &mut Acceptor) -> (Turn, Turn) {
    meet_with(dialer, acceptor, &anyone, &anyone)
}

type Admit<'a> = &'a dyn Fn(&Peer) -> Admission;

fn meet_with(dialer: &mut Dialer, acceptor: &mut Acceptor, d_admit: Admit, a_admit: Admit) -> (Turn, Turn) {
    let mut to_acceptor = Some(dialer.hello());
    let (mut d_end, mut a_end) = (None, None);
    while d_end.is_none() || a_end.is_none() {
        let (stamped, message) = carried(dialer.stamped(), to_acceptor.take().expect("the dialer spoke"));
        let turn = acceptor.on_message(&stamped, message, a_admit);
        let answer = match &turn {
            Turn::Send(message) => Some(message.clone()),
            Turn::Established { send, .. } | Turn::Failed { send, .. } => {
                a_end = Some(turn.clone());
                send.clone()
            }
        };
        let Some(answer) = answer else { break };
        let (stamped, message) = carried(acceptor.stamped(), answer);
        match dialer.on_message(&stamped, message, d_admit) {
            Turn::Send(message) => to_acceptor = Some(message),
            turn => {
                if let Turn::Failed { send: Some(message), .. } = &turn
                    && a_end.is_none()
                {
                    let (stamped, message) = carried(dialer.stamped(), message.clone());
                    a_end = Some(acceptor.on_message(&stamped, message, a_admit));
                }
                d_end = Some(turn);
            }
        }
    }
    (d_end.expect("the dialer came to an end"), a_end.expect("the acceptor came to an end"))
}

fn error(turn: Turn) -> HandshakeError {
    match turn {
        Turn::Failed { error, .. } => error,
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn session(turn: Turn) -> Session {
    match turn {
        Turn::Established { session, .. } => session,
        other => panic!("expected a link, got {other:?}"),
    }
}

fn refused_for(turn: Turn) -> GoodbyeReason {
    match error(turn) {
        HandshakeError::Refused { reason, .. } => reason,
        other => panic!("expected to be refused, got {other:?}"),
    }
}

#[test]
fn two_members_with_one_secret_meet() {
    let (a, b) = (identity(1), Identity { session: term(5), ..identity(2) });
    let (at_dialer, at_acceptor) = meet(&mut dialer(a, 2, "s"), &mut acceptor(b, "s"));
    let expected = Session {
        peer: peer_of(&b),
        cluster: CLUSTER,
        version: VERSION_MAX,
        dialed: true,
        joining: false,
        peer_term: term(5),
    };
    assert_eq!(session(at_dialer), expected);
    assert_eq!(
        session(at_acceptor),
        Session { peer: peer_of(&a), dialed: false, peer_term: term(3), ..expected }
    );
}

#[test]
fn a_wrong_secret_is_named_on_both_sides() {
    let (d, a) = meet(&mut dialer(identity(1), 2, "one"), &mut acceptor(identity(2), "two"));
    assert_eq!(error(a), HandshakeError::BadProof);
    assert_eq!(refused_for(d), GoodbyeReason::BadProof);
}

#[test]
fn an_acceptor_that_does_not_know_the_secret_is_found_out() {
    let own = identity(1);
    let mut dialer = dialer(own, 2, "s");
    let mut real = acceptor(identity(2), "s");
    let Turn::Send(challenge) = real.on_message(&own.stamped(), dialer.hello(), &anyone) else { panic!() };
    let stamped = real.stamped();
    assert!(matches!(dialer.on_message(&stamped, challenge, &anyone), Turn::Send(Message::Proof(_))));
    let turn = dialer.on_message(&stamped, Message::Welcome([0; 32]), &anyone);
    assert_eq!(error(turn), HandshakeError::BadProof);
}

#[test]
fn an_empty_secret_needs_permission() {
    assert!(Secret::new(b"", false).is_none());
    let empty = Secret::new(b"", true).unwrap();
    let mut d = Dialer::new(identity(1), NodeId(2), empty.clone(), [1; 32]);
    let mut a = Acceptor::new(identity(2), empty.clone(), [2; 32]);
    session(meet(&mut d, &mut a).0);
    let mut d = Dialer::new(identity(1), NodeId(2), empty.clone(), [1; 32]);
    assert_eq!(error(meet(&mut d, &mut acceptor(identity(2), "s")).1), HandshakeError::BadProof);
    assert_eq!(format!("{:?}", secret("hidden")), "Secret(..)");
}

#[test]
fn clusters_do_not_mix_but_a_joining_node_adopts_one() {
    let other = Identity { cluster: ClusterId(9), ..identity(2) };
    let (d, a) = meet(&mut dialer(identity(1), 2, "s"), &mut acceptor(other, "s"));
    assert_eq!(error(a), HandshakeError::OtherCluster { ours: ClusterId(9), theirs: CLUSTER });
    assert_eq!(refused_for(d), GoodbyeReason::OtherCluster);

    let fresh = Identity { cluster: ClusterId(0), session: Term::NONE, ..identity(1) };
    let (d, a) = meet(&mut dialer(fresh, 2, "s"), &mut acceptor(identity(2), "s"));
    let (d, a) = (session(d), session(a));
    assert_eq!((d.cluster, a.cluster), (CLUSTER, CLUSTER));
    assert_eq!((d.joining, a.joining), (false, true));

    let both = Identity { cluster: ClusterId(0), ..identity(2) };
    let (_, a) = meet(&mut dialer(fresh, 2, "s"), &mut acceptor(both, "s"));
    assert!(matches!(error(a), HandshakeError::OtherCluster { .. }));
}

#[test]
fn versions_without_a_common_one_are_refused_and_downgrades_noticed() {
    let own = identity(1);
    let mut a = acceptor(identity(2), "s");
    let Message::Hello(hello) = dialer(own, 2, "s").hello() else { panic!() };
    let newer = Hello { version_min: VERSION_MAX + 1, version_max: VERSION_MAX + 4, ..hello };
    let turn = a.on_message(&own.stamped(), Message::Hello(newer), &anyone);
    let theirs = (VERSION_MAX + 1, VERSION_MAX + 4);
    assert_eq!(error(turn), HandshakeError::NoCommonVersion { theirs });

    // Somebody in the middle offers less than the dialer said: the proofs no longer match.
    let mut d = dialer(own, 2, "s");
    let mut a = acceptor(identity(2), "s");
    let wider = Hello { version_max: VERSION_MAX + 1, ..hello };
    let Turn::Send(challenge) = a.on_message(&own.stamped(), Message::Hello(wider), &anyone) else {
        panic!()
    };
    let Turn::Send(proof) = d.on_message(&a.stamped(), challenge, &anyone) else { panic!() };
    assert_eq!(error(a.on_message(&own.stamped(), proof, &anyone)), HandshakeError::BadProof);

    // An acceptor that chooses a version outside the offer.
    let mut d = dialer(own, 2, "s");
    let mut a = acceptor(identity(2), "s");
    let Turn::Send(Message::Challenge(challenge)) = a.on_message(&own.stamped(), d.hello(), &anyone) else {
        panic!()
    };
    let odd = Challenge { version: VERSION_MAX + 1, ..challenge };
    let turn = d.on_message(&a.stamped(), Message::Challenge(odd), &anyone);
    assert!(matches!(error(turn), HandshakeError::NoCommonVersion { .. }));
}

#[test]
fn wrong_addresses_and_loops_are_named() {
    let (d, a) = meet(&mut dialer(identity(1), 3, "s"), &mut acceptor(identity(2), "s"));
    assert_eq!(error(a), HandshakeError::WrongNode { wanted: NodeId(3), found: NodeId(2) });
    assert_eq!(refused_for(d), GoodbyeReason::WrongNode);

    let (d, a) = meet(&mut dialer(identity(1), 1, "s"), &mut acceptor(identity(1), "s"));
    assert_eq!(error(a), HandshakeError::SelfConnection);
    assert_eq!(refused_for(d), GoodbyeReason::SelfConnection);

    // The dialer notices by itself when something else answers for the node it wants.
    let own = identity(1);
    let mut d = dialer(own, 2, "s");
    let mut a = acceptor(identity(3), "s");
    let Message::Hello(hello) = d.hello() else { panic!() };
    let bent = Message::Hello(Hello { wants: NodeId(3), ..hello });
    let Turn::Send(challenge) = a.on_message(&own.stamped(), bent, &anyone) else { panic!() };
    let turn = d.on_message(&a.stamped(), challenge, &anyone);
    assert_eq!(error(turn), HandshakeError::WrongNode { wanted: NodeId(2), found: NodeId(3) });
}

#[test]
fn copied_data_folders_are_refused() {
    let own = identity(2);
    let copy = Identity { incarnation: own.incarnation, ..identity(1) };
    let (d, a) = meet(&mut dialer(copy, 2, "s"), &mut acceptor(own, "s"));
    assert_eq!(error(a), HandshakeError::DuplicateIncarnation(peer_of(&copy)));
    assert_eq!(refused_for(d), GoodbyeReason::DuplicateIncarnation);
}

#[test]
fn the_roster_decides_on_authenticated_peers_only() {
    let (one, two) = (identity(1), identity(2));
    let members = [(NodeId(1), Some(one.incarnation)), (NodeId(2), Some(two.incarnation)), (NodeId(3), None)];
    let live = [peer_of(&one)];
    let roster = Roster { members: &members, live: &live };
    assert_eq!(roster.admit(&peer_of(&one)), Admission::Admitted, "a second link of the same process");
    let rebuilt = Peer { incarnation: Incarnation(77), ..peer_of(&two) };
    assert_eq!(roster.admit(&rebuilt), Admission::Admitted, "a new life of a member may connect");
    assert_eq!(roster.admit(&peer_of(&identity(4))), Admission::Unknown);
    let second = Peer { run: 5, ..peer_of(&one) };
    assert_eq!(roster.admit(&second), Admission::Duplicate, "the same folder in another live process");
    let stolen = Peer { incarnation: two.incarnation, ..peer_of(&identity(3)) };
    assert_eq!(roster.admit(&stolen), Admission::Duplicate, "an incarnation that belongs to another node");

    let (d, a) = meet_with(&mut dialer(identity(4), 2, "s"), &mut acceptor(two, "s"), &anyone, &|peer| {
        roster.admit(peer)
    });
    assert_eq!(error(a), HandshakeError::UnknownNode(NodeId(4)));
    assert_eq!(refused_for(d), GoodbyeReason::UnknownNode);

    let never: Admit = &|_| panic!("asked about a peer that proved nothing");
    meet_with(&mut dialer(identity(4), 2, "x"), &mut acceptor(two, "s"), never, never);
}

/// An eavesdropper plays a recorded conversation again.
#[test]
fn a_replayed_conversation_opens_nothing() {
    let own = identity(1);
    let mut d = dialer(own, 2, "s");
    let mut a = acceptor(identity(2), "s");
    let hello = d.hello();
    let Turn::Send(challenge) = a.on_message(&own.stamped(), hello.clone(), &anyone) else { panic!() };
    let Turn::Send(proof) = d.on_message(&a.stamped(), challenge.clone(), &anyone) else { panic!() };
    let Turn::Established { send: Some(welcome), .. } = a.on_message(&own.stamped(), proof.clone(), &anyone)
    else {
        panic!()
    };

    let mut later = Acceptor::new(identity(2), secret("s"), [55; 32]);
    assert!(matches!(later.on_message(&own.stamped(), hello, &anyone), Turn::Send(_)));
    assert_eq!(error(later.on_message(&own.stamped(), proof, &anyone)), HandshakeError::BadProof);

    let mut again = Dialer::new(own, NodeId(2), secret("s"), [66; 32]);
    assert!(matches!(again.on_message(&a.stamped(), challenge, &anyone), Turn::Send(_)));
    assert_eq!(error(again.on_message(&a.stamped(), welcome, &anyone)), HandshakeError::BadProof);
}

/// An attacker without the secret dials back to the node that dialled it, and mirrors its messages.
#[test]
fn a_reflected_proof_opens_nothing() {
    let victim = identity(1);
    let mut outbound = dialer(victim, 2, "s");
    let mut inbound = acceptor(victim, "s");
    let Message::Hello(hello) = outbound.hello() else { panic!() };
    // The attacker claims to be node 2 towards the victim's listener and gets a challenge there.
    let claim = Hello {
        node: NodeId(2),
        incarnation: Incarnation(2),
        run: 2,
        wants: NodeId(1),
        nonce: hello.nonce,
        ..hello
    };
    let Turn::Send(Message::Challenge(challenge)) =
        inbound.on_message(&victim.stamped(), Message::Hello(claim), &anyone)
    else {
        panic!()
    };
    // It feeds that nonce to the victim's dialer and takes the proof it gets for its own.
    let fed = Challenge { node: NodeId(2), incarnation: Incarnation(2), run: 2, ..challenge };
    let Turn::Send(proof) = outbound.on_message(&victim.stamped(), Message::Challenge(fed), &anyone) else {
        panic!()
    };
    let turn = inbound.on_message(&victim.stamped(), proof.clone(), &anyone);
    assert_eq!(error(turn), HandshakeError::BadProof);
    // Nor does the dialer take its own proof for a welcome.
    let Message::Proof(mac) = proof else { panic!() };
    let turn = outbound.on_message(&victim.stamped(), Message::Welcome(mac), &anyone);
    assert_eq!(error(turn), HandshakeError::BadProof);
}

#[test]
fn messages_out_of_order_end_the_handshake() {
    let own = identity(1);
    let messages = [dialer(own, 2, "s").hello(), Message::Proof([0; 32]), Message::Welcome([0; 32])];
    for message in messages {
        let mut d = dialer(own, 2, "s");
        let first = d.on_message(&identity(2).stamped(), message.clone(), &anyone);
        assert!(matches!(error(first), HandshakeError::Unexpected(_)));
        let second = d.on_message(&identity(2).stamped(), message.clone(), &anyone);
        assert!(matches!(error(second), HandshakeError::Unexpected(_)), "it stays over");
        if !matches!(message, Message::Hello(_)) {
            let turn = acceptor(own, "s").on_message(&own.stamped(), message, &anyone);
            assert!(matches!(error(turn), HandshakeError::Unexpected(_)));
        }
    }
}

/// Whatever somebody in the middle changes in the four messages, no side ends up with a link that the other would
/// describe differently.
#[test]
fn no_flipped_bit_survives_the_proofs() {
    let (one, two) = (identity(1), identity(2));
    for (step, size) in [(0usize, 72usize), (1, 72), (2, 32), (3, 32)] {
        for bit in (0..(size + 40) * 8).step_by(3) {
            let mut d = dialer(one, 2, "s");
            let mut a = acceptor(two, "s");
            let tamper = |at: usize, stamped: Stamped, message: Message| -> Option<(Stamped, Message)> {
                if at != step {
                    return Some((stamped, message));
                }
                let mut bytes = Vec::new();
                encode(&stamped, &message, &mut bytes);
                // Cluster and session term of the envelope, then the body; the attacker repairs the checksum.
                let byte = if bit / 8 < 40 { 16 + bit / 8 } else { ENVELOPE_BYTES + bit / 8 - 40 };
                bytes[byte] ^= 1 << (bit % 8);
                let (envelope, body) = bytes.split_at(ENVELOPE_BYTES);
                let digest = codec::digest(envelope, body);
                bytes[codec::DIGEST_AT..ENVELOPE_BYTES].copy_from_slice(&digest.0.to_le_bytes());
                let mut decoder = Decoder::new();
                decoder.push(&bytes).ok()?;
                decoder.next().ok().flatten().map(|e| (e.stamped, e.message))
            };
            let outcome = (|| {
                let (s, m) = tamper(0, d.stamped(), d.hello())?;
                let Turn::Send(m) = a.on_message(&s, m, &anyone) else { return None };
                let (s, m) = tamper(1, a.stamped(), m)?;
                let Turn::Send(m) = d.on_message(&s, m, &anyone) else { return None };
                let (s, m) = tamper(2, d.stamped(), m)?;
                let Turn::Established { send: Some(m), .. } = a.on_message(&s, m, &anyone) else {
                    return None;
                };
                let (s, m) = tamper(3, a.stamped(), m)?;
                let Turn::Established { session, .. } = d.on_message(&s, m, &anyone) else { return None };
                Some(session)
            })();
            assert_eq!(outcome, None, "step {step}, bit {bit}");
        }
    }
}
