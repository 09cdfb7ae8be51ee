//! Images from `s3s-fs`, an S3 server of other hands that checks every signature. `make test-s3` builds it and runs this.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::walk::{WalkOptions, walk};
use guest_tests::frontend::{Client, Options};
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::Case;
use guest_tests::support::process::Process;
use guest_tests::tree::{Ignore, compare};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const KEY: &str = "AKIAEXAMPLE";
const SECRET: &str = "s3cr3t/of+s3s=";
const BUCKET: &str = "bucket-1";

/// Names below this one need not resolve: the server itself is asked as a proxy.
const DOMAIN: &str = "s3.test";

/// The server with the blobs of a case below some prefix.
struct Server {
    endpoint: String,
    proxy: String,
    process: Process,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(case: &Case, prefix: &str, domain: bool) -> Self {
        let program =
            std::env::var_os("S3S_FS").unwrap_or_else(|| panic!("S3S_FS is not set: use `make test-s3`"));
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for blob in std::fs::read_dir(&case.image.blobs).unwrap() {
            let blob = blob.unwrap();
            let key = format!("{prefix}{}", blob.file_name().to_str().unwrap());
            let path = root.join(BUCKET).join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::copy(blob.path(), path).unwrap();
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", KEY, "--secret-key", SECRET]);
        let host = format!("127.0.0.1:{port}");
        let (mut endpoint, mut proxy) = (host.clone(), String::new());
        if domain {
            command.args(["--domain", DOMAIN]);
            (endpoint, proxy) = (DOMAIN.to_owned(), format!("http://{host}"));
        }
        let mut process = Process::spawn(command.arg(root), &dir.path().join("log")).unwrap();
        for _ in 0..1000 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Self { endpoint, proxy, process, _dir: dir };
            }
            assert!(process.ended().unwrap().is_none(), "{}", process.output());
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("s3s-fs does not listen: {}", process.output());
    }
}

/// How the daemon is told to ask.
#[derive(Clone, Copy)]
struct Asking<'a> {
    prefix: &'a str,
    key: &'a str,
    secret: &'a str,
    region: &'a str,
    bucket: &'a str,
    path_style: bool,
    /// What runs the daemon.
    wrapper: &'a [String],
}

impl Default for Asking<'_> {
    fn default() -> Self {
        let (prefix, key, secret, region, bucket) = ("", KEY, SECRET, "us-east-1", BUCKET);
        Self { prefix, key, secret, region, bucket, path_style: true, wrapper: &[] }
    }
}

/// The log when the tree is as it should be, or what went wrong and the log.
fn read(case: &Case, server: &Server, asking: Asking<'_>) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let Asking { prefix, key, secret, region, bucket, path_style, wrapper } = asking;
    let text = serde_json::json!({"version": 2,
        "backend": {"type": "s3", "s3": {"scheme": "http", "endpoint": server.endpoint, "region": region,
            "bucket_name": bucket, "object_prefix": prefix, "access_key_id": key, "access_key_secret": secret,
            "path_style": path_style, "proxy": {"url": server.proxy, "fallback": false}, "deadline": 5}},
        "cache": {"type": "filecache", "filecache": {"work_dir": dir.path().join("cache")}},
        "rafs": {"enable_xattr": true}});
    std::fs::write(&config, text.to_string()).unwrap();
    let daemon = Daemon::rafsd_under(wrapper, &case.image.bootstrap, &config).unwrap();
    let options = Options { memory_mib: 64, ..Options::default() };
    let mut client = Client::connect(&daemon.socket, &options).unwrap();
    let got = walk(&mut client, WalkOptions::default());
    let log = daemon.process.output();
    assert!(!log.contains(secret), "the secret is in the log");
    let got = got.map_err(|error| format!("{error}\n{log}\n{}", server.process.output()))?;
    client.unmount().unwrap();
    let differences = compare(&case.expected, &got, Ignore::default());
    if differences.is_empty() { Ok(log) } else { Err(differences.join("\n")) }
}

#[test]
#[ignore = "needs s3s-fs: make test-s3"]
fn images_from_a_server_that_checks_signatures() {
    for name in ["v5-zstd-sha256-4k", "v6-batch", "v6-targz-ref"] {
        let case = Case::named(name).unwrap();
        for path_style in [true, false] {
            let server = Server::start(&case, "p/", !path_style);
            let good = Asking { prefix: "p/", path_style, ..Asking::default() };
            read(&case, &server, good).unwrap_or_else(|e| panic!("{name}, path style {path_style}: {e}"));
        }
    }
}

#[test]
#[ignore = "needs s3s-fs: make test-s3"]
fn prefixes_of_all_characters() {
    let case = Case::named("v6-batch").unwrap();
    let prefixes = [
        "",
        "no-slash-",
        "a b+c/d=e&f?g#h/",
        "%41%2F/%",
        "ü/☃/日本/",
        "~(1)'!*,;:@$/",
        "[x]{y}|z^`\"<>/",
        "deep/er/and/deep.er/",
    ];
    for prefix in prefixes {
        for path_style in [true, false] {
            let server = Server::start(&case, prefix, !path_style);
            let good = Asking { prefix, path_style, ..Asking::default() };
            read(&case, &server, good).unwrap_or_else(|e| panic!("{prefix:?}, path style {path_style}: {e}"));
        }
    }
}

#[test]
#[ignore = "needs s3s-fs: make test-s3"]
fn refusals_say_what_is_wrong() {
    let case = Case::named("v6-batch").unwrap();
    for path_style in [true, false] {
        let server = Server::start(&case, "", !path_style);
        let good = Asking { path_style, ..Asking::default() };
        // This server takes any region that the signature is for.
        read(&case, &server, Asking { region: "eu-central-1", ..good }).unwrap();
        for (asking, part) in [
            (Asking { secret: "another-secret", ..good }, "SignatureDoesNotMatch"),
            (Asking { key: "AKIANOBODY", ..good }, "NotSignedUp"),
            (Asking { bucket: "bucket-2", ..good }, "NoSuch"),
            (Asking { prefix: "elsewhere/", ..good }, "NoSuchKey"),
        ] {
            let refused = read(&case, &server, asking).unwrap_err();
            assert!(refused.contains("errno 5"), "{refused}");
            let said = refused.lines().any(|line| line.contains("ERROR") && line.contains(part));
            assert!(said, "{part} is not in\n{refused}");
        }
    }
}

#[test]
#[ignore = "needs s3s-fs: make test-s3"]
fn a_clock_that_is_wrong_is_noticed() {
    let library = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let library: Option<PathBuf> =
        library.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    let library = library.unwrap_or_else(|| panic!("Debian's libfaketime is missing: use `make test-s3`"));
    let case = Case::named("v6-batch").unwrap();
    let server = Server::start(&case, "", false);
    for offset in ["+3h", "-3h"] {
        let preload = format!("LD_PRELOAD={}", library.display());
        let wrapper = ["env", &preload, &format!("FAKETIME={offset}"), "FAKETIME_DONT_FAKE_MONOTONIC=1"];
        let wrapper = wrapper.map(str::to_owned);
        let log = read(&case, &server, Asking { wrapper: &wrapper, ..Asking::default() });
        let log = log.unwrap_or_else(|e| panic!("{offset}: {e}"));
        let said: Vec<&str> = log.lines().filter(|line| line.contains("clock differs")).collect();
        assert_eq!(said.len(), 1, "{offset}: {said:#?}");
    }
}
