//! CLIENT: what connections say of themselves and learn of each other.

use super::call::{Call, Step};
use super::errors;
use super::session::{ReplyMode, Session};
use super::table::flags::NO_MULTI;
use super::table::{Sub, sub};
use crate::resp::{Proto, parse_i64};

pub(super) static SUBCOMMANDS: [Sub; 17] = [
    sub("client|capa", -3, 0, capa),
    sub("client|getname", 2, 0, getname),
    sub("client|getredir", 2, 0, getredir),
    sub("client|help", 2, 0, help),
    sub("client|id", 2, 0, id),
    sub("client|info", 2, 0, info),
    sub("client|kill", -3, 0, kill),
    sub("client|list", -2, 0, list),
    sub("client|maint_notifications", -3, 0, maint_notifications),
    sub("client|no-evict", 3, 0, no_evict),
    sub("client|no-touch", 3, 0, no_touch),
    sub("client|reply", 3, NO_MULTI, reply),
    sub("client|setinfo", 4, 0, setinfo),
    sub("client|setname", 3, 0, setname),
    sub("client|tracking", -3, 0, tracking),
    sub("client|unblock", -3, 0, unblock),
    sub("client|unpause", 2, 0, unpause),
];

pub(super) fn client(call: &mut Call<'_, '_>) -> Step {
    subcommand(call)
}

/// Runs the subcommand that the second argument names. That there is one was checked in front of the command.
pub(super) fn subcommand(call: &mut Call<'_, '_>) -> Step {
    let sub = call.spec.sub(call.args).ok().flatten().expect("checked before the command runs");
    (sub.run)(call)
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
        return call.error_about("ERR Unrecognized option '", attribute, "'");
    }
    if !name_is_legal(value) {
        let why = " cannot contain spaces, newlines or special characters.";
        return call.error_about("ERR ", attribute, why);
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
            _ => {
                return call.error_about("ERR Unknown client type '", options.at(1), "'");
            }
        },
        (Some(b"ID"), 2..) => {
            let mut ids = Vec::new();
            for text in options.from(1).iter() {
                match parse_i64(text) {
                    Some(id) => ids.extend(u64::try_from(id)),
                    None => return call.error("ERR Invalid client ID"),
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
    /// Answers the error and gives `None` when the words make no sense.
    fn parse(call: &mut Call<'_, '_>) -> Step<Option<Victims>> {
        fn refused(call: &mut Call<'_, '_>, text: &str) -> Step<Option<Victims>> {
            call.error(text).map(|()| None)
        }
        let mut victims = Victims { spare_me: true, ..Victims::default() };
        let mut at = 2;
        while at < call.args.len() {
            let Some(value) = call.args.get(at + 1) else { return refused(call, errors::SYNTAX) };
            let text = || Some(String::from_utf8_lossy(value).into_owned());
            match call.args.at(at).to_ascii_uppercase().as_slice() {
                b"ID" => match parse_i64(value) {
                    Some(id @ 1..) => victims.id = Some(id as u64),
                    _ => return refused(call, "ERR client-id should be greater than 0"),
                },
                b"ADDR" => victims.addr = text(),
                b"LADDR" => victims.laddr = text(),
                b"USER" if value != b"default" => {
                    call.error_about("ERR No such user '", value, "'")?;
                    return Ok(None);
                }
                b"USER" => {}
                b"TYPE" => match value.to_ascii_lowercase().as_slice() {
                    b"normal" => {}
                    b"master" | b"replica" | b"slave" | b"pubsub" => victims.nobody = true,
                    _ => {
                        call.error_about("ERR Unknown client type '", value, "'")?;
                        return Ok(None);
                    }
                },
                b"SKIPME" => match value.to_ascii_lowercase().as_slice() {
                    b"yes" => victims.spare_me = true,
                    b"no" => victims.spare_me = false,
                    _ => return refused(call, errors::SYNTAX),
                },
                _ => return refused(call, errors::SYNTAX),
            }
            at += 2;
        }
        Ok(Some(victims))
    }

    fn include(&self, id: u64, facts: &super::ClientFacts) -> bool {
        !self.nobody
            && self.id.is_none_or(|wanted| wanted == id)
            && self.addr.as_ref().is_none_or(|wanted| *wanted == facts.addr)
            && self.laddr.as_ref().is_none_or(|wanted| *wanted == facts.laddr)
    }
}

fn kill(call: &mut Call<'_, '_>) -> Step {
    // The old form names one address and may mean the caller.
    let old_form = call.args.len() == 3;
    let victims = if old_form {
        let addr = Some(String::from_utf8_lossy(call.args.at(2)).into_owned());
        Victims { addr, ..Victims::default() }
    } else {
        let Some(victims) = Victims::parse(call)? else { return Ok(()) };
        victims
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
            // A muted connection stays muted.
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
    let known: [&[u8]; 4] = [b"BCAST", b"OPTIN", b"OPTOUT", b"NOLOOP"];
    let mut options = call.args.from(3).iter();
    while let Some(option) = options.next() {
        let with_value = option.eq_ignore_ascii_case(b"REDIRECT") || option.eq_ignore_ascii_case(b"PREFIX");
        let fits = match with_value {
            true => options.next().is_some(),
            false => known.iter().any(|known| option.eq_ignore_ascii_case(known)),
        };
        if !fits {
            return call.error(errors::SYNTAX);
        }
    }
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
    let reason = call.args.get(3);
    let known = |word: &[u8]| word.eq_ignore_ascii_case(b"TIMEOUT") || word.eq_ignore_ascii_case(b"ERROR");
    if call.args.len() > 4 {
        let why = "'. Try CLIENT HELP.";
        let about = "ERR unknown subcommand or wrong number of arguments for '";
        return call.error_about(about, call.args.at(1), why);
    }
    if reason.is_some_and(|word| !known(word)) {
        return call.error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR");
    }
    match parse_i64(call.args.at(2)) {
        Some(_) => call.integer(0),
        None => call.error(errors::NOT_INTEGER),
    }
}

/// Nothing is ever paused by a client.
fn unpause(call: &mut Call<'_, '_>) -> Step {
    call.ok()
}

/// HELP of every container: what there is, without the explanations of Redis.
pub(super) fn help(call: &mut Call<'_, '_>) -> Step {
    let upper = call.spec.name.to_ascii_uppercase();
    let known = call.spec.subs;
    let mut reply = call.reply();
    reply.array(known.len() + 1);
    reply.simple(&format!("{upper} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    known.iter().for_each(|sub| reply.simple(&sub.name().to_ascii_uppercase()));
    Ok(())
}
