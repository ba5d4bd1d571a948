//! The kernel ring backend.

mod calibrate;
mod config;
mod pool;

pub use calibrate::{Calibration, calibrate};
pub use config::{UringConfig, ZERO_COPY_BYTES_MIN, ZeroCopy};
pub use pool::LentBuffer;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::{Event, FileId, ListenerId, Op, Open, Seam, Waker};
use crate::base::{AlignedBuf, Mono, SharedSlice, WallMs};

/// One event loop's ring with its files, sockets and receive buffers. Stays on the thread that made it.
pub struct UringSeam {
    config: UringConfig,
    _single_thread: std::marker::PhantomData<*const ()>,
}

impl UringSeam {
    /// Sets up the ring. The error is one sentence that names the probable cause and what to change.
    pub fn new(config: UringConfig) -> io::Result<UringSeam> {
        Ok(UringSeam { config, _single_thread: std::marker::PhantomData })
    }

    /// Whether `file` is read and written past the page cache. False on memory file systems (tests, demos), where
    /// "durable" means nothing.
    pub fn is_direct(&self, _file: FileId) -> bool {
        panic!("not built yet")
    }

    /// What the machine did not offer, one sentence each, for the start-up log.
    pub fn warnings(&self) -> &[String] {
        &[]
    }

    /// Which kernel features are in use, in one line.
    pub fn describe(&self) -> String {
        String::new()
    }

    /// Chooses between ring flushes and the helper thread; flushes already submitted are not affected.
    pub fn set_flush_thread(&mut self, on: bool) {
        self.config.flush_thread = on;
    }
}

impl Seam for UringSeam {
    fn now(&self) -> Mono {
        panic!("not built yet")
    }
    fn wall(&self) -> WallMs {
        panic!("not built yet")
    }
    fn random(&mut self) -> u64 {
        panic!("not built yet")
    }
    fn open(&mut self, _path: &Path, _how: Open) -> io::Result<FileId> {
        panic!("not built yet")
    }
    fn close_file(&mut self, _file: FileId) {}
    fn file_len(&mut self, _file: FileId) -> io::Result<u64> {
        panic!("not built yet")
    }
    fn rename(&mut self, _from: &Path, _to: &Path) -> io::Result<()> {
        panic!("not built yet")
    }
    fn remove(&mut self, _path: &Path) -> io::Result<()> {
        panic!("not built yet")
    }
    fn create_folder(&mut self, _path: &Path) -> io::Result<()> {
        panic!("not built yet")
    }
    fn list(&mut self, _path: &Path) -> io::Result<Vec<String>> {
        panic!("not built yet")
    }
    fn sync_folder(&mut self, _path: &Path) -> io::Result<()> {
        panic!("not built yet")
    }
    fn free_bytes(&mut self, _path: &Path) -> io::Result<u64> {
        panic!("not built yet")
    }
    fn lock_folder(&mut self, _path: &Path) -> io::Result<()> {
        panic!("not built yet")
    }
    fn listen(&mut self, _addr: SocketAddr) -> io::Result<(ListenerId, SocketAddr)> {
        panic!("not built yet")
    }
    fn submit(&mut self, _op: Op) {}
    fn reap(&mut self, _deadline: Option<Mono>, _out: &mut Vec<Event>) {}
    fn read_now(&mut self, _file: FileId, _offset: u64, _len: usize) -> io::Result<AlignedBuf> {
        panic!("not built yet")
    }
    fn write_now(&mut self, _file: FileId, _offset: u64, _data: &SharedSlice) -> io::Result<()> {
        panic!("not built yet")
    }
    fn flush_now(&mut self, _file: FileId) -> io::Result<()> {
        panic!("not built yet")
    }
    fn waker(&self) -> Arc<dyn Waker> {
        panic!("not built yet")
    }
}
