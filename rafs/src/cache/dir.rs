//! The directory of cache files, held as a descriptor.

use super::CacheError;
use super::space::Space;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A cache directory and the boot it is used in.
#[derive(Debug)]
pub struct CacheDir {
    path: PathBuf,
    fd: OwnedFd,
    boot_id: [u8; 16],
    pub(super) space: Space,
}

impl CacheDir {
    /// Opens the directory; makes it when it does not exist.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        let error = |source: io::Error| CacheError::Dir { path: path.display().to_string(), source };
        // Failing to make it is no error yet: it may exist in a read-only place.
        let made = std::fs::create_dir_all(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match (errno, made) {
            // Why it is not there says more than that it is not.
            (Errno::NOENT, Err(reason)) => error(reason),
            _ => error(errno.into()),
        })?;
        Ok(Self { path: path.into(), fd, boot_id: boot_id(), space: Space::default() })
    }

    /// Which boot of the host this is; zeros when the host does not tell.
    #[must_use]
    pub fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }

    /// The directory itself.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Device and inode number: the same directory by any path.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        rustix::fs::fstat(&self.fd).map_or((0, 0), |stat| (stat.st_dev, stat.st_ino))
    }

    /// Whether `path` still leads to it.
    #[must_use]
    pub fn is_still_at(&self, path: &Path) -> bool {
        rustix::fs::stat(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity())
    }

    /// Whether `name` in it still leads to `file`.
    #[must_use]
    pub fn still_has(&self, name: &str, file: &File) -> bool {
        let there = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let same = |stat: rustix::fs::Stat| {
            rustix::fs::fstat(file).is_ok_and(|own| (own.st_dev, own.st_ino) == (stat.st_dev, stat.st_ino))
        };
        there.is_ok_and(same)
    }

    /// The full path of a file in it, for messages.
    #[must_use]
    pub fn path_of(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// Opens a file for reading and writing, and makes it when `create`; falls back to reading where writing is not
    /// allowed. The second value says whether it can be written. Symlinks are not followed.
    ///
    /// # Errors
    /// It is no regular file, is not there, or cannot be opened.
    pub fn open_file(&self, name: &str, create: bool) -> Result<(File, bool), CacheError> {
        let base = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let create = if create { OFlags::CREATE } else { OFlags::empty() };
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let (fd, writable) = match rustix::fs::openat(&self.fd, name, base | create | OFlags::RDWR, mode) {
            Ok(fd) => (fd, true),
            Err(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => {
                let fd = rustix::fs::openat(&self.fd, name, base | OFlags::RDONLY, mode);
                // That it is not there matters less than that it cannot be made.
                let said = |e| if e == Errno::NOENT && !create.is_empty() { errno } else { e };
                (fd.map_err(|e| self.error(name, "open it", said(e)))?, false)
            }
            Err(errno @ (Errno::LOOP | Errno::ISDIR | Errno::NXIO)) => {
                let kind = if errno == Errno::LOOP { "a symbolic link" } else { "a directory or device" };
                return Err(CacheError::NotRegular { path: self.path_of(name), kind: kind.into() });
            }
            Err(errno) => return Err(self.error(name, "open it", errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|e| self.error(name, "examine it", e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return Err(CacheError::NotRegular { path: self.path_of(name), kind: format!("a {kind:?}") });
        }
        if stat.st_nlink > 1 {
            // It may be anything elsewhere, and would be written to.
            let kind = "a file with several names".into();
            return Err(CacheError::NotRegular { path: self.path_of(name), kind });
        }
        Ok((File::from(fd), writable))
    }

    /// A new file without a name, for reading and writing, and what to call it in messages. It ends with its last user.
    ///
    /// # Errors
    /// The directory cannot be written, or its file system knows no unnamed files.
    pub(super) fn unnamed_file(&self) -> Result<(File, String), CacheError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, ".", flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.error("(unnamed)", "make it", e))?;
        Ok((File::from(fd), self.path_of("(unnamed)")))
    }

    /// Names of the files in it that are text.
    pub(super) fn names(&self) -> Vec<String> {
        let dir = rustix::fs::Dir::read_from(&self.fd);
        let entries = dir.into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned)).collect()
    }

    /// Removes a file; one that is not there is no error.
    pub(super) fn remove(&self, name: &str) -> Result<(), CacheError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error(name, "remove it", errno)),
        }
    }

    /// Puts a complete file under `name`, in place of what was there: nobody ever sees a part of it.
    ///
    /// # Errors
    /// It cannot be written, or the file system knows no unnamed files.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), CacheError> {
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&self.fd, ".", flags, mode).map_err(|e| self.error(name, "make it", e))?;
        let mut file = File::from(fd);
        let path = self.path_of(name);
        file.write_all(bytes).map_err(|source| CacheError::File { path, action: "write to it", source })?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = || rustix::fs::linkat(CWD, &unnamed, &self.fd, name, AtFlags::SYMLINK_FOLLOW);
        match link() {
            Err(Errno::EXIST) => rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()).and_then(|()| link()),
            other => other,
        }
        .map_err(|e| self.error(name, "name it", e))
    }

    fn error(&self, name: &str, action: &'static str, errno: Errno) -> CacheError {
        CacheError::File { path: self.path_of(name), action, source: errno.into() }
    }
}

/// The kernel's random id of this boot.
fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
    hex::decode(digits).ok().and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_itself_and_refuses_odd_files() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = CacheDir::open(&tmp.path().join("a/b")).unwrap();
        assert_ne!(dir.boot_id(), [0; 16]);
        let (_, writable) = dir.open_file("new", true).unwrap();
        assert!(writable);
        std::os::unix::fs::symlink("/etc/passwd", tmp.path().join("a/b/link")).unwrap();
        std::fs::create_dir(tmp.path().join("a/b/dir")).unwrap();
        std::fs::hard_link(tmp.path().join("a/b/new"), tmp.path().join("elsewhere")).unwrap();
        for name in ["link", "dir", "new"] {
            assert!(matches!(dir.open_file(name, true), Err(CacheError::NotRegular { .. })), "{name}");
        }
        for contents in ["first", "second"] {
            dir.write_file("whole", contents.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(tmp.path().join("a/b/whole")).unwrap(), contents);
        }
        dir.write_file("dir", b"").unwrap_err();
        dir.open_file("absent", false).unwrap_err();
        std::fs::write(tmp.path().join("file"), b"").unwrap();
        for path in ["file", "file/below"] {
            let error = CacheDir::open(&tmp.path().join(path)).unwrap_err().to_string();
            assert!(error.contains("Not a directory"), "{error}");
        }
    }
}
