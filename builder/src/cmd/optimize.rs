//! `rafs-image optimize`.
//!
//! Owns: its flags. Does not own: optimizing.

use super::json::Report;
use super::place::PlaceArgs;
use crate::blobs::BlobPlace;
use crate::rebuild::{self, OptimizeOptions, PrefetchFiles, WantedFirst};
use anyhow::{Context as _, anyhow, bail};
use rafs::trace::Trace;
use std::io::Read as _;
use std::path::PathBuf;

/// Longest list of files that is read, bytes.
const LIST_SIZE_MAX: u64 = 64 << 20;

/// Put what is wanted first into a blob of its own.
///
/// Makes a blob with copies of the listed files' chunks, in the order of the list, and a bootstrap whose files refer to
/// it; the other blobs stay. A host that fetches this blob first has what a container starts with.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  echo '{\"version\": \"v1\", \"files\": [{\"path\": \"/bin/sh\"}, {\"path\": \"/lib/libc.so\", \"ranges\": [[0, 65536]]}]}' > files.json
  rafs-image optimize -B image.boot -D blobs -p files.json --output-blob-dir blobs -O image.optimized")]
pub(super) struct OptimizeArgs {
    /// Bootstrap of the image
    #[arg(short = 'B', long, value_name = "FILE")]
    bootstrap: PathBuf,

    /// JSON list of the files, most wanted first: {"version": "v1", "files": [{"path": "/x", "ranges": [[offset, size]]}]};
    /// or a trace that rafsd recorded
    #[arg(short = 'p', long, value_name = "FILE")]
    prefetch_files: PathBuf,

    /// Existing directory to write the new blob to, named by its id
    #[arg(long, value_name = "DIR")]
    output_blob_dir: PathBuf,

    /// File to write the new bootstrap to
    #[arg(short = 'O', long, value_name = "FILE", default_value = "optimized_bootstrap")]
    output_bootstrap: PathBuf,

    /// File that is the data blob
    #[arg(short = 'b', long, value_name = "FILE", conflicts_with_all = ["blob_dir", "backend_type"])]
    blob: Option<PathBuf>,

    #[command(flatten)]
    place: PlaceArgs,

    /// Write a report for programs to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &OptimizeArgs) -> anyhow::Result<()> {
    let place = match &args.blob {
        Some(file) => Some(BlobPlace::File(file.clone())),
        None => args.place.place()?,
    };
    let Some(place) = place else { bail!("say where the blobs are: --blob-dir, or --backend-type") };
    if !args.output_blob_dir.is_dir() {
        bail!("directory to store blobs does not exist: {:?}", args.output_blob_dir);
    }
    let options = OptimizeOptions {
        bootstrap: args.bootstrap.clone(),
        place,
        wanted: wanted(&args.prefetch_files)?,
        blob_dir: args.output_blob_dir.clone(),
        output: args.output_bootstrap.clone(),
    };
    let report =
        rebuild::optimize(&options).with_context(|| format!("failed to optimize {:?}", args.bootstrap))?;
    if let Some(path) = &args.output_json {
        Report::new(&report.bootstrap, &report.blobs, report.version, report.compressor.name())
            .write(path)?;
    }
    Ok(())
}

fn wanted(path: &PathBuf) -> anyhow::Result<WantedFirst> {
    let mut text = Vec::new();
    let file =
        std::fs::File::open(path).with_context(|| format!("cannot open the list of files {path:?}"))?;
    file.take(LIST_SIZE_MAX + 1)
        .read_to_end(&mut text)
        .with_context(|| format!("cannot read the list of files {path:?}"))?;
    if text.len() as u64 > LIST_SIZE_MAX {
        bail!("the list of files {path:?} has more than {LIST_SIZE_MAX} bytes");
    }
    if text.starts_with(b"rafs-trace ") {
        let trace = Trace::parse(&text[..], &path.display().to_string())?;
        return Ok(WantedFirst::Trace(trace));
    }
    let files = PrefetchFiles::parse(&text).map_err(|reason| anyhow!("{path:?}: {reason}"))?;
    Ok(WantedFirst::Files(files))
}
