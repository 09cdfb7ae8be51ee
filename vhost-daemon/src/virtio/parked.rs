//! READs whose data is not here yet: the reply waits, the ring goes on.
//!
//! Owns: a parked reply and its one answer, whoever gives it: the fetch side, a ring that is stopped, or
//! nobody any more. Does not own: what is being waited for.

use super::guest_buf::GuestBuf;
use super::ring_state::SharedRing;
use crate::fuse::ParkedRead;
use crate::fuse::abi::OutHeader;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    buf: Mutex<Option<GuestBuf>>,
}

impl Slot {
    fn buf(&self) -> MutexGuard<'_, Option<GuestBuf>> {
        self.buf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers, the first time; does nothing later.
    pub(super) fn answer(&self, result: Result<usize, i32>) {
        let Some(mut buf) = self.buf().take() else { return };
        let (len, error) = match result {
            Ok(n) => (HEADER + n, 0),
            Err(errno) => (HEADER, -errno),
        };
        let wire_len = u32::try_from(len).unwrap_or(u32::MAX);
        buf.write(0, OutHeader { len: wire_len, error, unique: self.unique }.as_bytes());
        drop(buf);
        self.ring.give_back_parked(self.life, self.head, wire_len);
    }

    /// Lets go of guest memory without an answer: there is nobody to hear it.
    pub(super) fn forget(&self) {
        drop(self.buf().take());
    }
}

/// The fetch side's end of a [`Slot`].
#[derive(Debug)]
pub(super) struct Parked(Arc<Slot>);

impl Parked {
    /// Parks the reply of `head`, taken from `ring` in `life`.
    pub(super) fn new(ring: &Arc<SharedRing>, life: u64, head: u16, unique: u64, buf: GuestBuf) -> Self {
        let slot = Arc::new(Slot { ring: Arc::clone(ring), life, head, unique, buf: Mutex::new(Some(buf)) });
        ring.park(head, Arc::clone(&slot));
        Self(slot)
    }
}

impl ParkedRead for Parked {
    fn fill(&mut self, at: usize, data: &[u8]) {
        if let Some(buf) = self.0.buf().as_mut() {
            buf.write(HEADER + at, data);
        }
    }

    fn fill_from(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<()> {
        let mut done = 0;
        while done < len {
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

    fn finish(self: Box<Self>, result: Result<usize, i32>) {
        self.0.answer(result);
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.answer(Err(libc::EIO));
    }
}
