//! Which pages of the file are free, which are being written, and which must rest before they are free again.
//!
//! Allocation is local: no digest depends on it. A page that is freed while a read or a write of it is under way
//! rests until that has come back, because a late write would land on its next owner and a late read would bring the
//! previous owner's bytes.

use std::collections::{BTreeMap, BTreeSet};

use super::PageNo;
use crate::base::limits::PAGE_FILE_PAGES_MAX;

/// Growth steps in pages: 1 MiB at least, 64 MiB at most, a quarter of the file in between.
const GROW_MIN: u64 = 64;
pub(super) const GROW_MAX: u64 = 4096;

/// A write of whole pages that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writing {
    pub pages: u64,
    /// The merge that made the pages.
    pub job: u64,
}

#[derive(Debug)]
pub(super) struct Space {
    /// One bit per page of the file; set = free. Page 0 is never free.
    free: Vec<u64>,
    free_count: u64,
    cursor: usize,
    file_pages: u64,
    /// The file's pages before this one are taken until [`Space::set_free`], and also those that are there only after it
    /// has grown again to what it once was.
    frontier: u64,
    /// Behind the last page that was ever taken.
    taken_end: u64,
    asked_pages: u64,
    /// First page -> run.
    writing: BTreeMap<PageNo, Writing>,
    pages_in_write: BTreeSet<PageNo>,
    resting: BTreeSet<PageNo>,
}

impl Space {
    /// A file whose length will be told. Pages before the frontier may have an owner.
    pub fn new(frontier: u64) -> Space {
        Space {
            free: vec![0],
            free_count: 0,
            cursor: 0,
            file_pages: 1,
            frontier,
            taken_end: frontier,
            asked_pages: 1,
            writing: BTreeMap::new(),
            pages_in_write: BTreeSet::new(),
            resting: BTreeSet::new(),
        }
    }

    pub fn file_pages(&self) -> u64 {
        self.file_pages
    }
    /// No page from here on was ever taken.
    pub fn taken_end(&self) -> u64 {
        self.taken_end
    }
    pub fn free_count(&self) -> u64 {
        self.free_count
    }
    /// Whether a write of the page is under way.
    pub fn in_write(&self, page: PageNo) -> bool {
        self.pages_in_write.contains(&page)
    }
    pub fn is_free(&self, page: PageNo) -> bool {
        self.free.get((page.0 / 64) as usize).is_some_and(|word| word & (1 << (page.0 % 64)) != 0)
    }

    /// Takes a free page, near the last one taken so that writes form runs.
    pub fn take(&mut self) -> Option<PageNo> {
        if self.free_count == 0 {
            return None;
        }
        loop {
            let word = &mut self.free[self.cursor];
            if *word != 0 {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                self.free_count -= 1;
                let page = self.cursor as u64 * 64 + u64::from(bit);
                self.taken_end = self.taken_end.max(page + 1);
                return Some(PageNo(page));
            }
            self.cursor = if self.cursor + 1 < self.free.len() { self.cursor + 1 } else { 0 };
        }
    }

    /// Marks a page free without any rest.
    pub fn set_free(&mut self, page: PageNo) {
        assert!(page.0 > 0 && page.0 < self.file_pages, "only pages of the file are ever free");
        let word = &mut self.free[(page.0 / 64) as usize];
        assert!(*word & (1 << (page.0 % 64)) == 0, "a page is freed once");
        *word |= 1 << (page.0 % 64);
        self.free_count += 1;
    }

    /// Frees a page, now or when what is under way on it has come back.
    pub fn give_back(&mut self, page: PageNo, being_read: bool) {
        if page.0 >= self.file_pages {
            // It went away with the end of the file.
            return;
        }
        if being_read || self.pages_in_write.contains(&page) {
            assert!(self.resting.insert(page), "a page is freed once");
        } else {
            self.set_free(page);
        }
    }

    pub fn is_resting(&self, page: PageNo) -> bool {
        self.resting.contains(&page)
    }

    /// A read or write of `page` has come back; `being_read` tells whether a read is still out.
    pub fn settle(&mut self, page: PageNo, being_read: bool) {
        if !being_read && !self.pages_in_write.contains(&page) && self.resting.remove(&page) {
            self.set_free(page);
        }
    }

    pub fn write_started(&mut self, first: PageNo, pages: u64, job: u64) {
        for page in first.0..first.0 + pages {
            assert!(page < self.file_pages, "writes stay inside the file");
            assert!(self.pages_in_write.insert(PageNo(page)), "one write per page at a time");
        }
        self.writing.insert(first, Writing { pages, job });
    }

    /// `None`: no such write is under way.
    pub fn write_ended(&mut self, first: PageNo) -> Option<Writing> {
        let run = self.writing.remove(&first)?;
        for page in first.0..first.0 + run.pages {
            self.pages_in_write.remove(&PageNo(page));
        }
        Some(run)
    }

    fn step(&self) -> u64 {
        (self.file_pages / 4).clamp(GROW_MIN, GROW_MAX)
    }

    /// The size to grow to now, once per size.
    pub fn ask_growth(&mut self) -> Option<u64> {
        if self.asked_pages > self.file_pages || self.file_pages >= PAGE_FILE_PAGES_MAX {
            return None;
        }
        self.asked_pages = (self.file_pages + self.step()).min(PAGE_FILE_PAGES_MAX);
        Some(self.asked_pages)
    }

    /// Growth ahead of need: less than half a step is free.
    pub fn ask_growth_ahead(&mut self) -> Option<u64> {
        if self.free_count >= self.step() / 2 { None } else { self.ask_growth() }
    }

    pub fn growth_failed(&mut self) {
        self.asked_pages = self.file_pages;
    }

    /// The file has `pages` pages; new ones behind the frontier are free.
    pub fn grown(&mut self, pages: u64) {
        let old = self.file_pages;
        if pages <= old {
            return;
        }
        self.file_pages = pages;
        self.asked_pages = self.asked_pages.max(pages);
        self.free.resize(pages.div_ceil(64) as usize, 0);
        (old.max(self.frontier)..pages).for_each(|page| self.set_free(PageNo(page)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_rests_while_anything_is_under_way_on_it() {
        let mut space = Space::new(1);
        let to = space.ask_growth().unwrap();
        assert_eq!(space.ask_growth(), None, "asked once");
        space.grown(to);
        let page = space.take().unwrap();
        space.write_started(page, 1, 1);
        space.give_back(page, true);
        assert!(!space.is_free(page));
        assert!(space.write_ended(page).is_some());
        space.settle(page, true);
        assert!(!space.is_free(page), "a read is still out");
        space.settle(page, false);
        assert!(space.is_free(page));
        assert!(space.write_ended(page).is_none());
    }

    #[test]
    fn every_page_but_zero_is_taken_once() {
        let mut space = Space::new(1);
        space.grown(200);
        let mut seen = BTreeSet::new();
        while let Some(page) = space.take() {
            assert!(page.0 > 0 && page.0 < 200 && seen.insert(page));
        }
        assert_eq!(seen.len(), 199);
    }
}
