//! Chunks as they are stored: for whoever moves them to another blob.
//!
//! Owns: finding the unit of a chunk by its record. Does not own: where it goes.

use super::{BlobDataError, OpenBlob};
use rafs::blob::Unit;
use rafs::ids::ChunkIndex;
use rafs::layout::chunk::ChunkRecord;
use std::ops::Range;

impl OpenBlob<'_> {
    /// The unit that holds the chunk of `record`, and where in its plain bytes.
    ///
    /// # Errors
    /// When the blob's chunk table contradicts the record.
    pub(crate) fn unit_for(&self, record: &ChunkRecord) -> Result<(Unit, Range<usize>), BlobDataError> {
        let chunk = ChunkIndex(record.index.get());
        let (offset, len) = (record.uncompressed_offset.get(), record.uncompressed_size.get());
        let whole = 0..len as usize;
        if self.plain || self.info.features.contains(rafs::layout::blob::BlobFeatures::TARFS) {
            return Ok((Unit::of_plain_file(chunk, offset, len), whole));
        }
        let Some(table) = &self.table else { return Ok((Unit::of_record(self.info, record)?, whole)) };
        let contradiction = |reason: &str| BlobDataError::Chunk {
            blob: self.info.id.clone(),
            chunk: chunk.0,
            user: "this image".to_owned(),
            reason: reason.to_owned(),
        };
        let entry = table.chunk(chunk)?;
        if (entry.uncompressed_offset, entry.uncompressed_size) != (offset, len) {
            return Err(contradiction("the blob's chunk table puts it elsewhere than the image"));
        }
        let unit = table.unit_of(chunk)?;
        let range = table.cut(unit.id).find(|member| member.chunk == chunk).map(|member| member.range);
        Ok((unit, range.ok_or_else(|| contradiction("its unit does not hold it"))?))
    }

    /// Whether the file holds plain data, whatever the image says (`ID.blob.data`).
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }
}
