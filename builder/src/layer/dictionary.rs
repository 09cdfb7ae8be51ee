//! A chunk dictionary: chunks of another image that a build may refer to (build-rules.md section 7).
//!
//! Owns: its chunks and blobs, finding one by digest. Does not own: when it is asked.

use super::{Compatible, load};
use crate::error::BuildError;
use crate::pack::Chunk;
use rafs::codec::{Digest, Digester};
use rafs::image::{BlobInfo, FsVersion};
use rafs::layout::chunk::ChunkRecord;
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
        let blobs: Vec<BlobInfo> =
            image.blobs().iter().map(|blob| load::as_part(blob, &image, path)).collect();
        let same = |chunk: &Chunk| {
            blobs.get(chunk.blob as usize).is_some_and(|blob| blob.digester == digester)
                && chunk.digest != Digest::default()
                && chunk.uncompressed_size > 0
        };
        let mut chunks = HashMap::new();
        // Only records count: the files of a generated dictionary are no files.
        let mut take = |record: &ChunkRecord| {
            let chunk = load::stored_part(record);
            if same(&chunk) {
                chunks.entry((chunk.digest, chunk.uncompressed_size)).or_insert(chunk);
            }
        };
        match image.version() {
            FsVersion::V5 => image.for_each_chunk_record(&mut take),
            FsVersion::V6 => image.chunk_table().iter().for_each(take),
        }
        Ok(Self { chunks, blobs })
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
