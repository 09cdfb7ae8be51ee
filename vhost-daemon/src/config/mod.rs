//! Configuration files: nydusd-compatible V1 JSON, V2 TOML or JSON, into one validated structure.
//!
//! Owns: recognising a text, reading it, refusing what cannot be honoured. Does not own: opening what it
//! names. Keys nobody knows are ignored, as clients rely on.

mod environment;
mod explain;
mod settings;
mod shown;
mod v1;
mod v2;

pub use environment::Environment;
pub use explain::{explain, explain_text};
pub use rafs_net::{Backend, LocalDisk, LocalFs};
pub use settings::{CacheSettings, IdMapping, PrefetchSettings, RafsSettings};
#[cfg(feature = "daemon")]
pub(crate) use shown::masked;

use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest configuration file that is read, bytes.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// What a configuration says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Instance id: names backend and cache metrics and the run-time configuration. Often empty.
    pub id: String,
    /// Where blobs are.
    pub backend: Backend,
    /// The backend section as it may be shown.
    backend_shown: Value,
    /// What is kept of them.
    pub cache: CacheSettings,
    /// Prefetch of whole blobs, in the cache section of V2.
    pub cache_prefetch: PrefetchSettings,
    /// Whether chunks are verified before use. Only our own `verify` key turns it off: every client's
    /// template says `digest_validate: false`.
    pub verify: bool,
    /// How the image is served.
    pub rafs: RafsSettings,
    /// Whether there is a section for the file system, which a mount by API needs.
    pub has_rafs: bool,
    /// What was understood but has no effect here, one sentence each.
    pub remarks: Vec<String>,
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
    #[error("failed to parse configuration information: {}", in_one_line(tried))]
    Parse {
        /// What each reader said.
        tried: String,
    },
    /// It has no section for the file system, which a mount needs.
    #[error("no configuration information for rafs; add [rafs], which may be empty")]
    NoRafs,
    /// It parses, but says something that cannot be done.
    #[error("invalid configuration: {}", in_one_line(.0))]
    Invalid(String),
}

/// What a sentence quotes of a file may have line ends, which would make more lines of a log of it.
fn in_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let plain = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(plain).collect()
}

impl From<rafs_net::NetError> for ConfigError {
    fn from(error: rafs_net::NetError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl Config {
    /// What `--localfs-dir DIR` means: blobs and cache files in one directory, xattrs on.
    #[must_use]
    pub fn localfs(dir: &Path) -> Self {
        let section = json!({"dir": dir});
        Self {
            id: String::new(),
            backend: Backend::LocalFs(LocalFs { dir: Some(dir.to_owned()), ..LocalFs::default() }),
            backend_shown: shown::backend("localfs", &section),
            cache: CacheSettings {
                kind: "blobcache".to_owned(),
                dir: Some(dir.to_owned()),
                ..CacheSettings::default()
            },
            cache_prefetch: PrefetchSettings::default(),
            verify: true,
            rafs: RafsSettings { xattr: true, ..RafsSettings::default() },
            has_rafs: true,
            remarks: Vec::new(),
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&Self::read(path)?)
    }

    /// Reads a file's text, at most 1 MiB of UTF-8.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Read`], [`ConfigError::TooLarge`].
    pub fn read(path: &Path) -> Result<String, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(FILE_SIZE_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > FILE_SIZE_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        Ok(text)
    }

    /// Reads and checks a text: V2 as JSON, V2 as TOML, then V1 as JSON; the first that parses counts.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let v2_json = match serde_json::from_str::<v2::File>(text) {
            Ok(file) => return file.check(),
            Err(error) => format!("as V2 JSON: {}", one_line(&error)),
        };
        let toml = match toml::from_str::<v2::File>(text) {
            Ok(file) => return file.check(),
            Err(error) => {
                let line = error
                    .span()
                    .and_then(|span| text.get(..span.start))
                    .map_or(0, |before| before.bytes().filter(|&byte| byte == b'\n').count() + 1);
                let at = if line == 0 { String::new() } else { format!(" at line {line}") };
                format!("as V2 TOML: {}{at}", one_line(&error.message()))
            }
        };
        match serde_json::from_str::<v1::File>(text) {
            Ok(file) => file.check(),
            Err(error) => {
                let v1 = format!("as V1 JSON: {}", one_line(&error));
                // What it cannot be is not worth a word. A text that is no JSON at all fails in both versions alike.
                let json = text.trim_start().starts_with('{');
                let version = serde_json::from_str::<Value>(text).ok().map(|v| v.get("version").is_some());
                let tried = match (json, version) {
                    (true, Some(true)) => v2_json,
                    (true, Some(false)) => format!("{v1} (V2 has a \"version\")"),
                    (true, None) => format!("as JSON: {}", one_line(&error)),
                    (false, _) => toml,
                };
                Err(ConfigError::Parse { tried })
            }
        }
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
        let mut config = Config::localfs(Path::new("/blobs"));
        config.cache.dir = Some("/cache".into());
        config
    }

    /// What differs in how it was written, not in what it means.
    fn plain(text: &str) -> Config {
        let mut config = Config::parse(text).unwrap();
        config.id.clear();
        config.rafs.iostats_files = false;
        config.cache.kind = "blobcache".into();
        config.rafs.prefetch.prefetch_all = false;
        config.cache_prefetch.prefetch_all = false;
        config.backend_shown = expected().backend_shown;
        config
    }

    #[test]
    fn both_versions_say_the_same() {
        assert_eq!(plain(V1), expected());
        assert_eq!(plain(V2), expected());
        let json = r#"{"version": 2, "backend": {"type": "localfs", "localfs": {"dir": "/blobs"}},
            "cache": {"type": "blobcache", "filecache": {"work_dir": "/cache"}}, "rafs": {"enable_xattr": true}}"#;
        assert_eq!(plain(json), expected());
    }

    #[test]
    fn registries_in_both_versions() {
        let v1 = r#"{"device": {"backend": {"type": "registry", "config": {"host": "h:5000", "repo": "a/b", "scheme": "http"}}},
            "mode": "direct"}"#;
        let v2 = "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nhost = \"h:5000\"\nrepo = \"a/b\"\n\
            scheme = \"http\"\n";
        let Backend::Registry(registry, http) = Config::parse(v1).unwrap().backend else { panic!() };
        assert_eq!((registry.host.as_str(), registry.repo.as_str()), ("h:5000", "a/b"));
        assert_eq!(Config::parse(v2).unwrap().backend, Backend::Registry(registry, http));
        let socket = "version = 2\nbackend = {type = \"http-proxy\", http-proxy = {addr = \"/x.sock\"}}\n";
        assert!(matches!(Config::parse(socket).unwrap().backend, Backend::HttpProxy(..)));
    }

    #[test]
    fn samples_are_understood_and_have_no_remarks() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let mut read = 0;
        for file in std::fs::read_dir(dir).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(".v1.json") || name.ends_with(".v2.toml") {
                let config = Config::load(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(config.remarks, Vec::<String>::new(), "{name}");
                read += 1;
            }
        }
        assert!(read >= 8, "{read}");
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
            (V1.replace("localfs", "registry"), "backend registry"),
            (V2.replace("type = \"localfs\"", "type = \"s3\""), "[backend.s3]"),
            (V1.replace("localfs", "ftp"), "unknown backend type"),
            (V1.replace("localfs", "f\\nt\\u001bp"), r#"unknown backend type "f\nt\u{1b}p""#),
            (V2.replace("\"localfs\"", "\"\"\"f\nt\r\np\"\"\""), r#"unknown backend type "f\nt"#),
            (V1.replace("blobcache", "blob\\ncache"), r#"unknown cache type "blob\ncache""#),
            (V1.replace("/blobs", ""), "needs \"dir\""),
            (V1.replace("/cache", ""), "work_dir"),
            (
                V1.replace(r#", "config": {"work_dir": "/cache"}"#, ""),
                "failed to parse configuration information",
            ),
            (V2.replace("[cache.filecache]\nwork_dir = \"/cache\"\n", ""), "work_dir"),
            (V1.replace(r#""work_dir""#, r#""enable_encryption": true, "work_dir""#), "encrypted"),
            (V1.replace(r#""mode""#, r#""amplify_io": 268435457, "mode""#), "amplify_io"),
            (format!("{V2}[rafs.prefetch]\nthreads = 3\n"), "enable"),
            (format!("{V2}[overlay]\nupper_dir = \"/u\"\nwork_dir = \"/w\"\n"), "overlay"),
            (V1.replace("blobcache", "fscache"), "fscache"),
            (V2.replace("version = 2", "version = 3"), "version 3"),
            ("{".to_owned(), "failed to parse configuration information: as JSON: EOF"),
            (V1.replace(r#""mode""#, r#""mood""#), "information: as V1 JSON: missing field `mode`"),
            (r#"{"version": 2, "backend": 3}"#.to_owned(), "information: as V2 JSON: invalid type"),
            (
                format!("{V2}validate = 3\n"),
                "information: as V2 TOML: invalid type: integer `3`, expected a boolean at line 13",
            ),
            (String::new(), "failed to parse"),
        ] {
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
