//! dm-verity hash trees: sha256, no salt, 4096-byte hash blocks, format 1.
//!
//! Owns: hashing data as it goes by, and the levels above. Does not own: where they are written. 32 bytes of memory
//! for each data block.

use sha2::{Digest as _, Sha256};

/// Bytes of a hash block.
const HASH_BLOCK: usize = 4096;
/// Bytes of a hash.
const HASH: usize = 32;

/// Hashes data blocks.
#[derive(Debug)]
pub(super) struct HashTree {
    data_block: usize,
    /// Bytes of the current data block so far.
    filled: usize,
    hasher: Sha256,
    /// Hashes of all data blocks.
    leaves: Vec<u8>,
}

impl HashTree {
    /// For data blocks of `data_block` bytes.
    pub(super) fn new(data_block: u32) -> Self {
        Self { data_block: data_block as usize, filled: 0, hasher: Sha256::new(), leaves: Vec::new() }
    }

    /// Takes the next bytes of the data.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let now = bytes.len().min(self.data_block - self.filled);
            self.hasher.update(&bytes[..now]);
            self.filled += now;
            bytes = &bytes[now..];
            if self.filled == self.data_block {
                self.leaves.extend_from_slice(&self.hasher.finalize_reset());
                self.filled = 0;
            }
        }
    }

    /// The root hash, and the levels in the order they are stored: the top one first. Unused ends of hash blocks
    /// are zeros.
    pub(super) fn finish(self) -> ([u8; HASH], Vec<Vec<u8>>) {
        let mut levels = Vec::new();
        let mut hashes = self.leaves;
        loop {
            if hashes.len() == HASH && !levels.is_empty() || hashes.is_empty() {
                break;
            }
            hashes.resize(hashes.len().next_multiple_of(HASH_BLOCK), 0);
            let above = hashes.chunks(HASH_BLOCK).flat_map(Sha256::digest).collect();
            levels.push(std::mem::replace(&mut hashes, above));
        }
        levels.reverse();
        let mut root = [0; HASH];
        root[..hashes.len()].copy_from_slice(&hashes);
        (root, levels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_level_and_two() {
        for (blocks, sizes) in
            [(1, &[4096][..]), (128, &[4096]), (129, &[4096, 8192]), (128 * 128, &[4096, 524_288])]
        {
            let mut tree = HashTree::new(512);
            for _ in 0..blocks {
                tree.update(&[7; 512]);
            }
            let (root, levels) = tree.finish();
            assert_eq!(levels.iter().map(Vec::len).collect::<Vec<_>>(), sizes, "{blocks}");
            assert_eq!(root[..], Sha256::digest(&levels[0])[..]);
            assert_eq!(levels.last().unwrap()[..32], Sha256::digest([7; 512])[..]);
        }
    }
}
