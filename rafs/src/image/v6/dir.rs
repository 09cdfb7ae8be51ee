//! v6 directories: blocks of entries and names, sorted over all blocks (rafs-v6.md section 8).
//!
//! Owns: parsing one block, look-up and listing. Does not own: where blocks are.

use super::Tree;
use crate::ids::InodeNumber;
use crate::image::base::{Base, name_is_sound};
use crate::image::bytes::{until_nul, view};
use crate::image::error::InodeError;
use crate::image::inode::{DirEntry, FileKind, Inode};
use crate::layout::v6::{Dirent, file_type};

/// Bytes of one entry.
const ENTRY: usize = size_of::<Dirent>();
/// Longest name, bytes.
const NAME_MAX: usize = 255;
/// Bits of a cookie that hold the position in the block.
const SLOT_BITS: u32 = 16;

/// One block of a directory.
#[derive(Clone, Copy, Debug)]
struct Block<'a> {
    bytes: &'a [u8],
    /// Entries in it, at least 1.
    count: usize,
}

impl<'a> Block<'a> {
    /// `None` when the first entry does not say how many there are.
    #[inline]
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let names = usize::from(view::<Dirent>(bytes, 0)?.name_offset.get());
        if names == 0 || names % ENTRY != 0 || names >= bytes.len() {
            return None;
        }
        Some(Self { bytes, count: names / ENTRY })
    }

    #[inline]
    fn dirent(&self, slot: usize) -> Option<&'a Dirent> {
        view(self.bytes, (slot * ENTRY) as u64)
    }

    /// Entry `slot` and its name, 1 ..= 255 bytes.
    #[inline]
    fn entry(&self, slot: usize) -> Option<(&'a Dirent, &'a [u8])> {
        let dirent = self.dirent(slot)?;
        let start = usize::from(dirent.name_offset.get());
        let name = if slot + 1 < self.count {
            self.bytes.get(start..usize::from(self.dirent(slot + 1)?.name_offset.get()))?
        } else {
            until_nul(self.bytes.get(start..)?)
        };
        // The names lie behind the entries; a name in front would only be odd, not out of bounds.
        (!name.is_empty() && name.len() <= NAME_MAX).then_some((dirent, name))
    }
}

/// File type in an entry; `Ok(None)` for "unknown".
#[inline]
fn kind_of_entry(number: u8) -> Result<Option<FileKind>, &'static str> {
    Ok(Some(match number {
        file_type::UNKNOWN => return Ok(None),
        file_type::REGULAR => FileKind::Regular,
        file_type::DIRECTORY => FileKind::Directory,
        file_type::CHAR => FileKind::CharDevice,
        file_type::BLOCK => FileKind::BlockDevice,
        file_type::FIFO => FileKind::Fifo,
        file_type::SOCKET => FileKind::Socket,
        file_type::SYMLINK => FileKind::Symlink,
        _ => return Err("an entry of it has an unknown file type"),
    }))
}

const BROKEN: &str = "a block of it is not a list of entries and names";

impl Tree {
    #[inline]
    fn dir_block<'a>(&self, base: &'a Base, dir: &Inode, number: u64) -> Result<Block<'a>, InodeError> {
        let bytes = self.data_block(base.bytes.as_slice(), dir, number);
        bytes.and_then(Block::parse).ok_or_else(|| InodeError::corrupt(dir.number, BROKEN))
    }

    /// The entry of `dir` called `name`; `.` and `..` are stored like any other.
    ///
    /// # Errors
    /// `Corrupt` when a block on the way, or the inode found, is.
    #[inline]
    pub(crate) fn lookup(&self, base: &Base, dir: &Inode, name: &[u8]) -> Result<Option<Inode>, InodeError> {
        if name == b"." {
            return Ok(Some(*dir));
        }
        match self.stored_number(base, dir, name)? {
            Some(number) => self.inode(base, number).map(Some),
            None => Ok(None),
        }
    }

    /// The number that the entry of `dir` called `name` holds.
    ///
    /// # Errors
    /// `Corrupt` when a block on the way is.
    #[inline]
    pub(crate) fn stored_number(
        &self,
        base: &Base,
        dir: &Inode,
        name: &[u8],
    ) -> Result<Option<InodeNumber>, InodeError> {
        let broken = InodeError::corrupt(dir.number, BROKEN);
        let (mut low, mut high) = (0, dir.size.div_ceil(1 << self.block_bits));
        // The last block whose first name is not behind `name` is the only one that can hold it.
        let mut candidate = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.dir_block(base, dir, middle)?;
            let (_, first) = block.entry(0).ok_or(broken)?;
            if first <= name {
                candidate = Some(block);
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some(block) = candidate else { return Ok(None) };
        let (mut low, mut high) = (0, block.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (dirent, found) = block.entry(middle).ok_or(broken)?;
            match found.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(InodeNumber(dirent.nid.get()))),
            }
        }
        Ok(None)
    }

    /// Entries of `dir` behind `cookie`, which is `block << 16 | slot`, slot being the next one to list.
    #[inline]
    pub(crate) fn read_dir<'a>(&'a self, base: &'a Base, dir: &Inode, cookie: u64) -> DirEntries<'a> {
        let blocks = dir.size.div_ceil(1 << self.block_bits);
        let number = cookie >> SLOT_BITS;
        let slot = usize::from(u16::try_from(cookie & 0xffff).unwrap_or(u16::MAX));
        DirEntries { tree: self, base, dir: *dir, blocks, number, slot, block: None }
    }
}

/// Listing of a v6 directory.
#[derive(Debug)]
pub(crate) struct DirEntries<'a> {
    tree: &'a Tree,
    base: &'a Base,
    dir: Inode,
    blocks: u64,
    /// Block of the next entry.
    number: u64,
    /// Position of the next entry in its block.
    slot: usize,
    /// That block, once it was read.
    block: Option<Block<'a>>,
}

impl<'a> DirEntries<'a> {
    /// The next entry; `Ok(None)` at the end.
    #[inline]
    fn advance(&mut self) -> Result<Option<DirEntry<'a>>, InodeError> {
        loop {
            let block = match self.block {
                Some(block) => block,
                None if self.number >= self.blocks => return Ok(None),
                None => self.tree.dir_block(self.base, &self.dir, self.number)?,
            };
            if self.slot < block.count {
                self.block = Some(block);
                return self.entry(block).map(Some);
            }
            if self.slot > block.count {
                // A cookie that names no position.
                return Ok(None);
            }
            self.block = None;
            self.slot = 0;
            self.number += 1;
        }
    }

    #[inline]
    fn entry(&mut self, block: Block<'a>) -> Result<DirEntry<'a>, InodeError> {
        let corrupt = |what| InodeError::corrupt(self.dir.number, what);
        let (dirent, name) = block.entry(self.slot).ok_or_else(|| corrupt(BROKEN))?;
        if !name_is_sound(name) {
            return Err(corrupt("it lists a name that no file can have"));
        }
        let number = InodeNumber(dirent.nid.get());
        let kind = match kind_of_entry(dirent.file_type).map_err(corrupt)? {
            Some(kind) => kind,
            None => self.tree.inode(self.base, number)?.kind,
        };
        self.slot += 1;
        let next_cookie = self.number << SLOT_BITS | self.slot as u64;
        Ok(DirEntry { number, name, kind, next_cookie })
    }
}

impl<'a> Iterator for DirEntries<'a> {
    type Item = Result<DirEntry<'a>, InodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.advance();
        if entry.is_err() {
            self.block = None;
            self.number = self.blocks;
        }
        entry.transpose()
    }
}
