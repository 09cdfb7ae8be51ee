//! Pages of cache files, lent to the kernel: a READ's payload is copied once, from the host's page cache to the reader's.
//!
//! Owns: read-only mappings of the files that reads come from, and the write that sends parts of them. Does not own:
//! which bytes may be lent (that they stay as they are is the lender's promise).
//!
//! The bytes of a mapping are read by the kernel alone. A file that was cut meanwhile makes writev(2) fail with EFAULT;
//! no SIGBUS, which only an access by this process would raise.
#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files that are mapped at once at most: one a blob of what is mounted, usually.
const MAPPINGS_MAX: usize = 256;
/// Pieces of one reply at most, its header included (`UIO_FASTIOV`: more makes the kernel allocate).
const PIECES_MAX: usize = 8;
const PAGE: usize = 4096;
/// Pages of the largest piece, with one more for each end that lies inside a page.
const PIECE_PAGES: usize = (1 << 20) / PAGE + 2;

/// What tells files apart, as long as they are mapped.
type Key = (u64, u64);

/// Mappings that the threads of a mount share.
#[derive(Debug, Default)]
pub(super) struct Pages {
    mapped: Mutex<HashMap<Key, Arc<MmapRaw>>>,
}

/// Bytes of a file that are to be sent.
#[derive(Debug)]
pub(super) struct Lent {
    map: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

/// Bytes to send of all pieces.
pub(super) fn total(pieces: &[Lent]) -> usize {
    pieces.iter().map(|piece| piece.len).sum()
}

impl Pages {
    fn mapped(&self) -> MutexGuard<'_, HashMap<Key, Arc<MmapRaw>>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `len` bytes at `offset` of `file` to `pieces`, if they are there and in memory.
    pub(super) fn lend(&self, pieces: &mut Vec<Lent>, file: BorrowedFd<'_>, offset: u64, len: usize) -> bool {
        if pieces.len() + 1 >= PIECES_MAX {
            return false;
        }
        let piece = self.find(file, offset, len);
        let piece = piece.filter(Lent::is_resident);
        let found = piece.is_some();
        pieces.extend(piece);
        found
    }

    fn find(&self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Option<Lent> {
        let stat = rustix::fs::fstat(file).ok()?;
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(len)?;
        if usize::try_from(stat.st_size).ok()? < end {
            return None;
        }
        let key = (stat.st_dev, stat.st_ino);
        let mut mapped = self.mapped();
        let known = mapped.get(&key).filter(|map| map.len() >= end);
        let map = match known {
            Some(map) => Arc::clone(map),
            None => {
                let map = Arc::new(MmapOptions::new().map_raw_read_only(file.as_raw_fd()).ok()?);
                if mapped.len() >= MAPPINGS_MAX {
                    mapped.clear();
                }
                mapped.insert(key, Arc::clone(&map));
                map
            }
        };
        (map.len() >= end).then_some(Lent { map, start, len })
    }

    /// Lets go of all files: what is unmounted must not keep its disk space.
    pub(super) fn clear(&self) {
        self.mapped().clear();
    }
}

impl Lent {
    fn start(&self) -> *const u8 {
        self.map.as_ptr().wrapping_add(self.start)
    }

    /// Whether all of it is in memory, so that sending it waits for no disk.
    fn is_resident(&self) -> bool {
        let first = self.start / PAGE * PAGE;
        let len = self.start + self.len - first;
        let mut state = [0u8; PIECE_PAGES];
        if len.div_ceil(PAGE) > state.len() {
            return false;
        }
        let from = self.map.as_ptr().wrapping_add(first);
        // SAFETY: `from .. from + len` lies inside the mapping (`find` checked its end) and begins at a page, since
        // mappings do; the kernel writes one byte a page, and there are that many.
        let done = unsafe { libc::mincore(from.cast_mut().cast(), len, state.as_mut_ptr()) };
        done == 0 && state.iter().take(len.div_ceil(PAGE)).all(|page| page & 1 != 0)
    }
}

/// Writes `head` and the pieces in one call.
///
/// # Errors
///
/// That of writev(2); `EFAULT` when a file was cut.
pub(super) fn send(device: BorrowedFd<'_>, head: &[u8], pieces: &[Lent]) -> io::Result<()> {
    const NONE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut vectors = [NONE; PIECES_MAX];
    let all = std::iter::once((head.as_ptr(), head.len())).chain(pieces.iter().map(|p| (p.start(), p.len)));
    let mut count = 0;
    for (vector, (base, len)) in vectors.iter_mut().zip(all) {
        *vector = libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len };
        count += 1;
    }
    // SAFETY: the kernel only reads from `count` ranges: `head`, and parts of mappings that the pieces keep alive until
    // the call returns. Their bytes may change or vanish meanwhile, which the kernel copes with.
    let sent = unsafe { libc::writev(device.as_raw_fd(), vectors.as_ptr(), count) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    fn file(bytes: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn sent(head: &[u8], pieces: &[Lent]) -> Vec<u8> {
        let mut to = tempfile::tempfile().unwrap();
        send(to.as_fd(), head, pieces).unwrap();
        let mut got = Vec::new();
        to.rewind().unwrap();
        to.read_to_end(&mut got).unwrap();
        got
    }

    #[test]
    fn pieces_of_files_are_sent_behind_the_head() {
        let data: Vec<u8> = (0..200_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let (one, other) = (file(&data), file(b"another file"));
        let pages = Pages::default();
        let mut pieces = Vec::new();
        assert!(pages.lend(&mut pieces, one.as_fd(), 4097, 100_001));
        assert!(pages.lend(&mut pieces, other.as_fd(), 8, 4));
        assert_eq!(total(&pieces), 100_005);
        assert_eq!(sent(b"head", &pieces), [&b"head"[..], &data[4097..104_098], b"file"].concat());
        assert_eq!(pages.mapped().len(), 2);
        pages.clear();
        assert_eq!(sent(b"", &pieces[1..]), b"file", "what is lent stays until it is sent");
    }

    #[test]
    fn what_is_not_there_is_not_lent() {
        let one = file(&[7; 10_000]);
        let pages = Pages::default();
        let mut pieces = Vec::new();
        for (offset, len) in [(0, 10_001), (10_000, 1), (u64::MAX, 1), (1, usize::MAX)] {
            assert!(!pages.lend(&mut pieces, one.as_fd(), offset, len), "{offset} {len}");
        }
        // A file that grew is mapped anew.
        assert!(pages.lend(&mut pieces, one.as_fd(), 0, 10_000));
        one.set_len(50_000).unwrap();
        (&one).write_all(&[8; 40_000]).unwrap();
        assert!(pages.lend(&mut pieces, one.as_fd(), 20_000, 30_000));
        let most = (0..20).filter(|_| pages.lend(&mut pieces, one.as_fd(), 0, 1)).count();
        assert_eq!(pieces.len(), PIECES_MAX - 1, "{most} more");
    }

    #[test]
    fn a_file_that_is_cut_after_it_was_lent_is_an_error_and_no_signal() {
        let one = file(&[7; 100_000]);
        let pages = Pages::default();
        let mut pieces = Vec::new();
        assert!(pages.lend(&mut pieces, one.as_fd(), 0, 100_000));
        one.set_len(0).unwrap();
        assert!(!pages.lend(&mut Vec::new(), one.as_fd(), 0, 100_000));
        let (to, _from) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = send(to.as_fd(), b"", &pieces).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }
}
