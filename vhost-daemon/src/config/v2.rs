//! V2: TOML or JSON with a `version` key (config.md section 3).

use super::settings::{self, AMPLIFY_DEFAULT, CacheSettings, IdMapping, PrefetchSettings, RafsSettings};
use super::v1::CacheFiles;
use super::{Config, ConfigError, shown};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A V2 file.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct File {
    version: u64,
    #[serde(default)]
    id: String,
    #[serde(default)]
    backend: Option<Backend>,
    #[serde(default)]
    external_backends: Vec<Value>,
    #[serde(default)]
    cache: Option<Cache>,
    #[serde(default)]
    rafs: Option<Rafs>,
    #[serde(default)]
    overlay: Option<Overlay>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct Backend {
    #[serde(rename = "type")]
    kind: String,
    /// A section for each type that somebody wrote down; the one of `kind` counts.
    #[serde(flatten)]
    sections: BTreeMap<String, Value>,
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
    filecache: Option<CacheFiles>,
    #[serde(default)]
    prefetch: Option<Prefetch>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Rafs {
    mode: Option<String>,
    batch_size: Option<u64>,
    #[serde(default)]
    validate: bool,
    #[serde(default)]
    enable_xattr: bool,
    #[serde(default)]
    iostats_files: bool,
    #[serde(default)]
    access_pattern: bool,
    #[serde(default)]
    latest_read_files: bool,
    #[serde(default)]
    verify: Option<String>,
    #[serde(default)]
    prefetch: Option<Prefetch>,
    #[serde(default)]
    id_mapping: Option<Vec<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct Prefetch {
    enable: bool,
    threads: Option<u64>,
    batch_size: Option<u64>,
    #[serde(default)]
    bandwidth_limit: u64,
    #[serde(default)]
    prefetch_all: bool,
    #[serde(default)]
    stream_prefetch: bool,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct Overlay {}

impl Prefetch {
    fn settings(self) -> PrefetchSettings {
        let default = PrefetchSettings::default();
        PrefetchSettings {
            enable: self.enable,
            threads: self.threads.unwrap_or(default.threads),
            batch_size: self.batch_size.unwrap_or(default.batch_size),
            bandwidth_limit: self.bandwidth_limit,
            prefetch_all: self.prefetch_all,
            stream_prefetch: self.stream_prefetch,
        }
    }
}

impl File {
    /// Checks what parsed.
    pub(super) fn check(self) -> Result<Config, ConfigError> {
        if self.version != 2 {
            return Err(ConfigError::Invalid(format!("version {} is not supported; use 2", self.version)));
        }
        if self.overlay.is_some() {
            return Err(ConfigError::Invalid(
                "[overlay]: a writable layer in the daemon is not supported; let the guest mount an overlay over the image"
                    .to_owned(),
            ));
        }
        let Some(backend) = self.backend else {
            return Err(ConfigError::Invalid("no [backend]: say where blobs are".to_owned()));
        };
        let mut remarks = Vec::new();
        let kind = backend.kind;
        let section = backend.sections.get(&kind).or_else(|| backend.sections.get(&kind.replace('-', "_")));
        // An unknown type is said to be unknown rather than without its section.
        let section =
            section.cloned().or_else(|| (!rafs_net::Backend::is_known(&kind)).then_some(Value::Null));
        let Some(section) = section else {
            return Err(ConfigError::Invalid(format!("backend {kind:?} needs its section [backend.{kind}]")));
        };
        let has_rafs = self.rafs.is_some();
        if !has_rafs {
            remarks.push(
                "there is no [rafs]: the command line serves with defaults, but a mount through the API is refused; add \
                 [rafs], which may be empty"
                    .to_owned(),
            );
        }
        let rafs = self.rafs.unwrap_or_default();
        let verify = settings::verify(rafs.verify.as_deref())?;
        let rafs = RafsSettings {
            mode: rafs.mode.unwrap_or_else(|| "direct".to_owned()),
            amplify_io: rafs.batch_size.unwrap_or(AMPLIFY_DEFAULT),
            validate: rafs.validate,
            xattr: rafs.enable_xattr,
            iostats_files: rafs.iostats_files,
            access_pattern: rafs.access_pattern,
            latest_read_files: rafs.latest_read_files,
            prefetch: rafs.prefetch.map(Prefetch::settings).unwrap_or_default(),
            id_mapping: IdMapping::parse(&rafs.id_mapping.unwrap_or_default())?,
        };
        rafs.check()?;
        let parsed = rafs_net::Backend::parse(&kind, &section, &mut remarks)?;
        shown::remark_external(&self.external_backends, &mut remarks);
        let (cache, cache_prefetch) = match self.cache {
            None => (CacheSettings::default(), PrefetchSettings::default()),
            Some(cache) => {
                let prefetch = cache.prefetch.map(Prefetch::settings).unwrap_or_default();
                prefetch.check()?;
                let settings = CacheFiles::settings(
                    cache.filecache,
                    cache.kind,
                    cache.compressed,
                    cache.validate,
                    &mut remarks,
                );
                // Here a section that is missing is one that does not pass, not one that does not parse.
                let settings = settings.map_err(|error| match error {
                    ConfigError::Parse { tried } => ConfigError::Invalid(tried),
                    other => other,
                })?;
                (settings, prefetch)
            }
        };
        Ok(Config {
            id: self.id,
            backend_shown: shown::backend(&kind, &section),
            backend: parsed,
            cache,
            cache_prefetch,
            verify,
            rafs,
            has_rafs,
            remarks,
        })
    }
}
