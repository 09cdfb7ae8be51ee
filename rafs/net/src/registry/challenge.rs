//! `WWW-Authenticate` (RFC 9110 section 11.6.1; the Bearer form as registries use it).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password.
    Basic,
    /// A token.
    Bearer(TokenService),
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenService {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

/// Longest header that is looked at, bytes.
const HEADER_MAX: usize = 8192;
/// Errors that are shown as they are: those of RFC 6750, and of Docker's registry.
const COMPLAINTS: [&str; 5] =
    ["invalid_request", "invalid_token", "insufficient_scope", "unauthorized", "denied"];
/// Longest scope that is shown, bytes.
const SCOPE_MAX: usize = 200;

/// The challenge to meet: a token's, if there is one, since that may ask for no password.
pub(super) fn find(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, params) in all(headers) {
        if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = param(&params, "realm")
        {
            let (service, scope) = (param(&params, "service"), param(&params, "scope"));
            return Some(Challenge::Bearer(TokenService { realm, service, scope }));
        }
    }
    basic
}

/// What a registry says against a token that it does not take, for people. Only what is known to be said: its answer may
/// have in it what it was sent.
pub(super) fn complaint(headers: &HeaderMap) -> Option<String> {
    all(headers).find_map(|(_, params)| {
        let error = param(&params, "error").filter(|error| COMPLAINTS.contains(&error.as_str()))?;
        let scope = param(&params, "scope").filter(|scope| is_scope(scope));
        Some(format!("{error}{}", scope.map_or_else(String::new, |scope| format!(" for {scope}"))))
    })
}

/// Whether it has the form of `repository:library/debian:pull`.
fn is_scope(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b":/._-,*".contains(&b);
    text.len() <= SCOPE_MAX
        && text.starts_with("repository:")
        && text.ends_with(":pull")
        && text.bytes().all(plain)
}

fn all(headers: &HeaderMap) -> impl Iterator<Item = Parsed> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok().filter(|v| v.len() <= HEADER_MAX)).flat_map(parse)
}

/// A parameter that is not empty.
fn param(params: &[(String, String)], name: &str) -> Option<String> {
    let found = params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
}

type Parsed = (String, Vec<(String, String)>);

/// Schemes with their parameters. What makes no sense ends the list.
fn parse(text: &str) -> Vec<Parsed> {
    let mut found: Vec<Parsed> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let len =
            rest.find(|c: char| c.is_whitespace() || matches!(c, '=' | ',' | '"')).unwrap_or(rest.len());
        if len == 0 {
            return found;
        }
        let (word, after) = rest.split_at(len);
        let after_space = after.trim_start();
        if let (Some(value), Some((_, params))) = (after_space.strip_prefix('='), found.last_mut()) {
            let Some((value, left)) = parse_value(value.trim_start()) else { return found };
            params.push((word.to_owned(), value));
            rest = left;
        } else {
            found.push((word.to_owned(), Vec::new()));
            rest = after;
        }
    }
}

/// A token or a quoted string, and what follows it.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, quoted.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        find(&headers)
    }

    fn bearer(realm: &str, service: &str, scope: Option<&str>) -> Option<Challenge> {
        let (service, scope) = (Some(service.into()), scope.map(Into::into));
        Some(Challenge::Bearer(TokenService { realm: realm.into(), service, scope }))
    }

    #[test]
    fn forms_that_registries_send() {
        assert_eq!(of(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(of(&["basic"]), Some(Challenge::Basic));
        let long =
            r#"Bearer realm="https://a/token",service="s, \"t\"",scope="repository:a/b:pull",error="x""#;
        assert_eq!(of(&[long]), bearer("https://a/token", "s, \"t\"", Some("repository:a/b:pull")));
        assert_eq!(of(&["bearer service=s , realm = http://r/"]), bearer("http://r/", "s", None));
        assert_eq!(of(&["Negotiate, Bearer realm=\"r\", service=\"s\""]), bearer("r", "s", None));
        assert_eq!(of(&["Negotiate abc==", "Digest realm=\"x\"", "Basic"]), Some(Challenge::Basic));
        let token = bearer("r", "s", Some("x"));
        assert_eq!(
            of(&["Basic realm=\"r\"", "BEARER SCOPE=x,Service=\"s\", REALM=r"]),
            token,
            "rather a token"
        );
        assert_eq!(of(&["Basic realm=\"r\", Bearer scope=x, service=s, realm=r"]), token, "in one header");
        assert_eq!(of(&["Bearer service=\"s\"", "Basic realm=\"r\""]), Some(Challenge::Basic), "no realm");
        let nameless = TokenService { realm: "r".into(), service: None, scope: None };
        assert_eq!(of(&["Bearer realm=\"r\",service=\"\""]), Some(Challenge::Bearer(nameless)));
    }

    #[test]
    fn what_is_said_against_a_token() {
        let said =
            |value: &str| complaint(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value.parse().unwrap())]));
        let scope = "Bearer realm=\"r\",scope=\"repository:a/b:pull\",error=\"insufficient_scope\"";
        assert_eq!(said(scope).unwrap(), "insufficient_scope for repository:a/b:pull");
        assert_eq!(said("Bearer realm=\"r\",error=\"invalid_token\"").unwrap(), "invalid_token");
        assert_eq!(said("Bearer realm=\"r\""), None);
        assert_eq!(said("Bearer error=dXNlcjpwYXNzd29yZA").as_deref(), None, "what it was sent");
        let echo = "Bearer error=\"invalid_token\",scope=\"repository:dXNlcjpwYXNzd29yZA:pull\"";
        assert_eq!(said(echo).as_deref(), Some("invalid_token"));
    }

    #[test]
    fn nonsense_is_no_challenge() {
        let long = format!("Bearer realm=\"{}\",service=\"s\"", "r".repeat(9000));
        for bad in ["", ",,,", "=", "Bearer realm=\"r", "Bearer realm=\"\\", "\"Bearer\"", "Bearer =x", &long]
        {
            assert_eq!(of(&[bad]), None, "{bad}");
        }
    }
}
