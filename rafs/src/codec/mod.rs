//! One unit of data at a time: compress, decompress, digest, decipher.
//!
//! Owns: the algorithms and their numbers, and per-thread contexts that are reused. Does not own: which
//! unit to read or what to do with it. Nothing here allocates for a size that the caller did not bound.

use crate::layout::blob::{compressor, digester};
use std::fmt;

/// How chunks are stored (blob.md section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compressor {
    /// Raw bytes.
    None,
    /// One raw LZ4 block a chunk.
    Lz4Block,
    /// One gzip member a chunk.
    Gzip,
    /// One zstd frame a chunk.
    Zstd,
}

/// How chunk and inode digests are made (rafs-v5.md section 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Digester {
    /// BLAKE3, 256 bits.
    Blake3,
    /// SHA-256.
    Sha256,
}

/// A 32-byte digest.
pub type Digest = [u8; crate::layout::DIGEST_SIZE];

impl Compressor {
    /// The compressor with number `n` in a blob table or chunk info header; `None` for an unknown number.
    #[must_use]
    pub fn from_number(n: u32) -> Option<Self> {
        match n {
            compressor::NONE => Some(Self::None),
            compressor::LZ4_BLOCK => Some(Self::Lz4Block),
            compressor::GZIP => Some(Self::Gzip),
            compressor::ZSTD => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The number in blob tables and chunk info headers.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::None => compressor::NONE,
            Self::Lz4Block => compressor::LZ4_BLOCK,
            Self::Gzip => compressor::GZIP,
            Self::Zstd => compressor::ZSTD,
        }
    }

    /// The name on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4Block => "lz4_block",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

impl Digester {
    /// The algorithm with number `n` in a v6 blob table; `None` for an unknown number.
    #[must_use]
    pub fn from_number(n: u32) -> Option<Self> {
        match n {
            digester::BLAKE3 => Some(Self::Blake3),
            digester::SHA256 => Some(Self::Sha256),
            _ => None,
        }
    }

    /// The number in blob tables.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Blake3 => digester::BLAKE3,
            Self::Sha256 => digester::SHA256,
        }
    }

    /// The name on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }
}

impl fmt::Display for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
