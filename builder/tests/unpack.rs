//! `unpack` gives back the tree: of our images and of every image of the corpus.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::image::Image;
use rafs_builder::{
    BlobPlace, BootstrapTarget, ChunkSize, ImageOptions, Progress, SourceKind, UnpackOptions, Version,
};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use support::expected::{self, View};

const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;

fn extract(archive: &Path, to: &Path) {
    let output = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(archive)
        .arg("-C")
        .arg(to)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
}

/// The `tar` program keeps ACLs in records of its own and ignores the xattr records that container tools use; that
/// these are right shows when an archive becomes an image again.
fn without_acls(mut view: View) -> View {
    for entry in view.values_mut() {
        entry.xattrs.retain(|name, _| !name.starts_with(b"system."));
    }
    view
}

/// What an archive can hold of a view: no sockets, no root.
fn without_root(mut view: View) -> View {
    view.remove(&b"/"[..]);
    view.retain(|_, entry| entry.mode & S_IFMT != S_IFSOCK);
    view
}

fn round_trip(bootstrap: &Path, blobs: &Path) -> (tempfile::TempDir, View) {
    let out = tempfile::tempdir().unwrap();
    let archive = out.path().join("archive.tar");
    let options = UnpackOptions {
        bootstrap: bootstrap.to_path_buf(),
        blobs: Some(BlobPlace::Directory(blobs.to_path_buf())),
        output: archive.clone(),
    };
    rafs_builder::unpack(&options).unwrap_or_else(|e| panic!("{}: {e}", bootstrap.display()));
    fs::create_dir(out.path().join("tree")).unwrap();
    extract(&archive, &out.path().join("tree"));
    let view = without_acls(without_root(expected::of_directory(&out.path().join("tree"))));
    (out, view)
}

#[test]
fn our_images_come_back_exactly() {
    if !support::is_root() {
        println!("skipped: needs root to make devices and owners");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    support::source::make(source.path(), 200);
    let want = without_acls(without_root(expected::of_directory(source.path())));
    let small = ChunkSize::new(0x1000).unwrap();
    for image in [
        ImageOptions { version: Version::V5, ..ImageOptions::default() },
        ImageOptions::default(),
        ImageOptions { batch_size: Some(ChunkSize::default()), ..ImageOptions::default() },
        ImageOptions { encrypt: true, chunk_size: small, ..ImageOptions::default() },
        ImageOptions {
            encrypt: true,
            batch_size: Some(ChunkSize::new(0x2000).unwrap()),
            ..ImageOptions::default()
        },
    ] {
        let built = support::build(source.path(), image);
        let (out, got) = round_trip(&built.bootstrap(), built.dir.path());
        expected::assert_same(&want, &got);
        for (path, entry) in &want {
            if entry.mode & S_IFMT == 0o100_000 {
                let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&path[1..]);
                let (a, b) = (source.path().join(name), out.path().join("tree").join(name));
                assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{name:?}");
            }
        }
    }
}

#[test]
fn the_corpus_comes_back() {
    if !support::is_root() {
        println!("skipped: needs root to make devices and owners");
        return;
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/interop");
    for case in fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        let info: serde_json::Value =
            serde_json::from_slice(&fs::read(case.join("case.json")).unwrap()).unwrap();
        let bootstrap = case.join(info["bootstrap"].as_str().unwrap());
        let (out, got) = round_trip(&bootstrap, &case.join("blobs"));
        let want = without_acls(without_root(expected::of_image(&Image::open(&bootstrap).unwrap())));
        expected::assert_same(&want, &got);
        // Contents, by the digests that were taken from the source.
        let listed: serde_json::Value =
            serde_json::from_slice(&fs::read(case.join("expected.json")).unwrap()).unwrap();
        for entry in listed["entries"].as_array().unwrap() {
            let (Some(digest), None) = (entry["sha256"].as_str(), entry.get("path_hex")) else { continue };
            let path = out.path().join("tree").join(&entry["path"].as_str().unwrap()[1..]);
            let found = rafs::codec::digest(rafs::codec::Digester::Sha256, &fs::read(&path).unwrap());
            assert_eq!(found.iter().map(|b| format!("{b:02x}")).collect::<String>(), digest, "{path:?}");
        }
    }
}

#[test]
fn a_tar_goes_in_and_comes_out() {
    if !support::is_root() {
        println!("skipped: needs root to make devices and owners");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    support::source::make(source.path(), 50);
    let built = support::build(source.path(), ImageOptions::default());
    let (out, _) = round_trip(&built.bootstrap(), built.dir.path());
    let archive = out.path().join("archive.tar");
    for version in [Version::V5, Version::V6] {
        let image = ImageOptions { version, ..ImageOptions::default() };
        let mut options = support::options(&archive, out.path(), image);
        options.source = SourceKind::Tar(archive.clone());
        options.bootstrap = BootstrapTarget::Inline;
        let report = rafs_builder::create(&options, &Arc::new(Progress::default())).unwrap();
        let image = Image::open(&out.path().join(&report.blobs[0])).unwrap();
        let mut got = without_root(expected::of_image(&image));
        let mut want = without_root(expected::of_directory(source.path()));
        // Tar sources have whole seconds.
        for entry in want.values_mut().chain(got.values_mut()) {
            entry.mtime.1 = 0;
        }
        expected::assert_same(&want, &got);
    }
}

#[test]
fn nothing_is_written_when_data_is_missing() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("f"), support::source::noise(1, 3_000_000)).unwrap();
    let built = support::build(source.path(), ImageOptions::default());
    let blob = built.dir.path().join(&built.report.blobs[0]);
    let out = tempfile::tempdir().unwrap();
    let unpack = |blobs| {
        let output = out.path().join("tar");
        let result = rafs_builder::unpack(&UnpackOptions { bootstrap: built.bootstrap(), blobs, output });
        (result.map_err(|e| e.to_string()), fs::read_dir(out.path()).unwrap().count())
    };
    let (result, left) = unpack(None);
    assert!(result.unwrap_err().contains("--backend-type must be specified") && left == 0);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[1_500_000] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let (result, left) = unpack(Some(BlobPlace::File(blob.clone())));
    assert!(result.unwrap_err().contains("/f") && left == 0);
    fs::remove_file(&blob).unwrap();
    let (result, left) = unpack(Some(BlobPlace::File(blob)));
    result.unwrap_err();
    assert_eq!(left, 0);
}
