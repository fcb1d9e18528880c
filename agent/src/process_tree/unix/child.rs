//! The child between the clone and the exec: it may neither allocate nor lock.

#![allow(unsafe_code)] // system calls of a child that shares the memory of the agent

use super::terminal;
use crate::platform::inherited::{IO_WHO_PROCESS, Privileged, SIGSET_BYTES, reset_signals};
use crate::process_tree::{Settings, StartError, Step};
use nix::errno::Errno;
use nix::libc;
use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::RawFd;
use std::ptr::null;

/// Runs in the agent's memory beside its other threads, so only system calls are made here, and none
/// through a function that would have all threads of the agent take part (as libc's `setuid` does).
pub(super) fn become_program(plan: &mut Plan) -> Failure {
    if let Err((step, errno)) = prepare(plan) {
        return Failure::new(step, errno);
    }
    let mut refused = None;
    for program in plan.programs {
        // SAFETY: texts and lists end in null, and live as long as the plan.
        unsafe { libc::execve(program.as_ptr(), plan.args.as_ptr(), plan.env.as_ptr()) };
        match Errno::last() {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Another folder may have one that may be run.
            Errno::EACCES => refused = Some(Errno::EACCES),
            fault => return Failure::new(Step::Program, fault),
        }
    }
    Failure::new(Step::Program, refused.unwrap_or(Errno::ENOENT))
}

pub(super) fn prepare(plan: &mut Plan) -> Result<(), (Step, Errno)> {
    let check = |step: Step, result: i64| Errno::result(result).map(drop).map_err(|errno| (step, errno));
    // SAFETY: system calls with numbers and with pointers into the plan.
    unsafe {
        check(Step::Session, libc::setsid().into())?;
        for (target, source) in plan.stdio.iter().enumerate() {
            check(Step::Session, libc::dup2(*source, target as c_int).into())?;
        }
        if plan.settings.terminal.is_some() {
            check(Step::Session, terminal::take_control().into())?;
        }
        let mut others = FIRST_OTHER;
        if plan.pipe >= 0 {
            if plan.pipe != others {
                check(Step::Session, libc::dup3(plan.pipe, others, libc::O_CLOEXEC).into())?;
                plan.pipe = others;
            }
            others += 1;
        }
        // A kernel before 5.9 has no such call. There the exec closes the agent's own and inherited descriptors.
        libc::syscall(libc::SYS_close_range, others as libc::c_uint, libc::c_uint::MAX, 0);
        libc::umask(plan.settings.umask as libc::mode_t);
        // Before the limits, which may leave no descriptor for it.
        if let Some(score) = plan.oom_score {
            let set = write_file(c"/proc/self/oom_score_adj", score.to_bytes());
            // The default is no wish of anybody's: where it is refused, the agent's own value stays.
            if let (Err(errno), true) = (set, plan.settings.oom_score_adj.is_some()) {
                return Err((Step::OomScore, errno));
            }
        }
        // Where that is refused (which the usual ones are not), the agent's own stay.
        if plan.privileged.policy {
            // The kernel's structure has the priority alone. musl's function of this name does nothing.
            let priority: c_int = 0;
            libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const priority);
        }
        if plan.privileged.nice {
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        }
        if plan.privileged.io {
            libc::syscall(libc::SYS_ioprio_set, IO_WHO_PROCESS, 0, 0);
        }
        let nothing = null::<libc::rlimit64>();
        if let Some(both) = &plan.descriptors {
            libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, &raw const *both, nothing);
        }
        for (index, limit) in plan.settings.limits.iter().enumerate() {
            let both = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
            let resource = limit.resource as c_int;
            let set = libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const both, nothing);
            check(Step::Limit(index), set)?;
        }
        if let Some(nice) = plan.settings.nice {
            check(Step::Nice, libc::setpriority(libc::PRIO_PROCESS, 0, nice).into())?;
        }
        if let (Some(identity), Some(groups)) = (&plan.settings.identity, plan.groups) {
            check(Step::User, libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
            check(Step::User, libc::syscall(libc::SYS_setgid, identity.gid.as_raw()))?;
            check(Step::User, libc::syscall(libc::SYS_setuid, identity.uid.as_raw()))?;
        }
        // As its user: that one is who must be allowed to enter it.
        if let Some(folder) = plan.folder {
            check(Step::WorkingDir, libc::chdir(folder.as_ptr()).into())?;
        }
        // By the system calls themselves: libc's functions take locks, and leave out signals of its own.
        reset_signals(plan.reset);
        let none = 0u64;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, null::<u64>(), SIGSET_BYTES);
    }
    Ok(())
}

/// Everything that the child needs, made before it is there: it may neither allocate nor lock.
pub(super) struct Plan<'a> {
    /// Where the program may lie, in the order of trying.
    pub(super) programs: &'a [CString],
    /// Null at the end, as execve(2) wants both.
    pub(super) args: &'a [*const c_char],
    pub(super) env: &'a [*const c_char],
    pub(super) folder: Option<&'a CString>,
    pub(super) stdio: [RawFd; 3],
    pub(super) settings: &'a Settings,
    /// The value to write to `oom_score_adj`, where it is another one than the agent's.
    pub(super) oom_score: Option<&'a CStr>,
    pub(super) privileged: &'a Privileged,
    /// The limits of open descriptors, where they are others than the agent's.
    pub(super) descriptors: Option<libc::rlimit64>,
    /// The groups of the user to become, where that is another one.
    pub(super) groups: Option<&'a [libc::gid_t]>,
    /// Signals to reset, bit n - 1 for signal n.
    pub(super) reset: u64,
    /// Where the child writes its failure; -1 where it shares this memory.
    pub(super) pipe: RawFd,
    pub(super) failure: Failure,
}

/// The step that failed and its errno; 0 is none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Failure {
    pub(super) step: u32,
    pub(super) errno: i32,
}

impl Failure {
    pub(super) fn new(step: Step, errno: Errno) -> Failure {
        let step = match step {
            Step::Limit(index) => LIMITS + index as u32,
            step => STEPS.iter().position(|known| *known == step).map_or(0, |index| index as u32 + 1),
        };
        Failure { step, errno: errno as i32 }
    }

    pub(super) fn error(self) -> Option<StartError> {
        let step = match self.step {
            0 => return None,
            LIMITS.. => Step::Limit((self.step - LIMITS) as usize),
            step => STEPS.get(step as usize - 1).copied().unwrap_or(Step::Program),
        };
        Some(StartError { step, error: io::Error::from_raw_os_error(self.errno), detail: None })
    }
}

/// The steps as a failure counts them from 1, but for limits.
const STEPS: [Step; 8] = [
    Step::Pipes,
    Step::Process,
    Step::Session,
    Step::Nice,
    Step::OomScore,
    Step::User,
    Step::WorkingDir,
    Step::Program,
];

/// The first limit as a failure counts it.
const LIMITS: u32 = 100;

/// The first descriptor that is none of the three streams.
pub(super) const FIRST_OTHER: RawFd = 3;

/// Writes `text` to a file that is there, by system calls alone.
///
/// # Safety
/// None of its own; it stands beside its only caller.
unsafe fn write_file(path: &CStr, text: &[u8]) -> Result<(), Errno> {
    unsafe {
        let file = Errno::result(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = Errno::result(libc::write(file, text.as_ptr().cast(), text.len()));
        libc::close(file);
        written.map(drop)
    }
}
