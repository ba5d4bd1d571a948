//! Small files that a node, or somebody who looks at its folder, reads.

use std::path::Path;

use baton::base::{Digest, Incarnation};
use baton::cluster::{ClusterStatus, History as Changes, HistoryRow, QueryStatus};
use baton::node::{Mark, describe_tail, dir_store, rows_of};
use baton::role::{History, StoredPolicy};
use baton::wal::Geometry;

use super::targets::{CLUSTER, SEGMENT, TERM, way};

pub const FOLDER: Incarnation = Incarnation(7);
/// Bytes of a mark that its digest covers, and where the digest stands.
const MARK_DIGEST_AT: usize = 80;

/// The file `flushed`: two slots.
pub fn mark(data: &[u8]) -> u64 {
    let slots: Vec<Option<Mark>> = data.chunks(4096).take(2).map(|slot| Mark::decode(slot, FOLDER)).collect();
    for mark in slots.iter().flatten() {
        assert_eq!(Mark::decode(&mark.encode(), FOLDER), Some(*mark), "a written mark reads differently");
        assert_eq!(Mark::decode(&mark.encode(), Incarnation(8)), None, "the mark of another folder passes");
        let entries = vec![(TERM, baton::base::Lsn::ZERO)];
        let history = History::from_entries(entries).expect("one entry is in order");
        assert!(mark.vouched(&history) <= mark.end, "history vouches for more than the mark");
        assert_eq!(mark.vouched(&history).0 != 0, mark.term == TERM && mark.end.0 != 0);
    }
    way((slots.len(), slots.iter().flatten().map(|mark| mark.number).max().map(|n| n.min(3))))
}

pub fn seal_mark(data: &mut [u8]) {
    for slot in data.chunks_mut(4096).filter(|slot| slot.len() >= MARK_DIGEST_AT + 16) {
        let digest = Digest::of(&slot[..MARK_DIGEST_AT]);
        slot[MARK_DIGEST_AT..MARK_DIGEST_AT + 16].copy_from_slice(&digest.0.to_le_bytes());
    }
}

/// `baton inspect tail`.
pub fn tail(data: &[u8]) -> u64 {
    let shown = describe_tail(Path::new("tail-1"), data, Geometry::new(CLUSTER, SEGMENT));
    let number = |name: &str| shown[name].as_u64().unwrap_or_else(|| panic!("{name} is a number: {shown}"));
    assert!(number("shown") <= number("writes"));
    assert!(number("frames") * 4096 <= data.len() as u64 + 4096, "more frames than bytes");
    assert!(shown["damage"].is_string() || shown["damage"].is_null());
    way((number("frames").min(9), number("writes").min(9), shown["damage"].to_string()))
}

/// What other nodes and older builds wrote for people: the history of role changes, and status rows.
pub fn history(data: &[u8]) -> u64 {
    let rows: Vec<HistoryRow> = rows_of(data).collect();
    let again: Vec<u8> =
        rows.iter().flat_map(|row| [serde_json::to_vec(row).expect("a row"), vec![b'\n']].concat()).collect();
    assert_eq!(rows_of(&again).collect::<Vec<_>>(), rows, "written rows read differently");
    let count = rows.len();
    let merged = Changes::merged([Changes { rows }]);
    assert!(merged.text().lines().count() >= count);
    let status = serde_json::from_slice::<ClusterStatus>(data).map(|status| {
        let text = (status.brief(), status.detail());
        (status.nodes.len().min(4), text.1.len() / 64)
    });
    let query = serde_json::from_slice::<QueryStatus>(data).map(|query| query.text().len() / 64);
    way((count.min(9), status.ok(), query.ok()))
}

/// What a control store holds: the file of one revision, and the policy in it.
pub fn stored(data: &[u8]) -> u64 {
    let record = dir_store::decode(data);
    if let Some(record) = &record {
        assert_eq!(
            dir_store::encode(record.revision, record.writer, &record.value),
            data,
            "it is written differently"
        );
    }
    let value = record.as_ref().map_or(data, |record| &record.value);
    let policy = StoredPolicy::decode(value);
    if let Some(policy) = &policy {
        let again = StoredPolicy::decode(&policy.encode());
        assert_eq!(again.as_ref(), Some(policy), "a written policy reads differently");
    }
    way((
        record.is_some(),
        policy.map(|policy| (policy.pending.len(), policy.policy.voters.len(), policy.policy.k)),
    ))
}

pub fn seal_stored(data: &mut [u8]) {
    if data.len() >= 56 && data.starts_with(b"batonkey") {
        let at = data.len() - 16;
        data[12..16].copy_from_slice(&((at - 40) as u32).to_le_bytes());
        let digest = Digest::of(&data[..at]);
        data[at..].copy_from_slice(&digest.0.to_le_bytes());
    }
}
