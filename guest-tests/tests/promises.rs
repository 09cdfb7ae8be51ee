//! The numbers of SPECIFICATION.md that a test can hold on a shared machine: CPU time, memory, never wall time.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guest_tests::support::binaries;
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::Image;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// 100,000 files of a few bytes in 200 directories.
fn many_files(root: &Path) {
    for dir in 0..200 {
        let dir_path = root.join(format!("d{dir:03}"));
        std::fs::create_dir(&dir_path).unwrap();
        for file in 0..500 {
            std::fs::write(dir_path.join(format!("file-{file:04}")), format!("{dir}-{file}")).unwrap();
        }
    }
}

/// `mib` MiB of data that neither compresses nor repeats, in files of 8 MiB.
fn much_data(root: &Path, mib: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut block = vec![0u8; 1 << 20];
    for file in 0..mib.div_ceil(8) {
        let mut out = std::fs::File::create(root.join(format!("big-{file}"))).unwrap();
        for _ in 0..8 {
            for word in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            out.write_all(&block).unwrap();
        }
    }
}

/// CPU time of all threads of a process so far, from the scheduler's own count.
fn cpu_time(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanos = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// A `kB` field of /proc/PID/status, bytes.
fn status_field(pid: u32, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// A ustar archive of `count` files of a few bytes each, no two alike, 500 in a directory.
fn archive_of(count: u64, mut out: impl Write) {
    let mut block = [0u8; 512];
    let put = |at: usize, text: &str, block: &mut [u8; 512]| {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    for n in 0..count {
        let name = format!("d{:05}/file-{n:08}", n / 500);
        block.fill(0);
        put(0, &name, &mut block);
        for (at, field) in [(100, "0000644"), (108, "0000000"), (116, "0000000"), (136, "00000000000")] {
            put(at, field, &mut block);
        }
        put(124, &format!("{:011o}", name.len()), &mut block);
        put(156, "0", &mut block);
        put(257, "ustar\u{0}00", &mut block);
        put(148, "        ", &mut block);
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        put(148, &format!("{sum:06o}\u{0} "), &mut block);
        out.write_all(&block).unwrap();
        block.fill(0);
        put(0, &name, &mut block);
        out.write_all(&block).unwrap();
    }
    out.write_all(&[0; 1024]).unwrap();
}

/// Runs `rafs-image create` and returns the most memory it had, bytes.
fn peak_of_create(source: &Path, version: &str) -> u64 {
    peak_of(&[OsStr::new("-v"), version.as_ref(), source.as_os_str()], |_| {})
}

/// Runs `rafs-image create` with `feed` at its standard input and returns the most memory it had, bytes.
fn peak_of(args: &[&OsStr], feed: impl FnOnce(ChildStdin) + Send) -> u64 {
    let out = tempfile::tempdir().unwrap();
    let mut child = Command::new(binaries::ours("rafs-image").unwrap())
        .args(["create", "--log-level", "warn", "--bootstrap"])
        .arg(out.path().join("boot"))
        .arg("--blob-dir")
        .arg(out.path())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || feed(stdin));
        watch(&mut child)
    })
}

fn watch(child: &mut Child) -> u64 {
    let mut peak = 0;
    loop {
        // The high-water mark only grows, so the last look before the end is near enough.
        peak = status_field(child.id(), "VmHWM").unwrap_or(peak).max(peak);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "rafs-image create: {status}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_daemon_with_100_000_files_starts_in_20_ms_of_cpu_and_15_mib() {
    let source = tempfile::tempdir().unwrap();
    many_files(source.path());
    for version in [5, 6] {
        let image = Image::build(source.path(), version, &[]).unwrap();
        // The best of three: cold caches and busy neighbours cost CPU time too.
        let starts = [(); 3].map(|()| {
            let daemon = Daemon::rafsd(&image.bootstrap, &image.blobs, 2, &[]).unwrap();
            (cpu_time(daemon.process.id()), daemon)
        });
        let (cpu, daemon) = starts.into_iter().min_by_key(|(cpu, _)| *cpu).unwrap();
        assert!(cpu <= Duration::from_millis(20), "v{version}: {cpu:?} of CPU before the socket was there");
        std::thread::sleep(Duration::from_millis(300));
        let rss = status_field(daemon.process.id(), "VmRSS").unwrap();
        assert!(rss <= 15 * MIB, "v{version}: {} KiB resident when idle", rss >> 10);
    }
}

#[test]
fn create_takes_128_mib_whatever_the_amount_of_data() {
    let small = tempfile::tempdir().unwrap();
    much_data(small.path(), 64);
    let large = tempfile::tempdir().unwrap();
    much_data(large.path(), 400);
    for version in ["5", "6"] {
        let (little, much) = (peak_of_create(small.path(), version), peak_of_create(large.path(), version));
        assert!(much <= 128 * MIB, "v{version}: {} MiB for 400 MiB of data", much / MIB);
        assert!(
            much <= little + 16 * MIB,
            "v{version}: {} MiB for 64 MiB of data, {} MiB for 400",
            little / MIB,
            much / MIB
        );
    }
}

#[test]
fn create_takes_400_bytes_for_a_further_entry() {
    let (few, many) = (50_000, 250_000);
    for version in ["5", "6"] {
        let args = ["-v", version, "--type", "tar-rafs", "/dev/stdin"].map(OsStr::new);
        let [little, much] = [few, many].map(|count| peak_of(&args, |stdin| archive_of(count, stdin)));
        let each = much.saturating_sub(little) / (many - few);
        assert!(each <= 400, "v{version}: {each} bytes an entry");
        assert!(each >= 50, "v{version}: {each} bytes an entry: was it looked at in time?");
    }
}
