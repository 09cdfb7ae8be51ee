//! Cache directories that cannot be used as they should: what is served is right all the same, and the log says once what
//! is the matter; and logs that cannot be written. Mounts are made in a namespace of the daemon's own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::support::afar::{Afar, cached_bytes, connect, tail};
use guest_tests::support::daemon::Daemon;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Whether this user may mount, and give up what it may do.
#[allow(clippy::print_stderr, reason = "a test that shows nothing must say so")]
fn privileged() -> bool {
    let possible = ["unshare -m true", "setpriv --bounding-set -all --inh-caps -all true"]
        .iter()
        .all(|line| Command::new("sh").args(["-c", line]).status().is_ok_and(|status| status.success()));
    if !possible {
        eprintln!("skipped: not allowed to mount, or no util-linux");
    }
    possible
}

/// Runs a script in a mount namespace of its own, where `$CACHE` is the cache directory; then the daemon.
fn mounted(script: &str, cache: &Path) -> Vec<String> {
    let script = format!("CACHE='{}'; {script} && exec \"$@\"", cache.display());
    ["unshare", "-m", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
}

/// Root without its powers: whatever belongs to others is as closed as to any user.
fn powerless() -> Vec<String> {
    ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"].map(str::to_owned).to_vec()
}

fn serve(afar: &Afar, wrapper: &[String], cache: &Path, max_bytes: u64) -> (Daemon, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = afar.config(dir.path(), cache, 10, max_bytes);
    (Daemon::rafsd_under(wrapper, &afar.image.bootstrap, &config).unwrap(), dir)
}

/// What the log says of it at the level of warnings or above.
fn warnings(daemon: &Daemon) -> Vec<String> {
    let log = daemon.process.output();
    log.lines().filter(|l| l.contains(" WARN ") || l.contains(" ERROR ")).map(str::to_owned).collect()
}

/// All of the image is right, in parallel and in order, and one warning names the directory; on a full disk one each time
/// that it is tried again.
fn assert_served(afar: &Afar, daemon: &Daemon, cache: &Path, what: &str) {
    let begun = Instant::now();
    assert_eq!(afar.read_at_random(daemon, 200, 5), 0, "{what}\n{}", tail(daemon));
    afar.assert_all(daemon, what);
    let (warnings, name) = (warnings(daemon), cache.to_str().unwrap());
    let most = 1 + usize::try_from(begun.elapsed().as_secs() / 30).unwrap();
    assert!(!warnings.is_empty() && warnings.len() <= most, "{what}: {warnings:#?}");
    assert!(warnings.iter().all(|warning| warning.contains(name)), "{what}: {warnings:#?}");
}

#[test]
fn directories_that_cannot_be_written() {
    if !privileged() {
        return;
    }
    let afar = Afar::new();
    let root = tempfile::tempdir().unwrap();
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let at = |name: &str| root.path().join(name);
    let make = |name: &str, mode: u32| {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(at(name), Some(65534), Some(65534)).unwrap();
    };
    std::fs::write(at("file"), b"precious").unwrap();
    std::os::unix::fs::symlink(at("nowhere/at/all"), at("dangling")).unwrap();
    std::fs::create_dir(at("mnt")).unwrap();
    make("others", 0o755);
    make("closed", 0o700);
    let mount = |options: &str| mounted(&format!("mount -t tmpfs -o {options} none \"$CACHE\""), &at("mnt"));
    let cases = [
        ("mnt", "a read-only file system", mount("ro")),
        ("mnt", "no room for a name", mount("size=8m,nr_inodes=1")),
        ("others", "somebody else's", powerless()),
        ("closed", "somebody else's, closed", powerless()),
        ("closed/below", "below a closed one", powerless()),
        ("others/below", "to be made in somebody else's", powerless()),
        ("short", "a limit on files", ["prlimit", "--fsize=2000000"].map(str::to_owned).to_vec()),
        ("file", "a file", Vec::new()),
        ("file/below", "below a file", Vec::new()),
        ("dangling", "a link to nowhere", powerless()),
    ];
    for (name, what, wrapper) in cases {
        let (daemon, _dir) = serve(&afar, &wrapper, &at(name), 0);
        assert_served(&afar, &daemon, &at(name), what);
    }
    assert_eq!(std::fs::read(at("file")).unwrap(), b"precious");
}

#[test]
fn what_is_cached_already_is_read_where_nothing_can_be_written() {
    if !privileged() {
        return;
    }
    let afar = Afar::new();
    let root = tempfile::tempdir().unwrap();
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let cache = root.path().join("cache");
    drop({
        let (daemon, dir) = serve(&afar, &[], &cache, 0);
        afar.assert_all(&daemon, "filling");
        (daemon, dir)
    });
    let read_only =
        mounted("mount --bind \"$CACHE\" \"$CACHE\" && mount -o remount,bind,ro \"$CACHE\"", &cache);
    afar.server.set(|s| s.down = true);
    for entry in std::fs::read_dir(&cache).unwrap() {
        std::os::unix::fs::chown(entry.unwrap().path(), Some(65534), Some(65534)).unwrap();
    }
    std::os::unix::fs::chown(&cache, Some(65534), Some(65534)).unwrap();
    let before = cached_bytes(&cache);
    for (what, wrapper) in [("read-only", read_only), ("somebody else's", powerless())] {
        let (daemon, _dir) = serve(&afar, &wrapper, &cache, 0);
        afar.assert_all(&daemon, what);
        assert_eq!(warnings(&daemon), Vec::<String>::new(), "{what}");
    }
    // Damaged there: fetched, as nothing can be mended.
    afar.server.set(|s| s.down = false);
    let data = cache.join(format!("{}.blob.data", afar.blob()));
    let file = std::fs::File::options().write(true).open(data).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x77; 300_000], 1_000_000).unwrap();
    let (daemon, _dir) = serve(&afar, &powerless(), &cache, 0);
    afar.assert_all(&daemon, "damaged and closed");
    afar.assert_all(&daemon, "damaged and closed, again");
    assert_eq!(cached_bytes(&cache), before);
}

#[test]
fn a_file_system_that_is_full() {
    if !privileged() {
        return;
    }
    let afar = Afar::new();
    let cache = tempfile::tempdir().unwrap();
    for (what, script) in [
        ("too small", "mount -t tmpfs -o size=2m none \"$CACHE\""),
        ("too small for a map", "mount -t tmpfs -o size=4k none \"$CACHE\""),
        (
            "full",
            "mount -t tmpfs -o size=1m none \"$CACHE\" && { head -c 2m /dev/zero >\"$CACHE/x\" 2>&1 || :; }",
        ),
    ] {
        for max_bytes in [0, 64 << 20] {
            let (daemon, _dir) = serve(&afar, &mounted(script, cache.path()), cache.path(), max_bytes);
            assert_served(&afar, &daemon, cache.path(), what);
        }
    }
}

#[test]
fn a_directory_that_is_removed_while_it_is_used() {
    let afar = Afar::new();
    let root = tempfile::tempdir().unwrap();
    for (what, back) in [("removed", false), ("removed and made again", true)] {
        let cache = root.path().join("cache");
        let (daemon, _dir) = serve(&afar, &[], &cache, 0);
        afar.server.set(|s| s.latency = Duration::from_millis(3));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = std::fs::remove_dir_all(&cache);
                    if back {
                        std::fs::create_dir_all(&cache).unwrap();
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let failed: usize = (0..4).map(|seed| afar.read_at_random(&daemon, 200, seed)).sum();
            stop.store(true, Ordering::Relaxed);
            assert_eq!(failed, 0, "{what}\n{}", tail(&daemon));
        });
        afar.server.set(|s| s.latency = Duration::ZERO);
        afar.assert_all(&daemon, what);
        let warnings = warnings(&daemon);
        assert!(warnings.len() <= 1, "{what}: {warnings:#?}");
        // What is open stays of use, though nobody else will find it.
        let asked = afar.server.records().len();
        connect(&daemon).unmount().unwrap();
        afar.assert_all(&daemon, what);
        assert_eq!(afar.server.records().len(), asked, "{what}");
    }
}

#[test]
fn a_log_that_cannot_be_written() {
    let afar = Afar::new();
    let dir = tempfile::tempdir().unwrap();
    let config = afar.config(dir.path(), &dir.path().join("cache"), 10, 0);
    // Every write to this device fails as on a full disk.
    let log = dir.path().join("full.log");
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let to_stderr = ["sh", "-c", "exec \"$@\" >/dev/full 2>&1", "sh"].map(str::to_owned);
    let daemons = [
        Daemon::rafsd_under(&to_stderr, &afar.image.bootstrap, &config).unwrap(),
        Daemon::rafsd_with(&afar.image.bootstrap, &config, &["--log-file", log.to_str().unwrap()]).unwrap(),
    ];
    for mut daemon in daemons {
        // What fails is logged, too.
        afar.server.set(|s| s.always = Some((404, Vec::new())));
        afar.read_at_random(&daemon, 20, 1);
        afar.server.set(|s| s.always = None);
        afar.assert_all(&daemon, "without a log");
        daemon.process.terminate().unwrap();
        let status = daemon.process.wait(Duration::from_secs(20)).unwrap();
        assert!(status.success(), "{status}");
    }
}
