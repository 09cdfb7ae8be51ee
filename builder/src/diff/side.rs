//! One side of a comparison: an image or a directory, seen in the same way.
//!
//! Owns: attributes, listings in name order, link targets, extended attributes. Does not own: file contents
//! (`content`), the walk (`walk`).

use crate::error::BuildError;
use crate::source::listing::{self, Stat, XattrReader};
use crate::tree::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFSOCK};
use rafs::image::{DirEntries, Image, Inode, InodeError};
use rafs::layout::SuperFlags;
use rustix::fs::{Mode, OFlags};
use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of directory entries that are asked for at once.
const LIST_BUFFER: usize = 64 << 10;

/// One entry of either kind.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node {
    Image(Inode),
    Directory(Stat),
}

impl Node {
    pub(super) fn mode(&self) -> u32 {
        match self {
            Self::Image(inode) => inode.mode,
            Self::Directory(stat) => stat.attributes.mode,
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        self.mode() & S_IFMT == S_IFDIR
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind() == "file"
    }

    /// What it is, in one word.
    pub(super) fn kind(&self) -> &'static str {
        match self.mode() & S_IFMT {
            S_IFDIR => "directory",
            S_IFLNK => "symlink",
            S_IFCHR => "character device",
            S_IFBLK => "block device",
            S_IFIFO => "fifo",
            S_IFSOCK => "socket",
            _ => "file",
        }
    }

    /// Bytes of a regular file; 0 for others.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Image(inode) if self.is_file() => inode.size,
            Self::Image(_) => 0,
            Self::Directory(stat) => stat.attributes.size,
        }
    }

    pub(super) fn owner(&self) -> (u32, u32) {
        match self {
            Self::Image(inode) => (inode.uid, inode.gid),
            Self::Directory(stat) => (stat.attributes.uid, stat.attributes.gid),
        }
    }

    pub(super) fn mtime(&self) -> (i64, u32) {
        match self {
            Self::Image(inode) => (inode.mtime_sec, inode.mtime_nsec),
            Self::Directory(stat) => (stat.attributes.mtime_sec, stat.attributes.mtime_nsec),
        }
    }

    pub(super) fn rdev(&self) -> u32 {
        match self {
            Self::Image(inode) => inode.rdev,
            Self::Directory(stat) => stat.attributes.rdev,
        }
    }

    /// What all names of a hardlink share; `None` for an entry with one name.
    pub(super) fn group(&self) -> Option<(u64, u64)> {
        match self {
            Self::Image(inode) => (self.is_file() && inode.nlink > 1).then_some((0, inode.number.0)),
            Self::Directory(stat) => (self.is_file() && stat.nlink > 1).then_some(stat.identity),
        }
    }
}

/// A directory of the real file system.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    root: Arc<OwnedFd>,
    xattrs: XattrReader,
    buffer: Vec<MaybeUninit<u8>>,
    /// The directory that was used last.
    current: Option<(Vec<u8>, Arc<OwnedFd>)>,
}

/// An image or a directory.
#[derive(Debug)]
pub(super) enum Side<'a> {
    Image(&'a Image),
    Directory(Directory),
}

/// What is left of the listing of one directory.
#[derive(Debug)]
pub(super) enum Listing<'a> {
    Image(DirEntries<'a>),
    Names(std::vec::IntoIter<CString>),
}

/// Name and value of an extended attribute.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// A listed entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) node: Node,
}

impl<'a> Side<'a> {
    pub(super) fn directory(path: &Path) -> Result<Self, BuildError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(BuildError::io("open", path))?;
        Ok(Self::Directory(Directory {
            path: path.to_path_buf(),
            root: Arc::new(root),
            xattrs: XattrReader::new()?,
            buffer: vec![MaybeUninit::uninit(); LIST_BUFFER],
            current: None,
        }))
    }

    /// Whether the owners it shows mean anything.
    pub(super) fn has_owners(&self) -> bool {
        match self {
            Self::Image(image) => image.flags().contains(SuperFlags::EXPLICIT_UID_GID),
            Self::Directory(_) => true,
        }
    }

    pub(super) fn root(&self) -> Result<Node, BuildError> {
        match self {
            Self::Image(image) => Ok(Node::Image(image.inode(image.root()).map_err(|e| corrupt(image, e))?)),
            Self::Directory(dir) => listing::stat(dir.root.as_fd(), c"")
                .map(Node::Directory)
                .map_err(BuildError::io("stat", &dir.path)),
        }
    }

    /// Starts listing the directory `node` at `path`.
    pub(super) fn list(&mut self, path: &[u8], node: &Node) -> Result<Listing<'a>, BuildError> {
        match (self, node) {
            (Self::Image(image), Node::Image(inode)) => {
                Ok(Listing::Image(image.read_dir(inode, 0).map_err(|e| corrupt(image, e))?))
            }
            (Self::Directory(dir), _) => {
                let fd = dir.open(path)?;
                let names = listing::names(fd.as_fd(), &mut dir.buffer)
                    .map_err(BuildError::io("list", dir.shown(path)))?;
                Ok(Listing::Names(names.into_iter()))
            }
            _ => Ok(Listing::Names(Vec::new().into_iter())),
        }
    }

    /// The next entry of a listing of the directory at `path`.
    pub(super) fn next(
        &mut self,
        path: &[u8],
        listing: &mut Listing<'a>,
    ) -> Result<Option<Entry>, BuildError> {
        match (self, listing) {
            (Self::Image(image), Listing::Image(entries)) => {
                for entry in entries {
                    let entry = entry.map_err(|e| corrupt(image, e))?;
                    if !matches!(entry.name, b"." | b"..") {
                        let inode = image.inode(entry.number).map_err(|e| corrupt(image, e))?;
                        return Ok(Some(Entry { name: entry.name.to_vec(), node: Node::Image(inode) }));
                    }
                }
                Ok(None)
            }
            (Self::Directory(dir), Listing::Names(names)) => {
                let Some(name) = names.next() else { return Ok(None) };
                let fd = dir.open(path)?;
                let stat = listing::stat(fd.as_fd(), &name)
                    .map_err(|e| BuildError::io("stat", dir.child(path, &name))(e))?;
                Ok(Some(Entry { name: name.into_bytes(), node: Node::Directory(stat) }))
            }
            _ => Ok(None),
        }
    }

    /// Target of the symlink at `path`.
    pub(super) fn target(&mut self, path: &[u8], node: &Node) -> Result<Vec<u8>, BuildError> {
        match (self, node) {
            (Self::Image(image), Node::Image(inode)) => image.read_link(inode).map_err(|e| corrupt(image, e)),
            (Self::Directory(dir), _) => {
                let (fd, name) = dir.parent(path)?;
                let target = listing::read_link(fd.as_fd(), &name)
                    .map_err(|e| BuildError::io("read the link", dir.shown(path))(e))?;
                Ok(target.into_bytes())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Extended attributes of the entry at `path`, sorted by name.
    pub(super) fn xattrs(&mut self, path: &[u8], node: &Node) -> Result<Vec<Pair>, BuildError> {
        let mut pairs = match (self, node) {
            (Self::Image(image), Node::Image(inode)) => {
                let xattrs = image.xattrs(inode).map_err(|e| corrupt(image, e))?;
                let pair = |x: Result<rafs::image::Xattr<'_>, InodeError>| {
                    x.map(|x| ([x.prefix, x.suffix].concat(), x.value.to_vec()))
                };
                xattrs.map(pair).collect::<Result<Vec<_>, _>>().map_err(|e| corrupt(image, e))?
            }
            (Self::Directory(dir), _) => {
                let (fd, name) = dir.parent(path)?;
                dir.xattrs
                    .read(fd.as_fd(), &name)
                    .map_err(|e| BuildError::io("read extended attributes of", dir.shown(path))(e))?
            }
            _ => Vec::new(),
        };
        pairs.sort_unstable();
        Ok(pairs)
    }
}

impl Directory {
    /// Where `path` is outside.
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)))
    }

    fn child(&self, path: &[u8], name: &CStr) -> PathBuf {
        self.shown(path).join(OsStr::from_bytes(name.to_bytes()))
    }

    /// The directory at `path`, which stays open until another one is asked for.
    fn open(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, BuildError> {
        if path.is_empty() || path == b"/" {
            return Ok(self.root.clone());
        }
        if let Some((known, fd)) = &self.current
            && known == path
        {
            return Ok(fd.clone());
        }
        let fd = listing::open_directory(self.root.as_fd(), path.strip_prefix(b"/").unwrap_or(path))
            .map_err(BuildError::io("open", self.shown(path)))?;
        let fd = Arc::new(fd);
        self.current = Some((path.to_vec(), fd.clone()));
        Ok(fd)
    }

    /// The directory that holds `path`, and the name there; an empty name for the root.
    fn parent(&mut self, path: &[u8]) -> Result<(Arc<OwnedFd>, CString), BuildError> {
        let Some(slash) = path.iter().rposition(|b| *b == b'/') else {
            return Ok((self.root.clone(), CString::default()));
        };
        let name = CString::new(&path[slash + 1..]).unwrap_or_default();
        Ok((self.open(&path[..slash])?, name))
    }

    /// Opens the regular file at `path` for reading.
    pub(super) fn file(&mut self, path: &[u8]) -> Result<OwnedFd, BuildError> {
        let (dir, name) = self.parent(path)?;
        // NONBLOCK: whatever took the file's place since it was listed must not hang us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::openat(&*dir, name.as_c_str(), flags, Mode::empty())
            .map_err(|e| BuildError::io("open", self.shown(path))(e))
    }
}

pub(super) fn corrupt(image: &Image, error: InodeError) -> BuildError {
    BuildError::Image { path: image.name().into(), reason: error.to_string() }
}
