//! A piece of guest memory, possibly scattered, as host addresses.
//!
//! Owns: every copy into and out of guest memory but for single fields ([`super::view`]): the two modules and the kernel
//! are the only ones that write there. Does not own: descriptors.
//!
//! Unsafe code is here because the bytes belong to a guest that changes them at will: no Rust reference to
//! them may exist, so they are reached through raw pointers, by memcpy and preadv2 alone.
#![allow(unsafe_code)]

use super::GuestMemory;
use super::view::{Fault, View};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

/// Most segments one preadv2 takes (`IOV_MAX`).
const IOV_MAX: usize = 1024;
/// Segments there is always room for: a request of 1 MiB in pages takes 260.
const SEGMENTS: usize = 288;

/// Scattered guest memory, neighbours merged. Holds the memory it points into.
pub(super) struct GuestBuf {
    memory: Option<Arc<GuestMemory>>,
    segments: Vec<libc::iovec>,
    len: usize,
    /// Scratch for preadv2, kept so that a hot read allocates nothing.
    scratch: Vec<libc::iovec>,
    /// Where the last copy ended up: (segment, offset of that segment), to go on from there.
    cursor: (usize, usize),
}

// SAFETY: the raw pointers point into `memory`, which is kept mapped by the Arc and may be used from any
// thread; nothing else in the structure is bound to a thread.
unsafe impl Send for GuestBuf {}

impl std::fmt::Debug for GuestBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestBuf").field("segments", &self.segments.len()).field("len", &self.len).finish()
    }
}

impl GuestBuf {
    /// An empty buffer in no memory.
    pub(super) fn new() -> Self {
        Self {
            memory: None,
            segments: Vec::with_capacity(SEGMENTS),
            len: 0,
            scratch: Vec::with_capacity(SEGMENTS),
            cursor: (0, 0),
        }
    }

    /// Makes it empty, in no memory.
    pub(super) fn release(&mut self) {
        self.segments.clear();
        self.len = 0;
        self.cursor = (0, 0);
        self.memory = None;
        self.segments.shrink_to(SEGMENTS);
        self.scratch.clear();
        self.scratch.shrink_to(SEGMENTS);
    }

    /// Makes it empty, in `memory` from here on.
    pub(super) fn reset(&mut self, memory: &Arc<GuestMemory>) {
        self.segments.clear();
        self.len = 0;
        self.cursor = (0, 0);
        if !self.memory.as_ref().is_some_and(|old| Arc::ptr_eq(old, memory)) {
            self.memory = Some(Arc::clone(memory));
        }
    }

    /// A second handle on the same bytes.
    pub(super) fn duplicate(&self) -> Self {
        Self {
            memory: self.memory.clone(),
            segments: self.segments.clone(),
            len: self.len,
            scratch: Vec::new(),
            cursor: (0, 0),
        }
    }

    /// Bytes that a second handle takes.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + size_of_val(self.segments.as_slice())
    }

    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends `len` bytes at guest address `addr`, over region borders where these touch. `view` is one of the memory
    /// that it was reset to.
    ///
    /// # Errors
    ///
    /// [`Fault`] when a part is not guest memory; what came before it stays appended.
    pub(super) fn push(&mut self, view: &mut View, mut addr: u64, len: u32) -> Result<(), Fault> {
        // What is pointed into has to be what is held.
        if !self.memory.as_ref().is_some_and(|held| Arc::ptr_eq(held, view.memory())) {
            return Err(Fault);
        }
        let mut left = u64::from(len);
        while left > 0 {
            let (host, room) = view.at(addr)?;
            let here = room.min(left);
            let here_len = usize::try_from(here).map_err(|_| Fault)?;
            let total = self.len.checked_add(here_len).ok_or(Fault)?;
            match self.segments.last_mut() {
                Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == host => {
                    last.iov_len += here_len;
                }
                _ => self.segments.push(libc::iovec { iov_base: host.cast(), iov_len: here_len }),
            }
            self.len = total;
            left -= here;
            if left > 0 {
                addr = addr.checked_add(here).ok_or(Fault)?;
            }
        }
        Ok(())
    }

    /// Calls `f` with each host range of bytes `at .. at + len`, in order; stops at the end of the buffer.
    fn each(&mut self, at: usize, len: usize, mut f: impl FnMut(*mut u8, usize, usize)) {
        let (mut index, mut start) = if self.cursor.1 <= at { self.cursor } else { (0, 0) };
        let mut done = 0;
        while done < len {
            let Some(segment) = self.segments.get(index) else { break };
            let skip = at + done - start;
            if skip >= segment.iov_len {
                start += segment.iov_len;
                index += 1;
                continue;
            }
            let n = (segment.iov_len - skip).min(len - done);
            f(segment.iov_base.cast::<u8>().wrapping_add(skip), done, n);
            done += n;
        }
        self.cursor = (index, start);
    }

    /// Copies `data` to byte `at`; what lies beyond the end is dropped.
    pub(super) fn write(&mut self, at: usize, data: &[u8]) {
        self.each(at, data.len(), |host, done, n| {
            let Some(from) = data.get(done..done + n) else { return };
            // SAFETY: `host .. host + n` is inside a region of `memory`, which `self` keeps mapped and
            // which is shared memory that overlaps no Rust object; `from` has n bytes.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), host, n) };
        });
    }

    /// Fills `len` bytes from `at` on with zeros.
    pub(super) fn zero(&mut self, at: usize, len: usize) {
        self.each(at, len, |host, _, n| {
            // SAFETY: as in `write`.
            unsafe { std::ptr::write_bytes(host, 0, n) };
        });
    }

    /// Copies bytes from `at` on to `data`; returns how many there were.
    pub(super) fn read(&mut self, at: usize, data: &mut [u8]) -> usize {
        let mut copied = 0;
        self.each(at, data.len(), |host, done, n| {
            let Some(to) = data.get_mut(done..done + n) else { return };
            // SAFETY: as in `write`, in the other direction. The guest may change the bytes meanwhile; any
            // value is a valid u8 and the copy is what is used from here on.
            unsafe { std::ptr::copy_nonoverlapping(host.cast_const(), to.as_mut_ptr(), n) };
            copied += n;
        });
        copied
    }

    /// Reads up to `len` bytes at `offset` of `file` to byte `at`, in one call. Returns the bytes read.
    ///
    /// # Errors
    ///
    /// That of preadv2(2).
    pub(super) fn preadv(
        &mut self,
        at: usize,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        flags: i32,
    ) -> io::Result<usize> {
        self.vectored(at, len, offset, |vectors, count, offset| {
            // SAFETY: each vector is inside a region of `memory`, which `self` keeps mapped; the kernel copies
            // into it. There are `count` of them, and they live until the call returns.
            unsafe { libc::preadv2(file.as_raw_fd(), vectors, count, offset, flags) }
        })
    }

    /// Writes bytes `at .. at + len` to `offset` of `file`, or to its end, in one call. Returns the bytes written. The guest may
    /// change them meanwhile: what is written is then one or the other.
    ///
    /// # Errors
    ///
    /// That of pwritev2(2).
    pub(super) fn pwritev(
        &mut self,
        at: usize,
        file: BorrowedFd<'_>,
        offset: Option<u64>,
        len: usize,
    ) -> io::Result<usize> {
        let flags = if offset.is_none() { libc::RWF_APPEND } else { 0 };
        self.vectored(at, len, offset.unwrap_or(0), |vectors, count, offset| {
            // SAFETY: as in `preadv`, in the other direction.
            unsafe { libc::pwritev2(file.as_raw_fd(), vectors, count, offset, flags) }
        })
    }

    /// Calls `f` with bytes `at .. at + len` as vectors, their number, and the offset in the file.
    #[inline]
    fn vectored(
        &mut self,
        at: usize,
        len: usize,
        offset: u64,
        f: impl FnOnce(*const libc::iovec, i32, i64) -> isize,
    ) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut vectors = std::mem::take(&mut self.scratch);
        vectors.clear();
        self.each(at, len, |host, _, n| {
            if vectors.len() < IOV_MAX {
                vectors.push(libc::iovec { iov_base: host.cast(), iov_len: n });
            }
        });
        let count = i32::try_from(vectors.len()).unwrap_or(i32::MAX);
        let n = f(vectors.as_ptr(), count, offset);
        self.scratch = vectors;
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use vm_memory::GuestAddress;

    fn memory() -> Arc<GuestMemory> {
        let ranges =
            [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000), (GuestAddress(0x8000), 0x1000)];
        Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
    }

    fn buffer() -> (GuestBuf, View) {
        let (mut buf, view) = (GuestBuf::new(), View::new(&memory()));
        buf.reset(view.memory());
        (buf, view)
    }

    #[test]
    fn spans_regions_and_refuses_holes() {
        let (mut buf, mut view) = buffer();
        buf.push(&mut view, 0x1ff0, 0x20).unwrap();
        assert_eq!(buf.len(), 0x20);
        assert_eq!(buf.push(&mut view, 0x2ff0, 0x20), Err(Fault));
        assert_eq!(buf.push(&mut view, u64::MAX - 3, 16), Err(Fault));
        let mut out = [0; 0x20];
        buf.write(0, &[7; 0x20]);
        assert_eq!(buf.read(0, &mut out), 0x20);
        assert_eq!(out, [7; 0x20]);
    }

    #[test]
    fn copies_at_any_offset_over_many_segments() {
        let (mut buf, mut view) = buffer();
        for i in 0..100 {
            buf.push(&mut view, 0x1000 + i * 20, 10).unwrap();
        }
        let data: Vec<u8> = (0..=255).collect();
        for at in [0, 5, 9, 10, 11, 500, 744, 3] {
            buf.write(at, &data);
            let mut out = vec![0; 256];
            assert_eq!(buf.read(at, &mut out), 256, "{at}");
            assert_eq!(out, data, "{at}");
        }
        let mut out = vec![0; 256];
        assert_eq!(buf.read(990, &mut out), 10);
        buf.write(990, &data);
        buf.zero(0, 1000);
        let mut out = vec![1; 1000];
        assert_eq!(buf.read(0, &mut out), 1000);
        assert!(out.iter().all(|b| *b == 0));
    }

    #[test]
    fn writes_scattered_memory_to_files() {
        let file = tempfile::tempfile().unwrap();
        let (mut buf, mut view) = buffer();
        for i in 0..50 {
            buf.push(&mut view, 0x8000 + i * 60, 33).unwrap();
        }
        let data: Vec<u8> = (0..1650u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        buf.write(0, &data);
        assert_eq!(buf.pwritev(40, file.as_fd(), Some(7), 1000).unwrap(), 1000);
        assert_eq!(buf.pwritev(1640, file.as_fd(), Some(0), 1000).unwrap(), 10, "no further than the buffer");
        let mut out = vec![0; 990];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut out, 17).unwrap();
        assert_eq!(out, data[50..1040]);
    }

    #[test]
    fn reads_files_into_scattered_memory() {
        let mut file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..2000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        file.write_all(&data).unwrap();
        let (mut buf, mut view) = buffer();
        for i in 0..50 {
            buf.push(&mut view, 0x8000 + i * 60, 33).unwrap();
        }
        let n = buf.preadv(16, file.as_fd(), 100, 1000, 0).unwrap();
        assert_eq!(n, 1000);
        let mut out = vec![0; 1000];
        buf.read(16, &mut out);
        assert_eq!(out, data[100..1100]);
    }
}
