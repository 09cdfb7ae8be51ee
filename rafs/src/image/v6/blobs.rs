//! v6 blob table and device slots (rafs-v6.md sections 4 and 5).
//!
//! Owns: the checks on each entry, the conversion to [`BlobInfo`]. Does not own: where the tables are.

use crate::codec::{Compressor, Digester};
use crate::ids::BlobIndex;
use crate::image::base::{COMPRESSED_SIZE_MAX, Origin, UNCOMPRESSED_SIZE_MAX, blob_id};
use crate::image::blob_info::{BlobInfo, ChunkInfoLocation, CipherKey, MetaBlob};
use crate::image::error::Defect;
use crate::layout::blob::{BlobFeatures, ChunkInfoV1, ChunkInfoV2, FATAL_UNKNOWN_FEATURES, cipher};
use crate::layout::v6::{BlobEntry, CHUNKS_MAX, DeviceSlot};

/// Bytes before the trailing zeros of a fixed-size id.
fn trimmed(field: &[u8; 64]) -> &[u8] {
    let len = field.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    field.get(..len).unwrap_or_default()
}

/// The blob table in its common form; `entries` and `slots` have the same length.
///
/// # Errors
/// The first [`Defect::Blob`].
pub(super) fn blob_table(
    entries: &[BlobEntry],
    slots: &[DeviceSlot],
    chunk_size: u32,
    origin: &Origin<'_>,
) -> Result<Vec<BlobInfo>, Defect> {
    for (index, slot) in slots.iter().enumerate() {
        let defect = |what| Defect::Blob { index, what };
        blob_id(trimmed(&slot.blob_id)).map_err(defect)?;
        if slot.blocks.get() == 0 {
            return Err(defect("its device slot has no blocks"));
        }
        if slots.iter().take(index).any(|other| other.blob_id == slot.blob_id) {
            return Err(defect("its device slot has the id of another one"));
        }
    }
    let one = |(index, (entry, slot)): (usize, (&BlobEntry, &DeviceSlot))| {
        let last = index + 1 == entries.len();
        blob(entry, slot, index, chunk_size, origin, last).map_err(|what| Defect::Blob { index, what })
    };
    entries.iter().zip(slots).enumerate().map(one).collect()
}

fn blob(
    entry: &BlobEntry,
    slot: &DeviceSlot,
    index: usize,
    chunk_size: u32,
    origin: &Origin<'_>,
    last: bool,
) -> Result<BlobInfo, &'static str> {
    let stored_id = blob_id(trimmed(&entry.blob_id))?;
    let index = u32::try_from(index).map_err(|_| "there are too many")?;
    if entry.blob_index.get() != index {
        return Err("its index is not its position in the blob table");
    }
    if entry.chunk_size.get() != chunk_size {
        return Err("its chunk size is not the superblock's");
    }
    let bits = entry.features.get();
    if bits & FATAL_UNKNOWN_FEATURES != 0 {
        return Err("it needs features of a newer reader");
    }
    let features = BlobFeatures::from_bits_truncate(bits);
    let tarfs = features.contains(BlobFeatures::TARFS);
    if features.contains(BlobFeatures::ALIGNED) == tarfs {
        return Err("exactly one of its features ALIGNED and TARFS must be set");
    }
    let cipher = cipher_key(entry)?;
    let separate = features.contains(BlobFeatures::SEPARATE);
    if cipher.is_some() && separate {
        return Err("it is encrypted and has a meta blob, which share fields");
    }
    if cipher.is_some() != features.contains(BlobFeatures::ENCRYPTED) {
        return Err("its cipher and its feature ENCRYPTED do not fit");
    }
    check_sizes(entry, features)?;
    let compressor = Compressor::from_number(entry.compressor.get()).ok_or("its compressor is unknown")?;
    let digester = Digester::from_number(entry.digester.get()).ok_or("its digest algorithm is unknown")?;
    Ok(BlobInfo {
        index: BlobIndex(index),
        id: origin.blob_id(stored_id, features, last),
        features,
        compressor,
        digester,
        cipher,
        chunk_size,
        chunk_count: Some(entry.chunk_count.get()),
        compressed_size: entry.compressed_size.get(),
        uncompressed_size: entry.uncompressed_size.get(),
        chunk_info: chunk_info(entry, features)?,
        toc_size: entry.toc_size.get(),
        toc_digest: entry.toc_digest,
        meta_blob: separate.then(|| meta_blob(entry, features, origin)),
        prefetch_size: 0,
        mapped_blkaddr: slot.mapped_blkaddr.get(),
    })
}

fn cipher_key(entry: &BlobEntry) -> Result<Option<CipherKey>, &'static str> {
    match entry.cipher.get() {
        cipher::NONE => Ok(None),
        cipher::AES_128_XTS => {
            let (head, tail) = (entry.meta_size_or_iv.get(), entry.iv_tail.get());
            let iv = (u128::from(tail) << 64 | u128::from(head)).to_le_bytes();
            Ok(Some(CipherKey { key: entry.meta_digest_or_key, iv }))
        }
        _ => Err("its cipher is neither none nor aes-128-xts"),
    }
}

fn meta_blob(entry: &BlobEntry, features: BlobFeatures, origin: &Origin<'_>) -> MetaBlob {
    if features.contains(BlobFeatures::INLINED_FS_META) {
        return MetaBlob::BootstrapFile { id: origin.stem.to_owned() };
    }
    MetaBlob::Named { id: hex::encode(entry.meta_digest_or_key), size: entry.meta_size_or_iv.get() }
}

fn check_sizes(entry: &BlobEntry, features: BlobFeatures) -> Result<(), &'static str> {
    let (compressed, uncompressed) = (entry.compressed_size.get(), entry.uncompressed_size.get());
    if compressed > COMPRESSED_SIZE_MAX || uncompressed > UNCOMPRESSED_SIZE_MAX {
        return Err("it is larger than the format allows");
    }
    if entry.chunk_count.get() > CHUNKS_MAX + 1 {
        return Err("it has more than 2^24 chunks");
    }
    let loose = BlobFeatures::TARFS | BlobFeatures::IS_CHUNKDICT_GENERATED | BlobFeatures::EXTERNAL;
    if !features.intersects(loose) && !uncompressed.is_multiple_of(4096) {
        return Err("its uncompressed size is no multiple of 4096");
    }
    Ok(())
}

/// Where the chunk info table is. TARFS blobs have none.
fn chunk_info(entry: &BlobEntry, features: BlobFeatures) -> Result<Option<ChunkInfoLocation>, &'static str> {
    let place = ChunkInfoLocation {
        offset: entry.ci_offset.get(),
        compressed_size: entry.ci_compressed_size.get(),
        uncompressed_size: entry.ci_uncompressed_size.get(),
        compressor: Compressor::None,
    };
    if features.contains(BlobFeatures::TARFS) {
        if place.compressed_size != 0 || place.uncompressed_size != 0 {
            return Err("it is a plain tar and has a chunk info table");
        }
        return Ok(None);
    }
    let compressor = Compressor::from_number(entry.ci_compressor.get())
        .ok_or("the compressor of its chunk info table is unknown")?;
    if place.compressed_size > place.uncompressed_size {
        return Err("its chunk info table is larger compressed than plain");
    }
    if place.offset.checked_add(place.compressed_size).is_none_or(|end| end > COMPRESSED_SIZE_MAX) {
        return Err("its chunk info table ends behind the largest blob");
    }
    if features.contains(BlobFeatures::IS_CHUNKDICT_GENERATED) {
        return Ok(Some(ChunkInfoLocation { compressor, ..place }));
    }
    let count = u64::from(entry.chunk_count.get());
    let contexts = BlobFeatures::BATCH | BlobFeatures::ZRAN | BlobFeatures::ENCRYPTED;
    let (v1, v2) = (size_of::<ChunkInfoV1>() as u64 * count, size_of::<ChunkInfoV2>() as u64 * count);
    let fits = match features.contains(BlobFeatures::CHUNK_INFO_V2) {
        false => place.uncompressed_size == v1,
        true if features.intersects(contexts) => place.uncompressed_size >= v2,
        true => place.uncompressed_size == v2,
    };
    if !fits {
        return Err("the size of its chunk info table does not fit its number of chunks");
    }
    Ok(Some(ChunkInfoLocation { compressor, ..place }))
}
