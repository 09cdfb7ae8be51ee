//! What nydusify runs, word by word; model artifacts; every store in place of a directory.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::image::Image;
use serde_json::Value;
use std::fs;
use std::process::Stdio;
use support::command::{fifo, finish, hex, json, ok, rafs_image, run, take, text, words};
use support::layer::Layer;
use support::read::contents;
use support::source::noise;

#[test]
fn nydusify_builds_checks_and_reworks() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let layer = Layer::new(1);
    let build = |name: &str, layer: &Layer, more: &[&str]| {
        let (meta, blob, report) =
            (at(&format!("{name}.meta")), at(&format!("{name}.blob")), at("output.json"));
        let line = format!(
            "create {} --bootstrap {} --log-level warn --whiteout-spec oci --output-json {} --blob {} --fs-version 6 \
             --compressor zstd --chunk-size 0x100000 {}",
            more.join(" "),
            text(&meta),
            text(&report),
            text(&blob),
            text(&layer.tree())
        );
        ok(&words(&line));
        let id = json(&report)["blobs"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
        fs::rename(&blob, at(&id)).unwrap();
        assert_eq!(
            (&json(&report)["external_bootstrap"], &json(&report)["external_blobs"]),
            (&"".into(), &Value::Array(vec![]))
        );
        meta
    };
    let lower = build("lower", &layer, &["--aligned-chunk"]);
    let meta = build("app", &Layer::new(2), &["--parent-bootstrap", text(&lower)]);
    let (checked, boot) = (at("check.json"), text(&meta));
    let line = format!("check --log-level warn --output-json {} --bootstrap {boot}", text(&checked));
    let output = ok(&words(&line));
    assert!(output.stderr.is_empty());
    let report = json(&at("check.json"));
    assert_eq!((report["fs_version"].as_str(), report["compressor"].as_str()), (Some("6"), Some("zstd")));
    let output = ok(&["inspect", text(&meta), "--request", "blobs"]);
    let both = [output.stdout, output.stderr].concat();
    assert_eq!(serde_json::from_slice::<Value>(&both).unwrap().as_array().unwrap().len(), 2);
    let before = contents(&meta, out.path());
    // compact: with a backend that is asked for what is not in the directory.
    let server = guest_tests::servers::BlobServer::start(out.path()).unwrap();
    let backend = at("backend.json");
    let host = server.host();
    fs::write(&backend, format!(r#"{{"endpoint": "{host}", "bucket_name": "b", "scheme": "http", "access_key_id": "", "access_key_secret": ""}}"#)).unwrap();
    let compact_json = at("compact.json");
    let (empty, compacted) = (at("empty"), at("app.meta.compact"));
    fs::create_dir(&empty).unwrap();
    let args = [
        "compact",
        "--bootstrap",
        text(&meta),
        "--blob-dir",
        text(&empty),
        "--min-used-ratio",
        "5",
        "--compact-blob-size",
    ];
    let more =
        ["10485760", "--max-compact-size", "104857600", "--layers-to-compact", "32", "--backend-type", "oss"];
    let last = [
        "--backend-config-file",
        text(&backend),
        "--log-level",
        "info",
        "--output-json",
        text(&compact_json),
        "--output-bootstrap",
        text(&compacted),
    ];
    ok(&[&args[..], &more, &last].concat());
    assert!(!compacted.exists() && !at("compact.json").exists(), "fewer than 32 layers");
    let more: Vec<&str> = more.iter().map(|arg| if *arg == "32" { "0" } else { arg }).collect();
    ok(&[&args[..], &more, &last].concat());
    let new = json(&at("compact.json"))["blobs"][0].as_str().unwrap().to_owned();
    assert!(empty.join(new).exists());
    assert!(contents(&compacted, &empty) == before);
    // optimize, from a directory and from a registry.
    let (list, optimized, report) = (at("files.json"), at("optimized"), at("optimize.json"));
    fs::write(&list, r#"{"version":"v1","files":[{"path":"/own2"},{"path":"/small","ranges":[[0,3]]}]}"#)
        .unwrap();
    let registry = format!(r#"{{"host": "{host}", "repo": "app", "scheme": "http", "auth": ""}}"#);
    for source in [
        &["--blob-dir", text(out.path())][..],
        &["--backend-type", "registry", "--backend-config", &registry],
    ] {
        let args =
            ["optimize", "--log-level", "warn", "--prefetch-files", text(&list), "--bootstrap", text(&meta)];
        let more = [
            "--output-blob-dir",
            text(out.path()),
            "--output-bootstrap",
            text(&optimized),
            "--output-json",
            text(&report),
        ];
        ok(&[&args[..], &more, source].concat());
        assert_eq!(json(&report)["blobs"].as_array().unwrap().len(), 3);
        assert!(contents(&optimized, out.path()) == before);
    }
    ok(&[
        "chunkdict",
        "generate",
        "--log-level",
        "warn",
        "--bootstrap",
        text(&at("dict")),
        "--database",
        "sqlite:///x",
        "--output-json",
        text(&report),
        text(&lower),
        text(&meta),
    ]);
    assert_eq!(json(&report)["blobs"].as_array().unwrap().len(), 1);
}

#[test]
fn every_store_gives_what_a_directory_gives() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let layer = Layer::new(8);
    ok(&["create", "-B", text(&at("boot")), "-D", text(out.path()), text(&layer.tree())]);
    let server = guest_tests::servers::BlobServer::start(out.path()).unwrap();
    let host = server.host();
    ok(&["unpack", "-B", text(&at("boot")), "--output", text(&at("tar")), "-D", text(out.path())]);
    let bucket = format!(r#"{{"endpoint": "{host}", "bucket_name": "b", "region": "r", "scheme": "http"}}"#);
    for (kind, config) in [
        ("registry", format!(r#"{{"host": "{host}", "repo": "a/b", "scheme": "http"}}"#)),
        ("s3", bucket.clone()),
        ("oss", bucket),
        ("http-proxy", format!(r#"{{"addr": "http://{host}", "path": "blobs"}}"#)),
    ] {
        let backend = ["--backend-type", kind, "--backend-config", &config];
        ok(&[&["unpack", "-B", text(&at("boot")), "--output", text(&at("tar2"))][..], &backend].concat());
        assert!(fs::read(at("tar")).unwrap() == fs::read(at("tar2")).unwrap(), "{kind}");
        ok(&[&["check", text(&at("boot"))][..], &backend].concat());
        let file = at("config.json");
        fs::write(&file, format!(r#"{{"version": 2, "backend": {{"type": "{kind}", "{kind}": {config}}}}}"#))
            .unwrap();
        ok(&["check", text(&at("boot")), "-C", text(&file)]);
        let blobs = ok(&["inspect", text(&at("boot")), "--request", "blobs", "--config", text(&file)]);
        assert_eq!(serde_json::from_slice::<Value>(&blobs.stdout).unwrap().as_array().unwrap().len(), 1);
        ok(&["merge", "-B", text(&at("merged")), "-C", text(&file), text(&at("boot"))]);
        assert_eq!(run(&["merge", "-B", text(&at("merged")), "-C", "/nowhere", "x"]).status.code(), Some(1));
        let wrong =
            config.replace(&host, "127.0.0.1:1").replace('}', ", \"deadline\": 1, \"retry_limit\": 1}");
        let backend = ["--backend-type", kind, "--backend-config", &wrong];
        let output = run(&[&["check", text(&at("boot"))][..], &backend].concat());
        assert_eq!(output.status.code(), Some(1), "{kind}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("blob "), "{kind}");
    }
}

#[test]
fn model_artifacts() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let layer = Layer::new(1);
    fs::create_dir(layer.tree().join("weights")).unwrap();
    fs::write(layer.tree().join("weights/model.bin"), noise(5, 10_000)).unwrap();
    let id = "cd".repeat(32);
    let attributes = at("attributes");
    fs::write(
        &attributes,
        format!("/weights/model.bin type=external blob_index=0 blob_id={id} chunk_size=4KiB chunk_0_compressed_offset=8192 compressed_size=65536 crcs=0x1,0x2,0x3\n"),
    )
    .unwrap();
    for inline in [true, false] {
        let (blob, external) = (at(&format!("blob{inline}")), at(&format!("external{inline}")));
        fifo(&blob);
        fifo(&external);
        let boot = at("boot");
        let mut args =
            vec!["create", "--log-level", "warn", "--prefetch-policy", "fs", "--blob", text(&blob)];
        args.extend(["--whiteout-spec", "none", "--fs-version", "6", "--type", "dir-rafs", "--crc"]);
        args.extend(["--attributes", text(&attributes), "--external-blob", text(&external)]);
        let report = at("report");
        args.extend(["--output-json", text(&report)]);
        if inline {
            args.extend(["--blob-inline-meta", "--features", "blob-toc"]);
        } else {
            args.extend(["--bootstrap", text(&boot)]);
        }
        let tree = layer.tree();
        args.push(text(&tree));
        let child = rafs_image(&args).stdin(Stdio::piped()).spawn().unwrap();
        let (blob, external) = (take(&blob), take(&external));
        finish(child, Some(b"/"));
        let (blob, external) = (blob.join().unwrap(), external.join().unwrap());
        let main = at(&hex(&blob));
        fs::write(&main, blob).unwrap();
        let (main, second) = if inline {
            let second = at("second");
            fs::write(&second, external).unwrap();
            (main, second)
        } else {
            assert!(external.is_empty());
            (boot, at("boot.external"))
        };
        assert_eq!(json(&report)["external_blobs"], Value::from(vec![id.clone()]));
        assert_eq!(json(&report)["external_bootstrap"], if inline { "" } else { text(&second) });
        let read = contents(&main, out.path());
        assert!(read.contains_key(&b"/own1"[..]) && !read.contains_key(&b"/weights/model.bin"[..]));
        let image = Image::open(&second).unwrap();
        image.check().unwrap();
        assert_eq!(image.chunk_size(), 4096);
        let weights = image.lookup(&image.inode(image.root()).unwrap(), b"weights").unwrap().unwrap();
        let file = image.lookup(&weights, b"model.bin").unwrap().unwrap();
        let chunks: Vec<_> =
            image.chunks(&file, 0, file.size).unwrap().map(|c| c.unwrap().uncompressed_offset).collect();
        assert_eq!(chunks, [8192, 12288, 16384]);
        assert_eq!(image.chunk_table().iter().map(|r| r.crc32c.get()).sum::<u32>(), 6);
        assert!(image.lookup(&image.inode(image.root()).unwrap(), b"own1").unwrap().is_none());
    }
    // What is not covered is refused.
    let tree = layer.tree();
    for (line, part) in [
        ("/weights/model.bin type=external", "blob_id"),
        (
            &format!(
                "/weights/* type=external blob_id={id} chunk_size=4KiB chunk_0_compressed_offset=512 compressed_size=65536"
            ),
            "512",
        ),
        (
            &format!(
                "/weights/* type=external blob_id={id} chunk_size=4KiB chunk_0_compressed_offset=0 compressed_size=100"
            ),
            "behind",
        ),
        (
            &format!(
                "/weights/* type=external blob_id={id} chunk_size=4KiB chunk_0_compressed_offset=0 compressed_size=65536 crcs=0x1"
            ),
            "crcs",
        ),
        (
            &format!(
                "/weights/* type=external blob_id={id} chunk_size=5000 chunk_0_compressed_offset=0 compressed_size=65536"
            ),
            "chunk size",
        ),
        ("[attr]x y", "line 1"),
    ] {
        fs::write(&attributes, line).unwrap();
        let output = run(&[
            "create",
            "-B",
            text(&at("no")),
            "-D",
            text(out.path()),
            "--attributes",
            text(&attributes),
            text(&tree),
        ]);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(part),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!at("no").exists());
    }
}
