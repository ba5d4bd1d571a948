//! `baton demo`: a cluster, steady writers, faults, and a verdict by the judge of the load room; then the same judge over
//! simulated power cuts.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use baton::admin::{Exit, Failover, StopMode, Switchover, Verb};
use baton::cluster::{NodeState, NodeStatus, Role};
use baton::load::{Answer, Client, LagSummary, LatencySummary, ProbeOptions, Prober, Verdict, Violation};
use baton::node::control::PID_FILE;
use serde::Serialize;

use super::args::{Common, Demo, SandboxUp};
use super::bench::LagWatch;
use super::demo_cuts::{self, Cuts};
use super::lifecycle::{LOOK_AGAIN, stop_node};
use super::sandbox::{self, Sandbox, bring_up, on_memory};
use super::{Fail, Outcome, ask, render};

const PATIENCE: Duration = Duration::from_secs(60);
const WRITERS: usize = 8;
/// How long the primary goes on with every standby frozen: shorter than its lease, so that it still may answer where the
/// reply level lets it.
const FROZEN: Duration = Duration::from_millis(400);

/// What one act showed.
#[derive(Clone, Debug, Serialize)]
struct Act {
    name: &'static str,
    what: String,
    ms: u64,
    /// Of an act that is nothing but load.
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<Load>,
}

/// How the writers did for a while.
#[derive(Clone, Debug, Serialize)]
struct Load {
    acknowledged: u64,
    throughput: f64,
    latency_us: LatencySummary,
    lag: Option<LagSummary>,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |us: u64| us as f64 / 1000.0;
        let (p50, p99) = (ms(self.latency_us.p50), ms(self.latency_us.p99));
        let (count, rate) = (self.acknowledged, self.throughput);
        write!(f, "{count} writes acknowledged, {rate:.0} per second, p50 {p50:.2} ms, p99 {p99:.2} ms")?;
        match &self.lag {
            Some(lag) => {
                let time = lag.max_ms.map_or_else(String::new, |ms| format!(", {ms} ms"));
                write!(f, ", standby lag at most {}{time}", render::bytes(lag.max_bytes))
            }
            None => Ok(()),
        }
    }
}

#[derive(Debug, Serialize)]
struct Show {
    /// Where the cluster lives, when it was kept.
    dir: Option<PathBuf>,
    commit: String,
    acts: Vec<Act>,
    verdict: Verdict,
    power_cuts: Option<Cuts>,
    holds: bool,
}

struct Stage<'a> {
    common: &'a Common,
    sandbox: &'a Sandbox,
    steady: Duration,
    /// Number of the next act.
    next: usize,
    acts: Vec<Act>,
}

impl Stage<'_> {
    fn say(&self, text: &str) {
        render::progress(self.common, text);
    }

    fn open(&mut self, text: &str) -> Instant {
        self.say(&format!("act {}: {text}", self.next));
        self.next += 1;
        Instant::now()
    }

    /// The command that an operator would type for what the demo does now.
    fn command(&self, text: &str) {
        self.say(&format!("  $ {text}"));
    }

    fn node(&self, id: u16) -> String {
        self.sandbox.dir.join(id.to_string()).display().to_string()
    }

    fn pid(&self, id: u16) -> String {
        format!("$(cat {}/{PID_FILE})", self.node(id))
    }

    fn act(&mut self, name: &'static str, begin: Instant, what: String) {
        self.act_with(name, begin, what, None);
    }

    fn act_with(&mut self, name: &'static str, begin: Instant, what: String, load: Option<Load>) {
        let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.say(&format!("  {what} ({ms} ms)"));
        self.acts.push(Act { name, what, ms, load });
    }

    /// One line that is written over again and again while something takes its time; only for a terminal.
    fn live(&self, text: &str) {
        if !self.common.json && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
        }
    }

    fn kill(&self, ids: &[u16]) -> Result<(), Fail> {
        let pids: Vec<String> = ids.iter().map(|id| self.pid(*id)).collect();
        self.command(&format!("kill -9 {}", pids.join(" ")));
        self.sandbox.kill_all(ids)
    }

    fn start(&self, ids: &[u16]) -> Result<(), Fail> {
        ids.iter().for_each(|id| self.command(&format!("baton start -D {}", self.node(*id))));
        self.sandbox.start_these(ids)
    }

    fn wait_normal(&self) -> Result<(), Fail> {
        self.sandbox.wait_normal(PATIENCE, &mut |text| self.say(text))
    }

    fn primary(&self) -> Result<u16, Fail> {
        let primary = self.sandbox.primary().ok_or_else(|| Fail::failed("there is no primary", ""))?;
        Ok(primary.id)
    }

    fn others(&self, than: u16) -> Vec<u16> {
        self.sandbox.members.iter().map(|member| member.id).filter(|id| *id != than).collect()
    }
}

pub fn demo(common: &Common, verb: &Demo) -> Outcome {
    let dir = verb.dir.clone().map_or_else(|| default_dir(common), Ok)?;
    let up = SandboxUp {
        dir,
        nodes: verb.nodes,
        base_port: None,
        sync: None,
        commit: Some(verb.commit.clone()),
        commit_timeout: None,
        store: None,
        degrade: None,
        upstream: Vec::new(),
        allow_tmpfs: verb.allow_tmpfs,
        timeout: PATIENCE,
    };
    let begin = Instant::now();
    let say = |text: &str| render::progress(common, text);
    let (shown, commit) = (up.dir.display(), &verb.commit);
    say(&format!("act 1: a cluster of {} nodes, each a process of its own, commit = {commit}", verb.nodes));
    say(&format!("  $ baton sandbox up --dir {shown} --nodes {} --commit {commit}", verb.nodes));
    let sandbox = bring_up(&up, &mut |text| say(text)).inspect_err(|_| {
        if let Ok(half) = Sandbox::open(&up.dir) {
            let _ = half.down();
        }
        // Only if it is empty: then nobody has a use for it.
        let _ = std::fs::remove_dir(&up.dir);
    })?;
    let mut stage = Stage { common, sandbox: &sandbox, steady: verb.steady, next: 2, acts: Vec::new() };
    stage.act("up", begin, format!("{} nodes, cluster_state Normal", verb.nodes));
    let played = as_configured(&sandbox, commit).and_then(|()| play(&mut stage));
    // A failed show leaves its logs and data for whoever wants to know why; a loss that was asked for surprises nobody.
    let cleaned = match &played {
        _ if verb.keep => Ok(()),
        Ok(verdict) if verdict.holds() || !survives_failover(commit) => {
            sandbox.down().and_then(|()| sandbox::remove(&sandbox))
        }
        _ => {
            stage.say(&format!("logs and data are in {}", sandbox.dir.display()));
            sandbox.down()
        }
    };
    let verdict = played?;
    cleaned?;
    let power_cuts = match verb.power_cuts {
        0 => None,
        count => Some(cut_power(&mut stage, verb, count)?),
    };
    let holds = verdict.holds() && power_cuts.as_ref().is_none_or(Cuts::holds);
    let kept = verb.keep.then(|| sandbox.dir.clone());
    let show = Show { dir: kept, commit: commit.clone(), acts: stage.acts, verdict, power_cuts, holds };
    let mut text = table(&show);
    if verb.keep {
        text += &to_paste(&sandbox);
    }
    render::print(common, &show, &text);
    Ok(if holds { Exit::Ok } else { Exit::Broken })
}

/// A folder that held a sandbox before keeps its own configuration.
fn as_configured(sandbox: &Sandbox, commit: &str) -> Result<(), Fail> {
    match sandbox.members.iter().find(|member| member.config.commit.name() != commit) {
        None => Ok(()),
        Some(member) => {
            let message =
                format!("node {} of this sandbox has commit = {}", member.id, member.config.commit.name());
            Err(Fail::usage(message, "say the same --commit, or choose another --dir"))
        }
    }
}

/// Whether a reply at this level promises that the write survives the loss of the primary.
fn survives_failover(commit: &str) -> bool {
    matches!(commit, "on" | "remote_apply")
}

/// Everything at a glance, and what it means.
fn table(show: &Show) -> String {
    let mut text = String::from("\nact         time        what was shown\n");
    for act in &show.acts {
        let _ = writeln!(text, "{:<11} {:>8} ms {}", act.name, act.ms, act.what);
    }
    let _ = writeln!(text, "\ncluster:    {}", show.verdict);
    let _ = writeln!(
        text,
        "            longest time without an acknowledged write: {} ms",
        show.verdict.longest_gap_ms
    );
    if let Some(cuts) = &show.power_cuts {
        let _ = writeln!(text, "power cuts: {}", cuts.verdict);
        if let Some(why) = &cuts.stuck {
            let _ = writeln!(text, "            after cut {}: {why}", cuts.cuts);
        }
        if !cuts.holds() {
            let _ = writeln!(text, "            again: --seed {} --power-cuts {}", cuts.seed, cuts.cuts);
        }
    }
    let lost = show.verdict.violations.iter().filter(|v| matches!(v, Violation::Lost { .. })).count();
    let commit = &show.commit;
    if !survives_failover(commit) {
        let what = match lost {
            0 => "nothing was lost this time, which is luck and no promise".to_string(),
            _ => format!("{lost} keys have lost acknowledged writes, and that is the point of this run"),
        };
        let _ = writeln!(
            text,
            "\ncommit = {commit}: replies did not wait until a standby had flushed the write:\n{what}.\n\
             The same acts with --commit on, the default, lose nothing."
        );
    }
    let _ = writeln!(
        text,
        "\nverdict: {}",
        if show.holds { "HOLDS: all that was acknowledged is there" } else { "BROKEN" }
    );
    text
}

/// Lines for whoever goes on with the cluster that was kept.
fn to_paste(sandbox: &Sandbox) -> String {
    let dir = sandbox.dir.display();
    let primary = sandbox.primary().unwrap_or(&sandbox.members[0]);
    let (id, port) = (primary.id, primary.config.client_listen.port());
    format!(
        "\nthe cluster is still up; node {id} leads:\n\
         \x20 baton cluster status --detail -D {dir}/{id}\n\
         \x20 redis-cli -p {port} set hello world\n\
         \x20 baton bench -D {dir}/{id} --clients 50 --seconds 5\n\
         \x20 baton cluster history --dir {dir}\n\
         \x20 baton sandbox down --dir {dir} --purge\n"
    )
}

/// The place for temporary files often lies in memory, where durable means nothing: then another one, and a word about it.
fn default_dir(common: &Common) -> Result<PathBuf, Fail> {
    let temporary = std::env::temp_dir();
    let here = std::env::current_dir()
        .map_err(|error| Fail::failed(format!("no working folder: {error}"), "give --dir"))?;
    let places = [temporary.clone(), here, PathBuf::from("/var/tmp")];
    // When all of them do, the sandbox says so and refuses.
    let base = places.iter().find(|place| place.is_dir() && !on_memory(place)).unwrap_or(&temporary);
    if *base != temporary {
        let (memory, base) = (temporary.display(), base.display());
        render::progress(
            common,
            &format!(
                "{memory} is a memory file system (tmpfs), where \"durable\" means nothing: using {base}"
            ),
        );
    }
    Ok(base.join(format!("baton-demo-{}", std::process::id())))
}

fn play(stage: &mut Stage<'_>) -> Result<Verdict, Fail> {
    stage.open(&format!("{WRITERS} writers, every acknowledged write is remembered"));
    let prober = Prober::start(ProbeOptions {
        servers: stage.sandbox.clients(),
        password: None,
        writers: WRITERS,
        keys_per_writer: 64,
        patience: Duration::from_secs(12),
        prefix: format!("demo:{}", std::process::id()),
    });
    let result = faults(stage, &prober);
    let history = prober.stop();
    result?;

    let begin = stage.open("every key is read back from the primary");
    let primary = stage.primary()?;
    let verdict = history.verify(stage.sandbox.member(primary)?.config.client_listen, PATIENCE);
    let broken = verdict.violations.len();
    stage.act("verify", begin, format!("{} keys read back, {broken} of them wrong", verdict.keys_read_back));
    Ok(verdict)
}

fn faults(stage: &mut Stage<'_>, prober: &Prober) -> Result<(), Fail> {
    steady(stage, prober)?;
    switched_over(stage, prober)?;
    let old = primary_lost(stage, prober)?;
    rejoin(stage, prober, old)?;
    standby_restarted(stage, prober)?;
    let old = last_writes_on_the_primary_alone(stage, prober)?;
    rejoin(stage, prober, old)?;
    all_killed(stage, prober)
}

/// Planned: the primary hands over under load, and hands back.
fn switched_over(stage: &mut Stage<'_>, prober: &Prober) -> Result<(), Fail> {
    let home = stage.primary()?;
    let away = stage.others(home)[0];
    for (from, to) in [(home, away), (away, home)] {
        let begin = stage.open(&format!("switchover under load: node {from} hands over to node {to}"));
        stage.command(&format!("baton switchover -D {} --to {to}", stage.node(from)));
        prober.take_gap();
        let switchover = Switchover { to: Some(to), ..Switchover::default() };
        let data = &stage.sandbox.member(from)?.config.data;
        ask::result(ask::ask(data, Verb::Switchover(switchover))?)?;
        flowing(prober, "after the switchover")?;
        let gap = prober.take_gap().as_secs_f64() * 1000.0;
        stage.wait_normal()?;
        stage.act("switchover", begin, format!("node {to} leads; no write was answered for {gap:.1} ms"));
        steady(stage, prober)?;
    }
    Ok(())
}

fn primary_lost(stage: &mut Stage<'_>, prober: &Prober) -> Result<u16, Fail> {
    let old = stage.primary()?;
    let begin = stage.open(&format!("the primary, node {old}, is killed under load"));
    stage.kill(&[old])?;
    let new = take_over(stage, Some(old))?;
    flowing(prober, "after the failover")?;
    stage.act("failover", begin, format!("node {new} took over and acknowledges writes"));
    steady(stage, prober)?;
    Ok(old)
}

fn rejoin(stage: &mut Stage<'_>, prober: &Prober, old: u16) -> Result<(), Fail> {
    let begin = stage.open(&format!("the old primary, node {old}, comes back"));
    stage.start(&[old])?;
    let answer = refused_write(stage, old)?;
    stage.wait_normal()?;
    let what =
        format!("node {old} is fenced ({answer}), follows node {}, cluster_state Normal", stage.primary()?);
    stage.act("rejoin", begin, what);
    steady(stage, prober)
}

/// A write sent to the old primary itself: whatever its state, it must not take it. The value is the first word of the
/// refusal.
fn refused_write(stage: &Stage<'_>, old: u16) -> Result<String, Fail> {
    let config = &stage.sandbox.member(old)?.config;
    stage.command(&format!("redis-cli -p {} set fenced 0", config.client_listen.port()));
    let answer = Client::connect(config.client_listen, None, PATIENCE)
        .and_then(|mut client| client.call(&[b"SET", b"fenced", b"0"]))
        .map_err(|error| Fail::failed(format!("node {old} does not answer a client: {error}"), ""))?;
    match answer {
        Answer::Error(text) => {
            let text = String::from_utf8_lossy(&text).into_owned();
            stage.say(&format!("  {text}"));
            Ok(text.split_whitespace().next().unwrap_or_default().to_string())
        }
        other => Err(Fail::new(
            Exit::Broken,
            "broken",
            format!("node {old} was replaced and took a write: {other:?}"),
            "this must never happen: keep the logs",
        )),
    }
}

fn standby_restarted(stage: &mut Stage<'_>, prober: &Prober) -> Result<(), Fail> {
    let standby = stage.others(stage.primary()?)[0];
    let begin = stage.open(&format!("standby node {standby} is restarted"));
    stage.command(&format!("baton restart -D {}", stage.node(standby)));
    stop_node(&stage.sandbox.member(standby)?.config.data, StopMode::Fast, PATIENCE)?;
    stage.sandbox.start(standby, None)?;
    stage.wait_normal()?;
    stage.act("restart", begin, "the standby resumed from its own log, cluster_state Normal".into());
    steady(stage, prober)
}

/// The primary goes on for a moment while no standby can hear it, and dies. The frozen standbys die too: what their
/// kernels hold unread for them is lost, as with a machine. Only the standbys come back.
fn last_writes_on_the_primary_alone(stage: &mut Stage<'_>, prober: &Prober) -> Result<u16, Fail> {
    let old = stage.primary()?;
    let standbys = stage.others(old);
    let begin = stage.open(&format!("the standbys freeze, then the primary, node {old}, is lost for now"));
    let pids: Vec<String> = standbys.iter().map(|id| stage.pid(*id)).collect();
    stage.command(&format!("kill -STOP {}", pids.join(" ")));
    stage.sandbox.freeze(&standbys)?;
    let before = prober.acknowledged();
    std::thread::sleep(FROZEN);
    stage.kill(&[old])?;
    let alone = prober.acknowledged() - before;
    stage.kill(&standbys)?;
    stage.start(&standbys)?;
    let new = take_over(stage, Some(old))?;
    flowing(prober, "after the failover")?;
    let what = format!("{alone} writes acknowledged while the standbys were frozen; node {new} took over");
    stage.act("cut off", begin, what);
    steady(stage, prober)?;
    Ok(old)
}

fn all_killed(stage: &mut Stage<'_>, prober: &Prober) -> Result<(), Fail> {
    let all: Vec<u16> = stage.sandbox.members.iter().map(|member| member.id).collect();
    let begin = stage.open("all nodes are killed at once under load");
    stage.kill(&all)?;
    stage.start(&all)?;
    let new = take_over(stage, None)?;
    flowing(prober, "after the death of all nodes")?;
    stage.wait_normal()?;
    stage.act("all killed", begin, format!("node {new} leads what was there, cluster_state Normal"));
    steady(stage, prober)
}

fn cut_power(stage: &mut Stage<'_>, verb: &Demo, count: u64) -> Result<Cuts, Fail> {
    let seed = verb.seed.map_or_else(fresh_seed, Ok)?;
    let begin = stage.open(&format!("{count} power cuts of a simulated machine with one node, seed {seed}"));
    stage.command(&format!("baton demo --seed {seed} --power-cuts {count}"));
    let cuts = demo_cuts::run(seed, count, &verb.commit, &mut |text| render::progress(stage.common, text));
    let what = format!(
        "{} cuts in {:.1} simulated s, {} of them during a start; {} disk writes torn, {} lost",
        cuts.cuts,
        cuts.simulated_ms as f64 / 1000.0,
        cuts.while_starting,
        cuts.disk_writes_torn,
        cuts.disk_writes_lost
    );
    stage.act("power cuts", begin, what);
    Ok(cuts)
}

fn fresh_seed() -> Result<u64, Fail> {
    let mut bytes = [0u8; 4];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| std::io::Read::read_exact(&mut random, &mut bytes))
        .map_err(|error| Fail::failed(format!("no random numbers: {error}"), "give --seed"))?;
    Ok(u64::from(u32::from_le_bytes(bytes)))
}

/// Lets the writers work for a while and says how much they did.
fn steady(stage: &mut Stage<'_>, prober: &Prober) -> Result<(), Fail> {
    let time = stage.steady;
    let lag = LagWatch::start(stage.sandbox.member(stage.primary()?)?.config.data.clone());
    prober.take_latency();
    let (begin, before) = (Instant::now(), prober.acknowledged());
    while begin.elapsed() < time {
        std::thread::sleep(LOOK_AGAIN.min(time));
        let (done, spent) = (prober.acknowledged() - before, begin.elapsed().as_secs_f64());
        stage.live(&format!("  {spent:.1} s: {done} writes acknowledged"));
    }
    stage.live("");
    let (done, spent) = (prober.acknowledged() - before, begin.elapsed().as_secs_f64());
    let load = Load {
        acknowledged: done,
        throughput: done as f64 / spent,
        latency_us: prober.take_latency(),
        lag: LagSummary::of(&lag.stop()),
    };
    flowing(prober, "under steady load")?;
    stage.act_with("steady", begin, load.to_string(), Some(load));
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
fn take_over(stage: &Stage<'_>, lost: Option<u16>) -> Result<u16, Fail> {
    let (begin, sandbox) = (Instant::now(), stage.sandbox);
    let mut asked = None;
    loop {
        let mut rows: Vec<NodeStatus> = sandbox
            .rows()
            .into_iter()
            .filter(|row| Some(row.node) != lost && row.role != Role::Down)
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.flushed_lsn));
        let mut refusal = None;
        for row in &rows {
            let ready = row.role == Role::Primary && row.state == NodeState::Normal;
            let data = &sandbox.member(row.node)?.config.data;
            if ready {
                return Ok(row.node);
            }
            if asked != Some(row.node) {
                stage.command(&format!("baton failover -D {}", stage.node(row.node)));
                asked = Some(row.node);
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
