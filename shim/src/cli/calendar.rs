//! Times of day and dates, UTC, in the Gregorian calendar (pure).

pub(super) const NS_PER_S: u64 = 1_000_000_000;

pub(super) const S_PER_DAY: u64 = 24 * 60 * 60;

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time {
    /// Year, month from 1, day from 1.
    pub(super) date: (u64, u64, u64),
    pub(super) hour: u64,
    pub(super) minute: u64,
    pub(super) second: u64,
    pub(super) nanosecond: u64,
}

impl Time {
    /// `ns` since 1970.
    pub(super) fn of(ns: u64) -> Self {
        let seconds = ns / NS_PER_S;
        Self {
            date: date(seconds / S_PER_DAY),
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            nanosecond: ns % NS_PER_S,
        }
    }

    /// As RFC 3339 writes it.
    pub(super) fn rfc3339(self) -> String {
        let (year, month, day) = self.date;
        format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
            self.hour, self.minute, self.second, self.nanosecond
        )
    }
}

/// The short name of a month, 1 to 12.
pub(super) fn month_name(month: u64) -> &'static str {
    const NAMES: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    usize::try_from(month.saturating_sub(1))
        .ok()
        .and_then(|index| NAMES.get(index))
        .unwrap_or(&"?")
}

/// The date of a day since 1970. Years begin in March here, so that a leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA_DAYS: u64 = 146_097; // 400 years
    let days = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days / ERA_DAYS, days % ERA_DAYS);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_at_their_borders() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_015), (2000, 2, 28));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_453), (2025, 12, 31));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn a_moment_is_written_with_all_its_digits() {
        let leap_day = Time::of(951_782_400_000_000_007);
        assert_eq!(leap_day.rfc3339(), "2000-02-29T00:00:00.000000007Z");
    }

    #[test]
    fn months_have_names() {
        assert_eq!((month_name(1), month_name(12)), ("Jan", "Dec"));
    }
}
