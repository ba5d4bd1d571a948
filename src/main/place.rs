//! From -D, --config and BATON_DATA to a data folder and its checked configuration.

use std::fs;
use std::path::{Path, PathBuf};

use baton::config::{self, Config, Mistakes, StoreChoice};

use super::Fail;
use super::args::Common;

pub const CONFIG_FILE: &str = "baton.toml";

/// The configuration file that the arguments name.
pub fn config_path(common: &Common) -> Result<PathBuf, Fail> {
    match (&common.config, &common.data) {
        (Some(file), _) => Ok(file.clone()),
        (None, Some(data)) => Ok(data.join(CONFIG_FILE)),
        (None, None) => {
            Err(Fail::usage("which node?", "name its data folder with -D DIR, or set BATON_DATA"))
        }
    }
}

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<Config, Fail> {
    let text = fs::read_to_string(path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            // An empty folder may be the place where a disk should be.
            let message =
                format!("there is no node here, {} is missing: is the disk mounted?", path.display());
            return Fail::usage(message, "a new node is made by `baton init`, and by nothing else");
        }
        let hint = "check the path and the rights of the file";
        Fail::usage(format!("cannot read {}: {error}", path.display()), hint)
    })?;
    parse(&text, path)
}

/// Checks a text that stands (or will stand) in `path`.
pub fn parse(text: &str, path: &Path) -> Result<Config, Fail> {
    let folder = absolute(path.parent().unwrap_or(Path::new("")))?;
    config::parse(text, &folder).map_err(|mistakes| wrong(path, &mistakes))
}

fn wrong(path: &Path, mistakes: &Mistakes) -> Fail {
    let lines: Vec<String> = mistakes
        .0
        .iter()
        .map(|mistake| match mistake.line {
            0 => format!("{}: {mistake}", path.display()),
            line => {
                let text = mistake.to_string();
                let text = text.split_once(": ").map_or(text.as_str(), |(_, rest)| rest);
                format!("{}:{line}: {text}", path.display())
            }
        })
        .collect();
    Fail::usage(lines.join("\n"), "`baton check-config` checks a file without starting anything")
}

fn absolute(folder: &Path) -> Result<PathBuf, Fail> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    std::path::absolute(folder).map_err(|error| Fail::usage(format!("{}: {error}", folder.display()), ""))
}

/// The configuration of the node that the arguments name.
pub fn node(common: &Common) -> Result<Config, Fail> {
    load(&config_path(common)?)
}

/// The folder in which the control store's folder should be, if it is not there.
pub fn missing_store_parent(config: &Config) -> Option<&Path> {
    match &config.store {
        StoreChoice::Dir(folder) => folder.parent().filter(|parent| !parent.is_dir()),
        StoreChoice::None => None,
    }
}
