//! V2: TOML or JSON with a `version` key (config.md section 3).

use super::{Config, ConfigError, LocalFs, cache_dir, prefetch_remark, refuse_backend, verify};
use serde::Deserialize;
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
    #[serde(default)]
    localfs: LocalFs,
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
        if backend.kind != "localfs" {
            return Err(refuse_backend(&backend.kind));
        }
        let mut remarks = Vec::new();
        prefetch_remark(self.rafs.prefetch.enable || self.cache.prefetch.enable, &mut remarks);
        Ok(Config {
            localfs: backend.localfs.check()?,
            cache_dir: cache_dir(&self.cache.kind, self.cache.filecache.work_dir)?,
            verify: verify(self.rafs.verify.as_deref())?,
            xattr: self.rafs.enable_xattr,
            remarks,
        })
    }
}
