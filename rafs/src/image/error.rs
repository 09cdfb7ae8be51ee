//! What can be wrong with a bootstrap, an inode, or a whole image.
//!
//! Owns: the error types of this module. Does not own: errno values; those are chosen at the FUSE edge
//! ([`InodeError::NotFound`] is ENOENT there, [`InodeError::Corrupt`] EIO, and so on).

use crate::ids::InodeNumber;
use std::io;

/// Why a bootstrap was not opened. Displays as one line that names the file. A retry helps only for
/// [`ImageError::Io`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A system call on the file failed.
    #[error("cannot {action} bootstrap {name}: {source}")]
    Io {
        /// File name as it was given.
        name: String,
        /// `open`, `read` or `map`.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Neither superblock is there, and no inlined bootstrap.
    #[error(
        "{name} is no RAFS bootstrap: its {size} bytes start with no v5 or v6 superblock and end with no inlined bootstrap"
    )]
    NotRafs {
        /// File name as it was given.
        name: String,
        /// Bytes of the file.
        size: u64,
    },
    /// The file looked like a bootstrap, but something in it is wrong.
    #[error("bootstrap {name} is unusable: {defect}")]
    Invalid {
        /// File name as it was given.
        name: String,
        /// What is wrong.
        defect: Defect,
    },
}

/// What is wrong with the superblock, a table, or the way a bootstrap is inlined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// Something lies outside the file, mostly because the file was cut short.
    #[error("{what} ends at byte {end}, but there are only {size} bytes")]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Byte after its end; `u64::MAX` when the position itself overflows.
        end: u64,
        /// Bytes of the bootstrap.
        size: u64,
    },
    /// A field has a value outside its range.
    #[error("{field} is {value:#x}, expected {expected}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What the file says.
        value: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// v5: the record that lies last cannot be read, mostly because the file was cut short.
    #[error("the last inode record does not fit its {size} bytes ({error}); was the file cut short?")]
    LastInode {
        /// Bytes of the bootstrap.
        size: u64,
        /// What is wrong with the record.
        error: InodeError,
    },
    /// Two tables share bytes.
    #[error("{first} and {second} overlap")]
    Overlap {
        /// The one that starts first.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// An entry of the blob table (or its device slot) is wrong.
    #[error("blob {index}: {what}")]
    Blob {
        /// Position in the table.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The superblock's flags do not say how the image is made.
    #[error("superblock flags {flags:#x} {what}")]
    Flags {
        /// The flags as stored.
        flags: u64,
        /// What is wrong with them.
        what: &'static str,
    },
    /// The root directory cannot be read.
    #[error("root directory: {0}")]
    Root(InodeError),
    /// The root inode is something else than a directory.
    #[error("the root inode {0} is no directory")]
    RootKind(InodeNumber),
    /// The table of contents or tar header around an inlined bootstrap is wrong.
    #[error("inlined bootstrap: {0}")]
    Inlined(&'static str),
}

/// Why an inode, or something of an inode, cannot be had. Never improved by a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InodeError {
    /// No inode has this number.
    #[error("no inode has number {0}")]
    NotFound(InodeNumber),
    /// A directory operation on something else.
    #[error("inode {0} is no directory")]
    NotADirectory(InodeNumber),
    /// Reading the target of something else than a symlink.
    #[error("inode {0} is no symbolic link")]
    NotASymlink(InodeNumber),
    /// Chunks of something else than a regular file.
    #[error("inode {0} is no regular file")]
    NotARegularFile(InodeNumber),
    /// The metadata of this inode breaks a rule of the format.
    #[error("inode {number} is corrupt: {what}")]
    Corrupt {
        /// Which inode.
        number: InodeNumber,
        /// Which rule.
        what: &'static str,
    },
    /// Bytes of the bootstrap could not be read any more ([`Image::confirm`](super::Image::confirm)).
    #[error(
        "its bootstrap was cut short in place, or cannot be read any more: restore the file, and mount it anew"
    )]
    Lost,
}

impl InodeError {
    /// `Corrupt`, short.
    pub(crate) fn corrupt(number: InodeNumber, what: &'static str) -> Self {
        Self::Corrupt { number, what }
    }
}

/// What a complete check found first, with the path it belongs to.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct CheckError {
    /// Path inside the image; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// What is wrong there.
    pub problem: Problem,
}

/// What a complete check can find.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// An inode or its contents cannot be read.
    #[error(transparent)]
    Inode(#[from] InodeError),
    /// Names are out of order, so that a look-up misses some.
    #[error("entry {name:?} does not sort behind {previous:?}")]
    Unsorted {
        /// The entry before.
        previous: String,
        /// The entry at fault.
        name: String,
    },
    /// `.` or `..` is missing or leads elsewhere.
    #[error("entry {name:?} leads to inode {found:?} and not to {expected}")]
    Dots {
        /// `.` or `..`.
        name: &'static str,
        /// What it names.
        found: Option<InodeNumber>,
        /// What it should name.
        expected: InodeNumber,
    },
    /// The type in a directory entry differs from the inode's.
    #[error("the directory entry says {entry:?}, the inode {inode:?}")]
    Kind {
        /// Type in the entry.
        entry: super::FileKind,
        /// Type of the inode.
        inode: super::FileKind,
    },
    /// A directory is reached by two names, or contains itself.
    #[error("directory inode {0} has a second name")]
    DirectoryTwice(InodeNumber),
    /// v5: two directories share a child record.
    #[error("inode table slot {0} belongs to two directories")]
    SlotTwice(u32),
    /// More entries or chunks are referred to than the file has room for.
    #[error("more {0} than a bootstrap of this size can hold: parts of it overlap")]
    Overlap(&'static str),
    /// The superblock counts another number of inodes.
    #[error("the superblock counts {expected} inodes, the tree has {found}")]
    InodeCount {
        /// The superblock's number.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// A chunk of a file has no record in the v6 chunk table, so that its data cannot be verified.
    #[error("chunk {chunk} of blob {blob} has no record in the chunk table")]
    NoChunkRecord {
        /// Blob index.
        blob: crate::ids::BlobIndex,
        /// Chunk index.
        chunk: crate::ids::ChunkIndex,
    },
    /// v5: the stored inode digest is not the digest of its contents.
    #[error("inode digest mismatch: stored {stored}, computed {computed}")]
    Digest {
        /// Hex of what the image says.
        stored: String,
        /// Hex of what it should be.
        computed: String,
    },
}
