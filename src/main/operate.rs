//! Verbs that change who leads, what the policy is, or what a running node is configured to do.

use std::fs;
use std::path::Path;

use baton::admin::{Exit, PolicySet, Request, Switchover, Verb};
use baton::cluster::{History, PolicyStatus};

use super::args::{self, Common, PolicyVerb};
use super::render::{print, tree};
use super::sandbox::Sandbox;
use super::show::millis;
use super::{Fail, Outcome, ask, place};

pub fn switchover(common: &Common, verb: &args::Switchover) -> Outcome {
    let config = place::node(common)?;
    let request = Switchover {
        to: verb.to,
        dry_run: verb.dry_run,
        expect_term: verb.expect_term,
        timeout_ms: millis(verb.timeout),
    };
    let op = verb.op.clone().map_or_else(ask::fresh_op, Ok)?;
    let result = ask::result(ask::ask_as(&config.data, &Request::new(op, Verb::Switchover(request)))?)?;
    let head = if verb.dry_run { "nothing was changed; this would happen:" } else { "done:" };
    print(common, &result, &format!("{head}\n{}", tree(&result)));
    Ok(Exit::Ok)
}

pub fn policy(common: &Common, verb: PolicyVerb) -> Outcome {
    let config = place::node(common)?;
    match verb {
        PolicyVerb::Show => {
            let policy: PolicyStatus = ask::typed(&config.data, Verb::PolicyShow)?;
            let mut text = format!("generation {}: {}\n", policy.generation, policy.rule);
            text += &format!("each write on {} of {} voters\n", policy.k + 1, policy.voters.len());
            for pending in &policy.pending {
                text += &format!("under way: generation {}: {}\n", pending.generation, pending.rule);
            }
            text += &format!("failover_spare: {}\n", policy.spare_in_words());
            print(common, &policy, &text);
        }
        PolicyVerb::Set { rule, expect_generation, force, dry_run, timeout, op } => {
            let timeout_ms = millis(timeout);
            let set = PolicySet { rule, expect_generation, force, dry_run, timeout_ms };
            let op = op.map_or_else(ask::fresh_op, Ok)?;
            let result = ask::result(ask::ask_as(&config.data, &Request::new(op, Verb::PolicySet(set)))?)?;
            let head = if dry_run { "nothing was changed; this would happen:" } else { "done:" };
            print(common, &result, &format!("{head}\n{}", tree(&result)));
        }
    }
    Ok(Exit::Ok)
}

pub fn finalize_upgrade(common: &Common) -> Outcome {
    let config = place::node(common)?;
    let request = Request::new(ask::fresh_op()?, Verb::FinalizeUpgrade);
    let result = ask::result(ask::ask_as(&config.data, &request)?)?;
    print(common, &result, &format!("done:\n{}", tree(&result)));
    Ok(Exit::Ok)
}

/// Reads the file here and hands its text to the node, which takes what it can.
pub fn reload(common: &Common) -> Outcome {
    let path = place::config_path(common)?;
    let config = place::load(&path)?;
    let text = fs::read_to_string(&path)
        .map_err(|error| Fail::usage(format!("cannot read {}: {error}", path.display()), ""))?;
    let folder = std::path::absolute(path.parent().unwrap_or(Path::new("")))
        .map_err(|error| Fail::usage(format!("{}: {error}", path.display()), ""))?;
    let verb = Verb::Reload { text, folder: folder.display().to_string() };
    let result = ask::result(ask::ask(&config.data, verb)?)?;
    let mut shown = String::new();
    let kinds = [
        ("applied", "took effect"),
        ("restart", "needs a restart of the node"),
        ("policy", "is not read from the file any more: use `baton policy set`"),
    ];
    for (kind, words) in kinds {
        for row in result[kind].as_array().into_iter().flatten() {
            let word = |name: &str| row[name].as_str().unwrap_or("?").to_string();
            shown += &format!("{}: {} -> {} {words}\n", word("key"), word("from"), word("to"));
        }
    }
    if shown.is_empty() {
        shown = "the file says what is in force already\n".into();
    }
    print(common, &result, &shown);
    Ok(Exit::Ok)
}

pub fn history(common: &Common, dir: Option<&Path>, limit: usize) -> Outcome {
    let history = match dir {
        Some(dir) => {
            // A node that is down still has its file.
            let sandbox = Sandbox::open(dir)?;
            let mut merged = History::merged(sandbox.members.iter().map(|member| {
                ask::typed(&member.config.data, Verb::History { limit })
                    .unwrap_or_else(|_| History { rows: baton::node::read_history(&member.config.data) })
            }));
            let skip = if limit == 0 { 0 } else { merged.rows.len().saturating_sub(limit) };
            merged.rows.drain(..skip);
            merged
        }
        None => {
            let data = place::node(common)?.data;
            match ask::typed(&data, Verb::History { limit }) {
                Ok(history) => history,
                Err(fail) if fail.exit == Exit::Down => {
                    let rows = baton::node::read_history(&data);
                    if rows.is_empty() {
                        return Err(fail);
                    }
                    let skip = if limit == 0 { 0 } else { rows.len().saturating_sub(limit) };
                    History { rows: rows.into_iter().skip(skip).collect() }
                }
                Err(fail) => return Err(fail),
            }
        }
    };
    print(common, &history, &history.text());
    Ok(Exit::Ok)
}
