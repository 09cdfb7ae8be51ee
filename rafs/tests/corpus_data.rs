//! Every file of every image of the interop corpus reads as `expected.json` says: cold, hot, after a restart, with
//! and without cache files, from local and remote stores, in odd pieces, from many threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use rafs::image::Image;
use rafs::reader::Reader;
use std::collections::HashSet;
use std::sync::Arc;
use support::*;
use zerocopy::IntoBytes;

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

/// A v5 bootstrap as it was before there was an extended blob table, and, with `clear_indexes`, before chunks had
/// indexes.
fn aged(case: &Case, clear_indexes: bool) -> Image {
    let mut bytes = std::fs::read(&case.bootstrap).unwrap();
    let image = case.image();
    bytes[68..80].fill(0);
    if clear_indexes {
        let mut records = HashSet::new();
        image.for_each_chunk_record(&mut |record| {
            records.insert(record.as_bytes().to_vec());
        });
        for at in (8192..=bytes.len() - 80).step_by(8) {
            if records.contains(&bytes[at..at + 80]) {
                bytes[at + 72..at + 76].fill(0);
            }
        }
    }
    Image::from_bytes(bytes, "aged").unwrap()
}

#[test]
fn v5_images_without_extended_table_and_without_chunk_indexes() {
    for name in ["v5-zstd-blake3", "v5-zstd-aligned", "v5-large-files", "v5-merge"] {
        for clear_indexes in [false, true] {
            let case = case(name);
            let image = || Arc::new(aged(&case, clear_indexes));
            assert_eq!(image().v5_chunk_indexes_missing(), clear_indexes, "{name}");
            assert!(image().blobs().iter().all(|b| b.chunk_count.is_none()));
            let cache = tempfile::tempdir().unwrap();
            for round in ["cold", "restarted"] {
                let reader = Reader::new(image(), case.store(), options(Some(cache.path()))).unwrap();
                assert_all_files(&case, &reader, round);
                assert_all_hot(&case, &reader, round);
            }
            let reader = Reader::new(image(), case.store(), options(None)).unwrap();
            assert_all_files(&case, &reader, "no cache");
        }
    }
}

#[test]
fn chunk_info_is_cached_and_a_damaged_copy_is_not_believed() {
    for name in ["v6-zstd-blake3", "v6-batch", "v6-encrypt", "v6-targz-ref"] {
        let case = case(name);
        let cache = tempfile::tempdir().unwrap();
        let reader = case.reader(Some(cache.path()));
        assert_all_files(&case, &reader, "first");
        drop(reader);
        let table = cache.path().join(format!("{}.blob.meta", case.blob_ids()[0]));
        let good = std::fs::read(&table).unwrap();
        let forget_data = || {
            for entry in std::fs::read_dir(cache.path()).unwrap().map(|e| e.unwrap().path()) {
                if !entry.to_str().unwrap().ends_with(".blob.meta") {
                    std::fs::remove_file(entry).unwrap();
                }
            }
        };
        let mut random = Random(3);
        for _ in 0..20 {
            forget_data();
            let mut bad = good.clone();
            let at = random.below(good.len() as u64 - 4096);
            bad[usize::try_from(at).unwrap()] ^= 1 << random.below(8);
            std::fs::write(&table, &bad).unwrap();
            let reader = case.reader(Some(cache.path()));
            for file in &case.files {
                // The first read may find out; the second must be right.
                let _first = read_all(&reader, &file.path).map(|data| assert_eq!(sha256(&data), file.sha256));
            }
            assert_all_files(&case, &reader, "damaged chunk info");
        }
    }
}

/// The reference's cache form of the table is what the corpus has in `v6-blob-cache`; the same source tree with the
/// same options is not in the corpus as a blob, so compare what a table says instead of bytes.
#[test]
fn our_table_file_has_the_size_and_header_of_the_reference_form() {
    let case = case("v6-zstd-blake3");
    let cache = tempfile::tempdir().unwrap();
    let reader = case.reader(Some(cache.path()));
    assert_all_files(&case, &reader, "first");
    let image = case.image();
    let info = &image.blobs()[0];
    let ours = std::fs::read(cache.path().join(format!("{}.blob.meta", info.id))).unwrap();
    assert_eq!(ours.len() % 4096, 0);
    assert_eq!(ours[ours.len() - 4096..][..4], 0xb10b_b10bu32.to_le_bytes());
    rafs::blob::parse_table(info, ours).unwrap();
}

/// A v6 image whose chunk table is gone: digests come from the blob.
#[test]
fn digests_of_the_blob_stand_in_for_a_missing_chunk_table() {
    for name in ["v6-blob-toc", "v6-batch-lz4-toc", "v6-targz-ref-members-toc"] {
        let case = case(name);
        let mut bytes = std::fs::read(&case.bootstrap).unwrap();
        bytes[1152 + 32..1152 + 40].fill(0);
        let image = Arc::new(Image::from_bytes(bytes, "no chunk table").unwrap());
        assert!(image.chunk_table().is_empty());
        let reader = Reader::new(Arc::clone(&image), case.store(), options(None)).unwrap();
        assert_all_files(&case, &reader, "digest array");
        drop(reader);

        let blobs = case.copy_of_blobs();
        let path = blobs.path().join(&case.blob_ids()[0]);
        let mut data = std::fs::read(&path).unwrap();
        let end = data.len() / 3;
        for byte in data[..end].iter_mut().step_by(50) {
            *byte ^= 4;
        }
        std::fs::write(&path, &data).unwrap();
        let reader = Reader::new(image, Counted::of_dir(blobs.path()), options(None)).unwrap();
        let mut failed = 0;
        for file in &case.files {
            match read_all(&reader, &file.path) {
                Ok(data) => assert_eq!(sha256(&data), file.sha256),
                Err(_) => failed += 1,
            }
        }
        assert!(failed > 0, "{name}");
    }
}

#[test]
fn holes_of_v5_files_read_as_zeros() {
    let case = case("v5-large-files");
    let file = case.files.iter().find(|f| f.size == 5 << 20).unwrap();
    let whole = read_all(&case.reader(None), &file.path).unwrap();
    let mut bytes = std::fs::read(&case.bootstrap).unwrap();
    let records: Vec<usize> = (8192..bytes.len() - 128)
        .step_by(8)
        .filter(|&at| {
            bytes[at + 64..at + 72] == (5u64 << 20).to_le_bytes()
                && bytes[at + 96..at + 100] == 5u32.to_le_bytes()
        })
        .collect();
    assert_eq!(records.len(), 1);
    // HAS_HOLE, and one chunk record fewer.
    bytes[records[0] + 80] |= 8;
    bytes[records[0] + 96] = 4;
    let image = Arc::new(Image::from_bytes(bytes, "with a hole").unwrap());
    let cache = tempfile::tempdir().unwrap();
    let reader = Reader::new(image, case.store(), options(Some(cache.path()))).unwrap();
    for _ in 0..2 {
        let data = read_all(&reader, &file.path).unwrap();
        assert_eq!(data[..4 << 20], whole[..4 << 20]);
        assert_eq!(data[4 << 20..], vec![0; 1 << 20]);
    }
    let inode = find(reader.image(), &file.path);
    let mut across = vec![1; 100];
    assert_eq!(reader.read_at(&inode, (4 << 20) - 50, &mut across).unwrap(), 100);
    assert_eq!(across[..50], whole[(4 << 20) - 50..4 << 20]);
    assert_eq!(across[50..], [0; 50]);
}
