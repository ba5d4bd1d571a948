//! The process around a node: ring, calibration, control thread, signals, exit codes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::base::limits::ADMIN_MAILBOX_MAX;
use crate::config::{Config, WalSync};
use crate::io::Seam;
use crate::io::uring::{Calibration, UringConfig, UringSeam, calibrate};

use super::boot::{BootError, BootOptions, LOCK_PATIENCE};
use super::control::{ControlConfig, ControlHandle, spawn};
use super::{Node, Turn};

/// The role asked for with `-M`: a request, never an order, once a cluster exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartRole {
    Primary,
    Standby,
    CascadeStandby,
    Pending,
}

/// What `baton run` needs.
#[derive(Clone, Debug)]
pub struct RunOptions {
    pub config: Config,
    pub role: Option<StartRole>,
    /// `-M primary --alone`: lower k to 0 by a forced, recorded generation.
    pub alone: bool,
}

/// Runs the node until it is stopped; the value is the process's exit code.
pub fn run(options: RunOptions) -> u8 {
    match start(options) {
        Ok((node, control)) => {
            let code = drive(node);
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

fn start(options: RunOptions) -> Result<(Node<UringSeam>, ControlHandle), (String, u8)> {
    let config = options.config.clone();
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
    };
    let mut node = boot_patiently(seam, boot)?;
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
    let control = spawn(control_config, sender, node.seam_mut().waker())
        .map_err(|e| (format!("the admin socket cannot be opened: {e}"), 1))?;
    node.attach(receiver, control.board());
    Ok((node, control))
}

/// Processors that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

/// The receive buffers of all network loops together stay within a sixteenth of the memory budget.
fn ring_config(config: &Config, cores: u16) -> UringConfig {
    let usual = UringConfig::default();
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
    let missing = |e: std::io::Error| {
        let text = format!(
            "the data folder {} cannot be used: {e}. Is the disk mounted? A new node is made by `baton init` only",
            config.data.display()
        );
        (text, 1)
    };
    if !config.data.join("control.a").exists() && !config.data.join("control.b").exists() {
        return Err(missing(std::io::Error::from(std::io::ErrorKind::NotFound)));
    }
    let mut tuning = match (config.wal_sync, config.frames_in_flight) {
        (WalSync::Auto, _) | (_, None) => calibrate(seam, &config.data).map_err(missing)?,
        _ => Calibration {
            durable_writes: true,
            frames_in_flight: 4,
            flush_thread: false,
            report: "not calibrated: the configuration chooses".to_string(),
        },
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
        "log disk: {}",
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

/// Turns the loop until the node is done.
fn drive(mut node: Node<UringSeam>) -> u8 {
    let stop = stop_signal(&mut node);
    loop {
        if stop.swap(false, Ordering::Relaxed) {
            node.stop_fast();
        }
        if let Turn::Exit(code) = node.turn() {
            return code;
        }
    }
}

/// SIGTERM and SIGINT ask for a fast stop.
fn stop_signal(node: &mut Node<UringSeam>) -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let waker = node.seam_mut().waker();
    let mine = flag.clone();
    match signal_hook::iterator::Signals::new([SIGTERM, SIGINT]) {
        Ok(mut signals) => {
            std::thread::spawn(move || {
                for signal in signals.forever() {
                    tracing::info!(signal, "asked to stop");
                    mine.store(true, Ordering::Relaxed);
                    waker.wake();
                }
            });
        }
        Err(error) => tracing::warn!(%error, "signals are not watched: stop this node with `baton stop`"),
    }
    flag
}
