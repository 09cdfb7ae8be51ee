//! The chunk info table behind the chunk data of a v6 blob (blob.md section 8).
//!
//! Owns: packing entries and the header. Does not own: which chunks there are.

use super::batch::{BatchPlace, Batches};
use super::blob_file::BlobFile;
use super::chunk::Chunk;
use crate::error::BuildError;
use rafs::codec::{self, Cipher, Compressor};
use rafs::image::{BlobInfo, ChunkInfoLocation};
use rafs::layout::blob::{
    BlobFeatures, CI_MAGIC, ChunkInfoHeader, ChunkInfoV1, ChunkInfoV2, ChunkInfoV2Flags, ZranContext,
};
use rafs::layout::chunk::ChunkFlags;
use zerocopy::{FromZeros, IntoBytes};

/// A table in a cache file ends at a multiple of so many bytes.
const CACHE_ALIGNMENT: usize = 4096;
/// Largest compressed offset that a chunk info can hold.
const COMPRESSED_OFFSET_MAX: u64 = (1 << 40) - 1;
/// Largest uncompressed offset, by the limit of the blob table.
const UNCOMPRESSED_OFFSET_MAX: u64 = 1 << 44;

/// A table in memory, before it is compressed.
#[derive(Debug, Default)]
pub(crate) struct Table {
    bytes: Vec<u8>,
    chunk_count: u32,
    contexts: usize,
    /// Bytes of contexts and dictionaries.
    context_bytes: usize,
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

    /// A version 2 table of `chunks`, with the batches some of them are in.
    ///
    /// # Errors
    /// When the blob is too large for the format.
    pub(crate) fn v2<'a>(
        chunks: impl Iterator<Item = &'a Chunk>,
        batches: &Batches,
        encrypted: bool,
    ) -> Result<Self, BuildError> {
        let mut table = Self::default();
        let mut places = batches.places.iter().peekable();
        for chunk in chunks {
            let place = places.next_if(|place| place.chunk == chunk.index);
            table.bytes.extend_from_slice(v2(chunk, place, encrypted)?.as_bytes());
            table.chunk_count += 1;
        }
        table.contexts = batches.contexts.len();
        table.context_bytes = size_of_val(&batches.contexts[..]);
        table.bytes.extend_from_slice(batches.contexts.as_bytes());
        Ok(table)
    }

    /// A version 2 table of `infos` with zran contexts and their dictionaries.
    pub(crate) fn v2_with_contexts(
        infos: &[ChunkInfoV2],
        contexts: &[ZranContext],
        dictionaries: &[u8],
    ) -> Self {
        Self {
            bytes: [infos.as_bytes(), contexts.as_bytes(), dictionaries].concat(),
            chunk_count: u32::try_from(infos.len()).unwrap_or_default(),
            contexts: contexts.len(),
            context_bytes: size_of_val(contexts) + dictionaries.len(),
        }
    }

    /// One entry of a version 2 table.
    ///
    /// # Errors
    /// When the blob is too large for the format.
    pub(crate) fn v2_entry(
        chunk: &Chunk,
        compressed_offset: u64,
        flags: ChunkInfoV2Flags,
        data: u64,
    ) -> Result<ChunkInfoV2, BuildError> {
        check_limits(compressed_offset, chunk)?;
        let uncompressed = chunk.uncompressed_offset >> 12
            | u64::from(chunk.uncompressed_size - 1) << 32
            | u64::from(flags.bits()) << 56;
        let compressed = compressed_offset | u64::from(chunk.compressed_size) << 40;
        Ok(ChunkInfoV2 {
            uncompressed: uncompressed.into(),
            compressed: compressed.into(),
            data: data.into(),
        })
    }

    /// The table in the form of a cache's `ID.blob.meta`: plain, padded to 4096, and the header that belongs to `blob`.
    pub(crate) fn cache_file(&self, blob: &BlobInfo) -> Vec<u8> {
        let mut file = self.bytes.clone();
        file.resize(file.len().next_multiple_of(CACHE_ALIGNMENT), 0);
        if let Some(location) = blob.chunk_info {
            file.extend_from_slice(self.header(&location, blob.features).as_bytes());
        }
        file
    }

    fn header(&self, location: &ChunkInfoLocation, features: BlobFeatures) -> ChunkInfoHeader {
        let mut header = ChunkInfoHeader::new_zeroed();
        header.magic = CI_MAGIC.into();
        header.features = features.bits().into();
        header.ci_compressor = location.compressor.number().into();
        header.chunk_count = self.chunk_count.into();
        header.ci_offset = location.offset.into();
        header.ci_compressed_size = location.compressed_size.into();
        header.ci_uncompressed_size = location.uncompressed_size.into();
        if self.contexts > 0 {
            let size = self.context_bytes;
            header.context_offset = ((self.bytes.len() - size) as u64).into();
            header.context_size = (size as u64).into();
            header.context_count = u32::try_from(self.contexts).unwrap_or_default().into();
        }
        header.magic2 = CI_MAGIC.into();
        header
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
    cipher: Option<&Cipher>,
) -> Result<Written, BuildError> {
    let mut compressed = Vec::new();
    let smaller = codec::compress(compressor, &table.bytes, &mut compressed)
        .map_err(|e| BuildError::Compress { path: blob.path(), reason: e.to_string() })?;
    let (stored, ci_compressor) =
        if smaller { (&compressed, compressor) } else { (&table.bytes, Compressor::None) };
    let mut encrypted = Vec::new();
    let stored = match cipher {
        Some(cipher) => {
            cipher.encrypt(stored, &mut encrypted);
            &encrypted
        }
        None => stored,
    };
    let location = ChunkInfoLocation {
        offset: blob.position(),
        compressed_size: stored.len() as u64,
        uncompressed_size: table.bytes.len() as u64,
        compressor: ci_compressor,
    };
    let header = table.header(&location, features);
    blob.write(stored)?;
    let mut stored_header = header.as_bytes().to_vec();
    if let Some(cipher) = cipher {
        cipher.encrypt(header.as_bytes(), &mut stored_header);
    }
    blob.write(&stored_header)?;
    Ok(Written { location, header: header.as_bytes().to_vec() })
}

fn v2(chunk: &Chunk, place: Option<&BatchPlace>, encrypted: bool) -> Result<ChunkInfoV2, BuildError> {
    let start = place.map_or(chunk.compressed_offset, |place| place.start);
    let mut flags = ChunkInfoV2Flags::empty();
    flags.set(ChunkInfoV2Flags::ENCRYPTED, encrypted);
    let data = if let Some(place) = place {
        flags |= ChunkInfoV2Flags::COMPRESSED | ChunkInfoV2Flags::BATCH;
        u64::from(place.context) << 32 | u64::from(place.offset)
    } else {
        flags.set(ChunkInfoV2Flags::COMPRESSED, chunk.flags.contains(ChunkFlags::COMPRESSED));
        // A CRC of 0 cannot be told from none (blob.md section 8).
        flags.set(ChunkInfoV2Flags::HAS_CRC32, chunk.crc32c != 0);
        u64::from(chunk.crc32c)
    };
    Table::v2_entry(chunk, start, flags, data)
}

fn check_limits(compressed_offset: u64, chunk: &Chunk) -> Result<(), BuildError> {
    if compressed_offset > COMPRESSED_OFFSET_MAX {
        return Err(BuildError::Limit { what: "bytes in one blob file", limit: COMPRESSED_OFFSET_MAX });
    }
    if chunk.uncompressed_offset >= UNCOMPRESSED_OFFSET_MAX {
        return Err(BuildError::Limit { what: "plain bytes in one blob", limit: UNCOMPRESSED_OFFSET_MAX });
    }
    Ok(())
}

fn v1(chunk: &Chunk) -> Result<ChunkInfoV1, BuildError> {
    check_limits(chunk.compressed_offset, chunk)?;
    let low = |size: u32| u64::from((size - 1) & 0xf_ffff) << 44;
    let high = |size: u32| u64::from((size - 1) >> 20 & 0xf);
    let uncompressed =
        low(chunk.uncompressed_size) | chunk.uncompressed_offset | high(chunk.uncompressed_size) << 8;
    let compressed = low(chunk.compressed_size) | high(chunk.compressed_size) << 40 | chunk.compressed_offset;
    Ok(ChunkInfoV1 { uncompressed: uncompressed.into(), compressed: compressed.into() })
}
