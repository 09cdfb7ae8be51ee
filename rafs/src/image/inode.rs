//! What the tree hands out: attributes of an inode, directory entries, pieces of files.

use crate::ids::{BlobIndex, ChunkIndex, InodeNumber};

/// File type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// Attributes of one inode, with what is needed to find its contents again without another look-up.
/// Small and `Copy`: making one allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Inode {
    /// Number inside the image; all names of a hardlink share it.
    pub number: InodeNumber,
    /// File type.
    pub kind: FileKind,
    /// `st_mode`, type bits included, as stored.
    pub mode: u32,
    /// Owner. Without `EXPLICIT_UID_GID` the effective uid of this process.
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
    /// Link count.
    pub nlink: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks: stored in v5, ceil(size / 512) in v6.
    pub blocks: u64,
    /// Device number in the 32-bit Linux encoding; 0 for what is no device.
    pub rdev: u32,
    /// Modification time, seconds; may be negative.
    pub mtime_sec: i64,
    /// Modification time, nanoseconds, below 1,000,000,000.
    pub mtime_nsec: u32,
    /// Where the contents are; what exactly the private fields mean is said in `v5/inode.rs` and `v6/inode.rs`.
    pub(crate) content: u64,
    /// Where the xattrs are; 0 for none.
    pub(crate) xattr: u64,
    /// What else is needed to read the contents.
    pub(crate) extra: u64,
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Inode number it names.
    pub number: InodeNumber,
    /// Name, raw bytes, never empty, without NUL or slash (but for `/chunkdict`, build-rules.md section 7); at
    /// most 255 bytes, 256 in odd v5 images. `.` and `..` are included in listings.
    pub name: &'a [u8],
    /// File type.
    pub kind: FileKind,
    /// Cookie that continues a listing behind this entry; never 0, below 2^63
    /// (guest-visible, a function of the image and the position alone).
    pub next_cookie: u64,
}

/// A piece of a file that lies in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// Blob that stores the chunk.
    pub blob: BlobIndex,
    /// Chunk within the blob. For TARFS a running number without meaning.
    pub chunk: ChunkIndex,
    /// Where the chunk starts in the blob's uncompressed address space (cache file; TARFS: the tar).
    pub uncompressed_offset: u64,
    /// Plain bytes of the chunk.
    pub uncompressed_size: u32,
    /// Where the chunk starts in the file.
    pub file_offset: u64,
    /// v5: byte offset of the chunk record in the bootstrap, for the fetch side; 0 in v6.
    pub(crate) record: u64,
}
