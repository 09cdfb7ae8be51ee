//! `rafsd cache`: what a cache directory holds, and getting rid of it.

use anyhow::{Context, bail};
use clap::Subcommand;
use rafs::cache::CacheDir;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What can be done with a cache directory.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the blobs that have data in a cache directory: bytes on the disk, bytes of the whole blob, age, use, id
    List {
        /// The directory: "work_dir" of the configuration, or that of --localfs-dir
        dir: PathBuf,
    },
    /// Remove the cache files of one blob, or of all that no daemon uses
    #[command(after_help = "Example:\n  rafsd cache drop /var/lib/rafsd/cache 5f1c0e...\n\n\
        A blob that a daemon has open stays, and the command fails and says so.")]
    Drop {
        /// The directory
        dir: PathBuf,
        /// Blob id; without one, every blob that is not in use
        blob: Option<String>,
    },
}

/// Runs it.
pub(super) fn run(command: &CacheCommand) -> anyhow::Result<()> {
    match command {
        CacheCommand::List { dir } => list(&open(dir)?),
        CacheCommand::Drop { dir, blob: Some(blob) } => {
            open(dir)?.drop_blob(blob).with_context(|| format!("blob {blob} stays"))
        }
        CacheCommand::Drop { dir, blob: None } => {
            let dir = open(dir)?;
            for blob in dir.list().iter().filter(|blob| !blob.in_use) {
                dir.drop_blob(&blob.id).with_context(|| format!("blob {} stays", blob.id))?;
            }
            Ok(())
        }
    }
}

fn open(dir: &Path) -> anyhow::Result<CacheDir> {
    // Opening would make it.
    if !dir.is_dir() {
        bail!("there is no directory {}", dir.display());
    }
    Ok(CacheDir::open(dir)?)
}

fn list(dir: &CacheDir) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let now = SystemTime::now();
    for blob in dir.list() {
        let age = now.duration_since(blob.modified).unwrap_or(Duration::ZERO).as_secs();
        let used = if blob.in_use { "in-use" } else { "idle" };
        writeln!(out, "{:>12} {:>12} {age:>9}s {used:<6} {}", blob.bytes, blob.size, blob.id)
            .context("writing the list")?;
    }
    Ok(())
}
