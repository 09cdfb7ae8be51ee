//! v5 chunk records of regular files (rafs-v5.md sections 11 and 15).
//!
//! Owns: which records cover a range, the checks on each. Does not own: data.

use super::Tree;
use super::inode::HAS_HOLE;
use crate::ids::{BlobIndex, ChunkIndex, InodeNumber};
use crate::image::base::Base;
use crate::image::bytes::view;
use crate::image::error::InodeError;
use crate::image::inode::{ChunkRef, FileKind, Inode};
use crate::layout::blob::BlobFeatures;
use crate::layout::chunk::ChunkRecord;

/// Bytes of one record.
const RECORD: u64 = size_of::<ChunkRecord>() as u64;

/// Chunks that overlap a range of one file, ascending.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<'a> {
    base: &'a Base,
    number: InodeNumber,
    /// Byte offset of record 0.
    records: u64,
    count: u64,
    /// Next record.
    next: u64,
    /// File position of the range.
    start: u64,
    /// File position behind the range; at most the file size.
    end: u64,
    file_size: u64,
    /// With holes: file position behind the chunk before; no chunk may start below it.
    holes: Option<u64>,
}

impl<'a> Chunks<'a> {
    /// The chunks of `inode` in `[offset, end)`; `end` is at most the file size.
    ///
    /// # Errors
    /// `Corrupt` when a record on the way is not inside the file.
    #[inline]
    pub(crate) fn new(base: &'a Base, inode: &Inode, offset: u64, end: u64) -> Result<Self, InodeError> {
        let mut chunks = Self {
            base,
            number: inode.number,
            records: inode.content,
            count: inode.extra & u64::from(u32::MAX),
            next: offset >> base.chunk_size.trailing_zeros(),
            start: offset,
            end,
            file_size: inode.size,
            holes: None,
        };
        if inode.extra & HAS_HOLE != 0 {
            chunks.next = if offset == 0 { 0 } else { chunks.first_behind(offset)? };
            chunks.holes = Some(0);
        }
        Ok(chunks)
    }

    #[inline]
    fn record(&self, index: u64) -> Result<(u64, &'a ChunkRecord), InodeError> {
        let offset = index.checked_mul(RECORD).and_then(|n| self.records.checked_add(n));
        let found = offset.and_then(|at| Some((at, view::<ChunkRecord>(self.base.bytes.as_slice(), at)?)));
        found.ok_or_else(|| InodeError::corrupt(self.number, "its chunk records end outside the file"))
    }

    /// First record that ends behind `offset`, by bisection.
    fn first_behind(&self, offset: u64) -> Result<u64, InodeError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (_, record) = self.record(middle)?;
            let end = record.file_offset.get().saturating_add(u64::from(record.uncompressed_size.get()));
            if end <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Whether the record is one of a generated chunk dictionary, whose file is a list of chunks of any size.
    #[cold]
    fn is_dictionary(&self, record: &ChunkRecord) -> bool {
        let blob = self.base.blobs.get(BlobIndex(record.blob_index.get()).as_usize());
        blob.is_some_and(|blob| blob.features.contains(BlobFeatures::IS_CHUNKDICT_GENERATED))
    }

    #[inline]
    fn chunk(&self, index: u64) -> Result<ChunkRef, InodeError> {
        let corrupt = |what| InodeError::corrupt(self.number, what);
        let (record_at, record) = self.record(index)?;
        let size = record.uncompressed_size.get();
        let file_offset = record.file_offset.get();
        match self.holes {
            None => {
                let chunk_size = u64::from(self.base.chunk_size);
                let start = index << self.base.chunk_size.trailing_zeros();
                let expected = self.file_size.saturating_sub(start).min(chunk_size);
                let full = u64::from(size) == expected;
                let right = file_offset == start
                    && (full || (u64::from(size) < expected && self.is_dictionary(record)));
                if !right {
                    return Err(corrupt("a chunk of it is not where its position says"));
                }
            }
            Some(previous_end) => {
                let end = file_offset.checked_add(u64::from(size));
                if file_offset < previous_end || end.is_none_or(|end| end > self.file_size) {
                    return Err(corrupt("its chunks overlap or reach behind its end"));
                }
            }
        }
        if size == 0 || size > self.base.chunk_size {
            return Err(corrupt("a chunk of it is empty or larger than the chunk size"));
        }
        let (blob, chunk) = (BlobIndex(record.blob_index.get()), ChunkIndex(record.index.get()));
        let limits = self
            .base
            .limits
            .get(blob.as_usize())
            .ok_or_else(|| corrupt("a chunk of it is in a blob that is not in the blob table"))?;
        if !limits.admit(chunk.0, record.uncompressed_offset.get(), size) {
            return Err(corrupt("a chunk of it lies outside its blob"));
        }
        Ok(ChunkRef {
            blob,
            chunk,
            uncompressed_offset: record.uncompressed_offset.get(),
            uncompressed_size: size,
            file_offset,
            record: record_at,
        })
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<ChunkRef, InodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.count || self.end == 0 {
            return None;
        }
        let done = match self.holes {
            None => self.next << self.base.chunk_size.trailing_zeros() >= self.end,
            // Up to the end of the file every record belongs, so that one behind it is noticed.
            Some(_) if self.end == self.file_size => false,
            Some(_) => self.record(self.next).is_ok_and(|(_, r)| r.file_offset.get() >= self.end),
        };
        if done {
            return None;
        }
        let chunk = self.chunk(self.next);
        self.next += 1;
        match &chunk {
            // A short chunk of a dictionary may end before the range that begins in its place; the next does not.
            Ok(c) if self.holes.is_none() && c.file_offset + u64::from(c.uncompressed_size) <= self.start => {
                return self.next();
            }
            Ok(c) if self.holes.is_some() => {
                self.holes = Some(c.file_offset + u64::from(c.uncompressed_size));
            }
            Ok(_) => {}
            Err(_) => self.end = 0,
        }
        Some(chunk)
    }
}

impl Tree {
    /// Calls `f` with every chunk record of every inode once; stops early when `f` says `false`. Records of
    /// unreadable inodes are left out. Inodes that share their records make the walk end when as many were
    /// seen as the file has room for.
    pub(crate) fn walk_chunk_records(&self, base: &Base, f: &mut dyn FnMut(&ChunkRecord) -> bool) {
        let mut room = base.bytes.as_slice().len() as u64 / RECORD;
        for index in 1..=self.entries {
            let Some(record) = self.record(base, index) else { continue };
            if record.number() != InodeNumber(u64::from(index)) {
                continue;
            }
            let Ok(inode) = self.decode(base, record) else { continue };
            if inode.kind != FileKind::Regular {
                continue;
            }
            let Ok(chunks) = Chunks::new(base, &inode, 0, inode.size) else { continue };
            for n in 0..chunks.count {
                let Ok((_, record)) = chunks.record(n) else { break };
                let Some(left) = room.checked_sub(1) else { return };
                room = left;
                if !f(record) {
                    return;
                }
            }
        }
    }
}
