//! The definition of a job: its label, its state, its arguments.

pub(crate) mod args;
pub(crate) mod command_names;
pub(crate) mod fields;
mod label;
mod rules;
mod state;

pub(crate) use args::{ExecuteArgs, RunArgs};
pub use label::JobLabel;
pub(crate) use rules::Rules;
pub(crate) use state::JobState;
