//! Bounds-checked views into the bytes of a bootstrap.
//!
//! Owns: the only ways this module reads from a bootstrap. Does not own: what the bytes mean. Every
//! position comes from outside, so each function answers `None` for what lies outside.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// `len` bytes at `offset`.
#[inline]
pub(crate) fn slice(data: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    data.get(start..end)
}

/// A structure at `offset`.
#[inline]
pub(crate) fn view<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    data: &[u8],
    offset: u64,
) -> Option<&T> {
    let rest = data.get(usize::try_from(offset).ok()?..)?;
    T::ref_from_prefix(rest).ok().map(|(value, _)| value)
}

/// All structures of a table of `len` bytes at `offset`; `None` too when `len` is no multiple of one.
#[inline]
pub(crate) fn table<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    data: &[u8],
    offset: u64,
    len: u64,
) -> Option<&[T]> {
    <[T]>::ref_from_bytes(slice(data, offset, len)?).ok()
}

/// Little-endian u32 at `offset`.
#[inline]
pub(crate) fn u32_at(data: &[u8], offset: u64) -> Option<u32> {
    view::<zerocopy::little_endian::U32>(data, offset).map(|v| v.get())
}

/// `n` rounded up to a multiple of 8, for lengths of parts of a record (far below 2^64).
#[inline]
pub(crate) fn align8(n: u64) -> u64 {
    n.saturating_add(7) & !7
}

/// The bytes before the first NUL, or all.
pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_outside_give_nothing() {
        let data = [0u8; 16];
        assert_eq!(slice(&data, 16, 0), Some(&[][..]));
        for (offset, len) in [(16, 1), (17, 0), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(slice(&data, offset, len), None, "{offset} {len}");
        }
        assert_eq!(u32_at(&data, 12), Some(0));
        assert_eq!(u32_at(&data, 13), None);
        assert_eq!(u32_at(&data, u64::MAX - 1), None);
        assert!(table::<zerocopy::little_endian::U32>(&data, 0, 7).is_none());
    }
}
