//! Troubles of one controller, each logged once until the next success.

/// The troubles that were told since the last success, so that each is told once.
#[derive(Default)]
pub(crate) struct LogOnce(Vec<String>);

impl LogOnce {
    /// Most troubles that are remembered.
    const MOST: usize = 8;

    /// Whether this trouble, whatever times and counts its sentence carries, was not told yet.
    pub(crate) fn is_news(&mut self, trouble: &str) -> bool {
        let kind: String = trouble.chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.0.contains(&kind) {
            return false;
        }
        if self.0.len() == LogOnce::MOST {
            self.0.remove(0);
        }
        self.0.push(kind);
        true
    }

    /// Forgets them; `true` when there was one.
    pub(crate) fn clear(&mut self) -> bool {
        !std::mem::take(&mut self.0).is_empty()
    }
}
