//! v5 xattr blocks (rafs-v5.md section 14).
//!
//! Owns: walking the pairs of one block. Does not own: finding the block.

use crate::ids::InodeNumber;
use crate::image::Xattr;
use crate::image::bytes::{slice, u32_at, view};
use crate::image::error::InodeError;
use crate::image::inode::Inode;
use zerocopy::little_endian::U64;

/// Pairs of one inode.
#[derive(Clone, Debug)]
pub(crate) struct Xattrs<'a> {
    number: InodeNumber,
    rest: &'a [u8],
}

impl<'a> Xattrs<'a> {
    /// The pairs of `inode` in the bootstrap `data`.
    ///
    /// # Errors
    /// `Corrupt` when the block is not inside the file.
    pub(crate) fn new(data: &'a [u8], inode: &Inode) -> Result<Self, InodeError> {
        let number = inode.number;
        if inode.xattr == 0 {
            return Ok(Self { number, rest: &[] });
        }
        let corrupt = InodeError::corrupt(number, "its xattrs are not inside the file");
        let len = view::<U64>(data, inode.xattr).ok_or(corrupt)?.get();
        let start = inode.xattr.checked_add(size_of::<U64>() as u64).ok_or(corrupt)?;
        Ok(Self { number, rest: slice(data, start, len).ok_or(corrupt)? })
    }

    fn pair(&self) -> Option<(Xattr<'a>, &'a [u8])> {
        let len = u64::from(u32_at(self.rest, 0)?);
        let pair = slice(self.rest, 4, len)?;
        let end = pair.iter().position(|b| *b == 0)?;
        let (suffix, value) = (pair.get(..end)?, pair.get(end + 1..)?);
        let rest = self.rest.get(4 + pair.len()..)?;
        if suffix.is_empty() {
            return None;
        }
        Some((Xattr { prefix: b"", suffix, value }, rest))
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<Xattr<'a>, InodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((xattr, rest)) = self.pair() else {
            self.rest = &[];
            return Some(Err(InodeError::corrupt(self.number, "its xattrs do not fit in their block")));
        };
        self.rest = rest;
        Some(Ok(xattr))
    }
}
