//! Images of a tree with every kind of file show that tree, in every format and with every option.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::codec::{Compressor, Digester};
use rafs::image::{CheckOptions, Image};
use rafs_builder::{ChunkSize, ImageOptions, Patterns, PrefetchPolicy, Version, WhiteoutSpec};
use std::num::NonZeroUsize;
use std::path::Path;
use support::data::Blobs;
use support::{Built, build, expected};

const VERSIONS: [Version; 2] = [Version::V5, Version::V6];
const COMPRESSORS: [Compressor; 3] = [Compressor::None, Compressor::Lz4Block, Compressor::Zstd];

fn source(entries: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    support::source::make(dir.path(), entries);
    dir
}

fn open(built: &Built) -> Image {
    let image = Image::open(&built.bootstrap()).unwrap();
    image.check_with(CheckOptions { inode_digests: true }).unwrap();
    image
}

fn assert_image(built: &Built, root: &Path) -> Image {
    let image = open(built);
    expected::assert_same(&expected::of_directory(root), &expected::of_image(&image));
    let files = Blobs::open(&image, built.dir.path()).assert_contents(root);
    assert!(files > 10, "only {files} files were compared");
    image
}

#[test]
fn every_option_mix_shows_the_source() {
    let source = source(300);
    for version in VERSIONS {
        for compressor in COMPRESSORS {
            for (digester, chunk) in [
                (Digester::Blake3, 0x10_0000),
                (Digester::Sha256, 0x1000),
                (Digester::Blake3, 0x1_0000),
                (Digester::Sha256, 0x100_0000),
            ] {
                let chunk_size = ChunkSize::new(chunk).unwrap();
                let aligned_chunk = chunk == 0x1_0000;
                let image = ImageOptions {
                    version,
                    compressor,
                    digester,
                    chunk_size,
                    aligned_chunk,
                    ..ImageOptions::default()
                };
                let built = build(source.path(), image);
                let image = assert_image(&built, source.path());
                assert_eq!((image.compressor(), image.digester()), (compressor, digester));
                if aligned_chunk || version == Version::V6 {
                    let mut odd = 0;
                    image.for_each_chunk_record(&mut |r| odd |= r.uncompressed_offset.get() % 4096);
                    assert_eq!(odd, 0);
                }
            }
        }
    }
}

#[test]
fn a_directory_of_5000_entries() {
    let source = source(5000);
    for version in VERSIONS {
        let built = build(source.path(), ImageOptions { version, ..ImageOptions::default() });
        assert_image(&built, source.path());
    }
}

#[test]
fn directory_sizes_around_a_block_boundary() {
    // Entries of 12 + 8 bytes: the block is full at 203 or 204 of them, with . and .. in between.
    let source = tempfile::tempdir().unwrap();
    for count in 198..210 {
        let dir = source.path().join(format!("d{count}"));
        std::fs::create_dir(&dir).unwrap();
        for n in 0..count {
            let name = if n % 7 == 0 { format!("!{n:07}") } else { format!("f{n:07}") };
            std::fs::write(dir.join(name), n.to_string()).unwrap();
        }
    }
    let built = build(source.path(), ImageOptions::default());
    assert_image(&built, source.path());
}

#[test]
fn bytes_do_not_depend_on_threads_or_on_the_run() {
    let source = source(1000);
    for version in VERSIONS {
        for compressor in COMPRESSORS {
            for chunk in [0x1000, 0x10_0000] {
                let make = |threads| {
                    let image = ImageOptions {
                        version,
                        compressor,
                        chunk_size: ChunkSize::new(chunk).unwrap(),
                        threads: NonZeroUsize::new(threads).unwrap(),
                        ..ImageOptions::default()
                    };
                    build(source.path(), image)
                };
                let one = make(1);
                for threads in [1, 2, 5] {
                    let other = make(threads);
                    assert_eq!(one.report.blobs, other.report.blobs, "{threads} threads");
                    assert!(one.bytes() == other.bytes(), "{threads} threads");
                }
            }
        }
    }
}

#[test]
fn duplicates_and_holes_take_no_room() {
    let source = tempfile::tempdir().unwrap();
    let noise = support::source::noise(5, 0x10_0000);
    for n in 0..40 {
        std::fs::write(source.path().join(format!("copy{n}")), &noise).unwrap();
    }
    std::fs::File::create(source.path().join("hole")).unwrap().set_len(4 << 30).unwrap();
    for version in VERSIONS {
        let built = build(
            source.path(),
            ImageOptions { version, compressor: Compressor::None, ..ImageOptions::default() },
        );
        assert!(built.report.blob_size < 3 << 20, "{} bytes", built.report.blob_size);
        assert_eq!(built.report.deduplicated_bytes, (39 << 20) + (4095 << 20));
        let image = open(&built);
        assert_eq!(image.blobs()[0].chunk_count, Some(2));
    }
}

#[test]
fn a_tree_without_data_has_no_blob() {
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(source.path().join("d")).unwrap();
    std::fs::write(source.path().join("empty"), "").unwrap();
    for version in VERSIONS {
        let built = build(source.path(), ImageOptions { version, ..ImageOptions::default() });
        assert_eq!((built.report.blobs.len(), built.report.blob_size), (0, 0));
        assert_eq!(std::fs::read_dir(built.dir.path()).unwrap().count(), 1, "only the bootstrap");
        let image = open(&built);
        assert!(image.blobs().is_empty());
        expected::assert_same(&expected::of_directory(source.path()), &expected::of_image(&image));
    }
}

#[test]
fn repeatable_images_store_no_owners() {
    let source = source(3);
    for version in VERSIONS {
        let built =
            build(source.path(), ImageOptions { version, repeatable: true, ..ImageOptions::default() });
        let image = open(&built);
        assert!(!image.flags().contains(rafs::layout::SuperFlags::EXPLICIT_UID_GID));
        let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        for (path, entry) in expected::of_image(&image) {
            assert_eq!((entry.uid, entry.gid), ids, "{path:?}");
        }
    }
}

#[test]
fn whiteouts_are_dropped_as_the_spec_says() {
    let source = tempfile::tempdir().unwrap();
    for name in [".wh.gone", ".wh..wh..opq", "kept"] {
        std::fs::write(source.path().join(name), "x").unwrap();
    }
    let device = support::is_root();
    if device {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, source.path().join("nil"), kind, mode, 0).unwrap();
    } else {
        println!("not root: overlayfs whiteouts not tried");
    }
    let nil = usize::from(device);
    for (spec, count) in
        [(WhiteoutSpec::Oci, 2 + nil), (WhiteoutSpec::Overlayfs, 4), (WhiteoutSpec::None, 4 + nil)]
    {
        for version in VERSIONS {
            let built = build(
                source.path(),
                ImageOptions { version, whiteout_spec: spec, ..ImageOptions::default() },
            );
            assert_eq!(expected::of_image(&open(&built)).len(), count, "{spec:?}");
        }
    }
}

#[test]
fn prefetched_files_come_first_and_are_listed() {
    let source = source(50);
    let text = b"/zlink/second\n/names\n/absent\n/dup/b\n/fifo-is-none\n/special/fifo\n";
    for version in VERSIONS {
        for policy in [PrefetchPolicy::Fs, PrefetchPolicy::Blob] {
            let built = build(
                source.path(),
                ImageOptions {
                    version,
                    prefetch_policy: policy,
                    prefetch_patterns: Patterns::parse(text),
                    ..ImageOptions::default()
                },
            );
            let image = assert_image(&built, source.path());
            let find = |path: &str| {
                path.split('/')
                    .filter(|name| !name.is_empty())
                    .fold(image.inode(image.root()).unwrap(), |at, name| {
                        image.lookup(&at, name.as_bytes()).unwrap().unwrap()
                    })
            };
            let listed: Vec<_> = ["/zlink/second", "/names", "/dup/b"].map(|path| find(path).number).into();
            let expected = if policy == PrefetchPolicy::Fs { listed } else { Vec::new() };
            assert_eq!(image.prefetch_list(), expected);
            let first = image.chunks(&find("/zlink/target"), 0, 1).unwrap().next().unwrap().unwrap();
            assert_eq!(first.chunk.0, 0, "data of the first pattern is first, under its other name too");
            let last = image.chunks(&find("/dup/b"), 0, 1).unwrap().next().unwrap().unwrap();
            assert_eq!(last.chunk.0, 15, "after 14 files of /names");
            if policy == PrefetchPolicy::Blob && version == Version::V5 {
                let record = image.chunk_record(&last).unwrap();
                let end = record.compressed_offset.get() + u64::from(record.compressed_size.get());
                assert_eq!(u64::from(image.blobs()[0].prefetch_size), end);
            } else {
                assert_eq!(image.blobs()[0].prefetch_size, 0);
            }
        }
    }
}
