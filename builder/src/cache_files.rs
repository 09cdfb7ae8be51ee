//! A blob in the form of a cache (`--blob-cache-dir`): `ID.blob.data` holds the plain address space, `ID.blob.meta` the
//! chunk info (blob.md sections 13 and 14).
//!
//! Owns: making these two of a finished blob. Does not own: the blob, which is dropped.

use crate::error::BuildError;
use crate::output::Output;
use crate::pack::{Chunk, ChunkInfoTable};
use rafs::image::BlobInfo;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are copied at a time.
const BUFFER: usize = 1 << 20;

/// Makes the files for the blob in `blob`, whose `chunks` are stored raw and whose entry in the blob table is `own`.
pub(crate) fn write(dir: &Path, blob: &Output, chunks: &[&Chunk], own: &BlobInfo) -> Result<(), BuildError> {
    let data = Output::create_in(dir)?;
    let at = dir.join(format!("{}.blob.data", own.id));
    data.file().set_len(own.uncompressed_size).map_err(BuildError::io("write", &at))?;
    let mut buffer = vec![0; BUFFER];
    for chunk in chunks {
        let size = u64::from(chunk.uncompressed_size);
        let mut done = 0;
        while done < size {
            let now = usize::try_from(size - done).map_or(BUFFER, |left| left.min(BUFFER));
            let piece = &mut buffer[..now];
            let read = blob.file().read_exact_at(piece, chunk.compressed_offset + done);
            read.map_err(BuildError::io("read back", &at))?;
            let written = data.file().write_all_at(piece, chunk.uncompressed_offset + done);
            written.map_err(BuildError::io("write", &at))?;
            done += now as u64;
        }
    }
    let mut meta = None;
    if own.chunk_info.is_some() {
        let table = ChunkInfoTable::v1(chunks.iter().copied())?;
        let mut output = Output::create_in(dir)?;
        output.write(&table.cache_file(own))?;
        meta = Some(output);
    }
    data.commit_named(&format!("{}.blob.data", own.id))?;
    if let Some(meta) = meta {
        meta.commit_named(&format!("{}.blob.meta", own.id))?;
    }
    Ok(())
}
