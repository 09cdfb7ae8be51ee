//! What a failure leaves: nothing half-made under a final name, what was there before, and a message that says where.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::tar;

fn rafs_image(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rafs-image"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    rafs_image(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Waits for a child that must end by itself.
fn ended(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn messages_that_nobody_can_take_end_no_build() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "data").unwrap();
    let (bootstrap, blobs) = (dir.path().join("bootstrap"), dir.path().join("blobs"));
    fs::create_dir(&blobs).unwrap();
    let mut command = rafs_image(&["create", "--log-level", "debug", "--bootstrap", path(&bootstrap)]);
    let full = || File::options().write(true).open("/dev/full").unwrap();
    command.args(["--blob-dir", path(&blobs), path(&source)]).stdout(full()).stderr(full());
    let status = command.status().unwrap();
    assert!(status.code().is_some_and(|code| code < 2), "{status}");
    let built = run(&["check", "--bootstrap", path(&bootstrap), "--blob-dir", path(&blobs)]);
    assert!(built.status.success(), "{}", text(&built.stderr));
}

#[test]
fn a_broken_archive_is_named_and_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut plain = Vec::new();
    for n in 0..40 {
        plain.extend_from_slice(&tar::file(&format!("d/file-{n}"), &support::source::noise(n, 20_000)));
    }
    plain.resize(plain.len() + 1024, 0);
    let half = plain.len() / 2 + 100;
    let mut header = plain.clone();
    header[half / 20992 * 20992 + 3] ^= 0x55;
    let packed = gzip(&plain);
    let mut sum = packed.clone();
    let at = sum.len() - 6;
    sum[at] ^= 1;
    let zstd = zstd::encode_all(&plain[..], 3).unwrap();
    let cases: [(&str, &[u8], &[&str]); 7] = [
        ("cut.tar", &plain[..half], &["tar-rafs", "targz-ref", "tar-tarfs"]),
        ("header.tar", &header, &["tar-rafs", "targz-ref", "tar-tarfs"]),
        ("cut.tar.gz", &packed[..packed.len() / 2], &["targz-rafs", "targz-ref"]),
        ("sum.tar.gz", &sum, &["targz-ref"]),
        ("cut.tar.zst", &zstd[..zstd.len() / 2], &["tar-rafs"]),
        ("empty.gz", &[0x1f, 0x8b, 8], &["targz-rafs", "targz-ref"]),
        ("junk.tar", &[b'j'; 2000], &["tar-rafs", "targz-ref", "tar-tarfs"]),
    ];
    for (name, bytes, kinds) in cases {
        let source = dir.path().join(name);
        fs::write(&source, bytes).unwrap();
        for kind in kinds {
            let out = tempfile::tempdir().unwrap();
            let boot = out.path().join("boot");
            fs::write(&boot, "old").unwrap();
            let output =
                run(&["create", "-t", kind, "-B", path(&boot), "-D", path(out.path()), path(&source)]);
            assert_eq!(output.status.code(), Some(1), "{name} {kind}");
            let error = text(&output.stderr);
            assert!(error.contains(path(&source)), "{name} {kind}: {error}");
            assert_eq!(entries(out.path()), ["boot"], "{name} {kind}");
            assert_eq!(fs::read(&boot).unwrap(), b"old", "{name} {kind}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("large"), support::source::noise(1, 4 << 20)).unwrap();
    let (pipe, boot) = (dir.path().join("pipe"), dir.path().join("boot"));
    fifo(&pipe);
    let blobs = dir.path().join("blobs");
    fs::create_dir(&blobs).unwrap();
    let whole = dir.path().join("whole");
    assert!(run(&["create", "-B", path(&whole), "-D", path(&blobs), path(&source)]).status.success());
    for args in [
        &["create", "-B", path(&boot), "-b", path(&pipe), path(&source)][..],
        &["create", "--blob-inline-meta", "-b", path(&pipe), path(&source)],
        &["unpack", "-B", path(&whole), "-D", path(&blobs), "--output", path(&pipe)],
    ] {
        let child = rafs_image(args).stderr(Stdio::piped()).spawn().unwrap();
        let mut reader = File::open(&pipe).unwrap();
        reader.read_exact(&mut [0; 100]).unwrap();
        drop(reader);
        let output = ended(child);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let error = text(&output.stderr);
        assert!(error.contains(path(&pipe)) && error.contains("Broken pipe"), "{args:?}: {error}");
        assert!(!boot.exists());
    }
}

/// A file system with room for one page.
struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=4096")) {
            Ok(()) => Some(Self(dir)),
            Err(e) => {
                println!("skipped: cannot mount a tmpfs ({e})");
                None
            }
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_named_by_every_command() {
    let Some(disk) = TinyDisk::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for n in 0..200 {
        fs::write(source.join(format!("file-{n}")), support::source::noise(n, 500)).unwrap();
    }
    let blobs = dir.path().join("blobs");
    fs::create_dir(&blobs).unwrap();
    let boot = dir.path().join("boot");
    assert!(run(&["create", "-B", path(&boot), "-D", path(&blobs), path(&source)]).status.success());
    let archive = dir.path().join("layer.tar.gz");
    fs::write(&archive, gzip(&tar::archive(10, 20))).unwrap();
    let plain = dir.path().join("layer.tar");
    fs::write(&plain, tar::archive(10, 20)).unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let out = disk.0.path().join("out");
    let (out, boot, blobs, source) = (path(&out), path(&boot), path(&blobs), path(&source));
    let (small, meta) = (dir.path().join("small"), dir.path().join("meta"));
    let (small, meta) = (path(&small), path(&meta));
    for args in [
        &["create", "-b", out, "-B", small, source][..],
        &["create", "-b", small, "-B", out, source],
        &["create", "-D", path(disk.0.path()), source],
        &["create", "-b", out, "--blob-inline-meta", source],
        &["create", "-t", "targz-ref", "-b", meta, "-B", out, path(&archive)],
        &["create", "-t", "tar-tarfs", "-D", path(disk.0.path()), "-B", out, path(&plain)],
        &["merge", "-B", out, boot],
        &["unpack", "-B", boot, "-D", blobs, "--output", out],
        &["export", "--block", "-B", boot, "-D", blobs, "-O", out],
        &["report", boot, "--html", out],
        &["report", boot, "-J", out],
        &["diff", boot, path(&empty), "-J", out],
    ] {
        let output = run(args);
        assert!(!output.status.success(), "{args:?}");
        let error = text(&output.stderr);
        assert!(error.contains(path(disk.0.path())) && error.contains("No space left"), "{args:?}: {error}");
        assert_eq!(entries(disk.0.path()), [""; 0], "{args:?}");
    }
}

/// Starts a build, signals it when `when` says so, and gives what it said.
fn signalled(args: &[&str], signal: Signal, when: &mut dyn FnMut()) -> Output {
    let child = rafs_image(args).stderr(Stdio::piped()).spawn().unwrap();
    when();
    kill_process(Pid::from_child(&child), signal).unwrap();
    ended(child)
}

#[test]
fn a_build_that_is_told_to_stop_stops_and_says_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let boot = out.join("boot");
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for n in 0..60 {
        fs::write(source.join(format!("sub/{n}")), support::source::noise(n, 3 << 20)).unwrap();
    }
    for signal in [Signal::TERM, Signal::INT] {
        // In the middle of packing: it ends by itself, with the status that shells give to a signal.
        let args = ["create", "--threads", "2", "-B", path(&boot), "-D", path(&out), path(&source)];
        let output = signalled(&args, signal, &mut || std::thread::sleep(Duration::from_millis(150)));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(128 + signal.as_raw()), "{error}");
        assert!(error.contains("interrupted by signal") && error.contains(path(&source)), "{error}");
        assert_eq!(entries(&out), [""; 0]);
        // While it waits for somebody who feeds a FIFO: the signal ends it.
        let pipe: PathBuf = dir.path().join(format!("pipe-{}", signal.as_raw()));
        fifo(&pipe);
        let mut feeder = None;
        let args = ["create", "-t", "tar-rafs", "-B", path(&boot), "-D", path(&out), path(&pipe)];
        let output = signalled(&args, signal, &mut || {
            let mut file = File::options().write(true).open(&pipe).unwrap();
            file.write_all(&tar::file("some/entry", &[1; 50_000])[..6000]).unwrap();
            feeder = Some(file);
            std::thread::sleep(Duration::from_millis(300));
        });
        let error = text(&output.stderr);
        assert_eq!(output.status.signal(), Some(signal.as_raw()), "{error}");
        assert!(error.contains("interrupted by signal") && error.contains("some/entry"), "{error}");
        assert_eq!(entries(&out), [""; 0]);
    }
}
