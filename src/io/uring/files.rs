//! Files: opening, reading, writing and flushing through the ring.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::UringSeam;
use super::flight::{Flight, Reading, Writing};
use super::sys;
use super::wake::{Outcome, Request};
use crate::base::limits::BLOCK_BYTES;
use crate::base::{AlignedBuf, SharedSlice};
use crate::io::{Event, FileId, Open, Token};

/// Buffers of long reads kept for the next ones, and the lengths worth keeping.
const SPARE_READS: usize = 4;
const SPARE_READ_MIN: usize = 1 << 20;
const SPARE_READ_MAX: usize = 4 << 20;

/// An open file. Its descriptor outlives every operation that names it, submitted or only queued.
struct OpenFile {
    handle: Arc<File>,
    direct: bool,
    in_flight: u32,
    closing: bool,
}

/// The open files. An id is a place and the number of its use, so an id that was closed never names its successor.
#[derive(Default)]
pub(super) struct Files {
    places: Vec<(u16, Option<OpenFile>)>,
    free: Vec<u16>,
}

impl Files {
    fn insert(&mut self, file: OpenFile) -> FileId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u16::try_from(self.places.len() - 1).expect("a node opens fewer than 65536 files at once")
        });
        let place = &mut self.places[usize::from(index)];
        place.1 = Some(file);
        FileId((u32::from(place.0) << 16) | u32::from(index))
    }

    fn get(&mut self, id: u32) -> &mut OpenFile {
        let (uses, place) = &mut self.places[(id & 0xffff) as usize];
        assert_eq!(u32::from(*uses), id >> 16, "file {id} was closed");
        place.as_mut().expect("the file is open")
    }

    fn peek(&self, id: u32) -> &OpenFile {
        let (uses, place) = &self.places[(id & 0xffff) as usize];
        assert_eq!(u32::from(*uses), id >> 16, "file {id} was closed");
        place.as_ref().expect("the file is open")
    }

    /// Closes the file now if nothing is in flight, else with its last completion.
    fn close(&mut self, id: u32) {
        let file = self.get(id);
        file.closing = true;
        if file.in_flight == 0 {
            let index = id as u16;
            let place = &mut self.places[usize::from(index)];
            place.0 = place.0.wrapping_add(1);
            place.1 = None;
            self.free.push(index);
        }
    }

    fn started(&mut self, id: u32) -> &OpenFile {
        let file = self.get(id);
        assert!(!file.closing, "file {id} was closed");
        file.in_flight += 1;
        file
    }

    fn ended(&mut self, id: u32) {
        let file = self.get(id);
        file.in_flight -= 1;
        if file.closing {
            self.close(id);
        }
    }
}

/// The result of one round of a read or write.
enum Round<T> {
    Again(T),
    Done(T, io::Result<()>),
}

impl UringSeam {
    pub(super) fn is_direct_file(&self, file: FileId) -> bool {
        self.files.peek(file.0).direct
    }

    pub(super) fn open_file(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != Open::ReadOnly).create_new(how == Open::Create).mode(0o600);
        let mut refused = false;
        let mut opened = options.clone().custom_flags(libc::O_DIRECT).open(path);
        if matches!(&opened, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            // The refusal may come after the file was created.
            refused = true;
            opened = options.create_new(false).create(how == Open::Create).open(path);
        }
        let handle = opened.map_err(|error| explained(&error, path))?;
        let in_memory = sys::in_memory(&handle)?;
        if refused && !in_memory {
            if how == Open::Create {
                let _ = std::fs::remove_file(path);
            }
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "{} lies on a file system that refuses O_DIRECT: put the data folder on ext4 or xfs",
                    path.display()
                ),
            ));
        }
        if in_memory && !self.warned_of_memory {
            self.warned_of_memory = true;
            self.warnings.push(format!("{} lies in memory: nothing there survives a reboot", path.display()));
        }
        let file = OpenFile { handle: Arc::new(handle), direct: !in_memory, in_flight: 0, closing: false };
        Ok(self.files.insert(file))
    }

    pub(super) fn close_open_file(&mut self, file: FileId) {
        self.files.close(file.0);
    }

    pub(super) fn open_file_len(&mut self, file: FileId) -> io::Result<u64> {
        Ok(self.files.get(file.0).handle.metadata()?.len())
    }

    /// A buffer for a read of `len` bytes. What stands in it is uncovered only as far as the read fills it.
    fn read_buffer(&mut self, len: usize) -> AlignedBuf {
        match self.spare_reads.iter().position(|spare| spare.capacity() >= len) {
            Some(at) if len >= SPARE_READ_MIN => {
                let mut buf = self.spare_reads.swap_remove(at);
                buf.set_len(len);
                buf
            }
            _ => AlignedBuf::zeroed(len),
        }
    }

    pub(super) fn keep_spare(&mut self, buf: AlignedBuf) {
        let fits = (SPARE_READ_MIN..=SPARE_READ_MAX).contains(&buf.capacity());
        if fits && self.spare_reads.len() < SPARE_READS {
            self.spare_reads.push(buf);
        }
    }

    pub(super) fn start_read(&mut self, token: Token, file: FileId, offset: u64, len: usize) {
        check_range(offset, len);
        let fd = self.files.started(file.0).handle.as_raw_fd();
        let buf = self.read_buffer(len);
        self.launch(Flight::Read(Reading { token, file: file.0, fd, offset, buf, filled: 0 }));
    }

    pub(super) fn start_write(
        &mut self,
        token: Token,
        file: FileId,
        offset: u64,
        data: SharedSlice,
        durable: bool,
    ) {
        check_range(offset, data.len());
        let open = self.files.started(file.0);
        check_memory(open, &data);
        let fd = open.handle.as_raw_fd();
        self.launch(Flight::Write(Writing { token, file: file.0, fd, offset, data, written: 0, durable }));
    }

    pub(super) fn start_flush(&mut self, token: Token, file: FileId) {
        let handle = self.files.started(file.0).handle.clone();
        match &self.flusher {
            Some(flusher) if self.config.flush_thread => {
                self.flushes_outside += 1;
                flusher.submit(Request { token, file: file.0, handle });
            }
            _ => {
                self.launch(Flight::Flush { token, file: file.0, fd: handle.as_raw_fd(), all: false });
            }
        }
    }

    /// The handle of the folder is closed with the completion.
    pub(super) fn start_folder_sync(&mut self, token: Token, folder: File) {
        let fd = folder.as_raw_fd();
        let open = OpenFile { handle: Arc::new(folder), direct: false, in_flight: 1, closing: true };
        let file = self.files.insert(open).0;
        self.launch(Flight::Flush { token, file, fd, all: true });
    }

    pub(super) fn read_completed(&mut self, read: Reading, result: i32, out: &mut Vec<Event>) {
        let direct = self.files.get(read.file).direct;
        let handle = &self.files.get(read.file).handle;
        match next_read(read, result, direct, || Ok(handle.metadata()?.len())) {
            Round::Again(read) => {
                self.launch(Flight::Read(read));
            }
            Round::Done(mut read, result) => {
                self.files.ended(read.file);
                read.buf.set_len(read.filled);
                out.push(Event::Read { token: read.token, result: result.map(|()| read.buf) });
            }
        }
    }

    pub(super) fn write_completed(&mut self, write: Writing, result: i32, out: &mut Vec<Event>) {
        let direct = self.files.get(write.file).direct;
        match next_write(write, result, direct) {
            Round::Again(write) => {
                self.launch(Flight::Write(write));
            }
            Round::Done(write, result) => {
                self.files.ended(write.file);
                out.push(Event::Written { token: write.token, result });
            }
        }
    }

    pub(super) fn flush_completed(&mut self, token: Token, file: u32, result: i32, out: &mut Vec<Event>) {
        self.files.ended(file);
        let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) };
        out.push(Event::Flushed { token, result });
    }

    /// Reports what the helper thread has flushed.
    pub(super) fn collect_flushes(&mut self, out: &mut Vec<Event>) {
        let Some(flusher) = &self.flusher else { return };
        for Outcome { token, file, code } in flusher.collect() {
            self.flushes_outside -= 1;
            self.flush_completed(token, file, -code, out);
        }
    }

    pub(super) fn read_at_once(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<AlignedBuf> {
        check_range(offset, len);
        let buf = self.read_buffer(len);
        let open = self.files.get(file.0);
        let mut read = Reading { token: 0, file: file.0, fd: -1, offset, buf, filled: 0 };
        loop {
            let at = offset + read.filled as u64;
            let filled = read.filled;
            let result = raw_result(open.handle.read_at(&mut read.buf[filled..], at));
            match next_read(read, result, open.direct, || Ok(open.handle.metadata()?.len())) {
                Round::Again(again) => read = again,
                Round::Done(mut read, result) => {
                    read.buf.set_len(read.filled);
                    return result.map(|()| read.buf);
                }
            }
        }
    }

    pub(super) fn write_at_once(&mut self, file: FileId, offset: u64, data: &SharedSlice) -> io::Result<()> {
        check_range(offset, data.len());
        let open = self.files.get(file.0);
        check_memory(open, data);
        let data = data.clone();
        let mut write = Writing { token: 0, file: file.0, fd: -1, offset, data, written: 0, durable: false };
        loop {
            let at = offset + write.written as u64;
            let result = raw_result(open.handle.write_at(&write.data[write.written..], at));
            match next_write(write, result, open.direct) {
                Round::Again(again) => write = again,
                Round::Done(_, result) => return result,
            }
        }
    }

    pub(super) fn flush_at_once(&mut self, file: FileId) -> io::Result<()> {
        self.files.get(file.0).handle.sync_data()
    }

    /// Takes the lock of a data folder and gives the ring a share in it. The kernel frees a dead process's ring, and
    /// so this share, only after the writes that were in flight have landed.
    pub(super) fn lock_data_folder(&mut self, folder: &Path) -> io::Result<()> {
        if self.lock.is_some() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "this ring already holds a folder lock",
            ));
        }
        let path = folder.join("LOCK");
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(|error| explained(&error, &path))?;
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, format!("{} is locked", path.display()))
            }
            std::fs::TryLockError::Error(error) => explained(&error, &path),
        })?;
        self.ring.hold_file(file.as_raw_fd())?;
        self.lock = Some(file);
        Ok(())
    }
}

/// The result of a plain system call in the ring's form.
fn raw_result(result: io::Result<usize>) -> i32 {
    match result {
        Ok(count) => i32::try_from(count).expect("the kernel moves less than 2 GiB per call"),
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// What a read does next. `file_len` is asked only in the rare case of a short read between block borders.
fn next_read(
    mut read: Reading,
    result: i32,
    direct: bool,
    file_len: impl FnOnce() -> io::Result<u64>,
) -> Round<Reading> {
    if result == -libc::EINTR || result == -libc::EAGAIN {
        return Round::Again(read);
    }
    if result < 0 {
        return Round::Done(read, Err(io::Error::from_raw_os_error(-result)));
    }
    let before = read.filled;
    read.filled += result as usize;
    if result == 0 || read.filled == read.buf.len() {
        return Round::Done(read, Ok(()));
    }
    if !direct || read.filled.is_multiple_of(BLOCK_BYTES) {
        return Round::Again(read);
    }
    // A direct read cannot go on between block borders: either this was the end of the file, or go back to a border.
    match file_len() {
        Err(error) => Round::Done(read, Err(error)),
        Ok(len) if read.offset + read.filled as u64 >= len => Round::Done(read, Ok(())),
        Ok(_) => {
            read.filled -= read.filled % BLOCK_BYTES;
            if read.filled > before {
                Round::Again(read)
            } else {
                Round::Done(read, Err(io::Error::other("a read stops short again and again")))
            }
        }
    }
}

/// What a write does next. Bytes written twice after a stop between block borders are the same bytes.
fn next_write(mut write: Writing, result: i32, direct: bool) -> Round<Writing> {
    if result == -libc::EINTR || result == -libc::EAGAIN {
        return Round::Again(write);
    }
    if result < 0 {
        return Round::Done(write, Err(io::Error::from_raw_os_error(-result)));
    }
    let before = write.written;
    write.written += result as usize;
    if write.written == write.data.len() {
        return Round::Done(write, Ok(()));
    }
    if direct {
        write.written -= write.written % BLOCK_BYTES;
    }
    if write.written > before {
        return Round::Again(write);
    }
    let error = io::Error::new(io::ErrorKind::WriteZero, "the file takes no more bytes");
    Round::Done(write, Err(error))
}

fn check_range(offset: u64, len: usize) {
    assert!(offset.is_multiple_of(BLOCK_BYTES as u64), "offset {offset} is not a whole number of blocks");
    assert!(len.is_multiple_of(BLOCK_BYTES), "length {len} is not a whole number of blocks");
}

fn check_memory(file: &OpenFile, data: &SharedSlice) {
    let aligned = data.as_ptr().align_offset(BLOCK_BYTES) == 0;
    assert!(aligned || !file.direct, "a direct write starts at a block border in memory");
}

/// Keeps the kind, names the file.
fn explained(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(len: usize, filled: usize) -> Reading {
        Reading { token: 0, file: 0, fd: -1, offset: 8192, buf: AlignedBuf::zeroed(len), filled }
    }

    fn writing(len: usize, written: usize) -> Writing {
        let data = AlignedBuf::zeroed(len).share();
        Writing { token: 0, file: 0, fd: -1, offset: 0, data, written, durable: true }
    }

    fn read_ends(read: Reading, result: i32, direct: bool, len: u64) -> Option<(usize, bool)> {
        match next_read(read, result, direct, || Ok(len)) {
            Round::Again(_) => None,
            Round::Done(read, result) => Some((read.filled, result.is_ok())),
        }
    }

    #[test]
    fn a_short_read_goes_on_unless_the_file_ends_there() {
        assert_eq!(read_ends(reading(8192, 0), 8192, true, 1 << 20), Some((8192, true)));
        assert_eq!(read_ends(reading(8192, 4096), 0, true, 12288), Some((4096, true)));
        assert_eq!(read_ends(reading(8192, 0), 4096, true, 1 << 20), None);
        assert_eq!(read_ends(reading(8192, 0), 5000, true, 8192 + 5000), Some((5000, true)));
        assert_eq!(read_ends(reading(8192, 0), 5000, true, 1 << 20), None);
        assert_eq!(read_ends(reading(8192, 0), 5000, false, 1 << 20), None);
        assert_eq!(read_ends(reading(8192, 0), 512, true, 1 << 20), Some((0, false)));
        assert_eq!(read_ends(reading(8192, 0), -libc::EIO, true, 1 << 20), Some((0, false)));
        assert_eq!(read_ends(reading(8192, 0), -libc::EINTR, true, 1 << 20), None);
    }

    #[test]
    fn a_short_write_goes_on_from_a_block_border_until_nothing_moves() {
        let Round::Again(write) = next_write(writing(16384, 0), 5000, true) else { panic!("it goes on") };
        assert_eq!(write.written, 4096);
        let Round::Again(write) = next_write(write, 100 + 4096, true) else { panic!("it goes on") };
        assert_eq!(write.written, 8192);
        assert!(matches!(next_write(write, 100, true), Round::Done(_, Err(_))));
        assert!(matches!(next_write(writing(4096, 0), 0, false), Round::Done(_, Err(_))));
        assert!(matches!(next_write(writing(4096, 0), -libc::ENOSPC, true), Round::Done(_, Err(_))));
        assert!(matches!(next_write(writing(4096, 0), 4096, true), Round::Done(_, Ok(()))));
        let Round::Again(write) = next_write(writing(4096, 0), 100, false) else { panic!("it goes on") };
        assert_eq!(write.written, 100);
    }
}
