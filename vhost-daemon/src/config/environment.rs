//! What environment variables add to a configuration.

use super::{Backend, Config};
use rafs_net::{Secret, headers_from_env};
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

    fn from_vars(vars: Vec<(String, String)>) -> Self {
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

impl Config {
    /// Adds what the environment says.
    pub fn apply(&mut self, environment: &Environment) {
        let http = match &mut self.backend {
            Backend::LocalFs(_) | Backend::LocalDisk(_) => return,
            Backend::Registry(registry, http) => {
                if environment.pull_auth.is_some() {
                    registry.auth.clone_from(&environment.pull_auth);
                }
                registry.docker_config.clone_from(&environment.docker_config);
                http
            }
            Backend::S3(_, http) | Backend::Oss(_, http) | Backend::HttpProxy(_, http) => http,
        };
        http.headers.clone_from(&environment.headers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_reach_the_registry() {
        let text = r#"{"device": {"backend": {"type": "registry", "config": {"host": "h", "repo": "r", "auth": "b2xkOng="}}},
            "mode": "direct"}"#;
        let vars = [
            ("IMAGE_PULL_AUTH", "dTpw\n"),
            ("NYDUS_HEADER_X-A", "1"),
            ("HOME", "/home/u"),
            ("DOCKER_CONFIG", ""),
        ];
        let vars = vars.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let mut config = Config::parse(text).unwrap();
        config.apply(&Environment::from_vars(vars));
        let Backend::Registry(registry, http) = &config.backend else { panic!() };
        assert_eq!(registry.auth, Secret::new("dTpw"));
        assert_eq!(registry.docker_config, Some("/home/u/.docker".into()));
        assert_eq!(http.headers, [("X-A".to_owned(), "1".to_owned())]);
        config.apply(&Environment::default());
        let Backend::Registry(registry, _) = &config.backend else { panic!() };
        assert_eq!(registry.auth, Secret::new("dTpw"), "absent: what was there stays");
    }
}
