//! From a data folder to a running node: lock, control file, store, log, role, listeners.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::base::limits::{GROUP_BYTES_EAGER, LEASE, RECENT_LOG_BYTES};
use crate::base::{CommittedLsn, Lsn, NodeId, WallMs};
use crate::config::{Config, Degrade, StoreChoice};
use crate::io::{FileId, Op, Open, Seam};
use crate::metrics::Metrics;
use crate::record::Record;
use crate::redo::Redo;
use crate::replication::{Identity, Secret};
use crate::role::control::{CONTROL_BYTES, choose};
use crate::role::{
    Command, ControlCopy, ControlError, ControlState, DataStatus, Input, RoleConfig, RoleMachine, Traits,
};
use crate::store::{SLOT_BYTES, Store, StoreConfig, StoreError};
use crate::wal::{
    KeeperConfig, LogFile, RecoverError, RecoverParams, Recovered, SegmentKeeper, Verdict, Wal, WalConfig,
    recover_watched, settle,
};

use super::admin::Admin;
use super::clients::Clients;
use super::control_file::ControlFile;
use super::crew::Crew;
use super::data::Data;
use super::disk_watch::DiskWatch;
use super::files::{Folder, read_small};
use super::gates::Watermarks;
use super::groups::Groups;
use super::links::Links;
use super::log::{Log, Retention, SegmentFiles};
use super::mark::{self, MarkFile};
use super::redo::Replay;
use super::run::StartRole;
use super::streams::Streams;
use super::{CHECKPOINT_BYTES, Node, POLICY_FRAME_RECORDS_MAX};

/// How a node is started.
#[derive(Clone, Debug)]
pub struct BootOptions {
    pub config: Config,
    pub role: Option<StartRole>,
    /// `-M primary --alone`.
    pub alone: bool,
    /// DSYNC writes rather than write and flush; chosen by calibration.
    pub durable_writes: bool,
    pub frames_in_flight: usize,
    /// Log bytes between two checkpoints of the same shard; the default when zero.
    pub checkpoint_bytes: u64,
    /// Lanes of redo. They run one after another until [`Node::employ`] gives them threads.
    pub redo_workers: usize,
    /// Size of the disk under the data folder, where it is known.
    pub disk_bytes: Option<u64>,
}

impl BootOptions {
    pub fn new(config: Config) -> BootOptions {
        BootOptions {
            config,
            role: None,
            alone: false,
            durable_writes: true,
            frames_in_flight: 4,
            checkpoint_bytes: 0,
            redo_workers: 1,
            disk_bytes: None,
        }
    }
}

/// Why a node does not start. Each text says what to do.
#[derive(Debug)]
pub enum BootError {
    /// Another process holds the folder, or its last writes have not landed yet: try again.
    Locked,
    /// The folder holds no node.
    NotInitialised {
        path: String,
    },
    Control(ControlError),
    /// The configuration names another cluster.
    OtherCluster {
        found: String,
        configured: String,
    },
    Store(StoreError),
    Log(RecoverError),
    Io {
        what: &'static str,
        error: std::io::Error,
    },
}

impl std::fmt::Display for BootError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BootError::Locked => f.write_str("another process runs on this data folder (or is just ending)"),
            BootError::NotInitialised { path } => {
                write!(f, "no node in {path}: is the disk mounted? A new node is made by `baton init` only")
            }
            BootError::Control(error) => write!(f, "{error}"),
            BootError::OtherCluster { found, configured } => write!(
                f,
                "the data folder belongs to cluster {found:?}, the configuration names {configured:?}: wrong folder or \
                 wrong configuration"
            ),
            BootError::Store(error) => write!(f, "the store does not open: {error}"),
            BootError::Log(error) => write!(f, "the log cannot be read: {error}"),
            BootError::Io { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for BootError {}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> BootError {
    move |error| BootError::Io { what, error }
}

impl<S: Seam> Node<S> {
    /// Starts a node on its data folder. Everything that blocks happens here, before the loop.
    pub fn boot(mut seam: S, options: BootOptions) -> Result<Node<S>, (BootError, S)> {
        match Self::assemble(&mut seam, options) {
            Ok(parts) => Ok(parts.into_node(seam)),
            Err(error) => Err((error, seam)),
        }
    }

    fn assemble(seam: &mut S, options: BootOptions) -> Result<Parts, BootError> {
        let config = options.config.clone();
        let folder = Folder::new(&config.data);
        let control_paths = folder.control();
        let here = match seam.list(folder.root()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("reading the data folder")(e));
            }
            listed => listed.unwrap_or_default(),
        };
        if !here.iter().any(|name| name.starts_with("control.")) {
            return Err(BootError::NotInitialised { path: folder.root().display().to_string() });
        }
        match seam.lock_folder(folder.root()) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Err(BootError::Locked),
            Err(e) => return Err(BootError::Io { what: "locking the data folder", error: e }),
        }
        let mut control = read_control(seam, &folder, config.node)?;
        if control.cluster_name != config.cluster {
            return Err(BootError::OtherCluster { found: control.cluster_name, configured: config.cluster });
        }
        let a = seam.open(&control_paths[0], Open::Existing).map_err(io("opening control.a"))?;
        let b = seam.open(&control_paths[1], Open::Existing).map_err(io("opening control.b"))?;
        let (store, superblock, pages) = open_store(seam, &folder, &config, &control)?;
        // A rename by the last process may not be durable yet.
        seam.sync_folder(&folder.wal()).map_err(io("syncing the log folder"))?;
        let (mark, own) =
            mark::open(seam, &folder, control.incarnation).map_err(io("reading the log's mark"))?;
        let own = own.map_or(Lsn::ZERO, |own| own.vouched(&control.history));
        let (recovered, notes) = recover_log(seam, &folder, &control, &store, own)?;
        if matches!(recovered.verdict, Verdict::Damaged { .. }) && control.status == DataStatus::Whole {
            remember_damage(seam, &folder, &mut control)?;
        }
        Ok(Parts {
            options,
            folder,
            control,
            control_files: [a, b],
            mark,
            store,
            superblock,
            pages,
            recovered,
            notes,
        })
    }
}

/// Makes it durable that the log is not whole: the repair overwrites the evidence, and a crash in the middle of it must
/// not leave a node that counts without what it had acknowledged.
fn remember_damage<S: Seam>(
    seam: &mut S,
    folder: &Folder,
    control: &mut ControlState,
) -> Result<(), BootError> {
    control.status = DataStatus::Damaged;
    control.generation += 1;
    for path in folder.control() {
        heal_control(seam, &path, control)
            .map_err(io("noting in the control copies that the log is damaged"))?;
    }
    Ok(())
}

/// Reads both control copies and heals a bad one.
fn read_control<S: Seam>(seam: &mut S, folder: &Folder, node: NodeId) -> Result<ControlState, BootError> {
    let paths = folder.control();
    let mut copies = [None, None];
    let mut unreadable = None;
    for (copy, path) in copies.iter_mut().zip(&paths) {
        match read_small(seam, path, CONTROL_BYTES * 2) {
            Ok(read) => *copy = read,
            Err(error) => unreadable = Some(error),
        }
    }
    let trimmed = |c: &Option<Vec<u8>>| c.as_ref().map(|b| b[..b.len().min(CONTROL_BYTES)].to_vec());
    let (a, b) = (trimmed(&copies[0]), trimmed(&copies[1]));
    let chosen = match (choose(a.as_deref(), b.as_deref(), None, Some(node)), unreadable) {
        // A disk that does not answer says nothing about what stands on it: the copy may well be good.
        (Err(ControlError::BothBad { .. }), Some(error)) => {
            return Err(io("reading the control copies")(error));
        }
        (chosen, _) => chosen.map_err(BootError::Control)?,
    };
    let (newer, other) = match chosen.heal {
        Some(ControlCopy::A) => (&paths[1], &paths[0]),
        Some(ControlCopy::B) | None => (&paths[0], &paths[1]),
    };
    if chosen.heal.is_some() {
        tracing::warn!(copy = %other.display(), "one control copy was bad or old and is rewritten from the other");
    }
    // What can be read need not be durable: the last process may have ended because writing it failed. Both copies are
    // written again, first the one that holds the newer image, so that one valid copy stands at every moment.
    for path in [newer, other] {
        heal_control(seam, path, &chosen.state).map_err(io("writing the control copies again"))?;
    }
    Ok(chosen.state)
}

fn heal_control<S: Seam>(seam: &mut S, path: &std::path::Path, state: &ControlState) -> std::io::Result<()> {
    match seam.open(path, Open::Existing) {
        Ok(file) => {
            let result = super::files::write_durable(seam, file, 0, &state.encode());
            seam.close_file(file);
            result
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            super::files::create_durable(seam, path, &state.encode())
        }
        Err(e) => Err(e),
    }
}

/// What the configuration says of each member's fitness to lead.
pub(super) fn traits(config: &Config) -> BTreeMap<NodeId, Traits> {
    let of = |member: &crate::config::Member| Traits {
        priority: member.priority,
        nofailover: member.nofailover,
        delayed: member.apply_delay.is_some(),
        cascade: member.upstream.is_some(),
    };
    config.members.iter().map(|member| (member.node, of(member))).collect()
}

/// How the memory budget is divided.
pub(super) fn store_config(config: &Config, control: &ControlState) -> StoreConfig {
    let memory = usize::try_from(config.memory).unwrap_or(usize::MAX);
    StoreConfig {
        cluster: control.cluster,
        shards: control.shards,
        cache_bytes: memory / 8 * 3,
        delta_bytes: memory / 4,
    }
}

fn open_store<S: Seam>(
    seam: &mut S,
    folder: &Folder,
    config: &Config,
    control: &ControlState,
) -> Result<(Store, FileId, FileId), BootError> {
    let superblock = seam.open(&folder.superblock(), Open::Existing).map_err(io("opening the superblock"))?;
    let pages = seam.open(&folder.pages(), Open::Existing).map_err(io("opening the page file"))?;
    let slots: Vec<Option<Vec<u8>>> = [0, SLOT_BYTES]
        .iter()
        .map(|at| seam.read_now(superblock, *at, SLOT_BYTES as usize).ok().map(|b| b.to_vec()))
        .collect();
    // A slot that can be read need not be durable, and the space of what it replaced is given free. The same bytes again,
    // one slot after the other.
    for (at, slot) in [0, SLOT_BYTES].iter().zip(&slots) {
        if let Some(bytes) = slot.as_ref().filter(|bytes| bytes.len() as u64 == SLOT_BYTES) {
            super::files::write_durable(seam, superblock, *at, bytes)
                .map_err(io("writing the superblock again"))?;
        }
    }
    let mut store = Store::open(store_config(config, control), slots[0].as_deref(), slots[1].as_deref())
        .map_err(BootError::Store)?;
    let len = seam.file_len(pages).map_err(io("measuring the page file"))?;
    store.pages_grown(len / crate::base::limits::PAGE_BYTES as u64);
    Ok((store, superblock, pages))
}

type Notes = Vec<(Noted, Lsn, Lsn)>;

/// A record that the role machine hears of at once.
enum Noted {
    Policy(Vec<u8>),
    Op(Vec<u8>),
}

fn recover_log<S: Seam>(
    seam: &mut S,
    folder: &Folder,
    control: &ControlState,
    store: &Store,
    own_mark: Lsn,
) -> Result<(Recovered, Notes), BootError> {
    let history = control.history.clone();
    let term_at = move |at: Lsn| history.term_at(at);
    let params = RecoverParams {
        cluster: control.cluster,
        segment_bytes: control.segment_bytes,
        from: store.redo_from(),
        before: None,
        term_at: &term_at,
        // A log that ends below a checkpoint has lost what it once held; what was appended there would be taken for a part
        // of the checkpoint and never be redone.
        known_commit: control.known_committed.lsn().max(store.proves_committed()),
        own_mark,
        // Once another term was adopted, own frames may have come back from a peer after a cut.
        own_term: control.history.last().map(|(term, _)| term).filter(|term| *term == control.last_led),
        repair_mark: Lsn::ZERO,
    };
    let mut files = SegmentFiles { seam, folder };
    let mut notes = Vec::new();
    let mut recovered = recover_watched(&mut files, &params, &mut |frame| {
        if frame.header.records > POLICY_FRAME_RECORDS_MAX {
            return;
        }
        for record in frame.records() {
            let noted = match record {
                Ok((Record::Policy { generation }, _)) => Noted::Policy(generation.to_vec()),
                Ok((Record::Op { op }, _)) => Noted::Op(op.to_vec()),
                _ => continue,
            };
            notes.push((noted, frame.header.first, frame.header.end()));
        }
    })
    .map_err(BootError::Log)?;
    // Everything that follows reports positions of this log: what was only read must not be among them.
    let settled = settle(&mut files, control.segment_bytes, &mut recovered).map_err(BootError::Log)?;
    tracing::debug!(settled, %own_mark, "the unproven end of the log was written again");
    Ok((recovered, notes))
}

/// What assembling found.
struct Parts {
    options: BootOptions,
    folder: Folder,
    control: ControlState,
    control_files: [FileId; 2],
    mark: MarkFile,
    store: Store,
    superblock: FileId,
    pages: FileId,
    recovered: Recovered,
    notes: Notes,
}

impl Parts {
    fn into_node<S: Seam>(self, mut seam: S) -> Node<S> {
        let Parts {
            options,
            folder,
            control,
            control_files,
            mark,
            store,
            superblock,
            pages,
            recovered,
            notes,
        } = self;
        let config = Arc::new(options.config.clone());
        let now = seam.now();
        tell_recovery(&recovered);
        let whole = !matches!(recovered.verdict, Verdict::Damaged { .. });
        let wal = Wal::resume(
            WalConfig {
                cluster: control.cluster,
                segment_bytes: control.segment_bytes,
                frames_in_flight: options.frames_in_flight,
                eager_bytes: GROUP_BYTES_EAGER,
                durable_writes: options.durable_writes,
                recent_bytes: RECENT_LOG_BYTES.min((config.memory / 8) as usize),
            },
            &recovered,
        );
        let retention = Retention::new(config.log_retention, options.disk_bytes);
        let files = log_files(&mut seam, &folder);
        let keeper = SegmentKeeper::new(
            KeeperConfig {
                segment_bytes: control.segment_bytes,
                spare_segments: 1,
                retention_bytes: retention.budget,
            },
            &files,
        );
        let identity = Identity {
            cluster: control.cluster,
            node: control.node,
            incarnation: control.incarnation,
            run: seam.random_u128(),
            session: control.promised,
        };
        let members: Vec<_> = config.members.iter().map(|m| (m.node, m.peer)).collect();
        let secret_text = config.peer_secret.as_ref().map_or("", |s| s.reveal());
        let secret =
            Secret::new(secret_text.as_bytes(), true).expect("an empty secret is allowed on loopback");
        let links = Links::new(identity, secret, &members, seam.random());
        let upstream_seed = seam.random();
        let role = RoleMachine::new(
            RoleConfig {
                peers: config.peers().map(|m| m.node).collect(),
                cascade: config.me().upstream.is_some(),
                lease: LEASE,
                traits: traits(&config),
                voter_timeout: config.voter_timeout,
                store: config.store != StoreChoice::None,
                degrade: match config.degrade {
                    Degrade::Never => None,
                    Degrade::After(time) => Some(time),
                },
                seed: seam.random(),
            },
            control,
            now,
        );
        let roots = super::roots::Roots::of(&store);
        let redo = Replay::new(Redo::new(&store), Crew::alone(options.redo_workers));
        let applied = store.redo_from();
        let committed = CommittedLsn(recovered.known_committed.lsn());
        let clock = recovered.clock;
        let segment_bytes = role.control().segment_bytes;
        let input_budget = (config.memory / 8) as usize;
        let output_budget = (config.memory / 8) as usize;
        let clients = Clients::new(input_budget, output_budget, seam.random());
        let mut node = Node {
            control: ControlFile::new(control_files),
            mark,
            role,
            role_inputs: Default::default(),
            role_effects: Vec::new(),
            role_waiters: BTreeMap::new(),
            role_asked: 0,
            store_link: Default::default(),
            writes_held: false,
            acks_stopped: false,
            drain: None,
            term_start_end: Lsn::ZERO,
            log: Log::new(wal, keeper, whole, segment_bytes, retention),
            log_moved: true,
            log_failure_told: false,
            repair_told: false,
            log_starved: false,
            groups: Groups::default(),
            committed,
            announce_at: None,
            acks_moved: false,
            data: Data::new(store, redo, applied, clock, pages, superblock),
            data_memory: Default::default(),
            delta_budget: (config.memory / 4) as usize,
            checkpoint_bytes: if options.checkpoint_bytes > 0 {
                options.checkpoint_bytes
            } else {
                CHECKPOINT_BYTES
            },
            clock_floor: WallMs(0),
            serving: false,
            executed: false,
            serve_after: None,
            readable_from: committed.lsn(),
            roots,
            repairs: Default::default(),
            walk: Default::default(),
            voters_missing_since: None,
            links,
            link_events: Vec::new(),
            streams: Streams::new(upstream_seed),
            peer_listener: crate::io::ListenerId(u32::MAX),
            clients,
            client_listener: crate::io::ListenerId(u32::MAX),
            marks: Watermarks::NONE,
            gates_moved: false,
            mailbox: None,
            board: None,
            admin: Admin::default(),
            chronicle: Default::default(),
            pending: options.role == Some(StartRole::Pending),
            finalizing: None,
            exit: None,
            stopping: None,
            seam: DiskWatch::new(seam),
            disk: Default::default(),
            config,
            folder,
            identity,
            now,
            started: now,
            events: Vec::new(),
            deadline: now,
            tick_at: now,
            metrics: Metrics::new(),
        };
        if !whole {
            let incarnation = node.identity.incarnation;
            let status = DataStatus::Damaged;
            node.tell_role(Input::DataChanged { status, incarnation, history: None, policy: None });
        }
        for (noted, start, end) in notes {
            let record = match &noted {
                Noted::Policy(generation) => Record::Policy { generation },
                Noted::Op(op) => Record::Op { op },
            };
            node.record_seen(&record, start, end);
        }
        node.role.keep_out(node.pending);
        node.tell_role(Input::Tick);
        match options.role {
            Some(StartRole::Primary) => {
                let command = Command::RequestPrimary { alone: options.alone, force: false };
                node.tell_role(Input::Command { op: super::admin::START_OP, mark: None, command });
            }
            // Not even after a blackout, although it may have led last.
            Some(StartRole::Standby | StartRole::CascadeStandby | StartRole::Pending) => {
                let command = Command::RequestStandby;
                node.tell_role(Input::Command { op: super::admin::START_OP, mark: None, command });
            }
            None => {}
        }
        node
    }
}

impl<S: Seam> Node<S> {
    /// Opens the ports. Separate from [`Node::boot`], so that a port in use is its own error.
    pub fn listen(&mut self) -> std::io::Result<(std::net::SocketAddr, std::net::SocketAddr)> {
        let (peer, peer_addr) = self.seam.listen(self.config.peer_listen)?;
        let (client, client_addr) = self.seam.listen(self.config.client_listen)?;
        self.peer_listener = peer;
        self.client_listener = client;
        self.seam.spread(client);
        self.seam.submit(Op::Accept { listener: peer });
        self.seam.submit(Op::Accept { listener: client });
        Ok((client_addr, peer_addr))
    }
}

fn log_files<S: Seam>(seam: &mut S, folder: &Folder) -> Vec<(LogFile, u64)> {
    let names = seam.list(&folder.wal()).unwrap_or_default();
    let mut files = Vec::new();
    for name in names {
        let Some(file) = LogFile::parse(&name) else { continue };
        let Ok(opened) = seam.open(&folder.wal_file(&name), Open::ReadOnly) else { continue };
        let len = seam.file_len(opened).unwrap_or(0);
        seam.close_file(opened);
        files.push((file, len));
    }
    files
}

fn tell_recovery(recovered: &Recovered) {
    let end = recovered.end.end;
    let committed = recovered.known_committed;
    let (frames, records) = (recovered.frames, recovered.records);
    match recovered.verdict {
        Verdict::Clean => tracing::info!(%end, %committed, frames, records, "log recovered"),
        Verdict::Torn { zero_from, zero_to } => tracing::info!(
            %end, %committed, frames, records, %zero_from, %zero_to, "log recovered, torn tail zeroed"
        ),
        Verdict::Damaged { at, mark, .. } => tracing::error!(
            %end, %at, %mark, "the log is damaged below what was durable: this node does not count until it is repaired"
        ),
    }
}

/// How long a start waits for a dying predecessor's writes.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(10);
