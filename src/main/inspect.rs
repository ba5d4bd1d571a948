//! `baton inspect`: a stopped node's files.

use baton::admin::Exit;
use baton::node::{self, Inspect};

use super::args::{Common, What};
use super::{Fail, Outcome, place, process, render};

pub fn inspect(common: &Common, what: What) -> Outcome {
    let data = match place::node(common) {
        Ok(config) => config.data,
        // Files can be read although the configuration is lost or broken.
        Err(fail) => common.data.clone().ok_or(fail)?,
    };
    // Tails are written once and never change.
    let changing = !matches!(what, What::Tail);
    if let Some(running) = process::Running::find(&data).filter(|_| changing) {
        let message = format!("the node runs (pid {}): its files change while they are read", running.pid);
        return Err(Fail::new(
            Exit::Refused,
            "refused",
            message,
            "stop it first; a running node answers `baton query`",
        ));
    }
    let what = match what {
        What::Wal => Inspect::Wal,
        What::Control => Inspect::Control,
        What::Superblock => Inspect::Superblock,
        What::Tail => Inspect::Tail,
    };
    let shown = node::inspect(&data, what).map_err(|error| Fail::failed(error.message, error.hint))?;
    render::print(common, &shown, &render::tree(&shown));
    Ok(Exit::Ok)
}
