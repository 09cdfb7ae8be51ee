//! Finds a chunk info table, checks its header against the image's blob table, and makes the table plain.

use super::{BlobError, ChunkTable, TABLE_SIZE_MAX, align};
use crate::codec::{self, Cipher};
use crate::image::{BlobInfo, ChunkInfoLocation};
use crate::layout::blob::{BlobFeatures, CI_MAGIC, ChunkInfoHeader};
use crate::layout::tar::TAR_HEADER_SIZE;
use std::ops::Range;
use zerocopy::FromBytes;

/// Bytes of the header behind a table.
const HEADER_SIZE: u64 = size_of::<ChunkInfoHeader>() as u64;
const WHAT: &str = "chunk info";

fn corrupt(info: &BlobInfo, why: String) -> BlobError {
    BlobError::Corrupt { blob: info.id.clone(), what: WHAT, why }
}

/// The table's place in the blob table, its sizes bounded.
fn location(info: &BlobInfo) -> Result<ChunkInfoLocation, BlobError> {
    let Some(place) = info.chunk_info else {
        return Err(corrupt(info, "the image names no chunk info table for it".into()));
    };
    if place.uncompressed_size > TABLE_SIZE_MAX || place.compressed_size > TABLE_SIZE_MAX {
        return Err(corrupt(
            info,
            format!("a table of {} bytes is over the limit of {TABLE_SIZE_MAX}", place.uncompressed_size),
        ));
    }
    Ok(place)
}

/// The bytes of the data blob (of the meta blob, if there is one) that hold table and header. One read.
///
/// # Errors
/// The image names no table, or one of absurd size.
pub fn stored_table_range(info: &BlobInfo) -> Result<Range<u64>, BlobError> {
    let place = location(info)?;
    let end = place
        .compressed_size
        .checked_add(HEADER_SIZE)
        .and_then(|n| n.checked_add(place.offset))
        .ok_or_else(|| corrupt(info, format!("table offset {:#x} overflows", place.offset)))?;
    Ok(place.offset..end)
}

/// Bytes of the `ID.blob.meta` file of this blob: plain table, padded to 4096, then the header.
///
/// # Errors
/// As [`stored_table_range`].
pub fn cached_table_len(info: &BlobInfo) -> Result<u64, BlobError> {
    let place = location(info)?;
    align(place.uncompressed_size)
        .and_then(|n| n.checked_add(HEADER_SIZE))
        .ok_or_else(|| corrupt(info, "table size overflows".into()))
}

/// Turns what [`stored_table_range`] covers into the form of an `ID.blob.meta` file: decrypted, decompressed, padded.
///
/// # Errors
/// The bytes are not those, or do not decode.
pub fn plain_table(info: &BlobInfo, bytes: &[u8]) -> Result<Vec<u8>, BlobError> {
    let place = location(info)?;
    let too_large = |_| corrupt(info, "table too large".into());
    let at = usize::try_from(place.compressed_size).map_err(too_large)?;
    let (Some(stored), Some(header)) = (bytes.get(..at), bytes.get(at..)) else {
        return Err(corrupt(info, format!("{} bytes read, table needs {at} and a header", bytes.len())));
    };
    let (mut stored, mut header) = (stored.to_vec(), header.to_vec());
    if let Some(key) = &info.cipher {
        let cipher = Cipher::new(key);
        for part in [&mut stored, &mut header] {
            cipher.decrypt(part).map_err(|e| corrupt(info, e.to_string()))?;
        }
    }
    check_header(info, &place, &header)?;
    let len = usize::try_from(place.uncompressed_size).map_err(too_large)?;
    let mut plain = vec![0; len];
    codec::decompress(place.compressor, &stored, &mut plain).map_err(|e| corrupt(info, e.to_string()))?;
    let whole = usize::try_from(cached_table_len(info)?).map_err(too_large)?;
    plain.resize(whole.saturating_sub(header.len()), 0);
    plain.extend_from_slice(&header);
    Ok(plain)
}

/// Builds the table from the contents of an `ID.blob.meta` file.
///
/// # Errors
/// The bytes are no such file, or contradict the image or themselves.
pub fn parse_table(info: &BlobInfo, mut bytes: Vec<u8>) -> Result<ChunkTable, BlobError> {
    let place = location(info)?;
    let len = cached_table_len(info)?;
    if u64::try_from(bytes.len()) != Ok(len) {
        return Err(corrupt(info, format!("{} bytes instead of {len}", bytes.len())));
    }
    let header_at = bytes.len().saturating_sub(size_of::<ChunkInfoHeader>());
    let header = check_header(info, &place, bytes.get(header_at..).unwrap_or_default())?;
    let table = usize::try_from(place.uncompressed_size).map_err(|_| corrupt(info, "too large".into()))?;
    bytes.truncate(table);
    ChunkTable::parse(info, bytes, &header)
}

/// Checks a header against the blob table (blob.md section 8).
fn check_header(
    info: &BlobInfo,
    place: &ChunkInfoLocation,
    bytes: &[u8],
) -> Result<ChunkInfoHeader, BlobError> {
    let header = ChunkInfoHeader::read_from_bytes(bytes)
        .map_err(|_| corrupt(info, format!("header of {} bytes, not {HEADER_SIZE}", bytes.len())))?;
    let count = u64::from(info.chunk_count.unwrap_or(0));
    for (what, found, expected) in [
        ("magic", header.magic.get().into(), u64::from(CI_MAGIC)),
        ("second magic", header.magic2.get().into(), u64::from(CI_MAGIC)),
        ("chunk count", header.chunk_count.get().into(), count),
        ("compressor", header.ci_compressor.get().into(), place.compressor.number().into()),
        ("offset", header.ci_offset.get(), place.offset),
        ("compressed size", header.ci_compressed_size.get(), place.compressed_size),
        ("uncompressed size", header.ci_uncompressed_size.get(), place.uncompressed_size),
    ] {
        if found != expected {
            return Err(corrupt(info, format!("header has {what} {found:#x}, the image {expected:#x}")));
        }
    }
    Ok(header)
}

/// How many leading bytes of the blob file are chunk data (blob.md section 4).
#[must_use]
pub fn data_size(info: &BlobInfo) -> u64 {
    let legacy_stargz = is_legacy_stargz(info);
    let without_header = |size: u64| {
        if info.features.contains(BlobFeatures::HAS_TAR_HEADER) {
            size.saturating_sub(TAR_HEADER_SIZE as u64)
        } else {
            size
        }
    };
    match info.chunk_info {
        _ if info.features.contains(BlobFeatures::SEPARATE) || legacy_stargz => info.compressed_size,
        _ if !info.features.contains(BlobFeatures::CAP_TAR_TOC) => info.compressed_size,
        Some(place) => without_header(place.offset),
        None => without_header(info.compressed_size),
    }
}

/// Whether the blob is an eStargz layer that an old converter indexed: the stored sizes of its chunks are
/// estimates, and no chunk info is stored with it (build-rules.md section 10).
#[must_use]
pub fn is_legacy_stargz(info: &BlobInfo) -> bool {
    info.compressor == codec::Compressor::Gzip && !info.features.contains(BlobFeatures::CHUNK_INFO_V2)
}
