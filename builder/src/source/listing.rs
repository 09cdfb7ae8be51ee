//! Reads one directory: names, attributes, link targets, extended attributes.
//!
//! Owns: the system calls. Does not own: the tree. All paths are relative to directory descriptors, so that
//! depth does not matter and a rename above the source does no harm.

use crate::error::BuildError;
use crate::tree::{Attributes, S_IFDIR};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longest piece of a relative path that is given to one system call, below PATH_MAX.
const PATH_PIECE_MAX: usize = 4000;
/// Largest list of attribute names and largest value that Linux has.
const XATTR_MAX: usize = 65536;

/// What `lstat` says of an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    /// Attributes, without xattrs.
    pub attributes: Attributes,
    /// Link count on the source file system.
    pub nlink: u32,
    /// Device and inode number there.
    pub identity: (u64, u64),
}

/// Opens the directory at `path` (components, no leading `/`) below `root`.
pub(crate) fn open_directory(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, path: &[u8]| rustix::fs::openat(at, path, flags, Mode::empty());
    let mut rest = path;
    let mut at: Option<OwnedFd> = None;
    while rest.len() > PATH_PIECE_MAX {
        let cut = rest[..PATH_PIECE_MAX].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        at = Some(open(at.as_ref().map_or(root, |fd| fd.as_fd()), &rest[..cut])?);
        rest = &rest[cut + 1..];
    }
    let base = at.as_ref().map_or(root, |fd| fd.as_fd());
    Ok(open(base, if rest.is_empty() { b"." } else { rest })?)
}

/// Names in a directory, sorted by bytes, without `.` and `..`.
pub(crate) fn names(dir: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>]) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    let mut entries = RawDir::new(dir, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// `lstat` of `name` in `dir`; an empty name means the directory itself.
pub(crate) fn stat(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
    Ok(from_statx(&stat))
}

fn from_statx(stat: &Statx) -> Stat {
    let mode = u32::from(stat.stx_mode);
    let kind = mode & crate::tree::S_IFMT;
    let is_device = matches!(kind, crate::tree::S_IFCHR | crate::tree::S_IFBLK);
    let attributes = Attributes {
        mode,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: if is_device { device_number(stat.stx_rdev_major, stat.stx_rdev_minor) } else { 0 },
        mtime_sec: stat.stx_mtime.tv_sec,
        mtime_nsec: stat.stx_mtime.tv_nsec,
        size: if kind == crate::tree::S_IFREG { stat.stx_size } else { 0 },
        ..Attributes::default()
    };
    Stat {
        attributes,
        nlink: if kind == S_IFDIR { 1 } else { stat.stx_nlink },
        identity: (u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor), stat.stx_ino),
    }
}

/// The 32-bit Linux encoding of a device number.
pub(crate) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Target of the symlink `name`.
pub(crate) fn read_link(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<CString> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?)
}

/// Reads extended attributes of entries without opening them.
#[derive(Debug)]
pub(crate) struct XattrReader {
    buffer: Vec<u8>,
    path: Vec<u8>,
}

impl XattrReader {
    /// # Errors
    /// When `/proc` is not there: attributes of symlinks and devices can be read by path only, and a path
    /// relative to a descriptor exists only there.
    pub(crate) fn new() -> Result<Self, BuildError> {
        rustix::fs::access("/proc/self/fd", rustix::fs::Access::EXEC_OK).map_err(BuildError::io(
            "read extended attributes: is /proc mounted? cannot use",
            "/proc/self/fd",
        ))?;
        Ok(Self { buffer: vec![0; XATTR_MAX], path: Vec::new() })
    }

    /// All extended attributes of `name` in `dir`; of the directory itself when `name` is empty.
    pub(crate) fn read(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.path.clear();
        self.path.extend_from_slice(format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes());
        self.path.extend_from_slice(if name.is_empty() { b"." } else { name.to_bytes() });
        let len = match rustix::fs::llistxattr(&self.path[..], &mut self.buffer[..]) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => 0,
            Err(e) => return Err(e.into()),
        };
        if len == 0 {
            return Ok(Vec::new());
        }
        let names = self.buffer[..len].to_vec();
        let mut pairs = Vec::new();
        for attribute in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            match rustix::fs::lgetxattr(&self.path[..], attribute, &mut self.buffer[..]) {
                Ok(len) => pairs.push((attribute.to_vec(), self.buffer[..len].to_vec())),
                // Listed a moment ago and gone: it is as if it had never been there.
                Err(Errno::NODATA) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_linux_does() {
        assert_eq!(device_number(1, 3), 259);
        // From the interop corpus: a block device with a large minor number.
        assert_eq!(device_number(0x8f, 0x12345), 0x0000_8f45 | 0x123 << 20);
    }

    #[test]
    fn a_path_longer_than_path_max_opens() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_directory(rustix::fs::CWD, dir.path().as_os_str().as_encoded_bytes()).unwrap();
        let name = vec![b'd'; 200];
        let mut at = root.try_clone().unwrap();
        let mut path = Vec::new();
        for _ in 0..60 {
            rustix::fs::mkdirat(&at, &name[..], Mode::from_raw_mode(0o755)).unwrap();
            at = open_directory(at.as_fd(), &name).unwrap();
            path.extend_from_slice(&name);
            path.push(b'/');
        }
        path.pop();
        let opened = open_directory(root.as_fd(), &path).unwrap();
        assert_eq!(stat(opened.as_fd(), c"").unwrap().identity, stat(at.as_fd(), c"").unwrap().identity);
    }
}
