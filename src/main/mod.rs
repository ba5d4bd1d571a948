//! The command line: reads arguments and configuration, asks a node over its admin socket, prints, exits.
//!
//! It holds no rule of the cluster: what may be done is decided by the node that is asked. Every verb ends in an
//! [`Exit`] code, and every error says what to do next. With `--json` exactly one JSON value goes to standard output.

mod args;
mod ask;
mod bench;
mod demo;
mod demo_cuts;
mod drill;
mod drill_kill;
mod inspect;
mod lifecycle;
mod logging;
mod operate;
mod place;
mod ports;
mod process;
mod render;
mod sandbox;
mod show;
mod whole;

use std::fmt;
use std::process::ExitCode;

use baton::admin::Exit;
use clap::Parser;

use args::{Args, ClusterVerb, SandboxVerb, Verb, WalVerb};

/// Why a verb did not do what was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fail {
    pub exit: Exit,
    /// Stable word for programs.
    pub code: String,
    pub message: String,
    /// What to do next; may be empty.
    pub hint: String,
}

impl Fail {
    pub fn new(exit: Exit, code: &str, message: impl Into<String>, hint: impl Into<String>) -> Fail {
        Fail { exit, code: code.into(), message: message.into(), hint: hint.into() }
    }

    pub fn failed(message: impl Into<String>, hint: impl Into<String>) -> Fail {
        Fail::new(Exit::Failed, "failed", message, hint)
    }

    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Fail {
        Fail::new(Exit::Usage, "usage", message, hint)
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, "\n  hint: {}", self.hint)?;
        }
        Ok(())
    }
}

/// What a verb returns: its exit code, everything to print having been printed.
pub type Outcome = Result<Exit, Fail>;

pub fn main() -> ExitCode {
    let args = Args::try_parse().unwrap_or_else(|error| no_verb(&error));
    let json = args.common.json;
    match dispatch(args) {
        Ok(code) => ExitCode::from(code),
        Err(fail) => {
            if json {
                let error =
                    serde_json::json!({"code": fail.code, "message": fail.message, "hint": fail.hint});
                render::to_stdout(&format!("{}\n", serde_json::json!({"ok": false, "error": error})));
            } else {
                eprintln!("baton: {fail}");
            }
            ExitCode::from(fail.exit.code())
        }
    }
}

/// Prints the help that was asked for, or what is wrong with the command line; with `--json` the latter as one value too.
fn no_verb(error: &clap::Error) -> ! {
    if error.use_stderr() && std::env::args_os().any(|word| word == "--json") {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let error = serde_json::json!({"code": "usage", "message": first, "hint": "ask for --help"});
        render::to_stdout(&format!("{}\n", serde_json::json!({"ok": false, "error": error})));
        std::process::exit(i32::from(Exit::Usage.code()));
    }
    error.exit()
}

fn dispatch(args: Args) -> Result<u8, Fail> {
    let common = &args.common;
    if let Verb::Run(verb) = &args.verb {
        // The only verb whose exit code is the node's own.
        return lifecycle::run(common, verb);
    }
    verb(common, args.verb).map(Exit::code)
}

fn verb(common: &args::Common, verb: Verb) -> Outcome {
    match verb {
        Verb::Init(verb) => lifecycle::init(common, &verb),
        Verb::Run(_) => unreachable!("dispatch takes it"),
        Verb::Start(verb) => lifecycle::start(common, &verb),
        Verb::Stop(verb) => lifecycle::stop(common, &verb),
        Verb::Restart(verb) => lifecycle::restart(common, &verb),
        Verb::Status => show::status(common),
        Verb::Query => show::query(common),
        Verb::Cluster { verb } => match verb {
            ClusterVerb::Status { detail } => show::cluster_status(common, detail),
            ClusterVerb::History { dir, limit } => operate::history(common, dir.as_deref(), limit),
            ClusterVerb::FinalizeUpgrade => operate::finalize_upgrade(common),
            ClusterVerb::Stop(which) => whole::stop(common, &which),
            ClusterVerb::Start(which) => whole::start(common, &which),
        },
        Verb::Switchover(verb) => operate::switchover(common, &verb),
        Verb::Policy { verb } => operate::policy(common, verb),
        Verb::Reload => operate::reload(common),
        Verb::Drill(verb) => drill::drill(common, &verb),
        Verb::Failover(verb) => show::failover(common, &verb),
        Verb::Promote { timeout, op } => show::promote(common, timeout, op),
        Verb::Refreshconf => show::refreshconf(common),
        Verb::CheckConfig { keys, file } => show::check_config(common, keys, file),
        Verb::Wal { verb: WalVerb::Keepers } => show::wal_keepers(common),
        Verb::Inspect { what } => inspect::inspect(common, what),
        Verb::Bench(verb) => bench::bench(common, &verb),
        Verb::Sandbox { verb } => match verb {
            SandboxVerb::Up(verb) => sandbox::up(common, &verb),
            SandboxVerb::Status { dir, detail } => sandbox::status(common, &dir, detail),
            SandboxVerb::Kill { dir, node } => sandbox::kill(common, &dir, node),
            SandboxVerb::Start { dir, node, role } => sandbox::start(common, &dir, node, role),
            SandboxVerb::Down { dir, purge } => sandbox::down(common, &dir, purge),
        },
        Verb::Demo(verb) => demo::demo(common, &verb),
    }
}
