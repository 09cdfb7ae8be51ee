//! Which parts of a sparse file hold data.
//!
//! Owns: asking the file system for holes. Does not own: reading. A file system that knows no holes, or
//! gives odd answers, makes everything data: then zeros are read, which is slower and as right.

use rustix::fs::SeekFrom;
use std::os::fd::BorrowedFd;

/// Walks the data extents of one file from its start to its end.
#[derive(Debug)]
pub(crate) struct Extents {
    size: u64,
    /// The extent at or behind the last question: data from `start` to `end`.
    start: u64,
    end: u64,
}

impl Extents {
    /// For a file of `size` bytes that stores `stored` bytes on disk. A file that stores as much as it shows
    /// is taken to have no holes.
    pub(crate) fn new(size: u64, stored: u64) -> Self {
        if stored >= size { Self { size, start: 0, end: size } } else { Self { size, start: 0, end: 0 } }
    }

    /// Whether `offset .. offset + len` is all hole. Offsets must not decrease from call to call.
    pub(crate) fn is_hole(&mut self, file: BorrowedFd<'_>, offset: u64, len: u64) -> bool {
        while self.end <= offset && self.end < self.size {
            match rustix::fs::seek(file, SeekFrom::Data(offset)) {
                Ok(start) if start >= offset => {
                    self.start = start;
                    self.end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
                        Ok(end) if end > start => end,
                        _ => self.size,
                    };
                }
                // No data behind `offset`.
                Err(rustix::io::Errno::NXIO) => (self.start, self.end) = (self.size, self.size),
                _ => (self.start, self.end) = (0, self.size),
            }
        }
        offset.saturating_add(len) <= self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn holes_are_found_and_data_is_never_called_a_hole() {
        let mut file = tempfile::tempfile().unwrap();
        let page = 65536;
        file.set_len(page * 10).unwrap();
        for at in [3, 7] {
            file.seek(std::io::SeekFrom::Start(at * page + 5)).unwrap();
            file.write_all(b"data").unwrap();
        }
        let mut extents = Extents::new(page * 10, page * 2);
        let holes: Vec<_> = (0..10).filter(|p| extents.is_hole(file.as_fd(), p * page, page)).collect();
        assert!(!holes.contains(&3) && !holes.contains(&7));
        let mut dense = Extents::new(page * 10, page * 10);
        assert!((0..10).all(|p| !dense.is_hole(file.as_fd(), p * page, page)));
        let mut empty = Extents::new(page, 0);
        let hole = tempfile::tempfile().unwrap();
        hole.set_len(page).unwrap();
        // Where the file system reports holes at all, an unwritten file is one hole.
        assert_eq!(empty.is_hole(hole.as_fd(), 0, page), holes.contains(&0));
    }
}
