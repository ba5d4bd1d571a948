//! `baton drill --kill`: the primary of a sandbox dies under load, a standby takes over by the operator's own command,
//! and the dead node comes back, again and again; judged from outside.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use baton::admin::{Exit, PolicySet, Verb};
use baton::cluster::{NodeState, Role};
use baton::load::{Prober, Verdict};
use serde::Serialize;
use serde_json::Value;

use super::args::{Common, Drill};
use super::drill::{Gaps, PATIENCE, flowing, steady, tenths, writers};
use super::sandbox::Sandbox;
use super::{Fail, Outcome, ask, render};

/// Replies that the dead primary had sent are read within this time; none of them is the successor's first.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// A voter that was started less than a read lease ago promises nothing yet, because it may have granted one in its life
/// before: the next death waits for that, so that each is measured alone.
const LEASE_OVER: Duration = Duration::from_millis(1200);
/// Between two looks at a node that comes back.
const LOOK: Duration = Duration::from_millis(5);

/// What one death cost.
#[derive(Clone, Debug, Serialize)]
struct Death {
    killed: u16,
    leads: u16,
    /// From starting `baton failover` to the first acknowledged write, and to the end of the command.
    first_write_ms: f64,
    command_ms: f64,
    /// From starting the dead node to: the new primary streams to it and it is a standby in state Normal.
    rejoin_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    runs: u64,
    completed: u64,
    first_write_ms: Gaps,
    command_ms: Gaps,
    rejoin_ms: Gaps,
    /// Pages that the nodes that came back took from another node: a rejoin needs the log alone.
    pages_copied: u64,
    each: Vec<Death>,
    lost: usize,
    errors: Vec<String>,
    verdict: Verdict,
}

pub fn drill(common: &Common, verb: &Drill, sandbox: &Sandbox) -> Outcome {
    sandbox.wait_normal(PATIENCE, &mut |_| {})?;
    let how = if verb.alone { "failovers of the last node" } else { "failovers" };
    render::progress(common, &format!("{} kills and {how}, {} writers", verb.times, verb.writers));
    let prober = writers(verb, sandbox.clients(), &sandbox.members[0].config);
    let (mut each, mut errors, mut pages_copied) = (Vec::new(), Vec::new(), 0);
    for run in 0..verb.times {
        let done = steady(&prober)
            .and_then(|()| sandbox.wait_normal(PATIENCE, &mut |_| {}))
            .and_then(|()| once(sandbox, &prober, verb.alone));
        match done {
            Ok((death, pages)) => {
                let Death { killed, leads, first_write_ms, command_ms, rejoin_ms } = death;
                render::progress(
                    common,
                    &format!(
                        "  {}: node {killed} killed, node {leads} leads: first write {first_write_ms:.1} ms, \
                         command {command_ms:.1} ms; back and streaming after {rejoin_ms:.1} ms",
                        run + 1
                    ),
                );
                pages_copied += pages;
                each.push(death);
            }
            Err(fail) => {
                // What is left of the cluster is for a human to look at.
                render::progress(common, &format!("  {}: {}", run + 1, fail.message));
                errors.push(fail.message);
                break;
            }
        }
    }
    let history = prober.stop();
    let verdict = match sandbox.primary() {
        Some(primary) => history.verify(primary.config.client_listen, PATIENCE),
        None => return Err(Fail::failed(errors.join("; "), "look at the logs of the nodes")),
    };
    let of = |part: fn(&Death) -> f64| Gaps::of(&each.iter().map(part).collect::<Vec<_>>());
    let report = Report {
        runs: verb.times,
        completed: each.len() as u64,
        first_write_ms: of(|death| death.first_write_ms),
        command_ms: of(|death| death.command_ms),
        rejoin_ms: of(|death| death.rejoin_ms),
        pages_copied,
        lost: verdict.violations.len(),
        each,
        errors,
        verdict,
    };
    render::print(common, &report, &text(&report));
    Ok(match (report.verdict.holds(), report.errors.is_empty()) {
        (false, _) => Exit::Broken,
        (true, false) => Exit::Failed,
        (true, true) => Exit::Ok,
    })
}

fn once(sandbox: &Sandbox, prober: &Prober, alone: bool) -> Result<(Death, u64), Fail> {
    let primary = sandbox.primary().ok_or_else(|| Fail::failed("nobody leads", ""))?.id;
    let ids: Vec<u16> = sandbox.members.iter().map(|member| member.id).collect();
    let at = ids.iter().position(|id| *id == primary).unwrap_or(0);
    let heir = sandbox.member(ids[(at + 1) % ids.len()])?;
    let rule = sandbox.status().policy.map(|policy| policy.rule);

    sandbox.kill(primary)?;
    while prober.silence() < LAST_WORDS {
        std::thread::sleep(LOOK);
    }
    let mark = prober.mark();
    let begin = Instant::now();
    take_over(&heir.path, alone)?;
    let command = begin.elapsed();
    flowing(prober)?;
    let first = prober.first_since(mark).ok_or_else(|| Fail::failed("no write after the failover", ""))?;
    steady(prober)?;

    let begin = Instant::now();
    sandbox.start(primary, None)?;
    let back = &sandbox.member(primary)?.config.data;
    loop {
        let row: baton::cluster::NodeStatus = ask::typed(back, Verb::Status)?;
        let fits = row.role == Role::Standby && row.state == NodeState::Normal;
        if fits && streams(&query(&heir.config.data)?, primary) {
            break;
        }
        if begin.elapsed() > PATIENCE {
            return Err(Fail::failed(
                format!("node {primary} does not stream again: {} {}", row.role, row.state_text()),
                "look at its log",
            ));
        }
        std::thread::sleep(LOOK);
    }
    let rejoin = begin.elapsed();
    std::thread::sleep(LEASE_OVER.saturating_sub(rejoin));
    let pages = query(back)?["pages"]["repaired"].as_u64().unwrap_or(0);
    if let (true, Some(rule)) = (alone, rule) {
        let set = PolicySet { rule, ..PolicySet::default() };
        ask::result(ask::ask(&heir.config.data, Verb::PolicySet(set))?)?;
    }
    let ms = |time: Duration| tenths(time.as_secs_f64() * 1000.0);
    let death = Death {
        killed: primary,
        leads: heir.id,
        first_write_ms: ms(first),
        command_ms: ms(command),
        rejoin_ms: ms(rejoin),
    };
    Ok((death, pages))
}

/// The command as an operator gives it, with the start of its process.
fn take_over(config: &std::path::Path, alone: bool) -> Result<(), Fail> {
    let failed = |error: std::io::Error| Fail::failed(format!("cannot run the command: {error}"), "");
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command
        .args(["failover", "--json", "--config"])
        .arg(config)
        .env_remove("BATON_DATA")
        .stdin(Stdio::null());
    if alone {
        command.args(["--alone", "--accept-loss"]);
    }
    let done = command.output().map_err(failed)?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stdout);
    Err(Fail::failed(
        format!("baton failover: {} {}", done.status, said.trim()),
        "look at the logs of the nodes",
    ))
}

fn query(data: &std::path::Path) -> Result<Value, Fail> {
    ask::result(ask::ask(data, Verb::Query)?)
}

fn streams(query: &Value, node: u16) -> bool {
    let senders = query["senders"].as_array();
    senders.is_some_and(|rows| rows.iter().any(|row| row["node"] == node && row["state"] == "Streaming"))
}

fn text(report: &Report) -> String {
    let mut text = format!("{} of {} failovers done\n", report.completed, report.runs);
    for (what, Gaps { p50, p99, max }) in [
        ("command to the first acknowledged write", report.first_write_ms),
        ("command to its end", report.command_ms),
        ("start of the dead node until it streams", report.rejoin_ms),
    ] {
        let _ = writeln!(text, "  {what}: p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms");
    }
    let _ = writeln!(text, "  pages copied by those who came back: {}", report.pages_copied);
    let _ = writeln!(text, "{}", report.verdict);
    for error in &report.errors {
        let _ = writeln!(text, "  {error}");
    }
    let word = if report.lost == 0 { "HOLDS: nothing was lost" } else { "BROKEN" };
    let _ = writeln!(text, "verdict: {word}");
    text
}
