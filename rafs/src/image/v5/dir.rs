//! v5 directories: runs of inode table slots, sorted by name (rafs-v5.md section 9).
//!
//! Owns: look-up and listing, symlink targets. Does not own: the records themselves.

use super::Tree;
use super::inode::Record;
use crate::ids::InodeNumber;
use crate::image::base::{Base, kind_of_mode, name_is_sound};
use crate::image::bytes::{slice, view};
use crate::image::error::InodeError;
use crate::image::inode::{DirEntry, Inode};
use crate::layout::v5::{self, NAME_SIZE_MAX};

/// First and number of the children of `dir`.
#[inline]
fn children(dir: &Inode) -> (u32, u32) {
    let low = u32::try_from(dir.content & u64::from(u32::MAX)).unwrap_or(0);
    (u32::try_from(dir.content >> 32).unwrap_or(0), low)
}

/// Number of the directory above `dir`; the root's is itself.
#[inline]
fn parent(base: &Base, dir: &Inode) -> InodeNumber {
    if dir.number == base.root { dir.number } else { InodeNumber(dir.extra) }
}

impl Tree {
    /// Name in a record.
    #[inline]
    fn name<'a>(&self, base: &'a Base, record: Record<'a>) -> Option<&'a [u8]> {
        let len = u64::from(record.fixed.name_size.get());
        if len > NAME_SIZE_MAX as u64 {
            return None;
        }
        slice(base.bytes.as_slice(), record.offset + size_of::<v5::Inode>() as u64, len)
    }

    /// Slot `index` and its name.
    #[inline]
    fn child<'a>(
        &self,
        base: &'a Base,
        dir: InodeNumber,
        index: u32,
    ) -> Result<(Record<'a>, &'a [u8]), InodeError> {
        let record = self.record(base, index).ok_or_else(|| {
            InodeError::corrupt(dir, "the record of one of its children is not inside the file")
        })?;
        let name = self.name(base, record).ok_or_else(|| {
            InodeError::corrupt(dir, "the name of one of its children is not inside the file")
        })?;
        Ok((record, name))
    }

    /// The child of `dir` called `name`, or the neighbours by `.` and `..`.
    ///
    /// # Errors
    /// `Corrupt` when a record on the way is.
    #[inline]
    pub(crate) fn lookup(&self, base: &Base, dir: &Inode, name: &[u8]) -> Result<Option<Inode>, InodeError> {
        match name {
            b"." => return Ok(Some(*dir)),
            b".." => return self.inode(base, parent(base, dir)).map(Some),
            _ => {}
        }
        let (first, count) = children(dir);
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (record, found) = self.child(base, dir.number, first.saturating_add(middle))?;
            match found.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                // For a further name of a hardlink this is the record of the first one.
                std::cmp::Ordering::Equal => return self.inode(base, record.number()).map(Some),
            }
        }
        Ok(None)
    }

    /// Entries of `dir` from position `cookie`: 0 is `.`, 1 is `..`, 2 the first child.
    #[inline]
    pub(crate) fn read_dir<'a>(&'a self, base: &'a Base, dir: &Inode, cookie: u64) -> DirEntries<'a> {
        let (first, count) = children(dir);
        DirEntries { tree: self, base, dir: *dir, first, end: 2 + u64::from(count), position: cookie }
    }

    /// Target of a symlink, not empty.
    #[inline]
    pub(crate) fn target<'a>(&self, base: &'a Base, link: &Inode) -> Option<&'a [u8]> {
        slice(base.bytes.as_slice(), link.content, link.extra)
    }

    /// Digest stored with the inode in slot `index`.
    pub(crate) fn stored_digest(&self, base: &Base, index: u32) -> Option<crate::codec::Digest> {
        Some(view::<v5::Inode>(base.bytes.as_slice(), self.record(base, index)?.offset)?.digest)
    }

    /// First slot and number of slots of a directory's children.
    pub(crate) fn child_slots(&self, dir: &Inode) -> (u32, u32) {
        children(dir)
    }
}

/// Listing of a v5 directory.
#[derive(Debug)]
pub(crate) struct DirEntries<'a> {
    tree: &'a Tree,
    base: &'a Base,
    dir: Inode,
    first: u32,
    end: u64,
    position: u64,
}

impl<'a> DirEntries<'a> {
    #[inline]
    fn entry(&self, position: u64) -> Result<DirEntry<'a>, InodeError> {
        let dir = &self.dir;
        let next_cookie = position + 1;
        let dots = |number, name| DirEntry { number, name, kind: dir.kind, next_cookie };
        let child = match position {
            0 => return Ok(dots(dir.number, b"." as &[u8])),
            1 => return Ok(dots(parent(self.base, dir), b"..")),
            n => u32::try_from(n - 2).unwrap_or(u32::MAX),
        };
        let index = self.first.checked_add(child).ok_or(InodeError::NotFound(dir.number))?;
        let (record, name) = self.tree.child(self.base, dir.number, index)?;
        if !name_is_sound(name) || name == b"." || name == b".." {
            return Err(InodeError::corrupt(dir.number, "it lists a name that no file can have"));
        }
        let kind = kind_of_mode(record.fixed.mode.get())
            .ok_or_else(|| InodeError::corrupt(record.number(), "its file type is unknown"))?;
        Ok(DirEntry { number: record.number(), name, kind, next_cookie })
    }
}

impl<'a> Iterator for DirEntries<'a> {
    type Item = Result<DirEntry<'a>, InodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.position >= self.end {
            return None;
        }
        let entry = self.entry(self.position);
        self.position = if entry.is_ok() { self.position + 1 } else { self.end };
        Some(entry)
    }
}
