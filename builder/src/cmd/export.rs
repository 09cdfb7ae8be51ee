//! `rafs-image export`.

use super::backend::ConfigFile;
use crate::blobs::BlobPlace;
use crate::export::{self, ExportOptions};
use anyhow::{Context as _, bail};
use std::io::Write as _;
use std::num::NonZeroU16;
use std::path::PathBuf;

/// Write a v6 image as one disk image that the kernel mounts as EROFS.
///
/// The disk image is the bootstrap with the plain data of each blob behind it. With --verity a dm-verity hash tree
/// follows, and what `veritysetup` needs to use it is printed.
#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Export as a block device image; the only form there is
    #[arg(long, required = true)]
    block: bool,

    /// Bootstrap of a v6 image
    #[arg(
        short = 'B',
        long,
        value_name = "FILE",
        required_unless_present = "config",
        requires = "localfs_dir"
    )]
    bootstrap: Option<PathBuf>,

    /// Directory that holds the blobs (or the tar archive)
    #[arg(short = 'D', long, value_name = "DIR", requires = "bootstrap", conflicts_with = "config")]
    localfs_dir: Option<PathBuf>,

    /// Blob-cache entry with metadata_path and a backend, in place of these two; needs --output
    #[arg(short = 'C', long, value_name = "FILE", requires = "output", conflicts_with = "bootstrap")]
    config: Option<PathBuf>,

    /// File to write [default: the bootstrap's name with .disk]
    #[arg(short = 'O', long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Accepted for compatibility: 1 to 1024
    #[arg(long, value_name = "N", default_value = "4")]
    threads: NonZeroU16,

    /// Append a dm-verity hash tree and print its parameters
    #[arg(long)]
    verity: bool,
}

/// Runs the command.
pub(super) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    if !args.block {
        bail!("--block is the only form of export");
    }
    if args.threads.get() > 1024 {
        bail!("--threads must be 1 to 1024");
    }
    let (bootstrap, blobs) = match (&args.config, &args.bootstrap, &args.localfs_dir) {
        (Some(file), ..) => {
            let config = ConfigFile::load(file)?;
            let Some(bootstrap) = config.metadata_path else {
                bail!("{file:?} has no \"metadata_path\": it is no blob-cache entry with a bootstrap");
            };
            (bootstrap, config.backend.open()?)
        }
        (None, Some(bootstrap), Some(dir)) => (bootstrap.clone(), BlobPlace::Directory(dir.clone())),
        _ => bail!("say what to export: --bootstrap and --localfs-dir, or --config"),
    };
    let output = args.output.clone().unwrap_or_else(|| bootstrap.with_extension("disk"));
    let shown = bootstrap.clone();
    let options = ExportOptions { bootstrap, blobs, output, verity: args.verity };
    let info = export::export(&options).with_context(|| format!("failed to export {shown:?}"))?;
    if let Some(info) = info {
        // A client scans this line as it is.
        writeln!(
            std::io::stdout(),
            "dm-verity options: --no-superblock --format=1 -s \"\" --hash=sha256 --data-block-size={} \
             --hash-block-size=4096 --data-blocks {} --hash-offset {} {}",
            info.data_block_size,
            info.data_blocks,
            info.hash_offset,
            info.root_hash
        )?;
    }
    Ok(())
}
