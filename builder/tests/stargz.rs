//! Images over stargz layers that stay as they are, made from their index.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::image::Image;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::expected;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/stargz")
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rafs-image")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn ok(args: &[&str]) {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(corpus().join(name)).unwrap()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    rafs::codec::digest(rafs::codec::Digester::Sha256, bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The image shows what the case says, and its files have the digests the case says.
fn assert_is(bootstrap: &Path, name: &str) {
    let case = json(name);
    let view = expected::of_image(&Image::open(bootstrap).unwrap());
    let contents = support::read::contents(bootstrap, &corpus().join("blobs"));
    let entries = case["entries"].as_array().unwrap();
    let paths: Vec<&str> = entries.iter().map(|e| e["path"].as_str().unwrap()).collect();
    let shown: Vec<String> = view.keys().map(|path| String::from_utf8(path.clone()).unwrap()).collect();
    let mut sorted = paths.clone();
    sorted.sort_unstable();
    assert_eq!(shown, sorted);
    for want in entries {
        let path = want["path"].as_str().unwrap();
        let got = &view[path.as_bytes()];
        assert_eq!(got.nlink, want["nlink"].as_u64().unwrap(), "{path}");
        if path == "/" {
            continue;
        }
        let number = |key: &str| want[key].as_i64().unwrap();
        assert_eq!(i64::from(got.mode & 0o7777), number("mode"), "{path}");
        assert_eq!((i64::from(got.uid), i64::from(got.gid)), (number("uid"), number("gid")), "{path}");
        // The index rounds the layer's times to the nearest second, the case drops their fractions.
        let late = got.mtime.0 - number("mtime");
        assert!((0..=1).contains(&late) && got.mtime.1 == number("mtime_ns"), "{path} {late}");
        let xattrs: BTreeMap<String, String> = got
            .xattrs
            .iter()
            .map(|(name, value)| {
                let hex = value.iter().map(|b| format!("{b:02x}")).collect();
                (String::from_utf8(name.clone()).unwrap(), hex)
            })
            .collect();
        assert_eq!(xattrs.len(), want["xattrs"].as_object().unwrap().len(), "{path}");
        match want["type"].as_str().unwrap() {
            "reg" => {
                let data = &contents[path.as_bytes()];
                assert_eq!(data.len() as u64, want["size"].as_u64().unwrap(), "{path}");
                assert_eq!(sha256(data), want["sha256"].as_str().unwrap(), "{path}");
            }
            "symlink" => assert_eq!(got.target, want["target"].as_str().unwrap().as_bytes(), "{path}"),
            _ => {}
        }
    }
}

struct Layer {
    index: String,
    id: String,
    size: u64,
}

fn layer(name: &str) -> Layer {
    let case = &json("case.json")[name];
    Layer {
        index: text(&corpus().join(case["index"].as_str().unwrap())).to_owned(),
        id: case["blob_id"].as_str().unwrap().to_owned(),
        size: case["size"].as_u64().unwrap(),
    }
}

#[test]
fn layers_show_their_trees_with_and_without_the_blob_at_hand() {
    let (lower, upper) = (layer("lower"), layer("upper"));
    let blobs = corpus().join("blobs");
    for (with_size, with_blobs) in [(false, false), (true, false), (false, true)] {
        let out = tempfile::tempdir().unwrap();
        let (one, two) = (out.path().join("lower"), out.path().join("both"));
        let build = |layer: &Layer, bootstrap: &Path, parent: Option<&Path>| {
            let mut args = vec!["create", "--source-type", "stargz_index", "--bootstrap", text(bootstrap)];
            let size = format!("{:#x}", layer.size);
            args.extend(["--blob-id", &layer.id, "--log-level", "warn"]);
            if with_size {
                args.extend(["--blob-data-size", &size]);
            }
            if with_blobs {
                args.extend(["--blob-dir", text(&blobs)]);
            }
            if let Some(parent) = parent {
                args.extend(["--parent-bootstrap", text(parent)]);
            }
            args.push(&layer.index);
            let output = run(&args);
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{log}");
            // One file of the lower layer has two chunks, for which the index has no digest.
            let warned = log.contains("cannot be verified");
            assert_eq!(warned, !with_blobs && layer.id == lower.id, "{log}");
        };
        build(&lower, &one, None);
        assert_is(&one, "expected-lower.json");
        build(&upper, &two, Some(&one));
        assert_is(&two, "expected.json");
        ok(&["check", text(&two), "--blob-dir", text(&blobs)]);
        let image = Image::open(&two).unwrap();
        let ids: Vec<&str> = image.blobs().iter().map(|blob| blob.id.as_str()).collect();
        assert_eq!(ids, [&lower.id, &upper.id]);
        // A third layer on top of both still has every record that a reader needs.
        let three = out.path().join("three");
        build(&upper, &three, Some(&two));
        assert_is(&three, "expected.json");
        let zeros = image.chunk_table().iter().filter(|record| record.digest == [0; 32]).count();
        assert_eq!(zeros, if with_blobs { 0 } else { 2 });
    }
}

#[test]
fn layers_can_be_merged_and_unpacked() {
    let out = tempfile::tempdir().unwrap();
    let mut boots = Vec::new();
    for name in ["lower", "upper"] {
        let layer = layer(name);
        let boot = out.path().join(&layer.id);
        ok(&[
            "create",
            "--type",
            "estargztoc-ref",
            "--whiteout-spec",
            "none",
            "-B",
            text(&boot),
            "--blob-id",
            &layer.id,
            &layer.index,
        ]);
        boots.push(boot);
    }
    let merged = out.path().join("merged");
    ok(&["merge", "-B", text(&merged), text(&boots[0]), text(&boots[1])]);
    assert_is(&merged, "expected.json");
    let tar = out.path().join("tar");
    ok(&["unpack", "--output", text(&tar), "-D", text(&corpus().join("blobs")), text(&merged)]);
    assert!(fs::metadata(tar).unwrap().len() > 9_000_000);
}

/// The snapshotter's command line, and the chunk info that it wants in its cache.
#[test]
fn the_chunk_info_for_a_cache_is_accepted_by_readers() {
    let lower = layer("lower");
    let cache = tempfile::tempdir().unwrap();
    let boot = cache.path().join("boot");
    let meta = cache.path().join(format!("{}.blob.meta", lower.id));
    ok(&[
        "create",
        "--source-type",
        "stargz_index",
        "--bootstrap",
        text(&boot),
        "--blob-id",
        &lower.id,
        "--repeatable",
        "--disable-check",
        "--fs-version",
        "6",
        "--chunk-size",
        "0x400000",
        "--blob-meta",
        text(&meta),
        &lower.index,
    ]);
    let image = Image::open(&boot).unwrap();
    let table = rafs::blob::parse_table(&image.blobs()[0], fs::read(&meta).unwrap()).unwrap();
    let from_image = rafs::blob::ChunkTable::from_records(&image.blobs()[0], image.chunk_table()).unwrap();
    assert_eq!(table.chunk_count(), from_image.chunk_count());
    for chunk in (0..table.chunk_count()).map(rafs::ids::ChunkIndex) {
        let (a, b) = (table.chunk(chunk).unwrap(), from_image.chunk(chunk).unwrap());
        assert_eq!((a.compressed_offset, a.compressed_size), (b.compressed_offset, b.compressed_size));
        assert_eq!(a.place, b.place);
    }
    // Beside the blob it is found and used.
    fs::copy(corpus().join("blobs").join(&lower.id), cache.path().join(&lower.id)).unwrap();
    let contents = support::read::contents(&boot, cache.path());
    assert_eq!(contents[&b"/usr/lib/big.bin"[..]].len(), 5_243_003);
    let view = expected::of_image(&image);
    assert!(view.values().all(|entry| (entry.uid, entry.gid) == (0, 0)), "--repeatable stores no owners");
}

#[test]
fn the_same_layers_as_archives() {
    let blobs = corpus().join("blobs");
    let lower = layer("lower");
    let blob = blobs.join(&lower.id);
    let out = tempfile::tempdir().unwrap();
    let boot = out.path().join("boot");
    for kind in ["estargz-ref", "estargz-rafs"] {
        ok(&["create", "--type", kind, "-B", text(&boot), "-D", text(out.path()), text(&blob)]);
        let dir = out.path();
        if kind == "estargz-ref" {
            fs::copy(&blob, dir.join(&lower.id)).unwrap();
        }
        let case = json("expected-lower.json");
        let contents = support::read::contents(&boot, dir);
        for want in case["entries"].as_array().unwrap().iter().filter(|e| e["type"] == "reg") {
            let data = &contents[want["path"].as_str().unwrap().as_bytes()];
            assert_eq!(sha256(data), want["sha256"].as_str().unwrap(), "{kind} {}", want["path"]);
        }
        assert!(!contents.contains_key(&b"/stargz.index.json"[..]));
    }
}

#[test]
fn what_does_not_fit_is_refused_with_a_sentence() {
    let lower = layer("lower");
    let out = tempfile::tempdir().unwrap();
    let boot = out.path().join("boot");
    let base = ["create", "--type", "estargztoc-ref", "-B", text(&boot)];
    let blob = out.path().join("blob");
    for (more, part) in [
        (&["--blob-id", "x", "-v", "5"][..], "--fs-version 5"),
        (&[][..], "--blob-id"),
        (&["--blob-id", "x", "--blob", text(&blob)], "--blob"),
        (&["--blob-id", "x", "--encrypt"], "--encrypt"),
        (&["--blob-id", "x", "--chunk-size", "0x100000"], "--chunk-size"),
        (&["--blob-id", "x", "--blob-data-size", "0x100"], "index of another"),
        (&["--blob-id", "x", "--blob-cache-dir", text(out.path())], "--blob-cache-dir"),
    ] {
        let output = run(&[&base[..], more, &[&lower.index]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{more:?} {error}");
        assert!(error.contains(part), "{more:?} {error}");
        assert!(!boot.exists());
    }
}
