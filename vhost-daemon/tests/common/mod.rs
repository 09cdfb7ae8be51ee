//! What tests and the benchmark of the server side share: a corpus image as a mount, and FUSE messages.
#![allow(dead_code, reason = "each user takes a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use rafs::image::Image;
use rafs::reader::{Reader, ReaderOptions};
use rafs::store::{LocalFs, Store};
use rafsd::fuse::abi::{InHeader, ReadIn};
use rafsd::mounts::{RafsMount, RafsMountOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zerocopy::IntoBytes;

/// Folder of a case of the interop corpus.
pub fn corpus(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/interop").join(case)
}

/// The image of a case over its own blobs, cache files in `cache`.
pub fn mount(case: &str, cache: &Path) -> Arc<RafsMount> {
    let store = Arc::new(LocalFs::in_dir(&corpus(case).join("blobs")).unwrap());
    let options = ReaderOptions { cache_dir: Some(cache.to_owned()), ..ReaderOptions::default() };
    mount_over(case, store, options)
}

/// The image of a case over any store.
pub fn mount_over(case: &str, store: Arc<dyn Store>, options: ReaderOptions) -> Arc<RafsMount> {
    let image = Arc::new(Image::open(&corpus(case).join("bootstrap")).unwrap());
    let reader = Reader::new(image, store, options).unwrap();
    let options = RafsMountOptions { index: 1, xattr: true, timeout: Duration::from_secs(86_400) };
    Arc::new(RafsMount::new(reader, options))
}

/// A FUSE message with `unique` 1.
pub fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(40 + body.len()).unwrap();
    let header = InHeader {
        len,
        opcode,
        unique: 1,
        nodeid: node,
        uid: 0,
        gid: 0,
        pid: 1,
        total_extlen: 0,
        padding: 0,
    };
    [header.as_bytes(), body].concat()
}

/// Body of READ, READDIR and READDIRPLUS.
pub fn read_body(offset: u64, size: u32) -> Vec<u8> {
    let body = ReadIn { fh: 0, offset, size, read_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
    body.as_bytes().to_vec()
}

/// Node id of a path below the root.
pub fn node(mount: &RafsMount, path: &[&[u8]]) -> u64 {
    let image = mount.reader().image();
    let mut inode = image.inode(image.root()).unwrap();
    for name in path {
        inode = image.lookup(&inode, name).unwrap().unwrap();
    }
    if inode.number == image.root() { 1 } else { 1 << 56 | inode.number.0 }
}

/// The largest regular file in the root directory: name and size.
pub fn largest(mount: &RafsMount) -> (Vec<u8>, u64) {
    let image = mount.reader().image();
    let root = image.inode(image.root()).unwrap();
    let entries = image.read_dir(&root, 0).unwrap().map(Result::unwrap);
    let files = entries.filter(|e| e.kind == rafs::image::FileKind::Regular);
    files
        .map(|e| (e.name.to_vec(), image.inode(e.number).unwrap().size))
        .max_by_key(|(_, size)| *size)
        .unwrap()
}

/// The directory with most entries: its node and its entries' names.
pub fn largest_directory(mount: &RafsMount) -> (u64, Vec<Vec<u8>>) {
    let image = mount.reader().image();
    let root = image.inode(image.root()).unwrap();
    let mut best = (1, Vec::new());
    for entry in image.read_dir(&root, 0).unwrap().map(Result::unwrap) {
        if entry.kind != rafs::image::FileKind::Directory || entry.name == b".." {
            continue;
        }
        let dir = image.inode(entry.number).unwrap();
        let names: Vec<_> = image.read_dir(&dir, 0).unwrap().map(|e| e.unwrap().name.to_vec()).collect();
        if names.len() > best.1.len() {
            best = (if entry.number == image.root() { 1 } else { 1 << 56 | entry.number.0 }, names);
        }
    }
    best
}
