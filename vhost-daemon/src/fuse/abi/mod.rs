//! FUSE ABI structures and numbers, protocol 7.27 to 7.43 (Linux `include/uapi/linux/fuse.h`).
//!
//! Owns: constants here, layouts in the modules below. Integers are in host order, as the protocol has them.

mod changes;
mod files;
mod nodes;
mod session;

pub use changes::{
    CopyFileRangeIn, CreateIn, CreateOut, FallocateIn, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn,
    SetattrIn, SetxattrExtIn, SetxattrIn, WriteIn, WriteOut,
};
pub use files::{FileLock, FlushIn, FsyncIn, LkIn, LseekIn, LseekOut, OpenIn, OpenOut, ReadIn, ReleaseIn};
pub use nodes::{
    AccessIn, Attr, AttrOut, BatchForgetIn, Dirent, EntryOut, ForgetIn, ForgetOne, GetattrIn, GetxattrIn,
    GetxattrOut, StatfsOut, Statx, StatxIn, StatxOut, SxTime,
};
pub use session::{InHeader, InitIn, InitOut, InterruptIn, OutHeader};

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
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
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

/// `FUSE_WRITE_CACHE` of WRITE: pages that the client writes back when it likes, through whatever handle it has.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID` of WRITE: setuid and setgid bits go.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID` of OPEN with `O_TRUNC`: the same.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `FUSE_SETXATTR_ACL_KILL_SGID`: an ACL is set by somebody who loses the setgid bit by that.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
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
