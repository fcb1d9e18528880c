//! Failure points: at one of them a test makes a program end, as kill -9 or a power cut would.
//!
//! Built in by the feature `failpoints` alone. With it, a program whose environment has
//! `JS_DIE_AT=<point>` or `JS_DIE_AT=<point>:<n>` aborts the n-th time it passes that point (the first
//! time when no n is given): no destructor runs and nothing is flushed. With `JS_PANIC_AT` in its
//! place only the thread that passes there panics, as it would at a fault of its own.

use crate::hops;

/// Ends the process when the test asked for `point`; no release does. A point is a hop of the trace too.
#[inline]
pub fn hit(point: &str) {
    hops::mark(point);
    #[cfg(feature = "failpoints")]
    armed::hit(point);
}

/// Whether the test asked for one of `points`; never in a release.
#[inline]
pub fn is_aimed_at(points: &[&str]) -> bool {
    #[cfg(feature = "failpoints")]
    {
        armed::is_aimed_at(points)
    }
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = points;
        false
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Aim {
        point: String,
        left: AtomicU32,
    }

    static ABORT: OnceLock<Option<Aim>> = OnceLock::new();
    static PANIC: OnceLock<Option<Aim>> = OnceLock::new();

    impl Aim {
        fn read(variable: &str) -> Option<Aim> {
            let text = std::env::var(variable).ok()?;
            let (point, times) = match text.rsplit_once(':').map(|(point, n)| (point, n.parse())) {
                Some((point, Ok(times))) => (point.to_owned(), times),
                _ => (text, 1),
            };
            Some(Aim { point, left: AtomicU32::new(times) })
        }

        fn hits(&self, point: &str) -> bool {
            self.point == point && self.left.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    fn abort() -> Option<&'static Aim> {
        ABORT.get_or_init(|| Aim::read("JS_DIE_AT")).as_ref()
    }

    pub(super) fn is_aimed_at(points: &[&str]) -> bool {
        abort().is_some_and(|aim| points.contains(&aim.point.as_str()))
    }

    pub(super) fn hit(point: &str) {
        if abort().is_some_and(|aim| aim.hits(point)) {
            std::process::abort();
        }
        if PANIC.get_or_init(|| Aim::read("JS_PANIC_AT")).as_ref().is_some_and(|aim| aim.hits(point)) {
            panic!("told to at {point}");
        }
    }
}
