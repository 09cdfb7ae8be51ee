//! Where a bootstrap goes.
//!
//! Owns: buffering, hashing and counting of what is written. Does not own: files.

use crate::error::BuildError;
use crate::output::Output;
use sha2::{Digest as _, Sha256};

/// Bytes that are collected before they are written.
const BUFFER: usize = 256 << 10;

/// Takes bytes in order.
pub(crate) trait Sink {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError>;

    /// Appends `count` zeros.
    fn zeros(&mut self, count: u64) -> Result<(), BuildError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut rest = count;
        while rest > 0 {
            let now = usize::try_from(rest).map_or(ZEROS.len(), |rest| rest.min(ZEROS.len()));
            self.write(&ZEROS[..now])?;
            rest -= now as u64;
        }
        Ok(())
    }
}

/// A bootstrap file with its sha256.
#[derive(Debug)]
pub(crate) struct FileSink {
    output: Output,
    buffer: Vec<u8>,
    hasher: Sha256,
}

impl FileSink {
    /// Writes to `output`.
    pub(crate) fn new(output: Output) -> Self {
        Self { output, buffer: Vec::with_capacity(BUFFER), hasher: Sha256::new() }
    }

    fn flush(&mut self) -> Result<(), BuildError> {
        self.hasher.update(&self.buffer);
        self.output.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// The complete file, still to be committed, and the hex sha256 of its bytes.
    pub(crate) fn finish(mut self) -> Result<(Output, String), BuildError> {
        self.flush()?;
        Ok((self.output, hex::encode(self.hasher.finalize())))
    }
}

impl Sink for FileSink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
}
