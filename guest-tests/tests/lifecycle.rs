//! Start and end of `rafsd virtiofs` as an operator meets them: bad input is one line that names the file, sockets come
//! and go, the sample configurations start as they are.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guest_tests::frontend::walk::{WalkOptions, walk};
use guest_tests::frontend::{Client, Options};
use guest_tests::support::binaries::{ours, workspace};
use guest_tests::support::image::{Case, corpus};
use guest_tests::support::process::Process;
use guest_tests::tree::{Ignore, compare};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

fn case(name: &str) -> Case {
    corpus().unwrap().into_iter().find(|c| c.name == name).unwrap()
}

/// A copy of a case that a test may damage: bootstrap and blobs in one folder.
struct Copy {
    dir: tempfile::TempDir,
    blob: PathBuf,
}

impl Copy {
    fn of(case: &Case) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(&case.image.bootstrap, dir.path().join("boot")).unwrap();
        let mut blob = PathBuf::new();
        for entry in std::fs::read_dir(&case.image.blobs).unwrap() {
            let from = entry.unwrap().path();
            blob = dir.path().join(from.file_name().unwrap());
            std::fs::copy(&from, &blob).unwrap();
        }
        Self { dir, blob }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(ours("rafsd").unwrap());
        command.arg("virtiofs").arg("--sock").arg(self.path("s")).arg("--bootstrap").arg(self.path("boot"));
        // Not every machine lets the limit be raised, and each line of output counts here.
        command.arg("--localfs-dir").arg(self.dir.path()).args(["--rlimit-nofile", "0"]);
        command
    }

    fn start(&self, command: &mut Command) -> Process {
        let mut process = Process::spawn(command, &self.path("log")).unwrap();
        for _ in 0..3000 {
            if UnixStream::connect(self.path("s")).is_ok() {
                return process;
            }
            assert!(process.ended().unwrap().is_none(), "{}", process.output());
            std::thread::sleep(Duration::from_millis(10));
        }
        unreachable!("no socket: {}", process.output())
    }
}

/// Runs a command that must fail: exit status 1 and exactly one line, which says why, with all of `parts`.
fn refused(mut command: Command, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::spawn(&mut command, &dir.path().join("log")).unwrap();
    let status = process.wait(LIMIT);
    let text = process.output();
    assert_eq!(status.unwrap().code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("rafsd: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn bad_input_is_one_line_that_names_the_file() {
    for name in ["v5-zstd-blake3", "v6-zstd-blake3"] {
        let case = case(name);
        let boot = std::fs::read(&case.image.bootstrap).unwrap();
        for (what, bytes) in [
            ("empty", Vec::new()),
            ("no image", vec![7; 20_000]),
            ("cut short", boot[..boot.len() - 4096].to_vec()),
            ("half a superblock", boot[..1100].to_vec()),
        ] {
            let copy = Copy::of(&case);
            std::fs::write(copy.path("boot"), bytes).unwrap();
            println!("{name}: {what}");
            refused(copy.command(), &[copy.path("boot").to_str().unwrap()]);
        }
        let copy = Copy::of(&case);
        std::fs::remove_file(copy.path("boot")).unwrap();
        refused(copy.command(), &["boot", "No such file"]);

        let copy = Copy::of(&case);
        let id = copy.blob.file_name().unwrap().to_str().unwrap().to_owned();
        std::fs::remove_file(&copy.blob).unwrap();
        refused(copy.command(), &[&id, "no such file"]);
        let file = std::fs::File::create(&copy.blob).unwrap();
        file.set_len(1000).unwrap();
        refused(copy.command(), &[&id, "1000"]);
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let copy = Copy::of(&case("v6-zstd-blake3"));
    for (flags, feature) in [(&["--upgrade"][..], "taken over"), (&["--dedup-db", "x"], "deduplication")] {
        let mut command = copy.command();
        command.args(flags);
        refused(command, &[flags[0], feature]);
    }
}

#[test]
fn sigterm_ends_it_at_once_with_and_without_a_front_end() {
    let copy = Copy::of(&case("v6-zstd-blake3"));
    let mut process = copy.start(&mut copy.command());
    process.terminate().unwrap();
    assert!(process.wait(LIMIT).unwrap().success(), "{}", process.output());
    assert!(!copy.path("s").exists(), "the socket is left behind");

    let mut process = copy.start(&mut copy.command());
    let client = Client::connect(&copy.path("s"), &Options::default()).unwrap();
    process.terminate().unwrap();
    assert!(process.wait(LIMIT).unwrap().success(), "{}", process.output());
    assert!(!copy.path("s").exists(), "the socket is left behind");
    drop(client);
}

#[test]
fn sockets_of_others_are_respected_and_stale_ones_replaced() {
    let copy = Copy::of(&case("v6-zstd-blake3"));
    std::fs::write(copy.path("s"), "a file").unwrap();
    refused(copy.command(), &["is no socket"]);
    assert_eq!(std::fs::read(copy.path("s")).unwrap(), b"a file");
    std::fs::remove_file(copy.path("s")).unwrap();

    let listener = UnixListener::bind(copy.path("s")).unwrap();
    refused(copy.command(), &["another process listens"]);
    drop(listener);
    // The file is still there, but nobody listens any more.
    let mut process = copy.start(&mut copy.command());
    while UnixStream::connect(copy.path("s")).is_err() {
        assert_eq!(process.ended().unwrap(), None, "{}", process.output());
        std::thread::sleep(Duration::from_millis(5));
    }
    process.terminate().unwrap();
    assert!(process.wait(LIMIT).unwrap().success());
}

#[test]
fn an_empty_file_in_the_place_of_the_api_socket_is_replaced() {
    let copy = Copy::of(&case("v6-zstd-blake3"));
    let api = copy.path("api");
    let command = || {
        let mut command = copy.command();
        command.args(["--log-level", "error"]).arg("--apisock").arg(&api);
        command
    };
    std::fs::write(&api, "a file").unwrap();
    refused(command(), &["is no socket"]);
    assert_eq!(std::fs::read(&api).unwrap(), b"a file");
    std::fs::write(&api, "").unwrap();
    let mut process = copy.start(&mut command());
    while UnixStream::connect(&api).is_err() {
        assert_eq!(process.ended().unwrap(), None, "{}", process.output());
        std::thread::sleep(Duration::from_millis(5));
    }
    process.terminate().unwrap();
    assert!(process.wait(LIMIT).unwrap().success());
}

#[test]
fn the_sample_configurations_start_and_serve() {
    let case = case("v6-zstd-blake3");
    for sample in ["localfs.v1.json", "localfs.v2.toml"] {
        let copy = Copy::of(&case);
        std::fs::create_dir(copy.path("blobs")).unwrap();
        std::fs::rename(&copy.blob, copy.path("blobs").join(copy.blob.file_name().unwrap())).unwrap();
        let text = std::fs::read_to_string(workspace().join("configs").join(sample)).unwrap();
        let text = text.replace("/var/lib/rafsd", copy.dir.path().to_str().unwrap());
        std::fs::write(copy.path("config"), text).unwrap();
        let mut command = Command::new(ours("rafsd").unwrap());
        command.arg("virtiofs").arg("--sock").arg(copy.path("s")).arg("--bootstrap").arg(copy.path("boot"));
        command.arg("--config").arg(copy.path("config"));
        let mut process = copy.start(&mut command);
        let mut client = Client::connect(&copy.path("s"), &Options::default()).unwrap();
        let got = walk(&mut client, WalkOptions::default()).unwrap();
        client.unmount().unwrap();
        assert_eq!(compare(&case.expected, &got, Ignore::default()), Vec::<String>::new(), "{sample}");
        assert!(cache_files(&copy.path("cache")) > 0, "{sample}: nothing was cached");
        process.terminate().unwrap();
        process.wait(LIMIT).unwrap();
    }
}

fn cache_files(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, |entries| {
        entries.flatten().filter(|e| e.file_name().to_string_lossy().ends_with(".blob.data")).count()
    })
}
