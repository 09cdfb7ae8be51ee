//! V1: the JSON that runtime clients send (config.md section 2).

use super::{Config, ConfigError, LocalFs, cache_dir, prefetch_remark, refuse_backend, verify};
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

/// A V1 file.
#[derive(Debug, Deserialize)]
pub(super) struct File {
    device: Device,
    mode: String,
    #[serde(default)]
    enable_xattr: bool,
    #[serde(default)]
    verify: Option<String>,
    #[serde(default)]
    fs_prefetch: Prefetch,
}

#[derive(Debug, Deserialize)]
struct Device {
    backend: Backend,
    #[serde(default)]
    cache: Cache,
}

#[derive(Debug, Deserialize)]
struct Backend {
    #[serde(rename = "type")]
    kind: String,
    config: Value,
}

#[derive(Debug, Default, Deserialize)]
struct Cache {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    config: CacheConfig,
}

#[derive(Debug, Default, Deserialize)]
struct CacheConfig {
    #[serde(default)]
    work_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
struct Prefetch {
    #[serde(default)]
    enable: bool,
}

impl File {
    /// Checks what parsed.
    pub(super) fn check(self) -> Result<Config, ConfigError> {
        if !matches!(self.mode.as_str(), "direct" | "cached") {
            return Err(ConfigError::Invalid(format!("mode is \"{}\"; use \"direct\"", self.mode)));
        }
        if self.device.backend.kind != "localfs" {
            return Err(refuse_backend(&self.device.backend.kind));
        }
        let localfs: LocalFs = serde_json::from_value(self.device.backend.config)
            .map_err(|e| ConfigError::Invalid(format!("backend localfs: {e}")))?;
        let mut remarks = Vec::new();
        prefetch_remark(self.fs_prefetch.enable, &mut remarks);
        Ok(Config {
            localfs: localfs.check()?,
            cache_dir: cache_dir(&self.device.cache.kind, self.device.cache.config.work_dir)?,
            verify: verify(self.verify.as_deref())?,
            xattr: self.enable_xattr,
            remarks,
        })
    }
}
