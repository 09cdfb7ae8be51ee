//! The write side in words of its own: changes, what is done with open files, locks.
//!
//! Owns: plain data between dispatch and file systems. Does not own: the wire, nor what a change does. One type for
//! all changes lets a namespace of several mounts hand them on without knowing each.

use super::abi::FileLock;
use fuse_backend_rs::api::filesystem::Entry;
use std::ffi::CStr;
use std::time::Duration;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    Keep,
    /// The present.
    Now,
    /// Seconds since 1970 and nanoseconds.
    At(i64, u32),
}

/// What SETATTR sets.
#[derive(Clone, Copy, Debug)]
pub struct SetAttr {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size, bytes.
    pub size: Option<u64>,
    /// Time of the last access.
    pub atime: SetTime,
    /// Time of the last write.
    pub mtime: SetTime,
    /// An open file to do it through.
    pub handle: Option<u64>,
    /// Setuid and setgid bits go.
    pub kill_suidgid: bool,
}

/// A new name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// The directory.
    pub dir: u64,
    /// The name. May be "." or "..", or contain slashes: guests say what they like.
    pub name: &'a CStr,
}

/// A file to make and open.
#[derive(Clone, Copy, Debug)]
pub struct CreateFile {
    /// Type and permissions; the umask is applied already unless DONT_MASK was agreed on.
    pub mode: u32,
    /// The umask of who makes it.
    pub umask: u32,
    /// `O_` flags.
    pub flags: u32,
    /// Setuid and setgid bits of what is truncated go.
    pub kill_suidgid: bool,
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// SETATTR of a node.
    SetAttr(u64, SetAttr),
    /// MKNOD with mode, device number and umask.
    Mknod(NewNode<'a>, u32, u32, u32),
    /// MKDIR with mode and umask.
    Mkdir(NewNode<'a>, u32, u32),
    /// SYMLINK with its target.
    Symlink(NewNode<'a>, &'a CStr),
    /// CREATE.
    Create(NewNode<'a>, CreateFile),
    /// TMPFILE in a directory.
    Tmpfile(u64, CreateFile),
    /// UNLINK.
    Unlink(NewNode<'a>),
    /// RMDIR.
    Rmdir(NewNode<'a>),
    /// RENAME and RENAME2: from, to, `RENAME_` flags.
    Rename(NewNode<'a>, NewNode<'a>, u32),
    /// LINK of a node under a new name.
    Link(u64, NewNode<'a>),
    /// FALLOCATE.
    Fallocate {
        /// Node.
        node: u64,
        /// Open file.
        handle: u64,
        /// `FALLOC_FL_` flags.
        mode: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// SETXATTR.
    SetXattr {
        /// Node.
        node: u64,
        /// Name.
        name: &'a CStr,
        /// Value.
        value: &'a [u8],
        /// `XATTR_` flags.
        flags: u32,
        /// The setgid bit goes.
        kill_sgid: bool,
    },
    /// REMOVEXATTR of a node.
    RemoveXattr(u64, &'a CStr),
    /// COPY_FILE_RANGE: (node, handle, offset) from and to, bytes.
    Copy {
        /// Source.
        from: (u64, u64, u64),
        /// Target.
        to: (u64, u64, u64),
        /// Bytes.
        len: u64,
    },
}

impl Change<'_> {
    /// The node the change is about, and the other one where there are two. Nodes of two mounts mean EXDEV.
    #[must_use]
    pub fn nodes(&self) -> (u64, Option<u64>) {
        match *self {
            Self::SetAttr(node, _)
            | Self::Tmpfile(node, _)
            | Self::Fallocate { node, .. }
            | Self::SetXattr { node, .. }
            | Self::RemoveXattr(node, _) => (node, None),
            Self::Mknod(new, ..)
            | Self::Mkdir(new, ..)
            | Self::Symlink(new, _)
            | Self::Create(new, _)
            | Self::Unlink(new)
            | Self::Rmdir(new) => (new.dir, None),
            Self::Rename(from, to, _) => (from.dir, Some(to.dir)),
            Self::Link(node, new) => (new.dir, Some(node)),
            Self::Copy { from, to, .. } => (to.0, Some(from.0)),
        }
    }

    /// Whether it may take long: then a ring's worker does not do it itself.
    #[must_use]
    pub fn may_block(&self) -> bool {
        match self {
            Self::SetAttr(_, attr) => attr.size.is_some(),
            Self::Fallocate { .. } | Self::Copy { .. } => true,
            _ => false,
        }
    }
}

/// What came of a change.
#[derive(Debug)]
pub enum Changed {
    /// Nothing to say.
    Done,
    /// A node with a new name; it counts as looked up.
    Entry(Entry),
    /// A new open file: its node, its handle, `FOPEN_` flags.
    Created(Entry, u64, u32),
    /// New attributes, and how long they are good.
    Attr(Box<libc::stat64>, Duration),
    /// Bytes copied.
    Copied(u64),
}

/// Something about an open file or a whole file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOp {
    /// FLUSH: a descriptor was closed; the owner's POSIX locks go.
    Flush {
        /// Open file.
        handle: u64,
        /// Owner of locks.
        owner: u64,
    },
    /// FSYNC and FSYNCDIR.
    Fsync {
        /// Open file.
        handle: u64,
        /// Data only.
        data: bool,
        /// FSYNCDIR.
        dir: bool,
    },
    /// RELEASE.
    Release {
        /// Open file.
        handle: u64,
        /// Owner whose flock(2) goes.
        flock: Option<u64>,
        /// Owner whose POSIX locks go.
        posix: Option<u64>,
    },
    /// RELEASEDIR.
    ReleaseDir {
        /// Open directory.
        handle: u64,
    },
    /// SYNCFS.
    SyncFs,
}

/// What is wanted of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockVerb {
    /// Who is in the way?
    Get,
    /// Take or drop it, or EAGAIN.
    Set,
    /// Take it, waiting.
    SetWait,
}

/// GETLK, SETLK, SETLKW.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest {
    /// Which request this is, for [`GuestFs::interrupt`](super::GuestFs::interrupt).
    pub unique: u64,
    /// Node.
    pub node: u64,
    /// Open file.
    pub handle: u64,
    /// Owner.
    pub owner: u64,
    /// What is wanted.
    pub verb: LockVerb,
    /// The lock is one of flock(2).
    pub flock: bool,
    /// The lock.
    pub lock: FileLock,
}

/// What came of a lock.
#[derive(Clone, Copy, Debug)]
pub enum LockReply {
    /// It is taken or dropped.
    Done,
    /// The lock in the way; `F_UNLCK` if there is none.
    Holder(FileLock),
    /// It waits, and is answered when it is had.
    Parked,
}
