//! The state that a process inherits from its parent, reset at the agent's start.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::stat::{Mode, umask};
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::ptr::null;
use std::sync::{LazyLock, OnceLock};

/// The highest signal number of Linux.
const LAST_SIGNAL: libc::c_int = 64;

/// Bytes of a signal set, as the kernel wants them.
pub(crate) const SIGSET_BYTES: usize = 8;

/// Returns the signals that this process ignores, bit n - 1 for signal n.
#[allow(unsafe_code)] // libc's function leaves out signals of its own
pub(crate) fn ignored_signals() -> u64 {
    let ignored = |signal: &libc::c_int| {
        let mut action = [0u64; 8];
        // SAFETY: asks for an action, which is smaller than that, and sets none.
        let asked =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, *signal, null::<u64>(), action.as_mut_ptr(), SIGSET_BYTES) };
        asked == 0 && action[0] as libc::sighandler_t == libc::SIG_IGN
    };
    (1..=LAST_SIGNAL).filter(ignored).fold(0, |set, signal| set | 1 << (signal - 1))
}

/// Gives these signals their default action, by system calls alone.
#[allow(unsafe_code)] // as above
pub(crate) fn reset_signals(set: u64) {
    // A default action is zero in every form of the kernel's structure.
    let default = [0u64; 8];
    for signal in (1..=LAST_SIGNAL).filter(|signal| set >> (signal - 1) & 1 == 1) {
        // SAFETY: no handler is set.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), null::<u64>(), SIGSET_BYTES) };
    }
}

/// The number of descriptors that the agent wants for itself: 100 jobs take about 500.
const WANTED_DESCRIPTORS: rlim_t = 65_536;

/// The limits of open descriptors, soft and hard, before the agent raised its own.
static START_DESCRIPTORS: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// Returns the limits of open descriptors, soft and hard, that a child gets: `None` where they are the agent's.
pub(crate) fn child_descriptors() -> Option<(rlim_t, rlim_t)> {
    START_DESCRIPTORS.get().copied()
}

/// The privileges over other processes' time that the agent was started with, and its children do not keep.
/// A lower priority than usual is a restriction of the node, and stays.
pub(crate) struct Privileged {
    /// A realtime or deadline scheduling policy.
    pub(crate) policy: bool,
    /// A niceness below zero.
    pub(crate) nice: bool,
    /// The realtime class of disk access.
    pub(crate) io: bool,
}

/// See [`Privileged`].
pub(crate) static PRIVILEGED: LazyLock<Privileged> = LazyLock::new(privileged);

/// `IOPRIO_WHO_PROCESS` of ioprio_set(2).
pub(crate) const IO_WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_RT` of ioprio_set(2).
const IO_CLASS_REALTIME: libc::c_long = 1;
/// Bits of an I/O priority below its class.
const IO_CLASS_SHIFT: u32 = 13;

#[allow(unsafe_code)] // Asks with numbers alone.
fn privileged() -> Privileged {
    // SAFETY: system calls that take and give numbers.
    let (policy, io) = unsafe {
        (libc::syscall(libc::SYS_sched_getscheduler, 0), libc::syscall(libc::SYS_ioprio_get, IO_WHO_PROCESS, 0))
    };
    // A policy may carry the flag that children start with the usual one. musl's function of that name does nothing.
    let (policy, io) = (policy as libc::c_int & !libc::SCHED_RESET_ON_FORK, io);
    // SAFETY: as above. An error looks like -1 and is none here: a process may ask for its own.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    Privileged {
        policy: matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR | libc::SCHED_DEADLINE),
        nice: nice < 0,
        io: io >= 0 && io >> IO_CLASS_SHIFT == IO_CLASS_REALTIME,
    }
}

/// Raises the agent's own soft limit of open descriptors.
fn raise_descriptors() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = hard.min(WANTED_DESCRIPTORS);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        let _ = START_DESCRIPTORS.set((soft, hard));
    }
}

/// Gives the agent what a process usually starts with, before it has a second thread: default actions
/// instead of ignored signals, an empty signal mask, and descriptors that its children do not get.
/// Raises its limit of open descriptors, which its children do not get either.
///
/// SIGPIPE stays ignored, as in every Rust program. Descriptors stay open: one may hold a lock that is
/// the agent's for as long as it runs.
#[allow(unsafe_code)] // borrows descriptors by their numbers
pub(crate) fn reset_inherited() {
    reset_signals(ignored_signals() & !(1 << (libc::SIGPIPE - 1)));
    let _ = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    // Only the agent's user can access files that the agent makes, SQLite's too. Children get another umask.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    raise_descriptors();
    for descriptor in descriptors().into_iter().filter(|descriptor| *descriptor > libc::STDERR_FILENO) {
        // SAFETY: it was open a moment ago, nobody else runs, and one that is closed is an error.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let _ = fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// The open descriptors, or those that may be where the system does not tell.
fn descriptors() -> Vec<RawFd> {
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect(),
        Err(_) => (0..1024).collect(),
    }
}

/// Leaves the folder that the agent was started in, which may be unmounted or removed under it.
pub(crate) fn leave_start_dir() {
    if let Err(fault) = std::env::set_current_dir(Path::new("/")) {
        log::warn!("the working directory stays as it is: {fault}");
    }
}
