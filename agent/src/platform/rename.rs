//! Replaces files by renaming, and waits for programs that have such a file open.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// The time during which the rename of a busy file is tried again.
const BUSY_FILE_LIMIT: Duration = Duration::from_secs(2);

/// The first pause between two tries; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Renames a file, over another one where `to` exists.
///
/// On Windows another program that has one of them open makes this fail (a virus scanner, a backup), so
/// it is tried again for two seconds. Call it where that wait is acceptable.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    retry(|| std::fs::rename(from, to), |fault| super::is_busy(fault, to), BUSY_FILE_LIMIT)
}

/// Calls `attempt` until it succeeds, fails for another reason than a busy file, or `limit` has passed.
fn retry(
    mut attempt: impl FnMut() -> io::Result<()>,
    is_busy: impl Fn(&io::Error) -> bool,
    limit: Duration,
) -> io::Result<()> {
    let end = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let fault = match attempt() {
            Err(fault) if is_busy(&fault) => fault,
            other => return other,
        };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(fault.kind(), busy(&fault)));
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The sentence for a file that stayed busy; the caller names the file.
fn busy(fault: &io::Error) -> String {
    const ACCESS_DENIED: i32 = 5;
    match fault.raw_os_error() {
        // The system gives this for missing rights too.
        Some(ACCESS_DENIED) => "it is open in another program, or this account may not replace it".to_owned(),
        _ => "it is open in another program".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(fault: &io::Error) -> bool {
        matches!(fault.raw_os_error(), Some(5 | 32))
    }

    /// Fails with this error as often as said, then succeeds; returns the outcome and the number of tries.
    fn try_with(code: i32, failures: usize, limit: Duration) -> (io::Result<()>, usize) {
        let mut tries = 0;
        let attempt = || {
            tries += 1;
            if tries > failures { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
        };
        let done = retry(attempt, shared, limit);
        (done, tries)
    }

    #[test]
    fn busy_file_is_tried_again_until_it_is_free() {
        for code in [5, 32] {
            let (done, tries) = try_with(code, 3, Duration::from_secs(600));
            assert!(done.is_ok() && tries == 4, "{code}: {done:?} after {tries}");
        }
    }

    #[test]
    fn file_that_stays_busy_is_named_so() {
        for (code, said) in [(32, "it is open in another program"), (5, "or this account may not replace it")] {
            let (done, tries) = try_with(code, usize::MAX, Duration::from_millis(60));
            assert!(done.unwrap_err().to_string().ends_with(said) && tries > 1, "{code}: {tries}");
        }
    }

    #[test]
    fn other_failure_is_returned_at_once() {
        let (done, tries) = try_with(2, 3, Duration::from_secs(600));
        assert_eq!((done.unwrap_err().raw_os_error(), tries), (Some(2), 1));
    }

    #[test]
    fn file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "old").unwrap();
        rename(&from, &to).unwrap();
        assert_eq!((std::fs::read(&to).unwrap(), from.exists()), (b"new".to_vec(), false));
    }
}
