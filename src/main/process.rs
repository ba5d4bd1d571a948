//! Node processes: found, watched, started in the background, killed. A process is held by its pidfd from the moment
//! it is recognised, so that a reused pid is never hit.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use baton::node::control::PID_FILE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Fail;
use super::args::Run;

pub const LOG_FOLDER: &str = "log";
pub const LOG_FILE: &str = "baton.log";
const LOCK_FILE: &str = "LOCK";

/// A node process that was recognised as ours.
#[derive(Debug)]
pub struct Running {
    pub pid: u32,
    handle: OwnedFd,
}

impl Running {
    /// The process named in the folder's pid file, if it lives and runs this folder's node.
    pub fn find(data: &Path) -> Option<Running> {
        let text = fs::read_to_string(data.join(PID_FILE)).ok()?;
        Running::recognise(text.trim().parse().ok()?, data)
    }

    /// The pid may long belong to somebody else, even to another node: only the process that has this folder's lock
    /// file open is the one.
    fn recognise(pid: u32, data: &Path) -> Option<Running> {
        let handle = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()?;
        // The order matters: with the handle open, what /proc shows is the process that the handle holds, or none.
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let runs_a_node = command.split(|byte| *byte == 0).skip(1).any(|word| word == b"run");
        let lock = fs::canonicalize(data).ok()?.join(LOCK_FILE);
        let mut open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let has_lock = open.any(|entry| fs::read_link(entry.path()).is_ok_and(|file| file == lock));
        let running = Running { pid, handle };
        (runs_a_node && has_lock && !running.has_exited()).then_some(running)
    }

    pub fn has_exited(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits until the process is gone; false when time ran out.
    pub fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

pub fn log_path(data: &Path) -> PathBuf {
    data.join(LOG_FOLDER).join(LOG_FILE)
}

/// Starts `baton run` on its own, with its output in the node's log file.
pub fn spawn(config: &Path, data: &Path, run: &Run) -> Result<Child, Fail> {
    let failed = |what: &str, error: io::Error| {
        Fail::failed(format!("{what}: {error}"), "check the rights of the folder")
    };
    let folder = data.join(LOG_FOLDER);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|error| failed(&format!("cannot create {}", folder.display()), error))?;
    let path = log_path(data);
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| failed(&format!("cannot open {}", path.display()), error))?;
    let also = log.try_clone().map_err(|error| failed("cannot open the log twice", error))?;
    let exe = std::env::current_exe().map_err(|error| failed("cannot find this program", error))?;
    let mut command = Command::new(exe);
    command.arg("run").arg("--background").arg("--config").arg(config);
    if let Some(role) = run.role {
        command.args(["-M", role.word()]);
    }
    if run.alone {
        command.arg("--alone");
    }
    command
        .env_remove("BATON_DATA")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(also)
        // A group of its own: the terminal's Ctrl-C does not reach it.
        .process_group(0)
        .spawn()
        .map_err(|error| failed("cannot start the node", error))
}

/// Where the log ends now: what a new process writes stands behind it.
pub fn log_mark(data: &Path) -> u64 {
    fs::metadata(log_path(data)).map_or(0, |meta| meta.len())
}

/// The last lines of the log that were written after `mark`.
pub fn log_tail(data: &Path, mark: u64, lines: usize) -> String {
    const WINDOW: u64 = 64 << 10;
    let read = || -> io::Result<String> {
        let mut file = File::open(log_path(data))?;
        let len = file.metadata()?.len();
        let from = if mark <= len { mark } else { 0 };
        file.seek(SeekFrom::Start(from.max(len.saturating_sub(WINDOW))))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_of_a_stranger_or_of_nobody_finds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Running::find(folder.path()).is_none());
        // This very test process lives and has the lock file open, but it runs no node.
        let _lock = File::create(folder.path().join(LOCK_FILE)).unwrap();
        for text in [std::process::id().to_string(), "0".into(), "-5".into(), "x".into(), "4194303".into()] {
            fs::write(folder.path().join(PID_FILE), text).unwrap();
            assert!(Running::find(folder.path()).is_none());
        }
    }

    #[test]
    fn the_tail_of_the_log_begins_at_the_mark() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(LOG_FOLDER)).unwrap();
        fs::write(log_path(folder.path()), "old\n").unwrap();
        let mark = log_mark(folder.path());
        fs::write(log_path(folder.path()), "old\na\nb\nc\n").unwrap();
        assert_eq!(log_tail(folder.path(), mark, 2), "b\nc");
        assert_eq!(log_tail(folder.path(), mark, 9), "a\nb\nc");
    }
}
