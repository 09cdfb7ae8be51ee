//! Chunks that a build whose data stays where it is can refer to: the parent's, a dictionary's, and its own.
//!
//! Owns: looking them up, references of files to them, the new entries of the blob table. Does not own: where new
//! chunks are.

use crate::error::BuildError;
use crate::pack::{Chunk, ChunkTable, NewBlob};
use rafs::codec::Digest;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct KnownChunks {
    table: ChunkTable,
    first_blob: u32,
    new_blobs: Vec<NewBlob>,
    references: Vec<u32>,
}

/// What became of all files.
#[derive(Debug, Default)]
pub(crate) struct Referred {
    /// Chunks of the image.
    pub chunks: Vec<Chunk>,
    /// Chunks of files, as positions in `chunks`.
    pub references: Vec<u32>,
    /// Entries that follow the parent's in the blob table.
    pub new_blobs: Vec<NewBlob>,
}

impl KnownChunks {
    /// Begins with what a parent with `first_blob` blobs brings.
    pub(crate) fn new(table: ChunkTable, references: Vec<u32>, first_blob: u32) -> Self {
        Self { table, first_blob, new_blobs: Vec::new(), references }
    }

    /// Whether there is a chunk with this digest and plain size.
    pub(crate) fn contains(&self, digest: &Digest, size: u32) -> bool {
        *digest != Digest::default()
            && (self.table.find(digest, size).is_some()
                || self.table.find_in_dictionary(digest, size).is_some())
    }

    /// Lets the current file's next piece, which is its `position`th, refer to the chunk with this digest and plain
    /// size. `false`: there is none.
    ///
    /// # Errors
    /// When the image is full.
    pub(crate) fn refer(&mut self, digest: &Digest, size: u32, position: u32) -> Result<bool, BuildError> {
        if *digest == Digest::default() {
            return Ok(false);
        }
        if let Some(at) = self.table.find(digest, size) {
            self.references.push(at);
            return Ok(true);
        }
        let Some(mut chunk) = self.table.find_in_dictionary(digest, size) else { return Ok(false) };
        chunk.blob = self.slot(NewBlob::Dictionary(chunk.blob))?;
        chunk.position = position;
        self.store(chunk)?;
        Ok(true)
    }

    /// Index in the blob table of the blob that is described.
    ///
    /// # Errors
    /// When there are too many blobs.
    pub(crate) fn own_blob(&mut self) -> Result<u32, BuildError> {
        self.slot(NewBlob::Own)
    }

    /// Adds a chunk, to which the current file's next piece refers.
    ///
    /// # Errors
    /// When the image is full.
    pub(crate) fn store(&mut self, chunk: Chunk) -> Result<(), BuildError> {
        let at = self
            .table
            .insert(chunk)
            .ok_or_else(|| BuildError::Limit { what: "chunks in one image", limit: u64::from(u32::MAX) })?;
        self.references.push(at);
        Ok(())
    }

    /// Pieces that refer to chunks so far, those of the parent included.
    pub(crate) fn reference_count(&self) -> u64 {
        self.references.len() as u64
    }

    /// Everything, when all files were seen.
    pub(crate) fn finish(self) -> Referred {
        let Self { table, new_blobs, references, .. } = self;
        Referred { chunks: table.into_chunks(), references, new_blobs }
    }

    fn slot(&mut self, blob: NewBlob) -> Result<u32, BuildError> {
        let known = self.new_blobs.iter().position(|other| *other == blob);
        let at = known.unwrap_or_else(|| {
            self.new_blobs.push(blob);
            self.new_blobs.len() - 1
        });
        let index = u32::try_from(at).ok().and_then(|at| self.first_blob.checked_add(at));
        index.ok_or_else(|| BuildError::Limit { what: "blobs in one image", limit: u64::from(u32::MAX) })
    }
}
