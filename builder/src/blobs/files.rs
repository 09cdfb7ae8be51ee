//! Data of files, chunk by chunk, verified.
//!
//! Owns: reading one chunk of a file, keeping the unit that was decoded last (batches and zran contexts hold many
//! chunks). Does not own: the order of reading.

use super::{BlobDataError, Blobs, Buffers};
use rafs::blob::{Expected, Unit, UnitId};
use rafs::ids::{BlobIndex, ChunkIndex};
use rafs::image::{ChunkRef, FsVersion};
use rafs::layout::blob::BlobFeatures;
use std::ops::Range;

/// Reads chunks of files of one image.
#[derive(Debug)]
pub(crate) struct FileData<'a> {
    blobs: &'a Blobs<'a>,
    buffers: Buffers,
    /// The unit whose plain bytes are in `buffers`.
    decoded: Option<(BlobIndex, UnitId)>,
}

impl<'a> FileData<'a> {
    /// For the image of `blobs`.
    pub(crate) fn new(blobs: &'a Blobs<'a>) -> Self {
        Self { blobs, buffers: Buffers::default(), decoded: None }
    }

    /// Plain bytes of a chunk of the file called `user` in messages.
    ///
    /// # Errors
    /// When it cannot be read, or is not what the image says.
    pub(crate) fn read(
        &mut self,
        chunk: &ChunkRef,
        user: &dyn Fn() -> String,
    ) -> Result<&[u8], BlobDataError> {
        let Some(blob) = self.blobs.get(chunk.blob.as_usize()) else {
            return Err(self.bad(chunk, user, "the image has no such blob"));
        };
        let (unit, range, expected) = self.place(chunk, user)?;
        // Chunks of a v5 image are told apart by their records, not by their numbers.
        let key = (chunk.blob, unit.id);
        let reusable = !matches!(unit.id, UnitId::Chunk(_));
        if !(reusable && self.decoded == Some(key)) {
            self.decoded = None;
            blob.read_unit(&unit, &mut self.buffers)
                .map_err(|e| bad(&blob.info.id, chunk.chunk, user, &e.to_string()))?;
            self.decoded = Some(key);
        }
        match self.buffers.plain.get(range).filter(|plain| expected.matches(plain)) {
            Some(plain) if plain.len() == chunk.uncompressed_size as usize => Ok(plain),
            _ => Err(bad(
                &blob.info.id,
                chunk.chunk,
                user,
                "its bytes do not have the digest that the image gives",
            )),
        }
    }

    fn place(
        &self,
        chunk: &ChunkRef,
        user: &dyn Fn() -> String,
    ) -> Result<(Unit, Range<usize>, Expected), BlobDataError> {
        let image = self.blobs.image;
        let blob = self.blobs.get(chunk.blob.as_usize());
        let blob = blob.ok_or_else(|| self.bad(chunk, user, "the image has no such blob"))?;
        let len = chunk.uncompressed_size as usize;
        let plain_file = Unit::of_plain_file(chunk.chunk, chunk.uncompressed_offset, chunk.uncompressed_size);
        if blob.info.features.contains(BlobFeatures::TARFS) {
            return Ok((plain_file, 0..len, Expected::Nothing));
        }
        if image.version() == FsVersion::V5 {
            let record =
                image.chunk_record(chunk).ok_or_else(|| self.bad(chunk, user, "it has no record"))?;
            let unit = if blob.plain { plain_file } else { Unit::of_record(blob.info, &record)? };
            return Ok((unit, 0..len, Expected::of_record(blob.info.digester, &record)));
        }
        let table =
            blob.table.as_ref().ok_or_else(|| self.bad(chunk, user, "its blob has no chunk table"))?;
        let entry = table.chunk(chunk.chunk)?;
        if entry.uncompressed_offset != chunk.uncompressed_offset {
            return Err(self.bad(chunk, user, "the blob's chunk table puts it elsewhere than the image"));
        }
        let expected = self.blobs.expected(blob, chunk.chunk, entry.crc32c);
        if blob.plain {
            return Ok((plain_file, 0..len, expected));
        }
        let unit = table.unit_of(chunk.chunk)?;
        let range = table.cut(unit.id).find(|member| member.chunk == chunk.chunk).map(|member| member.range);
        let range = range.ok_or_else(|| self.bad(chunk, user, "its unit does not hold it"))?;
        Ok((unit, range, expected))
    }

    fn bad(&self, chunk: &ChunkRef, user: &dyn Fn() -> String, reason: &str) -> BlobDataError {
        let id = self.blobs.get(chunk.blob.as_usize()).map_or("?", |blob| &blob.info.id);
        bad(id, chunk.chunk, user, reason)
    }
}

fn bad(blob: &str, chunk: ChunkIndex, user: &dyn Fn() -> String, reason: &str) -> BlobDataError {
    BlobDataError::Chunk { blob: blob.to_owned(), chunk: chunk.0, user: user(), reason: reason.to_owned() }
}
