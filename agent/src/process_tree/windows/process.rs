//! Windows: a job object a child, a thread a child that waits, and the list of processes by sysinfo.

use crate::platform::Signal;
use crate::platform::cmdline::{CommandLine, check_batch_argument, raw_argument};
use crate::process_tree::{JobTag, Proc, Settings, Spawned, StartError, Step};
use crossbeam_channel::bounded;
use jscommon::lock::lock;
use jscommon::worker::Worker;
use std::collections::HashMap;
use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use sysinfo::{ProcessesToUpdate, System};
use windows::Win32::Foundation::HANDLE;
use windows::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation, SetInformationJobObject,
    TerminateJobObject,
};
use windows::Win32::System::Threading::{OpenThread, ResumeThread, THREAD_SUSPEND_RESUME};

/// None.
pub(crate) fn group_of(_pid: u32) -> Option<String> {
    None
}

/// Returns the name: there are no folders of groups.
pub(crate) fn group_path(_home: &str, name: &str) -> String {
    name.to_owned()
}

/// One of the groups that there are not.
pub(crate) enum Group {}

impl Group {
    /// There is none to ask.
    pub(crate) fn is_refused(&self) -> bool {
        match *self {}
    }
}

/// Lists the processes of groups: there are none here.
#[derive(Clone)]
pub(crate) struct GroupMembers;

impl GroupMembers {
    /// Nobody.
    pub(crate) fn members(&self, _name: &str) -> Vec<u32> {
        Vec::new()
    }
}

/// Groups of processes beside their job objects: there are none here.
pub(crate) struct Cgroups {}

impl Cgroups {
    /// Nothing.
    pub(crate) fn open(_home: &str) -> Option<Cgroups> {
        None
    }

    /// Nothing.
    pub(crate) fn make(&self, _name: &str) -> Option<Group> {
        None
    }

    /// Does nothing.
    pub(crate) fn not_at_once(&mut self) {}

    /// Does nothing.
    pub(crate) fn attach(&mut self, _name: &str, _pid: u32) {}

    /// Nobody.
    pub(crate) fn members(&self, _name: &str) -> Vec<u32> {
        Vec::new()
    }

    /// Nothing that lists anybody.
    pub(crate) fn reader(&self) -> GroupMembers {
        GroupMembers
    }

    /// Does nothing.
    pub(crate) fn release(&mut self, _name: &str) {}

    /// Does nothing.
    pub(crate) fn sweep(&mut self) {}

    /// Does nothing.
    pub(crate) fn clear(&self) {}
}

/// A command that runs in `folder` with an empty environment, and finds its program with `path` as its `PATH` where there is one.
///
/// A program with a separator belongs to that folder. Any other is looked for in the folders of `path`,
/// of the system and of the agent's `PATH`: never beside the agent, and never in its current folder,
/// where the system would look first.
pub(crate) fn command(program: &str, folder: Option<&Path>, path: Option<&str>) -> Command {
    let mut command = Command::new(find(program, folder, path));
    command.env_clear();
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    command
}

fn find(program: &str, folder: Option<&Path>, path: Option<&str>) -> PathBuf {
    if program.contains(['/', '\\', ':']) {
        let joined = folder.map_or_else(|| PathBuf::from(program), |folder| folder.join(program));
        return std::path::absolute(&joined).unwrap_or(joined);
    }
    let mut name = PathBuf::from(program);
    if !program.contains('.') {
        name.set_extension("exe");
    }
    let system = PathBuf::from(std::env::var_os("SystemRoot").unwrap_or_else(|| "C:\\Windows".into()));
    let own = std::env::var_os("PATH").unwrap_or_default();
    let folders = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    let folders = folders.into_iter().chain([system.join("System32"), system.clone()]);
    let mut folders = folders.chain(std::env::split_paths(&own)).filter(|folder| folder.is_absolute());
    let found = folders.find_map(|folder| Some(folder.join(&name)).filter(|path| path.is_file()));
    // The system does not search for an absolute path, so a program that was not found stays not found.
    found.unwrap_or_else(|| system.join("System32").join(&name))
}

/// Adds the arguments of a program: as Windows' programs in general unquote them, for a batch file so
/// that `cmd.exe` hands them on unchanged, and to `cmd.exe` itself, which unquotes nothing, as they are.
/// A whole command line is never touched.
pub(crate) fn add_args(command: &mut Command, args: &[String], whole_line: bool) -> Result<(), String> {
    use std::os::windows::process::CommandExt;
    if whole_line {
        command.raw_arg(args.concat());
        return Ok(());
    }
    match CommandLine::of(&command.get_program().to_string_lossy()) {
        CommandLine::Raw => {
            for arg in args {
                command.raw_arg(raw_argument(arg));
            }
        }
        CommandLine::Quoted => {
            command.args(args);
        }
        // The standard library quotes for these; an argument that it cannot quote is refused at the start.
        CommandLine::Batch => {
            args.iter().try_for_each(|arg| check_batch_argument(arg))?;
            command.args(args);
        }
    }
    Ok(())
}

/// Makes `command` start without a window of its own, at the priority that its niceness asks for; it
/// stands still until its job object holds it.
fn configure(command: &mut Command, settings: &Settings) {
    use std::os::windows::process::CommandExt;
    const NO_WINDOW: u32 = 0x0800_0000;
    const SUSPENDED: u32 = 0x4;
    let priority = match settings.nice {
        None | Some(0) => 0,
        Some(15..) => 0x40,    // IDLE_PRIORITY_CLASS
        Some(1..) => 0x4000,   // BELOW_NORMAL_PRIORITY_CLASS
        Some(-10..) => 0x8000, // ABOVE_NORMAL_PRIORITY_CLASS
        Some(_) => 0x80,       // HIGH_PRIORITY_CLASS
    };
    command.creation_flags(NO_WINDOW | SUSPENDED | priority);
}

/// The children of the agent, each in a job object that ends with the agent.
pub(crate) struct Children {
    exited: Arc<dyn Fn(u64, i32) + Send + Sync>,
    jobs: Arc<Mutex<HashMap<u64, OwnedHandle>>>,
}

impl Children {
    /// Calls `exited` with a run and its status whenever a child has ended.
    pub(crate) fn start(exited: impl Fn(u64, i32) + Send + Sync + 'static) -> io::Result<Children> {
        Ok(Children { exited: Arc::new(exited), jobs: Arc::default() })
    }

    /// Starts a child for this run, with pipes for its output, and for its input where `stdin` says so. One
    /// that is not wanted any more, because its folder or its program took long to be found, never runs.
    pub(crate) fn spawn(
        &self,
        run: u64,
        command: &mut Command,
        stdin: bool,
        settings: &Settings,
        _group: Option<&Group>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Spawned, StartError> {
        if let Some(folder) = command.get_current_dir()
            && !folder.is_dir()
        {
            return Err(StartError::at(Step::WorkingDir)(io::Error::from(io::ErrorKind::NotFound)));
        }
        configure(command, settings);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
        // First of all: where no thread can be had, nothing must run that nobody waits for.
        let (begin, begun) = bounded::<Child>(1);
        let (exited, jobs) = (self.exited.clone(), self.jobs.clone());
        let wait = move || {
            let Ok(mut child) = begun.recv() else { return };
            let code = child.wait().ok().and_then(|status| status.code()).unwrap_or(1);
            // Processes that this one leaves behind live on: closing the job must not end them. Where the run was
            // being ended, the whole job has ended by now.
            if let Some(job) = lock(&jobs).remove(&run) {
                let _ = let_go(&job);
            }
            exited(run, code);
        };
        Worker::spawn("waiter", 64 * 1024, wait).map_err(StartError::at(Step::Process))?.detach();
        let since = Instant::now();
        let mut child = command.spawn().map_err(StartError::at(Step::Program))?;
        let spawned = Spawned {
            pid: child.id(),
            since,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            hangup: None,
            first: Vec::new(),
            placed: false,
        };
        let joined = new_job().and_then(|job| {
            assign(&job, child.as_raw_handle())?;
            Ok(job)
        });
        match joined {
            Ok(job) => drop(lock(&self.jobs).insert(run, job)),
            Err(fault) => log::warn!("process {} has no job object, its children may outlive it: {fault}", spawned.pid),
        }
        // Not before: a child of the child would be in no job.
        let resumed = match is_wanted() {
            true => resume(spawned.pid),
            false => Err(io::Error::other("the job was ended before its start")),
        };
        if let Err(fault) = resumed {
            lock(&self.jobs).remove(&run);
            let _ = child.kill();
            return Err(StartError::at(Step::Process)(fault));
        }
        let _ = begin.send(child);
        Ok(spawned)
    }

    /// Does nothing: a start here ends by itself.
    pub(crate) fn abort_start(&self, _run: u64) {}

    /// Any signal ends the whole tree of this run; the answer is whether it was there.
    pub(crate) fn signal_group(&self, run: u64, _pid: u32, signal: Signal) -> bool {
        match lock(&self.jobs).get(&run) {
            Some(job) => terminate(job, 128 + signal.0 as u32),
            None => false,
        }
    }

    /// Ends the tree: by its job object, and each member that is in none.
    pub(crate) fn signal_tree(&self, run: u64, pid: u32, members: &[Proc], signal: Signal) {
        self.signal_group(run, pid, signal);
        for member in members {
            signal_process(member, signal);
        }
    }

    /// Ends the tree, as every signal does.
    pub(crate) fn stop_tree(&self, run: u64, pid: u32, members: &[Proc], signal: Signal) {
        self.signal_tree(run, pid, members, signal);
    }
}

/// Nothing: a thread of its own waits for each child, and tells of its end.
pub(crate) fn wait_child(_run: u64, _pid: u32) -> Option<i32> {
    None
}

/// A job object whose processes end with its last handle.
#[allow(unsafe_code)] // the job object API has no safe form
fn new_job() -> io::Result<OwnedHandle> {
    let job = unsafe { OwnedHandle::from_raw_handle(CreateJobObjectW(None, None)?.0) };
    limit(&job, true)?;
    Ok(job)
}

/// Lets the processes of a job live on after its last handle.
fn let_go(job: &OwnedHandle) -> io::Result<()> {
    limit(job, false)
}

#[allow(unsafe_code)] // as above
fn limit(job: &OwnedHandle, kill_on_close: bool) -> io::Result<()> {
    let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
    if kill_on_close {
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
    }
    let size = size_of_val(&limits) as u32;
    unsafe {
        SetInformationJobObject(
            HANDLE(job.as_raw_handle()),
            JobObjectExtendedLimitInformation,
            (&raw const limits).cast(),
            size,
        )?;
    }
    Ok(())
}

#[allow(unsafe_code)] // as above
fn assign(job: &OwnedHandle, process: std::os::windows::io::RawHandle) -> io::Result<()> {
    unsafe { AssignProcessToJobObject(HANDLE(job.as_raw_handle()), HANDLE(process))? };
    Ok(())
}

/// Lets a suspended process run: resumes its only thread.
#[allow(unsafe_code)] // as above; every handle is owned at once
fn resume(pid: u32) -> io::Result<()> {
    let mut entry = THREADENTRY32 { dwSize: size_of::<THREADENTRY32>() as u32, ..THREADENTRY32::default() };
    unsafe {
        let all = OwnedHandle::from_raw_handle(CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0)?.0);
        let all = HANDLE(all.as_raw_handle());
        let mut next = Thread32First(all, &raw mut entry);
        while next.is_ok() {
            if entry.th32OwnerProcessID == pid {
                let thread = OpenThread(THREAD_SUSPEND_RESUME, false, entry.th32ThreadID)?;
                let thread = OwnedHandle::from_raw_handle(thread.0);
                if ResumeThread(HANDLE(thread.as_raw_handle())) == u32::MAX {
                    return Err(io::Error::last_os_error());
                }
                return Ok(());
            }
            next = Thread32Next(all, &raw mut entry);
        }
    }
    Err(io::Error::other("the new process has no thread"))
}

#[allow(unsafe_code)] // as above
fn terminate(job: &OwnedHandle, code: u32) -> bool {
    unsafe { TerminateJobObject(HANDLE(job.as_raw_handle()), code).is_ok() }
}

/// Ends one process, when it is still the one that was seen. Signals that only tell are not sent.
pub(crate) fn signal_process(seen: &Proc, _signal: Signal) -> bool {
    let Ok(mut system) = System::new() else { return false };
    let pid = sysinfo::Pid::from_u32(seen.pid);
    system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
    system.process(pid).is_some_and(|process| process.start_time() == seen.started && process.kill())
}

/// Ends one process, when it is still the one that was seen.
pub(crate) fn stop_process(seen: &Proc, signal: Signal) -> bool {
    signal_process(seen, signal)
}

/// Every process of this machine, in one pass.
pub(crate) fn processes() -> Vec<Proc> {
    let Ok(mut system) = System::new() else { return Vec::new() };
    system.refresh_processes(ProcessesToUpdate::All, true);
    let found = system.processes().values();
    found
        .map(|process| Proc {
            pid: process.pid().as_u32(),
            parent: process.parent().map_or(0, sysinfo::Pid::as_u32),
            group: 0,
            started: process.start_time(),
            cpu: process.accumulated_cpu_time(),
            rss: process.memory(),
            vms: process.virtual_memory(),
            dead: false,
        })
        .collect()
}

/// Bytes that a process has read from and written to storage; zero where it may not be known.
pub(crate) fn storage(pid: u32) -> (u64, u64) {
    let Ok(mut system) = System::new() else { return (0, 0) };
    let pid = sysinfo::Pid::from_u32(pid);
    system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
    let usage = system.process(pid).map(sysinfo::Process::disk_usage);
    usage.map_or((0, 0), |usage| (usage.total_read_bytes, usage.total_written_bytes))
}

/// The job that the environment of a process names: job objects make it unnecessary here.
pub(crate) fn mark(_pid: u32) -> Option<JobTag> {
    None
}
