//! What guests see: file systems behind the FUSE dispatch.
//!
//! Owns: how an image's inodes become nodes, attributes, entries and reads. Does not own: the wire, the
//! image format, chunk data.

mod attributes;
pub mod passthrough;
mod rafs_mount;
mod read;

pub use passthrough::{Passthrough, PassthroughError, PassthroughOptions};
pub use rafs_mount::{RafsMount, RafsMountOptions};
