//! Why one try failed, and what that means for the next one.

use rafs::store::ErrorClass;
use reqwest::StatusCode;
use std::error::Error as _;
use std::time::Duration;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something between us and the object: time will tell.
    Transient,
    /// 404 or 410.
    Missing,
    /// 401 or 403.
    Denied,
    /// An answer that makes no sense for what was asked.
    Wrong,
    /// Nothing helps.
    Final,
}

/// A failed try.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub kind: Kind,
    pub reason: String,
    /// What the server said about when to come back.
    pub retry_after: Option<Duration>,
    /// The connection could not be made: nothing has reached the server.
    pub connecting: bool,
}

impl Failure {
    pub fn new(kind: Kind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), retry_after: None, connecting: false }
    }

    pub fn transient(reason: impl Into<String>) -> Self {
        Self::new(Kind::Transient, reason)
    }

    pub fn wrong(reason: impl Into<String>) -> Self {
        Self::new(Kind::Wrong, reason)
    }

    /// From the HTTP client. Its URL is left out: it may hold a signature.
    pub fn from_client(doing: &str, error: reqwest::Error) -> Self {
        let connecting = error.is_connect();
        let error = error.without_url();
        let mut reason = format!("{doing}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Wrappers repeat what they wrap.
            if !reason.ends_with(&text) {
                reason.push_str(": ");
                reason.push_str(&text);
            }
            source = cause.source();
        }
        Self { kind: Kind::Transient, reason, retry_after: None, connecting }
    }

    /// From a status that is no success.
    pub fn from_status(status: StatusCode, retry_after: Option<Duration>) -> Self {
        let (kind, hint) = match status.as_u16() {
            401 | 403 => (Kind::Denied, "; check the credentials and what they allow"),
            404 | 410 => (Kind::Missing, "; it is not there: push it, or correct host and name"),
            416 => {
                (Kind::Wrong, "; the object is shorter than the image says: not the right one, or truncated")
            }
            408 | 425 | 429 => (Kind::Transient, "; the server wants to be asked later"),
            500..=599 => (Kind::Transient, ""),
            300..=399 => (Kind::Wrong, "; a redirect without a usable Location"),
            _ => (Kind::Wrong, "; not an answer to a ranged read"),
        };
        Self { kind, reason: format!("status {status}{hint}"), retry_after, connecting: false }
    }

    /// How the reader is told.
    pub fn class(&self) -> ErrorClass {
        match self.kind {
            Kind::Transient => ErrorClass::Transient,
            Kind::Missing => ErrorClass::Missing,
            Kind::Denied | Kind::Final => ErrorClass::Denied,
            Kind::Wrong => ErrorClass::Corrupt,
        }
    }
}

/// `Retry-After` as seconds or as a date.
pub(crate) fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let text = headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    at.duration_since(std::time::SystemTime::now()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_whether_trying_again_helps() {
        for (status, kind) in [
            (401, Kind::Denied),
            (403, Kind::Denied),
            (404, Kind::Missing),
            (410, Kind::Missing),
            (416, Kind::Wrong),
            (400, Kind::Wrong),
            (301, Kind::Wrong),
            (429, Kind::Transient),
            (500, Kind::Transient),
            (503, Kind::Transient),
        ] {
            let failure = Failure::from_status(StatusCode::from_u16(status).unwrap(), None);
            assert_eq!(failure.kind, kind, "{status}");
            assert!(failure.reason.contains(&status.to_string()));
        }
    }

    #[test]
    fn retry_after_in_both_forms() {
        let mut headers = reqwest::header::HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert("retry-after", "7".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        let soon = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(100));
        headers.insert("retry-after", soon.parse().unwrap());
        assert!(retry_after(&headers).unwrap() > Duration::from_secs(90));
        headers.insert("retry-after", "-1".parse().unwrap());
        assert_eq!(retry_after(&headers), None);
    }
}
