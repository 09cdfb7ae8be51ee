//! What the builder's integration tests share: a nasty source tree, and independent readers of results.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic, clippy::expect_used)]

pub mod browser;
pub mod command;
pub mod data;
pub mod expected;
pub mod layer;
pub mod read;
pub mod source;
pub mod tar;

use rafs_builder::{
    BlobTarget, BootstrapTarget, CreateOptions, CreateReport, ImageOptions, Progress, SourceKind,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A built image in a directory of its own: `boot`, and the blob under its id.
pub struct Built {
    pub dir: tempfile::TempDir,
    pub report: CreateReport,
}

impl Built {
    pub fn bootstrap(&self) -> PathBuf {
        self.dir.path().join("boot")
    }

    /// Bytes of bootstrap and blob.
    pub fn bytes(&self) -> (Vec<u8>, Vec<u8>) {
        let blob = self.report.blobs.first().map(|id| std::fs::read(self.dir.path().join(id)).unwrap());
        (std::fs::read(self.bootstrap()).unwrap(), blob.unwrap_or_default())
    }
}

pub fn options(source: &Path, out: &Path, image: ImageOptions) -> CreateOptions {
    CreateOptions {
        image,
        source: SourceKind::Directory(source.to_path_buf()),
        blob: Some(BlobTarget::Directory(out.to_path_buf())),
        bootstrap: BootstrapTarget::File(out.join("boot")),
        blob_id: None,
        parent: None,
        chunk_dict: None,
        toc: false,
        data_offset: 0,
        external_blob: None,
    }
}

pub fn build(source: &Path, image: ImageOptions) -> Built {
    let dir = tempfile::tempdir().unwrap();
    let options = options(source, dir.path(), image);
    let report = rafs_builder::create(&options, &Arc::new(Progress::default())).unwrap();
    Built { dir, report }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
