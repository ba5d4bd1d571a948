//! Mutated encodings against every decoder that reads what others wrote. Each must end without a panic, allocate no
//! more than its input justifies, read in pieces what it reads at once, and read back what it writes.
//!
//! `BATON_FUZZ_SECONDS` is the time for all targets together, `BATON_FUZZ_SEED` the seed, `BATON_FUZZ_TARGET` one target,
//! `BATON_FUZZ_REPORT` a file for the counts. A failing input is written to `target/fuzz`; put it into
//! `tests/fuzz/corpus/TARGET` and it stays checked.

mod commands;
mod files;
mod folder;
mod judge;
mod links;
mod more_seeds;
mod mutate;
mod recovery;
mod script;
mod seeds;
mod targets;
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use baton::base::{Digest, Prng};

use targets::{TARGETS, Target};

/// All targets together, when nothing else is said.
const SECONDS: u64 = 16;
/// Inputs with a way of their own that are kept for further mutation.
const POOL_MAX: usize = 4096;
/// How often the mutated input gets its checksums right again.
const RESEALED: f64 = 0.7;

#[derive(Debug)]
struct Count {
    name: &'static str,
    runs: u64,
    ways: usize,
    dearest: f64,
}

/// One run of a target; a panic is a failure like any other.
fn run(target: &Target, data: &[u8]) -> Result<(u64, usize), String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| judge::run(target, data)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
    })
}

fn fail(target: &Target, seed: u64, data: &[u8], why: &str) -> ! {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
    fs::create_dir_all(&folder).expect("the target folder can be written");
    let path = folder.join(format!("{}-{:016x}", target.name, Digest::of(data).0 as u64));
    fs::write(&path, data).expect("the target folder can be written");
    panic!("{} (seed {seed}): {why}\ninput: {}", target.name, path.display());
}

fn fuzz(target: &Target, seed: u64, time: Duration) -> Count {
    let mut dice = Prng::new(seed);
    let mut pool = seeds::seeds(target.name);
    pool.extend(seeds::kept(target.name));
    let mut ways = BTreeSet::new();
    let mut count = Count { name: target.name, runs: 0, ways: 0, dearest: 0.0 };
    let mut judge = |data: &[u8], ways: &mut BTreeSet<u64>| match run(target, data) {
        Ok((way, spent)) => {
            count.runs += 1;
            count.dearest = count.dearest.max(spent as f64 / data.len().max(4096) as f64);
            ways.insert(way)
        }
        Err(why) => fail(target, seed, data, &why),
    };
    for data in &pool {
        judge(data, &mut ways);
    }
    let end = Instant::now() + time;
    while Instant::now() < end {
        for _ in 0..16 {
            // The newest inputs went the least trodden ways.
            let newest = pool.len().min(64) as u64;
            let from = if dice.chance(0.5) {
                pool.len() - 1 - dice.below(newest) as usize
            } else {
                dice.below(pool.len() as u64) as usize
            };
            let other = dice.below(pool.len() as u64) as usize;
            let mut data = pool[from].clone();
            mutate::mutate(&mut data, &pool[other], &mut dice);
            if dice.chance(RESEALED) {
                (target.reseal)(&mut data);
            }
            if judge(&data, &mut ways) && pool.len() < POOL_MAX {
                pool.push(data);
            }
        }
    }
    count.ways = ways.len();
    count
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn decoders_survive_what_nobody_should_send() {
    the_count_notices_a_large_allocation();
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_millis() as u64);
    let seed = number("BATON_FUZZ_SEED").unwrap_or(clock);
    let only = std::env::var("BATON_FUZZ_TARGET").ok();
    let chosen: Vec<&Target> =
        TARGETS.iter().filter(|target| only.as_deref().is_none_or(|name| name == target.name)).collect();
    assert!(!chosen.is_empty(), "there is no such target");
    let seconds = number("BATON_FUZZ_SECONDS").unwrap_or(SECONDS);
    let each = Duration::from_secs(seconds) / chosen.len() as u32;
    println!("BATON_FUZZ_SEED={seed}, {} s for each of {} targets", each.as_secs_f64(), chosen.len());
    let mut report = String::from(
        "| target | runs | different ways | most bytes allocated per input byte |\n|---|---|---|---|\n",
    );
    for target in chosen {
        let count = fuzz(target, seed, each);
        println!("{count:?}");
        report += &format!("| `{}` | {} | {} | {:.1} |\n", count.name, count.runs, count.ways, count.dearest);
        // Decoders see more than one way, or the seeds have rotted.
        assert!(count.ways > 2 || each.is_zero(), "{} takes {} ways only", count.name, count.ways);
    }
    if let Ok(path) = std::env::var("BATON_FUZZ_REPORT") {
        fs::write(path, format!("seed {seed}, {seconds} s\n\n{report}")).expect("the report can be written");
    }
}

/// A decoder that believes a declared length must be caught.
fn the_count_notices_a_large_allocation() {
    let believer = Target {
        name: "believer",
        run: |data| Vec::<u8>::with_capacity(usize::from(data[0]) << 16).capacity() as u64,
        reseal: |_| (),
        bytes_each: 64,
        bytes_once: 64 << 10,
    };
    assert!(run(&believer, &[1]).is_ok());
    assert!(run(&believer, &[200]).is_err(), "nobody notices 13 MiB for one byte");
}
