//! CLIENT: what connections say of themselves and learn of each other.

use super::call::{Call, Step};
use super::errors;
use super::session::{ReplyMode, Session};
use crate::resp::{Proto, parse_i64};

type Sub = (&'static str, i16, fn(&mut Call<'_, '_>) -> Step);

/// Subcommands with their arity, counted from CLIENT.
const SUBCOMMANDS: [Sub; 17] = [
    ("CAPA", -3, capa),
    ("GETNAME", 2, getname),
    ("GETREDIR", 2, getredir),
    ("HELP", 2, help),
    ("ID", 2, id),
    ("INFO", 2, info),
    ("KILL", -3, kill),
    ("LIST", -2, list),
    ("MAINT_NOTIFICATIONS", -3, maint_notifications),
    ("NO-EVICT", 3, no_evict),
    ("NO-TOUCH", 3, no_touch),
    ("REPLY", 3, reply),
    ("SETINFO", 4, setinfo),
    ("SETNAME", 3, setname),
    ("TRACKING", -3, tracking),
    ("UNBLOCK", -3, unblock),
    ("UNPAUSE", 2, unpause),
];

pub(super) fn client(call: &mut Call<'_, '_>) -> Step {
    subcommand(call, &SUBCOMMANDS)
}

/// Runs the subcommand that the second argument names, or answers the error Redis would.
pub(super) fn subcommand(call: &mut Call<'_, '_>, known: &[Sub]) -> Step {
    let name = call.args.at(1);
    let container = call.spec.name;
    let found = known.iter().find(|(known, _, _)| known.as_bytes().eq_ignore_ascii_case(name));
    let Some((known, arity, run)) = found else {
        let shown = String::from_utf8_lossy(&name[..name.len().min(128)]);
        let upper = container.to_ascii_uppercase();
        let text = format!("ERR unknown subcommand '{shown}'. Try {upper} HELP.");
        return call.error(&text);
    };
    let wanted = usize::from(arity.unsigned_abs());
    if if *arity < 0 { call.args.len() < wanted } else { call.args.len() != wanted } {
        let full = format!("{container}|{}", known.to_ascii_lowercase());
        return call.error(&format!("ERR wrong number of arguments for '{full}' command"));
    }
    run(call)
}

pub(super) fn name_is_legal(name: &[u8]) -> bool {
    name.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

fn id(call: &mut Call<'_, '_>) -> Step {
    call.integer(call.session.id as i64)
}

fn getname(call: &mut Call<'_, '_>) -> Step {
    match call.session.name.clone() {
        name if name.is_empty() => call.null(),
        name => {
            call.reply().bulk(&name);
            Ok(())
        }
    }
}

fn setname(call: &mut Call<'_, '_>) -> Step {
    let name = call.args.at(2);
    if !name_is_legal(name) {
        return call.error(errors::BAD_NAME);
    }
    call.session.name = name.to_vec();
    call.ok()
}

fn setinfo(call: &mut Call<'_, '_>) -> Step {
    let (attribute, value) = (call.args.at(2), call.args.at(3));
    let upper = attribute.to_ascii_uppercase();
    if !matches!(upper.as_slice(), b"LIB-NAME" | b"LIB-VER") {
        let text = format!("ERR Unrecognized option '{}'", String::from_utf8_lossy(attribute));
        return call.error(&text);
    }
    if !name_is_legal(value) {
        let name = String::from_utf8_lossy(attribute).to_ascii_lowercase();
        let text = format!("ERR {name} cannot contain spaces, newlines or special characters.");
        return call.error(&text);
    }
    match upper.as_slice() {
        b"LIB-NAME" => call.session.lib_name = value.to_vec(),
        _ => call.session.lib_version = value.to_vec(),
    }
    call.ok()
}

fn info(call: &mut Call<'_, '_>) -> Step {
    let facts = call.engine.host.facts(call.session.id);
    let mut line = Vec::new();
    call.session.describe(&facts, &mut line);
    line.push(b'\n');
    call.reply().verbatim(*b"txt", &line);
    Ok(())
}

fn list(call: &mut Call<'_, '_>) -> Step {
    let mut wanted_ids: Option<Vec<u64>> = None;
    let mut nobody = false;
    let options = call.args.from(2);
    match (options.get(0).map(<[u8]>::to_ascii_uppercase).as_deref(), options.len()) {
        (None, _) => {}
        (Some(b"TYPE"), 2) => match options.at(1).to_ascii_lowercase().as_slice() {
            b"normal" => {}
            b"master" | b"replica" | b"slave" | b"pubsub" => nobody = true,
            other => {
                let text = format!("ERR Unknown client type '{}'", String::from_utf8_lossy(other));
                return call.error(&text);
            }
        },
        (Some(b"ID"), 2..) => {
            let mut ids = Vec::new();
            for text in options.from(1).iter() {
                match parse_i64(text).and_then(|id| u64::try_from(id).ok()) {
                    Some(id) if id > 0 => ids.push(id),
                    _ => return call.error("ERR Invalid client ID"),
                }
            }
            wanted_ids = Some(ids);
        }
        _ => return call.error(errors::SYNTAX),
    }
    let wanted = |id: u64| !nobody && wanted_ids.as_ref().is_none_or(|ids| ids.contains(&id));
    let mut lines: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut add = |session: &Session, facts: &_| {
        if wanted(session.id) {
            let mut line = Vec::new();
            session.describe(facts, &mut line);
            line.push(b'\n');
            lines.push((session.id, line));
        }
    };
    let facts = call.engine.host.facts(call.session.id);
    add(call.session, &facts);
    call.engine.host.visit_clients(&mut add);
    lines.sort_by_key(|(id, _)| *id);
    let text: Vec<u8> = lines.into_iter().flat_map(|(_, line)| line).collect();
    call.reply().verbatim(*b"txt", &text);
    Ok(())
}

/// Whom CLIENT KILL means.
#[derive(Default)]
struct Victims {
    id: Option<u64>,
    addr: Option<String>,
    laddr: Option<String>,
    nobody: bool,
    spare_me: bool,
}

impl Victims {
    fn parse(call: &Call<'_, '_>) -> Result<Victims, &'static str> {
        let mut victims = Victims { spare_me: true, ..Victims::default() };
        let mut at = 2;
        while at < call.args.len() {
            let value = call.args.get(at + 1).ok_or(errors::SYNTAX)?;
            let text = || Some(String::from_utf8_lossy(value).into_owned());
            match call.args.at(at).to_ascii_uppercase().as_slice() {
                b"ID" => match parse_i64(value) {
                    Some(id @ 1..) => victims.id = Some(id as u64),
                    _ => return Err("ERR client-id should be greater than 0"),
                },
                b"ADDR" => victims.addr = text(),
                b"LADDR" => victims.laddr = text(),
                b"USER" => victims.nobody |= value != b"default",
                b"TYPE" => match value.to_ascii_lowercase().as_slice() {
                    b"normal" => {}
                    b"master" | b"replica" | b"slave" | b"pubsub" => victims.nobody = true,
                    _ => return Err("ERR Unknown client type"),
                },
                b"SKIPME" => match value.to_ascii_lowercase().as_slice() {
                    b"yes" => victims.spare_me = true,
                    b"no" => victims.spare_me = false,
                    _ => return Err(errors::SYNTAX),
                },
                _ => return Err(errors::SYNTAX),
            }
            at += 2;
        }
        Ok(victims)
    }

    fn include(&self, id: u64, facts: &super::ClientFacts) -> bool {
        !self.nobody
            && self.id.is_none_or(|wanted| wanted == id)
            && self.addr.as_ref().is_none_or(|wanted| *wanted == facts.addr)
            && self.laddr.as_ref().is_none_or(|wanted| *wanted == facts.laddr)
    }
}

fn kill(call: &mut Call<'_, '_>) -> Step {
    if call.in_exec {
        return call.error(errors::NOT_IN_MULTI);
    }
    // The old form names one address and may mean the caller.
    let old_form = call.args.len() == 3;
    let victims = if old_form {
        let addr = Some(String::from_utf8_lossy(call.args.at(2)).into_owned());
        Victims { addr, ..Victims::default() }
    } else {
        match Victims::parse(call) {
            Ok(victims) => victims,
            Err(text) => return call.error(text),
        }
    };
    let mut ids = Vec::new();
    call.engine.host.visit_clients(&mut |session, facts| {
        if victims.include(session.id, facts) {
            ids.push(session.id);
        }
    });
    ids.iter().for_each(|id| call.engine.host.close_client(*id));
    let mut killed = ids.len();
    let mine = call.engine.host.facts(call.session.id);
    if !victims.spare_me && victims.include(call.session.id, &mine) {
        call.session.closing = true;
        killed += 1;
    }
    match (old_form, killed) {
        (true, 0) => call.error("ERR No such client"),
        (true, _) => call.ok(),
        (false, killed) => call.integer(killed as i64),
    }
}

fn reply(call: &mut Call<'_, '_>) -> Step {
    if call.in_exec {
        return call.error(errors::NOT_IN_MULTI);
    }
    match call.args.at(2).to_ascii_uppercase().as_slice() {
        b"ON" => {
            call.session.reply_mode = ReplyMode::On;
            call.ok()
        }
        b"OFF" => {
            call.session.reply_mode = ReplyMode::Off;
            Ok(())
        }
        b"SKIP" => {
            if call.session.reply_mode != ReplyMode::Off {
                call.session.reply_mode = ReplyMode::SkipNext;
            }
            Ok(())
        }
        _ => call.error(errors::SYNTAX),
    }
}

/// An argument that says ON or OFF.
fn switch(call: &Call<'_, '_>, at: usize) -> Option<bool> {
    match call.args.at(at).to_ascii_uppercase().as_slice() {
        b"ON" => Some(true),
        b"OFF" => Some(false),
        _ => None,
    }
}

fn no_evict(call: &mut Call<'_, '_>) -> Step {
    let Some(on) = switch(call, 2) else { return call.error(errors::SYNTAX) };
    call.session.no_evict = on;
    call.ok()
}

fn no_touch(call: &mut Call<'_, '_>) -> Step {
    let Some(on) = switch(call, 2) else { return call.error(errors::SYNTAX) };
    call.session.no_touch = on;
    call.ok()
}

/// There are no invalidation messages, so only the wish for none can be granted.
fn tracking(call: &mut Call<'_, '_>) -> Step {
    match switch(call, 2) {
        Some(false) => call.ok(),
        Some(true) => call.error("ERR client-side caching is not supported"),
        None => call.error(errors::SYNTAX),
    }
}

fn getredir(call: &mut Call<'_, '_>) -> Step {
    call.integer(-1)
}

/// Unknown capabilities are ignored, as in Valkey.
fn capa(call: &mut Call<'_, '_>) -> Step {
    if call.args.from(2).iter().any(|word| word.eq_ignore_ascii_case(b"redirect")) {
        call.session.capa_redirect = true;
    }
    call.ok()
}

/// The client offers to follow pushed notes of planned moves. They need RESP3.
fn maint_notifications(call: &mut Call<'_, '_>) -> Step {
    match switch(call, 2) {
        None => call.error(errors::SYNTAX),
        Some(true) if call.session.proto == Proto::Resp2 => {
            call.error("ERR maintenance notifications need RESP3, say HELLO 3 first")
        }
        Some(on) => {
            call.session.maint_notifications = on;
            call.ok()
        }
    }
}

/// No command here blocks.
fn unblock(call: &mut Call<'_, '_>) -> Step {
    match parse_i64(call.args.at(2)) {
        Some(_) => call.integer(0),
        None => call.error(errors::NOT_INTEGER),
    }
}

/// Nothing is ever paused by a client.
fn unpause(call: &mut Call<'_, '_>) -> Step {
    call.ok()
}

fn help(call: &mut Call<'_, '_>) -> Step {
    help_text(call, &SUBCOMMANDS)
}

pub(super) fn help_text(call: &mut Call<'_, '_>, known: &[Sub]) -> Step {
    let upper = call.spec.name.to_ascii_uppercase();
    let mut reply = call.reply();
    reply.array(known.len() + 1);
    reply.simple(&format!("{upper} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    known.iter().for_each(|(name, _, _)| reply.simple(name));
    Ok(())
}
