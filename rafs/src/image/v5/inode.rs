//! v5 inode records (rafs-v5.md sections 5, 9, 10).
//!
//! Owns: finding and checking one record, what the private fields of an [`Inode`] mean in v5. Does not
//! own: what hangs on it.
//!
//! Private fields: `content` is `child index << 32 | child count` for directories, the byte offset of the
//! target for symlinks and of the first chunk record for regular files; `extra` is the parent's number for
//! directories, the length of the target for symlinks, and the number of chunk records, with [`HAS_HOLE`], for
//! regular files; `xattr` is the byte offset of the xattr block.

use super::Tree;
use crate::ids::InodeNumber;
use crate::image::base::{Base, check_common, kind_of_mode};
use crate::image::bytes::{align8, slice, u32_at, view};
use crate::image::error::InodeError;
use crate::image::inode::{FileKind, Inode};
use crate::layout::chunk::ChunkRecord;
use crate::layout::v5::{self, INODE_OFFSET_UNIT, InodeFlags, NAME_SIZE_MAX, ROOT_INO, SUPERBLOCK_SIZE};
use zerocopy::little_endian::U64;

/// Bit of a regular file's `extra`: chunk records are not at regular positions.
pub(super) const HAS_HOLE: u64 = 1 << 32;
/// Bytes of the fixed part of a record.
const FIXED: u64 = size_of::<v5::Inode>() as u64;

/// A record and where it is.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    /// Byte offset.
    pub(super) offset: u64,
    /// Fixed part.
    pub(crate) fixed: &'a v5::Inode,
}

impl Record<'_> {
    /// Inode number in the record.
    #[inline]
    pub(super) fn number(&self) -> InodeNumber {
        InodeNumber(self.fixed.ino.get())
    }

    #[inline]
    fn kind(&self) -> Option<FileKind> {
        kind_of_mode(self.fixed.mode.get())
    }

    /// Whether other names may share the inode.
    #[inline]
    fn is_hardlink(&self) -> bool {
        self.fixed.nlink.get() > 1 && self.kind() == Some(FileKind::Regular)
    }
}

impl Tree {
    /// The record in slot `index`, counted from 1; `None` when there is none inside the file.
    #[inline]
    pub(crate) fn record<'a>(&self, base: &'a Base, index: u32) -> Option<Record<'a>> {
        if index > self.entries {
            return None;
        }
        let data = base.bytes.as_slice();
        let slot = self.inode_table + u64::from(index.checked_sub(1)?) * 4;
        let offset = u64::from(u32_at(data, slot)?) * INODE_OFFSET_UNIT;
        if offset <= SUPERBLOCK_SIZE as u64 {
            return None;
        }
        Some(Record { offset, fixed: view(data, offset)? })
    }

    /// The inode with number `number`.
    ///
    /// # Errors
    /// `NotFound` for a number outside the table, or of a slot that is a further name of a hardlink;
    /// `Corrupt` for a record that breaks a rule.
    #[inline]
    pub(crate) fn inode(&self, base: &Base, number: InodeNumber) -> Result<Inode, InodeError> {
        let missing = InodeError::NotFound(number);
        let index = u32::try_from(number.0).map_err(|_| missing)?;
        if index == 0 || index > self.entries {
            return Err(missing);
        }
        let record = self
            .record(base, index)
            .ok_or_else(|| InodeError::corrupt(number, "its record is not inside the file"))?;
        if record.number() != number {
            // The slot of a later name: the guest was never told this number.
            let later = record.is_hardlink() && record.number() < number;
            let other = InodeError::corrupt(number, "its record has another number");
            return Err(if later { missing } else { other });
        }
        self.decode(base, record).map_err(|what| InodeError::corrupt(number, what))
    }

    /// Checks the record in slot `index`, whether it is the first name of its inode or a further one, whose
    /// attributes nobody sees.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_slot(&self, base: &Base, index: u32) -> Result<(), InodeError> {
        let slot = InodeNumber(u64::from(index));
        let corrupt = |what| InodeError::corrupt(slot, what);
        let record = self.record(base, index).ok_or_else(|| corrupt("its record is not inside the file"))?;
        let further = record.is_hardlink() && record.number() < slot;
        if record.number() != slot && !further {
            return Err(corrupt("its record has another number"));
        }
        self.decode(base, record).map(|_| ()).map_err(corrupt)
    }

    /// Checks and converts a record.
    #[inline]
    pub(super) fn decode(&self, base: &Base, record: Record<'_>) -> Result<Inode, &'static str> {
        let Record { offset, fixed } = record;
        let data = base.bytes.as_slice();
        let kind = record.kind().ok_or("its file type is unknown")?;
        let (ino, parent) = (fixed.ino.get(), fixed.parent.get());
        if ino != ROOT_INO && (parent == 0 || (parent >= ino && !record.is_hardlink())) {
            return Err("its parent does not come before it");
        }
        let name = u64::from(fixed.name_size.get());
        if name == 0 || name > NAME_SIZE_MAX as u64 {
            return Err("its name is not 1 to 256 bytes long");
        }
        let flags = InodeFlags::from_bits_retain(fixed.flags.get());
        let target = u64::from(fixed.symlink_size.get());
        // A record lies below 4 GiB * 8 and name and target are 16-bit lengths: no sum here can overflow.
        let target_at = offset + FIXED + align8(name);
        let behind = target_at + align8(target);
        let xattr = if flags.contains(InodeFlags::XATTR) { behind } else { 0 };
        let (content, extra) = match kind {
            FileKind::Directory => (self.children(record)?, parent),
            FileKind::Symlink => {
                if target == 0 {
                    return Err("its symlink target is empty");
                }
                slice(data, target_at, target).ok_or("its symlink target ends outside the file")?;
                (target_at, target)
            }
            FileKind::Regular => {
                let first = match xattr {
                    0 => behind,
                    at => {
                        let len = view::<U64>(data, at).ok_or("its xattrs start outside the file")?.get();
                        let len = len.checked_next_multiple_of(8).ok_or("its xattrs end outside the file")?;
                        (at + 8).checked_add(len).ok_or("its xattrs end outside the file")?
                    }
                };
                (first, chunk_records(base, record, first, flags)?)
            }
            _ => (0, 0),
        };
        let (uid, gid) = base.owner.unwrap_or_else(|| (fixed.uid.get(), fixed.gid.get()));
        let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        let inode = Inode {
            number: InodeNumber(ino),
            kind,
            mode: fixed.mode.get(),
            uid,
            gid,
            nlink: fixed.nlink.get(),
            size: fixed.size.get(),
            blocks: fixed.blocks.get(),
            rdev: if device { fixed.rdev.get() } else { 0 },
            mtime_sec: fixed.mtime_sec.get().cast_signed(),
            mtime_nsec: fixed.mtime_nsec.get(),
            content,
            xattr,
            extra,
        };
        check_common(&inode)?;
        Ok(inode)
    }

    /// `child index << 32 | child count`, checked.
    #[inline]
    fn children(&self, record: Record<'_>) -> Result<u64, &'static str> {
        let (first, count) = (record.fixed.child_index.get(), record.fixed.child_count.get());
        if count == 0 {
            return Ok(0);
        }
        let last = u64::from(first) + u64::from(count) - 1;
        // Children come behind their parent, so no directory can contain itself.
        if u64::from(first) <= record.fixed.ino.get() || last > u64::from(self.entries) {
            return Err("its children are not behind it inside the inode table");
        }
        Ok(u64::from(first) << 32 | u64::from(count))
    }
}

/// A regular file's `extra`, checked.
#[inline]
fn chunk_records(
    base: &Base,
    record: Record<'_>,
    first: u64,
    flags: InodeFlags,
) -> Result<u64, &'static str> {
    let count = u64::from(record.fixed.child_count.get());
    let end = first.checked_add(count * size_of::<ChunkRecord>() as u64);
    if end.is_none_or(|end| end > base.bytes.as_slice().len() as u64) {
        return Err("its chunk records end outside the file");
    }
    if flags.contains(InodeFlags::HAS_HOLE) {
        return Ok(count | HAS_HOLE);
    }
    // Chunk sizes are powers of two.
    let chunks = (record.fixed.size.get() >> base.chunk_size.trailing_zeros())
        + u64::from(record.fixed.size.get() & u64::from(base.chunk_size - 1) != 0);
    if chunks != count {
        return Err("its size and its number of chunks do not fit");
    }
    Ok(count)
}
