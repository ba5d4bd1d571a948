//! `baton inspect tail`: what was cut off a log because nobody had acknowledged it, readable.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::base::{ClusterId, Lsn};
use crate::record::key::split;
use crate::record::{HEADER_BYTES, Record, RecordReader};
use crate::wal::{Geometry, TailFrames};

use super::init::NodeError;

/// Writes shown of one file; the counts cover all of them.
const ROWS_MAX: usize = 1000;

/// Every tail file of a data folder, oldest first.
pub fn inspect_tails(data: &Path, cluster: ClusterId, segment_bytes: u64) -> Result<Value, NodeError> {
    let failed = |what: &Path, error: &std::io::Error| {
        NodeError::new(format!("{}: {error}", what.display()), "check the rights of the folder")
    };
    let mut names: Vec<_> = fs::read_dir(data)
        .map_err(|error| failed(data, &error))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tail-")))
        .collect();
    names.sort();
    let mut tails = Vec::new();
    for path in names {
        let bytes = fs::read(&path).map_err(|error| failed(&path, &error))?;
        tails.push(describe(&path, &bytes, Geometry::new(cluster, segment_bytes)));
    }
    Ok(json!({ "tails": tails }))
}

/// What one tail file holds, as far as it can be read.
pub fn describe(path: &Path, bytes: &[u8], geometry: Geometry) -> Value {
    let (mut frames, mut writes) = (0u64, 0u64);
    let (mut first, mut end) = (None, Lsn::ZERO);
    let (mut oldest, mut newest) = (u64::MAX, 0);
    let mut rows = Vec::new();
    let mut damage = None;
    for frame in TailFrames::new(geometry, bytes) {
        let (header, used) = match frame {
            Ok(frame) => frame,
            Err(corrupt) => {
                damage = Some(corrupt.0);
                break;
            }
        };
        frames += 1;
        first.get_or_insert(header.first);
        end = header.end();
        oldest = oldest.min(header.clock.0);
        newest = newest.max(header.clock.0);
        for record in RecordReader::new(&used[HEADER_BYTES..]) {
            let Ok((record, _)) = record else { break };
            let Some(row) = written(&record) else { continue };
            writes += 1;
            if rows.len() < ROWS_MAX {
                rows.push(format!("{} {row}", header.first));
            }
        }
    }
    json!({
        "file": path.file_name().map(|name| name.to_string_lossy().into_owned()),
        "first_lsn": first.map(|at| at.0),
        "end_lsn": end.0,
        "bytes": first.map_or(0, |at| end.since(at)),
        "frames": frames,
        "writes": writes,
        "span_ms": newest.saturating_sub(oldest),
        "damage": damage,
        "shown": rows.len(),
        "rows": rows,
    })
}

/// A change as one line: what it did to which key.
fn written(record: &Record<'_>) -> Option<String> {
    let user = |key: &[u8]| {
        split(key).map_or_else(|_| "?".into(), |(user, _)| String::from_utf8_lossy(&user).into_owned())
    };
    Some(match record {
        Record::Put { key, value, .. } => format!("put {:?} ({} bytes)", user(key), value.len()),
        Record::Delete { key, .. } => format!("delete {:?}", user(key)),
        Record::DeleteRange { start, .. } => format!("delete elements of {:?}", user(start)),
        Record::ClearShard { shard } => format!("clear shard {shard}"),
        Record::Checkpoint { .. } | Record::TermStart { .. } | Record::Policy { .. } | Record::Op { .. } => {
            return None;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_named_and_an_empty_folder_has_no_tails() {
        let folder = tempfile::tempdir().unwrap();
        let look = || inspect_tails(folder.path(), ClusterId(1), 1 << 20).unwrap();
        assert_eq!(look()["tails"], json!([]));
        fs::write(folder.path().join("tail-0000000000001000-1-00"), vec![7u8; 8192]).unwrap();
        let shown = look();
        assert_eq!(shown["tails"][0]["writes"], 0);
        assert!(shown["tails"][0]["damage"].is_string(), "{shown}");
    }
}
