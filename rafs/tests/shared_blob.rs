//! Images that name the same blob share its cache file. One of them may lie about it: its chunk records may have other
//! places or digests than the blob's, and its store may hold other bytes. Whatever it does, in one daemon or in two, at
//! once or one after the other, the honest image's data stays right, and the liar gets nothing that it could not fetch.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use rafs::image::Image;
use rafs::layout::chunk::ChunkRecord;
use rafs::reader::{Engine, EngineOptions, Reader, ReaderOptions};
use rafs::store::{FetchDone, FetchRequest, SizeDone, Store};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::*;
use zerocopy::{FromBytes, IntoBytes};

const RECORD: usize = size_of::<ChunkRecord>();

fn engine() -> Arc<Engine> {
    Engine::new(EngineOptions { workers: 2, ..EngineOptions::default() }).unwrap()
}

/// The case's image with its chunk records changed.
fn lie(case: &Case, change: impl FnOnce(&mut [ChunkRecord])) -> Arc<Image> {
    let mut bytes = std::fs::read(&case.bootstrap).unwrap();
    let image = case.image();
    let mut known: HashSet<Vec<u8>> = image.chunk_table().iter().map(|r| r.as_bytes().to_vec()).collect();
    image.for_each_chunk_record(&mut |record| {
        known.insert(record.as_bytes().to_vec());
    });
    let is_record = |at: &usize| bytes.get(*at..*at + RECORD).is_some_and(|part| known.contains(part));
    let places: Vec<usize> = (0..bytes.len()).step_by(8).filter(is_record).collect();
    assert!(places.len() >= known.len());
    let read = |at: &usize| ChunkRecord::read_from_bytes(&bytes[*at..*at + RECORD]).unwrap();
    let mut records: Vec<ChunkRecord> = places.iter().map(read).collect();
    change(&mut records);
    for (at, record) in places.iter().zip(&records) {
        bytes[*at..*at + RECORD].copy_from_slice(record.as_bytes());
    }
    Arc::new(Image::from_bytes(bytes, "liar").unwrap())
}

/// Every chunk is said to be where another one is, or across the border of two.
fn with_other_places(case: &Case) -> Arc<Image> {
    let end = case.image().blobs()[0].uncompressed_size;
    lie(case, |records| {
        let mut offsets: Vec<(u32, u64)> =
            records.iter().map(|r| (r.index.get(), r.uncompressed_offset.get())).collect();
        offsets.sort_unstable();
        offsets.dedup();
        for record in records {
            let at = offsets.iter().position(|(index, _)| *index == record.index.get()).unwrap();
            let other = offsets[(at + 1) % offsets.len()].1;
            if other + u64::from(record.uncompressed_size.get()) <= end {
                record.uncompressed_offset.set(other);
            }
        }
    })
}

/// An image of the same blob id whose own store has other bytes under it, and that store.
fn with_other_bytes(case: &Case) -> (Arc<Image>, tempfile::TempDir) {
    let blobs = case.copy_of_blobs();
    let id = &case.blob_ids()[0];
    let blob = std::fs::File::options().read(true).write(true).open(blobs.path().join(id)).unwrap();
    let mut done = HashSet::new();
    let image = lie(case, |records| {
        for record in records {
            let mut data = vec![0; usize::try_from(record.compressed_size.get()).unwrap()];
            let at = record.compressed_offset.get();
            blob.read_exact_at(&mut data, at).unwrap();
            if done.insert(at) {
                data.iter_mut().for_each(|byte| *byte ^= 0x5a);
                blob.write_all_at(&data, at).unwrap();
            }
            record.digest = Sha256::digest(&data).into();
        }
    });
    (image, blobs)
}

/// Two readers of one cache directory, in one daemon or in two.
struct Two {
    honest: Reader,
    liar: Reader,
}

impl Two {
    fn open(case: &Case, liar: &Arc<Image>, store: &Arc<dyn Store>, cache: &Path, daemons: usize) -> Self {
        Self::limited(case, liar, store, cache, daemons, 0)
    }

    fn limited(
        case: &Case,
        liar: &Arc<Image>,
        store: &Arc<dyn Store>,
        cache: &Path,
        daemons: usize,
        limit: u64,
    ) -> Self {
        let first = engine();
        let second = if daemons == 1 { Arc::clone(&first) } else { engine() };
        let options = ReaderOptions { cache_limit: limit, ..options(Some(cache)) };
        let own: Arc<dyn Store> = Arc::new(Remote(case.store()));
        Self {
            honest: first.open(case.image(), own, options.clone()),
            liar: second.open(Arc::clone(liar), Arc::clone(store), options),
        }
    }
}

/// Reads all files of the liar; how many are not what `xor` makes of the honest ones, and how many fail.
fn read_liar(case: &Case, reader: &Reader, xor: u8, what: &str) -> usize {
    let mut failed = 0;
    for file in case.files.iter().filter(|file| file.size > 0) {
        match read_all(reader, &file.path) {
            Ok(mut data) => {
                data.iter_mut().for_each(|byte| *byte ^= xor);
                assert_eq!(
                    sha256(&data),
                    file.sha256,
                    "{what}: the liar's own data {}",
                    file.path.escape_ascii()
                );
            }
            Err(error) => {
                assert_eq!(error.errno(), 5, "{error}");
                failed += 1;
            }
        }
    }
    failed
}

/// Threads of the store may have a last hold of what was dropped, and with it of its files' locks. A lock is there
/// until the kernel has taken the last hold away, which is later than the descriptor's end.
fn wait_until_let_go(cache: &Path) {
    let inodes: Vec<String> = std::fs::read_dir(cache)
        .unwrap()
        .map(|file| format!(":{} ", file.unwrap().metadata().unwrap().ino()))
        .collect();
    let is_locked = || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        inodes.iter().any(|inode| locks.contains(inode))
    };
    for _ in 0..2000 {
        if !is_locked() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("files below {} stay locked", cache.display());
}

/// All orders, in one daemon or two, with and without a restart.
fn in_all_orders(case: &Case, liar: &Arc<Image>, store: &Arc<dyn Store>, xor: u8) {
    for daemons in [1, 2] {
        for honest_first in [true, false] {
            let cache = tempfile::tempdir().unwrap();
            let what = format!("{}, {daemons} daemons, honest first: {honest_first}", case.name);
            let two = Two::open(case, liar, store, cache.path(), daemons);
            for _ in 0..2 {
                if honest_first {
                    assert_all_files(case, &two.honest, &what);
                }
                assert_eq!(read_liar(case, &two.liar, xor, &what), 0, "{what}");
                assert_all_files(case, &two.honest, &what);
            }
            drop(two);
            let what = format!("{what}, started anew");
            let two = Two::open(case, liar, store, cache.path(), daemons);
            if honest_first {
                assert_eq!(read_liar(case, &two.liar, xor, &what), 0);
            }
            assert_all_files(case, &two.honest, &what);
            assert_eq!(read_liar(case, &two.liar, xor, &what), 0);
            assert_all_files(case, &two.honest, &what);
            drop(two);
            wait_until_let_go(cache.path());
            // Alone again, the honest one gets all of the cache back.
            let reader = case.reader(Some(cache.path()));
            assert_all_files(case, &reader, &what);
            assert_all_files(case, &reader, &what);
            assert_all_hot(case, &reader, &what);
        }
    }
}

#[test]
fn chunks_in_the_place_of_others() {
    for name in ["v5-none-sha256", "v5-zstd-blake3", "v5-zstd-sha256-4k"] {
        let case = case(name);
        in_all_orders(&case, &with_other_places(&case), &(Arc::new(Remote(case.store())) as _), 0);
    }
}

#[test]
fn other_bytes_in_the_same_place() {
    for name in ["v5-none-sha256", "v6-none-sha256"] {
        let case = case(name);
        let (liar, blobs) = with_other_bytes(&case);
        let store: Arc<dyn Store> = Arc::new(Remote(Counted::of_dir(blobs.path())));
        in_all_orders(&case, &liar, &store, 0x5a);
    }
}

#[test]
fn another_number_of_chunks() {
    // Without the extended blob table an image may say anything about that.
    for name in ["v5-none-sha256", "v5-zstd-blake3"] {
        let case = case(name);
        let liar = lie(&case, |records| {
            for record in records {
                record.index.set(record.index.get() / 2);
            }
        });
        let store: Arc<dyn Store> = Arc::new(Remote(case.store()));
        for daemons in [1, 2] {
            let cache = tempfile::tempdir().unwrap();
            let two = Two::open(&case, &liar, &store, cache.path(), daemons);
            for _ in 0..3 {
                // It contradicts itself, so there is no telling what its own files are.
                for file in &case.files {
                    let _any = read_all(&two.liar, &file.path);
                }
                assert_all_files(&case, &two.honest, name);
            }
        }
    }
}

#[test]
fn a_limit_takes_no_bytes_of_others_away() {
    let case = case("v5-zstd-sha256-4k");
    let liar = with_other_places(&case);
    let store: Arc<dyn Store> = Arc::new(Remote(case.store()));
    for limit in [16 << 10, 64 << 10, 128 << 10] {
        for liar_first in [true, false] {
            let cache = tempfile::tempdir().unwrap();
            let two = Two::limited(&case, &liar, &store, cache.path(), 1, limit);
            for _ in 0..4 {
                if liar_first {
                    read_liar(&case, &two.liar, 0, "limited");
                }
                assert_all_files(&case, &two.honest, "limited");
                read_liar(&case, &two.liar, 0, "limited");
                let data = cache.path().join(format!("{}.blob.data", case.blob_ids()[0]));
                let bytes = std::fs::metadata(data).unwrap().blocks() * 512;
                assert!(bytes <= limit, "{bytes} of {limit}");
            }
        }
    }
}

#[test]
fn what_one_may_not_fetch_it_does_not_get_from_the_cache_either() {
    let nothing = tempfile::tempdir().unwrap();
    for name in ["v5-none-sha256", "v5-zstd-blake3", "v6-none-sha256"] {
        let case = case(name);
        let without_digests = lie(&case, |records| {
            for record in records {
                record.digest = [0; 32];
                record.flags.set(record.flags.get() & !0x10);
            }
        });
        // Knows one chunk, and says that all are it; its size aside, which the file has.
        let all_the_same_index = lie(&case, |records| {
            let index = records[0].index;
            for record in records.iter_mut().skip(1) {
                record.index = index;
                record.digest = [7; 32];
            }
        });
        let mut images = vec![without_digests];
        if name.starts_with("v5") {
            images.push(all_the_same_index);
        }
        for (n, image) in images.into_iter().enumerate() {
            for daemons in [1, 2] {
                let cache = tempfile::tempdir().unwrap();
                let store: Arc<dyn Store> = Arc::new(Remote(Counted::of_dir(nothing.path())));
                let two = Two::open(&case, &image, &store, cache.path(), daemons);
                assert_all_files(&case, &two.honest, "filling");
                assert_all_hot(&case, &two.honest, "filling");
                let got: Vec<_> = case
                    .files
                    .iter()
                    .filter(|file| file.size > 0 && read_all(&two.liar, &file.path).is_ok())
                    .map(|file| file.path.escape_ascii().to_string())
                    .collect();
                // The one chunk whose digest it knows, in the files that are that chunk alone.
                assert!(got.len() <= n * 4, "{name} {n} {daemons}: {got:?}");
                assert_all_files(&case, &two.honest, "afterwards");
            }
        }
    }
}

/// A store that takes its time, so that readers meet.
#[derive(Debug)]
struct Slow(Arc<Counted>);

impl Store for Slow {
    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        let inner = Arc::clone(&self.0);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            inner.fetch(request, done);
        });
    }
    fn size(&self, object: &str, done: SizeDone) {
        self.0.size(object, done);
    }
}

#[test]
fn who_waits_for_a_chunk_beside_a_liar_gets_it_all_the_same() {
    let case = case("v5-none-sha256");
    let behind_the_end = lie(&case, |records| {
        for record in records {
            record.compressed_offset.set(1 << 40);
        }
    });
    let wrong_bytes = lie(&case, |records| {
        let offsets: Vec<u64> = records.iter().map(|r| r.compressed_offset.get()).collect();
        for (n, record) in records.iter_mut().enumerate() {
            record.compressed_offset.set(offsets[offsets.len() / 2].min(offsets[n]) / 2);
        }
    });
    for liar in [behind_the_end, wrong_bytes] {
        let store: Arc<dyn Store> = Arc::new(Slow(case.store()));
        let engine = engine();
        let open = |image: &Arc<Image>| engine.open(Arc::clone(image), Arc::clone(&store), options(None));
        let (honest, liar) = (open(&case.image()), open(&liar));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for file in case.files.iter().filter(|file| file.size > 0) {
                        let _any = read_all(&liar, &file.path);
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| assert_all_files(&case, &honest, "beside a liar"));
            }
        });
    }
}

#[test]
fn chunk_info_that_somebody_else_left_in_the_cache_costs_no_read() {
    let case = case("v6-none-sha256");
    let cache = tempfile::tempdir().unwrap();
    let reader = case.reader(Some(cache.path()));
    assert_all_files(&case, &reader, "filling");
    drop(reader);
    let id = &case.blob_ids()[0];
    let meta = cache.path().join(format!("{id}.blob.meta"));
    let good = std::fs::read(&meta).unwrap();
    std::fs::remove_file(cache.path().join(format!("{id}.blob.data"))).unwrap();
    // Entries of 16 bytes: one word says where a chunk is in the blob, the other where it is in the address space.
    for word in [0, 8] {
        let mut table = good.clone();
        for n in 0..16 {
            let at = n * 32 + word;
            let (one, other) = (at..at + 8, at + 16..at + 24);
            let kept = table[one.clone()].to_vec();
            table.copy_within(other.clone(), one.start);
            table[other].copy_from_slice(&kept);
        }
        std::fs::write(&meta, table).unwrap();
        let reader = case.reader(Some(cache.path()));
        assert_all_files(&case, &reader, "with a wrong table");
    }
}

#[test]
fn honest_images_with_a_blob_in_common_go_on_sharing() {
    for name in ["v5-layered-oci", "v6-layered-oci"] {
        let case = case(name);
        let parent = Arc::new(Image::open(&case.dir.join("parent-bootstrap")).unwrap());
        for daemons in [1, 2] {
            let cache = tempfile::tempdir().unwrap();
            let counted = case.store();
            let store: Arc<dyn Store> = Arc::new(Remote(Arc::clone(&counted)));
            let two = Two::open(&case, &parent, &store, cache.path(), daemons);
            assert_all_files(&case, &two.honest, name);
            assert_all_hot(&case, &two.honest, name);
            // What the upper image hides of its parent's blob has to be fetched still; nothing else.
            let before: HashSet<_> = two_ranges(&case);
            read_everything(&two.liar);
            let fetched = counted.fetched_ranges.lock().unwrap();
            for (object, range) in fetched.iter() {
                let known = before.iter().any(|(blob, start)| blob == object && *start == range.start);
                assert!(!known, "{name}, {daemons} daemons: {object} {range:?} was there already");
            }
        }
    }
}

/// Where the chunks of an image's files begin in their blobs, for v5.
fn two_ranges(case: &Case) -> HashSet<(String, u64)> {
    let image = case.image();
    let mut ranges = HashSet::new();
    image.for_each_chunk_record(&mut |record| {
        let blob = &image.blobs()[usize::try_from(record.blob_index.get()).unwrap()];
        ranges.insert((blob.id.clone(), record.compressed_offset.get()));
    });
    ranges
}

fn read_everything(reader: &Reader) {
    let image = reader.image();
    let mut dirs = vec![image.root()];
    while let Some(dir) = dirs.pop() {
        for entry in image.read_dir(&image.inode(dir).unwrap(), 0).unwrap() {
            let entry = entry.unwrap();
            let inode = image.inode(entry.number).unwrap();
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            match inode.kind {
                rafs::image::FileKind::Directory => dirs.push(entry.number),
                rafs::image::FileKind::Regular => {
                    let mut data = vec![0; usize::try_from(inode.size).unwrap()];
                    assert_eq!(reader.read_at(&inode, 0, &mut data).unwrap(), data.len());
                }
                _ => {}
            }
        }
    }
}
