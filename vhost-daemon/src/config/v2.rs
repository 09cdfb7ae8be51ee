//! V2: TOML or JSON with a `version` key (config.md section 3).

use super::{Config, ConfigError, cache_dir, prefetch_remark, verify};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A V2 file.
#[derive(Debug, Deserialize)]
pub(super) struct File {
    version: u64,
    #[serde(default)]
    backend: Option<Backend>,
    #[serde(default)]
    cache: Cache,
    #[serde(default)]
    rafs: Rafs,
    #[serde(default)]
    overlay: Option<Overlay>,
}

#[derive(Debug, Deserialize)]
struct Backend {
    #[serde(rename = "type")]
    kind: String,
    /// A section for each type that somebody wrote down; the one of `kind` counts.
    #[serde(flatten)]
    sections: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
struct Cache {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    filecache: FileCache,
    #[serde(default)]
    prefetch: Prefetch,
}

#[derive(Debug, Default, Deserialize)]
struct FileCache {
    #[serde(default)]
    work_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
struct Rafs {
    #[serde(default)]
    enable_xattr: bool,
    #[serde(default)]
    verify: Option<String>,
    #[serde(default)]
    prefetch: Prefetch,
}

#[derive(Debug, Default, Deserialize)]
struct Prefetch {
    #[serde(default)]
    enable: bool,
}

#[derive(Debug, Deserialize)]
struct Overlay {}

impl File {
    /// Checks what parsed.
    pub(super) fn check(self) -> Result<Config, ConfigError> {
        if self.version != 2 {
            return Err(ConfigError::Invalid(format!("version {} is not supported; use 2", self.version)));
        }
        if self.overlay.is_some() {
            return Err(ConfigError::Invalid("[overlay]: a writable layer is not supported".to_owned()));
        }
        let Some(backend) = self.backend else {
            return Err(ConfigError::Invalid("no [backend]: say where blobs are".to_owned()));
        };
        let mut remarks = Vec::new();
        let kind = backend.kind.as_str();
        let section = backend.sections.get(kind).or_else(|| backend.sections.get(&kind.replace('-', "_")));
        // An unknown type is said to be unknown rather than without its section.
        let section =
            section.cloned().or_else(|| (!rafs_net::Backend::is_known(kind)).then_some(Value::Null));
        let Some(section) = section else {
            return Err(ConfigError::Invalid(format!(
                "backend \"{kind}\" needs its section [backend.{kind}]"
            )));
        };
        let backend = rafs_net::Backend::parse(kind, &section, &mut remarks)?;
        prefetch_remark(self.rafs.prefetch.enable || self.cache.prefetch.enable, &mut remarks);
        Ok(Config {
            backend,
            cache_dir: cache_dir(&self.cache.kind, self.cache.filecache.work_dir)?,
            verify: verify(self.rafs.verify.as_deref())?,
            xattr: self.rafs.enable_xattr,
            remarks,
        })
    }
}
