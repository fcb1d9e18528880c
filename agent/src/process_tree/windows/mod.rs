//! Windows: a job object for each run.

mod pipes;
mod process;
mod stdin;

pub(crate) use pipes::{Ends, Keeper, Pipes, keep_pipes_if_asked};
pub(crate) use process::*;
pub(crate) use stdin::StdinEnd;
