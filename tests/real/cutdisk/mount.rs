//! The machine as a FUSE file system. The kernel caches nothing: every read, write and flush arrives here.

use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use baton::base::Prng;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::file::{BLOCK, File};
use super::machine::{Body, Folder, Machine, Refusal};

const NEVER: Duration = Duration::ZERO;
const KIND: u32 = 0o170_000;
const SOCKET: u32 = 0o140_000;
const REGULAR: u32 = 0o100_000;
/// O_DSYNC, which is part of O_SYNC too.
const DSYNC: i32 = 0o10_000;
/// How often a flush on a stalled disk looks whether the power has gone: at first, and after a while.
const STALL_LOOK: Duration = Duration::from_micros(300);
const STALL_LOOK_MAX: Duration = Duration::from_millis(20);
/// Space that is always free: a full disk has a chapter of its own.
const FREE_BLOCKS: u64 = 16 << 18;

#[derive(Clone, Debug)]
pub struct Mount {
    machine: Arc<Mutex<Machine>>,
    dice: Arc<Mutex<Prng>>,
    /// The longest time that a flush takes.
    flush: Duration,
}

impl Mount {
    pub fn new(machine: Arc<Mutex<Machine>>, flush: Duration) -> Mount {
        Mount { machine, dice: Arc::new(Mutex::new(Prng::new(1))), flush }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attr(machine: &Machine, number: u64) -> Result<FileAttr, Refusal> {
        let inode = machine.inode(number)?;
        let (kind, size) = match &inode.body {
            Body::File(file) => (FileType::RegularFile, file.size()),
            Body::Folder(_) => (FileType::Directory, BLOCK),
            Body::Socket => (FileType::Socket, 0),
        };
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: (inode.mode & 0o7777) as u16,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        })
    }

    fn create(&self, parent: INodeNo, name: &OsStr, body: Body, mode: u32, reply: ReplyEntry) {
        let mut machine = self.machine();
        match machine.create(parent.0, name, body, mode).and_then(|number| Mount::attr(&machine, number)) {
            Ok(attr) => reply.entry(&NEVER, &attr, Generation(0)),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    /// A flush takes its time, and the power may go meanwhile.
    fn flush(&self, number: INodeNo, range: Option<(u64, u64)>) -> Result<(), Refusal> {
        let promise = self.machine().promise(number.0, range)?;
        let longest = self.flush.as_micros() as u64;
        let micros = self.dice.lock().unwrap_or_else(PoisonError::into_inner).below(longest + 1);
        thread::sleep(Duration::from_micros(micros));
        let mut look = STALL_LOOK;
        while self.machine().stalls(number.0)? {
            thread::sleep(look);
            look = (look * 5 / 4).min(STALL_LOOK_MAX);
        }
        self.machine().keep(number.0, promise)
    }
}

fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::Dead => Errno::EIO,
        Refusal::Missing => Errno::ENOENT,
        Refusal::Exists => Errno::EEXIST,
        Refusal::NotEmpty => Errno::ENOTEMPTY,
        Refusal::NotAFolder => Errno::ENOTDIR,
        Refusal::NotAFile => Errno::EINVAL,
        Refusal::OtherFolder => Errno::EXDEV,
    }
}

fn answer(reply: ReplyEmpty, result: Result<(), Refusal>) {
    match result {
        Ok(()) => reply.ok(),
        Err(refusal) => reply.error(errno(refusal)),
    }
}

impl Filesystem for Mount {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // By default the kernel has a dozen direct writes under way for all disks together: those that hang would hold up
        // the others.
        let _ = config.set_max_background(1024);
        // Without it a direct write blocks the ring that submits it, and never two frames are under way.
        config
            .add_capabilities(InitFlags::FUSE_ASYNC_DIO)
            .map_err(|_| io::Error::other("the kernel has no asynchronous direct I/O on FUSE"))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut machine = self.machine();
        match machine.lookup(parent.0, name).and_then(|number| Mount::attr(&machine, number)) {
            Ok(attr) => reply.entry(&NEVER, &attr, Generation(0)),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match Mount::attr(&self.machine(), number.0) {
            Ok(attr) => reply.attr(&NEVER, &attr),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut machine = self.machine();
        let sized = size.map_or(Ok(()), |size| machine.truncate(number.0, size));
        let moded = sized.and_then(|()| mode.map_or(Ok(()), |mode| machine.set_mode(number.0, mode)));
        match moded.and_then(|()| Mount::attr(&machine, number.0)) {
            Ok(attr) => reply.attr(&NEVER, &attr),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let body = match mode & KIND {
            SOCKET => Body::Socket,
            REGULAR | 0 => Body::File(File::default()),
            _ => return reply.error(Errno::EPERM),
        };
        self.create(parent, name, body, mode, reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        self.create(parent, name, Body::Folder(Folder::default()), mode, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.machine().remove(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.machine().remove(parent.0, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.machine().rename(parent.0, name, to_parent.0, to));
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.machine().inode(number.0) {
            Ok(_) => reply.opened(
                FileHandle(0),
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            ),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.machine().read(number.0, offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut written = self.machine().write(number.0, offset, data);
        // The kernel says RWF_DSYNC in the flags of the write.
        if written.is_ok() && flags.0 & DSYNC != 0 {
            written = self.flush(number, Some((offset, data.len() as u64)));
        }
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, Mount::flush(self, number, None));
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, Mount::flush(self, number, None));
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut machine = self.machine();
        let entries = match machine.list(number.0) {
            Ok(entries) => entries,
            Err(refusal) => return reply.error(errno(refusal)),
        };
        for (at, (name, entry)) in entries.iter().enumerate().skip(offset as usize) {
            let kind = Mount::attr(&machine, *entry).map_or(FileType::Directory, |attr| attr.kind);
            if reply.add(INodeNo(*entry), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(
            FREE_BLOCKS,
            FREE_BLOCKS,
            FREE_BLOCKS,
            1 << 20,
            1 << 20,
            BLOCK as u32,
            255,
            BLOCK as u32,
        );
    }
}
