//! What the tests share: a folder with a blob, waiting for a store, images of the corpus.

use rafs::image::{FileKind, Image, Inode};
use rafs::reader::{ReadError, Reader, ReaderOptions};
use rafs::store::{FetchRequest, Priority, Store, StoreError};
use rafs_net::{HttpOptions, NetRuntime, RegistryOptions, Scheme};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A folder with one blob of random bytes, called by its digest.
pub struct Blobs {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub data: Vec<u8>,
}

pub fn blobs(size: usize) -> Blobs {
    let mut random = guest_tests::support::random::Random::new(9);
    let data: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
    let id = hex::encode(Sha256::digest(&data));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(&id), &data).unwrap();
    Blobs { dir, id, data }
}

pub fn runtime() -> Arc<NetRuntime> {
    NetRuntime::start().unwrap()
}

/// Short times, so that tests of failures are short.
pub fn quick() -> HttpOptions {
    HttpOptions {
        timeout: Some(Duration::from_millis(700)),
        connect_timeout: Some(Duration::from_millis(700)),
        deadline: Duration::from_secs(10),
        ..HttpOptions::default()
    }
}

/// Repository `a/b` of a registry that is asked by plain http.
pub fn at(host: &str) -> RegistryOptions {
    RegistryOptions {
        scheme: Scheme::Http,
        host: host.into(),
        repo: "a/b".into(),
        auth: None,
        registry_token: None,
        blob_url_scheme: None,
        blob_redirected_host: None,
        docker_config: None,
    }
}

pub fn begin(
    store: &dyn Store,
    object: &str,
    range: Range<u64>,
    attempt: u32,
) -> mpsc::Receiver<Result<Vec<u8>, StoreError>> {
    let (tx, rx) = mpsc::channel();
    let request = FetchRequest {
        object: object.into(),
        range,
        buffer: Vec::new(),
        attempt,
        priority: Priority::Demand,
    };
    store.fetch(request, Box::new(move |result| tx.send(result).unwrap()));
    rx
}

pub fn fetch(store: &dyn Store, object: &str, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
    begin(store, object, range, 0).recv_timeout(Duration::from_secs(60)).unwrap()
}

pub fn size(store: &dyn Store, object: &str) -> Result<u64, StoreError> {
    let (tx, rx) = mpsc::channel();
    store.size(object, Box::new(move |result| tx.send(result).unwrap()));
    rx.recv_timeout(Duration::from_secs(60)).unwrap()
}

/// One case of the interop corpus.
pub struct Case {
    pub name: String,
    pub bootstrap: PathBuf,
    pub blobs: PathBuf,
    pub files: Vec<(String, String)>,
}

pub fn case(name: &str) -> Case {
    #[derive(Deserialize)]
    struct About {
        bootstrap: String,
    }
    #[derive(Deserialize)]
    struct Expected {
        entries: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        path: String,
        path_hex: Option<String>,
        sha256: Option<String>,
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-tests/corpus/interop").join(name);
    let about: About = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
    let expected: Expected =
        serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let files = expected
        .entries
        .into_iter()
        .filter(|e| e.path_hex.is_none())
        .filter_map(|e| Some((e.path, e.sha256?)))
        .collect();
    Case { name: name.into(), bootstrap: dir.join(about.bootstrap), blobs: dir.join("blobs"), files }
}

impl Case {
    pub fn reader(&self, store: Arc<dyn Store>, deadline: Duration) -> Reader {
        self.reader_with(store, ReaderOptions { workers: 2, deadline, ..ReaderOptions::default() })
    }

    pub fn reader_with(&self, store: Arc<dyn Store>, options: ReaderOptions) -> Reader {
        Reader::new(Arc::new(Image::open(&self.bootstrap).unwrap()), store, options).unwrap()
    }

    /// Every file reads as it should.
    pub fn assert_reads(&self, reader: &Reader, what: &str) {
        for (path, digest) in &self.files {
            let data = read_all(reader, path).unwrap_or_else(|e| panic!("{} {what} {path}: {e}", self.name));
            assert_eq!(&hex::encode(Sha256::digest(&data)), digest, "{} {what} {path}", self.name);
        }
        assert!(!self.files.is_empty());
    }
}

pub fn find(image: &Image, path: &str) -> Inode {
    let mut inode = image.inode(image.root()).unwrap();
    for name in path.split('/').filter(|n| !n.is_empty()) {
        inode = image.lookup(&inode, name.as_bytes()).unwrap().unwrap();
    }
    inode
}

pub fn read_all(reader: &Reader, path: &str) -> Result<Vec<u8>, ReadError> {
    let inode = find(reader.image(), path);
    assert_eq!(inode.kind, FileKind::Regular);
    let mut data = vec![0xa5; usize::try_from(inode.size).unwrap()];
    let n = reader.read_at(&inode, 0, &mut data)?;
    assert_eq!(n, data.len());
    Ok(data)
}
