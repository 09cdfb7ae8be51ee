//! One mount: what was asked for, and what it became.
//!
//! Owns: kinds of file systems and how each is opened. Does not own: where it is shown.

use super::DaemonError;
use crate::config::{Config, ConfigError, Environment};
use crate::mounts::{
    Backend, MountPath, PassthroughBackend, PassthroughOptions, RafsSource, Storage, open_rafs,
};
use rafs_net::NetStore;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// Kinds of file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    /// A RAFS image.
    Rafs,
    /// A directory of this host.
    Passthrough,
}

impl FsKind {
    /// From the words that clients use.
    ///
    /// # Errors
    ///
    /// [`DaemonError::FsType`].
    pub fn parse(text: &str) -> Result<Self, DaemonError> {
        match text {
            "rafs" => Ok(Self::Rafs),
            "passthrough_fs" | "passthroughfs" | "passthrough" => Ok(Self::Passthrough),
            other => Err(DaemonError::FsType(other.chars().take(100).collect())),
        }
    }

    /// A word for log lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rafs => "rafs",
            Self::Passthrough => "passthrough_fs",
        }
    }
}

/// Where a mount's configuration comes from.
#[derive(Clone, Debug)]
pub enum MountConfig {
    /// The text of a mount request.
    Text(String),
    /// Read and checked already.
    Ready(Box<Config>),
    /// What the command line says, in a form that can be handed to a successor.
    Startup(StartupConfig),
}

/// The configuration of an image that the command line names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartupConfig {
    /// Text of the file that `--config` names.
    pub text: Option<String>,
    /// `--localfs-dir`.
    pub localfs_dir: Option<PathBuf>,
    /// `--verify`.
    pub verify: Option<bool>,
}

impl StartupConfig {
    /// The configuration, with what the environment says.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut config = match (&self.text, &self.localfs_dir) {
            (Some(text), _) => Config::parse(text)?,
            (None, Some(dir)) => Config::localfs(dir),
            (None, None) => {
                let sentence = "--bootstrap needs --localfs-dir DIR or --config FILE: where are the blobs?";
                return Err(ConfigError::Invalid(sentence.to_owned()));
            }
        };
        config.apply(&Environment::of_process());
        if let Some(verify) = self.verify {
            config.verify = verify;
        }
        Ok(config)
    }
}

/// What is to be mounted where.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// Where.
    pub path: MountPath,
    /// What kind.
    pub kind: FsKind,
    /// A bootstrap, or a directory.
    pub source: PathBuf,
    /// The configuration; without meaning for a directory.
    pub config: MountConfig,
    /// Files to fetch ahead, absolute inside the image.
    pub prefetch_files: Vec<PathBuf>,
}

/// A mount.
#[derive(Debug)]
pub struct Mounted {
    /// Where.
    pub path: MountPath,
    /// What kind.
    pub kind: FsKind,
    /// What was given as source.
    pub source: String,
    /// How it is configured; `None` for a directory.
    pub config: Option<Config>,
    /// Where the configuration comes from, for a successor.
    pub origin: MountConfig,
    /// Files to fetch ahead.
    pub prefetch_files: Vec<PathBuf>,
    /// The file system.
    pub backend: Arc<dyn Backend>,
    /// Its store, if that is behind a network.
    pub net: Option<Arc<NetStore>>,
    /// Name of its store in the engine's metrics; empty for a directory.
    pub store: String,
    /// When.
    pub mounted_time: SystemTime,
}

impl MountRequest {
    /// Opens what is asked for. May take as long as its storage takes.
    pub(super) fn open(&self, storage: &Storage) -> Result<Mounted, DaemonError> {
        if let Some(bad) = self.prefetch_files.iter().find(|file| !file.is_absolute()) {
            return Err(DaemonError::Prefetch(bad.display().to_string()));
        }
        let (backend, config, net, store): (Arc<dyn Backend>, _, _, _) = match self.kind {
            FsKind::Rafs => {
                let config = match &self.config {
                    MountConfig::Ready(config) => config.as_ref().clone(),
                    MountConfig::Startup(startup) => startup.config()?,
                    MountConfig::Text(text) => {
                        let mut config = Config::parse(text)?;
                        if !config.has_rafs {
                            return Err(ConfigError::NoRafs.into());
                        }
                        // Not IMAGE_PULL_AUTH, which belongs to the image of the command line.
                        config.apply(&Environment::of_process().without_pull_auth());
                        config
                    }
                };
                for remark in &config.remarks {
                    tracing::warn!("{}: {remark}", self.path);
                }
                let source = RafsSource {
                    bootstrap: self.source.clone(),
                    config: config.clone(),
                    prefetch_files: self.prefetch_files.clone(),
                };
                let opened = open_rafs(storage, &source)?;
                (Arc::new(opened.mount), Some(config), opened.net, opened.store)
            }
            FsKind::Passthrough => {
                let backend = PassthroughBackend::open(&self.source, PassthroughOptions::default());
                let backend = backend.map_err(|error| DaemonError::Passthrough {
                    dir: self.source.display().to_string(),
                    reason: error.to_string(),
                })?;
                (Arc::new(backend), None, None, String::new())
            }
        };
        Ok(Mounted {
            path: self.path.clone(),
            kind: self.kind,
            source: self.source.display().to_string(),
            config,
            origin: self.config.clone(),
            prefetch_files: self.prefetch_files.clone(),
            backend,
            net,
            store,
            mounted_time: SystemTime::now(),
        })
    }
}
