//! From what a command line, a configuration or an API call says to an image that can be mounted.
//!
//! Owns: the order of opening, and which part of it failed. Does not own: where it is shown.

use super::backend::Backend as _;
use super::pseudo::hash;
use super::{IdShift, RafsMount, RafsMountOptions, Storage, prefetch, stores};
use crate::config::Config;
use crate::wording::one_line;
use rafs::image::{CheckOptions, Image, ImageError};
use rafs::reader::ReaderOptions;
use rafs_net::NetStore;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long guests keep names, attributes and misses: images are immutable.
const TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// What is to be opened.
#[derive(Clone, Debug)]
pub struct RafsSource {
    /// The bootstrap, or a blob with an inlined one.
    pub bootstrap: PathBuf,
    /// Where its data is, and how it is served.
    pub config: Config,
    /// Files to fetch ahead, absolute inside the image.
    pub prefetch_files: Vec<PathBuf>,
}

/// Why an image cannot be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The bootstrap.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The digests of its inodes, which the configuration wants checked.
    #[error("{}", one_line(.0))]
    Check(anyhow::Error),
    /// The store of its blobs, or what is in it.
    #[error("{}", one_line(.0))]
    Store(anyhow::Error),
}

/// An image that is open.
#[derive(Debug)]
pub struct OpenedRafs {
    /// The image.
    pub mount: RafsMount,
    /// Its store, if that is behind a network.
    pub net: Option<Arc<NetStore>>,
    /// Name of its store in the engine's metrics.
    pub store: String,
}

/// Opens an image. A local store must have all blobs; one behind a network may be away for a while.
///
/// # Errors
///
/// See [`OpenError`].
pub fn open_rafs(storage: &Storage, source: &RafsSource) -> Result<OpenedRafs, OpenError> {
    let RafsSource { bootstrap, config, prefetch_files } = source;
    let image = Arc::new(Image::open(bootstrap)?);
    let identity = identity(bootstrap, &image);
    if config.rafs.validate || config.cache.validate {
        // Chunks are verified in any case; this is what v5 has beyond them.
        let options = CheckOptions { inode_digests: true };
        image.check_with(options).map_err(|e| OpenError::Check(e.into()))?;
    }
    let opened = stores::open(&config.backend, storage).map_err(OpenError::Store)?;
    if !config.verify {
        tracing::warn!("verification is off: {} is served without checking its chunks", bootstrap.display());
    }
    let traces = storage.traces();
    let options = ReaderOptions {
        verify: config.verify,
        cache_limit: config.cache.max_bytes,
        amplify: u32::try_from(config.rafs.amplify_io).unwrap_or(u32::MAX),
        trace: traces.record.clone(),
        cache_dir: config.cache.dir.clone(),
        deadline: opened.deadline,
        ..ReaderOptions::default()
    };
    let reader = storage.engine().open(image, opened.store, options);
    let store = reader.store_name().to_owned();
    if opened.local {
        reader.check_blobs().map_err(|e| OpenError::Store(e.into()))?;
    } else {
        reader.warm();
    }
    if let Some(prefetch) = prefetch::of_mount(config, prefetch_files, &traces) {
        reader.prefetch(prefetch).map_err(|e| OpenError::Store(e.into()))?;
    }
    let options = RafsMountOptions { index: 1, xattr: config.rafs.xattr, timeout: TIMEOUT };
    let ids = config.rafs.id_mapping.map(|m| IdShift { from: m.internal, to: m.external, count: m.range });
    let mount = RafsMount::new(reader, options).with_identity(identity).with_ids(ids);
    debug_assert!(mount.identity().is_some(), "remounts keep node ids by it");
    let rafs = &config.rafs;
    if rafs.iostats_files || rafs.access_pattern || rafs.latest_read_files {
        mount.keep_file_stats();
    }
    Ok(OpenedRafs { mount, net: opened.net, store })
}

/// What tells images apart, the same after a restart: the file, and what it says of itself. The bytes are not read for
/// it, which would cost more than all the rest of a start.
fn identity(path: &Path, image: &Image) -> u64 {
    let mut sum = hash(image.root().0, image.name().as_bytes());
    let mut add = |bytes: &[u8]| sum = hash(sum, bytes).rotate_left(8) ^ sum;
    if let Ok(meta) = std::fs::metadata(path) {
        for number in [meta.dev(), meta.ino(), meta.size()] {
            add(&number.to_le_bytes());
        }
        for number in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
            add(&number.to_le_bytes());
        }
    }
    add(&image.inode_count().to_le_bytes());
    add(&image.max_inode_number().to_le_bytes());
    for blob in image.blobs() {
        add(blob.id.as_bytes());
    }
    sum
}
