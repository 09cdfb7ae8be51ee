//! The `rafs-image` command as clients see it: exit codes, streams, FIFOs, and what a failure leaves.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn rafs_image() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rafs-image"));
    command.stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    rafs_image().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn small_source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "hello").unwrap();
    fs::write(dir.path().join("b"), support::source::noise(1, 100_000)).unwrap();
    dir
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn usage_goes_to_stdout_and_usage_errors_exit_with_2() {
    let usage = run(&[]);
    assert!(usage.status.success());
    assert!(text(&usage.stdout).contains("create"));
    for args in
        [&["create", "-h"][..], &["create", "--help"], &["-V"], &["--version"], &["help"], &["check", "-h"]]
    {
        let output = run(args);
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    for args in [
        &["frobnicate"][..],
        &["create"],
        &["create", "--no-such-flag", "/"],
        &["create", "--compressor", "gzip", "-B", "x", "-D", "/tmp", "/"],
        &["create", "-v", "4", "-B", "x", "-D", "/tmp", "/"],
        &["check"],
        &["check", "a", "--bootstrap", "b"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn run_time_errors_exit_with_1_and_name_what_they_are_about() {
    let source = small_source();
    let out = tempfile::tempdir().unwrap();
    let (source, dir) = (path(source.path()), path(out.path()));
    let boot = format!("{dir}/boot");
    let absent = format!("{dir}/absent");
    let file = format!("{source}/a");
    for (args, expected) in [
        (vec!["-B", &boot, "-D", dir, &absent], "absent"),
        (vec!["-B", &boot, "-D", dir, &file], "specified path must be a directory"),
        (vec!["-B", &boot, "-D", &absent, source], "directory to store blobs does not exist"),
        (vec!["-B", &boot, source], "--blob"),
        (vec!["-B", &boot, "-D", dir, "--chunk-size", "0x1001", source], "invalid chunk size"),
        (vec!["-B", &boot, "-D", dir, "--chunk-size", "33554432", source], "invalid chunk size"),
        (vec!["-B", &boot, "-D", dir, "--blob-id", "../x", source], "--blob-id"),
    ] {
        let output = rafs_image().arg("create").args(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            text(&output.stderr).starts_with("Error: ") || text(&output.stderr).contains("\nError: "),
            "{args:?}"
        );
        assert!(text(&output.stderr).contains(expected), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{args:?}");
        assert_eq!(entries(out.path()), [""; 0], "{args:?}");
    }
    let output = run(&["check", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("failed to check bootstrap") && output.stdout.is_empty());
}

#[test]
fn create_and_check_report_what_clients_read() {
    let source = small_source();
    let out = tempfile::tempdir().unwrap();
    let (source, dir) = (path(source.path()), path(out.path()));
    for (version, features) in [("5", "cap_toc"), ("6", "aligned cap_toc")] {
        let (boot, json, log) =
            (format!("{dir}/b{version}"), format!("{dir}/j{version}"), format!("{dir}/log{version}"));
        // A flag behind the source, global flags behind the subcommand, `=` and attached values.
        let output = run(&[
            "create",
            source,
            &format!("-B{boot}"),
            "--blob-dir",
            dir,
            &format!("--fs-version={version}"),
            "--source-type",
            "directory",
            "--log-level",
            "info",
            "--log-file",
            &log,
            "--output-json",
            &json,
        ]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty() && output.stderr.is_empty());
        let log = fs::read_to_string(format!("{log}.log")).unwrap();
        assert!(log.contains(" INFO successfully built RAFS filesystem: \nmeta blob path: "), "{log}");
        let report: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        let id = report["blobs"][0].as_str().unwrap();
        assert!(id.len() == 64 && log.contains(&format!("data blobs: [\"{id}\"]")));
        assert!(report["version"].as_str().unwrap().starts_with('v'));
        assert_eq!(
            (report["fs_version"].as_str(), report["compressor"].as_str()),
            (Some(version), Some("zstd"))
        );
        assert_eq!(report["bootstrap"].as_str(), Some(boot.as_str()));
        assert!(report["trace"]["consumed_time"]["total_build"].is_f64());
        let blob = fs::read(format!("{dir}/{id}")).unwrap();
        let digest = rafs::codec::digest(rafs::codec::Digester::Sha256, &blob);
        assert_eq!(digest.iter().map(|b| format!("{b:02x}")).collect::<String>(), id);
        let checked = run(&["check", "--bootstrap", &boot, "--output-json", &json, "--log-level", "warn"]);
        assert!(checked.status.success() && checked.stderr.is_empty());
        assert_eq!(
            text(&checked.stdout),
            format!(
                "RAFS filesystem metadata is valid, referenced data blobs: \n\t 0: {id}, compressed size {}, \
                 uncompressed size {}, chunk size: 1048576, chunk count: 2, features: {features}\n",
                blob.len(),
                if version == "5" { 100_005 } else { 106_496 },
            )
        );
        let text = fs::read_to_string(&json).unwrap();
        assert!(!text.contains('\n') && text.contains(id));
    }
}

#[test]
fn a_bootstrap_without_a_name_gets_its_sha256() {
    let source = small_source();
    let out = tempfile::tempdir().unwrap();
    assert!(run(&["create", "-D", path(out.path()), path(source.path())]).status.success());
    let names = entries(out.path());
    assert_eq!(names.len(), 2);
    for name in names {
        let digest =
            rafs::codec::digest(rafs::codec::Digester::Sha256, &fs::read(out.path().join(&name)).unwrap());
        assert_eq!(digest.iter().map(|b| format!("{b:02x}")).collect::<String>(), name);
    }
}

#[test]
fn an_empty_source_leaves_an_empty_blob_file() {
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let (boot, blob) = (out.path().join("boot"), out.path().join("blob"));
    assert!(run(&["create", "-B", path(&boot), "-b", path(&blob), path(source.path())]).status.success());
    assert_eq!(fs::metadata(blob).unwrap().len(), 0);
    assert!(run(&["check", path(&boot)]).status.success());
}

fn fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

#[test]
fn a_fifo_gets_the_same_blob_in_one_pass() {
    let source = small_source();
    let out = tempfile::tempdir().unwrap();
    let (boot, blob, pipe) = (out.path().join("boot"), out.path().join("blob"), out.path().join("pipe"));
    assert!(run(&["create", "-B", path(&boot), "-b", path(&blob), path(source.path())]).status.success());
    fifo(&pipe);
    let second = out.path().join("boot2");
    let mut child = rafs_image()
        .args(["create", "-B", path(&second), "-b", path(&pipe), path(source.path())])
        .spawn()
        .unwrap();
    let mut got = Vec::new();
    File::open(&pipe).unwrap().read_to_end(&mut got).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(got == fs::read(&blob).unwrap());
    assert!(fs::read(&second).unwrap() == fs::read(&boot).unwrap());
    assert_eq!(entries(out.path()), ["blob", "boot", "boot2", "pipe"], "the FIFO is still there");
}

#[test]
fn a_reader_that_goes_away_is_an_error_and_leaves_no_bootstrap() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("large"), support::source::noise(3, 8 << 20)).unwrap();
    let out = tempfile::tempdir().unwrap();
    let (boot, pipe) = (out.path().join("boot"), out.path().join("pipe"));
    fifo(&pipe);
    let child = rafs_image()
        .args(["create", "-B", path(&boot), "-b", path(&pipe), path(source.path())])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = File::open(&pipe).unwrap();
    reader.read_exact(&mut [0; 1000]).unwrap();
    drop(reader);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("pipe"), "{}", text(&output.stderr));
    assert_eq!(entries(out.path()), ["pipe"]);
}

#[test]
fn a_killed_build_leaves_nothing() {
    let source = tempfile::tempdir().unwrap();
    for n in 0..30 {
        fs::write(source.path().join(n.to_string()), support::source::noise(n, 3 << 20)).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let boot = out.path().join("boot");
    let mut killed = 0;
    for delay in [1, 5, 20, 50, 100, 200] {
        let mut child = rafs_image()
            .args([
                "create",
                "-l",
                "warn",
                "--threads",
                "2",
                "-B",
                path(&boot),
                "-D",
                path(out.path()),
                path(source.path()),
            ])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
        killed += 1;
        // The blob is named before the bootstrap, and is complete then.
        let names = entries(out.path());
        assert!(names.iter().all(|name| name.len() == 64), "after {delay} ms: {names:?}");
        for name in names {
            let digest = rafs::codec::digest(
                rafs::codec::Digester::Sha256,
                &fs::read(out.path().join(&name)).unwrap(),
            );
            assert_eq!(digest.iter().map(|b| format!("{b:02x}")).collect::<String>(), name);
        }
    }
    assert!(killed > 0);
}

#[test]
fn a_full_disk_leaves_nothing_and_is_named() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("large"), support::source::noise(3, 8 << 20)).unwrap();
    let disk = tempfile::tempdir().unwrap();
    if let Err(e) = mount("tmpfs", disk.path(), "tmpfs", MountFlags::empty(), Some(c"size=2m")) {
        println!("skipped: cannot mount a tmpfs ({e})");
        return;
    }
    let results: Vec<_> = ["5", "6"]
        .into_iter()
        .flat_map(|version| {
            let boot = disk.path().join("boot");
            let blob = disk.path().join("blob");
            let dir = run(&[
                "create",
                "-v",
                version,
                "-B",
                path(&boot),
                "-D",
                path(disk.path()),
                path(source.path()),
            ]);
            let file =
                run(&["create", "-v", version, "-B", path(&boot), "-b", path(&blob), path(source.path())]);
            [(dir, entries(disk.path())), (file, entries(disk.path()))]
        })
        .collect();
    unmount(disk.path(), UnmountFlags::DETACH).unwrap();
    for (output, left) in results {
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert!(error.contains(path(disk.path())) && error.contains("No space left"), "{error}");
        assert_eq!(left, [""; 0]);
    }
}

#[test]
fn an_unreadable_file_is_named() {
    if !support::is_root() {
        println!("skipped: needs root to become somebody who may not read a file");
        return;
    }
    let source = small_source();
    fs::create_dir(source.path().join("sub")).unwrap();
    fs::write(source.path().join("sub/secret"), "x").unwrap();
    fs::set_permissions(source.path().join("sub/secret"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(source.path(), Permissions::from_mode(0o755)).unwrap();
    let out = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(out.path(), Some(65534), Some(65534)).unwrap();
    // The program itself may lie in a directory that only root can enter.
    let program = out.path().join("program");
    fs::copy(env!("CARGO_BIN_EXE_rafs-image"), &program).unwrap();
    let output = Command::new(&program)
        .uid(65534)
        .gid(65534)
        .args(["create", "-B", path(&out.path().join("boot")), "-D", path(out.path()), path(source.path())])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("sub/secret") && error.contains("Permission denied"), "{error}");
    assert_eq!(entries(out.path()), ["program"]);
}

#[test]
fn a_file_that_is_shorter_than_it_says_is_named() {
    // Every file in sysfs says 4096 bytes and has fewer.
    let source = Path::new("/sys/kernel/mm");
    if fs::metadata(source.join("transparent_hugepage/enabled")).is_err() {
        println!("skipped: no sysfs here");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let output = run(&["create", "-B", path(&out.path().join("boot")), "-D", path(out.path()), path(source)]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("/sys/kernel/mm/") && error.contains("changed while it was read"), "{error}");
    assert_eq!(entries(out.path()), [""; 0]);
}

#[test]
fn stdin_is_read_for_prefetch_patterns_and_else_left_alone() {
    let source = small_source();
    let out = tempfile::tempdir().unwrap();
    let boot = out.path().join("boot");
    let args = ["create", "-B", path(&boot), "-D", path(out.path()), path(source.path())];
    // Nobody closes this pipe while the build runs.
    let mut child = rafs_image().args(args).stdin(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the build waits for stdin");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(child.wait().unwrap().success());
    let mut child =
        rafs_image().args(args).args(["--prefetch-policy", "fs"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"/b\n").unwrap();
    assert!(child.wait().unwrap().success());
    let image = rafs::image::Image::open(&boot).unwrap();
    let root = image.inode(image.root()).unwrap();
    assert_eq!(image.prefetch_list(), [image.lookup(&root, b"b").unwrap().unwrap().number]);
}

#[test]
fn completions_and_manual_pages_are_generated() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("chunk-size"), "{shell}");
    }
    let out = tempfile::tempdir().unwrap();
    assert!(run(&["man", path(out.path())]).status.success());
    assert!(fs::read_to_string(out.path().join("rafs-image-create.1")).unwrap().contains("compressor"));
}
