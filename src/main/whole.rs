//! `baton cluster stop` and `start`: all nodes of a sandbox folder, so that nothing is lost and the next start needs no
//! catch-up.

use std::path::Path;
use std::time::{Duration, Instant};

use baton::admin::{Exit, Failover, StopMode, Verb};
use baton::cluster::{NodeStatus, Role};
use serde_json::{Value, json};

use super::args::Common;
use super::lifecycle::{LOOK_AGAIN, stop_node};
use super::process::Running;
use super::render::{print, progress};
use super::sandbox::Sandbox;
use super::{Fail, Outcome, ask};

const PATIENCE: Duration = Duration::from_secs(60);

/// The primary goes first and waits until every standby that listens holds the end of its log; then the others.
pub fn stop(common: &Common, dir: &Path) -> Outcome {
    let sandbox = Sandbox::open(dir)?;
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
        (Some(lsn), true) => format!("all is down; every connected standby holds the log up to {lsn}\n"),
        (Some(lsn), false) => format!("all is down; node {} lacks log below {lsn}\n", behind.join(", ")),
    };
    print(common, &value, &text);
    Ok(if behind.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// Every node that is down, then the one with the longest log as the primary, unless somebody leads already.
pub fn start(common: &Common, dir: &Path) -> Outcome {
    let sandbox = Sandbox::open(dir)?;
    let down: Vec<u16> = sandbox
        .members
        .iter()
        .filter(|member| Running::find(&member.config.data).is_none())
        .map(|member| member.id)
        .collect();
    sandbox.start_these(&down)?;
    if sandbox.primary().is_none() {
        lead(common, &sandbox)?;
    }
    sandbox.wait_normal(PATIENCE, &mut |text| progress(common, text))?;
    let primary = sandbox.primary().map(|member| member.id);
    let value = json!({"started": down, "primary": primary});
    let text = format!("{} node(s) started, node {} leads\n", down.len(), primary.unwrap_or(0));
    print(common, &value, &text);
    Ok(Exit::Ok)
}

/// Asks the fittest node to lead: the longest log first, then priority; those that must not lead come not at all.
fn lead(common: &Common, sandbox: &Sandbox) -> Result<(), Fail> {
    let end = Instant::now() + PATIENCE;
    let mut asked = None;
    loop {
        // After a blackout the node that led last asks by itself, and may be faster.
        if sandbox.primary().is_some() {
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
        if asked.replace(first.node) != Some(first.node) {
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
