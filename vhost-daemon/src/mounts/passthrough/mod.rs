//! A directory of the host as a guest's file system, read and written.
//!
//! Owns: what each call does to the host's files. A guest names files by node and single name only; names are never
//! followed through symlinks, so that nothing outside of the directory can be reached, whatever the guest or the host
//! changes meanwhile. Permissions are checked by the guest's kernel; what a guest's user makes belongs to that user.
//! Does not own: the wire, threads.
//!
//! fuse-backend-rs has a file system of this kind; ours exists because that one opens a file for each read where OPEN
//! is not sent, knows no locks, O_TMPFILE, statx or copy_file_range, and cannot tell its caller what would block.
//!
//! One value belongs to one guest: references that the guest's kernel holds on nodes are counted here, and the end of
//! its session drops them all.

mod attributes;
mod backend;
mod changes;
mod descriptors;
mod files;
mod inodes;
mod listing;
mod locks;
mod ranges;
mod sys;

use crate::fuse::abi::{self, init_flag};
use crate::fuse::{
    Change, Changed, FileOp, GuestFs, LockReply, LockRequest, PlusSink, ReadAt, ReadIo, ReadStart, WriteAt,
    WriteIo,
};
use crate::mounts::rafs_mount::empty_statfs;
use crate::mounts::{INODE_BITS, INODE_MASK, Place};
pub use backend::PassthroughBackend;
use descriptors::Share;
use files::Files;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
};
use inodes::{INO_MASK, Inode, Inodes, ROOT, stat_fd};
use locks::Waiters;
use ranges::Ranges;
use rustix::fs::{Mode, OFlags, Statx};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Largest xattr value and list of names, bytes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_MAX: usize = 65_536;
/// Directories inside of one another through which a way up is looked for.
const DEPTH_MAX: usize = 4096;
/// Descriptors that nodes may hold before file handles are used.
const FD_BUDGET: usize = 8192;

/// How a directory is passed through.
#[derive(Clone, Debug)]
pub struct PassthroughOptions {
    /// Where it is shown.
    pub place: Place,
    /// How long guests may keep names and attributes. The host may change files too, so short.
    pub timeout: Duration,
    /// Whether POSIX locks (fcntl(2)) are taken on the host, where other guests and the host see them. If not, a
    /// guest's locks are its own: its kernel does not ask.
    pub posix_locks: bool,
    /// The same for locks of flock(2). The kernel asks for those of every mount of a connection, and an image, which
    /// has no open files, cannot tell who asks: so not where both are shown.
    pub flocks: bool,
    /// Whether mounts below the directory are told to the guest as such (device numbers of their own).
    pub announce_submounts: bool,
    /// Descriptors that nodes may hold before they are held by file handles.
    pub fd_budget: usize,
}

impl Default for PassthroughOptions {
    fn default() -> Self {
        Self {
            place: Place { index: 1, generation: 0, at_root: true },
            timeout: Duration::from_secs(1),
            posix_locks: true,
            flocks: false,
            announce_submounts: true,
            fd_budget: FD_BUDGET,
        }
    }
}

/// Why a directory cannot be passed through.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassthroughError {
    /// The directory.
    #[error("cannot open directory {path}: {source}")]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// /proc is needed to reopen files.
    #[error("cannot open /proc/self/fd ({source}); /proc must be mounted to pass a directory through")]
    Proc {
        /// Why.
        source: io::Error,
    },
}

/// A directory that is passed through.
#[derive(Debug)]
pub struct Passthrough {
    options: PassthroughOptions,
    inodes: Inodes,
    files: Files,
    share: Arc<Share>,
    waiters: Arc<Waiters>,
    ranges: Ranges,
    proc: DirFd,
    /// Tells node ids from those of a former daemon (48 bits): after a restart a number may be another file's, which a guest
    /// that holds the former must not take for it, and what it forgets of the former is not the new one's.
    salt: u64,
}

/// /proc/self/fd.
#[derive(Debug)]
struct DirFd(Arc<OwnedFd>);

impl DirFd {
    fn reopen(&self, fd: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
        let flags = OFlags::from_bits_retain(flags.cast_unsigned()) | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.0.as_fd(), fd.as_raw_fd().to_string(), flags, Mode::empty())?)
    }
}

/// A number that nobody can tell beforehand.
fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}

/// An error that is an errno.
fn os(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// A path that names what `fd` does, symlinks themselves included.
fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Refuses what is not one name.
fn single(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(os(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(os(libc::EINVAL)),
        _ => Ok(name),
    }
}

impl Passthrough {
    /// Shows the directory `root` (`O_PATH`).
    fn new(root: Arc<OwnedFd>, proc: Arc<OwnedFd>, options: PassthroughOptions) -> Self {
        let share = Arc::new(Share::new());
        let inodes = Inodes::new(root, options.fd_budget, Arc::clone(&share));
        let salt = random() & INO_MASK;
        let (files, waiters) = (Files::new(), Waiters::new());
        let (proc, ranges) = (DirFd(proc), Ranges::default());
        Self { options, inodes, files, share, waiters, ranges, proc, salt }
    }

    /// Ends what waits for a lock.
    fn end_waits(&self) {
        self.waiters.clear();
    }

    /// Nodes that the guest holds references on, the root aside; descriptors that they hold; open files.
    #[must_use]
    pub fn usage(&self) -> (usize, usize, usize) {
        (self.inodes.len(), self.inodes.descriptors(), self.files.len())
    }

    /// What guests see as inode number.
    fn shown(&self, number: u64) -> u64 {
        u64::from(self.options.place.index) << INODE_BITS | number
    }

    fn node(&self, number: u64) -> u64 {
        match number {
            ROOT if self.options.place.at_root => abi::ROOT_NODE,
            ROOT => self.shown(ROOT),
            number => self.shown(number ^ self.salt),
        }
    }

    /// The number of a node id, whatever the guest sent. None but the root's has slot 0, so none is salted into it.
    fn number(&self, node: u64) -> u64 {
        match node & INODE_MASK {
            ROOT => ROOT,
            salted => salted ^ self.salt,
        }
    }

    fn inode(&self, node: u64) -> io::Result<Arc<Inode>> {
        if node == abi::ROOT_NODE && self.options.place.at_root {
            return Ok(Arc::clone(self.inodes.root()));
        }
        if node >> INODE_BITS != u64::from(self.options.place.index) {
            return Err(os(libc::ENOENT));
        }
        self.inodes.get(self.number(node))
    }

    fn directory(&self, node: u64) -> io::Result<Arc<Inode>> {
        let inode = self.inode(node)?;
        if inode.kind == libc::S_IFDIR { Ok(inode) } else { Err(os(libc::ENOTDIR)) }
    }

    fn entry(&self, inode: &Inode, stat: &Statx) -> Entry {
        Entry {
            inode: self.node(inode.number),
            generation: self.options.place.generation.into(),
            attr: self.stat(inode, stat),
            attr_flags: self.flags_of(inode),
            attr_timeout: self.options.timeout,
            entry_timeout: self.options.timeout,
        }
    }

    fn flags_of(&self, inode: &Inode) -> u32 {
        if inode.submount && self.options.announce_submounts { abi::attr_flag::SUBMOUNT } else { 0 }
    }

    /// The open file of a request, or one opened for it: guests that were told that OPEN is not needed send none.
    fn file(&self, inode: &Arc<Inode>, handle: u64, flags: i32) -> io::Result<Arc<files::OpenFile>> {
        if handle != 0 {
            return self.files.get(handle, inode);
        }
        let fd = inode.open(&self.proc, flags)?;
        Ok(Arc::new(files::OpenFile::new(inode, fd, None)))
    }

    fn read_from(&self, read: &ReadAt, io: &mut dyn ReadIo) -> io::Result<ReadStart> {
        let inode = self.inode(read.node)?;
        match inode.kind {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(os(libc::EISDIR)),
            _ => return Err(os(libc::EINVAL)),
        }
        let len = usize::try_from(read.size).map_err(|_| os(libc::EINVAL))?;
        if len > io.room() {
            return Err(os(libc::EINVAL));
        }
        let file = self.file(&inode, read.handle, libc::O_RDONLY)?;
        let fd = file.fd.as_fd();
        if !read.may_wait {
            let n = io.read_nowait(0, fd, read.offset, len)?;
            // Short because of the end of the file, or because the rest is not in memory?
            let end = read.offset.saturating_add(n as u64);
            let at_end = n < len && end >= stat_fd(fd)?.stx_size;
            return Ok(if n == len || at_end { ReadStart::Done(n) } else { ReadStart::Blocks });
        }
        let mut done = 0;
        while done < len {
            match io.read_wait(done, fd, read.offset + done as u64, len - done) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(ReadStart::Done(done))
    }

    fn write_to(&self, write: &WriteAt, io: &mut dyn WriteIo) -> io::Result<u32> {
        let inode = self.inode(write.node)?;
        if inode.kind != libc::S_IFREG {
            return Err(os(libc::EINVAL));
        }
        let file = self.file(&inode, write.handle, libc::O_WRONLY)?;
        let len = usize::try_from(write.size).map_err(|_| os(libc::EINVAL))?;
        sys::killing_suidgid(write.kill_suidgid, || {
            let mut done = 0;
            while done < len {
                let offset = write.offset.map(|offset| offset + done as u64);
                match io.write_to(done, len - done, file.fd.as_fd(), offset) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if done == 0 => return Err(e),
                    Err(_) => break,
                }
            }
            u32::try_from(done).map_err(|_| os(libc::EIO))
        })
    }
}

impl GuestFs for Passthrough {
    fn start_read(&self, _ctx: &Context, read: &ReadAt, io: &mut dyn ReadIo) -> io::Result<ReadStart> {
        self.read_from(read, io)
    }

    fn list_plus(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        sink: &mut dyn PlusSink,
    ) -> io::Result<()> {
        self.list_with_attributes(inode, handle, offset, sink)
    }

    fn stateless_open(&self) -> bool {
        false
    }

    fn attr_flags(&self, inode: u64) -> u32 {
        self.inode(inode).map_or(0, |inode| self.flags_of(&inode))
    }

    fn wanted_flags(&self) -> u64 {
        let mut flags = init_flag::HANDLE_KILLPRIV_V2
            | init_flag::SUBMOUNTS
            | init_flag::AUTO_INVAL_DATA
            | init_flag::POSIX_ACL
            | init_flag::DONT_MASK
            | init_flag::SETXATTR_EXT;
        if self.options.posix_locks {
            flags |= init_flag::POSIX_LOCKS;
        }
        if self.options.flocks {
            flags |= init_flag::FLOCK_LOCKS;
        }
        flags
    }

    fn read_only(&self, _node: u64) -> bool {
        false
    }

    fn change(&self, ctx: &Context, change: &Change<'_>) -> io::Result<Changed> {
        self.apply(ctx, change)
    }

    fn write_file(&self, _ctx: &Context, write: &WriteAt, io: &mut dyn WriteIo) -> io::Result<u32> {
        self.write_to(write, io)
    }

    fn file_op(&self, _ctx: &Context, node: u64, op: &FileOp) -> io::Result<()> {
        self.on_file(node, op)
    }

    fn flush_may_wait(&self, node: u64, handle: u64) -> bool {
        let file = self.inode(node).and_then(|inode| self.files.get(handle, &inode));
        file.is_ok_and(|file| file.reports_at_close)
    }

    fn lock(&self, _ctx: &Context, lock: &LockRequest, io: &mut dyn ReadIo) -> io::Result<LockReply> {
        self.lock_file(lock, io)
    }

    fn interrupt(&self, unique: u64) {
        self.waiters.interrupt(unique);
    }

    fn drop_all_locks(&self) {
        self.release_locks();
    }

    fn statx(
        &self,
        _ctx: &Context,
        node: u64,
        handle: Option<u64>,
        _mask: u32,
    ) -> io::Result<(abi::Statx, Duration)> {
        Ok((self.statx_of(node, handle)?, self.options.timeout))
    }
}

impl FileSystem for Passthrough {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _capable: FsOptions) -> io::Result<FsOptions> {
        Ok(FsOptions::empty())
    }

    fn destroy(&self) {
        self.waiters.clear();
        self.files.clear();
        self.inodes.clear();
    }

    fn lookup(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let dir = self.directory(parent)?;
        match name.to_bytes() {
            b"." => {
                if dir.number != ROOT {
                    let (inode, stat) = self.inodes.add(&self.proc, None, self.path_fd(&dir)?)?;
                    return Ok(self.entry(&inode, &stat));
                }
                return Ok(self.entry(&dir, &stat_fd(dir.fd()?.as_fd())?));
            }
            b".." => return self.look_up_parent(&dir),
            _ => {}
        }
        match self.inodes.look_up(&self.proc, &dir, single(name)?) {
            Ok((inode, stat)) => Ok(self.entry(&inode, &stat)),
            // A miss the guest may keep, for as long as it keeps names.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                Ok(Entry { entry_timeout: self.options.timeout, ..Entry::default() })
            }
            Err(e) => Err(e),
        }
    }

    fn forget(&self, _ctx: &Context, inode: u64, count: u64) {
        if inode >> INODE_BITS == u64::from(self.options.place.index) {
            self.inodes.forget(self.number(inode), count);
        }
    }

    fn getattr(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(libc::stat64, Duration)> {
        let inode = self.inode(inode)?;
        let stat = self.stat_node(&inode, handle)?;
        Ok((self.stat(&inode, &stat), self.options.timeout))
    }

    fn readlink(&self, _ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let inode = self.inode(inode)?;
        if inode.kind != libc::S_IFLNK {
            return Err(os(libc::EINVAL));
        }
        Ok(rustix::fs::readlinkat(inode.fd()?.as_fd(), c"", Vec::new())?.into_bytes())
    }

    fn open(
        &self,
        _ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let inode = self.inode(inode)?;
        match inode.kind {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(os(libc::EISDIR)),
            _ => return Err(os(libc::ENXIO)),
        }
        let kill = fuse_flags & abi::OPEN_KILL_SUIDGID != 0;
        let held = self.share.take()?;
        let fd = sys::killing_suidgid(kill, || inode.open(&self.proc, flags.cast_signed()))?;
        let handle = self.files.add(files::OpenFile::new(&inode, fd, Some(held)));
        Ok((Some(handle), OpenOptions::empty(), None))
    }

    fn opendir(&self, _ctx: &Context, inode: u64, _flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let dir = self.directory(inode)?;
        self.inodes.know_device(&dir);
        let held = self.share.take()?;
        let fd = dir.open(&self.proc, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let handle = self.files.add(files::OpenFile::new(&dir, fd, Some(held)));
        Ok((Some(handle), OpenOptions::empty()))
    }

    fn readdir(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list_names(inode, handle, offset, add_entry)
    }

    fn getxattr(&self, _ctx: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let inode = self.inode(inode)?;
        let fd = inode.fd()?;
        let path = proc_path(fd.as_fd());
        if size == 0 {
            let len = rustix::fs::getxattr_query(path, name)?;
            return Ok(GetxattrReply::Count(u32::try_from(len).map_err(|_| os(libc::E2BIG))?));
        }
        let mut value = vec![0; usize::try_from(size).unwrap_or(XATTR_MAX).min(XATTR_MAX)];
        let len = rustix::fs::getxattr(path, name, value.as_mut_slice())?;
        value.truncate(len);
        Ok(GetxattrReply::Value(value))
    }

    fn listxattr(&self, _ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let inode = self.inode(inode)?;
        let fd = inode.fd()?;
        let path = proc_path(fd.as_fd());
        if size == 0 {
            let len = rustix::fs::listxattr_query(path)?;
            return Ok(ListxattrReply::Count(u32::try_from(len).map_err(|_| os(libc::E2BIG))?));
        }
        let mut names = vec![0; usize::try_from(size).unwrap_or(XATTR_MAX).min(XATTR_MAX)];
        let len = rustix::fs::listxattr(path, names.as_mut_slice())?;
        names.truncate(len);
        Ok(ListxattrReply::Names(names))
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<libc::statvfs64> {
        let inode = self.inode(inode)?;
        let from = rustix::fs::fstatvfs(inode.fd()?.as_fd())?;
        let mut st = empty_statfs(ctx)?;
        st.f_bsize = from.f_bsize;
        st.f_frsize = from.f_frsize;
        st.f_blocks = from.f_blocks;
        st.f_bfree = from.f_bfree;
        st.f_bavail = from.f_bavail;
        st.f_files = from.f_files;
        st.f_ffree = from.f_ffree;
        st.f_namemax = from.f_namemax;
        Ok(st)
    }

    /// Guests check permissions themselves and ask only if they were not told to.
    fn access(&self, _ctx: &Context, inode: u64, _mask: u32) -> io::Result<()> {
        self.inode(inode).map(drop)
    }

    fn lseek(&self, _ctx: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let inode = self.inode(inode)?;
        let file = self.file(&inode, handle, libc::O_RDONLY)?;
        let to = match whence.cast_signed() {
            libc::SEEK_DATA => rustix::fs::SeekFrom::Data(offset),
            libc::SEEK_HOLE => rustix::fs::SeekFrom::Hole(offset),
            _ => return Err(os(libc::EINVAL)),
        };
        // The descriptor's own position, which this moves, is used by nothing else: directories have none of this.
        Ok(rustix::fs::seek(file.fd.as_fd(), to)?)
    }
}

impl Passthrough {
    /// The directory above, if that is inside still: the host can move a directory away from under a guest.
    fn look_up_parent(&self, dir: &Inode) -> io::Result<Entry> {
        if dir.number == ROOT {
            return Err(os(libc::ESTALE));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let above = |fd: BorrowedFd<'_>| rustix::fs::openat(fd, c"..", flags, Mode::empty());
        let parent = above(dir.fd()?.as_fd())?;
        let mut at = parent.try_clone()?;
        let mut depth = 0;
        while !self.inodes.is_root(&stat_fd(at.as_fd())?) {
            let next = above(at.as_fd())?;
            let is_top = inodes::Key::of(&stat_fd(next.as_fd())?) == inodes::Key::of(&stat_fd(at.as_fd())?);
            depth += 1;
            if is_top || depth > DEPTH_MAX {
                return Err(os(libc::ESTALE));
            }
            at = next;
        }
        let (inode, stat) = self.inodes.add(&self.proc, None, parent)?;
        Ok(self.entry(&inode, &stat))
    }

    /// An `O_PATH` descriptor of a node for keeps.
    fn path_fd(&self, inode: &Inode) -> io::Result<OwnedFd> {
        match inode.fd()? {
            inodes::NodeFd::Opened(fd) => Ok(fd),
            inodes::NodeFd::Kept(fd) => Ok(fd.try_clone_to_owned()?),
        }
    }
}
