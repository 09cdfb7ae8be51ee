//! One stored chunk.

use rafs::codec::Digest;
use rafs::layout::chunk::{ChunkFlags, ChunkRecord};

/// Where and how a chunk is stored; what a chunk record says of it, without the place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Digest of the plain bytes.
    pub digest: Digest,
    /// Where it starts in the blob file.
    pub compressed_offset: u64,
    /// Where it starts in the blob's uncompressed address space.
    pub uncompressed_offset: u64,
    /// Bytes in the blob file.
    pub compressed_size: u32,
    /// Plain bytes.
    pub uncompressed_size: u32,
    /// CRC-32C of the plain bytes, when the flags say so.
    pub crc32c: u32,
    /// Position in its blob.
    pub index: u32,
    /// Position of the blob in the blob table.
    pub blob: u32,
    /// Which piece of the first file that used it this was; informative.
    pub position: u32,
    /// [`ChunkFlags`] bits.
    pub flags: ChunkFlags,
}

impl Chunk {
    /// The on-disk record for a use at `file_offset`.
    pub(crate) fn record(&self, file_offset: u64) -> ChunkRecord {
        ChunkRecord {
            digest: self.digest,
            blob_index: self.blob.into(),
            flags: self.flags.bits().into(),
            compressed_size: self.compressed_size.into(),
            uncompressed_size: self.uncompressed_size.into(),
            compressed_offset: self.compressed_offset.into(),
            uncompressed_offset: self.uncompressed_offset.into(),
            file_offset: file_offset.into(),
            index: self.index.into(),
            crc32c: self.crc32c.into(),
        }
    }
}
