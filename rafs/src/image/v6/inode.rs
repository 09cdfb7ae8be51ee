//! v6 inodes, compact and extended (rafs-v6.md section 7).
//!
//! Owns: finding and checking one inode, what the private fields of an [`Inode`] mean in v6. Does not own:
//! what hangs on it.
//!
//! Private fields: `content` is the byte offset of the first data block for directories and symlinks, and of
//! the chunk addresses for regular files; `extra` is the byte offset of the inline tail, or 0 without one;
//! `xattr` is the byte offset of the xattr area, or 0 without one.

use super::Tree;
use crate::ids::InodeNumber;
use crate::image::base::{Base, check_common, kind_of_mode};
use crate::image::bytes::{align8, slice, view};
use crate::image::error::InodeError;
use crate::image::inode::{FileKind, Inode};
use crate::layout::v6::{
    ChunkAddress, CompactInode, ExtendedInode, LAYOUT_CHUNK_BASED, LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN,
    NID_UNIT, SYMLINK_SIZE_MAX, XattrHeader,
};

/// Bit of the format word: 64 bytes.
const FORMAT_EXTENDED: u16 = 1;
/// Position of the data layout in the format word.
const FORMAT_LAYOUT_SHIFT: u16 = 1;
/// Bits of the data layout, in place.
const FORMAT_LAYOUT_MASK: u16 = 0xe;

/// The fields of both inode forms.
struct Fields {
    /// Bytes of the inode structure.
    len: u64,
    xattr_icount: u16,
    mode: u16,
    nlink: u32,
    size: u64,
    u: u32,
    uid: u32,
    gid: u32,
    mtime_sec: i64,
    mtime_nsec: u32,
}

#[inline]
fn fields(data: &[u8], at: u64, format: u16) -> Option<Fields> {
    if format & FORMAT_EXTENDED != 0 {
        let i = view::<ExtendedInode>(data, at)?;
        return Some(Fields {
            len: size_of::<ExtendedInode>() as u64,
            xattr_icount: i.xattr_icount.get(),
            mode: i.mode.get(),
            nlink: i.nlink.get(),
            size: i.size.get(),
            u: i.u.get(),
            uid: i.uid.get(),
            gid: i.gid.get(),
            mtime_sec: i.mtime_sec.get().cast_signed(),
            mtime_nsec: i.mtime_nsec.get(),
        });
    }
    let i = view::<CompactInode>(data, at)?;
    Some(Fields {
        len: size_of::<CompactInode>() as u64,
        xattr_icount: i.xattr_icount.get(),
        mode: i.mode.get(),
        nlink: u32::from(i.nlink.get()),
        size: u64::from(i.size.get()),
        u: i.u.get(),
        uid: u32::from(i.uid.get()),
        gid: u32::from(i.gid.get()),
        mtime_sec: 0,
        mtime_nsec: 0,
    })
}

/// Bytes of the inline xattr area for a count word (rafs-v6.md section 10).
#[inline]
pub(super) fn xattr_area_len(icount: u16) -> u64 {
    match icount {
        0 => 0,
        n => size_of::<XattrHeader>() as u64 + 4 * (u64::from(n) - 1),
    }
}

impl Tree {
    /// Byte offset of inode `number`; `None` when that overflows.
    #[inline]
    pub(super) fn inode_offset(&self, number: InodeNumber) -> Option<u64> {
        number.0.checked_mul(NID_UNIT)?.checked_add(self.meta)
    }

    /// The inode with number (nid) `number`.
    ///
    /// # Errors
    /// `NotFound` for a number outside the meta area; `Corrupt` for bytes that break a rule.
    #[inline]
    pub(crate) fn inode(&self, base: &Base, number: InodeNumber) -> Result<Inode, InodeError> {
        if number.0 > base.max_inode_number {
            return Err(InodeError::NotFound(number));
        }
        let offset = self.inode_offset(number).ok_or(InodeError::NotFound(number))?;
        self.decode(base, number, offset).map_err(|what| InodeError::corrupt(number, what))
    }

    #[inline]
    fn decode(&self, base: &Base, number: InodeNumber, offset: u64) -> Result<Inode, &'static str> {
        let data = base.bytes.as_slice();
        let outside = "it ends outside the file";
        let format = view::<zerocopy::little_endian::U16>(data, offset).ok_or(outside)?.get();
        let layout = (format & FORMAT_LAYOUT_MASK) >> FORMAT_LAYOUT_SHIFT;
        if format & !(FORMAT_EXTENDED | FORMAT_LAYOUT_MASK) != 0 {
            return Err("its format word has unknown bits");
        }
        let f = fields(data, offset, format).ok_or(outside)?;
        let mode = u32::from(f.mode);
        let kind = kind_of_mode(mode).ok_or("its file type is unknown")?;
        // Below the file's size plus a few hundred KiB: no sum here can overflow.
        let xattr = offset + f.len;
        let behind = xattr + xattr_area_len(f.xattr_icount);
        if f.xattr_icount != 0 && behind > data.len() as u64 {
            return Err("its xattrs end outside the file");
        }
        let flat = layout == LAYOUT_FLAT_PLAIN || layout == LAYOUT_FLAT_INLINE;
        let (content, extra) = match kind {
            FileKind::Regular if layout == LAYOUT_CHUNK_BASED => {
                let first = offset + align8(behind - offset);
                chunk_array(base, first, f.size)?;
                (first, 0)
            }
            FileKind::Directory | FileKind::Symlink if flat => {
                if kind == FileKind::Symlink && (f.size == 0 || f.size > SYMLINK_SIZE_MAX) {
                    return Err("its symlink target is not 1 to 4096 bytes long");
                }
                self.flat_data(data, f.u, f.size, (layout == LAYOUT_FLAT_INLINE).then_some(behind))?
            }
            FileKind::Regular | FileKind::Directory | FileKind::Symlink => {
                return Err("its data layout does not fit its type");
            }
            _ if flat => (0, 0),
            _ => return Err("its data layout does not fit its type"),
        };
        let (uid, gid) = base.owner.unwrap_or((f.uid, f.gid));
        let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        let inode = Inode {
            number,
            kind,
            mode,
            uid,
            gid,
            nlink: f.nlink,
            size: f.size,
            blocks: f.size.div_ceil(512),
            rdev: if device && format & FORMAT_EXTENDED != 0 { f.u } else { 0 },
            mtime_sec: f.mtime_sec,
            mtime_nsec: f.mtime_nsec,
            content,
            xattr: if f.xattr_icount == 0 { 0 } else { xattr },
            extra,
        };
        check_common(&inode)?;
        Ok(inode)
    }

    /// `content` and `extra` of data in blocks, with the last, partial block at `tail` if there is one.
    #[inline]
    fn flat_data(
        &self,
        data: &[u8],
        block: u32,
        size: u64,
        tail: Option<u64>,
    ) -> Result<(u64, u64), &'static str> {
        let start = u64::from(block) << self.block_bits;
        let rest = size & ((1 << self.block_bits) - 1);
        let in_blocks = if tail.is_some() { size - rest } else { size };
        if in_blocks != 0 {
            slice(data, start, in_blocks).ok_or("its data blocks end outside the file")?;
        }
        match tail {
            Some(tail) if rest != 0 => {
                slice(data, tail, rest).ok_or("its inline data ends outside the file")?;
                Ok((start, tail))
            }
            _ => Ok((start, 0)),
        }
    }

    /// Block `number` of the data of a directory or symlink: a whole one, or what is left of the size.
    #[inline]
    pub(super) fn data_block<'a>(&self, data: &'a [u8], inode: &Inode, number: u64) -> Option<&'a [u8]> {
        let full = inode.size >> self.block_bits;
        if number > full {
            return None;
        }
        let at = inode.content.checked_add(number << self.block_bits)?;
        if number < full {
            return slice(data, at, 1 << self.block_bits);
        }
        let rest = inode.size & ((1 << self.block_bits) - 1);
        slice(data, if inode.extra == 0 { at } else { inode.extra }, rest)
    }

    /// Target of a symlink: as few pieces as it is stored in.
    pub(crate) fn target(&self, base: &Base, link: &Inode) -> Option<Vec<u8>> {
        let mut target = Vec::with_capacity(usize::try_from(link.size.min(SYMLINK_SIZE_MAX)).ok()?);
        for number in 0..link.size.min(SYMLINK_SIZE_MAX).div_ceil(1 << self.block_bits) {
            target.extend_from_slice(self.data_block(base.bytes.as_slice(), link, number)?);
        }
        Some(target)
    }
}

/// Checks that the chunk addresses at `first` are inside the file.
#[inline]
fn chunk_array(base: &Base, first: u64, size: u64) -> Result<(), &'static str> {
    // Chunk sizes are powers of two of at least 4096, so eight times the count is below 2^56.
    let mask = u64::from(base.chunk_size - 1);
    let count = (size >> base.chunk_size.trailing_zeros()) + u64::from(size & mask != 0);
    let end = first.checked_add(count * size_of::<ChunkAddress>() as u64);
    if end.is_none_or(|end| end > base.bytes.as_slice().len() as u64) {
        return Err("its chunk addresses end outside the file");
    }
    Ok(())
}
