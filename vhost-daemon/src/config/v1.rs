//! V1: the JSON that runtime clients send (config.md section 2).

use super::{Config, ConfigError, cache_dir, prefetch_remark, verify};
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
        let mut remarks = Vec::new();
        let backend =
            rafs_net::Backend::parse(&self.device.backend.kind, &self.device.backend.config, &mut remarks)?;
        prefetch_remark(self.fs_prefetch.enable, &mut remarks);
        Ok(Config {
            backend,
            cache_dir: cache_dir(&self.device.cache.kind, self.device.cache.config.work_dir)?,
            verify: verify(self.verify.as_deref())?,
            xattr: self.enable_xattr,
            remarks,
        })
    }
}
