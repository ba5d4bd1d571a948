//! The data folder: which file is where, and the small durable images read at start and rewritten rarely.

use std::io;
use std::path::{Path, PathBuf};

use crate::base::SharedSlice;
use crate::base::limits::BLOCK_BYTES;
use crate::io::{FileId, Open, Seam};

/// Paths inside one data folder.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    pub fn new(root: &Path) -> Folder {
        Folder { root: root.to_path_buf() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn wal(&self) -> PathBuf {
        self.root.join("wal")
    }
    pub fn wal_file(&self, name: &str) -> PathBuf {
        self.root.join("wal").join(name)
    }
    /// The two copies of the control file, written one after the other.
    pub fn control(&self) -> [PathBuf; 2] {
        [self.root.join("control.a"), self.root.join("control.b")]
    }
    /// How far the log was durable here, as of a moment ago.
    pub fn mark(&self) -> PathBuf {
        self.root.join("flushed")
    }
    pub fn superblock(&self) -> PathBuf {
        self.root.join("superblock")
    }
    pub fn pages(&self) -> PathBuf {
        self.root.join("pages")
    }
}

/// Reads a whole small file. `None` when it does not exist.
pub fn read_small<S: Seam>(seam: &mut S, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match seam.open(path, Open::ReadOnly) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let result = seam.file_len(file).and_then(|len| {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "file is larger than it can be"));
        }
        seam.read_now(file, 0, len.next_multiple_of(BLOCK_BYTES)).map(|buf| buf.to_vec())
    });
    seam.close_file(file);
    result.map(Some)
}

/// Creates a file with `bytes` (padded to whole blocks) and makes it durable, folder entry included.
pub fn create_durable<S: Seam>(seam: &mut S, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = seam.open(path, Open::Create)?;
    let result = write_durable(seam, file, 0, bytes);
    seam.close_file(file);
    result?;
    seam.sync_folder(path.parent().expect("a data file lies in a folder"))
}

/// Writes `bytes` (padded to whole blocks) at `offset` and flushes.
pub fn write_durable<S: Seam>(seam: &mut S, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES), 0);
    seam.write_now(file, offset, &SharedSlice::copy_of(&padded))?;
    seam.flush_now(file)
}

/// Creates a file of `len` zero bytes, really written, and makes it durable: commits into it force no metadata.
pub fn create_zeroed<S: Seam>(seam: &mut S, path: &Path, len: u64) -> io::Result<()> {
    const PIECE: usize = 1 << 20;
    let file = seam.open(path, Open::Create)?;
    let zeroes = crate::base::AlignedBuf::zeroed(PIECE.min(len as usize)).share();
    let mut at = 0u64;
    let mut result = Ok(());
    while at < len && result.is_ok() {
        let piece = (len - at).min(PIECE as u64);
        result = seam.write_now(file, at, &zeroes.slice(0..piece as usize));
        at += piece;
    }
    let result = result.and_then(|()| seam.flush_now(file));
    seam.close_file(file);
    result?;
    seam.sync_folder(path.parent().expect("a data file lies in a folder"))
}
