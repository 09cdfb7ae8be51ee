//! Structures inside blob files: feature bits, chunk infos, batch and zran contexts (blob.md).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Magic number at both ends of a [`ChunkInfoHeader`].
pub const CI_MAGIC: u32 = 0xb10b_b10b;
/// Compressor numbers in blob tables and chunk info headers (blob.md section 2).
pub mod compressor {
    /// Raw bytes.
    pub const NONE: u32 = 0;
    /// One raw LZ4 block.
    pub const LZ4_BLOCK: u32 = 1;
    /// One gzip member.
    pub const GZIP: u32 = 2;
    /// One zstd frame.
    pub const ZSTD: u32 = 3;
}
/// Digest algorithm numbers in blob tables.
pub mod digester {
    /// BLAKE3, 256 bits.
    pub const BLAKE3: u32 = 0;
    /// SHA-256.
    pub const SHA256: u32 = 1;
}
/// Cipher numbers in blob tables.
pub mod cipher {
    /// Not encrypted.
    pub const NONE: u32 = 0;
    /// AES-128-XTS.
    pub const AES_128_XTS: u32 = 1;
}

bitflags! {
    /// Blob feature bits, in blob tables and chunk info headers (blob.md section 3).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlobFeatures: u32 {
        /// Uncompressed offsets are 4096-aligned.
        const ALIGNED = 0x1;
        /// The bootstrap is stored in this blob file.
        const INLINED_FS_META = 0x2;
        /// 24-byte chunk infos.
        const CHUNK_INFO_V2 = 0x4;
        /// Chunk info table carries gzip random-access contexts.
        const ZRAN = 0x8;
        /// Data and chunk info are in two files.
        const SEPARATE = 0x10;
        /// A chunk digest array is present.
        const INLINED_CHUNK_DIGEST = 0x20;
        /// Data blob is a plain tar, no chunk info.
        const TARFS = 0x40;
        /// Small chunks are merged.
        const BATCH = 0x80;
        /// Chunks and chunk info are encrypted.
        const ENCRYPTED = 0x100;
        /// Entry belongs to a generated chunk dictionary: skip count and size checks.
        const IS_CHUNKDICT_GENERATED = 0x200;
        /// Extra blob made by prefetch optimisation.
        const IS_SEPARATED_WITH_PREFETCH_FILES = 0x400;
        /// Data in an external store; not compressed.
        const EXTERNAL = 0x800;
        /// Sections are followed by tar headers.
        const HAS_TAR_HEADER = 0x1000_0000;
        /// Table of contents at the tail.
        const HAS_TOC = 0x2000_0000;
        /// Made by a 2.2 or newer builder.
        const CAP_TAR_TOC = 0x4000_0000;
    }
}

/// Bits outside [`BlobFeatures`] that make a v6 image unreadable; other unknown bits are ignored.
pub const FATAL_UNKNOWN_FEATURES: u32 = 0x8000_f000;

/// Chunk info header, 4096 bytes behind the compressed chunk info table (blob.md section 8).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkInfoHeader {
    /// [`CI_MAGIC`].
    pub magic: U32,
    /// [`BlobFeatures`]; the blob table's are the ones to use.
    pub features: U32,
    /// Compressor number of the table.
    pub ci_compressor: U32,
    /// Number of chunks.
    pub chunk_count: U32,

    /// Byte offset of the table in this file.
    pub ci_offset: U64,
    /// Stored bytes of the table.
    pub ci_compressed_size: U64,

    /// Plain bytes of the table, contexts included.
    pub ci_uncompressed_size: U64,
    /// Where zran or batch contexts start in the plain table: 24 * chunks.
    pub context_offset: U64,

    /// Bytes of contexts and dictionaries.
    pub context_size: U64,
    /// Number of contexts.
    pub context_count: U32,
    /// Zero.
    pub reserved: [u8; 4032],
    /// [`CI_MAGIC`] again.
    pub magic2: U32,
}

const _: () = assert!(size_of::<ChunkInfoHeader>() == 4096);

/// Chunk info, version 1.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkInfoV1 {
    /// Uncompressed offset and size, packed.
    pub uncompressed: U64,
    /// Compressed offset and size, packed.
    pub compressed: U64,
}

const _: () = assert!(size_of::<ChunkInfoV1>() == 16);

/// Chunk info, version 2.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkInfoV2 {
    /// Uncompressed offset / 4096, size - 1 and flags, packed.
    pub uncompressed: U64,
    /// Compressed offset and size, packed.
    pub compressed: U64,
    /// Zran or batch position, or the CRC-32C.
    pub data: U64,
}

const _: () = assert!(size_of::<ChunkInfoV2>() == 24);

bitflags! {
    /// Flags of a [`ChunkInfoV2`], bits 56..63 of its first word.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ChunkInfoV2Flags: u8 {
        /// Stored compressed.
        const COMPRESSED = 1;
        /// Found through a zran context.
        const ZRAN = 2;
        /// Stored in a batch.
        const BATCH = 4;
        /// Stored encrypted.
        const ENCRYPTED = 8;
        /// The last word holds a CRC-32C.
        const HAS_CRC32 = 16;
    }
}

/// Batch context (blob.md section 8).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BatchContext {
    /// Stored bytes of the batch.
    pub compressed_size: U32,
    /// Plain bytes of the batch.
    pub uncompressed_size: U32,
    /// Zero.
    pub reserved: [u8; 32],
}

const _: () = assert!(size_of::<BatchContext>() == 40);

/// Zran context (blob.md section 8); the dictionaries follow the last one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ZranContext {
    /// Start in the tar.gz file.
    pub in_offset: U64,
    /// Start in the decompressed stream.
    pub out_offset: U64,

    /// Offset of the dictionary in the dictionary area.
    pub dict_offset: U64,
    /// Number of compressed bytes.
    pub in_size: U32,
    /// Number of output bytes.
    pub out_size: U32,

    /// Bytes of the dictionary, 0 ..= 32768.
    pub dict_size: U32,
    /// Byte before the start, whose high bits belong to the stream.
    pub previous_byte: u8,
    /// How many of them, 0 ..= 7.
    pub bit_count: u8,
    /// Zero.
    pub reserved: U16,
}

const _: () = assert!(size_of::<ZranContext>() == 40);
/// Largest deflate window, bytes.
pub const ZRAN_DICT_MAX: u32 = 32768;
