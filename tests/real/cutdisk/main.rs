//! A disk whose power can be cut: `cutdisk FOLDER` mounts a file system there and obeys lines on its standard input. It
//! keeps everything in memory. What was written and not flushed is lost, kept or torn, sector by sector, when the power
//! goes. The end of the input unmounts it.
//!
//! ```text
//! cut NAME,NAME lose|keep|tear SEED   the power of these disks goes, at the same moment; the answer counts blocks
//! stall NAME,NAME                     flushes take for ever from now on, until the power goes or
//! go NAME,NAME                        they end
//! fail NAME,NAME                      flushes fail from now on, until the power goes
//! on NAME,NAME                        power again; handles from before stay dead
//! lie NAME | honest NAME              flushes are answered and not done
//! sync NAME                           everything is durable
//! stat NAME                           writes, flushes, files with unflushed bytes
//! ```

mod file;
mod machine;
mod mount;

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use baton::base::Prng;
use fuser::{Config, MountOption, Session};

use file::Fate;
use machine::{Machine, Refusal};
use mount::Mount;

/// The longest time that a flush takes: long enough that a power cut often falls into one.
const FLUSH: Duration = Duration::from_micros(600);
/// Requests that are served at the same time: enough for every piece of a write that the nodes keep in flight on stalled
/// disks, so that one disk that hangs never holds up another.
const THREADS: usize = 160;

fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("cutdisk FOLDER");
        return ExitCode::from(2);
    };
    let machine = Arc::new(Mutex::new(Machine::default()));
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("cutdisk".into()), MountOption::RW];
    config.n_threads = Some(THREADS);
    let session = Session::new(Mount::new(machine.clone(), FLUSH), &folder, &config);
    let session = match session.and_then(Session::spawn) {
        Ok(session) => session,
        Err(error) => {
            eprintln!("cannot mount {folder}: {error}");
            return ExitCode::FAILURE;
        }
    };
    say("ready");
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let answer = obey(&mut machine.lock().unwrap_or_else(PoisonError::into_inner), &line);
        say(&answer.unwrap_or_else(|refusal| format!("error {refusal:?} in {line}")));
    }
    match session.umount_and_join() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot unmount {folder}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    println!("{text}");
    let _ = std::io::stdout().flush();
}

fn obey(machine: &mut Machine, line: &str) -> Result<String, Refusal> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let names: Vec<&str> = words.get(1).map_or(Vec::new(), |names| names.split(',').collect());
    match words[..] {
        ["cut", _, fate, seed] => {
            let fate = match fate {
                "lose" => Fate::Lose,
                "keep" => Fate::Keep,
                _ => Fate::Tear,
            };
            let damage = machine.cut(&names, fate, &mut Prng::new(seed.parse().unwrap_or(0)))?;
            Ok(format!("cut {} {} {} {}", damage.lost, damage.kept, damage.torn, damage.undone))
        }
        ["stall", _] => names.iter().try_for_each(|name| machine.stall(name)).map(|()| "stalled".into()),
        ["go", _] => names.iter().try_for_each(|name| machine.answer_again(name)).map(|()| "goes".into()),
        ["fail", _] => names.iter().try_for_each(|name| machine.fail(name)).map(|()| "fails".into()),
        ["on", _] => names.iter().try_for_each(|name| machine.power_on(name)).map(|()| "on".into()),
        ["lie", _] => names.iter().try_for_each(|name| machine.set_lies(name, true)).map(|()| "lies".into()),
        ["honest", _] => {
            names.iter().try_for_each(|name| machine.set_lies(name, false)).map(|()| "honest".into())
        }
        ["sync", _] => names.iter().try_for_each(|name| machine.sync(name)).map(|()| "synced".into()),
        ["stat", name] => {
            machine.statistics(name).map(|(writes, flushes, open)| format!("stat {writes} {flushes} {open}"))
        }
        _ => Ok(format!("error unknown {line}")),
    }
}
