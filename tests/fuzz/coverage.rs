//! The targets of `tests/fuzz` under libFuzzer, which sees every edge that an input takes: `tools/long/fuzz --coverage`.
//!
//! `BATON_FUZZ_TARGET` chooses the target; `BATON_FUZZ_SEEDS` is a folder that gets the valid encodings to begin with. With
//! `BATON_FUZZ_PACK` the inputs in that folder become the file that the corpus keeps, and nothing is run.

#![no_main]

mod commands;
mod files;
mod folder;
mod judge;
mod links;
mod more_seeds;
mod recovery;
mod script;
mod seeds;
mod targets;
mod tree;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

use targets::{TARGETS, Target};

/// Of ten mutated inputs, so many get their checksums right again.
const RESEALED: u32 = 8;

fn target() -> &'static Target {
    static CHOSEN: OnceLock<&Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("BATON_FUZZ_TARGET").expect("BATON_FUZZ_TARGET names a target");
        TARGETS.iter().find(|target| target.name == name).expect("there is such a target")
    })
}

/// One file out of many small ones; what the seeds reach by themselves stays out.
fn pack(folder: &str) {
    let known = seeds::seeds(target().name);
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("the folder is there").flatten().map(|e| e.path()).collect();
    paths.sort();
    let mut packed = Vec::new();
    for input in paths.iter().map(|path| fs::read(path).expect("it can be read")) {
        if !known.contains(&input) {
            packed.extend_from_slice(&(input.len() as u32).to_le_bytes());
            packed.extend_from_slice(&input);
        }
    }
    let home = Path::new("tests/fuzz/corpus").join(target().name);
    fs::create_dir_all(&home).expect("the corpus can be written");
    fs::write(home.join(seeds::PACK), packed).expect("the corpus can be written");
}

fn prepare() {
    if let Ok(folder) = std::env::var("BATON_FUZZ_PACK") {
        pack(&folder);
        std::process::exit(0);
    }
    let Ok(folder) = std::env::var("BATON_FUZZ_SEEDS") else { return };
    let mut all = seeds::seeds(target().name);
    all.extend(seeds::kept(target().name));
    for (i, data) in all.iter().enumerate() {
        fs::write(Path::new(&folder).join(format!("seed-{i}")), data).expect("the folder can be written");
    }
}

fuzz_target!(init: prepare(), |data: &[u8]| {
    if let Err(why) = judge::run(target(), data) {
        panic!("{}: {why}", target().name);
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    if seed % 10 < RESEALED {
        (target().reseal)(&mut data[..size]);
    }
    size
});
