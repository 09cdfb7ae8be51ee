//! A whole blob's plain data, in the order of its address space.
//!
//! Owns: the walk over a v6 blob. Does not own: where the bytes go.

use super::units::Units;
use super::{BlobDataError, Blobs, Buffers, OpenBlob};
use rafs::layout::blob::BlobFeatures;

/// TARFS data is copied this many bytes at a time.
const BUFFER: usize = 1 << 20;

/// Takes a piece of plain data and its place.
type Put<'a, P> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), P>;

impl Blobs<'_> {
    /// Calls `put` with every chunk of `blob`, verified, and its uncompressed offset, which grows from call to call.
    ///
    /// # Errors
    /// What `put` says, or why the data cannot be read.
    pub(crate) fn copy_plain<E: From<BlobDataError>, P: Into<E>>(
        &self,
        blob: &OpenBlob<'_>,
        put: Put<'_, P>,
    ) -> Result<(), E> {
        if blob.info.features.contains(BlobFeatures::TARFS) {
            return self.copy_tar(blob, put);
        }
        let units = Units::of(self, blob)?;
        let mut buffers = Buffers::default();
        for n in 0..units.len() {
            let unit = units.get(n, self, blob)?;
            blob.read_unit(&unit.unit, &mut buffers)?;
            for (chunk, range, expected) in unit.chunks {
                let table = blob
                    .table
                    .as_ref()
                    .map(|table| table.chunk(chunk))
                    .transpose()
                    .map_err(BlobDataError::from)?;
                let plain = buffers.plain.get(range).filter(|plain| expected.matches(plain));
                let (Some(plain), Some(entry)) = (plain, table) else {
                    return Err(BlobDataError::Chunk {
                        blob: blob.info.id.clone(),
                        chunk: chunk.0,
                        user: "this image".to_owned(),
                        reason: "its bytes do not have the digest that the image gives".to_owned(),
                    }
                    .into());
                };
                put(entry.uncompressed_offset, plain).map_err(Into::into)?;
            }
        }
        Ok(())
    }

    fn copy_tar<E: From<BlobDataError>, P: Into<E>>(
        &self,
        blob: &OpenBlob<'_>,
        put: Put<'_, P>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; BUFFER];
        let mut at = 0;
        while at < blob.info.uncompressed_size {
            let left = blob.info.uncompressed_size - at;
            let now = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
            blob.object.read_exact_at(&mut buffer[..now], at).map_err(BlobDataError::io(
                &blob.info.id,
                "read",
                &blob.path,
            ))?;
            put(at, &buffer[..now]).map_err(Into::into)?;
            at += now as u64;
        }
        Ok(())
    }
}
