//! Nodes: references, attributes, xattrs, directory entries.
//!
//! Owns: layouts. Does not own: what their numbers mean (`super`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Attributes of a node.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of struct stat")]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: u64,
    pub mtime: u64,
    pub ctime: u64,
    pub atimensec: u32,
    pub mtimensec: u32,
    pub ctimensec: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
    pub flags: u32,
}

/// Reply to LOOKUP, and head of a READDIRPLUS entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryOut {
    /// Node id; 0 is a cached miss.
    pub nodeid: u64,
    /// Distinguishes reuses of a node id.
    pub generation: u64,
    /// How long the name is good, seconds.
    pub entry_valid: u64,
    /// How long the attributes are good, seconds.
    pub attr_valid: u64,
    /// Nanoseconds of `entry_valid`.
    pub entry_valid_nsec: u32,
    /// Nanoseconds of `attr_valid`.
    pub attr_valid_nsec: u32,
    /// The attributes.
    pub attr: Attr,
}

/// Reply to GETATTR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AttrOut {
    /// How long the attributes are good, seconds.
    pub attr_valid: u64,
    /// Nanoseconds of `attr_valid`.
    pub attr_valid_nsec: u32,
    /// Unused.
    pub dummy: u32,
    /// The attributes.
    pub attr: Attr,
}

/// Body of GETATTR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetattrIn {
    /// Bit 0: `fh` is valid.
    pub flags: u32,
    /// Unused.
    pub dummy: u32,
    /// File handle.
    pub fh: u64,
}

/// Body of FORGET.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ForgetIn {
    /// References dropped.
    pub nlookup: u64,
}

/// Start of the body of BATCH_FORGET; `count` times [`ForgetOne`] follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BatchForgetIn {
    /// Items.
    pub count: u32,
    /// Unused.
    pub dummy: u32,
}

/// One item of BATCH_FORGET.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ForgetOne {
    /// Node.
    pub nodeid: u64,
    /// References dropped.
    pub nlookup: u64,
}

/// Body of ACCESS.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AccessIn {
    /// `R_OK`, `W_OK`, `X_OK`.
    pub mask: u32,
    /// Unused.
    pub padding: u32,
}

/// Body of GETXATTR (a name follows) and LISTXATTR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetxattrIn {
    /// Room for the answer; 0 asks for its length.
    pub size: u32,
    /// Unused.
    pub padding: u32,
}

/// Reply to GETXATTR and LISTXATTR with size 0.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetxattrOut {
    /// Bytes of the answer.
    pub size: u32,
    /// Unused.
    pub padding: u32,
}

/// Body of STATX.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StatxIn {
    /// [`GETATTR_FH`](super::GETATTR_FH).
    pub getattr_flags: u32,
    /// Unused.
    pub reserved: u32,
    /// File handle.
    pub fh: u64,
    /// `AT_` flags.
    pub sx_flags: u32,
    /// `STATX_` fields wanted.
    pub sx_mask: u32,
}

/// A time of STATX.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of struct statx_timestamp")]
pub struct SxTime {
    pub sec: i64,
    pub nsec: u32,
    pub reserved: i32,
}

/// Attributes as STATX has them.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of struct statx")]
pub struct Statx {
    pub mask: u32,
    pub blksize: u32,
    pub attributes: u64,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub mode: u16,
    pub spare0: u16,
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub attributes_mask: u64,
    pub atime: SxTime,
    pub btime: SxTime,
    pub ctime: SxTime,
    pub mtime: SxTime,
    pub rdev_major: u32,
    pub rdev_minor: u32,
    pub dev_major: u32,
    pub dev_minor: u32,
    pub spare2: [u64; 14],
}

/// Reply to STATX.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StatxOut {
    /// How long the attributes are good, seconds.
    pub attr_valid: u64,
    /// Nanoseconds of `attr_valid`.
    pub attr_valid_nsec: u32,
    /// Unused.
    pub flags: u32,
    /// Unused.
    pub spare: [u64; 2],
    /// The attributes.
    pub stat: Statx,
}

/// Reply to STATFS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of struct statvfs")]
pub struct StatfsOut {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
    pub padding: u32,
    pub spare: [u32; 6],
}

/// One READDIR entry; the name, padded to 8, follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Dirent {
    /// Inode number shown.
    pub ino: u64,
    /// Cookie behind this entry.
    pub off: u64,
    /// Bytes of the name.
    pub namelen: u32,
    /// `DT_` type.
    pub file_type: u32,
}

const _: () = assert!(size_of::<Attr>() == 88);
const _: () = assert!(size_of::<EntryOut>() == 128);
const _: () = assert!(size_of::<AttrOut>() == 104);
const _: () = assert!(size_of::<StatfsOut>() == 80);
const _: () = assert!(size_of::<Statx>() == 256);
const _: () = assert!(size_of::<StatxOut>() == 288);
const _: () = assert!(size_of::<Dirent>() == 24);
