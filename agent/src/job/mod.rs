//! The definition of a job: its label, its state, its arguments.

pub mod args;
pub mod command_names;
pub(crate) mod fields;
mod label;
mod rules;
mod state;

pub use args::{ExecuteArgs, RunArgs};
pub use label::JobLabel;
pub use rules::Rules;
pub use state::JobState;
