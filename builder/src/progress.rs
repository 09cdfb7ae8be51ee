//! Counters that a build keeps current while it runs.
//!
//! Owns: the numbers. Does not own: showing them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How far a build is. All counters only grow.
#[derive(Debug, Default)]
pub struct Progress {
    entries: AtomicU64,
    files: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Progress {
    /// Names found so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// Files with data whose packing has begun.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.files.load(Relaxed)
    }

    /// Bytes of file data packed, duplicates and holes included.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Relaxed)
    }

    /// Bytes of chunk data written to the blob.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Relaxed)
    }

    pub(crate) fn add_entry(&self) {
        self.entries.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_file(&self) {
        self.files.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_packed(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.fetch_add(bytes_in, Relaxed);
        self.bytes_out.fetch_add(bytes_out, Relaxed);
    }
}
