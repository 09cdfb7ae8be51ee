//! What environment variables add to a configuration.

use super::Config;
pub use rafs_net::Environment;

impl Config {
    /// Adds what the environment says.
    pub fn apply(&mut self, environment: &Environment) {
        self.backend.apply(environment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backend;
    use rafs_net::Secret;

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
