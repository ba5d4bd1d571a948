//! Many seeds on few threads; a failed one is told with everything that is needed to see it again.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use baton::base::Mono;
use baton::base::planted::{Bug, plant};

use super::run::{Report, Run, Weather};
use super::watch;

/// A run that broke a promise.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub why: String,
    pub last_events: Vec<String>,
    pub simulated: Duration,
}

/// Runs one seed in the weather of its own plan.
pub fn run_seed(seed: u64) -> Result<Report, Failure> {
    run_with(seed, Weather::Swarm, None)
}

pub fn run_with(seed: u64, weather: Weather, bug: Option<Bug>) -> Result<Report, Failure> {
    run_shaped(seed, (weather, false), bug)
}

/// The same through a control store, whatever the weather.
pub fn run_stored(seed: u64, weather: Weather) -> Result<Report, Failure> {
    run_shaped(seed, (weather, true), None)
}

fn run_shaped(seed: u64, (weather, stored): (Weather, bool), bug: Option<Bug>) -> Result<Report, Failure> {
    let _planted = bug.map(plant);
    watch::run();
    let mut run = Run::new(seed, weather, stored);
    let world = run.cluster.world.clone();
    let result = match catch_unwind(AssertUnwindSafe(|| run.judge())) {
        Ok(result) => result,
        Err(_) => {
            // A node that broke in the middle of a turn is not dropped in order.
            std::mem::forget(run);
            let simulated = world.now().since(Mono(0));
            let why = watch::last_panic();
            let last_events = world.last_events();
            watch::end();
            return Err(Failure { seed, why, last_events, simulated });
        }
    };
    watch::end();
    result.map_err(|why| Failure {
        seed,
        why,
        last_events: world.last_events(),
        simulated: world.now().since(Mono(0)),
    })
}

/// What many seeds came to.
#[derive(Default, Debug)]
pub struct Summary {
    pub runs: u64,
    pub simulated: Duration,
    pub wall: Duration,
    /// Processor time of this process meanwhile, on all cores together.
    pub cpu: Duration,
    pub threads: usize,
    pub acked: usize,
    pub reads: usize,
    pub standby_reads: usize,
    pub doubts: usize,
    pub refused: usize,
    pub terms: usize,
    pub worst_recovery: Duration,
    pub errors: BTreeMap<String, u64>,
    pub failures: Vec<Failure>,
}

/// Runs `count` seeds from `base` on `threads` threads; stops early after `failures_max` failures.
pub fn run_many(base: u64, count: u64, threads: usize, failures_max: usize) -> Summary {
    let (begun, spent) = (Instant::now(), cpu_time());
    let next = AtomicU64::new(0);
    let enough = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        return;
                    }
                    let result = run_seed(base.wrapping_add(i));
                    let mut summary = summary.lock().expect("no thread panics with it");
                    summary.add(result);
                    if summary.failures.len() >= failures_max {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("no thread panics with it");
    summary.wall = begun.elapsed();
    summary.cpu = cpu_time().saturating_sub(spent);
    summary.threads = threads;
    summary
}

/// Processor time that this process has used, in the kernel too; zero where the kernel does not say.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold spaces: the state, ten numbers, and then the two that count, in hundredths of a
    // second.
    let numbers = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = numbers.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

impl Summary {
    fn add(&mut self, result: Result<Report, Failure>) {
        self.runs += 1;
        match result {
            Ok(report) => {
                if std::env::var_os("BATON_SIM_VERBOSE").is_some() {
                    println!("{report:?}");
                }
                self.simulated += report.simulated;
                self.acked += report.acked;
                self.reads += report.reads;
                self.standby_reads += report.standby_reads;
                self.doubts += report.doubts;
                self.refused += report.refused;
                self.terms += report.terms;
                self.worst_recovery = self.worst_recovery.max(report.recovery);
                for (word, count) in report.errors {
                    *self.errors.entry(word).or_default() += count;
                }
            }
            Err(failure) => {
                println!("{}", failure.text());
                self.simulated += failure.simulated;
                self.failures.push(failure);
            }
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let simulated = self.simulated.as_secs_f64();
        format!(
            "{} seeds, {simulated:.0} simulated seconds in {:.1} s on {} threads ({:.1} simulated per second in all, {:.1} \
             per second of one core): {} writes acknowledged, {} in doubt, {} refused, {} reads, {} standby reads, {} \
             terms, slowest recovery {:.1} s, errors {:?}",
            self.runs,
            self.wall.as_secs_f64(),
            self.threads,
            simulated / self.wall.as_secs_f64().max(1e-9),
            simulated / self.cpu.as_secs_f64().max(1e-9),
            self.acked,
            self.doubts,
            self.refused,
            self.reads,
            self.standby_reads,
            self.terms,
            self.worst_recovery.as_secs_f64(),
            self.errors,
        )
    }
}

impl Failure {
    pub fn text(&self) -> String {
        let last = &self.last_events[self.last_events.len().saturating_sub(40)..];
        format!(
            "seed {} failed after {:.3} simulated seconds: {}\nlast events:\n  {}\nagain with: tools/sim --seed {} --seeds 1",
            self.seed,
            self.simulated.as_secs_f64(),
            self.why,
            last.join("\n  "),
            self.seed
        )
    }
}
