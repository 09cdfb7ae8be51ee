//! What operators use: `rafsd ctl`, `rafsd config check`, systemd's readiness, SIGHUP, JSON logs, an end in spite of a mount
//! that hangs.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guest_tests::frontend::fuse::op;
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::binaries::ours;
use guest_tests::support::image::Case;
use serde_json::{Value, json};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

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
    let case = Case::named("v6-zstd-blake3").unwrap();
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
    let loud = ctl(&daemon, &["set", "log-level", "loud"]);
    assert!(String::from_utf8_lossy(&loud.stderr).contains("use trace, debug, info, warn or error"));
    // The live view while a guest reads.
    let mut guest = daemon.guest("fs.sock").unwrap();
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

/// `config check` says no to what a mount would refuse, though nothing of it is a matter of form.
#[test]
fn a_check_finds_what_a_mount_would() {
    let dir = tempfile::tempdir().unwrap();
    let check = |section: Value| {
        let file = dir.path().join("c.json");
        let config =
            json!({"device": {"backend": {"type": "registry", "config": section}}, "mode": "direct"});
        std::fs::write(&file, config.to_string()).unwrap();
        Command::new(ours("rafsd").unwrap()).args(["config", "check"]).arg(&file).output().unwrap()
    };
    for (key, value, said) in [
        ("auth", json!("bm9jb2xvbg=="), "base64 of user:password"),
        ("proxy", json!({"url": "no url"}), "the proxy's url is no URL"),
        ("ca_cert_files", json!(["/nonexistent.pem"]), "/nonexistent.pem"),
    ] {
        let mut section = json!({"host": "127.0.0.1:9", "repo": "a/b"});
        assert!(check(section.clone()).status.success());
        section[key] = value;
        let out = check(section);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && text.contains(said) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn systemd_sighup_and_json_lines() {
    let dir = tempfile::tempdir().unwrap();
    let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = Command::new(ours("rafsd").unwrap());
    command.current_dir(dir.path()).env("NOTIFY_SOCKET", dir.path().join("notify"));
    command.env("WATCHDOG_USEC", "300000");
    command.args(["virtiofs", "--sock", "fs.sock", "--apisock", "api.sock", "--log-format", "json"]);
    let mut daemon = ApiDaemon::spawn(command, dir).unwrap();
    let heard = || {
        let mut bytes = [0; 256];
        let n = notify.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    };
    assert!(heard().starts_with("READY=1\n"));
    // The API answers, so the watchdog hears of it.
    for _ in 0..3 {
        assert_eq!(heard(), "WATCHDOG=1\n");
    }
    let other = || loop {
        let message = heard();
        if message != "WATCHDOG=1\n" {
            return message;
        }
    };
    assert_eq!(daemon.call("PUT", "/api/v1/daemon", Some(r#"{"log_level":"error"}"#)).unwrap().status, 204);
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.process.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !daemon.process.output().contains("SIGHUP: log level is Info") {
        assert!(Instant::now() < until, "{}", daemon.process.output());
        std::thread::sleep(Duration::from_millis(10));
    }
    let reloading = other();
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim();
    assert!(micros.parse::<u64>().unwrap() > 0);
    assert!(other().starts_with("READY=1\n"));
    daemon.process.terminate().unwrap();
    assert!(daemon.process.wait(Duration::from_secs(5)).unwrap().success());
    assert!(other().starts_with("STOPPING=1\n"));
    for line in daemon.process.output().lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        assert!(value["message"].is_string() && value["level"].is_string(), "{line}");
    }
}

#[test]
fn a_mount_that_hangs_does_not_keep_the_daemon() {
    for by_api in [false, true] {
        let mut daemon = ApiDaemon::start(&[]).unwrap();
        let case = Case::named("v6-zstd-blake3").unwrap();
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
    let bare = said(&check(good.trim_end_matches("[rafs]\n")));
    assert!(bare.contains("note: there is no [rafs]") && !text.contains("there is no [rafs]"), "{bare}");
    for (text, part) in [
        (
            format!("{good}[overlay]\nupper_dir = \"/u\"\nwork_dir = \"/w\"\n"),
            "let the guest mount an overlay over the image",
        ),
        (
            format!(
                "{good}[cache]\ntype = \"filecache\"\n[cache.filecache]\nwork_dir = \"/c\"\nenable_encryption = true\n"
            ),
            "put work_dir on an encrypted disk",
        ),
    ] {
        let refused = check(&text);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(said.contains(part) && said.lines().count() == 1, "{said}");
    }
    let bad = check(&good.replace("localfs", "floppy"));
    let text = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(1));
    assert!(text.contains("unknown backend type") && text.lines().count() == 1, "{text}");
}

/// Every sample of a configuration is explained, and has nothing that is ignored.
#[test]
fn samples_are_explained() {
    let dir = guest_tests::support::binaries::workspace().join("configs");
    let mut read = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".v1.json") || name.ends_with(".v2.toml") {
            let out =
                Command::new(ours("rafsd").unwrap()).args(["config", "check"]).arg(&path).output().unwrap();
            let text = said(&out);
            assert!(text.ends_with("usable\n") && !text.contains("ignored, no such"), "{name}:\n{text}");
            assert!(!text.contains("note:"), "{name}:\n{text}");
            read += 1;
        }
    }
    assert!(read >= 9, "{read}");
}

/// `--help` of every command and subcommand reads well: it says what it does, and examples stand where there are flags.
#[test]
fn help_man_pages_and_completions_are_complete() {
    let rafsd = |args: &[&str]| said(&Command::new(ours("rafsd").unwrap()).args(args).output().unwrap());
    let dir = tempfile::tempdir().unwrap();
    rafsd(&["man", dir.path().to_str().unwrap()]);
    let bash = rafsd(&["completions", "bash"]);
    for command in [
        "virtiofs",
        "fuse",
        "config check",
        "cache list",
        "cache drop",
        "ctl",
        "ctl status",
        "ctl mounts",
        "ctl metrics",
        "ctl live",
        "ctl mount",
        "ctl umount",
        "ctl cache",
        "ctl sockets",
        "ctl set",
        "completions",
        "man",
    ] {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = rafsd(&words);
        assert!(help.lines().next().is_some_and(|line| line.len() > 10) && help.contains("Usage:"), "{help}");
        if ["virtiofs", "fuse", "ctl", "cache drop"].contains(&command) {
            assert!(help.contains("Example"), "{command}:\n{help}");
        }
        let page = dir.path().join(format!("rafsd-{}.1", command.replace(' ', "-")));
        assert!(page.is_file(), "{} is missing", page.display());
        assert!(bash.contains(command.rsplit(' ').next().unwrap()), "{command}");
    }
    // The snapshotter looks for the commit in any name that the program has.
    let version = rafsd(&["--version"]);
    let commit = version.lines().find_map(|line| line.strip_prefix("Git Commit:")).unwrap();
    assert!(!commit.trim().is_empty() && rafsd(&["-V"]).lines().count() == 1, "{version}");
}

/// What a guest does wrong, and what is wrong with its image, is not said more often than a log can bear.
#[test]
fn a_guest_cannot_fill_the_log() {
    let case = Case::named("v6-zstd-blake3").unwrap();
    let daemon = ApiDaemon::start(&[]).unwrap();
    let blobs = daemon.path("blobs");
    std::fs::create_dir(&blobs).unwrap();
    for blob in std::fs::read_dir(&case.image.blobs).unwrap() {
        let blob = blob.unwrap();
        let mut bytes = std::fs::read(blob.path()).unwrap();
        // Chunks are damaged, what is behind them is not.
        let half = bytes.len() / 2;
        bytes[..half].iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(blobs.join(blob.file_name()), bytes).unwrap();
    }
    let body = daemon.mount_body(&case.image.bootstrap, &blobs, "x");
    assert_eq!(daemon.call("POST", "/api/v1/mount?mountpoint=/app", Some(&body)).unwrap().status, 204);
    let mut guest = daemon.guest("fs.sock").unwrap();
    let mut failed = 0;
    for _ in 0..20 {
        for (path, _) in case.expected.iter().filter(|(_, e)| e.size.is_some_and(|size| size > 0)) {
            let node = guest.resolve(&[b"/app".as_slice(), path].concat()).unwrap().node;
            failed += u32::from(guest.read(node, 0, 0, 65536).is_err());
        }
    }
    assert!(failed >= 100, "{failed}");
    for _ in 0..1000 {
        // A body that is cut off, and an opcode that there is not.
        guest.call(op::READ, 1, &[0; 3], 4096).unwrap_err();
        guest.call(9999, 1, &[], 4096).unwrap_err();
    }
    drop(guest);
    for _ in 0..100 {
        drop(std::os::unix::net::UnixStream::connect(daemon.path("fs.sock")).unwrap());
    }
    assert_eq!(daemon.call("GET", "/api/v1/daemon", None).unwrap().status, 200);
    let lines = daemon.process.output().lines().count();
    assert!(lines < 150, "{lines} lines:\n{}", daemon.process.output());
}
