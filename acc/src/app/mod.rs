//! The program: its command line, its subcommands, and the running controller.
//!
//! Owns: wiring, the order of start and stop. Does not own: any rule; all other modules are below.

pub mod cli;
pub mod daemon;
pub mod logging;
pub mod subcommands;
