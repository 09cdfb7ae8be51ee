//! RAFS v5 metadata structures (rafs-v5.md).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Magic number at byte 0.
pub const MAGIC: u32 = 0x5241_4653;
/// The only version that is read.
pub const VERSION: u32 = 0x500;
/// Bytes of the superblock; the first table starts behind it.
pub const SUPERBLOCK_SIZE: usize = 8192;
/// Inode number of the root directory.
pub const ROOT_INO: u64 = 1;
/// Inode table values count in units of this many bytes.
pub const INODE_OFFSET_UNIT: u64 = 8;
/// Alignment of tables, names, symlink targets and xattr blocks.
pub const ALIGNMENT: usize = 8;
/// Longest name a record may carry, bytes.
pub const NAME_SIZE_MAX: usize = 256;

bitflags! {
    /// Flags of an [`Inode`] (rafs-v5.md section 11).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InodeFlags: u64 {
        /// Inode is a symlink.
        const SYMLINK = 0x1;
        /// Tar sources only: end of a tar hardlink. Not to be used to detect hardlinks.
        const HARDLINK = 0x2;
        /// An xattr block follows the name and symlink target.
        const XATTR = 0x4;
        /// Chunk records do not cover the file at regular positions.
        const HAS_HOLE = 0x8;
    }
}

/// Superblock, the first 80 of its 8192 bytes; the rest is zero (rafs-v5.md section 3).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SuperBlock {
    /// [`MAGIC`].
    pub magic: U32,
    /// [`VERSION`].
    pub version: U32,
    /// [`SUPERBLOCK_SIZE`].
    pub superblock_size: U32,
    /// Chunk size, bytes.
    pub chunk_size: U32,

    /// [`SuperFlags`](super::SuperFlags).
    pub flags: U64,
    /// Distinct inodes: a group of hardlinks counts once.
    pub inodes_count: U64,

    /// Byte offset of the inode table.
    pub inode_table_offset: U64,
    /// Byte offset of the prefetch table; filled in even when that is empty.
    pub prefetch_table_offset: U64,

    /// Byte offset of the blob table.
    pub blob_table_offset: U64,
    /// Number of names (every hardlink counts).
    pub inode_table_entries: U32,
    /// Number of prefetch entries, without padding.
    pub prefetch_table_entries: U32,

    /// Bytes of the blob table, padding included.
    pub blob_table_size: U32,
    /// Number of extended blob table entries.
    pub extended_blob_table_entries: U32,
    /// Byte offset of the extended blob table.
    pub extended_blob_table_offset: U64,
}

const _: () = assert!(size_of::<SuperBlock>() == 80);

/// Entry of the extended blob table (rafs-v5.md section 8).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedBlob {
    /// Chunks stored in the blob.
    pub chunk_count: U32,
    /// [`BlobFeatures`](super::blob::BlobFeatures).
    pub features: U32,
    /// End of the blob's uncompressed address space.
    pub uncompressed_size: U64,

    /// Bytes of the blob file.
    pub compressed_size: U64,
    /// Zero.
    pub reserved: [u8; 40],
}

const _: () = assert!(size_of::<ExtendedBlob>() == 64);

/// Fixed part of an inode record (rafs-v5.md section 9). The name padded to 8, the symlink target padded
/// to 8, the xattr block and the chunk records follow it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Inode {
    /// Inode digest (rafs-v5.md section 13).
    pub digest: [u8; 32],

    /// Inode number of the parent directory; 0 for the root.
    pub parent: U64,
    /// Inode number, 1 ..= inode table entries.
    pub ino: U64,

    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// 0.
    pub projid: U32,
    /// Linux `st_mode`, type bits included.
    pub mode: U32,

    /// File length; symlink: target length; directory: see rafs-v5.md section 12.
    pub size: U64,
    /// 512-byte blocks.
    pub blocks: U64,

    /// [`InodeFlags`].
    pub flags: U64,
    /// Link count, never 0.
    pub nlink: U32,
    /// Directory: index of the first child.
    pub child_index: U32,

    /// Directory: number of children. Regular file: number of chunk records.
    pub child_count: U32,
    /// Bytes of the name.
    pub name_size: U16,
    /// Bytes of the symlink target.
    pub symlink_size: U16,
    /// Device number, Linux encoding in 32 bits.
    pub rdev: U32,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: U32,

    /// Seconds of the modification time, two's complement.
    pub mtime_sec: U64,
    /// Zero.
    pub reserved: [u8; 8],
}

const _: () = assert!(size_of::<Inode>() == 128);
