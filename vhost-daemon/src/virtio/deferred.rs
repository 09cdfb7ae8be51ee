//! A request that left its ring's worker because it may have to wait for a disk.
//!
//! Owns: what the request needs when it is handled later, by a thread that may wait. Does not own: when that is (the
//! pool), nor the one answer it gets ([`Parked`]): a ring that is stopped meanwhile answers EIO, and what is said here
//! after that goes nowhere.

use super::guest_buf::GuestBuf;
use super::parked::Parked;
use super::ring_state::SharedRing;
use crate::fuse::abi::OutHeader;
use crate::fuse::{GuestFs, Outcome, ParkedRead, ReadIo, ReplyBuf, Server};
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

const HEADER: usize = size_of::<OutHeader>();

/// A request with its reply's room.
#[derive(Debug)]
pub(super) struct Deferred {
    parked: Parked,
    head: Box<[u8]>,
    request: GuestBuf,
}

impl Deferred {
    /// Takes a request along: its first bytes as they were copied, and where it is.
    pub(super) fn new(parked: Parked, head: &[u8], request: GuestBuf) -> Self {
        Self { parked, head: head.into(), request }
    }

    /// Handles it, unless nobody waits any more.
    pub(super) fn handle<F: GuestFs>(self, ring: &SharedRing, server: &Server<F>) {
        if !self.parked.is_wanted() {
            return;
        }
        let total = self.request.len();
        let mut reply = Reply { request: self.request, parked: Some(self.parked) };
        let head = self.head;
        let outcome = catch_unwind(AssertUnwindSafe(|| server.handle_waiting(&head, total, &mut reply)));
        match (outcome, reply.parked) {
            (Ok(Outcome::Replied(len)), Some(parked)) => parked.complete(len),
            (Ok(_), _) => {}
            (Err(_), parked) => {
                ring.complain(|| "a request made its handler panic; it gets EIO".to_owned());
                drop(parked);
            }
        }
    }
}

/// The transport's side of a deferred request. Each step looks whether anybody still waits.
struct Reply {
    request: GuestBuf,
    parked: Option<Parked>,
}

impl Reply {
    fn with_buf<T>(&self, f: impl FnOnce(&mut GuestBuf) -> T) -> Option<T> {
        self.parked.as_ref().and_then(|parked| parked.with_buf(f))
    }

    fn gone() -> io::Error {
        io::Error::from_raw_os_error(libc::EIO)
    }
}

impl ReadIo for Reply {
    fn room(&self) -> usize {
        self.with_buf(|buf| buf.len()).unwrap_or(0).saturating_sub(HEADER)
    }

    fn read_nowait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
        self.read_wait(at, file, offset, len)
    }

    fn read_wait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
        self.with_buf(|buf| buf.preadv(HEADER + at, file, offset, len, 0)).ok_or_else(Self::gone)?
    }

    fn zero(&mut self, at: usize, len: usize) {
        self.with_buf(|buf| buf.zero(HEADER + at, len));
    }

    fn park(&mut self) -> Option<Box<dyn ParkedRead>> {
        self.parked.take().map(|parked| Box::new(parked) as Box<dyn ParkedRead>)
    }
}

impl ReplyBuf for Reply {
    fn capacity(&self) -> usize {
        self.with_buf(|buf| buf.len()).unwrap_or(0)
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        self.with_buf(|buf| buf.write(at, data));
    }

    fn request_bytes(&mut self, at: usize, to: &mut [u8]) -> usize {
        self.request.read(at, to)
    }

    fn write_request(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        if !self.parked.as_ref().is_some_and(Parked::is_wanted) {
            return Err(Self::gone());
        }
        self.request.pwritev(at, file, offset, len)
    }
}
