//! `jsagent`: the program around the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    jsagent::main()
}
