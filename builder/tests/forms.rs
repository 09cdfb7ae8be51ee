//! Every form of blob and source: inlined metadata, tables of contents, batches, encryption, archives.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::codec::Compressor;
use rafs::image::{CheckOptions, Image};
use rafs_builder::{
    BlobPlace, BlobTarget, BootstrapTarget, ChunkSize, CreateOptions, CreateReport, ImageOptions, Progress,
    SourceKind, Version, create, verify,
};
use std::fs;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use support::expected::{self, View};

const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

fn run(options: &CreateOptions) -> CreateReport {
    create(options, &Arc::new(Progress::default())).unwrap()
}

/// Checks everything there is to check and gives the tree.
fn checked(bootstrap: &Path, blobs: &Path) -> View {
    let image = Image::open(bootstrap).unwrap();
    image.check_with(CheckOptions { inode_digests: true }).unwrap();
    verify(&image, bootstrap, &BlobPlace::Directory(blobs.to_path_buf()), THREADS).unwrap();
    expected::of_image(&image)
}

#[test]
fn forms_of_blobs() {
    let source = tempfile::tempdir().unwrap();
    support::source::make(source.path(), 300);
    let want = expected::of_directory(source.path());
    let batch = |size| Some(ChunkSize::new(size).unwrap());
    let v5 = ImageOptions { version: Version::V5, ..ImageOptions::default() };
    let v6 = ImageOptions::default();
    let lz4 = ImageOptions { compressor: Compressor::Lz4Block, ..v6.clone() };
    let raw = ImageOptions { compressor: Compressor::None, ..v6.clone() };
    for (image, inline, toc) in [
        (v5, true, false),
        (v6.clone(), true, false),
        (v6.clone(), true, true),
        (lz4.clone(), false, true),
        (
            ImageOptions { batch_size: batch(0x1_0000), chunk_size: batch(0x2_0000).unwrap(), ..v6.clone() },
            false,
            false,
        ),
        (ImageOptions { batch_size: batch(0x10_0000), ..lz4.clone() }, true, true),
        (ImageOptions { batch_size: batch(0x1000), ..raw.clone() }, false, true),
        (ImageOptions { encrypt: true, ..v6.clone() }, false, false),
        (ImageOptions { encrypt: true, batch_size: batch(0x1_0000), ..v6 }, true, true),
        (ImageOptions { encrypt: true, ..raw }, false, true),
    ] {
        let out = tempfile::tempdir().unwrap();
        let mut options = support::options(source.path(), out.path(), image.clone());
        options.toc = toc;
        if inline {
            options.bootstrap = BootstrapTarget::Inline;
        }
        let report = run(&options);
        let blob = out.path().join(&report.blobs[0]);
        let bootstrap = if inline { blob.clone() } else { out.path().join("boot") };
        expected::assert_same(&want, &checked(&bootstrap, out.path()));
        if inline {
            assert_eq!((report.bootstrap, fs::read_dir(out.path()).unwrap().count()), (PathBuf::new(), 1));
        }
        if !image.encrypt {
            let again = tempfile::tempdir().unwrap();
            options.blob = Some(BlobTarget::Directory(again.path().to_path_buf()));
            options.image.threads = NonZeroUsize::new(5).unwrap();
            assert_eq!(run(&options).blobs, report.blobs);
            assert!(fs::read(again.path().join(&report.blobs[0])).unwrap() == fs::read(blob).unwrap());
        }
    }
}

#[test]
fn a_layer_without_data_still_has_its_metadata_inlined() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("d")).unwrap();
    for (version, toc) in [(Version::V5, false), (Version::V6, false), (Version::V6, true)] {
        let out = tempfile::tempdir().unwrap();
        let mut options =
            support::options(source.path(), out.path(), ImageOptions { version, ..ImageOptions::default() });
        options.bootstrap = BootstrapTarget::Inline;
        options.toc = toc;
        let report = run(&options);
        assert_eq!(report.blobs, [""; 0]);
        let file = fs::read_dir(out.path()).unwrap().next().unwrap().unwrap().path();
        assert_eq!(checked(&file, out.path()).len(), 2);
    }
}

/// An archive of a tree, plain and compressed: tar, one gzip member, many members, zstd.
fn archives(dir: &Path) -> (View, [PathBuf; 4]) {
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    support::source::make(&tree, 200);
    let _ = fs::remove_file(tree.join("special/sock"));
    // Archives keep whole seconds.
    let names = [&b"time/nsec"[..], b"time/before", b"time/far", b"time/link"];
    for name in names {
        let path = tree.join(std::str::from_utf8(name).unwrap());
        let _ = fs::remove_file(path);
    }
    let status = Command::new("find")
        .arg(&tree)
        .args(["-exec", "touch", "-h", "-d", "@1700000000", "{}", "+"])
        .status();
    assert!(status.unwrap().success());
    let tar = dir.join("layer.tar");
    let status = Command::new("tar")
        .args(["--format=pax", "--xattrs", "--xattrs-include=*", "--sort=name", "-cf"])
        .arg(&tar)
        .arg("-C")
        .arg(&tree)
        .arg(".")
        .status();
    assert!(status.unwrap().success());
    let plain = fs::read(&tar).unwrap();
    let gzip = |data: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let paths = ["layer.tar", "one.tar.gz", "many.tar.gz", "layer.tar.zst"].map(|name| dir.join(name));
    fs::write(&paths[1], gzip(&plain)).unwrap();
    fs::write(&paths[2], plain.chunks(700_000).flat_map(gzip).collect::<Vec<_>>()).unwrap();
    fs::write(&paths[3], zstd::bulk::compress(&plain, 1).unwrap()).unwrap();
    let want = expected::of_directory_with_root_time(&tree);
    (want, paths)
}

#[test]
fn archives_become_images_and_stay_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let (want, paths) = archives(dir.path());
    for (path, kind) in paths.iter().zip(["plain", "gzip", "gzip", "zstd"]) {
        let mut blobs = Vec::new();
        for (version, threads) in [(Version::V5, 2), (Version::V6, 1), (Version::V6, 5)] {
            let out = tempfile::tempdir().unwrap();
            let threads = NonZeroUsize::new(threads).unwrap();
            let mut options = support::options(
                path,
                out.path(),
                ImageOptions { version, threads, ..ImageOptions::default() },
            );
            options.source = SourceKind::Tar(path.clone());
            blobs.push(run(&options).blobs);
            expected::assert_same(&want, &checked(&out.path().join("boot"), out.path()));
        }
        assert_eq!(blobs[1], blobs[2], "threads make no difference");
        for (inline, toc) in [(false, false), (false, true), (true, false), (true, true)] {
            let out = tempfile::tempdir().unwrap();
            let mut options = support::options(path, out.path(), ImageOptions::default());
            options.source = SourceKind::TarReference(path.clone());
            options.toc = toc;
            if inline {
                options.bootstrap = BootstrapTarget::Inline;
            }
            if kind == "zstd" {
                let error = create(&options, &Arc::new(Progress::default())).unwrap_err();
                assert!(error.to_string().contains("zstd"), "{error}");
                continue;
            }
            let report = run(&options);
            let meta =
                fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().path()).find(|p| !p.ends_with("boot"));
            fs::copy(path, out.path().join(&report.blobs[0])).unwrap();
            let bootstrap = if inline { meta.unwrap() } else { out.path().join("boot") };
            expected::assert_same(&want, &checked(&bootstrap, out.path()));
        }
    }
    // Damaged archives leave nothing.
    let good = fs::read(&paths[0]).unwrap();
    for (bytes, word) in
        [(&good[..good.len() / 2], "archive"), (&good[..700], "archive"), (&[b'x'; 2000][..], "checksum")]
    {
        let out = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bad.tar"), bytes).unwrap();
        let mut options = support::options(dir.path(), out.path(), ImageOptions::default());
        options.source = SourceKind::Tar(dir.path().join("bad.tar"));
        let error = create(&options, &Arc::new(Progress::default())).unwrap_err().to_string();
        assert!(error.contains("bad.tar") && error.contains(word), "{error}");
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }
}

#[test]
fn the_converters_command_with_fifos_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let (want, paths) = archives(dir.path());
    let (source, blob) = (dir.path().join("blob.targz"), dir.path().join("blob.rafs"));
    for fifo in [&source, &blob] {
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_rafs-image"))
        .args(["create", "--log-level", "warn", "--prefetch-policy", "fs", "--blob"])
        .arg(&blob)
        .args(["--whiteout-spec", "none", "--fs-version", "6", "--type", "tar-rafs", "--blob-inline-meta"])
        .args([
            "--features",
            "blob-toc",
            "--aligned-chunk",
            "--chunk-size",
            "0x100000",
            "--batch-size",
            "0x20000",
        ])
        .arg(&source)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"/\n").unwrap();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        fs::File::open(&blob).unwrap().read_to_end(&mut got).unwrap();
        got
    });
    // Archives may be followed by any amount of padding, which must be taken.
    let mut feed = fs::File::options().write(true).open(&source).unwrap();
    feed.write_all(&fs::read(&paths[0]).unwrap()).unwrap();
    feed.write_all(&vec![0; 1 << 20]).unwrap();
    drop(feed);
    let got = reader.join().unwrap();
    assert!(child.wait().unwrap().success());
    let out = tempfile::tempdir().unwrap();
    let digest = rafs::codec::digest(rafs::codec::Digester::Sha256, &got);
    let name: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    fs::write(out.path().join(&name), got).unwrap();
    expected::assert_same(&want, &checked(&out.path().join(&name), out.path()));
}
