//! Configuration files: nydusd-compatible V1 JSON, V2 TOML or JSON, into one validated structure.
//!
//! Owns: recognising a text, reading it, refusing what cannot be honoured. Does not own: opening what it
//! names. Keys nobody knows are ignored, as clients rely on.

mod v1;
mod v2;

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest configuration file that is read, bytes.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// What a configuration says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where blobs are.
    pub localfs: LocalFs,
    /// Where cache files go; `None` keeps no cache file.
    pub cache_dir: Option<PathBuf>,
    /// Whether chunks are verified before use. Only our own `verify` key turns it off: every client's
    /// template says `digest_validate: false`.
    pub verify: bool,
    /// Whether extended attributes are served.
    pub xattr: bool,
    /// What was understood but has no effect here, one sentence each.
    pub remarks: Vec<String>,
}

/// The `localfs` backend's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct LocalFs {
    /// Directory of blobs.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// One file that every blob id reads; wins over `dir`.
    #[serde(default)]
    pub blob_file: Option<PathBuf>,
    /// Directories to look in when `dir` does not have a blob.
    #[serde(default)]
    pub alt_dirs: Vec<PathBuf>,
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no configuration.
    #[error("configuration {path} has more than {FILE_SIZE_MAX} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// No reader understands the text.
    #[error("failed to parse configuration information: {tried}")]
    Parse {
        /// What each reader said.
        tried: String,
    },
    /// It parses, but says something that cannot be done.
    #[error("invalid configuration: {0}")]
    Invalid(String),
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(FILE_SIZE_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > FILE_SIZE_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        Self::parse(&text)
    }

    /// Reads and checks a text: V2 as JSON, V2 as TOML, then V1 as JSON; the first that parses counts.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut tried = String::new();
        let mut note = |form: &str, error: &dyn std::fmt::Display| {
            let _ =
                write!(tried, "{}as {form}: {}", if tried.is_empty() { "" } else { "; " }, one_line(error));
        };
        match serde_json::from_str::<v2::File>(text) {
            Ok(file) => return file.check(),
            Err(error) => note("V2 JSON", &error),
        }
        match toml::from_str::<v2::File>(text) {
            Ok(file) => return file.check(),
            Err(error) => note("V2 TOML", &error.message()),
        }
        match serde_json::from_str::<v1::File>(text) {
            Ok(file) => file.check(),
            Err(error) => {
                note("V1 JSON", &error);
                Err(ConfigError::Parse { tried })
            }
        }
    }
}

impl LocalFs {
    /// Refuses a section without any place to look in.
    fn check(self) -> Result<Self, ConfigError> {
        let empty = |p: &Option<PathBuf>| p.as_ref().is_none_or(|p| p.as_os_str().is_empty());
        if empty(&self.dir) && empty(&self.blob_file) {
            return Err(ConfigError::Invalid("backend localfs needs \"dir\" or \"blob_file\"".to_owned()));
        }
        Ok(self)
    }
}

/// Refuses a backend that this version cannot read from.
fn refuse_backend(kind: &str) -> ConfigError {
    let sentence = match kind {
        "registry" | "oss" | "s3" | "http-proxy" | "localdisk" => format!(
            "backend \"{kind}\" needs network and disk stores, which this version does not have yet; \
             use \"localfs\""
        ),
        other => format!("unknown backend type \"{other}\"; this version knows \"localfs\""),
    };
    ConfigError::Invalid(sentence)
}

/// Where a cache section puts its files.
fn cache_dir(kind: &str, work_dir: Option<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    match kind {
        "" | "dummycache" => Ok(None),
        "blobcache" | "filecache" => match work_dir {
            Some(dir) if !dir.as_os_str().is_empty() => Ok(Some(dir)),
            _ => Err(ConfigError::Invalid(format!("cache \"{kind}\" needs a \"work_dir\""))),
        },
        "fscache" => {
            Err(ConfigError::Invalid("cache \"fscache\" is not supported; use \"blobcache\"".to_owned()))
        }
        other => Err(ConfigError::Invalid(format!("unknown cache type \"{other}\"; use \"blobcache\""))),
    }
}

/// `verify = "on" | "off"`, our own key.
fn verify(value: Option<&str>) -> Result<bool, ConfigError> {
    match value {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(other) => Err(ConfigError::Invalid(format!("verify is \"{other}\"; use \"on\" or \"off\""))),
    }
}

/// What is said about prefetch settings until there is prefetch.
fn prefetch_remark(enabled: bool, remarks: &mut Vec<String>) {
    if enabled {
        remarks.push(
            "prefetch is configured, but this version fetches on demand only: chunks come when a guest reads them"
                .to_owned(),
        );
    }
}

fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = r#"{"device": {"id": "/1", "backend": {"type": "localfs", "config": {"dir": "/blobs", "readahead": true}},
        "cache": {"type": "blobcache", "config": {"work_dir": "/cache"}}},
        "mode": "direct", "digest_validate": false, "enable_xattr": true, "iostats_files": true}"#;
    const V2: &str = "version = 2\n[backend]\ntype = \"localfs\"\n[backend.localfs]\ndir = \"/blobs\"\n\
        [cache]\ntype = \"filecache\"\n[cache.filecache]\nwork_dir = \"/cache\"\n\
        [rafs]\nmode = \"direct\"\nenable_xattr = true\n";

    fn expected() -> Config {
        Config {
            localfs: LocalFs { dir: Some("/blobs".into()), ..LocalFs::default() },
            cache_dir: Some("/cache".into()),
            verify: true,
            xattr: true,
            remarks: Vec::new(),
        }
    }

    #[test]
    fn both_versions_say_the_same() {
        assert_eq!(Config::parse(V1).unwrap(), expected());
        assert_eq!(Config::parse(V2).unwrap(), expected());
        let json = r#"{"version": 2, "backend": {"type": "localfs", "localfs": {"dir": "/blobs"}},
            "cache": {"type": "blobcache", "filecache": {"work_dir": "/cache"}}, "rafs": {"enable_xattr": true}}"#;
        assert_eq!(Config::parse(json).unwrap(), expected());
    }

    #[test]
    fn verification_stays_on_unless_our_own_key_says_off() {
        assert!(Config::parse(&V1.replace("direct", "cached")).unwrap().verify);
        assert!(!Config::parse(&V1.replace(r#""mode""#, r#""verify": "off", "mode""#)).unwrap().verify);
        assert!(!Config::parse(&format!("{V2}verify = \"off\"\n")).unwrap().verify);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_a_sentence() {
        for (text, part) in [
            (V1.replace("localfs", "registry"), "network and disk stores"),
            (V1.replace("localfs", "ftp"), "unknown backend type"),
            (V1.replace("/blobs", ""), "needs \"dir\""),
            (V1.replace("/cache", ""), "work_dir"),
            (V1.replace("blobcache", "fscache"), "fscache"),
            (V2.replace("version = 2", "version = 3"), "version 3"),
            ("{".to_owned(), "failed to parse"),
            (String::new(), "failed to parse"),
        ] {
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
