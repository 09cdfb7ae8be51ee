//! Units: the smallest pieces of a blob that can be read and decoded alone.

use super::table::entry_of_record;
use super::{BlobError, ChunkEntry, ChunkTable, Place, UNIT_SIZE_MAX};
use crate::codec::{self, CodecError, Compressor, ZranStart};
use crate::ids::ChunkIndex;
use crate::image::BlobInfo;
use crate::layout::CHUNK_SIZE_MAX;
use crate::layout::blob::ZranContext;
use crate::layout::chunk::ChunkRecord;
use std::ops::Range;

/// Names a unit inside its blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitId {
    /// One chunk.
    Chunk(ChunkIndex),
    /// A batch, by its context.
    Batch(u32),
    /// A zran context.
    Zran(u32),
}

/// What to read and how to decode it. All sizes are bounded by [`UNIT_SIZE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub id: UnitId,
    /// The chunk that was asked for; any chunk of the unit.
    pub chunk: ChunkIndex,
    /// First byte in the blob file.
    pub stored_offset: u64,
    /// Stored bytes, not 0. For legacy eStargz chunks an upper estimate, never behind the blob's end.
    pub stored_size: u32,
    /// Plain bytes.
    pub plain_size: u32,
    how: How,
    encrypted: bool,
}

/// How a unit's stored bytes become plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Raw,
    Compressed,
    /// Compressed, or raw when the sizes agree.
    Batch,
    GzipPrefix,
    Zran,
}

/// One chunk inside a decoded unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which chunk.
    pub chunk: ChunkIndex,
    /// Its bytes in the decoded unit.
    pub range: Range<usize>,
    /// Where it starts in the blob's uncompressed address space.
    pub uncompressed_offset: u64,
    /// CRC-32C, when the blob's own metadata has one.
    pub crc32c: Option<u32>,
}

/// The most bytes that `plain` bytes can take when stored: raw plus the padding of a cipher, or the estimate
/// for eStargz chunks with room for odd encoders.
pub(super) fn stored_size_max(plain: u32) -> u32 {
    plain.saturating_add(plain / 64).saturating_add(4096)
}

/// The most bytes that `stored` bytes of deflate can hold: 1032 for one, plus a window's worth at the edges.
pub(super) fn inflated_size_max(stored: u32) -> u64 {
    u64::from(stored).saturating_mul(1032).saturating_add(4096)
}

impl Unit {
    pub(super) fn of_chunk(chunk: ChunkIndex, entry: &ChunkEntry, stargz: bool, encrypted: bool) -> Self {
        Self {
            id: UnitId::Chunk(chunk),
            chunk,
            stored_offset: entry.compressed_offset,
            stored_size: entry.compressed_size,
            plain_size: entry.uncompressed_size,
            how: match entry.place {
                Place::Compressed if stargz => How::GzipPrefix,
                Place::Compressed => How::Compressed,
                _ => How::Raw,
            },
            encrypted,
        }
    }

    pub(super) fn of_batch(
        context: u32,
        chunk: ChunkIndex,
        entry: &ChunkEntry,
        (stored_size, plain_size): (u32, u32),
        encrypted: bool,
    ) -> Self {
        Self {
            id: UnitId::Batch(context),
            chunk,
            stored_offset: entry.compressed_offset,
            stored_size,
            plain_size,
            how: How::Batch,
            encrypted,
        }
    }

    pub(super) fn of_zran(context: u32, chunk: ChunkIndex, zran: &ZranContext) -> Self {
        Self {
            id: UnitId::Zran(context),
            chunk,
            stored_offset: zran.in_offset.get(),
            stored_size: zran.in_size.get(),
            plain_size: zran.out_size.get(),
            how: How::Zran,
            encrypted: false,
        }
    }

    /// The unit behind a v5 chunk record, which says all there is to know.
    ///
    /// # Errors
    /// Sizes that no builder writes.
    pub fn of_record(info: &BlobInfo, record: &ChunkRecord) -> Result<Self, BlobError> {
        let entry = entry_of_record(record);
        let chunk = ChunkIndex(record.index.get());
        let plain = entry.uncompressed_size;
        let possible = plain > 0
            && plain <= CHUNK_SIZE_MAX
            && entry.compressed_size > 0
            && entry.compressed_size <= stored_size_max(plain)
            && (entry.place != Place::Raw || entry.compressed_size == plain)
            && !entry.encrypted;
        if !possible {
            return Err(BlobError::Corrupt {
                blob: info.id.clone(),
                what: "chunk record",
                why: format!("chunk {chunk}: impossible sizes: {entry:?}"),
            });
        }
        Ok(Self::of_chunk(chunk, &entry, super::is_legacy_stargz(info), false))
    }

    /// A raw chunk at the same place in a file that holds the blob's uncompressed address space.
    #[must_use]
    pub fn of_plain_file(chunk: ChunkIndex, uncompressed_offset: u64, size: u32) -> Self {
        Self {
            id: UnitId::Chunk(chunk),
            chunk,
            stored_offset: uncompressed_offset,
            stored_size: size,
            plain_size: size,
            how: How::Raw,
            encrypted: false,
        }
    }

    /// First byte behind the stored unit.
    #[must_use]
    pub fn stored_end(&self) -> u64 {
        self.stored_offset.saturating_add(self.stored_size.into())
    }

    /// Stored bytes are the plain ones.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        self.how == How::Raw && !self.encrypted
    }

    /// Decodes `stored` into `plain`, which gets exactly [`Unit::plain_size`] bytes; `scratch` is reused memory.
    /// `table` is needed for encrypted units and zran contexts; records of v5 images have neither.
    ///
    /// # Errors
    /// Stored bytes that do not decode to the promised size.
    pub fn decode(
        &self,
        info: &BlobInfo,
        table: Option<&ChunkTable>,
        stored: &[u8],
        scratch: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<(), BlobError> {
        self.decode_inner(info.compressor, table, stored, scratch, plain).map_err(|source| {
            BlobError::Decode {
                blob: info.id.clone(),
                chunk: self.chunk.0,
                stored_offset: self.stored_offset,
                stored_size: self.stored_size,
                source,
            }
        })
    }

    fn decode_inner(
        &self,
        compressor: Compressor,
        table: Option<&ChunkTable>,
        stored: &[u8],
        scratch: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let damaged = |reason| CodecError::Damaged { compressor, stored: stored.len(), reason };
        let len = usize::try_from(self.plain_size.min(UNIT_SIZE_MAX)).map_err(|_| damaged("too large"))?;
        let stored = if self.encrypted {
            let cipher =
                table.and_then(|t| t.cipher.as_ref()).ok_or_else(|| damaged("there is no key for it"))?;
            scratch.clear();
            scratch.extend_from_slice(stored);
            cipher.decrypt(scratch)?;
            scratch.as_slice()
        } else {
            stored
        };
        plain.resize(len, 0);
        match self.how {
            How::Raw => codec::decompress(Compressor::None, stored, plain),
            How::Batch if stored.len() == len => codec::decompress(Compressor::None, stored, plain),
            How::Compressed | How::Batch => codec::decompress(compressor, stored, plain),
            How::GzipPrefix => codec::gunzip_prefix(stored, plain),
            How::Zran => {
                let no_context = || damaged("its zran context is gone");
                let table = table.ok_or_else(no_context)?;
                let UnitId::Zran(context) = self.id else { return Err(no_context()) };
                let context = table.zran_context(context).ok_or_else(no_context)?;
                let start = ZranStart {
                    dictionary: table.dictionary(&context).ok_or_else(no_context)?,
                    previous_byte: context.previous_byte,
                    bit_count: context.bit_count,
                };
                codec::inflate_zran(start, stored, plain)
            }
        }
    }
}

impl ChunkTable {
    /// Where the chunks of a decoded unit lie in it.
    pub fn cut(&self, id: UnitId) -> impl Iterator<Item = Member> + '_ {
        self.members(id).filter_map(|chunk| {
            let entry = self.chunk(chunk).ok()?;
            let start = match entry.place {
                Place::Raw | Place::Compressed => 0,
                Place::Batch { offset, .. } | Place::Zran { offset, .. } => usize::try_from(offset).ok()?,
            };
            let len = usize::try_from(entry.uncompressed_size).ok()?;
            Some(Member {
                chunk,
                range: start..start.checked_add(len)?,
                uncompressed_offset: entry.uncompressed_offset,
                crc32c: entry.crc32c,
            })
        })
    }
}
