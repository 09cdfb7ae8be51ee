//! A bootstrap, opened, validated, and shown as one read-only tree whatever its version.
//!
//! Owns: finding the bootstrap in a file, mapping it, every check on it, inodes, directories, symlinks,
//! xattrs, chunk runs, the blob and prefetch tables. Does not own: chunk data, caches, or what a guest's
//! file system wants to hear.
//!
//! Opening checks superblocks and tables, and the root. Everything else is checked when it is read, each
//! time, straight from the mapped bytes: nothing is decoded ahead, so opening costs the same for ten files and
//! for a million, and reading allocates nothing.

mod base;
mod blob_info;
mod bytes;
mod check;
mod error;
mod inode;
mod iter;
mod locate;
mod map;
mod v5;
mod v6;

pub use blob_info::{BlobInfo, ChunkInfoLocation, CipherKey, MetaBlob};
pub use check::{CheckOptions, CheckSummary};
pub use error::{CheckError, Defect, ImageError, InodeError, Problem};
pub use inode::{ChunkRef, DirEntry, FileKind, Inode};
pub use iter::{Chunks, DirEntries, Xattr, Xattrs};
pub use locate::FsVersion;

use crate::codec::{Compressor, Digester};
use crate::ids::InodeNumber;
use crate::layout::SuperFlags;
use crate::layout::chunk::ChunkRecord;
use base::{Base, Origin};
use iter::{ChunksOf, DirEntriesOf, XattrsOf};
use locate::Located;
use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

/// An open image. Read-only, `Send` and `Sync`; share it in an `Arc`.
#[derive(Debug)]
pub struct Image {
    base: Base,
    tree: Tree,
    name: String,
    v5_chunk_indexes_missing: OnceLock<bool>,
    origin: Option<FileIdentity>,
}

/// Which file a bootstrap came from, in which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(meta: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The decoder of the version, chosen at open.
#[derive(Debug)]
enum Tree {
    V5(v5::Tree),
    V6(v6::Tree),
}

impl Image {
    /// Opens the bootstrap in the file `path`: at its start, or inlined at the tail of a blob (blob.md
    /// sections 6 and 14). A bootstrap that is stored raw is mapped, a compressed one is unpacked, at most 1 GiB.
    ///
    /// # Errors
    /// [`ImageError`]: one line that names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let file_name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let (found, meta) = locate::at_path(path)?;
        let mut image = Self::build(found, &path.display().to_string(), &file_name)?;
        image.origin = Some(FileIdentity::of(&meta));
        Ok(image)
    }

    /// [`Image::open`] for a file that is open already, whose path or name is `name`.
    ///
    /// # Errors
    /// [`ImageError`] of every kind.
    pub fn from_file(file: &File, name: &str) -> Result<Self, ImageError> {
        Self::build(locate::in_file(file, name)?, name, last_component(name))
    }

    /// Opens a bootstrap in memory: `bytes` is what a file called `name` would hold. All the checks of
    /// [`Image::open`].
    ///
    /// # Errors
    /// [`ImageError`] of every kind but `Io`.
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self, ImageError> {
        Self::build(locate::in_bytes(bytes, name)?, name, last_component(name))
    }

    fn build(found: Located, name: &str, file_name: &str) -> Result<Self, ImageError> {
        let invalid = |defect| ImageError::Invalid { name: name.to_owned(), defect };
        let origin = Origin::new(file_name, found.inlined);
        let (base, tree) = match found.version {
            FsVersion::V5 => v5::open(found.bytes, &origin).map(|(base, tree)| (base, Tree::V5(tree))),
            FsVersion::V6 => v6::open(found.bytes, &origin).map(|(base, tree)| (base, Tree::V6(tree))),
        }
        .map_err(invalid)?;
        let v5_chunk_indexes_missing = OnceLock::new();
        let image = Self { base, tree, name: name.to_owned(), v5_chunk_indexes_missing, origin: None };
        let root = image.inode(image.root()).map_err(|e| invalid(Defect::Root(e)))?;
        if root.kind != FileKind::Directory {
            return Err(invalid(Defect::RootKind(root.number)));
        }
        image.confirm().map_err(|e| invalid(Defect::Root(e)))?;
        Ok(image)
    }

    /// Asked when an answer was made from this image: whether all bytes that it was made from were there. Once some were
    /// not no answer is good any more; the image has to be opened anew. Means something only in a process that
    /// [catches](crate::guard::catch) what the kernel says of missing bytes; others end at the access.
    ///
    /// # Errors
    /// [`InodeError::Lost`].
    #[inline]
    pub fn confirm(&self) -> Result<(), InodeError> {
        if self.base.bytes.is_whole() { Ok(()) } else { Err(InodeError::Lost) }
    }

    /// Whether this is the same image as `other`: the same object, or opened from the same unchanged file under names
    /// that mean the same blobs, and readable.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || (self.confirm().is_ok()
                && self.origin.is_some()
                && self.origin == other.origin
                && self.blobs() == other.blobs())
    }

    /// The name it was opened by, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Format version.
    #[must_use]
    pub fn version(&self) -> FsVersion {
        match self.tree {
            Tree::V5(_) => FsVersion::V5,
            Tree::V6(_) => FsVersion::V6,
        }
    }

    /// Superblock flags.
    #[must_use]
    pub fn flags(&self) -> SuperFlags {
        self.base.flags
    }

    /// Chunk size, bytes: a power of two, 0x1000 ..= 0x1000000.
    #[must_use]
    pub fn chunk_size(&self) -> u32 {
        self.base.chunk_size
    }

    /// Block size, bytes: 4096, or 512 for TARFS images.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.base.block_size
    }

    /// Digest algorithm in the superblock. In v6 each blob has its own ([`BlobInfo::digester`]).
    #[must_use]
    pub fn digester(&self) -> Digester {
        self.base.digester
    }

    /// Compressor in the superblock. In v6 each blob has its own ([`BlobInfo::compressor`]).
    #[must_use]
    pub fn compressor(&self) -> Compressor {
        self.base.compressor
    }

    /// Number of the root directory.
    #[must_use]
    pub fn root(&self) -> InodeNumber {
        self.base.root
    }

    /// Number of inodes in the superblock: v5 distinct inodes, v6 names and the root.
    #[must_use]
    pub fn inode_count(&self) -> u64 {
        self.base.inode_count
    }

    /// No inode has a larger number; below 2^56.
    #[must_use]
    pub fn max_inode_number(&self) -> u64 {
        self.base.max_inode_number
    }

    /// Bytes of the bootstrap, unpacked.
    #[must_use]
    pub fn bootstrap_size(&self) -> u64 {
        self.base.bytes.as_slice().len() as u64
    }

    /// The blob table; [`BlobInfo::index`] is the position.
    #[must_use]
    pub fn blobs(&self) -> &[BlobInfo] {
        &self.base.blobs
    }

    /// The inode with number `number`, which may be any value, also one a guest made up.
    ///
    /// # Errors
    /// [`InodeError::NotFound`] for a number out of range, [`InodeError::Corrupt`] for bytes that are no inode.
    #[inline]
    pub fn inode(&self, number: InodeNumber) -> Result<Inode, InodeError> {
        match &self.tree {
            Tree::V5(tree) => tree.inode(&self.base, number),
            Tree::V6(tree) => tree.inode(&self.base, number),
        }
    }

    /// The entry of `dir` called `name`; `None` when there is none. `.` and `..` lead where they say, `..` of
    /// the root to the root.
    ///
    /// # Errors
    /// [`InodeError::NotADirectory`]; [`InodeError::Corrupt`] for broken metadata on the way.
    #[inline]
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<Inode>, InodeError> {
        directory(dir)?;
        match &self.tree {
            Tree::V5(tree) => tree.lookup(&self.base, dir, name),
            Tree::V6(tree) => tree.lookup(&self.base, dir, name),
        }
    }

    /// Entries of `dir` from `cookie` on: 0, or the `next_cookie` of an entry listed before. A cookie that
    /// names no position is the end.
    ///
    /// # Errors
    /// [`InodeError::NotADirectory`]; broken metadata shows as an item of the iterator.
    #[inline]
    pub fn read_dir(&self, dir: &Inode, cookie: u64) -> Result<DirEntries<'_>, InodeError> {
        directory(dir)?;
        Ok(DirEntries(match &self.tree {
            Tree::V5(tree) => DirEntriesOf::V5(tree.read_dir(&self.base, dir, cookie)),
            Tree::V6(tree) => DirEntriesOf::V6(tree.read_dir(&self.base, dir, cookie)),
        }))
    }

    /// Target of a symlink: raw bytes, not empty.
    ///
    /// # Errors
    /// [`InodeError::NotASymlink`], [`InodeError::Corrupt`].
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, InodeError> {
        if inode.kind != FileKind::Symlink {
            return Err(InodeError::NotASymlink(inode.number));
        }
        match &self.tree {
            Tree::V5(tree) => tree.target(&self.base, inode).map(<[u8]>::to_vec),
            Tree::V6(tree) => tree.target(&self.base, inode),
        }
        .ok_or_else(|| InodeError::corrupt(inode.number, "its symlink target ends outside the file"))
    }

    /// Extended attributes of `inode`.
    ///
    /// # Errors
    /// [`InodeError::Corrupt`] when they are not inside the file; other faults show as an item.
    pub fn xattrs(&self, inode: &Inode) -> Result<Xattrs<'_>, InodeError> {
        let data = self.base.bytes.as_slice();
        Ok(Xattrs(match &self.tree {
            Tree::V5(_) => XattrsOf::V5(v5::Xattrs::new(data, inode)?),
            Tree::V6(tree) => XattrsOf::V6(v6::Xattrs::new(tree, data, inode)?),
        }))
    }

    /// The chunks of a regular file that overlap `[offset, offset + len)`, as far as that lies inside the file.
    ///
    /// # Errors
    /// [`InodeError::NotARegularFile`], [`InodeError::Corrupt`]; faults of one chunk show as an item.
    #[inline]
    pub fn chunks(&self, inode: &Inode, offset: u64, len: u64) -> Result<Chunks<'_>, InodeError> {
        if inode.kind != FileKind::Regular {
            return Err(InodeError::NotARegularFile(inode.number));
        }
        let end = offset.saturating_add(len).min(inode.size);
        // An empty range is one that ends at 0.
        let end = if offset < end { end } else { 0 };
        Ok(Chunks(match &self.tree {
            Tree::V5(_) => ChunksOf::V5(v5::Chunks::new(&self.base, inode, offset, end)?),
            Tree::V6(tree) => ChunksOf::V6(v6::Chunks::new(tree, &self.base, inode, offset, end)),
        }))
    }

    /// v5: the record a [`ChunkRef`] of this image was made from, with digest and compressed position.
    /// v6: `None`; digests are in the [chunk table](Image::chunk_table), positions in the blob's chunk infos.
    #[must_use]
    pub fn chunk_record(&self, chunk: &ChunkRef) -> Option<ChunkRecord> {
        match self.tree {
            Tree::V5(_) => bytes::view::<ChunkRecord>(self.base.bytes.as_slice(), chunk.record).copied(),
            Tree::V6(_) => None,
        }
    }

    /// v6: the chunk table, sorted by digest, unchecked otherwise; empty in v5 and TARFS images.
    #[must_use]
    pub fn chunk_table(&self) -> &[ChunkRecord] {
        match &self.tree {
            Tree::V5(_) => &[],
            Tree::V6(tree) => tree.chunk_table(&self.base),
        }
    }

    /// v5: calls `f` with every chunk record of every inode, unchecked, one that several inodes share more than
    /// once. Takes time in proportion to the bootstrap; records of unreadable inodes are left out. v6: does
    /// nothing.
    pub fn for_each_chunk_record(&self, f: &mut dyn FnMut(&ChunkRecord)) {
        if let Tree::V5(tree) = &self.tree {
            tree.walk_chunk_records(&self.base, &mut |record| {
                f(record);
                true
            });
        }
    }

    /// v5: whether chunks carry no index because the image is older than the extended blob table (blob.md
    /// section 13: then number the chunks of each blob by compressed offset). Looked for once, on the first
    /// call.
    #[must_use]
    pub fn v5_chunk_indexes_missing(&self) -> bool {
        let Tree::V5(tree) = &self.tree else { return false };
        *self.v5_chunk_indexes_missing.get_or_init(|| {
            let mut missing = false;
            if !tree.has_extended_blobs() {
                tree.walk_chunk_records(&self.base, &mut |record| {
                    missing = record.index.get() == 0;
                    missing
                });
            }
            missing
        })
    }

    /// Inode numbers to prefetch, in order; a directory stands for all files below it, the root for
    /// everything. Unchecked: resolve them with [`Image::inode`].
    #[must_use]
    pub fn prefetch_list(&self) -> Vec<InodeNumber> {
        match &self.tree {
            Tree::V5(tree) => tree.prefetch_list(&self.base),
            Tree::V6(tree) => tree.prefetch_list(&self.base),
        }
    }
}

/// What blob ids may come from: the file name without its directories.
fn last_component(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[inline]
fn directory(inode: &Inode) -> Result<(), InodeError> {
    if inode.kind == FileKind::Directory { Ok(()) } else { Err(InodeError::NotADirectory(inode.number)) }
}
