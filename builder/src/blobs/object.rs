//! Where the bytes of blobs come from: files, or a store.
//!
//! Owns: opening an object by name, reading ranges of it and waiting for them. Does not own: what the bytes mean, how a
//! store gets them.

use rafs::store::{ErrorClass, FetchRequest, Priority, Store, StoreError};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are asked of a store at once: neighbours are likely wanted next, and each request costs a round trip.
const READ_AHEAD: u64 = 2 << 20;

/// Where the blobs of an image are.
#[derive(Clone, Debug)]
pub enum BlobPlace {
    /// In a directory, each under its id.
    Directory(PathBuf),
    /// In this file, whatever the id.
    File(PathBuf),
    /// In a store, each under its id.
    Store(Arc<dyn Store>),
    /// In the first of these that has it.
    FirstOf(Vec<BlobPlace>),
}

/// Something that ranges can be read of.
pub(crate) trait Object: std::fmt::Debug + Send + Sync {
    /// Bytes.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Object for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl BlobPlace {
    /// Opens the object `name`, and says what to call it in messages.
    pub(crate) fn open(&self, name: &str) -> (PathBuf, io::Result<Box<dyn Object>>) {
        let file = |path: PathBuf| {
            let opened = File::open(&path).map(|file| Box::new(file) as Box<dyn Object>);
            (path, opened)
        };
        match self {
            Self::Directory(dir) => file(dir.join(name)),
            Self::File(path) => file(path.clone()),
            Self::FirstOf(places) => {
                let mut last = (PathBuf::from(name), Err(io::ErrorKind::NotFound.into()));
                for place in places {
                    last = place.open(name);
                    if last.1.as_ref().err().is_none_or(|e| e.kind() != io::ErrorKind::NotFound) {
                        break;
                    }
                }
                last
            }
            Self::Store(store) => {
                let object = StoreObject::open(store, name);
                (PathBuf::from(name), object.map(|object| Box::new(object) as Box<dyn Object>))
            }
        }
    }

    /// Whether it is a store of whole blobs only: cache files are looked for where there are files.
    pub(super) fn is_store(&self) -> bool {
        match self {
            Self::Store(_) => true,
            Self::FirstOf(places) => places.iter().all(Self::is_store),
            Self::Directory(_) | Self::File(_) => false,
        }
    }

    /// Opens a file beside the blobs, where these are files.
    pub(super) fn open_beside(&self, name: &str) -> (PathBuf, io::Result<Box<dyn Object>>) {
        match self {
            Self::File(path) => {
                Self::Directory(path.parent().unwrap_or_else(|| Path::new(".")).to_path_buf()).open(name)
            }
            other => other.open(name),
        }
    }
}

/// An object in a store.
#[derive(Debug)]
struct StoreObject {
    store: Arc<dyn Store>,
    name: Arc<str>,
    size: u64,
    /// What was asked for last, and where it starts.
    window: Mutex<(u64, Vec<u8>)>,
}

/// A store's error as one of a file.
fn as_io(error: StoreError) -> io::Error {
    let kind = match error.class {
        ErrorClass::Missing => io::ErrorKind::NotFound,
        ErrorClass::Denied => io::ErrorKind::PermissionDenied,
        ErrorClass::Corrupt => io::ErrorKind::InvalidData,
        ErrorClass::Transient => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// Waits for an answer. Stores call back exactly once; one that went away does not.
fn wait<T>(answers: &mpsc::Receiver<Result<T, StoreError>>) -> io::Result<T> {
    match answers.recv() {
        Ok(answer) => answer.map_err(as_io),
        Err(_) => Err(io::Error::other("the store went away before it answered")),
    }
}

impl StoreObject {
    fn open(store: &Arc<dyn Store>, name: &str) -> io::Result<Self> {
        let (sender, answers) = mpsc::channel();
        // Whoever waits has not gone away: sending cannot fail.
        store.size(name, Box::new(move |size| drop(sender.send(size))));
        let size = wait(&answers)?;
        Ok(Self { store: Arc::clone(store), name: name.into(), size, window: Mutex::default() })
    }

    fn fetch(&self, range: Range<u64>, buffer: Vec<u8>, attempt: u32) -> io::Result<Vec<u8>> {
        let (sender, answers) = mpsc::channel();
        let object = Arc::clone(&self.name);
        let request = FetchRequest { object, range, buffer, attempt, priority: Priority::Demand };
        self.store.fetch(request, Box::new(move |bytes| drop(sender.send(bytes))));
        wait(&answers)
    }
}

impl Object for StoreObject {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| {
            let reason = format!("bytes from {offset} on are behind the end of {} bytes", self.size);
            io::Error::new(io::ErrorKind::UnexpectedEof, reason)
        })?;
        if buffer.is_empty() {
            return Ok(());
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let covered = window.0 <= offset && end <= window.0 + window.1.len() as u64;
        if !covered {
            let ahead = end.max(offset.saturating_add(READ_AHEAD)).min(self.size);
            let old = std::mem::take(&mut *window).1;
            *window = (offset, self.fetch(offset..ahead, old, 0)?);
        }
        let start = usize::try_from(offset - window.0).unwrap_or(usize::MAX);
        let bytes = window.1.get(start..).and_then(|bytes| bytes.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rafs::store::{LocalFs, LocalFsOptions};

    #[test]
    fn ranges_of_an_object_in_a_store() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(dir.path().join("id"), &data).unwrap();
        let options = LocalFsOptions { dir: Some(dir.path().to_path_buf()), ..LocalFsOptions::default() };
        let place = BlobPlace::Store(Arc::new(LocalFs::new(options).unwrap()));
        let object = place.open("id").1.unwrap();
        assert_eq!(object.size().unwrap(), data.len() as u64);
        for (offset, len) in [(0, 10), (5, 3_000_000), (11_999_990, 10), (100, 0), (4, 4)] {
            let mut buffer = vec![0; len];
            object.read_exact_at(&mut buffer, offset as u64).unwrap();
            assert!(buffer == data[offset..offset + len], "{offset}");
        }
        object.read_exact_at(&mut [0; 2], 11_999_999).unwrap_err();
        object.read_exact_at(&mut [0; 2], u64::MAX).unwrap_err();
        assert_eq!(place.open("absent").1.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
