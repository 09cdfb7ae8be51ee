//! FUSE ABI structures and numbers, protocol 7.27 to 7.43 (Linux `include/uapi/linux/fuse.h`).
//!
//! Owns: layouts and constants only. Integers are in host order, as the protocol has them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version that is spoken.
pub const VERSION_MAJOR: u32 = 7;
/// Newest minor version that is announced.
pub const VERSION_MINOR: u32 = 41;
/// Oldest minor version that is served.
pub const VERSION_MINOR_MIN: u32 = 27;
/// Node id of the root.
pub const ROOT_NODE: u64 = 1;
/// Longest name a guest may send, bytes.
pub const NAME_MAX: usize = 255;

/// Opcodes.
#[allow(missing_docs, reason = "the names are the kernel's")]
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// INIT flags; bits 32 and up travel in `flags2`.
#[allow(missing_docs, reason = "the names are the kernel's")]
pub mod init_flag {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const HAS_RESEND: u64 = 1 << 39;
}

/// Flags of OPEN replies.
#[allow(missing_docs, reason = "the names are the kernel's")]
pub mod fopen {
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const NOFLUSH: u32 = 1 << 5;
}

/// Flags of attributes.
#[allow(missing_docs, reason = "the names are the kernel's")]
pub mod attr_flag {
    pub const SUBMOUNT: u32 = 1 << 0;
}

/// Which fields of [`SetattrIn`] count.
#[allow(missing_docs, reason = "the names are the kernel's")]
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `FUSE_WRITE_KILL_SUIDGID` of WRITE: setuid and setgid bits go.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID` of OPEN with `O_TRUNC`: the same.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `FUSE_RELEASE_FLUSH`.
pub const RELEASE_FLUSH: u32 = 1 << 0;
/// `FUSE_RELEASE_FLOCK_UNLOCK`.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `FUSE_LK_FLOCK`: the lock is one of flock(2).
pub const LK_FLOCK: u32 = 1 << 0;
/// `FUSE_FSYNC_FDATASYNC`.
pub const FSYNC_DATA: u32 = 1 << 0;
/// `FUSE_GETATTR_FH`: the handle counts.
pub const GETATTR_FH: u32 = 1 << 0;

/// Header of every request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InHeader {
    /// Bytes of the whole request, this header included.
    pub len: u32,
    /// One of [`op`].
    pub opcode: u32,
    /// Identifies the request; comes back in the reply.
    pub unique: u64,
    /// Node the request is about.
    pub nodeid: u64,
    /// Caller's uid.
    pub uid: u32,
    /// Caller's gid.
    pub gid: u32,
    /// Caller's pid.
    pub pid: u32,
    /// Bytes of extensions / 8.
    pub total_extlen: u16,
    /// Unused.
    pub padding: u16,
}

/// Header of every reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OutHeader {
    /// Bytes of the whole reply, this header included.
    pub len: u32,
    /// 0, or a negative errno.
    pub error: i32,
    /// The request's.
    pub unique: u64,
}

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

/// Body of ACCESS.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AccessIn {
    /// `R_OK`, `W_OK`, `X_OK`.
    pub mask: u32,
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

/// Body of FORGET.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ForgetIn {
    /// References dropped.
    pub nlookup: u64,
}

/// Body of SETATTR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of struct stat")]
pub struct SetattrIn {
    /// [`fattr`] bits.
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
    /// [`LK_FLOCK`].
    pub flags: u32,
    /// Unused.
    pub padding: u32,
}

/// Body of INTERRUPT.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterruptIn {
    /// The request nobody waits for any more.
    pub unique: u64,
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

/// Body of STATX.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StatxIn {
    /// [`GETATTR_FH`].
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

/// Start of the body of INIT; `flags2` and the rest follow when INIT_EXT is set.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitIn {
    /// Guest's major version.
    pub major: u32,
    /// Guest's minor version.
    pub minor: u32,
    /// Read-ahead it would do, bytes.
    pub max_readahead: u32,
    /// Flags, bits 0..31.
    pub flags: u32,
}

/// Reply to INIT.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitOut {
    /// [`VERSION_MAJOR`].
    pub major: u32,
    /// Minor version spoken from here on.
    pub minor: u32,
    /// Read-ahead allowed, bytes.
    pub max_readahead: u32,
    /// Flags, bits 0..31.
    pub flags: u32,
    /// Background requests allowed.
    pub max_background: u16,
    /// From how many on the guest calls itself congested.
    pub congestion_threshold: u16,
    /// Largest write, bytes.
    pub max_write: u32,
    /// Granularity of timestamps, nanoseconds.
    pub time_gran: u32,
    /// Largest request, pages.
    pub max_pages: u16,
    /// log2 of the DAX mapping alignment.
    pub map_alignment: u16,
    /// Flags, bits 32..63.
    pub flags2: u32,
    /// Stacking depth of passthrough.
    pub max_stack_depth: u32,
    /// Request timeout, seconds; 0 is none.
    pub request_timeout: u16,
    /// Unused.
    pub unused: [u16; 11],
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

const _: () = assert!(size_of::<InHeader>() == 40);
const _: () = assert!(size_of::<OutHeader>() == 16);
const _: () = assert!(size_of::<Attr>() == 88);
const _: () = assert!(size_of::<EntryOut>() == 128);
const _: () = assert!(size_of::<AttrOut>() == 104);
const _: () = assert!(size_of::<ReadIn>() == 40);
const _: () = assert!(size_of::<StatfsOut>() == 80);
const _: () = assert!(size_of::<SetattrIn>() == 88);
const _: () = assert!(size_of::<WriteIn>() == 40);
const _: () = assert!(size_of::<LkIn>() == 48);
const _: () = assert!(size_of::<CopyFileRangeIn>() == 56);
const _: () = assert!(size_of::<CreateOut>() == 144);
const _: () = assert!(size_of::<Statx>() == 256);
const _: () = assert!(size_of::<StatxOut>() == 288);
const _: () = assert!(size_of::<InitOut>() == 64);
const _: () = assert!(size_of::<Dirent>() == 24);
