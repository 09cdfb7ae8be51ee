//! The command lines that clients compose, as they are: the snapshotter's converter, tarfs and stargz modes, nydusify,
//! model artifacts, and the older forms of the documents.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs::image::Image;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use support::read::contents;
use support::source::noise;

fn rafs_image(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rafs-image"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    rafs_image(args).output().unwrap()
}

fn ok(args: &[&str]) -> Output {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    rafs::codec::digest(rafs::codec::Digester::Sha256, bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

/// A directory with three files, and the tar of it.
struct Layer {
    dir: tempfile::TempDir,
}

impl Layer {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join(format!("own{seed}")), noise(seed, 50_000)).unwrap();
        fs::write(tree.join("sub/common"), noise(99, 120_000)).unwrap();
        fs::write(tree.join("small"), b"small").unwrap();
        let status = Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .args(["-cf"])
            .arg(dir.path().join("tar"))
            .arg(".")
            .status();
        assert!(status.unwrap().success());
        Self { dir }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn tar(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("tar")).unwrap()
    }

    fn tar_gz(&self) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&self.tar()).unwrap();
        encoder.finish().unwrap()
    }
}

fn feed(path: &Path, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    let path = path.to_path_buf();
    std::thread::spawn(move || File::options().write(true).open(path).unwrap().write_all(&bytes).unwrap())
}

fn take(path: &Path) -> std::thread::JoinHandle<Vec<u8>> {
    let path = path.to_path_buf();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn finish(mut child: Child, stdin: Option<&[u8]>) {
    if let Some(bytes) = stdin {
        child.stdin.take().unwrap().write_all(bytes).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty());
}

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

#[test]
fn nydusify_builds_checks_and_reworks() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let layer = Layer::new(1);
    let build = |name: &str, layer: &Layer, more: &[&str]| {
        let (meta, blob, report) =
            (at(&format!("{name}.meta")), at(&format!("{name}.blob")), at("output.json"));
        let mut args = vec!["create"];
        args.extend(more);
        args.extend([
            "--bootstrap",
            text(&meta),
            "--log-level",
            "warn",
            "--whiteout-spec",
            "oci",
            "--output-json",
        ]);
        args.extend([text(&report), "--blob", text(&blob), "--fs-version", "6", "--compressor", "zstd"]);
        let tree = layer.tree();
        args.extend(["--chunk-size", "0x100000", text(&tree)]);
        ok(&args);
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
    let output = ok(&[
        "check",
        "--log-level",
        "warn",
        "--output-json",
        text(&at("check.json")),
        "--bootstrap",
        text(&meta),
    ]);
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

#[test]
fn older_forms_of_the_documents() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let layer = Layer::new(1);
    let tree = layer.tree();
    ok(&["create", "--bootstrap", text(&at("one")), "--blob", text(&at("blob")), text(&tree)]);
    let id = hex(&fs::read(at("blob")).unwrap());
    let want = {
        fs::copy(at("blob"), at(&id)).unwrap();
        contents(&at("one"), out.path())
    };
    let dir = format!(r#"{{"dir":{:?}}}"#, text(out.path()));
    let file = format!(r#"{{"blob_file":{:?}}}"#, text(&at("blob2")));
    let config = at("backend.json");
    fs::write(&config, &dir).unwrap();
    for args in [
        &["--backend-type", "localfs", "--backend-config", &dir][..],
        &["--backend-type=localfs", "--backend-config-file", text(&config)],
        &["--backend-type", "localfs", "--backend-config", &file],
    ] {
        let output = ok(&[&["create", "--bootstrap", text(&at("two"))][..], args, &[text(&tree)]].concat());
        assert!(String::from_utf8_lossy(&output.stderr).contains("older form"));
        assert!(fs::read(at("one")).unwrap() == fs::read(at("two")).unwrap());
    }
    assert!(fs::read(at("blob")).unwrap() == fs::read(at("blob2")).unwrap());
    // Zeros before the data.
    let output = ok(&[
        "create",
        "-B",
        text(&at("gap")),
        "-D",
        text(out.path()),
        "--blob-offset",
        "512",
        "-l",
        "error",
        text(&tree),
    ]);
    assert!(output.stderr.is_empty());
    assert!(contents(&at("gap"), out.path()) == want);
    let id = Image::open(&at("gap")).unwrap().blobs()[0].id.clone();
    assert!(fs::read(at(&id)).unwrap()[..512].iter().all(|b| *b == 0));
    // A backend that nothing is written to is refused.
    let output = run(&[
        "create",
        "-B",
        text(&at("no")),
        "-D",
        text(out.path()),
        "--backend-type",
        "oss",
        "--backend-config",
        "{}",
        text(&tree),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("upload"));
}

#[test]
fn cache_files_in_place_of_a_blob() {
    let layer = Layer::new(1);
    for (version, digester) in [("6", "blake3"), ("5", "sha256")] {
        let cache = tempfile::tempdir().unwrap();
        let (out, boot) = (tempfile::tempdir().unwrap(), cache.path().join("boot"));
        ok(&[
            "create",
            "-v",
            version,
            "--digester",
            digester,
            "-B",
            text(&boot),
            "--blob-cache-dir",
            text(cache.path()),
            text(&layer.tree()),
        ]);
        let id = Image::open(&boot).unwrap().blobs()[0].id.clone();
        let mut names: Vec<String> = fs::read_dir(cache.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected = vec![format!("{id}.blob.data"), "boot".to_owned()];
        if version == "6" {
            expected.insert(1, format!("{id}.blob.meta"));
        }
        assert_eq!(names, expected);
        // The bootstrap and the id are those of an uncompressed blob.
        let plain = out.path().join("boot");
        ok(&[
            "create",
            "-v",
            version,
            "--digester",
            digester,
            "--compressor",
            "none",
            "-B",
            text(&plain),
            "-D",
            text(out.path()),
            text(&layer.tree()),
        ]);
        assert!(fs::read(&plain).unwrap() == fs::read(&boot).unwrap(), "v{version}");
        if version == "6" {
            assert!(contents(&boot, cache.path()) == contents(&plain, out.path()));
            ok(&["check", text(&boot), "-D", text(cache.path())]);
        }
    }
    let output = run(&["create", "-B", "x", "--blob-cache-dir", "/tmp", "--compressor", "zstd", "/"]);
    assert_eq!(output.status.code(), Some(2));
}
