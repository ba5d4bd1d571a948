//! Root digests of checkpoints, compared between nodes: every checkpoint is a free check of the whole shard.
//!
//! A difference is evidence, not a verdict (protocol 7.2): nothing is rebuilt or overwritten because of it. The node
//! says so loudly, in its log and in its status, and goes on acknowledging.

use std::collections::BTreeMap;

use crate::base::{Digest, Lsn, NodeId, ShardId};
use crate::io::Seam;
use crate::replication::Message;
use crate::replication::wire::RootEvidence;

use super::Node;

/// Checkpoints remembered per shard: as many as a standby can lag behind before its word comes too late to compare.
const REMEMBERED: usize = 8;

/// What this node and its standbys found at each checkpoint.
#[derive(Debug, Default)]
pub struct Roots {
    own: BTreeMap<ShardId, Vec<(Lsn, Digest)>>,
    /// What others said of checkpoints that are still being merged here.
    early: BTreeMap<(ShardId, NodeId), (Lsn, Digest)>,
    pub compared: u64,
    /// Shards in dispute, with the other node and the place.
    pub disputes: BTreeMap<(ShardId, NodeId), Lsn>,
}

impl Roots {
    fn note_own(&mut self, shard: ShardId, at: Lsn, digest: Digest) {
        let kept = self.own.entry(shard).or_default();
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
        for (node, digest) in early {
            self.early.remove(&(shard, node));
            self.compare(node, shard, at, digest);
        }
    }

    /// Compares another node's root with the own one, now or when the own one is there.
    fn compare(&mut self, node: NodeId, shard: ShardId, at: Lsn, theirs: Digest) {
        let own = self.own.get(&shard).and_then(|kept| kept.iter().find(|(lsn, _)| *lsn == at));
        match own {
            Some((_, ours)) if *ours == theirs => {
                self.compared += 1;
                self.disputes.remove(&(shard, node));
            }
            Some((_, ours)) => {
                self.compared += 1;
                self.disputes.insert((shard, node), at);
                tracing::error!(
                    %shard, %node, %at, %ours, %theirs,
                    "root digests differ at a checkpoint: one of the two copies of this shard is wrong"
                );
            }
            None if self.own.get(&shard).and_then(|k| k.last()).is_none_or(|(lsn, _)| *lsn < at) => {
                self.early.insert((shard, node), (at, theirs));
            }
            None => {}
        }
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
            self.roots.note_own(*shard, *at, *digest);
        }
        let evidence: Vec<RootEvidence> =
            fresh.into_iter().map(|(shard, lsn, digest)| RootEvidence { shard, lsn, digest }).collect();
        if let Some(slot) = &self.streams.receiver {
            self.links.send(&mut self.seam, slot.conn, self.now, &Message::CheckpointRoots(evidence));
        }
    }

    pub(super) fn roots_arrived(&mut self, from: NodeId, roots: &[RootEvidence]) {
        let shards = self.control_shards();
        for root in roots.iter().filter(|r| r.shard.0 < shards) {
            self.roots.compare(from, root.shard, root.lsn, root.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_whoever_is_first() {
        let (s, n) = (ShardId(1), NodeId(2));
        let mut roots = Roots::default();
        roots.note_own(s, Lsn(4096), Digest(1));
        roots.compare(n, s, Lsn(4096), Digest(1));
        assert!(roots.disputes.is_empty() && roots.compared == 1);
        roots.compare(n, s, Lsn(8192), Digest(7));
        assert!(roots.disputes.is_empty(), "nothing to compare with yet");
        roots.note_own(s, Lsn(8192), Digest(8));
        assert_eq!(roots.disputes.get(&(s, n)), Some(&Lsn(8192)));
        roots.note_own(s, Lsn(12288), Digest(9));
        roots.compare(n, s, Lsn(12288), Digest(9));
        assert!(roots.disputes.is_empty(), "equal again: the dispute is over");
    }
}
