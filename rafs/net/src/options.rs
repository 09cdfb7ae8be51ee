//! What a network store can be told. Plain data; nothing here opens anything.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Text that must not appear in logs or errors: passwords, tokens, keys.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`; white space around it and an empty text count as absent (config.md section 7.6).
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The text itself, for the wire only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How requests are made; the same for every store (config.md section 4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpOptions {
    /// Certificates are not checked. A registry may then also be asked by plain http. Default false.
    pub skip_verify: bool,
    /// PEM files with certificate authorities to trust beside the system's.
    pub ca_cert_files: Vec<PathBuf>,
    /// One exchange, from request to the last byte. `None`: bounded by `deadline` alone. Default 5 s.
    pub timeout: Option<Duration>,
    /// One connection, TLS included; also one health check. Default 5 s.
    pub connect_timeout: Option<Duration>,
    /// Tries after the first. 0: our own policy, as many as fit into `deadline`, with growing pauses. Default 0.
    pub retry_limit: u8,
    /// A fetch ends after this at the latest, retries and mirrors included. Default 30 s.
    pub deadline: Duration,
    /// Bytes a second that bodies are received with at most; 0 for no limit. Default 0.
    pub rate_limit: u64,
    /// Requests in flight at most, at least 1. Prefetch gets a quarter of them. Default 64.
    pub requests_max: usize,
    /// Sent with each request.
    pub headers: Vec<(String, String)>,
    /// A proxy, if any.
    pub proxy: Option<ProxyOptions>,
    /// Hosts that are asked first, in order.
    pub mirrors: Vec<MirrorOptions>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            skip_verify: false,
            ca_cert_files: Vec::new(),
            timeout: Some(Duration::from_secs(5)),
            connect_timeout: Some(Duration::from_secs(5)),
            retry_limit: 0,
            deadline: Duration::from_secs(30),
            rate_limit: 0,
            requests_max: 64,
            headers: Vec::new(),
            proxy: None,
            mirrors: Vec::new(),
        }
    }
}

/// An HTTP proxy (config.md section 4.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyOptions {
    /// Its URL, `http://` or `https://`; not empty. User name and password in it are sent as Basic.
    pub url: Secret,
    /// Asked every `check_interval`; anything but 2xx and 3xx means unhealthy.
    pub ping_url: Option<String>,
    /// Go direct when the proxy is unhealthy, unreachable, or answers 5xx. Otherwise these are errors, and nothing is
    /// ever asked directly. Default true.
    pub fallback: bool,
    /// Time between health checks. Default 5 s.
    pub check_interval: Duration,
    /// No checks when nothing was asked for so long. Default 300 s.
    pub check_pause_elapsed: Duration,
    /// The proxy is asked for `http://` URLs in place of `https://` ones.
    pub use_http: bool,
}

impl ProxyOptions {
    /// A proxy at `url` with the defaults.
    #[must_use]
    pub fn at(url: Secret) -> Self {
        Self {
            url,
            ping_url: None,
            fallback: true,
            check_interval: Duration::from_secs(5),
            check_pause_elapsed: Duration::from_secs(300),
            use_http: false,
        }
    }
}

/// A host that has the same blobs (config.md section 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MirrorOptions {
    /// `http://host:port` or `https://host`; without a scheme that of the store.
    pub host: String,
    /// Asked every `health_check_interval`; without it a mirror is simply tried again after that time.
    pub ping_url: Option<String>,
    /// Sent to this mirror only.
    pub headers: Vec<(String, String)>,
    /// Time between health checks. Default 5 s.
    pub health_check_interval: Duration,
    /// Failures in a row after which the mirror rests. Default 5.
    pub failure_limit: u32,
}

impl MirrorOptions {
    /// A mirror with the defaults.
    #[must_use]
    pub fn at(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            ping_url: None,
            headers: Vec::new(),
            health_check_interval: Duration::from_secs(5),
            failure_limit: 5,
        }
    }
}

/// Plain or encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http`.
    Http,
    /// `https`.
    #[default]
    Https,
}

impl Scheme {
    /// As it stands in a URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A Docker or OCI registry (config.md sections 4 and 7).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryOptions {
    /// Plain http or https.
    pub scheme: Scheme,
    /// `host` or `host:port`.
    pub host: String,
    /// Repository, such as `library/debian`.
    pub repo: String,
    /// base64 of `user:password`.
    pub auth: Option<Secret>,
    /// A Bearer token to begin with.
    pub registry_token: Option<Secret>,
    /// Replaces the scheme of redirects.
    pub blob_url_scheme: Option<Scheme>,
    /// Replaces the host (and port) of redirects.
    pub blob_redirected_host: Option<String>,
    /// Directory of Docker's `config.json`, looked into when `auth` is absent and the registry
    /// wants to know who asks.
    pub docker_config: Option<PathBuf>,
}

/// An S3 bucket (config.md section 4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct S3Options {
    /// Plain http or https.
    pub scheme: Scheme,
    /// `host` or `host:port`; empty for `s3.amazonaws.com`.
    pub endpoint: String,
    /// Region that signatures are for.
    pub region: String,
    /// Bucket.
    pub bucket: String,
    /// Put before each blob id.
    pub object_prefix: String,
    /// Key id and secret; without them requests are not signed.
    pub credentials: Option<KeyPair>,
    /// `endpoint/bucket/key` (true) or `bucket.endpoint/key`. Default true.
    pub path_style: bool,
}

/// An access key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPair {
    /// Public half.
    pub id: Secret,
    /// Secret half.
    pub secret: Secret,
}

/// An OSS bucket (config.md section 4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OssOptions {
    /// Plain http or https.
    pub scheme: Scheme,
    /// `host` or `host:port`.
    pub endpoint: String,
    /// Bucket.
    pub bucket: String,
    /// Put before each blob id.
    pub object_prefix: String,
    /// Key id and secret; without them requests are not signed.
    pub credentials: Option<KeyPair>,
    /// Region: sign with version 4. `None`: version 1.
    pub v4_region: Option<String>,
}

/// A server with a blob at each path (config.md section 4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpProxyOptions {
    /// `http://...`, `https://...`, or the absolute path of a unix socket.
    pub addr: String,
    /// Path that blob ids are put under; not used with a unix socket.
    pub path: String,
}

/// Headers from environment variables `NYDUS_HEADER_<Name>=<value>`.
pub fn headers_from_env(vars: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    vars.filter_map(|(name, value)| {
        let name = name.strip_prefix("NYDUS_HEADER_").filter(|n| !n.is_empty())?;
        Some((name.to_owned(), value))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let secret = Secret::new(" s3cr3t\n").unwrap();
        assert_eq!(secret.expose(), "s3cr3t");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(Secret::new(" \t"), None);
    }

    #[test]
    fn headers_come_from_the_environment() {
        let vars = [("NYDUS_HEADER_X-Tenant", "a"), ("NYDUS_HEADER_", "b"), ("HOME", "/")];
        let vars = vars.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(headers_from_env(vars), [("X-Tenant".to_owned(), "a".to_owned())]);
    }
}
