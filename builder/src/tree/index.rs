//! Finding children by name while a tree grows in no particular order.
//!
//! Owns: the table. Does not own: the tree, which the caller passes to every call.

use super::{NodeId, Tree};
use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};

/// (directory, name) to node.
#[derive(Debug, Default)]
pub(crate) struct NameIndex {
    table: HashTable<NodeId>,
    state: RandomState,
}

impl NameIndex {
    fn hash(&self, parent: NodeId, name: &[u8]) -> u64 {
        self.state.hash_one((parent, name))
    }

    /// The child `name` of `parent`.
    pub(crate) fn find(&self, tree: &Tree, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let same = |id: &NodeId| tree.node(*id).parent == parent && tree.name(*id) == name;
        self.table.find(self.hash(parent, name), same).copied()
    }

    /// Adds a node that is in the tree.
    pub(crate) fn insert(&mut self, tree: &Tree, id: NodeId) {
        let state = &self.state;
        let hash = |id: &NodeId| state.hash_one((tree.node(*id).parent, tree.name(*id)));
        self.table.insert_unique(hash(&id), id, hash);
    }

    /// Takes a node out.
    pub(crate) fn remove(&mut self, tree: &Tree, id: NodeId) {
        let hash = self.hash(tree.node(id).parent, tree.name(id));
        if let Ok(entry) = self.table.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
    }
}
