//! The tree of an image under construction: compact nodes, names in one arena, numbering.
//!
//! Owns: nodes and their attributes, parent/child links, hardlink groups, the numbering of
//! build-rules.md section 3. Does not own: where entries come from, chunk data, bytes on disk.
//! A node takes about 100 bytes plus its name, so that a million entries stay a small thing.

mod arena;
mod index;
mod order;
mod paths;
mod xattr;

pub(crate) use index::NameIndex;
pub(crate) use order::Order;
pub(crate) use paths::Paths;
pub(crate) use xattr::{XattrError, XattrSet, XattrSetId, split_name};

use crate::error::BuildError;
use arena::{Arena, Span};
use xattr::XattrSets;

/// A node's position in the tree's node list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(pub(crate) u32);

/// The root directory.
pub(crate) const ROOT: NodeId = NodeId(0);
const NONE: u32 = u32::MAX;

/// Type bits of a mode.
pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;
pub(crate) const S_IFCHR: u32 = 0o020_000;
pub(crate) const S_IFBLK: u32 = 0o060_000;
pub(crate) const S_IFIFO: u32 = 0o010_000;
pub(crate) const S_IFSOCK: u32 = 0o140_000;

/// What a source knows of an entry, apart from its name and contents.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attributes {
    /// `st_mode`, type bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number in the 32-bit Linux encoding; 0 for what is no device.
    pub rdev: u32,
    /// Modification time, seconds.
    pub mtime_sec: i64,
    /// Modification time, nanoseconds.
    pub mtime_nsec: u32,
    /// Bytes of a regular file; 0 for others.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: XattrSetId,
}

/// One name in the tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    /// Attributes as the source gave them.
    pub attributes: Attributes,
    /// Regular file: position of its first chunk in the list of chunk references.
    pub first_chunk: u64,
    /// Directory it is in; the root's is the root.
    pub parent: NodeId,
    /// Hardlinks: the node that holds attributes and chunks of the group; else the node itself.
    pub owner: NodeId,
    /// Set by numbering: position in the order, counted from 1.
    pub number: u32,
    /// Set by numbering, in the owner: number of the group's first name.
    pub ino: u32,
    /// Set by numbering, in the owner.
    pub nlink: u32,
    name: Span,
    target: Span,
    first_child: u32,
    next_sibling: u32,
    child_count: u32,
}

impl Node {
    /// Type bits of the mode.
    pub(crate) fn kind(&self) -> u32 {
        self.attributes.mode & S_IFMT
    }

    /// Whether it is a directory.
    pub(crate) fn is_dir(&self) -> bool {
        self.kind() == S_IFDIR
    }

    /// Whether it is a regular file.
    pub(crate) fn is_file(&self) -> bool {
        self.kind() == S_IFREG
    }

    /// Whether it is a symlink.
    pub(crate) fn is_symlink(&self) -> bool {
        self.kind() == S_IFLNK
    }

    /// Whether it is a character or block device.
    pub(crate) fn is_device(&self) -> bool {
        matches!(self.kind(), S_IFCHR | S_IFBLK)
    }

    /// Number of children of a directory.
    pub(crate) fn child_count(&self) -> u32 {
        self.child_count
    }
}

/// The tree. Node 0 is the root.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    bytes: Arena,
    xattrs: XattrSets,
}

impl Tree {
    /// A tree that holds only a root directory.
    pub(crate) fn new(root: Attributes) -> Self {
        let node = Node {
            attributes: root,
            first_chunk: 0,
            parent: ROOT,
            owner: ROOT,
            number: 0,
            ino: 0,
            nlink: 0,
            name: Span::default(),
            target: Span::default(),
            first_child: NONE,
            next_sibling: NONE,
            child_count: 0,
        };
        Self { nodes: vec![node], bytes: Arena::default(), xattrs: XattrSets::default() }
    }

    /// Adds an entry below `parent`. The caller keeps names unique within a directory.
    ///
    /// # Errors
    /// When the tree holds as many entries or bytes of names as it can number.
    pub(crate) fn add(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: Attributes,
    ) -> Result<NodeId, BuildError> {
        let id = u32::try_from(self.nodes.len())
            .ok()
            .filter(|id| *id < NONE)
            .map(NodeId)
            .ok_or_else(|| BuildError::Limit { what: "entries in one image", limit: u64::from(NONE) })?;
        let name = self.bytes.push(name)?;
        let siblings = self.node(parent).first_child;
        self.nodes.push(Node {
            attributes,
            first_chunk: 0,
            parent,
            owner: id,
            number: 0,
            ino: 0,
            nlink: 0,
            name,
            target: Span::default(),
            first_child: NONE,
            next_sibling: siblings,
            child_count: 0,
        });
        let parent = self.node_mut(parent);
        parent.first_child = id.0;
        parent.child_count += 1;
        Ok(id)
    }

    /// Takes a node out of its directory. It stays in the tree without a name there, for the sake of other
    /// names that share its data.
    pub(crate) fn unlink(&mut self, id: NodeId) {
        let (parent, next) = (self.node(id).parent, self.node(id).next_sibling);
        let before = self.children_unsorted(parent).find(|other| self.node(*other).next_sibling == id.0);
        match before {
            Some(before) => self.node_mut(before).next_sibling = next,
            None => self.node_mut(parent).first_child = next,
        }
        self.node_mut(parent).child_count -= 1;
    }

    /// Takes all children out of a directory, as [`Tree::unlink`] does with one.
    pub(crate) fn clear_children(&mut self, dir: NodeId) {
        let dir = self.node_mut(dir);
        (dir.first_child, dir.child_count) = (NONE, 0);
    }

    /// Sets the target of a symlink; its size follows.
    ///
    /// # Errors
    /// When the arena is full.
    pub(crate) fn set_target(&mut self, id: NodeId, target: &[u8]) -> Result<(), BuildError> {
        let span = self.bytes.push(target)?;
        let node = self.node_mut(id);
        node.target = span;
        node.attributes.size = span.size();
        Ok(())
    }

    /// Makes `name` another name of the file `owner`.
    pub(crate) fn set_owner(&mut self, name: NodeId, owner: NodeId) {
        self.node_mut(name).owner = owner;
    }

    /// Number of nodes ever added, the root included.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The node `id`.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The node `id`, to change.
    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// The node that holds attributes and chunks of `id`'s hardlink group.
    pub(crate) fn owner(&self, id: NodeId) -> &Node {
        self.node(self.node(id).owner)
    }

    /// Name of a node; empty for the root.
    pub(crate) fn name(&self, id: NodeId) -> &[u8] {
        self.bytes.get(self.node(id).name)
    }

    /// Target of a symlink; empty for others.
    pub(crate) fn target(&self, id: NodeId) -> &[u8] {
        self.bytes.get(self.node(id).target)
    }

    /// Interns a set of extended attributes.
    ///
    /// # Errors
    /// When a name or value cannot be stored in an image.
    pub(crate) fn intern_xattrs(
        &mut self,
        pairs: &mut [(Vec<u8>, Vec<u8>)],
    ) -> Result<XattrSetId, XattrError> {
        self.xattrs.intern(pairs)
    }

    /// Extended attributes of a node.
    pub(crate) fn xattrs(&self, id: NodeId) -> XattrSet<'_> {
        self.xattrs.get(self.node(id).attributes.xattrs)
    }

    /// Children of a directory in no particular order.
    pub(crate) fn children_unsorted(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let mut next = self.node(id).first_child;
        std::iter::from_fn(move || {
            let id = (next != NONE).then_some(NodeId(next))?;
            next = self.node(id).next_sibling;
            Some(id)
        })
    }

    /// Path of a node from the root, beginning with `/`.
    pub(crate) fn path(&self, id: NodeId) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = id;
        while at != ROOT {
            parts.push(self.name(at));
            at = self.node(at).parent;
        }
        if parts.is_empty() {
            return b"/".to_vec();
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        path
    }
}
