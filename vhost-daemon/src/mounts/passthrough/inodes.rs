//! The nodes that a guest knows: from a node's number to the file on the host, and back.
//!
//! Owns: numbers, references, and how a node keeps hold of its file: by a descriptor as long as there are few, by a
//! file handle beyond that, so that a tree of any size costs a bounded number of descriptors. Does not own: open files.
//!
//! A number is `slot << 48 | inode number`, where the slot stands for device and mount; so it is the same each time the
//! same files are found in the same order, and `st_ino`, which is made of it, is unique over all mounts below the directory.
//! Node ids are made of it too, but are others each time.

use super::descriptors::{Held, Share};
use super::locks::Owner;
use super::sys::FileHandle;
use super::{DirFd, os};
use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

/// The root's number. No other has slot 0.
pub(super) const ROOT: u64 = 1;
const INO_BITS: u32 = 48;
/// The inode number's bits of a number.
pub(super) const INO_MASK: u64 = (1 << INO_BITS) - 1;
/// Slot of numbers that are made up.
const MADE_UP: u64 = 0xff;

/// What tells files apart on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    dev: (u32, u32),
    ino: u64,
    mount: u64,
}

impl Key {
    pub(super) fn of(stat: &Statx) -> Self {
        Self {
            dev: (stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            mount: if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 { stat.stx_mnt_id } else { 0 },
        }
    }
}

/// How a node keeps hold of its file.
#[derive(Debug)]
enum Place {
    /// `O_PATH`.
    Fd {
        fd: OwnedFd,
        _held: Held,
    },
    Handle(FileHandle, Arc<Mount>),
    /// The directory itself.
    Root(Arc<OwnedFd>),
}

/// A descriptor on a mount, to open file handles with.
#[derive(Debug)]
struct Mount {
    fd: OwnedFd,
}

/// A node.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u64,
    /// `S_IFMT` bits.
    pub(super) kind: u32,
    /// The root of a mount below the directory.
    pub(super) submount: bool,
    key: Key,
    place: Place,
    refs: AtomicU64,
    /// What holds the POSIX locks of each owner.
    pub(super) locks: Mutex<HashMap<u64, Arc<Owner>>>,
}

/// A descriptor of a node, borrowed or opened for the moment.
pub(super) enum NodeFd<'a> {
    Kept(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for NodeFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Kept(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

impl Inode {
    /// An `O_PATH` descriptor of the file.
    pub(super) fn fd(&self) -> io::Result<NodeFd<'_>> {
        match &self.place {
            Place::Fd { fd, .. } => Ok(NodeFd::Kept(fd.as_fd())),
            Place::Root(fd) => Ok(NodeFd::Kept(fd.as_fd())),
            Place::Handle(handle, mount) => {
                handle.open(mount.fd.as_fd(), libc::O_PATH | libc::O_NOFOLLOW).map(NodeFd::Opened)
            }
        }
    }

    /// Opens the file anew. Only regular files and directories: opening anything else does something on the host.
    pub(super) fn open(&self, proc: &DirFd, flags: i32) -> io::Result<OwnedFd> {
        if self.kind != libc::S_IFREG && self.kind != libc::S_IFDIR {
            return Err(os(libc::ENXIO));
        }
        let flags =
            flags & !(libc::O_NOFOLLOW | libc::O_CREAT | libc::O_EXCL | libc::O_DIRECT) | libc::O_NOCTTY;
        // Each WRITE says whether it appends: pages of a mapping that are written back through this handle do not.
        match self.open_as(proc, flags & !libc::O_APPEND) {
            // Files that can only be appended to (chattr +a) want to hear it when they are opened.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) && flags & libc::O_APPEND != 0 => {
                self.open_as(proc, flags)
            }
            opened => opened,
        }
    }

    fn open_as(&self, proc: &DirFd, flags: i32) -> io::Result<OwnedFd> {
        match &self.place {
            Place::Fd { fd, .. } => proc.reopen(fd.as_fd(), flags),
            Place::Root(fd) => proc.reopen(fd.as_fd(), flags),
            Place::Handle(handle, mount) => handle.open(mount.fd.as_fd(), flags),
        }
    }
}

#[derive(Debug, Default)]
struct Tables {
    by_number: HashMap<u64, Arc<Inode>>,
    by_key: HashMap<Key, Arc<Inode>>,
    slots: HashMap<((u32, u32), u64), u64>,
    made_up: u64,
}

/// All nodes of one directory that is passed through.
#[derive(Debug)]
pub(super) struct Inodes {
    root: Arc<Inode>,
    tables: RwLock<Tables>,
    /// Descriptors held by nodes, and how many there may be before handles are used.
    fds: AtomicUsize,
    fd_budget: usize,
    share: Arc<Share>,
    mounts: Mutex<HashMap<u64, Option<Weak<Mount>>>>,
}

/// `statx` of what `fd` itself names.
pub(super) fn stat_fd(fd: BorrowedFd<'_>) -> io::Result<Statx> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, wanted())?)
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

impl Inodes {
    /// Nodes below `root`, an `O_PATH` descriptor of a directory.
    pub(super) fn new(root: Arc<OwnedFd>, fd_budget: usize, share: Arc<Share>) -> Self {
        // A directory that cannot be looked at now is one that no lookup leads back to.
        let key = stat_fd(root.as_fd()).map_or(Key { dev: (0, 0), ino: 0, mount: 0 }, |stat| Key::of(&stat));
        let root = Arc::new(Inode {
            number: ROOT,
            kind: libc::S_IFDIR,
            submount: false,
            key,
            place: Place::Root(root),
            refs: AtomicU64::new(1),
            locks: Mutex::default(),
        });
        let inodes = Self {
            root,
            tables: RwLock::default(),
            fds: AtomicUsize::new(0),
            fd_budget,
            share,
            mounts: Mutex::default(),
        };
        inodes.know_device(&inodes.root);
        inodes
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The root.
    pub(super) fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    /// Whether that is the directory itself.
    pub(super) fn is_root(&self, stat: &Statx) -> bool {
        Key::of(stat) == self.root.key
    }

    /// The node with this number, whatever the guest sent.
    pub(super) fn get(&self, number: u64) -> io::Result<Arc<Inode>> {
        if number == ROOT {
            return Ok(Arc::clone(&self.root));
        }
        self.read().by_number.get(&number).cloned().ok_or_else(|| os(libc::ESTALE))
    }

    /// Nodes besides the root.
    pub(super) fn len(&self) -> usize {
        self.read().by_number.len()
    }

    /// Descriptors that nodes hold.
    pub(super) fn descriptors(&self) -> usize {
        self.fds.load(Ordering::Relaxed)
    }

    /// Looks `name` up in `dir` and takes a reference. The name has been checked to be a single component.
    pub(super) fn look_up(
        &self,
        proc: &DirFd,
        dir: &Inode,
        name: &std::ffi::CStr,
    ) -> io::Result<(Arc<Inode>, Statx)> {
        let dir_fd = dir.fd()?;
        // Most lookups are of what is known already: one system call.
        let stat = rustix::fs::statx(
            dir_fd.as_fd(),
            name,
            AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT,
            wanted(),
        )?;
        let tables = self.read();
        // A descriptor keeps the inode number from being used again; a handle does not.
        if let Some(known) = tables.by_key.get(&Key::of(&stat))
            && matches!(known.place, Place::Fd { .. })
        {
            known.refs.fetch_add(1, Ordering::Relaxed);
            return Ok((Arc::clone(known), stat));
        }
        drop(tables);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir_fd.as_fd(), name, flags, Mode::empty())?;
        self.add(proc, Some(dir), fd)
    }

    /// Takes a reference on what `fd` names, which was found in `dir`.
    pub(super) fn add(
        &self,
        proc: &DirFd,
        dir: Option<&Inode>,
        fd: OwnedFd,
    ) -> io::Result<(Arc<Inode>, Statx)> {
        let stat = stat_fd(fd.as_fd())?;
        let key = Key::of(&stat);
        if key == self.root.key {
            return Ok((Arc::clone(&self.root), stat));
        }
        let kind = u32::from(stat.stx_mode) & libc::S_IFMT;
        let submount = kind == libc::S_IFDIR && dir.is_some_and(|dir| dir.key.mount != key.mount);
        let place = self.place(proc, dir, fd, kind, key)?;
        let mut tables = self.write();
        if let Some(known) = tables.by_key.get(&key) {
            let same = match (&known.place, &place) {
                (Place::Handle(a, _), Place::Handle(b, _)) => a == b,
                (Place::Fd { .. } | Place::Root(_), _) => true,
                // The number may have been used again since the handle was taken.
                (Place::Handle(a, _), Place::Fd { fd, .. }) => {
                    FileHandle::of(fd.as_fd()).is_ok_and(|b| *a == b)
                }
                (Place::Handle(..), Place::Root(_)) => false,
            };
            if same {
                known.refs.fetch_add(1, Ordering::Relaxed);
                let known = Arc::clone(known);
                drop(tables);
                self.gone(&place);
                return Ok((known, stat));
            }
        }
        let number = tables.number(key);
        let inode = Arc::new(Inode {
            number,
            kind,
            submount,
            key,
            place,
            refs: AtomicU64::new(1),
            locks: Mutex::default(),
        });
        tables.by_number.insert(number, Arc::clone(&inode));
        tables.by_key.insert(key, Arc::clone(&inode));
        Ok((inode, stat))
    }

    /// How a new node holds its file.
    fn place(
        &self,
        proc: &DirFd,
        dir: Option<&Inode>,
        fd: OwnedFd,
        kind: u32,
        key: Key,
    ) -> io::Result<Place> {
        let held = self.fds.load(Ordering::Relaxed);
        if (held >= self.fd_budget || self.share.is_scarce())
            && let Ok(handle) = FileHandle::of(fd.as_fd())
            && let Some(mount) = self.mount(proc, dir, fd.as_fd(), kind, key, &handle)
        {
            return Ok(Place::Handle(handle, mount));
        }
        let held = self.share.take()?;
        self.fds.fetch_add(1, Ordering::Relaxed);
        Ok(Place::Fd { fd, _held: held })
    }

    /// A descriptor on the mount of `fd` that opens handles, if handles can be opened there at all.
    fn mount(
        &self,
        proc: &DirFd,
        dir: Option<&Inode>,
        fd: BorrowedFd<'_>,
        kind: u32,
        key: Key,
        handle: &FileHandle,
    ) -> Option<Arc<Mount>> {
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        match mounts.get(&key.mount) {
            Some(None) => return None,
            Some(Some(weak)) => {
                if let Some(mount) = weak.upgrade() {
                    return Some(mount);
                }
            }
            None => {}
        }
        // Handles are opened relative to a file that is really open, not to an O_PATH descriptor.
        let flags = libc::O_RDONLY | libc::O_NONBLOCK;
        let opened = match dir {
            Some(dir) if dir.key.mount == key.mount => dir.open(proc, flags),
            _ if kind == libc::S_IFDIR || kind == libc::S_IFREG => proc.reopen(fd, flags),
            _ => return None,
        };
        let mount = Arc::new(Mount { fd: opened.ok()? });
        match handle.open(mount.fd.as_fd(), libc::O_PATH) {
            Ok(_) => {
                mounts.insert(key.mount, Some(Arc::downgrade(&mount)));
                Some(mount)
            }
            Err(error) => {
                // Anything else passes: too many descriptors, a file that was removed.
                let for_ever = [libc::EOPNOTSUPP, libc::EPERM, libc::ENOSYS];
                if error.raw_os_error().is_some_and(|errno| for_ever.contains(&errno)) {
                    mounts.insert(key.mount, None);
                }
                None
            }
        }
    }

    fn gone(&self, place: &Place) {
        if matches!(place, Place::Fd { .. }) {
            self.fds.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Drops `count` references. A guest that drops more than it has loses the node, nothing else.
    pub(super) fn forget(&self, number: u64, count: u64) {
        let Some(inode) = self.read().by_number.get(&number).cloned() else { return };
        let mut left = inode.refs.load(Ordering::Relaxed);
        while let Err(now) = inode.refs.compare_exchange_weak(
            left,
            left.saturating_sub(count),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            left = now;
        }
        if left > count {
            return;
        }
        let mut tables = self.write();
        // A lookup may have come in between.
        if inode.refs.load(Ordering::Relaxed) == 0 && tables.by_number.remove(&number).is_some() {
            if tables.by_key.get(&inode.key).is_some_and(|known| known.number == number) {
                tables.by_key.remove(&inode.key);
            }
            drop(tables);
            self.gone(&inode.place);
        }
    }

    /// All nodes there are.
    pub(super) fn all(&self) -> Vec<Arc<Inode>> {
        let mut all: Vec<_> = self.read().by_number.values().cloned().collect();
        all.push(Arc::clone(&self.root));
        all
    }

    /// Forgets everything but the root.
    pub(super) fn clear(&self) {
        let tables = std::mem::take(&mut *self.write());
        for inode in tables.by_number.values() {
            self.gone(&inode.place);
        }
        self.root.locks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // Slots stay: the same files have the same numbers for the next session.
        self.write().slots = tables.slots;
    }

    /// The number a file has or would have, for listings: unique and the same as its node's wherever that is not made
    /// up.
    pub(super) fn shown(&self, dir: &Inode, ino: u64) -> u64 {
        let tables = self.read();
        let slot = tables.slots.get(&(dir.key.dev, dir.key.mount)).copied();
        match slot {
            Some(slot) if ino >> INO_BITS == 0 => slot << INO_BITS | ino,
            _ => ino,
        }
    }

    /// Makes sure that the directory's device has a slot, so that listings show the numbers lookups will give.
    pub(super) fn know_device(&self, dir: &Inode) {
        let device = (dir.key.dev, dir.key.mount);
        if !self.read().slots.contains_key(&device) {
            self.write().slot(device);
        }
    }
}

impl Tables {
    fn slot(&mut self, device: ((u32, u32), u64)) -> u64 {
        let next = self.slots.len() as u64 + 1;
        *self.slots.entry(device).or_insert(next)
    }

    fn number(&mut self, key: Key) -> u64 {
        let slot = self.slot((key.dev, key.mount));
        let plain = slot << INO_BITS | key.ino;
        if slot < MADE_UP && key.ino >> INO_BITS == 0 && key.ino != 0 && !self.by_number.contains_key(&plain)
        {
            return plain;
        }
        loop {
            self.made_up = self.made_up.wrapping_add(1) & ((1 << INO_BITS) - 1);
            let number = MADE_UP << INO_BITS | self.made_up;
            if !self.by_number.contains_key(&number) {
                return number;
            }
        }
    }
}
