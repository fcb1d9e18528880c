//! Starting a process inside a cgroup.
//!
//! Nothing that a process forks can then escape its group, however soon it does. The standard library
//! cannot start one so, and to move it there afterwards takes the kernel 10 to 20 ms, in which a short
//! job has long been over. So this does what `posix_spawn` does (the child borrows the agent's memory
//! until it becomes its program, which spares the copying of page tables) with `clone3` and a cgroup.
//!
//! **Does not** decide when: [`super::Children`] asks, and starts the process the usual way where the
//! kernel, or this machine's processor, cannot do it.

use super::process::Settings;
use super::{Group, Spawned};
use std::io;
use std::process::Command;

/// Starts `command` in this group, with its pipes; nothing where that cannot be done here.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn spawn(_: &Command, _: bool, _: &Settings, group: &Group) -> io::Result<Option<Spawned>> {
    group.refused.set(true);
    Ok(None)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) use here::spawn;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(unsafe_code)] // a system call that returns twice has no safe form; see `here::become_program`
mod here {
    use super::*;
    use nix::errno::Errno;
    use nix::libc;
    use nix::sys::wait::waitpid;
    use nix::unistd::{Pid, Uid};
    use std::arch::asm;
    use std::collections::BTreeMap;
    use std::ffi::{CString, OsString, c_char, c_void};
    use std::fs::File;
    use std::os::fd::{AsRawFd, OwnedFd, RawFd};
    use std::os::unix::ffi::OsStrExt;
    use std::ptr::null;

    const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    /// What the child runs on until it becomes its program.
    const STACK: usize = 64 * 1024;
    /// Where programs are looked for when nobody says so.
    const PATH: &str = "/usr/local/bin:/bin:/usr/bin";

    /// `struct clone_args` of clone(2).
    #[repr(C, align(8))]
    #[derive(Default)]
    struct CloneArgs {
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

    /// Everything that the child needs, made before it is there: it may neither allocate nor lock.
    struct Plan<'a> {
        /// Where the program may lie, in the order of trying.
        programs: &'a [CString],
        /// Null at the end, as execve(2) wants both.
        args: &'a [*const c_char],
        env: &'a [*const c_char],
        folder: Option<&'a CString>,
        stdio: [RawFd; 3],
        settings: &'a Settings,
        /// The groups of the user to become, where that is another one.
        groups: Option<&'a [u32]>,
        /// Why it did not become its program.
        error: i32,
    }

    pub(in super::super) fn spawn(
        command: &Command,
        stdin: bool,
        settings: &Settings,
        group: &Group,
    ) -> io::Result<Option<Spawned>> {
        let env = environment(command);
        let programs = programs(command, &env)?;
        let args = std::iter::once(command.get_program()).chain(command.get_args());
        let args = args.map(|arg| text(arg.as_bytes().to_vec())).collect::<io::Result<Vec<_>>>()?;
        let env = env
            .into_iter()
            .map(|(name, value)| text([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<io::Result<Vec<_>>>()?;
        let folder = command.get_current_dir().map(|dir| text(dir.as_os_str().as_bytes().to_vec())).transpose()?;
        let identity = settings.identity.as_ref().filter(|identity| identity.uid != Uid::effective());
        let groups: Option<Vec<u32>> =
            identity.map(|identity| identity.groups.iter().map(|group| group.as_raw()).collect());

        let (out, out_end) = io::pipe()?;
        let (err, err_end) = io::pipe()?;
        let (input, input_end): (OwnedFd, Option<OwnedFd>) = match stdin {
            true => io::pipe().map(|(end, input)| (end.into(), Some(input.into())))?,
            false => (File::open("/dev/null")?.into(), None),
        };
        let mut plan = Plan {
            programs: &programs,
            args: &pointers(&args),
            env: &pointers(&env),
            folder: folder.as_ref(),
            stdio: [input.as_raw_fd(), out_end.as_raw_fd(), err_end.as_raw_fd()],
            settings,
            groups: groups.as_deref(),
            error: 0,
        };
        let mut stack = Vec::<u8>::with_capacity(STACK);
        let args = CloneArgs {
            flags: (libc::CLONE_VM | libc::CLONE_VFORK) as u64 | CLEAR_SIGHAND | INTO_CGROUP,
            exit_signal: libc::SIGCHLD as u64,
            // The end is rounded down to what the processor's calling convention wants.
            stack: stack.as_mut_ptr() as u64,
            stack_size: ((stack.as_mut_ptr() as u64 + STACK as u64) & !15) - stack.as_mut_ptr() as u64,
            cgroup: group.folder.as_raw_fd() as u64,
            ..CloneArgs::default()
        };
        // SAFETY: what both point to lives until the child has let go of this memory, which is when the
        // call returns here, for CLONE_VFORK stops this thread that long.
        let pid = unsafe { clone(&args, (&raw mut plan).cast()) };
        if pid < 0 {
            let fault = Errno::from_raw(-pid as i32);
            log::debug!("a process cannot be started inside a cgroup: {fault}");
            // Anything else (too many processes, no memory) may be otherwise the next time.
            use Errno::{E2BIG, EACCES, EINVAL, ENOSYS, EOPNOTSUPP, EPERM};
            group.refused.set(matches!(fault, ENOSYS | E2BIG | EINVAL | EOPNOTSUPP | EPERM | EACCES));
            return Ok(None);
        }
        // SAFETY: the child wrote it through a pointer of its own, which the compiler does not see.
        let error = unsafe { (&raw const plan.error).read_volatile() };
        if error != 0 {
            let _ = waitpid(Pid::from_raw(pid as i32), None);
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(Some(Spawned {
            pid: pid as u32,
            stdin: input_end.map(Into::into),
            stdout: Some(OwnedFd::from(out).into()),
            stderr: Some(OwnedFd::from(err).into()),
            placed: true,
        }))
    }

    /// Makes a child that runs [`child`] on its own stack; the answer is its id, or the error below zero.
    ///
    /// # Safety
    /// `plan` is a [`Plan`], and both live until this returns.
    unsafe fn clone(args: &CloneArgs, plan: *mut c_void) -> i64 {
        let result: i64;
        unsafe {
            asm!(
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

    extern "C" fn child(plan: *mut c_void) -> ! {
        // SAFETY: it is the plan that `spawn` made, and its thread stands still.
        let plan = unsafe { &mut *plan.cast::<Plan>() };
        plan.error = become_program(plan) as i32;
        unsafe { libc::_exit(127) }
    }

    /// Runs in the agent's memory beside its other threads, so only system calls are made here, and none
    /// through a function that would have all threads of the agent take part (as libc's `setuid` does).
    fn become_program(plan: &Plan) -> Errno {
        match prepare(plan) {
            Ok(()) => {}
            Err(fault) => return fault,
        }
        let mut refused = None;
        for program in plan.programs {
            // SAFETY: texts and lists end in null, and live as long as the plan.
            unsafe { libc::execve(program.as_ptr(), plan.args.as_ptr(), plan.env.as_ptr()) };
            match Errno::last() {
                Errno::ENOENT | Errno::ENOTDIR => {}
                // Another folder may have one that may be run.
                Errno::EACCES => refused = Some(Errno::EACCES),
                fault => return fault,
            }
        }
        refused.unwrap_or(Errno::ENOENT)
    }

    fn prepare(plan: &Plan) -> Result<(), Errno> {
        // SAFETY: system calls with numbers and with pointers into the plan.
        unsafe {
            Errno::result(libc::setpgid(0, 0))?;
            for (target, source) in plan.stdio.iter().enumerate() {
                Errno::result(libc::dup2(*source, target as i32))?;
            }
            if let Some(folder) = plan.folder {
                Errno::result(libc::chdir(folder.as_ptr()))?;
            }
            for limit in &plan.settings.limits {
                let both = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
                let nothing = null::<libc::rlimit64>();
                Errno::result(libc::syscall(libc::SYS_prlimit64, 0, limit.resource as i32, &raw const both, nothing))?;
            }
            if let Some(nice) = plan.settings.nice {
                Errno::result(libc::setpriority(libc::PRIO_PROCESS, 0, nice))?;
            }
            if let (Some(identity), Some(groups)) = (&plan.settings.identity, plan.groups) {
                Errno::result(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
                Errno::result(libc::syscall(libc::SYS_setgid, identity.gid.as_raw()))?;
                Errno::result(libc::syscall(libc::SYS_setuid, identity.uid.as_raw()))?;
            }
            // A Rust program ignores SIGPIPE, and its children are to find what every other's find.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        }
        Ok(())
    }

    /// The agent's environment with the changes of the command.
    fn environment(command: &Command) -> BTreeMap<OsString, OsString> {
        let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => env.insert(name.to_owned(), value.to_owned()),
                None => env.remove(name),
            };
        }
        env
    }

    /// Where the program may lie: itself when it is a path, else in the folders of the child's `PATH`.
    fn programs(command: &Command, env: &BTreeMap<OsString, OsString>) -> io::Result<Vec<CString>> {
        let program = command.get_program().as_bytes();
        if program.contains(&b'/') {
            return Ok(vec![text(program.to_vec())?]);
        }
        let path = env.get(std::ffi::OsStr::new("PATH")).map_or(PATH.as_bytes(), |path| path.as_bytes());
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
}
