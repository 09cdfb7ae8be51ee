//! `rafsd fuse` as operators and the snapshotter use it: mounted and unmounted, upgraded and replaced under load.
//!
//! Needs /dev/fuse and the right to mount; without them nothing can be shown and the tests say so.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests")]

#[path = "common/setting.rs"]
mod setting;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guest_tests::support::api::wait_for_state;
use guest_tests::support::binaries::ours;
use guest_tests::support::fuse_mode::possible;
use guest_tests::support::image::Image;
use guest_tests::support::process::Process;
use guest_tests::support::random::Random;
use guest_tests::support::supervisor::Kept;
use setting::{FILE_SIZE, FILES, LIMIT, Setting};
use tempfile::TempDir;

/// Readers that compare what they read from a mount with its source until they are told to stop. They are a process of
/// their own: this one starts daemons, and a new process closes what it inherits, which would wait for the daemon that
/// is about to be started.
struct Load {
    process: Process,
    dir: TempDir,
}

impl Load {
    fn on(setting: &Setting, below: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "load_process", "--ignored", "--nocapture"]);
        command.env("LOAD_DIR", dir.path()).env("LOAD_SOURCE", setting.source.path());
        command.env("LOAD_MOUNTED", setting.mountpoint().join(below));
        let process = Process::spawn(&mut command, &dir.path().join("log")).unwrap();
        Self { process, dir }
    }

    fn reads(&self) -> u64 {
        let text = fs::read_to_string(self.dir.path().join("reads")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Waits until so many more reads are done.
    fn progress(&mut self, reads: u64) {
        let goal = self.reads() + reads;
        let deadline = Instant::now() + LIMIT;
        while self.reads() < goal {
            assert!(self.process.ended().unwrap().is_none(), "{}", self.process.output());
            assert!(Instant::now() < deadline, "reads make no progress");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(mut self) {
        fs::write(self.dir.path().join("stop"), "").unwrap();
        assert!(self.process.wait(LIMIT).unwrap().success(), "{}", self.process.output());
    }
}

#[test]
#[ignore = "the process behind Load"]
fn load_process() {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    let Some((dir, source, mounted)) =
        var("LOAD_DIR").zip(var("LOAD_SOURCE")).zip(var("LOAD_MOUNTED")).map(|((d, s), m)| (d, s, m))
    else {
        return;
    };
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let threads: Vec<JoinHandle<Result<(), String>>> = (0..8)
        .map(|seed| {
            let (mounted, source) = (mounted.clone(), source.clone());
            let (stop, reads) = (Arc::clone(&stop), Arc::clone(&reads));
            std::thread::spawn(move || read_and_compare(seed, &mounted, &source, &stop, &reads))
        })
        .collect();
    while !dir.join("stop").exists() && !threads.iter().any(JoinHandle::is_finished) {
        // Put in place as a whole, so that nobody reads half a number.
        fs::write(dir.join("new"), reads.load(Ordering::Relaxed).to_string()).unwrap();
        fs::rename(dir.join("new"), dir.join("reads")).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
}

fn read_and_compare(
    seed: u64,
    mounted: &Path,
    source: &Path,
    stop: &AtomicBool,
    reads: &AtomicU64,
) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut open: Vec<Option<(File, File)>> = (0..FILES).map(|_| None).collect();
    while !stop.load(Ordering::Relaxed) {
        let which = usize::try_from(random.below(FILES)).unwrap();
        // Now and then files are opened anew; the others stay open over everything that happens.
        if random.below(50) == 0 {
            open[which] = None;
        }
        if open[which].is_none() {
            let name = which.to_string();
            let file = File::open(mounted.join(&name)).map_err(|e| format!("open {name}: {e}"))?;
            open[which] = Some((file, File::open(source.join(&name)).unwrap()));
        }
        let (file, truth) = open[which].as_ref().unwrap();
        let offset = random.below(FILE_SIZE);
        let mut got = vec![0; usize::try_from(random.below(100_000) + 1).unwrap()];
        let mut want = got.clone();
        // So that reads reach the daemon.
        let _ = rustix::fs::fadvise(file.as_fd(), 0, None, rustix::fs::Advice::DontNeed);
        let n = std::os::unix::fs::FileExt::read_at(file, &mut got, offset)
            .map_err(|e| format!("read of {which} at {offset}: {e}"))?;
        let m = std::os::unix::fs::FileExt::read_at(truth, &mut want, offset).unwrap();
        if n == 0 || got[..n] != want[..m.min(n)] {
            return Err(format!("read of {which} at {offset}: {n} bytes that are not those of the source"));
        }
        reads.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn a_mount_starts_and_ends_with_its_daemon() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let flags = setting.image_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut daemon = setting.start("api", &flags).unwrap();
    wait_for_state(&setting.path("api"), "RUNNING").unwrap();
    assert_eq!(
        fs::read(setting.mountpoint().join("0")).unwrap(),
        fs::read(setting.source.path().join("0")).unwrap()
    );
    daemon.terminate().unwrap();
    assert!(daemon.wait(LIMIT).unwrap().success(), "{}", daemon.output());
    assert!(!setting.is_mounted().unwrap() && !setting.path("api").exists());

    // Unmounted by somebody else, it ends by itself.
    let mut daemon = setting.start("api", &flags).unwrap();
    wait_for_state(&setting.path("api"), "RUNNING").unwrap();
    rustix::mount::unmount(setting.mountpoint(), rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(daemon.wait(LIMIT).unwrap().success(), "{}", daemon.output());

    // In use, it is detached; whoever holds a file hears of the end.
    let mut daemon = setting.start("api", &flags).unwrap();
    wait_for_state(&setting.path("api"), "RUNNING").unwrap();
    let held = File::open(setting.mountpoint().join("1")).unwrap();
    daemon.terminate().unwrap();
    assert!(daemon.wait(LIMIT).unwrap().success(), "{}", daemon.output());
    assert!(!setting.is_mounted().unwrap());
    drop(held);

    // No such directory: one line, and nothing is left.
    let mut command = Command::new(ours("rafsd").unwrap());
    command.arg("--mountpoint").arg(setting.path("nowhere")).args(&flags);
    let out = command.output().unwrap();
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("nowhere"), "{out:?}");
}

#[test]
fn an_upgrade_under_load_loses_no_request() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let mut old = setting.supervised("api0", &[]);
    for path in ["/s1", "/a/s2"] {
        setting.mount("api0", path, &setting.image_body());
    }
    let mut load = Load::on(&setting, "a/s2");
    load.progress(100);
    let inode = || fs::metadata(setting.mountpoint().join("s1/0")).unwrap().ino();
    let mut from = "api0".to_owned();
    for generation in 1..=3 {
        let (before, to) = (inode(), format!("api{generation}"));
        let kept = setting.save(&from).unwrap();
        let mut new = setting.start_successor(&to, &["--upgrade"]).unwrap();
        setting.take_over(&to, &kept).unwrap();
        drop(kept);
        load.progress(50);
        setting.done(&from, "/api/v1/daemon/exit").unwrap();
        assert!(old.wait(LIMIT).unwrap().success(), "{}", old.output());
        assert!(setting.is_mounted().unwrap());
        setting.serve(&to).unwrap();
        load.progress(100);
        assert_eq!(before, inode(), "the inode number changed");
        assert!(new.ended().unwrap().is_none(), "{}", new.output());
        (old, from) = (new, to);
    }
    load.end();
    setting.ends(&mut old);
}

#[test]
fn a_killed_daemon_is_replaced_under_load_and_no_request_is_lost() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let flags = setting.image_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut daemon = setting.supervised("api", &flags);
    fs::metadata(setting.mountpoint()).unwrap();
    let kept = setting.save("api").unwrap();
    let mut load = Load::on(&setting, "");
    for _ in 0..5 {
        load.progress(100);
        // In the middle of what it does.
        daemon.kill().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(setting.is_mounted().unwrap());
        // The same command line: it sees what happened and does not mount.
        daemon = setting.start_successor("api", &flags).unwrap();
        let (status, answer) = setting.put("api", "/api/v1/daemon/start").unwrap();
        assert_eq!(status, 400, "{answer}");
        setting.take_over("api", &kept).unwrap();
        setting.serve("api").unwrap();
        assert!(daemon.ended().unwrap().is_none(), "{}", daemon.output());
    }
    load.progress(100);
    load.end();
    drop(kept);
    setting.ends(&mut daemon);
}

#[test]
fn a_successor_with_another_api_socket_is_told_what_is_in_its_place() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let mut old = setting.supervised("api0", &[]);
    let kept = setting.save("api0").unwrap();
    old.kill().unwrap();
    let refused = || {
        let mut daemon = setting.start_supervised("api1", &[]).unwrap();
        assert!(!daemon.wait(LIMIT).unwrap().success());
        let said = daemon.output();
        assert!(said.contains("--apisock") && said.contains("umount -l"), "{said}");
        assert!(setting.is_mounted().unwrap());
    };
    // Its device is held: nobody answers. Then it is not: the kernel does.
    refused();
    drop(kept);
    refused();
    // Where a daemon lives, another is mounted on top of it.
    rustix::mount::unmount(setting.mountpoint(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let mut below = setting.supervised("api1", &[]);
    let mut above = setting.supervised("api2", &[]);
    above.terminate().unwrap();
    assert!(above.wait(LIMIT).unwrap().success(), "{}", above.output());
    assert!(setting.is_mounted().unwrap());
    setting.ends(&mut below);
}

#[test]
fn a_directory_stays_with_a_daemon_that_lives_and_comes_back_after_a_crash() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let mut old = setting.supervised("api0", &["--writable"]);
    let shared = setting.source.path();
    setting.mount(
        "api0",
        "/d",
        &serde_json::json!({"fs_type": "passthrough_fs", "source": shared, "config": ""}),
    );
    let file = setting.mountpoint().join("d/new");
    fs::write(&file, "one").unwrap();
    let held = File::open(&file).unwrap();
    let kept = setting.save("api0").unwrap();
    let mut new = setting.start_successor("api1", &["--writable", "--upgrade"]).unwrap();
    let (status, answer) = setting.offer("api1", &kept).unwrap();
    assert!(status == 500 && answer.contains("/d") && answer.contains("unmount"), "{status} {answer}");
    wait_for_state(&setting.path("api1"), "INIT").unwrap();
    new.kill().unwrap();
    // Nothing happened to what the first daemon serves.
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &held, &mut text).unwrap();
    assert_eq!(text, "one");
    drop(held);

    old.kill().unwrap();
    let mut new = setting.start_successor("api0", &["--writable"]).unwrap();
    setting.take_over("api0", &kept).unwrap();
    drop(kept);
    setting.serve("api0").unwrap();
    fs::write(&file, "two").unwrap();
    assert_eq!(fs::read_to_string(shared.join("new")).unwrap(), "two");
    setting.ends(&mut new);
}

#[test]
fn what_was_mounted_before_a_take_over_is_not_in_the_way_unnoticed() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let mut old = setting.supervised("api0", &[]);
    let image = setting.image_body();
    setting.mount("api0", "/s1", &image);
    let file = setting.mountpoint().join("s1/0");
    let (inode, data) = (fs::metadata(&file).unwrap().ino(), fs::read(&file).unwrap());
    let kept = setting.save("api0").unwrap();
    let mut new = setting.start_successor("api1", &["--upgrade"]).unwrap();
    setting.mount("api1", "/early", &image);
    setting.mount("api1", "/s1", &image);
    let (status, answer) = setting.offer("api1", &kept).unwrap();
    assert!(status == 500 && answer.contains("unmount") && !answer.contains("  "), "{status} {answer}");
    wait_for_state(&setting.path("api1"), "INIT").unwrap();
    setting.umount("api1", "/s1");
    setting.take_over("api1", &kept).unwrap();
    setting.done("api0", "/api/v1/daemon/exit").unwrap();
    assert!(old.wait(LIMIT).unwrap().success(), "{}", old.output());
    setting.serve("api1").unwrap();
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "the inode number changed");
    assert_eq!(fs::read(setting.mountpoint().join("early/0")).unwrap(), data);
    setting.ends(&mut new);
}

#[test]
fn an_upgrade_remembers_what_was_unmounted_before_it() {
    if !possible() {
        return;
    }
    let (setting, other) = (Setting::new(), Setting::new());
    fs::write(other.source.path().join("0"), "another image").unwrap();
    let another = Image::build(other.source.path(), 6, &[]).unwrap();
    let another = Setting { image: another, ..other };
    let mut old = setting.supervised("api0", &[]);
    setting.mount("api0", "/s1", &setting.image_body());
    let held = File::open(setting.mountpoint().join("s1/0")).unwrap();
    setting.umount("api0", "/s1");
    let kept = setting.save("api0").unwrap();
    let mut new = setting.start_successor("api1", &["--upgrade"]).unwrap();
    // The same path has the same index where nothing speaks against it.
    setting.mount("api1", "/s1", &another.image_body());
    let (status, answer) = setting.offer("api1", &kept).unwrap();
    assert!(status == 500 && answer.contains("unmount") && !answer.contains("  "), "{status} {answer}");
    setting.umount("api1", "/s1");
    setting.take_over("api1", &kept).unwrap();
    setting.done("api0", "/api/v1/daemon/exit").unwrap();
    assert!(old.wait(LIMIT).unwrap().success(), "{}", old.output());
    setting.serve("api1").unwrap();
    setting.mount("api1", "/s1", &another.image_body());
    assert_eq!(fs::read(setting.mountpoint().join("s1/0")).unwrap(), b"another image");
    let stale = std::os::unix::fs::FileExt::read_at(&held, &mut [0; 16], 0).unwrap_err();
    assert_eq!(stale.raw_os_error(), Some(rustix::io::Errno::STALE.raw_os_error()));
    drop(held);
    setting.ends(&mut new);
}

#[test]
fn an_image_that_comes_back_after_an_upgrade_is_the_one_that_was_there() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let mut old = setting.supervised("api0", &[]);
    let image = setting.image_body();
    setting.mount("api0", "/s1", &image);
    let file = setting.mountpoint().join("s1/0");
    let held = File::open(&file).unwrap();
    let inode = held.metadata().unwrap().ino();
    setting.umount("api0", "/s1");
    let kept = setting.save("api0").unwrap();
    let mut new = setting.start_successor("api1", &["--upgrade"]).unwrap();
    setting.take_over("api1", &kept).unwrap();
    setting.done("api0", "/api/v1/daemon/exit").unwrap();
    assert!(old.wait(LIMIT).unwrap().success(), "{}", old.output());
    setting.serve("api1").unwrap();
    setting.mount("api1", "/s1", &image);
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "the inode number changed");
    let mut text = vec![0; 5000];
    std::os::unix::fs::FileExt::read_exact_at(&held, &mut text, 4000).unwrap();
    assert_eq!(text, fs::read(setting.source.path().join("0")).unwrap()[4000..9000]);
    drop(held);
    setting.ends(&mut new);
}

#[test]
fn what_is_not_the_device_of_the_mount_is_not_taken_over() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let mut old = setting.supervised("api0", &[]);
    setting.mount("api0", "/s1", &setting.image_body());
    let kept = setting.save("api0").unwrap();
    let refused = |api: &str, device: std::os::fd::OwnedFd, words: &str| {
        let kept = Kept { state: kept.state.clone(), device };
        let (status, answer) = setting.offer(api, &kept).unwrap();
        assert!(status == 500 && answer.contains(words) && !answer.contains("  "), "{status} {answer}");
        wait_for_state(&setting.path(api), "INIT").unwrap();
    };
    let mut new = setting.start_successor("api1", &["--upgrade"]).unwrap();
    let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap().into();
    refused("api1", open(Path::new("/dev/null")), "character device 1:3, not /dev/fuse");
    refused("api1", open(&setting.source.path().join("0")), "a regular file, not /dev/fuse");
    refused("api1", open(Path::new("/dev/fuse")), "the mount is gone");
    // Another mountpoint: SIGTERM would leave the right one dead.
    let elsewhere = setting.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let flags = ["--upgrade", "--mountpoint", elsewhere.to_str().unwrap()];
    let mut other = setting.start_successor("api2", &flags).unwrap();
    refused("api2", kept.device.try_clone().unwrap(), "of another mount than the one on");
    other.terminate().unwrap();
    assert!(other.wait(LIMIT).unwrap().success(), "{}", other.output());
    // The one that serves has noticed nothing.
    let read = || fs::read(setting.mountpoint().join("s1/1")).unwrap();
    assert_eq!(read(), fs::read(setting.source.path().join("1")).unwrap());
    setting.ends(&mut old);
    refused("api1", kept.device.try_clone().unwrap(), "the mount is gone");
    new.terminate().unwrap();
    assert!(new.wait(LIMIT).unwrap().success(), "{}", new.output());
}

#[test]
fn transfers_that_cannot_be_are_errors() {
    if !possible() {
        return;
    }
    let setting = Setting::new();
    let flags = setting.image_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    {
        let _daemon = setting.start("api", &flags).unwrap();
        wait_for_state(&setting.path("api"), "RUNNING").unwrap();
        let (status, answer) = setting.put("api", "/api/v1/daemon/fuse/sendfd").unwrap();
        assert_eq!(status, 500, "no supervisor: {answer}");
        let (status, answer) = setting.put("api", "/api/v1/daemon/fuse/takeover").unwrap();
        assert_eq!(status, 400, "it runs: {answer}");
        rustix::mount::unmount(setting.mountpoint(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    let _ = fs::remove_file(setting.path("api"));
    let mut daemon = setting.start_successor("api", &["--upgrade"]).unwrap();
    let (status, answer) = setting.put("api", "/api/v1/daemon/fuse/takeover").unwrap();
    let said = "Upgrade(DaemonAbnormal(UpgradeManager(\\\"StorageBackendError(CreateUnixStream(NotFound: ";
    assert!(status == 500 && answer.contains(said), "nobody listens: {status} {answer}");
    // A state that is not ours: the daemon says so and waits on.
    let device: std::os::fd::OwnedFd = File::open("/dev/null").unwrap().into();
    for state in [&b"\x01\x00\x64\x86\x84\x19\x10\x07"[..], b"", b"{}", &[b'['; 300_000][..]] {
        let kept = Kept { state: state.to_vec(), device: device.try_clone().unwrap() };
        let (status, answer) = setting.offer("api", &kept).unwrap();
        assert_eq!(status, 500, "{answer}");
        wait_for_state(&setting.path("api"), "INIT").unwrap();
    }
    let cut = Kept { state: br#"{"format":"rafsd-fuse","version":1,"mounts":[{"pa"#.to_vec(), device };
    let (status, answer) = setting.offer("api", &cut).unwrap();
    assert!(status == 500 && answer.contains("ends too early"), "{status} {answer}");
    daemon.terminate().unwrap();
    assert!(daemon.wait(LIMIT).unwrap().success(), "{}", daemon.output());
}
