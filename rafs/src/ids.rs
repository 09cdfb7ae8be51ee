//! Numbers that must not be mixed up, each a type of its own.
//!
//! Owns: blob indexes, chunk indexes and inode numbers. Does not own offsets and sizes: those are `u64`
//! and `u32` fields whose names say which address space they belong to (`compressed_`, `uncompressed_`,
//! `file_`).

use std::fmt;

/// Position of a blob in an image's blob table, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobIndex(pub u32);

/// Position of a chunk inside its blob, counted from 0 in storage order; below 2^24 in v6
/// (rafs-v6.md section 11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

/// Inode number inside one image: the v5 `ino` (1 ..= inode table entries) or the v6 nid
/// (guest-visible number without the mount index).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeNumber(pub u64);

impl BlobIndex {
    /// The index as a subscript.
    #[must_use]
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl ChunkIndex {
    /// The index as a subscript.
    #[must_use]
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for BlobIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for InodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
