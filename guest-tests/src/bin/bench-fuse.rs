//! `bench-fuse [TREE]`: `rafsd fuse` beside the kernel's EROFS on a disk image of the same v6 image, and the plain
//! directory. Needs root. Rounds are interleaved; each figure is the median; ratios are over EROFS, larger is better.
//! "hot" is what the kernel's page cache of the mount has; "warm" is dropped from there before each round, so that it
//! comes from the daemon's (or EROFS's) own cache in memory. Sequential and random reads are those of fio(1), of the
//! largest file. Without TREE it packs files of /usr/lib, 200 MB of them.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_tests::support::binaries::ours;
use guest_tests::support::image::Image;
use guest_tests::support::process::Process;
use rustix::mount::UnmountFlags;
use serde_json::Value;

const ROUNDS: usize = 5;
const TREE_BYTES: u64 = 200_000_000;
/// Bytes that `tar` reads at a time.
const TAR_BLOCK: usize = 1 << 20;
/// Bytes that a round of fio reads; more than the file has: it begins again.
const SEQUENTIAL_BYTES: u64 = 1 << 30;
const RANDOM_BYTES: u64 = 256 << 20;
/// The same where pages have to come from below.
const RANDOM_WARM_BYTES: u64 = 16 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// Listing all directories and looking at each name.
    Find,
    /// Reading each file from its start to its end.
    Tar { warm: bool },
    /// Reading the largest file in order, with so many bytes a call.
    Sequential { block: usize, warm: bool },
    /// Reading 4 KiB anywhere in it.
    Random { warm: bool },
}

const LOADS: [Load; 10] = [
    Load::Find,
    Load::Tar { warm: false },
    Load::Tar { warm: true },
    Load::Sequential { block: 4 << 10, warm: false },
    Load::Sequential { block: 128 << 10, warm: false },
    Load::Sequential { block: 1 << 20, warm: false },
    Load::Sequential { block: 128 << 10, warm: true },
    Load::Sequential { block: 1 << 20, warm: true },
    Load::Random { warm: false },
    Load::Random { warm: true },
];

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = |warm| if warm { "warm" } else { "hot" };
        let text = match *self {
            Self::Find => "find".to_owned(),
            Self::Tar { warm } => format!("tar, {}", cache(warm)),
            Self::Sequential { block, warm } => format!("sequential {}K, {}", block >> 10, cache(warm)),
            Self::Random { warm } => format!("random 4K, {}", cache(warm)),
        };
        f.pad(&text)
    }
}

/// A directory that is measured, unmounted when dropped.
struct Target {
    name: &'static str,
    path: PathBuf,
    mounted: bool,
    daemon: Option<Process>,
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.mounted {
            let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        }
    }
}

fn copy_tree(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)?.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if *left == 0 {
            return Ok(());
        }
        if kind.is_dir() {
            let _ = copy_tree(&entry.path(), &to.join(entry.file_name()), left);
        } else if kind.is_file() {
            let copied = std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap_or(0);
            *left = left.saturating_sub(copied);
        }
    }
    Ok(())
}

/// All regular files below `dir`, with their sizes; looks at each name, as find does.
fn find(dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let (mut todo, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.is_file() {
                files.push((entry.path(), meta.len()));
            }
        }
    }
    Ok(files)
}

fn drop_pages(file: &File) {
    let _ = rustix::fs::fadvise(file.as_fd(), 0, None, rustix::fs::Advice::DontNeed);
}

/// Reads a file from its start to its end; returns the bytes.
fn read_through(path: &Path, warm: bool, buffer: &mut [u8]) -> Result<u64> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    if warm {
        drop_pages(&file);
    }
    let mut at = 0;
    loop {
        match file.read_at(buffer, at)? {
            0 => return Ok(at),
            n => at += n as u64,
        }
    }
}

/// Runs fio on a file; returns its calls and the seconds that they took.
fn fio(path: &Path, size: u64, pattern: &str, block: usize, bytes: u64, warm: bool) -> Result<(f64, f64)> {
    // Dropping pages is done by fio, before its clock runs; warm pages are read once.
    let (invalidate, bytes) = if warm { (1, bytes.min(size)) } else { (0, bytes) };
    let size = size / block as u64 * block as u64;
    let mut command = Command::new("fio");
    command.args(["--name=read", "--readonly", "--ioengine=psync", "--output-format=json"]);
    command.args([format!("--rw={pattern}"), format!("--bs={block}"), format!("--size={size}")]);
    command.args([format!("--io_size={bytes}"), format!("--invalidate={invalidate}")]);
    command.arg("--gtod_reduce=1").arg("--filename").arg(path);
    let output = command.output().context("fio cannot be started; `make bench` installs it")?;
    if !output.status.success() {
        bail!("fio: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let report: Value = serde_json::from_slice(&output.stdout).context("what fio says is no JSON")?;
    let read = report.pointer("/jobs/0/read").context("fio says nothing of reads")?;
    let number = |key: &str| read.get(key).and_then(Value::as_f64).with_context(|| format!("fio: no {key}"));
    Ok((number("total_ios")?, number("total_ios")? / number("iops")?))
}

/// One load; returns operations done and the seconds that they took.
#[allow(clippy::cast_precision_loss, reason = "figures of a benchmark")]
fn run(load: Load, dir: &Path, files: &[(PathBuf, u64)], largest: &Path, size: u64) -> Result<(f64, f64)> {
    let clock = Instant::now();
    match load {
        Load::Find => {
            let found = find(dir)?.len();
            Ok((found as f64, clock.elapsed().as_secs_f64()))
        }
        Load::Tar { warm } => {
            let mut buffer = vec![0; TAR_BLOCK];
            for (path, _) in files {
                read_through(path, warm, &mut buffer)?;
            }
            Ok((files.len() as f64, clock.elapsed().as_secs_f64()))
        }
        Load::Sequential { block, warm } => fio(largest, size, "read", block, SEQUENTIAL_BYTES, warm),
        Load::Random { warm } => {
            let bytes = if warm { RANDOM_WARM_BYTES } else { RANDOM_BYTES };
            fio(largest, size, "randread", 4096, bytes, warm)
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mount_erofs(image: &Image, dir: &Path) -> Result<Target> {
    let (disk, path) = (dir.join("disk"), dir.join("erofs"));
    let mut export = Command::new(ours("rafs-image")?);
    export.args(["export", "--block", "--log-level", "warn"]).arg("--bootstrap").arg(&image.bootstrap);
    let status = export.arg("--localfs-dir").arg(&image.blobs).arg("--output").arg(&disk).status()?;
    if !status.success() {
        bail!("rafs-image export: {status}");
    }
    std::fs::create_dir(&path)?;
    let status = Command::new("mount").args(["-t", "erofs", "-o", "ro"]).arg(&disk).arg(&path).status()?;
    if !status.success() {
        bail!("this kernel does not mount the disk image as EROFS: {status}");
    }
    Ok(Target { name: "EROFS", path, mounted: true, daemon: None })
}

fn mount_fuse(image: &Image, dir: &Path) -> Result<Target> {
    let path = dir.join("fuse");
    std::fs::create_dir(&path)?;
    let mut command = Command::new(ours("rafsd")?);
    command.args(["fuse", "--log-level", "warn", "--mountpoint"]).arg(&path);
    command.arg("--bootstrap").arg(&image.bootstrap).arg("--localfs-dir").arg(&image.blobs);
    let mut daemon = Process::spawn(&mut command, &dir.join("log"))?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while find(&path)?.is_empty() {
        if daemon.ended()?.is_some() || Instant::now() > deadline {
            bail!("rafsd does not mount:\n{}", daemon.output());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Target { name: "rafsd fuse", path, mounted: true, daemon: Some(daemon) })
}

fn main() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let tree = match std::env::args_os().nth(1) {
        Some(tree) => PathBuf::from(tree),
        None => {
            let tree = scratch.path().join("tree");
            let mut left = TREE_BYTES;
            copy_tree(Path::new("/usr/lib"), &tree, &mut left)?;
            tree
        }
    };
    // Chunks as they are: EROFS reads the same bytes that the daemon's cache file has.
    let image = Image::build(&tree, 6, &["--compressor", "none"])?;
    let erofs = mount_erofs(&image, scratch.path())?;
    let fuse = mount_fuse(&image, scratch.path())?;
    let plain = Target { name: "directory", path: tree, mounted: false, daemon: None };
    let targets = [fuse, erofs, plain];
    let mut listed = Vec::new();
    for target in &targets {
        let files = find(&target.path)?;
        let (largest, size) = files.iter().max_by_key(|(_, size)| *size).cloned().context("no files")?;
        listed.push((files, largest, size));
    }
    println!("rafsd fuse beside kernel EROFS and the directory; median of {ROUNDS} interleaved rounds");
    println!(
        "{:<22} {:>14} {:>14} {:>14} {:>8} {:>12}",
        "", "rafsd op/s", "EROFS op/s", "directory op/s", "ratio", "CPU us/op"
    );
    for load in LOADS {
        let mut rates = [const { Vec::new() }; 3];
        let mut cpu = Vec::new();
        // The first round fetches and fills caches, and does not count.
        for round in 0..=ROUNDS {
            for ((target, rates), (files, largest, size)) in targets.iter().zip(&mut rates).zip(&listed) {
                let before = target.daemon.as_ref().map(Process::usage).transpose()?;
                let (operations, seconds) = run(load, &target.path, files, largest, *size)
                    .with_context(|| format!("{load} on {}", target.name))?;
                if round == 0 {
                    continue;
                }
                rates.push(operations / seconds);
                if let (Some(before), Some(daemon)) = (before, &target.daemon) {
                    let used = daemon.usage()?.cpu.saturating_sub(before.cpu);
                    cpu.push(used.as_secs_f64() * 1e6 / operations.max(1.0));
                }
            }
        }
        let [ours, erofs, plain] = rates.map(median);
        println!(
            "{load:<22} {ours:>14.0} {erofs:>14.0} {plain:>14.0} {:>8.2} {:>12.2}",
            ours / erofs,
            median(cpu)
        );
    }
    Ok(())
}
