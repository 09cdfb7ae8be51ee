//! Growing a tree by paths, in whatever order they come.
//!
//! Owns: missing parents, what happens to an entry whose path comes again. Does not own: what entries are.

use super::{Attributes, NameIndex, NodeId, ROOT, S_IFDIR, S_IFMT, Tree};
use crate::error::BuildError;

/// The names of a growing tree.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    index: NameIndex,
}

impl Paths {
    /// The node with these path components.
    pub(crate) fn find(&self, tree: &Tree, names: &[&[u8]]) -> Option<NodeId> {
        names.iter().try_fold(ROOT, |at, name| self.index.find(tree, at, name))
    }

    /// The directory with these path components; those that are missing are made with `missing`. `None`: one of them is
    /// no directory.
    ///
    /// # Errors
    /// When the tree is full.
    pub(crate) fn make_parents(
        &mut self,
        tree: &mut Tree,
        names: &[&[u8]],
        missing: Attributes,
    ) -> Result<Option<NodeId>, BuildError> {
        let mut at = ROOT;
        for name in names {
            at = match self.index.find(tree, at, name) {
                Some(id) if tree.node(id).is_dir() => id,
                Some(_) => return Ok(None),
                None => {
                    let id = tree.add(at, name, missing)?;
                    self.index.insert(tree, id);
                    id
                }
            };
        }
        Ok(Some(at))
    }

    /// The node for `name` in `parent`: a new one that replaces what had the name, or a directory that is there already.
    ///
    /// # Errors
    /// When the tree is full.
    pub(crate) fn place(
        &mut self,
        tree: &mut Tree,
        parent: NodeId,
        name: &[u8],
        attributes: Attributes,
    ) -> Result<NodeId, BuildError> {
        if let Some(known) = self.index.find(tree, parent, name) {
            if tree.node(known).is_dir() && attributes.mode & S_IFMT == S_IFDIR {
                tree.node_mut(known).attributes = attributes;
                return Ok(known);
            }
            let mut pending = vec![known];
            while let Some(id) = pending.pop() {
                self.index.remove(tree, id);
                pending.extend(tree.children_unsorted(id));
            }
            // It stays as an unnamed node: other names may share its data.
            tree.unlink(known);
        }
        let id = tree.add(parent, name, attributes)?;
        self.index.insert(tree, id);
        Ok(id)
    }
}
