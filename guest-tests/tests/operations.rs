//! What operators use: `rafsd ctl`, `rafsd config check`, systemd's readiness, SIGHUP, JSON logs, an end in spite of a mount
//! that hangs.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guest_tests::frontend::{Client, Options};
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::binaries::ours;
use guest_tests::support::image::{Case, corpus};
use serde_json::{Value, json};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn case(name: &str) -> Case {
    corpus().unwrap().into_iter().find(|c| c.name == name).unwrap()
}

fn ctl(daemon: &ApiDaemon, args: &[&str]) -> Output {
    let mut command = Command::new(ours("rafsd").unwrap());
    command.args(["ctl", "-S"]).arg(daemon.path("api.sock")).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn ctl_asks_and_tells() {
    let daemon = ApiDaemon::start(&[]).unwrap();
    let case = case("v6-zstd-blake3");
    let body: Value =
        serde_json::from_str(&daemon.mount_body(&case.image.bootstrap, &case.image.blobs, "/a")).unwrap();
    std::fs::write(daemon.path("config.json"), body["config"].as_str().unwrap()).unwrap();
    assert!(said(&ctl(&daemon, &["status"])).contains("RUNNING"));
    let (boot, config) = (case.image.bootstrap.to_str().unwrap(), daemon.path("config.json"));
    let config = config.to_str().unwrap();
    said(&ctl(&daemon, &["mount", "/a b", "--source", boot, "--config", config]));
    assert!(said(&ctl(&daemon, &["mounts"])).starts_with("/a b\tRafs\t"));
    said(&ctl(&daemon, &["mount", "/a b", "--source", boot, "--config", config, "--replace"]));
    let shown: Value = serde_json::from_str(&said(&ctl(&daemon, &["mounts", "--json"]))).unwrap();
    assert_eq!(shown["/a b"]["config"]["backend"]["type"], "localfs");
    assert!(said(&ctl(&daemon, &["cache"])).contains(daemon.path("cache").to_str().unwrap()));
    assert!(said(&ctl(&daemon, &["sockets"])).contains("fs.sock"));
    assert!(said(&ctl(&daemon, &["metrics"])).contains("rafsd_mounts 1\n"));
    said(&ctl(&daemon, &["set", "log-level", "debug"]));
    // The live view while a guest reads.
    let mut guest =
        Client::connect(&daemon.path("fs.sock"), &Options { memory_mib: 64, ..Options::default() }).unwrap();
    let node = guest.resolve(b"/a b/sizes/f4097").unwrap().node;
    let live = std::thread::scope(|scope| {
        let live = scope.spawn(|| ctl(&daemon, &["live", "--count", "1"]));
        while !live.is_finished() {
            guest.read(node, 0, 0, 4096).unwrap();
        }
        said(&live.join().unwrap())
    });
    let line = live.lines().find(|line| line.starts_with("/a b")).unwrap();
    let reads: u64 = line.split_whitespace().rev().nth(2).unwrap().parse().unwrap();
    assert!(reads > 0, "{live}");
    said(&ctl(&daemon, &["umount", "/a b"]));
    let failed = ctl(&daemon, &["umount", "/a b"]);
    let text = String::from_utf8(failed.stderr).unwrap();
    assert!(failed.status.code() == Some(1) && text.contains("doesn't exist"), "{text}");
}

#[test]
fn systemd_sighup_and_json_lines() {
    let dir = tempfile::tempdir().unwrap();
    let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = Command::new(ours("rafsd").unwrap());
    command.current_dir(dir.path()).env("NOTIFY_SOCKET", dir.path().join("notify"));
    command.args(["virtiofs", "--sock", "fs.sock", "--apisock", "api.sock", "--log-format", "json"]);
    let mut daemon = ApiDaemon::spawn(command, dir).unwrap();
    let heard = || {
        let mut bytes = [0; 256];
        let n = notify.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    };
    assert!(heard().starts_with("READY=1\n"));
    assert_eq!(daemon.call("PUT", "/api/v1/daemon", Some(r#"{"log_level":"error"}"#)).unwrap().status, 204);
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.process.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !daemon.process.output().contains("SIGHUP: log level is Info") {
        assert!(Instant::now() < until, "{}", daemon.process.output());
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.process.terminate().unwrap();
    assert!(daemon.process.wait(Duration::from_secs(5)).unwrap().success());
    assert!(heard().starts_with("STOPPING=1\n"));
    for line in daemon.process.output().lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        assert!(value["message"].is_string() && value["level"].is_string(), "{line}");
    }
}

#[test]
fn a_mount_that_hangs_does_not_keep_the_daemon() {
    for by_api in [false, true] {
        let mut daemon = ApiDaemon::start(&[]).unwrap();
        let case = case("v6-zstd-blake3");
        let fifo = daemon.path("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let config = json!({"device": {"backend": {"type": "registry",
            "config": {"host": "localhost:1", "repo": "r", "ca_cert_files": [fifo]}}}, "mode": "direct"});
        let body = json!({"source": case.image.bootstrap, "config": config.to_string()}).to_string();
        let api = daemon.path("api.sock");
        let hangs = std::thread::spawn(move || {
            let mut connection = guest_tests::support::api::Connection::open(&api).unwrap();
            let _ = connection.call("POST", "/api/v1/mount?mountpoint=/slow", Some(&body));
        });
        std::thread::sleep(Duration::from_millis(300));
        if by_api {
            assert_eq!(daemon.call("PUT", "/api/v1/daemon/exit", None).unwrap().status, 204);
        } else {
            daemon.process.terminate().unwrap();
        }
        assert!(
            daemon.process.wait(Duration::from_secs(5)).unwrap().success(),
            "{}",
            daemon.process.output()
        );
        assert!(!daemon.path("api.sock").exists() && !daemon.path("fs.sock").exists());
        hangs.join().unwrap();
    }
}

#[test]
fn config_check_explains_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let file = dir.path().join("config");
        std::fs::write(&file, text).unwrap();
        Command::new(ours("rafsd").unwrap()).args(["config", "check"]).arg(&file).output().unwrap()
    };
    let good = "version = 2\nid = \"x\"\ncolour = 3\n[backend]\ntype = \"localfs\"\n[backend.localfs]\ndir = \"/b\"\n[rafs]\n";
    let text = said(&check(good));
    for part in
        ["form: V2, TOML", "backend.localfs.dir = \"/b\"", "colour = 3: ignored", "by default", "usable"]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let bad = check(&good.replace("localfs", "floppy"));
    let text = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(1));
    assert!(text.contains("unknown backend type") && text.lines().count() == 1, "{text}");
}
