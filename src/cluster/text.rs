//! The terminal's form of a status: the layouts of `gs_om -t status --detail` and `gs_ctl query`.

use std::fmt::{self, Write};

use super::query::{Channel, QueryStatus, ReceiverInfo, SenderInfo};
use super::status::{ClusterStatus, NodeStatus, spare_in_words};
use crate::base::Lsn;

fn port(address: &str) -> &str {
    address.rsplit_once(':').map_or("", |(_, port)| port)
}

fn ip(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(ip, _)| ip)
}

/// Pads every column to its widest cell.
fn table(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> fmt::Result {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |out: &mut dyn Write, cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width)).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(out, &mut head.iter().copied())?;
    writeln!(out, "{}", "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)))?;
    for row in rows {
        line(out, &mut row.iter().map(String::as_str))?;
    }
    Ok(())
}

fn node_row(node: &NodeStatus) -> Vec<String> {
    vec![
        node.node.to_string(),
        node.host.clone(),
        ip(&node.peer).to_string(),
        port(node.client.as_deref().unwrap_or("")).to_string(),
        node.instance.to_string(),
        node.data.clone(),
        node.static_role.to_string(),
        node.role.to_string(),
        node.state_text(),
    ]
}

fn lsn(value: Option<u64>) -> String {
    value.map_or_else(|| "-".into(), |at| Lsn(at).to_string())
}

fn known(value: Option<u64>, unit: &str) -> String {
    value.map_or_else(|| "-".into(), |number| format!("{number}{unit}"))
}

impl ClusterStatus {
    /// `baton cluster status`: one line per fact, as `gs_om -t status`.
    pub fn brief(&self) -> String {
        format!("cluster_state   : {}\nredistributing  : No\n", self.cluster_state)
    }

    /// `baton cluster status --detail`.
    pub fn detail(&self) -> String {
        let mut out = String::new();
        self.write_detail(&mut out).expect("writing to a string");
        out
    }

    fn write_detail(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "[   Cluster State   ]\n")?;
        writeln!(out, "cluster_state   : {}", self.cluster_state)?;
        writeln!(out, "redistributing  : No")?;
        writeln!(out, "current_az      : AZ_ALL")?;
        writeln!(out, "cluster_id      : {}", self.cluster_id)?;
        writeln!(out, "term            : {}", self.term)?;
        if let Some(policy) = &self.policy {
            let (number, rule) = (policy.generation, &policy.rule);
            writeln!(out, "policy          : {rule}, generation {number}")?;
            if let Some(meant) = policy.degraded_from {
                let copies = copies_in_words(policy.k + 1);
                writeln!(out, "degraded        : {copies}, {} are meant to be", meant + 1)?;
            }
            if let Some(store) = &policy.store {
                writeln!(out, "store           : {}", store.in_words())?;
            }
            for pending in &policy.pending {
                let (number, rule) = (pending.generation, &pending.rule);
                writeln!(
                    out,
                    "policy_change   : to {rule}, generation {number}: not committed yet, both must be satisfied"
                )?;
            }
            writeln!(out, "failover_spare  : {}", policy.spare_in_words())?;
        }
        writeln!(out, "\n[  Datanode State   ]\n")?;
        let head = ["node", "host", "node_ip", "port", "instance", "data", "set", "role", "state"];
        table(out, &head, &self.nodes.iter().map(node_row).collect::<Vec<_>>())?;
        let told = self.nodes.iter().filter(|node| !node.detail.is_empty() && !node.shows_detail());
        for (i, node) in told.enumerate() {
            let gap = if i == 0 { "\n" } else { "" };
            writeln!(out, "{gap}node {}: {}", node.node, node.detail)?;
        }
        writeln!(out, "\n[  Replication      ]\n")?;
        let head = ["node", "from", "sync", "appended", "flushed", "committed", "applied", "lag", "lag_time"];
        let rows: Vec<Vec<String>> = self
            .nodes
            .iter()
            .map(|node| {
                vec![
                    node.node.to_string(),
                    node.upstream.map_or_else(|| "-".into(), |from| from.to_string()),
                    node.sync_state.map_or_else(|| "-".into(), |sync| sync.to_string()),
                    lsn(node.appended_lsn),
                    lsn(node.flushed_lsn),
                    lsn(node.committed_lsn),
                    lsn(node.applied_lsn),
                    known(node.lag_bytes, " B"),
                    known(node.lag_ms, " ms"),
                ]
            })
            .collect();
        table(out, &head, &rows)
    }
}

fn field(out: &mut String, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(out, "        {name:<30} : {value}")
}

fn eta(ms: Option<u64>) -> String {
    match ms {
        None => "not at this speed".into(),
        Some(0) => "caught up".into(),
        Some(ms) => format!("{:.1} s", ms as f64 / 1000.0),
    }
}

fn channel(channel: &Channel, arrow: &str) -> String {
    format!("{}{arrow}{}", channel.local, channel.remote)
}

fn copies_in_words(copies: usize) -> String {
    if copies == 1 { "one copy".into() } else { format!("{copies} copies") }
}

impl QueryStatus {
    /// The layout of `gs_ctl query`, with lag in bytes and time instead of a percentage that hides it.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out).expect("writing to a string");
        out
    }

    fn write_text(&self, out: &mut String) -> fmt::Result {
        writeln!(out, " HA state:")?;
        field(out, "local_role", self.ha.local_role)?;
        field(out, "static_connections", self.ha.static_connections)?;
        field(out, "db_state", self.ha.db_state)?;
        let detail = &self.ha.detail_information;
        field(out, "detail_information", if detail.is_empty() { "Normal" } else { detail })?;
        field(out, "term", self.term)?;
        field(out, "committed_location", lsn(self.me.committed_lsn))?;
        field(out, "replay_location", lsn(self.me.applied_lsn))?;
        field(
            out,
            "failover_spare",
            spare_in_words(self.failures_survived, self.writes_survive, self.writes_wait),
        )?;
        if let Some(meant) = self.degraded_from {
            field(
                out,
                "degraded",
                format!("fewer copies are asked for than the {} that are meant to be", meant + 1),
            )?;
        }
        if let Some(store) = &self.store {
            field(out, "control_store", store.in_words())?;
        }
        field(out, "log_format", self.format.in_words())?;
        if let Some(delay) = self.apply_delay_ms {
            field(out, "apply_delay", format!("{delay} ms"))?;
        }
        writeln!(out, "\n Pages info:")?;
        let pages = &self.pages;
        field(out, "damaged", pages.damaged)?;
        field(out, "unrepairable", pages.unrepairable)?;
        field(out, "found_bad", pages.found_bad)?;
        field(out, "repaired", pages.repaired)?;
        field(out, "scrubbed_pages", pages.scrubbed)?;
        field(out, "scrub_passes", pages.scrub_passes)?;
        field(out, "last_pass", known(pages.last_pass_age_s, " s ago"))?;
        match pages.walk_shards_left {
            0 => field(out, "free_pages", "known")?,
            left => field(out, "free_pages", format!("being found: {left} shards left"))?,
        }
        writeln!(out, "\n Senders info:")?;
        if self.senders.is_empty() {
            writeln!(out, "No information")?;
        }
        for (i, sender) in self.senders.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            sender.write_text(out, self)?;
        }
        writeln!(out, "\n Receiver info:")?;
        match &self.receiver {
            Some(receiver) => receiver.write_text(out),
            None => writeln!(out, "No information"),
        }
    }
}

impl SenderInfo {
    fn write_text(&self, out: &mut String, query: &QueryStatus) -> fmt::Result {
        field(out, "sender_pid", self.pid)?;
        field(out, "peer_node", self.node)?;
        field(out, "local_role", self.local_role)?;
        field(out, "peer_role", self.peer_role)?;
        field(out, "peer_state", self.peer_state)?;
        field(out, "state", &self.state)?;
        field(out, "sender_sent_location", Lsn(self.sent_lsn))?;
        field(out, "sender_write_location", Lsn(query.written_lsn))?;
        field(out, "sender_flush_location", lsn(query.me.flushed_lsn))?;
        field(out, "sender_replay_location", lsn(query.me.applied_lsn))?;
        field(out, "receiver_received_location", Lsn(self.written_lsn))?;
        field(out, "receiver_write_location", Lsn(self.written_lsn))?;
        field(out, "receiver_flush_location", Lsn(self.flushed_lsn))?;
        field(out, "receiver_replay_location", Lsn(self.applied_lsn))?;
        field(out, "sync_percent", format!("{}%", self.sync_percent))?;
        field(out, "lag_bytes", self.lag_bytes)?;
        field(out, "lag_ms", known(self.lag_ms, ""))?;
        field(out, "catchup_eta", eta(self.catchup_eta_ms))?;
        if let Some(delay) = self.apply_delay_ms {
            field(out, "apply_delay", format!("{delay} ms"))?;
        }
        field(out, "sync_state", self.sync_state)?;
        field(out, "sync_priority", self.sync_priority)?;
        field(out, "channel", channel(&self.channel, "-->"))
    }
}

impl ReceiverInfo {
    fn write_text(&self, out: &mut String) -> fmt::Result {
        field(out, "receiver_pid", self.pid)?;
        field(out, "peer_node", self.node)?;
        field(out, "local_role", self.local_role)?;
        field(out, "peer_role", self.peer_role)?;
        field(out, "peer_state", self.peer_state)?;
        field(out, "state", &self.state)?;
        field(out, "sender_sent_location", Lsn(self.sender_sent_lsn))?;
        field(out, "sender_flush_location", lsn(self.sender_flushed_lsn))?;
        field(out, "sender_replay_location", lsn(self.sender_applied_lsn))?;
        field(out, "receiver_received_location", Lsn(self.received_lsn))?;
        field(out, "receiver_write_location", Lsn(self.written_lsn))?;
        field(out, "receiver_flush_location", Lsn(self.flushed_lsn))?;
        field(out, "receiver_replay_location", Lsn(self.applied_lsn))?;
        field(out, "sync_percent", format!("{}%", self.sync_percent))?;
        field(out, "catchup_eta", eta(self.catchup_eta_ms))?;
        field(out, "channel", channel(&self.channel, "<--"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HaState, NodeState, PolicyStatus, Role, StaticRole, SyncState};
    use super::*;
    use crate::base::{ClusterId, NodeId};

    fn node(id: u16, role: Role) -> NodeStatus {
        let set = if role == Role::Primary { StaticRole::Primary } else { StaticRole::Standby };
        let mut row =
            NodeStatus::silent(NodeId(id), &format!("host{id}"), &format!("10.0.0.{id}:8379"), set, role);
        row.client = Some(format!("10.0.0.{id}:7379"));
        row.data = format!("/data/{id}");
        row.state = NodeState::Normal;
        row
    }

    #[test]
    fn detail_is_laid_out_as_gs_om() {
        let mut sick = node(2, Role::Standby);
        sick.state = NodeState::NeedRepair;
        sick.detail = "WAL".into();
        sick.flushed_lsn = Some(0x1_0000_0000);
        let policy = PolicyStatus {
            generation: 1,
            rule: "ANY 1 (1, 2)".into(),
            voters: vec![1, 2],
            k: 1,
            failures_survived: Some(1),
            writes_survive: Some(0),
            writes_wait: false,
            pending: vec![],
            degraded_from: None,
            store: None,
        };
        let status = ClusterStatus::new(ClusterId(5), 3, Some(policy), vec![sick, node(1, Role::Primary)]);
        let text = status.detail();
        let wanted = "[   Cluster State   ]\n\ncluster_state   : Degraded\nredistributing  : No\ncurrent_az      : AZ_ALL\n";
        assert!(text.starts_with(wanted), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        let at = lines.iter().position(|line| line.starts_with("[  Datanode State")).unwrap();
        assert_eq!(lines[at + 2], "node  host   node_ip   port  instance  data     set  role     state");
        assert!(lines[at + 3].chars().all(|c| c == '-'));
        assert_eq!(lines[at + 4], "1     host1  10.0.0.1  7379  6001      /data/1  P    Primary  Normal");
        assert_eq!(
            lines[at + 5],
            "2     host2  10.0.0.2  7379  6002      /data/2  S    Standby  Need repair(WAL)"
        );
        assert!(text.contains("1 more voter may be lost without losing a write, but writes stop"), "{text}");
        assert!(text.contains("1/0"), "LSNs are shown as PostgreSQL shows them: {text}");
    }

    #[test]
    fn query_is_laid_out_as_gs_ctl() {
        let me = node(1, Role::Primary);
        let sender = SenderInfo {
            pid: 77,
            node: 2,
            local_role: Role::Primary,
            peer_role: Role::Standby,
            peer_state: NodeState::Normal,
            state: "Streaming".into(),
            sent_lsn: 4096,
            written_lsn: 4096,
            flushed_lsn: 4096,
            applied_lsn: 0,
            lag_bytes: 0,
            lag_ms: None,
            sync_percent: 100,
            catchup_eta_ms: Some(0),
            sync_state: SyncState::Quorum,
            sync_priority: 1,
            apply_delay_ms: None,
            channel: Channel { local: "a:1".into(), remote: "b:2".into() },
        };
        let ha = HaState {
            local_role: Role::Primary,
            static_connections: 1,
            db_state: NodeState::Normal,
            detail_information: "Normal".into(),
        };
        let query = QueryStatus {
            ha,
            me,
            term: 1,
            senders: vec![sender],
            receiver: None,
            failures_survived: Some(1),
            writes_survive: Some(1),
            writes_wait: false,
            written_lsn: 4096,
            apply_delay_ms: None,
            pages: Default::default(),
            degraded_from: None,
            store: None,
            format: super::super::query::FormatStatus { written: 1, speaks_oldest: 1, speaks_newest: 2 },
        };
        let text = query.text();
        assert!(text.starts_with(" HA state:\n        local_role                     : Primary\n"), "{text}");
        assert!(text.contains("        sync_state                     : Quorum\n"), "{text}");
        assert!(text.contains("        channel                        : a:1-->b:2\n"), "{text}");
        assert!(text.contains("        sender_pid                     : 77\n"), "{text}");
        assert!(text.contains("        sync_percent                   : 100%\n"), "{text}");
        assert!(text.contains(": 1 more voter may be lost, no write is lost and writes go on\n"), "{text}");
        assert!(
            text.contains(
                ": 1 (this build also speaks 2: `baton cluster finalize-upgrade` when all members do)"
            ),
            "{text}"
        );
        assert!(text.ends_with(" Receiver info:\nNo information\n"), "{text}");
    }
}
