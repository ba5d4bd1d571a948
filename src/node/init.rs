//! `baton init`, the only creator of data, and `baton inspect`, which reads a stopped node.

use std::path::Path;

use crate::base::{ClusterId, Incarnation, Lsn, NodeId};
use crate::config::Config;
use crate::io::Seam;
use crate::io::uring::{UringConfig, UringSeam};
use crate::role::control::{CONTROL_BYTES, choose};
use crate::role::{ControlState, DataStatus, Generation, SyncPolicy};
use crate::store::Store;
use crate::wal::{LogFile, LogReader, inspect_segment};

use super::boot::store_config;
use super::files::{Folder, create_durable, create_zeroed, read_small};
use super::inspect_tail::inspect_tails;
use super::log::SegmentFiles;

/// What `baton init` needs.
#[derive(Clone, Debug)]
pub struct InitOptions {
    pub config: Config,
    /// The id that the first node of the cluster printed; `None` makes a new cluster.
    pub cluster_id: Option<ClusterId>,
}

/// What `baton init` made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InitDone {
    pub cluster_id: ClusterId,
    pub incarnation: Incarnation,
}

/// What `baton inspect` shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inspect {
    Wal,
    Control,
    Superblock,
    /// What was cut off the log, kept beside it.
    Tail,
}

/// Why the node could not do it, and what to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeError {
    pub message: String,
    pub hint: String,
}

impl NodeError {
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> NodeError {
        NodeError { message: message.into(), hint: hint.into() }
    }
}

/// Creates a data folder.
pub fn init(options: InitOptions) -> Result<InitDone, NodeError> {
    let mut seam = ring()?;
    init_on(&mut seam, options)
}

fn ring() -> Result<UringSeam, NodeError> {
    let small = UringConfig { entries: 64, buffers: 16, ..UringConfig::default() };
    UringSeam::new(small).map_err(|e| {
        NodeError::new(e.to_string(), "README.md says under Requirements what baton needs of the kernel")
    })
}

/// Creates a data folder through any seam.
pub fn init_on<S: Seam>(seam: &mut S, options: InitOptions) -> Result<InitDone, NodeError> {
    let InitOptions { config, cluster_id } = options;
    let folder = Folder::new(&config.data);
    match seam.create_folder(folder.root()) {
        // The configuration may lie in it already.
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(failed("creating the data folder", &error));
        }
        _ => {}
    }
    let here = seam.list(folder.root()).map_err(|e| failed("reading the data folder", &e))?;
    if here.iter().any(|n| n.starts_with("control.") || n == "superblock" || n == "pages") {
        let text = format!("{} already holds a node", folder.root().display());
        return Err(NodeError::new(
            text,
            "choose another folder, or remove this one if its data is not needed",
        ));
    }
    let cluster_id = cluster_id.unwrap_or(ClusterId(seam.random_u128()));
    let incarnation = Incarnation(seam.random_u128());
    let policy = seed_policy(&config)?;
    let state = ControlState::fresh(
        (cluster_id, &config.cluster),
        (config.node, incarnation),
        config.shards,
        config.segment_bytes,
        policy,
        DataStatus::Whole,
    );
    make_files(seam, &folder, &config, &state).map_err(|e| failed("writing the data folder", &e))?;
    Ok(InitDone { cluster_id, incarnation })
}

/// Policy generation 0, by the configuration.
pub(super) fn seed_policy(config: &Config) -> Result<Generation, NodeError> {
    let members: Vec<NodeId> = config.members.iter().map(|m| m.node).collect();
    let k = config.sync.k as u8;
    let voters = config.sync.voters.clone();
    let sync = match config.sync.kind {
        crate::config::SyncKind::Any => SyncPolicy::Any { k, voters },
        crate::config::SyncKind::First => SyncPolicy::First { k, voters },
    };
    Generation::seed(&members, &sync)
        .map_err(|e| NodeError::new(e.to_string(), "change `sync` in baton.toml"))
}

fn make_files<S: Seam>(
    seam: &mut S,
    folder: &Folder,
    config: &Config,
    state: &ControlState,
) -> std::io::Result<()> {
    seam.create_folder(&folder.wal())?;
    create_zeroed(seam, &folder.wal_file(&LogFile::Segment(0).to_string()), state.segment_bytes)?;
    let store = Store::create(store_config(config, state));
    let [a, b] = store.initial_superblocks();
    let len = (a.slot_offset + a.data.len() as u64).max(b.slot_offset + b.data.len() as u64);
    let mut image = vec![0u8; len as usize];
    for slot in [a, b] {
        let at = slot.slot_offset as usize;
        image[at..at + slot.data.len()].copy_from_slice(&slot.data);
    }
    create_durable(seam, &folder.superblock(), &image)?;
    create_zeroed(seam, &folder.pages(), 1 << 20)?;
    // The control copies come last: a folder without them is not a node, so an interrupted init can be run again
    // after the folder was emptied.
    for path in folder.control() {
        create_durable(seam, &path, &state.encode())?;
    }
    seam.sync_folder(folder.root())?;
    // The folder's own name must survive a power cut too.
    match folder.root().parent() {
        Some(parent) if parent.as_os_str().is_empty() => seam.sync_folder(Path::new(".")),
        Some(parent) => seam.sync_folder(parent),
        None => Ok(()),
    }
}

fn failed(what: &str, error: &std::io::Error) -> NodeError {
    let hint = match error.kind() {
        std::io::ErrorKind::PermissionDenied => "check the owner and the rights of the folder",
        std::io::ErrorKind::StorageFull => "free some disk space",
        _ => "",
    };
    NodeError::new(format!("{what}: {error}"), hint)
}

/// Reads a stopped node's files and describes them, without changing anything.
pub fn inspect(data: &Path, what: Inspect) -> Result<serde_json::Value, NodeError> {
    let mut seam = ring()?;
    let folder = Folder::new(data);
    let control = control_of(&mut seam, &folder)?;
    match what {
        Inspect::Control => Ok(describe_control(&control)),
        Inspect::Wal => inspect_wal(&mut seam, &folder, &control),
        Inspect::Superblock => inspect_superblock(&mut seam, &folder, &control),
        Inspect::Tail => inspect_tails(data, control.cluster, control.segment_bytes),
    }
}

fn control_of<S: Seam>(seam: &mut S, folder: &Folder) -> Result<ControlState, NodeError> {
    let [a, b] = folder.control().map(|path| {
        read_small(seam, &path, CONTROL_BYTES * 2).ok().flatten().map(|mut bytes| {
            bytes.truncate(CONTROL_BYTES);
            bytes
        })
    });
    if a.is_none() && b.is_none() {
        let text = format!("no node in {}", folder.root().display());
        return Err(NodeError::new(text, "name a data folder with -D"));
    }
    choose(a.as_deref(), b.as_deref(), None, None).map(|chosen| chosen.state).map_err(|e| {
        NodeError::new(e.to_string(), "a node whose control file is lost joins again by a build")
    })
}

fn describe_control(c: &ControlState) -> serde_json::Value {
    let generation = |g: &Generation| {
        serde_json::json!({
            "number": g.number,
            "k": g.k,
            "first": g.first,
            "forced": g.forced,
            "voters": g.voters.iter().map(|v| serde_json::json!({
                "node": v.node.0, "incarnation": v.incarnation.to_string(),
            })).collect::<Vec<_>>(),
        })
    };
    serde_json::json!({
        "generation": c.generation,
        "cluster": c.cluster_name,
        "cluster_id": c.cluster.to_string(),
        "node": c.node.0,
        "incarnation": c.incarnation.to_string(),
        "shards": c.shards,
        "segment_bytes": c.segment_bytes,
        "status": format!("{:?}", c.status),
        "promised": c.promised.to_string(),
        "history": c.history.entries().iter().map(|(term, start)| serde_json::json!({
            "term": term.to_string(), "start_lsn": start.0, "start": start.to_string(),
        })).collect::<Vec<_>>(),
        "policy": generation(&c.policy),
        "pending_policies": c.pending.iter().map(|p| generation(&p.generation)).collect::<Vec<_>>(),
        "operation": c.operation.map(|o| serde_json::json!({
            "part": format!("{:?}", o.part), "peer": o.peer.0, "term": o.term.to_string(),
        })),
        "ops": c.ops.iter().map(|known| serde_json::json!({
            "op": format!("{:032x}", known.op.mark.id), "deed": format!("{:?}", known.op.deed),
            "start_lsn": known.start.0, "end_lsn": known.end.0,
        })).collect::<Vec<_>>(),
        "known_committed_lsn": c.known_committed.lsn().0,
        "starts": c.starts,
    })
}

fn inspect_wal<S: Seam>(
    seam: &mut S,
    folder: &Folder,
    control: &ControlState,
) -> Result<serde_json::Value, NodeError> {
    let geometry = crate::wal::Geometry::new(control.cluster, control.segment_bytes);
    let mut files = SegmentFiles { seam, folder };
    let segments = files.segments().map_err(|e| failed("listing the log", &e))?;
    let mut shown = Vec::new();
    for segment in segments {
        let rows = inspect_segment(&mut files, geometry, segment, true)
            .map_err(|e| NodeError::new(format!("segment {segment:016x}: {e}"), ""))?;
        let rows: Vec<String> = rows.iter().map(ToString::to_string).collect();
        shown.push(serde_json::json!({
            "segment": format!("{segment:016x}"),
            "first_lsn": Lsn(segment * control.segment_bytes).0,
            "rows": rows,
        }));
    }
    Ok(serde_json::json!({ "segments": shown }))
}

fn inspect_superblock<S: Seam>(
    seam: &mut S,
    folder: &Folder,
    control: &ControlState,
) -> Result<serde_json::Value, NodeError> {
    let len = crate::store::SLOT_BYTES as usize;
    let bytes =
        read_small(seam, &folder.superblock(), 4 * len).map_err(|e| failed("reading the superblock", &e))?;
    let bytes = bytes.ok_or_else(|| NodeError::new("the superblock file is missing", ""))?;
    let config = crate::store::StoreConfig {
        cluster: control.cluster,
        shards: control.shards,
        cache_bytes: 1 << 20,
        delta_bytes: 1 << 20,
    };
    let store = Store::open(config, bytes.get(..len), bytes.get(len..2 * len))
        .map_err(|e| NodeError::new(e.to_string(), "rebuild this node from a peer"))?;
    let shards: Vec<_> = (0..control.shards)
        .map(crate::base::ShardId)
        .map(|shard| {
            let (at, digest) = store.root(shard);
            serde_json::json!({
                "shard": shard.0, "checkpoint_lsn": at.0, "root": digest.to_string(), "keys": store.count(shard).0,
            })
        })
        .collect();
    Ok(serde_json::json!({ "redo_from_lsn": store.redo_from().0, "shards": shards }))
}
