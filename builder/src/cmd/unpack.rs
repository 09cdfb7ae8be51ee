//! `rafs-image unpack`.
//!
//! Owns: its flags. Does not own: unpacking.

use super::place::PlaceArgs;
use crate::blobs::BlobPlace;
use crate::unpack::{self, UnpackOptions};
use anyhow::{Context as _, bail};
use std::path::PathBuf;

/// Write an image as a tar archive.
///
/// The archive gives back the tree exactly: hardlinks, devices, extended attributes (in pax records), times to the
/// nanosecond. Sockets are left out, as is the entry of the root.
#[derive(Debug, clap::Args)]
pub(super) struct UnpackArgs {
    /// Bootstrap to unpack, or a blob with an inlined one
    #[arg(required_unless_present = "bootstrap_flag", conflicts_with = "bootstrap_flag")]
    bootstrap: Option<PathBuf>,

    /// Older form of the positional argument
    #[arg(short = 'B', long = "bootstrap", value_name = "FILE", id = "bootstrap_flag")]
    bootstrap_flag: Option<PathBuf>,

    /// File or FIFO to write the archive to
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// File that is the data blob
    #[arg(short = 'b', long, value_name = "FILE", conflicts_with_all = ["blob_dir", "backend_type", "config"])]
    blob: Option<PathBuf>,

    #[command(flatten)]
    place: PlaceArgs,
}

/// Runs the command.
pub(super) fn run(args: &UnpackArgs) -> anyhow::Result<()> {
    let Some(bootstrap) = args.bootstrap.as_ref().or(args.bootstrap_flag.as_ref()) else {
        bail!("say which bootstrap to unpack");
    };
    if args.output.as_os_str().is_empty() {
        bail!("--output is empty: say where the archive goes");
    }
    let blobs = match &args.blob {
        Some(file) => Some(BlobPlace::File(file.clone())),
        None => args.place.place()?,
    };
    let options = UnpackOptions { bootstrap: bootstrap.clone(), blobs, output: args.output.clone() };
    unpack::unpack(&options).with_context(|| format!("failed to unpack {bootstrap:?}"))
}
