//! `--image`: a Nydus image from a real registry and from an OCI layout, checked against its digests.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guest_tests::frontend::walk::{WalkOptions, walk};
use guest_tests::frontend::{Client, Options};
use guest_tests::servers::{Canned, CannedServer, DockerRegistry, TokenService, installed};
use guest_tests::support::binaries::ours;
use guest_tests::support::image::Case;
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
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The blobs of an image with its bootstrap layer and configuration, each under its digest, and the manifest.
struct Packed {
    dir: tempfile::TempDir,
    blobs: PathBuf,
    manifest: String,
}

impl Packed {
    /// Puts a document under its digest, which it returns.
    fn put(&self, document: &str) -> String {
        let digest = sha256(document.as_bytes());
        std::fs::write(self.blobs.join(&digest), document).unwrap();
        digest
    }

    /// Makes the folder a layout with these entries.
    fn index(&self, manifests: Value) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        std::fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
    }
}

/// An index of one image for several platforms, as `nydusify convert --merge-platform` writes it: the source's manifests,
/// then Nydus ones. All lead to documents that `put` takes.
fn merged_index(packed: &Packed, mut put: impl FnMut(&str)) -> String {
    let ours = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut source: Value = serde_json::from_str(&packed.manifest).unwrap();
    let layers = source["layers"].as_array_mut().unwrap();
    let data = layers[0].as_object_mut().unwrap();
    data.remove("annotations");
    layers.truncate(1);
    let entry = |manifest: &str, architecture: &str, nydus: bool| {
        let mut entry = json!({"mediaType": MANIFEST, "digest": format!("sha256:{}", sha256(manifest.as_bytes())),
            "size": manifest.len(), "platform": {"os": "linux", "architecture": architecture}});
        if nydus {
            entry["artifactType"] = json!("application/vnd.nydus.image.manifest.v1+json");
        }
        entry
    };
    let source = source.to_string();
    // Another platform's, which must not be taken: its last layer is no bootstrap.
    let other = source.replace(r#""schemaVersion":2"#, r#""annotations":{"x":"y"},"schemaVersion":2"#);
    assert_ne!(other, source);
    for manifest in [&source, &other, &packed.manifest] {
        put(manifest);
    }
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        entry(&source, ours, false), entry(&other, "s390x", false), entry(&other, "s390x", true),
        entry(&packed.manifest, ours, true)]})
    .to_string()
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
    let kind: Value = serde_json::from_str(manifest).unwrap();
    let kind = kind["mediaType"].as_str().unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let head = format!(
        "PUT /v2/a/b/manifests/{tag} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
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
        let case = Case::named(name).unwrap();
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
        let index = merged_index(&packed, |manifest| {
            put_manifest(&server.host, &format!("sha256:{}", sha256(manifest.as_bytes())), manifest, "");
        });
        put_manifest(&server.host, "merged", &index, "");
        shows(&case, &format!("{}/a/b:merged", server.host), &[]);
        let dir = tempfile::tempdir().unwrap();
        let error = serve(&format!("{}/a/b:none", server.host), &[], dir.path()).unwrap_err();
        assert!(error.contains("manifests/none") && error.contains("404"), "{error}");
    }
}

/// The user "u" with password "p" reads a file, and nothing secret is said, tokens (JSON in base64) included.
fn reads_with_password(image: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut process = serve_as(image, &[], dir.path(), Some("dTpw")).unwrap();
    let mut client = Client::connect(&dir.path().join("s"), &Options::default()).unwrap();
    let node = client.resolve(b"/sizes/f4097").unwrap().node;
    assert_eq!(client.read(node, 0, 0, 8192).unwrap().len(), 4097);
    process.terminate().unwrap();
    process.wait(LIMIT).unwrap();
    let said = process.output();
    assert!(!said.contains("dTpw") && !said.contains("eyJ"), "{said}");
}

#[test]
fn from_a_registry_that_asks_who_we_are() {
    if !installed("docker-registry") || !installed("htpasswd") {
        return;
    }
    let case = Case::named("v6-zstd-blake3").unwrap();
    let packed = pack(&case);
    let server = DockerRegistry::start(&packed.blobs, Some(("u", "p"))).unwrap();
    // base64 of u:p
    put_manifest(&server.host, "v1", &packed.manifest, "Authorization: Basic dTpw\r\n");
    let image = format!("{}/a/b:v1", server.host);
    reads_with_password(&image);
    let dir = tempfile::tempdir().unwrap();
    let error = serve(&image, &[], dir.path()).unwrap_err();
    assert!(error.contains("the registry wants a user and a password"), "{error}");
}

#[test]
fn from_a_registry_that_wants_tokens() {
    if !installed("docker-registry") || !installed("openssl") {
        return;
    }
    let case = Case::named("v6-zstd-blake3").unwrap();
    let packed = pack(&case);
    let service = TokenService::start().unwrap();
    let server = DockerRegistry::start_with_tokens(&packed.blobs, &service).unwrap();
    let token = service.token("a/b", &["pull", "push"]).unwrap();
    put_manifest(&server.host, "v1", &packed.manifest, &format!("Authorization: Bearer {token}\r\n"));
    let image = format!("{}/a/b:v1", server.host);
    // To everybody, then to those with a password only.
    shows(&case, &image, &[]);
    service.set(|s| s.auth = Some("dTpw".into()));
    reads_with_password(&image);
    // Refused: nobody, somebody else, and somebody who may not read this.
    let refused = |auth: Option<&str>, part: &str| {
        let dir = tempfile::tempdir().unwrap();
        let error = serve_as(&image, &[], dir.path(), auth).unwrap_err();
        assert!(error.contains(part) && error.lines().count() == 1, "{part:?} is not in {error}");
    };
    refused(None, "no token from http://127.0.0.1:");
    refused(Some("d3Jvbmc6d3Jvbmc="), "401");
    service.set(|s| s.actions = vec!["push".into()]);
    refused(Some("dTpw"), "repository:a/b:pull");
}

#[test]
fn from_a_layout_and_nothing_damaged() {
    let case = Case::named("v6-zstd-blake3").unwrap();
    let packed = pack(&case);
    let digest = sha256(packed.manifest.as_bytes());
    packed.put(&packed.manifest);
    packed.index(json!([
        {"mediaType": MANIFEST, "digest": format!("sha256:{digest}"), "size": packed.manifest.len()}]));
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
    for (image, said) in [
        ("no such image!", "no image reference"),
        ("./nowhere", "no file ./nowhere/index.json"),
        ("/nowhere/app:v1", "there is no OCI layout"),
        ("127.0.0.1:9/a/b:c", "is the reference right, and the registry up?"),
    ] {
        let error = serve(image, &[], dir.path()).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn layouts_with_several_images_and_platforms() {
    let case = Case::named("v6-zstd-blake3").unwrap();
    let packed = pack(&case);
    let layout = packed.dir.path().to_str().unwrap().to_owned();
    // As skopeo and buildx write them: the index names one image, which is an index itself.
    let index = merged_index(&packed, |manifest| drop(packed.put(manifest)));
    let named = |document: &str, media: &str, name: &str| {
        json!({"mediaType": media, "digest": format!("sha256:{}", packed.put(document)), "size": document.len(),
            "annotations": {"org.opencontainers.image.ref.name": name}})
    };
    packed.index(json!([named(&index, INDEX, "v1")]));
    shows(&case, &layout, &[]);
    shows(&case, &format!("{layout}:v1"), &[]);
    let plain =
        packed.manifest.replace(r#""schemaVersion":2"#, r#""annotations":{"x":"y"},"schemaVersion":2"#);
    packed.index(json!([named(&index, INDEX, "v1"), named(&plain, MANIFEST, "registry.example.com/app:v2")]));
    shows(&case, &format!("{layout}:v2"), &[]);
    shows(&case, &format!("{layout}@sha256:{}", sha256(index.as_bytes())), &[]);
    let refused = |image: &str| serve(image, &[], tempfile::tempdir().unwrap().path()).unwrap_err();
    let several = refused(&layout);
    assert!(several.contains(&format!("{layout}:v1, {layout}:v2")), "{several}");
    assert!(refused(&format!("{layout}:v3")).contains("no such image; there are"), "what there is is said");
    // Only for others; not Nydus at all; an index that holds itself is impossible, one that goes deep is refused.
    let foreign = json!({"manifests": [{"digest": format!("sha256:{}", sha256(b"x")),
        "platform": {"os": "windows", "architecture": "amd64"}}]})
    .to_string();
    packed.index(json!([named(&foreign, INDEX, "v1")]));
    assert!(refused(&layout).contains("only for windows/amd64"), "{}", refused(&layout));
    let mut deep = index;
    for _ in 0..5 {
        deep =
            json!({"manifests": [{"digest": format!("sha256:{}", packed.put(&deep)), "size": deep.len()}]})
                .to_string();
    }
    packed.index(json!([named(&deep, INDEX, "v1")]));
    assert!(refused(&layout).contains("indexes inside indexes"), "{}", refused(&layout));
    std::fs::write(packed.dir.path().join("index.json"), vec![b' '; 5 << 20]).unwrap();
    assert!(refused(&layout).contains("more than 4194304 bytes"), "{}", refused(&layout));
}

/// Registries that redirect, lie and never end.
#[test]
fn registries_that_are_not_what_they_seem() {
    let case = Case::named("v6-zstd-blake3").unwrap();
    let packed = pack(&case);
    let mut blobs = std::collections::HashMap::new();
    for blob in std::fs::read_dir(&packed.blobs).unwrap() {
        let path = blob.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        blobs.insert(format!("/v2/a/b/blobs/sha256:{name}"), Canned::Bytes(std::fs::read(&path).unwrap()));
    }
    let manifest = |name: &str| format!("/v2/a/b/manifests/{name}");
    let mut answers = blobs.clone();
    answers.insert(manifest("good"), Canned::Bytes(packed.manifest.clone().into_bytes()));
    let other = CannedServer::start(answers.clone()).unwrap();
    let mut layers: Value = serde_json::from_str(&packed.manifest).unwrap();
    answers.insert(
        manifest("elsewhere"),
        Canned::Redirect(format!("http://{}{}", other.host, manifest("good"))),
    );
    answers.insert(manifest("huge"), Canned::Zeros(64 << 20));
    answers.insert(manifest("html"), Canned::Bytes(b"<html>log in first</html>".to_vec()));
    let wrong = format!("sha256:{}", "0".repeat(64));
    answers.insert(manifest(&wrong), Canned::Bytes(packed.manifest.clone().into_bytes()));
    *layers["layers"].as_array_mut().unwrap().last_mut().unwrap() = json!({"digest": wrong, "size": 100,
        "annotations": {"containerd.io/snapshot/nydus-bootstrap": "true"}});
    answers.insert(manifest("swapped"), Canned::Bytes(layers.to_string().into_bytes()));
    answers.insert(format!("/v2/a/b/blobs/{wrong}"), Canned::Bytes(vec![7; 100]));
    layers["layers"].as_array_mut().unwrap().last_mut().unwrap()["size"] = json!(1_u64 << 40);
    answers.insert(manifest("vast"), Canned::Bytes(layers.to_string().into_bytes()));
    let server = CannedServer::start(answers).unwrap();
    shows(&case, &format!("{}/a/b:elsewhere", server.host), &[]);
    for (name, part) in [
        (":huge".to_owned(), "more than 4194304 bytes"),
        (":html".to_owned(), "no image manifest"),
        (format!("@{wrong}"), "has digest"),
        (":swapped".to_owned(), "has digest"),
        (":vast".to_owned(), "has 1099511627776 bytes"),
        (":none".to_owned(), "404"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = serve(&format!("{}/a/b{name}", server.host), &[], dir.path()).unwrap_err();
        assert!(
            error.contains(part) && error.contains("--image") && error.lines().count() == 1,
            "{name}: {error}"
        );
    }
}
