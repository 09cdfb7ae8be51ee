//! V1: the JSON that runtime clients send (config.md section 2).

use super::settings::{self, AMPLIFY_DEFAULT, CacheSettings, IdMapping, PrefetchSettings, RafsSettings};
use super::{Config, ConfigError, shown};
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

/// A V1 file.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct File {
    device: Device,
    mode: String,
    #[serde(default)]
    digest_validate: bool,
    #[serde(default)]
    iostats_files: bool,
    #[serde(default)]
    enable_xattr: bool,
    #[serde(default)]
    access_pattern: bool,
    #[serde(default)]
    latest_read_files: bool,
    amplify_io: Option<u64>,
    #[serde(default)]
    verify: Option<String>,
    #[serde(default)]
    fs_prefetch: Prefetch,
    #[serde(default)]
    id_mapping: Option<Vec<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct Device {
    #[serde(default)]
    id: String,
    backend: Backend,
    #[serde(default)]
    external_backends: Vec<Value>,
    #[serde(default)]
    cache: Cache,
    #[serde(default)]
    id_mapping: Option<Vec<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct Backend {
    #[serde(rename = "type")]
    kind: String,
    config: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Cache {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    compressed: bool,
    #[serde(default)]
    validate: bool,
    #[serde(default)]
    config: Option<CacheFiles>,
}

/// The section of cache files, the same in both versions.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct CacheFiles {
    #[serde(default)]
    work_dir: Option<PathBuf>,
    #[serde(default)]
    max_bytes: u64,
    #[serde(default)]
    disable_indexed_map: bool,
    #[serde(default)]
    enable_encryption: bool,
    #[serde(default)]
    enable_convergent_encryption: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Prefetch {
    #[serde(default)]
    enable: bool,
    threads_count: Option<u64>,
    merging_size: Option<u64>,
    #[serde(default)]
    bandwidth_rate: u64,
    prefetch_all: Option<bool>,
    #[serde(default)]
    stream_prefetch: bool,
}

impl CacheFiles {
    /// The settings of a typed cache with this section.
    pub(super) fn settings(
        section: Option<Self>,
        kind: String,
        compressed: bool,
        validate: bool,
        remarks: &mut Vec<String>,
    ) -> Result<CacheSettings, ConfigError> {
        let dir = settings::cache_dir(&kind, section.as_ref().map(|s| s.work_dir.clone()))?;
        let section = section.unwrap_or_default();
        if section.enable_encryption || section.enable_convergent_encryption {
            return Err(ConfigError::Invalid(
                "cache files cannot be encrypted by this daemon; leave enable_encryption out and put work_dir on an \
                 encrypted disk"
                    .to_owned(),
            ));
        }
        if section.disable_indexed_map {
            remarks.push("disable_indexed_map has no effect: chunk maps are always indexed".to_owned());
        }
        if compressed {
            remarks.push("cache.compressed is obsolete and ignored: the cache holds plain data".to_owned());
        }
        Ok(CacheSettings { kind, dir, max_bytes: section.max_bytes, compressed, validate })
    }
}

impl File {
    /// Checks what parsed.
    pub(super) fn check(mut self) -> Result<Config, ConfigError> {
        let default = PrefetchSettings::default();
        let prefetch = self.fs_prefetch;
        let rafs = RafsSettings {
            mode: self.mode,
            amplify_io: self.amplify_io.unwrap_or(AMPLIFY_DEFAULT),
            validate: self.digest_validate,
            xattr: self.enable_xattr,
            iostats_files: self.iostats_files,
            access_pattern: self.access_pattern,
            latest_read_files: self.latest_read_files,
            prefetch: PrefetchSettings {
                enable: prefetch.enable,
                threads: prefetch.threads_count.unwrap_or(default.threads),
                batch_size: prefetch.merging_size.unwrap_or(default.batch_size),
                bandwidth_limit: prefetch.bandwidth_rate,
                // The one default in which the versions differ.
                prefetch_all: prefetch.prefetch_all.unwrap_or(true),
                stream_prefetch: prefetch.stream_prefetch,
            },
            id_mapping: IdMapping::parse(
                &self.id_mapping.or_else(|| self.device.id_mapping.take()).unwrap_or_default(),
            )?,
        };
        rafs.check()?;
        let mut remarks = Vec::new();
        let device = self.device;
        let (kind, section) = (device.backend.kind, device.backend.config);
        let backend = rafs_net::Backend::parse(&kind, &section, &mut remarks)?;
        let cache = device.cache;
        let cache =
            CacheFiles::settings(cache.config, cache.kind, cache.compressed, cache.validate, &mut remarks)?;
        shown::remark_external(&device.external_backends, &mut remarks);
        Ok(Config {
            id: device.id,
            backend_shown: shown::backend(&kind, &section),
            backend,
            cache_prefetch: rafs.prefetch.clone(),
            cache,
            verify: settings::verify(self.verify.as_deref())?,
            rafs,
            has_rafs: true,
            remarks,
        })
    }
}
