//! What a daemon is told in confidence it tells nobody: not its log at the finest level, not errors, not `config check`,
//! not its API, not its metrics; whether all goes well or not. The servers of these tests do see it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guest_tests::frontend::fuse::read_in;
use guest_tests::servers::{Access, BlobServer};
use guest_tests::support::afar::READ;
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::binaries::ours;
use guest_tests::support::image::{Case, corpus};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PASSWORD: &str = "pa55w0rd-of-u";
const USER: &str = "user-4711";

fn auth() -> String {
    STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

fn case() -> Case {
    corpus().unwrap().into_iter().find(|case| case.name == "v6-zstd-blake3").unwrap()
}

/// Everything about a daemon that serves `case` with the configuration `text`: once as it should be, then refused.
struct Told {
    everything: String,
    worked: bool,
}

/// `vars` are environment variables; `put` goes to `PUT /api/v1/config`.
fn told(case: &Case, server: &BlobServer, text: &str, vars: &[(&str, &str)], put: Option<&str>) -> Told {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    std::fs::write(&config, text.replace("CACHE", &dir.path().join("cache").display().to_string())).unwrap();
    let mut check = Command::new(ours("rafsd").unwrap());
    let check = check.args(["config", "check"]).arg(&config).envs(vars.iter().copied()).output().unwrap();
    let mut everything = format!("{check:?}{}", String::from_utf8_lossy(&check.stdout));
    let mut command = Command::new(ours("rafsd").unwrap());
    command.current_dir(dir.path()).args(["virtiofs", "--sock", "fs.sock", "--apisock", "api.sock"]);
    command.args(["--log-level", "trace", "--bootstrap"]).arg(&case.image.bootstrap);
    command.arg("--config").arg(&config).env("DOCKER_CONFIG", dir.path()).env_remove("IMAGE_PULL_AUTH");
    command.envs(vars.iter().copied());
    let daemon = ApiDaemon::spawn(command, dir).unwrap();
    if let Some(body) = put {
        let answer = daemon.call("PUT", "/api/v1/config?id=%2F1", Some(body)).unwrap();
        everything += &format!("{answer:?}");
    }
    let mut client = daemon.guest("fs.sock").unwrap();
    let mut read = |path: &str| {
        let entry = client.resolve(path.as_bytes()).unwrap();
        let len = u32::try_from(entry.attr.size.min(4096)).unwrap();
        let unique = client.session.submit(1, READ, entry.node, &read_in(0, 0, len), Some(len)).unwrap();
        client.session.flush().unwrap();
        let done = client.session.wait_for(unique).unwrap_or_else(|e| {
            panic!(
                "{path}: {e}\n{}",
                daemon.process.output().lines().rev().take(60).collect::<Vec<_>>().join("\n")
            )
        });
        let errno = done.errno;
        client.session.release(done);
        errno == 0
    };
    let worked = read("/sizes/f4097");
    // Now nothing goes well any more: refused, redirected to nowhere, gone.
    server.revoke_tokens();
    for status in [401, 403, 500, 307] {
        let location = ("Location".to_owned(), "http://127.0.0.1:1/x?sig=s1gnature".to_owned());
        server.set(|s| s.always = Some((status, vec![location])));
        read("/big/file");
    }
    server.set(|s| s.down = true);
    read("/big/file");
    for target in [
        "/api/v1/daemon",
        "/api/v2/daemon",
        "/metrics",
        "/api/v1/mounts",
        "/api/v1/metrics",
        "/api/v1/config?id=%2F1",
        "/api/v1/metrics/backend",
    ] {
        if let Ok(answer) = daemon.call("GET", target, None) {
            everything += &answer.body;
        }
    }
    // And a mount that fails for its credentials.
    let broken = text.replace(&auth(), "bm90aGluZy1nb29k").replace("CACHE", "/proc/nowhere");
    let body = serde_json::json!({"fs_type": "rafs", "source": "/nonexistent", "config": broken}).to_string();
    let answer = daemon.call("POST", "/api/v1/mount?mountpoint=/x", Some(&body)).unwrap();
    everything += &format!("{answer:?}");
    everything += &daemon.process.output();
    Told { everything, worked }
}

fn assert_kept(told: &Told, secrets: &[&str]) {
    assert!(told.worked, "{}", told.everything);
    for secret in secrets {
        if let Some(at) = told.everything.find(secret) {
            let near =
                &told.everything.as_bytes()[at.saturating_sub(300)..(at + 100).min(told.everything.len())];
            panic!("{secret} is told: ...{}...", String::from_utf8_lossy(near));
        }
    }
}

fn registry(host: &str, more: &str) -> String {
    format!(
        r#"{{"device": {{"id": "/1", "backend": {{"type": "registry", "config": {{"host": "{host}", "repo": "a/b", "scheme": "http", "deadline": 1, "timeout": 1{more}}}}},
            "cache": {{"type": "blobcache", "config": {{"work_dir": "CACHE"}}}}}}, "mode": "direct", "enable_xattr": true}}"#
    )
}

/// Executable scripts in a folder that comes first in `PATH`.
fn scripts(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

#[test]
fn of_registries() {
    let case = case();
    let auth = auth();
    let secrets = [PASSWORD, &auth, USER, "Bearer T", "s1gnature"];
    let bearer =
        Access::Bearer { auth: Some(auth.clone()), life: Duration::from_secs(2), refuses_post: None };
    let serve = |access: &Access| {
        let server = BlobServer::start(&case.image.blobs).unwrap();
        server.set(|s| s.access = access.clone());
        server
    };
    // In the configuration, in the environment, by the API while it runs.
    let given = &|access: &Access| {
        let server = serve(access);
        let text = registry(&server.host(), &format!(r#", "auth": "{auth}""#));
        assert_kept(&told(&case, &server, &text, &[], None), &secrets);

        let server = serve(access);
        let text = registry(&server.host(), "");
        assert_kept(&told(&case, &server, &text, &[("IMAGE_PULL_AUTH", &auth)], None), &secrets);

        let server = serve(access);
        let text = registry(&server.host(), "");
        let body = format!(r#"{{"registry_auth": "{auth}"}}"#);
        assert_kept(&told(&case, &server, &text, &[], Some(&body)), &secrets);
    };
    // In Docker's file, and from helpers.
    let logged_in = &|access: &Access| {
        let docker = tempfile::tempdir().unwrap();
        let config = docker.path().join("config.json");
        let vars = |path: &str| {
            [("DOCKER_CONFIG", docker.path().to_str().unwrap().to_owned()), ("PATH", path.to_owned())]
        };
        let with = |server: &BlobServer, path: &str| {
            let vars = vars(path);
            let vars: Vec<(&str, &str)> = vars.iter().map(|(a, b)| (*a, b.as_str())).collect();
            told(&case, server, &registry(&server.host(), ""), &vars, None)
        };
        let path = std::env::var("PATH").unwrap();
        let server = serve(access);
        std::fs::write(&config, format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, server.host()))
            .unwrap();
        assert_kept(&with(&server, &path), &secrets);

        let helper = format!(
            "#!/bin/sh\nread -r server\n[ \"$1\" = get ] || exit 3\necho {PASSWORD} >&2\n\
             echo '{{\"ServerURL\":\"'$server'\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n"
        );
        let path = scripts(docker.path(), "docker-credential-test", &helper);
        for key in ["credsStore", "credHelpers"] {
            let server = serve(access);
            let value = if key == "credsStore" {
                "\"test\"".into()
            } else {
                format!(r#"{{"{}": "test"}}"#, server.host())
            };
            std::fs::write(&config, format!(r#"{{"{key}": {value}}}"#)).unwrap();
            assert_kept(&with(&server, &path), &secrets);
        }
        // A helper that has nothing, or says nonsense with the secret in it: the file's own entry counts.
        for bad in [
            format!("#!/bin/sh\necho credentials not found in native keychain; echo {PASSWORD}; exit 1\n"),
            format!("#!/bin/sh\necho '{{\"Username\": \"{PASSWORD}\"'\n"),
        ] {
            scripts(docker.path(), "docker-credential-test", &bad);
            let server = serve(access);
            let text = format!(
                r#"{{"credsStore": "test", "auths": {{"{}": {{"auth": "{auth}"}}}}}}"#,
                server.host()
            );
            std::fs::write(&config, text).unwrap();
            assert_kept(&with(&server, &path), &secrets);
        }
    };
    let basic = Access::Basic(auth.clone());
    std::thread::scope(|scope| {
        for access in [&basic, &bearer] {
            scope.spawn(move || given(access));
            scope.spawn(move || logged_in(access));
        }
    });
    let server = serve(&Access::Token("t0ken-0f-s0me0ne".into()));
    let text = registry(&server.host(), r#", "registry_token": "t0ken-0f-s0me0ne""#);
    assert_kept(&told(&case, &server, &text, &[], None), &["t0ken-0f"]);
}

#[test]
fn of_buckets_and_proxies() {
    let case = case();
    let keys = |host: &str| {
        format!(
            "deadline = 1\ntimeout = 1\nscheme = \"http\"\nendpoint = \"{host}\"\nbucket_name = \"bu\"\naccess_key_id = \"AKID-77\"\n\
             access_key_secret = \"S3CR3T-77\"\n"
        )
    };
    let v2 = |kind: &str, keys: &str| {
        format!(
            "version = 2\nid = \"/1\"\n[backend]\ntype = \"{kind}\"\n[backend.{kind}]\n{keys}\n[cache]\ntype = \"filecache\"\n\
             [cache.filecache]\nwork_dir = \"CACHE\"\n[rafs]\nenable_xattr = true\n"
        )
    };
    let (id, secret) = ("AKID-77".to_owned(), "S3CR3T-77".to_owned());
    let kinds = [
        ("s3", Access::S3("eu-1".into(), id.clone(), secret.clone()), "region = \"eu-1\"\n"),
        ("oss", Access::OssV1("bu".into(), id.clone(), secret.clone()), ""),
        (
            "oss",
            Access::OssV4("bu".into(), "eu-1".into(), id, secret),
            "signature_version = \"v4\"\nregion = \"eu-1\"\n",
        ),
    ];
    for (kind, access, more) in kinds {
        let server = BlobServer::start(&case.image.blobs).unwrap();
        server.set(|s| s.access = access);
        let text = v2(kind, &format!("{}{more}", keys(&server.host())));
        assert_kept(
            &told(&case, &server, &text, &[], None),
            &["S3CR3T-77", "AKID-77", "AWS4-HMAC", "OSS4-HMAC", "s1gnature"],
        );
    }
    // A password in the URL of a proxy, and one in a header of the environment.
    let server = BlobServer::start(&case.image.blobs).unwrap();
    let host = server.host();
    let proxy = format!(r#", "proxy": {{"url": "http://who:{PASSWORD}@{host}", "fallback": false}}"#);
    let vars = [("NYDUS_HEADER_X-Api-Key", "h3ader-secret")];
    assert_kept(&told(&case, &server, &registry(&host, &proxy), &vars, None), &[PASSWORD, "h3ader-secret"]);
    assert!(server.records().iter().any(|r| r.header("x-api-key") == Some("h3ader-secret")));
}
