//! A store that does not answer delays nothing that does not need it, on the same ring; wrong data is EIO.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{corpus, largest, mount_over, node, read_body, request};
use rafs::reader::ReaderOptions;
use rafs::store::{FetchDone, FetchRequest, LocalFs, SizeDone, Store};
use rafsd::fuse::abi::{GetattrIn, op};
use rafsd::mounts::RafsMount;
use rafsd::virtio::Harness;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Keeps back every fetch of chunk data until it is told to let go.
#[derive(Debug)]
struct Reluctant {
    inner: LocalFs,
    held: Mutex<Option<Vec<Held>>>,
}

struct Held(FetchRequest, FetchDone);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Reluctant {
    fn new(case: &str) -> Arc<Self> {
        let inner = LocalFs::in_dir(&corpus(case).join("blobs")).unwrap();
        Arc::new(Self { inner, held: Mutex::new(Some(Vec::new())) })
    }

    fn let_go(&self) {
        let held = self.held.lock().unwrap().take().unwrap_or_default();
        for Held(request, done) in held {
            self.inner.fetch(request, done);
        }
    }
}

impl Store for Reluctant {
    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        if let Some(held) = self.held.lock().unwrap().as_mut() {
            held.push(Held(request, done));
            return;
        }
        self.inner.fetch(request, done);
    }

    fn size(&self, blob: &str, done: SizeDone) {
        self.inner.size(blob, done);
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn reads(mount: &RafsMount, harness: &Harness<RafsMount>) {
    let file = node(mount, &[&largest(mount).0]);
    for slot in 0..8u16 {
        let body = read_body(u64::from(slot) * 65_536, 65_536);
        harness.prepare(slot, &request(op::READ, file, &body), 65_536 + 16, 4096).unwrap();
    }
}

#[test]
fn metadata_and_reads_pass_reads_that_wait() {
    let case = "v6-large-files";
    let store = Reluctant::new(case);
    let dir = tempfile::tempdir().unwrap();
    let options = ReaderOptions { cache_dir: Some(dir.path().to_owned()), ..ReaderOptions::default() };
    let mount = mount_over(case, Arc::clone(&store) as Arc<dyn Store>, options);
    let harness = Harness::new(Arc::clone(&mount)).unwrap();
    reads(&mount, &harness);
    let getattr = GetattrIn { flags: 0, dummy: 0, fh: 0 };
    harness.prepare(8, &request(op::GETATTR, 1, getattr.as_bytes()), 120, 0).unwrap();
    let mut worker = harness.worker();

    harness.announce(8).unwrap();
    worker.serve();
    assert_eq!(harness.given_back(), 0, "reads whose chunks are not there have been answered");
    // Every one of these is answered before `serve` returns.
    for n in 1..=100 {
        harness.announce_heads([8 * 16]).unwrap();
        worker.serve();
        assert_eq!(harness.given_back(), n);
    }
    assert_eq!(harness.reply_header(8).1, 0);

    store.let_go();
    until("parked reads", || harness.given_back() == harness.announced());
    for slot in 0..8 {
        assert_eq!(harness.reply_header(slot), (65_536 + 16, 0, 1), "read {slot}");
    }
    // Soon they are hits: who waits is answered first, and the cache file written then.
    until("reads that are answered at once", || {
        harness.announce(8).unwrap();
        worker.serve();
        let at_once = harness.given_back() == harness.announced();
        until("the reads", || harness.given_back() == harness.announced());
        at_once
    });
}

#[test]
fn a_store_that_never_answers_is_eio_after_the_deadline() {
    let case = "v6-large-files";
    let store = Reluctant::new(case);
    let options = ReaderOptions { deadline: Duration::from_millis(300), ..ReaderOptions::default() };
    let mount = mount_over(case, Arc::clone(&store) as Arc<dyn Store>, options);
    let harness = Harness::new(Arc::clone(&mount)).unwrap();
    reads(&mount, &harness);
    let mut worker = harness.worker();
    harness.announce(8).unwrap();
    worker.serve();
    until("the deadline", || harness.given_back() == harness.announced());
    for slot in 0..8 {
        assert_eq!(harness.reply_header(slot), (16, -libc::EIO, 1), "read {slot}");
    }
    // It comes back: reads succeed without a restart.
    store.let_go();
    until("a read that succeeds", || {
        harness.announce(1).unwrap();
        worker.serve();
        until("an answer", || harness.given_back() == harness.announced());
        harness.reply_header(0).1 == 0
    });
}

#[test]
fn a_chunk_with_a_wrong_digest_is_eio() {
    for case in ["v5-large-files", "v6-large-files"] {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(corpus(case).join("blobs")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            // One bit in the first chunk's stored bytes, which zstd may well decode to something.
            bytes[1000] ^= 0x10;
            std::fs::write(dir.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        let store = Arc::new(LocalFs::in_dir(dir.path()).unwrap());
        let cache = tempfile::tempdir().unwrap();
        let options = ReaderOptions { cache_dir: Some(cache.path().to_owned()), ..ReaderOptions::default() };
        let mount = mount_over(case, store, options);
        let image = mount.reader().image();
        let root = image.inode(image.root()).unwrap();
        let mut failed = 0;
        for entry in image.read_dir(&root, 0).unwrap().map(Result::unwrap) {
            let inode = image.inode(entry.number).unwrap();
            if inode.kind != rafs::image::FileKind::Regular || inode.size == 0 {
                continue;
            }
            let harness = Harness::new(Arc::clone(&mount)).unwrap();
            let body = read_body(0, 4096);
            harness.prepare(0, &request(op::READ, 1 << 56 | entry.number.0, &body), 4096 + 16, 0).unwrap();
            harness.announce(1).unwrap();
            harness.worker().serve();
            until("an answer", || harness.given_back() == harness.announced());
            let (len, error, _) = harness.reply_header(0);
            if error != 0 {
                assert_eq!((len, error), (16, -libc::EIO), "{case}");
                failed += 1;
            }
        }
        assert!(failed > 0, "{case}: no read met the damaged chunk");
    }
}
