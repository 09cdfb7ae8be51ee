//! Another proxy while guests read: by API and by SIGHUP, with real proxies. This is how a node's Dragonfly peer comes and goes.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guest_tests::frontend::Client;
use guest_tests::servers::{BlobServer, Tinyproxy, installed};
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::binaries::ours;
use guest_tests::support::image::Case;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::process::Command;
use std::time::{Duration, Instant};

/// Files that nobody has read yet: each read that misses goes to the server.
struct Unread {
    guest: Client,
    below: String,
    paths: VecDeque<Vec<u8>>,
}

impl Unread {
    fn new(daemon: &ApiDaemon, case: &Case, below: &str) -> Self {
        let mut files: Vec<_> =
            case.expected.iter().filter(|(_, e)| e.size.is_some_and(|size| size > 0)).collect();
        files.sort_by_key(|(_, entry)| entry.size);
        let paths = files.into_iter().rev().map(|(path, _)| path.clone()).collect();
        Self { guest: daemon.guest("fs.sock").unwrap(), below: below.to_owned(), paths }
    }

    /// Reads one file after the other until `done`.
    fn read_until(&mut self, what: &str, done: impl Fn() -> bool) {
        while let Some(path) = self.paths.pop_front() {
            let node = self.guest.resolve(&[self.below.as_bytes(), &path].concat()).unwrap().node;
            self.guest.read(node, 0, 0, 4096).unwrap();
            if done() {
                return;
            }
        }
        assert!(done(), "all was read, and {what}");
    }
}

/// A registry whose chunks are kept nowhere and fetched one by one.
fn config(server: &BlobServer, proxy: &str) -> Value {
    json!({
        "device": {
            "id": "/app",
            "backend": {"type": "registry", "config": {"scheme": "http", "host": server.host(), "repo": "a/b",
                "proxy": {"url": proxy, "fallback": false}}},
        },
        "mode": "direct", "amplify_io": 0,
    })
}

fn put(daemon: &ApiDaemon, key: &str, value: &str) {
    let body = json!({ key: value }).to_string();
    let answer = daemon.call("PUT", "/api/v1/config?id=%2Fapp", Some(&body)).unwrap();
    assert_eq!(answer.status, 204, "{}", answer.body);
}

#[test]
fn by_api() {
    if !installed("tinyproxy") {
        return;
    }
    let case = Case::named("v6-large-files").unwrap();
    let server = BlobServer::start(&case.image.blobs).unwrap();
    let proxies = [Tinyproxy::start().unwrap(), Tinyproxy::start().unwrap()];
    let counts = || (proxies[0].requests(), proxies[1].requests());
    let daemon = ApiDaemon::start(&[]).unwrap();
    // Before there is a mount: the value is for mounts to come.
    put(&daemon, "proxy_url", &proxies[0].url);
    let body = json!({"source": case.image.bootstrap, "config": config(&server, "").to_string()}).to_string();
    assert_eq!(daemon.call("POST", "/api/v1/mount?mountpoint=/app", Some(&body)).unwrap().status, 204);
    let mut unread = Unread::new(&daemon, &case, "/app");
    unread.read_until("no request went by the first proxy", || counts().0 > 0);
    assert_eq!(counts().1, 0);

    put(&daemon, "proxy_url", &proxies[1].url);
    let first = counts().0;
    unread.read_until("no request went by the second proxy", || counts().1 > 0);
    assert_eq!(counts().0, first, "nothing goes by the proxy of before");
    put(&daemon, "proxy_url", "");
    let (before, asked) = (counts(), server.records().len());
    unread.read_until("no request went to the server", || server.records().len() > asked);
    assert_eq!(counts(), before, "nothing goes by a proxy any more");

    // What there is can be asked for, without passwords; what has no effect is taken all the same.
    put(&daemon, "dragonfly_scheduler_endpoint", "http://scheduler:8002");
    put(&daemon, "proxy_url", "http://user:s3cr3t@127.0.0.1:9");
    let shown = daemon.call("GET", "/api/v1/config?id=%2Fapp", None).unwrap().json().unwrap();
    let want =
        json!({"proxy_url": "http://127.0.0.1:9", "dragonfly_scheduler_endpoint": "http://scheduler:8002"});
    assert_eq!(shown, want);
    assert!(!daemon.process.output().contains("s3cr3t"));
    let refused = daemon.call("PUT", "/api/v1/config?id=%2Fapp", Some(r#"{"proxy_url":"::"}"#)).unwrap();
    assert_eq!(refused.status, 500);
    assert_eq!(
        daemon.call("GET", "/api/v1/config?id=%2Fapp", None).unwrap().json().unwrap(),
        want,
        "as before"
    );
}

#[test]
fn by_sighup() {
    if !installed("tinyproxy") {
        return;
    }
    let case = Case::named("v6-large-files").unwrap();
    let server = BlobServer::start(&case.image.blobs).unwrap();
    let proxies = [Tinyproxy::start().unwrap(), Tinyproxy::start().unwrap()];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::write(&file, config(&server, &proxies[0].url).to_string()).unwrap();
    let mut command = Command::new(ours("rafsd").unwrap());
    command.current_dir(dir.path()).args(["virtiofs", "--sock", "fs.sock", "--apisock", "api.sock"]);
    command.args(["--config", "config.json", "--bootstrap"]).arg(&case.image.bootstrap);
    let daemon = ApiDaemon::spawn(command, dir).unwrap();
    let mut unread = Unread::new(&daemon, &case, "");
    unread.read_until("no request went by the first proxy", || proxies[0].requests() > 0);
    let first = proxies[0].requests();
    // A file that is none changes nothing.
    let second = config(&server, &proxies[1].url).to_string();
    for (text, said) in [("{", "is not used"), (second.as_str(), "proxy of")] {
        std::fs::write(&file, text).unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.process.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !daemon.process.output().contains(said) {
            assert!(Instant::now() < until, "{}", daemon.process.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    unread.read_until("no request went by the second proxy", || proxies[1].requests() > 0);
    assert_eq!(proxies[0].requests(), first);
}
