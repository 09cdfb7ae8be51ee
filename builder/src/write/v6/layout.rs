//! Where inodes and data blocks lie in the v6 meta area.
//!
//! Owns: nids, block numbers, which data is inline. Does not own: bytes.
//!
//! Inodes first, packed; whole data blocks of directories and symlinks behind them. Inodes come in the order
//! of build-rules.md section 3 (a directory, its non-directories, then its subdirectories), so that what is
//! listed together lies together. An inode with an inline tail must lie within one block; one that does not
//! fit into what is left waits until the next block begins, and inodes that may cross fill the gap.

use super::{Model, dirents::Directory, xattrs};
use crate::error::BuildError;
use crate::tree::{NodeId, ROOT};
use rafs::layout::v6::{ChunkAddress, ExtendedInode, NID_UNIT};
use std::collections::VecDeque;

/// Where the root inode is in the meta area, so that no inode has nid 0.
const ROOT_OFFSET: u64 = 4096;
/// Inodes that may wait for the next block.
const WAITING_MAX: usize = 16;

/// What follows an inode, and where the rest of its data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Tail behind the inode; whole blocks from `block`.
    Inline {
        /// First whole block, counted in the data area; of no meaning when there is none.
        block: u32,
    },
    /// All data in whole blocks, if there is any.
    Plain {
        /// First block, counted in the data area.
        block: Option<u32>,
    },
    /// Chunk addresses behind the inode.
    Chunks,
}

impl Place {
    /// First block in the data area, for directories and symlinks.
    pub(super) fn first_block(self) -> Option<u32> {
        match self {
            Self::Inline { block } => Some(block),
            Self::Plain { block } => block,
            Self::Chunks => None,
        }
    }
}

/// The finished layout.
pub(super) struct Layout {
    /// One name of every inode (its group's owner decides), in placement order, which is that of nids.
    pub placed: Vec<NodeId>,
    /// nid by node.
    nids: Vec<u32>,
    /// First data block by node; NO_BLOCK: none; with INLINE_BIT: inline.
    blocks: Vec<u32>,
    /// Bytes of a block.
    block: u64,
    /// Start of the data area, from the meta area.
    data: u64,
    /// End of the data area, from the meta area.
    pub end: u64,
}

const NO_BLOCK: u32 = u32::MAX >> 1;
const INLINE_BIT: u32 = 1 << 31;

impl Layout {
    /// Places everything.
    pub(super) fn new(model: &Model<'_>) -> Result<Self, BuildError> {
        let count = model.tree.len();
        let mut placer = Placer {
            model,
            cursor: ROOT_OFFSET,
            next_block: 0,
            waiting: VecDeque::new(),
            placed: Vec::with_capacity(model.order.numbered.len()),
            nids: vec![0; count],
            blocks: vec![NO_BLOCK; count],
        };
        let mut pending = vec![ROOT];
        while let Some(dir) = pending.pop() {
            placer.add(dir)?;
            let children = model.order.children(model.tree, dir);
            for child in children {
                let node = model.tree.node(*child);
                // A hardlink group is placed at its first name.
                if !node.is_dir() && model.tree.owner(*child).ino == node.number {
                    placer.add(*child)?;
                }
            }
            pending.extend(children.iter().rev().filter(|id| model.tree.node(**id).is_dir()));
        }
        placer.flush()?;
        let mut nids = placer.nids;
        // Every other name of a group gets the nid of the first.
        for id in &model.order.numbered {
            let node = model.tree.node(*id);
            let first = model.order.numbered[model.tree.owner(*id).ino as usize - 1];
            if first != *id {
                nids[id.0 as usize] = nids[first.0 as usize];
            }
            debug_assert!(node.number > 0);
        }
        let data = placer.cursor.next_multiple_of(model.block());
        let end = data + u64::from(placer.next_block) * model.block();
        Ok(Self { placed: placer.placed, nids, blocks: placer.blocks, block: model.block(), data, end })
    }

    /// nid of a node's inode.
    pub(super) fn nid(&self, id: NodeId) -> u32 {
        self.nids[id.0 as usize]
    }

    /// How a placed node's data is stored.
    pub(super) fn place(&self, model: &Model<'_>, id: NodeId) -> Place {
        if model.tree.node(id).is_file() {
            return Place::Chunks;
        }
        match self.blocks[id.0 as usize] {
            NO_BLOCK => Place::Plain { block: None },
            block if block & INLINE_BIT != 0 => Place::Inline { block: block & !INLINE_BIT },
            block => Place::Plain { block: Some(block) },
        }
    }

    /// Byte offset of a data block from the meta area.
    pub(super) fn data_offset(&self, block: u32) -> u64 {
        self.data + u64::from(block) * self.block
    }
}

/// Size of a node's data as its inode says.
pub(super) fn data_size(model: &Model<'_>, id: NodeId) -> u64 {
    if model.tree.node(id).is_dir() {
        Directory::new(model, id).size()
    } else {
        model.tree.owner(id).attributes.size
    }
}

struct Placer<'a, 'm> {
    model: &'a Model<'m>,
    /// Where the next inode may go, from the meta area.
    cursor: u64,
    /// Next free data block.
    next_block: u32,
    waiting: VecDeque<Item>,
    placed: Vec<NodeId>,
    nids: Vec<u32>,
    blocks: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Item {
    id: NodeId,
    /// Bytes of the inode and what follows it.
    size: u64,
    /// Whether these must lie within one block.
    inline: bool,
    /// Whole data blocks.
    whole: u64,
}

impl Item {
    fn fits(&self, cursor: u64, block: u64) -> bool {
        cursor / block == (cursor + self.size - 1) / block
    }
}

impl Placer<'_, '_> {
    fn add(&mut self, id: NodeId) -> Result<(), BuildError> {
        let item = self.item(id)?;
        if item.inline && !item.fits(self.cursor, self.model.block()) {
            self.waiting.push_back(item);
            return if self.waiting.len() > WAITING_MAX { self.next_block_of_waiting() } else { Ok(()) };
        }
        if !item.inline && !item.fits(self.cursor, self.model.block()) && !self.waiting.is_empty() {
            self.next_block_of_waiting()?;
        }
        self.put(item)
    }

    /// Begins the next block and fills it with what waits for one.
    fn next_block_of_waiting(&mut self) -> Result<(), BuildError> {
        self.cursor = self.cursor.next_multiple_of(self.model.block());
        for _ in 0..self.waiting.len() {
            let Some(item) = self.waiting.pop_front() else { break };
            if item.fits(self.cursor, self.model.block()) {
                self.put(item)?;
            } else {
                self.waiting.push_back(item);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BuildError> {
        while !self.waiting.is_empty() {
            self.next_block_of_waiting()?;
        }
        Ok(())
    }

    fn item(&self, id: NodeId) -> Result<Item, BuildError> {
        let model = self.model;
        let node = model.tree.node(id);
        let xattrs = xattrs::size(model.tree.xattrs(id)).ok_or_else(|| BuildError::Source {
            path: String::from_utf8_lossy(&model.tree.path(id)).into_owned().into(),
            reason: "its extended attributes do not fit into a v6 inode (64 KiB a value, 256 KiB together)"
                .to_owned(),
        })?;
        let head = size_of::<ExtendedInode>() as u64 + xattrs;
        if node.is_file() {
            let chunks = model.file_chunks(node.owner).len() * size_of::<ChunkAddress>();
            let size = head.next_multiple_of(8) + chunks as u64;
            return Ok(Item { id, size, inline: false, whole: 0 });
        }
        let data = if node.is_dir() || node.is_symlink() { data_size(model, id) } else { 0 };
        let block = model.block();
        let tail = data % block;
        let inline = tail != 0 && head + tail <= block;
        if inline {
            Ok(Item { id, size: head + tail, inline, whole: data / block })
        } else {
            Ok(Item { id, size: head, inline, whole: data.div_ceil(block) })
        }
    }

    fn put(&mut self, item: Item) -> Result<(), BuildError> {
        let limit = |what| BuildError::Limit { what, limit: u64::from(NO_BLOCK) };
        let nid = u32::try_from(self.cursor / NID_UNIT).map_err(|_| limit("inodes in one v6 image"))?;
        let at = item.id.0 as usize;
        self.nids[at] = nid;
        if item.inline || item.whole > 0 {
            self.blocks[at] = self.next_block | if item.inline { INLINE_BIT } else { 0 };
        }
        let whole = u32::try_from(item.whole).map_err(|_| limit("directory blocks in one v6 image"))?;
        self.next_block = self
            .next_block
            .checked_add(whole)
            .filter(|block| *block < NO_BLOCK)
            .ok_or_else(|| limit("directory blocks in one v6 image"))?;
        self.placed.push(item.id);
        self.cursor = (self.cursor + item.size).next_multiple_of(NID_UNIT);
        Ok(())
    }
}
