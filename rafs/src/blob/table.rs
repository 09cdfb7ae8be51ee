//! The chunk info table of one v6 blob, versions 1 and 2, with batch and zran contexts (blob.md section 8).

use super::{BlobError, Unit, UnitId, data_size, is_legacy_stargz, unit};
use crate::codec::Cipher;
use crate::ids::ChunkIndex;
use crate::image::BlobInfo;
use crate::layout::blob::{BatchContext, BlobFeatures, ChunkInfoHeader, ChunkInfoV1, ChunkInfoV2};
use crate::layout::blob::{ChunkInfoV2Flags, ZRAN_DICT_MAX, ZranContext};
use crate::layout::chunk::{ChunkFlags, ChunkRecord};
use crate::layout::{CHUNK_SIZE_MAX, v6};
use zerocopy::FromBytes;

/// Bytes of one batch or zran context.
const CONTEXT_SIZE: usize = 40;

/// Where a chunk's stored bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the chunk's own compressed offset, raw.
    Raw,
    /// At the chunk's own compressed offset, compressed.
    Compressed,
    /// Inside a batch.
    Batch {
        /// Batch context.
        context: u32,
        /// First byte in the plain batch.
        offset: u32,
    },
    /// Inside the output of a zran context.
    Zran {
        /// Zran context.
        context: u32,
        /// First byte in the context's output.
        offset: u32,
    },
}

/// One chunk of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Start in the blob's uncompressed address space, bytes.
    pub uncompressed_offset: u64,
    /// Plain bytes, 1 ..= 16 MiB.
    pub uncompressed_size: u32,
    /// Start in the blob file, bytes.
    pub compressed_offset: u64,
    /// Stored bytes; 0 for members of a batch.
    pub compressed_size: u32,
    /// How to get at it.
    pub place: Place,
    /// Stored encrypted.
    pub encrypted: bool,
    /// CRC-32C of the plain bytes, when the table has it.
    pub crc32c: Option<u32>,
}

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

/// Chunks by context: those of context `c` are `chunks[starts[c] .. starts[c + 1]]`.
#[derive(Debug, Default)]
struct Members {
    starts: Vec<u32>,
    chunks: Vec<u32>,
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

    /// Every rule of blob.md section 8 that one entry and its predecessor can break.
    fn check_entries(&self, info: &BlobInfo) -> Result<(), String> {
        // A generated chunk dictionary describes blobs it does not know (blob.md section 3).
        let loose = info.features.contains(BlobFeatures::IS_CHUNKDICT_GENERATED);
        let compressed_end = if loose { u64::MAX } else { data_size(info) };
        let uncompressed_end = if loose { u64::MAX } else { info.uncompressed_size };
        let is_zran = info.features.contains(BlobFeatures::ZRAN) && !self.batch;
        let mut next_free = 0;
        for i in 0..self.chunk_count() {
            let Some(entry) = self.get(i as usize) else { break };
            let fail = |why: &str| Err(format!("chunk {i}: {why}: {entry:?}"));
            let end = entry.uncompressed_offset.checked_add(entry.uncompressed_size.into());
            let Some(end) = end.filter(|&e| e <= uncompressed_end) else {
                return fail("ends behind the blob");
            };
            if entry.uncompressed_offset < next_free || entry.uncompressed_size > CHUNK_SIZE_MAX {
                return fail("overlaps its predecessor, or is too large");
            }
            next_free = super::align(end).unwrap_or(u64::MAX);
            if entry.encrypted && self.cipher.is_none() {
                return fail("is encrypted and there is no key");
            }
            if entry.crc32c == Some(0) {
                return fail("has a checksum that is 0");
            }
            let stored = match entry.place {
                Place::Raw | Place::Compressed => {
                    let limit = unit::stored_size_max(entry.uncompressed_size);
                    if entry.compressed_size == 0 || entry.compressed_size > limit {
                        return fail("has an impossible compressed size");
                    }
                    if entry.place == Place::Raw
                        && entry.compressed_size != entry.uncompressed_size
                        && !(entry.encrypted && entry.uncompressed_size < 16)
                    {
                        return fail("is raw but its sizes differ");
                    }
                    entry.compressed_size
                }
                Place::Batch { context, offset } => {
                    let Some((stored, plain)) = self.batch_context(context).filter(|_| self.batch) else {
                        return fail("names no batch");
                    };
                    let fits = offset.checked_add(entry.uncompressed_size).is_some_and(|e| e <= plain);
                    if !fits || stored == 0 || plain > super::UNIT_SIZE_MAX {
                        return fail("does not fit into its batch");
                    }
                    if stored > unit::stored_size_max(plain) {
                        return fail("is in a batch of impossible size");
                    }
                    stored
                }
                Place::Zran { context, offset } => {
                    let Some(zran) = self.zran_context(context).filter(|_| is_zran) else {
                        return fail("names no zran context");
                    };
                    let (stored, plain) = (zran.in_size.get(), zran.out_size.get());
                    let fits = offset.checked_add(entry.uncompressed_size).is_some_and(|e| e <= plain);
                    let possible = stored > 0
                        && stored <= super::UNIT_SIZE_MAX
                        && plain <= super::UNIT_SIZE_MAX
                        && u64::from(plain) <= unit::inflated_size_max(stored);
                    if !fits || !possible {
                        return fail("does not fit into its zran context");
                    }
                    if zran.dict_size.get() > ZRAN_DICT_MAX || self.dictionary(&zran).is_none() {
                        return fail("has a context without dictionary");
                    }
                    let end = zran.in_offset.get().checked_add(stored.into());
                    if end.is_none_or(|e| e > compressed_end) {
                        return fail("has a context that ends behind the data");
                    }
                    continue;
                }
            };
            let end = entry.compressed_offset.checked_add(stored.into());
            if end.is_none_or(|e| e > compressed_end) {
                return fail("is stored behind the data");
            }
        }
        Ok(())
    }

    /// Sorts the chunks of batches and zran contexts by context.
    fn collect_members(&self) -> Result<Members, String> {
        let contexts = usize::try_from(self.context_count).map_err(|e| e.to_string())?;
        if contexts == 0 {
            return Ok(Members::default());
        }
        let mut starts = vec![0u32; contexts.saturating_add(1)];
        let mut plain = vec![0u64; contexts];
        let in_context = |i: u32| match self.get(i as usize)?.place {
            Place::Raw | Place::Compressed => None,
            Place::Batch { context, .. } | Place::Zran { context, .. } => usize::try_from(context).ok(),
        };
        for i in 0..self.chunk_count() {
            let Some(context) = in_context(i) else { continue };
            if let Some(n) = starts.get_mut(context.saturating_add(1)) {
                *n += 1;
            }
            if let (Some(sum), Some(entry)) = (plain.get_mut(context), self.get(i as usize)) {
                *sum += u64::from(entry.uncompressed_size);
            }
        }
        for (context, &sum) in (0u32..).zip(&plain) {
            // Without this bound one small context could make us hash for hours.
            let room = if self.batch {
                self.batch_context(context).map_or(0, |(_, plain)| plain)
            } else {
                self.zran_context(context).map_or(0, |zran| zran.out_size.get())
            };
            if sum > u64::from(room) {
                return Err(format!("chunks of context {context} overlap: {sum} bytes in {room}"));
            }
        }
        let mut total = 0u32;
        for start in &mut starts {
            total += *start;
            *start = total;
        }
        let mut next = starts.clone();
        let mut chunks = vec![0u32; usize::try_from(total).map_err(|e| e.to_string())?];
        for i in 0..self.chunk_count() {
            let Some(slot) = in_context(i).and_then(|c| next.get_mut(c)) else { continue };
            if let Some(place) = usize::try_from(*slot).ok().and_then(|s| chunks.get_mut(s)) {
                *place = i;
            }
            *slot += 1;
        }
        Ok(Members { starts, chunks })
    }
}

impl Members {
    fn of(&self, context: u32) -> &[u32] {
        let range = || {
            let context = usize::try_from(context).ok()?;
            let start = usize::try_from(*self.starts.get(context)?).ok()?;
            let end = usize::try_from(*self.starts.get(context.checked_add(1)?)?).ok()?;
            self.chunks.get(start..end)
        };
        range().unwrap_or_default()
    }
}

/// All of `bytes` as entries.
fn read_all<T: FromBytes + zerocopy::Immutable + Copy + zerocopy::Unaligned>(
    bytes: &[u8],
) -> Result<Vec<T>, ()> {
    <[T]>::ref_from_bytes(bytes).map(<[T]>::to_vec).map_err(|_| ())
}

/// The low `bits` bits of `word >> shift`; `bits` at most 32.
fn field(word: u64, shift: u32, bits: u32) -> u32 {
    u32::try_from((word >> shift) & ((1 << bits) - 1)).unwrap_or(u32::MAX)
}

fn unpack_v1(packed: &ChunkInfoV1) -> ChunkEntry {
    let (uncompressed, compressed) = (packed.uncompressed.get(), packed.compressed.get());
    let uncompressed_size = (field(uncompressed, 44, 20) | field(uncompressed, 8, 4) << 20) + 1;
    let compressed_size = (field(compressed, 44, 20) | field(compressed, 40, 4) << 20) + 1;
    ChunkEntry {
        uncompressed_offset: uncompressed & 0xfff_ffff_f000,
        uncompressed_size,
        compressed_offset: compressed & 0xff_ffff_ffff,
        compressed_size,
        place: if uncompressed_size == compressed_size { Place::Raw } else { Place::Compressed },
        encrypted: false,
        crc32c: None,
    }
}

fn unpack_v2(packed: &ChunkInfoV2) -> ChunkEntry {
    let (uncompressed, compressed, data) =
        (packed.uncompressed.get(), packed.compressed.get(), packed.data.get());
    let flags = ChunkInfoV2Flags::from_bits_retain(packed.uncompressed.to_bytes()[7]);
    let (context, offset) = (field(data, 32, 32), field(data, 0, 32));
    let place = if flags.contains(ChunkInfoV2Flags::BATCH) {
        Place::Batch { context, offset }
    } else if flags.contains(ChunkInfoV2Flags::ZRAN) {
        Place::Zran { context, offset }
    } else if flags.contains(ChunkInfoV2Flags::COMPRESSED) {
        Place::Compressed
    } else {
        Place::Raw
    };
    let own_place = matches!(place, Place::Raw | Place::Compressed);
    ChunkEntry {
        uncompressed_offset: u64::from(field(uncompressed, 0, 32)) << 12,
        uncompressed_size: field(uncompressed, 32, 24) + 1,
        compressed_offset: compressed & 0xff_ffff_ffff,
        compressed_size: field(compressed, 40, 24),
        place,
        encrypted: flags.contains(ChunkInfoV2Flags::ENCRYPTED),
        crc32c: (own_place && flags.contains(ChunkInfoV2Flags::HAS_CRC32)).then_some(offset),
    }
}

/// An 80-byte chunk record as a table entry; only for records whose compressed side is meaningful.
pub(super) fn entry_of_record(record: &ChunkRecord) -> ChunkEntry {
    let flags = ChunkFlags::from_bits_retain(record.flags.get());
    ChunkEntry {
        uncompressed_offset: record.uncompressed_offset.get(),
        uncompressed_size: record.uncompressed_size.get(),
        compressed_offset: record.compressed_offset.get(),
        compressed_size: record.compressed_size.get(),
        place: if flags.contains(ChunkFlags::COMPRESSED) { Place::Compressed } else { Place::Raw },
        encrypted: flags.contains(ChunkFlags::ENCRYPTED),
        crc32c: flags.contains(ChunkFlags::HAS_CRC32).then_some(record.crc32c.get()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{cached_table_len, parse_table};
    use crate::codec::{Compressor, Digester, compress};
    use crate::ids::BlobIndex;
    use crate::image::ChunkInfoLocation;
    use crate::layout::blob::CI_MAGIC;
    use zerocopy::IntoBytes;

    fn info(features: BlobFeatures, chunk_count: u32, table_size: usize) -> BlobInfo {
        BlobInfo {
            index: BlobIndex(0),
            id: "b".into(),
            features: features | BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC,
            compressor: Compressor::Zstd,
            digester: Digester::Blake3,
            cipher: None,
            chunk_size: 1 << 20,
            chunk_count: Some(chunk_count),
            compressed_size: 1 << 20,
            uncompressed_size: 1 << 24,
            chunk_info: Some(ChunkInfoLocation {
                offset: 1 << 20,
                compressed_size: table_size as u64,
                uncompressed_size: table_size as u64,
                compressor: Compressor::None,
            }),
            toc_size: 0,
            toc_digest: [0; 32],
            meta_blob: None,
            prefetch_size: 0,
            mapped_blkaddr: 0,
        }
    }

    /// The table file of a blob: entries, contexts, header.
    fn file(info: &BlobInfo, table: &[u8], contexts: u32) -> Vec<u8> {
        let place = info.chunk_info.unwrap();
        let mut header = ChunkInfoHeader::read_from_bytes(&[0; 4096]).unwrap();
        header.magic.set(CI_MAGIC);
        header.magic2.set(CI_MAGIC);
        header.chunk_count.set(info.chunk_count.unwrap());
        header.ci_offset.set(place.offset);
        header.ci_compressed_size.set(place.compressed_size);
        header.ci_uncompressed_size.set(place.uncompressed_size);
        header.context_offset.set(24 * u64::from(info.chunk_count.unwrap()));
        header.context_count.set(contexts);
        let mut file = table.to_vec();
        file.resize(usize::try_from(cached_table_len(info).unwrap()).unwrap() - 4096, 0);
        file.extend_from_slice(header.as_bytes());
        file
    }

    fn v1(uncompressed_offset: u64, size: u64, compressed_offset: u64, stored: u64) -> [u8; 16] {
        let (u, c) = (size - 1, stored - 1);
        let mut entry = [0; 16];
        let first = (u & 0xf_ffff) << 44 | uncompressed_offset | (u >> 20) << 8;
        let second = (c & 0xf_ffff) << 44 | (c >> 20) << 40 | compressed_offset;
        entry[..8].copy_from_slice(&first.to_le_bytes());
        entry[8..].copy_from_slice(&second.to_le_bytes());
        entry
    }

    fn v2(uncompressed_offset: u64, size: u64, flags: u64, compressed: (u64, u64), data: u64) -> [u8; 24] {
        let mut entry = [0; 24];
        let first = uncompressed_offset >> 12 | (size - 1) << 32 | flags << 56;
        entry[..8].copy_from_slice(&first.to_le_bytes());
        entry[8..16].copy_from_slice(&(compressed.0 | compressed.1 << 40).to_le_bytes());
        entry[16..].copy_from_slice(&data.to_le_bytes());
        entry
    }

    fn parse(
        features: BlobFeatures,
        count: u32,
        table: &[u8],
        contexts: u32,
    ) -> Result<ChunkTable, BlobError> {
        let info = info(features, count, table.len());
        let file = file(&info, table, contexts);
        parse_table(&info, file)
    }

    #[test]
    fn v1_fields() {
        let table = [v1(0, 4097, 0, 100), v1(0x3000, 0x10_0000, 100, 0x10_0000 - 100)].concat();
        let table = parse(BlobFeatures::empty(), 2, &table, 0).unwrap();
        let second = table.chunk(ChunkIndex(1)).unwrap();
        assert_eq!(second.uncompressed_offset, 0x3000);
        assert_eq!(second.uncompressed_size, 0x10_0000);
        assert_eq!((second.compressed_offset, second.compressed_size), (100, 0x10_0000 - 100));
        assert_eq!(second.place, Place::Compressed);
        assert!(matches!(table.chunk(ChunkIndex(2)), Err(BlobError::NoSuchChunk { count: 2, .. })));
    }

    #[test]
    fn rules_of_entries() {
        let none = BlobFeatures::empty();
        let v2_features = BlobFeatures::CHUNK_INFO_V2;
        let good = v1(0, 5000, 0, 200);
        parse(none, 1, &good, 0).unwrap();
        for (what, features, table) in [
            ("overlap", none, [good, v1(0x1000, 10, 200, 10)].concat()),
            ("behind the data", none, v1(0, 5000, (1 << 20) - 10, 20).to_vec()),
            ("behind the blob", none, v1((1 << 24) - 4096, 5000, 0, 20).to_vec()),
            ("stored too large", none, v1(0, 100, 0, 10_000).to_vec()),
            ("raw with two sizes", v2_features, v2(0, 100, 0, (0, 99), 0).to_vec()),
            ("stored empty", v2_features, v2(0, 100, 1, (0, 0), 0).to_vec()),
            ("checksum 0", v2_features, v2(0, 100, 16, (0, 100), 0).to_vec()),
            ("no batches", v2_features, v2(0, 100, 5, (0, 0), 0).to_vec()),
            ("no contexts", v2_features, v2(0, 100, 3, (0, 50), 0).to_vec()),
            ("no key", v2_features, v2(0, 100, 9, (0, 50), 0).to_vec()),
        ] {
            let count = u32::try_from(table.len() / if features == none { 16 } else { 24 }).unwrap();
            assert!(matches!(parse(features, count, &table, 0), Err(BlobError::Corrupt { .. })), "{what}");
        }
        let crc = parse(v2_features, 1, &v2(0, 100, 16, (0, 100), 0xabcd_1234), 0).unwrap();
        assert_eq!(crc.chunk(ChunkIndex(0)).unwrap().crc32c, Some(0xabcd_1234));
    }

    #[test]
    fn batches_are_cut_into_their_members() {
        let features = BlobFeatures::CHUNK_INFO_V2 | BlobFeatures::BATCH;
        let batch = [b"first chunk, ".repeat(20), b"second one. ".repeat(30)].concat();
        let mut stored = Vec::new();
        assert!(compress(Compressor::Zstd, &batch, &mut stored).unwrap());
        let context = |stored: usize, plain: usize| {
            let mut context = [0; 40];
            context[..4].copy_from_slice(&u32::try_from(stored).unwrap().to_le_bytes());
            context[4..8].copy_from_slice(&u32::try_from(plain).unwrap().to_le_bytes());
            context
        };
        let table = |second: u64, context: [u8; 40]| {
            let entries = [v2(0, 260, 5, (64, 0), 0), v2(0x1000, 360, 5, (64, 0), second)].concat();
            parse(features, 2, &[&entries[..], &context].concat(), 1)
        };
        let parsed = table(260, context(stored.len(), batch.len())).unwrap();
        let unit = parsed.unit_of(ChunkIndex(1)).unwrap();
        assert_eq!((unit.id, unit.stored_offset), (UnitId::Batch(0), 64));
        let (mut scratch, mut plain) = (Vec::new(), Vec::new());
        let info = info(features, 2, 88);
        unit.decode(&info, Some(&parsed), &stored, &mut scratch, &mut plain).unwrap();
        let members: Vec<_> = parsed.cut(unit.id).collect();
        assert_eq!(members.len(), 2);
        assert_eq!(plain[members[1].range.clone()], b"second one. ".repeat(30)[..]);
        // A batch that is stored raw, one that is too small for its members, members that overlap, no such context.
        let raw = table(260, context(batch.len(), batch.len())).unwrap();
        let unit = raw.unit_of(ChunkIndex(0)).unwrap();
        unit.decode(&info, Some(&raw), &batch, &mut scratch, &mut plain).unwrap();
        assert_eq!(plain, batch);
        table(260, context(stored.len(), batch.len() - 1)).unwrap_err();
        table(1 << 32 | 260, context(stored.len(), batch.len())).unwrap_err();
        let three = [v2(0, 300, 5, (0, 0), 0), v2(0x1000, 300, 5, (0, 0), 0), v2(0x2000, 300, 5, (0, 0), 0)];
        parse(features, 3, &[&three.concat()[..], &context(500, 620)].concat(), 1).unwrap_err();
    }

    #[test]
    fn headers_must_agree_with_the_image() {
        let table = v1(0, 5000, 0, 200);
        let info = info(BlobFeatures::empty(), 1, 16);
        let good = file(&info, &table, 0);
        parse_table(&info, good.clone()).unwrap();
        for at in [0, 8, 12, 16, 24, 32, 4092] {
            let mut bad = good.clone();
            bad[4096 + at] ^= 1;
            assert!(parse_table(&info, bad).is_err(), "header byte {at}");
        }
        for len in [0, 16, 4095, 4096, good.len() - 1, good.len() + 1] {
            let mut bad = good.clone();
            bad.resize(len, 0);
            assert!(parse_table(&info, bad).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn absurd_sizes_are_refused_before_memory_is_taken() {
        let mut info = info(BlobFeatures::empty(), 1, 16);
        let place = info.chunk_info.as_mut().unwrap();
        place.uncompressed_size = u64::MAX;
        assert!(matches!(parse_table(&info, vec![0; 4096]), Err(BlobError::Corrupt { .. })));
        crate::blob::stored_table_range(&info).unwrap_err();
        let place = info.chunk_info.as_mut().unwrap();
        (place.uncompressed_size, place.offset) = (16, u64::MAX - 10);
        crate::blob::stored_table_range(&info).unwrap_err();
    }

    #[test]
    fn legacy_stargz_tables_come_from_the_image() {
        let mut info = info(BlobFeatures::empty(), 2, 32);
        info.compressor = Compressor::Gzip;
        let record = |index: u32, offset: u64| {
            let mut record = ChunkRecord::default();
            record.index.set(index);
            record.flags.set(ChunkFlags::COMPRESSED.bits());
            record.uncompressed_size.set(5000);
            record.uncompressed_offset.set(offset);
            record.compressed_size.set(5152);
            record.compressed_offset.set(u64::from(index) * 6000);
            record
        };
        let table = ChunkTable::from_records(&info, &[record(1, 0x2000), record(0, 0)]).unwrap();
        assert_eq!(table.chunk_count(), 2);
        let unit = table.unit_of(ChunkIndex(1)).unwrap();
        assert_eq!((unit.stored_offset, unit.stored_size), (6000, 5152));
        let plain = b"stargz ".repeat(1000);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &plain).unwrap();
        let stored = encoder.finish().unwrap();
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        unit.decode(&info, Some(&table), &stored, &mut scratch, &mut out).unwrap();
        assert_eq!(out, plain[..5000], "the member goes on, the chunk does not");
        ChunkTable::from_records(&info, &[record(1, 0x2000)]).unwrap_err();
    }
}
