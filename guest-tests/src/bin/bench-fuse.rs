//! `bench-fuse [TREE]`: `rafsd fuse` beside the kernel's EROFS on a disk image of the same v6 image, and the plain
//! directory. Needs root. Rounds are interleaved; each figure is the median; ratios are over EROFS, larger is better.
//! "hot" is what the kernel's page cache of the mount has; "warm" is dropped from there before each read, so that it
//! comes from the daemon's (or EROFS's) own cache in memory. Without TREE it packs files of /usr/lib, 200 MB of them.

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
use guest_tests::support::random::Random;
use rustix::mount::UnmountFlags;

const ROUNDS: usize = 5;
const TREE_BYTES: u64 = 200_000_000;
const SEQUENTIAL: usize = 1 << 20;
const RANDOM: usize = 4096;
const RANDOM_READS: u64 = 4000;

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

/// One load; returns operations done.
fn run(load: &str, dir: &Path, files: &[(PathBuf, u64)], largest: &Path, size: u64) -> Result<u64> {
    let mut buffer = vec![0; SEQUENTIAL];
    let count = |n: usize| n as u64;
    match load {
        "find" => Ok(count(find(dir)?.len())),
        "tar, hot" | "tar, warm" => {
            for (path, _) in files {
                read_through(path, load.ends_with("warm"), &mut buffer)?;
            }
            Ok(count(files.len()))
        }
        "sequential 1M, hot" | "sequential 1M, warm" => {
            Ok(read_through(largest, load.ends_with("warm"), &mut buffer)?.div_ceil(SEQUENTIAL as u64))
        }
        _ => {
            let file = File::open(largest)?;
            let mut random = Random::new(1);
            buffer.truncate(RANDOM);
            for i in 0..RANDOM_READS {
                if i % 500 == 0 && load.ends_with("warm") {
                    drop_pages(&file);
                }
                file.read_at(&mut buffer, random.below(size))?;
            }
            Ok(RANDOM_READS)
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

#[allow(clippy::cast_precision_loss, reason = "figures of a benchmark")]
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
    for load in [
        "find",
        "tar, hot",
        "tar, warm",
        "sequential 1M, hot",
        "sequential 1M, warm",
        "random 4K, hot",
        "random 4K, warm",
    ] {
        let mut rates = [const { Vec::new() }; 3];
        let mut cpu = Vec::new();
        // The first round fetches and fills caches, and does not count.
        for round in 0..=ROUNDS {
            for ((target, rates), (files, largest, size)) in targets.iter().zip(&mut rates).zip(&listed) {
                let before = target.daemon.as_ref().map(Process::usage).transpose()?;
                let clock = Instant::now();
                let operations = run(load, &target.path, files, largest, *size)
                    .with_context(|| format!("{load} on {}", target.name))?;
                let elapsed = clock.elapsed().as_secs_f64();
                if round == 0 {
                    continue;
                }
                rates.push(operations as f64 / elapsed);
                if let (Some(before), Some(daemon)) = (before, &target.daemon) {
                    let used = daemon.usage()?.cpu.saturating_sub(before.cpu);
                    cpu.push(used.as_secs_f64() * 1e6 / operations.max(1) as f64);
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
