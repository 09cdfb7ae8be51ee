//! Disk images: the kernel mounts them, `veritysetup` accepts them; and requests to `inspect`.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use rafs_builder::{BootstrapTarget, ExportOptions, ImageOptions, Progress, SourceKind, Version};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use support::expected;

fn mounted(disk: &Path, check: impl FnOnce(&Path)) {
    let at = tempfile::tempdir().unwrap();
    if let Err(e) = mount(disk, at.path(), "erofs", MountFlags::RDONLY, None) {
        println!("not mounted: this host cannot mount a file as EROFS ({e}); needs root and Linux 6.12");
        return;
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(at.path())));
    unmount(at.path(), UnmountFlags::DETACH).unwrap();
    result.unwrap();
}

fn verify(disk: &Path, info: &rafs_builder::VerityInfo) {
    let size = fs::metadata(disk).unwrap().len();
    assert_eq!(info.data_blocks * u64::from(info.data_block_size), info.hash_offset);
    assert!(size > info.hash_offset && size.is_multiple_of(4096));
    let output = Command::new("veritysetup")
        .args([
            "verify",
            "--no-superblock",
            "--format=1",
            "-s",
            "-",
            "--hash=sha256",
            "--hash-block-size=4096",
        ])
        .arg(format!("--data-block-size={}", info.data_block_size))
        .arg(format!("--data-blocks={}", info.data_blocks))
        .arg(format!("--hash-offset={}", info.hash_offset))
        .args([disk, disk])
        .arg(&info.root_hash)
        .output();
    match output {
        Err(e) => println!("veritysetup not tried: {e}"),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn a_disk_image_mounts_and_verifies() {
    let source = tempfile::tempdir().unwrap();
    support::source::make(source.path(), 300);
    let built = support::build(source.path(), ImageOptions::default());
    let want = expected::of_directory(source.path());
    let export = |verity| {
        let output = built.dir.path().join("disk");
        let options = ExportOptions {
            bootstrap: built.bootstrap(),
            blobs: rafs_builder::BlobPlace::Directory(built.dir.path().to_path_buf()),
            output,
            verity,
        };
        rafs_builder::export(&options).unwrap()
    };
    let disk = built.dir.path().join("disk");
    for verity in [false, true] {
        let info = export(verity);
        assert_eq!(info.is_some(), verity);
        if let Some(info) = info {
            assert_eq!(info.data_block_size, 4096);
            verify(&disk, &info);
        }
        mounted(&disk, |at| {
            expected::assert_same(&want, &{
                let mut got = expected::of_directory(at);
                got.get_mut(&b"/"[..]).unwrap().mtime = (0, 0);
                got
            });
            let file = "contiguous/5242881";
            assert!(fs::read(source.path().join(file)).unwrap() == fs::read(at.join(file)).unwrap());
        });
    }
}

#[test]
fn a_tar_archive_becomes_a_disk_image() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    for n in [0_usize, 1, 511, 512, 513, 100_000, 2_500_000] {
        fs::write(dir.path().join(format!("tree/f{n}")), support::source::noise(n as u64, n)).unwrap();
    }
    for n in [1, 400, 511, 512, 513, 1000, 4000] {
        std::os::unix::fs::symlink("t".repeat(n), dir.path().join(format!("tree/link{n}"))).unwrap();
    }
    for n in 0..200 {
        fs::create_dir_all(dir.path().join(format!("tree/many/directory-{n}"))).unwrap();
    }
    let tar = dir.path().join("layer.tar");
    let status =
        Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(dir.path().join("tree")).arg(".").status();
    assert!(status.unwrap().success());
    let mut options = support::options(&tar, dir.path(), ImageOptions::default());
    options.source = SourceKind::Tarfs(tar.clone());
    options.blob = None;
    options.bootstrap = BootstrapTarget::File(dir.path().join("boot"));
    let report = rafs_builder::create(&options, &Arc::new(Progress::default())).unwrap();
    fs::rename(&tar, dir.path().join(&report.blobs[0])).unwrap();
    let image = rafs::image::Image::open(&dir.path().join("boot")).unwrap();
    image.check().unwrap();
    assert_eq!(image.block_size(), 512);
    let output = dir.path().join("disk");
    let options = ExportOptions {
        bootstrap: dir.path().join("boot"),
        blobs: rafs_builder::BlobPlace::Directory(dir.path().to_path_buf()),
        output: output.clone(),
        verity: true,
    };
    let info = rafs_builder::export(&options).unwrap().unwrap();
    assert_eq!(info.data_block_size, 512);
    verify(&output, &info);
    let want = expected::of_image(&image);
    mounted(&output, |at| {
        expected::assert_same(&want, &expected::of_directory_with_root_time(at));
        for n in [0_usize, 1, 511, 512, 513, 100_000, 2_500_000] {
            assert!(
                fs::read(at.join(format!("f{n}"))).unwrap() == support::source::noise(n as u64, n),
                "{n}"
            );
        }
    });
}

#[test]
fn requests_are_pure_json() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("f"), "data").unwrap();
    for version in [Version::V5, Version::V6] {
        let built = support::build(source.path(), ImageOptions { version, ..ImageOptions::default() });
        let boot = built.bootstrap();
        let run = |args: &[&str]| {
            let output =
                Command::new(env!("CARGO_BIN_EXE_rafs-image")).arg("inspect").args(args).output().unwrap();
            assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let boot = boot.to_str().unwrap();
        for args in
            [&[boot, "--request", "blobs"][..], &["-R blobs", boot], &["--bootstrap", boot, "-Rblobs"]]
        {
            let text = run(args);
            assert!(!text.ends_with('\n'));
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value[0]["blob_id"].as_str(), Some(built.report.blobs[0].as_str()));
            assert_eq!(value[0]["compressed_size"].as_u64(), Some(built.report.blob_size));
            assert_eq!(value[0]["readahead_offset"].as_u64(), Some(0));
        }
        assert_eq!(run(&[boot, "-R", "stats"]), "{\"inodes_count\":2}");
        assert_eq!(run(&[boot, "-R", "prefetch"]), "[]");
        assert!(run(&[boot, "-R", "ls"]).ends_with("f\nnull"));
        let output =
            Command::new(env!("CARGO_BIN_EXE_rafs-image")).args(["inspect", boot, "-R", "nonsense"]).output();
        assert_eq!(output.unwrap().status.code(), Some(1));
    }
}
