//! Which store a store is: two with the same options are the same one to those who share what they fetch.

use crate::HttpOptions;
use sha2::{Digest, Sha256};
use std::hash::{Hash, Hasher};

/// A text for a kind of store and its options, credentials included, that tells none of them.
pub(crate) fn identity(kind: &str, options: &impl Hash, http: &HttpOptions) -> String {
    let mut state = State(Sha256::new());
    (kind, options, http).hash(&mut state);
    format!("{kind} {}", hex::encode(state.0.finalize()))
}

/// A hasher that nobody can find a second text for.
struct State(Sha256);

impl Hasher for State {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HttpProxyOptions, Secret};

    #[test]
    fn other_options_and_other_secrets_are_other_stores() {
        let options = HttpProxyOptions { addr: "http://h".into(), path: "p".into() };
        let http = HttpOptions::default();
        let one = identity("http-proxy", &options, &http);
        assert_eq!(one, identity("http-proxy", &options.clone(), &http.clone()));
        assert_ne!(one, identity("registry", &options, &http));
        assert_ne!(one, identity("http-proxy", &HttpProxyOptions { path: "q".into(), ..options }, &http));
        let secrets = ["a", "b"].map(|s| identity("s3", &Secret::new(s), &http));
        assert_ne!(secrets[0], secrets[1]);
        assert!(secrets[0].starts_with("s3 ") && secrets[0].len() == 67);
    }
}
