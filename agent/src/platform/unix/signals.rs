//! The signals that end the agent.

use crossbeam_channel::Receiver;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;

/// Tells the name of each signal that asks the agent to stop. HUP is taken and ignored, so that an
/// agent that was started by hand outlives its terminal.
pub(crate) fn stop_signals() -> io::Result<Receiver<&'static str>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP])?;
    let (tell, told) = crossbeam_channel::unbounded();
    std::thread::Builder::new().name("signals".into()).stack_size(64 * 1024).spawn(move || {
        for signal in signals.forever() {
            let name = match signal {
                SIGTERM => "TERM",
                SIGINT => "INT",
                SIGQUIT => "QUIT",
                _ => continue,
            };
            if tell.send(name).is_err() {
                return;
            }
        }
    })?;
    Ok(told)
}
