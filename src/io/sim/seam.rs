//! A process's view of the world.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::core::Core;
use crate::base::{AlignedBuf, Mono, SharedSlice, WallMs};
use crate::io::{Event, FileId, ListenerId, Op, Open, Seam, Waker};

/// One process's seam. When the process was killed, or another was started on its host, every call is without effect.
/// Dropping the seam of a live process ends that process as kill -9 would.
pub struct SimSeam {
    core: Rc<RefCell<Core>>,
    host: usize,
    process: u64,
}

impl Seam for SimSeam {
    fn now(&self) -> Mono {
        unimplemented!()
    }
    fn wall(&self) -> WallMs {
        unimplemented!()
    }
    fn random(&mut self) -> u64 {
        unimplemented!()
    }
    fn open(&mut self, _path: &Path, _how: Open) -> io::Result<FileId> {
        unimplemented!()
    }
    fn close_file(&mut self, _file: FileId) {
        unimplemented!()
    }
    fn file_len(&mut self, _file: FileId) -> io::Result<u64> {
        unimplemented!()
    }
    fn rename(&mut self, _from: &Path, _to: &Path) -> io::Result<()> {
        unimplemented!()
    }
    fn remove(&mut self, _path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    fn create_folder(&mut self, _path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    fn list(&mut self, _path: &Path) -> io::Result<Vec<String>> {
        unimplemented!()
    }
    fn sync_folder(&mut self, _path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    fn free_bytes(&mut self, _path: &Path) -> io::Result<u64> {
        unimplemented!()
    }
    fn lock_folder(&mut self, _path: &Path) -> io::Result<()> {
        unimplemented!()
    }
    fn listen(&mut self, _addr: SocketAddr) -> io::Result<(ListenerId, SocketAddr)> {
        unimplemented!()
    }
    fn submit(&mut self, _op: Op) {
        unimplemented!()
    }
    fn reap(&mut self, _deadline: Option<Mono>, _out: &mut Vec<Event>) {
        unimplemented!()
    }
    fn read_now(&mut self, _file: FileId, _offset: u64, _len: usize) -> io::Result<AlignedBuf> {
        unimplemented!()
    }
    fn write_now(&mut self, _file: FileId, _offset: u64, _data: &SharedSlice) -> io::Result<()> {
        unimplemented!()
    }
    fn flush_now(&mut self, _file: FileId) -> io::Result<()> {
        unimplemented!()
    }
    fn waker(&self) -> Arc<dyn Waker> {
        unimplemented!()
    }
}
