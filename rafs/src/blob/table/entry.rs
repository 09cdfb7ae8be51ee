//! One chunk as the packed entries of both versions, and the records of images, describe it.

use crate::layout::blob::{ChunkInfoV1, ChunkInfoV2, ChunkInfoV2Flags};
use crate::layout::chunk::{ChunkFlags, ChunkRecord};

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

/// The low `bits` bits of `word >> shift`; `bits` at most 32.
fn field(word: u64, shift: u32, bits: u32) -> u32 {
    u32::try_from((word >> shift) & ((1 << bits) - 1)).unwrap_or(u32::MAX)
}

pub(super) fn unpack_v1(packed: &ChunkInfoV1) -> ChunkEntry {
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

pub(super) fn unpack_v2(packed: &ChunkInfoV2) -> ChunkEntry {
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
pub(in crate::blob) fn entry_of_record(record: &ChunkRecord) -> ChunkEntry {
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
