//! Locks: POSIX locks by owner, and those of flock(2) by open file.
//!
//! Owns: what holds them on the host, and requests that wait for one. A POSIX lock of a guest's owner is a lock of an
//! open file on the host, one open file an owner, so that guests, and the host, see each other's. Nobody's thread waits:
//! one thread tries waiting requests again, at once when a lock was dropped here, and every few milliseconds for those
//! that somebody else drops. Does not own: the wire.

use super::descriptors::Held;
use super::files::{OpenFile, is_writable};
use super::inodes::Inode;
use super::sys::{Range, held_ranges, ofd_lock};
use super::{Passthrough, os};
use crate::fuse::abi::FileLock;
use crate::fuse::{LockReply, LockRequest, LockVerb, ParkedRead, ReadIo};
use rustix::fs::FlockOperation;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

/// Requests that may wait at once.
const WAITING_MAX: usize = 4096;
/// Interrupts of requests that are not known (yet) which are remembered.
const EARLY_MAX: usize = 64;
/// Read locks that move along when a write lock is taken: the kernel walks through all of the file's for each.
const MOVED_MAX: usize = 256;
/// How often waiting requests are tried again.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// The open file that holds the POSIX locks of an owner on a node.
#[derive(Debug)]
pub(super) struct Owner {
    file: RwLock<LockFile>,
    _held: Held,
}

/// Open for writing if the guest has the file open so, or from the first write lock on, and not before: to open does something
/// on the host (a program that is open for writing cannot be run, a file of an overlay is copied up).
#[derive(Debug)]
struct LockFile {
    fd: OwnedFd,
    writable: bool,
}

impl Owner {
    fn set(&self, range: Range) -> io::Result<()> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        ofd_lock(file.fd.as_fd(), true, range).map(drop)
    }

    fn find(&self, range: Range) -> io::Result<Range> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        ofd_lock(file.fd.as_fd(), false, range)
    }

    fn count(&self) -> usize {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        held_ranges(file.fd.as_fd()).map_or(0, |ranges| ranges.len())
    }

    /// Makes it one that write locks can be taken on. Its read locks move along: nobody has what is in their way.
    fn make_writable(&self, open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<()> {
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        if !file.writable {
            let ranges = held_ranges(file.fd.as_fd())?;
            if ranges.len() > MOVED_MAX {
                return Err(os(libc::ENOLCK));
            }
            let fd = open()?;
            for range in ranges {
                ofd_lock(fd.as_fd(), true, range)?;
            }
            *file = LockFile { fd, writable: true };
        }
        Ok(())
    }
}

const EVERYTHING: Range = Range { kind: F_UNLCK, start: 0, len: 0, pid: 0 };

/// What a lock is taken on.
#[derive(Debug)]
enum Target {
    Posix(Arc<Owner>, Range),
    Flock(Arc<OpenFile>, FlockOperation),
}

impl Target {
    /// Takes or drops it. `EAGAIN` when somebody else holds it.
    fn set(&self) -> io::Result<()> {
        match self {
            Self::Posix(owner, range) => owner.set(*range),
            Self::Flock(file, operation) => Ok(rustix::fs::flock(&file.fd, *operation)?),
        }
    }

    /// Gives back what `set` got.
    fn undo(&self) {
        let _ = match self {
            Self::Posix(owner, range) => owner.set(Range { kind: F_UNLCK, ..*range }),
            Self::Flock(file, _) => {
                rustix::fs::flock(&file.fd, FlockOperation::NonBlockingUnlock).map_err(Into::into)
            }
        };
    }
}

/// A request that waits.
struct Waiter {
    unique: u64,
    target: Target,
    parked: Box<dyn ParkedRead>,
}

/// Requests that wait for a lock.
#[derive(Default)]
pub(super) struct Waiters {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiter>,
    /// Requests whose interrupt came before they began to wait: two threads may read the two, and it comes once.
    early: VecDeque<u64>,
    running: bool,
}

impl std::fmt::Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiters").field("waiting", &self.state().waiting.len()).finish_non_exhaustive()
    }
}

impl Waiters {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a request wait. What cannot wait comes back, with the errno that answers it.
    fn wait(self: &Arc<Self>, waiter: Waiter) -> Result<(), (Waiter, i32)> {
        let mut state = self.state();
        if let Some(at) = state.early.iter().position(|unique| *unique == waiter.unique) {
            state.early.remove(at);
            return Err((waiter, libc::EINTR));
        }
        if state.waiting.len() >= WAITING_MAX {
            return Err((waiter, libc::ENOLCK));
        }
        state.waiting.push(waiter);
        if !state.running {
            // The thread is there only while somebody waits.
            let waiters = Arc::clone(self);
            match thread::Builder::new().name("locks".to_owned()).spawn(move || waiters.run()) {
                Ok(_) => state.running = true,
                Err(error) => {
                    tracing::warn!("cannot start the thread that waits for locks: {error}");
                    return state.waiting.pop().map_or(Ok(()), |waiter| Err((waiter, libc::ENOLCK)));
                }
            }
        }
        Ok(())
    }

    fn run(&self) {
        let mut state = self.state();
        while !state.waiting.is_empty() {
            let mut still = Vec::new();
            let mut done = Vec::new();
            for waiter in std::mem::take(&mut state.waiting) {
                // Whose ring was stopped has heard EIO, and would never drop what it got here.
                if !waiter.parked.is_wanted() {
                    continue;
                }
                match waiter.target.set() {
                    Ok(()) if !waiter.parked.is_wanted() => waiter.target.undo(),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => still.push(waiter),
                    Err(e) => done.push((waiter, Err(e.raw_os_error().unwrap_or(libc::EIO)))),
                    Ok(()) => done.push((waiter, Ok(0))),
                }
            }
            state.waiting = still;
            if done.is_empty() {
                state = self.changed.wait_timeout(state, TRY_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            drop(state);
            for (waiter, result) in done {
                waiter.parked.finish(result);
            }
            state = self.state();
        }
        state.running = false;
    }

    /// A lock was dropped: somebody may get it now.
    pub(super) fn look(&self) {
        self.changed.notify_all();
    }

    /// Ends the wait of request `unique`.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut state = self.state();
        let Some(index) = state.waiting.iter().position(|waiter| waiter.unique == unique) else {
            if state.early.len() >= EARLY_MAX {
                state.early.pop_front();
            }
            state.early.push_back(unique);
            return;
        };
        let waiter = state.waiting.swap_remove(index);
        drop(state);
        waiter.parked.finish(Err(libc::EINTR));
    }

    /// Ends every wait.
    pub(super) fn clear(&self) {
        let waiting = {
            let mut state = self.state();
            state.early.clear();
            std::mem::take(&mut state.waiting)
        };
        for waiter in waiting {
            waiter.parked.finish(Err(libc::EINTR));
        }
        self.look();
    }
}

impl Passthrough {
    pub(super) fn lock_file(&self, request: &LockRequest, io: &mut dyn ReadIo) -> io::Result<LockReply> {
        let inode = self.inode(request.node)?;
        let target = if request.flock {
            if request.verb == LockVerb::Get {
                return Err(os(libc::EINVAL));
            }
            let operation = match i32::try_from(request.lock.kind) {
                Ok(libc::F_RDLCK) => FlockOperation::NonBlockingLockShared,
                Ok(libc::F_WRLCK) => FlockOperation::NonBlockingLockExclusive,
                Ok(libc::F_UNLCK) => FlockOperation::NonBlockingUnlock,
                _ => return Err(os(libc::EINVAL)),
            };
            Target::Flock(self.files.get(request.handle, &inode)?, operation)
        } else {
            let range = range(&request.lock)?;
            if request.verb == LockVerb::Get {
                return Ok(LockReply::Holder(holder(self.find(&inode, request.owner, range)?)));
            }
            if range.kind == F_UNLCK {
                self.ranges.split();
            } else {
                self.ranges.take(|| self.count_ranges())?;
            }
            Target::Posix(self.owner(&inode, request, range.kind == F_WRLCK)?, range)
        };
        match target.set() {
            Ok(()) => {
                self.waiters.look();
                Ok(LockReply::Done)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && request.verb == LockVerb::SetWait => {
                let parked = io.park().ok_or_else(|| os(libc::EAGAIN))?;
                let waiter = Waiter { unique: request.unique, target, parked };
                if let Err((waiter, errno)) = self.waiters.wait(waiter) {
                    waiter.parked.finish(Err(errno));
                }
                Ok(LockReply::Parked)
            }
            Err(e) => Err(e),
        }
    }

    /// Ranges that the guest has locked.
    fn count_ranges(&self) -> usize {
        let inodes = self.inodes.all();
        let owners = inodes.iter().flat_map(|inode| {
            let locks = inode.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.values().cloned().collect::<Vec<_>>()
        });
        owners.map(|owner| owner.count()).sum()
    }

    /// What is in the way of a lock of `owner`.
    fn find(&self, inode: &Inode, owner: u64, range: Range) -> io::Result<Range> {
        let owner = inode.locks.lock().unwrap_or_else(PoisonError::into_inner).get(&owner).cloned();
        if let Some(owner) = owner {
            return owner.find(range);
        }
        if inode.kind != libc::S_IFREG {
            return Err(os(libc::EINVAL));
        }
        ofd_lock(inode.open(&self.proc, libc::O_RDONLY)?.as_fd(), false, range)
    }

    /// The open file that holds the locks of the owner who asks.
    fn owner(&self, inode: &Inode, request: &LockRequest, writable: bool) -> io::Result<Arc<Owner>> {
        let mut locks = inode.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = locks.get(&request.owner) {
            if writable {
                owner.make_writable(|| inode.open(&self.proc, libc::O_RDWR))?;
            }
            return Ok(Arc::clone(owner));
        }
        if inode.kind != libc::S_IFREG {
            return Err(os(libc::EINVAL));
        }
        let held = self.share.take()?;
        let is_open_so = || self.files.get(request.handle, inode).is_ok_and(|file| is_writable(&file.fd));
        let writable = writable || is_open_so();
        let fd = inode.open(&self.proc, if writable { libc::O_RDWR } else { libc::O_RDONLY })?;
        let owner = Arc::new(Owner { file: RwLock::new(LockFile { fd, writable }), _held: held });
        locks.insert(request.owner, Arc::clone(&owner));
        Ok(owner)
    }

    /// Drops all POSIX locks of `owner` on a node.
    pub(super) fn drop_locks(&self, inode: &Inode, owner: u64) {
        let mut locks = inode.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = locks.get(&owner).cloned() {
            // A request of the same owner that waits, or is about to lock, holds the descriptor too. What it gets
            // later must stay: its descriptor is kept here then.
            if Arc::strong_count(&held) <= 2 {
                locks.remove(&owner);
            }
            drop(locks);
            let _ = held.set(EVERYTHING);
            self.waiters.look();
        }
    }
}

impl Passthrough {
    /// Drops all locks and ends every wait for one. Nodes and handles stay.
    pub(super) fn release_locks(&self) {
        // Those that wait first, so that none gets what is dropped here.
        self.waiters.clear();
        for inode in self.inodes.all() {
            let held = std::mem::take(&mut *inode.locks.lock().unwrap_or_else(PoisonError::into_inner));
            for owner in held.values() {
                let _ = owner.set(EVERYTHING);
            }
        }
        if self.options.flocks {
            for file in self.files.all() {
                let _ = rustix::fs::flock(&file.fd, FlockOperation::NonBlockingUnlock);
            }
        }
    }
}

const F_RDLCK: i16 = 0;
const F_WRLCK: i16 = 1;
const F_UNLCK: i16 = 2;

fn range(lock: &FileLock) -> io::Result<Range> {
    let kind = match lock.kind {
        0 => F_RDLCK,
        1 => F_WRLCK,
        2 => F_UNLCK,
        _ => return Err(os(libc::EINVAL)),
    };
    let start = i64::try_from(lock.start).map_err(|_| os(libc::EINVAL))?;
    let to_the_end = lock.end >= i64::MAX.cast_unsigned();
    let len = if to_the_end {
        0
    } else {
        let last = i64::try_from(lock.end).map_err(|_| os(libc::EINVAL))?;
        last.checked_sub(start).filter(|len| *len >= 0).ok_or_else(|| os(libc::EINVAL))? + 1
    };
    Ok(Range { kind, start, len, pid: 0 })
}

fn holder(found: Range) -> FileLock {
    let kind = u32::try_from(found.kind).unwrap_or(2);
    if found.kind == F_UNLCK {
        return FileLock { start: 0, end: 0, kind, pid: 0 };
    }
    let start = found.start.cast_unsigned();
    let end = if found.len == 0 {
        i64::MAX.cast_unsigned()
    } else {
        start.saturating_add(found.len.cast_unsigned()) - 1
    };
    // That of a process of the host, which the dispatcher tells the host alone.
    FileLock { start, end, kind, pid: u32::try_from(found.pid).unwrap_or(0) }
}
