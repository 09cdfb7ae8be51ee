//! Bootstraps: the metadata of a finished tree as bytes.
//!
//! Owns: v5 and v6 layout. Does not own: the tree, chunks and blobs, which it only reads. Everything is
//! written strictly in order, so a bootstrap can go into a blob that is a FIFO.

mod sink;
mod v5;
mod v6;

use crate::error::BuildError;
use crate::options::{ChunkSize, PrefetchPolicy, Version};
use crate::pack::Chunk;
use crate::prefetch::Patterns;
use crate::tree::{NodeId, Order, ROOT, Tree};
use rafs::codec::{Compressor, Digester};
use rafs::image::BlobInfo;
use rafs::layout::SuperFlags;
use rafs::layout::v6::{BLOCK_BITS, BLOCK_BITS_TARFS};
use std::ops::Range;

pub(crate) use sink::{FileSink, Sink};

/// Everything a bootstrap is made of.
#[derive(Debug)]
pub(crate) struct Model<'a> {
    /// Format to write.
    pub version: Version,
    /// Numbered tree.
    pub tree: &'a Tree,
    /// Its numbering.
    pub order: &'a Order,
    /// All chunks.
    pub chunks: &'a [Chunk],
    /// Chunks of files, as positions in `chunks`.
    pub references: &'a [u32],
    /// Blob table.
    pub blobs: &'a [BlobInfo],
    /// For the superblock.
    pub compressor: Compressor,
    /// For the superblock and v5 inode digests.
    pub digester: Digester,
    /// Chunk size.
    pub chunk_size: ChunkSize,
    /// Whether owners are meaningful.
    pub explicit_ids: bool,
    /// Whether blobs are plain tar files (v6).
    pub tarfs: bool,
    /// What the prefetch table names, in order.
    pub prefetch: Vec<NodeId>,
}

impl Model<'_> {
    /// Writes the bootstrap in its version's layout.
    ///
    /// # Errors
    /// When the tree does not fit the format, or writing fails.
    pub(crate) fn write(&self, sink: &mut dyn Sink) -> Result<(), BuildError> {
        match self.version {
            Version::V5 => v5::write(self, sink),
            Version::V6 => v6::write(self, sink),
        }
    }

    /// Positions in `chunks` of a regular file's chunks.
    fn file_chunks(&self, owner: NodeId) -> &[u32] {
        let node = self.tree.node(owner);
        let range = usize::try_from(node.first_chunk)
            .ok()
            .zip(usize::try_from(self.chunk_size.chunks(node.attributes.size)).ok());
        let range: Range<usize> = range.map_or(0..0, |(start, count)| start..start + count);
        // Names without data were never handed to the packer and have no references.
        if range.is_empty() { &[] } else { &self.references[range] }
    }

    /// Bits of a v6 block.
    fn block_bits(&self) -> u8 {
        if self.tarfs { BLOCK_BITS_TARFS } else { BLOCK_BITS }
    }

    /// Bytes of a v6 block.
    fn block(&self) -> u64 {
        1 << self.block_bits()
    }

    /// Superblock flags that both versions have.
    fn flags(&self) -> SuperFlags {
        let mut flags = match self.compressor {
            Compressor::None => SuperFlags::COMPRESSION_NONE,
            Compressor::Lz4Block => SuperFlags::COMPRESSION_LZ4,
            Compressor::Gzip => SuperFlags::COMPRESSION_GZIP,
            Compressor::Zstd => SuperFlags::COMPRESSION_ZSTD,
        };
        flags |= match self.digester {
            Digester::Blake3 => SuperFlags::HASH_BLAKE3,
            Digester::Sha256 => SuperFlags::HASH_SHA256,
        };
        flags.set(SuperFlags::EXPLICIT_UID_GID, self.explicit_ids);
        let has_xattr = self.order.numbered.iter().any(|id| !self.tree.xattrs(*id).is_empty());
        flags.set(SuperFlags::HAS_XATTR, has_xattr);
        flags
    }
}

/// The nodes that prefetch patterns name: those that exist and are directories or regular files.
pub(crate) fn prefetch_nodes(
    tree: &Tree,
    order: &Order,
    policy: PrefetchPolicy,
    patterns: &Patterns,
) -> Vec<NodeId> {
    if policy != PrefetchPolicy::Fs {
        return Vec::new();
    }
    let find = |pattern: &[u8]| {
        let mut at = ROOT;
        for name in pattern.split(|b| *b == b'/').skip(1) {
            if !tree.node(at).is_dir() {
                return None;
            }
            let children = order.children(tree, at);
            let found = children.binary_search_by(|id| tree.name(*id).cmp(name)).ok()?;
            at = children[found];
        }
        let node = tree.node(at);
        (node.is_dir() || node.is_file()).then_some(at)
    };
    patterns.iter().filter_map(find).collect()
}
