//! Commands about the node.

use std::collections::BTreeMap;
use std::io::Write;

use super::call::{Call, Step, Stop};
use super::client::{help, subcommand};
use super::host::Role;
use super::table::{self, COMMANDS, Spec, Sub, flags, sub};
use super::{Mode, WaitRequest, errors, glob, keys};
use crate::base::limits;
use crate::resp::{Reply, parse_i64};

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

pub(super) static CONFIG: [Sub; 5] = [
    sub("config|get", -3, 0, config_get),
    sub("config|help", 2, 0, help),
    sub("config|resetstat", 2, 0, config_resetstat),
    sub("config|rewrite", 2, 0, config_rewrite),
    sub("config|set", -4, 0, config_set),
];

pub(super) fn config(call: &mut Call<'_, '_>) -> Step {
    subcommand(call)
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

/// Every parameter with its value, by name.
fn parameters(call: &mut Call<'_, '_>) -> BTreeMap<String, String> {
    let limit = limits::VALUE_BYTES_MAX.to_string();
    let fixed = FIXED.iter().copied().chain([("proto-max-bulk-len", limit.as_str())]);
    let mut all: BTreeMap<String, String> = fixed.map(|(name, value)| (name.into(), value.into())).collect();
    call.engine.host.visit_config(&mut |name, value| {
        all.insert(name.into(), value.into());
    });
    all
}

fn config_get(call: &mut Call<'_, '_>) -> Step {
    let mut found = BTreeMap::new();
    let all = parameters(call);
    for pattern in call.args.from(2).iter() {
        for (name, value) in all.iter().filter(|(name, _)| glob::matches(pattern, name.as_bytes(), true)) {
            // As in Redis a name is given back as it was asked for.
            let plain = name.as_bytes().eq_ignore_ascii_case(pattern);
            found.insert(name, (if plain { pattern } else { name.as_bytes() }, value));
        }
    }
    let mut reply = call.reply();
    reply.map(found.len());
    for (name, value) in found.into_values() {
        reply.bulk(name);
        reply.bulk(value.as_bytes());
    }
    Ok(())
}

/// Setting a parameter to what it is already is fine: tools do that to make sure of it.
fn config_set(call: &mut Call<'_, '_>) -> Step {
    if !call.args.len().is_multiple_of(2) {
        return call.error(errors::SYNTAX);
    }
    let all = parameters(call);
    let mut wanted: Vec<(String, String)> = Vec::new();
    for at in (2..call.args.len()).step_by(2) {
        let text = |at: usize| String::from_utf8_lossy(call.args.at(at)).into_owned();
        let name = text(at).to_ascii_lowercase();
        if !all.contains_key(&name) {
            let about = "ERR Unknown option or number of arguments for CONFIG SET - '";
            return call.error_about(about, call.args.at(at), "'");
        }
        if wanted.iter().any(|(known, _)| *known == name) {
            return config_set_failed(call, &name, "duplicate parameter");
        }
        wanted.push((name, text(at + 1)));
    }
    for (name, value) in wanted {
        if all[&name] != value
            && let Err(why) = call.engine.host.config_set(&name, &value)
        {
            return config_set_failed(call, &name, &why);
        }
    }
    call.ok()
}

fn config_set_failed(call: &mut Call<'_, '_>, name: &str, why: &str) -> Step {
    call.error(&format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}"))
}

fn config_resetstat(call: &mut Call<'_, '_>) -> Step {
    call.engine.state.stats = table::CommandStats::default();
    call.engine.host.reset_stats();
    call.ok()
}

fn config_rewrite(call: &mut Call<'_, '_>) -> Step {
    call.error("ERR The configuration file is not changed by clients")
}

pub(super) static COMMAND: [Sub; 6] = [
    sub("command|count", 2, 0, command_count),
    sub("command|docs", -2, 0, command_docs),
    sub("command|getkeys", -4, 0, command_getkeys),
    sub("command|help", 2, 0, help),
    sub("command|info", -2, 0, command_info),
    sub("command|list", -2, 0, command_list),
];

pub(super) fn command(call: &mut Call<'_, '_>) -> Step {
    if call.args.len() > 1 {
        return subcommand(call);
    }
    let mut reply = call.reply();
    reply.array(COMMANDS.len());
    COMMANDS.iter().for_each(|spec| describe(spec, &mut reply));
    Ok(())
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
        match named(name) {
            Some((spec, None)) => describe(spec, &mut reply),
            Some((spec, Some(sub))) => describe_sub(spec, sub, &mut reply),
            None => reply.null(),
        }
    }
    Ok(())
}

/// What `name` or `container|name` stands for.
fn named(name: &[u8]) -> Option<(&'static Spec, Option<&'static Sub>)> {
    let spec = |name| table::find(name).map(|id| &COMMANDS[usize::from(id)]);
    match name.iter().position(|byte| *byte == b'|') {
        None => Some((spec(name)?, None)),
        Some(at) => {
            let spec = spec(&name[..at])?;
            let sub = spec.subs.iter().find(|sub| sub.full.as_bytes().eq_ignore_ascii_case(name))?;
            Some((spec, Some(sub)))
        }
    }
}

/// The ten elements of COMMAND INFO. Rules for access lists, tips and key specifications are left empty.
fn describe(spec: &Spec, reply: &mut Reply<'_>) {
    head(spec.name, spec.arity, spec, reply);
    reply.array(spec.subs.len());
    spec.subs.iter().for_each(|sub| describe_sub(spec, sub, reply));
}

fn describe_sub(spec: &Spec, sub: &Sub, reply: &mut Reply<'_>) {
    head(sub.full, sub.arity, spec, reply);
    reply.array(0);
}

/// All of the elements but the last, which holds the subcommands.
fn head(name: &str, arity: i16, spec: &Spec, reply: &mut Reply<'_>) {
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
    reply.bulk(name.as_bytes());
    reply.integer(i64::from(arity));
    reply.set(names.len());
    names.iter().for_each(|name| reply.simple(name));
    let (first, last, step) = spec.keys;
    [first, last, step].iter().for_each(|n| reply.integer(i64::from(*n)));
    reply.set(0);
    reply.set(0);
    reply.set(0);
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
        .flat_map(|spec| std::iter::once(spec.name).chain(spec.subs.iter().map(|sub| sub.full)))
        .filter(|name| glob::matches(pattern, name.as_bytes(), true))
        .collect();
    let mut reply = call.reply();
    reply.array(names.len());
    names.iter().for_each(|name| reply.bulk(name.as_bytes()));
    Ok(())
}

fn command_getkeys(call: &mut Call<'_, '_>) -> Step {
    let asked = call.args.from(2);
    let Some(id) = table::find(asked.at(0)) else { return call.error("ERR Invalid command specified") };
    let spec = &COMMANDS[usize::from(id)];
    if !table::arity_fits(spec.arity, asked.len()) {
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
    if let Mode::Standby { .. } = call.engine.mode {
        return call.error(errors::WAIT_ON_REPLICA);
    }
    let Some(replicas) = parse_i64(call.args.at(1)) else {
        return call.error(errors::NOT_INTEGER);
    };
    held_reply(call, None, replicas.clamp(0, i64::from(u32::MAX)) as u32, 2)
}

pub(super) fn waitaof(call: &mut Call<'_, '_>) -> Step {
    let local = match parse_i64(call.args.at(1)) {
        Some(local @ (0 | 1)) => local == 1,
        Some(_) => return call.error("ERR value is out of range, value must between 0 and 1"),
        None => return call.error(errors::NOT_INTEGER),
    };
    let Some(replicas @ 0..) = parse_i64(call.args.at(2)) else {
        return call.error("ERR value is out of range, must be positive");
    };
    held_reply(call, Some(local), replicas.min(i64::from(u32::MAX)) as u32, 3)
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
        return call.error(errors::WAITAOF_ON_REPLICA);
    }
    let request = WaitRequest { stamp: call.session.last_write, local, replicas, timeout_ms };
    if !call.in_exec {
        return Err(Stop::Wait(request));
    }
    // A transaction waits for nothing: it reports what is so by now, and its own writes are not.
    let acked = call.engine.host.replicas_acked(request.stamp);
    request.reply(false, acked, &mut call.reply());
    Ok(())
}
