//! Moments in the text form that the API uses.

use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-11-22 22:34:32.879367086 +00:00:00`.
pub(super) fn shown(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:09} +00:00:00",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_nanos()
    )
}

/// Year, month and day of a number of days since 1970, in years that begin in March so that the leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        let at = |seconds, nanos| shown(UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(at(0, 0), "1970-01-01 00:00:00.000000000 +00:00:00");
        assert_eq!(at(951_827_696, 1), "2000-02-29 12:34:56.000000001 +00:00:00");
        assert_eq!(at(1_795_386_872, 879_367_086), "2026-11-22 22:34:32.879367086 +00:00:00");
        assert_eq!(at(4_107_542_399, 0), "2100-02-28 23:59:59.000000000 +00:00:00");
    }
}
