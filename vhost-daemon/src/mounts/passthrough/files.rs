//! Open files and directories, and what is done with them.
//!
//! Owns: handles. A handle is good for the node it was opened on and no other. Does not own: nodes, locks.

use super::descriptors::Held;
use super::inodes::Inode;
use super::{Passthrough, os};
use crate::fuse::FileOp;
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
    /// One listing at a time: a directory has one position.
    pub(super) listing: Mutex<()>,
    /// Nothing for what is open during one request only.
    _held: Option<Held>,
}

impl OpenFile {
    pub(super) fn new(inode: &Inode, fd: OwnedFd, held: Option<Held>) -> Self {
        Self { fd, number: inode.number, listing: Mutex::default(), _held: held }
    }
}

/// All open files.
#[derive(Debug, Default)]
pub(super) struct Files {
    table: RwLock<HashMap<u64, Arc<OpenFile>>>,
    last: AtomicU64,
}

impl Files {
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
            FileOp::Flush { owner, .. } => self.drop_locks(&inode, owner),
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
