//! Signatures as a bucket's server checks them: made again from the request that came, and compared. Written from the
//! vendors' descriptions, apart from the product's signers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::http::Request;

fn hmac_sha256(key: &[u8], data: &str) -> Vec<u8> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(data.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// `key` of a day, a region and a service, by four steps.
fn derived(prefix: &str, secret: &str, parts: [&str; 4]) -> Vec<u8> {
    parts.iter().fold(format!("{prefix}{secret}").into_bytes(), |key, part| hmac_sha256(&key, part))
}

fn field<'a>(authorization: &'a str, name: &str) -> Option<&'a str> {
    let rest = authorization.split(&format!("{name}=")).nth(1)?;
    rest.split(',').next().map(str::trim)
}

fn header_lines<'a>(request: &Request, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut text = String::new();
    for name in names {
        text += &format!("{name}:{}\n", request.header(name)?);
    }
    Some(text)
}

/// AWS signature version 4.
pub fn s3(request: &Request, region: &str, key: &str, secret: &str) -> bool {
    let check = || {
        let authorization = request.header("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let (date, hash) = (request.header("x-amz-date")?, request.header("x-amz-content-sha256")?);
        let day = date.get(..8)?;
        let scope = format!("{day}/{region}/s3/aws4_request");
        let signed = field(authorization, "SignedHeaders")?;
        let names: Vec<&str> = signed.split(';').collect();
        let complete = ["host", "x-amz-date", "x-amz-content-sha256"].iter().all(|n| names.contains(n));
        if !complete || field(authorization, "Credential")? != format!("{key}/{scope}") {
            return None;
        }
        let lines = header_lines(request, names.iter().copied())?;
        let query = request.target.split_once('?').map_or("", |(_, q)| q);
        let canonical = format!("{}\n{}\n{query}\n{lines}\n{signed}\n{hash}", request.method, request.path());
        let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}");
        let signing_key = derived("AWS4", secret, [day, region, "s3", "aws4_request"]);
        let expected = hex::encode(hmac_sha256(&signing_key, &text));
        Some(field(authorization, "Signature")? == expected)
    };
    check().unwrap_or(false)
}

/// Headers that begin with `x-oss-`, in order of their names.
fn oss_headers(request: &Request) -> Option<String> {
    let mut names: Vec<&str> =
        request.headers.iter().map(|(n, _)| n.as_str()).filter(|n| n.starts_with("x-oss-")).collect();
    names.sort_unstable();
    header_lines(request, names.into_iter())
}

/// OSS signature version 1. The path is `/bucket/key` here: the server is asked by its address.
pub fn oss_v1(request: &Request, bucket: &str, key: &str, secret: &str) -> bool {
    let check = || {
        let given = request.header("authorization")?.strip_prefix(&format!("OSS {key}:"))?;
        if !request.path().starts_with(&format!("/{bucket}/")) {
            return None;
        }
        let date = request.header("date")?;
        let text = format!("{}\n\n\n{date}\n{}{}", request.method, oss_headers(request)?, request.path());
        let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).ok()?;
        mac.update(text.as_bytes());
        Some(given == STANDARD.encode(mac.finalize().into_bytes()))
    };
    check().unwrap_or(false)
}

/// OSS signature version 4.
pub fn oss_v4(request: &Request, bucket: &str, region: &str, key: &str, secret: &str) -> bool {
    let check = || {
        let authorization = request.header("authorization")?.strip_prefix("OSS4-HMAC-SHA256 ")?;
        let date = request.header("x-oss-date")?;
        let day = date.get(..8)?;
        let scope = format!("{day}/{region}/oss/aliyun_v4_request");
        if field(authorization, "Credential")? != format!("{key}/{scope}")
            || !request.path().starts_with(&format!("/{bucket}/"))
        {
            return None;
        }
        let hash = request.header("x-oss-content-sha256")?;
        let canonical =
            format!("{}\n{}\n\n{}\n\n{hash}", request.method, request.path(), oss_headers(request)?);
        let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
        let text = format!("OSS4-HMAC-SHA256\n{date}\n{scope}\n{digest}");
        let signing_key = derived("aliyun_v4", secret, [day, region, "oss", "aliyun_v4_request"]);
        Some(field(authorization, "Signature")? == hex::encode(hmac_sha256(&signing_key, &text)))
    };
    check().unwrap_or(false)
}
