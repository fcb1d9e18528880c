//! Requests to end this process: Ctrl-C in its console, or the service manager.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use windows::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_CLOSE_EVENT, CTRL_SHUTDOWN_EVENT, SetConsoleCtrlHandler,
};
use windows::core::BOOL;

type Ends = (Sender<&'static str>, Receiver<&'static str>);

/// One process has one end, and what the system calls has no place for a handle.
static ENDS: LazyLock<Ends> = LazyLock::new(|| bounded(1));

static ASKED: AtomicBool = AtomicBool::new(false);

/// Returns the channel of requests to end this process, by name. Requests are dropped until the one before is
/// taken.
#[allow(unsafe_code)] // the handler touches nothing but the channel, and lives as long as the process
pub(crate) fn stop_signals() -> io::Result<Receiver<&'static str>> {
    let signals = ENDS.1.clone();
    // A service has no console; there the manager alone asks.
    let _ = unsafe { SetConsoleCtrlHandler(Some(handler), true) };
    Ok(signals)
}

/// Whether anything has asked this process to end.
pub(super) fn was_asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Asks this process to end. A second time changes nothing.
pub(super) fn ask(name: &'static str) {
    ASKED.store(true, Ordering::SeqCst);
    let _ = ENDS.0.try_send(name);
}

/// Called by the system on a thread of its own.
#[allow(unsafe_code)] // only its signature is
unsafe extern "system" fn handler(event: u32) -> BOOL {
    let name = match event {
        CTRL_C_EVENT => "Ctrl-C",
        CTRL_BREAK_EVENT => "Ctrl-Break",
        CTRL_CLOSE_EVENT => "the end of the console",
        CTRL_SHUTDOWN_EVENT => "the end of the system",
        _ => return false.into(),
    };
    ask(name);
    // The system ends this process as soon as it is answered to these two.
    if matches!(event, CTRL_CLOSE_EVENT | CTRL_SHUTDOWN_EVENT) {
        loop {
            std::thread::park();
        }
    }
    true.into()
}
