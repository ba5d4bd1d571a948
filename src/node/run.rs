//! The process around a node: ring, calibration, control thread, signals, exit codes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::admin::{Failover, Request, Response, Verb};

use crate::base::limits::{ADMIN_MAILBOX_MAX, REDO_WORKERS_DEFAULT_MAX};
use crate::config::{Config, StoreChoice, WalSync};
use crate::io::uring::{
    Calibration, UringConfig, UringSeam, calibrate, give_back_holes, give_back_large_buffers,
    raise_descriptor_limit,
};
use crate::io::{Seam, Waker};

use super::boot::{BootError, BootOptions, LOCK_PATIENCE};
use super::chronicle;
use super::control::{ControlConfig, ControlHandle, ControlMessage, spawn};
use super::{Node, Turn};

/// How long the end of the process waits for the last rows of the history file.
const HISTORY_PATIENCE: Duration = Duration::from_secs(1);
/// How often the trigger file is looked for.
const TRIGGER_LOOK: Duration = Duration::from_millis(200);
/// What a node opens beside its clients: files, listeners, links to peers, the admin socket's connections, HTTP.
const DESCRIPTORS_OF_A_NODE: u64 = 256;

/// How often the memory in use is looked at.
const MEMORY_LOOK: Duration = Duration::from_secs(1);
/// What a node may take beyond its budget before its heap is searched for holes; a quarter of what it may take in all.
const MEMORY_SLACK: u64 = 16 << 20;
/// A search that finds less is not repeated soon.
const MEMORY_WORTH_IT: u64 = 4 << 20;

pub use crate::admin::WantedRole as StartRole;

/// Whether a member may be asked to play this role; else one sentence that says why not.
pub fn role_fits(config: &Config, role: StartRole) -> Result<(), String> {
    match (role, config.me().upstream) {
        (StartRole::CascadeStandby, None) => Err(format!(
            "node {} has no upstream in the configuration, so it is no cascaded standby: say -M standby",
            config.node
        )),
        (StartRole::Standby, Some(upstream)) => Err(format!(
            "node {} is a cascaded standby below node {upstream} by its configuration: say -M cascade_standby",
            config.node
        )),
        _ => Ok(()),
    }
}

/// What `baton run` needs.
#[derive(Clone, Debug)]
pub struct RunOptions {
    pub config: Config,
    pub role: Option<StartRole>,
    /// `-M primary --alone`: lower k to 0 by a forced, recorded generation.
    pub alone: bool,
    /// The configuration's file, read again at SIGHUP.
    pub file: PathBuf,
}

/// Runs the node until it is stopped; the value is the process's exit code.
pub fn run(options: RunOptions) -> u8 {
    let watched = Watched {
        file: options.file.clone(),
        trigger: options.config.promote_trigger_file.clone(),
        ended: Arc::default(),
    };
    match start(options) {
        Ok((node, control, mail, history)) => {
            let ended = watched.ended.clone();
            let code = drive(node, watched, mail);
            ended.store(true, Ordering::Relaxed);
            // The loop and its end of the queue are gone: the thread writes what is left and ends. A disk that hangs keeps it,
            // and must not keep the process.
            let begun = Instant::now();
            while !history.is_finished() && begun.elapsed() < HISTORY_PATIENCE {
                std::thread::sleep(Duration::from_millis(2));
            }
            control.stop();
            code
        }
        Err((text, code)) => {
            tracing::error!("{text}");
            eprintln!("baton: {text}");
            code
        }
    }
}

type Mail = SyncSender<ControlMessage>;
type Started = (Node<UringSeam>, ControlHandle, Mail, JoinHandle<()>);

fn start(options: RunOptions) -> Result<Started, (String, u8)> {
    let config = options.config.clone();
    if let Some(role) = options.role {
        role_fits(&config, role).map_err(|text| (text, 2))?;
    }
    give_back_large_buffers();
    room_for_clients(&config);
    let budget = config.memory;
    std::thread::Builder::new()
        .name("memory".into())
        .spawn(move || give_back_memory(budget))
        .map_err(|e| (format!("the thread that gives memory back cannot be started: {e}"), 1))?;
    let (cores, why) = config.cores_on(processors());
    let mut seam = UringSeam::new(ring_config(&config, cores)).map_err(|e| (e.to_string(), 1))?;
    tracing::info!(cores, "{why}");
    tracing::info!(ring = seam.describe(), "io_uring is ready");
    for warning in seam.warnings() {
        tracing::warn!("{warning}");
    }
    let tuning = tune(&mut seam, &config)?;
    let boot = BootOptions {
        config: config.clone(),
        role: options.role,
        alone: options.alone,
        durable_writes: tuning.durable_writes,
        frames_in_flight: tuning.frames_in_flight,
        checkpoint_bytes: 0,
        redo_workers: redo_workers(&config),
        disk_bytes: disk_bytes(&config.data),
    };
    let mut node = boot_patiently(seam, boot)?;
    node.employ().map_err(|e| (format!("the threads of redo cannot be started: {e}"), 1))?;
    let (client, peer) = node.listen().map_err(|e| {
        let text = format!(
            "a port cannot be opened (client_listen {}, peer_listen {}): {e}",
            config.client_listen, config.peer_listen
        );
        (text, 1)
    })?;
    tracing::info!(%client, %peer, node = %config.node, cluster = config.cluster, "listening");
    let (sender, receiver) = mpsc::sync_channel(ADMIN_MAILBOX_MAX);
    let control_config = ControlConfig { data: config.data.clone(), http_listen: config.http_listen };
    let control =
        spawn(control_config, sender.clone(), node.seam_mut().waker()).map_err(|e| (e.to_string(), 1))?;
    node.attach(receiver, control.board());
    if let StoreChoice::Dir(folder) = &config.store {
        let waker = node.seam_mut().waker();
        node.attach_store(folder, waker)
            .map_err(|e| (format!("the thread of the control store cannot be started: {e}"), 1))?;
        tracing::info!(folder = %folder.display(), "control store: for nodes of one machine, and gone with it");
    }
    let (before, history) = chronicle::open(&config.data)
        .map_err(|e| (format!("the thread of the history file cannot be started: {e}"), 1))?;
    node.attach_history(before, history.sink);
    Ok((node, control, sender, history.thread))
}

/// Every client costs a descriptor, and the usual soft limit is 1024.
fn room_for_clients(config: &Config) {
    let wanted = config.max_clients as u64 + DESCRIPTORS_OF_A_NODE;
    match raise_descriptor_limit() {
        Ok(limit) if limit < wanted => tracing::warn!(
            "the limit of open files is {limit}, too low for max_clients = {}: raise it to {wanted} (ulimit -Hn, or \
             LimitNOFILE= in the systemd unit), or clients wait at the door without an answer",
            config.max_clients
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be read"),
    }
}

/// Small things that live long keep the heap from shrinking when what lay between them is gone: a crowd of clients that
/// has left, for example. Above the budget such holes are given back. Ends with the process.
fn give_back_memory(budget: u64) {
    let mut rest = MEMORY_LOOK;
    loop {
        std::thread::sleep(rest);
        rest = MEMORY_LOOK;
        let Some(before) = resident_bytes().filter(|resident| *resident > budget + MEMORY_SLACK) else {
            continue;
        };
        give_back_holes();
        let given = before.saturating_sub(resident_bytes().unwrap_or(before));
        tracing::debug!(resident = before, given, "memory above the budget: holes were given back");
        if given < MEMORY_WORTH_IT {
            rest = MEMORY_LOOK * 20;
        }
    }
}

/// Memory of this process that lies in RAM.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Size of the disk under a folder.
fn disk_bytes(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// Threads that apply the log, the loop among them.
fn redo_workers(config: &Config) -> usize {
    config.redo_workers.unwrap_or_else(|| processors().min(REDO_WORKERS_DEFAULT_MAX))
}

/// Processors that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

/// The receive buffers of all network loops together stay within a sixteenth of the memory budget.
fn ring_config(config: &Config, cores: u16) -> UringConfig {
    // With one processor, whoever looks again keeps the one away that it waits for.
    let busy_poll = if processors() > 1 { config.busy_poll } else { Duration::ZERO };
    let usual = UringConfig { busy_poll, ..UringConfig::default() };
    let network_loops = cores - 1;
    if network_loops == 0 {
        return usual;
    }
    let share = config.memory / 16 / u64::from(network_loops) / u64::from(usual.buffer_bytes);
    let most = share.clamp(1, u64::from(usual.network_buffers)) as u16;
    UringConfig { network_loops, network_buffers: 1 << most.ilog2(), ..usual }
}

/// Calibration, unless the configuration says it all.
fn tune(seam: &mut UringSeam, config: &Config) -> Result<Calibration, (String, u8)> {
    // Nothing is written into a folder that may be the empty place where a disk should be mounted.
    let control = ["control.a", "control.b"].map(|name| config.data.join(name));
    if control.iter().all(|path| matches!(path.try_exists(), Ok(false))) {
        let path = config.data.display().to_string();
        return Err((BootError::NotInitialised { path }.to_string(), 1));
    }
    let unmeasured = |why: &str| Calibration {
        durable_writes: true,
        frames_in_flight: 4,
        flush_thread: false,
        report: format!("log disk not measured: {why}"),
    };
    let mut tuning = match (config.wal_sync, config.frames_in_flight) {
        (WalSync::Auto, _) | (_, None) => match calibrate(seam, &config.data) {
            Ok(measured) => measured,
            // Reads and the admin socket need no room: a node comes up on a full disk too.
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                tracing::warn!("the disk is full: {e}");
                unmeasured("the disk is full")
            }
            Err(e) => {
                let text = format!("the data folder {} cannot be written: {e}", config.data.display());
                return Err((text, 1));
            }
        },
        _ => unmeasured("the configuration chooses"),
    };
    match config.wal_sync {
        WalSync::Auto => {}
        WalSync::Dsync => tuning.durable_writes = true,
        WalSync::Fdatasync => tuning.durable_writes = false,
    }
    if let Some(frames) = config.frames_in_flight {
        tuning.frames_in_flight = frames;
    }
    tracing::info!(
        durable_writes = tuning.durable_writes,
        frames_in_flight = tuning.frames_in_flight,
        flush_thread = tuning.flush_thread,
        "{}",
        tuning.report
    );
    Ok(tuning)
}

/// Boots; while a dying predecessor's writes are still on their way, waits for its lock, bounded.
fn boot_patiently(mut seam: UringSeam, options: BootOptions) -> Result<Node<UringSeam>, (String, u8)> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        match Node::boot(seam, options.clone()) {
            Ok(node) => return Ok(node),
            Err((BootError::Locked, back)) if begun.elapsed() < LOCK_PATIENCE => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        "the data folder is locked: waiting for the process before this one to let go"
                    );
                }
                seam = back;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err((error, _)) => return Err((error.to_string(), 1)),
        }
    }
}

/// What the process watches beside the loop.
struct Watched {
    file: PathBuf,
    trigger: Option<PathBuf>,
    ended: Arc<AtomicBool>,
}

/// Turns the loop until the node is done.
fn drive(mut node: Node<UringSeam>, watched: Watched, mail: Mail) -> u8 {
    let stop = watch_signals(&mut node, &watched.file, mail.clone());
    if let Some(trigger) = watched.trigger {
        watch_trigger(trigger, mail, node.seam_mut().waker(), watched.ended);
    }
    loop {
        if stop.swap(false, Ordering::Relaxed) {
            node.stop_fast();
        }
        if let Turn::Exit(code) = node.turn() {
            return code;
        }
    }
}

/// SIGTERM and SIGINT ask for a fast stop, SIGHUP for the configuration to be read again.
fn watch_signals(node: &mut Node<UringSeam>, file: &Path, mail: Mail) -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let waker = node.seam_mut().waker();
    let (mine, file) = (flag.clone(), file.to_path_buf());
    match signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]) {
        Ok(mut signals) => {
            std::thread::spawn(move || {
                for (count, signal) in signals.forever().enumerate() {
                    if signal == SIGHUP {
                        hand_in_reload(&file, count, &mail);
                    } else {
                        tracing::info!(signal, "asked to stop");
                        mine.store(true, Ordering::Relaxed);
                    }
                    waker.wake();
                }
            });
        }
        Err(error) => tracing::warn!(%error, "signals are not watched: stop this node with `baton stop`"),
    }
    flag
}

fn hand_in_reload(file: &Path, count: usize, mail: &Mail) {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            return tracing::error!(%error, file = %file.display(), "the configuration cannot be read again");
        }
    };
    let folder = file.parent().unwrap_or(Path::new(".")).display().to_string();
    let request = Request::new(format!("sighup-{count}"), Verb::Reload { text, folder });
    hand_in(request, mail);
}

/// Leaves a request for the loop; its answer goes to the log.
fn hand_in(request: Request, mail: &Mail) {
    let what = request.op.clone();
    let told = what.clone();
    let reply = move |response: Response| match response.error {
        None => tracing::info!(op = told, result = %response.result, "done"),
        Some(error) => tracing::error!(op = told, %error, "refused"),
    };
    if mail.try_send(ControlMessage { request, reply: Box::new(reply) }).is_err() {
        tracing::error!(op = what, "the loop takes no request now");
    }
}

/// The trigger file: when it appears it is removed, and this node asks to be the primary, once.
fn watch_trigger(file: PathBuf, mail: Mail, waker: Arc<dyn Waker>, ended: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let mut count = 0u64;
        let mut stuck = false;
        while !ended.load(Ordering::Relaxed) {
            std::thread::sleep(TRIGGER_LOOK);
            if !file.exists() {
                stuck = false;
                continue;
            }
            if stuck {
                continue;
            }
            if let Err(error) = std::fs::remove_file(&file) {
                tracing::error!(%error, file = %file.display(), "the trigger file cannot be removed: not obeyed again");
                stuck = true;
            }
            count += 1;
            tracing::info!(file = %file.display(), "the trigger file asks for a promotion");
            hand_in(
                // Unlike any earlier one in the life of the cluster.
                Request::new(format!("trigger-file-{began}-{count}"), Verb::Failover(Failover::default())),
                &mail,
            );
            waker.wake();
        }
    });
}
