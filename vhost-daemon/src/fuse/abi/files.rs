//! Open files: data, positions, locks.
//!
//! Owns: layouts. Does not own: what their numbers mean (`super`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Body of OPEN and OPENDIR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenIn {
    /// `O_` flags.
    pub flags: u32,
    /// FUSE's own flags.
    pub open_flags: u32,
}

/// Reply to OPEN and OPENDIR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenOut {
    /// File handle.
    pub fh: u64,
    /// `FOPEN_` flags.
    pub open_flags: u32,
    /// Backing file id of passthrough; unused.
    pub backing_id: i32,
}

/// Body of READ, READDIR and READDIRPLUS.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReadIn {
    /// File handle.
    pub fh: u64,
    /// Byte offset, or directory cookie.
    pub offset: u64,
    /// Bytes wanted.
    pub size: u32,
    /// FUSE's own flags.
    pub read_flags: u32,
    /// Owner of locks.
    pub lock_owner: u64,
    /// `O_` flags.
    pub flags: u32,
    /// Unused.
    pub padding: u32,
}

/// Body of RELEASE and RELEASEDIR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReleaseIn {
    /// File handle.
    pub fh: u64,
    /// `O_` flags.
    pub flags: u32,
    /// FUSE's own flags.
    pub release_flags: u32,
    /// Owner of locks.
    pub lock_owner: u64,
}

/// Body of FLUSH.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlushIn {
    /// File handle.
    pub fh: u64,
    /// Unused.
    pub unused: u32,
    /// Unused.
    pub padding: u32,
    /// Owner of locks.
    pub lock_owner: u64,
}

/// Body of FSYNC and FSYNCDIR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FsyncIn {
    /// File handle.
    pub fh: u64,
    /// Bit 0: data only.
    pub fsync_flags: u32,
    /// Unused.
    pub padding: u32,
}

/// Body of LSEEK.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LseekIn {
    /// File handle.
    pub fh: u64,
    /// Where to look from.
    pub offset: u64,
    /// `SEEK_DATA` or `SEEK_HOLE`.
    pub whence: u32,
    /// Unused.
    pub padding: u32,
}

/// Reply to LSEEK.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LseekOut {
    /// Offset found.
    pub offset: u64,
}

/// A lock on a file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileLock {
    /// First byte.
    pub start: u64,
    /// Last byte; 2^63 - 1 is the end of the file.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK`, `F_UNLCK`.
    pub kind: u32,
    /// Holder.
    pub pid: u32,
}

/// Body of GETLK, SETLK and SETLKW.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LkIn {
    /// File handle.
    pub fh: u64,
    /// Owner.
    pub owner: u64,
    /// The lock.
    pub lock: FileLock,
    /// [`LK_FLOCK`](super::LK_FLOCK).
    pub flags: u32,
    /// Unused.
    pub padding: u32,
}

const _: () = assert!(size_of::<ReadIn>() == 40);
const _: () = assert!(size_of::<LkIn>() == 48);
