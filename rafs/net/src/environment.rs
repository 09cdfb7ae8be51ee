//! What environment variables add to a configuration.

use crate::{Secret, headers_from_env};
use std::path::PathBuf;

/// Variables that matter to backends.
#[derive(Debug, Default)]
pub struct Environment {
    /// `IMAGE_PULL_AUTH`: base64 of `user:password`, in place of a registry's `auth`.
    pub pull_auth: Option<Secret>,
    /// `NYDUS_HEADER_<Name>`: sent with each request.
    pub headers: Vec<(String, String)>,
    /// `DOCKER_CONFIG`, or `.docker` below `HOME`.
    pub docker_config: Option<PathBuf>,
}

impl Environment {
    /// Those of this process. Names and values that are no UTF-8 do not count.
    #[must_use]
    pub fn of_process() -> Self {
        let vars =
            std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
        Self::from_vars(vars.collect())
    }

    /// Without [`pull_auth`](Self::pull_auth), which belongs to the image of the command line alone.
    #[must_use]
    pub fn without_pull_auth(self) -> Self {
        Self { pull_auth: None, ..self }
    }

    /// Those of a list of names and values.
    #[must_use]
    pub fn from_vars(vars: Vec<(String, String)>) -> Self {
        let var = |name: &str| vars.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.as_str());
        Self {
            pull_auth: var("IMAGE_PULL_AUTH").and_then(Secret::new),
            docker_config: var("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".docker"))),
            headers: headers_from_env(vars.into_iter()),
        }
    }
}
