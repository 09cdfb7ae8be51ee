//! `check --blob-dir` accepts every image of the interop corpus, and names what was damaged.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::image::Image;
use rafs_builder::{BlobPlace, ImageOptions, Version, verify};
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

#[test]
fn the_whole_corpus_verifies() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/interop");
    let mut cases = 0;
    for case in fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        let info: serde_json::Value =
            serde_json::from_slice(&fs::read(case.join("case.json")).unwrap()).unwrap();
        let bootstrap = case.join(info["bootstrap"].as_str().unwrap());
        let image = Image::open(&bootstrap).unwrap();
        let report = verify(&image, &bootstrap, &BlobPlace::Directory(case.join("blobs")), THREADS)
            .unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        let no_chunks =
            image.blobs().iter().all(|blob| blob.chunk_info.is_none() && blob.chunk_count.is_none())
                || image.flags().contains(rafs::layout::SuperFlags::TARFS_MODE)
                || image.blobs().is_empty();
        assert_eq!(report.chunks == 0, no_chunks, "{}: {report:?}", case.display());
        cases += 1;
    }
    assert_eq!(cases, 44);
}

#[test]
fn a_flipped_byte_is_found_and_its_file_named() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("dir")).unwrap();
    for n in 0..8 {
        fs::write(source.path().join(format!("dir/f{n}")), support::source::noise(n, 50_000)).unwrap();
    }
    for version in [Version::V5, Version::V6] {
        let built = support::build(source.path(), ImageOptions { version, ..ImageOptions::default() });
        let image = Image::open(&built.bootstrap()).unwrap();
        let blob = built.dir.path().join(&built.report.blobs[0]);
        let good = fs::read(&blob).unwrap();
        let place = BlobPlace::Directory(built.dir.path().to_path_buf());
        let check = || verify(&image, &built.bootstrap(), &place, THREADS).map_err(|e| e.to_string());
        assert_eq!(check().unwrap().chunks, 8);
        let mut bad = good.clone();
        bad[3 * 50_000 + 17] ^= 1;
        fs::write(&blob, &bad).unwrap();
        let error = check().unwrap_err();
        assert!(
            error.contains("chunk 3") && error.contains("/dir/f3") && error.contains(&built.report.blobs[0]),
            "{error}"
        );
        fs::write(&blob, &good[..good.len() / 2]).unwrap();
        assert!(check().unwrap_err().contains("needs"));
        fs::remove_file(&blob).unwrap();
        assert!(check().unwrap_err().contains("No such file"));
        if version == Version::V6 {
            let mut bad = good.clone();
            let table = usize::try_from(image.blobs()[0].chunk_info.unwrap().offset).unwrap();
            bad[table + 20] ^= 0x40;
            fs::write(&blob, &bad).unwrap();
            check().unwrap_err();
        }
    }
}
