//! Whether an answer is an answer to what was asked: status, Content-Range, lengths. A server that lies gets an error
//! here, before a byte of its body counts.

use crate::failure::Failure;
use crate::link::Exchange;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap};
use std::ops::Range;

/// How many bytes of a whole object are thrown away for a server that knows no ranges.
const SKIP_MAX: u64 = 16 << 20;

/// What the body of a good answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    /// Bytes before those that were asked for.
    pub skip: u64,
    /// Bytes of those that were asked for, from their first on; more than none.
    pub len: u64,
}

/// How a server is known to treat `Range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// As HTTP wants it.
    Http,
    /// May answer 200 and the range (config.md section 4, `http-proxy` on a unix socket).
    Sloppy,
}

/// Checks the answer to a request for `range`.
pub(crate) fn check(exchange: &Exchange, range: &Range<u64>, ranges: Ranges) -> Result<Body, Failure> {
    let headers = exchange.response.headers();
    match exchange.status().as_u16() {
        206 => partial(headers, range),
        200 => whole(headers, range, ranges),
        _ => Err(exchange.failure()),
    }
}

fn partial(headers: &HeaderMap, range: &Range<u64>) -> Result<Body, Failure> {
    plain(headers)?;
    let asked = range.end.saturating_sub(range.start);
    let announced = number(headers, CONTENT_LENGTH)?;
    let Some(value) = headers.get(CONTENT_RANGE) else {
        return match announced {
            Some(len) if len == asked => Ok(Body { skip: 0, len }),
            _ => Err(Failure::wrong("206 without Content-Range")),
        };
    };
    let bad = || Failure::wrong(format!("Content-Range {value:?} makes no sense"));
    let got = value.to_str().ok().and_then(parse_content_range).ok_or_else(bad)?;
    // What is asked for may come with more around it, as from caches that keep whole pages.
    let skip = range.start.checked_sub(got.first).filter(|&skip| skip <= SKIP_MAX && got.last >= range.start);
    let Some(skip) = skip else {
        return Err(Failure::wrong(format!("Content-Range {value:?} is not what was asked for")));
    };
    if announced.is_some_and(|announced| announced != got.last - got.first + 1) {
        return Err(Failure::wrong(format!("Content-Range {value:?} and Content-Length do not agree")));
    }
    if let Some(total) = got.total.filter(|&total| total < range.end) {
        return Err(too_short(total));
    }
    Ok(Body { skip, len: range.end.min(got.last + 1) - range.start })
}

fn whole(headers: &HeaderMap, range: &Range<u64>, ranges: Ranges) -> Result<Body, Failure> {
    plain(headers)?;
    let asked = range.end.saturating_sub(range.start);
    let announced = number(headers, CONTENT_LENGTH)?;
    if ranges == Ranges::Sloppy && announced.is_none_or(|len| len == asked) {
        return Ok(Body { skip: 0, len: asked });
    }
    match announced {
        Some(total) if total < range.end => Err(too_short(total)),
        _ if range.end > SKIP_MAX => Err(Failure::wrong(
            "the server ignores Range and sends the whole object; use one that serves ranges",
        )),
        _ => Ok(Body { skip: range.start, len: asked }),
    }
}

fn too_short(total: u64) -> Failure {
    Failure::wrong(format!("the object has only {total} bytes; it is truncated or not the right one"))
}

/// We ask for no encoding: what comes in one is not the object.
fn plain(headers: &HeaderMap) -> Result<(), Failure> {
    if let Some(coding) =
        headers.get(CONTENT_ENCODING).filter(|c| !c.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(Failure::wrong(format!(
            "the body is in Content-Encoding {coding:?}, which was not asked for"
        )));
    }
    let several = b"multipart/byteranges";
    let begins = |t: &[u8]| t.get(..several.len()).is_some_and(|t| t.eq_ignore_ascii_case(several));
    if headers.get(CONTENT_TYPE).is_some_and(|t| begins(t.as_bytes())) {
        return Err(Failure::wrong("several ranges where one was asked for"));
    }
    Ok(())
}

fn number(headers: &HeaderMap, name: reqwest::header::HeaderName) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get(&name) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|v| digits(v.trim()));
    number.map(Some).ok_or_else(|| Failure::wrong(format!("{name} is {value:?}")))
}

fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    total: Option<u64>,
}

/// `bytes FIRST-LAST/TOTAL`, where the total may be `*`.
fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (span, total) = rest.trim().split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let (first, last) = (digits(first)?, digits(last)?);
    let total = if total == "*" { None } else { Some(digits(total)?) };
    (first <= last && last < u64::MAX && total.is_none_or(|t| last < t)).then_some(ContentRange {
        first,
        last,
        total,
    })
}

/// The size of an object, from the answer to HEAD.
pub(crate) fn size_from_head(exchange: &Exchange) -> Result<Option<u64>, Failure> {
    if !exchange.status().is_success() {
        return Err(exchange.failure());
    }
    let headers = exchange.response.headers();
    plain(headers)?;
    number(headers, CONTENT_LENGTH)
}

/// The size of an object, from the answer to a GET of its first byte.
pub(crate) fn size_from_range(exchange: &Exchange) -> Result<u64, Failure> {
    let headers = exchange.response.headers();
    let size = match exchange.status().as_u16() {
        206 => headers.get(CONTENT_RANGE).and_then(|v| parse_content_range(v.to_str().ok()?)?.total),
        200 => number(headers, CONTENT_LENGTH)?,
        _ => return Err(exchange.failure()),
    };
    size.ok_or_else(|| Failure::wrong("the server does not say how large the object is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(n, v)| (reqwest::header::HeaderName::try_from(*n).unwrap(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn content_ranges() {
        let full = |first, last, total| Some(ContentRange { first, last, total });
        assert_eq!(parse_content_range("bytes 0-9/10"), full(0, 9, Some(10)));
        assert_eq!(parse_content_range("Bytes 5-9/*"), full(5, 9, None));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 9-0/10",
            "bytes 0-10/10",
            "items 0-9/10",
            "bytes 0-9",
            "bytes +0-9/10",
            "bytes 0-18446744073709551615/*",
            "bytes 0-99999999999999999999/*",
            "bytes -9/10",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn partial_answers() {
        let ok = |list: &[(&str, &str)]| partial(&headers(list), &(10..20)).map_err(|f| f.reason);
        assert_eq!(ok(&[("content-range", "bytes 10-19/100")]), Ok(Body { skip: 0, len: 10 }));
        assert_eq!(ok(&[("content-range", "bytes 10-14/100")]), Ok(Body { skip: 0, len: 5 }));
        assert_eq!(ok(&[("content-length", "10")]), Ok(Body { skip: 0, len: 10 }));
        assert_eq!(ok(&[("content-range", "bytes 8-31/*")]), Ok(Body { skip: 2, len: 10 }));
        assert_eq!(
            ok(&[("content-range", "bytes 0-14/100"), ("content-length", "15")]),
            Ok(Body { skip: 10, len: 5 })
        );
        for bad in [
            &[][..],
            &[("content-length", "11")],
            &[("content-length", "ten"), ("content-range", "bytes 10-19/100")],
            &[("content-length", "9"), ("content-range", "bytes 10-19/100")],
            &[("content-range", "bytes 11-20/100")],
            &[("content-range", "bytes 0-9/100")],
            &[("content-range", "bytes 8-31/*"), ("content-length", "10")],
            &[("content-range", "bytes 10-14/15")],
            &[("content-range", "nonsense")],
            &[("content-range", "bytes 10-19/100"), ("content-encoding", "gzip")],
            &[("content-length", "10"), ("content-type", "multipart/byteranges; boundary=x")],
        ] {
            ok(bad).unwrap_err();
        }
    }

    #[test]
    fn whole_answers() {
        let of = |list: &[(&str, &str)], range, ranges| {
            whole(&headers(list), &range, ranges).map_err(|f| f.reason)
        };
        assert_eq!(of(&[("content-length", "100")], 10..20, Ranges::Http), Ok(Body { skip: 10, len: 10 }));
        assert_eq!(of(&[("content-length", "10")], 10..20, Ranges::Sloppy), Ok(Body { skip: 0, len: 10 }));
        assert_eq!(of(&[], 10..20, Ranges::Sloppy), Ok(Body { skip: 0, len: 10 }));
        assert_eq!(of(&[("content-length", "100")], 10..20, Ranges::Sloppy), Ok(Body { skip: 10, len: 10 }));
        of(&[("content-length", "19")], 10..20, Ranges::Http).unwrap_err();
        of(&[], SKIP_MAX..SKIP_MAX + 1, Ranges::Http).unwrap_err();
    }
}
