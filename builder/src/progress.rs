//! What a build shows of itself while it runs, and how it is asked to stop.
//!
//! Owns: counters, the path it is at, the request to stop. Does not own: showing them, signals.

use crate::error::BuildError;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// How far a build is. All counters only grow.
#[derive(Debug, Default)]
pub struct Progress {
    entries: AtomicU64,
    files: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    at: Mutex<Vec<u8>>,
    /// Number of the signal that asks to stop; 0 for none.
    stop: AtomicI32,
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

    /// What is being read: a path of the source. Empty before and after.
    #[must_use]
    pub fn at(&self) -> PathBuf {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        std::ffi::OsStr::from_bytes(&at).into()
    }

    /// Asks the build to stop because of signal number `signal`: it ends with [`BuildError::Interrupted`] as soon
    /// as what it reads or writes lets it.
    pub fn interrupt(&self, signal: i32) {
        self.stop.store(signal, Relaxed);
    }

    /// Says what is being read.
    pub(crate) fn set_at(&self, path: &Path) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.clear();
        at.extend_from_slice(path.as_os_str().as_bytes());
    }

    /// Whether to go on.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        match self.stop.load(Relaxed) {
            0 => Ok(()),
            signal => Err(BuildError::Interrupted { signal, at: self.at() }),
        }
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
