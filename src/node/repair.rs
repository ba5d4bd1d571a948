//! Repairs damaged pages from memory or from other nodes, answers other nodes' requests, and paces the scrubber
//! (protocol 7.3).
//!
//! A repair goes through one list of steps: read the bad bytes once more, ask one node after the other, look for lost
//! children, write in place. At most [`REPAIRS_MAX`] pages are under repair and [`SERVED_MAX`] requests are looked up
//! at the same time; a repair that fails is tried again later, and meanwhile whoever needs the page gets an error.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use crate::base::limits::PAGE_BYTES;
use crate::base::{AlignedBuf, Mono, NodeId};
use crate::io::{ConnId, Op, Seam};
use crate::replication::Message;
use crate::replication::wire::{NoPage, PageFetch, PageReply, PageWanted};
use crate::store::{ChildSearch, Found, PageAsk, PageNo, Rebuilt, Scrubbed, Wanted};

use super::{Node, TICK, token};

/// Pages under repair at the same time.
const REPAIRS_MAX: usize = 4;
/// Requests of other nodes looked up at the same time.
const SERVED_MAX: usize = 8;
/// A node that does not answer a request within this is passed over.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// A repair that failed is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// A page that was repaired this often, and is bad again each time, is given up for a while.
const REPAIRED_MAX: u32 = 3;
/// Repairs are remembered this long for that.
const REPAIRED_WITHIN: Duration = Duration::from_secs(60);
/// Pages that one look-up for another node may read.
const SERVE_READS_MAX: u32 = 1024;
/// Scrubbed pages read at the same time.
const SCRUB_READS_MAX: usize = 64;

/// One page on its way to being whole.
struct Repair {
    /// What stands on the disk, as far as it can be read.
    on_disk: Vec<u8>,
    /// Nodes that were asked.
    tried: BTreeSet<NodeId>,
    step: Step,
}

enum Step {
    Reading,
    Asking { id: u64, from: NodeId, until: Mono },
    Searching { search: Box<ChildSearch>, reading: bool },
    Writing(Vec<u8>),
}

/// A repair that did not succeed.
struct Failed {
    why: String,
    again_at: Mono,
}

/// A request of another node.
struct Served {
    conn: ConnId,
    id: u64,
    ask: PageAsk,
    held: Vec<PageNo>,
    reads: u32,
}

/// The scrubber's pace.
#[derive(Default)]
struct Scrub {
    reading: usize,
    /// Bytes that may be read now.
    allowance: u64,
    /// When the next pass begins.
    next_at: Mono,
    begun_at: Option<Mono>,
    pages: u64,
    last_pass: Option<(Mono, Duration, u64)>,
}

/// Everything about damaged pages and the scrubber.
#[derive(Default)]
pub struct Repairs {
    under_way: BTreeMap<PageNo, Repair>,
    failed: BTreeMap<PageNo, Failed>,
    repaired: BTreeMap<PageNo, (Mono, u32)>,
    next_id: u64,
    served: BTreeMap<u64, Served>,
    /// Requests that wait for a page of this node.
    serve_waits: BTreeMap<PageNo, Vec<u64>>,
    scrub: Scrub,
}

impl Repairs {
    /// Why a page cannot be had at present, once that is known.
    pub fn failure(&self, page: PageNo) -> Option<&str> {
        self.failed.get(&page).map(|failed| failed.why.as_str())
    }

    /// Pages that no other node could give.
    pub fn failed(&self) -> usize {
        self.failed.len()
    }
}

impl<S: Seam> Node<S> {
    /// Begins what is due for damaged pages. Cheap when nothing is damaged.
    pub(super) fn drive_repairs(&mut self) {
        let mut due = Vec::new();
        for page in self.data.store.damaged_pages() {
            let waits = self.repairs.failed.get(&page).is_some_and(|failed| failed.again_at > self.now);
            if self.repairs.under_way.len() + due.len() >= REPAIRS_MAX {
                break;
            }
            if !waits && !self.repairs.under_way.contains_key(&page) {
                due.push(page);
            }
        }
        due.into_iter().for_each(|page| self.start_repair(page));
    }

    /// Timers of repairs and the scrubber.
    pub(super) fn repair_timers(&mut self) {
        let late: Vec<PageNo> = self
            .repairs
            .under_way
            .iter()
            .filter(|(_, r)| matches!(&r.step, Step::Asking { until, .. } if *until <= self.now))
            .map(|(page, _)| *page)
            .collect();
        late.into_iter().for_each(|page| self.ask_next(page));
        self.wake_forgotten();
        let (store, now) = (&self.data.store, self.now);
        self.repairs.failed.retain(|page, _| store.is_damaged(*page));
        self.repairs.repaired.retain(|_, (at, _)| now.since(*at) < REPAIRED_WITHIN);
        self.scrub_some();
    }

    /// Wakes whoever waits for a damaged page that was freed before its repair began.
    fn wake_forgotten(&mut self) {
        let waited = self.data.parked.keys().chain(self.repairs.serve_waits.keys());
        let on_its_way = |page: &PageNo| {
            self.data.reading.contains(page)
                || self.data.store.is_damaged(*page)
                || self.repairs.under_way.contains_key(page)
        };
        let forgotten: Vec<PageNo> = waited.filter(|page| !on_its_way(page)).copied().collect();
        forgotten.into_iter().for_each(|page| self.page_settled(page));
    }

    fn start_repair(&mut self, page: PageNo) {
        if self.repairs.repaired.get(&page).is_some_and(|(_, times)| *times >= REPAIRED_MAX) {
            return self.repair_failed(page, "repaired several times, and bad again each time");
        }
        let repair = Repair { on_disk: Vec::new(), tried: BTreeSet::new(), step: Step::Reading };
        self.repairs.under_way.insert(page, repair);
        if let Some(bytes) = self.data.store.repair_from_memory(page) {
            tracing::info!(page = page.0, "a damaged page is still whole in memory");
            return self.write_repaired(page, bytes);
        }
        let (file, offset) = (self.data.pages_file(), page.0 * PAGE_BYTES as u64);
        self.seam.submit(Op::Read { token: token::repair_read(page.0), file, offset, len: PAGE_BYTES });
    }

    /// The bytes that failed, read once more: a second reading may be good.
    pub(super) fn repair_read_arrived(&mut self, page: u64, result: io::Result<AlignedBuf>) {
        let page = PageNo(page);
        let Some(repair) = self.repairs.under_way.get_mut(&page) else { return };
        if let Ok(bytes) = result {
            repair.on_disk = bytes.to_vec();
        }
        let good = self.data.store.page_read(page, &repair.on_disk).is_ok();
        if good || !self.data.store.is_damaged(page) {
            return self.repair_over(page);
        }
        self.ask_next(page);
    }

    /// Asks the next node that was not asked yet, the leader first.
    fn ask_next(&mut self, page: PageNo) {
        let Some(repair) = self.repairs.under_way.get_mut(&page) else { return };
        let Some(ask) = self.data.store.repair_ask(page) else { return self.repair_over(page) };
        let leader = self.streams.leader.map(|(node, _)| node);
        let peers = leader.into_iter().chain(self.config.peers().map(|member| member.node));
        let untried = peers.filter(|node| !repair.tried.contains(node));
        let linked = untried.filter_map(|node| self.links.any_to(node).map(|conn| (node, conn))).next();
        let Some((from, conn)) = linked else {
            let why = match repair.tried.is_empty() {
                true => "no other node is connected",
                false => "no connected node has a good copy of this checkpoint",
            };
            return self.repair_failed(page, why);
        };
        self.repairs.next_id += 1;
        let id = self.repairs.next_id;
        repair.tried.insert(from);
        repair.step = Step::Asking { id, from, until: self.now + ANSWER_MAX };
        let wanted = match ask.wanted {
            Wanted::Node { level, digest } => PageWanted::Node { level, digest },
            Wanted::Value { digest, len } => PageWanted::Value { digest, len },
        };
        tracing::debug!(page = page.0, shard = %ask.shard, %from, ?wanted, "asking for a good copy of a page");
        let fetch = PageFetch { id, shard: ask.shard, checkpoint: ask.checkpoint, wanted, key: ask.key };
        self.links.send(&mut self.seam, conn, self.now, &Message::PageFetch(fetch));
    }

    pub(super) fn on_page_reply(&mut self, from: NodeId, reply: PageReply) {
        let asked = self.repairs.under_way.iter().find(|(_, repair)| {
            matches!(&repair.step, Step::Asking { id, from: asked, .. } if *id == reply.id && *asked == from)
        });
        let Some((page, repair)) = asked else { return };
        let page = *page;
        let rebuilt = match reply.found {
            Err(why) => {
                tracing::debug!(page = page.0, %from, ?why, "no copy there");
                return self.ask_next(page);
            }
            Ok((birth, bytes)) => {
                self.data.store.rebuild(page, &Found { birth, bytes: bytes.to_vec() }, &repair.on_disk)
            }
        };
        self.rebuilt(page, from, rebuilt);
    }

    fn rebuilt(&mut self, page: PageNo, from: NodeId, rebuilt: Rebuilt) {
        match rebuilt {
            Rebuilt::Page(bytes) => self.write_repaired(page, bytes),
            Rebuilt::Search(search) => {
                tracing::info!(page = page.0, "looking through the page file for the children of a page");
                if let Some(repair) = self.repairs.under_way.get_mut(&page) {
                    repair.step = Step::Searching { search, reading: false };
                }
                self.search_on();
            }
            Rebuilt::Refused(why) => {
                tracing::warn!(page = page.0, %from, why, "what a node sent for a damaged page is refused");
                self.ask_next(page);
            }
            Rebuilt::Lost(why) => self.repair_failed(page, why),
            Rebuilt::Gone => self.repair_over(page),
        }
    }

    /// One search at a time reads one stretch at a time.
    fn search_on(&mut self) {
        let found = self.repairs.under_way.iter_mut().find_map(|(page, repair)| match &mut repair.step {
            Step::Searching { search, reading } => Some((*page, search, reading)),
            _ => None,
        });
        let Some((page, search, reading)) = found else { return };
        if *reading {
            return;
        }
        match self.data.store.search_next(search) {
            Some((first, pages)) => {
                *reading = true;
                let (file, offset) = (self.data.pages_file(), first.0 * PAGE_BYTES as u64);
                let (token, len) = (token::repair_search(page.0), pages as usize * PAGE_BYTES);
                self.seam.submit(Op::Read { token, file, offset, len });
            }
            None => {
                let rebuilt = self.data.store.search_done(search);
                self.rebuilt(page, self.me(), rebuilt);
                self.search_on();
            }
        }
    }

    pub(super) fn search_read_arrived(&mut self, page: u64, result: io::Result<AlignedBuf>) {
        let page = PageNo(page);
        let Some(repair) = self.repairs.under_way.get_mut(&page) else { return };
        let Step::Searching { search, reading } = &mut repair.step else { return };
        *reading = false;
        match result {
            Ok(bytes) => self.data.store.search_read(search, &bytes),
            Err(error) => return self.repair_failed(page, &format!("the page file cannot be read: {error}")),
        }
        self.search_on();
    }

    /// The page goes back into its place, durably, before anybody gets it.
    fn write_repaired(&mut self, page: PageNo, bytes: Vec<u8>) {
        if !self.data.store.repair_started(page) {
            return self.repair_over(page);
        }
        let mut data = AlignedBuf::zeroed(PAGE_BYTES);
        data.copy_from_slice(&bytes);
        if let Some(repair) = self.repairs.under_way.get_mut(&page) {
            repair.step = Step::Writing(bytes);
        }
        let (file, offset, token) =
            (self.data.pages_file(), page.0 * PAGE_BYTES as u64, token::repair_write(page.0));
        self.seam.submit(Op::Write { token, file, offset, data: data.share(), durable: true });
    }

    pub(super) fn repair_written(&mut self, page: u64, result: io::Result<()>) {
        let page = PageNo(page);
        if let Err(error) = result {
            return self.data_failed("writing a repaired page", &error);
        }
        let Some(Repair { step: Step::Writing(bytes), .. }) = self.repairs.under_way.get(&page) else {
            unreachable!("a repaired page is written by its repair");
        };
        if self.data.store.repair_written(page, bytes) {
            self.metrics.count.pages_repaired += 1;
            tracing::info!(page = page.0, "a damaged page is whole again");
        }
        let entry = self.repairs.repaired.entry(page).or_insert((self.now, 0));
        *entry = (self.now, entry.1 + 1);
        self.repair_over(page);
    }

    /// Nothing more is to be done for this page: whoever waited for it goes on.
    fn repair_over(&mut self, page: PageNo) {
        self.repairs.under_way.remove(&page);
        self.repairs.failed.remove(&page);
        self.page_settled(page);
    }

    fn repair_failed(&mut self, page: PageNo, why: &str) {
        self.repairs.under_way.remove(&page);
        self.metrics.count.page_repairs_failed += 1;
        let failed = Failed { why: why.to_string(), again_at: self.now + AGAIN_AFTER };
        if self.repairs.failed.insert(page, failed).is_none_or(|before| before.why != why) {
            let shard = self.data.store.damaged_shard(page).map_or(String::new(), |shard| shard.to_string());
            tracing::error!(page = page.0, shard, why, "a damaged page cannot be repaired at present");
        }
        self.page_settled(page);
    }

    /// What is known about a page has changed: commands and requests that wait for it run again.
    pub(super) fn page_settled(&mut self, page: PageNo) {
        self.data.more_merges = true;
        for conn in self.data.parked.remove(&page).unwrap_or_default() {
            self.resume_client(conn);
        }
        for ticket in self.repairs.serve_waits.remove(&page).unwrap_or_default() {
            self.serve_on(ticket);
        }
    }

    // ---- for other nodes ----

    pub(super) fn on_page_fetch(&mut self, conn: ConnId, fetch: PageFetch) {
        let PageFetch { id, shard, checkpoint, wanted, key } = fetch;
        if self.repairs.served.len() >= SERVED_MAX {
            let busy = PageReply { id, found: Err(NoPage::Busy) };
            return self.links.send(&mut self.seam, conn, self.now, &Message::PageReply(busy));
        }
        let wanted = match wanted {
            PageWanted::Node { level, digest } => Wanted::Node { level, digest },
            PageWanted::Value { digest, len } => Wanted::Value { digest, len },
        };
        self.repairs.next_id += 1;
        let ticket = self.repairs.next_id;
        let ask = PageAsk { shard, checkpoint, key, wanted };
        self.repairs.served.insert(ticket, Served { conn, id, ask, held: Vec::new(), reads: 0 });
        self.serve_on(ticket);
    }

    /// Looks on for what another node asked for; waits when a page must be read first.
    fn serve_on(&mut self, ticket: u64) {
        let Some(served) = self.repairs.served.get_mut(&ticket) else { return };
        let found = match self.data.store.find(&served.ask) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(NoPage::NotHere),
            Err(miss) if self.data.store.is_damaged(miss.page) || served.reads >= SERVE_READS_MAX => {
                Err(NoPage::NotHere)
            }
            Err(miss) => {
                served.reads += 1;
                served.held.push(miss.page);
                self.data.store.hold(miss.page);
                self.repairs.serve_waits.entry(miss.page).or_default().push(ticket);
                let wanted = self.data.store.wanted(miss);
                return wanted.into_iter().for_each(|page| self.read_page(page));
            }
        };
        let Served { conn, id, held, .. } = self.repairs.served.remove(&ticket).expect("just seen");
        held.into_iter().for_each(|page| self.data.store.release(page));
        self.metrics.count.pages_served += u64::from(found.is_ok());
        let found = found.map(|found| (found.birth, bytes::Bytes::from(found.bytes)));
        self.links.send(&mut self.seam, conn, self.now, &Message::PageReply(PageReply { id, found }));
    }

    // ---- the scrubber ----

    fn scrub_some(&mut self) {
        let rate = self.config.scrub_rate;
        // One reader of everything at a time; a walk that waits for repairs may wait for long.
        let walking = self.data.store.walking() && !self.data.store.walk_waits();
        if rate == 0 || walking || self.now < self.repairs.scrub.next_at {
            return;
        }
        let scrub = &mut self.repairs.scrub;
        scrub.begun_at.get_or_insert(self.now);
        // What was not used is not saved up: a pass never reads in bursts.
        let share = (rate as u128 * TICK.as_nanos() / 1_000_000_000) as u64;
        scrub.allowance = (scrub.allowance + share).min(share.max(PAGE_BYTES as u64));
        loop {
            let scrub = &mut self.repairs.scrub;
            let pages = (scrub.allowance / PAGE_BYTES as u64) as usize;
            let pages = pages.min(SCRUB_READS_MAX - scrub.reading);
            if pages == 0 {
                return;
            }
            match self.data.store.scrub_step(pages) {
                Scrubbed::Read(pages) => {
                    let scrub = &mut self.repairs.scrub;
                    scrub.allowance -= (pages.len() * PAGE_BYTES) as u64;
                    scrub.reading += pages.len();
                    for page in pages {
                        let (file, offset) = (self.data.pages_file(), page.0 * PAGE_BYTES as u64);
                        let token = token::scrub_read(page.0);
                        self.seam.submit(Op::Read { token, file, offset, len: PAGE_BYTES });
                    }
                }
                Scrubbed::Waiting => return,
                Scrubbed::Done => return self.scrub_pass_over(),
            }
        }
    }

    fn scrub_pass_over(&mut self) {
        let scrub = &mut self.repairs.scrub;
        let (pages, begun) = (std::mem::take(&mut scrub.pages), scrub.begun_at.take().unwrap_or(self.now));
        scrub.next_at = self.now + self.config.scrub_every;
        scrub.last_pass = Some((self.now, self.now.since(begun), pages));
        self.metrics.count.scrub_passes += 1;
        tracing::debug!(pages, "the scrubber has read every page");
    }

    pub(super) fn scrub_read_arrived(&mut self, page: u64, result: io::Result<AlignedBuf>) {
        let scrub = &mut self.repairs.scrub;
        scrub.reading -= 1;
        scrub.pages += 1;
        self.metrics.count.scrub_pages += 1;
        let judged = match &result {
            Ok(bytes) => self.data.store.scrub_read(PageNo(page), bytes),
            Err(_) => self.data.store.scrub_read(PageNo(page), &[]),
        };
        if let Err(damage) = judged {
            self.metrics.count.scrub_bad += 1;
            self.page_is_damaged(damage.page, damage.what);
        }
    }

    pub(super) fn page_is_damaged(&mut self, page: PageNo, what: &str) {
        self.metrics.count.pages_damaged += 1;
        let shard = self.data.store.damaged_shard(page).map_or(String::new(), |shard| shard.to_string());
        tracing::error!(page = page.0, shard, what, "a page of the store is damaged");
    }

    /// The state of the pages, for `query`.
    pub(super) fn pages_status(&self) -> crate::cluster::query::PagesStatus {
        let count = &self.metrics.count;
        let last = self.repairs.scrub.last_pass;
        let (walked, walk_shards_left) = self.walk_status();
        crate::cluster::query::PagesStatus {
            damaged: self.data.store.damaged_pages().count(),
            unrepairable: self.repairs.failed(),
            found_bad: count.pages_damaged,
            repaired: count.pages_repaired,
            scrubbed: count.scrub_pages,
            scrub_passes: count.scrub_passes,
            last_pass_age_s: last.map(|(at, _, _)| self.now.since(at).as_secs()),
            last_pass_pages: last.map(|(_, _, pages)| pages),
            walked,
            walk_shards_left,
        }
    }
}
