//! Changes: what is made, removed, renamed, set.
//!
//! Owns: each change as system calls. Does not own: data (`mod.rs`), locks.

use super::files::OpenFile;
use super::inodes::{Inode, stat_fd};
use super::sys::{Identity, Umask, killing_suidgid};
use super::{Passthrough, os, proc_path, single};
use crate::fuse::{Change, Changed, CreateFile, NewNode, SetAttr, SetTime};
use fuse_backend_rs::api::filesystem::Context;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Bytes that one COPY_FILE_RANGE copies at most: a guest asks again for the rest, and can be interrupted in between.
const COPY_MAX: u64 = 256 << 20;
/// Flags of open(2) that a guest's CREATE may carry on to the host.
const CREATE_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_TRUNC
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_NONBLOCK
    | libc::O_LARGEFILE
    | libc::O_NOATIME
    | libc::O_EXCL;

impl Passthrough {
    pub(super) fn apply(&self, ctx: &Context, change: &Change<'_>) -> io::Result<Changed> {
        match *change {
            Change::SetAttr(node, ref attr) => self.set_attr(node, attr),
            Change::Mknod(new, mode, rdev, umask) => self.make(ctx, new, umask, |dir| {
                let (major, minor) = ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff00));
                let kind =
                    FileType::from_raw_mode(if mode & libc::S_IFMT == 0 { libc::S_IFREG } else { mode });
                let dev = libc::makedev(major, minor);
                Ok(rustix::fs::mknodat(dir, new.name, kind, permissions(mode), dev)?)
            }),
            Change::Mkdir(new, mode, umask) => {
                self.make(ctx, new, umask, |dir| Ok(rustix::fs::mkdirat(dir, new.name, permissions(mode))?))
            }
            Change::Symlink(new, target) => {
                self.make(ctx, new, 0, |dir| Ok(rustix::fs::symlinkat(target, dir, new.name)?))
            }
            Change::Create(new, file) => self.create(ctx, new, file),
            Change::Tmpfile(node, file) => self.tmpfile(ctx, node, file),
            Change::Unlink(old) => self.remove(old, AtFlags::empty()),
            Change::Rmdir(old) => self.remove(old, AtFlags::REMOVEDIR),
            Change::Rename(from, to, flags) => {
                let (old_dir, new_dir) = (self.directory(from.dir)?, self.directory(to.dir)?);
                let flags = RenameFlags::from_bits_retain(flags);
                let (from_name, to_name) = (single(from.name)?, single(to.name)?);
                let (old_fd, new_fd) = (old_dir.fd()?, new_dir.fd()?);
                rustix::fs::renameat_with(old_fd.as_fd(), from_name, new_fd.as_fd(), to_name, flags)?;
                Ok(Changed::Done)
            }
            Change::Link(node, new) => {
                let inode = self.inode(node)?;
                let fd = inode.fd()?;
                self.make(&root(), new, 0, |dir| {
                    let path = proc_path(fd.as_fd());
                    let at = rustix::fs::CWD;
                    Ok(rustix::fs::linkat(at, path, dir, new.name, AtFlags::SYMLINK_FOLLOW)?)
                })
            }
            Change::Fallocate { node, handle, mode, offset, length } => {
                let inode = self.inode(node)?;
                let file = self.file(&inode, handle, libc::O_WRONLY)?;
                let mode = FallocateFlags::from_bits_retain(mode);
                // These requests do not say that setuid bits go, and the guest's kernel leaves that to us.
                killing_suidgid(ctx.uid != 0, || rustix::fs::fallocate(&file.fd, mode, offset, length))?;
                Ok(Changed::Done)
            }
            Change::SetXattr { node, name, value, flags, kill_sgid } => {
                let inode = self.inode(node)?;
                let fd = inode.fd()?;
                let flags = XattrFlags::from_bits(flags).ok_or_else(|| os(libc::EINVAL))?;
                let path = proc_path(fd.as_fd());
                rustix::fs::setxattr(&path, name, value, flags)?;
                let mode = if kill_sgid { u32::from(stat_fd(fd.as_fd())?.stx_mode) } else { 0 };
                if mode & libc::S_ISGID != 0 {
                    let mode = permissions(mode & !libc::S_ISGID);
                    rustix::fs::chmodat(rustix::fs::CWD, &path, mode, AtFlags::empty())?;
                }
                Ok(Changed::Done)
            }
            Change::RemoveXattr(node, name) => {
                let inode = self.inode(node)?;
                let fd = inode.fd()?;
                rustix::fs::removexattr(proc_path(fd.as_fd()), name)?;
                Ok(Changed::Done)
            }
            Change::Copy { from, to, len } => self.copy(ctx, from, to, len),
        }
    }

    /// Makes something by the caller's name and answers its node.
    fn make(
        &self,
        ctx: &Context,
        new: NewNode<'_>,
        umask: u32,
        make: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<Changed> {
        let dir = self.directory(new.dir)?;
        let name = single(new.name)?;
        {
            let _umask = Umask::of(umask);
            let fd = dir.fd()?;
            let _user = Identity::of(ctx.uid, ctx.gid)?;
            make(fd.as_fd())?;
        }
        let (inode, stat) = self.inodes.look_up(&self.proc, &dir, name)?;
        Ok(Changed::Entry(self.entry(&inode, &stat)))
    }

    fn remove(&self, old: NewNode<'_>, flags: AtFlags) -> io::Result<Changed> {
        let dir = self.directory(old.dir)?;
        rustix::fs::unlinkat(dir.fd()?.as_fd(), single(old.name)?, flags)?;
        Ok(Changed::Done)
    }

    fn create(&self, ctx: &Context, new: NewNode<'_>, file: CreateFile) -> io::Result<Changed> {
        let dir = self.directory(new.dir)?;
        let name = single(new.name)?;
        let asked = file.flags.cast_signed() & CREATE_FLAGS;
        // What cannot be opened is not to be made.
        let held = self.share.take()?;
        let made = self.create_new(ctx, &dir, name, file, asked);
        match made {
            Ok(fd) => {
                let path_fd = self.proc.reopen(fd.as_fd(), libc::O_PATH)?;
                let (inode, stat) = self.inodes.add(&self.proc, Some(&dir), path_fd)?;
                let handle = self.files.add(OpenFile::new(&inode, fd, Some(held)));
                Ok(Changed::Created(self.entry(&inode, &stat), handle, 0))
            }
            // Somebody on the host, or another guest, was quicker, or the guest's knowledge is old: then it is an open.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) && asked & libc::O_EXCL == 0 => {
                let (inode, stat) = self.inodes.look_up(&self.proc, &dir, name)?;
                let opened = if inode.kind == libc::S_IFREG {
                    killing_suidgid(file.kill_suidgid, || inode.open(&self.proc, asked))
                } else {
                    Err(os(if inode.kind == libc::S_IFDIR { libc::EISDIR } else { libc::EEXIST }))
                };
                match opened {
                    Ok(fd) => {
                        let handle = self.files.add(OpenFile::new(&inode, fd, Some(held)));
                        Ok(Changed::Created(self.entry(&inode, &stat), handle, 0))
                    }
                    Err(error) => {
                        self.inodes.forget(inode.number, 1);
                        Err(error)
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    fn create_new(
        &self,
        ctx: &Context,
        dir: &Inode,
        name: &std::ffi::CStr,
        file: CreateFile,
        flags: i32,
    ) -> io::Result<OwnedFd> {
        let _umask = Umask::of(file.umask);
        let fd = dir.fd()?;
        let _user = Identity::of(ctx.uid, ctx.gid)?;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned())
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(fd.as_fd(), name, flags, permissions(file.mode))?)
    }

    fn tmpfile(&self, ctx: &Context, node: u64, file: CreateFile) -> io::Result<Changed> {
        let dir = self.directory(node)?;
        let asked = file.flags.cast_signed() & CREATE_FLAGS;
        let held = self.share.take()?;
        let fd = {
            let _umask = Umask::of(file.umask);
            let fd = dir.fd()?;
            let _user = Identity::of(ctx.uid, ctx.gid)?;
            let flags = OFlags::from_bits_retain(asked.cast_unsigned()) | OFlags::TMPFILE | OFlags::CLOEXEC;
            rustix::fs::openat(fd.as_fd(), c".", flags, permissions(file.mode))?
        };
        let path_fd = self.proc.reopen(fd.as_fd(), libc::O_PATH)?;
        let (inode, stat) = self.inodes.add(&self.proc, Some(&dir), path_fd)?;
        let handle = self.files.add(OpenFile::new(&inode, fd, Some(held)));
        Ok(Changed::Created(self.entry(&inode, &stat), handle, 0))
    }

    fn set_attr(&self, node: u64, attr: &SetAttr) -> io::Result<Changed> {
        let inode = self.inode(node)?;
        let fd = inode.fd()?;
        if attr.uid.is_some() || attr.gid.is_some() {
            let (uid, gid) = (attr.uid.and_then(uid_of), attr.gid.and_then(gid_of));
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            killing_suidgid(attr.kill_suidgid, || rustix::fs::chownat(fd.as_fd(), c"", uid, gid, flags))?;
        }
        // After the owner: a change of owner clears bits that this may set.
        if let Some(mode) = attr.mode {
            if inode.kind == libc::S_IFLNK {
                return Err(os(libc::EOPNOTSUPP));
            }
            rustix::fs::chmodat(rustix::fs::CWD, proc_path(fd.as_fd()), permissions(mode), AtFlags::empty())?;
        }
        if let Some(size) = attr.size {
            self.truncate(&inode, attr.handle, size, attr.kill_suidgid)?;
        }
        if attr.atime != SetTime::Keep || attr.mtime != SetTime::Keep {
            let times =
                Timestamps { last_access: time_of(attr.atime)?, last_modification: time_of(attr.mtime)? };
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(fd.as_fd(), c"", &times, flags)?;
        }
        let stat = self.stat_node(&inode, attr.handle)?;
        Ok(Changed::Attr(Box::new(self.stat(&inode, &stat)), self.options.timeout))
    }

    fn truncate(
        &self,
        inode: &Arc<Inode>,
        handle: Option<u64>,
        size: u64,
        kill_suidgid: bool,
    ) -> io::Result<()> {
        match inode.kind {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(os(libc::EISDIR)),
            _ => return Err(os(libc::EINVAL)),
        }
        let kept =
            handle.filter(|handle| *handle != 0).map(|handle| self.files.get(handle, inode)).transpose()?;
        let opened;
        let fd = match &kept {
            Some(file) => file.fd.as_fd(),
            None => {
                opened = inode.open(&self.proc, libc::O_WRONLY)?;
                opened.as_fd()
            }
        };
        Ok(killing_suidgid(kill_suidgid, || rustix::fs::ftruncate(fd, size))?)
    }

    fn copy(
        &self,
        ctx: &Context,
        from: (u64, u64, u64),
        to: (u64, u64, u64),
        len: u64,
    ) -> io::Result<Changed> {
        let (source, target) = (self.inode(from.0)?, self.inode(to.0)?);
        let source = self.file(&source, from.1, libc::O_RDONLY)?;
        let target = self.file(&target, to.1, libc::O_WRONLY)?;
        let (mut at, mut to_at) = (from.2, to.2);
        let len = usize::try_from(len.min(COPY_MAX)).unwrap_or(usize::MAX);
        let copied = killing_suidgid(ctx.uid != 0, || {
            rustix::fs::copy_file_range(&source.fd, Some(&mut at), &target.fd, Some(&mut to_at), len)
        })?;
        Ok(Changed::Copied(copied as u64))
    }
}

/// The caller of what belongs to nobody new.
fn root() -> Context {
    Context { uid: 0, gid: 0, pid: 0 }
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// All ones mean "leave it" to chown(2), and are no one's number.
fn uid_of(uid: u32) -> Option<Uid> {
    (uid != u32::MAX).then(|| Uid::from_raw(uid))
}

fn gid_of(gid: u32) -> Option<Gid> {
    (gid != u32::MAX).then(|| Gid::from_raw(gid))
}

fn time_of(time: SetTime) -> io::Result<Timespec> {
    Ok(match time {
        SetTime::Keep => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        SetTime::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        SetTime::At(_, nsec) if nsec >= 1_000_000_000 => return Err(os(libc::EINVAL)),
        SetTime::At(tv_sec, nsec) => Timespec { tv_sec, tv_nsec: i64::from(nsec) },
    })
}
