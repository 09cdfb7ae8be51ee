//! Batches: small chunks compressed together (build-rules.md section 4, blob.md section 8).
//!
//! Owns: which chunks are batched, the buffer, where members lie. Does not own: writing.

use super::append::PackSettings;
use rafs::codec::{self, Cipher, CodecError};
use rafs::layout::blob::BatchContext;
use zerocopy::FromZeros;

/// Where a chunk lies in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchPlace {
    /// Index of the chunk in its blob.
    pub chunk: u32,
    /// Where the batch starts in the blob file.
    pub start: u64,
    /// Number of the batch.
    pub context: u32,
    /// Where the chunk starts in the plain batch.
    pub offset: u32,
}

/// Batches of one blob.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    buffer: Vec<u8>,
    compressed: Vec<u8>,
    stored: Vec<u8>,
    /// Members of all batches, by chunk index.
    pub places: Vec<BatchPlace>,
    /// Finished batches.
    pub contexts: Vec<BatchContext>,
}

/// Whether a file of one chunk of `len` bytes goes into a batch.
pub(super) fn is_small(settings: &PackSettings, len: u32, file_size: u64) -> bool {
    // Below 16 bytes an encrypted batch that stays alone would be padded to a length that the reference takes
    // for another thing (blob.md section 8).
    let long_enough = settings.cipher.is_none() || len >= 16;
    u64::from(len) == file_size && len < settings.batch_size / 2 && long_enough
}

impl Batches {
    /// Whether a chunk of `len` bytes must not go into the batch that is being filled.
    pub(super) fn is_full_for(&self, settings: &PackSettings, len: usize) -> bool {
        !self.buffer.is_empty() && self.buffer.len() + len >= settings.batch_size as usize
    }

    /// Puts chunk number `chunk` into the batch that will start at `start`.
    pub(super) fn add(&mut self, chunk: u32, plain: &[u8], start: u64) -> Option<()> {
        let context = u32::try_from(self.contexts.len()).ok()?;
        let offset = u32::try_from(self.buffer.len()).ok()?;
        self.places.push(BatchPlace { chunk, start, context, offset });
        self.buffer.extend_from_slice(plain);
        Some(())
    }

    /// Ends the batch and gives its stored form; `None` when it is empty.
    pub(super) fn finish(
        &mut self,
        settings: &PackSettings,
        cipher: Option<&Cipher>,
    ) -> Result<Option<&[u8]>, CodecError> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let smaller = codec::compress(settings.compressor, &self.buffer, &mut self.compressed)?;
        let form = if smaller { &self.compressed } else { &self.buffer };
        match cipher {
            Some(cipher) => cipher.encrypt(form, &mut self.stored),
            None => self.stored.clone_from(form),
        }
        let mut context = BatchContext::new_zeroed();
        // Bounded by the batch size, which is 16 MiB at most.
        context.compressed_size = u32::try_from(self.stored.len()).unwrap_or_default().into();
        context.uncompressed_size = u32::try_from(self.buffer.len()).unwrap_or_default().into();
        self.contexts.push(context);
        self.buffer.clear();
        Ok(Some(&self.stored))
    }
}
