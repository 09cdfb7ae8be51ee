//! The ordered stage: finished tasks become stored chunks and references to them.
//!
//! Owns: chunk numbers and offsets, the list of references, writing chunk data. Does not own: order, which
//! the pipeline guarantees.

use super::blob_file::BlobFile;
use super::chunk::Chunk;
use super::table::ChunkTable;
use super::worker::{Done, Finished};
use crate::error::BuildError;
use crate::options::{ChunkSize, ImageOptions};
use crate::progress::Progress;
use rafs::codec::{Compressor, Digester};
use rafs::layout::chunk::ChunkFlags;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Alignment of uncompressed offsets, when there is one.
pub(crate) const CHUNK_ALIGNMENT: u64 = 4096;

/// How chunks are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackSettings {
    /// How they are stored.
    pub compressor: Compressor,
    /// How they are named.
    pub digester: Digester,
    /// Size of all but the last of a file.
    pub chunk_size: ChunkSize,
    /// Whether uncompressed offsets are rounded up to 4096.
    pub aligned: bool,
    /// Most chunks a blob may have.
    pub chunks_max: u32,
    /// Threads.
    pub threads: std::num::NonZeroUsize,
}

impl PackSettings {
    /// As `options` say.
    pub(crate) fn new(options: &ImageOptions) -> Self {
        let chunks_max = match options.version {
            crate::options::Version::V5 => u32::MAX,
            crate::options::Version::V6 => rafs::layout::v6::CHUNKS_MAX,
        };
        Self {
            compressor: options.compressor,
            digester: options.digester,
            chunk_size: options.chunk_size,
            aligned: options.aligned(),
            chunks_max,
            threads: options.threads,
        }
    }
}

/// State of the ordered stage.
#[derive(Debug)]
pub(crate) struct Appender<'a> {
    settings: PackSettings,
    blob: &'a mut BlobFile,
    progress: &'a Progress,
    packed: Packed,
}

/// What came out of packing, apart from the chunks.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    /// For every piece in data order, the position of its chunk in the chunk list.
    pub references: Vec<u32>,
    /// Chunks in the new blob.
    pub chunk_count: u32,
    /// End of the new blob's chunk data.
    pub compressed_end: u64,
    /// End of the new blob's uncompressed address space.
    pub uncompressed_end: u64,
    /// Leading bytes of the blob that hold the data of prefetched files.
    pub prefetch_size: u64,
    /// Plain bytes of pieces that needed no room because their chunk was there.
    pub deduplicated: u64,
}

impl<'a> Appender<'a> {
    /// For a new blob that becomes entry `blob_index` of the table.
    pub(crate) fn new(settings: PackSettings, blob: &'a mut BlobFile, progress: &'a Progress) -> Self {
        Self { settings, blob, progress, packed: Packed::default() }
    }

    /// Takes the next task's result.
    pub(crate) fn append(&mut self, done: &Done, table: &Mutex<ChunkTable>) -> Result<(), BuildError> {
        let before = self.packed.compressed_end;
        let mut plain = 0;
        let mut ranges: Vec<Range<usize>> = Vec::new();
        {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            for piece in &done.pieces {
                plain += u64::from(piece.len);
                let at = match table.find(&piece.digest, piece.len) {
                    Some(at) => {
                        self.packed.deduplicated += u64::from(piece.len);
                        at
                    }
                    None => self.store(piece, &mut table, &mut ranges)?,
                };
                self.packed.references.push(at);
            }
        }
        for range in ranges {
            self.blob.write(&done.stored[range])?;
        }
        if done.prefetch {
            self.packed.prefetch_size = self.packed.compressed_end;
        }
        self.progress.add_packed(plain, self.packed.compressed_end - before);
        Ok(())
    }

    fn store(
        &mut self,
        piece: &Finished,
        table: &mut ChunkTable,
        ranges: &mut Vec<Range<usize>>,
    ) -> Result<u32, BuildError> {
        let packed = &mut self.packed;
        let too_many = || BuildError::Limit {
            what: "chunks in one blob (use a larger chunk size)",
            limit: u64::from(self.settings.chunks_max),
        };
        let (Some(stored), true) = (&piece.stored, packed.chunk_count < self.settings.chunks_max) else {
            return Err(too_many());
        };
        let compressed_size = u32::try_from(stored.len()).map_err(|_| too_many())?;
        let mut flags = ChunkFlags::HAS_CRC32;
        flags.set(ChunkFlags::COMPRESSED, piece.compressed);
        let chunk = Chunk {
            digest: piece.digest,
            compressed_offset: packed.compressed_end,
            uncompressed_offset: packed.uncompressed_end,
            compressed_size,
            uncompressed_size: piece.len,
            crc32c: piece.crc32c,
            index: packed.chunk_count,
            blob: 0,
            position: piece.position,
            flags,
        };
        packed.chunk_count += 1;
        packed.compressed_end += u64::from(compressed_size);
        packed.uncompressed_end += u64::from(piece.len);
        if self.settings.aligned {
            packed.uncompressed_end = packed.uncompressed_end.next_multiple_of(CHUNK_ALIGNMENT);
        }
        match ranges.last_mut() {
            Some(last) if last.end == stored.start => last.end = stored.end,
            _ => ranges.push(stored.clone()),
        }
        table.insert(chunk).ok_or_else(too_many)
    }

    /// The result, when all tasks were appended.
    pub(crate) fn finish(self) -> Packed {
        self.packed
    }
}
