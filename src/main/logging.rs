//! The node's own log: tracing events, human or JSON, to standard error or to a rotating file.
//!
//! A thread of its own writes, behind a bounded queue, because the log file lies on the data disk: a hung disk must stop
//! neither the loop nor the control thread. When the queue is full lines are dropped and their number is written later.
//! The rotation is by size (`tracing-appender` rotates by time only, and a node that logs a lot must not fill the disk).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use baton::base::limits::{LOG_FILE_BYTES_MAX, LOG_FILES_KEPT, LOG_QUEUE_MAX};
use baton::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How long the end of the process waits for the last lines.
const FAREWELL: Duration = Duration::from_secs(1);

enum Line {
    Text(Vec<u8>),
    End,
}

/// Where lines go.
enum Target {
    StandardError,
    File(Rotating),
}

/// Writes the last lines when it is dropped.
pub struct Guard {
    lines: SyncSender<Line>,
    done: Receiver<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.lines.try_send(Line::End).is_ok() {
            let _ = self.done.recv_timeout(FAREWELL);
        }
    }
}

#[derive(Clone)]
struct Sender {
    lines: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Line::Text(bytes.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sender {
    type Writer = Sender;
    fn make_writer(&'a self) -> Sender {
        self.clone()
    }
}

/// Sets the log up for this process. `BATON_LOG` overrides the level, in the syntax of `RUST_LOG`.
pub fn begin(config: &Config, file: Option<PathBuf>) -> io::Result<Guard> {
    let target = match file {
        Some(path) => Target::File(Rotating::open(path, LOG_FILE_BYTES_MAX)?),
        None => Target::StandardError,
    };
    let (sender, guard) = start(target);
    let filter =
        EnvFilter::try_from_env("BATON_LOG").unwrap_or_else(|_| EnvFilter::new(config.log_level.name()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(sender).with_ansi(false);
    match config.log_format {
        LogFormat::Human => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(guard)
}

fn start(target: Target) -> (Sender, Guard) {
    let (lines, queue) = mpsc::sync_channel(LOG_QUEUE_MAX);
    let (tell_done, done) = mpsc::channel();
    let dropped = Arc::new(AtomicU64::new(0));
    let sender = Sender { lines: lines.clone(), dropped: dropped.clone() };
    std::thread::spawn(move || {
        write_lines(&queue, target, &dropped);
        let _ = tell_done.send(());
    });
    (sender, Guard { lines, done })
}

fn write_lines(queue: &Receiver<Line>, mut target: Target, dropped: &AtomicU64) {
    while let Ok(Line::Text(text)) = queue.recv() {
        target.write(&text);
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            target.write(format!("({lost} log lines were dropped here)\n").as_bytes());
        }
    }
}

impl Target {
    /// A log that cannot be written is no reason to stop a node.
    fn write(&mut self, text: &[u8]) {
        let _ = match self {
            Target::StandardError => io::stderr().write_all(text),
            Target::File(file) => file.write(text),
        };
    }
}

/// An append-only file that moves aside when it has grown: `baton.log`, `baton.log.1`, ...
struct Rotating {
    path: PathBuf,
    file: File,
    len: u64,
    max: u64,
}

impl Rotating {
    fn open(path: PathBuf, max: u64) -> io::Result<Rotating> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = append(&path)?;
        let len = file.metadata()?.len();
        Ok(Rotating { path, file, len, max })
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.len > 0 && self.len + text.len() as u64 > self.max {
            self.rotate()?;
        }
        self.file.write_all(text)?;
        self.len += text.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: usize| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..LOG_FILES_KEPT).rev() {
            let _ = fs::rename(numbered(n), numbered(n + 1));
        }
        fs::rename(&self.path, numbered(1))?;
        self.file = append(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_moves_aside_when_it_has_grown_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log/baton.log");
        let mut log = Rotating::open(path.clone(), 10).unwrap();
        for number in 0..40 {
            log.write(format!("line {number:02}\n").as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "line 39\n");
        assert_eq!(fs::read_to_string(folder.path().join("log/baton.log.1")).unwrap(), "line 38\n");
        assert_eq!(fs::read_dir(folder.path().join("log")).unwrap().count(), LOG_FILES_KEPT + 1);
        assert_eq!(Rotating::open(path, 10).unwrap().len, 8, "an existing file is continued");
    }

    #[test]
    fn the_guard_waits_for_the_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("baton.log");
        let (mut sender, guard) = start(Target::File(Rotating::open(path.clone(), 1 << 20).unwrap()));
        for number in 0..100 {
            writeln!(sender, "{number}").unwrap();
        }
        drop(guard);
        assert!(fs::read_to_string(path).unwrap().ends_with("99\n"));
    }

    #[test]
    fn a_hung_disk_drops_lines_instead_of_waiting() {
        let (lines, queue) = mpsc::sync_channel(2);
        let mut sender = Sender { lines, dropped: Arc::default() };
        for _ in 0..5 {
            sender.write_all(b"x\n").unwrap();
        }
        assert_eq!(sender.dropped.load(Ordering::Relaxed), 3);
        drop(queue);
    }
}
