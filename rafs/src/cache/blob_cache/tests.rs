#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::cache::{Agreement, Description};
use crate::codec::{self, Digester};

fn open(dir: &Arc<CacheDir>) -> CacheView {
    BlobCache::open(dir, "blob", 3 * 4096, 3).unwrap().view("image")
}

fn described(offset: u64, plain: &[u8]) -> Description {
    Description::new(offset, u32::try_from(plain.len()).unwrap(), 1, codec::digest(Digester::Sha256, plain))
}

fn chunk(chunk: u32, plain: &[u8]) -> CachedChunk<'_> {
    CachedChunk { chunk, description: described(u64::from(chunk) * 4096, plain), plain }
}

#[test]
fn kept_chunks_are_ready_now_and_claimed_later() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
    let cache = open(&dir);
    assert!(!cache.is_claimed(1, 4096));
    assert!(cache.keep(&[chunk(1, b"hello")]).unwrap());
    assert!(cache.is_ready(1, 4096, 5) && !cache.is_ready(0, 0, 5));
    assert_eq!(cache.unsynced_bytes(), 5);
    cache.make_durable().unwrap();
    assert_eq!(cache.unsynced_bytes(), 0);
    assert_eq!(std::fs::metadata(tmp.path().join("blob.blob.data")).unwrap().len(), 3 * 4096);
    let again = open(&dir);
    assert!(!again.is_ready(1, 4096, 5), "to be verified first");
    assert!(again.is_claimed(1, 4096) && !again.is_claimed(0, 0));
    let mut plain = [0; 5];
    again.read(4096, &mut plain).unwrap();
    assert_eq!(&plain, b"hello");
    again.reject(1, &described(4096, b"hello"));
    assert!(!open(&dir).is_claimed(1, 4096));
}

#[test]
fn data_without_a_map_may_hold_anything_that_is_no_hole() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
    let file = File::create(tmp.path().join("blob.blob.data")).unwrap();
    file.set_len(3 * 4096).unwrap();
    file.write_all_at(&[1; 4096], 4096).unwrap();
    let cache = open(&dir);
    assert!(cache.is_claimed(1, 4096));
    assert!(!cache.is_mapped(1));
    assert!(!cache.is_claimed(3, 3 * 4096));
}

#[test]
fn the_reference_map_seeds_ours() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
    let mut bytes = vec![0; reference::HEADER + 1];
    for (at, magic) in reference::MAGICS {
        bytes[at..at + 4].copy_from_slice(&magic.to_le_bytes());
    }
    bytes[reference::HEADER] = 0b101;
    let path = tmp.path().join("blob.blob.data.chunk_map");
    std::fs::write(&path, &bytes).unwrap();
    let cache = open(&dir);
    assert_eq!([0, 1, 2].map(|i| cache.is_claimed(i, u64::from(i) * 4096)), [true, false, true]);
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "never written");
    drop(cache);
    std::fs::remove_file(tmp.path().join("blob.chunk_map")).unwrap();
    bytes.push(0);
    std::fs::write(&path, &bytes).unwrap();
    assert!(!open(&dir).is_claimed(0, 0), "wrong size");
}

#[test]
fn images_that_agree_share_and_each_verifies_for_itself() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
    let cache = BlobCache::open(&dir, "blob", 3 * 4096, 3).unwrap();
    let (one, other) = (cache.view("one"), cache.view("other"));
    assert!(one.keep(&[chunk(1, b"one")]).unwrap());
    assert!(one.is_ready(1, 4096, 3) && !other.is_ready(1, 4096, 3) && other.is_claimed(1, 4096));
    let epoch = other.epoch();
    assert!(other.set_ready(1, &described(4096, b"one"), epoch));
    // The number alone says nothing.
    assert!(!other.is_ready(1, 4096, 4) && !other.is_ready(1, 0, 3) && !other.is_ready(0, 4096, 3));
    // What is described is not overwritten, not even by a process of its own.
    assert!(!one.keep(&[chunk(1, b"two")]).unwrap());
    let elsewhere =
        BlobCache::open(&Arc::new(CacheDir::open(tmp.path()).unwrap()), "blob", 3 * 4096, 3).unwrap();
    let liar = elsewhere.view("liar");
    assert_eq!(liar.agreement(1, &described(4096, b"two")), Agreement::Other);
    assert!(!liar.keep(&[chunk(1, b"two")]).unwrap());
    let overlapping = CachedChunk { chunk: 2, description: described(4098, b"x"), plain: b"x" };
    assert!(!liar.keep(&[overlapping]).unwrap());
    assert!(!liar.set_ready(1, &described(4096, b"two"), liar.epoch()));
    liar.reject(1, &described(4096, b"two"));
    assert!(one.is_claimed(1, 4096) && one.is_ready(1, 4096, 3) && other.is_ready(1, 4096, 3));
    let mut back = [0; 3];
    one.read(4096, &mut back).unwrap();
    assert_eq!(&back, b"one");
    // Who is alone has the say.
    drop((one, other, cache));
    assert!(liar.keep(&[chunk(1, b"two")]).unwrap() && liar.is_ready(1, 4096, 3));
}

#[test]
fn a_chunk_that_was_verified_while_another_went_away_becomes_ready() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
    assert!(open(&dir).keep(&[chunk(0, b"zero"), chunk(1, b"one")]).unwrap());
    let cache = open(&dir);
    let one = described(4096, b"one");
    let epoch = cache.epoch();
    // Somebody who is gone said something else of the other chunk, and that is taken back.
    assert!(cache.keep(&[chunk(0, b"nil")]).unwrap());
    assert_ne!(cache.epoch(), epoch);
    assert!(!cache.set_ready(1, &one, epoch), "it may be the one that changed");
    assert!(!cache.set_ready_as(1, &described(4096, b"two"), epoch, b"two"), "described as something else");
    assert!(!cache.set_ready_as(1, &one, epoch, b"ONE"), "the file has something else");
    assert!(!cache.is_ready(1, 4096, 3));
    assert!(cache.set_ready_as(1, &one, epoch, b"one") && cache.is_ready(1, 4096, 3));
    // The chunk itself went away, and its place is as it was.
    cache.reject(1, &one);
    assert!(!cache.set_ready_as(1, &one, epoch, b"one") && !cache.is_ready(1, 4096, 3));
}

#[test]
fn a_layout_that_does_not_fit_is_not_shared() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
    let cache = open(&dir);
    assert!(cache.keep(&[chunk(1, b"one")]).unwrap());
    let error = BlobCache::open(&dir, "blob", 4 * 4096, 4).unwrap_err();
    assert!(matches!(error, CacheError::Conflict { .. }), "{error}");
    // Nor is a map that has been put in place of the one in use.
    std::fs::rename(tmp.path().join("blob.chunk_map"), tmp.path().join("other.chunk_map")).unwrap();
    let error = BlobCache::open(&dir, "blob", 3 * 4096, 3).unwrap_err();
    assert!(matches!(error, CacheError::Conflict { .. }), "{error}");
    assert!(cache.is_mapped(1));
    let own = BlobCache::unnamed(&dir, 4 * 4096, 4).unwrap().view("own");
    assert!(own.keep(&[chunk(3, b"mine")]).unwrap() && own.is_ready(3, 3 * 4096, 4));
    assert!(!cache.is_claimed(1, 0) || cache.is_ready(1, 4096, 3));
    own.make_durable().unwrap();
    drop(cache);
    assert!(!open(&dir).is_mapped(1), "the map in place of it is empty");
}

#[test]
fn what_no_entry_speaks_of_is_freed_when_room_is_needed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
    let file = File::create(tmp.path().join("blob.blob.data")).unwrap();
    file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    dir.limit_to(256 << 10);
    let cache = BlobCache::open(&dir, "blob", 1 << 20, 256).unwrap().view("image");
    assert!(cache.bytes() <= 256 << 10, "{}", cache.bytes());
    assert!(cache.keep(&[chunk(200, b"new")]).unwrap());
}

#[test]
fn a_limit_is_held_by_taking_cold_chunks_away() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
    const SIZE: u32 = 64 << 10;
    const LIMIT: u64 = 1 << 20;
    dir.limit_to(LIMIT);
    let count = 100;
    let cache = BlobCache::open(&dir, "blob", u64::from(SIZE * count), count).unwrap().view("image");
    let plain = vec![7; SIZE as usize];
    let keep = |cache: &CacheView, n: u32| {
        let offset = u64::from(n * SIZE);
        cache
            .keep(&[CachedChunk { chunk: n, description: described(offset, &plain), plain: &plain }])
            .unwrap()
    };
    let before = cache.epoch();
    for n in 0..count {
        assert!(keep(&cache, n), "{n}");
        cache.touch(n);
        assert!(cache.is_hot(n, u64::from(n * SIZE), SIZE));
        assert!(cache.bytes() <= LIMIT, "{} after {n}", cache.bytes());
        // Read again and again, and so always here.
        if n > 1 {
            assert!(cache.is_ready(n - 1, u64::from((n - 1) * SIZE), SIZE));
        }
    }
    assert_ne!(cache.epoch(), before);
    let here: Vec<u32> = (0..count).filter(|&n| cache.is_ready(n, u64::from((n) * SIZE), SIZE)).collect();
    assert!(here.len() > 8 && !cache.is_ready(0, 0, SIZE) && !cache.is_claimed(0, 0), "{here:?}");
    assert!(cache.evicted_bytes() > u64::from(SIZE) * 80);
    for &n in &here {
        let mut back = vec![0; SIZE as usize];
        cache.read(u64::from(n * SIZE), &mut back).unwrap();
        assert_eq!(back, plain);
    }
    // Somebody else has the file: nothing may be taken away, so nothing is written beyond the limit.
    let other = Arc::new(CacheDir::open(tmp.path()).unwrap());
    let theirs = BlobCache::open(&other, "blob", u64::from(SIZE * count), count).unwrap().view("image");
    let refused = (0..20).filter(|&n| !keep(&cache, n)).count();
    assert!(refused > 0 && here.iter().all(|&n| cache.is_ready(n, u64::from((n) * SIZE), SIZE)));
    assert!(dir.list()[0].in_use && matches!(dir.drop_blob("blob"), Err(CacheError::InUse { .. })));
    drop(theirs);
    assert!(keep(&cache, 0) && cache.bytes() <= LIMIT);
    drop(cache);
    assert!(!dir.list()[0].in_use);
    // Files that nobody uses make room for those that somebody does.
    let next = BlobCache::open(&dir, "next", u64::from(SIZE * count), count).unwrap().view("image");
    for n in 0..8 {
        assert!(keep(&next, n), "{n}");
    }
    assert_eq!(dir.list().len(), 1);
    drop(next);
    dir.drop_blob("next").unwrap();
    assert!(dir.list().is_empty() && dir.drop_blob("next").is_err());
}

#[test]
fn chunks_behind_the_end_and_bad_names_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
    let cache = open(&dir);
    cache
        .keep(&[CachedChunk { chunk: 2, description: described(3 * 4096 - 1, b"ab"), plain: b"ab" }])
        .unwrap_err();
    assert!(!cache.is_ready(2, 3 * 4096 - 1, 2));
    assert!(!cache.keep(&[chunk(1, b"x")]).unwrap(), "pauses after a failure");
    for bad in ["", "../x", "a/b", "."] {
        assert!(matches!(BlobCache::open(&dir, bad, 1, 1), Err(CacheError::BadName(_))));
    }
}
