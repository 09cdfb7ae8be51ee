//! The 80-byte chunk record: behind v5 inodes, and in the v6 chunk table (rafs-v5.md section 15).

use bitflags::bitflags;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags! {
    /// Flags of a [`ChunkRecord`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ChunkFlags: u32 {
        /// Stored compressed; when clear the data is raw and both sizes are equal.
        const COMPRESSED = 0x1;
        /// A hole; never written.
        const HOLE = 0x2;
        /// Stored encrypted.
        const ENCRYPTED = 0x4;
        /// Stored inside a batch: the compressed-side fields of the record are not usable.
        const BATCH = 0x8;
        /// `crc32c` is meaningful.
        const HAS_CRC32 = 0x10;
    }
}

/// One chunk record.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkRecord {
    /// Digest of the plain (uncompressed) bytes.
    pub digest: [u8; 32],

    /// Position of the blob in the blob table.
    pub blob_index: U32,
    /// [`ChunkFlags`].
    pub flags: U32,
    /// Bytes in the blob file.
    pub compressed_size: U32,
    /// Bytes when plain, 1 ..= chunk size.
    pub uncompressed_size: U32,

    /// Where it starts in the blob file.
    pub compressed_offset: U64,
    /// Where it starts in the blob's uncompressed address space.
    pub uncompressed_offset: U64,

    /// Where it starts in the file.
    pub file_offset: U64,
    /// Index of the chunk within its blob.
    pub index: U32,
    /// CRC-32C of the plain bytes when `HAS_CRC32`, else 0.
    pub crc32c: U32,
}

const _: () = assert!(size_of::<ChunkRecord>() == 80);
