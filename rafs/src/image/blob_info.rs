//! One entry of an image's blob table, in one form for v5 and v6.

pub use crate::codec::CipherKey;
use crate::codec::{Compressor, Digest, Digester};
use crate::ids::BlobIndex;
use crate::layout::blob::BlobFeatures;

/// What a bootstrap says about one blob. Every number has been checked against the format's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Position in the blob table.
    pub index: BlobIndex,
    /// Object name in a store; at most 64 bytes. For inlined bootstraps already replaced by the name of
    /// the file the bootstrap came from (blob.md section 6).
    pub id: String,
    /// Feature bits; unknown harmless ones dropped. Empty for a v5 image without extended blob table.
    pub features: BlobFeatures,
    /// How its chunks are stored.
    pub compressor: Compressor,
    /// How its chunk digests are made.
    pub digester: Digester,
    /// Key of encrypted blobs.
    pub cipher: Option<CipherKey>,
    /// Chunk size, bytes.
    pub chunk_size: u32,
    /// Chunks stored in the blob; `None` when the image does not say (v5 without extended table).
    pub chunk_count: Option<u32>,
    /// Bytes of the blob file; 0 when the image does not say.
    pub compressed_size: u64,
    /// End of the uncompressed address space, bytes; 0 when the image does not say.
    pub uncompressed_size: u64,
    /// Where the chunk info table is; `None` for v5 and TARFS.
    pub chunk_info: Option<ChunkInfoLocation>,
    /// Bytes of the ToC with its tar header; 0 if there is none or the image does not say.
    pub toc_size: u32,
    /// sha256 of the ToC; zeros if unknown.
    pub toc_digest: Digest,
    /// The second file of a SEPARATE blob.
    pub meta_blob: Option<MetaBlob>,
    /// v5: leading bytes of the blob file that hold prefetched files' data.
    pub prefetch_size: u32,
    /// v6: where the blob's data would start in one disk image, in blocks (rafs-v6.md section 4).
    pub mapped_blkaddr: u32,
}

/// Where and how the chunk info table of a v6 blob is stored (rafs-v6.md section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkInfoLocation {
    /// Byte offset in the data blob, or in the meta blob of a SEPARATE one.
    pub offset: u64,
    /// Stored bytes.
    pub compressed_size: u64,
    /// Plain bytes, contexts included.
    pub uncompressed_size: u64,
    /// How it is stored.
    pub compressor: Compressor,
}

/// The small file that holds the chunk info of a SEPARATE blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaBlob {
    /// A file or object of its own, named by the hex of its digest.
    Named {
        /// Object name: 64 hex digits.
        id: String,
        /// Bytes of the file.
        size: u64,
    },
    /// The file the bootstrap was read from (INLINED_FS_META); its name up to the first `.`.
    BootstrapFile {
        /// Object name.
        id: String,
    },
}
