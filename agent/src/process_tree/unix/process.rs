//! Linux: process groups, a subreaper and one waiter for all children.

use super::cgroup::Group;
use super::clone::{self, Call};
use super::proc::process;
use crate::platform::Signal;
use crate::process_tree::{Proc, Settings, Spawned, StartError, Step};
use jscommon::lock::lock;
use jscommon::worker::Worker;
use nix::errno::Errno;
use nix::sys::signal as posix;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// A command that runs in `folder`, with an empty environment. The child itself looks for its program, once it is there.
pub(crate) fn command(program: &str, folder: Option<&Path>, _path: Option<&str>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    command
}

/// The children of the agent: starts them, waits for them and for the orphans it adopts.
///
/// A child is reaped under the same lock under which it is signalled, so that a signal never reaches
/// a process that has taken over a dead one's id. The table is the whole process', for a wait for any
/// child is: nobody else in this process may wait for children of its own.
pub(crate) struct Children {
    exited: Exited,
    /// Tests choose another one than the best.
    call: Call,
}

/// Told of a run and its status.
type Exited = Arc<dyn Fn(u64, i32) + Send + Sync>;

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// Told when the start of a child is over.
    started: Condvar,
}

#[derive(Default)]
struct Table {
    /// Children that were not reaped, their runs, and who is told.
    runs: HashMap<u32, (u64, Exited)>,
    /// Ids of children that are being started, which no run has yet; 0 while there is no child.
    starting: Vec<(u64, Arc<AtomicI32>)>,
    /// Counts the children ever started.
    count: u64,
    waiting: bool,
}

static SHARED: LazyLock<Shared> = LazyLock::new(Shared::default);

impl Children {
    /// Makes the agent the parent of every orphan below it and starts the waiter thread, which calls
    /// `exited` with the run and its status (128 + n for signal n).
    pub(crate) fn start(exited: impl Fn(u64, i32) + Send + Sync + 'static) -> io::Result<Children> {
        // Without it a descendant whose parent ended would go to init, out of sight.
        if let Err(fault) = nix::sys::prctl::set_child_subreaper(true) {
            log::warn!("cannot adopt orphans ({fault}); descendants that detach are found by their environment alone");
        }
        let mut table = lock(&SHARED.table);
        if !table.waiting {
            // It may sit in a wait for an adopted daemon when the agent ends, so nobody joins it.
            Worker::spawn("waiter", 64 * 1024, || SHARED.wait())?.detach();
            table.waiting = true;
        }
        Ok(Children { exited: Arc::new(exited), call: Call::Best })
    }

    /// Starts a child for this run, with pipes for its output, and for its input where `stdin` says so;
    /// in `group` where there is one and the kernel can do that, which the answer says. One that is not wanted any
    /// more is not made.
    ///
    /// The table is free meanwhile: a child may wait for a file system before it is its program.
    pub(crate) fn spawn(
        &self,
        run: u64,
        command: &mut Command,
        stdin: bool,
        settings: &Settings,
        group: Option<&Group>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Spawned, StartError> {
        let pid = Arc::new(AtomicI32::new(0));
        lock(&SHARED.table).starting.push((run, pid.clone()));
        // From here on `abort_start` finds the child.
        let spawned = match is_wanted() {
            true => clone::spawn(command, stdin, settings, group, &pid, self.call),
            false => Err(StartError::at(Step::Process)(io::Error::other("the job was ended before its start"))),
        };
        let mut table = lock(&SHARED.table);
        table.starting.retain(|(_, known)| !Arc::ptr_eq(known, &pid));
        if let Ok(spawned) = &spawned {
            table.runs.insert(spawned.pid, (run, self.exited.clone()));
            table.count += 1;
        }
        SHARED.started.notify_all();
        spawned
    }

    /// Ends the child of a start that is under way, which may wait for a file system.
    pub(crate) fn abort_start(&self, run: u64) {
        // The waiter reaps no such child before its start is over, so its id is still its own.
        let table = lock(&SHARED.table);
        let pids = table.starting.iter().filter(|(known, _)| *known == run).map(|(_, pid)| pid.load(Ordering::Acquire));
        for pid in pids.filter(|pid| *pid > 0) {
            send(pid, Signal::KILL);
        }
    }

    /// Sends `signal` to the process group of this run's first process `pid`, as long as that one was
    /// not reaped; else nothing, and the answer is no.
    pub(crate) fn signal_group(&self, run: u64, pid: u32, signal: Signal) -> bool {
        let table = lock(&SHARED.table);
        table.runs.get(&pid).is_some_and(|(known, _)| *known == run) && send(-(pid as i32), signal)
    }

    /// Asks the whole tree to end by `signal`. A stopped process takes that only once it continues.
    pub(crate) fn stop_tree(&self, run: u64, pid: u32, members: &[Proc], signal: Signal) {
        self.signal_tree(run, pid, members, signal);
        self.signal_tree(run, pid, members, Signal::CONT);
    }

    /// Sends `signal` to the whole tree: the group, and each member outside of it.
    pub(crate) fn signal_tree(&self, run: u64, pid: u32, members: &[Proc], signal: Signal) {
        let whole_group = self.signal_group(run, pid, signal);
        for member in members {
            if !(whole_group && member.group == pid) {
                signal_process(member, signal);
            }
        }
    }
}

impl Table {
    /// Whether the start of the child `pid` is under way. An emulator tells a child's id only once it has made the
    /// child, so an unknown child may be of a start that has no id yet.
    fn may_be_starting(&self, pid: u32) -> bool {
        self.starting.iter().any(|(_, known)| match known.load(Ordering::Acquire) {
            0 => !self.runs.contains_key(&pid),
            known => known == pid as i32,
        })
    }
}

impl Shared {
    fn wait(&self) {
        loop {
            let before = lock(&self.table).count;
            match wait_for(None, LOOK) {
                Ok(None) | Err(Errno::EINTR) => {}
                Ok(Some((pid, _))) => {
                    let mut table = lock(&self.table);
                    // One that has ended already is not waited for long: its start ends with it.
                    while table.may_be_starting(pid) {
                        table = self.started.wait_timeout(table, MOMENT).unwrap_or_else(PoisonError::into_inner).0;
                    }
                    let child = reap(&mut table, pid);
                    drop(table);
                    if let Some(((run, exited), code)) = child {
                        exited(run, code);
                    }
                }
                // No child and so no descendant either: only a start can change that.
                Err(Errno::ECHILD) => {
                    let mut table = lock(&self.table);
                    while table.count == before {
                        table = self.started.wait(table).unwrap_or_else(PoisonError::into_inner);
                    }
                }
                Err(fault) => {
                    log::error!("cannot wait for processes: {fault}");
                    std::thread::sleep(std::time::Duration::from_secs(1));
                }
            }
        }
    }
}

/// Waits until this run's first process has ended, and reaps it. Nothing when the waiter came first: then
/// that one tells of the end.
///
/// For who has seen the end of its output, which most often is its own end too: the run is over with
/// that one piece of news, and nobody waits for the waiter to wake up.
pub(crate) fn wait_child(run: u64, pid: u32) -> Option<i32> {
    let is_its = |table: &Table| table.runs.get(&pid).is_some_and(|(known, _)| *known == run);
    if !is_its(&lock(&SHARED.table)) {
        return None;
    }
    // Whatever else it answers, the table knows whether there is still an end to be told.
    while wait_for(Some(pid), LOOK) == Err(Errno::EINTR) {}
    let mut table = lock(&SHARED.table);
    match is_its(&table) {
        true => reap(&mut table, pid).map(|(_, code)| code),
        false => None,
    }
}

/// Reaps a child that has ended, and says whose it was and its status. Nothing when that was done before.
fn reap(table: &mut Table, pid: u32) -> Option<((u64, Exited), i32)> {
    match wait_for(Some(pid), REAP) {
        Ok(ended) => ended.and_then(|(_, code)| Some((table.runs.remove(&pid)?, code))),
        // A child is in the table before it can be reaped, so one that the table has and the kernel has not was
        // reaped by somebody else in this process. Its end is told all the same.
        Err(Errno::ECHILD) => {
            let known = table.runs.remove(&pid)?;
            log::error!("process {pid} has ended and its status is lost; it counts as {LOST}");
            Some((known, LOST))
        }
        Err(_) => None,
    }
}

/// The status of a child that somebody else has reaped: no success, and none that a signal leaves.
const LOST: i32 = 255;

/// How often the end of a child whose start is under way is looked at again.
const MOMENT: Duration = Duration::from_millis(1);
/// Waits for an end, and leaves the child to be reaped.
const LOOK: i32 = nix::libc::WEXITED | nix::libc::WNOWAIT;
/// Reaps a child that has ended, and waits for none.
const REAP: i32 = nix::libc::WEXITED | nix::libc::WNOHANG;

/// Asks `waitid` for the end of this child (or any). The answer is its process id and status, which is
/// 128 + n for signal n; nothing where it is not to wait and there is none.
#[allow(unsafe_code)] // nix fails on a child that a real-time signal ended, and could not say which
fn wait_for(child: Option<u32>, flags: i32) -> Result<Option<(u32, i32)>, Errno> {
    use nix::libc;
    let (which, id) = child.map_or((libc::P_ALL, 0), |pid| (libc::P_PID, pid));
    let (pid, status, how) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        Errno::result(libc::waitid(which, id, &mut info, flags))?;
        (info.si_pid(), info.si_status(), info.si_code)
    };
    let code = if how == libc::CLD_EXITED { status } else { 128 + status };
    Ok((pid != 0).then_some((pid as u32, code)))
}

/// Signals a process (a group where `target` is negative); the answer is whether it was there.
#[allow(unsafe_code)] // nix has no names for every signal that a user may ask for
fn send(target: i32, signal: Signal) -> bool {
    match posix::Signal::try_from(signal.0) {
        Ok(signal) => posix::kill(Pid::from_raw(target), signal).is_ok(),
        Err(_) => unsafe { nix::libc::kill(target, signal.0) == 0 },
    }
}

/// Signals one process, when it is still the one that was seen.
pub(crate) fn signal_process(seen: &Proc, signal: Signal) -> bool {
    match process(seen.pid, &mut Vec::new()) {
        Some(now) if now.started == seen.started && !now.dead => send(seen.pid as i32, signal),
        _ => false,
    }
}

/// Asks one process to end, when it is still the one that was seen, stopped or not.
pub(crate) fn stop_process(seen: &Proc, signal: Signal) -> bool {
    signal_process(seen, signal) && signal_process(seen, Signal::CONT)
}

#[cfg(test)]
mod tests;
