//! `rafs-image diff`: every attribute, images of both versions and directories, chunks and what they cost.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::codec::{Compressor, Digester};
use rafs_builder::{BootstrapTarget, ChunkSize, ImageOptions, Progress, Version};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use support::{Built, build};

fn run(args: &[&Path], flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rafs-image")).arg("diff").args(args).args(flags).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn json(args: &[&Path], flags: &[&str]) -> Value {
    let output = run(args, &[&["--json"], flags].concat());
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let empty = value["changes"].as_array().unwrap().is_empty();
    assert_eq!(output.status.code(), Some(i32::from(!empty)));
    value
}

#[track_caller]
fn assert_same(args: &[&Path], flags: &[&str]) {
    let output = run(args, flags);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).starts_with("No differences in "), "{}", text(&output.stdout));
}

fn options(version: Version) -> ImageOptions {
    ImageOptions { version, ..ImageOptions::default() }
}

#[test]
fn an_image_is_the_same_as_its_source_and_as_its_other_version() {
    let source = tempfile::tempdir().unwrap();
    support::source::make(source.path(), 300);
    // What a build drops: with these the directory has more than the image.
    let v5 = build(source.path(), options(Version::V5));
    let v6 = build(source.path(), options(Version::V6));
    let lz4 = ImageOptions { compressor: Compressor::Lz4Block, ..options(Version::V6) };
    let lz4 = build(source.path(), lz4);
    assert_same(&[&v5.bootstrap(), &v6.bootstrap()], &[]);
    assert_same(&[&v6.bootstrap(), &lz4.bootstrap()], &[]);
    for image in [&v5, &v6] {
        assert_same(&[&image.bootstrap(), source.path()], &[]);
        assert_same(&[source.path(), &image.bootstrap()], &[]);
    }
}

#[test]
fn images_cut_or_digested_in_other_ways_are_read() {
    let source = tempfile::tempdir().unwrap();
    support::source::make(source.path(), 20);
    let plain = build(source.path(), options(Version::V6));
    let sha = build(source.path(), ImageOptions { digester: Digester::Sha256, ..options(Version::V5) });
    let small = ChunkSize::new(0x1_0000).unwrap();
    let cut = build(source.path(), ImageOptions { chunk_size: small, ..options(Version::V6) });
    for other in [&sha, &cut] {
        let both = [&*plain.bootstrap(), &*other.bootstrap()];
        let output = run(&both, &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("--blob-dir"), "{}", text(&output.stderr));
        let dirs = [plain.dir.path(), other.dir.path()].map(|dir| dir.to_str().unwrap().to_owned());
        assert_same(&both, &["--blob-dir", &dirs[0], "--blob-dir-b", &dirs[1]]);
    }
    // One byte of a large file.
    let path = source.path().join("changed");
    fs::write(&path, support::source::noise(1, 3 << 20)).unwrap();
    let before = build(source.path(), options(Version::V6));
    let mut bytes = fs::read(&path).unwrap();
    bytes[(2 << 20) + 5] ^= 1;
    fs::write(&path, bytes).unwrap();
    let after = build(source.path(), ImageOptions { chunk_size: small, ..options(Version::V6) });
    let dirs = [before.dir.path(), after.dir.path()].map(|dir| dir.to_str().unwrap().to_owned());
    let found = json(
        &[&before.bootstrap(), &after.bootstrap()],
        &["-D", &dirs[0], "--blob-dir-b", &dirs[1], "--ignore", "mtime"],
    );
    let changes = found["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(changes[0]["path"], "/changed");
    assert_eq!(changes[0]["attributes"], json!([{"attribute": "content"}]));
}

fn write(root: &Path, name: &str, data: &[u8]) {
    fs::write(root.join(name), data).unwrap();
}

fn device(path: &Path, minor: u32) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, minor)).unwrap();
}

/// Two states of a tree that differ in each attribute once.
fn two_states(a: &Path, b: &Path) {
    for root in [a, b] {
        for name in ["same", "mode", "mtime", "content", "xattr", "type", "h1", "alone"] {
            write(root, name, b"twelve bytes");
        }
        symlink(if root == a { "old" } else { "new" }, root.join("link")).unwrap();
    }
    write(a, "size", b"1");
    write(b, "size", b"22");
    write(b, "content", b"TWELVE BYTES");
    fs::set_permissions(b.join("mode"), Permissions::from_mode(0o4711)).unwrap();
    rustix::fs::setxattr(b.join("xattr"), "user.new", b"v", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(a.join("same"), "user.k", b"v", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(b.join("same"), "user.k", b"v", XattrFlags::empty()).unwrap();
    fs::remove_file(b.join("type")).unwrap();
    fs::create_dir(b.join("type")).unwrap();
    write(b, "type/inside", b"");
    fs::hard_link(a.join("h1"), a.join("h2")).unwrap();
    write(b, "h2", b"twelve bytes");
    fs::create_dir_all(a.join("gone/deep")).unwrap();
    write(a, "gone/deep/file", b"x");
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(&b"new\xff\n"[..]);
    let odd: &std::ffi::OsStr = odd;
    fs::write(b.join(odd), b"").unwrap();
    if support::is_root() {
        device(&a.join("device"), 3);
        device(&b.join("device"), 5);
        for root in [a, b] {
            write(root, "owner", b"");
        }
        std::os::unix::fs::chown(b.join("owner"), Some(7), Some(8)).unwrap();
    }
}

/// Path, change, and the attributes that differ, in order.
fn found(value: &Value) -> Vec<(String, String, Vec<String>)> {
    let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |change: &Value| {
        let attributes = change["attributes"].as_array().map(Vec::as_slice).unwrap_or_default();
        (
            string(&change["path"]),
            string(&change["change"]),
            attributes.iter().map(|a| string(&a["attribute"])).collect(),
        )
    };
    value["changes"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn every_attribute_is_found_and_only_what_changed() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    two_states(a.path(), b.path());
    // Times differ everywhere: one file says whether they are compared, the others are made to agree.
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    for (root, other) in [(a.path(), 0), (b.path(), 7)] {
        for name in
            ["same", "mode", "mtime", "content", "xattr", "type", "h1", "h2", "alone", "size", "owner"]
        {
            let Ok(file) = fs::File::open(root.join(name)) else { continue };
            let nanos = std::time::Duration::from_nanos(if name == "mtime" { other } else { 1 });
            file.set_modified(time + nanos).unwrap();
        }
    }
    let root_only = |rows: &[(&str, &str, &[&str])]| -> Vec<(String, String, Vec<String>)> {
        let row = |(path, change, attributes): &(&str, &str, &[&str])| {
            let attributes = attributes.iter().map(|a| (*a).to_owned()).collect();
            ((*path).to_owned(), (*change).to_owned(), attributes)
        };
        let privileged = |(path, ..): &&(&str, &str, &[&str])| {
            support::is_root() || !matches!(*path, "/device" | "/owner")
        };
        rows.iter().filter(privileged).map(row).collect()
    };
    let expected = root_only(&[
        ("/content", "changed", &["content"]),
        ("/device", "changed", &["rdev"]),
        ("/gone", "removed", &[]),
        ("/gone/deep", "removed", &[]),
        ("/gone/deep/file", "removed", &[]),
        ("/h2", "changed", &["hardlink"]),
        ("/link", "changed", &["target"]),
        ("/mode", "changed", &["mode"]),
        ("/new\\xff\\n", "added", &[]),
        ("/owner", "changed", &["owner"]),
        ("/size", "changed", &["size", "content"]),
        ("/type", "changed", &["type", "mode"]),
        ("/type/inside", "added", &[]),
        ("/xattr", "changed", &["xattr"]),
    ]);
    for version in [Version::V5, Version::V6] {
        let images = [build(a.path(), options(version)), build(b.path(), options(version))];
        let boots = images.each_ref().map(Built::bootstrap);
        for sides in [[&*boots[0], &boots[1]], [&boots[0], b.path()], [a.path(), &boots[1]]] {
            let value = json(&sides, &["--ignore", "mtime"]);
            assert_eq!(found(&value), expected, "{version:?} {sides:?}");
            let odd = value["changes"].as_array().unwrap().iter().find(|c| !c["path_hex"].is_null());
            assert_eq!(odd.unwrap()["path_hex"], "2f6e6577ff0a");
            let with_times = found(&json(&sides, &[]));
            let mtime = with_times.iter().find(|(path, ..)| path == "/mtime").unwrap();
            assert_eq!(mtime.2, ["mtime"], "{version:?} {sides:?}");
            assert!(!with_times.iter().any(|(path, ..)| path == "/same" || path == "/alone"));
        }
        let output = run(&[&boots[0], &boots[1]], &["--ignore", "mtime"]);
        let shown = text(&output.stdout);
        for line in [
            "- /gone/deep/file  (1 bytes)",
            "+ /new\\xff\\n  (0 bytes)",
            "~ /mode  mode 0644 -> 4711",
            "~ /link  target old -> new",
            "~ /xattr  xattr user.new added",
            "~ /h2  hardlink /h1 -> none",
            "~ /size  size 1 -> 2, content",
            "~ /type  type file -> directory, mode 0644 -> 0755",
        ] {
            assert!(shown.contains(&format!("{line}\n")), "{line}\n{shown}");
        }
        // The summary alone, and JSON in a file beside it.
        let json = images[0].dir.path().join("out.json");
        let output = run(&[&boots[0], &boots[1]], &["--summary", "-J", json.to_str().unwrap()]);
        assert!(!text(&output.stdout).contains("/mode") && text(&output.stdout).contains(" unchanged"));
        let value: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        assert_eq!(value["changes"], json!([]));
        assert_eq!(value["summary"]["removed"], 3);
    }
}

#[test]
fn what_a_host_must_fetch() {
    let source = tempfile::tempdir().unwrap();
    write(source.path(), "base", &support::source::noise(1, 2_500_000));
    write(source.path(), "text", "some words ".repeat(5000).as_bytes());
    for version in [Version::V5, Version::V6] {
        let _ = fs::remove_file(source.path().join("more"));
        let a = build(source.path(), options(version));
        write(source.path(), "more", &support::source::noise(2, 300_000));
        let alone = build(source.path(), options(version));
        let dir = tempfile::tempdir().unwrap();
        let on_a = rafs_builder::CreateOptions {
            parent: Some(a.bootstrap()),
            bootstrap: BootstrapTarget::File(dir.path().join("boot")),
            ..support::options(source.path(), dir.path(), options(version))
        };
        let report = rafs_builder::create(&on_a, &Arc::new(Progress::default())).unwrap();
        let chunks = |b: &Path| json(&[&a.bootstrap(), b], &[])["summary"]["chunks"].clone();
        let child = chunks(&dir.path().join("boot"));
        assert_eq!(child["new"], json!({"chunks": 1, "plain_bytes": 300_000, "stored_bytes": 300_000}));
        assert_eq!((&child["same_blob"]["chunks"], &child["other_blob"]["chunks"]), (&json!(4), &json!(0)));
        let fetch = json!({"with_chunks_found_by_digest": 300_000, "with_caches_kept_by_blob": 300_000});
        assert_eq!(child["bytes_to_fetch"], fetch);
        assert!(report.blob_size >= 300_000);
        // The same tree in a blob of its own: caches that are kept by blob have nothing of it.
        let other = chunks(&alone.bootstrap());
        assert_eq!((&other["new"]["chunks"], &other["other_blob"]["chunks"]), (&json!(1), &json!(4)));
        assert_eq!(other["bytes_to_fetch"]["with_chunks_found_by_digest"], 300_000);
        assert_eq!(other["bytes_to_fetch"]["with_caches_kept_by_blob"], other["total"]["stored_bytes"]);
        assert_eq!(other["exact"], true);
        // A directory that would be packed over A costs what the build really stored.
        let packed = chunks(source.path());
        assert_eq!((&packed["new"], &packed["same_blob"]["chunks"]), (&child["new"], &json!(4)));
        // Having B, A costs nothing.
        let back = json(&[source.path(), &a.bootstrap()], &[])["summary"]["chunks"].clone();
        assert_eq!(back["bytes_to_fetch"]["with_chunks_found_by_digest"], 0);
    }
}

#[test]
fn small_chunks_in_batches_cost_their_share() {
    let source = tempfile::tempdir().unwrap();
    for n in 0..200 {
        write(source.path(), &format!("f{n}"), format!("{n} ").repeat(500).as_bytes());
    }
    let batch = ImageOptions { batch_size: Some(ChunkSize::new(0x10_0000).unwrap()), ..options(Version::V6) };
    let image = build(source.path(), batch);
    let empty = tempfile::tempdir().unwrap();
    let chunks = json(&[empty.path(), &image.bootstrap()], &[])["summary"]["chunks"].clone();
    assert_eq!((&chunks["new"]["chunks"], &chunks["exact"]), (&json!(200), &json!(false)));
    let stored = chunks["new"]["stored_bytes"].as_u64().unwrap();
    assert!(stored <= image.report.blob_size && stored + 8192 >= image.report.blob_size / 2, "{stored}");
    assert_same(&[&image.bootstrap(), source.path()], &[]);
}

#[test]
fn trouble_is_status_2() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "file", b"no image");
    let file = dir.path().join("file");
    for (sides, expected) in [
        ([dir.path(), dir.path()], "both sides are directories"),
        ([&file, dir.path()], "no RAFS bootstrap"),
        ([&dir.path().join("absent"), dir.path()], "absent"),
    ] {
        let output = run(&sides, &[]);
        assert_eq!(output.status.code(), Some(2), "{sides:?}");
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
    assert_eq!(run(&[&file, &file], &["--ignore", "colour"]).status.code(), Some(2));
}
