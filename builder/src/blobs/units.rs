//! The list of everything that must be read to read a whole blob.
//!
//! Owns: units of v5 and v6 blobs in storage order, with what their chunks must match. Does not own: reading.

use super::{BlobDataError, Blobs, OpenBlob};
use rafs::blob::{Expected, Unit};
use rafs::ids::ChunkIndex;
use rafs::image::FsVersion;
use rafs::layout::chunk::ChunkRecord;
use std::ops::Range;

/// A unit, and its chunks.
#[derive(Debug)]
pub(super) struct UnitCheck {
    pub unit: Unit,
    /// Chunk, its bytes in the decoded unit, and what they must match.
    pub chunks: Vec<(ChunkIndex, Range<usize>, Expected)>,
}

/// What is known of the chunks of one blob: enough to make unit `n` on demand.
#[derive(Debug)]
pub(super) enum Units {
    /// v5: distinct records, by chunk index.
    Records(Vec<ChunkRecord>),
    /// v6: the first chunk of every unit.
    Table(Vec<ChunkIndex>),
    /// TARFS: there is nothing to verify a part against.
    None,
}

impl Units {
    /// The units of `blob`.
    pub(super) fn of(blobs: &Blobs<'_>, blob: &OpenBlob<'_>) -> Result<Self, BlobDataError> {
        if blobs.image.version() == FsVersion::V5 {
            let mut records = Vec::new();
            blobs.image.for_each_chunk_record(&mut |record| {
                if record.blob_index.get() == blob.index().0 {
                    records.push(*record);
                }
            });
            // Old images number no chunks: then the place in the file tells them apart.
            records.sort_by_key(|r| (r.compressed_offset.get(), r.index.get()));
            records.dedup_by_key(|r| (r.compressed_offset.get(), r.index.get(), r.digest));
            return Ok(Self::Records(records));
        }
        let Some(table) = &blob.table else { return Ok(Self::None) };
        let mut firsts = Vec::new();
        for chunk in (0..table.chunk_count()).map(ChunkIndex) {
            let unit = table.unit_of(chunk)?;
            if table.members(unit.id).next() == Some(chunk) {
                firsts.push(chunk);
            }
        }
        Ok(Self::Table(firsts))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Records(records) => records.len(),
            Self::Table(firsts) => firsts.len(),
            Self::None => 0,
        }
    }

    /// Unit `n`.
    pub(super) fn get(
        &self,
        n: usize,
        blobs: &Blobs<'_>,
        blob: &OpenBlob<'_>,
    ) -> Result<UnitCheck, BlobDataError> {
        match (self, &blob.table) {
            (Self::Records(records), _) => {
                let record = &records[n];
                let mut unit = Unit::of_record(blob.info, record)?;
                let len = record.uncompressed_size.get();
                let chunk = ChunkIndex(record.index.get());
                if blob.plain {
                    unit = Unit::of_plain_file(chunk, record.uncompressed_offset.get(), len);
                }
                let expected = Expected::of_record(blob.info.digester, record);
                Ok(UnitCheck { unit, chunks: vec![(chunk, 0..len as usize, expected)] })
            }
            (Self::Table(firsts), Some(table)) => {
                let first = firsts[n];
                let mut unit = table.unit_of(first)?;
                if blob.plain {
                    let entry = table.chunk(first)?;
                    unit = Unit::of_plain_file(first, entry.uncompressed_offset, entry.uncompressed_size);
                    let expected = blobs.expected(blob, first, entry.crc32c);
                    let range = 0..entry.uncompressed_size as usize;
                    return Ok(UnitCheck { unit, chunks: vec![(first, range, expected)] });
                }
                let chunks = table
                    .cut(unit.id)
                    .map(|m| (m.chunk, m.range, blobs.expected(blob, m.chunk, m.crc32c)))
                    .collect();
                Ok(UnitCheck { unit, chunks })
            }
            _ => Ok(UnitCheck { unit: Unit::of_plain_file(ChunkIndex(0), 0, 0), chunks: Vec::new() }),
        }
    }
}
