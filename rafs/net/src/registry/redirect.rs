//! Where a registry sent us for a blob, and for how long that is good.

use reqwest::Url;
use reqwest::header::{CACHE_CONTROL, HeaderMap};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Most blobs with a remembered location.
const LOCATIONS_MAX: usize = 4096;
/// A location is not used in its last moments: the request has to arrive in time.
const MARGIN: Duration = Duration::from_secs(10);

/// Locations by blob.
#[derive(Debug, Default)]
pub(super) struct Locations(Mutex<HashMap<Arc<str>, Location>>);

#[derive(Clone, Debug)]
struct Location {
    url: Url,
    good_until: Option<SystemTime>,
}

impl Locations {
    fn map(&self) -> MutexGuard<'_, HashMap<Arc<str>, Location>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The location of a blob, unless it has expired.
    pub fn get(&self, object: &str) -> Option<Url> {
        let mut map = self.map();
        let location = map.get(object)?;
        if location.good_until.is_some_and(|until| SystemTime::now() >= until) {
            map.remove(object);
            return None;
        }
        Some(location.url.clone())
    }

    /// Remembers a location that worked.
    pub fn put(&self, object: &str, url: Url, good_until: Option<SystemTime>) {
        let mut map = self.map();
        if map.len() >= LOCATIONS_MAX {
            map.clear();
        }
        map.insert(object.into(), Location { url, good_until });
    }

    pub fn forget(&self, object: &str) {
        self.map().remove(object);
    }
}

/// Until when a location may be used: the earliest of what its signature and the redirect's headers say.
pub(super) fn good_until(url: &Url, headers: &HeaderMap, now: SystemTime) -> Option<SystemTime> {
    let query: HashMap<String, String> =
        url.query_pairs().map(|(k, v)| (k.to_ascii_lowercase(), v.into_owned())).collect();
    let after = |base: SystemTime, seconds: &str| {
        let seconds: u32 = seconds.parse().ok()?;
        base.checked_add(Duration::from_secs(seconds.into()))
    };
    let signed = |date: &str, life: &str| after(basic_date(query.get(date)?)?, query.get(life)?);
    let max_age = headers.get(CACHE_CONTROL).and_then(|value| {
        value.to_str().ok()?.split(',').find_map(|part| after(now, part.trim().strip_prefix("max-age=")?))
    });
    let ends = [
        signed("x-amz-date", "x-amz-expires"),
        signed("x-goog-date", "x-goog-expires"),
        signed("x-oss-date", "x-oss-expires"),
        // Seconds since 1970: S3 version 2, OSS version 1, Google version 2, CloudFront.
        query.get("expires").and_then(|seconds| after(SystemTime::UNIX_EPOCH, seconds)),
        // Azure.
        query.get("se").and_then(|text| basic_date(&text.replace(['-', ':'], ""))),
        max_age,
    ];
    let end = ends.into_iter().flatten().min()?;
    // Half of a short life is better than none.
    let life = end.duration_since(now).unwrap_or_default();
    end.checked_sub(MARGIN.min(life / 2))
}

/// `YYYYMMDDTHHMMSSZ`.
fn basic_date(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes.get(8) != Some(&b'T') || bytes.get(15) != Some(&b'Z') {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?
    };
    let days = crate::clock::days_from_date(number(0..4)?, number(4..6)?, number(6..8)?)?;
    let (h, m, s) = (number(9..11)?, number(11..13)?, number(13..15)?);
    if h > 23 || m > 59 || s > 60 {
        return None;
    }
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(days * 86_400 + h * 3600 + m * 60 + s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn until(query: &str, headers: &[(&'static str, &str)], now: u64) -> Option<SystemTime> {
        let url = Url::parse(&format!("https://h/x?{query}")).unwrap();
        let headers = headers
            .iter()
            .map(|(n, v)| (reqwest::header::HeaderName::from_static(n), v.parse().unwrap()))
            .collect();
        good_until(&url, &headers, at(now))
    }

    #[test]
    fn lives_of_signed_urls() {
        // 2013-05-24T00:00:00Z is 1369353600.
        let amz = "X-Amz-Date=20130524T000000Z&X-Amz-Expires=1200&X-Amz-Signature=x";
        assert_eq!(until(amz, &[], 1_369_353_600), Some(at(1_369_354_790)));
        assert_eq!(until("Expires=1369353700&Signature=x", &[], 1_369_353_600), Some(at(1_369_353_690)));
        assert_eq!(until("se=2013-05-24T00%3A10%3A00Z&sig=x", &[], 1_369_353_600), Some(at(1_369_354_190)));
        assert_eq!(until("sig=1", &[("cache-control", "private, max-age=60")], 1000), Some(at(1050)));
        assert_eq!(until("sig=1", &[], 1000), None);
        assert_eq!(until("Expires=1008", &[], 1000), Some(at(1004)), "half of a short life");
        for bad in [
            "Expires=x",
            "Expires=99999999999999999999",
            "X-Amz-Date=2013&X-Amz-Expires=1",
            "se=never",
            "X-Amz-Date=20131324T000000Z&X-Amz-Expires=1",
        ] {
            assert_eq!(until(bad, &[], 1000), None, "{bad}");
        }
    }

    #[test]
    fn expired_locations_are_gone() {
        let locations = Locations::default();
        let url = Url::parse("http://h/").unwrap();
        locations.put("a", url.clone(), None);
        locations.put("b", url.clone(), Some(SystemTime::now() - Duration::from_secs(1)));
        assert_eq!(locations.get("a"), Some(url));
        assert_eq!(locations.get("b"), None);
        locations.forget("a");
        assert_eq!(locations.get("a"), None);
    }
}
