//! `baton demo`: a cluster, steady writers, faults, and a verdict by the judge of the load room.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use baton::admin::{Exit, Failover, StopMode, Verb};
use baton::cluster::{NodeState, NodeStatus, Role};
use baton::load::{ProbeOptions, Prober, Verdict};
use serde::Serialize;

use super::args::{Common, Demo, SandboxUp};
use super::lifecycle::{LOOK_AGAIN, stop_node};
use super::sandbox::{self, Sandbox, bring_up, on_memory};
use super::{Fail, Outcome, ask, render};

const PATIENCE: Duration = Duration::from_secs(60);
const WRITERS: usize = 8;

/// What one act showed.
#[derive(Clone, Debug, Serialize)]
struct Act {
    name: &'static str,
    what: String,
    ms: u64,
}

#[derive(Debug, Serialize)]
struct Show {
    acts: Vec<Act>,
    verdict: Verdict,
    holds: bool,
}

struct Stage<'a> {
    common: &'a Common,
    acts: Vec<Act>,
}

impl Stage<'_> {
    fn say(&self, text: &str) {
        render::progress(self.common, text);
    }

    fn act(&mut self, name: &'static str, begin: Instant, what: String) {
        let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.say(&format!("  {what} ({ms} ms)"));
        self.acts.push(Act { name, what, ms });
    }
}

pub fn demo(common: &Common, verb: &Demo) -> Outcome {
    let dir = verb.dir.clone().map_or_else(default_dir, Ok)?;
    let up = SandboxUp {
        dir,
        nodes: verb.nodes,
        base_port: None,
        sync: None,
        commit: None,
        commit_timeout: None,
        allow_tmpfs: verb.allow_tmpfs,
        timeout: PATIENCE,
    };
    let mut stage = Stage { common, acts: Vec::new() };
    let begin = Instant::now();
    stage.say(&format!("act 1: a cluster of {} nodes in {}", verb.nodes, up.dir.display()));
    let sandbox = bring_up(&up, &mut |text| render::progress(common, text)).inspect_err(|_| {
        if let Ok(half) = Sandbox::open(&up.dir) {
            let _ = half.down();
        }
    })?;
    stage.act(
        "up",
        begin,
        format!("{} nodes, every one a process of its own, cluster_state Normal", verb.nodes),
    );
    let played = play(&mut stage, &sandbox, verb);
    // A failed show leaves its logs and data for whoever wants to know why.
    let cleaned = match (&played, verb.keep) {
        (_, true) => Ok(()),
        (Ok(verdict), false) if verdict.holds() => sandbox.down().and_then(|()| sandbox::remove(&sandbox)),
        _ => sandbox.down(),
    };
    let verdict = played.inspect_err(|_| {
        stage.say(&format!("logs and data are in {}", sandbox.dir.display()));
    })?;
    cleaned?;
    let holds = verdict.holds();
    let text = format!(
        "\nverdict: {verdict}\nlongest time without an acknowledged write: {} ms\n",
        verdict.longest_gap_ms
    );
    render::print(common, &Show { acts: stage.acts, verdict, holds }, &text);
    Ok(if holds { Exit::Ok } else { Exit::Broken })
}

/// Beside the working folder: the place for temporary files often lies in memory.
fn default_dir() -> Result<PathBuf, Fail> {
    let name = format!("baton-demo-{}", std::process::id());
    let temporary = std::env::temp_dir();
    let base = if on_memory(&temporary) {
        std::env::current_dir()
            .map_err(|error| Fail::failed(format!("no working folder: {error}"), "give --dir"))?
    } else {
        temporary
    };
    Ok(base.join(name))
}

fn play(stage: &mut Stage<'_>, sandbox: &Sandbox, verb: &Demo) -> Result<Verdict, Fail> {
    stage.say(&format!("act 2: {WRITERS} writers, every acknowledged write is remembered"));
    let prober = Prober::start(ProbeOptions {
        servers: sandbox.clients(),
        password: None,
        writers: WRITERS,
        keys_per_writer: 64,
        patience: Duration::from_secs(12),
        prefix: format!("demo:{}", std::process::id()),
    });
    let result = faults(stage, sandbox, verb, &prober);
    let history = prober.stop();
    result?;

    stage.say("the verdict: every key is read back from the primary");
    let begin = Instant::now();
    let primary = sandbox.primary().ok_or_else(|| Fail::failed("there is no primary to read from", ""))?;
    let verdict = history.verify(primary.config.client_listen, PATIENCE);
    stage.act("verify", begin, format!("{} keys read back", verdict.keys_read_back));
    Ok(verdict)
}

fn faults(stage: &mut Stage<'_>, sandbox: &Sandbox, verb: &Demo, prober: &Prober) -> Result<(), Fail> {
    steady(stage, prober, verb.steady)?;

    let old = sandbox.primary().ok_or_else(|| Fail::failed("there is no primary", ""))?.id;
    stage.say(&format!("act 3: the primary, node {old}, is killed with SIGKILL under load"));
    let begin = Instant::now();
    sandbox.kill(old)?;
    let new = take_over(sandbox, old)?;
    flowing(prober, "after the failover")?;
    stage.act("failover", begin, format!("node {new} took over and acknowledges writes"));
    steady(stage, prober, verb.steady)?;

    stage.say(&format!("act 4: the old primary, node {old}, comes back"));
    let begin = Instant::now();
    sandbox.start(old, None)?;
    sandbox.wait_normal(PATIENCE, &mut |text| stage_line(stage, text))?;
    stage.act("rejoin", begin, format!("node {old} follows node {new}, cluster_state Normal"));
    steady(stage, prober, verb.steady)?;

    let standby = sandbox
        .members
        .iter()
        .map(|member| member.id)
        .find(|id| *id != new)
        .ok_or_else(|| Fail::failed("there is no standby", ""))?;
    stage.say(&format!("act 5: standby node {standby} is restarted"));
    let begin = Instant::now();
    stop_node(&sandbox.member(standby)?.config.data, StopMode::Fast, PATIENCE)?;
    sandbox.start(standby, None)?;
    sandbox.wait_normal(PATIENCE, &mut |text| stage_line(stage, text))?;
    stage.act("restart", begin, "the standby resumed from its own log, cluster_state Normal".into());
    steady(stage, prober, verb.steady)
}

fn stage_line(stage: &Stage<'_>, text: &str) {
    stage.say(text);
}

/// Lets the writers work for a while and says how much they did.
fn steady(stage: &mut Stage<'_>, prober: &Prober, time: Duration) -> Result<(), Fail> {
    let (begin, before) = (Instant::now(), prober.acknowledged());
    while begin.elapsed() < time {
        std::thread::sleep(LOOK_AGAIN.min(time));
    }
    flowing(prober, "under steady load")?;
    let done = prober.acknowledged() - before;
    stage.act("steady", begin, format!("{done} writes acknowledged"));
    Ok(())
}

/// Waits for the next acknowledged write.
fn flowing(prober: &Prober, when: &str) -> Result<(), Fail> {
    let (begin, before) = (Instant::now(), prober.acknowledged());
    while prober.acknowledged() == before {
        if begin.elapsed() > PATIENCE {
            return Err(Fail::failed(
                format!("no write was acknowledged {when}"),
                "look at the logs of the nodes",
            ));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Asks the standbys, the one with the longest log first, until one has taken over.
fn take_over(sandbox: &Sandbox, old: u16) -> Result<u16, Fail> {
    let begin = Instant::now();
    loop {
        let mut rows: Vec<NodeStatus> =
            sandbox.rows().into_iter().filter(|row| row.node != old && row.role != Role::Down).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.flushed_lsn));
        let mut refusal = None;
        for row in &rows {
            let ready = row.role == Role::Primary && row.state == NodeState::Normal;
            let data = &sandbox.member(row.node)?.config.data;
            if ready {
                return Ok(row.node);
            }
            let failover = Failover { timeout_ms: 10_000, ..Failover::default() };
            match ask::ask(data, Verb::Failover(failover)).and_then(ask::result) {
                Ok(_) => return Ok(row.node),
                Err(fail) => refusal = Some(fail),
            }
        }
        if begin.elapsed() > PATIENCE {
            return Err(refusal.unwrap_or_else(|| Fail::failed("no standby is left", "")));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
