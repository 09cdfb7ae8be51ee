//! A descriptor chain as the FUSE layer sees it: the request where it is, and the room for its reply.
//!
//! Owns: both sides of a request, whoever handles it: the ring's worker ([`InHand`]) or, later, a thread that may wait
//! ([`Parked`]). Does not own: what is in them.

use super::guest_buf::GuestBuf;
use super::parked::Parked;
use super::ring_state::SharedRing;
use crate::fuse::abi::OutHeader;
use crate::fuse::{ParkedRead, ReadIo, ReplyBuf};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use zerocopy::IntoBytes;

const HEADER: usize = size_of::<OutHeader>();

/// Where a reply goes.
pub(super) trait Room {
    /// What reads of files are told beside (`RWF_NOWAIT`).
    const FLAGS: i32;

    /// Calls `f` with the room, unless nobody waits for the reply any more.
    fn with<T>(&mut self, f: impl FnOnce(&mut GuestBuf) -> T) -> Option<T>;

    /// Its bytes; 0 when nobody waits any more.
    fn len(&self) -> usize;

    /// Takes the reply out of its hands.
    fn park(&mut self) -> Option<Parked>;
}

/// The reply of a request that a worker has in hand.
pub(super) struct InHand<'a> {
    pub(super) ring: &'a Arc<SharedRing>,
    pub(super) life: u64,
    pub(super) head: u16,
    pub(super) unique: u64,
    pub(super) buf: &'a mut GuestBuf,
}

impl InHand<'_> {
    /// Parks the reply, with `more` bytes that wait beside it; who has the result answers it. `None` when all that waits
    /// on this socket has no room for it.
    pub(super) fn parked(&self, more: usize) -> Option<Parked> {
        let space = self.ring.room(self.buf.weight() + more)?;
        Some(Parked::new(self.ring, self.life, self.head, self.unique, self.buf.duplicate(), space))
    }

    /// Puts an error in place; returns the bytes it takes.
    pub(super) fn error(&mut self, errno: i32) -> usize {
        if self.buf.len() < HEADER {
            return 0;
        }
        self.buf.write(0, OutHeader { len: 16, error: -errno, unique: self.unique }.as_bytes());
        HEADER
    }
}

impl Room for InHand<'_> {
    const FLAGS: i32 = libc::RWF_NOWAIT;

    #[inline]
    fn with<T>(&mut self, f: impl FnOnce(&mut GuestBuf) -> T) -> Option<T> {
        Some(f(self.buf))
    }

    #[inline]
    fn len(&self) -> usize {
        self.buf.len()
    }

    fn park(&mut self) -> Option<Parked> {
        self.parked(0)
    }
}

impl Room for Option<Parked> {
    const FLAGS: i32 = 0;

    fn with<T>(&mut self, f: impl FnOnce(&mut GuestBuf) -> T) -> Option<T> {
        self.as_ref().and_then(|parked| parked.with_buf(f))
    }

    fn len(&self) -> usize {
        self.as_ref().and_then(|parked| parked.with_buf(|buf| buf.len())).unwrap_or(0)
    }

    fn park(&mut self) -> Option<Parked> {
        self.take()
    }
}

/// Both sides.
pub(super) struct Reply<'a, R> {
    pub(super) request: &'a mut GuestBuf,
    pub(super) room: R,
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl<R: Room> Reply<'_, R> {
    fn preadv(
        &mut self,
        at: usize,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        flags: i32,
    ) -> io::Result<usize> {
        self.room.with(|buf| buf.preadv(HEADER + at, file, offset, len, flags)).ok_or_else(gone)?
    }
}

impl<R: Room> ReplyBuf for Reply<'_, R> {
    fn capacity(&self) -> usize {
        self.room.len()
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        self.room.with(|buf| buf.write(at, data));
    }

    fn request_bytes(&mut self, at: usize, to: &mut [u8]) -> usize {
        self.request.read(at, to)
    }

    fn write_request(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: Option<u64>,
    ) -> io::Result<usize> {
        self.room.with(|_| ()).ok_or_else(gone)?;
        self.request.pwritev(at, file, offset, len)
    }
}

impl<R: Room> ReadIo for Reply<'_, R> {
    fn room(&self) -> usize {
        self.room.len().saturating_sub(HEADER)
    }

    fn read_nowait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
        match self.preadv(at, file, offset, len, R::FLAGS) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP | libc::EINTR)) => {
                Ok(0)
            }
            other => other,
        }
    }

    fn read_wait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
        self.preadv(at, file, offset, len, 0)
    }

    fn zero(&mut self, at: usize, len: usize) {
        self.room.with(|buf| buf.zero(HEADER + at, len));
    }

    fn park(&mut self) -> Option<Box<dyn ParkedRead>> {
        self.room.park().map(|parked| Box::new(parked) as Box<dyn ParkedRead>)
    }
}
