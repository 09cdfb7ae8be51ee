//! Every file of every image of the interop corpus reads as `expected.json` says: cold, hot, after a restart, with
//! and without cache files, from local and remote stores, in odd pieces, from many threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use rafs::reader::Reader;
use std::sync::Arc;
use support::*;

#[test]
fn every_case_cold_then_hot_then_after_a_restart() {
    for case in all_cases() {
        let cache = tempfile::tempdir().unwrap();
        let store = case.store();
        let reader = Reader::new(case.image(), Arc::clone(&store) as _, options(Some(cache.path()))).unwrap();
        reader.check_blobs().unwrap();
        assert_all_files(&case, &reader, "cold");
        assert_all_hot(&case, &reader, "hot");
        let fetches = store.count();
        assert_all_files(&case, &reader, "hot by fetch");
        assert_eq!(store.count(), fetches, "{}: nothing is fetched twice", case.name);
        drop(reader);

        // The cache alone is enough, apart from a tar that is served in place.
        let empty = tempfile::tempdir().unwrap();
        let store = if case.name == "v6-tarfs" { case.store() } else { Counted::of_dir(empty.path()) };
        let reader = Reader::new(case.image(), store, options(Some(cache.path()))).unwrap();
        assert_all_files(&case, &reader, "after a restart");
        assert_all_hot(&case, &reader, "after a restart, hot");
    }
}

#[test]
fn every_case_without_a_cache_directory() {
    for case in all_cases() {
        let reader = case.reader(None);
        assert_all_files(&case, &reader, "without cache");
        assert_all_files(&case, &reader, "without cache, again");
        if matches!(
            &*case.name,
            "v6-tarfs" | "v6-blob-cache" | "v6-none-sha256" | "v5-none-sha256" | "v6-tar-ref"
        ) {
            assert_all_hot(&case, &reader, "in place");
        }
    }
}

#[test]
fn every_case_from_a_store_without_local_files() {
    for case in all_cases() {
        let store = Arc::new(Remote(case.store()));
        let reader = Reader::new(case.image(), store, options(None)).unwrap();
        assert_all_files(&case, &reader, "remote");
        let cache = tempfile::tempdir().unwrap();
        let store = Arc::new(Remote(case.store()));
        let reader = Reader::new(case.image(), store, options(Some(cache.path()))).unwrap();
        assert_all_files(&case, &reader, "remote, cached");
    }
}

#[test]
fn every_case_with_the_cache_in_the_blob_directory() {
    for case in all_cases().into_iter().filter(|case| case.blobs().is_dir()) {
        let blobs = case.copy_of_blobs();
        let reader =
            Reader::new(case.image(), Counted::of_dir(blobs.path()), options(Some(blobs.path()))).unwrap();
        assert_all_files(&case, &reader, "shared directory");
        assert_all_hot(&case, &reader, "shared directory, hot");
    }
}

#[test]
fn odd_offsets_and_lengths() {
    for name in ["v5-zstd-sha256-4k", "v5-large-files", "v6-batch", "v6-targz-ref", "v6-encrypt", "v6-tarfs"]
    {
        let case = case(name);
        let cache = tempfile::tempdir().unwrap();
        let reader = case.reader(Some(cache.path()));
        let mut random = Random(7);
        let whole: Vec<Vec<u8>> =
            case.files.iter().map(|f| read_all(&case.reader(None), &f.path).unwrap()).collect();
        for _ in 0..2000 {
            let n = usize::try_from(random.below(case.files.len() as u64)).unwrap();
            let inode = find(reader.image(), &case.files[n].path);
            let offset = random.below(inode.size + 10);
            let len = random.below(300_000);
            let mut data = vec![0; usize::try_from(len).unwrap()];
            let read = reader.read_at(&inode, offset, &mut data).unwrap();
            data.truncate(read);
            let start = usize::try_from(offset).unwrap().min(whole[n].len());
            let end = (start + usize::try_from(len).unwrap()).min(whole[n].len());
            assert_eq!(data, whole[n][start..end], "{name} {offset}+{len}");
            if let Some(hot) = read_hot(&reader, &inode, offset, u32::try_from(len).unwrap()) {
                assert_eq!(hot, data);
            }
        }
        let inode = find(reader.image(), &case.files[0].path);
        assert_eq!(reader.read_at(&inode, u64::MAX, &mut [0; 10]).unwrap(), 0);
        let root = reader.image().inode(reader.image().root()).unwrap();
        reader.read_at(&root, 0, &mut [0; 10]).unwrap_err();
    }
}
