//! cgroup v2, where the agent may write one: finds what neither its place in the tree nor its
//! environment gives away, a daemon that forked twice and cleared its environment.
//!
//! Only long running jobs get a group. To put a process into one the kernel first waits for every
//! processor (20 ms measured), which is twenty times what a short command costs as a whole. So a thread
//! of its own does it, after the start, and nobody waits for it.

use crossbeam_channel::{Receiver, Sender, unbounded};
use jscommon::worker::Worker;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// The groups of one agent's jobs, below the group that it runs in itself.
pub struct Cgroups {
    base: PathBuf,
    /// Declared before the worker: closed first, so that the worker ends.
    work: Option<Sender<Work>>,
    _worker: Option<Worker>,
}

enum Work {
    Adopt(PathBuf, u32),
    Release(PathBuf),
}

impl Cgroups {
    /// The groups of the agent whose data folder this is; nothing where it may not write any.
    pub fn open(home: &str) -> Option<Cgroups> {
        let mut hasher = DefaultHasher::new();
        home.hash(&mut hasher);
        let base = own_group()?.join(format!("jsagent-{:016x}", hasher.finish()));
        if !base.is_dir() {
            fs::create_dir(&base).ok()?;
        }
        Some(Cgroups { base, work: None, _worker: None })
    }

    /// Puts a process, and so whatever it starts from then on, into the group of this name, soon.
    pub fn adopt(&mut self, name: &str, pid: u32) {
        if self.work.is_none() {
            let (work, inbox) = unbounded();
            let base = self.base.clone();
            match Worker::spawn("cgroup", 64 * 1024, move || serve(&base, &inbox)) {
                Ok(worker) => (self.work, self._worker) = (Some(work), Some(worker)),
                Err(fault) => return log::warn!("no thread for cgroups: {fault}"),
            }
        }
        self.tell(Work::Adopt(self.base.join(name), pid));
    }

    /// The processes of a group.
    pub fn members(&self, name: &str) -> Vec<u32> {
        let text = fs::read_to_string(self.base.join(name).join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes a group once nobody is in it; a daemon that is left keeps it.
    pub fn release(&self, name: &str) {
        self.tell(Work::Release(self.base.join(name)));
    }

    fn tell(&self, work: Work) {
        if let Some(sender) = &self.work {
            let _ = sender.send(work);
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if self.work.is_none() {
            clear(&self.base);
        }
    }
}

fn serve(base: &Path, inbox: &Receiver<Work>) {
    for work in inbox {
        match work {
            Work::Adopt(group, pid) => {
                let _ = fs::create_dir(&group);
                // It may have ended already.
                let _ = fs::write(group.join("cgroup.procs"), pid.to_string());
            }
            Work::Release(group) => drop(fs::remove_dir(group)),
        }
    }
    clear(base);
}

/// Removes every group that nobody is in.
fn clear(base: &Path) {
    for group in fs::read_dir(base).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(group.path());
    }
    let _ = fs::remove_dir(base);
}

/// The folder of the group that the agent runs in.
fn own_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(place)
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(mount).join(path.trim_start_matches('/')))
}
