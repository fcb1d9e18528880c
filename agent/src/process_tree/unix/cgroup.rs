//! cgroup v2, where the agent may write one: finds what neither its place in the tree nor its
//! environment gives away, a daemon that forked twice and cleared its environment.
//!
//! Every process is started inside the group of its run ([`super::clone`]), which nothing that it forks
//! can leave. Where that cannot be done (a kernel before 5.7), only long running
//! jobs get a group: to move a process into one the kernel first waits for every processor (10 to 20 ms
//! measured), many times what a short command costs as a whole. So a thread of its own does it, after
//! the start, and nobody waits for it.

use crate::platform::mounts;
use crossbeam_channel::{Receiver, Sender, unbounded};
use jscommon::worker::Worker;
use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The groups of one agent's runs, below the group that it runs in itself.
pub(crate) struct Cgroups {
    base: PathBuf,
    /// Locked for as long as this agent lives, so that others know.
    _life: File,
    /// Processes can be started inside of one.
    at_once: bool,
    /// Groups that somebody was still in when their run was over.
    left: Vec<PathBuf>,
    /// So many were left when it was last looked whether they still are.
    swept: usize,
    work: Option<Sender<(PathBuf, u32)>>,
    worker: Option<Worker>,
}

/// A group, for the start of a process.
pub(crate) struct Group {
    pub(super) folder: OwnedFd,
    /// The kernel does not start processes inside groups, now or later.
    pub(super) refused: Cell<bool>,
}

impl Group {
    /// Whether no process can be started inside any group here, now or later.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.get()
    }
}

impl Cgroups {
    /// The groups of the agent whose data folder this is; nothing where it may not write any.
    pub(crate) fn open(home: &str) -> Option<Cgroups> {
        Cgroups::below(&own_group()?, home)
    }

    fn below(above: &Path, home: &str) -> Option<Cgroups> {
        let base = above.join(base_name(home));
        let mut life = None;
        // Another agent that starts now may take the group for a dead one's, until it is locked. Without the lock it
        // would remove groups of this one: better none than those.
        for _ in 0..200 {
            if !base.is_dir() {
                let made = fs::create_dir(&base);
                made.or_else(|fault| if base.is_dir() { Ok(()) } else { Err(fault) }).ok()?;
            }
            life = lock(&base);
            if life.is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let life = life?;
        remove_stale(above);
        let (left, swept) = (Vec::new(), 0);
        Some(Cgroups { base, _life: life, at_once: true, left, swept, work: None, worker: None })
    }

    /// Makes the group of this name for a process to start in; nothing where that cannot be done.
    pub(crate) fn make(&self, name: &str) -> Option<Group> {
        if !self.at_once {
            return None;
        }
        let path = self.base.join(name);
        // It may be there already; whether it can be used shows in the next line.
        let _ = fs::create_dir_all(&path);
        File::open(path).ok().map(|folder| Group { folder: folder.into(), refused: Cell::new(false) })
    }

    /// No process can be started inside a group here: from now on long running ones are moved.
    pub(crate) fn not_at_once(&mut self) {
        if self.at_once {
            log::warn!(
                "the kernel starts no process inside a cgroup here (clone3 is refused: an old kernel, or a filter of \
                 system calls like RestrictNamespaces=): what a short job leaves behind as a daemon outlives its kill"
            );
        }
        self.at_once = false;
    }

    /// Puts a process, and so whatever it starts from then on, into the group of this name, soon.
    pub(crate) fn attach(&mut self, name: &str, pid: u32) {
        if self.work.is_none() {
            let (work, inbox) = unbounded();
            match Worker::spawn("cgroup", 64 * 1024, move || serve(&inbox)) {
                Ok(worker) => (self.work, self.worker) = (Some(work), Some(worker)),
                Err(fault) => return log::warn!("no thread for cgroups: {fault}"),
            }
        }
        if let Some(work) = &self.work {
            let _ = work.send((self.base.join(name), pid));
        }
    }

    /// The processes of a group.
    pub(crate) fn members(&self, name: &str) -> Vec<u32> {
        self.reader().members(name)
    }

    /// Returns what lists the processes of groups, for another thread.
    pub(crate) fn reader(&self) -> GroupMembers {
        GroupMembers(self.base.clone())
    }

    /// Removes a group; a daemon that is left in it keeps it.
    pub(crate) fn release(&mut self, name: &str) {
        let path = self.base.join(name);
        if !is_gone(&path) {
            self.left.push(path);
            // A node that is never quiet does not sweep otherwise.
            if self.left.len() >= 2 * self.swept.max(16) {
                self.sweep();
            }
        }
    }

    /// Removes the groups whose daemons have ended.
    pub(crate) fn sweep(&mut self) {
        self.left.retain(|path| !is_gone(path));
        self.left.shrink_to_fit();
        self.swept = self.left.len();
    }

    /// Removes what an earlier life of the agent left and nobody is in any more.
    pub(crate) fn clear(&self) {
        clear(&self.base);
    }
}

/// Lists the processes of an agent's groups.
#[derive(Clone)]
pub(crate) struct GroupMembers(PathBuf);

impl GroupMembers {
    /// The processes of a group.
    pub(crate) fn members(&self, name: &str) -> Vec<u32> {
        let text = fs::read_to_string(self.0.join(name).join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.work = None;
        self.worker = None;
        self.clear();
        let _ = fs::remove_dir(&self.base);
    }
}

fn serve(inbox: &Receiver<(PathBuf, u32)>) {
    for (group, pid) in inbox {
        let _ = fs::create_dir_all(&group);
        // It may have ended already.
        let _ = fs::write(group.join("cgroup.procs"), pid.to_string());
    }
}

/// Removes the groups below this one that nobody is in.
fn clear(base: &Path) {
    for group in fs::read_dir(base).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(group.path());
    }
}

/// Locks the group of an agent; `None` while its agent runs. A group that was removed and made anew since it was
/// opened is another group.
fn lock(base: &Path) -> Option<File> {
    let life = File::open(base).ok()?;
    life.try_lock().ok()?;
    let is_there = life.metadata().ok()?.ino() == fs::metadata(base).ok()?.ino();
    is_there.then_some(life)
}

/// Removes what agents that died and never came back have left beside ours.
fn remove_stale(above: &Path) {
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        let base = entry.path();
        if !entry.file_name().to_string_lossy().starts_with("jsagent-") {
            continue;
        }
        // The lock is held until the group is gone: an agent that starts now finds that, and makes it anew.
        if let Some(_life) = lock(&base) {
            clear(&base);
            let _ = fs::remove_dir(&base);
        }
    }
}

/// Removes a group that nobody is in; whether it is not there any more.
fn is_gone(path: &Path) -> bool {
    fs::remove_dir(path).is_ok() || !path.exists()
}

/// Returns the last two folders of the group that some agent has put this process into, as [`group_path`] does.
pub(crate) fn group_of(pid: u32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (above, _) = path.rsplit_once('/')?;
    let base = above.rfind('/').map_or(0, |slash| slash + 1);
    path.get(base..).filter(|group| group.starts_with("jsagent-")).map(str::to_owned)
}

/// Returns the last two folders of a group of the agent whose data folder `home` is: a name alone may be another
/// agent's as well.
pub(crate) fn group_path(home: &str, name: &str) -> String {
    format!("{}/{name}", base_name(home))
}

/// Returns the name of the folder that has the groups of the agent whose data folder `home` is.
fn base_name(home: &str) -> String {
    let mut hasher = DefaultHasher::new();
    home.hash(&mut hasher);
    format!("jsagent-{:016x}", hasher.finish())
}

/// The folder of the group that the agent runs in.
fn own_group() -> Option<PathBuf> {
    let mount = mounts().into_iter().find(|mount| mount.kind == b"cgroup2")?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(OsStr::from_bytes(&mount.path)).join(path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{Identity, Limit};
    use crate::process_tree::Settings;
    use crate::process_tree::unix::process::Children;
    use serde_json::json;
    use std::io::{Read, Write};
    use std::process::Command;
    use std::time::Duration;

    /// Returns the output of a process that describes its surroundings, or why it did not start. `None` when no
    /// process can be started inside a group.
    fn around(group: Option<&Group>, settings: &Settings, program: &str, input: &str) -> Option<String> {
        let (tell, told) = unbounded();
        let children = Children::start(move |_, code| tell.send(code).unwrap_or_default()).unwrap();
        let script = "pwd; echo $A-$B-$PATH; ulimit -n; nice; id -u; id -g; id -G; cat; ls /proc/self/fd | wc -l
            awk '/^Sig(Blk|Ign)/ {print substr($2, 10)}' /proc/self/status; [ $$ = $(ps -o pgid= $$) ]; exit $?";
        let mut command = Command::new(program);
        command.args(["-c", script]).current_dir("/usr").env("A", "a b").env_remove("HOME");
        Some(match children.spawn(1, &mut command, !input.is_empty(), settings, group, &|| true) {
            Ok(mut spawned) => {
                let placed = spawned.placed;
                if let Some(mut stdin) = spawned.stdin.take() {
                    stdin.write_all(input.as_bytes()).unwrap();
                }
                let mut said = [String::new(), String::new()];
                spawned.stdout.unwrap().read_to_string(&mut said[0]).unwrap();
                spawned.stderr.unwrap().read_to_string(&mut said[1]).unwrap();
                let end = told.recv_timeout(Duration::from_secs(20));
                if group.is_some() && !placed {
                    return None;
                }
                assert_eq!(placed, group.is_some());
                format!("{said:?} {end:?}")
            }
            Err(fault) => format!("{fault:?}"),
        })
    }

    /// A group of a test's own, so that none meets the groups of another; no agent's by its name.
    struct Scratch(PathBuf);

    impl Scratch {
        /// Nothing where no group may be written.
        fn new(name: &str) -> Option<Scratch> {
            let path = own_group()?.join(format!("test-{name}-{}", std::process::id()));
            fs::create_dir(&path).ok()?;
            Some(Scratch(path))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn groups_of_one_name_are_told_apart_by_their_agent() {
        let Some(above) = Scratch::new("names") else { return };
        for home in ["one home", "another home"] {
            let groups = Cgroups::below(&above.0, home).unwrap();
            let Some(group) = groups.make("a group") else { return };
            let mut sleep = Command::new("sleep").arg("1000").spawn().unwrap();
            let moved = fs::write(groups.base.join("a group/cgroup.procs"), sleep.id().to_string());
            let seen = group_of(sleep.id());
            sleep.kill().unwrap();
            // The reaper of another test may have it first.
            let _ = sleep.wait();
            drop(group);
            if moved.is_err() {
                return; // No process may be moved here.
            }
            assert_eq!(seen, Some(group_path(home, "a group")));
            assert_ne!(seen, Some(group_path("a third home", "a group")));
        }
    }

    #[test]
    fn agents_that_start_at_once_leave_each_other_their_groups() {
        let above = tempfile::tempdir().unwrap();
        let start = |thread: u32| {
            for life in 0..1_000 {
                let groups = Cgroups::below(above.path(), &format!("agent {thread}")).expect("groups");
                drop(groups.make("its group"));
                std::thread::yield_now();
                let lock = File::open(&groups.base).expect("its groups are there").try_lock();
                assert!(lock.is_err(), "life {life}: its groups count as those of a dead agent");
                assert!(groups.base.join("its group").exists(), "life {life}");
            }
        };
        std::thread::scope(|scope| {
            (0..8).for_each(|thread| drop(scope.spawn(move || start(thread))));
        });
    }

    #[test]
    fn groups_of_dead_agents_are_removed() {
        let Some(above) = Scratch::new("dead") else { return };
        let living = Cgroups::below(&above.0, "one that lives").unwrap();
        drop(living.make("its group"));
        let dead = above.0.join("jsagent-of-a-test");
        fs::create_dir_all(dead.join("group")).unwrap();
        drop(Cgroups::below(&above.0, "one that comes"));
        assert!(!dead.exists() && living.base.join("its group").exists());
    }

    #[test]
    fn a_process_in_a_group_finds_what_any_other_finds() {
        let Some(above) = Scratch::new("finds") else { return };
        let mut groups = Cgroups::below(&above.0, "what a process finds").unwrap();
        let mut first = true;
        let nobody = Identity::find("nobody").ok();
        let limits = vec![Limit::new("nofile", &json!([77, 99])).unwrap()];
        for (settings, program, input) in [
            (Settings::default(), "sh", ""),
            (Settings::default(), "/bin/sh", "in"),
            (Settings { nice: Some(3), limits, ..Settings::default() }, "sh", ""),
            (Settings { identity: nobody, ..Settings::default() }, "sh", "in"),
            (Settings::default(), "no-such-program", ""),
            (Settings::default(), "/etc/passwd", ""),
            (Settings::default(), "/etc", ""),
            (Settings::default(), "bin/../../bin/sh", ""),
        ] {
            let group = groups.make("one").unwrap();
            let there = around(Some(&group), &settings, program, input);
            // A process that can be placed once can be placed always; a kernel may refuse every placement.
            if there.is_none() && first {
                return;
            }
            first = false;
            assert_eq!(there, around(None, &settings, program, input), "{program} {settings:?}");
            groups.release("one");
        }
        groups.sweep();
        assert!(groups.left.is_empty(), "{:?}", groups.left);
    }
}
