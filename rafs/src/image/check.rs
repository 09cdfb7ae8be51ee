//! The complete check of an image: every directory, entry, inode, xattr and chunk reference.
//!
//! Owns: the walk and the rules that need more than one inode to be seen. Does not own: rules of a single
//! inode (v5, v6), chunk data.
//!
//! Memory grows with the depth of the tree and the number of directories, both bounded by the file. Time is
//! bounded too: an image whose parts overlap, so that a small file describes an endless tree, is refused.

use super::error::{CheckError, InodeError, Problem};
use super::inode::{FileKind, Inode};
use super::{DirEntries, Image, Tree};
use crate::codec::{Digest, Digester};
use crate::ids::{BlobIndex, ChunkIndex, InodeNumber};
use sha2::Digest as _;
use std::collections::HashSet;

/// Fewest bytes that a directory entry takes in either version: 12 and a name of one byte.
const ENTRY_BYTES_MIN: u64 = 13;
/// Fewest bytes that a chunk reference takes in either version.
const CHUNK_BYTES_MIN: u64 = 8;

/// What a check does beyond walking the tree.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// v5: recompute the digest of every inode (rafs-v5.md section 13). No effect in v6, which has none.
    pub inode_digests: bool,
}

/// What a complete check saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckSummary {
    /// Directories, the root included.
    pub directories: u64,
    /// Names of regular files.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, fifos and sockets.
    pub specials: u64,
    /// Names of regular files whose inode had been seen before.
    pub hardlinks: u64,
    /// Chunk references of regular files, hardlinks counted once.
    pub chunks: u64,
    /// Bytes of regular files, hardlinks counted once.
    pub file_bytes: u64,
    /// Extended attributes.
    pub xattrs: u64,
}

impl CheckSummary {
    /// Names in the tree, the root included.
    #[must_use]
    pub fn names(&self) -> u64 {
        self.directories + self.files + self.symlinks + self.specials
    }
}

impl Image {
    /// Walks the whole tree and checks everything that can be checked without the blobs.
    ///
    /// # Errors
    /// The first [`Problem`], with its path.
    pub fn check(&self) -> Result<CheckSummary, CheckError> {
        self.check_with(CheckOptions::default())
    }

    /// [`Image::check`] with a choice of what else to do.
    ///
    /// # Errors
    /// The first [`Problem`], with its path.
    pub fn check_with(&self, options: CheckOptions) -> Result<CheckSummary, CheckError> {
        let mut walk = Walk::new(self, options);
        walk.run().map_err(|problem| CheckError { path: walk.path(), problem })?;
        Ok(walk.summary)
    }
}

/// A directory that is being listed.
struct Frame<'a> {
    inode: Inode,
    entries: DirEntries<'a>,
    /// Its name; empty for the root.
    name: &'a [u8],
    /// The entry listed last.
    previous: Option<&'a [u8]>,
}

struct Walk<'a> {
    image: &'a Image,
    options: CheckOptions,
    summary: CheckSummary,
    /// From the root down to the directory that is being listed.
    frames: Vec<Frame<'a>>,
    /// Entry that is being looked at.
    current: Option<&'a [u8]>,
    /// Directories seen.
    directories: HashSet<InodeNumber>,
    /// Regular files with several links seen.
    linked: HashSet<InodeNumber>,
    /// v5: one bit for each inode table slot that a directory has claimed.
    slots: Vec<u64>,
    /// v6: blob and chunk of every record in the chunk table, sorted; empty when there is no table.
    recorded: Vec<(u32, u32)>,
    /// How many more entries and chunks the file has room for.
    entries_left: u64,
    chunks_left: u64,
}

impl<'a> Walk<'a> {
    fn new(image: &'a Image, options: CheckOptions) -> Self {
        let size = image.bootstrap_size();
        let slots = match &image.tree {
            Tree::V5(tree) => usize::try_from(tree.entries() / 64 + 1).unwrap_or(0),
            Tree::V6(_) => 0,
        };
        let mut recorded: Vec<_> =
            image.chunk_table().iter().map(|r| (r.blob_index.get(), r.index.get())).collect();
        recorded.sort_unstable();
        Self {
            image,
            options,
            summary: CheckSummary::default(),
            frames: Vec::new(),
            current: None,
            directories: HashSet::new(),
            linked: HashSet::new(),
            slots: vec![0; slots],
            recorded,
            entries_left: size / ENTRY_BYTES_MIN,
            chunks_left: size / CHUNK_BYTES_MIN,
        }
    }

    /// Path of what is being looked at.
    fn path(&self) -> String {
        let mut path = String::new();
        for name in self.frames.iter().map(|f| f.name).chain(self.current).filter(|n| !n.is_empty()) {
            path.push('/');
            path.push_str(&String::from_utf8_lossy(name));
        }
        if path.is_empty() { "/".to_owned() } else { path }
    }

    fn run(&mut self) -> Result<(), Problem> {
        let root = self.image.inode(self.image.root())?;
        let v5 = matches!(self.image.tree, Tree::V5(_));
        self.enter(root, b"")?;
        while let Some(frame) = self.frames.last_mut() {
            let Some(entry) = frame.entries.next() else {
                self.leave()?;
                continue;
            };
            let entry = entry?;
            self.current = Some(entry.name);
            self.entries_left =
                self.entries_left.checked_sub(1).ok_or(Problem::Overlap("directory entries"))?;
            let dots = entry.name == b"." || entry.name == b"..";
            // v5 lists the two, which are not stored, in front of names that may sort before them.
            if !(dots && v5) {
                let previous = frame.previous.replace(entry.name);
                if previous.is_some_and(|p| p >= entry.name) {
                    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
                    let previous = text(previous.unwrap_or_default());
                    return Err(Problem::Unsorted { previous, name: text(entry.name) });
                }
            }
            if dots {
                if entry.kind != FileKind::Directory {
                    return Err(Problem::Kind { entry: entry.kind, inode: FileKind::Directory });
                }
                self.current = None;
                continue;
            }
            if let Tree::V5(tree) = &self.image.tree {
                let (first, _) = tree.child_slots(&frame.inode);
                // Children start at position 2 of a listing, and the cookie is that of the next position.
                let slot = u64::from(first).saturating_add(entry.next_cookie.saturating_sub(3));
                tree.check_slot(&self.image.base, u32::try_from(slot).unwrap_or(u32::MAX))?;
            }
            let inode = self.image.inode(entry.number)?;
            if inode.kind != entry.kind {
                return Err(Problem::Kind { entry: entry.kind, inode: inode.kind });
            }
            if inode.kind == FileKind::Directory {
                self.enter(inode, entry.name)?;
            } else {
                self.leaf(&inode)?;
            }
            self.current = None;
        }
        let found = match self.image.tree {
            Tree::V5(_) => self.summary.names() - self.summary.hardlinks,
            Tree::V6(_) => self.summary.names(),
        };
        if found != self.image.inode_count() {
            return Err(Problem::InodeCount { expected: self.image.inode_count(), found });
        }
        Ok(())
    }

    /// Starts on a directory.
    fn enter(&mut self, dir: Inode, name: &'a [u8]) -> Result<(), Problem> {
        if !self.directories.insert(dir.number) {
            return Err(Problem::DirectoryTwice(dir.number));
        }
        self.summary.directories += 1;
        let parent = self.frames.last().map_or(dir.number, |f| f.inode.number);
        self.dots(&dir, parent)?;
        self.claim_slots(&dir)?;
        self.xattrs(&dir)?;
        let entries = self.image.read_dir(&dir, 0)?;
        self.frames.push(Frame { inode: dir, entries, name, previous: None });
        Ok(())
    }

    /// `.` and `..` as look-up finds them: it uses the order of names that the listing checks, and `.` needs no
    /// look-up there, so the stored one is read from the listing.
    fn dots(&self, dir: &Inode, parent: InodeNumber) -> Result<(), Problem> {
        let found = self.image.lookup(dir, b"..")?.map(|i| i.number);
        if found != Some(parent) {
            return Err(Problem::Dots { name: "..", found, expected: parent });
        }
        let own = match &self.image.tree {
            Tree::V5(_) => Some(dir.number),
            Tree::V6(tree) => tree.stored_number(&self.image.base, dir, b".")?,
        };
        if own != Some(dir.number) {
            return Err(Problem::Dots { name: ".", found: own, expected: dir.number });
        }
        Ok(())
    }

    /// v5: each inode table slot belongs to one directory.
    fn claim_slots(&mut self, dir: &Inode) -> Result<(), Problem> {
        let Tree::V5(tree) = &self.image.tree else { return Ok(()) };
        let (first, count) = tree.child_slots(dir);
        for slot in first..first.saturating_add(count) {
            let (word, bit) = (usize::try_from(slot / 64).unwrap_or(usize::MAX), 1 << (slot % 64));
            let word = self.slots.get_mut(word).ok_or(Problem::SlotTwice(slot))?;
            if *word & bit != 0 {
                return Err(Problem::SlotTwice(slot));
            }
            *word |= bit;
        }
        Ok(())
    }

    /// Ends with a directory: all its children are good.
    fn leave(&mut self) -> Result<(), Problem> {
        let Some(frame) = self.frames.last() else { return Ok(()) };
        if self.options.inode_digests {
            self.digest(&frame.inode)?;
        }
        self.frames.pop();
        Ok(())
    }

    /// Anything but a directory.
    fn leaf(&mut self, inode: &Inode) -> Result<(), Problem> {
        match inode.kind {
            FileKind::Regular => {
                self.summary.files += 1;
                if inode.nlink > 1 && !self.linked.insert(inode.number) {
                    self.summary.hardlinks += 1;
                    return Ok(());
                }
                self.chunks(inode)?;
            }
            FileKind::Symlink => {
                self.summary.symlinks += 1;
                self.image.read_link(inode)?;
            }
            _ => self.summary.specials += 1,
        }
        self.xattrs(inode)?;
        if self.options.inode_digests {
            self.digest(inode)?;
        }
        Ok(())
    }

    fn xattrs(&mut self, inode: &Inode) -> Result<(), Problem> {
        for xattr in self.image.xattrs(inode)? {
            xattr?;
            self.summary.xattrs += 1;
        }
        Ok(())
    }

    fn chunks(&mut self, inode: &Inode) -> Result<(), Problem> {
        self.summary.file_bytes = self.summary.file_bytes.saturating_add(inode.size);
        for chunk in self.image.chunks(inode, 0, u64::MAX)? {
            let chunk = chunk?;
            self.chunks_left = self.chunks_left.checked_sub(1).ok_or(Problem::Overlap("chunks"))?;
            self.summary.chunks += 1;
            let key = (chunk.blob.0, chunk.chunk.0);
            if !self.recorded.is_empty() && self.recorded.binary_search(&key).is_err() {
                return Err(Problem::NoChunkRecord { blob: BlobIndex(key.0), chunk: ChunkIndex(key.1) });
            }
        }
        Ok(())
    }

    /// v5: compares the stored digest of `inode` with that of its contents.
    fn digest(&self, inode: &Inode) -> Result<(), Problem> {
        let Tree::V5(tree) = &self.image.tree else { return Ok(()) };
        let base = &self.image.base;
        let missing = InodeError::NotFound(inode.number);
        let slot = |n: u64| u32::try_from(n).map_err(|_| missing);
        let mut hash = Hash::new(self.image.digester());
        match inode.kind {
            FileKind::Directory => {
                let (first, count) = tree.child_slots(inode);
                for child in first..first.saturating_add(count) {
                    hash.update(&tree.stored_digest(base, child).ok_or(missing)?);
                }
            }
            FileKind::Regular => {
                for chunk in self.image.chunks(inode, 0, u64::MAX)? {
                    let record = self.image.chunk_record(&chunk?).ok_or(missing)?;
                    hash.update(&record.digest);
                }
            }
            FileKind::Symlink => hash.update(&self.image.read_link(inode)?),
            _ => {}
        }
        let computed = hash.finish();
        let stored = tree.stored_digest(base, slot(inode.number.0)?).ok_or(missing)?;
        if stored == computed {
            return Ok(());
        }
        Err(Problem::Digest { stored: hex::encode(stored), computed: hex::encode(computed) })
    }
}

/// A running digest of the image's algorithm.
enum Hash {
    Blake3(Box<blake3::Hasher>),
    Sha256(sha2::Sha256),
}

impl Hash {
    fn new(digester: Digester) -> Self {
        match digester {
            Digester::Blake3 => Self::Blake3(Box::default()),
            Digester::Sha256 => Self::Sha256(sha2::Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hash) => {
                hash.update(bytes);
            }
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> Digest {
        match self {
            Self::Blake3(hash) => hash.finalize().into(),
            Self::Sha256(hash) => hash.finalize().into(),
        }
    }
}
