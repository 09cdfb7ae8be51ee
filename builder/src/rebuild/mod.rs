//! Images made from images: the same tree, other blobs.
//!
//! Owns: `compact` (fewer and fuller blobs), `optimize` (an extra blob with what is wanted first), `chunkdict generate`
//! (what several images share). Does not own: reading blobs, writing bootstraps.

mod chunk_dict;
mod compact;
mod compact_config;
mod mover;
mod optimize;
mod plan;
mod prefetch_files;

pub use chunk_dict::{ChunkDictOptions, generate_chunk_dict};
pub use compact::{CompactOptions, compact};
pub use compact_config::{CompactConfig, CompactSettings};
pub use optimize::{OptimizeOptions, WantedFirst, optimize};
pub use prefetch_files::{PrefetchFile, PrefetchFiles};

use crate::blobs::BlobDataError;
use crate::error::BuildError;
use crate::layer::{ChunkPool, Compatible, Layer};
use crate::options::{ChunkSize, PrefetchPolicy, Version};
use crate::output::Output;
use crate::tree::{NodeId, Order};
use crate::write::{FileSink, Model};
use rafs::codec::Compressor;
use rafs::image::{BlobInfo, Image};
use std::path::{Path, PathBuf};

/// Why an image could not be rebuilt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// A bootstrap cannot be used, or an output not be written.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Data cannot be read.
    #[error(transparent)]
    Data(#[from] BlobDataError),
}

/// What was written.
#[derive(Clone, Debug)]
pub struct RebuildReport {
    /// The new bootstrap.
    pub bootstrap: PathBuf,
    /// Ids in its blob table, in table order.
    pub blobs: Vec<String>,
    /// Paths of the blobs that were made.
    pub new_blobs: Vec<PathBuf>,
    /// Format of the image.
    pub version: Version,
    /// Compressor of the superblock.
    pub compressor: Compressor,
}

/// An image in the builder's form, about to be changed.
struct Loaded {
    image: Image,
    layer: Layer,
    /// The numbering of the tree, which no rebuild changes.
    order: Order,
    pool: ChunkPool,
}

impl Loaded {
    fn open(path: &Path) -> Result<Self, BuildError> {
        let image = crate::layer::open(path)?;
        image.check().map_err(|e| BuildError::Image { path: path.to_path_buf(), reason: e.to_string() })?;
        let mut pool = ChunkPool::default();
        let mut layer = Layer::load(&image, path, 0, &mut pool)?;
        let order = Order::new(&mut layer.tree)?;
        Ok(Self { image, layer, order, pool })
    }
}

/// Writes the bootstrap of `loaded` with another blob table to `output`.
fn write_bootstrap(loaded: &mut Loaded, blobs: &[BlobInfo], output: Output) -> Result<Output, BuildError> {
    let Compatible { version, chunk_size, explicit_ids, tarfs, digester, compressor } =
        loaded.layer.compatible;
    let model = Model {
        version,
        tree: &loaded.layer.tree,
        order: &loaded.order,
        chunks: &loaded.pool.chunks,
        references: &loaded.pool.references,
        blobs,
        compressor,
        digester,
        chunk_size: ChunkSize::new(u64::from(chunk_size))?,
        explicit_ids,
        tarfs,
        prefetch: std::mem::take(&mut loaded.layer.prefetch),
    };
    let mut sink = FileSink::new(output);
    model.write(&mut sink)?;
    Ok(sink.finish()?.0)
}

/// The node at an absolute path.
fn find(loaded: &Loaded, path: &str) -> Option<NodeId> {
    let patterns = crate::prefetch::Patterns::parse(path.as_bytes());
    crate::write::prefetch_nodes(&loaded.layer.tree, &loaded.order, PrefetchPolicy::Fs, &patterns)
        .first()
        .copied()
}
