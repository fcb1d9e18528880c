//! Which processes belong to which run: from one pass over all processes, for ending and for figures.
//!
//! **Owns** the rule of belonging: a descendant of the run's first process, a member of its group, an
//! orphan (a child of the agent by now, which is a subreaper) whose environment or cgroup names the run, and
//! whatever was seen in the tree before and still lives.
//!
//! **Does not** signal anything itself: it only says who is meant.

use super::{JobTag, Proc};
use crate::process_tree;
use serde::Serialize;
use std::collections::HashMap;
use std::ops::AddAssign;

/// A run whose tree is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Root {
    /// The run.
    pub(crate) run: u64,
    /// Its first process.
    pub(crate) pid: u32,
    /// That process was reaped: its id says nothing any more.
    pub(crate) reaped: bool,
    /// The job that its processes name in their environment.
    pub(crate) mark: JobTag,
    /// Its cgroup, where it has one, as [`process_tree::group_path`] names it.
    pub(crate) group: Option<String>,
    /// Processes that were seen in the tree before: id and start.
    pub(crate) known: Vec<(u32, u64)>,
}

/// Returns the living processes of each run, of all that there are now.
pub(crate) fn living(processes: &[Proc], roots: &[Root]) -> HashMap<u64, Vec<Proc>> {
    trees(processes, std::process::id(), roots, process_tree::mark, process_tree::group_of)
}

/// The living processes of each run. `mark` reads a process' environment and `group` its cgroup;
/// they are asked only about processes whose place says nothing.
fn trees(
    processes: &[Proc],
    agent: u32,
    roots: &[Root],
    mark: impl Fn(u32) -> Option<JobTag>,
    group: impl Fn(u32) -> Option<String>,
) -> HashMap<u64, Vec<Proc>> {
    let mut children: HashMap<u32, Vec<&Proc>> = HashMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process);
    }
    let by_pid: HashMap<u32, u64> = roots.iter().filter(|root| !root.reaped).map(|root| (root.pid, root.run)).collect();
    // A group keeps its number as long as anybody is in it, even when its leader was reaped.
    let by_group: HashMap<u32, u64> = roots.iter().map(|root| (root.pid, root.run)).collect();
    let by_mark: HashMap<&JobTag, u64> = roots.iter().map(|root| (&root.mark, root.run)).collect();
    let by_name: HashMap<&str, u64> =
        roots.iter().filter_map(|root| Some((root.group.as_deref()?, root.run))).collect();
    let known: HashMap<(u32, u64), u64> =
        roots.iter().flat_map(|root| root.known.iter().map(|seen| (*seen, root.run))).collect();

    let mut trees: HashMap<u64, Vec<Proc>> = HashMap::new();
    let mut open: Vec<(&Proc, Option<u64>)> = Vec::new();
    open.extend(children.get(&agent).into_iter().flatten().map(|child| (*child, None)));
    while let Some((process, inherited)) = open.pop() {
        let run = by_pid
            .get(&process.pid)
            .copied()
            .or(inherited)
            .or_else(|| by_group.get(&process.group).copied())
            .or_else(|| known.get(&(process.pid, process.started)).copied())
            .or_else(|| mark(process.pid).and_then(|mark| by_mark.get(&mark).copied()))
            .or_else(|| group(process.pid).and_then(|name| by_name.get(name.as_str()).copied()));
        if let Some(run) = run
            && !process.dead
        {
            trees.entry(run).or_default().push(*process);
        }
        open.extend(children.get(&process.pid).into_iter().flatten().map(|child| (*child, run)));
    }
    trees
}

/// Returns what runs of an agent that has ended have left: the processes with one of `marks`, and their
/// descendants.
pub(crate) fn leftovers(processes: &[Proc], marks: &[JobTag], mark: impl Fn(u32) -> Option<JobTag>) -> Vec<Proc> {
    let own = std::process::id();
    let mut children: HashMap<u32, Vec<&Proc>> = HashMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found: HashMap<u32, Proc> = HashMap::new();
    let mut open: Vec<&Proc> = processes
        .iter()
        .filter(|process| process.pid != own && mark(process.pid).is_some_and(|mark| marks.contains(&mark)))
        .collect();
    while let Some(process) = open.pop() {
        if process.pid != own && found.insert(process.pid, *process).is_none() {
            open.extend(children.get(&process.pid).into_iter().flatten());
        }
    }
    found.into_values().filter(|process| !process.dead).collect()
}

/// Adds the living processes of these ids to a tree.
pub(crate) fn join(tree: &mut Vec<Proc>, processes: &[Proc], pids: &[u32]) {
    for process in processes.iter().filter(|process| !process.dead && pids.contains(&process.pid)) {
        if !tree.iter().any(|member| member.pid == process.pid) {
            tree.push(*process);
        }
    }
}

/// The figures of one tree, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// Percent of one core since the sample before.
    pub(crate) cpu: f64,
    /// Resident memory, in bytes.
    pub(crate) rss: u64,
    /// Virtual memory, in bytes.
    pub(crate) vms: u64,
    /// Bytes that living processes have read from storage.
    pub(crate) read: u64,
    /// Bytes that they have written to storage.
    pub(crate) written: u64,
    /// Processes.
    pub(crate) processes: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Figures) {
        self.cpu += other.cpu;
        self.rss += other.rss;
        self.vms += other.vms;
        self.read += other.read;
        self.written += other.written;
        self.processes += other.processes;
    }
}

/// Returns the figures of the living processes of a tree, but for `cpu`; that as milliseconds of processor time in all.
pub(crate) fn figures(tree: &[Proc]) -> (u64, Figures) {
    let mut sum = Figures::default();
    for process in tree {
        let (read, written) = process_tree::storage(process.pid);
        sum += Figures { cpu: 0.0, rss: process.rss, vms: process.vms, read, written, processes: 1 };
    }
    (tree.iter().map(|process| process.cpu).sum(), sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: u32 = 10;

    fn process(pid: u32, parent: u32, group: u32) -> Proc {
        Proc { pid, parent, group, started: u64::from(pid) * 7, cpu: 1, rss: 2, vms: 3, dead: false }
    }

    fn job_mark(job: &str) -> JobTag {
        JobTag { home: "/home".into(), job: job.into(), start: 5 }
    }

    fn root(run: u64, pid: u32) -> Root {
        Root {
            run,
            pid,
            reaped: false,
            mark: job_mark(&format!("job{run}")),
            group: Some(format!("group{run}")),
            known: Vec::new(),
        }
    }

    #[track_caller]
    fn check(processes: &[Proc], roots: &[Root], marks: &[(u32, &str)], run: u64, expected: &[u32]) {
        let mark = |pid| marks.iter().find(|(marked, _)| *marked == pid).map(|(_, job)| job_mark(job));
        let group = |pid: u32| (pid == 25).then(|| "group1".to_owned());
        let mut found: Vec<u32> = trees(processes, AGENT, roots, mark, group)
            .remove(&run)
            .unwrap_or_default()
            .iter()
            .map(|p| p.pid)
            .collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn descendants_belong_wherever_they_set_their_group() {
        let all =
            [process(10, 1, 10), process(20, 10, 20), process(21, 20, 20), process(22, 21, 22), process(30, 10, 30)];
        check(&all, &[root(1, 20), root(2, 30)], &[], 1, &[20, 21, 22]);
        check(&all, &[root(1, 20), root(2, 30)], &[], 2, &[30]);
    }

    #[test]
    fn adopted_orphans_belong_by_group_mark_or_memory() {
        let all =
            [process(10, 1, 10), process(21, 10, 20), process(22, 10, 22), process(23, 22, 23), process(24, 10, 24)];
        let mut reaped = Root { reaped: true, ..root(1, 20) };
        check(&all, &[reaped.clone()], &[(22, "job1"), (24, "job9")], 1, &[21, 22, 23]);
        reaped.known = vec![(24, 24 * 7), (22, 5)];
        check(&all, &[reaped], &[], 1, &[21, 24]);
    }

    #[test]
    fn adopted_orphans_that_say_nothing_belong_by_their_cgroup() {
        let all = [process(10, 1, 10), process(20, 10, 20), process(25, 10, 25), process(26, 25, 26)];
        check(&all, &[root(1, 20), root(2, 30)], &[], 1, &[20, 25, 26]);
    }

    #[test]
    fn foreign_and_dead_processes_do_not_belong() {
        let dead = Proc { dead: true, ..process(21, 20, 20) };
        // 40 is no descendant of the agent, and only looks as if it were in the group.
        let all = [process(10, 1, 10), process(20, 10, 20), dead, process(40, 1, 20)];
        check(&all, &[root(1, 20)], &[(40, "job1")], 1, &[20]);
        // A reaped first process' id may be somebody else's by now.
        let all = [process(10, 1, 10), process(20, 10, 77)];
        check(&all, &[Root { reaped: true, ..root(1, 20) }], &[], 1, &[]);
    }

    #[test]
    fn leftovers_are_the_marked_and_their_descendants() {
        let all = [process(50, 1, 50), process(51, 50, 50), process(60, 1, 60), process(70, 1, 70)];
        let mark = |pid| match pid {
            50 => Some(job_mark("job1")),
            60 => Some(JobTag { start: 6, ..job_mark("job1") }),
            _ => None,
        };
        let mut found: Vec<u32> = leftovers(&all, &[job_mark("job1")], mark).iter().map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [50, 51]);
    }
}
