//! URLs that come from configurations and servers.

use crate::NetError;
use crate::failure::{Failure, Kind};
use reqwest::Url;

/// `scheme://host[:port]` of a mirror; one without a scheme gets `scheme`.
pub(crate) fn mirror_base(host: &str, scheme: &str) -> Result<String, NetError> {
    let text = if host.contains("://") { host.to_owned() } else { format!("{scheme}://{host}") };
    match Url::parse(&text) {
        Ok(url)
            if matches!(url.scheme(), "http" | "https") && url.path().len() <= 1 && url.query().is_none() =>
        {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(NetError::Config(format!("mirror host {host:?} is not of the form http://HOST:PORT"))),
    }
}

/// Checks that `host` is `HOST` or `HOST:PORT` and nothing more.
pub(crate) fn check_host(host: &str, key: &str) -> Result<(), NetError> {
    let bad = || NetError::Config(format!("{key} {host:?} is not of the form HOST or HOST:PORT"));
    let url = Url::parse(&format!("http://{host}/")).map_err(|_| bad())?;
    let plain = url.path() == "/" && url.username().is_empty() && url.password().is_none();
    let plain =
        plain && url.query().is_none() && url.fragment().is_none() && !host.contains(['/', '@', '?', '#']);
    if plain && !host.is_empty() { Ok(()) } else { Err(bad()) }
}

/// A URL that was put together here.
pub(crate) fn parse(text: &str) -> Result<Url, Failure> {
    Url::parse(text).map_err(|e| Failure::new(Kind::Final, format!("{}: {e}", without_secrets(text))))
}

/// A URL for people: without password and query, which may hold secrets.
pub(crate) fn without_secrets(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return "(not a URL)".into() };
    if url.password().is_some() || !url.username().is_empty() {
        // Possible for every URL with a host, and only those have passwords.
        let _ = url.set_password(None);
        let _ = url.set_username("");
    }
    if url.query().is_some() {
        url.set_query(Some("..."));
    }
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_hosts() {
        for good in ["a", "a.b:5000", "127.0.0.1", "[::1]:80"] {
            check_host(good, "host").unwrap();
        }
        for bad in ["", "http://a", "a/b", "u@a", "a?b", "a b", "a:x"] {
            check_host(bad, "host").unwrap_err();
        }
        assert_eq!(mirror_base("m:1", "https").unwrap(), "https://m:1");
        assert_eq!(mirror_base("http://m:1/", "https").unwrap(), "http://m:1");
        mirror_base("http://m/x", "https").unwrap_err();
        mirror_base("ftp://m", "https").unwrap_err();
    }

    #[test]
    fn shown_urls_have_no_secrets() {
        assert_eq!(without_secrets("http://u:p@h/x?sig=abc"), "http://h/x?...");
        assert_eq!(without_secrets("http://h/x"), "http://h/x");
    }
}
