//! `baton drill`: switchovers there and back under a write load, judged from outside.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use baton::admin::{Exit, Switchover, Verb};
use baton::cluster::{ClusterState, ClusterStatus, NodeState, Role};
use baton::config::Config;
use baton::load::{ProbeOptions, Prober, Verdict};
use serde::Serialize;

use super::args::{Common, Drill};
use super::lifecycle::LOOK_AGAIN;
use super::sandbox::Sandbox;
use super::show::millis;
use super::{Fail, Outcome, ask, drill_kill, place, render};

pub const PATIENCE: Duration = Duration::from_secs(60);
/// Load between two switchovers, so that each is measured in a steady state.
const STEADY: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Gaps {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Gaps {
    pub fn of(gaps: &[f64]) -> Gaps {
        let mut sorted = gaps.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let rank = (part * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Gaps { p50: at(0.5), p99: at(0.99), max: sorted.last().copied().unwrap_or(0.0) }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    runs: u64,
    completed: u64,
    gap_ms: Gaps,
    /// Each one, in the order in which they were done.
    gaps: Vec<f64>,
    /// Acknowledged writes that could not be read back.
    lost: usize,
    errors: Vec<String>,
    verdict: Verdict,
}

/// The cluster as the drill reaches it: a sandbox, or one node of a cluster and what it knows.
enum Reach {
    Sandbox(Sandbox),
    Node(Box<Config>),
}

impl Reach {
    fn clients(&self) -> Vec<SocketAddr> {
        match self {
            Reach::Sandbox(sandbox) => sandbox.clients(),
            Reach::Node(config) => config.members.iter().filter_map(|member| member.client).collect(),
        }
    }

    fn status(&self) -> Result<ClusterStatus, Fail> {
        match self {
            Reach::Sandbox(sandbox) => Ok(sandbox.status()),
            Reach::Node(config) => ask::typed(&config.data, Verb::ClusterStatus { detail: true }),
        }
    }

    fn config(&self) -> &Config {
        match self {
            Reach::Sandbox(sandbox) => &sandbox.members[0].config,
            Reach::Node(config) => config,
        }
    }

    /// Where requests go: the primary itself when it can be asked, else the one node there is.
    fn socket(&self, primary: u16) -> Result<PathBuf, Fail> {
        match self {
            Reach::Sandbox(sandbox) => Ok(sandbox.member(primary)?.config.data.clone()),
            Reach::Node(config) => Ok(config.data.clone()),
        }
    }

    fn wait_normal(&self) -> Result<ClusterStatus, Fail> {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            let caught_up = status.nodes.iter().all(|node| node.state == NodeState::Normal);
            if status.cluster_state == ClusterState::Normal && caught_up {
                return Ok(status);
            }
            if Instant::now() >= end {
                let message = format!("the cluster is {} and does not become Normal", status.cluster_state);
                return Err(Fail::new(
                    Exit::Refused,
                    "refused",
                    message,
                    "look at `baton cluster status --detail`",
                ));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

pub fn drill(common: &Common, verb: &Drill) -> Outcome {
    if let (true, Some(dir)) = (verb.kill, &verb.dir) {
        return drill_kill::drill(common, verb, &Sandbox::open(dir)?);
    }
    let reach = match &verb.dir {
        Some(dir) => Reach::Sandbox(Sandbox::open(dir)?),
        None => Reach::Node(Box::new(place::node(common)?)),
    };
    let begin = reach.wait_normal()?;
    let home = begin.primary().map_or(0, |row| row.node);
    let away = partner(&reach, &begin, home)?;
    render::progress(
        common,
        &format!("{} switchovers between nodes {home} and {away}, {} writers", verb.times, verb.writers),
    );
    let prober = writers(verb, reach.clients(), reach.config());
    let (mut gaps, mut errors) = (Vec::new(), Vec::new());
    let mut ended = Ok(());
    for run in 0..verb.times {
        ended = steady(&prober).and_then(|()| reach.wait_normal()).and_then(|status| {
            let primary = status.primary().map_or(home, |row| row.node);
            let to = if primary == home { away } else { home };
            prober.take_gap();
            match hand_over(&reach, primary, to, verb.timeout) {
                Ok(()) => {
                    flowing(&prober)?;
                    let gap = prober.take_gap().as_secs_f64() * 1000.0;
                    render::progress(
                        common,
                        &format!("  {}: node {primary} -> {to}, gap {gap:.1} ms", run + 1),
                    );
                    gaps.push(tenths(gap));
                }
                Err(fail) => {
                    render::progress(
                        common,
                        &format!("  {}: node {primary} -> {to}: {}", run + 1, fail.message),
                    );
                    errors.push(fail.message);
                }
            }
            Ok(())
        });
        if ended.is_err() {
            break;
        }
    }
    let history = prober.stop();
    ended?;
    let primary = reach.wait_normal()?.primary().and_then(|row| row.client.clone());
    let Some(client) = primary.and_then(|client| client.parse().ok()) else {
        return Err(Fail::failed(
            "the primary's client address is not known",
            "set `client` of every [[member]]",
        ));
    };
    let verdict = history.verify(client, PATIENCE);
    let lost = verdict.violations.len();
    let completed = gaps.len() as u64;
    let gap_ms = Gaps::of(&gaps);
    let report = Report { runs: verb.times, completed, gap_ms, gaps, lost, errors, verdict };
    render::print(common, &report, &text(&report));
    Ok(match (report.verdict.holds(), report.errors.is_empty()) {
        (false, _) => Exit::Broken,
        (true, false) => Exit::Failed,
        (true, true) => Exit::Ok,
    })
}

/// The load of a drill.
pub fn writers(verb: &Drill, servers: Vec<SocketAddr>, config: &Config) -> Prober {
    Prober::start(ProbeOptions {
        servers,
        password: config.client_password.as_ref().map(|secret| secret.reveal().to_string()),
        writers: usize::from(verb.writers),
        // Every key that held something at a change of primary is read back at the end.
        keys_per_writer: (512 / usize::from(verb.writers)).clamp(8, 64),
        patience: Duration::from_secs(12),
        prefix: format!("drill:{}", std::process::id()),
    })
}

pub fn tenths(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

/// The standby with the highest priority that may lead.
fn partner(reach: &Reach, status: &ClusterStatus, home: u16) -> Result<u16, Fail> {
    let config = reach.config();
    let fits = |row: &&baton::cluster::NodeStatus| {
        let member = config.members.iter().find(|member| member.node.0 == row.node);
        row.role == Role::Standby
            && member.is_some_and(|m| !m.nofailover && m.upstream.is_none() && m.apply_delay.is_none())
            && status.policy.as_ref().is_none_or(|policy| policy.voters.contains(&row.node))
    };
    let priority = |row: &&baton::cluster::NodeStatus| {
        config.members.iter().find(|member| member.node.0 == row.node).map_or(0, |member| member.priority)
    };
    let best = status.nodes.iter().filter(|row| row.node != home).filter(fits).max_by_key(priority);
    best.map(|row| row.node).ok_or_else(|| {
        Fail::new(Exit::Refused, "refused", "no standby may take over", "a drill needs a voting standby")
    })
}

fn hand_over(reach: &Reach, primary: u16, to: u16, timeout: Duration) -> Result<(), Fail> {
    let switchover = Switchover { to: Some(to), timeout_ms: millis(timeout), ..Switchover::default() };
    ask::result(ask::ask(&reach.socket(primary)?, Verb::Switchover(switchover))?).map(drop)
}

pub fn steady(prober: &Prober) -> Result<(), Fail> {
    flowing(prober)?;
    std::thread::sleep(STEADY);
    flowing(prober)
}

pub fn flowing(prober: &Prober) -> Result<(), Fail> {
    let (begin, before) = (Instant::now(), prober.acknowledged());
    while prober.acknowledged() == before {
        if begin.elapsed() > PATIENCE {
            return Err(Fail::failed("no write is acknowledged any more", "look at the logs of the nodes"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let Gaps { p50, p99, max } = report.gap_ms;
    let mut text = format!(
        "{} of {} switchovers done, time without an acknowledged write: p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms\n{}\n",
        report.completed, report.runs, report.verdict
    );
    for error in &report.errors {
        let _ = writeln!(text, "  {error}");
    }
    let word = if report.lost == 0 { "HOLDS: nothing was lost" } else { "BROKEN" };
    let _ = writeln!(text, "verdict: {word}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let gaps: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(Gaps::of(&gaps), Gaps { p50: 50.0, p99: 99.0, max: 100.0 });
        assert_eq!(Gaps::of(&[7.0]), Gaps { p50: 7.0, p99: 7.0, max: 7.0 });
        assert_eq!(Gaps::of(&[]), Gaps::default());
    }
}
