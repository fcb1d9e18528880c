//! Days, for certificates. Pure.

/// `n` days in milliseconds; negative ones are none.
pub(crate) fn days(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0) * 86_400_000
}

/// Year, month and day (UTC) of `ms` milliseconds since 1970, `days` days later (or earlier).
pub(crate) fn date(ms: u64, days: i64) -> (i32, u8, u8) {
    // Howard Hinnant's civil_from_days: eras of 400 years that begin on 1 March.
    let z = (ms / 86_400_000) as i64 + days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u8;
    let year = (year_of_era + era * 400 + i64::from(month <= 2)) as i32;
    (year, month, day)
}

/// `ms` milliseconds since 1970 as `2026-05-28 21:33:20 UTC`.
pub(crate) fn shown(ms: u64) -> String {
    let (year, month, day) = date(ms, 0);
    let second = ms / 1000 % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_the_calendar() {
        for (ms, later, want) in [
            (0, 0, (1970, 1, 1)),
            (0, -1, (1969, 12, 31)),
            (1_709_164_800_000, 0, (2024, 2, 29)),
            (1_709_164_800_000, 1, (2024, 3, 1)),
            (1_735_689_599_999, 0, (2024, 12, 31)),
            (1_735_689_600_000, 365, (2026, 1, 1)),
        ] {
            assert_eq!(date(ms, later), want, "{ms} {later}");
        }
        assert_eq!(shown(1_780_000_000_000), "2026-05-28 20:26:40 UTC");
    }
}
