//! Where a reply goes: the transport's side of it, and helpers that lay out header and payload.
//!
//! Owns: the [`ReplyBuf`] trait and the encoding of whole replies. Does not own: memory.

use super::abi::OutHeader;
use super::guest_fs::{ReadIo, WriteIo};
use std::io;
use std::os::fd::BorrowedFd;
use zerocopy::{Immutable, IntoBytes};

/// Bytes of the reply header.
pub(super) const HEADER: usize = size_of::<OutHeader>();

/// The writable part of a request, and beside it the request. Offsets count from its start, so the header is at 0 and the payload at
/// 16. Writing never fails: what lies beyond [`ReplyBuf::capacity`] is dropped, so callers check first.
pub trait ReplyBuf: ReadIo {
    /// Bytes that fit, header included. 0 for requests without a reply.
    fn capacity(&self) -> usize;

    /// Copies `data` to byte `at`.
    fn put(&mut self, at: usize, data: &[u8]);

    /// Copies bytes of the request from byte `at` on, for bodies longer than what the dispatcher was handed.
    /// Returns how many there were. The guest may change them between two calls.
    fn request_bytes(&mut self, at: usize, to: &mut [u8]) -> usize;

    /// Writes bytes `at .. at + len` of the request to `offset` of `file`, or to its end, straight from where they are.
    ///
    /// # Errors
    ///
    /// That of pwritev2(2).
    fn write_request(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: Option<u64>,
    ) -> io::Result<usize>;
}

/// The bytes of a request from `base` on, as the payload of a WRITE.
pub(super) struct Payload<'a, R: ?Sized> {
    pub(super) transport: &'a mut R,
    pub(super) base: usize,
}

impl<R: ReplyBuf + ?Sized> WriteIo for Payload<'_, R> {
    fn write_to(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: Option<u64>,
    ) -> io::Result<usize> {
        self.transport.write_request(self.base + at, len, file, offset)
    }
}

/// Writes header and payload; returns the bytes used. A reply that does not fit turns into `too_small`
/// (an errno), and into nothing at all when not even a header fits (guest-view.md section 4).
pub(super) fn whole<R: ReplyBuf + ?Sized, T: IntoBytes + Immutable>(
    reply: &mut R,
    unique: u64,
    payload: &T,
) -> usize {
    bytes(reply, unique, payload.as_bytes(), libc::EINVAL)
}

/// Like [`whole`] for a payload that is bytes already.
pub(super) fn bytes<R: ReplyBuf + ?Sized>(
    reply: &mut R,
    unique: u64,
    payload: &[u8],
    too_small: i32,
) -> usize {
    let len = HEADER + payload.len();
    if len > reply.capacity() {
        return error(reply, unique, too_small);
    }
    reply.put(HEADER, payload);
    header(reply, unique, len)
}

/// Writes the header of a successful reply of `len` bytes whose payload is in place already.
pub(super) fn header<R: ReplyBuf + ?Sized>(reply: &mut R, unique: u64, len: usize) -> usize {
    let Ok(wire_len) = u32::try_from(len) else { return error(reply, unique, libc::EIO) };
    if reply.capacity() < HEADER {
        return 0;
    }
    reply.put(0, OutHeader { len: wire_len, error: 0, unique }.as_bytes());
    len
}

/// Writes an error reply; returns the bytes used, 0 when not even a header fits.
pub(super) fn error<R: ReplyBuf + ?Sized>(reply: &mut R, unique: u64, errno: i32) -> usize {
    if reply.capacity() < HEADER {
        return 0;
    }
    reply.put(0, OutHeader { len: 16, error: -errno, unique }.as_bytes());
    HEADER
}
