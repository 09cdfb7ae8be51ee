//! A chunk dictionary: chunks of another image that a build may refer to (build-rules.md section 7).
//!
//! Owns: its chunks and blobs, finding one by digest. Does not own: when it is asked.

use super::{ChunkPool, Compatible, Layer, load};
use crate::error::BuildError;
use crate::pack::Chunk;
use rafs::codec::{Digest, Digester};
use rafs::image::BlobInfo;
use std::collections::HashMap;
use std::path::Path;

/// The chunks of a dictionary. Their blob indexes count in the dictionary's own table.
#[derive(Debug, Default)]
pub(crate) struct Dictionary {
    chunks: HashMap<(Digest, u32), Chunk>,
    /// Its blob table.
    pub blobs: Vec<BlobInfo>,
}

impl Dictionary {
    /// Loads the bootstrap at `path` for an image that will be like `target`. Chunks whose digests were made
    /// in another way than `digester` give no hits.
    pub(crate) fn load(path: &Path, target: &Compatible, digester: Digester) -> Result<Self, BuildError> {
        let image = load::open(path)?;
        if let Some(reason) = Compatible::of(&image).difference(target) {
            return Err(BuildError::Inconsistent { path: path.to_path_buf(), reason });
        }
        let mut pool = ChunkPool::default();
        let layer = Layer::load(&image, path, 0, &mut pool)?;
        let same = |chunk: &Chunk| {
            layer.blobs.get(chunk.blob as usize).is_some_and(|blob| blob.digester == digester)
                && chunk.digest != Digest::default()
        };
        let mut chunks = HashMap::new();
        for chunk in pool.chunks.into_iter().filter(same) {
            chunks.entry((chunk.digest, chunk.uncompressed_size)).or_insert(chunk);
        }
        Ok(Self { chunks, blobs: layer.blobs })
    }

    /// The chunk with this digest and plain size.
    pub(crate) fn find(&self, digest: &Digest, size: u32) -> Option<&Chunk> {
        if self.chunks.is_empty() { None } else { self.chunks.get(&(*digest, size)) }
    }

    /// Whether it has a blob of this id.
    pub(crate) fn has_blob(&self, id: &str) -> bool {
        self.blobs.iter().any(|blob| blob.id == id)
    }
}
