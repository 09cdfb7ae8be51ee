//! Objects in a bucket, asked for with signed requests: what S3 and OSS have in common.

use crate::answer::Ranges;
use crate::clock::Clock;
use crate::endpoint::{Answering, Endpoint, Want, escape, escape_path};
use crate::failure::Failure;
use crate::link::{Exchange, Link, Outgoing, Route};
use crate::store::Parts;
use crate::urls::{mirror_base, parse};
use crate::{HttpOptions, NetError, NetRuntime, NetStore, client};
use reqwest::header::{HeaderMap, RANGE};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// Largest refusal that is read, bytes.
const REFUSAL_MAX: usize = 16 << 10;

/// Puts headers on a request that say who asks.
pub(crate) trait Signer: Send + Sync + fmt::Debug {
    /// `key` is the object's name with its prefix, as it is, not escaped.
    fn sign(&self, outgoing: &mut Outgoing, key: &str, now: SystemTime) -> Result<(), Failure>;
}

/// Where a bucket is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// `http` or `https`.
    pub scheme: &'static str,
    pub host: String,
    /// What comes before the object's name in the path: begins and ends with a slash; not escaped.
    pub path: String,
    /// What comes before the blob id in the object's name.
    pub prefix: String,
}

/// A store on a bucket and its mirrors.
pub(crate) fn store(
    runtime: &Arc<NetRuntime>,
    place: &Place,
    http: &HttpOptions,
    signer: Option<Arc<dyn Signer>>,
    identity: String,
) -> Result<NetStore, NetError> {
    let bucket = |base: String, headers: HeaderMap| {
        Box::new(Bucket {
            base: format!("{base}{}", escape_path(&place.path)),
            prefix: place.prefix.clone(),
            headers,
            signer: signer.clone(),
            clock: Clock::default(),
        })
    };
    let mut mirrors: Vec<Box<dyn Endpoint>> = Vec::new();
    for mirror in &http.mirrors {
        mirrors.push(bucket(mirror_base(&mirror.host, place.scheme)?, client::headers(&mirror.headers)?));
    }
    let origin = bucket(format!("{}://{}", place.scheme, place.host), HeaderMap::new());
    let link = runtime.link(http, None)?;
    let parts = Parts { origin, mirrors, link, ranges: Ranges::Http, accounts: Vec::new() };
    NetStore::new(runtime, http, parts, identity)
}

#[derive(Debug)]
struct Bucket {
    /// URL that object names are put behind, with its slash.
    base: String,
    prefix: String,
    headers: HeaderMap,
    signer: Option<Arc<dyn Signer>>,
    clock: Clock,
}

impl Bucket {
    fn url(&self, object: &str) -> String {
        format!("{}{}{}", self.base, escape_path(&self.prefix), escape(object))
    }

    async fn send(&self, link: &Link, object: &str, want: Want, route: Route) -> Result<Exchange, Failure> {
        let mut outgoing = Outgoing { method: want.method(), ..Outgoing::get(parse(&self.url(object))?) };
        outgoing.headers.clone_from(&self.headers);
        outgoing.headers.extend(want.header().map(|range| (RANGE, range)));
        if let Some(signer) = &self.signer {
            signer.sign(&mut outgoing, &format!("{}{object}", self.prefix), self.clock.now())?;
        }
        link.send(outgoing, route).await
    }
}

impl Endpoint for Bucket {
    fn location(&self, object: &str) -> String {
        self.url(object)
    }

    fn ask<'a>(&'a self, link: &'a Link, object: &'a str, want: Want, route: Route) -> Answering<'a> {
        Box::pin(async move {
            let exchange = self.send(link, object, want, route).await?;
            // Signatures are good for minutes; a machine whose clock is wrong learns the time from the refusal.
            let exchange =
                if exchange.status().as_u16() == 403 && self.clock.learn(exchange.response.headers()) {
                    self.send(link, object, want, route).await?
                } else {
                    exchange
                };
            // The answer to HEAD has no words; whether that is meant is seen by asking otherwise.
            if want != Want::Head && exchange.status().is_client_error() {
                return Err(refusal(exchange).await);
            }
            Ok(exchange)
        })
    }
}

/// What a refusal is, in the words of the bucket's server.
async fn refusal(exchange: Exchange) -> Failure {
    let mut failure = exchange.failure();
    if let Ok(body) = exchange.small_body(REFUSAL_MAX).await {
        let body = String::from_utf8_lossy(&body);
        if let Some(code) = element(&body, "Code") {
            let region = element(&body, "Region").map_or_else(String::new, |r| format!(", region {r}"));
            failure.reason = format!("{} ({code}{region})", failure.reason);
        }
    }
    failure
}

/// The text of the first element of this name, if it is a plain word.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once("</")?;
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    (plain && (1..=64).contains(&text.len())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_refusals() {
        let body = "<?xml version=\"1.0\"?><Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'x' is \
                    wrong</Message><Region>eu-west-1</Region></Error>";
        assert_eq!(element(body, "Code"), Some("AuthorizationHeaderMalformed"));
        assert_eq!(element(body, "Region"), Some("eu-west-1"));
        assert_eq!(element(body, "Message"), None, "only words");
        for bad in [
            "",
            "<Code>",
            "<Code></Code>",
            "<Code>a\nb</Code>",
            "<Code>x",
            &format!("<Code>{}</Code>", "x".repeat(65)),
        ] {
            assert_eq!(element(bad, "Code"), None, "{bad:.80}");
        }
    }
}
