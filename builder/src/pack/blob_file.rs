//! The blob file as a stream: bytes out, and the running sha256 that becomes its id.
//!
//! Owns: position and hash. Does not own: the sections and their order.

use crate::error::BuildError;
use crate::output::Output;
use sha2::{Digest as _, Sha256};
use std::path::PathBuf;

/// A blob while it is written.
#[derive(Debug)]
pub(crate) struct BlobFile {
    output: Output,
    hasher: Sha256,
    position: u64,
}

impl BlobFile {
    /// Starts at position 0 of `output`.
    pub(crate) fn new(output: Output) -> Self {
        Self { output, hasher: Sha256::new(), position: 0 }
    }

    /// Appends bytes that count for the id.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.hasher.update(bytes);
        self.write_unhashed(bytes)
    }

    /// Appends bytes that do not count for the id (the chunk digest array, blob.md section 1).
    pub(crate) fn write_unhashed(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.position += bytes.len() as u64;
        self.output.write(bytes)
    }

    /// Bytes written.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Id of what was written so far: 64 hex digits.
    pub(crate) fn id(&self) -> String {
        hex::encode(self.hasher.clone().finalize())
    }

    /// The finished file, still to be committed.
    pub(crate) fn into_output(self) -> Output {
        self.output
    }

    /// Where it will be.
    pub(crate) fn path(&self) -> PathBuf {
        self.output.path().to_path_buf()
    }
}
