//! Open files and directories, and what is done with them.
//!
//! Owns: handles. A handle is good for the node it was opened on and no other. Does not own: nodes, locks.

use super::descriptors::Held;
use super::inodes::Inode;
use super::sys::close_duplicate;
use super::{Passthrough, os, random};
use crate::fuse::FileOp;
use rustix::fs::OFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// An open file or directory.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    /// Node it was opened on.
    pub(super) number: u64,
    /// Its file system says at close(2) what became of writes.
    pub(super) reports_at_close: bool,
    /// One listing at a time: a directory has one position.
    pub(super) listing: Mutex<()>,
    /// Nothing for what is open during one request only.
    _held: Option<Held>,
}

impl OpenFile {
    pub(super) fn new(inode: &Inode, fd: OwnedFd, held: Option<Held>) -> Self {
        // What is open during one request only is not flushed, and nothing came of what is only read.
        let reports_at_close = held.is_some() && inode.kind == libc::S_IFREG && reports_at_close(&fd);
        Self { fd, number: inode.number, reports_at_close, listing: Mutex::default(), _held: held }
    }
}

/// File systems that have nothing to say at close(2) (Linux, include/uapi/linux/magic.h): ext2 to ext4, XFS, Btrfs, tmpfs,
/// ramfs, F2FS. All others are asked.
const SILENT_AT_CLOSE: [u64; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x8584_58f6, 0xf2f5_2010];

fn reports_at_close(fd: &OwnedFd) -> bool {
    let is_silent = rustix::fs::fstatfs(fd).is_ok_and(|stat| {
        // The type of the field differs between platforms; its 32 bits do not.
        SILENT_AT_CLOSE.contains(&(stat.f_type.cast_unsigned() & u64::from(u32::MAX)))
    });
    !is_silent && is_writable(fd)
}

/// Whether a file is open for writing.
pub(super) fn is_writable(fd: &OwnedFd) -> bool {
    rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| flags.intersects(OFlags::WRONLY | OFlags::RDWR))
}

/// All open files.
#[derive(Debug)]
pub(super) struct Files {
    table: RwLock<HashMap<u64, Arc<OpenFile>>>,
    last: AtomicU64,
}

impl Files {
    /// None. Handles begin anywhere: a guest that outlives a daemon holds handles of the former, which are not to be taken
    /// for those of this one.
    pub(super) fn new() -> Self {
        Self { table: RwLock::default(), last: AtomicU64::new(random() >> 16) }
    }

    /// A handle for an open file, never 0.
    pub(super) fn add(&self, file: OpenFile) -> u64 {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.table.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(file));
        handle
    }

    /// The open file of a handle, if it is one of this node.
    pub(super) fn get(&self, handle: u64, inode: &Inode) -> io::Result<Arc<OpenFile>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.get(&handle).filter(|file| file.number == inode.number).cloned().ok_or_else(|| os(libc::EBADF))
    }

    fn remove(&self, handle: u64, number: u64) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.get(&handle).is_some_and(|file| file.number == number) {
            let file = table.remove(&handle);
            // Closing may take long: not under the lock.
            drop(table);
            drop(file);
        }
    }

    /// All open files there are.
    pub(super) fn all(&self) -> Vec<Arc<OpenFile>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn clear(&self) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Passthrough {
    pub(super) fn on_file(&self, node: u64, op: &FileOp) -> io::Result<()> {
        let inode = self.inode(node)?;
        match *op {
            FileOp::Flush { handle, owner } => {
                let file = self.files.get(handle, &inode).ok().filter(|file| file.reports_at_close);
                let closed = file.map_or(Ok(()), |file| close_duplicate(file.fd.as_fd()));
                self.drop_locks(&inode, owner);
                closed?;
            }
            FileOp::Fsync { handle, data, dir } => {
                let flags = if dir { libc::O_RDONLY | libc::O_DIRECTORY } else { libc::O_RDONLY };
                let file = self.file(&inode, handle, flags)?;
                if data {
                    rustix::fs::fdatasync(&file.fd)?;
                } else {
                    rustix::fs::fsync(&file.fd)?;
                }
            }
            FileOp::Release { handle, flock, posix } => {
                if let Some(owner) = posix {
                    self.drop_locks(&inode, owner);
                }
                self.files.remove(handle, inode.number);
                if flock.is_some() {
                    self.waiters.look();
                }
            }
            FileOp::ReleaseDir { handle } => self.files.remove(handle, inode.number),
            FileOp::SyncFs => {
                let fd = inode.open(&self.proc, libc::O_RDONLY | libc::O_NONBLOCK)?;
                rustix::fs::syncfs(fd.as_fd())?;
            }
        }
        Ok(())
    }
}
