//! The directories that mount paths are made of: in no image, there only to lead to mounts.
//!
//! Owns: the tree of them at one moment. Their numbers are functions of their paths, so that they are the same after a
//! restart. Does not own: what is mounted.

use super::backend::INODE_MASK;
use super::path::MountPath;
use crate::fuse::abi::ROOT_NODE;
use std::collections::HashMap;

/// The directories at one moment.
#[derive(Debug, Default)]
pub(super) struct Pseudo {
    dirs: HashMap<u64, PseudoDir>,
}

/// One directory.
#[derive(Debug)]
pub(super) struct PseudoDir {
    pub number: u64,
    pub parent: u64,
    /// Sorted by `key`.
    pub children: Vec<Child>,
}

/// One name in a directory.
#[derive(Debug)]
pub(super) struct Child {
    pub name: Box<str>,
    /// Its number if it is a directory; the cookie behind it either way.
    pub key: u64,
    pub leads: Leads,
}

/// Where a name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// To the directory with the child's key as number.
    Directory,
    /// To the root of the mount with this index.
    Mount(u8),
}

impl Pseudo {
    /// The directories that lead to `mounts`. What lies below another mount is hidden by it.
    pub(super) fn new<'a>(mounts: impl Iterator<Item = (&'a MountPath, u8)>) -> Self {
        let root = PseudoDir { number: ROOT_NODE, parent: ROOT_NODE, children: Vec::new() };
        let mut pseudo = Self { dirs: HashMap::from([(ROOT_NODE, root)]) };
        let mut mounts: Vec<_> = mounts.collect();
        // Short paths first: then a name that is mounted is known before what is below it.
        mounts.sort_by_key(|(path, _)| path.as_str().len());
        for (path, index) in mounts {
            pseudo.add(path, index);
        }
        for dir in pseudo.dirs.values_mut() {
            dir.children.sort_by_key(|child| child.key);
        }
        pseudo
    }

    fn add(&mut self, path: &MountPath, index: u8) {
        let mut at = ROOT_NODE;
        let mut names = path.names().peekable();
        while let Some(name) = names.next() {
            let last = names.peek().is_none();
            let Some(dir) = self.dirs.get_mut(&at) else { return };
            if let Some(child) = dir.children.iter_mut().find(|child| &*child.name == name) {
                match child.leads {
                    Leads::Mount(_) => return,
                    Leads::Directory if last => {
                        child.leads = Leads::Mount(index);
                        return;
                    }
                    Leads::Directory => at = child.key,
                }
                continue;
            }
            let mut key = hash(at, name.as_bytes());
            while self.dirs.values().any(|d| d.number == key || d.children.iter().any(|c| c.key == key)) {
                key = next(key);
            }
            let leads = if last { Leads::Mount(index) } else { Leads::Directory };
            if let Some(dir) = self.dirs.get_mut(&at) {
                dir.children.push(Child { name: name.into(), key, leads });
            }
            if !last {
                self.dirs.insert(key, PseudoDir { number: key, parent: at, children: Vec::new() });
            }
            at = key;
        }
    }

    /// The directory with a number.
    pub(super) fn get(&self, number: u64) -> Option<&PseudoDir> {
        self.dirs.get(&number)
    }
}

impl PseudoDir {
    /// The child with a name.
    pub(super) fn child(&self, name: &[u8]) -> Option<&Child> {
        self.children.iter().find(|child| child.name.as_bytes() == name)
    }
}

/// The number of directory `name` in directory `parent` of those that lead to mounts, whether it is there now or not. Two
/// of one hash in one table are the exception: the second has another.
#[must_use]
pub fn directory_number(parent: u64, name: &str) -> u64 {
    hash(parent, name.as_bytes())
}

/// FNV-1a over a parent's number and a name, in the range of numbers: 3 .. 2^56. The first cookies belong to the dots.
pub(super) fn hash(parent: u64, name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parent.to_le_bytes().iter().chain(name) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    ((hash >> 8) ^ hash) & INODE_MASK | 4
}

fn next(key: u64) -> u64 {
    (key.wrapping_add(1) & INODE_MASK) | 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> MountPath {
        MountPath::parse(text).unwrap()
    }

    #[test]
    fn directories_lead_to_mounts() {
        let (a, b, c) = (path("/rafs/1/lowerdir"), path("/rafs/2/lowerdir"), path("/containers"));
        let pseudo = Pseudo::new([(&a, 7), (&b, 8), (&c, 9)].into_iter());
        let root = pseudo.get(1).unwrap();
        assert_eq!(root.children.len(), 2);
        assert_eq!(root.child(b"containers").unwrap().leads, Leads::Mount(9));
        let rafs = pseudo.get(root.child(b"rafs").unwrap().key).unwrap();
        assert_eq!((rafs.parent, rafs.children.len()), (1, 2));
        let one = pseudo.get(rafs.child(b"1").unwrap().key).unwrap();
        assert_eq!(one.child(b"lowerdir").unwrap().leads, Leads::Mount(7));
        assert!(one.child(b"upperdir").is_none());
        let alone = Pseudo::new([(&b, 1)].into_iter());
        assert_eq!(alone.get(1).unwrap().child(b"rafs").unwrap().key, rafs.number, "a function of the path");
    }

    #[test]
    fn a_mount_hides_what_is_below_it() {
        let (outer, inner) = (path("/a"), path("/a/b"));
        for mounts in [[(&outer, 1), (&inner, 2)], [(&inner, 2), (&outer, 1)]] {
            let pseudo = Pseudo::new(mounts.into_iter());
            assert_eq!(pseudo.get(1).unwrap().child(b"a").unwrap().leads, Leads::Mount(1));
        }
    }
}
