//! Several nodes on this machine: `DIR/1`, `DIR/2`, ... with one cluster id, one secret, and a process each.

use std::fs::{self, File};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use baton::admin::{Exit, StopMode, Verb};
use baton::cluster::status::View;
use baton::cluster::{
    ClusterState, ClusterStatus, NodeState, NodeStatus, Role, StaticRole, cluster_state, merge,
};
use baton::config::Config;
use rustix::process::Signal;
use serde_json::json;

use super::args::{Common, RoleArg, Run, SandboxUp};
use super::lifecycle::{LOOK_AGAIN, Launched, init_node, launch, quoted, stop_node};
use super::place::{self, CONFIG_FILE};
use super::ports::{self, HTTP_OFFSET, PEER_OFFSET};
use super::process::Running;
use super::show::down_row;
use super::{Fail, Outcome, ask, render};

/// The control store of a sandbox that has one.
const STORE_FOLDER: &str = "store";
/// How long one node may take to be gone.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const START_PATIENCE: Duration = Duration::from_secs(60);

/// One node of a sandbox.
#[derive(Clone, Debug)]
pub struct Member {
    pub id: u16,
    pub path: PathBuf,
    pub config: Config,
}

/// The nodes of a sandbox folder, ascending by id.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub dir: PathBuf,
    pub members: Vec<Member>,
}

impl Sandbox {
    /// Reads an existing sandbox.
    pub fn open(dir: &Path) -> Result<Sandbox, Fail> {
        let dir = std::path::absolute(dir)
            .map_err(|error| Fail::usage(format!("{}: {error}", dir.display()), ""))?;
        let mut members = Vec::new();
        for id in 1..=baton::base::limits::NODES_MAX as u16 {
            let path = dir.join(id.to_string()).join(CONFIG_FILE);
            if path.exists() {
                members.push(Member { id, config: place::load(&path)?, path });
            }
        }
        if members.is_empty() {
            let message = format!("there is no sandbox in {}", dir.display());
            return Err(Fail::new(Exit::Down, "down", message, "`baton sandbox up --dir DIR` makes one"));
        }
        Ok(Sandbox { dir, members })
    }

    /// The nodes whose configurations these are, all of one cluster.
    pub fn of_files<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<Sandbox, Fail> {
        let mut members: Vec<Member> = Vec::new();
        for file in files {
            let path = std::path::absolute(file)
                .map_err(|error| Fail::usage(format!("{}: {error}", file.display()), ""))?;
            let member = Member { id: place::load(&path)?.node.0, config: place::load(&path)?, path };
            if let Some(first) = members.first()
                && first.config.cluster != member.config.cluster
            {
                let text = format!("{} is of another cluster than {}", file.display(), first.path.display());
                return Err(Fail::usage(text, "name the nodes of one cluster"));
            }
            if let Some(twin) = members.iter().find(|other| other.id == member.id) {
                let text =
                    format!("{} and {} are both node {}", twin.path.display(), file.display(), member.id);
                return Err(Fail::usage(text, "name each node once"));
            }
            members.push(member);
        }
        members.sort_by_key(|member| member.id);
        let dir = members.first().and_then(|member| member.path.parent()).unwrap_or(Path::new("/"));
        Ok(Sandbox { dir: dir.to_path_buf(), members })
    }

    /// Whether some members of the cluster are not among these nodes.
    fn partial(&self) -> bool {
        self.members.len() < self.members[0].config.members.len()
    }

    /// The node that leads, as far as these nodes know it; it need not be one of them.
    pub fn leader(&self) -> Option<u16> {
        let own = self.primary().map(|member| member.id);
        own.or_else(|| {
            let mut known = self.rows().into_iter().filter(|row| row.state == NodeState::Normal);
            known.find_map(|row| row.upstream.filter(|_| self.partial()))
        })
    }

    /// Makes the folders, configurations and data of a new sandbox.
    pub fn create(up: &SandboxUp) -> Result<Sandbox, Fail> {
        let dir = std::path::absolute(&up.dir)
            .map_err(|e| Fail::usage(format!("{}: {e}", up.dir.display()), ""))?;
        fs::create_dir_all(&dir)
            .map_err(|error| Fail::failed(format!("cannot create {}: {error}", dir.display()), ""))?;
        if on_memory(&dir) && !up.allow_tmpfs {
            let message = format!("{} lies in memory: \"durable\" would mean nothing there", dir.display());
            return Err(Fail::usage(message, "choose a folder on a disk, or say --allow-tmpfs"));
        }
        let block = ports::choose(up.base_port, up.nodes, &dir.join("1").join(CONFIG_FILE))?;
        let secret = random_hex()?;
        let mut cluster_id = None;
        let mut members = Vec::new();
        for id in 1..=up.nodes {
            let path = dir.join(id.to_string()).join(CONFIG_FILE);
            let text = node_text(up, id, block.base, &secret);
            let (config, done) = init_node(&path, Some(&text), cluster_id).inspect_err(|_| {
                // A half-made sandbox is of no use, and its folders are ours alone.
                for made in 1..=id {
                    let _ = fs::remove_dir_all(dir.join(made.to_string()));
                }
            })?;
            cluster_id = Some(done.cluster_id);
            members.push(Member { id, path, config });
        }
        Ok(Sandbox { dir, members })
    }

    pub fn member(&self, id: u16) -> Result<&Member, Fail> {
        self.members.iter().find(|member| member.id == id).ok_or_else(|| {
            let known: Vec<String> = self.members.iter().map(|member| member.id.to_string()).collect();
            Fail::usage(format!("there is no node {id}"), format!("nodes are {}", known.join(", ")))
        })
    }

    pub fn clients(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.config.client_listen).collect()
    }

    /// Every node's own row, asked at the same time; a node that says nothing is Down.
    pub fn rows(&self) -> Vec<NodeStatus> {
        self.each(|member| {
            ask::typed(&member.config.data, Verb::Status).unwrap_or_else(|_| down_row(&member.config))
        })
    }

    /// The merged view of every node.
    pub fn status(&self) -> ClusterStatus {
        let views = self.each(|member| View {
            node: member.id,
            host: member.config.me().host.clone(),
            data: member.config.data.display().to_string(),
            client: member.config.client_listen.to_string(),
            peer: member.config.peer_listen.to_string(),
            static_role: match member.config.me().upstream {
                Some(_) => StaticRole::CascadeStandby,
                None => StaticRole::Standby,
            },
            answer: ask::typed(&member.config.data, Verb::ClusterStatus { detail: true }).ok(),
        });
        merge(&views)
    }

    fn each<T: Send>(&self, look: impl Fn(&Member) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let asked: Vec<_> = self.members.iter().map(|member| scope.spawn(|| look(member))).collect();
            asked.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect()
        })
    }

    /// The one primary that serves, with its newest term.
    pub fn primary(&self) -> Option<&Member> {
        let rows = self.rows();
        let row = rows.iter().find(|row| row.role == Role::Primary && row.state == NodeState::Normal)?;
        self.members.iter().find(|member| member.id == row.node)
    }

    /// Looks at the nodes until the cluster is Normal.
    pub fn wait_normal(&self, patience: Duration, tell: &mut dyn FnMut(&str)) -> Result<(), Fail> {
        let end = Instant::now() + patience;
        let mut told = String::new();
        loop {
            let rows = self.rows();
            let state = cluster_state(&rows, None);
            // Of a cluster on several machines only the own nodes are waited for.
            let well = |row: &NodeStatus| row.state == NodeState::Normal && row.role != Role::Down;
            let normal = match self.partial() {
                true => rows.iter().all(well),
                false => state == ClusterState::Normal,
            };
            if normal && rows.len() == self.members.len() {
                return Ok(());
            }
            let now: Vec<String> =
                rows.iter().map(|row| format!("{} {} {}", row.node, row.role, row.state_text())).collect();
            let now = format!("  {state}: {}", now.join(", "));
            if now != told {
                tell(&now);
                told = now;
            }
            if Instant::now() >= end {
                let message = format!("the cluster is not Normal after {:.1} s", patience.as_secs_f64());
                let hint = format!("{}; the logs are in {}/N/log/baton.log", told.trim(), self.dir.display());
                return Err(Fail::new(Exit::Unknown, "timeout", message, hint));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Starts one node that is down and waits until it is up.
    pub fn start(&self, id: u16, role: Option<RoleArg>) -> Result<(), Fail> {
        let lone = role != Some(RoleArg::Primary) && self.primary().is_none();
        let mut launched = self.launch(id, role)?;
        self.wait(&mut launched, id, lone)
    }

    fn wait(&self, launched: &mut Launched, id: u16, lone: bool) -> Result<(), Fail> {
        let config = &self.member(id)?.config;
        match lone {
            true => launched.wait_answering(config, START_PATIENCE).map(drop),
            false => launched.wait_up(config, START_PATIENCE, &mut |_| {}).map(drop),
        }
    }

    /// Starts all of these at the same time, in no role of their own.
    pub fn start_these(&self, ids: &[u16]) -> Result<(), Fail> {
        let lone = self.primary().is_none();
        let launched: Result<Vec<_>, _> = ids.iter().map(|id| self.launch(*id, None)).collect();
        for (id, launched) in ids.iter().zip(&mut launched?) {
            self.wait(launched, *id, lone)?;
        }
        Ok(())
    }

    fn launch(&self, id: u16, role: Option<RoleArg>) -> Result<Launched, Fail> {
        let member = self.member(id)?;
        if let Some(running) = Running::find(&member.config.data) {
            let message = format!("node {id} runs already (pid {})", running.pid);
            return Err(Fail::new(Exit::Refused, "refused", message, ""));
        }
        launch(&member.path, &member.config, &Run { role, ..Run::default() })
    }

    /// SIGKILL, and the process gone.
    pub fn kill(&self, id: u16) -> Result<(), Fail> {
        self.kill_all(&[id])
    }

    /// SIGKILL for all of them before the first is waited for.
    pub fn kill_all(&self, ids: &[u16]) -> Result<(), Fail> {
        for (id, running) in self.signal_all(ids, Signal::KILL)? {
            if !running.wait(STOP_PATIENCE) {
                let message = format!("process {} of node {id} does not die: its disk hangs", running.pid);
                return Err(Fail::failed(message, ""));
            }
        }
        Ok(())
    }

    /// SIGSTOP: the processes stand still, and what their kernel receives for them stays where it is.
    pub fn freeze(&self, ids: &[u16]) -> Result<(), Fail> {
        self.signal_all(ids, Signal::STOP).map(drop)
    }

    fn signal_all(&self, ids: &[u16], signal: Signal) -> Result<Vec<(u16, Running)>, Fail> {
        let mut found = Vec::new();
        for id in ids {
            match Running::find(&self.member(*id)?.config.data) {
                Some(running) => found.push((*id, running)),
                None => return Err(Fail::new(Exit::Down, "down", format!("node {id} does not run"), "")),
            }
        }
        for (id, running) in &found {
            running
                .signal(signal)
                .map_err(|error| Fail::failed(format!("cannot signal node {id}: {error}"), ""))?;
        }
        Ok(found)
    }

    /// Stops every node, standbys first so that the primary's last writes have somewhere to go as long as possible;
    /// what does not stop in order is killed.
    pub fn down(&self) -> Result<(), Fail> {
        let primary = self.primary().map(|member| member.id);
        let mut order: Vec<&Member> = self.members.iter().collect();
        order.sort_by_key(|member| Some(member.id) != primary);
        for member in order {
            if stop_node(&member.config.data, StopMode::Fast, STOP_PATIENCE).is_err() {
                self.kill(member.id)?;
            }
        }
        Ok(())
    }

    /// Starts every node that is down. Node 1 asks for the lead unless somebody has it.
    fn start_all(&self, patience: Duration, tell: &mut dyn FnMut(&str)) -> Result<(), Fail> {
        let lead_wanted = self.primary().is_none();
        let mut launched = Vec::new();
        for member in &self.members {
            if Running::find(&member.config.data).is_some() {
                continue;
            }
            let role = (lead_wanted && member.id == self.members[0].id).then_some(RoleArg::Primary);
            launched.push((member, self.launch(member.id, role)?));
        }
        for (member, launched) in &mut launched {
            launched.wait_up(&member.config, patience, tell)?;
        }
        Ok(())
    }
}

/// The configuration of node `id`.
fn node_text(up: &SandboxUp, id: u16, base: u16, secret: &str) -> String {
    let mut text = format!(
        "# Made by `baton sandbox up`.\ncluster = \"sandbox\"\nnode = {id}\n\
         client_listen = \"127.0.0.1:{}\"\npeer_listen = \"127.0.0.1:{}\"\nhttp_listen = \"127.0.0.1:{}\"\n\
         peer_secret = \"{secret}\"\ncores = 1\nredo_workers = 1\nmemory = \"256MiB\"\nlog_retention = \"1GiB\"\n",
        base + id,
        base + PEER_OFFSET + id,
        base + HTTP_OFFSET + id
    );
    if up.store.as_deref() == Some("dir") {
        let folder = std::path::absolute(&up.dir).unwrap_or_else(|_| up.dir.clone()).join(STORE_FOLDER);
        text.push_str(&format!("store = {}\n", quoted(&format!("dir:{}", folder.display()))));
        if let Some(time) = up.degrade {
            text.push_str(&format!("degrade = \"after {}ms\"\n", time.as_millis()));
        }
    }
    for (key, value) in [("sync", &up.sync), ("commit", &up.commit), ("commit_timeout", &up.commit_timeout)] {
        if let Some(value) = value {
            text += &format!("{key} = {}\n", quoted(value));
        }
    }
    for node in 1..=up.nodes {
        text += &format!(
            "\n[[member]]\nnode = {node}\nhost = \"node{node}\"\nclient = \"127.0.0.1:{}\"\npeer = \"127.0.0.1:{}\"\n",
            base + node,
            base + PEER_OFFSET + node
        );
        for (_, upstream) in up.upstream.iter().filter(|(below, _)| *below == node) {
            text += &format!("upstream = {upstream}\n");
        }
    }
    text
}

fn random_hex() -> Result<String, Fail> {
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(|error| Fail::failed(format!("no random numbers: {error}"), ""))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether a folder lies on tmpfs or ramfs.
pub fn on_memory(dir: &Path) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    rustix::fs::statfs(dir).is_ok_and(|fs| {
        let kind = u64::try_from(fs.f_type).unwrap_or(0) & 0xffff_ffff;
        kind == TMPFS || kind == RAMFS
    })
}

// ---- the verbs ----

pub fn up(common: &Common, verb: &SandboxUp) -> Outcome {
    let mut tell = |text: &str| render::progress(common, text);
    let sandbox = bring_up(verb, &mut tell)?;
    show(common, &sandbox, true)?;
    let primary = sandbox.primary().map_or(0, |member| member.config.client_listen.port());
    render::progress(common, &format!("\ntry: redis-cli -p {primary} set hello world"));
    Ok(Exit::Ok)
}

/// A running, Normal cluster: a new one, or the one that is in the folder already.
pub fn bring_up(up: &SandboxUp, tell: &mut dyn FnMut(&str)) -> Result<Sandbox, Fail> {
    let sandbox = match Sandbox::open(&up.dir) {
        Ok(sandbox) if sandbox.members.len() != usize::from(up.nodes) => {
            let message = format!("{} holds a sandbox of {} nodes", up.dir.display(), sandbox.members.len());
            let hint = "give the same --nodes, or `baton sandbox down --purge` first";
            return Err(Fail::new(Exit::Refused, "refused", message, hint));
        }
        Ok(sandbox) => sandbox,
        Err(fail) if fail.exit == Exit::Down => Sandbox::create(up)?,
        Err(fail) => return Err(fail),
    };
    sandbox.start_all(up.timeout, tell)?;
    sandbox.wait_normal(up.timeout, tell)?;
    Ok(sandbox)
}

fn show(common: &Common, sandbox: &Sandbox, detail: bool) -> Result<ClusterStatus, Fail> {
    let status = sandbox.status();
    render::print(common, &status, &if detail { status.detail() } else { status.brief() });
    Ok(status)
}

pub fn status(common: &Common, dir: &Path, detail: bool) -> Outcome {
    let sandbox = Sandbox::open(dir)?;
    let status = show(common, &sandbox, detail)?;
    let down = status.nodes.iter().all(|node| node.role == Role::Down);
    Ok(if down { Exit::Down } else { Exit::Ok })
}

pub fn kill(common: &Common, dir: &Path, node: u16) -> Outcome {
    Sandbox::open(dir)?.kill(node)?;
    render::print(common, &json!({"killed": node}), &format!("node {node} was killed\n"));
    Ok(Exit::Ok)
}

pub fn start(common: &Common, dir: &Path, node: u16, role: Option<RoleArg>) -> Outcome {
    let sandbox = Sandbox::open(dir)?;
    sandbox.start(node, role)?;
    let row: NodeStatus = ask::typed(&sandbox.member(node)?.config.data, Verb::Status)?;
    render::print(common, &row, &format!("node {node} is up: {}, {}\n", row.role, row.state_text()));
    Ok(Exit::Ok)
}

pub fn down(common: &Common, dir: &Path, purge: bool) -> Outcome {
    let sandbox = Sandbox::open(dir)?;
    sandbox.down()?;
    if purge {
        remove(&sandbox)?;
    }
    render::print(common, &json!({"down": true, "purged": purge}), "every node is down\n");
    Ok(Exit::Ok)
}

/// Removes the nodes' folders, and the sandbox's own when nothing else is in it.
pub fn remove(sandbox: &Sandbox) -> Result<(), Fail> {
    for member in &sandbox.members {
        let folder = sandbox.dir.join(member.id.to_string());
        fs::remove_dir_all(&folder)
            .map_err(|error| Fail::failed(format!("cannot remove {}: {error}", folder.display()), ""))?;
    }
    let _ = fs::remove_dir_all(sandbox.dir.join(STORE_FOLDER));
    let _ = fs::remove_dir(&sandbox.dir);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path, nodes: u16) -> SandboxUp {
        SandboxUp {
            dir: dir.into(),
            nodes,
            base_port: None,
            sync: Some("ANY 1 (*)".into()),
            commit: Some("remote_apply".into()),
            commit_timeout: None,
            store: None,
            degrade: None,
            upstream: vec![(3, 2)],
            allow_tmpfs: true,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn every_node_gets_a_good_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let up = options(folder.path(), 3);
        for id in 1..=3 {
            let path = folder.path().join(id.to_string()).join(CONFIG_FILE);
            let config = place::parse(&node_text(&up, id, 20_000, &random_hex().unwrap()), &path).unwrap();
            assert_eq!(config.client_listen.port(), 20_000 + id);
            assert_eq!(config.me().peer, config.peer_listen);
            assert_eq!(config.me().upstream.map(|n| n.0), (id == 3).then_some(2));
            assert_eq!(config.me().client, Some(config.client_listen));
            assert_eq!(config.sync.to_string(), "ANY 1 (1, 2)");
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, node_text(&up, id, 20_000, &random_hex().unwrap())).unwrap();
        }
        let sandbox = Sandbox::open(folder.path()).unwrap();
        assert_eq!(sandbox.members.len(), 3);
        let status = sandbox.status();
        assert!(status.nodes.iter().all(|node| node.role == Role::Down));
        assert_eq!(status.cluster_state, ClusterState::Unavailable);
        assert_eq!(sandbox.kill(2).unwrap_err().exit, Exit::Down);
        assert_eq!(sandbox.member(9).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn nothing_is_no_sandbox() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Sandbox::open(folder.path()).unwrap_err().exit, Exit::Down);
    }
}
