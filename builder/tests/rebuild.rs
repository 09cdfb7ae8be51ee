//! Images made from images: compact, optimize, chunkdict; and numbers about them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::image::Image;
use rafs::layout::blob::BlobFeatures;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use support::command::{self, json, run, text};
use support::expected;
use support::read::contents;
use support::source::noise;

/// What a command that succeeds says.
fn ok(args: &[&str]) -> String {
    String::from_utf8(command::ok(args).stdout).unwrap()
}

/// Compacts an image so far that everything less than four fifths used is stored anew.
fn compact(boot: &Path, blobs: &Path, out: &Path) -> String {
    ok(&["compact", "-B", text(boot), "-D", text(blobs), "--min-used-ratio", "80", "-O", text(out)])
}

/// Makes an image with chunks of 64 KiB.
fn create(version: &str, more: &[&str], boot: &Path, blobs: &Path, source: &Path) -> String {
    let start = ["create", "-v", version, "--chunk-size", "0x10000", "-B", text(boot), "-D", text(blobs)];
    ok(&[&start, more, &[text(source)]].concat())
}

fn ids(bootstrap: &Path) -> Vec<String> {
    Image::open(bootstrap).unwrap().blobs().iter().map(|blob| blob.id.clone()).collect()
}

/// Text that compresses to about a third.
fn words(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len / 3 + 1).iter().flat_map(|b| [b'a' + b % 16; 3]).take(len).collect()
}

/// Four layers, each a directory over the one below; later ones replace and remove files of earlier ones.
struct Layers {
    dir: tempfile::TempDir,
    boots: Vec<PathBuf>,
}

impl Layers {
    fn new(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        let mut layers = Self { dir, boots: Vec::new() };
        for layer in 0..4_u64 {
            let source = layers.dir.path().join(format!("source{layer}"));
            fs::create_dir_all(source.join("sub")).unwrap();
            fs::write(source.join(format!("own{layer}")), noise(layer, 30_000)).unwrap();
            fs::write(source.join("replaced"), words(100 + layer, 200_000)).unwrap();
            fs::write(source.join("sub/shared"), words(7, 50_000)).unwrap();
            fs::write(source.join(format!("sub/tiny{layer}")), words(layer, 90)).unwrap();
            fs::hard_link(source.join(format!("own{layer}")), source.join(format!("link{layer}"))).unwrap();
            if layer == 3 {
                // Nothing of the first layer's blob but what others share stays in use.
                fs::write(source.join(".wh.own1"), "").unwrap();
                fs::write(source.join(".wh.link1"), "").unwrap();
            }
            let boot = layers.dir.path().join(format!("boot{layer}"));
            let blobs = layers.blobs();
            let parent = layers.boots.last().cloned();
            let mut args = vec!["create", "-l", "warn", "-B", text(&boot), "-D", text(&blobs)];
            args.extend(flags);
            if let Some(parent) = &parent {
                args.extend(["--parent-bootstrap", text(parent)]);
            }
            args.push(text(&source));
            ok(&args);
            layers.boots.push(boot);
        }
        layers
    }

    fn blobs(&self) -> PathBuf {
        self.dir.path().join("blobs")
    }

    fn boot(&self) -> &Path {
        &self.boots[3]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

const SHAPES: [&[&str]; 7] = [
    &["-v", "6", "--chunk-size", "0x10000"],
    &["-v", "6", "--compressor", "none", "--chunk-size", "0x1000"],
    &["-v", "6", "--compressor", "lz4_block", "--features", "blob-toc", "--digester", "sha256"],
    &["-v", "6", "--batch-size", "0x10000"],
    &["-v", "6", "--encrypt"],
    &["-v", "5", "--compressor", "lz4_block", "--chunk-size", "0x10000"],
    &["-v", "5", "--aligned-chunk", "--prefetch-policy", "fs"],
];

#[test]
fn a_compacted_image_is_the_same_with_fewer_blobs() {
    for shape in SHAPES {
        let layers = Layers::new(shape);
        let (boot, blobs) = (layers.boot(), layers.blobs());
        let before = contents(boot, &blobs);
        let view = expected::of_image(&Image::open(boot).unwrap());
        let (out, report) = (layers.path("compacted"), layers.path("report"));
        let new_blobs = layers.path("new");
        fs::create_dir(&new_blobs).unwrap();
        for id in ids(boot) {
            fs::copy(blobs.join(&id), new_blobs.join(&id)).unwrap();
        }
        ok(&[
            "compact",
            "--bootstrap",
            text(boot),
            "--blob-dir",
            text(&new_blobs),
            "--min-used-ratio",
            "80",
            "--compact-blob-size",
            "10485760",
            "--max-compact-size",
            "104857600",
            "--layers-to-compact",
            "2",
            "--log-level",
            "info",
            "--output-json",
            text(&report),
            "--output-bootstrap",
            text(&out),
        ]);
        let after = ids(&out);
        // Every encrypted blob has a key of its own and stays alone.
        let encrypted = shape.contains(&"--encrypt");
        assert_eq!(after.len(), if encrypted { 4 } else { 1 }, "{shape:?}");
        assert_eq!(json(&report)["blobs"], Value::from(after.clone()), "{shape:?}");
        assert_eq!(json(&report)["bootstrap"], text(&out));
        // What the new image needs is there without the old blobs.
        let stored: u64 = ids(boot).iter().map(|id| fs::metadata(new_blobs.join(id)).unwrap().len()).sum();
        for id in ids(boot).iter().filter(|id| !after.contains(id)) {
            fs::remove_file(new_blobs.join(id)).unwrap();
        }
        let kept: u64 = after.iter().map(|id| fs::metadata(new_blobs.join(id)).unwrap().len()).sum();
        assert!(kept < stored, "{shape:?}: {kept} of {stored}");
        assert!(before == contents(&out, &new_blobs), "{shape:?}");
        assert_eq!(view, expected::of_image(&Image::open(&out).unwrap()), "{shape:?}");
        ok(&["check", text(&out), "--blob-dir", text(&new_blobs)]);
        // A second time there is nothing to do, and nothing appears.
        let again = layers.path("again");
        compact(&out, &new_blobs, &again);
        assert!(!again.exists(), "{shape:?}");
        // The same again gives the same bytes.
        if !encrypted {
            compact(boot, &blobs, &again);
            assert!(fs::read(&again).unwrap() == fs::read(&out).unwrap(), "{shape:?}");
        }
    }
}

#[test]
fn compaction_follows_its_numbers() {
    let layers = Layers::new(&[]);
    let (boot, blobs) = (layers.boot(), layers.blobs());
    let out = layers.path("out");
    let compact = |more: &[&str]| {
        let _ = fs::remove_file(&out);
        let mut args = vec!["compact", "-B", text(boot), "-D", text(&blobs), "-O", text(&out)];
        args.extend(more);
        ok(&args);
        out.exists().then(|| ids(&out).len())
    };
    assert_eq!(compact(&["--layers-to-compact", "5"]), None);
    assert_eq!(compact(&["--compact-blob-size", "0"]), None);
    assert_eq!(compact(&["--compact-blob-size", "0", "--min-used-ratio", "99"]), Some(4));
    assert_eq!(compact(&[]), Some(1));
    // Two of the blobs fit into one of this size.
    assert_eq!(compact(&["--max-compact-size", "60000"]), Some(3));
    // Numbers and directory from a file; a flag wins over it.
    let config = layers.path("compact.json");
    let written = format!(r#"{{"layers_to_compact": 9, "blobs_dir": {:?}}}"#, text(&blobs));
    fs::write(&config, written).unwrap();
    fs::remove_file(&out).unwrap();
    ok(&["compact", "--config", text(&config), "-B", text(boot), "-O", text(&out)]);
    assert!(!out.exists());
    ok(&[
        "compact",
        "--config",
        text(&config),
        "-B",
        text(boot),
        "-O",
        text(&out),
        "--layers-to-compact",
        "2",
    ]);
    assert_eq!(ids(&out).len(), 1);
    // Blobs of the dictionary stay, and what it has is taken from there.
    let dictionary = format!("bootstrap={}", text(&layers.boots[0]));
    assert_eq!(compact(&["--chunk-dict", &dictionary]), Some(2));
    assert_eq!(ids(&out)[0], ids(boot)[0]);
    assert!(contents(boot, &blobs) == contents(&out, &blobs));
    // The name of the output follows from the input's.
    ok(&["compact", "-B", text(boot), "-D", text(&blobs)]);
    assert!(layers.path("boot3.bootstrap.compact").exists());
    for (args, part) in [
        (&["--backend-type", "localfs", "--backend-config", r#"{"dir": "/"}"#][..], "--blob-dir"),
        (&["--backend-type", "ftp", "--backend-config", "{}"], "ftp"),
        (&["--backend-type", "oss", "--backend-config", "{}"], "oss"),
    ] {
        let output = run(&[
            &["compact", "-B", text(boot), "-D", text(&blobs), "-O", text(&layers.path("no"))][..],
            args,
        ]
        .concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{args:?}");
        assert!(!layers.path("no").exists());
    }
}

#[test]
fn a_damaged_blob_is_not_compacted() {
    let layers = Layers::new(&[]);
    let blobs = layers.blobs();
    let blob = blobs.join(&ids(layers.boot())[3]);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[100] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let before = fs::read_dir(&blobs).unwrap().count();
    let out = layers.path("out");
    let output = run(&["compact", "-B", text(layers.boot()), "-D", text(&blobs), "-O", text(&out)]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("blob ") && error.contains("chunk"), "{error}");
    assert!(!out.exists());
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), before, "no half-made blob");
}

#[test]
fn the_older_form_compacts_the_parent_before_a_build() {
    let layers = Layers::new(&[]);
    let blobs = layers.blobs();
    let config = layers.path("compact.json");
    fs::write(&config, format!(r#"{{"min_used_ratio": 50, "blobs_dir": {:?}}}"#, text(&blobs))).unwrap();
    let source = layers.path("source0");
    let out = layers.path("out");
    ok(&[
        "create",
        "--parent-bootstrap",
        text(layers.boot()),
        "--config",
        text(&config),
        "-D",
        text(&blobs),
        "-B",
        text(&out),
        text(&source),
    ]);
    assert_eq!(ids(&out).len(), 2, "the parent's blobs became one, and the new one");
    let all = contents(&out, &blobs);
    assert!(all[&b"/replaced"[..]] == fs::read(source.join("replaced")).unwrap());
}

#[test]
fn an_optimized_image_is_the_same_with_one_blob_more() {
    for shape in SHAPES {
        let layers = Layers::new(shape);
        let (boot, blobs) = (layers.boot(), layers.blobs());
        let before = contents(boot, &blobs);
        let view = expected::of_image(&Image::open(boot).unwrap());
        let list = layers.path("files.json");
        fs::write(
            &list,
            r#"{"version": "v1", "files": [{"path": "/absent"}, {"path": "/sub"}, {"path": "/link0"},
                {"path": "/sub/tiny2"}, {"path": "/replaced", "ranges": [[70000, 10]]}]}"#,
        )
        .unwrap();
        let (out, report) = (layers.path("optimized"), layers.path("report"));
        ok(&[
            "optimize",
            "--log-level",
            "error",
            "--prefetch-files",
            text(&list),
            "--bootstrap",
            text(boot),
            "--output-blob-dir",
            text(&blobs),
            "--output-bootstrap",
            text(&out),
            "--output-json",
            text(&report),
            "--blob-dir",
            text(&blobs),
        ]);
        let (old, new) = (ids(boot), ids(&out));
        assert_eq!(new[..old.len()], old, "{shape:?}");
        assert_eq!(new.len(), old.len() + 1);
        assert_eq!(json(&report)["blobs"].as_array().unwrap().last().unwrap(), new.last().unwrap());
        let image = Image::open(&out).unwrap();
        let blob = image.blobs().last().unwrap();
        assert!(blob.features.contains(BlobFeatures::IS_SEPARATED_WITH_PREFETCH_FILES), "{shape:?}");
        assert_eq!(blob.cipher.is_some(), shape.contains(&"--encrypt"));
        let stored = fs::read(blobs.join(&blob.id)).unwrap();
        assert_eq!(stored.len() as u64, blob.compressed_size);
        let digest = rafs::codec::digest(rafs::codec::Digester::Sha256, &stored);
        assert_eq!(digest.iter().map(|b| format!("{b:02x}")).collect::<String>(), blob.id);
        assert!(before == contents(&out, &blobs), "{shape:?}");
        assert_eq!(view, expected::of_image(&image), "{shape:?}");
        ok(&["check", text(&out), "--blob-dir", text(&blobs)]);
        // Both names of the hardlinked file are read from the new blob alone.
        let own0 = image.lookup(&image.inode(image.root()).unwrap(), b"own0").unwrap().unwrap();
        for chunk in image.chunks(&own0, 0, own0.size).unwrap() {
            assert_eq!(chunk.unwrap().blob.as_usize(), old.len(), "{shape:?}");
        }
    }
}

#[test]
fn a_trace_says_what_is_wanted_first_too() {
    let layers = Layers::new(&["--chunk-size", "0x10000"]);
    let (boot, blobs) = (layers.boot(), layers.blobs());
    let image = Image::open(boot).unwrap();
    let replaced = image.lookup(&image.inode(image.root()).unwrap(), b"replaced").unwrap().unwrap();
    let chunks: Vec<_> = image.chunks(&replaced, 0, replaced.size).unwrap().map(|c| c.unwrap()).collect();
    let (trace, out) = (layers.path("trace"), layers.path("out"));
    // The third chunk before the first, and one that the image does not have.
    let line = |n: usize| format!("{} {:#x}", chunks[n].chunk.0, chunks[n].uncompressed_offset);
    let id = &image.blobs()[chunks[0].blob.as_usize()].id;
    fs::write(&trace, format!("rafs-trace 1\nblob {id}\n{}\n{}\n77 0x1\n", line(2), line(0))).unwrap();
    let args = ["optimize", "-p", text(&trace), "-B", text(boot), "-D", text(&blobs)];
    ok(&[&args[..], &["--output-blob-dir", text(&blobs), "-O", text(&out)]].concat());
    let image = Image::open(&out).unwrap();
    let new = image.blobs().last().unwrap();
    assert_eq!(new.chunk_count, Some(2));
    let replaced = image.lookup(&image.inode(image.root()).unwrap(), b"replaced").unwrap().unwrap();
    let places: Vec<_> = image
        .chunks(&replaced, 0, replaced.size)
        .unwrap()
        .map(|c| c.unwrap())
        .filter(|c| c.blob == new.index)
        .map(|c| (c.file_offset, c.chunk.0))
        .collect();
    assert_eq!(places, [(0, 1), (0x20000, 0)]);
    assert!(contents(boot, &blobs) == contents(&out, &blobs));
}

#[test]
fn optimizing_nothing_is_an_error() {
    let layers = Layers::new(&[]);
    let list = layers.path("files.json");
    let out = layers.path("out");
    for (text_of_list, part) in [
        (r#"{"version": "v1", "files": []}"#, "nothing to put"),
        (r#"{"version": "v1", "files": [{"path": "/absent"}]}"#, "nothing to put"),
        (r#"["/own0"]"#, "files.json"),
    ] {
        fs::write(&list, text_of_list).unwrap();
        let blobs = layers.blobs();
        let before = fs::read_dir(&blobs).unwrap().count();
        let output = run(&[
            "optimize",
            "-p",
            text(&list),
            "-B",
            text(layers.boot()),
            "-D",
            text(&blobs),
            "--output-blob-dir",
            text(&blobs),
            "-O",
            text(&out),
        ]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{text_of_list}");
        assert!(!out.exists());
        assert_eq!(fs::read_dir(&blobs).unwrap().count(), before);
    }
}

#[test]
fn a_dictionary_has_what_two_images_share() {
    for version in ["5", "6"] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for image in ["a", "b", "c"] {
            fs::create_dir_all(at(image)).unwrap();
            fs::write(
                at(image).join("own"),
                noise(image.len() as u64 + u64::from(image.as_bytes()[0]), 40_000),
            )
            .unwrap();
            fs::write(at(image).join("everywhere"), words(1, 70_000)).unwrap();
            if image != "c" {
                fs::write(at(image).join("in-two"), words(2, 70_000)).unwrap();
            }
            let (boot, source) = (at(&format!("{image}.boot")), at(image));
            create(version, &[], &boot, dir.path(), &source);
        }
        let (dict, report) = (at("dict"), at("report"));
        ok(&[
            "chunkdict",
            "generate",
            "--log-level",
            "warn",
            "--bootstrap",
            text(&dict),
            "--database",
            "sqlite:///nowhere/database.db",
            "--output-json",
            text(&report),
            text(&at("a.boot")),
            text(&at("b.boot")),
            text(&at("c.boot")),
        ]);
        // Four chunks of two files, all of the first image.
        assert_eq!(ids(&dict), ids(&at("a.boot")), "v{version}");
        assert_eq!(json(&report)["blobs"], Value::from(ids(&dict)));
        let image = Image::open(&dict).unwrap();
        assert!(image.blobs()[0].features.contains(BlobFeatures::IS_CHUNKDICT_GENERATED));
        let mut records = image.chunk_table().len();
        image.for_each_chunk_record(&mut |_| records += 1);
        assert_eq!(records, 4, "v{version}");
        ok(&["check", text(&dict)]);
        // An image built with it stores only what it has alone.
        let new = at("new");
        fs::create_dir(&new).unwrap();
        fs::write(new.join("copy"), words(1, 70_000)).unwrap();
        fs::write(new.join("own"), noise(900, 50_000)).unwrap();
        let boot = at("new.boot");
        let argument = format!("bootstrap={}", text(&dict));
        create(version, &["--chunk-dict", &argument], &boot, dir.path(), &new);
        let blobs = ids(&boot);
        assert_eq!(blobs.len(), 2, "v{version}");
        assert_eq!(blobs[0], ids(&dict)[0]);
        assert!(fs::metadata(dir.path().join(&blobs[1])).unwrap().len() < 70_000);
        let read = contents(&boot, dir.path());
        assert!(read[&b"/copy"[..]] == words(1, 70_000) && read[&b"/own"[..]] == noise(900, 50_000));
    }
}

#[test]
fn images_that_do_not_go_together_make_no_dictionary() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    let boots: Vec<_> = ["5", "6"]
        .iter()
        .map(|version| {
            let boot = dir.path().join(version);
            ok(&["create", "-v", version, "-B", text(&boot), "-D", text(dir.path()), text(&source)]);
            boot
        })
        .collect();
    let out = dir.path().join("dict");
    let output = run(&["chunkdict", "generate", "-B", text(&out), text(&boots[0]), text(&boots[1])]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("inconsistent RAFS version"));
    assert!(!out.exists());
    let help = run(&["chunkdict"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("generate"));
}

#[test]
fn numbers_about_images() {
    let layers = Layers::new(&["--chunk-size", "0x10000"]);
    let report = layers.path("stat.json");
    ok(&["stat", "-B", text(layers.boot()), "-J", text(&report)]);
    let stat = json(&report);
    let base = &stat["base_image"];
    assert_eq!((&stat["dedup_enabled"], &stat["target_enabled"]), (&Value::from(false), &Value::from(false)));
    // Names: own0, own2, own3 (and a link each), replaced, sub with shared and tiny0 to tiny3.
    assert_eq!((base["dirs"].as_u64(), base["files"].as_u64()), (Some(2), Some(9)));
    assert_eq!(base["file_size"].as_u64(), Some(3 * 30_000 + 200_000 + 50_000 + 4 * 90));
    assert_eq!(base["chunks"].as_u64(), Some(3 + 4 + 1 + 4));
    assert_eq!(base["uncomp_size"], base["file_size"]);
    assert_eq!(base["chunk_sizes"].as_array().unwrap().len(), 9);
    assert_eq!(base["file_sizes"].as_array().unwrap().len(), 45);
    let sum = |key: &str| base[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("chunk_sizes"), sum("file_sizes")), (12, 9));
    // The target shares with the image below it what it did not replace.
    ok(&["stat", "-B", text(&layers.boots[2]), "-T", text(layers.boot()), "-J", text(&report)]);
    let target = &json(&report)["target_image"];
    let number = |key: &str| target[key].as_u64().unwrap();
    assert_eq!(number("own_chunks"), 1 + 4 + 1, "own3, replaced, tiny3");
    assert_eq!(number("own_chunks") + number("ref_chunks"), number("chunks"));
    // A directory: its bootstraps, and nothing else.
    ok(&["stat", "-D", text(layers.dir.path()), "-J", text(&report)]);
    let stat = json(&report);
    assert_eq!(stat["dedup_enabled"], Value::from(true));
    assert_eq!(stat["base_image"]["dedup_chunks"].as_u64(), Some(3 + 5 + 6));
    let table = ok(&["stat", "-B", text(layers.boot())]);
    assert!(table.contains("directories") && table.contains("64 KiB"), "{table}");
    assert_eq!(run(&["stat"]).status.code(), Some(2));
    assert_eq!(run(&["stat", "-D", text(&layers.blobs())]).status.code(), Some(1));
}
