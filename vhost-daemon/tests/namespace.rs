//! A namespace of several images: the hot path costs what it costs without one, reads that wait outlive an umount.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{corpus, read_body, request};
use fuse_backend_rs::api::filesystem::{Context, FileSystem};
use rafs::image::Image;
use rafs::reader::{Reader, ReaderOptions};
use rafs::store::{FetchDone, FetchRequest, LocalFs, SizeDone, Store};
use rafsd::fuse::abi::op;
use rafsd::mounts::{Backend, MountPath, Namespace, NamespaceError, Place, RafsMount, RafsMountOptions};
use rafsd::virtio::Harness;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A store that answers nothing until it is told to.
#[derive(Debug)]
struct Gate {
    inner: LocalFs,
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn wait(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
    }
}

#[derive(Debug)]
struct Gated(Arc<Gate>);

impl Store for Gated {
    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        let gate = Arc::clone(&self.0);
        std::thread::spawn(move || {
            gate.wait();
            gate.inner.fetch(request, done);
        });
    }

    fn size(&self, object: &str, done: SizeDone) {
        self.0.inner.size(object, done);
    }
}

fn path(text: &str) -> MountPath {
    MountPath::parse(text).unwrap()
}

fn image(case: &str, identity: u64) -> RafsMount {
    let store = Arc::new(LocalFs::in_dir(&corpus(case).join("blobs")).unwrap());
    over(case, store, identity)
}

fn over(case: &str, store: Arc<dyn Store>, identity: u64) -> RafsMount {
    let image = Arc::new(Image::open(&corpus(case).join("bootstrap")).unwrap());
    let reader = Reader::new(image, store, ReaderOptions::default()).unwrap();
    let options = RafsMountOptions { index: 1, xattr: true, timeout: Duration::from_secs(86_400) };
    RafsMount::new(reader, options).with_identity(identity)
}

fn walk(namespace: &Namespace, names: &[&str]) -> u64 {
    let ctx = Context::default();
    names.iter().fold(1, |node, name| {
        let name = std::ffi::CString::new(*name).unwrap();
        namespace.lookup(&ctx, node, &name).unwrap().inode
    })
}

#[test]
fn a_read_that_waits_outlives_its_mount() {
    let inner = LocalFs::in_dir(&corpus("v6-zstd-blake3").join("blobs")).unwrap();
    let gate = Arc::new(Gate { inner, open: Mutex::new(false), changed: Condvar::new() });
    let backend = over("v6-zstd-blake3", Arc::new(Gated(Arc::clone(&gate))), 1);
    let namespace = Arc::new(Namespace::new());
    namespace.mount(&path("/a/b"), &backend).unwrap();
    let node = walk(&namespace, &["a", "b", "sizes", "f4097"]);
    let harness = Harness::new(Arc::clone(&namespace)).unwrap();
    harness.prepare(0, &request(op::READ, node, &read_body(0, 4097)), 4097 + 16, 0).unwrap();
    harness.announce(1).unwrap();
    harness.worker().serve();
    assert_eq!(harness.given_back(), 0, "it waits");
    namespace.umount(&path("/a/b")).unwrap();
    assert!(!backend.is_idle(), "a read is on its way");
    *gate.open.lock().unwrap() = true;
    gate.changed.notify_all();
    let until = Instant::now() + Duration::from_secs(20);
    while harness.given_back() != harness.announced() {
        assert!(Instant::now() < until, "no answer");
        std::thread::sleep(Duration::from_millis(2));
    }
    let (len, error, _) = harness.reply_header(0);
    assert_eq!((len, error), (4097 + 16, 0));
    while !backend.is_idle() {
        assert!(Instant::now() < until, "the mount is still in use");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn mounts_come_and_go_under_lookups() {
    let namespace = Arc::new(Namespace::new());
    let (one, other) = (image("v6-zstd-blake3", 1), image("v5-zstd-blake3", 2));
    namespace.mount(&path("/stays"), &one).unwrap();
    assert_eq!(namespace.mount(&path("/stays"), &other), Err(NamespaceError::Exists));
    assert_eq!(namespace.umount(&path("/none")), Err(NamespaceError::NotMounted));
    let file = walk(&namespace, &["stays", "sizes", "f4097"]);
    let done = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let namespace = &namespace;
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(walk(namespace, &["stays", "sizes", "f4097"]), file);
                }
            });
        }
        for n in 0..500 {
            let path = path(&format!("/comes/{}", n % 7));
            namespace.mount(&path, &other).unwrap();
            namespace.remount(&path, if n % 2 == 0 { &one } else { &other }).unwrap();
            namespace.umount(&path).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(namespace.mounts().len(), 1);
}

#[test]
fn an_image_that_changed_does_not_answer_for_the_one_that_a_predecessor_had() {
    let ctx = Context::default();
    let before = Namespace::new();
    before.mount(&path("/a"), &image("v6-zstd-blake3", 1)).unwrap();
    let file = walk(&before, &["a", "sizes", "f4097"]);
    let [(_, place)] = before.places()[..] else { panic!("one mount") };

    let same = Namespace::new();
    same.expect(&path("/a"), place);
    same.mount(&path("/a"), &image("v6-zstd-blake3", 1)).unwrap();
    assert_eq!(walk(&same, &["a", "sizes", "f4097"]), file);
    same.getattr(&ctx, file, None).unwrap();

    let other = Namespace::new();
    other.expect(&path("/a"), place);
    other.mount(&path("/a"), &image("v5-zstd-blake3", 2)).unwrap();
    let stale = other.getattr(&ctx, file, None).unwrap_err();
    assert_eq!(stale.raw_os_error(), Some(libc::ESTALE));
    other.getattr(&ctx, walk(&other, &["a", "sizes", "f4097"]), None).unwrap();
    // Nothing else gets its index while there are others.
    other.umount(&path("/a")).unwrap();
    other.mount(&path("/a"), &image("v6-zstd-blake3", 3)).unwrap();
    assert_ne!(other.places()[0].1.index, place.index);
}

#[test]
fn what_a_predecessor_unmounted_answers_for_nothing_else() {
    let ctx = Context::default();
    let before = Namespace::new();
    before.mount(&path("/a"), &image("v6-zstd-blake3", 1)).unwrap();
    let file = walk(&before, &["a", "sizes", "f4097"]);
    let [(_, place)] = before.places()[..] else { panic!("one mount") };
    before.umount(&path("/a")).unwrap();
    let rested = before.rested();
    assert!(!rested[0].meets(place), "the same image would be right");
    assert!(rested[0].meets(Place { generation: place.generation ^ 1, ..place }));

    let after = Namespace::new();
    after.rest(&rested);
    after.mount(&path("/a"), &image("v5-zstd-blake3", 2)).unwrap();
    assert_ne!(after.places()[0].1.index, place.index);
    let stale = after.getattr(&ctx, file, None).unwrap_err();
    assert_eq!(stale.raw_os_error(), Some(libc::ESTALE));
}
