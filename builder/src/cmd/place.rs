//! The flags that say where the blobs of an image are, the same for every command that reads them.

use super::backend::{BackendArgs, ConfigFile};
use crate::blobs::BlobPlace;
use std::path::PathBuf;

/// See the module's head.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct PlaceArgs {
    /// Directory that holds the blobs
    #[arg(short = 'D', long, value_name = "DIR", conflicts_with_all = ["backend_type", "config"])]
    pub blob_dir: Option<PathBuf>,

    #[command(flatten)]
    pub backend: BackendArgs,

    /// Configuration file of rafsd or nydusd (V1 JSON, V2 JSON or TOML) whose backend holds the blobs
    #[arg(short = 'C', long, value_name = "FILE", conflicts_with = "backend_type")]
    pub config: Option<PathBuf>,
}

impl PlaceArgs {
    /// The place that the flags name, if they name one.
    pub(super) fn place(&self) -> anyhow::Result<Option<BlobPlace>> {
        if let Some(dir) = &self.blob_dir {
            return Ok(Some(BlobPlace::Directory(dir.clone())));
        }
        if let Some(config) = &self.config {
            return ConfigFile::load(config)?.backend.open().map(Some);
        }
        self.backend.place()
    }
}
