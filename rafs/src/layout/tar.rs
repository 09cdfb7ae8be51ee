//! The 512-byte tar header that follows a section of a blob (blob.md section 5).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a tar header.
pub const TAR_HEADER_SIZE: usize = 512;
/// Magic and version fields together.
pub const TAR_MAGIC: [u8; 8] = *b"ustar  \0";

/// Old-GNU style tar header; fields that RAFS leaves zero are kept as bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TarHeader {
    /// Name, zero-padded.
    pub name: [u8; 100],
    /// Zero.
    pub mode: [u8; 8],
    /// Zero.
    pub uid: [u8; 8],
    /// Zero.
    pub gid: [u8; 8],
    /// 11 octal digits and a NUL: bytes of the section before the header.
    pub size: [u8; 12],
    /// 11 zeros as octal digits and a NUL.
    pub mtime: [u8; 12],
    /// 7 octal digits and a NUL: sum of all bytes, this field as spaces.
    pub checksum: [u8; 8],
    /// `0`.
    pub typeflag: u8,
    /// Zero.
    pub linkname: [u8; 100],
    /// [`TAR_MAGIC`].
    pub magic: [u8; 8],
    /// Zero.
    pub rest: [u8; 247],
}

const _: () = assert!(size_of::<TarHeader>() == TAR_HEADER_SIZE);
