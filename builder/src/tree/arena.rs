//! One growing byte store for names and symlink targets.
//!
//! Owns: the bytes. Does not own: their meaning. 4 GiB at most, so that a reference takes 6 bytes.

use crate::error::BuildError;

/// A reference into an [`Arena`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    offset: u32,
    len: u16,
}

impl Span {
    /// Bytes it refers to.
    pub(crate) fn size(self) -> u64 {
        u64::from(self.len)
    }
}

/// The store.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    bytes: Vec<u8>,
}

impl Arena {
    /// Appends `bytes` (at most 65535).
    ///
    /// # Errors
    /// When `bytes` is too long or the arena is full.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Span, BuildError> {
        let len = u16::try_from(bytes.len()).map_err(|_| BuildError::Limit {
            what: "bytes in one name or symlink target",
            limit: u64::from(u16::MAX),
        })?;
        let offset = u32::try_from(self.bytes.len()).map_err(|_| BuildError::Limit {
            what: "bytes of names in one image",
            limit: u64::from(u32::MAX),
        })?;
        self.bytes.extend_from_slice(bytes);
        Ok(Span { offset, len })
    }

    /// The bytes of a span that this arena gave out.
    pub(crate) fn get(&self, span: Span) -> &[u8] {
        let start = span.offset as usize;
        &self.bytes[start..start + usize::from(span.len)]
    }
}
