//! `bench-create [TREE]`: how well `rafs-image create` uses two cores. One run with two threads, and two runs with one
//! thread each at the same time, over the same tree and interleaved; their throughput is compared, and the most memory
//! a run had is given. Without TREE it packs a tree of 600 MB made of this machine's own files below /usr.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_tests::support::binaries;

const ROUNDS: usize = 3;
const TREE_BYTES: u64 = 600_000_000;

/// Copies files of /usr/lib, /usr/bin and /usr/share until there are enough.
fn make_tree(to: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut folders: Vec<PathBuf> = ["/usr/lib", "/usr/bin", "/usr/share"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let target = to.join(folder.strip_prefix("/")?);
        std::fs::create_dir_all(&target)?;
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                bytes += std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap_or(0);
                if bytes >= TREE_BYTES {
                    return Ok(bytes);
                }
            }
        }
    }
    Ok(bytes)
}

fn start(tree: &Path, compressor: &str, threads: usize, out: &Path) -> Result<Child> {
    let mut command = Command::new(binaries::ours("rafs-image")?);
    command.args(["create", "--log-level", "warn", "--compressor", compressor, "--threads"]);
    command
        .arg(threads.to_string())
        .arg("--bootstrap")
        .arg(out.join("boot"))
        .arg("--blob")
        .arg(out.join("blob"));
    command.arg(tree).stdout(Stdio::null()).spawn().context("starting rafs-image")
}

/// Waits for a run and returns its high-water mark, bytes.
fn finish(mut child: Child) -> Result<u64> {
    let mut peak = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let mark =
            status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        peak = mark.map_or(peak, |kib: u64| kib * 1024).max(peak);
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("rafs-image create: {status}");
            }
            return Ok(peak);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let tree = match std::env::args_os().nth(1) {
        Some(tree) => PathBuf::from(tree),
        None => {
            let tree = scratch.path().join("tree");
            let bytes = make_tree(&tree)?;
            println!("tree: {} MB of this machine's own files", bytes / 1_000_000);
            tree
        }
    };
    println!("rafs-image create, v6, median of {ROUNDS} interleaved rounds");
    println!(
        "{:<10} {:>16} {:>20} {:>10} {:>10}",
        "compressor", "1 x 2 threads, s", "2 x 1 thread, s", "ratio", "peak MiB"
    );
    for compressor in ["zstd", "lz4_block", "none"] {
        let (mut together, mut apart, mut peak) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let (a, b) = (tempfile::tempdir()?, tempfile::tempdir()?);
            let clock = Instant::now();
            peak = finish(start(&tree, compressor, 2, a.path())?)?.max(peak);
            together.push(clock.elapsed().as_secs_f64());
            let clock = Instant::now();
            let (one, two) = (start(&tree, compressor, 1, a.path())?, start(&tree, compressor, 1, b.path())?);
            let other = std::thread::spawn(move || finish(two));
            finish(one)?;
            if other.join().is_ok_and(|r| r.is_err()) {
                bail!("a run with one thread failed");
            }
            apart.push(clock.elapsed().as_secs_f64());
        }
        let (together, apart) = (median(together), median(apart));
        // Two runs pack the tree twice in `apart`; one run packs it once in `together`.
        let ratio = apart / (2.0 * together);
        println!("{compressor:<10} {together:>16.2} {apart:>20.2} {ratio:>10.2} {:>10}", peak >> 20);
    }
    Ok(())
}
