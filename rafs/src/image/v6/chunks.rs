//! v6 chunk addresses of regular files (rafs-v6.md section 11).
//!
//! Owns: which addresses cover a range, the checks on each. Does not own: chunk infos, data.

use super::Tree;
use crate::ids::{BlobIndex, ChunkIndex, InodeNumber};
use crate::image::base::Base;
use crate::image::bytes::view;
use crate::image::error::InodeError;
use crate::image::inode::{ChunkRef, Inode};
use crate::layout::v6::ChunkAddress;

/// Chunks that overlap a range of one file, ascending.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<'a> {
    base: &'a Base,
    number: InodeNumber,
    /// Byte offset of address 0.
    addresses: u64,
    block_bits: u8,
    chunk_bits: u32,
    /// Next address.
    next: u64,
    /// File position behind the range; at most the file size.
    end: u64,
    file_size: u64,
}

impl<'a> Chunks<'a> {
    /// The chunks of `inode` in `[offset, end)`; `end` is at most the file size.
    #[inline]
    pub(crate) fn new(tree: &Tree, base: &'a Base, inode: &Inode, offset: u64, end: u64) -> Self {
        // The superblock's chunk size, never that in `i_u`: the kernel alone reads contiguous files with it.
        let chunk_bits = base.chunk_size.trailing_zeros();
        Self {
            base,
            number: inode.number,
            addresses: inode.content,
            block_bits: tree.block_bits,
            chunk_bits,
            next: offset >> chunk_bits,
            end,
            file_size: inode.size,
        }
    }

    #[inline]
    fn chunk(&self, index: u64, file_offset: u64) -> Result<ChunkRef, InodeError> {
        let corrupt = |what| InodeError::corrupt(self.number, what);
        let at = index
            .checked_mul(size_of::<ChunkAddress>() as u64)
            .and_then(|n| self.addresses.checked_add(n))
            .ok_or_else(|| corrupt("its chunk addresses end outside the file"))?;
        let address = view::<ChunkAddress>(self.base.bytes.as_slice(), at)
            .ok_or_else(|| corrupt("its chunk addresses end outside the file"))?;
        let size = (self.file_size - file_offset).min(u64::from(self.base.chunk_size));
        let size = u32::try_from(size).unwrap_or(self.base.chunk_size);
        let chunk = u32::from(address.chunk_hi) << 16 | u32::from(address.chunk_lo.get());
        let uncompressed_offset = u64::from(address.block.get()) << self.block_bits;
        let blob = u32::from(address.device)
            .checked_sub(1)
            .map(BlobIndex)
            .ok_or_else(|| corrupt("a chunk address of it names no blob"))?;
        let limits = self
            .base
            .limits
            .get(blob.as_usize())
            .ok_or_else(|| corrupt("a chunk of it is in a blob that is not in the blob table"))?;
        if !limits.admit(chunk, uncompressed_offset, size) {
            return Err(corrupt("a chunk of it lies outside its blob"));
        }
        Ok(ChunkRef {
            blob,
            chunk: ChunkIndex(chunk),
            uncompressed_offset,
            uncompressed_size: size,
            file_offset,
            record: 0,
        })
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<ChunkRef, InodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let file_offset = self.next << self.chunk_bits;
        if file_offset >= self.end {
            return None;
        }
        let chunk = self.chunk(self.next, file_offset);
        self.next += 1;
        if chunk.is_err() {
            self.end = 0;
        }
        Some(chunk)
    }
}
