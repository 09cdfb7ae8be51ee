//! Files that appear under their name only when they are complete.
//!
//! Owns: unnamed temporary files, giving them a name, writing through FIFOs and devices. Does not own: what
//! is written, nor when it reaches the disk (`create --sync`): waiting for that would be most of a build's time. A build
//! that is killed leaves nothing behind; where the file system has no unnamed files it
//! may leave a `.rafs-image-*` file, never one under the final name.

use crate::error::BuildError;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// An output file while it is written.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    /// What it will be called; a directory when the name is decided at the end.
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// FIFO, device or socket: written in place and in order.
    Stream,
    /// Has no name yet.
    Unnamed { dir: PathBuf },
    /// Has a temporary name.
    Named { temporary: tempfile::TempPath },
}

impl Output {
    /// An output that will be `path`. What is there now stays until [`Output::commit`], unless it is no
    /// regular file: then it is opened for writing (a FIFO waits for its reader).
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub(crate) fn create(path: &Path) -> Result<Self, BuildError> {
        let meta = std::fs::metadata(path);
        if let Ok(meta) = &meta {
            let kind = meta.file_type();
            if kind.is_fifo() || kind.is_char_device() || kind.is_socket() {
                let file = File::options()
                    .write(true)
                    .open(path)
                    .map_err(BuildError::io("open for writing", path))?;
                return Ok(Self { file, path: path.to_path_buf(), kind: Kind::Stream });
            }
            if !kind.is_file() {
                let source = io::Error::from(io::ErrorKind::IsADirectory);
                return Err(BuildError::io("write", path)(source));
            }
        }
        // A symlink is written through, as an ordinary open would.
        let target = if meta.is_ok() {
            std::fs::canonicalize(path).map_err(BuildError::io("resolve", path))?
        } else {
            path.to_path_buf()
        };
        let dir = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Self::open(target, dir)
    }

    /// An output in `dir` that gets its name at the end.
    ///
    /// # Errors
    /// When `dir` cannot be written to.
    pub(crate) fn create_in(dir: &Path) -> Result<Self, BuildError> {
        Self::open(dir.to_path_buf(), dir.to_path_buf())
    }

    fn open(path: PathBuf, dir: PathBuf) -> Result<Self, BuildError> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::openat(CWD, &dir, flags, Mode::from_raw_mode(0o666)) {
            return Ok(Self { file: File::from(fd), path, kind: Kind::Unnamed { dir } });
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".rafs-image-");
        let (file, temporary) =
            builder.tempfile_in(&dir).map_err(BuildError::io("create a file in", &dir))?.into_parts();
        let mode = 0o666 & !umask();
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))
            .map_err(BuildError::io("set the mode of", &temporary))?;
        Ok(Self { file, path, kind: Kind::Named { temporary } })
    }

    /// The final name, or the directory it will be in.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file while it has no name: for those who write or read it at other places than its end.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.file.write_all(bytes).map_err(|e| BuildError::io("write", &self.path)(e))
    }

    /// Gives the file its name, replacing what is there.
    ///
    /// # Errors
    /// When the directory refuses.
    pub(crate) fn commit(self) -> Result<PathBuf, BuildError> {
        let path = self.path.clone();
        self.commit_as(path, true)
    }

    /// Gives the file the name `name` in its directory. A file that has that name already is kept: names
    /// given this way are digests of the content.
    ///
    /// # Errors
    /// When the directory refuses.
    pub(crate) fn commit_named(self, name: &str) -> Result<PathBuf, BuildError> {
        let path = self.path.join(name);
        self.commit_as(path, false)
    }

    fn commit_as(self, path: PathBuf, replace: bool) -> Result<PathBuf, BuildError> {
        let failed = BuildError::io::<io::Error>;
        match self.kind {
            Kind::Stream => return Ok(self.path),
            Kind::Named { temporary } => {
                if replace || !path.exists() {
                    temporary.persist(&path).map_err(|e| failed("create", &path)(e.error))?;
                }
            }
            Kind::Unnamed { dir } => {
                let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let link = |to: &Path| rustix::fs::linkat(CWD, &unnamed, CWD, to, AtFlags::SYMLINK_FOLLOW);
                match link(&path) {
                    Ok(()) => {}
                    Err(rustix::io::Errno::EXIST) if !replace => {}
                    Err(rustix::io::Errno::EXIST) => {
                        let temporary = free_name(&dir);
                        link(&temporary).map_err(|e| failed("create", &temporary)(e.into()))?;
                        if let Err(e) = std::fs::rename(&temporary, &path) {
                            let _ = std::fs::remove_file(&temporary);
                            return Err(failed("create", &path)(e));
                        }
                    }
                    Err(e) => return Err(failed("create", &path)(e.into())),
                }
            }
        }
        Ok(path)
    }
}

/// A name that no other process is likely to use; a collision is an error, not an overwrite.
fn free_name(dir: &Path) -> PathBuf {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    dir.join(format!(".rafs-image-{}-{nanos}", std::process::id()))
}

fn umask() -> u32 {
    // Reading the mask by setting it would race with other threads; the kernel shows it here.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_seen_before_commit_and_nothing_stays_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, "old").unwrap();
        let mut dropped = Output::create(&path).unwrap();
        dropped.write(b"half").unwrap();
        drop(dropped);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let mut output = Output::create(&path).unwrap();
        output.write(b"new").unwrap();
        output.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(entries(dir.path()), ["out"]);
    }

    #[test]
    fn a_named_file_that_exists_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["first", "second"] {
            let mut output = Output::create_in(dir.path()).unwrap();
            output.write(text.as_bytes()).unwrap();
            output.commit_named("id").unwrap();
        }
        assert_eq!(std::fs::read(dir.path().join("id")).unwrap(), b"first");
        assert_eq!(entries(dir.path()), ["id"]);
    }

    #[test]
    fn symlinks_are_written_through_and_directories_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("real"), "old").unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let mut output = Output::create(&dir.path().join("link")).unwrap();
        output.write(b"new").unwrap();
        output.commit().unwrap();
        assert_eq!(std::fs::read(dir.path().join("real")).unwrap(), b"new");
        assert!(dir.path().join("link").is_symlink());
        Output::create(dir.path()).unwrap_err();
    }
}
