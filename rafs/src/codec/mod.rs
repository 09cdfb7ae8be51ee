//! One unit of data at a time: compress, decompress, digest, decipher.
//!
//! Owns: the algorithms and their numbers, and per-thread contexts that are reused. Does not own: which
//! unit to read or what to do with it. Nothing here allocates for a size that the caller did not bound.

mod cipher;
mod gzip;
mod hash;
mod unit;
mod zran;

pub use cipher::{Cipher, CipherKey};
pub use gzip::gunzip_prefix;
pub use hash::{Hasher, crc32c, digest};
pub use unit::{compress, decompress};
pub use zran::{ZranStart, inflate_zran};

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

/// Why a unit of data could not be encoded or decoded. None of these is cured by trying again with the same
/// bytes; reading them anew from their store may help.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// The stored bytes are no valid stream of their compressor.
    #[error("{compressor} stream of {stored} bytes is damaged: {reason}")]
    Damaged {
        /// Compressor that was to read them.
        compressor: Compressor,
        /// Stored bytes given.
        stored: usize,
        /// What the decoder found.
        reason: &'static str,
    },
    /// The stream is valid but its plain size is not the one the image promises.
    #[error("{compressor} stream holds {actual} bytes where the image promises {expected}")]
    WrongSize {
        /// Compressor that read them.
        compressor: Compressor,
        /// Bytes promised.
        expected: usize,
        /// Bytes found; for too long streams what fitted, or 0 where the decoder does not tell.
        actual: usize,
    },
    /// An encrypted unit is shorter than one cipher block.
    #[error("encrypted unit has {0} bytes, fewer than one cipher block of 16")]
    CipherTooShort(usize),
    /// The encoder refused; with bounded inputs this does not happen.
    #[error("{compressor} could not compress {plain} bytes: {reason}")]
    Compress {
        /// Compressor asked.
        compressor: Compressor,
        /// Plain bytes given.
        plain: usize,
        /// What it said.
        reason: &'static str,
    },
}

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
