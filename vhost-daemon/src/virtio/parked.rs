//! READs whose data is not here yet: the reply waits, the ring goes on.
//!
//! Owns: a parked reply and its one answer, whoever gives it: the fetch side, a ring that is stopped, or
//! nobody any more. Does not own: what is being waited for.

use super::guest_buf::GuestBuf;
use super::lot::Space;
use super::ring_state::{Notify, SharedRing};
use crate::fuse::ParkedRead;
use crate::fuse::abi::OutHeader;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use zerocopy::IntoBytes;

const HEADER: usize = size_of::<OutHeader>();

/// A parked reply. Its buffer is there until it is answered or forgotten; nothing is written to guest
/// memory after that.
#[derive(Debug)]
pub(super) struct Slot {
    ring: Arc<SharedRing>,
    life: u64,
    head: u16,
    unique: u64,
    /// Nobody waits any more. Looked at before each step, so that a step that hangs in the kernel keeps
    /// nobody else waiting for the lock.
    forgotten: AtomicBool,
    buf: Mutex<Option<GuestBuf>>,
    /// What it takes of its socket's room.
    _space: Space,
}

impl Slot {
    fn buf(&self) -> MutexGuard<'_, Option<GuestBuf>> {
        self.buf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers, the first time; does nothing later.
    pub(super) fn answer(&self, result: Result<usize, i32>) {
        let taken = self.buf().take();
        let Some(mut buf) = taken.filter(|_| !self.forgotten.load(Ordering::Acquire)) else { return };
        let (len, error) = match result {
            Ok(n) => (HEADER + n, 0),
            Err(errno) => (HEADER, -errno),
        };
        let wire_len = u32::try_from(len).unwrap_or(u32::MAX);
        buf.write(0, OutHeader { len: wire_len, error, unique: self.unique }.as_bytes());
        drop(buf);
        self.ring.give_back_parked(self.life, self.head, wire_len, Notify::Worker);
    }

    /// Answers EIO if nobody is filling the reply this moment; says whether it did.
    pub(super) fn answer_if_idle(&self) -> bool {
        let idle = !matches!(self.buf.try_lock(), Err(TryLockError::WouldBlock));
        if idle {
            self.answer(Err(libc::EIO));
        }
        idle
    }

    /// Lets go of guest memory without an answer: there is nobody to hear it. Does not wait for a step
    /// that is under way.
    pub(super) fn forget(&self) {
        self.forgotten.store(true, Ordering::Release);
        if let Ok(mut buf) = self.buf.try_lock() {
            drop(buf.take());
        }
    }

    fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Acquire)
    }

    /// Gives back the head with a reply that is in place already.
    fn complete(&self, len: usize) {
        let taken = self.buf().take();
        if taken.is_none() || self.is_forgotten() {
            return;
        }
        drop(taken);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.ring.give_back_parked(self.life, self.head, len, Notify::Here);
    }
}

/// The fetch side's end of a [`Slot`].
#[derive(Debug)]
pub(super) struct Parked(Arc<Slot>);

impl Parked {
    /// Parks the reply of `head`, taken from `ring` in `life`.
    pub(super) fn new(
        ring: &Arc<SharedRing>,
        life: u64,
        head: u16,
        unique: u64,
        buf: GuestBuf,
        space: Space,
    ) -> Self {
        let slot = Slot {
            ring: Arc::clone(ring),
            life,
            head,
            unique,
            forgotten: AtomicBool::new(false),
            buf: Mutex::new(Some(buf)),
            _space: space,
        };
        let slot = Arc::new(slot);
        ring.park(head, Arc::clone(&slot));
        Self(slot)
    }
}

impl Parked {
    /// Whether anybody still waits: a ring that was stopped has answered already.
    pub(super) fn is_wanted(&self) -> bool {
        !self.0.is_forgotten() && self.0.buf().is_some()
    }

    /// Calls `f` with the reply's room, unless nobody waits any more.
    pub(super) fn with_buf<T>(&self, f: impl FnOnce(&mut GuestBuf) -> T) -> Option<T> {
        if self.0.is_forgotten() {
            return None;
        }
        self.0.buf().as_mut().map(f)
    }

    /// Gives back the head with a reply of `len` bytes that is in place.
    pub(super) fn complete(self, len: usize) {
        self.0.complete(len);
    }
}

impl ParkedRead for Parked {
    fn fill(&mut self, at: usize, data: &[u8]) {
        if self.0.is_forgotten() {
            return;
        }
        if let Some(buf) = self.0.buf().as_mut() {
            buf.write(HEADER + at, data);
        }
    }

    fn fill_from(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            if self.0.is_forgotten() {
                return Ok(());
            }
            let mut guard = self.0.buf();
            let Some(buf) = guard.as_mut() else { return Ok(()) };
            match buf.preadv(HEADER + at + done, file, offset + done as u64, len - done, 0) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        Self::is_wanted(self)
    }

    fn finish(self: Box<Self>, result: Result<usize, i32>) {
        self.0.answer(result);
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.answer(Err(libc::EIO));
    }
}
