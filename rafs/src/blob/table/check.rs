//! The rules that entries must keep, whatever wrote them.

use super::{ChunkTable, Place};
use crate::blob::{UNIT_SIZE_MAX, align, data_size, unit};
use crate::image::BlobInfo;
use crate::layout::CHUNK_SIZE_MAX;
use crate::layout::blob::{BlobFeatures, ZRAN_DICT_MAX};

impl ChunkTable {
    /// Every rule of blob.md section 8 that one entry and its predecessor can break.
    pub(super) fn check_entries(&self, info: &BlobInfo) -> Result<(), String> {
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
            next_free = align(end).unwrap_or(u64::MAX);
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
                    if !fits || stored == 0 || plain > UNIT_SIZE_MAX {
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
                        && stored <= UNIT_SIZE_MAX
                        && plain <= UNIT_SIZE_MAX
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
}
