//! From what was written to what was meant: every range and every rule between keys.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::meant::{
    CommitLevel, Config, Degrade, LogFormat, LogLevel, Member, Reads, Secret, StoreChoice, WalSync,
};
use super::mistake::Mistakes;
use super::sync::{self, SyncRule};
use super::units::{duration, show_duration, show_size, size};
use super::written::{self, Entry, Raw, Section, Written};
use crate::base::NodeId;
use crate::base::limits::{
    CLIENTS_DEFAULT, CORE_MEMORY_BYTES_MIN, CORES_MAX, DIRECT_STANDBYS_MAX, FRAMES_IN_FLIGHT_MAX, NODES_MAX,
    REDO_WORKERS_MAX, SEGMENT_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SHARDS_DEFAULT, SHARDS_MAX,
};

const CLIENT_PORT: u16 = 7379;
const PEER_PORT: u16 = 8379;
const PRIORITY_DEFAULT: u32 = 100;
const MEMORY_DEFAULT: u64 = 1 << 30;

/// Reads and checks a configuration. `folder` is where the file lies: the default of `data`, and what a relative
/// `data` is relative to.
pub fn parse(text: &str, folder: &Path) -> Result<Config, Mistakes> {
    let mut mistakes = Mistakes::default();
    let written = written::read(text, &mut mistakes);
    let config = Checker { top: &written.top, mistakes: &mut mistakes }.config(&written, folder);
    mistakes.0.sort_by_key(|mistake| mistake.line);
    match config {
        Some(config) if mistakes.0.is_empty() => Ok(config),
        _ => {
            assert!(!mistakes.0.is_empty(), "a refused configuration says why");
            Err(mistakes)
        }
    }
}

/// Reads typed values out of one section; every mistake is noted and stands in for the value by its default.
struct Checker<'a> {
    top: &'a Section,
    mistakes: &'a mut Mistakes,
}

impl Checker<'_> {
    fn wrong(&mut self, entry: &Entry, wanted: &str) {
        self.mistakes.push(entry.line, entry.key, format!("{} does not fit", entry.value.shown()), wanted);
    }

    fn text(&mut self, key: &str, wanted: &str) -> Option<(usize, String)> {
        let entry = self.top.get(key)?.clone();
        match &entry.value {
            Raw::Text(text) => Some((entry.line, text.clone())),
            _ => {
                self.wrong(&entry, wanted);
                None
            }
        }
    }

    fn sized_text(&mut self, key: &str, min: usize, max: usize) -> Option<String> {
        let wanted = format!("write {min} to {max} bytes of text in double quotes");
        let (line, text) = self.text(key, &wanted)?;
        if !(min..=max).contains(&text.len()) {
            self.mistakes.push(line, key, format!("the text has {} bytes", text.len()), wanted);
            return None;
        }
        Some(text)
    }

    fn number(&mut self, key: &str, min: u64, max: u64) -> Option<u64> {
        let entry = self.top.get(key)?.clone();
        match entry.value {
            Raw::Number(number) if u64::try_from(number).is_ok_and(|n| (min..=max).contains(&n)) => {
                Some(number.unsigned_abs())
            }
            _ => {
                self.wrong(&entry, &format!("write a whole number from {min} to {max}"));
                None
            }
        }
    }

    fn truth(&mut self, key: &str) -> Option<bool> {
        let entry = self.top.get(key)?.clone();
        match entry.value {
            Raw::Truth(truth) => Some(truth),
            _ => {
                self.wrong(&entry, "write true or false, without quotes");
                None
            }
        }
    }

    fn size(&mut self, key: &str, min: u64, max: u64) -> Option<u64> {
        let entry = self.top.get(key)?.clone();
        let bytes = match &entry.value {
            Raw::Text(text) => size(text),
            _ => None,
        };
        match bytes {
            Some(bytes) if (min..=max).contains(&bytes) => Some(bytes),
            _ => {
                let (min, max) = (show_size(min), show_size(max));
                self.wrong(
                    &entry,
                    &format!("write a size with its unit, like \"64MiB\", from {min} to {max}"),
                );
                None
            }
        }
    }

    fn duration(&mut self, key: &str, min: Duration, max: Duration) -> Option<Duration> {
        let entry = self.top.get(key)?.clone();
        let time = match &entry.value {
            Raw::Text(text) => duration(text),
            _ => None,
        };
        match time {
            Some(time) if (min..=max).contains(&time) => Some(time),
            _ => {
                let (min, max) = (show_duration(min), show_duration(max));
                self.wrong(&entry, &format!("write a time with its unit, like \"10s\", from {min} to {max}"));
                None
            }
        }
    }

    /// One word out of a list.
    fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let entry = self.top.get(key)?.clone();
        let found = match &entry.value {
            Raw::Text(text) => words.iter().find(|(word, _)| word == text).map(|(_, value)| *value),
            _ => None,
        };
        if found.is_none() {
            let list: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.wrong(&entry, &format!("write one of {}", list.join(", ")));
        }
        found
    }

    fn address(&mut self, key: &str) -> Option<SocketAddr> {
        let entry = self.top.get(key)?.clone();
        let wanted = "write an IP address and a port, like \"127.0.0.1:7379\" or \"[::1]:7379\"; names are not looked up";
        let address = match &entry.value {
            Raw::Text(text) => text.trim().parse::<SocketAddr>().ok(),
            _ => None,
        };
        if address.is_none() {
            self.wrong(&entry, wanted);
        }
        address
    }

    fn missing(&mut self, line: usize, key: &str, hint: &str) {
        self.mistakes.push(line, key, "the key is missing", hint);
    }

    fn node(&mut self, hint: &str) -> Option<NodeId> {
        if self.top.get("node").is_none() {
            self.missing(self.top.line, "node", hint);
        }
        let id = self.number("node", 1, NODES_MAX as u64)?;
        Some(NodeId(u16::try_from(id).expect("node ids are small")))
    }

    fn cluster(&mut self) -> Option<String> {
        if self.top.get("cluster").is_none() {
            self.missing(0, "cluster", "add a line like cluster = \"orders\"");
        }
        let (line, name) = self.text("cluster", "write a name in double quotes")?;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
            let hint = "use 1 to 63 characters of a-z, 0-9, - and _";
            self.mistakes.push(line, "cluster", "the name has other characters or a wrong length", hint);
            return None;
        }
        Some(name)
    }

    fn config(&mut self, written: &Written, folder: &Path) -> Option<Config> {
        let node = self.node("add a line like node = 1; every node of the cluster has its own number");
        let cluster = self.cluster();
        let data =
            self.sized_text("data", 1, 4096).map_or_else(|| folder.to_path_buf(), |text| folder.join(text));
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let client_listen = self.address("client_listen").unwrap_or_else(|| loopback(CLIENT_PORT));
        let peer_listen = self.address("peer_listen").unwrap_or_else(|| loopback(PEER_PORT));
        let http_listen = self.address("http_listen");
        self.distinct_ports(client_listen, peer_listen, http_listen);

        let members = self.members(written, node, client_listen, peer_listen);
        let sync = self.sync(&members);
        let store = self.store();
        self.store_reach(&store, &members);
        let degrade = self.degrade(&store);

        let peer_secret = self.sized_text("peer_secret", 16, 512).map(Secret::new);
        let client_password = self.sized_text("client_password", 1, 512).map(Secret::new);
        self.exposure(client_listen, peer_listen, http_listen, peer_secret.is_some(), &members);

        let segment_bytes =
            self.size("segment_bytes", SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX).unwrap_or(SEGMENT_BYTES);
        if !segment_bytes.is_power_of_two() {
            let line = self.top.get("segment_bytes").map_or(0, |entry| entry.line);
            self.mistakes.push(
                line,
                "segment_bytes",
                "the size is not a power of two",
                "64MiB is the default",
            );
        }
        let commit = self.word(
            "commit",
            &[
                ("off", CommitLevel::Off),
                ("local", CommitLevel::Local),
                ("remote_write", CommitLevel::RemoteWrite),
                ("remote_receive", CommitLevel::RemoteWrite),
                ("on", CommitLevel::On),
                ("remote_apply", CommitLevel::RemoteApply),
            ],
        );
        let memory = self.size("memory", 64 << 20, 1 << 40).unwrap_or(MEMORY_DEFAULT);
        let second = Duration::from_secs(1);
        let milli = Duration::from_millis(1);
        Some(Config {
            cluster: cluster.unwrap_or_default(),
            node: node.unwrap_or(NodeId(1)),
            data,
            client_listen,
            peer_listen,
            http_listen,
            cores: self.cores(memory),
            redo_workers: self.number("redo_workers", 1, REDO_WORKERS_MAX as u64).map(|n| n as usize),
            memory,
            sync,
            degrade,
            store,
            commit: commit.unwrap_or(CommitLevel::On),
            commit_timeout: self.duration("commit_timeout", milli, second * 3600).unwrap_or(second * 10),
            reads: self
                .word("reads", &[("linearizable", Reads::Linearizable), ("local", Reads::Local)])
                .unwrap_or(Reads::Linearizable),
            client_password,
            peer_secret,
            max_clients: self.number("max_clients", 1, 60_000).map_or(CLIENTS_DEFAULT, |n| n as usize),
            log_retention: self.size("log_retention", 2 * segment_bytes, 64 << 40),
            shards: self.number("shards", 1, u64::from(SHARDS_MAX)).map_or(SHARDS_DEFAULT, |n| n as u16),
            segment_bytes,
            staleness_bound: self.duration("staleness_bound", milli, second * 86_400),
            scrub_rate: self.size("scrub_rate", 0, 16 << 30).unwrap_or(4 << 20),
            scrub_every: self.duration("scrub_every", second, second * 86_400 * 30).unwrap_or(second * 3600),
            voter_timeout: self.duration("voter_timeout", second * 5, second * 86_400 * 7),
            stall_timeout: self.duration("stall_timeout", milli * 100, second * 600).unwrap_or(second * 5),
            busy_poll: self
                .duration("busy_poll", Duration::ZERO, milli * 10)
                .unwrap_or(Duration::from_micros(200)),
            wal_sync: self
                .word(
                    "wal_sync",
                    &[("auto", WalSync::Auto), ("dsync", WalSync::Dsync), ("fdatasync", WalSync::Fdatasync)],
                )
                .unwrap_or(WalSync::Auto),
            frames_in_flight: self
                .number("frames_in_flight", 1, FRAMES_IN_FLIGHT_MAX as u64)
                .map(|n| n as usize),
            promote_trigger_file: self
                .sized_text("promote_trigger_file", 1, 4096)
                .map(|text| folder.join(text)),
            log_level: self
                .word(
                    "log_level",
                    &[
                        ("error", LogLevel::Error),
                        ("warn", LogLevel::Warn),
                        ("info", LogLevel::Info),
                        ("debug", LogLevel::Debug),
                        ("trace", LogLevel::Trace),
                    ],
                )
                .unwrap_or(LogLevel::Info),
            log_format: self
                .word("log_format", &[("human", LogFormat::Human), ("json", LogFormat::Json)])
                .unwrap_or(LogFormat::Human),
            members,
        })
    }

    fn cores(&mut self, memory: u64) -> Option<u16> {
        let cores = self.number("cores", 1, u64::from(CORES_MAX))?;
        if memory / CORE_MEMORY_BYTES_MIN < cores {
            let line = self.line("cores");
            let what = format!("{cores} cores are too many for {} of memory", show_size(memory));
            let hint = format!("give each at least {}, or remove the key", show_size(CORE_MEMORY_BYTES_MIN));
            self.mistakes.push(line, "cores", what, hint);
        }
        u16::try_from(cores).ok()
    }

    fn distinct_ports(&mut self, client: SocketAddr, peer: SocketAddr, http: Option<SocketAddr>) {
        let same = |a: SocketAddr, b: SocketAddr| {
            a.port() == b.port()
                && a.port() != 0
                && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
        };
        let hint = "clients, peers and HTTP each need a port of their own";
        if same(client, peer) {
            let line = self.line("peer_listen").max(self.line("client_listen"));
            self.mistakes.push(line, "peer_listen", "clients and peers would share one port", hint);
        }
        if http.is_some_and(|http| same(http, client) || same(http, peer)) {
            self.mistakes.push(
                self.line("http_listen"),
                "http_listen",
                "the port is taken by another listener",
                hint,
            );
        }
    }

    fn line(&self, key: &str) -> usize {
        self.top.get(key).map_or(0, |entry| entry.line)
    }

    /// Cascaded standbys never vote: only directly connected voters count (`protocol` 2.3).
    fn sync(&mut self, members: &[Member]) -> SyncRule {
        let direct: Vec<NodeId> =
            members.iter().filter(|member| member.upstream.is_none()).map(|member| member.node).collect();
        let default = SyncRule::default_for(&direct);
        let wanted = "write ANY k (1, 2, 3) or FIRST k (1, 2, 3) in double quotes";
        let Some((line, text)) = self.text("sync", wanted) else { return default };
        let (what, hint) = match sync::parse(&text, &direct) {
            Ok(rule) => return rule,
            Err(why) => why,
        };
        self.mistakes.push(line, "sync", what, hint);
        default
    }

    fn degrade(&mut self, store: &StoreChoice) -> Degrade {
        let wanted = "write \"never\", or \"after 30s\"";
        let Some((line, text)) = self.text("degrade", wanted) else { return Degrade::Never };
        if text == "never" {
            return Degrade::Never;
        }
        match text.strip_prefix("after ").and_then(duration) {
            Some(time) if !time.is_zero() && *store != StoreChoice::None => Degrade::After(time),
            Some(time) if !time.is_zero() => {
                let what = "degrading needs a control store, and store is none";
                let hint = "without a store only `failover --alone` lowers k, by hand; remove the key, write \"never\", or name a store";
                self.mistakes.push(line, "degrade", what, hint);
                Degrade::After(time)
            }
            _ => {
                self.mistakes.push(line, "degrade", format!("{text:?} is no rule for degrading"), wanted);
                Degrade::Never
            }
        }
    }

    fn store(&mut self) -> StoreChoice {
        let wanted =
            "write \"none\", or \"dir:/absolute/path\" of a folder that all nodes of this machine share";
        let Some((line, text)) = self.text("store", wanted) else { return StoreChoice::None };
        if text == "none" {
            return StoreChoice::None;
        }
        let folder = text.strip_prefix("dir:").map(Path::new).filter(|folder| folder.is_absolute());
        match folder {
            Some(folder) if folder.parent().is_some() => return StoreChoice::Dir(folder.to_path_buf()),
            _ => self.mistakes.push(
                line,
                "store",
                format!("{text:?} is no control store of this version"),
                wanted,
            ),
        }
        StoreChoice::None
    }

    /// A folder is shared by the processes of one machine only.
    fn store_reach(&mut self, store: &StoreChoice, members: &[Member]) {
        let away = members.iter().find(|member| !member.peer.ip().is_loopback());
        if let (StoreChoice::Dir(_), Some(member)) = (store, away) {
            let what = format!(
                "a folder cannot be the store of a cluster on several machines: node {} is at {}",
                member.node, member.peer
            );
            let hint = "write store = \"none\", or give every member a loopback address if they all run on this machine";
            let line = self.top.get("store").map_or(0, |entry| entry.line);
            self.mistakes.push(line, "store", what, hint);
        }
    }

    /// A port that others can reach must not trust whoever connects (`protocol` section 8).
    fn exposure(
        &mut self,
        client: SocketAddr,
        peer: SocketAddr,
        http: Option<SocketAddr>,
        secret: bool,
        members: &[Member],
    ) {
        if !peer.ip().is_loopback() && !secret {
            let hint =
                "add the same peer_secret = \"...\" (16 bytes or more) on every node, or listen on 127.0.0.1";
            let what = format!("{peer} is reachable from outside and no peer_secret is set");
            self.mistakes.push(self.line("peer_listen"), "peer_listen", what, hint);
        }
        if !client.ip().is_loopback() && !secret {
            let hint =
                "add peer_secret (and client_password, if clients must log in), or listen on 127.0.0.1";
            let what = format!("{client} is reachable from outside and no peer_secret is set");
            self.mistakes.push(self.line("client_listen"), "client_listen", what, hint);
        }
        if let Some(http) = http
            && !http.ip().is_loopback()
            && !secret
        {
            let hint = "add peer_secret, or listen on 127.0.0.1";
            let what = format!("{http} is reachable from outside and no peer_secret is set");
            self.mistakes.push(self.line("http_listen"), "http_listen", what, hint);
        }
        if peer.ip().is_loopback()
            && let Some(other) = members.iter().find(|member| !member.peer.ip().is_loopback())
        {
            let hint = "set peer_listen to an address that the other nodes can reach";
            let what = format!("it is loopback, but member {} is at {}", other.node, other.peer);
            self.mistakes.push(self.line("peer_listen"), "peer_listen", what, hint);
        }
    }

    fn members(
        &mut self,
        written: &Written,
        node: Option<NodeId>,
        client_listen: SocketAddr,
        peer_listen: SocketAddr,
    ) -> Vec<Member> {
        let me = node.unwrap_or(NodeId(1));
        if written.members.is_empty() {
            let host = peer_listen.ip().to_string();
            return vec![Member {
                node: me,
                host,
                client: Some(client_listen),
                peer: peer_listen,
                priority: PRIORITY_DEFAULT,
                nofailover: false,
                upstream: None,
                apply_delay: None,
            }];
        }
        if written.members.len() > NODES_MAX {
            let line = written.members[NODES_MAX].line;
            let what = format!("{} members are more than the maximum of {NODES_MAX}", written.members.len());
            self.mistakes.push(line, "member", what, "run several clusters");
        }
        let mut members: Vec<(usize, Member)> = Vec::new();
        for section in written.members.iter().take(NODES_MAX) {
            let member = Checker { top: section, mistakes: self.mistakes }.member();
            let Some(member) = member else { continue };
            if members.iter().any(|(_, other)| other.node == member.node) {
                let what = format!("node {} is a member twice", member.node);
                self.mistakes.push(section.line, "member", what, "give every member its own node id");
            } else if let Some((_, other)) = members.iter().find(|(_, other)| other.peer == member.peer) {
                let what = format!(
                    "members {} and {} share the peer address {}",
                    other.node, member.node, member.peer
                );
                self.mistakes.push(section.line, "member", what, "every node needs its own address and port");
            } else {
                members.push((section.line, member));
            }
        }
        self.upstreams(&members);
        let direct = members.iter().filter(|(_, member)| member.upstream.is_none());
        if let Some((line, _)) = direct.clone().nth(DIRECT_STANDBYS_MAX + 1) {
            let what =
                format!("{} members stream from the primary, {DIRECT_STANDBYS_MAX} may", direct.count() - 1);
            self.mistakes.push(
                *line,
                "member",
                what,
                "give the others an upstream: they become cascaded standbys",
            );
        }
        if let Some(node) = node
            && members.len() == written.members.len()
            && members.iter().all(|(_, member)| member.node != node)
        {
            let what = format!("this node, {node}, is not among the members");
            self.mistakes.push(
                self.line("node"),
                "node",
                what,
                "add a [[member]] for it, or correct its number",
            );
        }
        let mut members: Vec<Member> = members.into_iter().map(|(_, member)| member).collect();
        members.sort_by_key(|member| member.node);
        members
    }

    /// Every upstream is another member, and following upstreams ends at a direct standby.
    fn upstreams(&mut self, members: &[(usize, Member)]) {
        for (line, member) in members {
            let below = members.iter().filter(|(_, other)| other.upstream == Some(member.node)).count();
            if below > DIRECT_STANDBYS_MAX {
                let what =
                    format!("{below} members stream from member {}, {DIRECT_STANDBYS_MAX} may", member.node);
                self.mistakes.push(*line, "upstream", what, "give some of them another upstream");
            }
        }
        for (line, member) in members {
            let mut at = member;
            for _ in 0..=members.len() {
                let Some(upstream) = at.upstream else { break };
                match members.iter().find(|(_, other)| other.node == upstream) {
                    Some((_, next)) if next.node != member.node => at = next,
                    Some(_) => {
                        let what = format!("member {} would stream from itself", member.node);
                        self.mistakes.push(*line, "upstream", what, "upstreams must end at a direct standby");
                        break;
                    }
                    None => {
                        let what = format!("upstream {upstream} is not a member");
                        self.mistakes.push(*line, "upstream", what, "name the node id of another member");
                        break;
                    }
                }
            }
        }
    }

    fn member(&mut self) -> Option<Member> {
        let node = self.node("every [[member]] needs its node id");
        if self.top.get("peer").is_none() {
            let hint = "add peer = \"address:port\", where the other nodes reach it";
            self.missing(self.top.line, "peer", hint);
        }
        let peer = self.address("peer");
        let client = self.address("client");
        let host = self.sized_text("host", 1, 255);
        let priority = self.number("priority", 0, 1000).map_or(PRIORITY_DEFAULT, |n| n as u32);
        let nofailover = self.truth("nofailover").unwrap_or(false);
        let upstream = self.number("upstream", 1, NODES_MAX as u64).map(|id| NodeId(id as u16));
        let month = Duration::from_secs(30 * 86_400);
        let apply_delay = self.duration("apply_delay", Duration::from_millis(1), month);
        let (node, peer) = (node?, peer?);
        let host = host.unwrap_or_else(|| peer.ip().to_string());
        Some(Member { node, host, client, peer, priority, nofailover, upstream, apply_delay })
    }
}
