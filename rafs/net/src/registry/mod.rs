//! Docker and OCI registries (config.md section 7): blobs of one repository, by digest.

mod auth;
mod challenge;
mod docker_config;
mod manifest;
mod redirect;
mod token;

pub(crate) use auth::Authenticator;
pub use manifest::fetch_manifest;

use crate::answer::Ranges;
use crate::endpoint::{Answering, Endpoint, Want, escape, escape_path};
use crate::failure::{Failure, Kind};
use crate::identity::identity;
use crate::link::{Exchange, Link, Outgoing, Route};
use crate::store::Parts;
use crate::urls::{check_host, mirror_base, parse, without_secrets};
use crate::{HttpOptions, NetError, NetRuntime, NetStore, RegistryOptions, Scheme, Secret, client};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use redirect::Locations;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION, RANGE};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// Redirects that are followed, one after the other.
const HOPS_MAX: u32 = 3;

impl NetStore {
    /// Blobs of a repository in a registry.
    ///
    /// # Errors
    /// Options that cannot be honoured.
    pub fn registry(
        runtime: &Arc<NetRuntime>,
        options: &RegistryOptions,
        http: &HttpOptions,
    ) -> Result<Self, NetError> {
        let mut accounts = Vec::new();
        let mut registry = |base: String, headers: HeaderMap| {
            let registry = Registry::new(options, http, base, headers, Objects::Blobs)?;
            accounts.push(Arc::clone(&registry.auth));
            Ok::<_, NetError>(Box::new(registry))
        };
        let mut mirrors: Vec<Box<dyn Endpoint>> = Vec::new();
        for mirror in &http.mirrors {
            let base = mirror_base(&mirror.host, options.scheme.as_str())?;
            mirrors.push(registry(base, client::headers(&mirror.headers)?)?);
        }
        let origin = registry(origin(options), HeaderMap::new())?;
        let link = runtime.link(http, None)?;
        let parts = Parts { origin, mirrors, link, ranges: Ranges::Http, accounts };
        Self::new(runtime, http, parts, identity("registry", options, http))
    }

    /// Other credentials for a registry from now on: base64 of `user:password`, or none; also for other stores of this
    /// runtime that were made with the same options. Does nothing to stores of other kinds.
    ///
    /// # Errors
    /// They are not of that form.
    pub fn set_registry_auth(&self, auth: Option<Secret>) -> Result<(), NetError> {
        if let Some(auth) = &auth {
            check_auth(auth)?;
        }
        for account in self.accounts() {
            account.set_given(auth.clone());
        }
        Ok(())
    }
}

/// Whether these can be credentials of a registry: base64 of `user:password`.
///
/// # Errors
/// They cannot.
pub fn check_auth(auth: &Secret) -> Result<(), NetError> {
    let plain = STANDARD.decode(auth.expose()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if plain.is_some_and(|plain| plain.contains(':')) {
        return Ok(());
    }
    Err(NetError::Config("registry \"auth\" is not the base64 of user:password".into()))
}

/// A repository on one host.
#[derive(Debug)]
struct Registry {
    /// `scheme://host`.
    base: String,
    repo: String,
    headers: HeaderMap,
    auth: Arc<Authenticator>,
    locations: Locations,
    blob_url_scheme: Option<Scheme>,
    blob_redirected_host: Option<String>,
    may_fall_back: bool,
    fallen_back: AtomicBool,
    objects: Objects,
}

/// What object names mean.
#[derive(Clone, Copy, Debug)]
enum Objects {
    /// sha256 of a blob.
    Blobs,
    /// Tag or digest of a manifest.
    Manifests,
}

/// `scheme://host` of the registry itself.
fn origin(options: &RegistryOptions) -> String {
    format!("{}://{}", options.scheme.as_str(), options.host)
}

impl Registry {
    /// The repository of `options` at `base`, the registry itself or a mirror; `headers` are sent with each request.
    fn new(
        options: &RegistryOptions,
        http: &HttpOptions,
        base: String,
        headers: HeaderMap,
        objects: Objects,
    ) -> Result<Self, NetError> {
        check_host(&options.host, "registry host")?;
        if let Some(host) = &options.blob_redirected_host {
            check_host(host, "blob_redirected_host")?;
        }
        let repo = options.repo.trim_matches('/');
        if repo.is_empty() {
            return Err(NetError::Config("registry needs a \"repo\", such as \"library/debian\"".into()));
        }
        if let Some(auth) = &options.auth {
            check_auth(auth)?;
        }
        let by_https = base.starts_with("https:");
        let auth = Authenticator::new(
            &options.host,
            options.auth.clone(),
            options.registry_token.as_ref(),
            options.docker_config.clone().filter(|_| options.auth.is_none()),
            by_https && !http.skip_verify,
        );
        Ok(Self {
            may_fall_back: http.skip_verify && by_https,
            fallen_back: AtomicBool::new(false),
            base,
            repo: escape_path(repo),
            headers,
            auth: Arc::new(auth.map_err(|f| NetError::Config(f.reason))?),
            locations: Locations::default(),
            blob_url_scheme: options.blob_url_scheme,
            blob_redirected_host: options.blob_redirected_host.clone(),
            objects,
        })
    }

    fn url(&self, object: &str) -> String {
        let base = match self.base.strip_prefix("https") {
            Some(rest) if self.fallen_back.load(Ordering::Relaxed) => format!("http{rest}"),
            _ => self.base.clone(),
        };
        match self.objects {
            Objects::Blobs => format!("{base}/v2/{}/blobs/sha256:{}", self.repo, escape(object)),
            // A digest keeps its colon, which is legal there.
            Objects::Manifests => {
                format!("{base}/v2/{}/manifests/{}", self.repo, escape(object).replace("%3A", ":"))
            }
        }
    }

    async fn fetch(&self, link: &Link, object: &str, want: Want, route: Route) -> Result<Exchange, Failure> {
        // A signed location is good for one method.
        let remembers = want != Want::Head;
        // Whoever asks to go past what may be damaged wants to hear from the registry itself, too.
        if remembers
            && route == Route::Proxy
            && let Some(location) = self.locations.get(object)
        {
            let answer = self.at_location(link, location, want, route).await;
            match answer {
                // Expired, or moved: the registry knows better.
                Ok(exchange) if matches!(exchange.status().as_u16(), 300..=499) => {
                    self.locations.forget(object)
                }
                Ok(exchange) => return Ok(exchange),
                Err(failure) => {
                    self.locations.forget(object);
                    return Err(failure);
                }
            }
        }
        let mut exchange = self.with_auth(link, object, want, route).await?;
        let mut location = None;
        for _ in 0..HOPS_MAX {
            if !exchange.status().is_redirection() {
                break;
            }
            let Some(to) = self.location_in(&exchange)? else { break };
            let until = redirect::good_until(&to, exchange.response.headers(), SystemTime::now());
            exchange = self.at_location(link, to.clone(), want, route).await?;
            // Of several hops the first is remembered: it is the registry's word.
            location.get_or_insert((to, until));
        }
        if let Some((to, until)) = location.filter(|_| remembers && exchange.status().is_success()) {
            self.locations.put(object, to, until);
        }
        Ok(exchange)
    }

    /// Follows a redirect. Whatever we are to the registry, we are nobody there.
    async fn at_location(
        &self,
        link: &Link,
        url: Url,
        want: Want,
        route: Route,
    ) -> Result<Exchange, Failure> {
        let shown = without_secrets(url.as_str());
        let mut outgoing = Outgoing { method: want.method(), ..Outgoing::get(url) };
        if let Some(range) = want.header() {
            outgoing.headers.insert(RANGE, range);
        }
        link.send(outgoing, route)
            .await
            .map_err(|f| Failure { reason: format!("redirected to {shown}: {}", f.reason), ..f })
    }

    fn location_in(&self, exchange: &Exchange) -> Result<Option<Url>, Failure> {
        let Some(value) = exchange.response.headers().get(LOCATION) else { return Ok(None) };
        let bad = |what: &str| Failure::wrong(format!("the redirect's Location {what}"));
        let text = value.to_str().map_err(|_| bad("is not text"))?;
        let mut url = exchange.response.url().join(text).map_err(|_| bad("is no URL"))?;
        if let Some(host) = &self.blob_redirected_host {
            let (name, port) = match host.rsplit_once(':') {
                Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
                _ => (host.as_str(), None),
            };
            url.set_host(Some(name)).map_err(|_| bad("cannot have another host"))?;
            url.set_port(port).map_err(|()| bad("cannot have another port"))?;
        }
        if let Some(scheme) = self.blob_url_scheme {
            url.set_scheme(scheme.as_str()).map_err(|()| bad("cannot have another scheme"))?;
        }
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(bad("is neither http nor https"));
        }
        // The request there has no Authorization, whoever puts one into a URL.
        let stripped = url.set_username("").and_then(|()| url.set_password(None));
        stripped.map_err(|()| bad("cannot be used without a password"))?;
        Ok(Some(url))
    }

    /// Asks the registry itself, and shows it what it wants to see.
    async fn with_auth(
        &self,
        link: &Link,
        object: &str,
        want: Want,
        route: Route,
    ) -> Result<Exchange, Failure> {
        let mut grant = self.auth.ready(link).await;
        let mut fresh = false;
        // At most three rounds: with an old header, without one, with a new one.
        loop {
            let exchange = self.send(link, object, want, route, grant.as_ref()).await?;
            if exchange.status().as_u16() != 401 {
                return Ok(exchange);
            }
            if let Some(grant) = grant.as_ref().filter(|_| fresh) {
                let said = challenge::complaint(exchange.response.headers());
                let reason = format!(
                    "the registry does not accept our credentials (401{}); correct them, or what they allow",
                    said.map_or_else(String::new, |said| format!(": {said}"))
                );
                let failure = Failure::new(Kind::Denied, reason);
                self.auth.refused(grant, &failure);
                return Err(failure);
            }
            grant = self.auth.answer(link, grant.as_ref(), exchange.response.headers()).await?;
            fresh = grant.is_some();
        }
    }

    async fn send(
        &self,
        link: &Link,
        object: &str,
        want: Want,
        route: Route,
        grant: Option<&auth::Grant>,
    ) -> Result<Exchange, Failure> {
        let mut headers = self.headers.clone();
        headers.extend(want.header().map(|range| (RANGE, range)));
        headers.extend(grant.map(|grant| (AUTHORIZATION, grant.header.clone())));
        let outgoing =
            |url: Url| Outgoing { method: want.method(), headers: headers.clone(), ..Outgoing::get(url) };
        let result = link.send(outgoing(parse(&self.url(object))?), route).await;
        match result {
            Err(failure)
                if failure.connecting && self.may_fall_back && !self.fallen_back.load(Ordering::Relaxed) =>
            {
                self.fallen_back.store(true, Ordering::Relaxed);
                match link.send(outgoing(parse(&self.url(object))?), route).await {
                    Ok(exchange) => {
                        tracing::warn!(
                            host = self.base,
                            "no TLS there: going on with plain http, as skip_verify allows"
                        );
                        Ok(exchange)
                    }
                    Err(_) => {
                        self.fallen_back.store(false, Ordering::Relaxed);
                        Err(failure)
                    }
                }
            }
            result => result,
        }
    }
}

impl Endpoint for Registry {
    fn location(&self, object: &str) -> String {
        self.url(object)
    }

    fn ask<'a>(&'a self, link: &'a Link, object: &'a str, want: Want, route: Route) -> Answering<'a> {
        Box::pin(self.fetch(link, object, want, route))
    }

    /// Digests only: nothing like `ID.blob.meta` is ever in a registry.
    fn may_have(&self, object: &str) -> bool {
        object.bytes().all(|b| b.is_ascii_alphanumeric())
    }
}
