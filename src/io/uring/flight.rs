//! Operations that the kernel is carrying out: each owns its memory until its last completion.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::{opcode, squeue, types};

use super::ring::BUFFER_GROUP;
use super::sys::Name;
use crate::base::{AlignedBuf, SharedSlice};
use crate::io::{ConnId, Outgoing, Token};

/// The most slices that one gathered send takes (the kernel's IOV_MAX).
const GATHER_MAX: usize = 1024;
/// The kernel moves at most this much per read or write; the rest is asked for again.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// Ask the kernel to say in the second completion whether it copied after all.
const SEND_ZC_REPORT_USAGE: u16 = 1 << 3;

/// A list of slices in the kernel's form. All of it lies on the heap, so its address holds while the operation moves.
pub(super) struct Gather {
    header: Box<libc::msghdr>,
    slices: Vec<libc::iovec>,
}

impl Gather {
    pub(super) fn new() -> Gather {
        let header = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: std::ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        Gather { header: Box::new(header), slices: Vec::with_capacity(16) }
    }

    /// Lists what is left of `head` and `slices` after the first `skip` bytes, as much as one send takes.
    fn fill(&mut self, head: &[u8], slices: &[SharedSlice], mut skip: usize) {
        self.slices.clear();
        for part in std::iter::once(head).chain(slices.iter().map(|slice| &slice[..])) {
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            if self.slices.len() == GATHER_MAX {
                break;
            }
            let rest = &part[skip..];
            skip = 0;
            self.slices.push(libc::iovec { iov_base: rest.as_ptr() as *mut _, iov_len: rest.len() });
        }
        self.header.msg_iov = self.slices.as_mut_ptr();
        self.header.msg_iovlen = self.slices.len();
    }
}

/// A send under way.
pub(super) struct Sending {
    pub conn: ConnId,
    pub fd: RawFd,
    pub token: Token,
    pub data: Outgoing,
    /// Bytes that the kernel has taken.
    pub sent: usize,
    pub total: usize,
    pub gather: Option<Gather>,
    pub zero_copy: bool,
    /// The outcome of a zero-copy round whose buffers are still in use.
    pub round: Option<i32>,
}

/// A read under way.
pub(super) struct Reading {
    pub token: Token,
    pub file: u32,
    pub fd: RawFd,
    pub offset: u64,
    pub buf: AlignedBuf,
    pub filled: usize,
}

/// A write under way.
pub(super) struct Writing {
    pub token: Token,
    pub file: u32,
    pub fd: RawFd,
    pub offset: u64,
    pub data: SharedSlice,
    pub written: usize,
    pub durable: bool,
}

pub(super) enum Flight {
    Read(Reading),
    Write(Writing),
    Flush {
        token: Token,
        file: u32,
        fd: RawFd,
        /// What describes the file too, as a folder needs it.
        all: bool,
    },
    Accept {
        listener: u32,
        fd: RawFd,
        multishot: bool,
    },
    Connect {
        token: Token,
        fd: OwnedFd,
        addr: SocketAddr,
        name: Box<Name>,
    },
    /// Into the shared buffers, again and again until it is told otherwise.
    ReceiveMany {
        conn: ConnId,
        fd: RawFd,
    },
    /// Once, into a buffer of its own.
    ReceiveOnce {
        conn: ConnId,
        fd: RawFd,
        into: Vec<u8>,
    },
    Send(Sending),
    Wake {
        fd: RawFd,
        count: Box<u64>,
    },
}

impl Flight {
    /// The submission entry. Its pointers lead only into heap memory that this flight owns and that does not move
    /// when the flight itself moves.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        match self {
            Flight::Read(read) => {
                let rest = &mut read.buf[read.filled..];
                let len = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Read::new(types::Fd(read.fd), rest.as_mut_ptr(), len)
                    .offset(read.offset + read.filled as u64)
                    .build()
            }
            Flight::Write(write) => {
                let rest = &write.data[write.written..];
                let len = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Write::new(types::Fd(write.fd), rest.as_ptr(), len)
                    .offset(write.offset + write.written as u64)
                    .rw_flags(if write.durable { libc::RWF_DSYNC } else { 0 })
                    .build()
            }
            Flight::Flush { fd, all: true, .. } => opcode::Fsync::new(types::Fd(*fd)).build(),
            Flight::Flush { fd, all: false, .. } => {
                opcode::Fsync::new(types::Fd(*fd)).flags(types::FsyncFlags::DATASYNC).build()
            }
            Flight::Accept { fd, multishot: true, .. } => {
                opcode::AcceptMulti::new(types::Fd(*fd)).flags(libc::SOCK_CLOEXEC).build()
            }
            Flight::Accept { fd, multishot: false, .. } => {
                opcode::Accept::new(types::Fd(*fd), std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Flight::Connect { fd, name, .. } => {
                opcode::Connect::new(types::Fd(fd.as_raw_fd()), name.as_ptr(), name.len).build()
            }
            Flight::ReceiveMany { fd, .. } => opcode::RecvMulti::new(types::Fd(*fd), BUFFER_GROUP).build(),
            Flight::ReceiveOnce { fd, into, .. } => {
                opcode::Recv::new(types::Fd(*fd), into.as_mut_ptr(), into.len() as u32).build()
            }
            Flight::Send(sending) => sending.entry(),
            Flight::Wake { fd, count } => {
                opcode::Read::new(types::Fd(*fd), (&raw mut **count).cast(), size_of::<u64>() as u32).build()
            }
        }
    }

    /// File operations are never cancelled: what they do to the disk must be known.
    pub(super) fn may_cancel(&self) -> bool {
        !matches!(self, Flight::Read(_) | Flight::Write(_) | Flight::Flush { .. })
    }
}

impl Sending {
    fn entry(&mut self) -> squeue::Entry {
        // The kernel itself goes on after a partial send (WAITALL) and never raises SIGPIPE.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let fd = types::Fd(self.fd);
        match &self.data {
            Outgoing::Owned(bytes) => {
                let rest = &bytes[self.sent..];
                let len = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                if self.zero_copy {
                    opcode::SendZc::new(fd, rest.as_ptr(), len)
                        .flags(flags)
                        .zc_flags(SEND_ZC_REPORT_USAGE)
                        .build()
                } else {
                    opcode::Send::new(fd, rest.as_ptr(), len).flags(flags).build()
                }
            }
            Outgoing::Shared { head, slices } => {
                let gather = self.gather.as_mut().expect("a gathered send carries its list");
                gather.fill(head, slices, self.sent);
                let header = &raw const *gather.header;
                if self.zero_copy {
                    opcode::SendMsgZc::new(fd, header)
                        .flags(flags as u32)
                        .ioprio(SEND_ZC_REPORT_USAGE)
                        .build()
                } else {
                    opcode::SendMsg::new(fd, header).flags(flags as u32).build()
                }
            }
        }
    }
}

/// All operations under way, found by the key that their completions carry.
///
/// A key is a place and the number of its use, so a key that has ended is never mistaken for its successor.
pub(super) struct Flights {
    places: Vec<Place>,
    free: Vec<u32>,
}

struct Place {
    uses: u32,
    flight: Option<Flight>,
}

impl Flights {
    pub(super) fn new() -> Flights {
        Flights { places: Vec::new(), free: Vec::new() }
    }

    /// Operations under way.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, flight: Flight) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { uses: 0, flight: None });
            u32::try_from(self.places.len() - 1).expect("fewer than 2^32 operations are under way")
        });
        let place = &mut self.places[index as usize];
        assert!(place.flight.is_none(), "a free place holds no operation");
        place.flight = Some(flight);
        (u64::from(place.uses) << 32) | u64::from(index)
    }

    pub(super) fn get(&mut self, key: u64) -> Option<&mut Flight> {
        let place = self.places.get_mut(key as u32 as usize)?;
        if place.uses == (key >> 32) as u32 { place.flight.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<Flight> {
        self.get(key)?;
        let place = &mut self.places[key as u32 as usize];
        // The last number is left out, so that no key equals the mark of completions without a flight.
        place.uses = (place.uses + 1) % (u32::MAX - 1);
        self.free.push(key as u32);
        place.flight.take()
    }

    /// Keys of the operations that `wanted` picks.
    pub(super) fn keys(&self, wanted: impl Fn(&Flight) -> bool) -> Vec<u64> {
        let used = self.places.iter().enumerate();
        used.filter(|(_, place)| place.flight.as_ref().is_some_and(&wanted))
            .map(|(index, place)| (u64::from(place.uses) << 32) | index as u64)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flush(token: Token) -> Flight {
        Flight::Flush { token, file: 0, fd: -1, all: false }
    }

    #[test]
    fn an_ended_key_finds_nothing_even_when_its_place_is_used_again() {
        let mut flights = Flights::new();
        let first = flights.insert(flush(1));
        assert!(flights.remove(first).is_some());
        let second = flights.insert(flush(2));
        assert_eq!(first as u32, second as u32, "the place is reused");
        assert!(flights.get(first).is_none() && flights.remove(first).is_none());
        assert!(matches!(flights.get(second), Some(Flight::Flush { token: 2, .. })));
        assert_eq!(flights.len(), 1);
        assert_eq!(flights.keys(|_| true), vec![second]);
        assert!(flights.keys(Flight::may_cancel).is_empty());
    }

    #[test]
    fn a_gather_list_starts_where_the_last_send_stopped() {
        let head = vec![1u8; 10];
        let slices: Vec<SharedSlice> = (0..2000).map(|_| SharedSlice::copy_of(&[7u8; 5])).collect();
        let total = 10 + 2000 * 5;
        let mut gather = Gather::new();
        for skip in [0, 1, 9, 10, 11, 14, 15, 5000, total - 1] {
            gather.fill(&head, &slices, skip);
            let listed: usize = gather.slices.iter().map(|slice| slice.iov_len).sum();
            assert!(gather.slices.len() <= GATHER_MAX);
            assert!(listed == total - skip || gather.slices.len() == GATHER_MAX, "skip {skip}: {listed}");
            assert!(gather.slices.iter().all(|slice| slice.iov_len > 0));
        }
        gather.fill(&head, &slices, 12);
        assert_eq!(gather.slices[0].iov_len, 3);
    }
}
