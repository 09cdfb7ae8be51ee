//! The chunk info table behind the chunk data of a v6 blob (blob.md section 8).
//!
//! Owns: packing entries and the header. Does not own: which chunks there are.

use super::blob_file::BlobFile;
use super::chunk::Chunk;
use crate::error::BuildError;
use rafs::codec::{self, Compressor};
use rafs::image::ChunkInfoLocation;
use rafs::layout::blob::{BlobFeatures, CI_MAGIC, ChunkInfoHeader, ChunkInfoV1};
use zerocopy::{FromZeros, IntoBytes};

/// Largest compressed offset that a chunk info can hold.
const COMPRESSED_OFFSET_MAX: u64 = (1 << 40) - 1;
/// Largest uncompressed offset, by the limit of the blob table.
const UNCOMPRESSED_OFFSET_MAX: u64 = 1 << 44;

/// A table in memory, before it is compressed.
#[derive(Debug, Default)]
pub(crate) struct Table {
    bytes: Vec<u8>,
    chunk_count: u32,
}

/// What was written of a table.
#[derive(Debug)]
pub(crate) struct Written {
    /// Where it is.
    pub location: ChunkInfoLocation,
    /// The header behind it.
    pub header: Vec<u8>,
}

impl Table {
    /// A version 1 table of `chunks`, which come in index order.
    ///
    /// # Errors
    /// When the blob is too large for the format.
    pub(crate) fn v1<'a>(chunks: impl Iterator<Item = &'a Chunk>) -> Result<Self, BuildError> {
        let mut table = Self::default();
        for chunk in chunks {
            table.bytes.extend_from_slice(v1(chunk)?.as_bytes());
            table.chunk_count += 1;
        }
        Ok(table)
    }

    /// The plain table.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Appends the table and its header to `blob`.
///
/// # Errors
/// When writing fails.
pub(crate) fn write(
    blob: &mut BlobFile,
    table: &Table,
    compressor: Compressor,
    features: BlobFeatures,
) -> Result<Written, BuildError> {
    let mut compressed = Vec::new();
    let smaller = codec::compress(compressor, &table.bytes, &mut compressed)
        .map_err(|e| BuildError::Compress { path: blob.path(), reason: e.to_string() })?;
    let (stored, ci_compressor) =
        if smaller { (&compressed, compressor) } else { (&table.bytes, Compressor::None) };
    let location = ChunkInfoLocation {
        offset: blob.position(),
        compressed_size: stored.len() as u64,
        uncompressed_size: table.bytes.len() as u64,
        compressor: ci_compressor,
    };
    let mut header = ChunkInfoHeader::new_zeroed();
    header.magic = CI_MAGIC.into();
    header.features = features.bits().into();
    header.ci_compressor = ci_compressor.number().into();
    header.chunk_count = table.chunk_count.into();
    header.ci_offset = location.offset.into();
    header.ci_compressed_size = location.compressed_size.into();
    header.ci_uncompressed_size = location.uncompressed_size.into();
    header.magic2 = CI_MAGIC.into();
    blob.write(stored)?;
    blob.write(header.as_bytes())?;
    Ok(Written { location, header: header.as_bytes().to_vec() })
}

fn v1(chunk: &Chunk) -> Result<ChunkInfoV1, BuildError> {
    if chunk.compressed_offset > COMPRESSED_OFFSET_MAX {
        return Err(BuildError::Limit { what: "bytes in one blob file", limit: COMPRESSED_OFFSET_MAX });
    }
    if chunk.uncompressed_offset >= UNCOMPRESSED_OFFSET_MAX {
        return Err(BuildError::Limit { what: "plain bytes in one blob", limit: UNCOMPRESSED_OFFSET_MAX });
    }
    let low = |size: u32| u64::from((size - 1) & 0xf_ffff) << 44;
    let high = |size: u32| u64::from((size - 1) >> 20 & 0xf);
    let uncompressed =
        low(chunk.uncompressed_size) | chunk.uncompressed_offset | high(chunk.uncompressed_size) << 8;
    let compressed = low(chunk.compressed_size) | high(chunk.compressed_size) << 40 | chunk.compressed_offset;
    Ok(ChunkInfoV1 { uncompressed: uncompressed.into(), compressed: compressed.into() })
}
