//! Commands about the node.

use std::io::Write;

use super::call::{Call, Step, Stop};
use super::client::{help_text, subcommand};
use super::host::Role;
use super::table::{self, COMMANDS, Spec, flags};
use super::{Mode, WaitRequest, errors, glob, keys};
use crate::base::limits;
use crate::resp::{Reply, parse_i64};

type Sub = (&'static str, i16, fn(&mut Call<'_, '_>) -> Step);

pub(super) fn cluster(call: &mut Call<'_, '_>) -> Step {
    call.error(errors::CLUSTER_DISABLED)
}

pub(super) fn time(call: &mut Call<'_, '_>) -> Step {
    let micros = call.engine.host.time_us();
    let mut reply = call.reply();
    reply.array(2);
    reply.bulk_i64((micros / 1_000_000) as i64);
    reply.bulk_i64((micros % 1_000_000) as i64);
    Ok(())
}

/// Every acknowledged write is on disk: the last save is now.
pub(super) fn lastsave(call: &mut Call<'_, '_>) -> Step {
    let seconds = call.engine.host.time_us() / 1_000_000;
    call.integer(seconds as i64)
}

pub(super) fn role(call: &mut Call<'_, '_>) -> Step {
    let role = call.engine.host.role();
    let mut reply = call.reply();
    match role {
        Role::Master { offset, replicas } => {
            reply.array(3);
            reply.bulk(b"master");
            reply.integer(offset as i64);
            reply.array(replicas.len());
            for replica in replicas {
                reply.array(3);
                reply.bulk(replica.host.as_bytes());
                reply.bulk_i64(i64::from(replica.port));
                reply.bulk_i64(replica.offset as i64);
            }
        }
        Role::Replica { host, port, state, offset } => {
            reply.array(5);
            reply.bulk(b"slave");
            reply.bulk(host.as_bytes());
            reply.integer(i64::from(port));
            reply.bulk(state.name().as_bytes());
            reply.integer(offset);
        }
    }
    Ok(())
}

/// Sections in the order of Redis. Those without a mark are shown by default.
const SECTIONS: [(&str, bool); 13] = [
    ("server", true),
    ("clients", true),
    ("memory", true),
    ("persistence", true),
    ("stats", true),
    ("replication", true),
    ("cpu", true),
    ("modules", true),
    ("commandstats", false),
    ("errorstats", true),
    ("cluster", true),
    ("keyspace", true),
    ("baton", true),
];

pub(super) fn info(call: &mut Call<'_, '_>) -> Step {
    let wanted = call.args.from(1);
    let asks_for = |name: &str, by_default: bool| {
        let default = wanted.is_empty() || wanted.iter().any(|w| w.eq_ignore_ascii_case(b"default"));
        let all =
            wanted.iter().any(|w| w.eq_ignore_ascii_case(b"all") || w.eq_ignore_ascii_case(b"everything"));
        all || default && by_default || wanted.iter().any(|w| w.eq_ignore_ascii_case(name.as_bytes()))
    };
    let mut text = Vec::new();
    for (name, by_default) in SECTIONS {
        if asks_for(name, by_default) {
            section(call, name, &mut text);
        }
    }
    call.reply().verbatim(*b"txt", &text);
    Ok(())
}

/// One section with its heading, set apart from those in front of it.
fn section(call: &mut Call<'_, '_>, name: &str, text: &mut Vec<u8>) {
    if !text.is_empty() {
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"# ");
    text.push(name.as_bytes()[0].to_ascii_uppercase());
    text.extend_from_slice(&name.as_bytes()[1..]);
    text.extend_from_slice(b"\r\n");
    let stats = &call.engine.state.stats;
    let written = match name {
        "modules" | "errorstats" => Ok(()),
        "cluster" => write!(text, "cluster_enabled:0\r\n"),
        "commandstats" => {
            stats.iter().filter(|(_, calls)| *calls != Default::default()).try_for_each(|(name, calls)| {
                write!(
                    text,
                    "cmdstat_{name}:calls={},usec=0,usec_per_call=0.00,rejected_calls={},failed_calls={}\r\n",
                    calls.executed, calls.rejected, calls.failed
                )
            })
        }
        "keyspace" => {
            let keys = keys::count_all(call);
            let due = call.engine.state.due.len() as u64;
            match keys {
                0 => Ok(()),
                keys => write!(text, "db0:keys={keys},expires={},avg_ttl=0\r\n", due.min(keys)),
            }
        }
        _ => {
            call.engine.host.info(name, text);
            match name {
                "stats" => write!(
                    text,
                    "total_commands_processed:{}\r\nexpired_keys:{}\r\nkeyspace_hits:{}\r\nkeyspace_misses:{}\r\n\
                     unknown_commands:{}\r\n",
                    stats.total(),
                    stats.expired,
                    stats.hits,
                    stats.misses,
                    stats.unknown
                ),
                _ => Ok(()),
            }
        }
    };
    written.expect("a vector takes every write");
}

const CONFIG: [Sub; 5] = [
    ("GET", -3, config_get),
    ("HELP", 2, config_help),
    ("RESETSTAT", 2, config_resetstat),
    ("REWRITE", 2, config_rewrite),
    ("SET", -4, config_set),
];

pub(super) fn config(call: &mut Call<'_, '_>) -> Step {
    subcommand(call, &CONFIG)
}

fn config_help(call: &mut Call<'_, '_>) -> Step {
    help_text(call, &CONFIG)
}

/// Parameters that tools and libraries read from any Redis, answered as what baton is: durable, one database, nothing
/// evicted. The node's own parameters win over these.
const FIXED: [(&str, &str); 11] = [
    ("appendfsync", "always"),
    ("appendonly", "yes"),
    ("cluster-enabled", "no"),
    ("databases", "1"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("notify-keyspace-events", ""),
    ("replica-read-only", "yes"),
    ("save", ""),
    ("slave-read-only", "yes"),
    ("timeout", "0"),
];

fn config_get(call: &mut Call<'_, '_>) -> Step {
    let patterns = call.args.from(2);
    let asked = |name: &str| patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes(), true));
    let mut found: Vec<(String, String)> = Vec::new();
    call.engine.host.visit_config(&mut |name, value| {
        if asked(name) {
            found.push((name.into(), value.into()));
        }
    });
    let limit = limits::VALUE_BYTES_MAX.to_string();
    for (name, value) in FIXED.iter().copied().chain([("proto-max-bulk-len", limit.as_str())]) {
        if asked(name) && found.iter().all(|(known, _)| known != name) {
            found.push((name.into(), value.into()));
        }
    }
    found.sort();
    let mut reply = call.reply();
    reply.map(found.len());
    for (name, value) in found {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    Ok(())
}

fn config_set(call: &mut Call<'_, '_>) -> Step {
    if call.in_exec {
        return call.error(errors::NOT_IN_MULTI);
    }
    if !call.args.len().is_multiple_of(2) {
        return call.error("ERR wrong number of arguments for 'config|set' command");
    }
    for at in (2..call.args.len()).step_by(2) {
        let text = |at: usize| String::from_utf8_lossy(call.args.at(at)).into_owned();
        let (name, value) = (text(at).to_ascii_lowercase(), text(at + 1));
        if let Err(why) = call.engine.host.config_set(&name, &value) {
            let text = format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}");
            return call.error(&text);
        }
    }
    call.ok()
}

fn config_resetstat(call: &mut Call<'_, '_>) -> Step {
    if call.in_exec {
        return call.error(errors::NOT_IN_MULTI);
    }
    call.engine.state.stats = table::CommandStats::default();
    call.engine.host.reset_stats();
    call.ok()
}

fn config_rewrite(call: &mut Call<'_, '_>) -> Step {
    call.error("ERR The configuration file is not changed by clients")
}

const COMMAND: [Sub; 6] = [
    ("COUNT", 2, command_count),
    ("DOCS", -2, command_docs),
    ("GETKEYS", -4, command_getkeys),
    ("HELP", 2, command_help),
    ("INFO", -2, command_info),
    ("LIST", -2, command_list),
];

pub(super) fn command(call: &mut Call<'_, '_>) -> Step {
    if call.args.len() > 1 {
        return subcommand(call, &COMMAND);
    }
    let mut reply = call.reply();
    reply.array(COMMANDS.len());
    COMMANDS.iter().for_each(|spec| describe(spec, &mut reply));
    Ok(())
}

fn command_help(call: &mut Call<'_, '_>) -> Step {
    help_text(call, &COMMAND)
}

fn command_count(call: &mut Call<'_, '_>) -> Step {
    call.integer(COMMANDS.len() as i64)
}

fn command_info(call: &mut Call<'_, '_>) -> Step {
    let names = call.args.from(2);
    if names.is_empty() {
        let mut reply = call.reply();
        reply.array(COMMANDS.len());
        COMMANDS.iter().for_each(|spec| describe(spec, &mut reply));
        return Ok(());
    }
    let mut reply = call.reply();
    reply.array(names.len());
    for name in names.iter() {
        match table::find(name) {
            Some(id) => describe(&COMMANDS[usize::from(id)], &mut reply),
            None => reply.null_array(),
        }
    }
    Ok(())
}

/// The ten elements of COMMAND INFO. Rules for access lists, tips and subcommands are left empty.
fn describe(spec: &Spec, reply: &mut Reply<'_>) {
    const NAMES: [(u16, &str); 7] = [
        (flags::WRITE, "write"),
        (flags::READ, "readonly"),
        (flags::ADMIN, "admin"),
        (flags::STALE, "loading"),
        (flags::STALE, "stale"),
        (flags::FAST, "fast"),
        (flags::NO_AUTH, "no_auth"),
    ];
    let names: Vec<&str> =
        NAMES.iter().filter(|(flag, _)| spec.flags & flag != 0).map(|(_, name)| *name).collect();
    reply.array(10);
    reply.bulk(spec.name.as_bytes());
    reply.integer(i64::from(spec.arity));
    reply.set(names.len());
    names.iter().for_each(|name| reply.simple(name));
    let (first, last, step) = spec.keys;
    [first, last, step].iter().for_each(|n| reply.integer(i64::from(*n)));
    reply.set(0);
    reply.array(0);
    reply.array(0);
    reply.array(0);
}

fn command_docs(call: &mut Call<'_, '_>) -> Step {
    let names = call.args.from(2);
    let wanted: Vec<&Spec> = match names.is_empty() {
        true => COMMANDS.iter().collect(),
        false => names.iter().filter_map(table::find).map(|id| &COMMANDS[usize::from(id)]).collect(),
    };
    let mut reply = call.reply();
    reply.map(wanted.len());
    for spec in wanted {
        reply.bulk(spec.name.as_bytes());
        reply.map(2);
        reply.bulk(b"summary");
        reply.bulk(spec.summary.as_bytes());
        reply.bulk(b"group");
        reply.bulk(spec.group.name().as_bytes());
    }
    Ok(())
}

fn command_list(call: &mut Call<'_, '_>) -> Step {
    let filter = call.args.from(2);
    let pattern = match (filter.len(), filter.get(0), filter.get(1)) {
        (0, _, _) => b"*".as_slice(),
        (3, Some(by), Some(kind)) if by.eq_ignore_ascii_case(b"FILTERBY") => {
            match kind.to_ascii_uppercase().as_slice() {
                b"PATTERN" => filter.at(2),
                // There are no modules and no access lists: nothing is in them.
                b"MODULE" | b"ACLCAT" => b"",
                _ => return call.error(errors::SYNTAX),
            }
        }
        _ => return call.error(errors::SYNTAX),
    };
    let names: Vec<&str> = COMMANDS
        .iter()
        .map(|spec| spec.name)
        .filter(|name| glob::matches(pattern, name.as_bytes(), true))
        .collect();
    let mut reply = call.reply();
    reply.set(names.len());
    names.iter().for_each(|name| reply.bulk(name.as_bytes()));
    Ok(())
}

fn command_getkeys(call: &mut Call<'_, '_>) -> Step {
    let asked = call.args.from(2);
    let Some(id) = table::find(asked.at(0)) else { return call.error("ERR Invalid command specified") };
    let spec = &COMMANDS[usize::from(id)];
    if !spec.arity_fits(asked.len()) {
        return call.error("ERR Invalid number of arguments specified for command");
    }
    let keys: Vec<&[u8]> = spec.keys_of(asked).collect();
    if keys.is_empty() {
        return call.error("ERR The command has no key arguments");
    }
    let mut reply = call.reply();
    reply.array(keys.len());
    keys.iter().for_each(|key| reply.bulk(key));
    Ok(())
}

pub(super) fn wait(call: &mut Call<'_, '_>) -> Step {
    let Some(replicas) = parse_i64(call.args.at(1)).filter(|n| i32::try_from(*n).is_ok()) else {
        return call.error(errors::NOT_INTEGER);
    };
    held_reply(call, None, replicas.max(0) as u32, 2)
}

pub(super) fn waitaof(call: &mut Call<'_, '_>) -> Step {
    let local = match parse_i64(call.args.at(1)) {
        Some(local @ (0 | 1)) => local == 1,
        _ => return call.error("ERR value is out of range, must be between 0 and 1"),
    };
    let Some(replicas) = parse_i64(call.args.at(2)).and_then(|n| u32::try_from(n).ok()) else {
        return call.error("ERR value is out of range, must be positive");
    };
    held_reply(call, Some(local), replicas, 3)
}

fn held_reply(call: &mut Call<'_, '_>, local: Option<bool>, replicas: u32, timeout_at: usize) -> Step {
    let timeout_ms = match parse_i64(call.args.at(timeout_at)) {
        None => return call.error("ERR timeout is not an integer or out of range"),
        Some(timeout) => match u64::try_from(timeout) {
            Ok(timeout) => timeout,
            Err(_) => return call.error("ERR timeout is negative"),
        },
    };
    if let Mode::Standby { .. } = call.engine.mode {
        let name = call.spec.name.to_ascii_uppercase();
        return call.error(&format!("ERR {name} cannot be used with replica instances."));
    }
    let request = WaitRequest { stamp: call.session.last_write, local, replicas, timeout_ms };
    if !call.in_exec {
        return Err(Stop::Wait(request));
    }
    // A transaction waits for nothing: it reports what is so by now, and its own writes are not.
    let acked = call.engine.host.replicas_acked(request.stamp);
    request.reply(false, acked, call.session, call.out);
    Ok(())
}
