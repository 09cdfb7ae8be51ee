//! Configuration files: nydusd-compatible V1 JSON, V2 TOML or JSON, into one validated structure.
//!
//! Owns: recognising a text, reading it, refusing what cannot be honoured. Does not own: opening what it
//! names. Keys nobody knows are ignored, as clients rely on.

mod environment;
mod v1;
mod v2;

pub use environment::Environment;
pub use rafs_net::{Backend, LocalDisk, LocalFs};

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest configuration file that is read, bytes.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// What a configuration says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where blobs are.
    pub backend: Backend,
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

impl From<rafs_net::NetError> for ConfigError {
    fn from(error: rafs_net::NetError) -> Self {
        Self::Invalid(error.to_string())
    }
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
            backend: Backend::LocalFs(LocalFs { dir: Some("/blobs".into()), ..LocalFs::default() }),
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
