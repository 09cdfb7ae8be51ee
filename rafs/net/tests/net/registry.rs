//! Registries: who we are, redirects, TLS.

use crate::support::*;
use guest_tests::servers::{Access, BlobServer, DockerRegistry, Nginx, installed};
use rafs::store::ErrorClass;
use rafs_net::{HttpOptions, NetStore, RegistryOptions, Scheme, Secret};
use std::time::{Duration, Instant};

/// `u:p`.
const AUTH: &str = "dTpw";

fn with_auth(host: &str) -> RegistryOptions {
    RegistryOptions { auth: Secret::new(AUTH), ..at(host) }
}

fn open(options: &RegistryOptions, http: &HttpOptions) -> NetStore {
    NetStore::registry(&runtime(), options, http).unwrap()
}

fn bearer(life: u64, refuses_post: Option<u16>) -> Access {
    Access::Bearer { auth: Some(AUTH.into()), life: Duration::from_secs(life), refuses_post }
}

#[test]
fn tokens_as_the_reference_gets_them() {
    let blobs = blobs(1000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let storage = BlobServer::start(blobs.dir.path()).unwrap();
    server.set(|s| {
        s.access = bearer(300, Some(405));
        s.redirect = Some((storage.url(), Duration::from_secs(100)));
    });
    let store = open(&with_auth(&server.host()), &quick());
    for range in [900..1000, 880..900, 0..880] {
        let wanted = &blobs.data[range.start as usize..range.end as usize];
        assert_eq!(fetch(&store, &blobs.id, range).unwrap(), wanted);
    }
    let path = format!("/v2/a/b/blobs/sha256:{}", blobs.id);
    let seen: Vec<_> =
        server.records().iter().map(|r| (r.method.clone(), r.target.clone(), r.status)).collect();
    let get = "/token?service=svc&scope=repository%3Aa%2Fb%3Apull&client_id=nydus-registry-client";
    let expected =
        [("GET", path.as_str(), 401), ("POST", "/token", 405), ("GET", get, 200), ("GET", &path, 307)];
    let seen: Vec<_> = seen.iter().map(|(m, t, s)| (m.as_str(), t.as_str(), *s)).collect();
    assert_eq!(seen, expected);
    let records = server.records();
    assert_eq!(records[0].header("authorization"), None);
    assert_eq!(records[0].header("range"), Some("bytes=900-999"));
    let basic = format!("Basic {AUTH}");
    assert_eq!(records[1].header("authorization"), Some(&*basic));
    assert_eq!(records[1].header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(
        records[1].body,
        "service=svc&scope=repository%3Aa%2Fb%3Apull&client_id=nydus-registry-client"
    );
    assert_eq!(records[2].header("authorization"), Some(&*basic));
    assert!(records[3].header("authorization").unwrap().starts_with("Bearer T"));
    let raw = storage.records();
    assert_eq!(raw.len(), 3, "the location is remembered");
    assert!(raw.iter().all(|r| r.header("authorization").is_none() && r.header("range").is_some()));
}

#[test]
fn a_token_service_that_fails_at_post_is_asked_by_get() {
    let blobs = blobs(1000);
    for status in [400, 401, 404, 500, 501, 503] {
        let server = BlobServer::start(blobs.dir.path()).unwrap();
        server.set(|s| s.access = bearer(300, Some(status)));
        let store = open(&with_auth(&server.host()), &quick());
        assert_eq!(fetch(&store, &blobs.id, 0..100).unwrap(), blobs.data[..100], "{status}");
        let tokens = server.records().iter().filter(|r| r.target.starts_with("/token")).count();
        assert_eq!(tokens, 2, "one POST, one GET after {status}");
    }
}

#[test]
fn one_token_for_many_requests_and_a_new_one_when_it_is_revoked() {
    let blobs = blobs(10_000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    server.set(|s| {
        s.access = bearer(300, None);
        s.latency = Duration::from_millis(50);
    });
    let store = open(&with_auth(&server.host()), &quick());
    let tokens = || server.records().iter().filter(|r| r.target.starts_with("/token")).count();
    for round in 1..=2 {
        let waiting: Vec<_> = (0..8).map(|n| begin(&store, &blobs.id, n * 1000..n * 1000 + 10, 0)).collect();
        for (n, rx) in waiting.into_iter().enumerate() {
            let data = rx.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
            assert_eq!(data, blobs.data[n * 1000..n * 1000 + 10]);
        }
        assert_eq!(tokens(), round);
        server.revoke_tokens();
    }
}

#[test]
fn tokens_are_renewed_before_they_end() {
    let blobs = blobs(1000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    server.set(|s| s.access = bearer(2, None));
    let store = open(&with_auth(&server.host()), &quick());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(3500) {
        fetch(&store, &blobs.id, 0..10).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let records = server.records();
    assert_eq!(records.iter().filter(|r| r.status == 401).count(), 1, "no request was ever refused again");
    let tokens = records.iter().filter(|r| r.target == "/token").count();
    assert!((3..=5).contains(&tokens), "{tokens}");
    // Idle for longer than its life: replaced before the request.
    std::thread::sleep(Duration::from_millis(2300));
    fetch(&store, &blobs.id, 0..10).unwrap();
    assert_eq!(server.records().iter().filter(|r| r.status == 401).count(), 1);
}

#[test]
fn wrong_credentials_are_refused_and_not_shown() {
    let blobs = blobs(1000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let wrong = RegistryOptions { auth: Secret::new("dTp3cm9uZw=="), ..at(&server.host()) };
    for access in [Access::Basic(AUTH.into()), bearer(300, None)] {
        server.set(|s| s.access = access);
        for options in [&wrong, &at(&server.host())] {
            let store = open(options, &HttpOptions { retry_limit: 1, ..quick() });
            let error = fetch(&store, &blobs.id, 0..10).unwrap_err();
            assert_eq!(error.class, ErrorClass::Denied, "{error}");
            assert!(!format!("{error} {store:?} {options:?}").contains("dTp"), "{error}");
            assert!(
                ["(401)", "status 401", "wants a user"].iter().any(|t| error.to_string().contains(t)),
                "{error}"
            );
        }
    }
    // Then they are corrected.
    let store = open(&wrong, &quick());
    store.set_registry_auth(Secret::new(AUTH)).unwrap();
    assert!(fetch(&store, &blobs.id, 0..10).unwrap() == blobs.data[..10]);
    assert_eq!(size(&store, &blobs.id).unwrap(), 1000);
}

#[test]
fn a_given_token_and_a_docker_login() {
    let blobs = blobs(1000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    server.set(|s| s.access = Access::Token("T0K".into()));
    let options = RegistryOptions { registry_token: Secret::new("T0K"), ..at(&server.host()) };
    assert!(fetch(&open(&options, &quick()), &blobs.id, 0..10).unwrap() == blobs.data[..10]);
    assert_eq!(server.records().len(), 1, "sent at once");

    server.set(|s| s.access = Access::Basic(AUTH.into()));
    let docker = tempfile::tempdir().unwrap();
    let config = format!(r#"{{"auths": {{"{}": {{"auth": "{AUTH}"}}}}}}"#, server.host());
    std::fs::write(docker.path().join("config.json"), config).unwrap();
    let options = RegistryOptions { docker_config: Some(docker.path().into()), ..options };
    server.forget_records();
    assert!(fetch(&open(&options, &quick()), &blobs.id, 0..10).unwrap() == blobs.data[..10]);
    let first = server.records()[0].header("authorization").map(str::to_owned);
    assert_eq!(first.as_deref(), Some("Bearer T0K"), "the old token first, then the login");
}

#[test]
fn options_that_cannot_be_honoured() {
    let runtime = runtime();
    let refused = |options: RegistryOptions| {
        NetStore::registry(&runtime, &options, &quick()).map(drop).unwrap_err().to_string()
    };
    assert!(refused(RegistryOptions { auth: Secret::new("no base64!"), ..at("h") }).contains("base64"));
    assert!(
        refused(RegistryOptions { auth: Secret::new("bm9jb2xvbg=="), ..at("h") }).contains("user:password")
    );
    assert!(refused(at("http://h/")).contains("HOST:PORT"));
    assert!(refused(RegistryOptions { repo: "/".into(), ..at("h") }).contains("repo"));
    assert!(!refused(RegistryOptions { auth: Secret::new("c2VjcmV0"), ..at("h") }).contains("c2VjcmV0"));
}

#[test]
fn redirects_that_have_expired_are_asked_for_again() {
    let blobs = blobs(1000);
    for says_expiry in [false, true] {
        let server = BlobServer::start(blobs.dir.path()).unwrap();
        let storage = BlobServer::start(blobs.dir.path()).unwrap();
        server.set(|s| {
            s.redirect = Some((storage.url(), Duration::from_millis(1500)));
            s.redirect_says_expiry = says_expiry;
        });
        let store = open(&at(&server.host()), &quick());
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            assert!(fetch(&store, &blobs.id, 5..10).unwrap() == blobs.data[5..10]);
            std::thread::sleep(Duration::from_millis(20));
        }
        let asked = server.records().len();
        assert!((2..30).contains(&asked), "says_expiry {says_expiry}: {asked}");
        let refused = storage.records().iter().filter(|r| r.status == 403).count();
        assert_eq!(refused == 0, says_expiry, "{refused}");
        assert!(storage.records().len() > 30);
    }
}

#[test]
fn scheme_and_host_of_redirects_can_be_replaced() {
    let blobs = blobs(1000);
    let server = BlobServer::start(blobs.dir.path()).unwrap();
    let storage = BlobServer::start(blobs.dir.path()).unwrap();
    server.set(|s| s.redirect = Some(("https://inner.invalid:1".into(), Duration::from_secs(100))));
    let options = RegistryOptions {
        blob_url_scheme: Some(Scheme::Http),
        blob_redirected_host: Some(storage.host()),
        ..at(&server.host())
    };
    assert!(fetch(&open(&options, &quick()), &blobs.id, 5..10).unwrap() == blobs.data[5..10]);
    assert_eq!(size(&open(&options, &quick()), &blobs.id).unwrap(), 1000);
    // A secret of a location does not show up in errors.
    let store = open(&at(&server.host()), &HttpOptions { retry_limit: 1, ..quick() });
    let error = fetch(&store, &blobs.id, 5..10).unwrap_err().to_string();
    assert!(error.contains("inner.invalid") && !error.contains("secret"), "{error}");
    for to in ["ftp://x", "http://"] {
        server.set(|s| s.redirect = Some((to.into(), Duration::from_secs(1))));
        fetch(&store, &blobs.id, 5..10).unwrap_err();
    }
    // Not even what stands in the location itself.
    let storage = BlobServer::start(blobs.dir.path()).unwrap();
    let to = format!("http://somebody:secret@{}", storage.host());
    server.set(|s| s.redirect = Some((to, Duration::from_secs(60))));
    for n in 0..2 {
        assert!(fetch(&store, &blobs.id, n..10).unwrap() == blobs.data[n as usize..10]);
    }
    assert_eq!(storage.records().len(), 2);
    assert!(storage.records().iter().all(|r| r.header("authorization").is_none()));
}

#[test]
fn docker_registry_with_and_without_a_password() {
    if !installed("docker-registry") || !installed("htpasswd") {
        return;
    }
    let blobs = blobs(100_000);
    let server = DockerRegistry::start(blobs.dir.path(), None).unwrap();
    let store = open(&at(&server.host), &quick());
    assert!(fetch(&store, &blobs.id, 10..90_000).unwrap() == blobs.data[10..90_000]);
    assert_eq!(size(&store, &blobs.id).unwrap(), 100_000);
    let missing = "0".repeat(64);
    assert_eq!(fetch(&store, &missing, 0..1).unwrap_err().class, ErrorClass::Missing);
    assert_eq!(fetch(&store, "x.blob.meta", 0..1).unwrap_err().class, ErrorClass::Missing);

    let server = DockerRegistry::start(blobs.dir.path(), Some(("u", "p"))).unwrap();
    let store = open(&with_auth(&server.host), &quick());
    assert!(fetch(&store, &blobs.id, 10..90_000).unwrap() == blobs.data[10..90_000]);
    assert_eq!(size(&store, &blobs.id).unwrap(), 100_000);
    let store = open(&at(&server.host), &HttpOptions { retry_limit: 1, ..quick() });
    assert_eq!(fetch(&store, &blobs.id, 0..1).unwrap_err().class, ErrorClass::Denied);
}

#[test]
fn certificates() {
    if !installed("nginx") || !installed("openssl") {
        return;
    }
    let blobs = blobs(100_000);
    let nginx = Nginx::start(blobs.dir.path()).unwrap();
    let https = |host: &str| RegistryOptions { scheme: Scheme::Https, ..at(host) };
    let once = HttpOptions { retry_limit: 1, ..quick() };

    let trusting = HttpOptions { ca_cert_files: vec![nginx.ca.clone()], ..once.clone() };
    let store = open(&https(&nginx.https), &trusting);
    assert!(fetch(&store, &blobs.id, 10..90_000).unwrap() == blobs.data[10..90_000]);
    assert_eq!(size(&store, &blobs.id).unwrap(), 100_000);

    let error = fetch(&open(&https(&nginx.https), &once), &blobs.id, 0..10).unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    let loose = HttpOptions { skip_verify: true, ..once.clone() };
    assert!(fetch(&open(&https(&nginx.https), &loose), &blobs.id, 0..10).unwrap() == blobs.data[..10]);

    // Plain http where https was expected: only with skip_verify.
    fetch(&open(&https(&nginx.http), &once), &blobs.id, 0..10).unwrap_err();
    let store = open(&https(&nginx.http), &loose);
    assert!(fetch(&store, &blobs.id, 0..10).unwrap() == blobs.data[..10]);
    assert!(fetch(&store, &blobs.id, 10..20).unwrap() == blobs.data[10..20]);
    assert!(fetch(&open(&at(&nginx.http), &once), &blobs.id, 0..10).unwrap() == blobs.data[..10]);
}

#[test]
fn mirrors_of_a_registry() {
    let blobs = blobs(1000);
    let (mirror, origin) =
        (BlobServer::start(blobs.dir.path()).unwrap(), BlobServer::start(blobs.dir.path()).unwrap());
    origin.set(|s| s.access = bearer(300, None));
    let http = HttpOptions { mirrors: vec![rafs_net::MirrorOptions::at(&mirror.url())], ..quick() };
    let store = open(&with_auth(&origin.host()), &http);
    fetch(&store, &blobs.id, 0..10).unwrap();
    assert_eq!((mirror.records().len(), origin.records().len()), (1, 0));
    assert_eq!(mirror.records()[0].target, format!("/v2/a/b/blobs/sha256:{}", blobs.id));
    mirror.set(|s| s.always = Some((404, Vec::new())));
    assert!(fetch(&store, &blobs.id, 0..10).unwrap() == blobs.data[..10]);
    assert_eq!(origin.records().last().unwrap().status, 206);
}
