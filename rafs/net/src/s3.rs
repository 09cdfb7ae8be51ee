//! S3 and what speaks its language: path and virtual-host style, AWS signature version 4.

use crate::bucket::{self, Place, Signer};
use crate::clock;
use crate::failure::{Failure, Kind};
use crate::identity::identity;
use crate::link::Outgoing;
use crate::urls::check_host;
use crate::{HttpOptions, KeyPair, NetError, NetRuntime, NetStore, S3Options};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::SystemTime;

/// sha256 of the empty body that reads have.
const NO_BODY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

impl NetStore {
    /// Blobs in an S3 bucket.
    ///
    /// # Errors
    /// Options that cannot be honoured.
    pub fn s3(runtime: &Arc<NetRuntime>, options: &S3Options, http: &HttpOptions) -> Result<Self, NetError> {
        let endpoint = if options.endpoint.is_empty() { "s3.amazonaws.com" } else { &options.endpoint };
        check_host(endpoint, "s3 endpoint")?;
        if options.bucket.is_empty() || options.region.is_empty() {
            return Err(NetError::Config("s3 needs a \"bucket_name\" and a \"region\"".into()));
        }
        let (host, path) = if options.path_style {
            (endpoint.to_owned(), format!("/{}/", options.bucket))
        } else {
            let host = format!("{}.{endpoint}", options.bucket);
            check_host(&host, "s3 bucket and endpoint")?;
            (host, "/".to_owned())
        };
        let place =
            Place { scheme: options.scheme.as_str(), host, path, prefix: options.object_prefix.clone() };
        let signer = options.credentials.clone().map(|keys| {
            let signer: Arc<dyn Signer> = Arc::new(SigV4 { keys, region: options.region.clone() });
            signer
        });
        bucket::store(runtime, &place, http, signer, identity("s3", options, http))
    }
}

#[derive(Debug)]
struct SigV4 {
    keys: KeyPair,
    region: String,
}

impl Signer for SigV4 {
    fn sign(&self, outgoing: &mut Outgoing, _: &str, now: SystemTime) -> Result<(), Failure> {
        let date = clock::basic(now);
        let host = match (outgoing.url.host_str(), outgoing.url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => return Err(Failure::new(Kind::Final, "an S3 endpoint without a host")),
        };
        // `Range` is left out: caching proxies ask for other ranges than we do.
        let headers = [("host", host.as_str()), ("x-amz-content-sha256", NO_BODY), ("x-amz-date", &date)];
        let query = outgoing.url.query().unwrap_or_default();
        let value = self.authorization(outgoing.method.as_str(), outgoing.url.path(), query, &headers, &date);
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| Failure::new(Kind::Final, "access_key_id cannot be sent in a header"))?;
        value.set_sensitive(true);
        outgoing.headers.insert(AUTHORIZATION, value);
        outgoing.headers.insert("x-amz-content-sha256", HeaderValue::from_static(NO_BODY));
        outgoing.headers.extend(
            HeaderValue::try_from(date)
                .ok()
                .map(|date| (reqwest::header::HeaderName::from_static("x-amz-date"), date)),
        );
        Ok(())
    }
}

impl SigV4 {
    /// The header's value; `headers` in order of their names.
    fn authorization(
        &self,
        method: &str,
        path: &str,
        query: &str,
        headers: &[(&str, &str)],
        date: &str,
    ) -> String {
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{NO_BODY}");
        let day = date.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let signature = scoped_signature(
            "AWS4-HMAC-SHA256",
            &format!("AWS4{}", self.keys.secret.expose()),
            &scope,
            date,
            &canonical,
        );
        let id = self.keys.id.expose();
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}")
    }
}

/// A signature with a key derived from `secret` by the parts of `scope`; OSS version 4 makes its own the same way.
pub(crate) fn scoped_signature(
    algorithm: &str,
    secret: &str,
    scope: &str,
    date: &str,
    canonical: &str,
) -> String {
    let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
    let text = format!("{algorithm}\n{date}\n{scope}\n{digest}");
    let key = scope.split('/').fold(secret.as_bytes().to_vec(), |key, part| hmac(&key, part));
    hex::encode(hmac(&key, &text))
}

fn hmac(key: &[u8], data: &str) -> Vec<u8> {
    // A key of any length will do for HMAC.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(data.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    /// "Examples: Signature Calculations" in the Amazon S3 API reference.
    #[test]
    fn published_examples() {
        let signer = SigV4 {
            keys: KeyPair {
                id: Secret::new("AKIAIOSFODNN7EXAMPLE").unwrap(),
                secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY").unwrap(),
            },
            region: "us-east-1".into(),
        };
        let date = "20130524T000000Z";
        let host = ("host", "examplebucket.s3.amazonaws.com");
        let rest = [("x-amz-content-sha256", NO_BODY), ("x-amz-date", date)];
        let with_range = [host, ("range", "bytes=0-9"), rest[0], rest[1]];
        assert_eq!(
            signer.authorization("GET", "/test.txt", "", &with_range, date),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let plain = [host, rest[0], rest[1]];
        for (query, signature) in [
            ("lifecycle=", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
            ("max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
        ] {
            let value = signer.authorization("GET", "/", query, &plain, date);
            assert!(value.ends_with(&format!("Signature={signature}")), "{query}: {value}");
        }
    }
}
