//! Superblocks, device slots, blob table, prefetch table and chunk table of a v6 bootstrap.
//!
//! Owns: where the parts of the file are, and these parts' bytes. Does not own: the meta area.

use super::{AREA_ALIGNMENT, Layout, Model, Writer, align_area};
use crate::error::BuildError;
use crate::pack::Chunk;
use rafs::image::{BlobInfo, MetaBlob};
use rafs::layout::SuperFlags;
use rafs::layout::blob::{BlobFeatures, cipher};
use rafs::layout::chunk::ChunkRecord;
use rafs::layout::v6::{
    BLOBS_MAX, BlobEntry, COMPAT_RAFS_V6, DEVICE_SLOTS_OFFSET, DEVICE_TABLE_SLOT, DeviceSlot,
    ExtendedSuperBlock, INCOMPAT, MAGIC, SUPERBLOCK_OFFSET, SuperBlock,
};
use zerocopy::{FromZeros, IntoBytes};

/// Alignment of a blob's data in one disk image with the bootstrap.
const MAPPED_ALIGNMENT: u64 = 512 << 10;

/// Byte offsets of the parts.
pub(super) struct Positions {
    blob_table: u64,
    prefetch_table: u64,
    /// Start of the meta area.
    pub meta: u64,
    /// Start of the chunk table.
    pub chunk_table: u64,
    /// Positions in the chunk list of the table's records, in stored order.
    chunk_order: Vec<u32>,
    /// Size of the file.
    pub end: u64,
}

impl Positions {
    pub(super) fn new(model: &Model<'_>, layout: &Layout) -> Result<Self, BuildError> {
        let blobs = model.blobs.len();
        if blobs > BLOBS_MAX {
            return Err(BuildError::Limit { what: "blobs", limit: BLOBS_MAX as u64 });
        }
        let slots_end = (DEVICE_SLOTS_OFFSET + blobs * size_of::<DeviceSlot>()) as u64;
        let blob_table = align_area(slots_end);
        let prefetch_table = blob_table + (blobs * size_of::<BlobEntry>()) as u64;
        // Without blobs there is no table to step over: the superblocks' own block is the first of the area.
        let meta = if blobs == 0 { 0 } else { align_area(prefetch_table + prefetch_size(model)) };
        let chunk_table = align_area(meta + layout.end);
        let chunk_order = chunk_order(model);
        let end = align_area(chunk_table + (chunk_order.len() * size_of::<ChunkRecord>()) as u64);
        Ok(Self { blob_table, prefetch_table, meta, chunk_table, chunk_order, end })
    }

    fn chunk_table_size(&self) -> u64 {
        (self.chunk_order.len() * size_of::<ChunkRecord>()) as u64
    }
}

fn prefetch_size(model: &Model<'_>) -> u64 {
    // A table of inodes whose data is nowhere is not written.
    if model.blobs.is_empty() { 0 } else { 4 * model.prefetch.len() as u64 }
}

/// One record per distinct (digest, blob) that files use, in that order.
fn chunk_order(model: &Model<'_>) -> Vec<u32> {
    let mut used = vec![false; model.chunks.len()];
    for id in &model.order.numbered {
        let node = model.tree.node(*id);
        // A group's owner may itself have no name left in the tree.
        if node.is_file() {
            for chunk in model.file_chunks(node.owner) {
                used[*chunk as usize] = true;
            }
        }
    }
    // Readers of a legacy stargz blob make its chunk info from these records: none may be missing.
    let stargz: Vec<bool> = model.blobs.iter().map(rafs::blob::is_legacy_stargz).collect();
    if stargz.contains(&true) {
        for (used, chunk) in used.iter_mut().zip(model.chunks) {
            *used |= stargz.get(chunk.blob as usize) == Some(&true);
        }
    }
    // Chunks without a digest are told apart by their numbers, except in a tar, whose readers look up none.
    let number = |chunk: &Chunk| if chunk.digest == [0; 32] && !model.tarfs { chunk.index } else { 0 };
    let key = |at: &u32| {
        let chunk = &model.chunks[*at as usize];
        (chunk.digest, chunk.blob, number(chunk), chunk.index)
    };
    let mut order: Vec<u32> = (0..).zip(&used).filter_map(|(at, used)| used.then_some(at)).collect();
    order.sort_unstable_by_key(key);
    order.dedup_by_key(|at| (key(at).0, key(at).1, key(at).2));
    order
}

/// Everything before the meta area.
pub(super) fn write_head(writer: &mut Writer<'_, '_>, positions: &Positions) -> Result<(), BuildError> {
    let model = writer.model;
    let slots = device_slots(model, positions.end)?;
    writer.pad_to(SUPERBLOCK_OFFSET as u64)?;
    writer.put(superblock(model, positions, writer.layout, &slots)?.as_bytes())?;
    writer.put(extended_superblock(model, positions)?.as_bytes())?;
    for slot in &slots {
        writer.put(slot.as_bytes())?;
    }
    if model.blobs.is_empty() {
        return Ok(());
    }
    writer.pad_to(positions.blob_table)?;
    for blob in model.blobs {
        writer.put(blob_entry(blob)?.as_bytes())?;
    }
    for id in &model.prefetch {
        let nid = writer.layout.nid(*id);
        writer.put(&nid.to_le_bytes())?;
    }
    Ok(())
}

/// The chunk table, at its place.
pub(super) fn write_chunk_table(
    writer: &mut Writer<'_, '_>,
    positions: &Positions,
) -> Result<(), BuildError> {
    let model = writer.model;
    for at in &positions.chunk_order {
        let chunk = &model.chunks[*at as usize];
        let file_offset = u64::from(chunk.position) * u64::from(model.chunk_size.get());
        writer.put(chunk.record(file_offset).as_bytes())?;
    }
    Ok(())
}

fn superblock(
    model: &Model<'_>,
    positions: &Positions,
    layout: &Layout,
    slots: &[DeviceSlot],
) -> Result<SuperBlock, BuildError> {
    let too_large = || BuildError::Limit { what: "blocks of data", limit: u64::from(u32::MAX) };
    let blocks: u64 = slots.iter().map(|slot| u64::from(slot.blocks.get())).sum();
    let mut superblock = SuperBlock::new_zeroed();
    superblock.magic = MAGIC.into();
    superblock.feature_compat = COMPAT_RAFS_V6.into();
    superblock.block_bits = model.block_bits();
    superblock.root_nid = u16::try_from(layout.nid(crate::tree::ROOT)).map_err(|_| too_large())?.into();
    superblock.inodes_count = (model.order.numbered.len() as u64).into();
    superblock.blocks = u32::try_from(blocks).map_err(|_| too_large())?.into();
    superblock.meta_blkaddr = u32::try_from(positions.meta / model.block()).map_err(|_| too_large())?.into();
    superblock.feature_incompat = INCOMPAT.into();
    superblock.extra_devices = u16::try_from(slots.len()).map_err(|_| too_large())?.into();
    superblock.device_table_slot = DEVICE_TABLE_SLOT.into();
    Ok(superblock)
}

fn extended_superblock(model: &Model<'_>, positions: &Positions) -> Result<ExtendedSuperBlock, BuildError> {
    let too_large = || BuildError::Limit { what: "bytes in one v6 table", limit: u64::from(u32::MAX) };
    let mut flags = model.flags();
    let all = |feature| model.blobs.iter().all(|blob| blob.features.contains(feature));
    flags.set(SuperFlags::TARFS_MODE, model.tarfs);
    flags.set(SuperFlags::INLINED_CHUNK_DIGEST, all(BlobFeatures::INLINED_CHUNK_DIGEST));
    let encrypted = model.blobs.iter().any(|blob| blob.cipher.is_some());
    flags |= if encrypted { SuperFlags::ENCRYPTION_AES_128_XTS } else { SuperFlags::ENCRYPTION_NONE };
    let prefetch = prefetch_size(model);
    let mut extended = ExtendedSuperBlock::new_zeroed();
    extended.flags = flags.bits().into();
    extended.blob_table_offset =
        if model.blobs.is_empty() { AREA_ALIGNMENT } else { positions.blob_table }.into();
    let table_size = model.blobs.len() * size_of::<BlobEntry>();
    extended.blob_table_size = u32::try_from(table_size).map_err(|_| too_large())?.into();
    extended.chunk_size = model.chunk_size.get().into();
    extended.chunk_table_offset = positions.chunk_table.into();
    extended.chunk_table_size = positions.chunk_table_size().into();
    extended.prefetch_table_offset = if prefetch == 0 { 0 } else { positions.prefetch_table }.into();
    extended.prefetch_table_size = u32::try_from(prefetch).map_err(|_| too_large())?.into();
    Ok(extended)
}

fn device_slots(model: &Model<'_>, bootstrap_size: u64) -> Result<Vec<DeviceSlot>, BuildError> {
    let mut at = bootstrap_size;
    let mut slots = Vec::with_capacity(model.blobs.len());
    for blob in model.blobs {
        let too_large = |_| BuildError::Limit { what: "blocks of data", limit: u64::from(u32::MAX) };
        let blocks = u32::try_from(blob.uncompressed_size / model.block()).map_err(too_large)?;
        let mapped = at.next_multiple_of(MAPPED_ALIGNMENT) / model.block();
        let mut slot = DeviceSlot::new_zeroed();
        slot.blob_id = padded_id(&blob.id)?;
        slot.blocks = blocks.into();
        slot.mapped_blkaddr = u32::try_from(mapped).map_err(too_large)?.into();
        slots.push(slot);
        at = (mapped + u64::from(blocks)) * model.block();
    }
    Ok(slots)
}

fn padded_id(id: &str) -> Result<[u8; 64], BuildError> {
    let mut padded = [0; 64];
    let place = padded.get_mut(..id.len());
    place.ok_or(BuildError::Limit { what: "bytes in a blob id", limit: 64 })?.copy_from_slice(id.as_bytes());
    Ok(padded)
}

fn blob_entry(blob: &BlobInfo) -> Result<BlobEntry, BuildError> {
    let mut entry = BlobEntry::new_zeroed();
    entry.blob_id = padded_id(&blob.id)?;
    entry.blob_index = blob.index.0.into();
    entry.chunk_size = blob.chunk_size.into();
    entry.chunk_count = blob.chunk_count.unwrap_or(0).into();
    entry.compressor = blob.compressor.number().into();
    entry.digester = blob.digester.number().into();
    entry.features = blob.features.bits().into();
    entry.compressed_size = blob.compressed_size.into();
    entry.uncompressed_size = blob.uncompressed_size.into();
    entry.toc_size = blob.toc_size.into();
    if let Some(location) = blob.chunk_info {
        entry.ci_compressor = location.compressor.number().into();
        entry.ci_offset = location.offset.into();
        entry.ci_compressed_size = location.compressed_size.into();
        entry.ci_uncompressed_size = location.uncompressed_size.into();
    }
    entry.toc_digest = blob.toc_digest;
    if let Some(MetaBlob::Named { id, size }) = &blob.meta_blob {
        let digest = hex::decode(id).ok().and_then(|digest| digest.try_into().ok());
        entry.meta_digest_or_key =
            digest.ok_or_else(|| BuildError::Options(format!("meta blob id {id:?} is no sha256")))?;
        entry.meta_size_or_iv = (*size).into();
    }
    if let Some(key) = &blob.cipher {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&key.iv[at..at + 8]);
            u64::from_le_bytes(word)
        };
        entry.meta_digest_or_key = key.key;
        entry.meta_size_or_iv = word(0).into();
        entry.iv_tail = word(8).into();
        entry.cipher = cipher::AES_128_XTS.into();
    }
    Ok(entry)
}
