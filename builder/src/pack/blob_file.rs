//! The blob file as a stream: bytes out, and the running sha256 that becomes its id.
//!
//! Owns: position, hash, collecting small writes. Does not own: the sections and their order.

use crate::error::BuildError;
use crate::output::Output;
use rafs::codec::Digest;
use sha2::{Digest as _, Sha256};
use std::path::PathBuf;

/// Small writes are collected up to this many bytes.
const BUFFER: usize = 64 << 10;

/// A blob while it is written.
#[derive(Debug)]
pub(crate) struct BlobFile {
    output: Output,
    hasher: Sha256,
    position: u64,
    buffer: Vec<u8>,
}

impl BlobFile {
    /// Starts at position 0 of `output`.
    pub(crate) fn new(output: Output) -> Self {
        Self { output, hasher: Sha256::new(), position: 0, buffer: Vec::with_capacity(BUFFER) }
    }

    /// Appends bytes that count for the id.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.hasher.update(bytes);
        self.write_unhashed(bytes)
    }

    /// Appends bytes that do not count for the id (the chunk digest array, blob.md section 1).
    pub(crate) fn write_unhashed(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.position += bytes.len() as u64;
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            return self.output.write(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BuildError> {
        self.output.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Bytes written.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// sha256 of what was written so far.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.clone().finalize().into()
    }

    /// Id of what was written so far: 64 hex digits.
    pub(crate) fn id(&self) -> String {
        hex::encode(self.digest())
    }

    /// The finished file, still to be committed.
    pub(crate) fn into_output(mut self) -> Result<Output, BuildError> {
        self.flush()?;
        Ok(self.output)
    }

    /// Where it will be.
    pub(crate) fn path(&self) -> PathBuf {
        self.output.path().to_path_buf()
    }
}
