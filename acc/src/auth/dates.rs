//! Dates of certificates, and times for people. Pure.

use time::{Duration, OffsetDateTime};

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// `n` days in milliseconds; negative ones are none.
pub(crate) fn days(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0) * DAY_MS
}

/// The beginning (UTC) of the day that is `days` days after `ms` milliseconds since 1970, or before it.
pub(crate) fn midnight(ms: u64, days: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days((ms / DAY_MS) as i64 + days))
}

/// `ms` milliseconds since 1970 as `2026-05-28 21:33:20 UTC`.
pub(crate) fn shown(ms: u64) -> String {
    let at = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::seconds((ms / 1000) as i64));
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    format!("{year:04}-{:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_across_months_and_years() {
        for (ms, later, want) in [
            (0, 0, (1970, 1, 1)),
            (0, -1, (1969, 12, 31)),
            (1_709_164_800_000, 0, (2024, 2, 29)),
            (1_709_164_800_000, 1, (2024, 3, 1)),
            (1_735_689_599_999, 0, (2024, 12, 31)),
            (1_735_689_600_000, 365, (2026, 1, 1)),
        ] {
            assert_eq!(midnight(ms, later), rcgen::date_time_ymd(want.0, want.1, want.2), "{ms} {later}");
        }
        assert_eq!(shown(1_780_000_000_000), "2026-05-28 20:26:40 UTC");
        assert!(shown(u64::MAX).starts_with("9999-12-31 "), "no time makes it panic");
    }
}
