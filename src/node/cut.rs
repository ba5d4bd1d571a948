//! Cutting the log at a fork (protocol 5.2): find the frame that will be the last, keep what is dropped as a tail file,
//! then cut.
//!
//! All of it goes through the seam in slices: while gigabytes of tail are copied, the node answers, votes and holds one
//! slice in memory. The log itself stays as it is until the tail is safe.

use std::io;
use std::path::PathBuf;

use crate::base::{Lsn, SharedSlice};
use crate::io::{FileId, Op, Open, Seam};
use crate::role::Input;
use crate::wal::{Frame, LogEnd, ReadLog, append_tail, tail_file_name};

use super::stream::Reader;
use super::{Node, token};

/// Log read at once, and about as much tail written at once: a slice is larger only when one frame is.
const SLICE_BYTES: usize = 1 << 20;

/// A cut under way.
#[derive(Debug)]
pub struct Cut {
    ticket: u64,
    to: Lsn,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Walks the segment of the fork for the frame that ends there.
    Seek { end: LogEnd },
    /// Copies the frames from `at` on into the tail file.
    Keep { end: LogEnd, at: Lsn, tail: Tail },
    /// The tail is safe and the log is cut: its zeroes have yet to become durable.
    Zero,
}

/// The tail file while it is written, under a name that says so.
#[derive(Debug)]
struct Tail {
    file: FileId,
    from: PathBuf,
    to: PathBuf,
    offset: u64,
    flushing: bool,
}

impl<S: Seam> Node<S> {
    /// Keeps the tail above `to` as a file, then cuts the log there.
    pub(super) fn truncate_log(&mut self, ticket: u64, to: Lsn) {
        self.streams.receiver = None;
        self.log.wal.expose_staged();
        let segment = self.log.segment_bytes;
        let start = Lsn(to.0.saturating_sub(1) / segment * segment).max(self.log.oldest());
        let end = LogEnd { end: start, ..LogEnd::GENESIS };
        self.log.tail = Some(Cut { ticket, to, stage: Stage::Seek { end } });
        self.drive_cut();
    }

    /// Reads on until a read or a write is under way.
    fn drive_cut(&mut self) {
        loop {
            let Some(cut) = &self.log.tail else { return };
            let at = match &cut.stage {
                Stage::Seek { end } if end.end >= cut.to => {
                    let end = *end;
                    if let Err(error) = self.begin_tail(end) {
                        return self.cut_failed("the dropped tail could not be kept", &error);
                    }
                    continue;
                }
                Stage::Seek { end } => end.end,
                Stage::Keep { at, tail, .. } if *at >= self.log.wal.end().end => {
                    let file = tail.file;
                    return self.flush_tail(file);
                }
                Stage::Keep { at, .. } => *at,
                Stage::Zero => return,
            };
            match self.log.wal.read_from(at, SLICE_BYTES) {
                ReadLog::Frames(frames) => {
                    if !self.cut_frames(&frames) {
                        return;
                    }
                }
                ReadLog::OnDisk { len, .. } => return self.read_log(Reader::Cut, at, len),
                ReadLog::End | ReadLog::Gone { .. } | ReadLog::NoBorder => {
                    let error = io::Error::other(format!("no frame of the log begins at {at}"));
                    return self.cut_failed("the log cannot be read at the fork", &error);
                }
            }
        }
    }

    /// Frames that a cut waited for.
    pub(super) fn cut_loaded(&mut self, frames: io::Result<Vec<Frame>>) {
        match frames {
            Ok(frames) if frames.is_empty() => {
                let error = io::Error::other("the log gives no frame where one must begin");
                self.cut_failed("the log cannot be read at the fork", &error);
            }
            Ok(frames) => {
                if self.cut_frames(&frames) {
                    self.drive_cut();
                }
            }
            Err(error) => self.cut_failed("the log cannot be read at the fork", &error),
        }
    }

    /// Takes frames into the walk or into the tail. Says whether more is wanted at once.
    fn cut_frames(&mut self, frames: &[Frame]) -> bool {
        let Some(cut) = &mut self.log.tail else { return false };
        match &mut cut.stage {
            Stage::Seek { end } => {
                for (header, _) in frames.iter().filter(|(header, _)| header.end() <= cut.to) {
                    *end = LogEnd::after(header);
                }
                if frames.iter().any(|(header, _)| header.first < cut.to && header.end() > cut.to) {
                    let error = io::Error::other(format!("{} is inside a frame", cut.to));
                    self.cut_failed("the log cannot be read at the fork", &error);
                    return false;
                }
                true
            }
            Stage::Keep { at, tail, .. } => {
                let mut bytes = Vec::new();
                for (header, used) in frames {
                    append_tail(header, used, &mut bytes);
                    *at = header.end();
                }
                let (file, offset) = (tail.file, tail.offset);
                tail.offset += bytes.len() as u64;
                let data = SharedSlice::copy_of(&bytes);
                self.seam.submit(Op::Write { token: token::tail(), file, offset, data, durable: false });
                false
            }
            Stage::Zero => false,
        }
    }

    /// The fork is found: opens the tail file, unless an earlier try has kept the same tail already.
    fn begin_tail(&mut self, end: LogEnd) -> io::Result<()> {
        let to = end.end;
        let name = tail_file_name(to, self.log.wal.end().last_term);
        let root = self.folder.root();
        let (part, whole) = (root.join(format!("{name}.part")), root.join(&name));
        if self.seam.list(root)?.contains(&name) {
            self.cut_now(end);
            return Ok(());
        }
        let file = match self.seam.open(&part, Open::Create) {
            // A try that did not get to its end.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.seam.remove(&part)?;
                self.seam.open(&part, Open::Create)?
            }
            other => other?,
        };
        let tail = Tail { file, from: part, to: whole, offset: 0, flushing: false };
        if let Some(cut) = &mut self.log.tail {
            cut.stage = Stage::Keep { end, at: to, tail };
        }
        Ok(())
    }

    fn flush_tail(&mut self, file: FileId) {
        if let Some(Cut { stage: Stage::Keep { tail, .. }, .. }) = &mut self.log.tail {
            tail.flushing = true;
        }
        self.seam.submit(Op::Flush { token: token::tail(), file });
    }

    /// A write or the flush of the tail file has ended.
    pub(super) fn tail_written(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            return self.cut_failed("the dropped tail could not be kept", &error);
        }
        let Some(Cut { stage: Stage::Keep { end, tail, .. }, .. }) = &self.log.tail else { return };
        if !tail.flushing {
            return self.drive_cut();
        }
        let (end, file, from, to) = (*end, tail.file, tail.from.clone(), tail.to.clone());
        self.seam.close_file(file);
        let named = self.seam.rename(&from, &to).and_then(|()| self.seam.sync_folder(self.folder.root()));
        match named {
            Ok(()) => self.cut_now(end),
            Err(error) => self.cut_failed("the dropped tail could not be kept", &error),
        }
    }

    fn cut_now(&mut self, end: LogEnd) {
        let (to, dropped) = (end.end, self.log.wal.end().end);
        if let Err(error) = self.log.wal.truncate(end) {
            tracing::error!(%error, %to, "the log refuses to be cut");
            return self.fail("the log refuses to be cut");
        }
        tracing::warn!(from = %to, to = %dropped, "uncommitted tail dropped from the log and kept as a tail file");
        self.note_tail(to, dropped);
        if let Some(cut) = &mut self.log.tail {
            cut.stage = Stage::Zero;
        }
        self.log_moved = true;
    }

    fn cut_failed(&mut self, what: &str, error: &io::Error) {
        tracing::error!(%error, "{what}");
        self.fail(what);
    }

    /// A cut is over when its zeroes are flushed.
    pub(super) fn check_truncated(&mut self) {
        let zeroed = matches!(&self.log.tail, Some(Cut { stage: Stage::Zero, .. })) && self.log.wal.idle();
        if zeroed && let Some(cut) = self.log.tail.take() {
            self.tell_role(Input::Truncated { ticket: cut.ticket });
        }
    }
}
