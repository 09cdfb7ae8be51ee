//! Readers that share an engine: one fetch for all, each image verified for itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use rafs::image::Image;
use rafs::reader::{Engine, EngineOptions, ReadError, Reader, ReaderOptions};
use rafs::store::{FetchDone, FetchRequest, SizeDone, Store};
use std::collections::HashSet;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;
use support::*;

fn engine() -> Arc<Engine> {
    Engine::new(EngineOptions { workers: 2, ..EngineOptions::default() }).unwrap()
}

#[test]
fn readers_of_one_image_fetch_once_and_share_what_is_cached() {
    for name in ["v6-zstd-blake3", "v5-zstd-sha256-4k", "v6-batch", "v6-targz-ref"] {
        for with_cache in [true, false] {
            let case = Arc::new(case(name));
            let cache = tempfile::tempdir().unwrap();
            let engine = engine();
            let store = Arc::new(Remote(case.store()));
            let start = Arc::new(Barrier::new(4));
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    // Each opens the bootstrap for itself, as two mounts do.
                    let image = case.image();
                    let reader = engine.open(
                        image,
                        Arc::clone(&store) as _,
                        options(with_cache.then(|| cache.path())),
                    );
                    let (case, start) = (Arc::clone(&case), Arc::clone(&start));
                    std::thread::spawn(move || {
                        start.wait();
                        assert_all_files(&case, &reader, "shared engine");
                        reader.shutdown();
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
            let ranges = store.0.fetched_ranges.lock().unwrap();
            let distinct: HashSet<_> = ranges.iter().map(|(o, r)| (o.clone(), r.start)).collect();
            assert_eq!(distinct.len(), ranges.len(), "{name}: something was fetched twice");
        }
    }
}

#[test]
fn images_with_a_blob_in_common_share_its_chunks() {
    // The upper image has the parent's blob and one of its own.
    let case = case("v6-layered-oci");
    let parent = Arc::new(Image::open(&case.dir.join("parent-bootstrap")).unwrap());
    for with_cache in [true, false] {
        let cache = tempfile::tempdir().unwrap();
        let engine = engine();
        let store = Arc::new(Remote(case.store()));
        let options = options(with_cache.then(|| cache.path()));
        let upper = engine.open(case.image(), Arc::clone(&store) as _, options.clone());
        let lower = engine.open(Arc::clone(&parent), Arc::clone(&store) as _, options);
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                assert_all_files(&case, &upper, "upper");
            });
            start.wait();
            read_everything(&lower);
        });
        assert_all_files(&case, &upper, "upper, again");
        let lower_data = read_everything(&lower);
        assert!(!lower_data.is_empty());
        if with_cache {
            let ranges = store.0.fetched_ranges.lock().unwrap();
            // Chunk infos are each image's own affair while they are not in the cache directory yet.
            let info = |o: &String, start: u64| {
                case.image()
                    .blobs()
                    .iter()
                    .any(|b| &b.id == o && b.chunk_info.is_some_and(|c| c.offset == start))
            };
            let data: Vec<_> =
                ranges.iter().filter(|(o, r)| !info(o, r.start)).map(|(o, r)| (o.clone(), r.start)).collect();
            assert_eq!(data.iter().collect::<HashSet<_>>().len(), data.len(), "{data:?}");
        }
    }
}

#[test]
fn reads_that_wait_for_some_of_their_chunks_are_counted() {
    let case = case("v5-zstd-sha256-4k");
    let cache = tempfile::tempdir().unwrap();
    let options = ReaderOptions { amplify: 0, ..options(Some(cache.path())) };
    let reader = Reader::new(case.image(), Arc::new(Remote(case.store())), options).unwrap();
    let file = case.files.iter().max_by_key(|file| file.size).unwrap();
    let inode = find(reader.image(), &file.path);
    assert!(file.size > 3 * 4096);
    let partial = || (reader.metrics().fetched_reads, reader.metrics().partial_reads);

    reader.read_at(&inode, 0, &mut [0; 100]).unwrap();
    assert_eq!(partial(), (1, 0), "all of it was missing");
    let is_hot = |_| {
        std::thread::sleep(Duration::from_millis(5));
        read_hot(&reader, &inode, 0, 100).is_some()
    };
    assert!((0..200).any(is_hot), "the first chunk is kept");
    let mut data = vec![0; usize::try_from(file.size).unwrap()];
    reader.read_at(&inode, 0, &mut data).unwrap();
    assert_eq!((sha256(&data), partial()), (file.sha256.clone(), (2, 1)), "only the first chunk was there");
    assert!(wait_hot(&reader, &inode).is_some());
    reader.read_at(&inode, 0, &mut data).unwrap();
    assert_eq!((sha256(&data), partial()), (file.sha256.clone(), (3, 1)), "nothing was missing");
}

/// Reads every file of an image that nothing is known about.
fn read_everything(reader: &Reader) -> Vec<u8> {
    let image = reader.image();
    let (mut dirs, mut all) = (vec![image.root()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in image.read_dir(&image.inode(dir).unwrap(), 0).unwrap() {
            let entry = entry.unwrap();
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let inode = image.inode(entry.number).unwrap();
            match inode.kind {
                rafs::image::FileKind::Directory => dirs.push(entry.number),
                rafs::image::FileKind::Regular => {
                    let mut data = vec![0; usize::try_from(inode.size).unwrap()];
                    assert_eq!(reader.read_at(&inode, 0, &mut data).unwrap(), data.len());
                    all.extend(data);
                }
                _ => {}
            }
        }
    }
    all
}

#[test]
fn an_image_with_other_digests_neither_trusts_nor_harms_its_neighbour() {
    let case = case("v6-zstd-blake3");
    let mut bytes = std::fs::read(&case.bootstrap).unwrap();
    let table = case.image().chunk_table().iter().map(|r| r.digest).collect::<Vec<_>>();
    assert!(!table.is_empty());
    // The same image, whose chunk table says something else about every chunk.
    for digest in &table {
        let at = bytes.windows(32).position(|w| w == digest).unwrap();
        bytes[at] ^= 1;
    }
    let liar = Arc::new(Image::from_bytes(bytes, "liar").unwrap());
    for order in [[0, 1], [1, 0]] {
        let cache = tempfile::tempdir().unwrap();
        let engine = engine();
        let store: Arc<dyn Store> = Arc::new(Remote(case.store()));
        let readers = [case.image(), Arc::clone(&liar)]
            .map(|image| engine.open(image, Arc::clone(&store), options(Some(cache.path()))));
        for which in order.into_iter().chain(order) {
            if which == 0 {
                assert_all_files(&case, &readers[0], "the honest one");
                continue;
            }
            for file in case.files.iter().filter(|f| f.size > 0) {
                let error = read_all(&readers[1], &file.path).unwrap_err();
                assert!(matches!(error, ReadError::Digest { .. }), "{error}");
            }
        }
        assert_all_files(&case, &readers[0], "the honest one, at last");
    }
}

/// A store that keeps all requests until it is told to go on.
#[derive(Debug)]
struct Held(Arc<Counted>, Mutex<Option<Vec<(FetchRequest, HeldDone)>>>);

struct HeldDone(FetchDone);

impl std::fmt::Debug for HeldDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldDone")
    }
}

impl Store for Held {
    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        match &mut *self.1.lock().unwrap() {
            Some(held) => held.push((request, HeldDone(done))),
            None => self.0.fetch(request, done),
        }
    }
    fn size(&self, object: &str, done: SizeDone) {
        self.0.size(object, done);
    }
}

#[test]
fn a_reader_that_ends_leaves_the_others_their_flights() {
    let case = case("v5-zstd-blake3");
    let file = case.files.iter().max_by_key(|f| f.size).unwrap();
    let store = Arc::new(Held(case.store(), Mutex::new(Some(Vec::new()))));
    let engine = engine();
    let readers = [0, 1].map(|_| engine.open(case.image(), Arc::clone(&store) as _, options(None)));
    let begin = |reader: &Reader| {
        let inode = find(reader.image(), &file.path);
        let (tx, rx) = mpsc::channel();
        let bytes = vec![0; usize::try_from(file.size).unwrap()];
        reader.fetch(&inode, 0, u32::MAX, Box::new(Collect { bytes, done: tx }));
        rx
    };
    let first = begin(&readers[0]);
    while store.1.lock().unwrap().as_ref().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = begin(&readers[1]);
    readers[0].shutdown();
    let (_, result) = first.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(matches!(result, Err(ReadError::Shutdown)), "{result:?}");
    assert!(matches!(read_all(&readers[0], &file.path), Err(ReadError::Shutdown)));
    for (request, done) in store.1.lock().unwrap().take().unwrap() {
        store.0.fetch(request, done.0);
    }
    let (bytes, result) = second.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(result.unwrap() as u64, file.size);
    assert_eq!(sha256(&bytes), file.sha256);
    assert_all_files(&case, &readers[1], "the one that is left");
}
