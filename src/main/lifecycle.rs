//! init, run, start, stop, restart.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use baton::admin::{Exit, StopMode, Verb};
use baton::base::ClusterId;
use baton::cluster::{NodeState, NodeStatus, Role};
use baton::config::Config;
use baton::node::{self, InitDone, InitOptions, RunOptions};
use rustix::process::Signal;
use serde_json::json;

use super::args::{Common, Init, Restart, RoleArg, Run, Start, Stop};
use super::process::{self, Running};
use super::{Fail, Outcome, ask, logging, place, render};

/// Between two looks at a condition that is waited for.
pub const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long a node that is changing its role is watched before it is reported as it is.
const SETTLE: Duration = Duration::from_secs(3);

// ---- init ----

pub fn init(common: &Common, verb: &Init) -> Outcome {
    let path = place::config_path(common)?;
    let cluster_id = verb
        .cluster_id
        .as_deref()
        .map(|text| {
            let hint = "copy the 32 hex digits that the first `baton init` printed";
            text.parse::<ClusterId>().map_err(|_| Fail::usage(format!("{text:?} is no cluster id"), hint))
        })
        .transpose()?;
    let text = if path.exists() { None } else { Some(config_text(verb)?) };
    if text.is_none() {
        agrees(&place::load(&path)?, verb, &path)?;
    }
    let (config, done) = init_node(&path, text.as_deref(), cluster_id)?;
    let value = json!({
        "node": config.node.0,
        "cluster": config.cluster,
        "cluster_id": done.cluster_id.to_string(),
        "incarnation": done.incarnation.to_string(),
        "data": config.data,
        "config": path,
        "sync": config.sync.to_string(),
    });
    let mut shown = format!(
        "node {} of cluster {} is ready in {}\n  cluster id   {}\n  incarnation  {}\n  policy       {}\n",
        config.node,
        config.cluster,
        config.data.display(),
        done.cluster_id,
        done.incarnation,
        config.sync
    );
    if config.peers().count() > 0 && cluster_id.is_none() {
        let id = done.cluster_id;
        let _ = writeln!(shown, "The other nodes join with: baton init -D DIR --cluster-id {id} ...");
    }
    // Who joins a cluster that is there finds its role by itself.
    let role = if cluster_id.is_none() { " -M primary" } else { "" };
    let _ = writeln!(shown, "Next: baton start -D {}{role}", config.data.display());
    render::print(common, &value, &shown);
    Ok(Exit::Ok)
}

/// A configuration that is there already is used as it stands, so the arguments must not say something else.
fn agrees(config: &Config, verb: &Init, path: &Path) -> Result<(), Fail> {
    let differs = |what: &str, found: &str, asked: &str| {
        let message = format!("{} says {what} {found}, the command line {asked}", path.display());
        Err(Fail::usage(message, "correct the file or remove it, or leave the option out"))
    };
    match (&verb.cluster, verb.node) {
        (Some(cluster), _) if *cluster != config.cluster => differs("cluster", &config.cluster, cluster),
        (_, Some(node)) if node != config.node.0 => {
            differs("node", &config.node.to_string(), &node.to_string())
        }
        _ => Ok(()),
    }
}

/// The configuration file that the arguments of `init` describe.
fn config_text(verb: &Init) -> Result<String, Fail> {
    let (Some(cluster), Some(node)) = (&verb.cluster, verb.node) else {
        let hint = "give --cluster NAME and --node ID, or write baton.toml first";
        return Err(Fail::usage("there is no configuration yet", hint));
    };
    let mut text = format!("cluster = {}\nnode = {node}\n", quoted(cluster));
    let listens = [
        ("client_listen", verb.client_listen),
        ("peer_listen", verb.peer_listen),
        ("http_listen", verb.http_listen),
    ];
    for (key, address) in listens {
        if let Some(address) = address {
            let _ = writeln!(text, "{key} = \"{address}\"");
        }
    }
    if let Some(secret) = &verb.peer_secret {
        let _ = writeln!(text, "peer_secret = {}", quoted(secret));
    }
    for member in &verb.member {
        let parts = member.split_once('@').and_then(|(id, peer)| Some((id.parse::<u16>().ok()?, peer)));
        let Some((id, peer)) = parts else {
            return Err(Fail::usage(format!("{member:?} is no member"), "write --member 2@10.0.0.2:8379"));
        };
        let _ = writeln!(text, "\n[[member]]\nnode = {id}\npeer = {}", quoted(peer));
    }
    Ok(text)
}

/// A TOML string.
pub fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

/// Makes one node: writes its configuration when `text` is given, and creates its data. A failure leaves no
/// configuration behind that was not there before.
pub fn init_node(
    path: &Path,
    text: Option<&str>,
    cluster_id: Option<ClusterId>,
) -> Result<(Config, InitDone), Fail> {
    let config = match text {
        // Checked before anything is created.
        Some(text) => place::parse(text, path)?,
        None => place::load(path)?,
    };
    private_folder(&config.data)?;
    if let Some(text) = text {
        if let Some(folder) = path.parent() {
            private_folder(folder)?;
        }
        write_private(path, text)?;
    }
    match node::init(InitOptions { config: config.clone(), cluster_id }) {
        Ok(done) => Ok((config, done)),
        Err(error) => {
            if text.is_some() {
                let _ = fs::remove_file(path);
            }
            Err(Fail::failed(error.message, error.hint))
        }
    }
}

fn private_folder(folder: &Path) -> Result<(), Fail> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
        Fail::failed(
            format!("cannot create {}: {error}", folder.display()),
            "check the rights of the folder above",
        )
    })
}

/// The file holds the secret of the cluster.
fn write_private(path: &Path, text: &str) -> Result<(), Fail> {
    let write =
        || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes());
    write().map_err(|error| Fail::failed(format!("cannot write {}: {error}", path.display()), ""))
}

// ---- run ----

/// Runs the node in this process; the value is the node's own exit code.
pub fn run(common: &Common, verb: &Run) -> Result<u8, Fail> {
    let config = place::node(common)?;
    if verb.alone && verb.role.is_none_or(|role| role.word() != "primary") {
        return Err(Fail::usage("--alone belongs to -M primary", "or leave it out"));
    }
    let file = verb.background.then(|| process::log_path(&config.data));
    fits(&config, verb.role)?;
    let guard = logging::begin(&config, file).map_err(|error| {
        Fail::failed(format!("the log cannot be opened: {error}"), "check the data folder")
    })?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "baton starts");
    let file = absolute(&place::config_path(common)?)?;
    let options = RunOptions { config, role: verb.role.map(RoleArg::role), alone: verb.alone, file };
    let code = node::run(options);
    tracing::info!(code, "baton ends");
    drop(guard);
    Ok(code)
}

/// A role that the configuration rules out is refused before anything starts.
fn fits(config: &Config, role: Option<RoleArg>) -> Result<(), Fail> {
    let fits = role.map_or(Ok(()), |role| node::role_fits(config, role.role()));
    fits.map_err(|text| Fail::usage(text, "or correct `upstream` in the configuration"))
}

// ---- start ----

pub fn start(common: &Common, verb: &Start) -> Outcome {
    let path = absolute(&place::config_path(common)?)?;
    let config = place::load(&path)?;
    fits(&config, verb.run.role)?;
    if let Ok(answer) = ask::ask(&config.data, Verb::Ping) {
        let pid = answer.result["pid"].clone();
        let mut value = json!({"started": false, "already_running": true, "pid": pid});
        let mut text = format!("node {} runs already (pid {pid})\n", config.node);
        if let Some(role) = verb.run.role {
            // A role for a node that runs: its own answer says what became of it.
            let told = ask::ask(&config.data, Verb::Role { role: role.role(), alone: verb.run.alone })?;
            value["role"] = ask::result(told)?;
            text += &render::tree(&value["role"]);
        }
        render::print(common, &value, &text);
        return Ok(Exit::Ok);
    }
    if let Some(running) = Running::find(&config.data) {
        let message = format!("process {} runs this node but does not answer", running.pid);
        return Err(Fail::failed(message, "wait, or stop it with `baton stop -m immediate`"));
    }
    let mut launched = launch(&path, &config, &verb.run)?;
    let pid = launched.child.id();
    if verb.no_wait {
        render::print(common, &json!({"started": true, "pid": pid}), &format!("started, pid {pid}\n"));
        return Ok(Exit::Ok);
    }
    let status = launched.wait_up(&config, verb.timeout, &mut |text| render::progress(common, text))?;
    let value = json!({"started": true, "pid": pid, "status": status});
    let text = format!("node {} is up (pid {pid}): {}, {}\n", config.node, status.role, status.state_text());
    render::print(common, &value, &text);
    Ok(Exit::Ok)
}

fn absolute(path: &Path) -> Result<PathBuf, Fail> {
    std::path::absolute(path).map_err(|error| Fail::usage(format!("{}: {error}", path.display()), ""))
}

/// A node that was just started.
pub struct Launched {
    pub child: Child,
    /// Where its lines in the log begin.
    mark: u64,
}

/// Starts the node in the background.
pub fn launch(path: &Path, config: &Config, run: &Run) -> Result<Launched, Fail> {
    let mark = process::log_mark(&config.data);
    Ok(Launched { child: process::spawn(path, &config.data, run)?, mark })
}

impl Launched {
    /// Waits until the node answers with a state other than Starting; and a little longer while it is on its way to
    /// another role, so that a node on its own is seen as what it becomes.
    pub fn wait_up(
        &mut self,
        config: &Config,
        patience: Duration,
        tell: &mut dyn FnMut(&str),
    ) -> Result<NodeStatus, Fail> {
        use NodeState::{Demoting, Promoting, WaitPromoting};
        let begin = Instant::now();
        let end = begin + patience;
        let mut settled = begin + SETTLE;
        let mut told = String::new();
        loop {
            self.still_alive(config)?;
            if let Ok(status) = ask::typed::<NodeStatus>(&config.data, Verb::Status) {
                let moving = matches!(status.state, WaitPromoting | Promoting | Demoting);
                if status.state == NodeState::Starting {
                    settled = Instant::now() + SETTLE;
                } else if !moving || Instant::now() >= settled {
                    return Ok(status);
                }
                let detail =
                    if status.detail.is_empty() { String::new() } else { format!(": {}", status.detail) };
                let now = format!("  {}, {}{detail}", status.role, status.state);
                if now != told {
                    tell(&now);
                    told = now;
                }
            }
            if Instant::now() >= end {
                let message = format!("node {} is not up after {:.1} s", config.node, patience.as_secs_f64());
                let hint = format!("it goes on starting; its log:\n{}", self.tail(config));
                return Err(Fail::new(Exit::Unknown, "timeout", message, hint));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits only until the node answers: in a cluster without a primary there is nothing more to wait for.
    pub fn wait_answering(&mut self, config: &Config, patience: Duration) -> Result<NodeStatus, Fail> {
        let end = Instant::now() + patience;
        loop {
            self.still_alive(config)?;
            match ask::typed::<NodeStatus>(&config.data, Verb::Status) {
                Ok(status) => return Ok(status),
                Err(_) if Instant::now() < end => std::thread::sleep(LOOK_AGAIN),
                Err(fail) => return Err(fail),
            }
        }
    }

    fn still_alive(&mut self, config: &Config) -> Result<(), Fail> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let tail = self.tail(config);
                let why = tail.lines().rev().find_map(|line| line.strip_prefix("baton: "));
                let why = why.map_or_else(|| format!("({status})"), String::from);
                let message = format!("node {} ended while starting: {why}", config.node);
                // Not what stands in the message already.
                let rest: Vec<&str> = tail.lines().filter(|line| !line.contains(&why)).collect();
                Err(Fail::failed(message, format!("its log says:\n{}", rest.join("\n"))))
            }
            Err(error) => Err(Fail::failed(format!("the node cannot be watched: {error}"), "")),
        }
    }

    fn tail(&self, config: &Config) -> String {
        process::log_tail(&config.data, self.mark, 10)
    }
}

// ---- stop, restart ----

pub fn stop(common: &Common, verb: &Stop) -> Outcome {
    let config = place::node(common)?;
    let stopped = stop_node(&config.data, verb.mode.mode(), verb.timeout)?;
    let text = match stopped {
        true => format!("node {} stopped\n", config.node),
        false => format!("node {} does not run\n", config.node),
    };
    render::print(common, &json!({"stopped": stopped, "running": false}), &text);
    Ok(Exit::Ok)
}

/// Stops the node of a folder and waits until its process is gone; false when there was none.
pub fn stop_node(data: &Path, mode: StopMode, patience: Duration) -> Result<bool, Fail> {
    let Some(running) = Running::find(data) else {
        return match ask::ask(data, Verb::Ping) {
            // It answers but its pid file is gone: the socket knows the way.
            Ok(_) => match ask::ask(data, Verb::Stop { mode }).and_then(ask::result) {
                Ok(_) => Ok(true),
                // It was ending already.
                Err(fail) if fail.exit == Exit::Down => Ok(true),
                Err(fail) => Err(fail),
            },
            Err(fail) if fail.exit == Exit::Down => Ok(false),
            // There is somebody, who must not be asked or does not answer.
            Err(fail) => Err(fail),
        };
    };
    let asked = ask::ask(data, Verb::Stop { mode });
    if !asked.is_ok_and(|answer| answer.ok) {
        // The node does not listen any more: the signals that mean the same.
        let signal = if mode == StopMode::Fast { Signal::TERM } else { Signal::KILL };
        running
            .signal(signal)
            .map_err(|error| Fail::failed(format!("cannot signal {}: {error}", running.pid), ""))?;
    }
    if running.wait(patience) {
        return Ok(true);
    }
    let message = format!("process {} is still there after {:.1} s", running.pid, patience.as_secs_f64());
    Err(Fail::new(Exit::Unknown, "timeout", message, "`baton stop -m immediate` does not wait for anything"))
}

pub fn restart(common: &Common, verb: &Restart) -> Outcome {
    let config = place::node(common)?;
    // After a restart a former primary waits until it wins a new term, so keeping its role means asking for it.
    let had =
        ask::typed::<NodeStatus>(&config.data, Verb::Status).ok().and_then(|status| match status.role {
            Role::Primary => Some(RoleArg::Primary),
            Role::Standby => Some(RoleArg::Standby),
            Role::CascadeStandby => Some(RoleArg::CascadeStandby),
            _ => None,
        });
    if stop_node(&config.data, verb.mode.mode(), verb.start.timeout)? {
        render::progress(common, &format!("node {} stopped", config.node));
    }
    let run = Run { role: verb.start.run.role.or(had), ..verb.start.run.clone() };
    start(common, &Start { run, ..verb.start.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> Init {
        Init {
            cluster: Some("a".into()),
            node: Some(1),
            cluster_id: None,
            client_listen: "127.0.0.1:7001".parse().ok(),
            peer_listen: "127.0.0.1:8001".parse().ok(),
            http_listen: None,
            peer_secret: Some("quote\"and\\slash and more".into()),
            member: vec!["1@127.0.0.1:8001".into(), "2@127.0.0.1:8002".into()],
        }
    }

    #[test]
    fn what_init_writes_is_a_configuration() {
        let text = config_text(&arguments()).unwrap();
        let config = place::parse(&text, Path::new("/d/baton.toml")).unwrap();
        assert_eq!(config.peer_secret.unwrap().reveal(), "quote\"and\\slash and more");
        assert_eq!(config.members.len(), 2);
        assert_eq!(config.data, Path::new("/d"));
    }

    #[test]
    fn incomplete_arguments_say_what_is_missing() {
        let fail = config_text(&Init { node: None, ..arguments() }).unwrap_err();
        assert_eq!(fail.exit, Exit::Usage);
        assert!(fail.hint.contains("--node"));
        assert!(config_text(&Init { member: vec!["2".into()], ..arguments() }).is_err());
    }

    #[test]
    fn nothing_runs_in_an_empty_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(stop_node(folder.path(), StopMode::Fast, Duration::ZERO), Ok(false));
    }
}
