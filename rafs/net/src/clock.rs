//! Dates as signatures want them.

use reqwest::header::{DATE, HeaderMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A difference that makes signatures invalid somewhere.
const SKEW_MATTERS: Duration = Duration::from_secs(240);

/// The time as a server has it.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Where ours is behind, and where it is ahead.
    skew: Mutex<(Duration, Duration)>,
}

impl Clock {
    pub fn now(&self) -> SystemTime {
        let (behind, ahead) = *self.skew.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        now.checked_add(behind).and_then(|t| t.checked_sub(ahead)).unwrap_or(now)
    }

    /// Takes the time from a refusal; says whether that changes anything.
    pub fn learn(&self, headers: &HeaderMap) -> bool {
        let theirs = headers.get(DATE).and_then(|v| httpdate::parse_http_date(v.to_str().ok()?).ok());
        let Some(theirs) = theirs else { return false };
        let skew = |ours: SystemTime| {
            let behind = theirs.duration_since(ours).unwrap_or_default();
            (behind, ours.duration_since(theirs).unwrap_or_default())
        };
        let (behind, ahead) = skew(self.now());
        if behind.max(ahead) < SKEW_MATTERS {
            return false;
        }
        tracing::warn!(
            ?behind,
            ?ahead,
            "this machine's clock differs from the store's; signing with the store's"
        );
        *self.skew.lock().unwrap_or_else(PoisonError::into_inner) = skew(SystemTime::now());
        true
    }
}

/// A moment in UTC as `YYYYMMDDTHHMMSSZ`.
pub(crate) fn basic(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = date_from_days(seconds / 86_400);
    let rest = seconds % 86_400;
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Days of the years before `year`, counted from 0000-03-01 in years that begin in March, so that leap days come last.
fn days_before(year: u64) -> u64 {
    365 * year + year / 4 - year / 100 + year / 400
}

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: u64 = 719_468;

/// Days since 1970-01-01 of a date; `None` before that, and when it is no date.
pub(crate) fn days_from_date(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    Some(days_before(year) + (153 * month + 2) / 5 + day - 1 - EPOCH)
}

/// Year, month and day.
fn date_from_days(days: u64) -> (u64, u64, u64) {
    let days = days.min(2_932_896) + EPOCH;
    // A guess that is at most one too high.
    let mut year = days * 400 / 146_097 + 1;
    while days_before(year) > days {
        year -= 1;
    }
    let day = days - days_before(year);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_learned_from_a_refusal() {
        let clock = Clock::default();
        let headers = |time| -> HeaderMap {
            [(DATE, httpdate::fmt_http_date(time).parse().unwrap())].into_iter().collect()
        };
        assert!(!clock.learn(&HeaderMap::new()));
        assert!(!clock.learn(&headers(SystemTime::now())));
        for theirs in
            [SystemTime::now() + Duration::from_secs(5000), SystemTime::now() - Duration::from_secs(5000)]
        {
            assert!(clock.learn(&headers(theirs)));
            let now = clock.now();
            let off = now.duration_since(theirs).or_else(|_| theirs.duration_since(now)).unwrap();
            assert!(off < Duration::from_secs(3), "{off:?}");
            assert!(!clock.learn(&headers(theirs)), "once");
        }
    }

    #[test]
    fn known_moments() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (951_868_800, "20000301T000000Z"),
            (1_369_353_600, "20130524T000000Z"),
            (1_440_938_160, "20150830T123600Z"),
            (4_107_542_399, "21000228T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(basic(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn days_and_dates_agree() {
        for days in 0..100_000 {
            let (year, month, day) = date_from_days(days);
            assert_eq!(days_from_date(year, month, day), Some(days));
        }
        assert_eq!(days_from_date(1970, 13, 1), None);
        assert_eq!(days_from_date(1969, 12, 31), None);
    }
}
