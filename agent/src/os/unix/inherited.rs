//! What a process inherits from whoever started it, taken back at the agent's start.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::ptr::null;

/// Signals that are numbered above these are not known to Linux.
const LAST_SIGNAL: libc::c_int = 64;

/// Gives the agent what a process usually starts with, before it has a second thread: default actions
/// instead of ignored signals, an empty signal mask, and descriptors that its children do not get.
///
/// SIGPIPE stays ignored, as in every Rust program. Descriptors stay open: one may hold a lock that is
/// the agent's for as long as it runs.
#[allow(unsafe_code)] // Sets default actions alone; libc's function leaves out signals of its own.
pub fn reset_inherited() {
    for signal in (1..=LAST_SIGNAL).filter(|signal| *signal != libc::SIGPIPE) {
        let mut action = [0u64; 8];
        let default = [0u64; 8];
        unsafe {
            let asked = libc::syscall(libc::SYS_rt_sigaction, signal, null::<u64>(), action.as_mut_ptr(), 8usize);
            if asked == 0 && action[0] as libc::sighandler_t == libc::SIG_IGN {
                libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), null::<u64>(), 8usize);
            }
        }
    }
    let _ = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK);
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
pub fn leave_start_dir() {
    if let Err(fault) = std::env::set_current_dir(Path::new("/")) {
        log::warn!("the working directory stays as it is: {fault}");
    }
}
