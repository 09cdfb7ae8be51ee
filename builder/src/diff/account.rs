//! Chunks that both sides share, and what a host that has the first side must fetch to run the second.
//!
//! Owns: the sets and the sums. Does not own: where chunks come from. About 50 bytes of memory a chunk.

use super::content::Piece;
use crate::error::BuildError;
use crate::study::{ChunkFacts, ContentKey, Fact};
use rafs::codec::{self, Compressor};
use rafs::image::{ChunkRef, Image};
use std::collections::{HashMap, HashSet};

/// A number of chunks and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ChunkSum {
    /// Distinct chunks.
    pub chunks: u64,
    /// Their bytes when plain.
    pub plain_bytes: u64,
    /// Their bytes as stored: what is fetched for them.
    pub stored_bytes: u64,
}

impl ChunkSum {
    fn add(&mut self, plain: u32, stored: u64) {
        self.chunks += 1;
        self.plain_bytes += u64::from(plain);
        self.stored_bytes = self.stored_bytes.saturating_add(stored);
    }
}

/// Distinct chunks of the second side, by what the first side has of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ChunkReport {
    /// All of them.
    pub total: ChunkSum,
    /// The same chunk of the same blob is in the first side: a cache has it.
    pub same_blob: ChunkSum,
    /// The first side has these bytes, but in another blob: a cache that finds chunks by digest has them, one that is
    /// kept by blob has not.
    pub other_blob: ChunkSum,
    /// Bytes that the first side has nowhere.
    pub new: ChunkSum,
    /// False: stored sizes are estimates in part (batches, tar.gz layers).
    pub exact: bool,
}

impl ChunkReport {
    /// Bytes to fetch where caches find chunks by digest.
    #[must_use]
    pub fn fetch_by_digest(&self) -> u64 {
        self.new.stored_bytes
    }

    /// Bytes to fetch where caches are kept by blob.
    #[must_use]
    pub fn fetch_by_blob(&self) -> u64 {
        self.new.stored_bytes.saturating_add(self.other_blob.stored_bytes)
    }
}

/// Blob ids of both sides as numbers, so that a place is a small thing.
#[derive(Debug, Default)]
pub(super) struct BlobNames {
    numbers: HashMap<String, u32>,
}

impl BlobNames {
    /// One number for each blob of `image`, equal for equal ids.
    pub(super) fn of(&mut self, image: &Image) -> Vec<u32> {
        let mut number = |id: &String| {
            let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
            *self.numbers.entry(id.clone()).or_insert(next)
        };
        image.blobs().iter().map(|blob| number(&blob.id)).collect()
    }
}

/// Where a chunk is: a blob's number, and the offset there.
pub(super) fn place(numbers: &[u32], chunk: &ChunkRef) -> u128 {
    let blob = numbers.get(chunk.blob.as_usize()).copied().unwrap_or(u32::MAX);
    u128::from(blob) << 96 | u128::from(chunk.uncompressed_size) << 64 | u128::from(chunk.uncompressed_offset)
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// First side.
    places: HashSet<u128>,
    contents: HashSet<ContentKey>,
    /// Second side: chunks that were counted.
    seen_places: HashSet<u128>,
    seen_contents: HashSet<ContentKey>,
    report: ChunkReport,
    estimated: bool,
    compressed: Vec<u8>,
}

impl Account {
    /// Notes a chunk of the first side, an image.
    pub(super) fn have_chunk(&mut self, place: u128, fact: &Fact) {
        self.places.insert(place);
        self.contents.extend(fact.key());
    }

    /// Notes a piece of the first side, a directory.
    pub(super) fn have_piece(&mut self, piece: &Piece) {
        self.contents.extend(piece.key());
    }

    /// Counts a chunk of the second side, an image.
    pub(super) fn want_chunk(&mut self, place: u128, chunk: &ChunkRef, fact: &Fact) {
        if !self.seen_places.insert(place) {
            return;
        }
        self.estimated |= !fact.exact;
        let known = fact.key().is_some_and(|key| self.contents.contains(&key));
        let sum = match (self.places.contains(&place), known) {
            (true, _) => &mut self.report.same_blob,
            (false, true) => &mut self.report.other_blob,
            (false, false) => &mut self.report.new,
        };
        sum.add(chunk.uncompressed_size, fact.stored);
        self.report.total.add(chunk.uncompressed_size, fact.stored);
    }

    /// Counts a piece of the second side, a directory; a new one costs what `compressor` makes of it.
    pub(super) fn want_piece(
        &mut self,
        piece: &Piece,
        bytes: &[u8],
        compressor: Compressor,
    ) -> Result<(), BuildError> {
        let Some(key) = piece.key() else { return Ok(()) };
        if !self.seen_contents.insert(key) {
            return Ok(());
        }
        let has = self.contents.contains(&key);
        // gzip only reads; a tree that is packed again gets the default.
        let compressor = if compressor == Compressor::Gzip { Compressor::Zstd } else { compressor };
        let smaller = codec::compress(compressor, bytes, &mut self.compressed).map_err(|e| {
            BuildError::Options(format!("cannot compress a piece of {} bytes: {e}", piece.len))
        })?;
        let stored = if smaller { self.compressed.len() } else { bytes.len() } as u64;
        // A directory built over the first side (as its parent or dictionary) refers to the chunks that are there.
        let sum = if has { &mut self.report.same_blob } else { &mut self.report.new };
        sum.add(piece.len, stored);
        self.report.total.add(piece.len, stored);
        Ok(())
    }

    /// The sums.
    pub(super) fn finish(self) -> ChunkReport {
        ChunkReport { exact: !self.estimated, ..self.report }
    }
}

/// Calls `f` with every chunk of every regular file of `image`; files with several names come once.
pub(super) fn for_each_chunk(
    facts: &ChunkFacts<'_>,
    f: &mut dyn FnMut(&ChunkRef, &Fact),
) -> Result<(), BuildError> {
    let image = facts.image();
    let corrupt = |e| super::side::corrupt(image, e);
    let mut linked = HashSet::new();
    let mut pending = vec![image.inode(image.root()).map_err(corrupt)?];
    while let Some(dir) = pending.pop() {
        for entry in image.read_dir(&dir, 0).map_err(corrupt)? {
            let entry = entry.map_err(corrupt)?;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            let inode = image.inode(entry.number).map_err(corrupt)?;
            match inode.kind {
                rafs::image::FileKind::Directory => pending.push(inode),
                rafs::image::FileKind::Regular => {
                    if inode.nlink > 1 && !linked.insert(inode.number) {
                        continue;
                    }
                    for chunk in image.chunks(&inode, 0, inode.size).map_err(corrupt)? {
                        let chunk = chunk.map_err(corrupt)?;
                        f(&chunk, &facts.of(&chunk));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}
