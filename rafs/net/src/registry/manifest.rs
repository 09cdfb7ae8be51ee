//! Manifests of a repository, by tag or digest.
//!
//! Owns: asking for one. Does not own: what is in it, or whether it is what its digest says (the caller checks).

use super::{Objects, Registry};
use crate::endpoint::Want;
use crate::failure::Failure;
use crate::link::{Link, Route};
use crate::{HttpOptions, NetError, NetRuntime, RegistryOptions};
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use std::sync::Arc;
use std::sync::mpsc;

/// Largest manifest that is read, bytes.
const MANIFEST_MAX: usize = 4 << 20;
/// What is understood: images and indexes, of OCI and of Docker.
const TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Fetches the manifest or index that `reference`, a tag or a digest, names in the repository of `options`, and waits for
/// it: at most `http.deadline`.
///
/// # Errors
/// [`NetError`]: options that cannot be honoured, or what the registry says.
pub fn fetch_manifest(
    runtime: &Arc<NetRuntime>,
    options: &RegistryOptions,
    http: &HttpOptions,
    reference: &str,
) -> Result<Vec<u8>, NetError> {
    let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(TYPES))]);
    // Redirects of manifests stay as they are.
    let as_said = RegistryOptions { blob_url_scheme: None, blob_redirected_host: None, ..options.clone() };
    let registry = Registry::new(&as_said, http, super::origin(options), headers, Objects::Manifests)?;
    let link = runtime.link(http, None)?;
    let (tx, rx) = mpsc::channel();
    let wanted = reference.to_owned();
    let url = registry.url(reference);
    runtime.spawn(async move {
        let _ = tx.send(ask(&registry, &link, &wanted).await);
    });
    let answer = rx.recv_timeout(http.deadline);
    let failed = |reason: String| NetError::Config(format!("{url}: {reason}"));
    match answer {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(failure)) => Err(failed(failure.reason)),
        Err(_) => Err(failed(format!("no answer within {:?}", http.deadline))),
    }
}

async fn ask(registry: &Registry, link: &Link, reference: &str) -> Result<Vec<u8>, Failure> {
    let exchange = registry.fetch(link, reference, Want::Whole, Route::Direct).await?;
    if !exchange.status().is_success() {
        return Err(exchange.failure());
    }
    exchange.small_body(MANIFEST_MAX).await
}
