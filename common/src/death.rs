//! Points at which a test makes a program die, as kill -9 or a power cut would.
//!
//! Built in by the feature `deathpoints` alone. With it, a program whose environment has
//! `JS_DIE_AT=<point>` or `JS_DIE_AT=<point>:<n>` ends at the n-th passing of that point (the first
//! when no n is given) by `abort`: no destructor runs and nothing is flushed. With `JS_PANIC_AT` in its
//! place only the thread that passes there panics, as it would at a fault of its own.

/// Dies here when the test asked for `point`; otherwise, and in every release, does nothing.
#[inline]
pub fn point(point: &str) {
    #[cfg(feature = "deathpoints")]
    armed::point(point);
    #[cfg(not(feature = "deathpoints"))]
    let _ = point;
}

#[cfg(feature = "deathpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Aim {
        point: String,
        left: AtomicU32,
    }

    static DEATH: OnceLock<Option<Aim>> = OnceLock::new();
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

    pub(super) fn point(point: &str) {
        if DEATH.get_or_init(|| Aim::read("JS_DIE_AT")).as_ref().is_some_and(|aim| aim.hits(point)) {
            std::process::abort();
        }
        if PANIC.get_or_init(|| Aim::read("JS_PANIC_AT")).as_ref().is_some_and(|aim| aim.hits(point)) {
            panic!("told to at {point}");
        }
    }
}
