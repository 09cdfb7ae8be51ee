//! The choices that shape an image, as checked values.
//!
//! Owns: their types, defaults and ranges (build-rules.md section 1). Does not own: flags and their
//! spelling, which `cmd` has.

use crate::error::BuildError;
use rafs::codec::{Compressor, Digester};
use rafs::layout::{CHUNK_SIZE_DEFAULT, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN};
use std::sync::Arc;

/// Metadata format: RAFS v5, or v6 (an EROFS file system with RAFS tables).
pub use rafs::image::FsVersion as Version;

/// Which entries of a source mark deletions in lower layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhiteoutSpec {
    /// `.wh.NAME` and `.wh..wh..opq` files.
    Oci,
    /// 0/0 character devices and `trusted.overlay.opaque`.
    Overlayfs,
    /// None: every entry is stored as it is.
    None,
}

/// What is done for files named as wanted early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefetchPolicy {
    /// Nothing.
    None,
    /// A list of files in the metadata; their data comes first.
    Fs,
    /// v5: a leading range of the blob; their data comes first.
    Blob,
}

/// A chunk size that the format allows: a power of two, 4 KiB to 16 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// When it is no power of two or out of range.
    pub fn new(bytes: u64) -> Result<Self, BuildError> {
        u32::try_from(bytes)
            .ok()
            .filter(|n| n.is_power_of_two() && (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(n))
            .map(Self)
            .ok_or_else(|| {
                BuildError::Options(format!(
                    "invalid chunk size {bytes:#x}: it must be a power of two between {CHUNK_SIZE_MIN:#x} and {CHUNK_SIZE_MAX:#x}"
                ))
            })
    }

    /// Bytes.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// Number of chunks of a file of `size` bytes.
    pub(crate) fn chunks(self, size: u64) -> u64 {
        size.div_ceil(u64::from(self.0))
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self(CHUNK_SIZE_DEFAULT)
    }
}

/// How an image is made, whatever its source.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Metadata format.
    pub version: Version,
    /// How chunks are stored.
    pub compressor: Compressor,
    /// How chunk and inode digests are made.
    pub digester: Digester,
    /// Size of all chunks of a file but its last.
    pub chunk_size: ChunkSize,
    /// v5: round uncompressed offsets up to 4096. v6 always does.
    pub aligned_chunk: bool,
    /// v6: compress chunks of small files together, in batches of up to this many bytes; at most the chunk size.
    pub batch_size: Option<ChunkSize>,
    /// v6: encrypt the blob with a new key, which the bootstrap holds.
    pub encrypt: bool,
    /// Store 0 as uid and gid of every entry and say so.
    pub repeatable: bool,
    /// Entries that mark deletions.
    pub whiteout_spec: WhiteoutSpec,
    /// What is done for the files that `prefetch_patterns` name.
    pub prefetch_policy: PrefetchPolicy,
    /// Which files are stored elsewhere: their data is not read.
    pub attributes: Arc<crate::attributes::Attributes>,
    /// Absolute paths, in order of importance.
    pub prefetch_patterns: crate::prefetch::Patterns,
    /// Threads that read, digest and compress; at least 1.
    pub threads: std::num::NonZeroUsize,
}

impl ImageOptions {
    /// Checks that the options go together.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let refuse = |reason: &str| Err(BuildError::Options(reason.to_owned()));
        if self.version == Version::V5 && self.batch_size.is_some() {
            return refuse("batches (--batch-size) need RAFS v6");
        }
        if self.version == Version::V5 && self.encrypt {
            return refuse("encryption (--encrypt) needs RAFS v6");
        }
        if self.batch_size.is_some_and(|size| size.get() > self.chunk_size.get()) {
            return refuse("the batch size must not be larger than the chunk size");
        }
        Ok(())
    }

    /// Whether uncompressed offsets are multiples of 4096.
    pub(crate) fn aligned(&self) -> bool {
        self.aligned_chunk || self.version == Version::V6
    }
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            version: Version::V6,
            compressor: Compressor::Zstd,
            digester: Digester::Blake3,
            chunk_size: ChunkSize::default(),
            aligned_chunk: false,
            batch_size: None,
            encrypt: false,
            repeatable: false,
            whiteout_spec: WhiteoutSpec::Oci,
            prefetch_policy: PrefetchPolicy::None,
            attributes: Arc::default(),
            prefetch_patterns: crate::prefetch::Patterns::default(),
            threads: std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_out_of_the_format_are_refused() {
        for good in [0x1000, 0x10_0000, 0x100_0000] {
            assert_eq!(u64::from(ChunkSize::new(good).unwrap().get()), good);
        }
        for bad in [0, 1, 0x800, 0x1001, 0x18_0000, 0x200_0000, 1 << 32, (1 << 32) + 0x1000] {
            assert!(ChunkSize::new(bad).is_err(), "{bad:#x}");
        }
    }
}
