//! RAFS v6 metadata structures: EROFS with RAFS tables (rafs-v6.md).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Byte offset of the EROFS superblock.
pub const SUPERBLOCK_OFFSET: usize = 1024;
/// Byte offset of the RAFS extended superblock.
pub const EXTENDED_SUPERBLOCK_OFFSET: usize = SUPERBLOCK_OFFSET + size_of::<SuperBlock>();
/// Byte offset of the first device slot.
pub const DEVICE_SLOTS_OFFSET: usize = EXTENDED_SUPERBLOCK_OFFSET + size_of::<ExtendedSuperBlock>();
/// EROFS magic number.
pub const MAGIC: u32 = 0xe0f5_e1e2;
/// `feature_compat` bit that marks a RAFS v6 image.
pub const COMPAT_RAFS_V6: u32 = 0x4000_0000;
/// `feature_incompat`: chunk-based files (0x4) and device table (0x8), exactly.
pub const INCOMPAT: u32 = 0x0000_000c;
/// Device slots start at this many slot sizes from the start of the file.
pub const DEVICE_TABLE_SLOT: u16 = 11;
/// Alignment of tables and areas, bytes, whatever the block size.
pub const AREA_ALIGNMENT: u64 = 4096;
/// Block size bits of ordinary images.
pub const BLOCK_BITS: u8 = 12;
/// Block size bits of TARFS images.
pub const BLOCK_BITS_TARFS: u8 = 9;
/// A nid counts in units of this many bytes.
pub const NID_UNIT: u64 = 32;
/// Most blobs an image can have.
pub const BLOBS_MAX: usize = 254;
/// Most chunks a blob can have (24-bit index, all ones not used).
pub const CHUNKS_MAX: u32 = 0xff_ffff;
/// Longest symlink target, bytes.
pub const SYMLINK_SIZE_MAX: u64 = 4096;

/// Data layout: data in whole blocks.
pub const LAYOUT_FLAT_PLAIN: u16 = 0;
/// Data layout: the last, partial block lies behind the inode.
pub const LAYOUT_FLAT_INLINE: u16 = 2;
/// Data layout: chunk addresses lie behind the inode.
pub const LAYOUT_CHUNK_BASED: u16 = 4;
/// Chunk format bit: 8-byte index entries.
pub const CHUNK_FORMAT_INDEXES: u16 = 0x20;
/// Chunk format: mask of log2(chunk size) - log2(block size).
pub const CHUNK_FORMAT_BITS_MASK: u16 = 0x1f;

/// EROFS superblock, 128 bytes at [`SUPERBLOCK_OFFSET`] (rafs-v6.md section 2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SuperBlock {
    /// [`MAGIC`].
    pub magic: U32,
    /// 0: no checksum.
    pub checksum: U32,
    /// [`COMPAT_RAFS_V6`] set.
    pub feature_compat: U32,
    /// 12, or 9 in TARFS mode.
    pub block_bits: u8,
    /// 0.
    pub extended_slots: u8,
    /// nid of the root directory.
    pub root_nid: U16,

    /// Number of names plus root.
    pub inodes_count: U64,
    /// Build time, seconds.
    pub build_time_sec: U64,

    /// Build time, nanoseconds.
    pub build_time_nsec: U32,
    /// Sum of the device slots' blocks.
    pub blocks: U32,
    /// Start of the meta area, blocks.
    pub meta_blkaddr: U32,
    /// 0: shared xattrs are not used.
    pub xattr_blkaddr: U32,

    /// Zero.
    pub uuid: [u8; 16],

    /// Zero.
    pub volume_name: [u8; 16],

    /// [`INCOMPAT`].
    pub feature_incompat: U32,
    /// 0.
    pub compression_algorithms: U16,
    /// Number of device slots, which is the number of blobs.
    pub extra_devices: U16,
    /// [`DEVICE_TABLE_SLOT`].
    pub device_table_slot: U16,
    /// Zero.
    pub reserved: [u8; 38],
}

const _: () = assert!(size_of::<SuperBlock>() == 128);

/// RAFS extended superblock, 256 bytes (rafs-v6.md section 3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedSuperBlock {
    /// [`SuperFlags`](super::SuperFlags).
    pub flags: U64,
    /// Byte offset of the blob table.
    pub blob_table_offset: U64,

    /// Bytes of the blob table.
    pub blob_table_size: U32,
    /// Chunk size, bytes.
    pub chunk_size: U32,
    /// Byte offset of the chunk table.
    pub chunk_table_offset: U64,

    /// Bytes of the chunk table.
    pub chunk_table_size: U64,
    /// Byte offset of the prefetch table; 0 when there is none.
    pub prefetch_table_offset: U64,

    /// Bytes of the prefetch table.
    pub prefetch_table_size: U32,
    /// 0.
    pub padding: U32,
    /// Zero.
    pub reserved: [u8; 200],
}

const _: () = assert!(size_of::<ExtendedSuperBlock>() == 256);

/// Device slot (rafs-v6.md section 4).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceSlot {
    /// Blob id, zero-padded.
    pub blob_id: [u8; 64],

    /// Blob uncompressed size in blocks, not 0.
    pub blocks: U32,
    /// Where the blob's data would start in one disk image, blocks.
    pub mapped_blkaddr: U32,
    /// Zero.
    pub reserved: [u8; 56],
}

const _: () = assert!(size_of::<DeviceSlot>() == 128);

/// Blob table entry (rafs-v6.md section 5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlobEntry {
    /// Blob id, zero-padded.
    pub blob_id: [u8; 64],

    /// Position of this entry.
    pub blob_index: U32,
    /// Chunk size, the superblock's.
    pub chunk_size: U32,
    /// Chunks stored in the blob.
    pub chunk_count: U32,
    /// Chunk compressor number.
    pub compressor: U32,

    /// Digest algorithm: 0 blake3, 1 sha256.
    pub digester: U32,
    /// [`BlobFeatures`](super::blob::BlobFeatures).
    pub features: U32,
    /// Bytes of the blob file (or of the referenced tar).
    pub compressed_size: U64,

    /// End of the uncompressed address space.
    pub uncompressed_size: U64,
    /// Bytes of the ToC with its tar header; 0 if none or unknown.
    pub toc_size: U32,
    /// Compressor number of the chunk info table.
    pub ci_compressor: U32,

    /// Byte offset of the chunk info table.
    pub ci_offset: U64,
    /// Stored bytes of the chunk info table.
    pub ci_compressed_size: U64,

    /// Plain bytes of the chunk info table, contexts included.
    pub ci_uncompressed_size: U64,
    /// sha256 of the ToC entries and their tar header; zeros when none.
    pub toc_digest: [u8; 32],
    /// SEPARATE: sha256 of the meta blob. Encrypted: the key.
    pub meta_digest_or_key: [u8; 32],
    /// SEPARATE: bytes of the meta blob. Encrypted: first 8 bytes of the IV.
    pub meta_size_or_iv: U64,

    /// Encrypted: last 8 bytes of the IV.
    pub iv_tail: U64,
    /// Cipher: 0 none, 1 aes-128-xts.
    pub cipher: U32,
    /// Zero.
    pub reserved: [u8; 36],
}

const _: () = assert!(size_of::<BlobEntry>() == 256);

/// 32-byte inode (rafs-v6.md section 7).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CompactInode {
    /// Bit 0: 0; bits 1..3: data layout.
    pub format: U16,
    /// Inline xattr count word.
    pub xattr_icount: U16,
    /// `st_mode`.
    pub mode: U16,
    /// Link count, never 0.
    pub nlink: U16,
    /// Length.
    pub size: U32,
    /// Zero.
    pub reserved: U32,

    /// Start block, device number or chunk format.
    pub u: U32,
    /// Sequence number, informative.
    pub ino: U32,
    /// Owner.
    pub uid: U16,
    /// Group.
    pub gid: U16,
    /// Zero.
    pub reserved2: U32,
}

const _: () = assert!(size_of::<CompactInode>() == 32);

/// 64-byte inode (rafs-v6.md section 7).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedInode {
    /// Bit 0: 1; bits 1..3: data layout.
    pub format: U16,
    /// Inline xattr count word.
    pub xattr_icount: U16,
    /// `st_mode`.
    pub mode: U16,
    /// Zero.
    pub reserved: U16,
    /// Length.
    pub size: U64,

    /// Start block, device number or chunk format.
    pub u: U32,
    /// Sequence number, informative.
    pub ino: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,

    /// Seconds of the modification time, two's complement.
    pub mtime_sec: U64,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: U32,
    /// Link count, never 0.
    pub nlink: U32,

    /// Zero.
    pub reserved2: [u8; 16],
}

const _: () = assert!(size_of::<ExtendedInode>() == 64);

/// Directory entry (rafs-v6.md section 8).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Dirent {
    /// nid of the inode.
    pub nid: U64,
    /// Where the name starts, from the start of the block.
    pub name_offset: U16,
    /// [`file_type`] number.
    pub file_type: u8,
    /// 0.
    pub reserved: u8,
}

const _: () = assert!(size_of::<Dirent>() == 12);

/// File type numbers of a [`Dirent`].
pub mod file_type {
    /// Not known.
    pub const UNKNOWN: u8 = 0;
    /// Regular file.
    pub const REGULAR: u8 = 1;
    /// Directory.
    pub const DIRECTORY: u8 = 2;
    /// Character device.
    pub const CHAR: u8 = 3;
    /// Block device.
    pub const BLOCK: u8 = 4;
    /// Named pipe.
    pub const FIFO: u8 = 5;
    /// Socket.
    pub const SOCKET: u8 = 6;
    /// Symbolic link.
    pub const SYMLINK: u8 = 7;
}

/// Header of the inline xattr area (rafs-v6.md section 10).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrHeader {
    /// 0.
    pub reserved: U32,
    /// 0: shared xattrs are not used.
    pub shared_count: u8,
    /// Zero.
    pub reserved2: [u8; 7],
}

const _: () = assert!(size_of::<XattrHeader>() == 12);

/// Head of one inline xattr; name suffix, value and padding to 4 follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrEntry {
    /// Bytes of the name suffix.
    pub name_len: u8,
    /// Index into [`XATTR_PREFIXES`].
    pub name_index: u8,
    /// Bytes of the value.
    pub value_size: U16,
}

const _: () = assert!(size_of::<XattrEntry>() == 4);

/// Xattr name prefixes by index; the two ACL names are whole names with an empty suffix.
pub const XATTR_PREFIXES: [(u8, &str); 5] = [
    (1, "user."),
    (2, "system.posix_acl_access"),
    (3, "system.posix_acl_default"),
    (4, "trusted."),
    (6, "security."),
];

/// Chunk address of a regular file (rafs-v6.md section 11).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkAddress {
    /// Chunk index, bits 0..15.
    pub chunk_lo: U16,
    /// Blob index + 1; 0 is invalid.
    pub device: u8,
    /// Chunk index, bits 16..23.
    pub chunk_hi: u8,
    /// Uncompressed offset / block size.
    pub block: U32,
}

const _: () = assert!(size_of::<ChunkAddress>() == 8);
