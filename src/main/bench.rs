//! `baton bench`: the load room on the ring, with the standbys' lag watched from outside.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use baton::admin::{Exit, Verb};
use baton::cluster::QueryStatus;
use baton::io::uring::{UringConfig, UringSeam};
use baton::load::{LagSummary, LoadError, LoadOptions, Progress, Report, Workload, roles, run};

use super::args::{Bench, Common, ReadFromArg, WorkloadArg};
use super::{Fail, Outcome, ask, place, render};

const LAG_EVERY: Duration = Duration::from_millis(200);
/// How long one server may take to tell its role.
const ROLE_PATIENCE: Duration = Duration::from_secs(2);

pub fn bench(common: &Common, verb: &Bench) -> Outcome {
    let node =
        if common.data.is_some() || common.config.is_some() { Some(place::node(common)?) } else { None };
    let servers = match (&node, verb.addr.is_empty()) {
        (_, false) => verb.addr.clone(),
        (Some(config), true) => vec![config.client_listen],
        (None, true) => {
            return Err(Fail::usage(
                "which server?",
                "name it with --addr 127.0.0.1:7379, or a node with -D",
            ));
        }
    };
    let own =
        node.as_ref().and_then(|config| config.client_password.as_ref().map(|p| p.reveal().to_string()));
    let password = verb.password.clone().or(own);
    let readers = readers(verb, &servers, password.as_deref())?;
    let options = LoadOptions {
        servers,
        readers,
        clients: verb.clients,
        pipeline: verb.pipeline,
        wait: verb.wait,
        duration: Duration::from_secs(verb.seconds.max(1)),
        workload: workload(verb),
        value_bytes: verb.value_bytes,
        keys: verb.keys,
        password,
        fill: !verb.no_fill,
        seed: verb.seed,
    };
    let lag = node.map(|config| LagWatch::start(config.data));
    let measured = measure(common, &options);
    let samples = lag.map(LagWatch::stop).unwrap_or_default();
    let mut report = measured?;
    report.lag = LagSummary::of(&samples);
    if let Some(path) = &verb.plot {
        plot(&report, path)?;
    }
    render::print(common, &report, &report.text());
    Ok(if report.ok > 0 { Exit::Ok } else { Exit::Failed })
}

/// Who serves the reads when that is not whoever takes the writes.
fn readers(verb: &Bench, servers: &[SocketAddr], password: Option<&str>) -> Result<Vec<SocketAddr>, Fail> {
    let reads = workload(verb).reads();
    let found = match verb.read_from {
        ReadFromArg::Primary => return Ok(Vec::new()),
        _ if !reads => {
            return Err(Fail::usage("this workload does not read", "use --workload get, or mixed"));
        }
        _ => roles::look(servers, password, ROLE_PATIENCE),
    };
    let mut readers = found.standbys;
    if verb.read_from == ReadFromArg::Any {
        readers.extend(found.primaries);
    }
    if readers.is_empty() {
        let hint = "name standbys with --addr, or a primary that has some";
        return Err(Fail::new(Exit::Down, "bench", "no standby answers", hint));
    }
    Ok(readers)
}

fn workload(verb: &Bench) -> Workload {
    match verb.workload {
        WorkloadArg::Set => Workload::Set,
        WorkloadArg::Get => Workload::Get,
        WorkloadArg::Incr => Workload::Incr,
        WorkloadArg::Mixed => Workload::Mixed { writes_percent: verb.writes },
    }
}

fn measure(common: &Common, options: &LoadOptions) -> Result<Report, Fail> {
    let entries = u32::try_from(options.clients.next_power_of_two()).unwrap_or(4096).clamp(256, 4096);
    let config = UringConfig { entries, ..UringConfig::default() };
    let mut seam = UringSeam::new(config).map_err(|error| Fail::failed(error.to_string(), ""))?;
    let watch = |progress: Progress| {
        let what = if progress.filling { "writing the keys" } else { "running" };
        let (elapsed, ok) = (progress.elapsed.as_secs_f64(), progress.ok);
        render::progress(common, &format!("  {what} {elapsed:.1} s: {ok} done, {} errors", progress.errors));
    };
    // Filling tells ten times a second; once is enough for people.
    let mut last = Duration::ZERO;
    let mut seldom = |progress: Progress| {
        if progress.elapsed < last || progress.elapsed >= last + Duration::from_millis(900) {
            last = progress.elapsed;
            watch(progress);
        }
    };
    run(&mut seam, options, &mut seldom).map_err(|error| {
        let exit = match &error {
            LoadError::Options(_) => Exit::Usage,
            LoadError::Unreachable { .. } => Exit::Down,
            LoadError::Refused(_) => Exit::Refused,
            LoadError::Fill(_) => Exit::Failed,
        };
        Fail::new(exit, "bench", error.to_string(), "")
    })
}

fn plot(report: &Report, path: &Path) -> Result<(), Fail> {
    baton::load::plot::write_svg(report, path)
        .map_err(|error| Fail::failed(format!("cannot draw {}: {error}", path.display()), ""))
}

/// Asks a node for the lag of its standbys while the load runs.
struct LagWatch {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Vec<(u64, Option<u64>)>>,
}

impl LagWatch {
    fn start(data: PathBuf) -> LagWatch {
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(LAG_EVERY) {
                samples.extend(sample(&data));
            }
            samples
        });
        LagWatch { stop, thread }
    }

    fn stop(self) -> Vec<(u64, Option<u64>)> {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

/// Lag of the slowest standby that streams from the node.
fn sample(data: &Path) -> Option<(u64, Option<u64>)> {
    let query: QueryStatus = ask::typed(data, Verb::Query).ok()?;
    let bytes = query.senders.iter().map(|sender| sender.lag_bytes).max()?;
    Some((bytes, query.senders.iter().filter_map(|sender| sender.lag_ms).max()))
}
