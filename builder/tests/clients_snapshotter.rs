//! What the snapshotter's converter and its tarfs mode run, word by word.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::image::Image;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use support::command::{feed, fifo, finish, hex, json, ok, rafs_image, take, text};
use support::layer::Layer;
use support::read::contents;
use support::source::noise;

/// C: pack with source and blob as FIFOs; the blob is stored under its sha256 in `blobs`.
fn pack(layer: &Layer, more: &[&str], blobs: &Path) -> PathBuf {
    let work = tempfile::tempdir().unwrap();
    let (source, blob) = (work.path().join("blob.targz"), work.path().join("blob.rafs"));
    fifo(&source);
    fifo(&blob);
    let reference = more.contains(&"targz-ref");
    let mut args = vec!["create", "--log-level", "warn"];
    if reference {
        args.extend([
            "--type",
            "targz-ref",
            "--blob-inline-meta",
            "--features",
            "blob-toc",
            "--blob",
            text(&blob),
        ]);
    } else {
        args.extend(["--prefetch-policy", "fs", "--blob", text(&blob), "--whiteout-spec", "none"]);
        args.extend(more);
    }
    args.push(text(&source));
    let child =
        rafs_image(&args).stdin(if reference { Stdio::null() } else { Stdio::piped() }).spawn().unwrap();
    let feeding = feed(&source, if reference { layer.tar_gz() } else { layer.tar() });
    let taking = take(&blob);
    finish(child, (!reference).then_some(b"/"));
    feeding.join().unwrap();
    let bytes = taking.join().unwrap();
    let path = blobs.join(hex(&bytes));
    fs::write(&path, bytes).unwrap();
    path
}

const PACK_V6: [&str; 7] =
    ["--fs-version", "6", "--type", "tar-rafs", "--blob-inline-meta", "--features", "blob-toc"];

#[test]
fn converter_packs_merges_and_unpacks() {
    let blobs = tempfile::tempdir().unwrap();
    let layers = [Layer::new(1), Layer::new(2)];
    let shapes: [&[&str]; 5] = [
        &PACK_V6,
        &[&PACK_V6[..], &["--compressor", "lz4_block", "--aligned-chunk", "--chunk-size", "0x10000"]]
            .concat(),
        &[&PACK_V6[..], &["--chunk-size", "0x100000", "--batch-size", "0x10000"]].concat(),
        &[&PACK_V6[..], &["--encrypt"]].concat(),
        &["--fs-version", "5", "--type", "tar-rafs", "--blob-inline-meta"],
    ];
    for shape in shapes {
        let packed: Vec<PathBuf> = layers.iter().map(|layer| pack(layer, shape, blobs.path())).collect();
        let out = tempfile::tempdir().unwrap();
        let (boot, report) = (out.path().join("bootstrap"), out.path().join("merge-output.json"));
        let mut child = rafs_image(&[
            "merge",
            "--log-level",
            "warn",
            "--prefetch-policy",
            "fs",
            "--output-json",
            text(&report),
            "--bootstrap",
            text(&boot),
            text(&packed[0]),
            text(&packed[1]),
        ]);
        finish(child.stdin(Stdio::piped()).spawn().unwrap(), Some(b"/"));
        let ids: Vec<&str> = packed.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(json(&report)["blobs"], Value::from(ids), "{shape:?}");
        let read = contents(&boot, blobs.path());
        assert!(
            read[&b"/own1"[..]] == noise(1, 50_000) && read[&b"/own2"[..]] == noise(2, 50_000),
            "{shape:?}"
        );
        assert!(read[&b"/sub/common"[..]] == noise(99, 120_000));
        // Unpack of one layer to a FIFO, from the blob and from a server on a socket.
        let tar = out.path().join("oci.tar");
        fifo(&tar);
        let args = ["unpack", "--log-level", "warn", "--bootstrap", text(&packed[0]), "--output", text(&tar)];
        let child = rafs_image(&[&args[..], &["--blob", text(&packed[0])]].concat()).spawn().unwrap();
        let first = take(&tar);
        finish(child, None);
        let first = first.join().unwrap();
        let socket = out.path().join("socket");
        let server = Served::start(&socket, &packed[0]);
        let config = format!("{{\"addr\": {:?}}}", text(&socket));
        let more = ["--backend-type", "http-proxy", "--backend-config", &config];
        let child = rafs_image(&[&args[..], &more].concat()).spawn().unwrap();
        let second = take(&tar);
        finish(child, None);
        assert!(first == second.join().unwrap(), "{shape:?}");
        assert!(first.len() > 170_000 && server.requests() > 1);
    }
}

/// The converter's server: 200 in place of 206.
struct Served {
    count: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Served {
    fn start(socket: &Path, blob: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let file = std::sync::Arc::new(File::open(blob).unwrap());
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = count.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (file, counted) = (file.clone(), counted.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    loop {
                        let mut request = String::new();
                        while !request.ends_with("\r\n\r\n") {
                            if reader.read_line(&mut request).unwrap_or(0) == 0 {
                                return;
                            }
                        }
                        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        let size = file.metadata().unwrap().len();
                        let lower = request.to_ascii_lowercase();
                        let range = lower.lines().find_map(|line| line.strip_prefix("range: bytes="));
                        let (start, end) =
                            range.and_then(|range| range.split_once('-')).map_or((0, size), |(a, b)| {
                                (a.parse().unwrap(), b.trim().parse::<u64>().unwrap() + 1)
                            });
                        let mut body = vec![0; usize::try_from(end.min(size) - start).unwrap()];
                        file.read_exact_at(&mut body, start).unwrap();
                        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
                        if !request.starts_with("HEAD") && stream.write_all(&body).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { count }
    }

    fn requests(&self) -> usize {
        self.count.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[test]
fn converter_packs_directories_and_references() {
    let blobs = tempfile::tempdir().unwrap();
    let layer = Layer::new(3);
    let out = tempfile::tempdir().unwrap();
    let blob = out.path().join("blob");
    fifo(&blob);
    // The fallback for builders that cannot read tars.
    let child = rafs_image(&[
        "create",
        "--log-level",
        "warn",
        "--prefetch-policy",
        "fs",
        "--blob",
        text(&blob),
        "--source-type",
        "directory",
        "--whiteout-spec",
        "none",
        "--fs-version",
        "6",
        "--inline-bootstrap",
        text(&layer.tree()),
    ])
    .stdin(Stdio::piped())
    .spawn()
    .unwrap();
    let taking = take(&blob);
    finish(child, Some(b"/sub\n"));
    let bytes = taking.join().unwrap();
    let path = blobs.path().join(hex(&bytes));
    fs::write(&path, bytes).unwrap();
    assert!(contents(&path, blobs.path())[&b"/own3"[..]] == noise(3, 50_000));
    // References: two archives stay as they are.
    let archives: Vec<Layer> = vec![Layer::new(4), Layer::new(5)];
    let packed: Vec<PathBuf> =
        archives.iter().map(|layer| pack(layer, &["targz-ref"], blobs.path())).collect();
    let (mut names, mut boots) = (Vec::new(), Vec::new());
    for (archive, packed) in archives.iter().zip(&packed) {
        let gz = archive.tar_gz();
        let name = hex(&gz);
        fs::write(blobs.path().join(&name), gz).unwrap();
        let boot = out.path().join(&name);
        fs::copy(packed, &boot).unwrap();
        names.push(name);
        boots.push(boot);
    }
    let list = |f: &dyn Fn(&Path) -> String| packed.iter().map(|p| f(p)).collect::<Vec<_>>().join(",");
    let digests = list(&|p| p.file_name().unwrap().to_str().unwrap().to_owned());
    let sizes = list(&|p| fs::metadata(p).unwrap().len().to_string());
    let tocs = list(&|p| {
        let bytes = fs::read(p).unwrap();
        let header = &bytes[bytes.len() - 512..];
        let size = usize::from_str_radix(std::str::from_utf8(&header[124..135]).unwrap(), 8).unwrap();
        hex(&bytes[bytes.len() - 512 - size..bytes.len() - 512])
    });
    let (merged, report) = (out.path().join("merged"), out.path().join("report"));
    ok(&[
        "merge",
        "--log-level",
        "warn",
        "--output-json",
        text(&report),
        "--bootstrap",
        text(&merged),
        text(&boots[0]),
        text(&boots[1]),
        "--blob-digests",
        &digests,
        "--blob-toc-digests",
        &tocs,
        "--blob-sizes",
        &sizes,
    ]);
    assert_eq!(json(&report)["blobs"], Value::from(names));
    let read = contents(&merged, blobs.path());
    assert!(read[&b"/own4"[..]] == noise(4, 50_000) && read[&b"/own5"[..]] == noise(5, 50_000));
}

#[test]
fn references_take_parents_and_dictionaries() {
    let blobs = tempfile::tempdir().unwrap();
    let at = |name: &str| blobs.path().join(name);
    let (lower, upper) = (Layer::new(6), Layer::new(7));
    for (layer, boot, parent) in
        [(&lower, at("lower.boot"), None), (&upper, at("upper.boot"), Some(at("lower.boot")))]
    {
        let gz = layer.tar_gz();
        let archive = at(&hex(&gz));
        fs::write(&archive, gz).unwrap();
        let mut args = vec!["create", "--type", "targz-ref", "-B", text(&boot), "-D", text(blobs.path())];
        if let Some(parent) = &parent {
            args.extend(["--parent-bootstrap", text(parent)]);
        }
        args.push(text(&archive));
        ok(&args);
    }
    let read = contents(&at("upper.boot"), blobs.path());
    assert!(read[&b"/own6"[..]] == noise(6, 50_000) && read[&b"/own7"[..]] == noise(7, 50_000));
    assert!(read[&b"/sub/common"[..]] == noise(99, 120_000));
    // What both have is read from the parent's archive: the upper one has only its own file.
    let image = Image::open(&at("upper.boot")).unwrap();
    assert_eq!(image.blobs().iter().map(|blob| blob.chunk_count.unwrap()).collect::<Vec<_>>(), [3, 1]);
    let dict = format!("bootstrap={}", text(&at("lower.boot")));
    let archive = at(&hex(&upper.tar_gz()));
    ok(&[
        "create",
        "--type",
        "targz-ref",
        "--chunk-dict",
        &dict,
        "-B",
        text(&at("dict.boot")),
        "-D",
        text(blobs.path()),
        text(&archive),
    ]);
    let read = contents(&at("dict.boot"), blobs.path());
    assert!(read[&b"/own7"[..]] == noise(7, 50_000) && read[&b"/sub/common"[..]] == noise(99, 120_000));
    assert_eq!(Image::open(&at("dict.boot")).unwrap().blobs().len(), 2);
}

#[test]
fn tarfs_volumes() {
    let cache = tempfile::tempdir().unwrap();
    let at = |name: &str| cache.path().join(name);
    let mut metas = Vec::new();
    for seed in [1, 2] {
        let layer = Layer::new(seed);
        let id = hex(&layer.tar());
        fs::write(at(&id), layer.tar()).unwrap();
        let pipe = at(&format!("pipe{seed}"));
        fifo(&pipe);
        let meta = at(&format!("{id}.meta"));
        let args =
            ["create", "--type", "tar-tarfs", "--bootstrap", text(&meta), "--blob-id", &id, "--blob-dir"];
        let child = rafs_image(&[&args[..], &[text(cache.path()), text(&pipe)]].concat()).spawn().unwrap();
        let feeding = feed(&pipe, layer.tar());
        finish(child, None);
        feeding.join().unwrap();
        metas.push(meta);
    }
    let merged = at("merged");
    ok(&["merge", "--bootstrap", text(&merged), text(&metas[0]), text(&metas[1])]);
    let disk = at("disk");
    let args = [
        "export",
        "--block",
        "--localfs-dir",
        text(cache.path()),
        "--bootstrap",
        text(&merged),
        "--output",
        text(&disk),
    ];
    let output = ok(&[&args[..], &["--verity"]].concat());
    let line = "dm-verity options: --no-superblock --format=1 -s \"\" --hash=sha256 --data-block-size=512 --hash-block-size=4096 --data-blocks ";
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(line));
    ok(&args);
    // One argument, a blank in it.
    let output = ok(&["inspect", "-R blobs", text(&merged)]);
    assert!(output.stderr.is_empty());
    let blobs: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(blobs.as_array().unwrap().len(), 2);
    // The same by an entry of a blob cache.
    let config = at("entry.json");
    fs::write(
        &config,
        format!(
            r#"{{"type": "bootstrap", "id": "x", "config_v2": {{"version": 2, "metadata_path": {:?}, "backend": {{"type": "localfs", "localfs": {{"dir": {:?}}}}}}}}}"#,
            text(&merged),
            text(cache.path())
        ),
    )
    .unwrap();
    let second = at("disk2");
    ok(&["export", "--block", "-C", text(&config), "-O", text(&second)]);
    assert!(fs::read(&disk).unwrap() == fs::read(&second).unwrap());
}
