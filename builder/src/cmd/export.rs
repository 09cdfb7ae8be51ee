//! `rafs-image export`.

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
    #[arg(short = 'B', long, value_name = "FILE")]
    bootstrap: PathBuf,

    /// Directory that holds the blobs (or the tar archive)
    #[arg(short = 'D', long, value_name = "DIR")]
    localfs_dir: PathBuf,

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
    let options = ExportOptions {
        bootstrap: args.bootstrap.clone(),
        blobs: args.localfs_dir.clone(),
        output: args.output.clone().unwrap_or_else(|| args.bootstrap.with_extension("disk")),
        verity: args.verity,
    };
    let info = export::export(&options).with_context(|| format!("failed to export {:?}", args.bootstrap))?;
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
