//! The durable memory of role and policy changes: `history.jsonl` in the data folder, one JSON row per line.
//!
//! The loop hands rows to a thread and never waits for it: a disk that hangs loses rows of history, never time. The
//! thread flushes each row. The file moves aside at a fixed size, so that two files bound it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use crate::base::limits::{HISTORY_FILE_BYTES_MAX, HISTORY_ROWS_MAX};
use crate::base::{Lsn, NodeId, Term};
use crate::cluster::HistoryRow;
use crate::io::Seam;
use crate::role::{Evidence, Role};

use super::Node;

pub const HISTORY_FILE: &str = "history.jsonl";

/// What the loop keeps of it.
#[derive(Default)]
pub struct Chronicle {
    rows: VecDeque<HistoryRow>,
    sink: Option<SyncSender<HistoryRow>>,
    /// Who asked last for a change of role, until it came about.
    pub asked: String,
    role: Option<Role>,
    policy: String,
    /// The newest facts that the role machine gave.
    pub evidence: String,
    /// The newest format that a row tells of.
    pub format: u16,
}

impl Chronicle {
    fn push(&mut self, row: HistoryRow) {
        if let Some(sink) = &self.sink {
            // A full queue means that the disk hangs: the row stays in memory alone.
            let _ = sink.try_send(row.clone());
        }
        if self.rows.len() == HISTORY_ROWS_MAX {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
    }

    /// The newest rows, oldest first.
    pub fn newest(&self, count: usize) -> Vec<HistoryRow> {
        self.rows.iter().skip(self.rows.len().saturating_sub(count)).cloned().collect()
    }
}

impl<S: Seam> Node<S> {
    /// Connects the loop's memory with the file's.
    pub fn attach_history(&mut self, before: Vec<HistoryRow>, sink: SyncSender<HistoryRow>) {
        let own = std::mem::take(&mut self.chronicle.rows);
        let newest = before.len().saturating_sub(HISTORY_ROWS_MAX / 2);
        self.chronicle.rows = before.into_iter().skip(newest).collect();
        self.chronicle.sink = Some(sink);
        let version = concat!("baton ", env!("CARGO_PKG_VERSION"));
        self.note("start", "", version, None, String::new());
        own.into_iter().for_each(|row| self.chronicle.push(row));
    }

    /// Writes a row with what this node knows now.
    pub(super) fn note(&mut self, what: &str, from: &str, to: &str, gap_ms: Option<u64>, evidence: String) {
        let row = HistoryRow {
            at_ms: self.seam.wall().0,
            node: self.me().0,
            what: what.into(),
            from: from.into(),
            to: to.into(),
            term: self.role.control().history.last().map_or(0, |(term, _)| term.number),
            lsn: self.log.wal.end().end.0,
            by: self.chronicle.asked.clone(),
            gap_ms,
            evidence,
        };
        self.chronicle.push(row);
    }

    /// The shown role changed.
    pub(super) fn note_role(&mut self, role: Role) {
        let Some(before) = self.chronicle.role.replace(role) else { return };
        if before != role {
            let evidence = self.chronicle.evidence.clone();
            self.note("role", &before.to_string(), &role.to_string(), None, evidence);
        }
    }

    /// Facts of the role machine: kept for the row that they lead to; a policy in force is a row of its own.
    pub(super) fn note_evidence(&mut self, evidence: &Evidence) {
        self.chronicle.evidence = evidence.to_string();
        let policy = self.policy_status();
        let rule = format!("generation {}: {}", policy.generation, policy.rule);
        if self.chronicle.policy != rule {
            let before = std::mem::replace(&mut self.chronicle.policy, rule.clone());
            if !before.is_empty() {
                self.note("policy", &before, &rule, None, evidence.to_string());
            }
        }
    }

    pub(super) fn note_follow(&mut self, leader: NodeId, term: Term) {
        self.chronicle.policy_seen(self.policy_status());
        self.note("follow", "", &format!("node {leader} in term {}", term.number), None, String::new());
        self.chronicle.asked.clear();
    }

    /// Clients are served from now on.
    pub(super) fn note_serving(&mut self) {
        let gap = self.streams.leader_heard;
        let gap_ms = (gap.0 > 0).then(|| self.now.since(gap).as_millis() as u64);
        let evidence = self.chronicle.evidence.clone();
        self.note("serve", "", "clients", gap_ms, evidence);
        self.chronicle.asked.clear();
    }

    /// A tail that nobody acknowledged was cut off and kept as a file.
    pub(super) fn note_tail(&mut self, from: Lsn, end: Lsn) {
        let evidence = format!("bytes={} keep=tail-{:016x}", end.since(from), from.0);
        self.note("tail", &from.to_string(), &end.to_string(), None, evidence);
    }
}

impl Chronicle {
    fn policy_seen(&mut self, policy: crate::cluster::PolicyStatus) {
        if self.policy.is_empty() {
            self.policy = format!("generation {}: {}", policy.generation, policy.rule);
        }
    }
}

/// The thread that writes the file; it ends when the sender is dropped.
pub struct Writer {
    pub sink: SyncSender<HistoryRow>,
    pub thread: JoinHandle<()>,
}

/// Reads what is there and starts the thread.
pub fn open(data: &Path) -> io::Result<(Vec<HistoryRow>, Writer)> {
    let path = data.join(HISTORY_FILE);
    let rows = read(data);
    let (sink, queue) = mpsc::sync_channel::<HistoryRow>(HISTORY_ROWS_MAX);
    let thread = std::thread::Builder::new().name("history".into()).spawn(move || {
        for row in queue {
            if let Err(error) = append(&path, &row) {
                tracing::warn!(%error, "the history file cannot be written");
            }
        }
    })?;
    Ok((rows, Writer { sink, thread }))
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

/// The rows of both files. A line that was cut off by a crash is left out.
pub fn read(data: &Path) -> Vec<HistoryRow> {
    let path = data.join(HISTORY_FILE);
    let mut rows = Vec::new();
    for file in [older(&path), path] {
        let Ok(bytes) = fs::read(&file) else { continue };
        rows.extend(rows_of(&bytes));
    }
    rows
}

/// The rows of one file, as far as they can be read.
pub fn rows_of(bytes: &[u8]) -> impl Iterator<Item = HistoryRow> + '_ {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
}

fn append(path: &Path, row: &HistoryRow) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|file| file.len() > HISTORY_FILE_BYTES_MAX) {
        fs::rename(path, older(path))?;
    }
    let mut file: File = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let mut line = serde_json::to_vec(row)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lsn: u64) -> HistoryRow {
        HistoryRow {
            at_ms: 1,
            node: 1,
            what: "role".into(),
            from: "Standby".into(),
            to: "Primary".into(),
            term: 2,
            lsn,
            by: String::new(),
            gap_ms: None,
            evidence: "x".repeat(1000),
        }
    }

    #[test]
    fn rows_survive_and_two_files_bound_them() {
        let folder = tempfile::tempdir().unwrap();
        let (before, writer) = open(folder.path()).unwrap();
        assert!(before.is_empty());
        let many = 3 * HISTORY_FILE_BYTES_MAX / 1000;
        for lsn in 0..many {
            writer.sink.send(row(lsn)).unwrap();
        }
        drop(writer.sink);
        writer.thread.join().unwrap();
        let path = folder.path().join(HISTORY_FILE);
        let bytes = fs::metadata(&path).unwrap().len() + fs::metadata(older(&path)).unwrap().len();
        assert!(bytes < 2 * HISTORY_FILE_BYTES_MAX + 8192, "{bytes}");
        let rows = read(folder.path());
        assert_eq!(rows.last().unwrap().lsn, many - 1);
        assert!(rows.windows(2).all(|pair| pair[0].lsn + 1 == pair[1].lsn), "nothing is missing in between");
    }

    #[test]
    fn a_torn_line_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(HISTORY_FILE);
        append(&path, &row(1)).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at_ms\":1,\"no\n").unwrap();
        append(&path, &row(2)).unwrap();
        assert_eq!(read(folder.path()).iter().map(|row| row.lsn).collect::<Vec<_>>(), [1, 2]);
    }
}
