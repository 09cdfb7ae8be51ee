//! What kinds of servers have in common: they are asked for a range or for a size, and answer with a response.

use crate::failure::Failure;
use crate::link::{Exchange, Link, Route};
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

/// A future that an [`Endpoint`] gives.
pub(crate) type Answering<'a> = Pin<Box<dyn Future<Output = Result<Exchange, Failure>> + Send + 'a>>;

/// What is wanted of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Bytes from, and one past the last. Not empty.
    Range(u64, u64),
    /// The head of a response for the whole object.
    Head,
    /// All of it, for what is small.
    Whole,
}

impl Want {
    pub fn range(range: &Range<u64>) -> Self {
        Self::Range(range.start, range.end)
    }

    pub fn method(self) -> reqwest::Method {
        match self {
            Self::Range(..) | Self::Whole => reqwest::Method::GET,
            Self::Head => reqwest::Method::HEAD,
        }
    }

    /// The `Range` header.
    pub fn header(self) -> Option<reqwest::header::HeaderValue> {
        match self {
            Self::Range(start, end) => {
                reqwest::header::HeaderValue::try_from(format!("bytes={start}-{}", end.saturating_sub(1)))
                    .ok()
            }
            Self::Head | Self::Whole => None,
        }
    }
}

/// A server, or a bucket or repository on one.
pub(crate) trait Endpoint: Send + Sync + fmt::Debug {
    /// Where `object` is, for people. Holds no secret.
    fn location(&self, object: &str) -> String;

    /// Asks for an object. Takes care of credentials and redirects; any status may come back.
    fn ask<'a>(&'a self, link: &'a Link, object: &'a str, want: Want, route: Route) -> Answering<'a>;

    /// Whether this object can be here at all.
    fn may_have(&self, object: &str) -> bool {
        let _ = object;
        true
    }
}

/// An object name as one segment of a path: all but RFC 3986's unreserved characters are escaped, so no name can leave
/// its place or carry a query. Slashes of a prefix are kept by those who add one.
pub(crate) fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&hex::encode_upper([byte]));
        }
    }
    out
}

/// A path of several segments.
pub(crate) fn escape_path(path: &str) -> String {
    path.split('/').map(escape).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_place() {
        assert_eq!(escape("0aF-_.~"), "0aF-_.~");
        assert_eq!(escape("a/../b?c#d%e"), "a%2F..%2Fb%3Fc%23d%25e");
        assert_eq!(escape_path("a b/c+d"), "a%20b/c%2Bd");
    }

    #[test]
    fn ranges_are_written_with_their_last_byte() {
        assert_eq!(Want::Range(0, 1).header().unwrap(), "bytes=0-0");
        assert_eq!(Want::Range(10, 20).header().unwrap(), "bytes=10-19");
    }
}
