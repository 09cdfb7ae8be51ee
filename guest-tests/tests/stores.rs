//! Images whose blobs are afar: `rafsd` with the configuration of each kind of store, read through the front-end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::walk::{WalkOptions, walk};
use guest_tests::frontend::{Client, Options};
use guest_tests::servers::{Access, BlobServer, DockerRegistry, Fault, installed};
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::{Case, corpus};
use guest_tests::tree::{Ignore, compare};
use std::time::Duration;

/// base64 of `u:p`.
const AUTH: &str = "dTpw";

fn case(name: &str) -> Case {
    corpus().unwrap().into_iter().find(|case| case.name == name).unwrap()
}

/// Serves `case` with the configuration `text`, compares its tree, and looks for `secrets` in the log.
fn check(case: &Case, text: &str, vars: &[(&str, &str)], secrets: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    std::fs::write(&config, text.replace("CACHE", &dir.path().join("cache").display().to_string())).unwrap();
    let daemon = Daemon::rafsd_configured(&case.image.bootstrap, &config, vars).unwrap();
    let mut client =
        Client::connect(&daemon.socket, &Options { memory_mib: 64, ..Options::default() }).unwrap();
    let got = walk(&mut client, WalkOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e}\n{}", case.name, daemon.process.output()));
    client.unmount().unwrap();
    let differences = compare(&case.expected, &got, Ignore::default());
    assert!(differences.is_empty(), "{}\n{}", case.name, differences.join("\n"));
    let log = daemon.process.output();
    for secret in secrets {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

fn v1(kind: &str, backend: &str) -> String {
    format!(
        r#"{{"device": {{"id": "/1", "backend": {{"type": "{kind}", "config": {backend}}},
            "cache": {{"type": "blobcache", "config": {{"work_dir": "CACHE"}}}}}},
            "mode": "direct", "digest_validate": false, "enable_xattr": true}}"#
    )
}

fn v2(kind: &str, keys: &str) -> String {
    format!(
        "version = 2\n[backend]\ntype = \"{kind}\"\n[backend.{kind}]\n{keys}\n[cache]\ntype = \"filecache\"\n\
         [cache.filecache]\nwork_dir = \"CACHE\"\n[rafs]\nenable_xattr = true\n"
    )
}

#[test]
fn a_registry_with_tokens_redirects_and_faults() {
    for name in ["v6-zstd-blake3", "v5-zstd-sha256-4k"] {
        let case = case(name);
        let server = BlobServer::start(&case.image.blobs).unwrap();
        let storage = BlobServer::start(&case.image.blobs).unwrap();
        server.set(|s| {
            s.access =
                Access::Bearer { auth: Some(AUTH.into()), life: Duration::from_secs(1), refuses_post: None };
            s.redirect = Some((storage.url(), Duration::from_millis(500)));
        });
        storage.set(|s| {
            s.faults =
                Fault::ALL.iter().copied().filter(|f| *f != Fault::Corrupt && *f != Fault::Endless).collect();
            s.fault_percent = 20;
            s.stall = Duration::from_millis(200);
        });
        let backend = format!(
            r#"{{"host": "{}", "repo": "a/b", "scheme": "http", "auth": "{AUTH}", "proxy": {{"url": "", "fallback": false}}}}"#,
            server.host()
        );
        check(&case, &v1("registry", &backend), &[], &[AUTH, "Bearer T", "sig=secret"]);
        assert!(storage.records().iter().all(|r| r.header("authorization").is_none()));
    }
}

#[test]
fn docker_registry_and_the_environment() {
    if !installed("docker-registry") || !installed("htpasswd") {
        return;
    }
    let case = case("v6-batch");
    let server = DockerRegistry::start(&case.image.blobs, Some(("u", "p"))).unwrap();
    let keys =
        format!("host = \"{}\"\nrepo = \"a/b\"\nscheme = \"http\"\nauth = \"d3Jvbmc6d3Jvbmc=\"", server.host);
    check(&case, &v2("registry", &keys), &[("IMAGE_PULL_AUTH", AUTH)], &[AUTH, "d3Jvbmc6d3Jvbmc="]);
}

#[test]
fn buckets_and_servers() {
    let case = case("v6-targz-ref");
    let server = BlobServer::start(&case.image.blobs).unwrap();
    let host = server.host();
    server.set(|s| s.access = Access::S3("eu-1".into(), "AK".into(), "S3CR3T".into()));
    let keys = format!(
        "scheme = \"http\"\nendpoint = \"{host}\"\nregion = \"eu-1\"\nbucket_name = \"bu\"\nobject_prefix = \"p/\"\n\
         access_key_id = \"AK\"\naccess_key_secret = \"S3CR3T\""
    );
    check(&case, &v2("s3", &keys), &[], &["S3CR3T", "AWS4-HMAC"]);

    server.set(|s| s.access = Access::OssV1("bu".into(), "AK".into(), "S3CR3T".into()));
    let backend = format!(
        r#"{{"scheme": "http", "endpoint": "{host}", "bucket_name": "bu", "access_key_id": "AK", "access_key_secret": "S3CR3T"}}"#
    );
    check(&case, &v1("oss", &backend), &[], &["S3CR3T", "OSS AK:"]);

    server.set(|s| s.access = Access::Open);
    server.forget_records();
    let keys = format!("addr = \"http://{host}\"\npath = \"x\"");
    check(&case, &v2("http-proxy", &keys), &[("NYDUS_HEADER_X-Tenant", "t")], &[]);
    assert!(server.records().iter().all(|r| r.header("x-tenant") == Some("t")));
}

#[test]
fn a_start_without_its_store_serves_metadata_and_recovers() {
    let case = case("v6-zstd-blake3");
    let server = BlobServer::start(&case.image.blobs).unwrap();
    server.set(|s| s.down = true);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let keys = format!("addr = \"{}\"\ndeadline = 1", server.url());
    let text = v2("http-proxy", &keys).replace("CACHE", &dir.path().join("cache").display().to_string());
    std::fs::write(&config, text).unwrap();
    let daemon = Daemon::rafsd_configured(&case.image.bootstrap, &config, &[]).unwrap();
    let options = Options { memory_mib: 64, ..Options::default() };
    // A walk that fails leaves requests in flight, so each attempt is a new front-end's.
    let attempt = || {
        let mut client = Client::connect(&daemon.socket, &options).map_err(|e| e.to_string())?;
        let got = walk(&mut client, WalkOptions::default()).map_err(|e| e.to_string())?;
        client.unmount().map_err(|e| e.to_string())?;
        Ok::<_, String>(got)
    };
    let error = attempt().unwrap_err();
    assert!(error.ends_with("errno 5"), "{error}");
    server.set(|s| s.down = false);
    let mut got = Err(error);
    for _ in 0..20 {
        got = attempt();
        if got.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let differences = compare(&case.expected, &got.unwrap(), Ignore::default());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
