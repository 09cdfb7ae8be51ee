//! Pieces of file data on their way from a source to the packing threads.
//!
//! Owns: what a piece is, reading it, noticing that its file changed. Does not own: digests, compression.

use crate::tree::NodeId;
use rustix::fs::{Mode, OFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A task is full when it holds this much data: enough to make hand-over cheap, little enough to balance.
const TASK_BYTES: usize = 512 << 10;
/// ... or this many pieces.
const TASK_PIECES: usize = 256;
/// ... or files out of this many directories, each of which costs a descriptor while the task waits.
const TASK_DIRECTORIES: usize = 8;

/// Where a piece's bytes are.
#[derive(Debug)]
pub(crate) enum Input {
    /// A small file that has not been opened yet.
    Named {
        /// Its directory.
        dir: Arc<OwnedFd>,
        /// Its name there.
        name: CString,
    },
    /// A file that several pieces share.
    Open(Arc<OwnedFd>),
    /// The next bytes of the task's buffer.
    Buffered,
    /// A hole: zeros.
    Zeros,
}

/// What a file must still be after its data was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds.
    pub mtime_sec: i64,
    /// Modification time, nanoseconds.
    pub mtime_nsec: u32,
}

/// One chunk-size piece of a file (its last one may be shorter).
#[derive(Debug)]
pub(crate) struct Piece {
    /// File it belongs to.
    pub node: NodeId,
    /// Which piece of the file it is, counted from 0.
    pub position: u32,
    /// Where it starts in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Where they are.
    pub input: Input,
    /// State of the file when it was listed.
    pub expected: Expected,
}

/// Consecutive pieces that one thread works on.
#[derive(Debug, Default)]
pub(crate) struct Task {
    /// The pieces, in storage order.
    pub pieces: Vec<Piece>,
    /// Whether the pieces belong to files that a prefetch pattern names.
    pub prefetch: bool,
    bytes: usize,
    directories: usize,
    /// Bytes of buffered pieces; all pieces of a task are buffered, or none is.
    buffer: Vec<u8>,
    buffered: usize,
}

impl Task {
    /// Appends a piece.
    pub(crate) fn push(&mut self, piece: Piece) {
        if !matches!(piece.input, Input::Zeros) {
            self.bytes += piece.len as usize;
        }
        self.pieces.push(piece);
    }

    /// Room for the bytes of a buffered piece, which is pushed next.
    pub(crate) fn buffer(&mut self, len: usize) -> &mut [u8] {
        let start = self.buffered;
        self.buffered += len;
        if self.buffer.len() < self.buffered {
            self.buffer.resize(self.buffered, 0);
        }
        &mut self.buffer[start..self.buffered]
    }

    /// Exchanges the buffer of buffered pieces, if there are such, for `other`.
    pub(crate) fn swap_buffer(&mut self, other: &mut Vec<u8>) {
        if self.buffered > 0 {
            std::mem::swap(&mut self.buffer, other);
        }
    }

    /// Bytes of its buffered pieces, one after the other.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer[..self.buffered]
    }

    /// Notes that pieces of another directory follow.
    pub(crate) fn enter_directory(&mut self) {
        self.directories += 1;
    }

    /// Whether nothing more should be added.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= TASK_BYTES
            || self.pieces.len() >= TASK_PIECES
            || (self.directories >= TASK_DIRECTORIES && !self.pieces.is_empty())
    }

    /// Bytes that must be read for it; holes do not count.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it ready for other pieces, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        (self.bytes, self.directories, self.buffered, self.prefetch) = (0, 0, 0, false);
    }
}

/// Why a piece could not be read; the caller knows the path.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// A system call failed.
    Io(&'static str, io::Error),
    /// The file is not what it was when it was listed.
    Changed(String),
}

impl Piece {
    /// Reads the piece into `buffer`, which is exactly as long as the piece. Not for holes.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<(), ReadError> {
        match &self.input {
            Input::Buffered => Ok(()),
            Input::Zeros => {
                buffer.fill(0);
                Ok(())
            }
            Input::Open(file) => self.read_from(file.as_fd(), buffer),
            Input::Named { dir, name } => {
                // NONBLOCK: whatever took the file's place since it was listed must not hang the build.
                let flags =
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(dir, name.as_c_str(), flags, Mode::empty())
                    .map_err(|e| ReadError::Io("open", e.into()))?;
                self.read_from(file.as_fd(), buffer)
            }
        }
    }

    fn read_from(&self, file: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(file, &mut buffer[done..], self.offset + done as u64) {
                Ok(0) => {
                    let end = self.offset + done as u64;
                    return Err(ReadError::Changed(format!(
                        "it ends at byte {end}, it had {} when it was listed",
                        self.expected.size
                    )));
                }
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(ReadError::Io("read", e.into())),
            }
        }
        self.expected.check(file)
    }
}

impl Expected {
    /// Whether `file` still is what it was.
    pub(crate) fn check(&self, file: BorrowedFd<'_>) -> Result<(), ReadError> {
        let stat = rustix::fs::fstat(file).map_err(|e| ReadError::Io("stat", e.into()))?;
        let now = (u64::try_from(stat.st_size), stat.st_mtime, u32::try_from(stat.st_mtime_nsec));
        if now.0 != Ok(self.size) {
            return Err(ReadError::Changed(format!(
                "its size was {}, now it is {}",
                self.size, stat.st_size
            )));
        }
        if (now.1, now.2) != (self.mtime_sec, Ok(self.mtime_nsec)) {
            return Err(ReadError::Changed("its modification time is another one".to_owned()));
        }
        Ok(())
    }
}
