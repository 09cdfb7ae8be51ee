//! Directory blocks (rafs-v6.md section 8).
//!
//! Owns: the sorted list with `.` and `..`, cutting it into blocks, the bytes of a block. Does not own:
//! where blocks go.

use super::Model;
use super::layout::Layout;
use crate::tree::{self, NodeId};
use rafs::layout::v6::{Dirent, file_type};
use std::ops::Range;
use zerocopy::IntoBytes;

/// One directory's entries in stored order.
pub(super) struct Directory<'a> {
    model: &'a Model<'a>,
    id: NodeId,
    children: &'a [NodeId],
    /// Positions of `.` and `..` in the stored order.
    dot: usize,
    dotdot: usize,
}

impl<'a> Directory<'a> {
    /// The directory `id`.
    pub(super) fn new(model: &'a Model<'_>, id: NodeId) -> Self {
        let children = model.order.children(model.tree, id);
        let before = |name: &[u8]| children.partition_point(|child| model.tree.name(*child) < name);
        Self { model, id, children, dot: before(b"."), dotdot: before(b"..") + 1 }
    }

    fn len(&self) -> usize {
        self.children.len() + 2
    }

    /// Name and node of entry `at`.
    fn entry(&self, at: usize) -> (&'a [u8], NodeId) {
        if at == self.dot {
            return (b".", self.id);
        }
        if at == self.dotdot {
            return (b"..", self.model.tree.node(self.id).parent);
        }
        let child = self.children[at - usize::from(at > self.dot) - usize::from(at > self.dotdot)];
        (self.model.tree.name(child), child)
    }

    /// Entries of each block.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            if next == self.len() {
                return None;
            }
            let start = next;
            let mut used = 0;
            while next < self.len() {
                used += size_of::<Dirent>() + self.entry(next).0.len();
                if used as u64 > self.model.block() {
                    break;
                }
                next += 1;
            }
            Some(start..next)
        })
    }

    fn block_size(&self, entries: Range<usize>) -> usize {
        entries.map(|at| size_of::<Dirent>() + self.entry(at).0.len()).sum()
    }

    /// Size of the directory: whole blocks, and what the last one uses.
    pub(super) fn size(&self) -> u64 {
        let (mut size, mut last) = (0, 0);
        for entries in self.blocks() {
            size += last;
            last = self.model.block();
            if entries.end == self.len() {
                last = self.block_size(entries) as u64;
            }
        }
        size + last
    }

    /// The bytes of the block that holds `entries`, without padding.
    pub(super) fn fill(&self, layout: &Layout, entries: Range<usize>, out: &mut Vec<u8>) {
        out.clear();
        let mut name_offset = entries.len() * size_of::<Dirent>();
        for at in entries.clone() {
            let (name, node) = self.entry(at);
            let dirent = Dirent {
                nid: u64::from(layout.nid(node)).into(),
                // Blocks are cut so that all offsets lie inside.
                name_offset: u16::try_from(name_offset).unwrap_or(u16::MAX).into(),
                file_type: type_number(self.model.tree.node(node).kind()),
                reserved: 0,
            };
            out.extend_from_slice(dirent.as_bytes());
            name_offset += name.len();
        }
        for at in entries {
            out.extend_from_slice(self.entry(at).0);
        }
    }
}

fn type_number(kind: u32) -> u8 {
    match kind {
        tree::S_IFREG => file_type::REGULAR,
        tree::S_IFDIR => file_type::DIRECTORY,
        tree::S_IFCHR => file_type::CHAR,
        tree::S_IFBLK => file_type::BLOCK,
        tree::S_IFIFO => file_type::FIFO,
        tree::S_IFSOCK => file_type::SOCKET,
        tree::S_IFLNK => file_type::SYMLINK,
        _ => file_type::UNKNOWN,
    }
}
