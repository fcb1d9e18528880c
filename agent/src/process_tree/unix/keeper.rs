//! The pipes of daemons that finished jobs have started, kept readable beyond the agent's end.
//!
//! A program that writes into a pipe without a reader gets SIGPIPE. So a second process, the keeper,
//! holds the reading ends of such pipes as well. It reads nothing while the agent lives. Once the agent
//! has ended, in whatever way, the keeper reads and drops what daemons write, until the last one ends.
//! Only an agent with such daemons has a keeper.

use super::pipes::Ends;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::collections::HashSet;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// The argument that makes this program a keeper.
const FLAG: &str = "--keep-pipes";

/// The agent's end of the socket to its keeper, if there is one.
#[derive(Default)]
pub(crate) struct Keeper {
    socket: Option<UnixStream>,
    /// The runs whose pipes it holds.
    runs: HashSet<u64>,
}

impl Keeper {
    /// Has the pipes of this run kept, those that are still open. Starts the keeper where there is none.
    pub(crate) fn keep(&mut self, run: u64, ends: &Ends) {
        let open = ends.open();
        let pipes: Vec<RawFd> = open.iter().map(|pipe| pipe.as_raw_fd()).collect();
        if pipes.is_empty() || self.socket.as_ref().is_some_and(|socket| send(socket, &pipes)) {
            if !pipes.is_empty() {
                self.runs.insert(run);
            }
            return;
        }
        let Some(socket) = start() else { return };
        match send(&socket, &pipes) {
            true => drop(self.runs.insert(run)),
            false => log::warn!("a daemon of a finished job may end with the agent: its pipes cannot be kept"),
        }
        self.socket = Some(socket);
    }

    /// Forgets a run whose pipes have ended.
    pub(crate) fn ended(&mut self, run: u64) {
        self.runs.remove(&run);
    }

    /// Ends the keeper when it holds no pipe.
    pub(crate) fn rest(&mut self) {
        if self.runs.is_empty() {
            self.socket = None;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The keeper reads once the socket is closed, and the agent reads until its process ends.
        if let Some(socket) = self.socket.take() {
            let _ = socket.into_raw_fd();
        }
    }
}

fn send(socket: &UnixStream, pipes: &[RawFd]) -> bool {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let message = [ControlMessage::ScmRights(pipes)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"p")], &message, flags, None).is_ok()
}

/// Starts a keeper, on a thread: the program's file may lie on a file system that does not answer. Messages that
/// are sent before it runs wait in the socket.
fn start() -> Option<UnixStream> {
    if cfg!(test) {
        // The program is the test itself.
        return None;
    }
    let (own, other) = UnixStream::pair().inspect_err(|fault| log::warn!("no socket for a keeper: {fault}")).ok()?;
    let run = move || {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("jsagent").arg(FLAG).env_clear().current_dir("/");
        command.stdin(OwnedFd::from(other)).stdout(Stdio::null()).stderr(Stdio::null());
        if let Err(fault) = command.spawn() {
            log::warn!("a daemon of a finished job may end with the agent: no process keeps its pipes: {fault}");
        }
    };
    jscommon::worker::Worker::spawn("keeper", 64 * 1024, run).ok()?.detach();
    Some(own)
}

/// Keeps pipes, when this process was started for that: `main` asks before it does anything else.
pub(crate) fn keep_pipes_if_asked() -> Option<ExitCode> {
    (std::env::args_os().nth(1)? == FLAG).then(|| {
        prepare();
        keep(UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().ok()?));
        Some(ExitCode::SUCCESS)
    })?
}

/// Closes the descriptors that the agent has inherited, and leaves its session and terminal. Signals that end
/// services are ignored: a keeper ends with the last daemon.
#[allow(unsafe_code)] // system calls without a safe form
fn prepare() {
    // SAFETY: this process has opened no descriptor yet, and no handler runs.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        for ignored in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
            let _ = signal(ignored, SigHandler::SigIgn);
        }
    }
    let _ = nix::unistd::setsid();
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn keep(socket: UnixStream) {
    let mut agent = Some(socket);
    let mut pipes: Vec<File> = Vec::new();
    let mut buffer = Vec::new();
    while agent.is_some() || !pipes.is_empty() {
        // The end of a pipe is told even to those who ask for nothing.
        let wanted = if agent.is_some() { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut polled: Vec<PollFd> = pipes.iter().map(|pipe| PollFd::new(pipe.as_fd(), wanted)).collect();
        polled.extend(agent.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let told: Vec<PollFlags> = polled.iter().map(|one| one.revents().unwrap_or(PollFlags::empty())).collect();
        let mut index = 0;
        pipes.retain_mut(|pipe| {
            index += 1;
            let told = told[index - 1];
            if agent.is_none() && told.contains(PollFlags::POLLIN) {
                buffer.resize(64 * 1024, 0);
                return !matches!(pipe.read(&mut buffer), Ok(0));
            }
            !told.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL)
        });
        if let Some(socket) = &agent
            && told.last().is_some_and(|told| !told.is_empty())
            && !receive(socket, &mut pipes)
        {
            agent = None;
        }
    }
}

/// Takes pipes from the agent; no when the agent has ended.
#[allow(unsafe_code)] // descriptors that the kernel has just made belong to nobody else
fn receive(socket: &UnixStream, pipes: &mut Vec<File>) -> bool {
    let mut byte = [0];
    let mut room = nix::cmsg_space!([RawFd; 2]);
    let mut data = [IoSliceMut::new(&mut byte)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = match received {
        Ok(message) => message,
        Err(fault) => return fault == Errno::EINTR,
    };
    for control in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: as above.
            pipes.extend(received.into_iter().map(|pipe| unsafe { File::from_raw_fd(pipe) }));
        }
    }
    message.bytes > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn keeper_reads_nothing_before_the_agent_ends_and_everything_after() {
        let (agent, keeper) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let (closed, closed_writer) = std::io::pipe().unwrap();
        assert!(send(&agent, &[reader.as_raw_fd(), closed.as_raw_fd()]));
        drop((closed, closed_writer));
        let thread = std::thread::spawn(move || keep(keeper));
        writer.write_all(b"for the agent").unwrap();
        let mut read = [0; 13];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"for the agent");
        drop((agent, reader));
        // More than a pipe holds.
        writer.write_all(&[b'x'; 300_000]).unwrap();
        drop(writer);
        let begin = std::time::Instant::now();
        while !thread.is_finished() {
            assert!(begin.elapsed() < Duration::from_secs(30), "it ends with the last writer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
