//! The two queues shared with the kernel: setting them up, filling them, waiting on them.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::{EnterFlags, IoUring, Probe, squeue, types};

use super::pool::BufferPool;
use super::sys;

/// Completions with this mark are of no interest to anybody (cancel requests).
pub(super) const NOBODY: u64 = u64::MAX;
/// The group of receive buffers.
pub(super) const BUFFER_GROUP: u16 = 0;

/// One entry of the completion queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub key: u64,
    pub result: i32,
    pub flags: u32,
}

/// How long to wait for a completion.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    No,
    AtMost(Duration),
    Forever,
}

/// How long operations that are expected to complete at once may hold up what else completes.
const AT_ONCE_MAX_US: u32 = 50;
/// Longer than any process runs.
const FOREVER: Duration = Duration::from_secs(1 << 31);

pub(super) struct Ring {
    ring: IoUring,
    /// The ring's place in this thread's table of registered rings: saves a descriptor look-up per system call.
    registered: Option<u32>,
    /// Entries that found no room because the kernel takes no more for now. Almost always empty.
    backlog: VecDeque<squeue::Entry>,
    mode: &'static str,
}

impl Ring {
    /// The best ring that this kernel offers. The error is one sentence for the operator.
    pub(super) fn open(entries: u32) -> io::Result<Ring> {
        let mut refusal = None;
        for mode in MODES {
            match build(mode, entries) {
                Ok(ring) => {
                    let params = ring.params();
                    if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
                        return Err(io::Error::new(
                            io::ErrorKind::Unsupported,
                            format!("Linux {} is too old: baton needs io_uring of 5.11 or newer", release()),
                        ));
                    }
                    all_calls_allowed(&ring).map_err(|error| explained(&error))?;
                    let registered = register_ring(ring.as_raw_fd());
                    return Ok(Ring { ring, registered, backlog: VecDeque::new(), mode });
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = Some(error),
                Err(error) => return Err(explained(&error)),
            }
        }
        Err(explained(&refusal.expect("the list of modes is not empty")))
    }

    pub(super) fn mode(&self) -> &'static str {
        self.mode
    }

    /// Queues one entry; it starts at the next [`Ring::enter`].
    ///
    /// # Safety
    /// Memory and descriptors that the entry names must stay valid until its last completion was drained.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: passed on to our caller.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.start();
            // SAFETY: passed on to our caller.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Hands queued entries to the kernel without looking at completions. The kernel may take fewer (its completion
    /// queue overflowed); the rest stays queued.
    fn start(&mut self) {
        let queued = self.ring.submission().len();
        let _ = self.system_call(queued, 0, 0, None);
    }

    /// Starts everything queued, lets the kernel post what is ready, and waits for at least one completion.
    ///
    /// `at_once` operations among the queued ones are expected to complete while they are started (sends into a socket
    /// with room). They are not what the caller waits for: where the kernel can, the wait is for one completion more,
    /// but for a moment only, in case that they do not.
    pub(super) fn enter(&mut self, wait: Wait, at_once: u32) {
        self.unload_backlog();
        let queued = self.ring.submission().len();
        // With deferred task work the kernel posts completions only inside a call that asks for events.
        let flags = EnterFlags::GETEVENTS.bits();
        let outcome = match wait {
            Wait::No => self.system_call(queued, 0, flags, None),
            Wait::Forever if at_once == 0 => self.system_call(queued, 1, flags, None),
            Wait::Forever => self.system_call(queued, 1 + at_once, flags, Some(FOREVER)),
            Wait::AtMost(time) => self.system_call(queued, 1 + at_once, flags, Some(time)),
        };
        if let Err(error) = outcome {
            let expected = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
            let code = error.raw_os_error().unwrap_or(0);
            assert!(expected.contains(&code), "the ring is unusable: {error}");
        }
    }

    /// Whether an [`Ring::enter`] without waiting would start or bring something. Costs no system call.
    pub(super) fn has_news(&mut self) -> bool {
        let queue = self.ring.submission();
        let work = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        work || !self.ring.completion().is_empty()
    }

    fn unload_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the entry came in through `push`, whose caller keeps its memory valid.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
                continue;
            }
            self.start();
            if self.ring.submission().is_full() {
                return;
            }
        }
    }

    fn system_call(&self, submit: usize, want: u32, flags: u32, time: Option<Duration>) -> io::Result<usize> {
        let limit = types::Timespec::from(time.unwrap_or_default());
        // Without the feature the kernel would wait for all of them for the whole time.
        let (want, moment) = match want > 1 && !self.ring.params().is_feature_min_timeout() {
            true => (1, 0),
            false => (want, if want > 1 { AT_ONCE_MAX_US } else { 0 }),
        };
        let args = types::SubmitArgs::new().timespec(&limit).min_wait_usec(moment);
        let (pointer, size, flags) = match time {
            None => (std::ptr::null::<u8>(), 0, flags),
            Some(_) => ((&raw const args).cast(), size_of_val(&args), flags | EnterFlags::EXT_ARG.bits()),
        };
        let (fd, flags) = match self.registered {
            None => (self.ring.as_raw_fd(), flags),
            Some(place) => (place as RawFd, flags | ENTER_REGISTERED_RING),
        };
        let submit = submit as libc::c_uint;
        // SAFETY: the argument block and the time-out it points to outlive the call; the entries submitted satisfy
        // the contract of `push`.
        let outcome =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, submit, want, flags, pointer, size) };
        usize::try_from(outcome).map_err(|_| io::Error::last_os_error())
    }

    /// Moves all posted completions into `into`.
    pub(super) fn drain(&mut self, into: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            if entry.user_data() != NOBODY {
                into.push(Completion {
                    key: entry.user_data(),
                    result: entry.result(),
                    flags: entry.flags(),
                });
            }
        }
    }

    /// Offers the pool to multishot receives. The pool must be withdrawn, or leaked, before it is freed.
    pub(super) fn offer_buffers(&self, pool: &Rc<BufferPool>) -> io::Result<()> {
        // SAFETY: the pool's memory is page-aligned and its owner frees it only after `withdraw_buffers`.
        unsafe {
            self.ring.submitter().register_buf_ring_with_flags(
                pool.ring_address(),
                pool.count(),
                BUFFER_GROUP,
                0,
            )
        }
    }

    pub(super) fn withdraw_buffers(&self) -> io::Result<()> {
        self.ring.submitter().unregister_buf_ring(BUFFER_GROUP)
    }

    /// Lets the ring hold a reference to this open file for as long as the ring has operations in flight.
    pub(super) fn hold_file(&self, fd: RawFd) -> io::Result<()> {
        self.ring.submitter().register_files(&[fd])
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A registered ring lives until its thread ends, and with it the folder lock: let go of it here.
        if let Some(place) = self.registered {
            let mut update = RingUpdate { offset: place, reserved: 0, data: 0 };
            let released = register(self.ring.as_raw_fd(), UNREGISTER_RING_FDS, &mut update);
            debug_assert_eq!(released, 1);
        }
    }
}

const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;
const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// The kernel's `io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// How many registrations were carried out, or a negative number.
fn register(fd: RawFd, what: libc::c_uint, update: &mut RingUpdate) -> i64 {
    // SAFETY: `update` is one valid record that the kernel reads and whose `offset` it may overwrite.
    unsafe { libc::syscall(libc::SYS_io_uring_register, fd, what, &raw mut *update, 1) }
}

/// Registers the ring with this thread; `None` on kernels before 5.18.
fn register_ring(fd: RawFd) -> Option<u32> {
    let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: fd as u64 };
    (register(fd, REGISTER_RING_FDS, &mut update) == 1).then_some(update.offset)
}

/// From the best for one thread that owns its ring, to what every kernel since 5.11 takes.
const MODES: [&str; 4] = [
    "single issuer, deferred task work",
    "single issuer, cooperative task work",
    "cooperative task work",
    "no special modes",
];

fn build(mode: &str, entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_cqsize(entries * 8);
    if mode == MODES[0] {
        builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    } else if mode == MODES[1] {
        builder.setup_submit_all().setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    } else if mode == MODES[2] {
        builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
    }
    builder.build(entries)
}

/// A filter of system calls may let a ring be made and then forbid to use it: found out here, with a sentence, and not
/// at the first wait.
fn all_calls_allowed(ring: &IoUring) -> io::Result<()> {
    // SAFETY: nothing is submitted, nothing is waited for, and no memory is named.
    unsafe { ring.submitter().enter::<()>(0, 0, 0, None) }?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string()
}

fn explained(error: &io::Error) -> io::Error {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let disabled = disabled.and_then(|text| text.trim().parse().ok());
    let code = error.raw_os_error().unwrap_or(0);
    io::Error::new(error.kind(), explanation(code, disabled, sys::memlock_limit(), &release(), error))
}

/// One sentence: what is in the way, and what to change.
fn explanation(
    code: i32,
    disabled: Option<u8>,
    memlock: Option<u64>,
    release: &str,
    error: &io::Error,
) -> String {
    match (code, disabled) {
        (libc::ENOSYS, _) => format!(
            "this kernel ({release}) offers no io_uring (ENOSYS): run baton on Linux 5.11 or newer, or allow the \
             io_uring system calls in the container's seccomp profile"
        ),
        (libc::EPERM, Some(1)) => "io_uring is reserved for privileged processes here: sysctl \
             kernel.io_uring_disabled is 1, so set it to 0 or add this user to the group that \
             kernel.io_uring_group names"
            .to_string(),
        (libc::EPERM, Some(level @ 2..)) => format!(
            "io_uring is switched off on this machine: sysctl kernel.io_uring_disabled is {level}, so set it to 0"
        ),
        (libc::EPERM | libc::EACCES, _) => "io_uring is blocked (EPERM) although the kernel has it, most \
             likely by the container's seccomp profile: allow io_uring_setup, io_uring_enter and \
             io_uring_register there"
            .to_string(),
        (libc::ENOMEM, _) => {
            let limit = match memlock {
                Some(bytes) => format!("{} KiB", bytes / 1024),
                None => "unlimited".to_string(),
            };
            format!(
                "no memory for io_uring (ENOMEM): the limit of locked memory is {limit}, so raise it (ulimit -l, \
                 or LimitMEMLOCK= in the systemd unit) or free memory"
            )
        }
        (libc::EMFILE | libc::ENFILE, _) => {
            "no file descriptor left for io_uring: raise the limit of open files (ulimit -n, or \
             LimitNOFILE= in the systemd unit)"
                .to_string()
        }
        _ => format!("io_uring could not be set up on Linux {release}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(code: i32, disabled: Option<u8>, memlock: Option<u64>) -> String {
        explanation(code, disabled, memlock, "4.19.0", &io::Error::from_raw_os_error(code))
    }

    #[test]
    fn a_refusal_names_its_probable_cause_in_one_sentence() {
        let cases = [
            (libc::ENOSYS, None, None, "4.19.0"),
            (libc::EPERM, Some(2), None, "io_uring_disabled is 2"),
            (libc::EPERM, Some(1), None, "io_uring_group"),
            (libc::EPERM, Some(0), None, "seccomp"),
            (libc::EPERM, None, None, "seccomp"),
            (libc::ENOMEM, None, Some(65536), "64 KiB"),
            (libc::EMFILE, None, None, "ulimit -n"),
            (libc::EINVAL, None, None, "Invalid argument"),
        ];
        for (code, disabled, memlock, needle) in cases {
            let text = explain(code, disabled, memlock);
            assert!(text.contains(needle), "{text}");
            assert!(!text.contains('\n') && !text.contains(". ") && !text.contains("  "), "{text}");
        }
    }

    #[test]
    fn entries_beyond_the_queue_are_all_carried_out() {
        let mut ring = Ring::open(4).unwrap();
        for key in 0..1000u64 {
            // SAFETY: a no-operation names no memory.
            unsafe { ring.push(io_uring::opcode::Nop::new().build().user_data(key)) };
        }
        let mut found = Vec::new();
        while found.len() < 1000 {
            ring.enter(Wait::Forever, 0);
            ring.drain(&mut found);
        }
        let mut keys: Vec<u64> = found.iter().map(|completion| completion.key).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..1000).collect::<Vec<u64>>());
    }

    #[test]
    fn waiting_ends_at_the_time_limit() {
        let mut ring = Ring::open(4).unwrap();
        let before = sys::boot_time();
        ring.enter(Wait::AtMost(Duration::from_millis(20)), 0);
        assert!(sys::boot_time().since(before) >= Duration::from_millis(20));
        ring.enter(Wait::No, 0);
    }

    #[test]
    fn every_mode_of_the_fallback_chain_builds_here() {
        for mode in MODES {
            build(mode, 8).unwrap();
        }
    }
}
