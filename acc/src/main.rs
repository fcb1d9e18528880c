//! `jsacc`: flags, subcommands, the log, the exit code.

use jsacc::app::cli::{self, Invocation};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os().skip(1)) {
        Ok(invocation) => invocation,
        Err(e) => return fail(2, &e),
    };
    let outcome = match invocation {
        Invocation::Print(text) => say(&text),
        Invocation::Serve(config) => {
            jsacc::app::logging::start(&config.log_level);
            jsacc::app::daemon::run(*config)
        }
        Invocation::Do(config, task) => {
            jsacc::app::logging::start(&config.log_level);
            jsacc::app::subcommands::run(&config, task).and_then(|text| say(&text))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(1, &format!("{e:#}")),
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    // A reader that has gone away (`jsacc --help | head -1`) is no fault.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(())
}

fn fail(code: u8, what: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "jsacc: {}", what.trim_end().replace('\n', "; "));
    ExitCode::from(code)
}
