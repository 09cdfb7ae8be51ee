//! How a mount of `rafsd fuse` changes and ends under those who use it.
//!
//! Needs /dev/fuse and the right to mount; without them nothing can be shown and the tests say so.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests")]

#[path = "common/setting.rs"]
mod setting;

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use guest_tests::servers::BlobServer;
use guest_tests::support::api::{call, wait_for_state};
use guest_tests::support::binaries::ours;
use guest_tests::support::fuse_mode::possible;
use guest_tests::support::image::Image;
use guest_tests::support::wait::until;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use setting::{LIMIT, Setting};

/// Well below what a daemon with a successor waits for its store.
const AT_ONCE: Duration = Duration::from_secs(15);

#[test]
fn an_exchanged_image_is_seen_at_once_by_all_ways_there_are() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("0"), "another image").unwrap();
    let another = Image::build(other.path(), 6, &[]).unwrap();
    let body = |image: &Image| {
        let config = format!(
            r#"{{"device":{{"backend":{{"type":"localfs","config":{{"dir":"{0}"}}}}}},"mode":"direct"}}"#,
            image.blobs.display()
        );
        serde_json::json!({"fs_type": "rafs", "source": image.bootstrap, "config": config}).to_string()
    };
    let mut daemon = setting.supervised("api", &[]);
    let ask = |method, image| {
        let (status, answer) =
            call(&setting.path("api"), method, "/api/v1/mount?mountpoint=/a", &body(image)).unwrap();
        assert_eq!(status, 204, "{answer}");
    };
    let dir = setting.mountpoint().join("a");
    // A path is looked up again by whoever gets ESTALE, but not by these: they pin what the kernel knows.
    let pinned = || {
        let fd = rustix::fs::open(&dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let file = rustix::fs::openat(&fd, "0", OFlags::RDONLY, Mode::empty())?;
        Ok::<_, Errno>(File::from(file).metadata().unwrap().len())
    };
    ask("POST", &setting.image);
    for _ in 0..5 {
        assert_eq!(pinned(), Ok(setting::FILE_SIZE));
        ask("PUT", &another);
        assert_eq!(pinned(), Ok(13));
        assert_eq!(fs::read(dir.join("0")).unwrap(), b"another image");
        // The same again changes nothing for whoever holds it.
        let held = File::open(dir.join("0")).unwrap();
        ask("PUT", &another);
        assert_eq!(held.metadata().unwrap().len(), 13);
        drop(held);
        ask("PUT", &setting.image);
    }
    setting.ends(&mut daemon);
}

#[test]
fn the_end_waits_for_no_store() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let server = BlobServer::start(&setting.image.blobs).unwrap();
    let config = format!(
        r#"{{"device":{{"backend":{{"type":"registry","config":{{"scheme":"http","host":"{}","repo":"a/b"}}}},
            "cache":{{"type":"blobcache","config":{{"work_dir":"{}"}}}}}},"mode":"direct"}}"#,
        server.host(),
        setting.path("cache").display()
    );
    let body = serde_json::json!({"fs_type": "rafs", "source": setting.image.bootstrap, "config": config});
    let mut daemon = setting.start("api", &[]).unwrap();
    wait_for_state(&setting.path("api"), "RUNNING").unwrap();
    setting.mount("api", "/a", &body);
    let inflight = || call(&setting.path("api"), "GET", "/api/v1/metrics/inflight", "").unwrap();
    until("nothing in flight", || inflight().0 == 204);
    server.set(|settings| settings.held = true);
    // A process of its own: nobody could end a thread that waits.
    let mut reader = Command::new("cat").arg(setting.mountpoint().join("a/0")).spawn().unwrap();
    until("the read in flight", || {
        let (status, text) = inflight();
        let requests: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let reads = requests.as_array().is_some_and(|all| all.iter().any(|request| request["opcode"] == 15));
        status == 200 && reads
    });
    daemon.terminate().unwrap();
    assert!(daemon.wait(AT_ONCE).unwrap().success(), "{}", daemon.output());
    assert!(!reader.wait().unwrap().success(), "it hears of the end");
    assert!(!setting.is_mounted().unwrap());
}

#[test]
fn only_its_own_mount_is_unmounted() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let flags = setting.image_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let point = setting.mountpoint();
    let mut daemon = setting.start("api", &flags).unwrap();
    wait_for_state(&setting.path("api"), "RUNNING").unwrap();
    mount("mine", &point, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(point.join("file"), "text").unwrap();
    daemon.terminate().unwrap();
    assert!(daemon.wait(LIMIT).unwrap().success(), "{}", daemon.output());
    assert_eq!(fs::read(point.join("file")).unwrap(), b"text");
    let said = daemon.output();
    assert!(said.contains("covered by another mount (tmpfs)") && !said.contains("unmounted "), "{said}");
    unmount(&point, UnmountFlags::empty()).unwrap();
    assert_eq!(
        fs::metadata(point.join("0")).unwrap_err().raw_os_error(),
        Some(Errno::NOTCONN.raw_os_error())
    );
    unmount(&point, UnmountFlags::empty()).unwrap();
    assert!(!setting.is_mounted().unwrap());

    // Two daemons: the upper one says so, and leaves the lower one's when it ends.
    let mut lower = setting.start("api1", &flags).unwrap();
    wait_for_state(&setting.path("api1"), "RUNNING").unwrap();
    let mut upper = setting.start("api2", &flags).unwrap();
    wait_for_state(&setting.path("api2"), "RUNNING").unwrap();
    lower.terminate().unwrap();
    assert!(lower.wait(LIMIT).unwrap().success());
    assert!(lower.output().contains("covered by another mount (fuse)"), "{}", lower.output());
    assert_eq!(fs::metadata(point.join("0")).unwrap().len(), setting::FILE_SIZE, "the upper one serves");
    upper.terminate().unwrap();
    assert!(upper.wait(LIMIT).unwrap().success());
    assert!(upper.output().contains("a FUSE mount already"), "{}", upper.output());
    unmount(&point, UnmountFlags::empty()).unwrap();
}

#[test]
fn sockets_that_cannot_be_are_refused_before_anything_is_mounted() {
    let long = "s".repeat(120);
    for flag in ["--apisock", "--supervisor"] {
        let mut command = Command::new(ours("rafsd").unwrap());
        command.args(["fuse", "--mountpoint", "/nowhere", flag, &format!("/tmp/{long}"), "--id", "d"]);
        if flag == "--apisock" {
            command.args(["--supervisor", "/tmp/s"]);
        }
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(flag) && said.contains("107 bytes"), "{said}");
    }
}
