//! The hops of a command: when a program passes which point, for `scripts/bench roundtrip`.
//!
//! A program whose environment has `JS_TRACE_HOPS=<file>` appends a line for each point: microseconds since 1970,
//! which all programs of a machine share, and the name. Without it a point costs one read of memory.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

static TRACE: OnceLock<Option<File>> = OnceLock::new();

/// Notes that this thread passes `point`, where a trace was asked for.
#[inline]
pub fn mark(point: &str) {
    if let Some(file) = TRACE.get_or_init(open) {
        write(file, point);
    }
}

fn open() -> Option<File> {
    let path = std::env::var_os("JS_TRACE_HOPS")?;
    File::options().create(true).append(true).open(path).ok()
}

#[cold]
fn write(mut file: &File, point: &str) {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // One call, so that lines of several threads and programs stay whole.
    let _ = file.write_all(format!("{} {point}\n", time.as_micros()).as_bytes());
}
