//! Pseudo-terminals of children.

#![allow(unsafe_code)] // the calls on terminals have no safe form without more of nix

use crate::platform::TerminalSize;
use nix::errno::Errno;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Makes a terminal of this size; returns its master, which never blocks, and its other side for the child.
pub(super) fn make(size: TerminalSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let open = |path: &str, flags: i32| -> io::Result<File> {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY | flags).open(path)
    };
    let master = open("/dev/ptmx", libc::O_NONBLOCK)?;
    let (unlock, mut number): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: both calls read or write one integer.
    unsafe {
        Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlock))?;
        Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN as _, &raw mut number))?;
    }
    resize(master.as_fd(), size)?;
    let other = open(&format!("/dev/pts/{number}"), 0)?;
    Ok((master.into(), other.into()))
}

/// Sets the size of a terminal, of which the kernel tells its processes.
pub(super) fn resize(terminal: BorrowedFd, size: TerminalSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call reads one structure.
    unsafe { Errno::result(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size))? };
    Ok(())
}

/// Makes the terminal at stdin the one of the caller's session. For a child that has no session's terminal yet.
///
/// # Safety
/// None of its own; it is a system call, and may be made between clone and exec.
pub(super) unsafe fn take_control() -> i32 {
    unsafe { libc::ioctl(0, libc::TIOCSCTTY as _, 0) }
}
