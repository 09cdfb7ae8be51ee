//! A tar archive as the source of an image (build-rules.md section 9).
//!
//! Owns: entries to nodes, missing parents, repeated paths, hardlinks, cutting data into pieces. Does not own:
//! the archive format (`entries`). One pass, nothing is unpacked: data goes from the stream into tasks.

mod entries;
mod header;
mod huffman;
pub(crate) mod inflate;
mod pax;
mod reference;
mod stream;

pub(crate) use self::reference::{Reference, ReferenceChunk};

use self::entries::{Entries, Entry, TarError};
use self::header::Kind;
pub(crate) use self::stream::Stream;
use self::stream::{Digesting, Passed};
use super::listing::device_number;
use super::{Expected, Input, Piece, Source, Task};
use crate::error::BuildError;
use crate::options::{ChunkSize, ImageOptions};
use crate::progress::Progress;
use crate::tree::{Attributes, NodeId, Paths, ROOT, S_IFDIR, S_IFMT, Tree};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Mode of a directory that the archive has no entry for.
const MISSING_MODE: u32 = S_IFDIR | 0o755;
/// Names in the root that eStargz layers have for themselves.
const NOT_STORED: [&[u8]; 3] = [b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"];
/// Longest name, bytes.
const NAME_MAX: usize = 255;

/// See the module's head.
pub(crate) struct TarSource {
    path: PathBuf,
    /// `None` when everything was read.
    entries: Option<Entries<Stream>>,
    paths: Paths,
    repeatable: bool,
    /// Which files are stored elsewhere.
    attributes: Arc<crate::attributes::Attributes>,
    chunk_size: ChunkSize,
    progress: Arc<Progress>,
    /// The file whose data is being handed out: node, size, next piece.
    current: Option<(NodeId, u64, u32)>,
    /// Pieces handed out so far.
    pieces: u64,
    /// TARFS: positions of files' data in the archive, and their sizes, in place of the data.
    positions: Option<Vec<(u64, u64)>>,
    /// What was read of the file, as it is stored.
    passed: Arc<Mutex<Passed>>,
}

/// What is left of an archive whose data stays in it.
pub(crate) struct TarIndex {
    /// Position of every non-empty file's data, and its size, in the order of the archive.
    pub positions: Vec<(u64, u64)>,
    /// Hexadecimal sha256 of the archive.
    pub id: String,
    /// Bytes of the archive.
    pub size: u64,
}

impl TarSource {
    /// Opens the archive `path`: a file, FIFO or character device, plain or compressed with gzip or zstd.
    ///
    /// # Errors
    /// When it is something else or cannot be read.
    pub(crate) fn open(
        path: &Path,
        options: &ImageOptions,
        progress: Arc<Progress>,
    ) -> Result<(Self, Tree), BuildError> {
        Self::open_stream(path, options, progress, Stream::new)
    }

    /// The same for [`TarSource::refer`], which needs to know where in a gzip file things are.
    pub(crate) fn open_indexed(
        path: &Path,
        options: &ImageOptions,
        progress: Arc<Progress>,
    ) -> Result<(Self, Tree), BuildError> {
        Self::open_stream(path, options, progress, Stream::indexed)
    }

    fn open_stream(
        path: &Path,
        options: &ImageOptions,
        progress: Arc<Progress>,
        make: fn(Box<dyn Read + Send>) -> io::Result<Stream>,
    ) -> Result<(Self, Tree), BuildError> {
        let kind = std::fs::metadata(path).map_err(BuildError::io("open", path))?.file_type();
        if !kind.is_file() && !kind.is_fifo() && !kind.is_char_device() {
            let reason = "specified path must be a regular/fifo/char_device file".to_owned();
            return Err(BuildError::Source { path: path.to_path_buf(), reason });
        }
        let file = File::open(path).map_err(BuildError::io("open", path))?;
        Self::read_from(file, path, options, progress, make)
    }

    /// Reads the archive from `input`, and calls it `path` in messages.
    pub(crate) fn read_from(
        input: impl Read + Send + 'static,
        path: &Path,
        options: &ImageOptions,
        progress: Arc<Progress>,
        make: fn(Box<dyn Read + Send>) -> io::Result<Stream>,
    ) -> Result<(Self, Tree), BuildError> {
        let (input, passed) = Digesting::new(input);
        let stream = make(Box::new(input)).map_err(BuildError::io("read", path))?;
        let source = Self {
            path: path.to_path_buf(),
            entries: Some(Entries::new(stream)),
            paths: Paths::default(),
            repeatable: options.repeatable,
            attributes: options.attributes.clone(),
            chunk_size: options.chunk_size,
            progress,
            current: None,
            pieces: 0,
            positions: None,
            passed,
        };
        Ok((source, Tree::new(Attributes { mode: MISSING_MODE, ..Attributes::default() })))
    }

    /// Reads the whole archive into `tree`, but no data (TARFS). Files refer to chunks as if their data had been
    /// handed out.
    ///
    /// # Errors
    /// When the archive is compressed or damaged.
    pub(crate) fn index(mut self, tree: &mut Tree) -> Result<TarIndex, BuildError> {
        if let Some(entries) = &self.entries
            && !entries.get_ref().is_plain()
        {
            let reason = "tar-tarfs needs a plain tar archive: its data is read in place".to_owned();
            return Err(BuildError::Source { path: self.path, reason });
        }
        self.positions = Some(Vec::new());
        while self.fill(tree, &mut Task::default())? {}
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(TarIndex { positions: self.positions.unwrap_or_default(), id: passed.id(), size: passed.size })
    }

    fn failed(&self, error: TarError, offset: u64) -> BuildError {
        match error {
            TarError::Io(source) => BuildError::Io { action: "read", path: self.path.clone(), source },
            TarError::Format(reason) => BuildError::Source {
                path: self.path.clone(),
                reason: format!("at byte {offset} of the archive: {reason}"),
            },
        }
    }

    /// Whether the data of a file is stored elsewhere: then it is passed over.
    fn is_external(&self, tree: &Tree, node: NodeId) -> bool {
        !self.attributes.is_empty() && self.attributes.is_external(&tree.path(node))
    }

    fn refused(&self, entry: &[u8], reason: impl Into<String>) -> BuildError {
        let reason = format!("entry {:?}: {}", OsStr::from_bytes(entry), reason.into());
        BuildError::Source { path: self.path.clone(), reason }
    }

    /// Takes one entry into the tree. Its data, if it has any, becomes current.
    fn take(&mut self, tree: &mut Tree, entry: &mut Entry) -> Result<(), BuildError> {
        let path = std::mem::take(&mut entry.path);
        self.progress.set_at(&self.path.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(&path))));
        self.progress.check()?;
        let names = self.components(&path)?;
        if let [name] = names[..]
            && NOT_STORED.contains(&name)
        {
            return Ok(());
        }
        let xattrs = tree.intern_xattrs(&mut entry.xattrs).map_err(|e| self.refused(&path, e.to_string()))?;
        let owned = !self.repeatable;
        let attributes = Attributes {
            mode: entry.kind.mode_bits() | entry.mode,
            uid: if owned { entry.uid } else { 0 },
            gid: if owned { entry.gid } else { 0 },
            rdev: device_number(entry.device.0, entry.device.1),
            mtime_sec: entry.mtime,
            mtime_nsec: 0,
            size: entry.size,
            xattrs,
        };
        let Some((name, parents)) = names.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(self.refused(&path, "the root must be a directory"));
            }
            tree.node_mut(ROOT).attributes = attributes;
            return Ok(());
        };
        let parent = self.make_parents(tree, parents, &path)?;
        let node = self.paths.place(tree, parent, name, attributes)?;
        self.progress.add_entry();
        match entry.kind {
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.len() > 4095 {
                    return Err(self.refused(&path, "a symlink target must have 1 to 4095 bytes"));
                }
                tree.set_target(node, &entry.link)?;
            }
            Kind::Hardlink => self.link(tree, node, &entry.link, &path)?,
            Kind::File if self.is_external(tree, node) => {}
            Kind::File if entry.size > 0 => {
                if u32::try_from(self.chunk_size.chunks(entry.size)).is_err() {
                    return Err(
                        self.refused(&path, "it is larger than the format can hold with this chunk size")
                    );
                }
                tree.node_mut(node).first_chunk = self.pieces;
                self.progress.add_file();
                self.current = Some((node, entry.size, 0));
            }
            _ => {}
        }
        Ok(())
    }

    /// Splits a path; `.`, empty components and slashes at the ends do not count.
    fn components<'p>(&self, path: &'p [u8]) -> Result<Vec<&'p [u8]>, BuildError> {
        let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
        if names.contains(&&b".."[..]) {
            return Err(self.refused(path, "a path with .. leads out of the archive"));
        }
        if names.iter().any(|name| name.len() > NAME_MAX || name.contains(&0)) {
            return Err(self.refused(path, "a name has more than 255 bytes, or a NUL"));
        }
        Ok(names)
    }

    fn make_parents(&mut self, tree: &mut Tree, names: &[&[u8]], path: &[u8]) -> Result<NodeId, BuildError> {
        let missing = Attributes { mode: MISSING_MODE, ..Attributes::default() };
        let parent = self.paths.make_parents(tree, names, missing)?;
        parent.ok_or_else(|| self.refused(path, "an entry above it is no directory"))
    }

    fn link(&mut self, tree: &mut Tree, node: NodeId, target: &[u8], path: &[u8]) -> Result<(), BuildError> {
        let names = self.components(target)?;
        let found = self.paths.find(tree, &names);
        let Some(found) = found.filter(|id| *id != node && !tree.node(*id).is_dir()) else {
            let shown = OsStr::from_bytes(target);
            return Err(self.refused(path, format!("a hardlink to {shown:?}, which is no earlier file")));
        };
        let owner = tree.node(found).owner;
        let Attributes { mode, rdev, size, xattrs, .. } = tree.node(owner).attributes;
        let attributes = &mut tree.node_mut(node).attributes;
        attributes.mode = attributes.mode & !S_IFMT | mode & S_IFMT;
        (attributes.rdev, attributes.size, attributes.xattrs) = (rdev, size, xattrs);
        if !tree.node(found).is_file() {
            // The formats group only regular files: another name of a symlink or device is another one.
            let target = tree.target(found).to_vec();
            return if target.is_empty() { Ok(()) } else { tree.set_target(node, &target) };
        }
        tree.set_owner(node, owner);
        Ok(())
    }

    /// Reads the next piece of the current file.
    fn continue_file(
        &mut self,
        entries: &mut Entries<Stream>,
        (node, size, position): (NodeId, u64, u32),
        task: &mut Task,
    ) -> Result<(), BuildError> {
        let chunk = u64::from(self.chunk_size.get());
        let offset = u64::from(position) * chunk;
        let len = u32::try_from((size - offset).min(chunk)).unwrap_or_default();
        let start = entries.offset();
        entries.read_data(task.buffer(len as usize)).map_err(|e| self.failed(e, start))?;
        let expected = Expected { size, mtime_sec: 0, mtime_nsec: 0 };
        task.push(Piece { node, position, offset, len, input: Input::Buffered, expected });
        self.pieces += 1;
        if offset + u64::from(len) < size {
            self.current = Some((node, size, position + 1));
        }
        Ok(())
    }

    fn fill_from(
        &mut self,
        entries: &mut Entries<Stream>,
        tree: &mut Tree,
        task: &mut Task,
    ) -> Result<bool, BuildError> {
        while !task.is_full() {
            self.progress.check()?;
            if let Some((_, size, _)) = self.current
                && let Some(positions) = &mut self.positions
            {
                positions.push((entries.offset(), size));
                self.pieces += self.chunk_size.chunks(size);
                self.current = None;
            } else if let Some(current) = self.current.take() {
                self.continue_file(entries, current, task)?;
                continue;
            }
            let start = entries.offset();
            match entries.next_entry().map_err(|e| self.failed(e, start))? {
                Some(mut entry) => self.take(tree, &mut entry)?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl Source for TarSource {
    fn fill(&mut self, tree: &mut Tree, task: &mut Task) -> Result<bool, BuildError> {
        let Some(mut entries) = self.entries.take() else { return Ok(false) };
        if self.fill_from(&mut entries, tree, task)? {
            self.entries = Some(entries);
        } else {
            entries.into_inner().drain().map_err(BuildError::io("read", &self.path))?;
        }
        Ok(!task.pieces.is_empty())
    }

    fn shown(&self, tree: &Tree, node: NodeId) -> PathBuf {
        self.path.join(OsStr::from_bytes(&tree.path(node)[1..]))
    }
}
