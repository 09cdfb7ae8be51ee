//! The tree of a report: every directory with its sums, and of files those that are large where they are.
//!
//! Owns: adding up, choosing what a page has room for. Does not own: figures of files, drawing.

use super::page::NodeList;
use crate::study::Shown;
use rafs::image::Inode;
use std::collections::BinaryHeap;

/// Files of one directory that are kept one by one; the rest only as a sum.
const FILES_KEPT: usize = 200;
/// Children of one directory that a page shows one by one.
const CHILDREN_SHOWN: usize = 150;
/// Nodes on a page.
const NODES_MAX: usize = 12_000;
/// Bytes of their names, as they are shown.
const NAMES_MAX: usize = 900 << 10;
/// Longest name on a page, characters.
const NAME_MAX: usize = 120;
/// Directories in the lists of text and JSON.
const TOP: usize = 40;

/// Position of a directory in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DirId(usize);

impl DirId {
    pub(super) const ROOT: Self = Self(0);
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FileNode<'a> {
    pub(super) name: &'a [u8],
    pub(super) plain: u64,
    pub(super) stored: u64,
    pub(super) class: u8,
    pub(super) layer: Option<u32>,
}

/// A sum of files.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    files: u64,
    plain: u64,
    stored: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.plain = self.plain.saturating_add(other.plain);
        self.stored = self.stored.saturating_add(other.stored);
    }

    fn weight(self) -> u64 {
        self.plain.saturating_add(self.stored)
    }
}

impl FileNode<'_> {
    fn sum(&self) -> Sum {
        Sum { files: 1, plain: self.plain, stored: self.stored }
    }
}

#[derive(Debug)]
struct Dir<'a> {
    parent: DirId,
    name: &'a [u8],
    inode: Inode,
    /// Everything below.
    all: Sum,
    files: Vec<FileNode<'a>>,
    /// Files that are not in `files`.
    rest: Sum,
    children: Vec<DirId>,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    /// Parents come before their children.
    dirs: Vec<Dir<'a>>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: Inode) -> Self {
        let root = Dir {
            parent: DirId::ROOT,
            name: b"",
            inode: root,
            all: Sum::default(),
            files: Vec::new(),
            rest: Sum::default(),
            children: Vec::new(),
        };
        Self { dirs: vec![root] }
    }

    pub(super) fn add(&mut self, parent: DirId, name: &'a [u8], inode: Inode) -> DirId {
        let id = DirId(self.dirs.len());
        self.dirs.push(Dir {
            parent,
            name,
            inode,
            all: Sum::default(),
            files: Vec::new(),
            rest: Sum::default(),
            children: Vec::new(),
        });
        self.dirs[parent.0].children.push(id);
        id
    }

    pub(super) fn inode(&self, dir: DirId) -> Inode {
        self.dirs[dir.0].inode
    }

    /// All directories, parents before their children.
    pub(super) fn directories(&self) -> impl Iterator<Item = DirId> + use<> {
        (0..self.dirs.len()).map(DirId)
    }

    pub(super) fn set_files(&mut self, dir: DirId, mut files: Vec<FileNode<'a>>) {
        let dir = &mut self.dirs[dir.0];
        if files.len() > FILES_KEPT {
            files.select_nth_unstable_by_key(FILES_KEPT, |file| std::cmp::Reverse(file.sum().weight()));
            for file in files.drain(FILES_KEPT..) {
                dir.rest.add(file.sum());
            }
        }
        files.shrink_to_fit();
        dir.all = dir.rest;
        for file in &files {
            dir.all.add(file.sum());
        }
        dir.files = files;
    }

    /// Adds what directories hold to those above them; once, when all are there.
    pub(super) fn add_up(&mut self) {
        for id in (1..self.dirs.len()).rev() {
            let (parent, all) = (self.dirs[id].parent, self.dirs[id].all);
            self.dirs[parent.0].all.add(all);
        }
    }

    /// Absolute path of `name` in `dir`.
    pub(super) fn path(&self, dir: DirId, name: &[u8]) -> Vec<u8> {
        let mut parts = vec![name];
        let mut at = dir;
        while at != DirId::ROOT {
            parts.push(self.dirs[at.0].name);
            at = self.dirs[at.0].parent;
        }
        let mut path = Vec::new();
        for part in parts.into_iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        path
    }

    /// The heaviest directories of the first two levels: path, plain bytes, stored bytes, files.
    pub(crate) fn top_directories(&self) -> Vec<(Vec<u8>, u64, u64, u64)> {
        let root = &self.dirs[0];
        let mut ids: Vec<DirId> = root.children.clone();
        ids.extend(root.children.iter().flat_map(|id| self.dirs[id.0].children.iter().copied()));
        ids.sort_by_key(|id| (std::cmp::Reverse(self.dirs[id.0].all.weight()), id.0));
        ids.truncate(TOP);
        let row = |id: DirId| {
            let dir = &self.dirs[id.0];
            (self.path(dir.parent, dir.name), dir.all.plain, dir.all.stored, dir.all.files)
        };
        ids.into_iter().map(row).collect()
    }

    /// What a page has room for: the heaviest directories are opened first.
    pub(super) fn nodes(&self) -> NodeList {
        let mut list = NodeList::default();
        let root = self.dirs[0].all;
        list.push("/".to_owned(), 0, root.plain, root.stored, root.files, NodeList::DIRECTORY, None);
        let mut names = 0;
        // Weight, position in the list, directory.
        let mut closed = BinaryHeap::from([(root.weight(), 0, DirId::ROOT)]);
        while let Some((_, at, id)) = closed.pop() {
            if list.len() >= NODES_MAX || names >= NAMES_MAX {
                break;
            }
            let dir = &self.dirs[id.0];
            let mut items: Vec<Item<'_>> = dir.children.iter().copied().map(Item::Dir).collect();
            items.extend(dir.files.iter().map(Item::File));
            items.sort_by_key(|item| std::cmp::Reverse(item.sum(self).weight()));
            let mut rest = dir.rest;
            let mut hidden = 0;
            for (n, item) in items.iter().enumerate() {
                if n >= CHILDREN_SHOWN || list.len() >= NODES_MAX || names >= NAMES_MAX {
                    rest.add(item.sum(self));
                    hidden += 1;
                    continue;
                }
                let sum = item.sum(self);
                let (name, class, layer) = match item {
                    Item::Dir(child) => (self.dirs[child.0].name, NodeList::DIRECTORY, None),
                    Item::File(file) => (file.name, i8::try_from(file.class).unwrap_or(0), file.layer),
                };
                let name = shortened(&Shown(name).to_string());
                names += name.len();
                if let Item::Dir(child) = item {
                    closed.push((sum.weight(), list.len(), *child));
                }
                list.push(name, at, sum.plain, sum.stored, sum.files, class, layer);
            }
            if rest.files > 0 || hidden > 0 {
                let name = format!("{} smaller files", crate::human::count(rest.files));
                list.push(name, at, rest.plain, rest.stored, rest.files, NodeList::REST, None);
            }
        }
        list
    }
}

enum Item<'t> {
    Dir(DirId),
    File(&'t FileNode<'t>),
}

impl Item<'_> {
    fn sum(&self, tree: &Tree<'_>) -> Sum {
        match self {
            Self::Dir(id) => tree.dirs[id.0].all,
            Self::File(file) => file.sum(),
        }
    }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= NAME_MAX {
        return name.to_owned();
    }
    let mut short: String = name.chars().take(NAME_MAX - 1).collect();
    short.push('…');
    short
}
