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
    pub service: String,
    pub scope: Option<String>,
}

/// Longest header that is looked at, bytes.
const HEADER_MAX: usize = 8192;

/// The first challenge that we can meet.
pub(super) fn find(headers: &HeaderMap) -> Option<Challenge> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok().filter(|v| v.len() <= HEADER_MAX))
        .flat_map(parse)
        .find_map(|(scheme, params)| {
            let param = |name: &str| {
                params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone())
            };
            if scheme.eq_ignore_ascii_case("basic") {
                return Some(Challenge::Basic);
            }
            if !scheme.eq_ignore_ascii_case("bearer") {
                return None;
            }
            let scope = param("scope").filter(|s| !s.is_empty());
            Some(Challenge::Bearer(TokenService {
                realm: param("realm")?,
                service: param("service")?,
                scope,
            }))
        })
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
        let scope = scope.map(Into::into);
        Some(Challenge::Bearer(TokenService { realm: realm.into(), service: service.into(), scope }))
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
        assert_eq!(of(&["Bearer realm=\"r\"", "Basic realm=\"r\""]), Some(Challenge::Basic), "no service");
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
