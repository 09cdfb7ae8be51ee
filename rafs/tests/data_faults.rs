//! What may go wrong with blobs and caches, and what a reader makes of it: right bytes or an error, never wrong bytes, never
//! a hang. Stores that misbehave are in `odd_stores.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod support;

use rafs::reader::{Reader, ReaderOptions};
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::Duration;
use support::*;

/// Reads every file; panics on wrong data, returns how many failed.
fn right_or_error(case: &Case, reader: &Reader, what: &str) -> usize {
    let mut failed = 0;
    for file in &case.files {
        match read_all(reader, &file.path) {
            Ok(data) => assert_eq!(sha256(&data), file.sha256, "{} {what}", case.name),
            Err(error) => {
                assert_eq!(error.errno(), 5, "{error}");
                failed += 1;
            }
        }
    }
    failed
}

fn reader_of(case: &Case, blobs: &Path, cache: Option<&Path>) -> Reader {
    Reader::new(case.image(), Counted::of_dir(blobs), options(cache)).unwrap()
}

/// The largest file in a directory: the data blob.
fn largest(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    files.max_by_key(|p| std::fs::metadata(p).unwrap().len()).unwrap()
}

#[test]
fn a_flipped_bit_in_a_blob_never_becomes_wrong_data() {
    let mut random = Random(1);
    for name in VARIED {
        let case = case(name);
        let mut failed = 0;
        for round in 0..12 {
            let blobs = case.copy_of_blobs();
            let path = largest(blobs.path());
            let mut data = std::fs::read(&path).unwrap();
            let at = usize::try_from(random.below(data.len() as u64)).unwrap();
            data[at] ^= 1 << random.below(8);
            std::fs::write(&path, &data).unwrap();
            let cache = tempfile::tempdir().unwrap();
            let cached = (round % 2 == 0).then(|| cache.path());
            let reader = reader_of(&case, blobs.path(), cached);
            failed += right_or_error(&case, &reader, "flipped bit");
            right_or_error(&case, &reader, "flipped bit, again");
            drop(reader);
            if cached.is_some() {
                // Nothing bad went into the cache, and the undamaged blob mends the rest.
                let reader = reader_of(&case, &case.blobs(), cached);
                assert_all_files(&case, &reader, "after damage");
            }
        }
        assert!(failed > 0, "{name}: no flip was noticed");
    }
}

#[test]
fn a_truncated_blob_gives_what_it_has() {
    for name in VARIED {
        let case = case(name);
        let (mut failed, mut good) = (0, 0);
        for tenth in [0, 2, 5, 9] {
            let blobs = case.copy_of_blobs();
            let path = largest(blobs.path());
            let len = std::fs::metadata(&path).unwrap().len() * tenth / 10;
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
            let reader = reader_of(&case, blobs.path(), None);
            let error = reader.check_blobs().unwrap_err().to_string();
            assert!(
                error.contains(
                    &case
                        .image()
                        .blobs()
                        .iter()
                        .map(|b| b.id.as_str())
                        .find(|id| error.contains(id))
                        .unwrap()
                        .to_owned()
                ),
                "{error}"
            );
            let bad = right_or_error(&case, &reader, "truncated");
            failed += bad;
            good += case.files.len() - bad;
        }
        assert!(failed > 0 && good > 0, "{name}: {failed} failed, {good} good");
    }
}

#[test]
fn a_missing_blob_that_comes_back_is_read_without_a_restart() {
    for name in ["v5-zstd-blake3", "v6-zstd-blake3", "v6-targz-ref", "v6-tarfs", "v6-none-sha256"] {
        for with_cache in [true, false] {
            let case = case(name);
            let blobs = tempfile::tempdir().unwrap();
            let cache = tempfile::tempdir().unwrap();
            let reader = reader_of(&case, blobs.path(), with_cache.then(|| cache.path()));
            let failed = right_or_error(&case, &reader, "missing");
            assert!(failed > case.files.len() / 2, "{name}");
            let error = reader.check_blobs().unwrap_err().to_string();
            assert!(error.contains(&case.blob_ids()[0]) && error.contains("no such file"), "{error}");
            for entry in std::fs::read_dir(case.blobs()).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), blobs.path().join(entry.file_name())).unwrap();
            }
            reader.check_blobs().unwrap();
            assert_all_files(&case, &reader, "restored");
        }
    }
}

#[test]
fn damaged_cache_files_are_noticed_and_mended() {
    let case = case("v6-zstd-blake3");
    let id = &case.blob_ids()[0];
    type Damage = fn(&Path, &Path);
    let damages: [(&str, Damage); 10] = [
        ("flipped data", |data, _| {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(data).unwrap();
            for at in (0..file.metadata().unwrap().len()).step_by(1000) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[!byte[0]], at).unwrap();
            }
        }),
        ("empty data", |data, _| std::fs::write(data, b"").unwrap()),
        ("half of the data", |data, _| {
            let file = std::fs::OpenOptions::new().write(true).open(data).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("data too long", |data, _| {
            let file = std::fs::OpenOptions::new().write(true).open(data).unwrap();
            file.set_len(file.metadata().unwrap().len() * 2).unwrap();
        }),
        ("data is a directory", |data, _| {
            std::fs::remove_file(data).unwrap();
            std::fs::create_dir(data).unwrap();
        }),
        ("data is a link", |data, _| {
            std::fs::remove_file(data).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", data).unwrap();
        }),
        ("no map", |_, map| std::fs::remove_file(map).unwrap()),
        ("map of ones", |data, map| {
            // Keeps its header, claims everything, and the data is gone.
            let file = std::fs::OpenOptions::new().write(true).open(map).unwrap();
            file.write_all_at(&[0xff; 8192], 4096).unwrap();
            let len = std::fs::metadata(data).unwrap().len();
            std::fs::File::create(data).unwrap().set_len(len).unwrap();
        }),
        ("map of noise", |_, map| {
            let len = usize::try_from(std::fs::metadata(map).unwrap().len()).unwrap();
            std::fs::write(map, vec![0x5a; len]).unwrap();
        }),
        ("map is a directory", |_, map| {
            std::fs::remove_file(map).unwrap();
            std::fs::create_dir(map).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let cache = tempfile::tempdir().unwrap();
        let reader = case.reader(Some(cache.path()));
        assert_all_files(&case, &reader, "before");
        drop(reader);
        damage(&cache.path().join(format!("{id}.blob.data")), &cache.path().join(format!("{id}.chunk_map")));
        let reader = case.reader(Some(cache.path()));
        assert_all_files(&case, &reader, what);
        if !what.contains("data is a") {
            assert_all_hot(&case, &reader, what);
        }
    }
}

#[test]
fn a_cache_file_that_shrinks_under_a_running_reader_is_filled_again() {
    let case = case("v6-zstd-blake3");
    let cache = tempfile::tempdir().unwrap();
    let reader = case.reader(Some(cache.path()));
    assert_all_files(&case, &reader, "before");
    let data = cache.path().join(format!("{}.blob.data", case.blob_ids()[0]));
    std::fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(0).unwrap();
    assert_all_files(&case, &reader, "after it shrank");
    assert_all_hot(&case, &reader, "after it shrank");
}

#[test]
fn a_directory_that_cannot_hold_a_cache_is_no_obstacle() {
    let case = case("v6-batch");
    let file = tempfile::NamedTempFile::new().unwrap();
    for bad in [Path::new("/sys/kernel"), Path::new("/proc/self/none"), file.path()] {
        let reader = case.reader(Some(bad));
        assert_all_files(&case, &reader, "no cache directory");
    }
}

#[test]
fn many_threads_cause_one_fetch_a_unit() {
    for name in ["v6-large-files", "v5-zstd-sha256-4k", "v6-batch", "v6-targz-ref"] {
        for with_cache in [true, false] {
            let case = Arc::new(case(name));
            let cache = tempfile::tempdir().unwrap();
            let store = Counted::of_dir(&case.blobs());
            let mut options = options(with_cache.then(|| cache.path()));
            options.workers = 4;
            let remote = Arc::new(Remote(Arc::clone(&store)));
            let reader = Arc::new(Reader::new(case.image(), remote, options).unwrap());
            let start = Arc::new(Barrier::new(8));
            let threads: Vec<_> = (0..8u64)
                .map(|seed| {
                    let (case, reader, start) = (Arc::clone(&case), Arc::clone(&reader), Arc::clone(&start));
                    std::thread::spawn(move || {
                        let mut random = Random(seed);
                        start.wait();
                        for _ in 0..case.files.len() * 3 {
                            let n = usize::try_from(random.below(case.files.len() as u64)).unwrap();
                            let data = read_all(&reader, &case.files[n].path).unwrap();
                            assert_eq!(sha256(&data), case.files[n].sha256);
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            let ranges = store.fetched_ranges.lock().unwrap();
            let distinct: HashSet<_> = ranges.iter().map(|(o, r)| (o.clone(), r.start)).collect();
            assert_eq!(distinct.len(), ranges.len(), "{name}: something was fetched twice: {ranges:?}");
        }
    }
}

#[test]
fn two_readers_share_a_directory() {
    let case = Arc::new(case("v6-zstd-sha256-4k"));
    for _ in 0..5 {
        let cache = tempfile::tempdir().unwrap();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (case, reader) = (Arc::clone(&case), case.reader(Some(cache.path())));
                std::thread::spawn(move || {
                    assert_all_files(&case, &reader, "shared");
                    assert_all_hot(&case, &reader, "shared");
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let nothing = tempfile::tempdir().unwrap();
        let reader = reader_of(&case, nothing.path(), Some(cache.path()));
        assert_all_files(&case, &reader, "shared, afterwards");
    }
}

#[test]
fn a_reader_finds_what_another_has_fetched_meanwhile() {
    let case = case("v6-zstd-blake3");
    let cache = tempfile::tempdir().unwrap();
    let store = case.store();
    let second = Reader::new(case.image(), Arc::clone(&store) as _, options(Some(cache.path()))).unwrap();
    read_all(&second, &case.files[0].path).unwrap();
    let first = case.reader(Some(cache.path()));
    assert_all_files(&case, &first, "first");
    assert_all_hot(&case, &first, "first");
    let before = store.count();
    assert_all_files(&case, &second, "second");
    assert_eq!(store.count(), before);
}

/// Changes the boot id in a map file, as a reboot would have done.
fn pretend_reboot(map: &Path) {
    let mut bytes = std::fs::read(map).unwrap();
    bytes[16] ^= 0xff;
    let crc = rafs::codec::crc32c(&bytes[..64]);
    bytes[64..68].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(map, bytes).unwrap();
}

const CHILD_DIR: &str = "RAFS_TEST_CHILD_CACHE";

/// Not a test of its own: the process that gets killed. Reads everything again and again.
#[test]
fn child_that_reads_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let case = case("v6-zstd-sha256-4k");
    let reader = case.reader(Some(Path::new(&dir)));
    println!("\nstarted");
    assert_all_files(&case, &reader, "child");
    assert_all_hot(&case, &reader, "child");
    println!("\nready");
    std::thread::sleep(Duration::from_secs(60));
}

/// Starts the child on `dir` and kills it (SIGKILL) `after` it has said `word`.
fn run_and_kill(dir: &Path, word: &str, after: Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_reads_until_it_is_killed", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == word));
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn live_survives_kill_and_durable_survives_a_reboot() {
    let case = case("v6-zstd-sha256-4k");
    let nothing = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let map = cache.path().join(format!("{}.chunk_map", case.blob_ids()[0]));
    run_and_kill(cache.path(), "ready", Duration::ZERO);
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(cache.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    // Killed, same boot: `live` is enough, no store needed; the clean end makes it durable.
    let reader = reader_of(&case, nothing.path(), Some(cache.path()));
    assert_all_files(&case, &reader, "after kill");
    drop(reader);

    // Killed, then a reboot before anything was durable: everything comes from the store again.
    pretend_reboot(&copy.path().join(map.file_name().unwrap()));
    let store = case.store();
    let reader = Reader::new(case.image(), Arc::clone(&store) as _, options(Some(copy.path()))).unwrap();
    assert_all_files(&case, &reader, "after kill and reboot");
    let image = case.image();
    let data: u64 = store.fetched_ranges.lock().unwrap().iter().map(|(_, r)| r.end - r.start).sum();
    let stored: u64 = image.chunk_table().iter().map(|r| u64::from(r.compressed_size.get())).sum();
    assert!(data >= stored, "{data} of {stored} bytes");
    drop(reader);

    // What the clean end of the second reader made durable survives a reboot. (Opened without a store, as all is there.)
    let reader = case.reader(Some(cache.path()));
    assert_all_files(&case, &reader, "once more");
    drop(reader);
    pretend_reboot(&map);
    let reader = reader_of(&case, nothing.path(), Some(cache.path()));
    right_or_error(&case, &reader, "reboot");
    drop(reader);
    pretend_reboot(&copy.path().join(map.file_name().unwrap()));
    let reader = reader_of(&case, nothing.path(), Some(copy.path()));
    assert_all_files(&case, &reader, "after a clean end and a reboot");
}

#[test]
fn killed_at_any_moment_the_cache_is_still_right() {
    let case = case("v6-zstd-sha256-4k");
    let cache = tempfile::tempdir().unwrap();
    for ms in [0, 1, 2, 4, 8, 15, 30] {
        run_and_kill(cache.path(), "started", Duration::from_millis(ms));
        let reader = case.reader(Some(cache.path()));
        assert_all_files(&case, &reader, "after kill");
        assert_all_hot(&case, &reader, "after kill");
        drop(reader);
        if ms % 2 == 0 {
            for entry in std::fs::read_dir(cache.path()).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
    }
}

#[test]
fn little_memory_is_enough() {
    for name in ["v6-large-files", "v6-targz-ref", "v6-batch"] {
        let case = case(name);
        let mut options = options(None);
        options.memory_limit = 1;
        options.workers = 1;
        let reader = Arc::new(Reader::new(case.image(), Arc::new(Remote(case.store())), options).unwrap());
        let case = Arc::new(case);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (case, reader) = (Arc::clone(&case), Arc::clone(&reader));
                std::thread::spawn(move || assert_all_files(&case, &reader, "little memory"))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn without_verification_cached_chunks_are_trusted_and_reads_still_work() {
    let case = case("v6-zstd-blake3");
    let cache = tempfile::tempdir().unwrap();
    let trusting = || ReaderOptions { verify: false, ..options(Some(cache.path())) };
    let reader = Reader::new(case.image(), case.store(), trusting()).unwrap();
    assert_all_files(&case, &reader, "unverified");
    drop(reader);
    let nothing = tempfile::tempdir().unwrap();
    let reader = Reader::new(case.image(), Counted::of_dir(nothing.path()), trusting()).unwrap();
    assert_all_files(&case, &reader, "unverified, restarted");
    assert_all_hot(&case, &reader, "unverified, restarted");
}

/// Not a test of its own: reads everything in a process that may write no more than a few KiB to a file.
#[test]
fn child_on_a_full_disk() {
    let Ok(dir) = std::env::var("RAFS_TEST_FULL_DISK") else { return };
    let case = case("v6-zstd-sha256-4k");
    let reader = case.reader(Some(Path::new(&dir)));
    assert_all_files(&case, &reader, "full disk");
    assert_all_files(&case, &reader, "full disk, again");
    println!("\nread everything");
}

#[test]
fn a_full_disk_costs_the_cache_and_nothing_else() {
    let case = case("v6-zstd-sha256-4k");
    let image = case.image();
    let info = &image.blobs()[0];
    for length_is_there in [true, false] {
        let cache = tempfile::tempdir().unwrap();
        if length_is_there {
            let data = std::fs::File::create(cache.path().join(format!("{}.blob.data", info.id))).unwrap();
            data.set_len(info.uncompressed_size).unwrap();
        }
        let output = Command::new("sh")
            .args(["-c", r#"trap "" XFSZ; ulimit -f 40; exec "$0" "$@""#])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child_on_a_full_disk", "--nocapture"])
            .env("RAFS_TEST_FULL_DISK", cache.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("read everything"), "{text}");
        let reader = case.reader(Some(cache.path()));
        assert_all_files(&case, &reader, "after a full disk");
        assert_all_hot(&case, &reader, "after a full disk");
    }
}
