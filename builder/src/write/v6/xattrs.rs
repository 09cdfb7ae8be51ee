//! Inline xattr areas (rafs-v6.md section 10).
//!
//! Owns: their size and bytes. Does not own: which names are allowed.

use crate::tree::{XattrSet, split_name};
use rafs::layout::v6::{XattrEntry, XattrHeader};
use zerocopy::{FromZeros, IntoBytes};

/// Entries start at multiples of this many bytes, which is also the unit of the count word.
const UNIT: usize = 4;

/// Bytes of the area behind an inode; `None` when it does not fit the format.
pub(super) fn size(set: XattrSet<'_>) -> Option<u64> {
    if set.is_empty() {
        return Some(0);
    }
    let mut entries = 0;
    for (name, value) in set.iter() {
        let (_, suffix) = split_name(name)?;
        u16::try_from(value.len()).ok()?;
        entries += (size_of::<XattrEntry>() + suffix.len() + value.len()).next_multiple_of(UNIT);
    }
    u16::try_from(1 + entries / UNIT).ok()?;
    Some((size_of::<XattrHeader>() + entries) as u64)
}

/// The inode's count word. The set's size was checked.
pub(super) fn count_word(set: XattrSet<'_>) -> u16 {
    match size(set) {
        None | Some(0) => 0,
        Some(bytes) => {
            u16::try_from((bytes - size_of::<XattrHeader>() as u64) / UNIT as u64 + 1).unwrap_or(0)
        }
    }
}

/// Appends the area to `out`.
pub(super) fn encode(set: XattrSet<'_>, out: &mut Vec<u8>) {
    if set.is_empty() {
        return;
    }
    out.extend_from_slice(XattrHeader::new_zeroed().as_bytes());
    for (name, value) in set.iter() {
        let Some((name_index, suffix)) = split_name(name) else { continue };
        let (Ok(name_len), Ok(value_size)) = (u8::try_from(suffix.len()), u16::try_from(value.len())) else {
            continue;
        };
        out.extend_from_slice(XattrEntry { name_len, name_index, value_size: value_size.into() }.as_bytes());
        out.extend_from_slice(suffix);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(UNIT), 0);
    }
}
