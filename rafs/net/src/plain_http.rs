//! `http-proxy`: a server, or a unix socket, with a blob at each path.

use crate::answer::Ranges;
use crate::endpoint::{Answering, Endpoint, Want, escape, escape_path};
use crate::identity::identity;
use crate::link::{Link, Outgoing, Route};
use crate::store::Parts;
use crate::urls::mirror_base;
use crate::{HttpOptions, HttpProxyOptions, NetError, NetRuntime, NetStore, client};
use reqwest::Url;
use reqwest::header::{HeaderMap, RANGE};
use std::sync::Arc;

impl NetStore {
    /// Blobs of an HTTP server at `addr/path/ID`, or of one behind a unix socket at `/ID`.
    ///
    /// # Errors
    /// Options that cannot be honoured.
    pub fn http_proxy(
        runtime: &Arc<NetRuntime>,
        options: &HttpProxyOptions,
        http: &HttpOptions,
    ) -> Result<Self, NetError> {
        if options.addr.starts_with('/') {
            let link = runtime.link(http, Some(options.addr.as_str().into()))?;
            let base = "http://localhost/".to_owned();
            let origin = Box::new(PlainHttp { base, headers: HeaderMap::new() });
            let http = HttpOptions { mirrors: Vec::new(), ..http.clone() };
            let ranges = Ranges::Sloppy;
            let parts = Parts { origin, mirrors: Vec::new(), link, ranges, accounts: Vec::new() };
            let identity = identity("http-proxy", options, &http);
            return Self::new(runtime, &http, parts, identity);
        }
        let bad = |reason: String| {
            NetError::Config(format!(
                "http-proxy addr {:?}: {reason}; write http://HOST, https://HOST or the absolute path of a socket",
                options.addr
            ))
        };
        let url = Url::parse(&options.addr).map_err(|e| bad(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad(format!("{} is neither http nor https", url.scheme())));
        }
        let prefix = match options.path.trim_matches('/') {
            "" => String::new(),
            path => format!("{}/", escape_path(path)),
        };
        let at = |base: &str| format!("{}/{prefix}", base.trim_end_matches('/'));
        let mut mirrors: Vec<Box<dyn Endpoint>> = Vec::new();
        for mirror in &http.mirrors {
            let base = at(&mirror_base(&mirror.host, url.scheme())?);
            mirrors.push(Box::new(PlainHttp { base, headers: client::headers(&mirror.headers)? }));
        }
        let link = runtime.link(http, None)?;
        let origin = Box::new(PlainHttp { base: at(url.as_str()), headers: HeaderMap::new() });
        let parts = Parts { origin, mirrors, link, ranges: Ranges::Http, accounts: Vec::new() };
        Self::new(runtime, http, parts, identity("http-proxy", options, http))
    }
}

/// Objects below one URL.
#[derive(Debug)]
struct PlainHttp {
    /// Ends with a slash.
    base: String,
    headers: HeaderMap,
}

impl Endpoint for PlainHttp {
    fn location(&self, object: &str) -> String {
        crate::urls::without_secrets(&format!("{}{}", self.base, escape(object)))
    }

    fn ask<'a>(&'a self, link: &'a Link, object: &'a str, want: Want, route: Route) -> Answering<'a> {
        Box::pin(async move {
            let url = crate::urls::parse(&format!("{}{}", self.base, escape(object)))?;
            let mut outgoing = Outgoing { method: want.method(), ..Outgoing::get(url) };
            outgoing.headers.clone_from(&self.headers);
            if let Some(range) = want.header() {
                outgoing.headers.insert(RANGE, range);
            }
            link.send(outgoing, route).await
        })
    }
}
