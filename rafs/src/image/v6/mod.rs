//! RAFS v6: superblocks and tables, checked at open (rafs-v6.md sections 1 to 6).
//!
//! Owns: where meta area, chunk table and prefetch table are. Does not own: the blob table ([`blobs`]),
//! inodes ([`inode`]), directories ([`dir`]), xattrs ([`xattr`]), chunk addresses ([`chunks`]). No inode but
//! the root is touched at open.

mod blobs;
mod chunks;
mod dir;
mod inode;
#[cfg(test)]
mod tests;
mod xattr;

pub(crate) use chunks::Chunks;
pub(crate) use dir::DirEntries;
pub(crate) use xattr::Xattrs;

use super::base::{Base, BlobLimits, Origin, check_chunk_size, owner, super_flags};
use super::bytes::{table, view};
use super::error::Defect;
use super::map::Bytes;
use crate::codec::{Compressor, Digester};
use crate::ids::InodeNumber;
use crate::layout::SuperFlags;
use crate::layout::chunk::ChunkRecord;
use crate::layout::v6::{
    AREA_ALIGNMENT, BLOBS_MAX, BLOCK_BITS, BLOCK_BITS_TARFS, BlobEntry, COMPAT_RAFS_V6, DEVICE_SLOTS_OFFSET,
    DEVICE_TABLE_SLOT, DeviceSlot, EXTENDED_SUPERBLOCK_OFFSET, ExtendedSuperBlock, INCOMPAT, NID_UNIT,
    SUPERBLOCK_OFFSET, SuperBlock,
};
use zerocopy::little_endian::U32;

/// Positions that inodes are found with.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Byte offset of the meta area.
    meta: u64,
    /// log2 of the block size: 12 or 9.
    block_bits: u8,
    /// Byte offset and length of the chunk table.
    chunk_table: (u64, u64),
    /// Byte offset and length of the prefetch table.
    prefetch_table: (u64, u64),
}

/// Opens a v6 bootstrap.
///
/// # Errors
/// The first [`Defect`] of superblocks or tables.
pub(crate) fn open(bytes: Bytes, origin: &Origin<'_>) -> Result<(Base, Tree), Defect> {
    let data = bytes.as_slice();
    let size = data.len() as u64;
    let cut = |what, end: usize| Defect::Truncated { what, end: end as u64, size };
    let sb = view::<SuperBlock>(data, SUPERBLOCK_OFFSET as u64)
        .ok_or_else(|| cut("the superblock", EXTENDED_SUPERBLOCK_OFFSET))?;
    let ext = view::<ExtendedSuperBlock>(data, EXTENDED_SUPERBLOCK_OFFSET as u64)
        .ok_or_else(|| cut("the extended superblock", DEVICE_SLOTS_OFFSET))?;
    let flags = super_flags(ext.flags.get())?;
    check_superblock(sb, flags)?;
    let block_size = 1u32 << sb.block_bits;
    if size < AREA_ALIGNMENT || !size.is_multiple_of(u64::from(block_size)) {
        let expected = "a multiple of the block size, and at least 4096";
        return Err(Defect::Field { field: "the file size", value: size, expected });
    }
    check_chunk_size(ext.chunk_size.get())?;
    check_tables(sb, ext, size)?;
    let devices = usize::from(sb.extra_devices.get());
    let slots_len = (devices * size_of::<DeviceSlot>()) as u64;
    let slots = table::<DeviceSlot>(data, DEVICE_SLOTS_OFFSET as u64, slots_len)
        .ok_or_else(|| cut("the device table", usize::MAX))?;
    let entries = table::<BlobEntry>(data, ext.blob_table_offset.get(), u64::from(ext.blob_table_size.get()))
        .ok_or_else(|| cut("the blob table", usize::MAX))?;
    if entries.len() != devices {
        let value = entries.len() as u64;
        let expected = "one blob for each device slot";
        return Err(Defect::Field { field: "the blob table's entry count", value, expected });
    }
    let chunk_size = ext.chunk_size.get();
    let blobs = blobs::blob_table(entries, slots, chunk_size, origin)?;
    let meta = u64::from(sb.meta_blkaddr.get()) << sb.block_bits;
    if meta >= size {
        return Err(Defect::Truncated { what: "the meta area", end: meta, size });
    }
    let tree = Tree {
        meta,
        block_bits: sb.block_bits,
        chunk_table: (ext.chunk_table_offset.get(), ext.chunk_table_size.get()),
        prefetch_table: (ext.prefetch_table_offset.get(), u64::from(ext.prefetch_table_size.get())),
    };
    let base = Base {
        flags,
        chunk_size,
        block_size,
        compressor: compressor(flags)?,
        digester: digester(flags)?,
        root: InodeNumber(u64::from(sb.root_nid.get())),
        inode_count: sb.inodes_count.get(),
        max_inode_number: ((size - meta) / NID_UNIT).saturating_sub(1),
        limits: blobs.iter().map(BlobLimits::of).collect(),
        blobs,
        owner: owner(flags),
        bytes,
    };
    Ok((base, tree))
}

fn check_superblock(sb: &SuperBlock, flags: SuperFlags) -> Result<(), Defect> {
    let field = |field, value, expected| Err(Defect::Field { field, value, expected });
    let tarfs = flags.contains(SuperFlags::TARFS_MODE);
    if sb.block_bits != if tarfs { BLOCK_BITS_TARFS } else { BLOCK_BITS } {
        let value = u64::from(sb.block_bits);
        return field("the superblock's block size bits", value, "12, or 9 together with the TARFS flag");
    }
    if sb.feature_compat.get() & COMPAT_RAFS_V6 == 0 {
        let expected = "bit 0x40000000, which marks RAFS";
        return field("the superblock's compatible features", u64::from(sb.feature_compat.get()), expected);
    }
    for (name, value, expected, text) in [
        ("the superblock's checksum", sb.checksum.get(), 0, "0"),
        ("the superblock's incompatible features", sb.feature_incompat.get(), INCOMPAT, "0xc"),
        ("the superblock's xattr_blkaddr", sb.xattr_blkaddr.get(), 0, "0"),
        ("the superblock's compression algorithms", u32::from(sb.compression_algorithms.get()), 0, "0"),
        (
            "the device table's slot",
            u32::from(sb.device_table_slot.get()),
            u32::from(DEVICE_TABLE_SLOT),
            "11",
        ),
    ] {
        if value != expected {
            return field(name, u64::from(value), text);
        }
    }
    let devices = sb.extra_devices.get();
    if usize::from(devices) > BLOBS_MAX {
        return field("the superblock's device count", u64::from(devices), "at most 254");
    }
    if devices == 0 && sb.blocks.get() != 0 && u64::from(sb.blocks.get()) != AREA_ALIGNMENT {
        return field("the superblock's block count", u64::from(sb.blocks.get()), "0 without devices");
    }
    if sb.inodes_count.get() == 0 {
        return field("the superblock's inode count", 0, "at least the root");
    }
    Ok(())
}

/// Blob, chunk and prefetch tables, and the device table before them.
fn check_tables(sb: &SuperBlock, ext: &ExtendedSuperBlock, size: u64) -> Result<(), Defect> {
    let field = |field, value, expected| Err(Defect::Field { field, value, expected });
    let blob_size = u64::from(ext.blob_table_size.get());
    if !blob_size.is_multiple_of(size_of::<BlobEntry>() as u64) {
        return field("the blob table's size", blob_size, "a multiple of 256");
    }
    let chunk_size = ext.chunk_table_size.get();
    if !chunk_size.is_multiple_of(size_of::<ChunkRecord>() as u64) {
        return field("the chunk table's size", chunk_size, "a multiple of 80");
    }
    let (blob, chunk) = (ext.blob_table_offset.get(), ext.chunk_table_offset.get());
    for (name, offset, len) in
        [("the blob table's offset", blob, blob_size), ("the chunk table's offset", chunk, chunk_size)]
    {
        if len != 0 && !offset.is_multiple_of(AREA_ALIGNMENT) {
            return field(name, offset, "a multiple of 4096");
        }
    }
    let slots_end = DEVICE_SLOTS_OFFSET + usize::from(sb.extra_devices.get()) * size_of::<DeviceSlot>();
    let mut tables = [
        ("the blob table", blob, blob_size),
        ("the chunk table", chunk, chunk_size),
        ("the prefetch table", ext.prefetch_table_offset.get(), u64::from(ext.prefetch_table_size.get())),
    ];
    tables.sort_by_key(|t| t.1);
    let mut previous = ("the device table", slots_end as u64);
    for (name, offset, len) in tables.into_iter().filter(|t| t.2 != 0) {
        if offset < AREA_ALIGNMENT {
            return field(name, offset, "to start at byte 4096 or later");
        }
        let end = offset.saturating_add(len);
        if end > size {
            return Err(Defect::Truncated { what: name, end, size });
        }
        if previous.1 > offset {
            return Err(Defect::Overlap { first: previous.0, second: name });
        }
        previous = (name, end);
    }
    Ok(())
}

fn compressor(flags: SuperFlags) -> Result<Compressor, Defect> {
    let mut found = [
        (SuperFlags::COMPRESSION_NONE, Compressor::None),
        (SuperFlags::COMPRESSION_LZ4, Compressor::Lz4Block),
        (SuperFlags::COMPRESSION_GZIP, Compressor::Gzip),
        (SuperFlags::COMPRESSION_ZSTD, Compressor::Zstd),
    ]
    .into_iter()
    .filter(|(bit, _)| flags.contains(*bit));
    match (found.next(), found.next()) {
        (Some((_, one)), None) => Ok(one),
        _ => Err(Defect::Flags { flags: flags.bits(), what: "do not name exactly one compressor" }),
    }
}

fn digester(flags: SuperFlags) -> Result<Digester, Defect> {
    match (flags.contains(SuperFlags::HASH_BLAKE3), flags.contains(SuperFlags::HASH_SHA256)) {
        (true, false) => Ok(Digester::Blake3),
        (false, true) => Ok(Digester::Sha256),
        _ => Err(Defect::Flags { flags: flags.bits(), what: "do not name exactly one digest algorithm" }),
    }
}

impl Tree {
    /// The chunk table; empty in TARFS images, where it has no meaning (rafs-v6.md section 12).
    pub(crate) fn chunk_table<'a>(&self, base: &'a Base) -> &'a [ChunkRecord] {
        if base.flags.contains(SuperFlags::TARFS_MODE) {
            return &[];
        }
        table(base.bytes.as_slice(), self.chunk_table.0, self.chunk_table.1).unwrap_or_default()
    }

    /// Inode numbers to prefetch, in order.
    pub(crate) fn prefetch_list(&self, base: &Base) -> Vec<InodeNumber> {
        let (offset, len) = self.prefetch_table;
        let found = table::<U32>(base.bytes.as_slice(), offset, len & !3).unwrap_or_default();
        found.iter().map(|n| n.get()).take_while(|n| *n != 0).map(|n| InodeNumber(u64::from(n))).collect()
    }
}
