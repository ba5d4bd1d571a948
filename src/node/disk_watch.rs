//! The seam with a watch over the disk: since when is the oldest write or flush under way that commits wait for?
//!
//! Everything else passes through. Only the log, its next segments, the control file and the log's mark are watched: a
//! page that is written slowly delays nobody's commit.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::token::{Purpose, purpose};
use crate::base::{AlignedBuf, Mono, SharedSlice, WallMs};
use crate::io::{Event, FileId, ListenerId, Op, Open, Seam, Token, Waker};

pub struct DiskWatch<S> {
    seam: S,
    /// Operations under way: how many under this token, and since when the first of them.
    under_way: BTreeMap<Token, (u32, Mono)>,
}

fn watched(token: Token) -> bool {
    matches!(purpose(token), Purpose::Wal(_) | Purpose::Segment(_) | Purpose::Control | Purpose::Mark)
}

impl<S: Seam> DiskWatch<S> {
    pub fn new(seam: S) -> DiskWatch<S> {
        DiskWatch { seam, under_way: BTreeMap::new() }
    }

    pub fn inner(&mut self) -> &mut S {
        &mut self.seam
    }

    /// When the oldest operation that is still under way was submitted.
    pub fn oldest(&self) -> Option<Mono> {
        self.under_way.values().map(|(_, since)| *since).min()
    }

    fn ended(&mut self, token: Token) {
        if let Some((count, _)) = self.under_way.get_mut(&token) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&token);
            }
        }
    }
}

impl<S: Seam> Seam for DiskWatch<S> {
    fn submit(&mut self, op: Op) {
        if let Op::Write { token, .. } | Op::Flush { token, .. } | Op::SyncFolder { token, .. } = &op
            && watched(*token)
        {
            let now = self.seam.now();
            self.under_way.entry(*token).or_insert((0, now)).0 += 1;
        }
        self.seam.submit(op);
    }

    fn reap(&mut self, deadline: Option<Mono>, out: &mut Vec<Event>) {
        let before = out.len();
        self.seam.reap(deadline, out);
        for event in &out[before..] {
            if let Event::Written { token, .. } | Event::Flushed { token, .. } = event {
                self.ended(*token);
            }
        }
    }

    fn now(&self) -> Mono {
        self.seam.now()
    }
    fn wall(&self) -> WallMs {
        self.seam.wall()
    }
    fn random(&mut self) -> u64 {
        self.seam.random()
    }
    fn random_u128(&mut self) -> u128 {
        self.seam.random_u128()
    }
    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        self.seam.open(path, how)
    }
    fn close_file(&mut self, file: FileId) {
        self.seam.close_file(file);
    }
    fn file_len(&mut self, file: FileId) -> io::Result<u64> {
        self.seam.file_len(file)
    }
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.seam.rename(from, to)
    }
    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.seam.remove(path)
    }
    fn create_folder(&mut self, path: &Path) -> io::Result<()> {
        self.seam.create_folder(path)
    }
    fn list(&mut self, path: &Path) -> io::Result<Vec<String>> {
        self.seam.list(path)
    }
    fn sync_folder(&mut self, path: &Path) -> io::Result<()> {
        self.seam.sync_folder(path)
    }
    fn free_bytes(&mut self, path: &Path) -> io::Result<u64> {
        self.seam.free_bytes(path)
    }
    fn lock_folder(&mut self, path: &Path) -> io::Result<()> {
        self.seam.lock_folder(path)
    }
    fn listen(&mut self, addr: SocketAddr) -> io::Result<(ListenerId, SocketAddr)> {
        self.seam.listen(addr)
    }
    fn spread(&mut self, listener: ListenerId) {
        self.seam.spread(listener);
    }
    fn read_now(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<AlignedBuf> {
        self.seam.read_now(file, offset, len)
    }
    fn write_now(&mut self, file: FileId, offset: u64, data: &SharedSlice) -> io::Result<()> {
        self.seam.write_now(file, offset, data)
    }
    fn flush_now(&mut self, file: FileId) -> io::Result<()> {
        self.seam.flush_now(file)
    }
    fn recycle(&mut self, buf: AlignedBuf) {
        self.seam.recycle(buf);
    }
    fn waker(&self) -> Arc<dyn Waker> {
        self.seam.waker()
    }
    fn buggify(&mut self, point: &'static str) -> bool {
        self.seam.buggify(point)
    }
}
