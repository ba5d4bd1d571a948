//! Root digests of checkpoints, compared between nodes: every checkpoint is a free check of the whole shard.
//!
//! A difference is evidence, not a verdict (protocol 7.2). Each side makes the checkpoint once more, from the root
//! before it and from the log between, both read from its disk and proved by their digests. Whoever gets something
//! else than it had published is sick: it says so in its control file, leads no more, answers no reads, and goes on
//! receiving and acknowledging, because its log is sound. Nothing is rebuilt or overwritten here.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{Digest, Lsn, NodeId, ShardId};
use crate::io::Seam;
use crate::record::key::{TAG_META, split};
use crate::record::{HEADER_BYTES, Record, RecordReader};
use crate::replication::Message;
use crate::replication::wire::{Finding, RootEvidence, RootVerdict};
use crate::role::{DataStatus, Input};
use crate::store::{RecomputeStep, Store};

use super::Node;
use super::stream::Reader;

/// Checkpoints remembered per shard: as many as a standby can lag behind before its word comes too late to compare.
const REMEMBERED: usize = 8;
/// Log read at once for a disputed checkpoint.
const LOG_BYTES: u64 = 1 << 20;
/// Pages of a disputed checkpoint made in one turn.
const PAGES: usize = 4;

/// Two nodes published different roots for one checkpoint.
#[derive(Debug)]
pub struct Dispute {
    pub at: Lsn,
    own: Digest,
    /// Those who published something else, and what they found since.
    others: BTreeMap<NodeId, Option<RootVerdict>>,
    finding: Option<RootVerdict>,
}

/// A disputed checkpoint that is being made once more.
#[derive(Debug)]
struct Settling {
    shard: ShardId,
    at: Lsn,
    base: Lsn,
    base_digest: Digest,
    log_digest: Digest,
    /// Log from here on is not read yet.
    next: Lsn,
    reading: bool,
    /// The checkpoint's own record was met: the log between is complete.
    complete: bool,
}

/// What this node and the others found at each checkpoint.
#[derive(Debug, Default)]
pub struct Roots {
    own: BTreeMap<ShardId, Vec<(Lsn, Digest)>>,
    /// What others said of checkpoints that are still being merged here.
    early: BTreeMap<(ShardId, NodeId), (Lsn, Digest)>,
    pub compared: u64,
    pub disputes: BTreeMap<ShardId, Dispute>,
    settling: Option<Settling>,
    /// Nodes that declared their copy of a shard wrong: that their roots differ is no news.
    sick_others: BTreeSet<(ShardId, NodeId)>,
    /// Shards of this node that are wrong.
    sick: BTreeMap<ShardId, Lsn>,
}

impl Roots {
    /// The roots that a node finds in its store when it starts.
    pub fn of(store: &Store) -> Roots {
        let mut roots = Roots::default();
        for shard in (0..store.shards()).map(ShardId) {
            let mut kept = store.roots(shard);
            kept.retain(|(at, _)| *at > Lsn::ZERO);
            kept.reverse();
            roots.own.insert(shard, kept);
        }
        roots
    }

    /// Says whether a dispute began.
    fn note_own(&mut self, shard: ShardId, at: Lsn, digest: Digest) -> bool {
        let kept = self.own.entry(shard).or_default();
        // A position is used again only when what stood there was never committed.
        kept.retain(|(lsn, _)| *lsn < at);
        kept.push((at, digest));
        if kept.len() > REMEMBERED {
            kept.remove(0);
        }
        let early: Vec<(NodeId, Digest)> = self
            .early
            .iter()
            .filter(|((s, _), (lsn, _))| *s == shard && *lsn == at)
            .map(|((_, node), (_, digest))| (*node, *digest))
            .collect();
        let mut began = false;
        for (node, digest) in early {
            self.early.remove(&(shard, node));
            began |= self.compare(node, shard, at, digest);
        }
        began
    }

    /// Compares another node's root with the own one, now or when the own one is there. Says whether the two differ
    /// and it is news.
    fn compare(&mut self, node: NodeId, shard: ShardId, at: Lsn, theirs: Digest) -> bool {
        let own = self.own.get(&shard).and_then(|kept| kept.iter().find(|(lsn, _)| *lsn == at));
        match own {
            Some((_, ours)) if *ours == theirs => {
                self.compared += 1;
                self.sick_others.remove(&(shard, node));
                // An older checkpoint that was equal says nothing about the disputed one.
                if self.disputes.get(&shard).is_some_and(|dispute| dispute.at < at) {
                    self.leave(shard, node);
                }
                false
            }
            Some((_, ours)) => {
                let ours = *ours;
                self.compared += 1;
                self.differ(node, shard, at, ours, theirs)
            }
            None if self.own.get(&shard).and_then(|k| k.last()).is_none_or(|(lsn, _)| *lsn < at) => {
                self.early.insert((shard, node), (at, theirs));
                false
            }
            None => false,
        }
    }

    fn differ(&mut self, node: NodeId, shard: ShardId, at: Lsn, ours: Digest, theirs: Digest) -> bool {
        if self.sick_others.contains(&(shard, node)) || self.sick.contains_key(&shard) {
            return false;
        }
        let fresh = || Dispute { at, own: ours, others: BTreeMap::new(), finding: None };
        let dispute = self.disputes.entry(shard).or_insert_with(fresh);
        if dispute.at < at && dispute.finding.is_some() && !dispute.others.contains_key(&node) {
            // The old dispute is decided here; this one is another.
            *dispute = fresh();
        }
        if dispute.at != at || dispute.others.contains_key(&node) {
            return false;
        }
        dispute.others.insert(node, None);
        tracing::error!(
            %shard, %node, %at, %ours, %theirs,
            "root digests differ at a checkpoint: one of the two copies of this shard is wrong"
        );
        true
    }

    /// One node is no longer in dispute about a shard.
    fn leave(&mut self, shard: ShardId, node: NodeId) {
        let Some(dispute) = self.disputes.get_mut(&shard) else { return };
        dispute.others.remove(&node);
        if dispute.others.is_empty() && dispute.finding.is_some() {
            self.disputes.remove(&shard);
        }
    }

    fn undecided(&self) -> Option<(ShardId, Lsn, Digest)> {
        let mut open = self.disputes.iter().filter(|(_, dispute)| dispute.finding.is_none());
        open.next().map(|(shard, dispute)| (*shard, dispute.at, dispute.own))
    }

    /// Shards about which another node says something else. Nothing is built from a node that has any.
    pub fn dispute_in_words(&self) -> String {
        let shards: Vec<String> = self
            .disputes
            .iter()
            .map(|(shard, dispute)| {
                let how = match dispute.finding.map(|verdict| verdict.finding) {
                    None => "being settled",
                    Some(Finding::Sound) => "own copy is sound",
                    Some(Finding::Sick) => "own copy is wrong",
                    Some(Finding::Unable) => "cannot be settled here",
                };
                format!("root dispute: shard {shard} at {} ({how})", dispute.at)
            })
            .collect();
        shards.join("; ")
    }

    pub fn sick_in_words(&self) -> String {
        let shards: Vec<String> = self.sick.iter().map(|(shard, at)| format!("{shard} at {at}")).collect();
        match shards.is_empty() {
            true => "checkpoint: a shard is not what its log makes of it".into(),
            false => format!("checkpoint: not what the log makes of shard {}", shards.join(", ")),
        }
    }
}

/// What a checkpoint's input is made of, for one record of the shard.
fn apply(store: &mut Store, shard: ShardId, record: Record<'_>) {
    match record {
        Record::Put { shard: s, key, value, created } if s == shard => {
            store.recompute_put(key, value, created)
        }
        Record::Delete { shard: s, key } if s == shard => {
            let counted = split(key).is_ok_and(|(_, tag)| tag == TAG_META);
            store.recompute_delete(key, counted);
        }
        Record::DeleteRange { shard: s, start, end } if s == shard => {
            store.recompute_delete_range(start, end)
        }
        Record::ClearShard { shard: s } if s == shard => store.recompute_clear(),
        _ => {}
    }
}

impl<S: Seam> Node<S> {
    /// Notes finished checkpoints and, on a standby, tells the leader what they came to.
    pub(super) fn share_roots(&mut self) {
        let fresh = std::mem::take(&mut self.data.fresh_roots);
        if fresh.is_empty() {
            return;
        }
        for (shard, at, digest) in &fresh {
            if self.roots.note_own(*shard, *at, *digest) {
                self.answer_with_own(*shard, *at, *digest);
            }
        }
        let evidence: Vec<RootEvidence> =
            fresh.into_iter().map(|(shard, lsn, digest)| RootEvidence { shard, lsn, digest }).collect();
        self.metrics.count.roots_compared = self.roots.compared;
        if let Some(conn) = self.conn_to_leader() {
            self.links.send(&mut self.seam, conn, self.now, &Message::CheckpointRoots(evidence));
        }
    }

    /// Evidence goes to the leader itself, whoever streams.
    fn conn_to_leader(&self) -> Option<crate::io::ConnId> {
        let slot = self.streams.receiver.as_ref()?;
        if slot.upstream == slot.leader { Some(slot.conn) } else { self.links.dialed_to(slot.leader) }
    }

    /// A stream begins: the leader hears the newest root of every shard, also of checkpoints made while nobody listened.
    pub(super) fn tell_roots(&mut self) {
        let newest = self.roots.own.iter().filter_map(|(shard, kept)| {
            kept.last().map(|(lsn, digest)| RootEvidence { shard: *shard, lsn: *lsn, digest: *digest })
        });
        let evidence: Vec<RootEvidence> = newest.collect();
        if let Some(conn) = self.conn_to_leader()
            && !evidence.is_empty()
        {
            self.links.send(&mut self.seam, conn, self.now, &Message::CheckpointRoots(evidence));
        }
    }

    pub(super) fn roots_arrived(&mut self, from: NodeId, roots: &[RootEvidence]) {
        let shards = self.control_shards();
        for root in roots.iter().filter(|r| r.shard.0 < shards) {
            if self.roots.compare(from, root.shard, root.lsn, root.digest)
                && let Some(dispute) = self.roots.disputes.get(&root.shard)
            {
                let (at, own) = (dispute.at, dispute.own);
                self.answer_with_own(root.shard, at, own);
            }
        }
        self.metrics.count.roots_compared = self.roots.compared;
    }

    /// A leader that finds a difference tells the other side, so that both look.
    fn answer_with_own(&mut self, shard: ShardId, at: Lsn, own: Digest) {
        let Some(dispute) = self.roots.disputes.get(&shard) else { return };
        let others: Vec<NodeId> = dispute.others.keys().copied().collect();
        let verdict = dispute.finding;
        if self.role.leading().is_some() {
            let evidence = Message::CheckpointRoots(vec![RootEvidence { shard, lsn: at, digest: own }]);
            others.iter().for_each(|node| self.tell(*node, &evidence));
        }
        if let Some(verdict) = verdict {
            others.iter().for_each(|node| self.tell(*node, &Message::RootVerdict(verdict)));
        }
    }

    fn tell(&mut self, node: NodeId, message: &Message) {
        if let Some(conn) = self.links.any_to(node) {
            self.links.send(&mut self.seam, conn, self.now, message);
        }
    }

    /// What was published for checkpoints that were never committed is forgotten with them.
    pub(super) fn forget_roots_above(&mut self, committed: Lsn) {
        self.data.fresh_roots.retain(|(_, at, _)| *at <= committed);
        self.roots.own.values_mut().for_each(|kept| kept.retain(|(at, _)| *at <= committed));
        self.roots.disputes.retain(|_, dispute| dispute.at <= committed);
        if self.roots.settling.as_ref().is_some_and(|settling| settling.at > committed) {
            self.roots.settling = None;
            self.data.store.recompute_end();
        }
    }

    /// A slice of settling a dispute. Says whether more can be done at once.
    pub(super) fn settle_some(&mut self) -> bool {
        if self.roots.settling.is_none() {
            let Some((shard, at, _)) = self.roots.undecided() else { return false };
            if self.committed.lsn() <= at {
                return false;
            }
            self.begin_settling(shard, at);
        }
        let Some(settling) = &self.roots.settling else { return false };
        if settling.reading {
            return false;
        }
        if !settling.complete {
            self.read_settling();
            return false;
        }
        match self.data.store.recompute_step(PAGES) {
            RecomputeStep::NeedPages(pages) => {
                pages.into_iter().for_each(|page| self.read_page(page));
                false
            }
            RecomputeStep::Waiting => false,
            RecomputeStep::Working => true,
            RecomputeStep::Done(digest) => {
                self.settled(Some(digest));
                false
            }
        }
    }

    fn begin_settling(&mut self, shard: ShardId, at: Lsn) {
        let Some((base, base_digest)) = self.data.store.root_before(shard, at) else {
            return self.unable(shard, at, "no earlier root is kept");
        };
        if base < self.log.oldest() {
            return self.unable(shard, at, "the log since the earlier root is gone");
        }
        let started = self.data.store.recompute_start(shard, base, at);
        assert!(started, "the root was just found");
        tracing::warn!(%shard, %at, from = %base, "making a disputed checkpoint once more");
        self.roots.settling = Some(Settling {
            shard,
            at,
            base,
            base_digest,
            log_digest: Digest::ZERO,
            next: base,
            reading: false,
            complete: false,
        });
    }

    /// Reads the next stretch of log from the disk, whatever of it is still in memory.
    fn read_settling(&mut self) {
        let settling = self.roots.settling.as_mut().expect("the caller looked");
        let (at, flushed) = (settling.next, self.log.wal.flushed().lsn());
        if at >= flushed {
            return self.settled(None);
        }
        settling.reading = true;
        let size = self.log.segment_bytes;
        let (segment, offset) = (at.segment(size), at.offset(size));
        // Behind what is flushed stands anything.
        let len = LOG_BYTES.min(size - offset).min(flushed.since(at)) as usize;
        self.submit_log_read(Reader::Settle, at, segment, offset, len);
    }

    pub(super) fn settle_loaded(&mut self, frames: std::io::Result<Vec<crate::wal::Frame>>) {
        let Some(settling) = self.roots.settling.as_mut() else { return };
        settling.reading = false;
        let frames = match frames {
            Ok(frames) if !frames.is_empty() => frames,
            Ok(_) => return self.settled(None),
            Err(error) => {
                tracing::warn!(%error, "the log of a disputed checkpoint cannot be read");
                return self.settled(None);
            }
        };
        for (header, used) in &frames {
            if header.first < settling.next {
                continue;
            }
            if header.first > settling.next {
                // Read for a dispute that is over.
                return self.settled(None);
            }
            settling.next = header.end();
            let records = RecordReader::new(&used[HEADER_BYTES..]);
            if header.first < settling.at {
                let both = [settling.log_digest.0.to_le_bytes(), Digest::of(used).0.to_le_bytes()].concat();
                settling.log_digest = Digest::of(&both);
                for (record, _) in records.flatten() {
                    apply(&mut self.data.store, settling.shard, record);
                }
                continue;
            }
            // Behind the data stands the record that names it, with nothing but a filler in between.
            let named = |record: &Record<'_>| matches!(record, Record::Checkpoint { shard, at, .. } if *shard == settling.shard && *at == settling.at);
            if records.flatten().any(|(record, _)| named(&record)) {
                settling.complete = true;
                return;
            }
            if header.records > 0 {
                return self.settled(None);
            }
        }
    }

    fn unable(&mut self, shard: ShardId, at: Lsn, why: &'static str) {
        tracing::error!(%shard, %at, why, "a root dispute cannot be settled here");
        let verdict = RootVerdict {
            shard,
            finding: Finding::Unable,
            lsn: at,
            digest: Digest::ZERO,
            base: Lsn::ZERO,
            base_digest: Digest::ZERO,
            log_digest: Digest::ZERO,
        };
        self.decide(verdict);
    }

    /// The checkpoint was made once more, or could not be.
    fn settled(&mut self, digest: Option<Digest>) {
        let settling = self.roots.settling.take().expect("the caller looked");
        self.data.store.recompute_end();
        let Settling { shard, at, base, base_digest, log_digest, .. } = settling;
        let Some(dispute) = self.roots.disputes.get(&shard).filter(|dispute| dispute.at == at) else {
            return;
        };
        let Some(digest) = digest else {
            return self.unable(shard, at, "the log since the earlier root cannot be read whole");
        };
        let finding = if digest == dispute.own { Finding::Sound } else { Finding::Sick };
        self.decide(RootVerdict { shard, finding, lsn: at, digest, base, base_digest, log_digest });
    }

    fn decide(&mut self, verdict: RootVerdict) {
        let RootVerdict { shard, lsn: at, digest, log_digest, .. } = verdict;
        let Some(dispute) = self.roots.disputes.get_mut(&shard) else { return };
        dispute.finding = Some(verdict);
        let (own, others): (Digest, Vec<NodeId>) = (dispute.own, dispute.others.keys().copied().collect());
        others.iter().for_each(|node| self.tell(*node, &Message::RootVerdict(verdict)));
        match verdict.finding {
            Finding::Sick => {
                tracing::error!(
                    %shard, %at, published = %own, recomputed = %digest,
                    "this node's copy of a shard is not what its own log makes of it: it is sick"
                );
                self.become_sick(shard, at);
            }
            Finding::Sound => {
                tracing::warn!(%shard, %at, %digest, %log_digest, "the own copy of a disputed shard is sound");
                if others.is_empty() {
                    self.roots.disputes.remove(&shard);
                }
                others.into_iter().for_each(|node| self.weigh(shard, node));
            }
            Finding::Unable => {}
        }
        self.publish_status();
    }

    fn become_sick(&mut self, shard: ShardId, at: Lsn) {
        self.roots.sick.insert(shard, at);
        self.roots.disputes.remove(&shard);
        // A node that is building or damaged counts for less already.
        if self.role.control().status == DataStatus::Whole {
            let (status, incarnation) = (DataStatus::Sick, self.identity.incarnation);
            self.tell_role(Input::DataChanged { status, incarnation, history: None, policy: None });
        }
    }

    pub(super) fn verdict_arrived(&mut self, from: NodeId, verdict: &RootVerdict) {
        let shard = verdict.shard;
        if shard.0 >= self.control_shards() {
            return;
        }
        tracing::warn!(%shard, %from, at = %verdict.lsn, finding = ?verdict.finding, "another node has looked");
        if let Some(dispute) = self.roots.disputes.get_mut(&shard).filter(|d| d.at == verdict.lsn) {
            dispute.others.insert(from, Some(*verdict));
        }
        if verdict.finding == Finding::Sick {
            self.roots.sick_others.insert((shard, from));
        }
        self.weigh(shard, from);
    }

    /// Both sides have looked: one of them is sick, or the evidence says where the difference comes from.
    fn weigh(&mut self, shard: ShardId, node: NodeId) {
        let Some(dispute) = self.roots.disputes.get(&shard) else { return };
        let (Some(ours), Some(Some(theirs))) = (&dispute.finding, dispute.others.get(&node)) else { return };
        match theirs.finding {
            Finding::Sick => self.roots.leave(shard, node),
            Finding::Unable => {}
            Finding::Sound => {
                let why = if ours.base != theirs.base || ours.base_digest != theirs.base_digest {
                    "the two copies differed before this checkpoint"
                } else if ours.log_digest != theirs.log_digest {
                    "the two logs differ between the checkpoints"
                } else {
                    "the two nodes make different roots of the same input"
                };
                tracing::error!(
                    %shard, %node, at = %ours.lsn, base = %ours.base, our_base = %ours.base_digest,
                    their_base = %theirs.base_digest, our_log = %ours.log_digest, their_log = %theirs.log_digest,
                    why, "both sides of a root dispute stand by their result: an operator must look"
                );
            }
        }
    }

    /// Flips one bit of a value in memory, as a bad memory module would: for the simulator.
    #[cfg(any(test, feature = "planted"))]
    pub fn flip_bit_in_memory(&mut self, key: &[u8]) -> bool {
        let shards = self.control_shards();
        let mut store_key = Vec::new();
        crate::record::key::meta_key(key, &mut store_key);
        (0..shards).any(|shard| self.data.store.flip_bit_in_delta(ShardId(shard), &store_key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: ShardId = ShardId(1);
    const N: NodeId = NodeId(2);

    fn verdict(finding: Finding, lsn: Lsn) -> RootVerdict {
        let (digest, base) = (Digest(1), Lsn(0));
        RootVerdict { shard: S, finding, lsn, digest, base, base_digest: Digest(2), log_digest: Digest(3) }
    }

    #[test]
    fn a_difference_is_found_whoever_is_first() {
        let mut roots = Roots::default();
        assert!(!roots.note_own(S, Lsn(4096), Digest(1)));
        assert!(!roots.compare(N, S, Lsn(4096), Digest(1)) && roots.compared == 1);
        assert!(!roots.compare(N, S, Lsn(8192), Digest(7)), "nothing to compare with yet");
        assert!(roots.note_own(S, Lsn(8192), Digest(8)));
        assert_eq!(roots.undecided(), Some((S, Lsn(8192), Digest(8))));
        assert!(!roots.compare(N, S, Lsn(8192), Digest(7)), "known already");
    }

    #[test]
    fn a_dispute_lasts_until_it_is_decided_and_over() {
        let mut roots = Roots::default();
        roots.note_own(S, Lsn(4096), Digest(1));
        assert!(roots.compare(N, S, Lsn(4096), Digest(2)));
        roots.note_own(S, Lsn(8192), Digest(5));
        assert!(!roots.compare(N, S, Lsn(8192), Digest(6)), "what follows from it is no other dispute");
        roots.compare(NodeId(3), S, Lsn(8192), Digest(5));
        assert_eq!(roots.undecided().map(|(_, at, _)| at), Some(Lsn(4096)));
        roots.disputes.get_mut(&S).unwrap().finding = Some(verdict(Finding::Sound, Lsn(4096)));
        roots.leave(S, N);
        assert!(roots.disputes.is_empty());
        roots.sick_others.insert((S, N));
        roots.note_own(S, Lsn(12288), Digest(8));
        assert!(!roots.compare(N, S, Lsn(12288), Digest(9)), "a sick node's roots are no news");
        assert!(!roots.compare(N, S, Lsn(12288), Digest(8)));
        roots.note_own(S, Lsn(16384), Digest(10));
        assert!(roots.compare(N, S, Lsn(16384), Digest(11)), "it had been equal again");
    }

    #[test]
    fn a_position_that_is_used_again_has_one_root() {
        let mut roots = Roots::default();
        roots.note_own(S, Lsn(4096), Digest(1));
        roots.note_own(S, Lsn(8192), Digest(2));
        roots.note_own(S, Lsn(8192), Digest(3));
        assert!(!roots.compare(N, S, Lsn(8192), Digest(3)), "the newer truth counts");
    }
}
