//! A daemon whose store fails, whose cache is too small, damaged or shared, and which is killed: right data or EIO, and
//! afterwards all is well again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::fuse::read_in;
use guest_tests::servers::Fault;
use guest_tests::support::afar::{Afar, READ, cached_bytes, connect, tail};
use guest_tests::support::binaries::ours;
use guest_tests::support::daemon::Daemon;
use guest_tests::support::random::Random;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

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
    let elsewhere = cache.path().join("elsewhere");
    {
        let (daemon, _dir) = afar.daemon(cache.path(), 10, 0);
        afar.assert_all(&daemon, "filling");
    }
    let file = |suffix: &str| cache.path().join(format!("{}{suffix}", afar.blob()));
    let (data, map, table) = (file(".blob.data"), file(".chunk_map"), file(".blob.meta"));
    let open = |path: &Path| std::fs::File::options().read(true).write(true).open(path).unwrap();
    let len = |path: &Path| std::fs::metadata(path).unwrap().len();
    let flip = |path: &Path, from: u64, step: usize| {
        for at in (from..len(path)).step_by(step) {
            let mut byte = [0];
            open(path).read_exact_at(&mut byte, at).unwrap();
            open(path).write_all_at(&[byte[0] ^ 0x5a], at).unwrap();
        }
    };
    let remove = |path: &Path| {
        let removed = if path.is_dir() { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
        removed.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    };
    // What, and what is to be taken out of the way afterwards, since nobody but the operator may do that.
    type Damage<'a> = (&'a str, &'a dyn Fn(), &'a [&'a Path]);
    let damages: [Damage<'_>; 16] = [
        ("flipped bytes", &|| flip(&data, 0, 20_000), &[]),
        ("half of the data", &|| open(&data).set_len(len(&data) / 2).unwrap(), &[]),
        (
            "a map of ones and no data",
            &|| {
                let size = len(&data);
                open(&data).set_len(0).unwrap();
                open(&data).set_len(size).unwrap();
                open(&map).write_all_at(&[0xff; 64], 4096).unwrap();
            },
            &[],
        ),
        ("flipped bits in the bitmaps", &|| flip(&map, 4096, 7), &[]),
        ("flipped bits in the entries", &|| flip(&map, 4096 * 4, 11), &[]),
        ("a flipped header", &|| flip(&map, 0, 5000), &[]),
        ("half of the map", &|| open(&map).set_len(len(&map) / 2).unwrap(), &[]),
        ("no table", &|| std::fs::write(&table, b"x").unwrap(), &[]),
        ("a flipped table", &|| flip(&table, 3, 100), &[]),
        (
            "a directory for the data",
            &|| {
                remove(&data);
                std::fs::create_dir(&data).unwrap();
            },
            &[&data],
        ),
        (
            "a link for the data",
            &|| {
                std::fs::write(&elsewhere, b"precious").unwrap();
                std::os::unix::fs::symlink(&elsewhere, &data).unwrap();
            },
            &[&data],
        ),
        ("another name of a file for the data", &|| std::fs::hard_link(&elsewhere, &data).unwrap(), &[&data]),
        ("a pipe for the data", &|| fifo(&data), &[&data]),
        (
            "a pipe for the map",
            &|| {
                remove(&map);
                fifo(&map);
            },
            &[&map],
        ),
        ("a directory for the map", &|| std::fs::create_dir(&map).unwrap(), &[&map]),
        (
            "a link for the table",
            &|| {
                remove(&table);
                std::os::unix::fs::symlink(&elsewhere, &table).unwrap();
            },
            &[&table],
        ),
    ];
    for (what, damage, in_the_way) in damages {
        damage();
        let (daemon, _dir) = afar.daemon(cache.path(), 10, 0);
        afar.assert_all(&daemon, what);
        afar.assert_all(&daemon, what);
        drop(daemon);
        in_the_way.iter().for_each(|path| {
            if path.symlink_metadata().is_ok() {
                remove(path)
            }
        });
        if elsewhere.exists() {
            assert_eq!(
                std::fs::read(&elsewhere).unwrap(),
                b"precious",
                "{what}: another file was written to"
            );
        }
    }
    // Files of somebody else, under these names.
    for path in [&data, &map, &table] {
        std::fs::write(path, vec![b'#'; 70_000]).unwrap();
    }
    let (daemon, _dir) = afar.daemon(cache.path(), 10, 0);
    afar.assert_all(&daemon, "foreign files");
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_limit_below_one_chunk_serves_without_keeping() {
    let afar = Afar::new();
    for limit in [1, 64 << 10, 200 << 10] {
        let cache = tempfile::tempdir().unwrap();
        let (daemon, _dir) = afar.daemon(cache.path(), 10, limit);
        assert_eq!(afar.read_at_random(&daemon, 300, limit), 0);
        afar.assert_all(&daemon, "a small limit");
        assert!(cached_bytes(cache.path()) <= limit, "{} of {limit}", cached_bytes(cache.path()));
    }
}

/// CRC-32C of the header of a map, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

#[test]
fn after_power_loss_the_durable_part_is_there_and_the_rest_is_fetched() {
    let afar = Afar::new();
    let cache = tempfile::tempdir().unwrap();
    let read = |daemon: &Daemon, skip: usize| {
        let mut client = connect(daemon);
        for (path, data) in afar.files.iter().skip(skip).step_by(2) {
            let node = client.resolve(path.as_bytes()).unwrap().node;
            let len = u32::try_from(data.len()).unwrap().min(131_072);
            assert!(client.read(node, 0, 0, len).unwrap() == data[..len as usize], "{path}");
        }
        client.unmount().unwrap();
    };
    let files = [".blob.data", ".chunk_map"].map(|s| cache.path().join(format!("{}{s}", afar.blob())));
    // An orderly end makes what is there durable.
    let (mut daemon, _dir) = afar.daemon(cache.path(), 10, 0);
    read(&daemon, 0);
    daemon.process.terminate().unwrap();
    daemon.process.wait(Duration::from_secs(20)).unwrap();
    let durable = files.each_ref().map(|path| std::fs::read(path).unwrap());
    // Then there is more, and the power goes.
    let (mut daemon, _dir) = afar.daemon(cache.path(), 10, 0);
    read(&daemon, 1);
    daemon.process.kill().unwrap();
    let written = files.each_ref().map(|path| std::fs::read(path).unwrap());
    for seed in 0..6 {
        // Any block that was written since may have reached the disk or not.
        let mut random = Random::new(seed);
        for ((path, old), new) in files.iter().zip(&durable).zip(&written) {
            let mut bytes = new.clone();
            for at in (0..bytes.len()).step_by(4096) {
                let block = at..(at + 4096).min(bytes.len());
                if seed == 0 || (seed < 5 && random.below(2) == 0) {
                    match old.get(block.clone()) {
                        Some(old) => bytes[block].copy_from_slice(old),
                        None => bytes[block].fill(0),
                    }
                }
            }
            if path.extension().is_some_and(|e| e == "chunk_map") {
                bytes[16] ^= 0xff;
                let crc = crc32c(&bytes[..64]);
                bytes[64..68].copy_from_slice(&crc.to_le_bytes());
            }
            std::fs::write(path, bytes).unwrap();
        }
        afar.server.set(|s| s.down = true);
        let (daemon, _dir) = afar.daemon(cache.path(), 1, 0);
        read(&daemon, 0);
        drop(daemon);
        afar.server.set(|s| s.down = false);
        let (daemon, _dir) = afar.daemon(cache.path(), 10, 0);
        afar.assert_all(&daemon, "after power loss");
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
