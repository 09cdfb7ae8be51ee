//! What the data tests share: corpus cases, their files, and ways to read them.

#![allow(dead_code, reason = "each test program uses a part")]

use rafs::image::{Image, Inode};
use rafs::reader::{ReadError, ReadSink, Reader, ReaderOptions, Readiness, Run};
use rafs::store::{FetchDone, FetchRequest, LocalFs, SizeDone, Store, StoreError};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Cases whose data is stored in different ways, each with a digest.
pub const VARIED: [&str; 9] = [
    "v5-lz4-blake3",
    "v5-none-sha256",
    "v6-zstd-blake3",
    "v6-none-sha256",
    "v6-batch",
    "v6-batch-lz4-toc",
    "v6-encrypt",
    "v6-targz-ref-members-toc",
    "v6-tar-ref",
];

#[derive(Deserialize)]
struct CaseFile {
    bootstrap: PathBuf,
}

#[derive(Deserialize)]
struct Expected {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    path: String,
    path_hex: Option<String>,
    size: Option<u64>,
    sha256: Option<String>,
}

/// A regular file of an image.
#[derive(Clone, Debug)]
pub struct Regular {
    pub path: Vec<u8>,
    pub size: u64,
    pub sha256: String,
}

/// One case of the corpus.
pub struct Case {
    pub name: String,
    pub dir: PathBuf,
    pub bootstrap: PathBuf,
    pub files: Vec<Regular>,
}

pub fn case(name: &str) -> Case {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/interop").join(name);
    let case: CaseFile = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
    let expected: Expected =
        serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let files = expected
        .entries
        .into_iter()
        .filter_map(|e| {
            let path =
                e.path_hex.map_or_else(|| e.path.clone().into_bytes(), |hex| hex::decode(hex).unwrap());
            Some(Regular { path, size: e.size?, sha256: e.sha256? })
        })
        .collect();
    Case { name: name.into(), bootstrap: dir.join(case.bootstrap), dir, files }
}

pub fn all_cases() -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/interop");
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().is_dir())
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 44);
    names.iter().map(|name| case(name)).collect()
}

impl Case {
    pub fn image(&self) -> Arc<Image> {
        Arc::new(Image::open(&self.bootstrap).unwrap())
    }

    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    /// A store on the case's blobs. Cases without blobs get an empty directory.
    pub fn store(&self) -> Arc<Counted> {
        let dir = if self.blobs().is_dir() { self.blobs() } else { self.dir.clone() };
        Counted::of_dir(&dir)
    }

    pub fn reader(&self, cache: Option<&Path>) -> Reader {
        Reader::new(self.image(), self.store(), options(cache)).unwrap()
    }

    /// A copy of the blobs that a test may damage.
    pub fn copy_of_blobs(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(self.blobs()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        copy
    }

    /// The data blobs in the image's blob table.
    pub fn blob_ids(&self) -> Vec<String> {
        self.image().blobs().iter().map(|b| b.id.clone()).collect()
    }
}

pub fn options(cache: Option<&Path>) -> ReaderOptions {
    ReaderOptions { cache_dir: cache.map(Into::into), workers: 2, ..ReaderOptions::default() }
}

/// A local store that counts what is asked of it.
#[derive(Debug)]
pub struct Counted {
    inner: LocalFs,
    pub fetches: AtomicU64,
    pub fetched_ranges: Mutex<Vec<(String, std::ops::Range<u64>)>>,
}

impl Counted {
    pub fn of_dir(dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            inner: LocalFs::in_dir(dir).unwrap(),
            fetches: AtomicU64::new(0),
            fetched_ranges: Mutex::default(),
        })
    }

    pub fn count(&self) -> u64 {
        self.fetches.load(Ordering::SeqCst)
    }
}

impl Store for Counted {
    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        self.fetched_ranges.lock().unwrap().push((request.object.to_string(), request.range.clone()));
        self.inner.fetch(request, done);
    }
    fn size(&self, object: &str, done: SizeDone) {
        self.inner.size(object, done);
    }
    fn local_file(&self, object: &str) -> Option<Result<File, StoreError>> {
        self.inner.local_file(object)
    }
}

/// A store that has no local files, as a network store, and answers from threads of its own.
#[derive(Debug)]
pub struct Remote(pub Arc<Counted>);

impl Store for Remote {
    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        let inner = Arc::clone(&self.0);
        std::thread::spawn(move || inner.fetch(request, done));
    }
    fn size(&self, object: &str, done: SizeDone) {
        self.0.size(object, done);
    }
}

pub fn find(image: &Image, path: &[u8]) -> Inode {
    let mut inode = image.inode(image.root()).unwrap();
    for name in path.split(|&b| b == b'/').filter(|n| !n.is_empty()) {
        inode = image.lookup(&inode, name).unwrap().unwrap();
    }
    inode
}

pub fn sha256(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// The whole file by the blocking interface.
pub fn read_all(reader: &Reader, path: &[u8]) -> Result<Vec<u8>, ReadError> {
    let inode = find(reader.image(), path);
    let mut data = vec![0xa5; usize::try_from(inode.size).unwrap() + 1];
    let n = reader.read_at(&inode, 0, &mut data)?;
    data.truncate(n);
    Ok(data)
}

/// Bytes of a file by plan and preadv, as a ring worker does it. `None`: something is not ready.
pub fn read_hot(reader: &Reader, inode: &Inode, offset: u64, len: u32) -> Option<Vec<u8>> {
    let mut runs: Vec<Run> = Vec::new();
    if reader.plan(inode, offset, len, &mut runs).unwrap() == Readiness::Pending {
        return None;
    }
    let mut data = Vec::new();
    for run in runs {
        let mut part = vec![0; usize::try_from(run.len).unwrap()];
        let n = rustix::io::pread(reader.file(run.blob).unwrap(), &mut part, run.offset).unwrap();
        assert_eq!(n, part.len());
        data.extend_from_slice(&part);
    }
    Some(data)
}

/// Every file has the contents it should have.
pub fn assert_all_files(case: &Case, reader: &Reader, what: &str) {
    for file in &case.files {
        let data = read_all(reader, &file.path)
            .unwrap_or_else(|e| panic!("{} {what} {}: {e}", case.name, file.path.escape_ascii()));
        assert_eq!(data.len() as u64, file.size, "{} {what} {}", case.name, file.path.escape_ascii());
        assert_eq!(sha256(&data), file.sha256, "{} {what} {}", case.name, file.path.escape_ascii());
    }
}

/// Every file is ready and has the contents it should have.
pub fn assert_all_hot(case: &Case, reader: &Reader, what: &str) {
    for file in &case.files {
        let inode = find(reader.image(), &file.path);
        let data = wait_hot(reader, &inode)
            .unwrap_or_else(|| panic!("{} {what} {}: not ready", case.name, file.path.escape_ascii()));
        assert_eq!(sha256(&data), file.sha256, "{} {what} {}", case.name, file.path.escape_ascii());
    }
}

/// The whole file as soon as it is ready: readers get their bytes before the cache does.
pub fn wait_hot(reader: &Reader, inode: &Inode) -> Option<Vec<u8>> {
    (0..200).find_map(|_| {
        read_hot(reader, inode, 0, u32::MAX).or_else(|| {
            std::thread::sleep(Duration::from_millis(10));
            None
        })
    })
}

/// A sink that sends what it got.
pub struct Collect {
    pub bytes: Vec<u8>,
    pub done: mpsc::Sender<(Vec<u8>, Result<usize, ReadError>)>,
}

impl ReadSink for Collect {
    fn fill(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }
    fn fill_from(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<()> {
        let n = rustix::io::pread(file, &mut self.bytes[at..at + len], offset)?;
        if n == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
    fn finish(self: Box<Self>, result: Result<usize, ReadError>) {
        let Self { bytes, done } = *self;
        drop(done.send((bytes, result)));
    }
}

/// A small generator of test randomness, the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
}
