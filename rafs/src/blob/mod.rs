//! What is known of the chunks inside one blob, and how to get one chunk's plain bytes.
//!
//! Owns: the chunk info table with its batch and zran contexts, the table of contents at a blob's tail, the
//! chunk digest array, where expected digests come from, and the decoding of one *unit*: the smallest piece of a
//! blob that can be read and decoded alone (a plain chunk, a batch, a zran context). Does not own: I/O, caches, or
//! who asks. All bytes that come in are hostile; sizes are bounded before anything is allocated for them.

mod digests;
mod header;
mod table;
mod toc;
mod unit;

pub use digests::{DigestIndex, Expected};
pub use header::{
    cached_table_len, data_size, is_legacy_stargz, parse_table, plain_table, stored_table_range,
};
pub use table::{ChunkEntry, ChunkTable, Place};
pub use toc::{Toc, TocItem, toc_tail_range};
pub use unit::{Member, Unit, UnitId};

use crate::codec::CodecError;

/// Largest unit that is read or decoded, bytes: zran contexts have no limit of their own in the format.
pub const UNIT_SIZE_MAX: u32 = 256 << 20;
/// Largest plain chunk info table that is read, bytes, contexts and dictionaries included.
pub const TABLE_SIZE_MAX: u64 = 1 << 30;
/// Alignment of uncompressed offsets in v6, bytes.
pub const ALIGNMENT: u64 = 4096;

/// What is wrong with a blob's metadata or with a unit of its data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// A chunk info table, header, ToC or digest array contradicts the image or itself.
    #[error("{what} of blob {blob} is corrupt: {why}")]
    Corrupt {
        /// Blob id.
        blob: String,
        /// Which structure.
        what: &'static str,
        /// What contradicts what.
        why: String,
    },
    /// Something this program does not read.
    #[error("blob {blob} cannot be read: {why}")]
    Unsupported {
        /// Blob id.
        blob: String,
        /// What, and what to do instead.
        why: &'static str,
    },
    /// An image refers to a chunk that the blob does not have.
    #[error("blob {blob} has {count} chunks, the image asks for chunk {chunk}")]
    NoSuchChunk {
        /// Blob id.
        blob: String,
        /// Chunk asked for.
        chunk: u32,
        /// Chunks there are.
        count: u32,
    },
    /// The stored bytes of a unit do not decode.
    #[error("chunk {chunk} of blob {blob}, stored at {stored_offset}+{stored_size}: {source}")]
    Decode {
        /// Blob id.
        blob: String,
        /// A chunk of the unit.
        chunk: u32,
        /// Where the unit starts in the blob file.
        stored_offset: u64,
        /// Stored bytes of the unit.
        stored_size: u32,
        /// What the codec says.
        source: CodecError,
    },
}

/// `n` rounded up to 4096; `None` when that is more than `u64` holds.
pub(crate) fn align(n: u64) -> Option<u64> {
    n.checked_next_multiple_of(ALIGNMENT)
}
