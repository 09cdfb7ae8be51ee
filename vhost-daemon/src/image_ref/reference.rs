//! Image references: `HOST/REPO:TAG`, `HOST/REPO@sha256:HEX`, with Docker's shorthands.

use std::str::FromStr;

/// A reference, in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host, with port if one was given.
    pub host: String,
    /// Repository.
    pub repo: String,
    /// Tag, or `sha256:` and 64 hex digits, which wins over a tag.
    pub version: String,
}

/// Why a text is no reference.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no image reference such as registry.example.com/library/app:tag ({why}), and no directory with an OCI layout (DIR, DIR:TAG or DIR@sha256:..)"
)]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bad = |why| ReferenceError { text: text.chars().take(200).collect(), why };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            // A colon before a slash is a port's.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let (host, repo) = match name.split_once('/') {
            Some((host, repo)) if host.contains(['.', ':']) || host == "localhost" => (host, repo.to_owned()),
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        let host =
            if matches!(host, "docker.io" | "index.docker.io") { "registry-1.docker.io" } else { host };
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let segment = |s: &str| {
            s.bytes().all(|b| plain(b) || b"._-".contains(&b))
                && s.bytes().next().is_some_and(plain)
                && s.bytes().next_back().is_some_and(plain)
        };
        if repo.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("repositories are in lower case"));
        }
        if repo.len() > 255 || !repo.split('/').all(segment) || name.is_empty() {
            return Err(bad("a repository is words of a-z, 0-9 and ._- between slashes"));
        }
        let version = match (digest, tag) {
            (Some(digest), _) => {
                const FORM: &str = "a digest is sha256: and 64 digits of 0-9 and a-f";
                let hex = digest.strip_prefix("sha256:").ok_or_else(|| bad(FORM))?;
                if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                    return Err(bad(FORM));
                }
                digest
            }
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        };
        let word = |b: u8| b.is_ascii_alphanumeric() || b"._-:".contains(&b);
        if version.is_empty() || version.len() > 128 || !version.bytes().all(word) {
            return Err(bad("a tag is at most 128 of a-z, A-Z, 0-9 and ._-"));
        }
        Ok(Self { host: host.to_owned(), repo, version: version.to_owned() })
    }
}

impl Reference {
    /// Plain http for this machine, as everybody does; https for all others.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        if name == "localhost" || name == "127.0.0.1" || name == "[::1]" { "http" } else { "https" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_and_shorthands() {
        let hex = "a".repeat(64);
        for (text, host, repo, version) in [
            ("reg.example:5000/a/b:v1", "reg.example:5000", "a/b", "v1"),
            ("localhost/app", "localhost", "app", "latest"),
            ("localhost:5000/app", "localhost:5000", "app", "latest"),
            ("debian", "registry-1.docker.io", "library/debian", "latest"),
            ("user/app:x", "registry-1.docker.io", "user/app", "x"),
            (&format!("r.io/a:t@sha256:{hex}"), "r.io", "a", &format!("sha256:{hex}")),
        ] {
            let want = Reference { host: host.into(), repo: repo.into(), version: version.into() };
            assert_eq!(text.parse::<Reference>().unwrap(), want, "{text}");
        }
        for bad in [
            "",
            "/",
            "r.io/",
            "r.io/A",
            "r.io/a@sha256:12",
            "r.io/a:b c",
            "r.io/a/../b",
            "r.io/a@md5:00",
            "x?y",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        for (bad, why) in
            [("r.io/App", "lower case"), ("r.io/a@sha256:12", "64 digits"), ("r.io/a:b c", "a tag is")]
        {
            let error = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!("127.0.0.1:5000/a".parse::<Reference>().unwrap().scheme(), "http");
        assert_eq!("r.io/a".parse::<Reference>().unwrap().scheme(), "https");
    }
}
