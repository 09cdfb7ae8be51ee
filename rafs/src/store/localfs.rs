//! Blobs as files in a directory (blob.md section 14.2).

use super::{ErrorClass, FetchDone, FetchRequest, SizeDone, Store, StoreError, is_safe_object_name};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most files kept open between reads.
const OPEN_FILES_MAX: usize = 256;
/// Names in the directory that belong to a blob but are not the blob; `blob_file` does not stand for them.
const AUXILIARY_SUFFIXES: [&str; 2] = [".blob.data", ".blob.meta"];

/// Where a [`LocalFs`] looks.
#[derive(Clone, Debug, Default)]
pub struct LocalFsOptions {
    /// Directory that holds a file for each blob, called by its id.
    pub dir: Option<PathBuf>,
    /// Looked at in order for what `dir` does not have. Those that do not exist are left out.
    pub alt_dirs: Vec<PathBuf>,
    /// One file that stands for every blob.
    pub blob_file: Option<PathBuf>,
}

/// A store in local directories, held as descriptors from the start. Reads happen in the caller's thread.
#[derive(Debug)]
pub struct LocalFs {
    dirs: Vec<(PathBuf, OwnedFd)>,
    blob_file: Option<PathBuf>,
    open: Mutex<HashMap<Arc<str>, Arc<File>>>,
}

impl LocalFs {
    /// Opens the directories.
    ///
    /// # Errors
    /// `dir` cannot be opened, or neither `dir` nor `blob_file` is given.
    pub fn new(options: LocalFsOptions) -> Result<Self, StoreError> {
        let mut dirs = Vec::new();
        if let Some(dir) = options.dir {
            let fd = open_dir(&dir).map_err(|errno| StoreError {
                class: class_of(errno),
                object: dir.display().to_string(),
                range: None,
                reason: format!("blob directory cannot be opened: {errno}"),
            })?;
            dirs.push((dir, fd));
        }
        for dir in options.alt_dirs {
            match open_dir(&dir) {
                Ok(fd) => dirs.push((dir, fd)),
                Err(errno) => {
                    tracing::warn!(dir = %dir.display(), %errno, "alternate blob directory left out")
                }
            }
        }
        if dirs.is_empty() && options.blob_file.is_none() {
            return Err(StoreError {
                class: ErrorClass::Missing,
                object: "localfs".into(),
                range: None,
                reason: "neither a blob directory nor a blob file is given".into(),
            });
        }
        Ok(Self { dirs, blob_file: options.blob_file, open: Mutex::default() })
    }

    /// A store in one directory.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn in_dir(dir: &Path) -> Result<Self, StoreError> {
        Self::new(LocalFsOptions { dir: Some(dir.into()), ..LocalFsOptions::default() })
    }

    fn open_files(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of an object; `fresh` looks it up again even when it is open already.
    fn file(&self, object: &str, fresh: bool) -> Result<Arc<File>, StoreError> {
        if fresh {
            self.open_files().remove(object);
        } else if let Some(file) = self.open_files().get(object) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(self.open(object)?);
        let mut open = self.open_files();
        if open.len() >= OPEN_FILES_MAX {
            open.clear();
        }
        open.insert(object.into(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, object: &str) -> Result<File, StoreError> {
        let error = |class, object: String, reason: String| StoreError { class, object, range: None, reason };
        let auxiliary = AUXILIARY_SUFFIXES.iter().any(|suffix| object.ends_with(suffix));
        if let Some(path) = self.blob_file.as_ref().filter(|_| !auxiliary) {
            return open_regular(rustix::fs::CWD, path)
                .map_err(|e| error(class_of(e), path.display().to_string(), open_reason(e)));
        }
        if !is_safe_object_name(object) {
            let reason = "the image names a blob that is no plain file name; refused".into();
            return Err(error(ErrorClass::Denied, format!("blob {object:?}"), reason));
        }
        let mut first = None;
        for (dir, fd) in &self.dirs {
            match open_regular(fd, Path::new(object)) {
                Ok(file) => return Ok(file),
                Err(errno) => {
                    let path = dir.join(object).display().to_string();
                    let found = error(class_of(errno), path, open_reason(errno));
                    // "Not there" in the main directory says less than "no permission" in another.
                    if first.as_ref().is_none_or(|e: &StoreError| e.class == ErrorClass::Missing) {
                        first = first.filter(|_| found.class == ErrorClass::Missing).or(Some(found));
                    }
                }
            }
        }
        Err(first.unwrap_or_else(|| {
            error(ErrorClass::Missing, format!("blob {object}"), "no blob directory is given".into())
        }))
    }

    fn read(&self, request: FetchRequest) -> Result<Vec<u8>, StoreError> {
        let FetchRequest { object, range, mut buffer, attempt, .. } = request;
        let failed = |class, reason| StoreError {
            class,
            object: self.dirs.first().filter(|_| self.blob_file.is_none()).map_or_else(
                || format!("blob {object}"),
                |(dir, _)| dir.join(&*object).display().to_string(),
            ),
            range: Some(range.clone()),
            reason,
        };
        let file = self.file(&object, attempt > 0)?;
        let result = (|| {
            let size = file.metadata().map_err(|e| failed(ErrorClass::Transient, e.to_string()))?.len();
            if range.end > size || range.start > range.end {
                let reason = format!("the file has only {size} bytes; it is truncated or not the right one");
                return Err(failed(ErrorClass::Corrupt, reason));
            }
            let len = usize::try_from(range.end - range.start)
                .map_err(|_| failed(ErrorClass::Corrupt, "range is too large".into()))?;
            buffer.resize(len, 0);
            file.read_exact_at(&mut buffer, range.start)
                .map_err(|e| failed(ErrorClass::Transient, e.to_string()))?;
            Ok(buffer)
        })();
        if result.is_err() {
            // The file may be replaced; do not hold on to this one.
            self.open_files().remove(&object);
        }
        result
    }
}

impl Store for LocalFs {
    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        done(self.read(request));
    }

    fn size(&self, object: &str, done: SizeDone) {
        let size = self.open(object).and_then(|file| {
            file.metadata().map(|meta| meta.len()).map_err(|e| StoreError {
                class: ErrorClass::Transient,
                object: object.into(),
                range: None,
                reason: e.to_string(),
            })
        });
        done(size);
    }

    fn local_file(&self, object: &str) -> Option<Result<File, StoreError>> {
        Some(self.open(object))
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a regular file that is not empty: a file of 0 bytes counts as missing. `NONBLOCK`: a FIFO of that
/// name must not hang us.
fn open_regular(dir: impl std::os::fd::AsFd, path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::openat(dir, path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::ISDIR);
    }
    if stat.st_size == 0 {
        return Err(Errno::NOENT);
    }
    Ok(File::from(fd))
}

fn class_of(errno: Errno) -> ErrorClass {
    match errno {
        Errno::NOENT | Errno::NOTDIR => ErrorClass::Missing,
        Errno::ACCESS | Errno::PERM | Errno::LOOP => ErrorClass::Denied,
        Errno::ISDIR | Errno::NXIO | Errno::NAMETOOLONG => ErrorClass::Corrupt,
        _ => ErrorClass::Transient,
    }
}

fn open_reason(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "there is no such file, or it is empty; put the blob there".into(),
        Errno::ISDIR | Errno::NXIO => "it is no regular file".into(),
        errno => format!("cannot be opened: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Priority;
    use super::*;
    use std::sync::mpsc;

    fn fetch(
        store: &LocalFs,
        object: &str,
        range: std::ops::Range<u64>,
        attempt: u32,
    ) -> Result<Vec<u8>, StoreError> {
        let (tx, rx) = mpsc::channel();
        let request = FetchRequest {
            object: object.into(),
            range,
            buffer: vec![9; 3],
            attempt,
            priority: Priority::Demand,
        };
        store.fetch(request, Box::new(move |r| tx.send(r).unwrap()));
        rx.recv().unwrap()
    }

    fn size(store: &LocalFs, object: &str) -> Result<u64, StoreError> {
        let (tx, rx) = mpsc::channel();
        store.size(object, Box::new(move |r| tx.send(r).unwrap()));
        rx.recv().unwrap()
    }

    #[test]
    fn reads_ranges_from_the_first_directory_that_has_it() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(a.path().join("one"), b"0123456789").unwrap();
        std::fs::write(a.path().join("two"), b"").unwrap();
        std::fs::write(b.path().join("two"), b"second").unwrap();
        let store = LocalFs::new(LocalFsOptions {
            dir: Some(a.path().into()),
            alt_dirs: vec!["/nonexistent".into(), b.path().into()],
            blob_file: None,
        })
        .unwrap();
        assert_eq!(fetch(&store, "one", 2..5, 0).unwrap(), b"234");
        assert_eq!(fetch(&store, "two", 0..6, 0).unwrap(), b"second");
        assert_eq!(size(&store, "two").unwrap(), 6);
        assert_eq!(size(&store, "three").unwrap_err().class, ErrorClass::Missing);
        let error = fetch(&store, "one", 5..11, 0).unwrap_err();
        assert_eq!(error.class, ErrorClass::Corrupt);
        assert!(error.to_string().contains("bytes 5 to 11: the file has only 10 bytes"), "{error}");
    }

    #[test]
    fn nothing_outside_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("blobs")).unwrap();
        std::fs::write(dir.path().join("secret"), b"secret").unwrap();
        let store = LocalFs::in_dir(&dir.path().join("blobs")).unwrap();
        for name in ["../secret", "..", ".", "", "/etc/passwd"] {
            assert_eq!(fetch(&store, name, 0..1, 0).unwrap_err().class, ErrorClass::Denied, "{name}");
        }
    }

    #[test]
    fn odd_files_are_refused_and_do_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let store = LocalFs::in_dir(dir.path()).unwrap();
        for name in ["dir", "fifo"] {
            assert_eq!(fetch(&store, name, 0..1, 0).unwrap_err().class, ErrorClass::Corrupt, "{name}");
        }
    }

    #[test]
    fn a_higher_attempt_and_an_error_look_at_the_directory_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        std::fs::write(&path, b"old").unwrap();
        let store = LocalFs::in_dir(dir.path()).unwrap();
        assert_eq!(fetch(&store, "blob", 0..3, 0).unwrap(), b"old");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"new, longer").unwrap();
        assert_eq!(fetch(&store, "blob", 0..3, 1).unwrap(), b"new");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"newer, and longer still").unwrap();
        fetch(&store, "blob", 0..20, 0).unwrap_err();
        assert_eq!(fetch(&store, "blob", 0..20, 0).unwrap(), b"newer, and longer st");
    }

    #[test]
    fn blob_file_stands_for_every_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"data").unwrap();
        let store =
            LocalFs::new(LocalFsOptions { blob_file: Some(path), ..LocalFsOptions::default() }).unwrap();
        assert_eq!(fetch(&store, "anything", 0..4, 0).unwrap(), b"data");
        assert_eq!(fetch(&store, "../..", 0..4, 0).unwrap(), b"data");
        fetch(&store, "anything.blob.data", 0..4, 0).unwrap_err();
    }
}
