//! HTTP clients: TLS, timeouts of connections, headers of every request. Follows no redirects, uses no proxies from
//! the environment, repeats nothing by itself.

use crate::{HttpOptions, NetError, Secret};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, ClientBuilder, Proxy};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What every request says it comes from; clients of registries match on it.
const USER_AGENT: &str = "nydusd/1.0.0";
/// How long an unused connection is kept; servers commonly close theirs after 60 s or more.
const IDLE: Duration = Duration::from_secs(50);

/// A client that goes to servers directly.
pub(crate) fn direct(options: &HttpOptions) -> Result<Client, NetError> {
    build(builder(options)?)
}

/// A client that goes through a proxy.
pub(crate) fn proxied(options: &HttpOptions, url: &str) -> Result<Client, NetError> {
    build(builder(options)?.proxy(proxy(url)?))
}

fn proxy(url: &str) -> Result<Proxy, NetError> {
    Proxy::all(url).map_err(|_| NetError::Config("the proxy's url is no URL; write http://host:port".into()))
}

/// Whether this can be the URL of a proxy.
///
/// # Errors
/// It cannot.
pub fn check_proxy_url(url: &Secret) -> Result<(), NetError> {
    proxy(url.expose()).map(drop)
}

/// A client whose every connection is one to a unix socket.
pub(crate) fn on_socket(options: &HttpOptions, socket: &Path) -> Result<Client, NetError> {
    build(builder(options)?.unix_socket(socket))
}

fn build(builder: ClientBuilder) -> Result<Client, NetError> {
    builder.build().map_err(|e| NetError::Client(crate::failure::Failure::from_client("client", e).reason))
}

fn builder(options: &HttpOptions) -> Result<ClientBuilder, NetError> {
    let mut headers = headers(&options.headers)?;
    // Ranges are of the object as it is; to say nothing would leave the choice to the server.
    headers.entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls(options)?)
        .user_agent(USER_AGENT)
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .tcp_nodelay(true)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(options.requests_max.max(1))
        .no_proxy();
    if let Some(limit) = options.connect_timeout {
        builder = builder.connect_timeout(limit);
    }
    Ok(builder)
}

/// Checks names and values of configured headers.
pub(crate) fn headers(list: &[(String, String)]) -> Result<HeaderMap, NetError> {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        let bad =
            || NetError::Config(format!("header {name:?} cannot be sent: its name or value is not valid"));
        let name = HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
        let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| bad())?;
        value.set_sensitive(true);
        map.insert(name, value);
    }
    Ok(map)
}

fn tls(options: &HttpOptions) -> Result<ClientConfig, NetError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| NetError::Client(e.to_string()))?;
    if options.skip_verify {
        let verifier = Arc::new(TrustAnybody(provider));
        return Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a certificate of this system cannot be read");
    }
    roots.add_parsable_certificates(system.certs);
    for path in &options.ca_cert_files {
        add_file(&mut roots, path)?;
    }
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn add_file(roots: &mut RootCertStore, path: &PathBuf) -> Result<(), NetError> {
    let error = |reason: String| NetError::CaFile { path: path.clone(), reason };
    let mut found = 0;
    for cert in CertificateDer::pem_file_iter(path).map_err(|e| error(e.to_string()))? {
        roots.add(cert.map_err(|e| error(e.to_string()))?).map_err(|e| error(e.to_string()))?;
        found += 1;
    }
    if found == 0 {
        return Err(error("there is no certificate in it".into()));
    }
    Ok(())
}

/// What `skip_verify` asks for: any certificate will do. Signatures of handshakes are still checked, so whoever
/// shows a certificate has its key.
#[derive(Debug)]
struct TrustAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_said() {
        let missing =
            HttpOptions { ca_cert_files: vec!["/nonexistent.pem".into()], ..HttpOptions::default() };
        assert!(direct(&missing).unwrap_err().to_string().contains("/nonexistent.pem"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let empty = HttpOptions { ca_cert_files: vec![file.path().into()], ..HttpOptions::default() };
        assert!(direct(&empty).unwrap_err().to_string().contains("no certificate"));
        let header = HttpOptions { headers: vec![("a b".into(), "c".into())], ..HttpOptions::default() };
        assert!(direct(&header).unwrap_err().to_string().contains("a b"));
        let error = proxied(&HttpOptions::default(), "user:secret@nowhere:x").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
