//! What guests see: file systems behind the FUSE dispatch.
//!
//! Owns: how an image's inodes become nodes, attributes, entries and reads; namespaces of several mounts; how a mount
//! is opened from what a configuration says. Does not own: the wire, the image format, chunk data.

mod attributes;
mod backend;
mod backlog;
mod counters;
mod file_stats;
mod indexes;
mod namespace;
mod namespace_fs;
#[cfg(feature = "daemon")]
mod open;
mod passthrough;
mod path;
#[cfg(feature = "daemon")]
mod prefetch;
mod pseudo;
mod rafs_mount;
mod read;
#[cfg(feature = "daemon")]
mod stores;

pub use attributes::IdShift;
pub use backend::{Backend, INODE_BITS, INODE_MASK, Place};
pub use counters::{
    CLASSES, LATENCY_BOUNDS_US, OP_NAMES, OPS, Op, OpCounters, OpTotals, SIZE_BOUNDS, Timing,
};
pub use file_stats::{FileStat, FileStats};
pub use namespace::{Namespace, NamespaceError, Rested};
#[cfg(feature = "daemon")]
pub use open::{OpenError, OpenedRafs, RafsSource, open_rafs};
pub use passthrough::{Passthrough, PassthroughBackend, PassthroughError, PassthroughOptions};
pub use path::{MountPath, PathError};
#[cfg(feature = "daemon")]
pub use prefetch::Traces;
pub use pseudo::directory_number;
pub use rafs_mount::{RafsMount, RafsMountOptions};
#[cfg(feature = "daemon")]
pub use stores::{Storage, try_backend};
