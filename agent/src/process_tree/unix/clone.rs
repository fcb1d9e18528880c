//! Starting a process: what happens between the clone and the exec.
//!
//! A child must not inherit what the agent itself was started with, so it gets a session of its own,
//! default signal actions, an empty signal mask, no descriptors beyond its three streams, and the umask
//! and `oom_score_adj` that were asked for. The standard library cannot do all of that without copying
//! the agent's page tables. So this does what `posix_spawn` does: the child borrows the agent's memory
//! until it executes its program.
//!
//! Where the kernel has it, `clone3` is used, which resets signal handlers by itself and starts the child
//! inside a cgroup. Nothing that a process forks can then escape its group, however soon it does. To
//! move it there afterwards takes the kernel 10 to 20 ms, in which a short job has long been over; a child that
//! moves itself before it executes its program waits as long.
//! On x86-64 that child borrows memory too, which takes a few instructions of the processor's own. On others it gets
//! a copy, which took 0.4 ms more where it was measured, and only where there is a group.
//!
//! **Does not** decide when: [`super::Children`] asks.

#![allow(unsafe_code)] // system calls that return twice have no safe form; see `become_program`

use super::cgroup::Group;
use super::child::{Failure, Plan, become_program};
use super::{program, terminal};
use crate::platform::TerminalSize;
use crate::platform::inherited::{PRIVILEGED, child_descriptors, ignored_signals};
use crate::process_tree::{Settings, Spawned, StartError, Step};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, Uid};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString, c_char, c_int, c_void};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::ptr::null;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Instant;

/// The size of the stack that the child uses until it executes its program.
const STACK_BYTES: usize = 64 * 1024;
/// Where programs are looked for when `PATH` is not set.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/bin:/usr/bin";

/// `clone3` is not available here, now or later.
static NO_CLONE3: AtomicBool = AtomicBool::new(false);

/// The signals that the agent ignores, which a child would inherit. They do not change after its start.
static IGNORED: LazyLock<u64> = LazyLock::new(ignored_signals);

/// The agent's own `oom_score_adj`, which a child would inherit.
static OWN_OOM_SCORE: LazyLock<Option<i32>> =
    LazyLock::new(|| std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok());

/// The call that makes a child.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// The one that suits this kernel and processor.
    Best,
    /// `clone3` with a copy of the memory.
    #[cfg(test)]
    Fork,
    /// The older call.
    #[cfg(test)]
    Older,
}

/// Starts `command` with pipes for its streams, inside `group` where there is one and the kernel can do
/// that, which the answer says. `pid` holds the child's id before the child runs.
pub(super) fn spawn(
    command: &Command,
    stdin: bool,
    settings: &Settings,
    group: Option<&Group>,
    pid: &AtomicI32,
    call: Call,
) -> Result<Spawned, StartError> {
    let texts = || -> io::Result<_> {
        let env = environment(command);
        let programs = programs(command, &env)?;
        let args = std::iter::once(command.get_program()).chain(command.get_args());
        let args = args.map(|arg| text(arg.as_bytes().to_vec())).collect::<io::Result<Vec<_>>>()?;
        let env = env
            .into_iter()
            .map(|(name, value)| text([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<io::Result<Vec<_>>>()?;
        Ok((programs, args, env))
    };
    let (programs, args, env) = texts().map_err(StartError::at(Step::Program))?;
    let folder = command.get_current_dir().map(|dir| text(dir.as_os_str().as_bytes().to_vec())).transpose();
    let folder = folder.map_err(StartError::at(Step::WorkingDir))?;
    let identity = settings.identity.as_ref().filter(|identity| identity.uid != Uid::effective());
    let groups: Option<Vec<libc::gid_t>> =
        identity.map(|identity| identity.groups.iter().map(|group| group.as_raw()).collect());
    let oom_score = settings.oom_score_adj.unwrap_or(0);
    let oom_score = (Some(oom_score) != *OWN_OOM_SCORE).then(|| text(oom_score.to_string().into_bytes()));
    let oom_score = oom_score.transpose().map_err(StartError::at(Step::OomScore))?;

    let Streams { child: [input, out_end, err_end], stdin: input_end, stdout, stderr, hangup } =
        streams(stdin, settings.terminal).map_err(StartError::at(Step::Pipes))?;
    if let Some(identity) = identity {
        // So that it can open /dev/stdout and the like. Where that is refused, its streams work all the same.
        // A terminal keeps its group: those of the user's could write to it.
        let (uid, gid) = (Some(identity.uid), settings.terminal.is_none().then_some(identity.gid));
        let _ = nix::unistd::fchown(&out_end, uid, gid);
        let _ = nix::unistd::fchown(&err_end, uid, gid);
        if stdin {
            let _ = nix::unistd::fchown(input.as_fd(), uid, gid);
        }
    }
    let mut plan = Plan {
        programs: &programs,
        args: &pointers(&args),
        env: &pointers(&env),
        folder: folder.as_ref(),
        stdio: [input.as_raw_fd(), out_end.as_raw_fd(), err_end.as_raw_fd()],
        settings,
        oom_score: oom_score.as_deref(),
        privileged: &PRIVILEGED,
        descriptors: child_descriptors().map(|(soft, hard)| libc::rlimit64 { rlim_cur: soft, rlim_max: hard }),
        groups: groups.as_deref(),
        reset: *IGNORED,
        pipe: -1,
        failure: Failure::default(),
    };
    let since = Instant::now();
    let placed = match call {
        Call::Best if !NO_CLONE3.load(Ordering::Relaxed) => by_clone3(&mut plan, group, pid)?,
        #[cfg(test)]
        Call::Fork => by_fork(&mut plan, group, pid)?.is_ok().then_some(group.is_some()),
        _ => None,
    };
    let placed = match placed {
        Some(placed) => placed,
        None => {
            if let Some(group) = group {
                group.refused.set(true);
            }
            by_clone(&mut plan, pid)?;
            false
        }
    };
    let pid = pid.load(Ordering::Acquire);
    if let Some(mut error) = plan.failure.error() {
        let _ = waitpid(Pid::from_raw(pid), None);
        if error.step == Step::Program {
            error.detail = program::fault(&programs, folder.as_deref(), Errno::from_raw(plan.failure.errno));
        }
        return Err(error);
    }
    Ok(Spawned {
        pid: pid as u32,
        since,
        stdin: input_end.map(Into::into),
        stdout: Some(stdout.into()),
        stderr: Some(OwnedFd::from(stderr).into()),
        hangup,
        first: Vec::new(),
        placed,
    })
}

/// The streams of a child, and the agent's ends of them.
struct Streams {
    child: [OwnedFd; 3],
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: PipeReader,
    /// See [`Spawned`].
    hangup: Option<PipeWriter>,
}

/// Makes pipes, or a terminal of this size.
fn streams(stdin: bool, terminal: Option<TerminalSize>) -> io::Result<Streams> {
    let (stderr, err_end) = io::pipe()?;
    if let Some(size) = terminal {
        let (master, other) = terminal::make(size)?;
        let child = [other.try_clone()?, other.try_clone()?, other];
        let stdin = Some(master.try_clone()?);
        return Ok(Streams { child, stdin, stdout: master, stderr, hangup: Some(err_end) });
    }
    let (stdout, out_end) = io::pipe()?;
    let (input, stdin): (OwnedFd, Option<OwnedFd>) = match stdin {
        true => io::pipe().map(|(end, input)| (end.into(), Some(input.into())))?,
        false => (File::open("/dev/null")?.into(), None),
    };
    let child = [input, out_end.into(), err_end.into()];
    Ok(Streams { child, stdin, stdout: stdout.into(), stderr, hangup: None })
}

/// Starts the child by `clone3`; the answer is whether it is in the group, and `None` where `clone3` is
/// not available here.
#[cfg(target_arch = "x86_64")]
fn by_clone3(plan: &mut Plan, group: Option<&Group>, pid: &AtomicI32) -> Result<Option<bool>, StartError> {
    for group in [group, None].into_iter().skip(usize::from(group.is_none())) {
        match clone3::clone(plan, group, pid) {
            Ok(()) => return Ok(Some(group.is_some())),
            Err(fault) if is_refusal(fault) => match group {
                Some(group) => refuse(group, fault),
                None => NO_CLONE3.store(true, Ordering::Relaxed),
            },
            Err(_) if group.is_some() => {}
            Err(fault) => return Err(StartError::at(Step::Process)(fault)),
        }
    }
    Ok(None)
}

/// Starts a child that is to be in a group by a `clone3` that copies memory, and any other by the older call, which
/// shares it and is faster.
#[cfg(not(target_arch = "x86_64"))]
fn by_clone3(plan: &mut Plan, group: Option<&Group>, pid: &AtomicI32) -> Result<Option<bool>, StartError> {
    let Some(known) = group else { return Ok(None) };
    match by_fork(plan, group, pid)? {
        Ok(()) => return Ok(Some(true)),
        Err(fault) if is_refusal(fault) => refuse(known, fault),
        Err(_) => {}
    }
    by_clone(plan, pid).map(|()| Some(false))
}

/// Whether the kernel will refuse the call always; too many processes or no memory may be otherwise the next time.
fn is_refusal(fault: Errno) -> bool {
    use Errno::{E2BIG, EACCES, EINVAL, ENOSYS, EOPNOTSUPP, EPERM};
    matches!(fault, ENOSYS | E2BIG | EINVAL | EOPNOTSUPP | EPERM | EACCES)
}

fn refuse(group: &Group, fault: Errno) {
    log::debug!("a process cannot be started inside a cgroup: {fault}");
    group.refused.set(true);
}

/// Starts the child by a `clone3` that copies the agent's memory, as fork(2) does. That needs no stack of its own,
/// and so nothing of the processor; it takes the time to copy page tables.
#[cfg_attr(all(target_arch = "x86_64", not(test)), allow(dead_code, reason = "memory is shared there"))]
fn by_fork(plan: &mut Plan, group: Option<&Group>, pid: &AtomicI32) -> Result<Result<(), Errno>, StartError> {
    let flags = (libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID) as u64;
    let args = clone3::CloneArgs::new(flags, group, pid);
    with_failure_pipe(plan, |plan| {
        // SAFETY: the child has its own copy of all memory, and makes only system calls until it is its program.
        let cloned = unsafe {
            match libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) {
                0 => child((&raw mut *plan).cast()),
                cloned => Errno::result(cloned)?,
            }
        };
        pid.store(cloned as i32, Ordering::Release);
        Ok(())
    })
}

/// Starts the child by the older call. An emulator that makes a fork of it shares no memory, so a
/// failure comes through a pipe.
fn by_clone(plan: &mut Plan, pid: &AtomicI32) -> Result<(), StartError> {
    plan.reset = u64::MAX;
    let mut stack = Vec::<u8>::with_capacity(STACK_BYTES);
    let top = (stack.as_mut_ptr() as usize + STACK_BYTES) & !15;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
    let cloned = with_failure_pipe(plan, |plan| {
        // No handler of the agent may run in the child, whose memory is the agent's.
        let before = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        // SAFETY: what it points to lives until the child has let go of this memory, which is when the call
        // returns, for CLONE_VFORK stops this thread that long.
        let cloned = unsafe { libc::clone(entry, top as *mut c_void, flags, (&raw mut *plan).cast(), pid.as_ptr()) };
        let cloned = Errno::result(cloned);
        let _ = before.thread_set_mask();
        pid.store(cloned?, Ordering::Release);
        Ok(())
    })?;
    cloned.map_err(StartError::at(Step::Process))
}

/// Makes a child by `clone`, and reads its failure from a pipe, for it may not share this memory; none where it has
/// become its program.
fn with_failure_pipe(
    plan: &mut Plan,
    clone: impl FnOnce(&mut Plan) -> Result<(), Errno>,
) -> Result<Result<(), Errno>, StartError> {
    let (mut failure, end) = io::pipe().map_err(StartError::at(Step::Pipes))?;
    plan.pipe = end.as_raw_fd();
    let cloned = clone(plan);
    plan.pipe = -1;
    drop(end);
    let mut bytes = [0; size_of::<Failure>()];
    if cloned.is_ok() && failure.read_exact(&mut bytes).is_ok() {
        let [step, errno] = [[0, 1, 2, 3], [4, 5, 6, 7]].map(|at| at.map(|at: usize| bytes[at]));
        plan.failure = Failure { step: u32::from_ne_bytes(step), errno: i32::from_ne_bytes(errno) };
    }
    Ok(cloned)
}

mod clone3 {
    use super::*;

    const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const INTO_CGROUP: u64 = 0x2_0000_0000;

    /// `struct clone_args` of clone(2).
    #[repr(C, align(8))]
    #[derive(Default)]
    pub(super) struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }

    impl CloneArgs {
        /// The child has no signal handlers of the agent, and is in the group where there is one.
        pub(super) fn new(flags: u64, group: Option<&Group>, pid: &AtomicI32) -> CloneArgs {
            let flags = flags | CLEAR_SIGHAND;
            CloneArgs {
                flags: if group.is_some() { flags | INTO_CGROUP } else { flags },
                exit_signal: libc::SIGCHLD as u64,
                parent_tid: pid.as_ptr() as u64,
                cgroup: group.map_or(0, |group| group.folder.as_raw_fd() as u64),
                ..CloneArgs::default()
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn clone(plan: &mut Plan, group: Option<&Group>, pid: &AtomicI32) -> Result<(), Errno> {
        let mut stack = Vec::<u8>::with_capacity(STACK_BYTES);
        let flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID) as u64;
        let args = CloneArgs {
            // The end is rounded down to what the processor's calling convention wants.
            stack: stack.as_mut_ptr() as u64,
            stack_size: ((stack.as_mut_ptr() as u64 + STACK_BYTES as u64) & !15) - stack.as_mut_ptr() as u64,
            ..CloneArgs::new(flags, group, pid)
        };
        // SAFETY: what both point to lives until the child has let go of this memory, which is when the
        // call returns here, for CLONE_VFORK stops this thread that long.
        let cloned = unsafe { call(&args, (&raw mut *plan).cast()) };
        if cloned < 0 {
            return Err(Errno::from_raw(-cloned as i32));
        }
        pid.store(cloned as i32, Ordering::Release);
        // SAFETY: the child wrote it through a pointer of its own, which the compiler does not see.
        plan.failure = unsafe { (&raw const plan.failure).read_volatile() };
        Ok(())
    }

    /// Makes a child that runs [`child`] on its own stack; the answer is its id, or the error below zero.
    ///
    /// # Safety
    /// `plan` is a [`Plan`], and both live until this returns.
    #[cfg(target_arch = "x86_64")]
    unsafe fn call(args: &CloneArgs, plan: *mut c_void) -> i64 {
        let result: i64;
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                // The child: there is no frame above this one.
                "xor ebp, ebp",
                "mov rdi, {plan}",
                "call {child}",
                "ud2",
                "2:",
                plan = in(reg) plan,
                child = in(reg) child as extern "C" fn(*mut c_void) -> !,
                inlateout("rax") libc::SYS_clone3 => result,
                in("rdi") args,
                in("rsi") size_of::<CloneArgs>(),
                out("rcx") _,
                out("r11") _,
            );
        }
        result
    }
}

extern "C" fn entry(plan: *mut c_void) -> c_int {
    child(plan)
}

extern "C" fn child(plan: *mut c_void) -> ! {
    // SAFETY: it is the plan that `spawn` made, and its thread stands still.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    plan.failure = become_program(plan);
    unsafe {
        if plan.pipe >= 0 {
            libc::write(plan.pipe, (&raw const plan.failure).cast(), size_of::<Failure>());
        }
        libc::_exit(127)
    }
}

/// The variables that the command sets. A child inherits none by itself.
fn environment(command: &Command) -> BTreeMap<OsString, OsString> {
    let set = |(name, value): (&OsStr, Option<&OsStr>)| Some((name.to_owned(), value?.to_owned()));
    command.get_envs().filter_map(set).collect()
}

/// Where the program may lie: itself when it is a path, else in the folders of the child's `PATH`.
fn programs(command: &Command, env: &BTreeMap<OsString, OsString>) -> io::Result<Vec<CString>> {
    let program = command.get_program().as_bytes();
    if program.contains(&b'/') {
        return Ok(vec![text(program.to_vec())?]);
    }
    let path = env.get(OsStr::new("PATH")).map_or(DEFAULT_PATH, |path| path.as_bytes());
    path.split(|byte| *byte == b':')
        .map(|dir| match dir {
            b"" => text(program.to_vec()),
            dir => text([dir, b"/", program].concat()),
        })
        .collect()
}

fn text(bytes: Vec<u8>) -> io::Result<CString> {
    // As the standard library says it.
    CString::new(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "nul byte found in provided data"))
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([null()]).collect()
}
