//! Linux: process groups, a subreaper, cgroups, and one waiter for all children.

mod cgroup;
mod child;
mod clone;
mod keeper;
mod pipes;
mod proc;
mod process;
mod program;
mod stdin;
mod terminal;

pub(crate) use cgroup::{Cgroups, Group, GroupMembers, group_of, group_path};
pub(crate) use keeper::{Keeper, keep_pipes_if_asked};
pub(crate) use pipes::{Ends, Pipes};
pub(crate) use proc::{mark, processes, storage};
pub(crate) use process::*;
pub(crate) use stdin::StdinEnd;

/// Adds the arguments of a program. A whole command line as one argument is Windows' own.
pub(crate) fn add_args(command: &mut std::process::Command, args: &[String], _whole_line: bool) -> Result<(), String> {
    command.args(args);
    Ok(())
}
