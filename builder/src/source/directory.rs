//! A directory as the source of an image (build-rules.md section 2).
//!
//! Owns: walking it in numbering order, hardlinks, dropping whiteouts, cutting files into pieces, the data
//! order under a prefetch policy. Does not own: reading small files, which the packing threads do.
//!
//! The walk is incremental: the order in which directories are listed is the order of numbers and of data,
//! so packing starts with the first directory and not when all are listed.

use super::extents::Extents;
use super::listing::{self, Stat, XattrReader};
use super::{Expected, Input, Piece, ReadError, Source, Task, whiteout};
use crate::error::BuildError;
use crate::options::{ChunkSize, ImageOptions, PrefetchPolicy, WhiteoutSpec};
use crate::prefetch::Patterns;
use crate::progress::Progress;
use crate::tree::{Attributes, NodeId, ROOT, Tree};
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of directory entries that are asked for at once.
const LIST_BUFFER: usize = 64 << 10;

/// See the module's head.
pub(crate) struct DirectorySource {
    path: PathBuf,
    root: Arc<OwnedFd>,
    spec: WhiteoutSpec,
    repeatable: bool,
    /// Which files are stored elsewhere.
    attributes: Arc<crate::attributes::Attributes>,
    chunk_size: ChunkSize,
    prefetch: Option<Patterns>,
    progress: Arc<Progress>,
    xattrs: XattrReader,
    list_buffer: Vec<MaybeUninit<u8>>,
    /// Directories that are not listed yet, the next one last.
    unlisted: Vec<NodeId>,
    /// Files whose data is still to be handed out.
    files: VecDeque<NodeId>,
    /// How many of the first `files` a prefetch pattern names.
    prefetched: usize,
    /// The directory that was used last.
    current: Option<(NodeId, Arc<OwnedFd>)>,
    /// A file of several chunks that is being handed out.
    large: Option<LargeFile>,
    /// First names of files with several links, by device and inode number.
    links: HashMap<(u64, u64), NodeId>,
    /// Pieces handed out so far.
    pieces: u64,
}

struct LargeFile {
    node: NodeId,
    file: Arc<OwnedFd>,
    expected: Expected,
    extents: Extents,
    position: u32,
}

impl DirectorySource {
    /// Opens `path` and makes the tree with its root directory.
    ///
    /// # Errors
    /// When `path` is no directory or cannot be read.
    pub(crate) fn open(
        path: &Path,
        options: &ImageOptions,
        progress: Arc<Progress>,
    ) -> Result<(Self, Tree), BuildError> {
        let meta = std::fs::metadata(path).map_err(BuildError::io("open", path))?;
        if !meta.is_dir() {
            let reason = "specified path must be a directory".to_owned();
            return Err(BuildError::Source { path: path.to_path_buf(), reason });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(BuildError::io("open", path))?;
        let mut source = Self {
            path: path.to_path_buf(),
            root: Arc::new(root),
            spec: options.whiteout_spec,
            repeatable: options.repeatable,
            attributes: options.attributes.clone(),
            chunk_size: options.chunk_size,
            prefetch: (options.prefetch_policy != PrefetchPolicy::None)
                .then(|| options.prefetch_patterns.clone()),
            progress,
            xattrs: XattrReader::new()?,
            list_buffer: vec![MaybeUninit::uninit(); LIST_BUFFER],
            unlisted: vec![ROOT],
            files: VecDeque::new(),
            prefetched: 0,
            current: None,
            large: None,
            links: HashMap::new(),
            pieces: 0,
        };
        let mut tree = Tree::new(Attributes::default());
        let stat = listing::stat(source.root.as_fd(), c"").map_err(BuildError::io("stat", path))?;
        let pairs = source
            .xattrs
            .read(source.root.as_fd(), c"")
            .map_err(BuildError::io("read extended attributes of", path))?;
        let mut attributes = source.owned(stat.attributes);
        (attributes.mtime_sec, attributes.mtime_nsec) = (0, 0);
        attributes.xattrs = intern(&mut tree, pairs, path)?;
        tree.node_mut(ROOT).attributes = attributes;
        Ok((source, tree))
    }

    fn owned(&self, mut attributes: Attributes) -> Attributes {
        if self.repeatable {
            (attributes.uid, attributes.gid) = (0, 0);
        }
        attributes
    }

    /// The descriptor of `dir`, which stays open until another one is asked for.
    fn directory(&mut self, tree: &Tree, dir: NodeId, task: &mut Task) -> Result<Arc<OwnedFd>, BuildError> {
        if let Some((node, fd)) = &self.current
            && *node == dir
        {
            return Ok(fd.clone());
        }
        let fd = if dir == ROOT {
            self.root.clone()
        } else {
            let path = tree.path(dir);
            let fd = listing::open_directory(self.root.as_fd(), &path[1..])
                .map_err(BuildError::io("open", self.shown(tree, dir)))?;
            Arc::new(fd)
        };
        task.enter_directory();
        self.current = Some((dir, fd.clone()));
        Ok(fd)
    }

    /// Lists one directory into the tree.
    fn list(&mut self, tree: &mut Tree, dir: NodeId, task: &mut Task) -> Result<(), BuildError> {
        self.progress.set_at(&self.shown(tree, dir));
        let fd = self.directory(tree, dir, task)?;
        let names = listing::names(fd.as_fd(), &mut self.list_buffer)
            .map_err(BuildError::io("list", self.shown(tree, dir)))?;
        let subdirectories = self.unlisted.len();
        for name in names {
            let shown = || self.shown(tree, dir).join(OsStr::from_bytes(name.to_bytes()));
            let stat = listing::stat(fd.as_fd(), &name).map_err(|e| BuildError::io("stat", shown())(e))?;
            if whiteout::is_marker(self.spec, name.to_bytes(), &stat.attributes) {
                tracing::debug!("{:?} is a whiteout: not stored", shown());
                continue;
            }
            self.add(tree, dir, &fd, &name, &stat)?;
        }
        // The next directory to list is taken from the end.
        self.unlisted[subdirectories..].reverse();
        Ok(())
    }

    fn add(
        &mut self,
        tree: &mut Tree,
        dir: NodeId,
        fd: &OwnedFd,
        name: &CStr,
        stat: &Stat,
    ) -> Result<(), BuildError> {
        let node = tree.add(dir, name.to_bytes(), self.owned(stat.attributes))?;
        self.progress.add_entry();
        if tree.node(node).is_file() && stat.nlink > 1 {
            let owner = *self.links.entry(stat.identity).or_insert(node);
            if owner != node {
                // Everything but the name is the first name's.
                tree.node_mut(node).attributes = tree.node(owner).attributes;
                tree.set_owner(node, owner);
                return Ok(());
            }
        }
        let pairs = self
            .xattrs
            .read(fd.as_fd(), name)
            .map_err(|e| BuildError::io("read extended attributes of", self.shown(tree, node))(e))?;
        if !pairs.is_empty() {
            let path = self.shown(tree, node);
            tree.node_mut(node).attributes.xattrs = intern(tree, pairs, &path)?;
        }
        let entry = *tree.node(node);
        if entry.is_symlink() {
            let target = listing::read_link(fd.as_fd(), name)
                .map_err(|e| BuildError::io("read the symlink", self.shown(tree, node))(e))?;
            tree.set_target(node, target.to_bytes())?;
        } else if entry.is_dir() {
            self.unlisted.push(node);
        } else if entry.is_file() && entry.attributes.size > 0 && !self.is_external(tree, node) {
            self.files.push_back(node);
        }
        Ok(())
    }

    /// Whether the data of a file is stored elsewhere: then it is not read.
    fn is_external(&self, tree: &Tree, node: NodeId) -> bool {
        !self.attributes.is_empty() && self.attributes.is_external(&tree.path(node))
    }

    /// Lists everything and moves the files that patterns name to the front, in pattern order.
    fn list_for_prefetch(&mut self, tree: &mut Tree, patterns: &Patterns) -> Result<(), BuildError> {
        while let Some(dir) = self.unlisted.pop() {
            self.progress.check()?;
            self.list(tree, dir, &mut Task::default())?;
        }
        let ranks: HashMap<&[u8], usize> = patterns.iter().enumerate().map(|(rank, p)| (p, rank)).collect();
        // Nodes are in numbering order, and so is each pattern's group: the sort is stable.
        let mut named: Vec<(usize, NodeId)> = Vec::new();
        for id in (0..tree.len()).filter_map(|n| u32::try_from(n).ok()).map(NodeId) {
            if tree.node(id).is_file() && tree.node(id).attributes.size > 0 && !self.is_external(tree, id) {
                let path = tree.path(id);
                let rank = (0..=path.len())
                    .filter(|at| *at == path.len() || path[*at] == b'/')
                    .find_map(|at| ranks.get(&path[..at]));
                named.extend(rank.map(|rank| (*rank, tree.node(id).owner)));
            }
        }
        named.sort_by_key(|(rank, _)| *rank);
        let mut seen = std::collections::HashSet::new();
        let mut files: VecDeque<NodeId> =
            named.into_iter().map(|(_, id)| id).filter(|id| seen.insert(*id)).collect();
        self.prefetched = files.len();
        files.extend(self.files.iter().filter(|id| !seen.contains(id)));
        self.files = files;
        Ok(())
    }

    /// Hands out a file: at once if it is one piece, else piece by piece.
    fn begin_file(&mut self, tree: &mut Tree, node: NodeId, task: &mut Task) -> Result<(), BuildError> {
        tree.node_mut(node).first_chunk = self.pieces;
        self.progress.add_file();
        let entry = *tree.node(node);
        let Attributes { size, mtime_sec, mtime_nsec, .. } = entry.attributes;
        let expected = Expected { size, mtime_sec, mtime_nsec };
        let dir = self.directory(tree, entry.parent, task)?;
        let name = CString::new(tree.name(node)).map_err(|_| BuildError::Source {
            path: self.shown(tree, node),
            reason: "its name holds a NUL byte".to_owned(),
        })?;
        if let Some(len) = u32::try_from(size).ok().filter(|len| *len <= self.chunk_size.get()) {
            let input = Input::Named { dir, name };
            task.push(Piece { node, position: 0, offset: 0, len, input, expected });
            self.pieces += 1;
            return Ok(());
        }
        if u32::try_from(self.chunk_size.chunks(size)).is_err() {
            let reason = format!("{size} bytes are more than the format can hold with this chunk size");
            return Err(BuildError::Source { path: self.shown(tree, node), reason });
        }
        let shown = self.shown(tree, node);
        self.progress.set_at(&shown);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, name.as_c_str(), flags, Mode::empty())
            .map_err(BuildError::io("open", &shown))?;
        expected.check(file.as_fd()).map_err(|e| e.at(&shown))?;
        let stat = rustix::fs::fstat(&file).map_err(BuildError::io("stat", &shown))?;
        let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let extents = Extents::new(size, stored);
        self.large = Some(LargeFile { node, file: Arc::new(file), expected, extents, position: 0 });
        Ok(())
    }

    /// Hands out the next piece of a file of several chunks.
    fn continue_file(
        &mut self,
        tree: &Tree,
        mut large: LargeFile,
        task: &mut Task,
    ) -> Result<(), BuildError> {
        let chunk = u64::from(self.chunk_size.get());
        let offset = u64::from(large.position) * chunk;
        let rest = large.expected.size - offset;
        let len = u32::try_from(rest.min(chunk)).unwrap_or_default();
        let input = if large.extents.is_hole(large.file.as_fd(), offset, u64::from(len)) {
            Input::Zeros
        } else {
            Input::Open(large.file.clone())
        };
        task.push(Piece {
            node: large.node,
            position: large.position,
            offset,
            len,
            input,
            expected: large.expected,
        });
        self.pieces += 1;
        large.position += 1;
        if rest > u64::from(len) {
            self.large = Some(large);
        } else {
            // Holes are not read, so nothing else would notice that one was filled meanwhile.
            large.expected.check(large.file.as_fd()).map_err(|e| e.at(&self.shown(tree, large.node)))?;
        }
        Ok(())
    }
}

impl Source for DirectorySource {
    fn fill(&mut self, tree: &mut Tree, task: &mut Task) -> Result<bool, BuildError> {
        if let Some(patterns) = self.prefetch.take() {
            self.list_for_prefetch(tree, &patterns)?;
        }
        while !task.is_full() {
            self.progress.check()?;
            if let Some(large) = self.large.take() {
                self.continue_file(tree, large, task)?;
            } else if let Some(node) = self.files.front().copied() {
                let prefetch = self.prefetched > 0;
                if task.pieces.is_empty() {
                    task.prefetch = prefetch;
                } else if task.prefetch != prefetch {
                    break;
                }
                self.files.pop_front();
                self.prefetched = self.prefetched.saturating_sub(1);
                self.begin_file(tree, node, task)?;
            } else if let Some(dir) = self.unlisted.pop() {
                self.list(tree, dir, task)?;
            } else {
                break;
            }
        }
        Ok(!task.pieces.is_empty())
    }

    fn shown(&self, tree: &Tree, node: NodeId) -> PathBuf {
        let path = tree.path(node);
        self.path.join(OsStr::from_bytes(&path[1..]))
    }
}

impl ReadError {
    /// The same with the path it happened at.
    pub(crate) fn at(self, path: &Path) -> BuildError {
        match self {
            Self::Io(action, source) => BuildError::Io { action, path: path.to_path_buf(), source },
            Self::Changed(reason) => BuildError::Changed { path: path.to_path_buf(), reason },
        }
    }
}

fn intern(
    tree: &mut Tree,
    mut pairs: Vec<(Vec<u8>, Vec<u8>)>,
    path: &Path,
) -> Result<crate::tree::XattrSetId, BuildError> {
    tree.intern_xattrs(&mut pairs)
        .map_err(|e| BuildError::Source { path: path.to_path_buf(), reason: e.to_string() })
}
