//! The run-time configuration: values that replace those of a mount's configuration while it is mounted, and that mounts
//! to come begin with.
//!
//! Owns: the values by instance id, and handing them to stores. Does not own: the stores' own use of them.

use crate::daemon::Mounted;
use rafs_net::{Secret, check_proxy_url, check_registry_auth};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Instances whose values are kept.
const INSTANCES_MAX: usize = 4096;
/// Longest value, bytes.
const VALUE_MAX: usize = 64 << 10;

const REGISTRY_AUTH: &str = "registry_auth";
const PROXY_URL: &str = "proxy_url";
const DRAGONFLY: &str = "dragonfly_scheduler_endpoint";

/// Values by instance id.
#[derive(Debug, Default)]
pub(super) struct RuntimeConfig(Mutex<BTreeMap<String, Values>>);

/// What was put for one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Values {
    registry_auth: Option<Secret>,
    /// `Some(None)`: no proxy from now on.
    proxy_url: Option<Option<Secret>>,
    dragonfly: Option<String>,
}

impl Values {
    /// Checks what a request says.
    pub fn parse(values: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut out = Self::default();
        for (key, value) in values {
            if value.len() > VALUE_MAX {
                return Err(format!("the value of {key} has {} bytes, over {VALUE_MAX}", value.len()));
            }
            match key.as_str() {
                REGISTRY_AUTH => {
                    out.registry_auth = Secret::new(value);
                    if let Some(auth) = &out.registry_auth {
                        check_registry_auth(auth).map_err(|e| e.to_string())?;
                    }
                }
                PROXY_URL => {
                    let url = Secret::new(value);
                    if let Some(url) = &url {
                        check_proxy_url(url).map_err(|e| e.to_string())?;
                    }
                    out.proxy_url = Some(url);
                }
                DRAGONFLY => {
                    if !value.trim().is_empty() {
                        tracing::warn!("{DRAGONFLY} has no effect: requests go through {PROXY_URL}");
                    }
                    out.dragonfly = Some(value.clone());
                }
                other => {
                    let key: String = other.chars().take(60).collect();
                    return Err(format!(
                        "{key} cannot be changed while mounted; {REGISTRY_AUTH}, {PROXY_URL} and {DRAGONFLY} can"
                    ));
                }
            }
        }
        Ok(out)
    }

    /// Hands them to a mount's store; what it does not know has no effect.
    pub fn apply(&self, mounted: &Mounted) -> Result<(), String> {
        let Some(net) = &mounted.net else { return Ok(()) };
        if let Some(auth) = &self.registry_auth {
            net.set_registry_auth(Some(auth.clone())).map_err(|e| e.to_string())?;
        }
        if let Some(url) = &self.proxy_url {
            net.set_proxy_url(url.clone()).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn shown(&self) -> impl Iterator<Item = (&'static str, Value)> {
        // Whoever may ask this need not know the secret; a proxy's URL may have a password.
        let auth = self.registry_auth.as_ref().map(|_| (REGISTRY_AUTH, Value::from("***")));
        let url = self.proxy_url.as_ref().map(|url| {
            let url = url.as_ref().map(Secret::expose).unwrap_or_default();
            (PROXY_URL, crate::config::masked(&Value::from(url)))
        });
        let dragonfly = self.dragonfly.as_ref().map(|text| (DRAGONFLY, Value::from(text.as_str())));
        [auth, url, dragonfly].into_iter().flatten()
    }
}

impl RuntimeConfig {
    /// Keeps values for mounts to come; those that are not said stay as they were.
    pub fn keep(&self, id: &str, new: Values) -> Result<(), String> {
        let mut all = self.lock();
        if all.len() >= INSTANCES_MAX && !all.contains_key(id) {
            return Err(format!("{INSTANCES_MAX} instances have run-time values already"));
        }
        let old = all.remove(id).unwrap_or_default();
        let merged = Values {
            registry_auth: new.registry_auth.or(old.registry_auth),
            proxy_url: new.proxy_url.or(old.proxy_url),
            dragonfly: new.dragonfly.or(old.dragonfly),
        };
        all.insert(id.to_owned(), merged);
        Ok(())
    }

    /// The values of the first instance that `wanted` takes.
    pub fn find(&self, wanted: impl Fn(&str) -> bool) -> Option<Values> {
        self.lock().iter().find(|(id, _)| wanted(id)).map(|(_, values)| values.clone())
    }

    /// The values of one instance, or all with their ids.
    pub fn shown(&self, id: Option<&str>) -> Value {
        let all = self.lock();
        let mut out = Map::new();
        for (key, values) in all.iter().filter(|(key, _)| id.is_none_or(|id| id == *key)) {
            for (name, value) in values.shown() {
                let name = if id.is_some() { name.to_owned() } else { format!("{key}:{name}") };
                out.insert(name, value);
            }
        }
        Value::Object(out)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Values>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &[(&str, &str)]) -> Result<Values, String> {
        Values::parse(&list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn values_are_checked_kept_and_shown_without_secrets() {
        let runtime = RuntimeConfig::default();
        runtime.keep("/1", parse(&[(REGISTRY_AUTH, "dTpw")]).unwrap()).unwrap();
        runtime
            .keep("/1", parse(&[(PROXY_URL, "http://u:p4ss@proxy:1"), (DRAGONFLY, "d:1")]).unwrap())
            .unwrap();
        runtime.keep("/2", parse(&[(PROXY_URL, "")]).unwrap()).unwrap();
        let shown = runtime.shown(Some("/1"));
        assert_eq!(shown[REGISTRY_AUTH], "***");
        assert_eq!(
            (&shown[PROXY_URL], &shown[DRAGONFLY]),
            (&Value::from("http://proxy:1"), &Value::from("d:1"))
        );
        let all = runtime.shown(None);
        assert!(all["/1:registry_auth"].is_string() && all["/2:proxy_url"] == "", "{all}");
        assert!(!all.to_string().contains("p4ss") && !all.to_string().contains("dTpw"));
        assert_eq!(runtime.shown(Some("/3")), Value::Object(Map::new()));
        for bad in [(REGISTRY_AUTH, "no base64!"), (PROXY_URL, "::"), ("colour", "red")] {
            parse(&[bad]).unwrap_err();
        }
    }
}
