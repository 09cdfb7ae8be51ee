//! A RAFS image as a guest's file system: metadata calls.
//!
//! Owns: what each call answers for an image (guest-view.md). Keeps nothing about open files or lookups, so
//! that a restart, a reconnect and an upgrade need no state. Does not own: reads (`read`).

use super::attributes::{BLOCK_SIZE, IdShift, Nodes, entry_type};
use super::backend::{Backend, Place};
use super::backlog::Backlog;
use super::counters::OpCounters;
use super::file_stats::FileStats;
use crate::fuse::abi::FileLock;
use crate::fuse::{
    GuestFs, LockReply, LockRequest, LockVerb, PlusEntry, PlusSink, ReadAt, ReadIo, ReadStart,
};
use crate::log_limit::LogLimit;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
};
use rafs::image::{FileKind, Image, Inode, InodeError};
use rafs::reader::Reader;
use std::ffi::CStr;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How a mount is shown.
#[derive(Clone, Copy, Debug)]
pub struct RafsMountOptions {
    /// Mount index, 1 ..= 255: the top byte of node ids.
    pub index: u8,
    /// Whether xattrs are served; if not, guests are told once and ask no more.
    pub xattr: bool,
    /// How long guests may keep names, attributes and misses. Images are immutable, so long.
    pub timeout: Duration,
}

/// An image at a place of a namespace. The same image may be shown at other places too: they share its reader.
#[derive(Debug)]
pub struct RafsMount {
    pub(super) shared: Arc<Shared>,
    /// Of the guest that sees it here.
    pub(super) backlog: Arc<Backlog>,
    nodes: Nodes,
    xattr: bool,
    timeout: Duration,
    identity: Option<u64>,
    ids: Option<IdShift>,
}

/// What all places of one image share.
#[derive(Debug)]
pub(super) struct Shared {
    pub reader: Reader,
    pub log: LogLimit,
    /// Reads that are parked. An `Arc` of its own, so that a parked read does not keep the reader: the last one out would
    /// end the fetch threads from within one of them.
    pub parked: Arc<AtomicUsize>,
    pub counters: Arc<OpCounters>,
    /// Reads by file, where the configuration asks for it.
    pub files: OnceLock<Arc<FileStats>>,
}

impl Backend for RafsMount {
    fn at(&self, place: Place) -> Arc<dyn GuestFs> {
        let nodes = Nodes::new(place, self.image().root(), self.ids);
        let (xattr, timeout, identity, ids) = (self.xattr, self.timeout, self.identity, self.ids);
        let shared = Arc::clone(&self.shared);
        Arc::new(Self { shared, backlog: Arc::default(), nodes, xattr, timeout, identity, ids })
    }

    fn root(&self) -> u64 {
        self.image().root().0
    }

    fn identity(&self) -> Option<u64> {
        self.identity
    }

    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.shared) == 1 && self.shared.parked.load(Ordering::Acquire) == 0
    }

    fn shutdown(&self) {
        self.reader().shutdown();
    }

    fn counters(&self) -> Arc<OpCounters> {
        Arc::clone(&self.shared.counters)
    }

    fn as_rafs(&self) -> Option<&RafsMount> {
        Some(self)
    }
}

impl RafsMount {
    /// Shows the image of `reader` as the root of a namespace.
    #[must_use]
    pub fn new(reader: Reader, options: RafsMountOptions) -> Self {
        let place = Place { index: options.index, generation: 0, at_root: true };
        let nodes = Nodes::new(place, reader.image().root(), None);
        let shared = Shared {
            reader,
            log: LogLimit::default(),
            parked: Arc::default(),
            counters: Arc::default(),
            files: OnceLock::new(),
        };
        let (xattr, timeout) = (options.xattr, options.timeout);
        let shared = Arc::new(shared);
        Self { shared, backlog: Arc::default(), nodes, xattr, timeout, identity: None, ids: None }
    }

    /// Says what tells this image from others ([`Backend::identity`]).
    #[must_use]
    pub fn with_identity(self, identity: u64) -> Self {
        Self { identity: Some(identity), ..self }
    }

    /// Shows owners shifted.
    #[must_use]
    pub fn with_ids(self, ids: Option<IdShift>) -> Self {
        Self { ids, ..self }
    }

    /// The reader, to stop it at the end.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.shared.reader
    }

    /// Notes reads by file from now on.
    pub fn keep_file_stats(&self) {
        let _ = self.shared.files.set(Arc::default());
    }

    /// What was read of each file, if that is noted.
    #[must_use]
    pub fn file_stats(&self) -> Option<&Arc<FileStats>> {
        self.shared.files.get()
    }

    /// What guests asked of this image so far, at all its places.
    #[must_use]
    pub fn counters(&self) -> &Arc<OpCounters> {
        &self.shared.counters
    }

    fn image(&self) -> &Image {
        self.shared.reader.image()
    }

    /// The inode of a node id, whatever the guest sent.
    pub(super) fn inode(&self, node: u64) -> io::Result<Inode> {
        let number = self.nodes.inode_number(node).ok_or_else(|| os(libc::ENOENT))?;
        self.image().inode(number).map_err(|e| self.refuse(&e))
    }

    /// The errno for an image error; what is wrong with the image is logged.
    fn refuse(&self, error: &InodeError) -> io::Error {
        // Where bytes are missing nothing is what it seems.
        let lost = self.image().confirm().err();
        let error = lost.as_ref().unwrap_or(error);
        let errno = errno(error);
        if errno == libc::EIO {
            let name = self.image().name();
            self.shared.log.warn(|| format!("the image {name} cannot be read: {error}"));
        }
        os(errno)
    }

    fn entry(&self, inode: &Inode) -> Entry {
        Entry {
            inode: self.nodes.node(inode.number),
            generation: self.nodes.generation(),
            attr: self.nodes.stat(inode),
            attr_flags: 0,
            attr_timeout: self.timeout,
            entry_timeout: self.timeout,
        }
    }

    fn directory(&self, node: u64) -> io::Result<Inode> {
        let inode = self.inode(node)?;
        if inode.kind == FileKind::Directory { Ok(inode) } else { Err(os(libc::ENOTDIR)) }
    }

    /// Lists a directory from `cookie` on until `add` says false. An entry that cannot be read ends the
    /// listing with an error only if it is the first, so that what came before it reaches the guest.
    #[inline]
    fn list(
        &self,
        node: u64,
        cookie: u64,
        mut add: impl FnMut(&rafs::image::DirEntry<'_>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let dir = self.directory(node)?;
        let entries = self.image().read_dir(&dir, cookie).map_err(|e| self.refuse(&e))?;
        let mut first = true;
        for entry in entries {
            match entry.map_err(|e| self.refuse(&e)).and_then(|entry| add(&entry)) {
                Ok(true) => first = false,
                Err(error) if first => return Err(error),
                Ok(false) | Err(_) => break,
            }
        }
        Ok(())
    }

    fn dir_entry<'a>(&self, entry: &rafs::image::DirEntry<'a>) -> DirEntry<'a> {
        DirEntry {
            ino: self.nodes.shown(entry.number),
            offset: entry.next_cookie,
            type_: entry_type(entry.kind),
            name: entry.name,
        }
    }
}

/// What a guest hears of an image error (guest-view.md section 1).
fn errno(error: &InodeError) -> i32 {
    match error {
        InodeError::NotFound(_) => libc::ENOENT,
        InodeError::NotADirectory(_) => libc::ENOTDIR,
        InodeError::NotASymlink(_) | InodeError::NotARegularFile(_) => libc::EINVAL,
        _ => libc::EIO,
    }
}

/// An error that is an errno.
pub(super) fn os(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl GuestFs for RafsMount {
    fn start_read(&self, _ctx: &Context, read: &ReadAt, io: &mut dyn ReadIo) -> io::Result<ReadStart> {
        self.read_file(read.node, read.offset, read.size, io)
    }

    fn list_plus(
        &self,
        _ctx: &Context,
        inode: u64,
        _handle: u64,
        offset: u64,
        sink: &mut dyn PlusSink,
    ) -> io::Result<()> {
        let valid_secs = self.timeout.as_secs();
        self.list(inode, offset, |entry| {
            let node = self.image().inode(entry.number).map_err(|e| self.refuse(&e))?;
            Ok(sink.add(&PlusEntry {
                name: entry.name,
                cookie: entry.next_cookie,
                kind: entry_type(entry.kind),
                node: self.nodes.node(entry.number),
                attr: self.nodes.attr(&node),
                generation: self.nodes.generation(),
                valid_secs,
            }))
        })
    }

    #[inline]
    fn confirm(&self) -> io::Result<()> {
        self.image().confirm().map_err(|e| self.refuse(&e))
    }

    fn stateless_open(&self) -> bool {
        true
    }

    /// Asked only where a directory is passed through beside the image. Nobody can open a file of an image for writing,
    /// so there are read locks alone, and none of those is in another's way.
    fn lock(&self, _ctx: &Context, lock: &LockRequest, _io: &mut dyn ReadIo) -> io::Result<LockReply> {
        self.inode(lock.node)?;
        match (lock.verb, i32::try_from(lock.lock.kind)) {
            _ if lock.flock => Err(os(libc::ENOSYS)),
            (LockVerb::Get, _) => {
                let kind = libc::F_UNLCK.cast_unsigned();
                Ok(LockReply::Holder(FileLock { start: 0, end: 0, kind, pid: 0 }))
            }
            (_, Ok(libc::F_RDLCK | libc::F_UNLCK)) => Ok(LockReply::Done),
            (_, Ok(libc::F_WRLCK)) => Err(os(libc::EBADF)),
            _ => Err(os(libc::EINVAL)),
        }
    }
}

impl FileSystem for RafsMount {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _capable: FsOptions) -> io::Result<FsOptions> {
        Ok(FsOptions::empty())
    }

    fn lookup(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let dir = self.directory(parent)?;
        match self.image().lookup(&dir, name.to_bytes()).map_err(|e| self.refuse(&e))? {
            Some(inode) => Ok(self.entry(&inode)),
            // A miss with a timeout: the guest remembers it. ENOENT would be asked again each time.
            None => Ok(Entry { entry_timeout: self.timeout, ..Entry::default() }),
        }
    }

    fn getattr(
        &self,
        _ctx: &Context,
        inode: u64,
        _handle: Option<u64>,
    ) -> io::Result<(libc::stat64, Duration)> {
        let inode = self.inode(inode)?;
        Ok((self.nodes.stat(&inode), self.timeout))
    }

    fn readlink(&self, _ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let inode = self.inode(inode)?;
        if inode.kind != FileKind::Symlink {
            return Err(os(libc::EINVAL));
        }
        self.image().read_link(&inode).map_err(|e| self.refuse(&e))
    }

    fn open(
        &self,
        _ctx: &Context,
        inode: u64,
        flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let inode = self.inode(inode)?;
        if inode.kind == FileKind::Directory {
            return Err(os(libc::EISDIR));
        }
        let flags = flags.cast_signed();
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            return Err(os(libc::EROFS));
        }
        Ok((None, OpenOptions::KEEP_CACHE, None))
    }

    fn opendir(&self, _ctx: &Context, inode: u64, _flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        self.directory(inode)?;
        Ok((None, OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR))
    }

    fn readdir(
        &self,
        _ctx: &Context,
        inode: u64,
        _handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(inode, offset, |entry| Ok(add_entry(self.dir_entry(entry))? > 0))
    }

    fn readdirplus(
        &self,
        _ctx: &Context,
        inode: u64,
        _handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(inode, offset, |entry| {
            let node = self.image().inode(entry.number).map_err(|e| self.refuse(&e))?;
            Ok(add_entry(self.dir_entry(entry), self.entry(&node))? > 0)
        })
    }

    fn getxattr(&self, _ctx: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        if !self.xattr {
            return Err(os(libc::ENOSYS));
        }
        let inode = self.inode(inode)?;
        let wanted = name.to_bytes();
        for xattr in self.image().xattrs(&inode).map_err(|e| self.refuse(&e))? {
            let xattr = xattr.map_err(|e| self.refuse(&e))?;
            if wanted.strip_prefix(xattr.prefix) == Some(xattr.suffix) {
                let len = u32::try_from(xattr.value.len()).map_err(|_| os(libc::E2BIG))?;
                return match size {
                    0 => Ok(GetxattrReply::Count(len)),
                    n if n < len => Err(os(libc::ERANGE)),
                    _ => Ok(GetxattrReply::Value(xattr.value.to_vec())),
                };
            }
        }
        Err(os(libc::ENODATA))
    }

    fn listxattr(&self, _ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        if !self.xattr {
            return Err(os(libc::ENOSYS));
        }
        let inode = self.inode(inode)?;
        let mut names = Vec::new();
        for xattr in self.image().xattrs(&inode).map_err(|e| self.refuse(&e))? {
            let xattr = xattr.map_err(|e| self.refuse(&e))?;
            names.extend_from_slice(xattr.prefix);
            names.extend_from_slice(xattr.suffix);
            names.push(0);
        }
        let len = u32::try_from(names.len()).map_err(|_| os(libc::E2BIG))?;
        match size {
            0 => Ok(ListxattrReply::Count(len)),
            n if n < len => Err(os(libc::ERANGE)),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<libc::statvfs64> {
        self.inode(inode)?;
        let bytes = self.image().blobs().iter().fold(0u64, |n, b| n.saturating_add(b.uncompressed_size));
        let mut st = Blank.statfs(ctx, inode)?;
        st.f_bsize = BLOCK_SIZE.cast_unsigned();
        st.f_frsize = BLOCK_SIZE.cast_unsigned();
        st.f_blocks = bytes.div_ceil(BLOCK_SIZE.cast_unsigned());
        st.f_files = self.image().inode_count();
        st.f_namemax = 255;
        Ok(st)
    }

    fn access(&self, ctx: &Context, inode: u64, mask: u32) -> io::Result<()> {
        let inode = self.inode(inode)?;
        let mask = mask.cast_signed() & 7;
        if mask & libc::W_OK != 0 {
            return Err(os(libc::EROFS));
        }
        let shift = if ctx.uid == self.nodes.id(inode.uid) {
            6
        } else if ctx.gid == self.nodes.id(inode.gid) {
            3
        } else {
            0
        };
        let granted = if ctx.uid == 0 {
            let any_exec = inode.mode & 0o111 != 0 || inode.kind == FileKind::Directory;
            libc::R_OK | if any_exec { libc::X_OK } else { 0 }
        } else {
            (inode.mode >> shift).cast_signed() & 7
        };
        if mask & !granted == 0 { Ok(()) } else { Err(os(libc::EACCES)) }
    }

    fn lseek(&self, _ctx: &Context, inode: u64, _handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let inode = self.inode(inode)?;
        if inode.kind != FileKind::Regular {
            return Err(os(libc::EINVAL));
        }
        match whence.cast_signed() {
            libc::SEEK_DATA | libc::SEEK_HOLE if offset >= inode.size => Err(os(libc::ENXIO)),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(inode.size),
            _ => Err(os(libc::EINVAL)),
        }
    }
}

/// A `stat64` of zeros.
pub(super) fn empty_stat() -> libc::stat64 {
    Entry::default().attr
}

/// A `statvfs64` with the trait's defaults.
pub(super) fn empty_statfs(ctx: &Context) -> io::Result<libc::statvfs64> {
    Blank.statfs(ctx, 1)
}

/// A file system with the trait's default answers: the way to an empty `statvfs64`, which has private
/// padding, without unsafe code.
struct Blank;

impl FileSystem for Blank {
    type Inode = u64;
    type Handle = u64;
}
