//! The system calls that the standard library does not offer, each wrapped to be safe.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use crate::base::Mono;

/// Turns the "-1 and errno" convention into a result.
fn check(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome == -1 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

/// Takes ownership of a descriptor that a completion delivered.
pub(super) fn own(fd: RawFd) -> OwnedFd {
    assert!(fd >= 0, "a completion delivered a negative descriptor");
    // SAFETY: the kernel installed this descriptor for us in a completion that is consumed exactly once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(super) fn boot_time() -> Mono {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for one timespec.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(outcome, 0, "every supported kernel has CLOCK_BOOTTIME");
    Mono(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Fills `bytes` from the kernel's generator, waiting for its seeding if it must.
pub(super) fn fill_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: `rest` is valid for writes of its length.
        let outcome = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(outcome) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                assert_eq!(error.kind(), io::ErrorKind::Interrupted, "getrandom failed: {error}");
            }
        }
    }
}

pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }).map(own)
}

/// Adds one to an eventfd.
pub(super) fn signal(fd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    loop {
        // SAFETY: `one` is valid for reads of eight bytes.
        let outcome = unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if outcome == 8 {
            return;
        }
        let error = io::Error::last_os_error();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "an eventfd write failed: {error}");
    }
}

/// Whether the file lies in memory, where direct and durable mean nothing.
pub(super) fn in_memory(file: &File) -> io::Result<bool> {
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `found` is a valid place for one statfs.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the kernel filled the structure.
    let kind = unsafe { found.assume_init() }.f_type;
    const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;
    Ok(kind == libc::TMPFS_MAGIC || kind == RAMFS_MAGIC)
}

/// Bytes that an ordinary user may still write to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let folder = File::open(path)?;
    let mut found = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `found` is a valid place for one statvfs.
    check(unsafe { libc::fstatvfs(folder.as_raw_fd(), found.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the kernel filled the structure.
    let found = unsafe { found.assume_init() };
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Raises the soft limit of open descriptors to the hard one, once at start-up, and returns it: every client costs one.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for one rlimit.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is one valid rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_cur)
}

/// Large buffers are given back to the system when they are freed. Left to itself the allocator stops that for all sizes
/// that were freed before, and the holes between small things that live longer add up to a fourth of the memory in use.
pub fn give_back_large_buffers() {
    const LARGE: libc::c_int = 512 << 10;
    #[cfg(target_env = "gnu")]
    // SAFETY: the call changes a number inside the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = LARGE;
}

/// Gives the pages of the heap that hold nothing back to the system. Everybody who allocates waits meanwhile, some
/// milliseconds for a heap of hundreds of megabytes.
pub fn give_back_holes() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call works under the allocator's own locks, on memory that nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The limit on locked memory, for messages.
pub(super) fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for one rlimit.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) }).ok()?;
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn set_option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is valid for reads of `size` bytes during the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size) }).map(drop)
}

/// Ends a connection whose peer leaves bytes unacknowledged for this long; bounds a dial as well.
pub(super) fn set_user_timeout(fd: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, ms)
}

/// No delay, keep-alive and the peer time-out. On a listener the accepted connections inherit all of it.
pub(super) fn set_connection_options(fd: &OwnedFd, peer_timeout: Duration) -> io::Result<()> {
    let idle = i32::try_from(peer_timeout.as_secs() / 2).unwrap_or(i32::MAX).max(1);
    let interval = (idle / 2).max(1);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, interval)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3)?;
    set_user_timeout(fd, peer_timeout)
}

/// Makes the close of this socket throw away what is not delivered yet, and reset the connection.
pub(super) fn discard_on_close(fd: &OwnedFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_LINGER);
    // SAFETY: `linger` is valid for reads of `size` bytes during the call.
    let outcome = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const linger).cast(), size) };
    debug_assert_eq!(outcome, 0, "a socket takes the option");
}

fn tcp_socket(addr: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // Blocking mode on purpose: on a non-blocking socket the ring reports EAGAIN instead of waiting.
    // SAFETY: no pointers are passed.
    check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) }).map(own)
}

/// A socket ready to dial `addr`.
pub(super) fn dialler(addr: &SocketAddr, dial: Duration, peer: Duration) -> io::Result<OwnedFd> {
    let fd = tcp_socket(addr)?;
    set_connection_options(&fd, peer)?;
    set_user_timeout(&fd, dial)?;
    Ok(fd)
}

/// A listening socket and the address it got.
pub(super) fn listener(addr: &SocketAddr, backlog: i32, peer: Duration) -> io::Result<(OwnedFd, SocketAddr)> {
    let fd = tcp_socket(addr)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set_connection_options(&fd, peer)?;
    let name = Name::from(*addr);
    // SAFETY: `name` is a valid socket address of the stated length.
    check(unsafe { libc::bind(fd.as_raw_fd(), name.as_ptr(), name.len) })?;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    let mut own_name = Name::empty();
    // SAFETY: `own_name` has room for any address and `len` says how much.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), own_name.as_mut_ptr(), &mut own_name.len) })?;
    let bound = own_name.to_addr().ok_or_else(|| io::Error::other("the listener got a foreign address"))?;
    Ok((fd, bound))
}

/// Who is on the other side; an error when it has already gone.
pub(super) fn peer_of(fd: &OwnedFd) -> io::Result<SocketAddr> {
    let mut name = Name::empty();
    // SAFETY: `name` has room for any address and `len` says how much.
    check(unsafe { libc::getpeername(fd.as_raw_fd(), name.as_mut_ptr(), &mut name.len) })?;
    name.to_addr().ok_or_else(|| io::Error::other("the peer has a foreign address"))
}

/// A socket address in the kernel's form.
pub(super) struct Name {
    storage: libc::sockaddr_storage,
    pub(super) len: libc::socklen_t,
}

impl Name {
    fn empty() -> Name {
        // SAFETY: all zeroes is a valid sockaddr_storage (family "unspecified").
        let storage = unsafe { std::mem::zeroed() };
        Name { storage, len: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    fn to_addr(&self) -> Option<SocketAddr> {
        match libc::c_int::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that a sockaddr_in stands at the start of the storage, which is larger.
                let found = unsafe { *self.as_ptr().cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(found.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above, for a sockaddr_in6.
                let found = unsafe { *self.as_ptr().cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(found.sin6_addr.s6_addr);
                let port = u16::from_be(found.sin6_port);
                Some(SocketAddrV6::new(ip, port, found.sin6_flowinfo, found.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Name {
    fn from(addr: SocketAddr) -> Name {
        let mut name = Name::empty();
        match addr {
            SocketAddr::V4(addr) => {
                let wanted = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: addr.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*addr.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger than and aligned for every socket address.
                unsafe { name.as_mut_ptr().cast::<libc::sockaddr_in>().write(wanted) };
                name.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(addr) => {
                let wanted = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: addr.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                    sin6_scope_id: addr.scope_id(),
                };
                // SAFETY: as above.
                unsafe { name.as_mut_ptr().cast::<libc::sockaddr_in6>().write(wanted) };
                name.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int) -> libc::c_int {
        let mut value: libc::c_int = 0;
        let mut size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `value` has room for `size` bytes.
        check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &mut size) })
            .unwrap();
        value
    }

    #[test]
    fn addresses_survive_the_kernel_form() {
        for text in ["127.0.0.1:80", "1.2.3.4:65535", "[::1]:7", "[fe80::1%3]:9"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(Name::from(addr).to_addr(), Some(addr));
        }
        assert_eq!(Name::empty().to_addr(), None);
    }

    #[test]
    fn accepted_connections_inherit_the_options_of_their_listener() {
        let timeout = Duration::from_secs(10);
        let (fd, addr) = listener(&"127.0.0.1:0".parse().unwrap(), 16, timeout).unwrap();
        let dialled = std::net::TcpStream::connect(addr).unwrap();
        let (accepted, _) = std::net::TcpListener::from(fd).accept().unwrap();
        let accepted = OwnedFd::from(accepted);
        assert_eq!(option(&accepted, libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
        assert_eq!(option(&accepted, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
        assert_eq!(option(&accepted, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE), 5);
        assert_eq!(option(&accepted, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT), 10_000);
        assert_eq!(peer_of(&accepted).unwrap(), dialled.local_addr().unwrap());
    }

    #[test]
    fn random_bytes_fill_the_whole_slice() {
        let mut bytes = [0u8; 1024];
        fill_random(&mut bytes);
        assert!(bytes.chunks(64).all(|chunk| chunk.iter().any(|&byte| byte != 0)));
    }
}

/// Calls that only tests of this backend need.
#[cfg(test)]
pub(super) mod for_tests {
    use super::*;

    /// Waits until the eventfd was written, and resets it.
    pub(in super::super) fn await_signal(fd: &OwnedFd) {
        let mut count = [0u8; 8];
        // SAFETY: `count` is valid for writes of eight bytes.
        let outcome = unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        assert_eq!(outcome, 8);
    }

    pub(in super::super) fn shrink_backlog(fd: RawFd) {
        // SAFETY: no pointers are passed.
        check(unsafe { libc::listen(fd, 0) }).unwrap();
    }

    pub(in super::super) fn limit_descriptors(most: u64) {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: `limit` is one valid rlimit.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).unwrap();
    }
}
