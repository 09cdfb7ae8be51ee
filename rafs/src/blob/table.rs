//! The chunk info table of one v6 blob, versions 1 and 2, with batch and zran contexts (blob.md section 8).

mod check;
mod entry;
mod members;

pub(super) use entry::entry_of_record;
pub use entry::{ChunkEntry, Place};

use super::{BlobError, Unit, UnitId, is_legacy_stargz};
use crate::codec::Cipher;
use crate::ids::ChunkIndex;
use crate::image::BlobInfo;
use crate::layout::blob::{
    BatchContext, BlobFeatures, ChunkInfoHeader, ChunkInfoV1, ChunkInfoV2, ZranContext,
};
use crate::layout::chunk::ChunkRecord;
use crate::layout::v6;
use entry::{unpack_v1, unpack_v2};
use members::Members;
use zerocopy::FromBytes;

/// Bytes of one batch or zran context.
const CONTEXT_SIZE: usize = 40;

/// A checked chunk info table.
#[derive(Debug)]
pub struct ChunkTable {
    pub(super) blob: String,
    pub(super) cipher: Option<Cipher>,
    pub(super) legacy_stargz: bool,
    /// Legacy stargz: where the layer ends; stored sizes are estimates that may lead behind it.
    stored_end: u64,
    entries: Entries,
    /// Plain table behind the entries: contexts, then dictionaries.
    contexts: Vec<u8>,
    context_count: u32,
    members: Members,
    /// Contexts are batches; otherwise zran contexts.
    batch: bool,
}

/// Entries stay in their packed form, which is half the size of the unpacked one.
#[derive(Debug)]
enum Entries {
    V1(Vec<ChunkInfoV1>),
    V2(Vec<ChunkInfoV2>),
    Unpacked(Vec<ChunkEntry>),
}

impl ChunkTable {
    /// Checks the plain table `bytes` of the blob `info`, whose `header` has been checked against the image.
    ///
    /// # Errors
    /// The first contradiction found.
    pub(super) fn parse(
        info: &BlobInfo,
        mut bytes: Vec<u8>,
        header: &ChunkInfoHeader,
    ) -> Result<Self, BlobError> {
        let corrupt = |why: String| BlobError::Corrupt { blob: info.id.clone(), what: "chunk info", why };
        let count = header.chunk_count.get();
        let v2 = info.features.contains(BlobFeatures::CHUNK_INFO_V2);
        let entry_size = if v2 { size_of::<ChunkInfoV2>() } else { size_of::<ChunkInfoV1>() };
        let entries_len = usize::try_from(count)
            .ok()
            .and_then(|n| n.checked_mul(entry_size))
            .filter(|&n| n <= bytes.len() && count <= v6::CHUNKS_MAX)
            .ok_or_else(|| corrupt(format!("{} bytes are too few for {count} chunks", bytes.len())))?;
        let contexts = bytes.split_off(entries_len);
        let has_contexts = info.features.intersects(BlobFeatures::ZRAN | BlobFeatures::BATCH);
        let context_count = if has_contexts { header.context_count.get() } else { 0 };
        let contexts_len = usize::try_from(context_count).ok().and_then(|n| n.checked_mul(CONTEXT_SIZE));
        if context_count > count || contexts_len.is_none_or(|n| n > contexts.len()) {
            return Err(corrupt(format!(
                "{context_count} contexts for {count} chunks in {}",
                contexts.len()
            )));
        }
        if has_contexts && usize::try_from(header.context_offset.get()) != Ok(entries_len) {
            return Err(corrupt(format!("contexts at {:#x}", header.context_offset.get())));
        }
        if info.features.contains(BlobFeatures::ENCRYPTED) && info.cipher.is_none() {
            return Err(corrupt("encrypted, but the image has no key".into()));
        }
        let read_failed = |_| corrupt("entries cannot be read".into());
        let entries = if v2 {
            Entries::V2(read_all(&bytes).map_err(read_failed)?)
        } else {
            Entries::V1(read_all(&bytes).map_err(read_failed)?)
        };
        drop(bytes);
        let mut table = Self {
            blob: info.id.clone(),
            cipher: info.cipher.as_ref().map(Cipher::new),
            legacy_stargz: is_legacy_stargz(info),
            stored_end: u64::MAX,
            entries,
            contexts,
            context_count,
            members: Members::default(),
            batch: info.features.contains(BlobFeatures::BATCH),
        };
        table.check_entries(info).map_err(corrupt)?;
        table.members = table.collect_members().map_err(corrupt)?;
        Ok(table)
    }

    /// Rebuilds the table of a legacy eStargz blob from the image's chunk table: such blobs have no chunk info of
    /// their own (build-rules.md section 10).
    ///
    /// # Errors
    /// The records leave gaps, or contradict each other or the blob table.
    pub fn from_records(info: &BlobInfo, records: &[ChunkRecord]) -> Result<Self, BlobError> {
        let corrupt = |why: String| BlobError::Corrupt { blob: info.id.clone(), what: "chunk table", why };
        let mut own: Vec<&ChunkRecord> =
            records.iter().filter(|r| r.blob_index.get() == info.index.0).collect();
        own.sort_by_key(|r| r.index.get());
        let mut entries = Vec::with_capacity(own.len());
        for (position, record) in own.iter().enumerate() {
            if usize::try_from(record.index.get()) != Ok(position) {
                return Err(corrupt(format!("no record for chunk {position}")));
            }
            entries.push(entry_of_record(record));
        }
        let table = Self {
            blob: info.id.clone(),
            cipher: None,
            legacy_stargz: is_legacy_stargz(info),
            stored_end: u64::MAX,
            entries: Entries::Unpacked(entries),
            contexts: Vec::new(),
            context_count: 0,
            members: Members::default(),
            batch: info.features.contains(BlobFeatures::BATCH),
        };
        table.check_entries(info).map_err(corrupt)?;
        Ok(table)
    }

    /// Notes how large the blob file really is. An image over a stargz layer may have been made from its index alone: then
    /// it knows stored sizes only as estimates, and those of the last chunks may lead behind the file's end.
    #[must_use]
    pub fn with_blob_size(mut self, size: u64) -> Self {
        if self.legacy_stargz {
            self.stored_end = size;
        }
        self
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        let n = match &self.entries {
            Entries::V1(e) => e.len(),
            Entries::V2(e) => e.len(),
            Entries::Unpacked(e) => e.len(),
        };
        u32::try_from(n).unwrap_or(u32::MAX)
    }

    /// One chunk.
    ///
    /// # Errors
    /// There is no chunk of this index.
    pub fn chunk(&self, index: ChunkIndex) -> Result<ChunkEntry, BlobError> {
        self.get(index.as_usize()).ok_or_else(|| BlobError::NoSuchChunk {
            blob: self.blob.clone(),
            chunk: index.0,
            count: self.chunk_count(),
        })
    }

    fn get(&self, i: usize) -> Option<ChunkEntry> {
        match &self.entries {
            Entries::V1(e) => e.get(i).map(unpack_v1),
            Entries::V2(e) => e.get(i).map(unpack_v2),
            Entries::Unpacked(e) => e.get(i).copied(),
        }
    }

    /// The unit that holds a chunk.
    ///
    /// # Errors
    /// There is no chunk of this index.
    pub fn unit_of(&self, index: ChunkIndex) -> Result<Unit, BlobError> {
        let mut entry = self.chunk(index)?;
        if let Ok(left) = u32::try_from(self.stored_end.saturating_sub(entry.compressed_offset)) {
            // A chunk that begins behind the end keeps a byte that no store can give.
            entry.compressed_size = entry.compressed_size.min(left.max(1));
        }
        match entry.place {
            Place::Raw | Place::Compressed => Ok(Unit::of_chunk(
                index,
                &entry,
                self.legacy_stargz,
                self.cipher.is_some() && entry.encrypted,
            )),
            Place::Batch { context, .. } => {
                let sizes = self.batch_context(context).unwrap_or((0, 0));
                Ok(Unit::of_batch(context, index, &entry, sizes, self.cipher.is_some() && entry.encrypted))
            }
            Place::Zran { context, .. } => {
                let corrupt = || BlobError::Corrupt {
                    blob: self.blob.clone(),
                    what: "chunk info",
                    why: format!("no zran context {context}"),
                };
                Ok(Unit::of_zran(context, index, &self.zran_context(context).ok_or_else(corrupt)?))
            }
        }
    }

    /// The chunks a unit holds, in order.
    pub fn members(&self, id: UnitId) -> impl Iterator<Item = ChunkIndex> + '_ {
        let single = match id {
            UnitId::Chunk(index) => Some(index),
            UnitId::Batch(_) | UnitId::Zran(_) => None,
        };
        let many = match id {
            UnitId::Chunk(_) => &[][..],
            UnitId::Batch(context) | UnitId::Zran(context) => self.members.of(context),
        };
        single.into_iter().chain(many.iter().map(|&i| ChunkIndex(i)))
    }

    /// Stored and plain bytes of a batch.
    pub(super) fn batch_context(&self, context: u32) -> Option<(u32, u32)> {
        let context = BatchContext::read_from_bytes(self.context_bytes(context)?).ok()?;
        Some((context.compressed_size.get(), context.uncompressed_size.get()))
    }

    pub(super) fn zran_context(&self, context: u32) -> Option<ZranContext> {
        ZranContext::read_from_bytes(self.context_bytes(context)?).ok()
    }

    fn context_bytes(&self, context: u32) -> Option<&[u8]> {
        let context = usize::try_from(context).ok().filter(|_| context < self.context_count)?;
        let start = context.checked_mul(CONTEXT_SIZE)?;
        self.contexts.get(start..start.checked_add(CONTEXT_SIZE)?)
    }

    /// The dictionary of a zran context.
    pub(super) fn dictionary(&self, context: &ZranContext) -> Option<&[u8]> {
        let area = usize::try_from(self.context_count).ok()?.checked_mul(CONTEXT_SIZE)?;
        let start = usize::try_from(context.dict_offset.get()).ok()?.checked_add(area)?;
        let len = usize::try_from(context.dict_size.get()).ok()?;
        self.contexts.get(start..start.checked_add(len)?)
    }
}

/// All of `bytes` as entries.
fn read_all<T: FromBytes + zerocopy::Immutable + Copy + zerocopy::Unaligned>(
    bytes: &[u8],
) -> Result<Vec<T>, ()> {
    <[T]>::ref_from_bytes(bytes).map(<[T]>::to_vec).map_err(|_| ())
}

#[cfg(test)]
mod tests;
