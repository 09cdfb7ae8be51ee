//! RAFS v5: superblock and tables, checked at open (rafs-v5.md sections 2 to 8).
//!
//! Owns: where the tables are, the blob table in its common form. Does not own: inodes ([`inode`]),
//! directories ([`dir`]), chunk records ([`chunks`]), xattrs ([`xattr`]). No record is touched at open.

mod chunks;
mod dir;
mod inode;
#[cfg(test)]
mod tests;
mod xattr;

pub(crate) use chunks::Chunks;
pub(crate) use dir::DirEntries;
pub(crate) use xattr::Xattrs;

use super::base::{
    Base, BlobLimits, COMPRESSED_SIZE_MAX, Origin, UNCOMPRESSED_SIZE_MAX, blob_id, check_chunk_size, owner,
    super_flags,
};
use super::blob_info::BlobInfo;
use super::bytes::{slice, table, u32_at, view};
use super::error::Defect;
use super::map::Bytes;
use crate::codec::{Compressor, Digester};
use crate::ids::{BlobIndex, InodeNumber};
use crate::layout::SuperFlags;
use crate::layout::blob::BlobFeatures;
use crate::layout::v5::{ALIGNMENT, ExtendedBlob, ROOT_INO, SUPERBLOCK_SIZE, SuperBlock};
use zerocopy::little_endian::U32;

/// Most blobs a v5 image may have here. The format has no limit; this keeps a hostile blob table from
/// growing into many times its size in memory.
const BLOBS_MAX: usize = 65_535;
/// Bytes in front of a blob id in the blob table.
const BLOB_ENTRY_HEAD: usize = 8;

/// Positions that inodes are found with.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Byte offset of the inode table.
    inode_table: u64,
    /// Its entries.
    entries: u32,
    /// Byte offset of the prefetch table.
    prefetch_table: u64,
    /// Its entries.
    prefetch_entries: u32,
    /// Whether the blobs' counts and sizes are known.
    has_extended_blobs: bool,
}

/// A table, for bounds and overlap checks.
struct Table {
    name: &'static str,
    offset: u64,
    len: u64,
}

/// Opens a v5 bootstrap.
///
/// # Errors
/// The first [`Defect`] of superblock or tables.
pub(crate) fn open(bytes: Bytes, origin: &Origin<'_>) -> Result<(Base, Tree), Defect> {
    let data = bytes.as_slice();
    let size = data.len() as u64;
    let cut = Defect::Truncated { what: "the superblock", end: SUPERBLOCK_SIZE as u64 + 1, size };
    if size <= SUPERBLOCK_SIZE as u64 {
        return Err(cut);
    }
    let sb = view::<SuperBlock>(data, 0).ok_or(cut)?;
    let stated = u64::from(sb.superblock_size.get());
    if stated != SUPERBLOCK_SIZE as u64 {
        return Err(Defect::Field { field: "the superblock's size", value: stated, expected: "8192" });
    }
    if !size.is_multiple_of(ALIGNMENT as u64) {
        return Err(Defect::Field { field: "the file size", value: size, expected: "a multiple of 8" });
    }
    check_chunk_size(sb.chunk_size.get())?;
    let flags = super_flags(sb.flags.get())?;
    check_tables(sb, size)?;
    let (entries, inodes) = (sb.inode_table_entries.get(), sb.inodes_count.get());
    if entries == 0 {
        let expected = "at least the root";
        return Err(Defect::Field { field: "the inode table's entry count", value: 0, expected });
    }
    if inodes > u64::from(entries) {
        let expected = "at most the number of inode table entries";
        return Err(Defect::Field { field: "the superblock's inode count", value: inodes, expected });
    }
    let blobs = blob_table(data, sb, flags, origin)?;
    let tree = Tree {
        inode_table: sb.inode_table_offset.get(),
        entries,
        prefetch_table: sb.prefetch_table_offset.get(),
        prefetch_entries: sb.prefetch_table_entries.get(),
        has_extended_blobs: sb.extended_blob_table_entries.get() != 0,
    };
    let chunk_size = sb.chunk_size.get();
    let base = Base {
        flags,
        chunk_size,
        block_size: 4096,
        compressor: compressor(flags),
        digester: digester(flags),
        root: InodeNumber(ROOT_INO),
        inode_count: inodes,
        max_inode_number: u64::from(entries),
        limits: blobs.iter().map(BlobLimits::of).collect(),
        blobs,
        owner: owner(flags),
        bytes,
    };
    Ok((base, tree))
}

fn check_tables(sb: &SuperBlock, size: u64) -> Result<(), Defect> {
    let mut tables = [
        Table {
            name: "the inode table",
            offset: sb.inode_table_offset.get(),
            len: u64::from(sb.inode_table_entries.get()) * 4,
        },
        Table {
            name: "the prefetch table",
            offset: sb.prefetch_table_offset.get(),
            len: u64::from(sb.prefetch_table_entries.get()) * 4,
        },
        Table {
            name: "the blob table",
            offset: sb.blob_table_offset.get(),
            len: u64::from(sb.blob_table_size.get()),
        },
        Table {
            name: "the extended blob table",
            offset: sb.extended_blob_table_offset.get(),
            len: u64::from(sb.extended_blob_table_entries.get()) * size_of::<ExtendedBlob>() as u64,
        },
    ];
    tables.sort_by_key(|t| t.offset);
    let mut previous: Option<&Table> = None;
    for table in tables.iter().filter(|t| t.len != 0) {
        let (name, value) = (table.name, table.offset);
        if !value.is_multiple_of(ALIGNMENT as u64) || value < SUPERBLOCK_SIZE as u64 {
            return Err(Defect::Field {
                field: name,
                value,
                expected: "to start at a multiple of 8 from 8192 on",
            });
        }
        let end = value.saturating_add(table.len);
        if end > size {
            return Err(Defect::Truncated { what: name, end, size });
        }
        // Sorted by start, and every end is inside the file, so the sum cannot overflow.
        if let Some(first) = previous.filter(|p| p.offset + p.len > value) {
            return Err(Defect::Overlap { first: first.name, second: name });
        }
        previous = Some(table);
    }
    Ok(())
}

/// The order in which flags count when several or none are set (rafs-v5.md section 4).
fn compressor(flags: SuperFlags) -> Compressor {
    if flags.contains(SuperFlags::COMPRESSION_NONE) {
        Compressor::None
    } else if flags.contains(SuperFlags::COMPRESSION_LZ4) {
        Compressor::Lz4Block
    } else if flags.contains(SuperFlags::COMPRESSION_GZIP) {
        Compressor::Gzip
    } else if flags.contains(SuperFlags::COMPRESSION_ZSTD) {
        Compressor::Zstd
    } else {
        Compressor::Lz4Block
    }
}

fn digester(flags: SuperFlags) -> Digester {
    let sha256 = flags.contains(SuperFlags::HASH_SHA256) && !flags.contains(SuperFlags::HASH_BLAKE3);
    if sha256 { Digester::Sha256 } else { Digester::Blake3 }
}

/// The blob table (rafs-v5.md sections 7 and 8) in its common form.
fn blob_table(
    data: &[u8],
    sb: &SuperBlock,
    flags: SuperFlags,
    origin: &Origin<'_>,
) -> Result<Vec<BlobInfo>, Defect> {
    let size = data.len() as u64;
    let outside = |what| Defect::Truncated { what, end: u64::MAX, size };
    let mut rest = match sb.blob_table_size.get() {
        0 => &[][..],
        len => slice(data, sb.blob_table_offset.get(), u64::from(len))
            .ok_or_else(|| outside("the blob table"))?,
    };
    let extended = match sb.extended_blob_table_entries.get() {
        0 => None,
        n => {
            let len = u64::from(n) * size_of::<ExtendedBlob>() as u64;
            let found = table::<ExtendedBlob>(data, sb.extended_blob_table_offset.get(), len);
            Some(found.ok_or_else(|| outside("the extended blob table"))?)
        }
    };
    let mut stored = Vec::new();
    while rest.len() > BLOB_ENTRY_HEAD {
        let index = stored.len();
        let defect = |what| Defect::Blob { index, what };
        if index >= BLOBS_MAX {
            return Err(defect("there are more than 65535 blobs"));
        }
        let (head, tail) = rest.split_at(BLOB_ENTRY_HEAD);
        let prefetch_size = u32_at(head, 4).unwrap_or(0);
        let end = tail.iter().position(|b| *b == 0).unwrap_or(tail.len());
        let (id, after) = tail.split_at(end);
        stored.push((blob_id(id).map_err(defect)?, prefetch_size));
        rest = after.get(1..).unwrap_or_default();
    }
    if extended.is_some_and(|e| e.len() < stored.len()) {
        let value = u64::from(sb.extended_blob_table_entries.get());
        let expected = "at least the number of blobs";
        return Err(Defect::Field { field: "the extended blob table's entry count", value, expected });
    }
    let count = stored.len();
    let one = |(index, (id, prefetch_size)): (usize, (&str, u32))| {
        let extended = extended.and_then(|e| e.get(index));
        let defect = |what| Defect::Blob { index, what };
        let features =
            extended.map_or(BlobFeatures::empty(), |e| BlobFeatures::from_bits_truncate(e.features.get()));
        let compressed_size = extended.map_or(0, |e| e.compressed_size.get());
        let uncompressed_size = extended.map_or(0, |e| e.uncompressed_size.get());
        if compressed_size > COMPRESSED_SIZE_MAX || uncompressed_size > UNCOMPRESSED_SIZE_MAX {
            return Err(defect("it is larger than the format allows"));
        }
        Ok(BlobInfo {
            index: BlobIndex(u32::try_from(index).map_err(|_| defect("there are too many"))?),
            id: origin.blob_id(id, features, index + 1 == count),
            features,
            compressor: compressor(flags),
            digester: digester(flags),
            cipher: None,
            chunk_size: sb.chunk_size.get(),
            chunk_count: extended.map(|e| e.chunk_count.get()),
            compressed_size,
            uncompressed_size,
            chunk_info: None,
            toc_size: 0,
            toc_digest: [0; 32],
            meta_blob: None,
            prefetch_size,
            mapped_blkaddr: 0,
        })
    };
    stored.into_iter().enumerate().map(one).collect()
}

impl Tree {
    /// Entries of the inode table: the number of names.
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Whether the image says how many chunks its blobs have.
    pub(crate) fn has_extended_blobs(&self) -> bool {
        self.has_extended_blobs
    }

    /// Inode numbers to prefetch, in order.
    pub(crate) fn prefetch_list(&self, base: &Base) -> Vec<InodeNumber> {
        let len = u64::from(self.prefetch_entries) * 4;
        let found = table::<U32>(base.bytes.as_slice(), self.prefetch_table, len).unwrap_or_default();
        found.iter().map(|n| n.get()).take_while(|n| *n != 0).map(|n| InodeNumber(u64::from(n))).collect()
    }
}
