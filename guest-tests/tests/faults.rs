//! A daemon whose store fails, whose cache is too small, damaged or shared, and which is killed: right data or EIO, and
//! afterwards all is well again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::fuse::read_in;
use guest_tests::frontend::{Client, Options};
use guest_tests::servers::{BlobServer, Fault};
use guest_tests::support::binaries::ours;
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::Image;
use guest_tests::support::random::Random;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const READ: u32 = 15;
const EIO: i32 = 5;

/// An image behind a server, and what is in it.
struct Afar {
    files: Vec<(String, Vec<u8>)>,
    image: Image,
    server: BlobServer,
}

impl Afar {
    /// 12 MB in 120 files of up to 300 KB, half of each compressible.
    fn new() -> Self {
        let source = tempfile::tempdir().unwrap();
        let (mut random, mut files) = (Random::new(7), Vec::new());
        for n in 0..120u64 {
            let len = usize::try_from(random.below(200_000) + 1 + n % 3 * 50_000).unwrap();
            let data: Vec<u8> =
                (0..len).map(|i| if i % 2 == 0 { random.next().to_le_bytes()[0] } else { 7 }).collect();
            let path = format!("d{}/f{n}", n % 7);
            std::fs::create_dir_all(source.path().join(&path).parent().unwrap()).unwrap();
            std::fs::write(source.path().join(&path), &data).unwrap();
            files.push((path, data));
        }
        let image = Image::build(source.path(), 6, &["--chunk-size", "0x10000"]).unwrap();
        let server = BlobServer::start(&image.blobs).unwrap();
        Self { files, image, server }
    }

    fn config(&self, dir: &Path, cache: &Path, deadline: u32, max_bytes: u64) -> PathBuf {
        let config = dir.join("config");
        let text = format!(
            "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nhost = \"{}\"\nrepo = \"a/b\"\n\
             scheme = \"http\"\ntimeout = 1\ndeadline = {deadline}\n[cache]\ntype = \"filecache\"\n[cache.filecache]\n\
             work_dir = \"{}\"\nmax_bytes = {max_bytes}\n[rafs]\nenable_xattr = true\n",
            self.server.host(),
            cache.display()
        );
        std::fs::write(&config, text).unwrap();
        config
    }

    fn daemon(&self, cache: &Path, deadline: u32, max_bytes: u64) -> (Daemon, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let config = self.config(dir.path(), cache, deadline, max_bytes);
        (Daemon::rafsd_configured(&self.image.bootstrap, &config, &[]).unwrap(), dir)
    }

    /// Reads pieces of files at random, 8 at a time. How many failed.
    fn read_at_random(&self, daemon: &Daemon, reads: usize, seed: u64) -> usize {
        let mut client = connect(daemon);
        let nodes: Vec<u64> =
            self.files.iter().map(|(path, _)| client.resolve(path.as_bytes()).unwrap().node).collect();
        let mut random = Random::new(seed);
        let (mut flying, mut failed, mut sent) = (Vec::new(), 0, 0);
        while sent < reads || !flying.is_empty() {
            while sent < reads && flying.len() < 8 {
                let file = usize::try_from(random.below(nodes.len() as u64)).unwrap();
                let size = self.files[file].1.len() as u64;
                let offset = random.below(size);
                let len = u32::try_from((size - offset).min(1 + random.below(131_072))).unwrap();
                let body = read_in(0, offset, len);
                let unique = client.session.submit(1, READ, nodes[file], &body, Some(len)).unwrap();
                flying.push((unique, file, usize::try_from(offset).unwrap(), len as usize));
                sent += 1;
            }
            client.session.flush().unwrap();
            let done = client.session.next_done().unwrap();
            let at = flying.iter().position(|(unique, ..)| *unique == done.unique).unwrap();
            let (_, file, offset, len) = flying.swap_remove(at);
            if done.errno != 0 {
                assert_eq!(done.errno, EIO);
                failed += 1;
                client.session.release(done);
                continue;
            }
            let data = client.session.take(done).unwrap();
            let (path, expected) = &self.files[file];
            assert!(data == expected[offset..offset + len], "{path} at {offset}: wrong data");
        }
        client.unmount().unwrap();
        failed
    }

    /// Every file has the contents it should have.
    fn assert_all(&self, daemon: &Daemon, what: &str) {
        let mut client = connect(daemon);
        for (path, expected) in &self.files {
            let node = client.resolve(path.as_bytes()).unwrap().node;
            let mut at = 0;
            while at < expected.len() {
                let len = u32::try_from(expected.len() - at).unwrap().min(131_072);
                let data = client.read(node, 0, at as u64, len);
                let data = data.unwrap_or_else(|e| panic!("{what} {path}: {e}\n{}", tail(daemon)));
                assert!(data == expected[at..at + len as usize], "{what} {path} at {at}: wrong data");
                at += len as usize;
            }
        }
        client.unmount().unwrap();
    }

    fn blob(&self) -> String {
        let mut names = std::fs::read_dir(&self.image.blobs).unwrap();
        names.next().unwrap().unwrap().file_name().into_string().unwrap()
    }
}

fn connect(daemon: &Daemon) -> Client {
    let options = Options { memory_mib: 64, timeout: Duration::from_secs(60), ..Options::default() };
    Client::connect(&daemon.socket, &options).unwrap()
}

fn tail(daemon: &Daemon) -> String {
    let log = daemon.process.output();
    let lines: Vec<&str> = log.lines().filter(|l| !l.contains("DEBUG") && !l.contains("TRACE")).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Bytes that a blob's data takes on the disk.
fn cached_bytes(cache: &Path) -> u64 {
    let entries = std::fs::read_dir(cache).unwrap().flatten();
    let data = entries.filter(|e| e.file_name().to_string_lossy().ends_with(".blob.data"));
    data.map(|e| e.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn ten_thousand_reads_through_faults_and_a_small_cache() {
    const LIMIT: u64 = 3 << 20;
    let afar = Afar::new();
    let cache = tempfile::tempdir().unwrap();
    afar.server.set(|s| {
        s.faults = Fault::ALL.to_vec();
        s.fault_percent = 20;
        s.stall = Duration::from_millis(300);
    });
    let (daemon, _dir) = afar.daemon(cache.path(), 10, LIMIT);
    let mut failed = afar.read_at_random(&daemon, 500, 1);
    let before = daemon.process.usage().unwrap();
    for seed in 2..21 {
        failed += afar.read_at_random(&daemon, 500, seed);
        assert!(cached_bytes(cache.path()) <= LIMIT, "{}", cached_bytes(cache.path()));
    }
    // The same damage twice in a row is an error, never wrong data.
    assert!(failed <= 100, "{failed} of 10000\n{}", tail(&daemon));
    let after = daemon.process.usage().unwrap();
    assert!(after.descriptors <= before.descriptors + 70, "{before:?} {after:?}");
    assert!(after.anon_kib <= before.anon_kib + (48 << 10), "{before:?} {after:?}");

    // Gone: EIO in time. Back: all is well, without a restart.
    afar.server.set(|s| {
        s.faults.clear();
        s.fault_percent = 0;
    });
    afar.assert_all(&daemon, "after the faults");
    assert!(cached_bytes(cache.path()) <= LIMIT);
}

#[test]
fn a_store_that_is_gone_is_an_error_and_its_return_needs_no_restart() {
    let afar = Afar::new();
    let cache = tempfile::tempdir().unwrap();
    let (daemon, _dir) = afar.daemon(cache.path(), 1, 0);
    afar.server.set(|s| s.latency = Duration::from_secs(4));
    assert_eq!(afar.read_at_random(&daemon, 4, 2), 4);
    assert!(tail(&daemon).contains("reading failed: no data after 1s"), "{}", tail(&daemon));
    afar.server.set(|s| (s.latency, s.down) = (Duration::ZERO, true));
    assert_eq!(afar.read_at_random(&daemon, 16, 1), 16);
    afar.server.set(|s| s.down = false);
    let recovered = (0..50).any(|n| {
        std::thread::sleep(Duration::from_millis(100));
        afar.read_at_random(&daemon, 16, n) == 0
    });
    assert!(recovered, "{}", tail(&daemon));
    afar.assert_all(&daemon, "after its return");
}

#[test]
fn killed_in_mid_fetch_it_goes_on_from_its_cache() {
    let afar = Afar::new();
    let cache = tempfile::tempdir().unwrap();
    for round in 0..4u64 {
        afar.server.set(|s| s.latency = Duration::from_millis(20));
        let (mut daemon, _dir) = afar.daemon(cache.path(), 10, 0);
        let mut client = connect(&daemon);
        for (path, data) in afar.files.iter().skip(usize::try_from(round).unwrap() * 30).take(30) {
            let node = client.resolve(path.as_bytes()).unwrap().node;
            let len = u32::try_from(data.len()).unwrap().min(131_072);
            client.session.submit(1, READ, node, &read_in(0, 0, len), Some(len)).unwrap();
        }
        client.session.flush().unwrap();
        std::thread::sleep(Duration::from_millis(25 + round * 10));
        daemon.process.kill().unwrap();
        afar.server.set(|s| s.latency = Duration::ZERO);
        let (daemon, _dir) = afar.daemon(cache.path(), 10, 0);
        afar.read_at_random(&daemon, 100, round);
        if round == 3 {
            afar.assert_all(&daemon, "after kills");
        }
    }
    // A warm directory serves without its store.
    afar.server.set(|s| s.down = true);
    let (daemon, _dir) = afar.daemon(cache.path(), 1, 0);
    afar.assert_all(&daemon, "without the store");
}

#[test]
fn damaged_cache_files_are_mended() {
    let afar = Afar::new();
    let cache = tempfile::tempdir().unwrap();
    let fill = || {
        let (daemon, _dir) = afar.daemon(cache.path(), 10, 0);
        afar.assert_all(&daemon, "filling");
    };
    fill();
    let (data, map) = (
        cache.path().join(format!("{}.blob.data", afar.blob())),
        cache.path().join(format!("{}.chunk_map", afar.blob())),
    );
    let open = |path: &Path| std::fs::File::options().read(true).write(true).open(path).unwrap();
    let damages: [(&str, &dyn Fn()); 4] = [
        ("flipped bytes", &|| {
            for at in (0..std::fs::metadata(&data).unwrap().len()).step_by(20_000) {
                open(&data).write_all_at(&[0x5a; 3], at).unwrap();
            }
        }),
        ("half of the data", &|| open(&data).set_len(std::fs::metadata(&data).unwrap().len() / 2).unwrap()),
        ("a map of ones and no data", &|| {
            let len = std::fs::metadata(&data).unwrap().len();
            open(&data).set_len(0).unwrap();
            open(&data).set_len(len).unwrap();
            open(&map).write_all_at(&[0xff; 64], 4096).unwrap();
        }),
        ("no table", &|| {
            std::fs::write(cache.path().join(format!("{}.blob.meta", afar.blob())), b"x").unwrap()
        }),
    ];
    for (what, damage) in damages {
        damage();
        let (daemon, _dir) = afar.daemon(cache.path(), 10, 0);
        afar.assert_all(&daemon, what);
        afar.assert_all(&daemon, what);
    }
}

#[test]
fn two_daemons_share_a_directory_that_is_too_small() {
    const LIMIT: u64 = 4 << 20;
    let afar = Afar::new();
    let cache = tempfile::tempdir().unwrap();
    let daemons = [0, 1].map(|_| afar.daemon(cache.path(), 10, LIMIT));
    std::thread::scope(|scope| {
        for (n, (daemon, _)) in daemons.iter().enumerate() {
            let afar = &afar;
            scope.spawn(move || {
                for round in 0..4 {
                    assert_eq!(afar.read_at_random(daemon, 200, n as u64 * 10 + round), 0);
                }
                afar.assert_all(daemon, "shared");
            });
        }
    });
    assert!(cached_bytes(cache.path()) <= LIMIT, "{}", cached_bytes(cache.path()));
    let [(first, _a), (second, _b)] = daemons;
    let command = |args: &[&str]| {
        let mut command = Command::new(ours("rafsd").unwrap());
        command.arg("cache").arg(args[0]).arg(cache.path()).args(&args[1..]).output().unwrap()
    };
    let list = String::from_utf8(command(&["list"]).stdout).unwrap();
    assert!(list.contains("in-use") && list.contains(&afar.blob()), "{list}");
    let refused = command(&["drop", &afar.blob()]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("in use"));
    drop(first);
    // Alone, it takes away what is cold.
    afar.assert_all(&second, "alone");
    afar.assert_all(&second, "alone, again");
    assert!(cached_bytes(cache.path()) <= LIMIT, "{}\n{}", cached_bytes(cache.path()), tail(&second));
    drop(second);
    assert!(command(&["drop", &afar.blob()]).status.success());
    assert!(command(&["list"]).stdout.is_empty() && cached_bytes(cache.path()) == 0);
}

#[test]
fn a_trace_of_one_boot_fetches_ahead_of_another() {
    let afar = Afar::new();
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let serve = |cache: &Path, flag: &str| {
        std::fs::create_dir_all(cache).unwrap();
        let config = afar.config(cache, &cache.join("c"), 10, 0);
        let flags = [flag, trace.to_str().unwrap()];
        Daemon::rafsd_with(&afar.image.bootstrap, &config, &flags).unwrap()
    };
    let read_some = |daemon: &Daemon| {
        let mut client = connect(daemon);
        for (path, data) in afar.files.iter().rev().step_by(4) {
            let node = client.resolve(path.as_bytes()).unwrap().node;
            let len = u32::try_from(data.len()).unwrap().min(131_072);
            assert!(client.read(node, 0, 0, len).unwrap() == data[..len as usize], "{path}");
        }
        client.unmount().unwrap();
    };
    let first = serve(&dir.path().join("1"), "--record-trace");
    read_some(&first);
    drop(first);
    let chunks = std::fs::read_to_string(&trace).unwrap().lines().count() - 2;
    assert!(chunks >= 30, "{chunks}");

    afar.server.forget_records();
    let second = serve(&dir.path().join("2"), "--prefetch-trace");
    let bytes = || cached_bytes(&dir.path().join("2/c"));
    let mut last = 0;
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(100));
        if bytes() == last && last > 0 {
            break;
        }
        last = bytes();
    }
    let asked = afar.server.records().len();
    assert!(asked > 1);
    read_some(&second);
    assert_eq!(afar.server.records().len(), asked, "something was asked for that the trace has");
    drop(second);
    std::fs::write(&trace, "no trace\n").unwrap();
    let config = afar.config(dir.path(), &dir.path().join("3"), 10, 0);
    let error =
        Daemon::rafsd_with(&afar.image.bootstrap, &config, &["--prefetch-trace", trace.to_str().unwrap()]);
    assert!(format!("{:#}", error.unwrap_err()).contains("is no trace"));
}
