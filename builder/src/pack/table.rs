//! Which chunks are stored, and which are being made.
//!
//! Owns: the list of stored chunks, finding one by digest and size, claims on digests in flight. Does not
//! own: data. About 90 bytes a chunk.

use super::chunk::Chunk;
use crate::layer::Dictionary;
use hashbrown::HashTable;
use rafs::codec::Digest;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Stored chunks by digest.
#[derive(Debug, Default)]
pub(crate) struct ChunkTable {
    chunks: Vec<Chunk>,
    by_digest: HashTable<u32>,
    /// Digests that a task is compressing: number of the lowest such task.
    claims: HashMap<(Digest, u32), u64>,
    dictionary: Dictionary,
}

/// Digests are uniformly distributed already.
fn hash(digest: &Digest) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(word)
}

impl ChunkTable {
    /// Begins with the chunks of a parent image, of which those that are `reusable` can be found, and with a
    /// dictionary.
    pub(crate) fn new(chunks: Vec<Chunk>, reusable: impl Fn(&Chunk) -> bool, dictionary: Dictionary) -> Self {
        let mut table = Self { chunks, dictionary, ..Self::default() };
        for (at, chunk) in (0..).zip(&table.chunks) {
            if reusable(chunk) && table.find(&chunk.digest, chunk.uncompressed_size).is_none() {
                let chunks = &table.chunks;
                let hash_of = |at: &u32| hash(&chunks[*at as usize].digest);
                table.by_digest.insert_unique(hash(&chunk.digest), at, hash_of);
            }
        }
        table
    }

    /// The chunk in the dictionary with this digest and plain size; its blob index counts there.
    pub(crate) fn find_in_dictionary(&self, digest: &Digest, size: u32) -> Option<Chunk> {
        self.dictionary.find(digest, size).copied()
    }

    /// Position of the stored chunk with this digest and plain size.
    pub(crate) fn find(&self, digest: &Digest, size: u32) -> Option<u32> {
        self.by_digest
            .find(hash(digest), |at| {
                let chunk = &self.chunks[*at as usize];
                chunk.digest == *digest && chunk.uncompressed_size == size
            })
            .copied()
    }

    /// Asks whether task `task` has to make the chunk: not if it is stored, or if a task with a lower number
    /// (or this one) is at it.
    pub(crate) fn claim(&mut self, digest: &Digest, size: u32, task: u64) -> bool {
        if self.find(digest, size).is_some() || self.dictionary.find(digest, size).is_some() {
            return false;
        }
        match self.claims.entry((*digest, size)) {
            Entry::Vacant(free) => {
                free.insert(task);
                true
            }
            Entry::Occupied(mut taken) if *taken.get() > task => {
                taken.insert(task);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Stores a chunk and drops the claim on it.
    pub(crate) fn insert(&mut self, chunk: Chunk) -> Option<u32> {
        let at = u32::try_from(self.chunks.len()).ok().filter(|at| *at < u32::MAX)?;
        self.claims.remove(&(chunk.digest, chunk.uncompressed_size));
        // Chunks without a digest are told apart by nothing: none is found again.
        if chunk.digest != Digest::default() {
            let chunks = &self.chunks;
            self.by_digest.insert_unique(hash(&chunk.digest), at, |at| hash(&chunks[*at as usize].digest));
        }
        self.chunks.push(chunk);
        Some(at)
    }

    /// Says where a stored chunk starts in its blob, when that was not known before.
    pub(crate) fn set_offset(&mut self, at: u32, offset: u64) {
        if let Some(chunk) = self.chunks.get_mut(at as usize) {
            chunk.compressed_offset = offset;
        }
    }

    /// All chunks, in the order they were stored.
    pub(crate) fn into_chunks(self) -> Vec<Chunk> {
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rafs::layout::chunk::ChunkFlags;

    fn chunk(digest: Digest, size: u32) -> Chunk {
        Chunk {
            digest,
            compressed_offset: 0,
            uncompressed_offset: 0,
            compressed_size: size,
            uncompressed_size: size,
            crc32c: 0,
            index: 0,
            blob: 0,
            position: 0,
            flags: ChunkFlags::empty(),
        }
    }

    #[test]
    fn the_lowest_task_makes_a_chunk_and_nobody_makes_it_again() {
        let mut table = ChunkTable::default();
        let digest = [7; 32];
        assert!(table.claim(&digest, 5, 3));
        assert!(!table.claim(&digest, 5, 4), "a later task relies on task 3");
        assert!(!table.claim(&digest, 5, 3), "a second piece of task 3 relies on the first");
        assert!(table.claim(&digest, 5, 2), "an earlier task cannot wait for a later one");
        assert!(table.claim(&digest, 6, 9), "another size is another chunk");
        assert_eq!(table.insert(chunk(digest, 5)), Some(0));
        assert!(!table.claim(&digest, 5, 1));
        assert_eq!(table.find(&digest, 5), Some(0));
        assert_eq!(table.find(&digest, 6), None);
    }
}
