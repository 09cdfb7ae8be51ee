//! The ordered stage: finished tasks become stored chunks and references to them.
//!
//! Owns: chunk numbers and offsets, the list of references, writing chunk data. Does not own: order, which
//! the pipeline guarantees.
//!
//! What follows a batch in the blob waits until some thread has compressed it: only then its place is known.

use super::batch::{Batches, Ended, Jobs};
use super::blob_file::BlobFile;
use super::chunk::Chunk;
use super::table::ChunkTable;
use super::worker::{Done, Finished};
use crate::error::BuildError;
use crate::options::{ChunkSize, ImageOptions};
use crate::progress::Progress;
use rafs::codec::{Cipher, CipherKey, Compressor, Digester};
use rafs::layout::chunk::ChunkFlags;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Bytes that may wait for batches to be compressed.
const PENDING_MAX: usize = 16 << 20;
/// Alignment of uncompressed offsets, when there is one.
pub(crate) const CHUNK_ALIGNMENT: u64 = 4096;

/// How chunks are made.
#[derive(Clone, Debug)]
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
    /// Plain bytes that a batch of small chunks may have; 0: no batches.
    pub batch_size: u32,
    /// Blobs of the parent image, whose entries come first in the table.
    pub first_blob: u32,
    /// Where the data starts in the blob file.
    pub start: u64,
    /// Key to encrypt everything stored with.
    pub cipher: Option<CipherKey>,
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
            batch_size: options.batch_size.map_or(0, ChunkSize::get),
            first_blob: 0,
            start: 0,
            cipher: None,
            threads: options.threads,
        }
    }
}

/// State of the ordered stage.
#[derive(Debug)]
pub(crate) struct Appender<'a> {
    settings: PackSettings,
    cipher: Option<Cipher>,
    blob: &'a mut BlobFile,
    progress: &'a Progress,
    packed: Packed,
    /// Work for the packing threads.
    jobs: &'a Jobs,
    /// What is written next, from the first batch that is not there yet on.
    pending: VecDeque<Pending>,
    pending_bytes: usize,
}

/// Something that waits for its place in the blob.
#[derive(Debug)]
enum Pending {
    Batch(Ended),
    /// Stored chunks: position in the chunk table, and where each starts in the bytes.
    Chunks(Vec<(u32, usize)>, Vec<u8>),
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
    /// Batches of the new blob.
    pub batches: Batches,
    /// Index of the new blob in the blob table, once it has a chunk.
    pub own_blob: Option<u32>,
    /// Entries that follow the parent's in the blob table.
    pub new_blobs: Vec<NewBlob>,
}

/// An entry that a build adds to the blob table; they come in the order of first use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewBlob {
    /// The blob that is written.
    Own,
    /// A blob of the chunk dictionary, by its index there.
    Dictionary(u32),
}

impl<'a> Appender<'a> {
    /// For a new blob, and files whose references follow `references`.
    pub(crate) fn new(
        settings: PackSettings,
        references: Vec<u32>,
        blob: &'a mut BlobFile,
        progress: &'a Progress,
        jobs: &'a Jobs,
    ) -> Self {
        let cipher = settings.cipher.as_ref().map(Cipher::new);
        let packed = Packed { references, compressed_end: settings.start, ..Packed::default() };
        Self { settings, cipher, blob, progress, packed, jobs, pending: VecDeque::new(), pending_bytes: 0 }
    }

    /// Takes the next task's result.
    pub(crate) fn append(&mut self, done: &Done, table: &Mutex<ChunkTable>) -> Result<(), BuildError> {
        let before = self.packed.compressed_end;
        let mut plain = 0;
        // Writing waits until the table is free again: other threads ask it what they need not compress.
        let mut new = Vec::new();
        {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            for piece in &done.pieces {
                plain += u64::from(piece.len);
                let at = match table.find(&piece.digest, piece.len) {
                    Some(at) => {
                        self.packed.deduplicated += u64::from(piece.len);
                        at
                    }
                    None => match table.find_in_dictionary(&piece.digest, piece.len) {
                        Some(chunk) => {
                            self.packed.deduplicated += u64::from(piece.len);
                            self.borrow(chunk, piece.position, &mut table)?
                        }
                        None => self.store(piece, done, &mut table, &mut new)?,
                    },
                };
                self.packed.references.push(at);
            }
        }
        for range in new {
            self.blob.write(&done.stored[range])?;
        }
        self.write_pending(table)?;
        if done.prefetch {
            self.packed.prefetch_size = self.packed.compressed_end;
        }
        self.progress.add_packed(plain, self.packed.compressed_end - before);
        Ok(())
    }

    /// Ends the batch that is being filled.
    fn end_batch(&mut self) {
        if let Some(batch) = self.packed.batches.end() {
            self.jobs.push(batch.job.clone());
            self.pending_bytes += batch.plain_len;
            self.pending.push_back(Pending::Batch(batch));
        }
    }

    /// Writes what is ready; when too much waits, until it is not too much.
    fn write_pending(&mut self, table: &Mutex<ChunkTable>) -> Result<(), BuildError> {
        let batches_max = self.settings.threads.get() + 1;
        while let Some(next) = self.pending.pop_front() {
            match next {
                Pending::Batch(batch) => {
                    let many = self.pending_bytes > PENDING_MAX || self.pending.len() > 2 * batches_max;
                    if !batch.job.is_done() && !many {
                        self.pending.push_front(Pending::Batch(batch));
                        break;
                    }
                    self.write_batch(&batch)?;
                }
                Pending::Chunks(chunks, bytes) => {
                    let start = self.packed.compressed_end;
                    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
                    for (at, offset) in chunks {
                        table.set_offset(at, start + offset as u64);
                    }
                    drop(table);
                    self.blob.write(&bytes)?;
                    self.packed.compressed_end += bytes.len() as u64;
                    self.pending_bytes = self.pending_bytes.saturating_sub(bytes.len());
                }
            }
        }
        Ok(())
    }

    /// Writes a batch, doing the work of others first if nobody has done its own.
    fn write_batch(&mut self, batch: &Ended) -> Result<(), BuildError> {
        while !batch.job.is_done() && self.jobs.run_one(self.settings.compressor, self.cipher.as_ref()) {}
        let stored = batch.job.take();
        let stored =
            stored.map_err(|e| BuildError::Compress { path: self.blob.path(), reason: e.to_string() })?;
        self.packed.batches.written(batch, self.packed.compressed_end, &stored);
        self.blob.write(&stored)?;
        self.packed.compressed_end += stored.len() as u64;
        self.pending_bytes = self.pending_bytes.saturating_sub(batch.plain_len);
        Ok(())
    }

    /// Takes a chunk of the dictionary into the image.
    fn borrow(&mut self, mut chunk: Chunk, position: u32, table: &mut ChunkTable) -> Result<u32, BuildError> {
        let known = self.packed.new_blobs.iter().position(|blob| *blob == NewBlob::Dictionary(chunk.blob));
        let at = known.unwrap_or_else(|| {
            self.packed.new_blobs.push(NewBlob::Dictionary(chunk.blob));
            self.packed.new_blobs.len() - 1
        });
        chunk.blob = self.blob_index(at)?;
        chunk.position = position;
        table
            .insert(chunk)
            .ok_or_else(|| BuildError::Limit { what: "chunks in one image", limit: u64::from(u32::MAX) })
    }

    /// Index in the blob table of the new blob `at`.
    fn blob_index(&self, at: usize) -> Result<u32, BuildError> {
        let index = u32::try_from(at).ok().and_then(|at| self.settings.first_blob.checked_add(at));
        index.ok_or_else(|| BuildError::Limit { what: "blobs in one image", limit: u64::from(u32::MAX) })
    }

    /// Index in the blob table of the blob that is written.
    fn own_blob(&mut self) -> Result<u32, BuildError> {
        if let Some(index) = self.packed.own_blob {
            return Ok(index);
        }
        let index = self.blob_index(self.packed.new_blobs.len())?;
        self.packed.new_blobs.push(NewBlob::Own);
        self.packed.own_blob = Some(index);
        Ok(index)
    }

    fn store(
        &mut self,
        piece: &Finished,
        done: &Done,
        table: &mut ChunkTable,
        new: &mut Vec<Range<usize>>,
    ) -> Result<u32, BuildError> {
        let limit = u64::from(self.settings.chunks_max);
        let too_many =
            move || BuildError::Limit { what: "chunks in one blob (use a larger chunk size)", limit };
        if self.packed.chunk_count >= self.settings.chunks_max {
            return Err(too_many());
        }
        // Whoever claimed the digest first has a lower number, so its chunk is in the table by now.
        let Some(stored) = &piece.stored else {
            return Err(BuildError::Internal("a piece is neither stored nor known"));
        };
        let mut chunk = Chunk {
            digest: piece.digest,
            // A record of a batched chunk says nothing of where it is stored; the chunk info table does.
            compressed_offset: 0,
            uncompressed_offset: self.packed.uncompressed_end,
            compressed_size: 0,
            uncompressed_size: piece.len,
            crc32c: piece.crc32c,
            index: self.packed.chunk_count,
            blob: self.own_blob()?,
            position: piece.position,
            flags: ChunkFlags::HAS_CRC32,
        };
        let mut waits = false;
        if piece.batched {
            let plain = &done.stored[stored.clone()];
            if self.packed.batches.is_full_for(&self.settings, plain.len()) {
                self.end_batch();
            }
            self.packed.batches.add(chunk.index, plain).ok_or_else(too_many)?;
        } else {
            // Batches never surround other data.
            self.end_batch();
            chunk.compressed_size = u32::try_from(stored.len()).map_err(|_| too_many())?;
            chunk.flags.set(ChunkFlags::COMPRESSED, piece.compressed);
            chunk.flags.set(ChunkFlags::ENCRYPTED, self.cipher.is_some());
            waits = !self.pending.is_empty();
            if !waits {
                chunk.compressed_offset = self.packed.compressed_end;
                self.packed.compressed_end += stored.len() as u64;
                match new.last_mut() {
                    Some(last) if last.end == stored.start => last.end = stored.end,
                    _ => new.push(stored.clone()),
                }
            }
        }
        self.packed.chunk_count += 1;
        self.packed.uncompressed_end += u64::from(piece.len);
        if self.settings.aligned {
            self.packed.uncompressed_end = self.packed.uncompressed_end.next_multiple_of(CHUNK_ALIGNMENT);
        }
        let at = table.insert(chunk).ok_or_else(too_many)?;
        if waits {
            let bytes = &done.stored[stored.clone()];
            self.pending_bytes += bytes.len();
            match self.pending.back_mut() {
                Some(Pending::Chunks(chunks, waiting)) => {
                    chunks.push((at, waiting.len()));
                    waiting.extend_from_slice(bytes);
                }
                _ => self.pending.push_back(Pending::Chunks(vec![(at, 0)], bytes.to_vec())),
            }
        }
        Ok(at)
    }

    /// The result, when all tasks were appended.
    ///
    /// # Errors
    /// When the last batch cannot be written.
    pub(crate) fn finish(mut self, table: &Mutex<ChunkTable>) -> Result<Packed, BuildError> {
        self.end_batch();
        while self.jobs.run_one(self.settings.compressor, self.cipher.as_ref()) {}
        self.write_pending(table)?;
        Ok(self.packed)
    }
}
