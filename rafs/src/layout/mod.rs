//! The bytes on disk: structures, constants and bit masks of RAFS v5 and v6 metadata and of blobs.
//!
//! Owns: field offsets, sizes, magic numbers, known bits. Does not own: checks, trees, I/O. Every
//! structure is little-endian, `repr(C)`, without padding, and its size is asserted at compile time.

pub mod blob;
pub mod chunk;
pub mod tar;
pub mod toc;
pub mod v5;
pub mod v6;

use bitflags::bitflags;

/// Smallest chunk size an image may have, bytes (rafs-v5.md section 3).
pub const CHUNK_SIZE_MIN: u32 = 0x1000;
/// Largest chunk size an image may have, bytes.
pub const CHUNK_SIZE_MAX: u32 = 0x100_0000;
/// Chunk size a builder uses when nothing is said, bytes.
pub const CHUNK_SIZE_DEFAULT: u32 = 0x10_0000;
/// Bytes of one digest, blake3 and sha256 alike.
pub const DIGEST_SIZE: usize = 32;

bitflags! {
    /// Superblock flags, shared by v5 and v6 (rafs-v5.md section 4).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SuperFlags: u64 {
        /// Chunks are stored raw.
        const COMPRESSION_NONE = 0x1;
        /// Chunks are lz4 blocks.
        const COMPRESSION_LZ4 = 0x2;
        /// Digests are BLAKE3.
        const HASH_BLAKE3 = 0x4;
        /// Digests are SHA-256.
        const HASH_SHA256 = 0x8;
        /// uid and gid fields are meaningful.
        const EXPLICIT_UID_GID = 0x10;
        /// At least one inode has xattrs.
        const HAS_XATTR = 0x20;
        /// Chunks are gzip members.
        const COMPRESSION_GZIP = 0x40;
        /// Chunks are zstd frames.
        const COMPRESSION_ZSTD = 0x80;
        /// v6: every blob carries a chunk digest array.
        const INLINED_CHUNK_DIGEST = 0x100;
        /// v6: blobs are plain tar files, block size 512.
        const TARFS_MODE = 0x200;
        /// v6: no encryption.
        const ENCRYPTION_NONE = 0x100_0000;
        /// v6: some blobs are encrypted with AES-128-XTS.
        const ENCRYPTION_AES_128_XTS = 0x200_0000;
        /// Reserved bits that a reader ignores.
        const PRESERVED_COMPAT = 0xfc00_0000;
    }
}
