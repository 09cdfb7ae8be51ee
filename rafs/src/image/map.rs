//! The bytes of a bootstrap: a part of a file mapped read-only, or memory of our own.
//!
//! Owns: the mapping, and the only `unsafe` of this module. Does not own: what the bytes mean.
//!
//! A mapped file should stay as it is while an image is open: bootstraps are written once and replaced by rename, never in
//! place. One that is shortened all the same, or on a disk that fails, makes the kernel raise SIGBUS on the next access: see
//! [`crate::guard`].
#![allow(unsafe_code)]

use crate::guard::Watch;
use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;

/// Where the bytes of a bootstrap live.
pub(crate) enum Bytes {
    /// Part of a file. The watch ends before the mapping.
    Mapped(Watch, Mmap),
    /// Unpacked or given.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps `len` bytes of `file` at `offset`, which need not be a multiple of the page size.
    ///
    /// # Errors
    /// What mmap(2) said; `InvalidInput` for a length this machine cannot address.
    pub(crate) fn map(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        if len == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only, and every access goes through the slice below with
        // bounds checks. Bytes that another process changes under us can only make a check fail; what a
        // file that is shortened does is said at the top of this file.
        let map = unsafe { MmapOptions::new().offset(offset).len(len).map(file)? };
        // SAFETY: the pages are the mapping's, which is dropped behind the watch.
        let watch = unsafe { Watch::new(map.as_ptr(), len, false) };
        Ok(Self::Mapped(watch, map))
    }

    /// All bytes.
    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(_, map) => map,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Whether all that was read so far was there to be read.
    #[inline]
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Mapped(watch, _) => watch.is_whole(),
            Self::Owned(_) => true,
        }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self {
            Self::Mapped(..) => "mapped",
            Self::Owned(_) => "owned",
        };
        write!(f, "Bytes({how}, {} bytes)", self.as_slice().len())
    }
}
