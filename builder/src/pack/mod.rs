//! File data to blob: chunks, deduplication, compression, the blob file.
//!
//! Owns: the pipeline from pieces to stored chunks and the tables inside a blob. Does not own: where pieces
//! come from (`source`), bootstraps (`write`).
//!
//! All threads do the same: take the next task from the source (under a lock, in order), read and digest its
//! pieces, compress those whose digest is new, and hand the result to the ordered stage, which whoever comes
//! first serves for all. A chunk is compressed unless a piece with a lower number already claimed the same
//! digest, so what the ordered stage needs is always there, and what it stores does not depend on timing.

mod append;
mod batch;
mod blob_file;
mod chunk;
mod chunk_info;
mod pipeline;
mod table;
mod tail;
mod worker;

pub(crate) use append::{CHUNK_ALIGNMENT, NewBlob, PackSettings, Packed};
pub(crate) use batch::{BatchPlace, Batches};
pub(crate) use blob_file::BlobFile;
pub(crate) use chunk::Chunk;
pub(crate) use chunk_info::Table as ChunkInfoTable;
pub(crate) use pipeline::run;
pub(crate) use table::ChunkTable;
pub(crate) use tail::Tail;
