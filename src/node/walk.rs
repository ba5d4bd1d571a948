//! Paces the walk that finds the free pages after a start. Nobody waits for it, so it takes a fixed share of disk and
//! loop; it hurries when the page file grows for want of what it has not found yet.

use std::io;

use crate::base::limits::PAGE_BYTES;
use crate::base::{AlignedBuf, Mono};
use crate::io::{Op, Seam};
use crate::store::{PageNo, WalkStep};

use super::{Node, TICK, token};

/// Bytes that the walk reads in a second, and pages that it reads at the same time.
const WALK_RATE: u64 = 128 << 20;
const WALK_READS: usize = 32;
/// Pages read at the same time, at any rate, when the page file grows.
const HURRIED_READS: usize = 64;

/// The walk's pace.
#[derive(Default)]
pub struct WalkPace {
    reading: usize,
    /// Bytes that may be read now.
    allowance: u64,
    looked_at: Option<Mono>,
    pages: u64,
}

impl<S: Seam> Node<S> {
    /// Moves the walk along. Says whether more can be done at once.
    pub(super) fn walk_some(&mut self) -> bool {
        if !self.data.store.walking() {
            return false;
        }
        let hurried = self.data.starved || self.data.store.walk_pressed();
        let pace = &mut self.walk;
        let since = self.now.since(pace.looked_at.replace(self.now).unwrap_or(self.started)).min(TICK);
        // What was not used is not saved up.
        let share =
            |time: std::time::Duration| (u128::from(WALK_RATE) * time.as_nanos() / 1_000_000_000) as u64;
        pace.allowance = (pace.allowance + share(since)).min(share(TICK));
        loop {
            let pace = &self.walk;
            let pages = match hurried {
                true => HURRIED_READS.saturating_sub(pace.reading),
                false => WALK_READS.saturating_sub(pace.reading).min(pace.allowance as usize / PAGE_BYTES),
            };
            if pages == 0 {
                return false;
            }
            match self.data.store.walk_step(pages) {
                WalkStep::Read(pages) => {
                    let pace = &mut self.walk;
                    pace.allowance = pace.allowance.saturating_sub((pages.len() * PAGE_BYTES) as u64);
                    pace.reading += pages.len();
                    for page in pages {
                        let (file, offset) = (self.data.pages_file(), page.0 * PAGE_BYTES as u64);
                        self.seam.submit(Op::Read {
                            token: token::walk_read(page.0),
                            file,
                            offset,
                            len: PAGE_BYTES,
                        });
                    }
                }
                WalkStep::Waiting => return false,
                WalkStep::Working => return true,
                WalkStep::Done => {
                    self.walk_over();
                    return false;
                }
            }
        }
    }

    fn walk_over(&mut self) {
        let (pages, free) = self.data.store.file_pages();
        let (read, ms) = (self.walk.pages, self.now.since(self.started).as_millis() as u64);
        tracing::info!(pages, free, read, ms, "the free pages of the store are known");
        self.data.more_merges = true;
        self.stop_starving();
    }

    pub(super) fn walk_read_arrived(&mut self, page: u64, result: io::Result<AlignedBuf>) {
        self.walk.reading -= 1;
        self.walk.pages += 1;
        let judged = match &result {
            Ok(bytes) => self.data.store.walk_read(PageNo(page), bytes),
            Err(_) => self.data.store.walk_read(PageNo(page), &[]),
        };
        if let Err(damage) = judged {
            self.page_is_damaged(damage.page, damage.what);
        }
    }

    /// Pages that the walk has read, and the shards that it has not done yet.
    pub(super) fn walk_status(&self) -> (u64, u16) {
        (self.walk.pages, self.data.store.walk_shards_left())
    }
}
