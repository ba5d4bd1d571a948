//! Drives the log: effects of the wal room and of the segment keeper become operations, completions go back.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::base::limits::RECENT_LOG_BYTES;
use crate::base::{AlignedBuf, Lsn, SharedSlice, Term};
use crate::io::{FileId, Op, Open, Seam};
use crate::replication::wire::{Refusal, RefuseReason};
use crate::role::Input;
use crate::wal::{
    KeeperEffect, LogFile, LogReader, LogRewriter, ReadLog, SealMarks, SegmentKeeper, Wal, WalEffect,
    WalIoError,
};

use super::cut::Cut;
use super::files::Folder;
use super::stream::Reader;
use super::{Node, token};

/// Free disk space kept for control files, pages and tails: no segment is made out of it.
const DISK_RESERVE: u64 = 32 << 20;
/// Log kept on disk when the configuration says nothing: this, or a tenth of a disk where that is more.
const RETENTION_DEFAULT: u64 = 16 << 30;
/// The part of a disk that stays free: below it no log is kept for anybody who lags.
const DISK_FLOOR_PART: u64 = 20;

/// How much log is kept for standbys.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    pub budget: u64,
    /// Size of the disk; 0 where it is not known.
    pub disk: u64,
}

impl Retention {
    pub fn new(configured: Option<u64>, disk_bytes: Option<u64>) -> Retention {
        let disk = disk_bytes.unwrap_or(0);
        Retention { budget: configured.unwrap_or(RETENTION_DEFAULT.max(disk / 10)), disk }
    }
}

/// The log of a running node and its files.
pub struct Log {
    pub wal: Wal,
    pub keeper: SegmentKeeper,
    /// False when recovery found damage: the node does not count and cannot be promoted.
    pub whole: bool,
    pub segment_bytes: u64,
    pub retention: Retention,
    files: BTreeMap<u64, FileId>,
    spares: BTreeMap<LogFile, FileId>,
    reads: BTreeMap<u64, Pending>,
    next_read: u64,
    /// A spare that waits for disk space.
    starved: Option<KeeperEffect>,
    /// A truncation under way.
    pub tail: Option<Cut>,
}

#[derive(Debug)]
struct Pending {
    reader: Reader,
    at: Lsn,
}

impl Log {
    pub fn new(
        wal: Wal,
        keeper: SegmentKeeper,
        whole: bool,
        segment_bytes: u64,
        retention: Retention,
    ) -> Log {
        Log {
            wal,
            keeper,
            whole,
            segment_bytes,
            retention,
            files: BTreeMap::new(),
            spares: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            starved: None,
            tail: None,
        }
    }

    /// The log is being cut, or repaired: what is durable in it is not what will stay.
    pub fn cutting(&self) -> bool {
        self.tail.is_some() || self.wal.damaged().is_some() || self.wal.failed().is_some()
    }

    /// The oldest position that can be read.
    pub fn oldest(&self) -> Lsn {
        self.wal.first()
    }
}

/// Segment files read at start, through the seam.
pub struct SegmentFiles<'a, S: Seam> {
    pub seam: &'a mut S,
    pub folder: &'a Folder,
}

impl<S: Seam> LogReader for SegmentFiles<'_, S> {
    fn segments(&mut self) -> io::Result<Vec<u64>> {
        let names = self.seam.list(&self.folder.wal())?;
        let mut numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| match LogFile::parse(name) {
                Some(LogFile::Segment(number)) => Some(number),
                _ => None,
            })
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<Option<AlignedBuf>> {
        let path = self.folder.wal_file(&LogFile::Segment(segment).to_string());
        let file = match self.seam.open(&path, Open::ReadOnly) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let result = self.seam.read_now(file, offset, len);
        self.seam.close_file(file);
        result.map(Some)
    }

    fn recycle(&mut self, buf: AlignedBuf) {
        self.seam.recycle(buf);
    }
}

impl<S: Seam> SegmentFiles<'_, S> {
    /// Runs a call on a segment's file.
    fn with<T>(&mut self, segment: u64, call: impl FnOnce(&mut S, FileId) -> io::Result<T>) -> io::Result<T> {
        let path = self.folder.wal_file(&LogFile::Segment(segment).to_string());
        let file = self.seam.open(&path, Open::Existing)?;
        let result = call(self.seam, file);
        self.seam.close_file(file);
        result
    }
}

impl<S: Seam> LogRewriter for SegmentFiles<'_, S> {
    fn write(&mut self, segment: u64, offset: u64, data: &SharedSlice) -> io::Result<()> {
        self.with(segment, |seam, file| seam.write_now(file, offset, data))
    }

    fn flush(&mut self, segment: u64) -> io::Result<()> {
        self.with(segment, |seam, file| seam.flush_now(file))
    }
}

impl<S: Seam> Node<S> {
    fn segment_file(&mut self, segment: u64) -> io::Result<FileId> {
        if let Some(file) = self.log.files.get(&segment) {
            return Ok(*file);
        }
        let path = self.folder.wal_file(&LogFile::Segment(segment).to_string());
        let file = self.seam.open(&path, Open::Existing)?;
        self.log.files.insert(segment, file);
        Ok(file)
    }

    /// Submits everything that the log wants done.
    pub(super) fn drive_log(&mut self) {
        while let Some(effect) = self.log.wal.next_effect() {
            match effect {
                WalEffect::Write { id, segment, offset, data, durable } => match self.segment_file(segment) {
                    Ok(file) => {
                        self.metrics.count.wal_writes += 1;
                        self.metrics.count.wal_bytes_written += data.len() as u64;
                        self.seam.submit(Op::Write { token: token::wal(id), file, offset, data, durable })
                    }
                    Err(error) => self.wal_completed(id, Err(error)),
                },
                WalEffect::Flush { id, segment } => match self.segment_file(segment) {
                    Ok(file) => self.seam.submit(Op::Flush { token: token::wal(id), file }),
                    Err(error) => self.wal_completed(id, Err(error)),
                },
                WalEffect::EnsureSegment { segment } => {
                    self.log.keeper.ensure(segment);
                    self.drive_keeper();
                }
            }
        }
    }

    pub(super) fn wal_completed(&mut self, id: u64, result: io::Result<()>) {
        self.log.wal.completed(id, result.map_err(|e| WalIoError(e.to_string())));
        self.log_moved = true;
        self.check_log_failure();
    }

    fn check_log_failure(&mut self) {
        let failure = match (self.log.wal.failed(), self.log.keeper.failed()) {
            (Some(f), _) | (None, Some(f)) => f.to_string(),
            (None, None) => return,
        };
        if !std::mem::replace(&mut self.log_failure_told, true) {
            tracing::error!(failure, "a log write or flush failed: never retried");
            self.tell_role(Input::LogFailed);
        }
    }

    /// Carries out what the segment keeper wants, one operation at a time.
    pub(super) fn drive_keeper(&mut self) {
        loop {
            while let Some(segment) = self.log.keeper.next_ready() {
                self.log.wal.segment_ready(segment);
                self.log_moved = true;
            }
            let effect = match self.log.starved.take() {
                Some(effect) => Some(effect),
                None => self.log.keeper.next_effect(),
            };
            let Some(effect) = effect else { return };
            if !self.keep(effect) {
                return;
            }
        }
    }

    /// Carries out one keeper effect. Says whether it is done already.
    fn keep(&mut self, effect: KeeperEffect) -> bool {
        let wal = self.folder.wal();
        let path = |file: LogFile| -> PathBuf { wal.join(file.to_string()) };
        let (id, result) = match effect {
            KeeperEffect::Create { id, file } => {
                let free = self.seam.free_bytes(&wal).unwrap_or(u64::MAX);
                if free < self.log.segment_bytes + DISK_RESERVE.min(self.log.segment_bytes) {
                    if !self.log_starved {
                        tracing::error!(
                            free,
                            "disk full: no room for the next log segment, writes are refused"
                        );
                    }
                    self.log_starved = true;
                    self.log.starved = Some(KeeperEffect::Create { id, file });
                    return false;
                }
                if std::mem::take(&mut self.log_starved) {
                    tracing::info!(free, "disk has room again: writes go on");
                }
                let made = match self.seam.open(&path(file), Open::Create) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        self.seam.remove(&path(file)).and_then(|()| self.seam.open(&path(file), Open::Create))
                    }
                    other => other,
                };
                (
                    id,
                    made.map(|opened| {
                        self.log.spares.insert(file, opened);
                    }),
                )
            }
            KeeperEffect::Write { id, file, offset, data } => match self.spare_file(file, &path(file)) {
                Ok(opened) => {
                    let token = token::segment(id);
                    self.seam.submit(Op::Write { token, file: opened, offset, data, durable: false });
                    return false;
                }
                Err(error) => (id, Err(error)),
            },
            KeeperEffect::Flush { id, file } => match self.spare_file(file, &path(file)) {
                Ok(opened) => {
                    self.seam.submit(Op::Flush { token: token::segment(id), file: opened });
                    return false;
                }
                Err(error) => (id, Err(error)),
            },
            KeeperEffect::Rename { id, from, to } => {
                // A name now leads elsewhere: handles under both names are opened anew.
                for file in [from, to] {
                    self.forget_file(file);
                }
                (id, self.seam.rename(&path(from), &path(to)))
            }
            KeeperEffect::SyncFolder { id } => {
                self.seam.submit(Op::SyncFolder { token: token::segment(id), path: wal });
                return false;
            }
            KeeperEffect::Remove { id, file } => {
                self.forget_file(file);
                (id, self.seam.remove(&path(file)))
            }
        };
        self.log.keeper.completed(id, result.map_err(|e| WalIoError(e.to_string())));
        self.check_log_failure();
        if let Some(first) = self.log.keeper.first() {
            self.log.wal.forget_before(first);
        }
        true
    }

    fn spare_file(&mut self, file: LogFile, path: &std::path::Path) -> io::Result<FileId> {
        if let Some(opened) = self.log.spares.get(&file) {
            return Ok(*opened);
        }
        let opened = self.seam.open(path, Open::Existing)?;
        self.log.spares.insert(file, opened);
        Ok(opened)
    }

    fn forget_file(&mut self, file: LogFile) {
        let opened = match file {
            LogFile::Segment(number) => self.log.files.remove(&number),
            LogFile::Spare(_) => None,
        };
        for opened in opened.into_iter().chain(self.log.spares.remove(&file)) {
            self.seam.close_file(opened);
        }
    }

    pub(super) fn segment_completed(&mut self, id: u64, result: io::Result<()>) {
        self.log.keeper.completed(id, result.map_err(|e| WalIoError(e.to_string())));
        self.check_log_failure();
        self.drive_keeper();
    }

    /// Seals the open group as a frame of `term`; returns its end.
    pub(super) fn seal_group(&mut self, term: Term) -> Lsn {
        let marks = SealMarks { term, commit: self.committed, clock: self.clock() };
        match self.log.wal.seal(marks) {
            Ok(sealed) => {
                self.groups.sealed(sealed.stamp, sealed.end);
                self.metrics.count.frames_sealed += 1;
                self.log_moved = true;
                sealed.end
            }
            Err(error) => {
                tracing::error!(%error, "the open group cannot be sealed");
                self.fail("the log does not take new groups");
                self.log.wal.end().end
            }
        }
    }

    /// Seals what has gathered, when the disk is ready for it: the group commit clocks itself.
    pub(super) fn seal_due(&mut self) {
        let Some(term) = self.role.leading() else { return };
        while self.executed && self.drain.is_none() && self.log.wal.wants_seal() {
            self.seal_group(term);
        }
    }

    /// What was executed and not sealed is forgotten, in the log and in the shards.
    pub(super) fn discard_open_group(&mut self) {
        if self.log.wal.writer().is_empty() {
            return;
        }
        let stamp = self.log.wal.open_stamp();
        self.data.store.rollback_above(crate::base::Stamp(stamp.0 - 1));
        self.log.wal.abandon_open_group();
    }

    // ---- reading old log ----

    /// Reads about `bytes` of log at `from` for `reader`.
    pub(super) fn read_log(&mut self, reader: Reader, from: Lsn, bytes: usize) {
        let plan = self.log.wal.read_from(from, bytes.min(RECENT_LOG_BYTES));
        let (segment, offset, len) = match plan {
            ReadLog::OnDisk { segment, offset, len } => (segment, offset, len),
            ReadLog::Frames(frames) => return self.log_read_done(reader, Ok(frames)),
            ReadLog::End | ReadLog::Gone { .. } | ReadLog::NoBorder => {
                return self.log_read_done(reader, Ok(Vec::new()));
            }
        };
        self.submit_log_read(reader, from, segment, offset, len);
    }

    pub(super) fn submit_log_read(&mut self, reader: Reader, at: Lsn, segment: u64, offset: u64, len: usize) {
        match self.segment_file(segment) {
            Ok(file) => {
                self.log.next_read += 1;
                let id = self.log.next_read;
                self.log.reads.insert(id, Pending { reader, at });
                self.seam.submit(Op::Read { token: token::log_read(id), file, offset, len });
            }
            Err(error) => self.log_read_done(reader, Err(error)),
        }
    }

    pub(super) fn log_read_arrived(&mut self, id: u64, result: io::Result<AlignedBuf>) {
        let Some(Pending { reader, at }) = self.log.reads.remove(&id) else { return };
        let bytes = match result {
            Ok(bytes) => bytes.share(),
            Err(error) => return self.log_read_done(reader, Err(error)),
        };
        match self.log.wal.parse_disk(at, &bytes) {
            Ok(parsed) if parsed.frames.is_empty() && parsed.need.is_some() => {
                let len = parsed.need.expect("checked");
                let (segment, offset) =
                    (at.segment(self.log.segment_bytes), at.offset(self.log.segment_bytes));
                self.submit_log_read(reader, at, segment, offset, len);
            }
            Ok(parsed) => self.log_read_done(reader, Ok(parsed.frames)),
            Err(error) => self.log_read_done(reader, Err(io::Error::other(error.to_string()))),
        }
    }

    fn log_read_done(&mut self, reader: Reader, frames: io::Result<Vec<crate::wal::Frame>>) {
        match reader {
            Reader::Redo => self.redo_loaded(frames),
            Reader::Cut => self.cut_loaded(frames),
            Reader::Settle => self.settle_loaded(frames),
            Reader::Sender(conn, _) | Reader::Server(conn) => {
                let frames = frames.map_err(|error| Refusal {
                    reason: RefuseReason::Unhealthy,
                    text: format!("the log cannot be read here: {error}"),
                });
                self.log_loaded(conn, reader, frames);
            }
        }
    }

    /// Tells the keeper what may be recycled.
    pub(super) fn retain_log(&mut self) {
        let end = self.log.wal.end().end;
        let Retention { mut budget, disk } = self.log.retention;
        let floor = disk / DISK_FLOOR_PART;
        if floor > 0 && self.seam.free_bytes(&self.folder.wal()).is_ok_and(|free| free < floor) {
            // Whoever lags loses its promise of catch-up before the primary loses its disk.
            budget = 0;
        }
        self.log.keeper.set_retention(budget);
        let mut keep = self.data.store.redo_from().min(self.committed.lsn());
        // A connected standby keeps what it has not flushed, within the budget: a slow one never fills the disk.
        if let Some(standby) = self.streams.keeps().filter(|at| end.since(*at) < budget) {
            keep = keep.min(standby);
        }
        self.log.keeper.retain_from(keep);
        self.drive_keeper();
    }
}
