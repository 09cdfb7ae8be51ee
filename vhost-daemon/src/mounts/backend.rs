//! What a namespace needs of a file system that is mounted in it.
//!
//! Owns: node ids' two parts, places, and the [`Backend`] trait. Does not own: any file system.

use super::counters::OpCounters;
use crate::fuse::GuestFs;
use std::fmt;
use std::sync::Arc;

/// Bits of a node id that hold the file system's inode; the mount index is above them.
pub const INODE_BITS: u32 = 56;
/// The inode's bits.
pub const INODE_MASK: u64 = (1 << INODE_BITS) - 1;

/// Where a file system is shown in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Mount index, 1 ..= 255: the top byte of its node ids.
    pub index: u8,
    /// Generation of its nodes: another one for the same node id tells a guest to drop what it kept.
    pub generation: u32,
    /// It is the root of the namespace: its own root has node id 1.
    pub at_root: bool,
}

/// A file system that can be mounted at places of namespaces.
pub trait Backend: Send + Sync + fmt::Debug {
    /// The file system as a namespace shows it, ready for use: takes and answers node ids
    /// `place.index << 56 | inode`, and 1 for its root if `place.at_root`.
    fn at(&self, place: Place) -> Arc<dyn GuestFs>;

    /// The inode of its root, below 2^56.
    fn root(&self) -> u64;

    /// What tells one image from another, the same after a restart. A mount index is given again at once only to
    /// what has the same identity. `None`: every mount is something new.
    fn identity(&self) -> Option<u64>;

    /// Whether nothing uses it any more: no namespace shows it, none of its requests is on its way. What is
    /// unmounted is kept until then.
    fn is_idle(&self) -> bool;

    /// Ends it: requests on their way fail, threads end.
    fn shutdown(&self);

    /// What guests asked of it, for metrics; reads that are parked are counted in here by the file system itself.
    fn counters(&self) -> Arc<OpCounters>;

    /// The image, if it is one.
    fn as_rafs(&self) -> Option<&super::RafsMount> {
        None
    }
}
