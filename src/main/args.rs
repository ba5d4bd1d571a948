//! The grammar of the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use baton::admin::StopMode;
use baton::config::units;
use baton::node::StartRole;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// A primary/standby storage node: nothing acknowledged is ever lost.
#[derive(Parser, Debug)]
#[command(name = "baton", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Try it:
  baton demo                                   a whole cluster on this machine, faults, and a verdict
  baton sandbox up --dir ./lab --nodes 3       three nodes to play with

One node by hand:
  baton init -D /data/1 --cluster orders --node 1
  baton start -D /data/1 -M primary
  baton query -D /data/1
  redis-cli -p 7379 set hello world

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 the node is down, 4 refused, 5 outcome unknown,
6 a check found a broken promise.";

/// Which node, and how to print.
#[derive(ClapArgs, Clone, Debug, Default)]
pub struct Common {
    /// Data folder of the node (its configuration is DIR/baton.toml)
    #[arg(short = 'D', long = "data", global = true, value_name = "DIR", env = "BATON_DATA")]
    pub data: Option<PathBuf>,
    /// Configuration file, when it does not lie in the data folder
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON value instead of text
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Create the data folder of a node: the only way data begins
    Init(Init),
    /// Run a node in the foreground
    #[command(
        after_help = "Example:\n  baton run -D /data/1        for a service manager; `baton start` does it in the background\nThe exit code is the node's own: 0 after an ordered stop, 1 after a failure."
    )]
    Run(Run),
    /// Run a node in the background and wait until it is up
    #[command(
        after_help = "Examples:\n  baton start -D /data/1 -M primary          the first start of a cluster\n  baton start -D /data/1                     later: it finds its role by itself\nExit codes: 0 up, 1 it ended at once, 2 the configuration is wrong, 5 not up in time."
    )]
    Start(Start),
    /// Stop a node and wait until it is gone
    #[command(
        after_help = "Examples:\n  baton stop -D /data/1                      a primary waits until the standbys hold its log\n  baton stop -D /data/1 --mode immediate     as a crash\nExit codes: 0 gone, 3 it does not run, 5 not gone in time."
    )]
    Stop(Stop),
    /// Stop and start a node; it keeps its role
    #[command(after_help = "Example:\n  baton restart -D /data/1\nExit codes: those of start.")]
    Restart(Restart),
    /// One line about a node; exits with 3 when it is down
    #[command(
        after_help = "Example:\n  baton status -D /data/1 --json\nExit codes: 0 it answers, 3 it is down."
    )]
    Status,
    /// A node in detail: state, senders, receiver
    #[command(after_help = "Example:\n  baton query -D /data/1\nExit codes: 0 it answers, 3 it is down.")]
    Query,
    /// The whole cluster as this node knows it
    Cluster {
        #[command(subcommand)]
        verb: ClusterVerb,
    },
    /// Make this node the primary after the old one was lost
    Failover(Failover),
    /// Make this node the primary (a failover without options)
    #[command(
        after_help = "Example:\n  baton promote -D /data/2\nExit codes: 0 done, 4 refused and nothing changed, 5 the outcome is not known."
    )]
    Promote {
        /// How long to try
        #[arg(long, default_value = "30s", value_parser = duration)]
        timeout: Duration,
        /// Ask again for the outcome of an earlier request
        #[arg(long, value_name = "ID")]
        op: Option<String>,
    },
    /// Hand the primary's work to another node, planned, without losing anything
    Switchover(Switchover),
    /// Who must hold a write before it commits
    Policy {
        #[command(subcommand)]
        verb: PolicyVerb,
    },
    /// Read the configuration file again: says key by key what took effect and what needs a restart
    #[command(
        after_help = "Example:\n  baton reload -D /data/1\nExit codes: 0 done, 2 the file is wrong and nothing changed, 3 the node is down."
    )]
    Reload,
    /// Switchovers there and back under load, judged from outside
    Drill(Drill),
    /// There is nothing to refresh: roles are durable by design
    #[command(after_help = "Example:\n  baton refreshconf -D /data/1")]
    Refreshconf,
    /// Check a configuration file and show what it means
    #[command(
        after_help = "Examples:\n  baton check-config -D /data/1\n  baton check-config --keys                  every key, its default and its meaning\nExit codes: 0 it is good, 2 it is not."
    )]
    CheckConfig {
        /// List every key instead
        #[arg(long)]
        keys: bool,
        /// The file; by default the one of -D or --config
        file: Option<PathBuf>,
    },
    /// The write-ahead log of a running node
    Wal {
        #[command(subcommand)]
        verb: WalVerb,
    },
    /// Read the files of a stopped node, changing nothing
    #[command(
        after_help = "Examples:\n  baton inspect control -D /data/1\n  baton inspect tail -D /data/1              also while the node runs\nExit codes: 0 done, 4 the node runs."
    )]
    Inspect { what: What },
    /// Measure throughput and latency of a RESP server (baton, Redis, Valkey)
    Bench(Bench),
    /// A cluster of several nodes on this machine, for trying and testing
    Sandbox {
        #[command(subcommand)]
        verb: SandboxVerb,
    },
    /// Show it all: a cluster, load, kills, failovers, simulated power cuts, and a verdict
    Demo(Demo),
}

#[derive(Subcommand, Debug)]
pub enum ClusterVerb {
    /// The verdict over the cluster, as `gs_om -t status`
    #[command(
        after_help = "Example:\n  baton cluster status -D /data/1 --detail\nExit codes: 0 it answers, 3 the node that is asked is down."
    )]
    Status {
        /// Every node, policy and lag
        #[arg(long)]
        detail: bool,
    },
    /// Every change of role or policy: when, from, to, who asked, how long nobody served
    #[command(after_help = "\
Examples:
  baton cluster history -D /data/1               what node 1 wrote down
  baton cluster history --dir ./lab --limit 20   the newest rows of all nodes of a sandbox, in order of time")]
    History {
        /// A sandbox: the rows of all its nodes
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Only the newest rows
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        limit: usize,
    },
    /// Write the newest format from now on: once every member runs the newer build, and for good
    #[command(after_help = "\
Example:
  baton cluster finalize-upgrade -D /data/1
Exit code 4: a member is away or runs an older build; nothing was changed.")]
    FinalizeUpgrade,
    /// Stop the nodes of a cluster on this machine; the primary waits until every standby that listens holds the end of
    /// its log
    #[command(after_help = "\
Examples:
  baton cluster stop --dir ./lab                                   all nodes of a sandbox
  baton cluster stop --config /etc/baton/1.toml /etc/baton/2.toml  the nodes of these configurations
Exit code 1: a connected standby lacks log.")]
    Stop(Whole),
    /// Start the nodes of a cluster on this machine; if nobody leads, the one with the longest log is asked to
    #[command(after_help = "\
Examples:
  baton cluster start --dir ./lab
  baton cluster start --config /etc/baton/1.toml /etc/baton/2.toml
Nodes on other machines are started there, with the same command; a quorum of voters can lead.")]
    Start(Whole),
}

/// Which nodes `cluster stop` and `cluster start` mean.
#[derive(ClapArgs, Debug)]
pub struct Whole {
    /// A sandbox; otherwise the node of -D or --config
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Configuration files of further nodes of the same cluster on this machine
    #[arg(value_name = "FILE", conflicts_with = "dir")]
    pub more: Vec<PathBuf>,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  baton switchover -D /data/1 --dry-run      say whether it would work, and to whom
  baton switchover -D /data/1 --to 2         any node may be asked; a standby passes it to the primary
  baton switchover -D /data/2                a standby without --to means itself
Exit codes: 0 done, 4 refused and nothing changed, 5 not done in time (undone), or the outcome is not known.")]
pub struct Switchover {
    /// Who shall lead
    #[arg(long, value_name = "NODE")]
    pub to: Option<u16>,
    /// Only say whether it would work
    #[arg(long)]
    pub dry_run: bool,
    /// Do it only if the newest known term has this number
    #[arg(long, value_name = "TERM")]
    pub expect_term: Option<u64>,
    /// How long writes may be held; then it is undone and the old primary goes on
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub timeout: Duration,
    /// Ask again for the outcome of an earlier request
    #[arg(long, value_name = "ID")]
    pub op: Option<String>,
}

#[derive(Subcommand, Debug)]
pub enum PolicyVerb {
    /// The policy generation in force
    #[command(after_help = "Example:\n  baton policy show -D /data/1")]
    Show,
    /// Put another one into force: durable, logged, on all nodes
    #[command(after_help = "\
Examples:
  baton policy set -D /data/1 \"ANY 2 (1, 2, 3)\" --dry-run
  baton policy set -D /data/1 \"FIRST 1 (1, 2, 3)\" --expect-generation 4
Exit codes: 0 done, 4 refused and nothing changed, 5 not committed in time.")]
    Set {
        /// ANY k (1, 2, 3) or FIRST k (1, 2, 3)
        rule: String,
        /// Do it only if this generation is in force
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        expect_generation: u64,
        /// Accept fewer copies of each write
        #[arg(long)]
        force: bool,
        /// Only say whether it would be done
        #[arg(long)]
        dry_run: bool,
        /// How long to wait until it is committed
        #[arg(long, default_value = "15s", value_parser = duration)]
        timeout: Duration,
        /// Ask again for the outcome of an earlier request
        #[arg(long, value_name = "ID")]
        op: Option<String>,
    },
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  baton drill --dir ./lab --times 20         a sandbox
  baton drill -D /data/1 --times 2 --json    the cluster of a node
  baton drill --dir ./lab --kill             a sandbox: SIGKILL for the primary, a failover, the dead node back
  baton drill --dir ./pair --kill --alone    a sandbox of two: the last one serves alone
The gap is the longest time without an acknowledged write, all writers together, around one switchover. With --kill
the time from the failover command to the first acknowledged write counts, and from starting the dead node until it
streams again.
Exit codes: 0 all done and nothing lost, 1 a run failed, 6 an acknowledged write is gone.")]
pub struct Drill {
    /// A sandbox; otherwise the cluster of the node of -D or --config
    #[arg(long)]
    pub dir: Option<PathBuf>,
    #[arg(long, default_value_t = 10)]
    pub times: u64,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub writers: u16,
    /// How long each may hold writes
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub timeout: Duration,
    /// Kill the primary of a sandbox each time, and fail over
    #[arg(long, requires = "dir")]
    pub kill: bool,
    /// With --kill: `failover --alone`, and the policy put back when the dead node is there again
    #[arg(long, requires = "kill")]
    pub alone: bool,
}

#[derive(Subcommand, Debug)]
pub enum WalVerb {
    /// Who holds log, and how much
    #[command(after_help = "Example:\n  baton wal keepers -D /data/1")]
    Keepers,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum What {
    Wal,
    Control,
    Superblock,
    /// What was cut off the log because nobody had acknowledged it
    Tail,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  baton init -D /data/1 --cluster orders --node 1
  baton init -D /data/2 --cluster orders --node 2 --cluster-id 5f0c... \\
        --member 1@10.0.0.1:8379 --member 2@10.0.0.2:8379 --peer-listen 10.0.0.2:8379 --peer-secret ...
When DIR/baton.toml or --config exists it is used as it stands, and only --cluster-id is taken from the command line.")]
pub struct Init {
    /// Name of the cluster
    #[arg(long)]
    pub cluster: Option<String>,
    /// This node's id
    #[arg(long)]
    pub node: Option<u16>,
    /// Id of an existing cluster, as its first node printed it; without it a new cluster begins
    #[arg(long, value_name = "HEX")]
    pub cluster_id: Option<String>,
    /// Where clients connect
    #[arg(long, value_name = "ADDR")]
    pub client_listen: Option<SocketAddr>,
    /// Where peers connect
    #[arg(long, value_name = "ADDR")]
    pub peer_listen: Option<SocketAddr>,
    /// Where /metrics and /health are served
    #[arg(long, value_name = "ADDR")]
    pub http_listen: Option<SocketAddr>,
    /// Secret shared by the nodes of the cluster
    #[arg(long, value_name = "TEXT")]
    pub peer_secret: Option<String>,
    /// A member as ID@PEER_ADDRESS; once for every node of the cluster
    #[arg(long, value_name = "ID@ADDR")]
    pub member: Vec<String>,
}

#[derive(ClapArgs, Clone, Debug, Default)]
pub struct Run {
    /// Role asked for: a request, never an order, once a cluster exists
    #[arg(short = 'M', long = "role", value_name = "ROLE", value_enum)]
    pub role: Option<RoleArg>,
    /// With -M primary: serve without the other voters, by a forced and recorded policy change
    #[arg(long)]
    pub alone: bool,
    /// Write the log to DIR/log/baton.log (set by `baton start`)
    #[arg(long, hide = true)]
    pub background: bool,
}

#[derive(ClapArgs, Clone, Debug)]
pub struct Start {
    #[command(flatten)]
    pub run: Run,
    /// How long to wait until the node is up
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
    /// Do not wait
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(ClapArgs, Debug)]
pub struct Stop {
    /// fast: finish what was accepted; immediate: as a crash, recovered at the next start
    #[arg(short = 'm', long, value_enum, default_value = "fast")]
    pub mode: ModeArg,
    /// How long to wait until the process is gone
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(ClapArgs, Debug)]
pub struct Restart {
    #[command(flatten)]
    pub start: Start,
    /// How to stop first
    #[arg(short = 'm', long, value_enum, default_value = "fast")]
    pub mode: ModeArg,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  baton failover -D /data/2 --dry-run            say what would happen
  baton failover -D /data/2                      take over, if a quorum of voters agrees
  baton failover -D /data/2 --alone --accept-loss   serve alone from the only copy left; states what is risked")]
pub struct Failover {
    /// Only say what would happen
    #[arg(long)]
    pub dry_run: bool,
    /// Serve without the other voters: lowers k to 0 by a forced, recorded policy change
    #[arg(long)]
    pub alone: bool,
    /// Go on although the old primary seems alive
    #[arg(long)]
    pub force: bool,
    /// Do it only if the newest known term has this number
    #[arg(long, value_name = "TERM")]
    pub expect_term: Option<u64>,
    /// Confirm that the stated loss is taken
    #[arg(long)]
    pub accept_loss: bool,
    /// How long to try
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Ask again for the outcome of an earlier request
    #[arg(long, value_name = "ID")]
    pub op: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "snake_case")]
pub enum RoleArg {
    Primary,
    Standby,
    CascadeStandby,
    Pending,
}

impl RoleArg {
    pub fn role(self) -> StartRole {
        match self {
            RoleArg::Primary => StartRole::Primary,
            RoleArg::Standby => StartRole::Standby,
            RoleArg::CascadeStandby => StartRole::CascadeStandby,
            RoleArg::Pending => StartRole::Pending,
        }
    }

    /// The word for another process's command line.
    pub fn word(self) -> &'static str {
        match self {
            RoleArg::Primary => "primary",
            RoleArg::Standby => "standby",
            RoleArg::CascadeStandby => "cascade_standby",
            RoleArg::Pending => "pending",
        }
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModeArg {
    Fast,
    Immediate,
}

impl ModeArg {
    pub fn mode(self) -> StopMode {
        match self {
            ModeArg::Fast => StopMode::Fast,
            ModeArg::Immediate => StopMode::Immediate,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ReadFromArg {
    Primary,
    Standby,
    Any,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkloadArg {
    Set,
    Get,
    Incr,
    Mixed,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  baton bench --addr 127.0.0.1:7379 --clients 50 --seconds 10
  baton bench -D /data/1 --pipeline 16 --workload mixed --writes 20 --json
  baton bench -D /data/1 --workload get --read-from standby --plot reads.svg
The load is closed-loop: each connection sends --pipeline commands, waits for all replies, and sends again.")]
pub struct Bench {
    /// Servers; the next one is tried when one is gone or says READONLY. By default the node of -D
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub addr: Vec<SocketAddr>,
    #[arg(long, default_value_t = 50)]
    pub clients: usize,
    /// Commands sent together before their replies are awaited
    #[arg(long, default_value_t = 1)]
    pub pipeline: usize,
    /// End each batch with WAIT for this many replicas, and count its commands when that is answered: for servers
    /// whose replies do not wait by themselves
    #[arg(long, default_value_t = 0)]
    pub wait: u32,
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    #[arg(long, value_enum, default_value = "set")]
    pub workload: WorkloadArg,
    /// Who serves the reads: standbys are found by asking the servers for their role. In the mixed workload the
    /// share --writes of the connections then writes, and the others read
    #[arg(long, value_enum, default_value = "primary")]
    pub read_from: ReadFromArg,
    /// Share of writes in the mixed workload, in percent
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub writes: u8,
    #[arg(long, default_value_t = 100)]
    pub value_bytes: usize,
    #[arg(long, default_value_t = 100_000)]
    pub keys: u64,
    /// Password sent with AUTH
    #[arg(long, env = "BATON_PASSWORD", hide_env_values = true)]
    pub password: Option<String>,
    /// Do not write every key before a workload that reads
    #[arg(long)]
    pub no_fill: bool,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Draw what was measured
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub enum SandboxVerb {
    /// Create and start the nodes, and wait until the cluster is Normal
    #[command(after_help = "Example:\n  baton sandbox up --dir ./lab --nodes 3")]
    Up(SandboxUp),
    /// The cluster, every node asked for itself
    #[command(
        after_help = "Example:\n  baton sandbox status --dir ./lab --detail\nExit code 3: all nodes are down."
    )]
    Status {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        detail: bool,
    },
    /// Kill a node with SIGKILL
    #[command(after_help = "Example:\n  baton sandbox kill --dir ./lab 1")]
    Kill {
        #[arg(long)]
        dir: PathBuf,
        node: u16,
    },
    /// Start a node that is down
    #[command(after_help = "Example:\n  baton sandbox start --dir ./lab 1")]
    Start {
        #[arg(long)]
        dir: PathBuf,
        node: u16,
        #[arg(short = 'M', long = "role", value_enum)]
        role: Option<RoleArg>,
    },
    /// Stop every node
    #[command(after_help = "Example:\n  baton sandbox down --dir ./lab --purge     and remove the folders")]
    Down {
        #[arg(long)]
        dir: PathBuf,
        /// And remove the data
        #[arg(long)]
        purge: bool,
    },
}

#[derive(ClapArgs, Clone, Debug)]
pub struct SandboxUp {
    /// Folder that gets one folder per node
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// Clients get this port + node, peers + 100, HTTP + 200; by default the first free block from 17000
    #[arg(long)]
    pub base_port: Option<u16>,
    /// Synchronous rule, like "ANY 1 (1, 2, 3)"
    #[arg(long)]
    pub sync: Option<String>,
    /// Default reply level: off, local, remote_write, on, remote_apply
    #[arg(long)]
    pub commit: Option<String>,
    /// Longest wait of a reply for its commit
    #[arg(long)]
    pub commit_timeout: Option<String>,
    /// Control store: none, or dir for a folder inside of DIR
    #[arg(long, value_parser = ["none", "dir"])]
    pub store: Option<String>,
    /// Ask for fewer copies when too few voters are left for this long, like 30s; needs --store dir
    #[arg(long, value_parser = duration, requires = "store")]
    pub degrade: Option<Duration>,
    /// A cascaded standby and the node it streams from, like 4:2; once for each
    #[arg(long, value_parser = below)]
    pub upstream: Vec<(u16, u16)>,
    /// Allow a memory file system, where "durable" means nothing
    #[arg(long)]
    pub allow_tmpfs: bool,
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  baton demo                    everything that was acknowledged is still there: exit code 0
  baton demo --commit local     replies do not wait for a standby: the demo counts what that loses, exit code 6
  baton demo --seed 7 --power-cuts 2000   the same simulated power cuts again, and more of them")]
pub struct Demo {
    /// Where the nodes live; by default a new folder that is removed at the end
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// A failover by quorum needs three
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=9))]
    pub nodes: u16,
    /// Reply level of every node: off, local, remote_write, on, remote_apply
    #[arg(long, default_value = "on", value_parser = ["off", "local", "remote_write", "on", "remote_apply"])]
    pub commit: String,
    /// Time of steady load before and after each fault
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub steady: Duration,
    /// Simulated power cuts; 0 leaves them out
    #[arg(long, default_value_t = 200)]
    pub power_cuts: u64,
    /// Seed of the simulated power cuts; by default a new one, which is printed
    #[arg(long)]
    pub seed: Option<u64>,
    /// Leave nodes and data as they are
    #[arg(long)]
    pub keep: bool,
    /// Allow a memory file system
    #[arg(long)]
    pub allow_tmpfs: bool,
}

/// `4:2`: node 4 below node 2.
fn below(text: &str) -> Result<(u16, u16), String> {
    let pair =
        text.split_once(':').and_then(|(node, upstream)| Some((node.parse().ok()?, upstream.parse().ok()?)));
    pair.ok_or_else(|| format!("{text} is not NODE:UPSTREAM, like 4:2"))
}

fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text)
        .ok_or_else(|| format!("{text:?} is no time; write it with its unit, like 10s or 500ms"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_data_folder_may_stand_before_or_behind_the_verb() {
        for line in [["baton", "-D", "/x", "query"], ["baton", "query", "-D", "/x"]] {
            let args = Args::try_parse_from(line).unwrap();
            assert_eq!(args.common.data.as_deref(), Some(std::path::Path::new("/x")));
        }
        let args =
            Args::try_parse_from(["baton", "start", "-M", "cascade_standby", "--timeout", "5s"]).unwrap();
        let Verb::Start(start) = args.verb else { panic!("{args:?}") };
        assert_eq!((start.run.role, start.timeout), (Some(RoleArg::CascadeStandby), Duration::from_secs(5)));
        assert!(Args::try_parse_from(["baton", "stop", "-m", "smart"]).is_err());
    }
}
