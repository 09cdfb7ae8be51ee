//! Table of contents at the tail of a blob (blob.md section 11).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Name of the entry, and of the tar header, of chunk data.
pub const NAME_BLOB: &str = "image.blob";
/// Chunk info table.
pub const NAME_META: &str = "blob.meta";
/// Chunk info header.
pub const NAME_META_HEADER: &str = "blob.meta.header";
/// Chunk digest array.
pub const NAME_DIGEST: &str = "blob.digest";
/// Bootstrap.
pub const NAME_BOOT: &str = "image.boot";
/// Tar header of the table of contents itself.
pub const NAME_TOC: &str = "rafs.blob.toc";

/// Compressor bits of an entry: raw.
pub const COMPRESSOR_NONE: u32 = 1;
/// Compressor bits of an entry: zstd.
pub const COMPRESSOR_ZSTD: u32 = 2;
/// Compressor bits of an entry: lz4 block.
pub const COMPRESSOR_LZ4_BLOCK: u32 = 4;
/// Mask of the compressor bits.
pub const COMPRESSOR_MASK: u32 = 0xf;
/// Largest table of contents that is read, bytes (blob.md section 14).
pub const TOC_SIZE_MAX: u64 = 1 << 20;

/// One entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TocEntry {
    /// One of the `COMPRESSOR_` bits.
    pub compressor: U32,
    /// 0.
    pub reserved: U32,
    /// Name, zero-padded; all 16 bytes may be used.
    pub name: [u8; 16],
    /// sha256 of the plain content.
    pub digest: [u8; 32],
    /// Byte offset in the file.
    pub offset: U64,
    /// Stored bytes.
    pub compressed_size: U64,

    /// Plain bytes.
    pub uncompressed_size: U64,
    /// Zero.
    pub reserved2: [u8; 48],
}

const _: () = assert!(size_of::<TocEntry>() == 128);
