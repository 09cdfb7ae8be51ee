//! Token requests (config.md section 7.3). Answers come from a server: bounded and checked.

use super::challenge::TokenService;
use super::docker_config::Credentials;
use crate::Secret;
use crate::endpoint::escape;
use crate::failure::{Failure, Kind};
use crate::link::{Link, Outgoing, Route};
use crate::urls::without_secrets;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use std::time::Duration;

const CLIENT_ID: &str = "nydus-registry-client";
/// Largest answer, bytes.
const ANSWER_MAX: usize = 1 << 20;
/// No token is trusted for longer.
const LIFE_MAX: f64 = 24.0 * 60.0 * 60.0;

/// A token.
pub(super) struct Token {
    pub secret: Secret,
    /// If the service says.
    pub life: Option<Duration>,
    /// This service wants GET.
    pub post_fails: bool,
}

/// How to ask for one.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub service: &'a TokenService,
    pub credentials: Option<&'a Credentials>,
    pub secure: bool,
    pub post_fails: bool,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

/// `SCHEME VALUE` as a header that is not shown.
pub(super) fn header(scheme: &str, value: &str) -> Result<HeaderValue, Failure> {
    let mut header = HeaderValue::try_from(format!("{scheme} {value}")).map_err(|_| {
        Failure::new(Kind::Denied, format!("the {scheme} credentials cannot be sent in a header"))
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// The header for user and password.
pub(super) fn basic(auth: &Secret) -> Result<HeaderValue, Failure> {
    header("Basic", auth.expose())
}

/// Asks by POST, then by GET.
pub(super) async fn fetch(link: &Link, asking: Asking<'_>) -> Result<Token, Failure> {
    let service = asking.service;
    let at = without_secrets(&service.realm);
    let realm = Url::parse(&service.realm)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| Failure::wrong(format!("the registry's token service {at:?} is no URL")))?;
    if asking.secure && realm.scheme() == "http" && asking.credentials.is_some() {
        let reason =
            format!("the token service {at} would get the password by plain http; `skip_verify` allows it");
        return Err(Failure::new(Kind::Denied, reason));
    }
    let mut params = Vec::new();
    params.extend(service.service.as_deref().map(|name| ("service", name)));
    params.extend(service.scope.as_deref().map(|scope| ("scope", scope)));
    params.push(("client_id", CLIENT_ID));

    if let Some(Credentials::Identity(refresh)) = asking.credentials {
        params.push(("grant_type", "refresh_token"));
        params.push(("refresh_token", refresh.expose()));
        return ask(link, post(realm, &params, None)?, false).await.map_err(|f| explain(f.into(), &at));
    }
    let auth = match asking.credentials {
        Some(Credentials::Basic(auth)) => Some(basic(auth)?),
        _ => None,
    };
    if !asking.post_fails {
        match ask(link, post(realm.clone(), &params, auth.as_ref())?, false).await {
            // Whatever it says to POST, 501 and the like included, it may answer GET.
            Err(NoToken::Refused(_)) => {}
            // A service that was not reached would not be by GET either.
            result => return result.map_err(|f| explain(f.into(), &at)),
        }
    }
    let mut url = realm;
    let query = form(&params);
    let query = url.query().map_or_else(|| query.clone(), |old| format!("{old}&{query}"));
    url.set_query(Some(&query));
    let mut outgoing = Outgoing::get(url);
    outgoing.headers.extend(auth.map(|auth| (AUTHORIZATION, auth)));
    ask(link, outgoing, true).await.map_err(|f| explain(f.into(), &at))
}

/// Why there is no token.
enum NoToken {
    Unreached(Failure),
    /// There was an answer, and no token in it.
    Refused(Failure),
}

impl From<NoToken> for Failure {
    fn from(no: NoToken) -> Self {
        match no {
            NoToken::Unreached(failure) | NoToken::Refused(failure) => failure,
        }
    }
}

fn explain(failure: Failure, at: &str) -> Failure {
    Failure { reason: format!("no token from {at}: {}", failure.reason), ..failure }
}

fn post(url: Url, params: &[(&str, &str)], auth: Option<&HeaderValue>) -> Result<Outgoing, Failure> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    headers.extend(auth.map(|auth| (AUTHORIZATION, auth.clone())));
    Ok(Outgoing { method: Method::POST, url, headers, body: Some(form(params)) })
}

fn form(params: &[(&str, &str)]) -> String {
    params.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect::<Vec<_>>().join("&")
}

async fn ask(link: &Link, outgoing: Outgoing, by_get: bool) -> Result<Token, NoToken> {
    let exchange = link.send(outgoing, Route::NoProxy).await.map_err(NoToken::Unreached)?;
    if !exchange.status().is_success() {
        return Err(NoToken::Refused(exchange.failure()));
    }
    let body = exchange.small_body(ANSWER_MAX).await.map_err(NoToken::Refused)?;
    let (secret, life) = read(&body).map_err(NoToken::Refused)?;
    Ok(Token { secret, life, post_fails: by_get })
}

/// The token in an answer, and its life.
fn read(body: &[u8]) -> Result<(Secret, Option<Duration>), Failure> {
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| Failure::wrong("the answer is not the JSON of a token service"))?;
    let secret =
        [answer.token, answer.access_token].into_iter().flatten().find_map(|text| Secret::new(&text));
    let secret = secret.ok_or_else(|| Failure::wrong("the answer has no token"))?;
    Ok((secret, answer.expires_in.as_ref().and_then(life)))
}

/// Seconds, which some services write as text or with a fraction. Negative or absurd ones mean: used at once, and asked
/// for again soon.
fn life(said: &serde_json::Value) -> Option<Duration> {
    let seconds = said.as_f64().or_else(|| said.as_str()?.trim().parse().ok())?;
    Duration::try_from_secs_f64(seconds.floor().clamp(1.0, LIFE_MAX)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_escaped() {
        assert_eq!(
            form(&[("service", "a b&c"), ("scope", "repository:a/b:pull")]),
            "service=a%20b%26c&scope=repository%3Aa%2Fb%3Apull"
        );
    }

    #[test]
    fn answers_of_services() {
        let read =
            |body: &str| read(body.as_bytes()).map(|(secret, life)| (secret.expose().to_owned(), life));
        let seconds = |n| Some(Duration::from_secs(n));
        for (body, life) in [
            (r#"{"token":"t"}"#, None),
            (r#"{"token":"","access_token":"t","expires_in":null,"issued_at":"now"}"#, None),
            (r#"{"token":null,"access_token":" t ","expires_in":90}"#, seconds(90)),
            (r#"{"token":"t","access_token":"u","expires_in":"300"}"#, seconds(300)),
            (r#"{"token":"t","expires_in":59.9}"#, seconds(59)),
            (r#"{"token":"t","expires_in":-5}"#, seconds(1)),
            (r#"{"token":"t","expires_in":1e300}"#, seconds(86_400)),
            (r#"{"token":"t","expires_in":"nan"}"#, None),
            (r#"{"token":"t","expires_in":{}}"#, None),
        ] {
            assert_eq!(read(body).unwrap(), ("t".to_owned(), life), "{body}");
        }
        for bad in ["", "{}", "[]", r#"{"token":7}"#, r#"{"token":" "}"#, &"[".repeat(100_000)] {
            assert!(read(bad).is_err(), "{bad:.40}");
        }
    }

    #[test]
    fn headers_do_not_show() {
        let value = header("Bearer", "s3cr3t").unwrap();
        assert_eq!(value, "Bearer s3cr3t");
        assert!(!format!("{value:?}").contains("s3cr3t"));
        header("Bearer", "a\nb").unwrap_err();
    }
}
