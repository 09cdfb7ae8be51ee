//! What a configuration says besides where blobs are: cache, prefetch, statistics. Both versions lead here.
//!
//! Owns: those keys with their defaults and limits (config.md sections 2, 3 and 5). Does not own: the files' shapes.

use super::ConfigError;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Largest size that a request may be widened or merged to, bytes.
const AMPLIFY_MAX: u64 = 0x1000_0000;
/// What reads are widened to by default, bytes.
pub(super) const AMPLIFY_DEFAULT: u64 = 1 << 20;
/// Most prefetch threads.
const THREADS_MAX: u64 = 1024;

/// The cache section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheSettings {
    /// The type as it was written; empty for none.
    pub kind: String,
    /// Where cache files go; `None` keeps no cache file.
    pub dir: Option<PathBuf>,
    /// Bytes that the cache files may have together; 0 for no limit.
    pub max_bytes: u64,
    /// Obsolete; shown as it was given.
    pub compressed: bool,
    /// Ask for more checks; shown as it was given, chunks are verified in any case.
    pub validate: bool,
}

/// What is fetched before anybody reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefetchSettings {
    /// Whether anything is.
    pub enable: bool,
    /// Requests at a time, 1 ..= 1024.
    pub threads: u64,
    /// Bytes that neighbours are merged to, at most 256 MiB.
    pub batch_size: u64,
    /// Bytes a second; 0 for no limit.
    pub bandwidth_limit: u64,
    /// Whole blobs, not only what the image lists.
    pub prefetch_all: bool,
    /// Whole blobs by one request each, for a caching proxy.
    pub stream_prefetch: bool,
}

impl Default for PrefetchSettings {
    fn default() -> Self {
        Self {
            enable: false,
            threads: 8,
            batch_size: 1 << 20,
            bandwidth_limit: 0,
            prefetch_all: false,
            stream_prefetch: false,
        }
    }
}

/// The file-system section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RafsSettings {
    /// `direct` or `cached`; both mean the same here.
    pub mode: String,
    /// Bytes that a read is widened to at most; 0 for not at all.
    pub amplify_io: u64,
    /// Check the inode digests of v5 images at mount.
    pub validate: bool,
    /// Whether extended attributes are served.
    pub xattr: bool,
    /// Count for each file.
    pub iostats_files: bool,
    /// Note when each file was first read.
    pub access_pattern: bool,
    /// Note which files were read lately.
    pub latest_read_files: bool,
    /// What is fetched ahead.
    pub prefetch: PrefetchSettings,
    /// Owners are shown shifted.
    pub id_mapping: Option<IdMapping>,
}

impl Default for RafsSettings {
    fn default() -> Self {
        Self {
            mode: "direct".to_owned(),
            amplify_io: AMPLIFY_DEFAULT,
            validate: false,
            xattr: false,
            iostats_files: false,
            access_pattern: false,
            latest_read_files: false,
            prefetch: PrefetchSettings::default(),
            id_mapping: None,
        }
    }
}

/// Ids `internal .. internal + range` of the image are shown as `external ..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMapping {
    /// First id in the image.
    pub internal: u32,
    /// What it is shown as.
    pub external: u32,
    /// How many.
    pub range: u32,
}

impl IdMapping {
    /// From `[internal, external, range]`; an empty list and a range of 0 map nothing.
    pub(super) fn parse(list: &[u64]) -> Result<Option<Self>, ConfigError> {
        let bad =
            || ConfigError::Invalid("id_mapping is [internal, external, range], 32 bits each".to_owned());
        let number = |n: &u64| u32::try_from(*n).map_err(|_| bad());
        match list {
            [] => Ok(None),
            [internal, external, range] => {
                let map =
                    Self { internal: number(internal)?, external: number(external)?, range: number(range)? };
                if map.internal.checked_add(map.range).is_none()
                    || map.external.checked_add(map.range).is_none()
                {
                    return Err(bad());
                }
                Ok((map.range > 0).then_some(map))
            }
            _ => Err(bad()),
        }
    }
}

/// Where a cache section puts its files. `work_dir`: what the section says, `None` when there is no section.
pub(super) fn cache_dir(
    kind: &str,
    work_dir: Option<Option<PathBuf>>,
) -> Result<Option<PathBuf>, ConfigError> {
    match kind {
        "" | "dummycache" => Ok(None),
        "blobcache" | "filecache" => match work_dir {
            // A section that does not say it means the working directory.
            Some(None) => Ok(Some(PathBuf::from("."))),
            Some(Some(dir)) if !dir.as_os_str().is_empty() => Ok(Some(dir)),
            Some(_) => Err(ConfigError::Invalid(format!("cache {kind:?} has an empty \"work_dir\""))),
            None => Err(ConfigError::Parse { tried: format!("cache {kind:?} needs a section with \"work_dir\"") }),
        },
        "fscache" => Err(ConfigError::Invalid(
            "cache \"fscache\" needs the kernel's cachefiles, which this daemon does not drive; use \"blobcache\"".to_owned(),
        )),
        other => Err(ConfigError::Invalid(format!("unknown cache type {other:?}; use \"blobcache\""))),
    }
}

/// `verify = "on" | "off"`, our own key.
pub(super) fn verify(value: Option<&str>) -> Result<bool, ConfigError> {
    match value {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(other) => Err(ConfigError::Invalid(format!("verify is {other:?}; use \"on\" or \"off\""))),
    }
}

impl RafsSettings {
    /// Refuses what is out of range.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !matches!(self.mode.as_str(), "direct" | "cached") {
            let mode: String = self.mode.chars().take(40).collect();
            return Err(ConfigError::Invalid(format!("mode is {mode:?}; use \"direct\"")));
        }
        if self.amplify_io > AMPLIFY_MAX {
            return Err(ConfigError::Invalid(format!(
                "amplify_io (batch_size) is {}, over the limit of {AMPLIFY_MAX} bytes",
                self.amplify_io
            )));
        }
        self.prefetch.check()
    }
}

impl PrefetchSettings {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !self.enable {
            return Ok(());
        }
        if !(1..=THREADS_MAX).contains(&self.threads) {
            let text = format!("prefetch threads are {}; use 1 to {THREADS_MAX}", self.threads);
            return Err(ConfigError::Invalid(text));
        }
        if self.batch_size > AMPLIFY_MAX {
            let text = format!(
                "prefetch merging_size (batch_size) is {}, over the limit of {AMPLIFY_MAX} bytes",
                self.batch_size
            );
            return Err(ConfigError::Invalid(text));
        }
        Ok(())
    }

    /// As V2 JSON.
    pub(super) fn shown(&self) -> Value {
        json!({
            "enable": self.enable,
            "threads": self.threads,
            "batch_size": self.batch_size,
            "bandwidth_limit": self.bandwidth_limit,
            "prefetch_all": self.prefetch_all,
            "stream_prefetch": self.stream_prefetch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_mappings() {
        let map = IdMapping::parse(&[0, 100_000, 65_536]).unwrap().unwrap();
        assert_eq!((map.internal, map.external, map.range), (0, 100_000, 65_536));
        assert_eq!(IdMapping::parse(&[]).unwrap(), None);
        assert_eq!(IdMapping::parse(&[1, 2, 0]).unwrap(), None);
        for bad in [&[1][..], &[1, 2], &[1 << 32, 0, 1], &[u64::from(u32::MAX), 0, 2]] {
            assert!(IdMapping::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn limits() {
        let rafs = |change: fn(&mut RafsSettings)| {
            let mut rafs = RafsSettings::default();
            change(&mut rafs);
            rafs.check()
        };
        rafs(|_| ()).unwrap();
        assert!(rafs(|r| r.amplify_io = AMPLIFY_MAX + 1).is_err());
        assert!(rafs(|r| r.prefetch = PrefetchSettings { enable: true, threads: 0, ..r.prefetch }).is_err());
        assert!(
            rafs(|r| r.prefetch = PrefetchSettings { enable: true, threads: 1025, ..r.prefetch }).is_err()
        );
        rafs(|r| r.prefetch = PrefetchSettings { enable: false, threads: 0, ..r.prefetch }).unwrap();
        assert!(rafs(|r| r.mode = "swift".into()).is_err());
    }
}
