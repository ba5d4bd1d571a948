//! `baton cluster stop` and `start`: all nodes of a cluster that live on this machine, so that nothing is lost and the
//! next start needs no catch-up. They are those of a sandbox folder, or those whose configurations are named.

use std::time::{Duration, Instant};

use baton::admin::{Exit, Failover, StopMode, Verb};
use baton::base::Lsn;
use baton::cluster::{NodeStatus, Role};
use serde_json::{Value, json};

use super::args::{Common, Whole};
use super::lifecycle::{LOOK_AGAIN, stop_node};
use super::process::Running;
use super::render::{print, progress};
use super::sandbox::Sandbox;
use super::{Fail, Outcome, ask, place};

const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes that are meant: all of a sandbox, or those of the named configurations.
fn nodes(common: &Common, which: &Whole) -> Result<Sandbox, Fail> {
    match &which.dir {
        Some(dir) => Sandbox::open(dir),
        None => {
            let first = place::config_path(common).map_err(|fail| Fail {
                hint: "name a sandbox with --dir DIR, or configurations with --config FILE [FILE]...".into(),
                ..fail
            })?;
            Sandbox::of_files(std::iter::once(&first).chain(&which.more))
        }
    }
}

/// The primary goes first and waits until every standby that listens holds the end of its log; then the others.
pub fn stop(common: &Common, which: &Whole) -> Outcome {
    let sandbox = nodes(common, which)?;
    let rows = sandbox.rows();
    let leads = |row: &&NodeStatus| row.role == Role::Primary;
    let mut told = Value::Null;
    let mut stopped = Vec::new();
    if let Some(primary) = rows.iter().find(leads) {
        progress(
            common,
            &format!("node {}, the primary: waiting until the standbys hold its log", primary.node),
        );
        let data = &sandbox.member(primary.node)?.config.data;
        let running = Running::find(data);
        told = ask::result(ask::ask(data, Verb::Stop { mode: StopMode::Fast })?)?;
        if running.is_some_and(|running| !running.wait(PATIENCE)) {
            let message = format!("node {} has answered and does not end", primary.node);
            return Err(Fail::new(
                Exit::Unknown,
                "timeout",
                message,
                "`baton stop -m immediate` waits for nothing",
            ));
        }
        stopped.push(primary.node);
    }
    for member in sandbox.members.iter().filter(|member| !stopped.contains(&member.id)).collect::<Vec<_>>() {
        if stop_node(&member.config.data, StopMode::Fast, PATIENCE)? {
            stopped.push(member.id);
            progress(common, &format!("node {} stopped", member.id));
        }
    }
    let standbys = told["standbys"].as_array().cloned().unwrap_or_default();
    let behind: Vec<String> =
        standbys.iter().filter(|row| row["holds"] != true).map(|row| row["node"].to_string()).collect();
    let value = json!({"stopped": stopped, "final_lsn": told["final_lsn"], "standbys": standbys});
    let text = match (told["final_lsn"].as_u64(), behind.is_empty()) {
        (None, _) => format!("{} node(s) stopped; there was no primary\n", stopped.len()),
        (Some(lsn), true) => {
            format!("all is down; every connected standby holds the log up to {}\n", Lsn(lsn))
        }
        (Some(lsn), false) => {
            format!("all is down; node {} lacks log below {}\n", behind.join(", "), Lsn(lsn))
        }
    };
    print(common, &value, &text);
    Ok(if behind.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// Every node that is down, then the one with the longest log as the primary, unless somebody leads already.
pub fn start(common: &Common, which: &Whole) -> Outcome {
    let sandbox = nodes(common, which)?;
    let down: Vec<u16> = sandbox
        .members
        .iter()
        .filter(|member| Running::find(&member.config.data).is_none())
        .map(|member| member.id)
        .collect();
    sandbox.start_these(&down)?;
    if sandbox.leader().is_none() {
        lead(common, &sandbox)?;
    }
    sandbox.wait_normal(PATIENCE, &mut |text| progress(common, text))?;
    let primary = sandbox.leader();
    let value = json!({"started": down, "primary": primary});
    let text = format!("{} node(s) started, node {} leads\n", down.len(), primary.unwrap_or(0));
    print(common, &value, &text);
    Ok(Exit::Ok)
}

/// Asks the fittest node to lead: the longest log first, then priority; those that must not lead come not at all.
fn lead(common: &Common, sandbox: &Sandbox) -> Result<(), Fail> {
    let end = Instant::now() + PATIENCE;
    let mut told = 0;
    loop {
        // A node that has just started may hear of a leader on another machine only now.
        if sandbox.leader().is_some() {
            return Ok(());
        }
        let mut rows: Vec<NodeStatus> =
            sandbox.rows().into_iter().filter(|row| row.role != Role::Down).collect();
        let fitness = |row: &NodeStatus| {
            let me = sandbox.member(row.node).ok().map(|member| member.config.me().clone());
            let (allowed, priority) = me.map_or((false, 0), |me| {
                (!me.nofailover && me.apply_delay.is_none() && me.upstream.is_none(), me.priority)
            });
            (allowed, row.flushed_lsn, priority, std::cmp::Reverse(row.node))
        };
        rows.sort_by_key(|row| std::cmp::Reverse(fitness(row)));
        let Some(first) = rows.first() else {
            return Err(Fail::failed("no node came up", "look at the logs"));
        };
        if std::mem::replace(&mut told, first.node) != first.node {
            progress(common, &format!("node {} is asked to lead", first.node));
        }
        let failover = Failover { timeout_ms: 10_000, ..Failover::default() };
        let data = &sandbox.member(first.node)?.config.data;
        match ask::ask(data, Verb::Failover(failover)).and_then(ask::result) {
            Ok(_) => return Ok(()),
            Err(fail) if Instant::now() >= end => return Err(fail),
            Err(_) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}
