//! Numbering of a finished tree (build-rules.md section 3, rafs-v5.md section 16).
//!
//! Owns: children in name order, the order of numbers, inode numbers of hardlink groups, link counts.
//! Does not own: record placement, which v5 and v6 do each in their own way.

use super::{NodeId, ROOT, Tree};
use crate::error::BuildError;

/// A numbered tree: what the bootstrap writers walk.
#[derive(Debug)]
pub(crate) struct Order {
    /// Every name, in numbering order: entry k has number k + 1.
    pub numbered: Vec<NodeId>,
    /// Number of distinct inodes: a hardlink group counts once.
    pub inodes: u64,
}

impl Order {
    /// Numbers `tree`: sets `number` of every reachable node, `ino` and `nlink` of every owner.
    ///
    /// # Errors
    /// When two entries of one directory have the same name.
    pub(crate) fn new(tree: &mut Tree) -> Result<Self, BuildError> {
        let mut numbered = Vec::with_capacity(tree.len());
        numbered.push(ROOT);
        let mut pending = vec![ROOT];
        let mut children = Vec::new();
        while let Some(dir) = pending.pop() {
            children.clear();
            children.extend(tree.children_unsorted(dir));
            // Directory sources add in name order, which the sibling list holds reversed.
            children.reverse();
            if !children.is_sorted_by(|a, b| tree.name(*a) < tree.name(*b)) {
                children.sort_unstable_by(|a, b| tree.name(*a).cmp(tree.name(*b)));
            }
            if let Some(pair) = children.windows(2).find(|p| tree.name(p[0]) == tree.name(p[1])) {
                let path = String::from_utf8_lossy(&tree.path(pair[0])).into_owned();
                return Err(BuildError::Duplicate { path });
            }
            // From here on a directory's children are the run of `child_count` numbers from here, and
            // `first_child` is the position of that run.
            tree.node_mut(dir).first_child = position(numbered.len())?;
            numbered.extend_from_slice(&children);
            pending.extend(children.iter().rev().filter(|id| tree.node(**id).is_dir()));
        }
        let inodes = Self::count(tree, &numbered)?;
        Ok(Self { numbered, inodes })
    }

    fn count(tree: &mut Tree, numbered: &[NodeId]) -> Result<u64, BuildError> {
        for id in numbered {
            let node = tree.node_mut(*id);
            (node.ino, node.nlink) = (0, 0);
            let owner = node.owner;
            let owner = tree.node_mut(owner);
            (owner.ino, owner.nlink) = (0, 0);
        }
        let mut inodes = 0;
        for (at, id) in numbered.iter().enumerate() {
            let number = position(at)? + 1;
            let node = tree.node_mut(*id);
            node.number = number;
            let (owner, parent, is_dir) = (node.owner, node.parent, node.is_dir());
            let owner = tree.node_mut(owner);
            if owner.ino == 0 {
                owner.ino = number;
                inodes += 1;
            }
            owner.nlink += if is_dir { 2 } else { 1 };
            if is_dir && *id != ROOT {
                tree.node_mut(parent).nlink += 1;
            }
        }
        Ok(inodes)
    }

    /// Children of a directory, in name order.
    pub(crate) fn children(&self, tree: &Tree, dir: NodeId) -> &[NodeId] {
        let node = tree.node(dir);
        let start = node.first_child as usize;
        &self.numbered[start..start + node.child_count as usize]
    }

    /// Number of a directory's first child; for an empty one, of the entry that follows.
    pub(crate) fn first_child_number(&self, tree: &Tree, dir: NodeId) -> u32 {
        tree.node(dir).first_child + 1
    }

    /// Every node in pre-order: a directory, then for each child in name order that child and all below it.
    pub(crate) fn depth_first<'a>(&'a self, tree: &'a Tree) -> impl Iterator<Item = NodeId> + 'a {
        let mut pending = vec![ROOT];
        std::iter::from_fn(move || {
            let id = pending.pop()?;
            if tree.node(id).is_dir() {
                pending.extend(self.children(tree, id).iter().rev());
            }
            Some(id)
        })
    }
}

fn position(at: usize) -> Result<u32, BuildError> {
    u32::try_from(at)
        .map_err(|_| BuildError::Limit { what: "entries in one image", limit: u64::from(u32::MAX) })
}

#[cfg(test)]
mod tests {
    use super::super::*;

    fn attributes(mode: u32) -> Attributes {
        Attributes { mode, ..Attributes::default() }
    }

    #[test]
    fn children_get_consecutive_numbers_before_grandchildren() {
        let mut tree = Tree::new(attributes(S_IFDIR));
        let b = tree.add(ROOT, b"b", attributes(S_IFDIR)).unwrap();
        let a = tree.add(ROOT, b"a", attributes(S_IFDIR)).unwrap();
        let f = tree.add(a, b"f", attributes(S_IFREG)).unwrap();
        let sub = tree.add(a, b"sub", attributes(S_IFDIR)).unwrap();
        let deep = tree.add(sub, b"deep", attributes(S_IFREG)).unwrap();
        let g = tree.add(b, b"g", attributes(S_IFREG)).unwrap();
        tree.set_owner(g, deep);
        let order = Order::new(&mut tree).unwrap();
        assert_eq!(order.numbered, [ROOT, a, b, f, sub, deep, g]);
        assert_eq!(order.depth_first(&tree).collect::<Vec<_>>(), [ROOT, a, f, sub, deep, b, g]);
        assert_eq!(order.inodes, 6);
        assert_eq!(tree.owner(g).ino, 6);
        assert_eq!(tree.owner(g).nlink, 2);
        assert_eq!([ROOT, a, b, sub].map(|d| tree.node(d).nlink), [4, 3, 2, 2]);
        assert_eq!(tree.path(deep), b"/a/sub/deep");
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        let mut tree = Tree::new(attributes(S_IFDIR));
        tree.add(ROOT, b"a", attributes(S_IFREG)).unwrap();
        tree.add(ROOT, b"a", attributes(S_IFREG)).unwrap();
        assert!(Order::new(&mut tree).unwrap_err().to_string().contains("/a"));
    }
}
