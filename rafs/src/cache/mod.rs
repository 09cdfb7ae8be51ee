//! Which chunks are here already.
//!
//! Owns: one sparse data file a blob with the chunk's plain bytes, the bitmaps that say which are there, their
//! survival of crashes, and a small memory cache for when there is no file. Does not own: where missing chunks come
//! from, digests, who waits.
//!
//! Three bitmaps with three meanings (blob.md section 13):
//!
//! * `ready`, in memory: verified by this process and in the data file. Only this one lets a guest read the file.
//! * `live`, in the map file: written to the data file since the host booted. Survives the process, because the
//!   page cache does; means nothing after a reboot. A claim: the chunk is verified before it becomes `ready`.
//! * `durable`, in the map file: known to be on the disk. After a reboot `live` starts as a copy of it.
//!
//! Beside them the map file says where each chunk lies and what it is (`chunk_map/descriptions.rs`): images that name the
//! same blob share its file only as far as they agree on that, whichever processes they are read by.
//!
//! Cache files are hostile like everything from outside: other programs may have cut, changed or replaced them.

mod bitmap;
mod blob_cache;
mod chunk_map;
mod dir;
mod lease;
mod lru;
mod space;

pub use bitmap::AtomicBitmap;
pub use blob_cache::{BlobCache, CacheView, CachedChunk};
pub use chunk_map::{Agreement, ChunkMap, Description, MapOrigin};
pub use dir::CacheDir;
pub use lru::UnitLru;
pub use space::CachedBlob;

use std::io;

/// Why a cache file cannot be used. Never fatal: data is then served without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The directory cannot be used.
    #[error("cache directory {path} cannot be used: {source}")]
    Dir {
        /// The directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be used.
    #[error("cache file {path}: cannot {action}: {source}")]
    File {
        /// The file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Something that is no regular file has the name of a cache file.
    #[error("cache file {path} is {kind}, no file of its own; remove it")]
    NotRegular {
        /// The path.
        path: String,
        /// What it is.
        kind: String,
    },
    /// Two images disagree about a blob.
    #[error("blob {blob} has another layout for {with}; its cache file is not shared")]
    Conflict {
        /// Blob id.
        blob: String,
        /// Who sees it differently.
        with: String,
    },
    /// Somebody else uses a file.
    #[error("cache file {path} is in use by a daemon; unmount its images first")]
    InUse {
        /// The file.
        path: String,
    },
    /// A blob id that cannot be a file name.
    #[error("blob id {0:?} is no plain file name; nothing is cached for it")]
    BadName(String),
}
