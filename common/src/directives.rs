//! The text of `--log-level`, in the manner of `RUST_LOG`: `info`, or `warn,jsacc::proxy=debug`.
//!
//! Pure: it says which level holds for which module; the programs hand that to their logger.

/// Levels from least to most talkative, as `log` counts them: 0 is off, 5 is trace.
const NAMES: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Which module logs down to which level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    default: u8,
    targets: Vec<(String, u8)>,
}

impl Directives {
    /// Reads a list of `LEVEL` and `MODULE=LEVEL`, split by commas. A module without a level of its own is
    /// silent but for errors when only modules are named, as with `RUST_LOG`.
    pub fn parse(text: &str) -> Result<Directives, String> {
        let mut directives = Directives { default: 1, targets: Vec::new() };
        if text.trim().is_empty() {
            return Err("a log level is off, error, warn, info, debug or trace".into());
        }
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                None => directives.default = level(part)?,
                Some((target, name)) => directives.targets.push((target.trim().replace('-', "_"), level(name.trim())?)),
            }
        }
        // The longest name that fits decides.
        directives.targets.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        Ok(directives)
    }

    /// The level of `target` (a module path such as `jsacc::proxy`): 0 is off, 5 is trace.
    pub fn level_of(&self, target: &str) -> u8 {
        let fits = |name: &str| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        self.targets.iter().find(|(name, _)| fits(name)).map_or(self.default, |(_, level)| *level)
    }

    /// The most talkative level of all: what the logger must let through before modules are looked at.
    pub fn most(&self) -> u8 {
        self.targets.iter().map(|(_, level)| *level).fold(self.default, u8::max)
    }
}

fn level(name: &str) -> Result<u8, String> {
    NAMES
        .iter()
        .position(|known| known.eq_ignore_ascii_case(name))
        .map(|i| i as u8)
        .ok_or_else(|| format!("'{name}' is no log level (off, error, warn, info, debug, trace)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, target: &str, level: u8) {
        assert_eq!(Directives::parse(text).unwrap().level_of(target), level, "{text} {target}");
    }

    #[test]
    fn the_longest_name_decides() {
        check("info", "jsacc", 3);
        check("INFO", "rustls", 3);
        check("warn,jsacc=debug", "jsacc::proxy", 4);
        check("warn,jsacc=debug", "jsacc_x", 2);
        check("warn,jsacc=debug,jsacc::proxy=off", "jsacc::proxy::tls", 0);
        check("jsacc=trace", "other", 1);
        assert_eq!(Directives::parse("warn,a=trace").unwrap().most(), 5);
    }

    #[test]
    fn other_words_are_refused() {
        for bad in ["", "loud", "info,x=", "x=loud", "3"] {
            assert!(Directives::parse(bad).is_err(), "{bad}");
        }
    }
}
