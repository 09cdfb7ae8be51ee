//! `--image`: a Nydus image from a real registry and from an OCI layout, checked against its digests.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guest_tests::frontend::walk::{WalkOptions, walk};
use guest_tests::frontend::{Client, Options};
use guest_tests::servers::{DockerRegistry, installed};
use guest_tests::support::binaries::ours;
use guest_tests::support::image::{Case, corpus};
use guest_tests::support::process::Process;
use guest_tests::tree::{Ignore, compare};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn case(name: &str) -> Case {
    corpus().unwrap().into_iter().find(|c| c.name == name).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The blobs of an image with its bootstrap layer and configuration, each under its digest, and the manifest.
struct Packed {
    dir: tempfile::TempDir,
    blobs: PathBuf,
    manifest: String,
}

fn pack(case: &Case) -> Packed {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let mut layers = Vec::new();
    for blob in std::fs::read_dir(&case.image.blobs).unwrap() {
        let blob = blob.unwrap();
        let name = blob.file_name().into_string().unwrap();
        if name.len() == 64 {
            std::fs::copy(blob.path(), blobs.join(&name)).unwrap();
            layers.push(json!({
                "mediaType": "application/vnd.oci.image.layer.nydus.blob.v1",
                "digest": format!("sha256:{name}"),
                "size": blob.metadata().unwrap().len(),
                "annotations": {"containerd.io/snapshot/nydus-blob": "true"},
            }));
        }
    }
    let image = dir.path().join("image");
    std::fs::create_dir(&image).unwrap();
    std::fs::copy(&case.image.bootstrap, image.join("image.boot")).unwrap();
    let layer = dir.path().join("layer.tgz");
    let packed =
        Command::new("tar").arg("-C").arg(dir.path()).arg("-czf").arg(&layer).arg("image").status().unwrap();
    assert!(packed.success());
    let put = |bytes: &[u8]| -> Value {
        let digest = sha256(bytes);
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": format!("sha256:{digest}"),
            "size": bytes.len()})
    };
    let mut bootstrap = put(&std::fs::read(&layer).unwrap());
    bootstrap["annotations"] = json!({"containerd.io/snapshot/nydus-bootstrap": "true",
        "containerd.io/snapshot/nydus-fs-version": "6"});
    layers.push(bootstrap);
    let mut config =
        put(br#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#);
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).to_string();
    Packed { dir, blobs, manifest }
}

/// Serves `image` and returns what came of it: the daemon, if it made its socket.
fn serve(image: &str, more: &[&str], dir: &Path) -> Result<Process, String> {
    serve_as(image, more, dir, None)
}

/// The same with credentials in the environment.
fn serve_as(image: &str, more: &[&str], dir: &Path, auth: Option<&str>) -> Result<Process, String> {
    let mut command = Command::new(ours("rafsd").unwrap());
    command.args(["virtiofs", "--image", image, "--rlimit-nofile", "0", "--sock"]).arg(dir.join("s"));
    command.args(more).env("RAFSD_CACHE_DIR", dir.join("cache")).env("DOCKER_CONFIG", dir);
    command.env_remove("IMAGE_PULL_AUTH").envs(auth.map(|auth| ("IMAGE_PULL_AUTH", auth)));
    let mut process = Process::spawn(&mut command, &dir.join("log")).unwrap();
    for _ in 0..3000 {
        if dir.join("s").exists() {
            return Ok(process);
        }
        if process.ended().unwrap().is_some() {
            return Err(process.output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    unreachable!("{}", process.output())
}

fn shows(case: &Case, image: &str, more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut process = serve(image, more, dir.path()).unwrap();
    let mut client = Client::connect(&dir.path().join("s"), &Options::default()).unwrap();
    let got = walk(&mut client, WalkOptions::default()).unwrap();
    client.unmount().unwrap();
    assert_eq!(
        compare(&case.expected, &got, Ignore::default()),
        Vec::<String>::new(),
        "{}",
        process.output()
    );
    process.terminate().unwrap();
    process.wait(LIMIT).unwrap();
}

fn put_manifest(host: &str, tag: &str, manifest: &str, auth: &str) {
    let mut stream = TcpStream::connect(host).unwrap();
    let head = format!(
        "PUT /v2/a/b/manifests/{tag} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {MANIFEST}\r\nContent-Length: {}\r\n\
         {auth}Connection: close\r\n\r\n",
        manifest.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(manifest.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

#[test]
fn from_a_registry() {
    if !installed("docker-registry") {
        return;
    }
    for name in ["v6-zstd-blake3", "v5-zstd-blake3"] {
        let case = case(name);
        let packed = pack(&case);
        let server = DockerRegistry::start(&packed.blobs, None).unwrap();
        put_manifest(&server.host, "v1", &packed.manifest, "");
        shows(&case, &format!("{}/a/b:v1", server.host), &[]);
        let digest = sha256(packed.manifest.as_bytes());
        shows(&case, &format!("{}/a/b@sha256:{digest}", server.host), &[]);
        // A configuration says everything but host and repository.
        let config = packed.dir.path().join("config.toml");
        let cache = packed.dir.path().join("cache");
        let text = format!(
            "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nscheme = \"http\"\ntimeout = 9\n[cache]\n\
             type = \"filecache\"\n[cache.filecache]\nwork_dir = {cache:?}\n[rafs]\nenable_xattr = true\n"
        );
        std::fs::write(&config, text).unwrap();
        shows(&case, &format!("{}/a/b:v1", server.host), &["--config", config.to_str().unwrap()]);
        assert!(cache.join("bootstraps").is_dir());
        let dir = tempfile::tempdir().unwrap();
        let error = serve(&format!("{}/a/b:none", server.host), &[], dir.path()).unwrap_err();
        assert!(error.contains("manifests/none") && error.contains("404"), "{error}");
    }
}

#[test]
fn from_a_registry_that_asks_who_we_are() {
    if !installed("docker-registry") || !installed("htpasswd") {
        return;
    }
    let case = case("v6-zstd-blake3");
    let packed = pack(&case);
    let server = DockerRegistry::start(&packed.blobs, Some(("u", "p"))).unwrap();
    // base64 of u:p
    put_manifest(&server.host, "v1", &packed.manifest, "Authorization: Basic dTpw\r\n");
    let image = format!("{}/a/b:v1", server.host);
    let dir = tempfile::tempdir().unwrap();
    let mut process = serve_as(&image, &[], dir.path(), Some("dTpw")).unwrap();
    let mut client = Client::connect(&dir.path().join("s"), &Options::default()).unwrap();
    let node = client.resolve(b"/sizes/f4097").unwrap().node;
    assert_eq!(client.read(node, 0, 0, 8192).unwrap().len(), 4097);
    process.terminate().unwrap();
    process.wait(LIMIT).unwrap();
    assert!(!process.output().contains("dTpw"));
    let dir = tempfile::tempdir().unwrap();
    let error = serve(&image, &[], dir.path()).unwrap_err();
    assert!(error.contains("the registry wants a user and a password"), "{error}");
}

#[test]
fn from_a_layout_and_nothing_damaged() {
    let case = case("v6-zstd-blake3");
    let packed = pack(&case);
    let digest = sha256(packed.manifest.as_bytes());
    std::fs::write(packed.blobs.join(&digest), &packed.manifest).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": MANIFEST, "digest": format!("sha256:{digest}"), "size": packed.manifest.len()}]});
    std::fs::write(packed.dir.path().join("index.json"), index.to_string()).unwrap();
    let layout = packed.dir.path().to_str().unwrap();
    shows(&case, layout, &[]);

    // One byte of the bootstrap layer, then of the manifest.
    let manifest: Value = serde_json::from_str(&packed.manifest).unwrap();
    let layer = manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().to_owned();
    for name in [layer.trim_start_matches("sha256:"), digest.as_str()] {
        let path = packed.blobs.join(name);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[20] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let error = serve(layout, &[], dir.path()).unwrap_err();
        assert!(error.contains("has digest"), "{error}");
        std::fs::write(&path, good).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let error = serve("no such image!", &[], dir.path()).unwrap_err();
    assert!(error.contains("no image reference"), "{error}");
}
