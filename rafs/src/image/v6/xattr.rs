//! v6 inline xattrs (rafs-v6.md section 10).
//!
//! Owns: walking the entries of one inode. Does not own: finding the inode.

use super::Tree;
use super::inode::xattr_area_len;
use crate::ids::InodeNumber;
use crate::image::Xattr;
use crate::image::bytes::{slice, view};
use crate::image::error::InodeError;
use crate::image::inode::Inode;
use crate::layout::v6::{CompactInode, XATTR_PREFIXES, XattrEntry, XattrHeader};

/// Entries of one inode.
#[derive(Clone, Debug)]
pub(crate) struct Xattrs<'a> {
    number: InodeNumber,
    rest: &'a [u8],
}

impl<'a> Xattrs<'a> {
    /// The entries of `inode` in the bootstrap `data`.
    ///
    /// # Errors
    /// `Corrupt` when the area is not inside the file or uses shared xattrs.
    pub(crate) fn new(tree: &Tree, data: &'a [u8], inode: &Inode) -> Result<Self, InodeError> {
        let number = inode.number;
        if inode.xattr == 0 {
            return Ok(Self { number, rest: &[] });
        }
        let corrupt = |what| InodeError::corrupt(number, what);
        let outside = corrupt("its xattrs end outside the file");
        // The count word is at the same place in both inode forms.
        let head = tree.inode_offset(number).and_then(|at| view::<CompactInode>(data, at)).ok_or(outside)?;
        let area = slice(data, inode.xattr, xattr_area_len(head.xattr_icount.get())).ok_or(outside)?;
        let header = view::<XattrHeader>(area, 0).ok_or(outside)?;
        if header.shared_count != 0 {
            return Err(corrupt("it has shared xattrs, which RAFS does not use"));
        }
        Ok(Self { number, rest: area.get(size_of::<XattrHeader>()..).unwrap_or_default() })
    }

    fn entry(&self) -> Result<(Xattr<'a>, &'a [u8]), &'static str> {
        let ends = "its xattrs do not fit in their area";
        let head = view::<XattrEntry>(self.rest, 0).ok_or(ends)?;
        let prefix = XATTR_PREFIXES
            .iter()
            .find(|(index, _)| *index == head.name_index)
            .map(|(_, prefix)| prefix.as_bytes())
            .ok_or("the name of one of its xattrs has an unknown prefix")?;
        let (name_len, value_len) = (u64::from(head.name_len), u64::from(head.value_size.get()));
        let whole_name = !prefix.ends_with(b".");
        if whole_name != (name_len == 0) {
            return Err("the name of one of its xattrs is not a name");
        }
        let start = size_of::<XattrEntry>() as u64;
        let suffix = slice(self.rest, start, name_len).ok_or(ends)?;
        let value = slice(self.rest, start + name_len, value_len).ok_or(ends)?;
        let len = (start + name_len + value_len).next_multiple_of(4);
        let rest = usize::try_from(len).ok().and_then(|len| self.rest.get(len..)).ok_or(ends)?;
        Ok((Xattr { prefix, suffix, value }, rest))
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<Xattr<'a>, InodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(match self.entry() {
            Ok((xattr, rest)) => {
                self.rest = rest;
                Ok(xattr)
            }
            Err(what) => {
                self.rest = &[];
                Err(InodeError::corrupt(self.number, what))
            }
        })
    }
}
