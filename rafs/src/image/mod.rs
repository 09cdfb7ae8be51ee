//! A bootstrap, opened, validated, and shown as one read-only tree whatever its version.
//!
//! Owns: finding the bootstrap in a file, mapping it, every check on it, inodes, directories, symlinks,
//! xattrs, chunk runs, the blob and prefetch tables. Does not own: chunk data, caches, or what a guest's
//! file system wants to hear.

mod blob_info;
mod inode;

pub use blob_info::{BlobInfo, ChunkInfoLocation, CipherKey, MetaBlob};
pub use inode::{ChunkRef, DirEntry, FileKind, Inode};
