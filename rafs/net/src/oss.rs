//! Alibaba's OSS: signature versions 1 and 4.

use crate::bucket::{self, Place, Signer};
use crate::clock;
use crate::endpoint::escape_path;
use crate::failure::{Failure, Kind};
use crate::identity::identity;
use crate::link::Outgoing;
use crate::s3::scoped_signature;
use crate::urls::check_host;
use crate::{HttpOptions, KeyPair, NetError, NetRuntime, NetStore, OssOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderName, HeaderValue};
use sha1::Sha1;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

impl NetStore {
    /// Blobs in an OSS bucket. An endpoint that is an address has the bucket in the path, as with the vendor's SDK.
    ///
    /// # Errors
    /// Options that cannot be honoured.
    pub fn oss(
        runtime: &Arc<NetRuntime>,
        options: &OssOptions,
        http: &HttpOptions,
    ) -> Result<Self, NetError> {
        check_host(&options.endpoint, "oss endpoint")?;
        if options.bucket.is_empty() {
            return Err(NetError::Config("oss needs a \"bucket_name\"".into()));
        }
        let (host, path) = if is_address(&options.endpoint) {
            (options.endpoint.clone(), format!("/{}/", options.bucket))
        } else {
            (format!("{}.{}", options.bucket, options.endpoint), "/".to_owned())
        };
        check_host(&host, "oss bucket and endpoint")?;
        let place =
            Place { scheme: options.scheme.as_str(), host, path, prefix: options.object_prefix.clone() };
        let signer = options.credentials.clone().map(|keys| {
            let (bucket, region) = (options.bucket.clone(), options.v4_region.clone());
            let signer: Arc<dyn Signer> = Arc::new(Oss { keys, bucket, region });
            signer
        });
        bucket::store(runtime, &place, http, signer, identity("oss", options, http))
    }
}

fn is_address(endpoint: &str) -> bool {
    let name = endpoint.rsplit_once(':').map_or(endpoint, |(name, _)| name);
    name == "localhost" || name.starts_with('[') || name.parse::<IpAddr>().is_ok()
}

#[derive(Debug)]
struct Oss {
    keys: KeyPair,
    bucket: String,
    /// Version 4 with one, version 1 without.
    region: Option<String>,
}

impl Signer for Oss {
    fn sign(&self, outgoing: &mut Outgoing, key: &str, now: SystemTime) -> Result<(), Failure> {
        let method = outgoing.method.as_str();
        let text = |value: String| {
            HeaderValue::try_from(value)
                .map_err(|_| Failure::new(Kind::Final, "access_key_id cannot be sent in a header"))
        };
        let authorization = match &self.region {
            None => {
                let date = httpdate::fmt_http_date(now);
                let value = self.version_1(method, &date, &outgoing.headers, key)?;
                outgoing.headers.insert(DATE, text(date)?);
                value
            }
            Some(region) => {
                let date = clock::basic(now);
                outgoing.headers.insert("x-oss-content-sha256", HeaderValue::from_static(UNSIGNED));
                outgoing.headers.insert("x-oss-date", text(date.clone())?);
                self.version_4(method, &date, &outgoing.headers, key, region)
            }
        };
        let mut authorization = text(authorization)?;
        authorization.set_sensitive(true);
        outgoing.headers.insert(AUTHORIZATION, authorization);
        Ok(())
    }
}

impl Oss {
    fn version_1(&self, method: &str, date: &str, headers: &HeaderMap, key: &str) -> Result<String, Failure> {
        let text = format!("{method}\n\n\n{date}\n{}/{}/{key}", own_headers(headers), self.bucket);
        let mut mac = Hmac::<Sha1>::new_from_slice(self.keys.secret.expose().as_bytes())
            .map_err(|_| Failure::new(Kind::Final, "access_key_secret cannot be used as a key"))?;
        mac.update(text.as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        Ok(format!("OSS {}:{signature}", self.keys.id.expose()))
    }

    fn version_4(&self, method: &str, date: &str, headers: &HeaderMap, key: &str, region: &str) -> String {
        let path = escape_path(&format!("/{}/{key}", self.bucket));
        let canonical = format!("{method}\n{path}\n\n{}\n\n{UNSIGNED}", own_headers(headers));
        let scope = format!("{}/{region}/oss/aliyun_v4_request", date.get(..8).unwrap_or_default());
        let secret = format!("aliyun_v4{}", self.keys.secret.expose());
        let signature = scoped_signature("OSS4-HMAC-SHA256", &secret, &scope, date, &canonical);
        format!("OSS4-HMAC-SHA256 Credential={}/{scope}, Signature={signature}", self.keys.id.expose())
    }
}

/// Headers that begin with `x-oss-`, a line each, in order.
fn own_headers(headers: &HeaderMap) -> String {
    let mut lines: Vec<(&HeaderName, &str)> = headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-oss-"))
        .filter_map(|(name, value)| Some((name, value.to_str().ok()?)))
        .collect();
    lines.sort_by_key(|(name, _)| name.as_str());
    lines.iter().map(|(name, value)| format!("{name}:{value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;
    use reqwest::Method;
    use std::time::Duration;

    /// Made with the vendor's SDK, PyPI `oss2` 2.19.1, its clock set to this moment.
    #[test]
    fn signatures_of_the_vendors_sdk() {
        let key = "prefix/0123abcd";
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_701_605_532);
        let v4 =
            "OSS4-HMAC-SHA256 Credential=LTAItest/20231203/cn-hangzhou/oss/aliyun_v4_request, Signature=";
        for (region, method, expected) in [
            (None, Method::GET, "OSS LTAItest:sHryzC5parIA/qpj0tAudTB9gJ0=".to_owned()),
            (None, Method::HEAD, "OSS LTAItest:90ZetPbCB+95r0gtsTBIPhzzHMU=".to_owned()),
            (
                Some("cn-hangzhou".to_owned()),
                Method::GET,
                format!("{v4}9431e4b4abd45f342103152ffcfa48df99683fb94f5a261b5bcaf28d62576c54"),
            ),
            (
                Some("cn-hangzhou".to_owned()),
                Method::HEAD,
                format!("{v4}1ba941a0e43c561ee0bd9006c13a5eb0183d487bc3527f1c0e3f1852897f7b68"),
            ),
        ] {
            let keys =
                KeyPair { id: Secret::new("LTAItest").unwrap(), secret: Secret::new("secretKey").unwrap() };
            let signer = Oss { keys, bucket: "bucket".into(), region };
            let url = format!("http://bucket.oss-cn-hangzhou.aliyuncs.com/{key}").parse().unwrap();
            let mut outgoing = Outgoing { method, ..Outgoing::get(url) };
            outgoing.headers.insert("range", HeaderValue::from_static("bytes=0-9"));
            signer.sign(&mut outgoing, key, now).unwrap();
            assert_eq!(outgoing.headers[AUTHORIZATION], expected);
        }
    }

    #[test]
    fn addresses_have_the_bucket_in_the_path() {
        for address in ["127.0.0.1", "127.0.0.1:80", "localhost:80", "[::1]:80"] {
            assert!(is_address(address), "{address}");
        }
        assert!(!is_address("oss-cn-hangzhou.aliyuncs.com"));
    }
}
