//! Commands about the connection itself.

use super::call::{Call, Step};
use super::errors;
use super::host::Role;
use super::session::{CommitLevel, ReplyMode, Session};
use super::{REDIS_VERSION, client};
use crate::resp::{Proto, parse_i64};

pub(super) fn ping(call: &mut Call<'_, '_>) -> Step {
    match call.args.len() {
        1 => call.reply().simple("PONG"),
        2 => {
            let text = call.args.at(1);
            call.reply().bulk(text);
        }
        _ => return call.error("ERR wrong number of arguments for 'ping' command"),
    }
    Ok(())
}

pub(super) fn echo(call: &mut Call<'_, '_>) -> Step {
    let text = call.args.at(1);
    call.reply().bulk(text);
    Ok(())
}

pub(super) fn quit(call: &mut Call<'_, '_>) -> Step {
    call.session.closing = true;
    call.ok()
}

pub(super) fn select(call: &mut Call<'_, '_>) -> Step {
    match parse_i64(call.args.at(1)) {
        Some(0) => call.ok(),
        Some(index) if i32::try_from(index).is_ok() => call.error(errors::DB_INDEX),
        Some(_) => call.error(errors::INT_RANGE),
        None => call.error(errors::NOT_INTEGER),
    }
}

pub(super) fn readonly(call: &mut Call<'_, '_>) -> Step {
    call.session.readonly = true;
    call.ok()
}

pub(super) fn readwrite(call: &mut Call<'_, '_>) -> Step {
    call.session.readonly = false;
    call.ok()
}

/// `BATON.COMMIT [level | default]`
pub(super) fn commit_level(call: &mut Call<'_, '_>) -> Step {
    match call.args.get(1) {
        None => {
            let name = call.session.level.map_or("default", CommitLevel::name);
            call.reply().bulk(name.as_bytes());
            Ok(())
        }
        Some(_) if call.args.len() > 2 => call.error(errors::SYNTAX),
        Some(name) if name.eq_ignore_ascii_case(b"default") => {
            call.session.level = None;
            call.ok()
        }
        Some(name) => match CommitLevel::parse(name) {
            Some(level) => {
                call.session.level = Some(level);
                call.ok()
            }
            None => {
                call.error("ERR unknown commit level: off, local, remote_write, on, remote_apply or default")
            }
        },
    }
}

pub(super) fn reset(call: &mut Call<'_, '_>) -> Step {
    call.engine.state.watches.forget(call.session.id);
    let authenticated = !call.engine.host.password_required();
    let fresh = Session::new(call.session.id, authenticated);
    let old = std::mem::replace(call.session, fresh);
    // What belongs to the library and to the log of writes outlives a reset.
    call.session.lib_name = old.lib_name;
    call.session.lib_version = old.lib_version;
    call.session.last_write = old.last_write;
    call.session.last_command = old.last_command;
    // As in Redis it ends a mute, and is still left out itself behind SKIP.
    if old.reply_mode == ReplyMode::Skipping {
        call.session.reply_mode = ReplyMode::Skipping;
    }
    call.reply().simple("RESET");
    Ok(())
}

pub(super) fn auth(call: &mut Call<'_, '_>) -> Step {
    let (user, password) = match call.args.len() {
        2 if !call.engine.host.password_required() => return call.error(errors::AUTH_WITHOUT_PASSWORD),
        2 => (b"default".as_slice(), call.args.at(1)),
        3 => (call.args.at(1), call.args.at(2)),
        _ => return call.error(errors::SYNTAX),
    };
    if !authenticate(call, user, password) {
        return call.error(errors::WRONG_PASS);
    }
    call.ok()
}

/// As in Redis the default user takes any password while none is configured.
fn authenticate(call: &mut Call<'_, '_>, user: &[u8], password: &[u8]) -> bool {
    let host = call.host();
    let open = user == b"default" && !host.password_required();
    let known = open || host.password_ok(user, password);
    call.session.authenticated |= known;
    known
}

pub(super) fn hello(call: &mut Call<'_, '_>) -> Step {
    let proto = match call.args.get(1).map(parse_i64) {
        None => None,
        Some(Some(2)) => Some(Proto::Resp2),
        Some(Some(3)) => Some(Proto::Resp3),
        Some(Some(_)) => return call.error(errors::NO_PROTO),
        Some(None) => return call.error("ERR Protocol version is not an integer or out of range"),
    };
    let mut name = None;
    let mut at = 2;
    while let Some(option) = call.args.get(at) {
        let (one, two) = (call.args.get(at + 1), call.args.get(at + 2));
        match (option.to_ascii_uppercase().as_slice(), one, two) {
            (b"AUTH", Some(user), Some(password)) => {
                if !authenticate(call, user, password) {
                    return call.error(errors::WRONG_PASS);
                }
                at += 3;
            }
            (b"SETNAME", Some(wanted), _) => {
                if !client::name_is_legal(wanted) {
                    return call.error(errors::BAD_NAME);
                }
                name = Some(wanted);
                at += 2;
            }
            _ => {
                return call.error_about("ERR Syntax error in HELLO option '", option, "'");
            }
        }
    }
    if !call.session.authenticated {
        return call.error(errors::NO_AUTH_HELLO);
    }
    if let Some(name) = name {
        call.session.name = name.to_vec();
    }
    call.session.proto = proto.unwrap_or(call.session.proto);
    describe(call);
    Ok(())
}

fn describe(call: &mut Call<'_, '_>) {
    let role = match call.engine.host.role() {
        Role::Master { .. } => "master",
        Role::Replica { .. } => "replica",
    };
    let (id, proto) = (call.session.id as i64, call.session.proto);
    let mut reply = call.reply();
    reply.map(7);
    for (name, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"proto");
    reply.integer(proto.number());
    reply.bulk(b"id");
    reply.integer(id);
    for (name, value) in [("mode", "standalone"), ("role", role)] {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"modules");
    reply.array(0);
}
