//! Changes, as a client asks for them.
//!
//! Owns: layouts. Does not own: what their numbers mean (`super`).

use super::{EntryOut, OpenOut};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Body of SETATTR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of struct stat")]
pub struct SetattrIn {
    /// [`fattr`](super::fattr) bits.
    pub valid: u32,
    pub padding: u32,
    pub fh: u64,
    pub size: u64,
    pub lock_owner: u64,
    pub atime: u64,
    pub mtime: u64,
    pub ctime: u64,
    pub atimensec: u32,
    pub mtimensec: u32,
    pub ctimensec: u32,
    pub mode: u32,
    pub unused4: u32,
    pub uid: u32,
    pub gid: u32,
    pub unused5: u32,
}

/// Body of MKNOD; a name follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MknodIn {
    /// Type and permissions, the caller's umask applied.
    pub mode: u32,
    /// Device number.
    pub rdev: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Unused.
    pub padding: u32,
}

/// Body of MKDIR; a name follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MkdirIn {
    /// Permissions, the caller's umask applied.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
}

/// Body of RENAME; old and new name follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RenameIn {
    /// Directory of the new name.
    pub newdir: u64,
}

/// Body of RENAME2; old and new name follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Rename2In {
    /// Directory of the new name.
    pub newdir: u64,
    /// `RENAME_` flags.
    pub flags: u32,
    /// Unused.
    pub padding: u32,
}

/// Body of LINK; the new name follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LinkIn {
    /// The node that gets another name.
    pub oldnodeid: u64,
}

/// Body of CREATE and TMPFILE; a name follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CreateIn {
    /// `O_` flags.
    pub flags: u32,
    /// Type and permissions.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// FUSE's own flags.
    pub open_flags: u32,
}

/// Reply to CREATE and TMPFILE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CreateOut {
    /// The node.
    pub entry: EntryOut,
    /// The open file.
    pub open: OpenOut,
}

/// Body of WRITE; the data follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteIn {
    /// File handle.
    pub fh: u64,
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub size: u32,
    /// FUSE's own flags.
    pub write_flags: u32,
    /// Owner of locks.
    pub lock_owner: u64,
    /// `O_` flags.
    pub flags: u32,
    /// Unused.
    pub padding: u32,
}

/// Reply to WRITE and COPY_FILE_RANGE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteOut {
    /// Bytes written.
    pub size: u32,
    /// Unused.
    pub padding: u32,
}

/// Body of SETXATTR as long as SETXATTR_EXT is not agreed on; name and value follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetxattrIn {
    /// Bytes of the value.
    pub size: u32,
    /// `XATTR_CREATE`, `XATTR_REPLACE`.
    pub flags: u32,
}

/// Body of SETXATTR once SETXATTR_EXT is agreed on; name and value follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetxattrExtIn {
    /// Bytes of the value.
    pub size: u32,
    /// `XATTR_CREATE`, `XATTR_REPLACE`.
    pub flags: u32,
    /// [`SETXATTR_ACL_KILL_SGID`](super::SETXATTR_ACL_KILL_SGID).
    pub setxattr_flags: u32,
    /// 0.
    pub padding: u32,
}

/// Body of FALLOCATE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FallocateIn {
    /// File handle.
    pub fh: u64,
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// `FALLOC_FL_` flags.
    pub mode: u32,
    /// Unused.
    pub padding: u32,
}

/// Body of COPY_FILE_RANGE and COPY_FILE_RANGE_64.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are those of copy_file_range(2)")]
pub struct CopyFileRangeIn {
    pub fh_in: u64,
    pub off_in: u64,
    pub nodeid_out: u64,
    pub fh_out: u64,
    pub off_out: u64,
    pub len: u64,
    pub flags: u64,
}

const _: () = assert!(size_of::<SetattrIn>() == 88);
const _: () = assert!(size_of::<WriteIn>() == 40);
const _: () = assert!(size_of::<CopyFileRangeIn>() == 56);
const _: () = assert!(size_of::<CreateOut>() == 144);
