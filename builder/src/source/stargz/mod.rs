//! The index of an eStargz layer as the source of an image (build-rules.md section 10).
//!
//! Owns: the index file and its JSON, entries to nodes, hardlinks, chunks of files with their places in the layer.
//! Does not own: which of the chunks are new, reading the layer.

mod index;
mod time;

pub use index::StargzIndex;
pub(crate) use index::{IndexedChunk, NO_DIGEST};

use crate::error::BuildError;
use crate::tree::{Attributes, NodeId, Paths, ROOT, S_IFDIR, S_IFLNK, S_IFREG, Tree};
use index::{Entry, Kind};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest index that is read, bytes: some 1,000,000 entries.
const INDEX_SIZE_MAX: u64 = 512 << 20;
/// Mode of a directory that the index has no entry for.
const MISSING_MODE: u32 = S_IFDIR | 0o755;
/// Names in the root that eStargz layers have for themselves.
const NOT_STORED: [&[u8]; 3] = [b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"];

/// Takes a regular file with its chunks.
type TakeFile<'a> = &'a mut dyn FnMut(&mut Tree, NodeId, &[IndexedChunk]) -> Result<(), BuildError>;

/// Reads the index file `path`.
///
/// # Errors
/// When it cannot be read, is no index, or describes what a RAFS image cannot hold.
pub(crate) fn read(path: &Path) -> Result<StargzIndex, BuildError> {
    let file = File::open(path).map_err(BuildError::io("open", path))?;
    let refused = |reason: String| BuildError::Source { path: path.to_path_buf(), reason };
    let mut text = Vec::new();
    file.take(INDEX_SIZE_MAX + 1).read_to_end(&mut text).map_err(BuildError::io("read", path))?;
    if text.len() as u64 > INDEX_SIZE_MAX {
        return Err(refused(format!("a stargz index has at most {INDEX_SIZE_MAX} bytes")));
    }
    StargzIndex::parse(&text).map_err(refused)
}

/// Makes the tree of `index`, and calls `file` with every regular file that has data, in the order of the index.
///
/// # Errors
/// When entries contradict each other, or what `file` says.
pub(crate) fn make_tree(
    index: &StargzIndex,
    path: &Path,
    repeatable: bool,
    file: TakeFile<'_>,
) -> Result<Tree, BuildError> {
    let mut maker = Maker {
        path,
        repeatable,
        tree: Tree::new(Attributes { mode: MISSING_MODE, ..Attributes::default() }),
        paths: Paths::default(),
    };
    for entry in index.entries() {
        let names = entry.names();
        if matches!(names[..], [name] if NOT_STORED.contains(&name)) {
            continue;
        }
        let Some(node) = maker.place(entry, &names)? else { continue };
        if let Kind::File { chunks, .. } = &entry.kind
            && !chunks.is_empty()
        {
            file(&mut maker.tree, node, index.chunks(chunks))?;
        }
    }
    Ok(maker.tree)
}

struct Maker<'a> {
    path: &'a Path,
    repeatable: bool,
    tree: Tree,
    paths: Paths,
}

impl Maker<'_> {
    fn refused(&self, entry: &Entry, reason: impl Into<String>) -> BuildError {
        let reason = format!("entry {:?}: {}", entry.name, reason.into());
        BuildError::Source { path: self.path.to_path_buf(), reason }
    }

    /// Puts an entry into the tree. `None`: it was the root, or is left out.
    fn place(&mut self, entry: &Entry, names: &[&[u8]]) -> Result<Option<NodeId>, BuildError> {
        let (kind, size) = match &entry.kind {
            Kind::Directory => (S_IFDIR, 0),
            Kind::File { size, .. } => (S_IFREG, *size),
            Kind::Symlink(_) => (S_IFLNK, 0),
            Kind::Hardlink(_) => (0, 0),
            Kind::Special(what) => {
                let name = &entry.name;
                tracing::warn!("{name:?} is a {what}, which images of a stargz index cannot have: left out");
                return Ok(None);
            }
        };
        let mut pairs = entry.xattrs.clone();
        let xattrs = self.tree.intern_xattrs(&mut pairs).map_err(|e| self.refused(entry, e.to_string()))?;
        let owned = !self.repeatable;
        let mut attributes = Attributes {
            mode: kind | entry.mode,
            uid: if owned { entry.uid } else { 0 },
            gid: if owned { entry.gid } else { 0 },
            rdev: 0,
            mtime_sec: entry.mtime,
            mtime_nsec: 0,
            size,
            xattrs,
        };
        let Some((name, parents)) = names.split_last() else {
            if kind != S_IFDIR {
                return Err(self.refused(entry, "the root must be a directory"));
            }
            self.tree.node_mut(ROOT).attributes = attributes;
            return Ok(None);
        };
        let missing = Attributes { mode: MISSING_MODE, ..Attributes::default() };
        let parent = self.paths.make_parents(&mut self.tree, parents, missing)?;
        let Some(parent) = parent else {
            return Err(self.refused(entry, "an entry above it is no directory"));
        };
        let mut owner = None;
        if let Kind::Hardlink(target) = &entry.kind {
            let target: Vec<&[u8]> = index::components(target);
            let found = self.paths.find(&self.tree, &target).filter(|id| self.tree.node(*id).is_file());
            let Some(found) = found else {
                return Err(self.refused(entry, "a hardlink to what is no earlier file"));
            };
            let first = self.tree.node(found).owner;
            // All names of a group share one inode; content and attributes are the target's.
            attributes = self.tree.node(first).attributes;
            owner = Some(first);
        }
        let node = self.paths.place(&mut self.tree, parent, name, attributes)?;
        if let Kind::Symlink(target) = &entry.kind {
            self.tree.set_target(node, target.as_bytes())?;
        }
        // A link to itself would be a file without data: the earlier entry of its name is what it links to.
        if let Some(owner) = owner {
            self.tree.set_owner(node, owner);
        }
        Ok(Some(node))
    }
}
