//! `rafs-image compact`.
//!
//! Owns: its flags, and what they take from a file. Does not own: compacting.

use super::backend::{BackendArgs, read};
use super::chunk_dict;
use super::json::Report;
use crate::rebuild::{self, CompactConfig, CompactOptions, CompactSettings};
use anyhow::{Context as _, anyhow, bail};
use std::path::{Path, PathBuf};

/// Make fewer and fuller blobs of an image.
///
/// Blobs that nothing refers to are dropped from the image, blobs of which too little is in use are made anew with what
/// is, and small blobs become one. Chunks are copied as they are stored, after they were verified. Old blobs are not
/// removed: other images may use them. When there is nothing to gain, nothing is written and the exit status is 0.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  Rebuild blobs of which less than half is in use, in place:
    rafs-image compact -B image.boot -D blobs --min-used-ratio 50 -O image.compact
  The same with the numbers in a file:
    echo '{\"min_used_ratio\": 50, \"blobs_dir\": \"blobs\"}' > compact.json
    rafs-image compact -B image.boot --config compact.json")]
pub(super) struct CompactArgs {
    /// Bootstrap of the image
    #[arg(short = 'B', long, value_name = "FILE")]
    bootstrap: PathBuf,

    /// Directory of blobs: new ones go there, old ones are looked for there before the backend
    #[arg(short = 'D', long, value_name = "DIR", required_unless_present = "config")]
    blob_dir: Option<PathBuf>,

    #[command(flatten)]
    backend: BackendArgs,

    /// JSON file with min_used_ratio, compact_blob_size, max_compact_size, layers_to_compact and blobs_dir; flags win
    #[arg(short = 'C', long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Rebuild blobs of which less than so many percent are in use; 0: none [default: 0]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..100))]
    min_used_ratio: Option<u8>,

    /// Put blobs smaller than so many bytes together [default: 10485760]
    #[arg(long, value_name = "BYTES")]
    compact_blob_size: Option<u64>,

    /// ... into blobs of at most so many bytes [default: 104857600]
    #[arg(long, value_name = "BYTES")]
    max_compact_size: Option<u64>,

    /// Do nothing for images with fewer blobs [default: 0]
    #[arg(long, value_name = "N")]
    layers_to_compact: Option<u64>,

    /// Keep the blobs of this image as they are, and prefer its chunks (`bootstrap=FILE` or `FILE`)
    #[arg(long, value_name = "FILE", value_parser = chunk_dict::parse)]
    chunk_dict: Option<PathBuf>,

    /// File to write the new bootstrap to [default: the bootstrap's name with bootstrap.compact as extension]
    #[arg(short = 'O', long, value_name = "FILE")]
    output_bootstrap: Option<PathBuf>,

    /// Write a report for programs to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

/// Reads a compact.json.
pub(super) fn read_config(path: &Path) -> anyhow::Result<CompactConfig> {
    CompactConfig::parse(read(path)?.as_bytes()).map_err(|reason| anyhow!("{path:?}: {reason}"))
}

/// Runs the command.
pub(super) fn run(args: &CompactArgs) -> anyhow::Result<()> {
    let config = args.config.as_deref().map(read_config).transpose()?.unwrap_or_default();
    let from_file = config.settings();
    let Some(blob_dir) = args.blob_dir.clone().or(config.blobs_dir) else {
        bail!("say where blobs are: --blob-dir, or \"blobs_dir\" in the file of --config");
    };
    let options = CompactOptions {
        bootstrap: args.bootstrap.clone(),
        output: args
            .output_bootstrap
            .clone()
            .unwrap_or_else(|| args.bootstrap.with_extension("bootstrap.compact")),
        blob_dir,
        backend: args.backend.place()?,
        chunk_dict: args.chunk_dict.clone(),
        settings: CompactSettings {
            min_used_ratio: args.min_used_ratio.unwrap_or(from_file.min_used_ratio),
            compact_blob_size: args.compact_blob_size.unwrap_or(from_file.compact_blob_size),
            max_compact_size: args.max_compact_size.unwrap_or(from_file.max_compact_size),
            layers_to_compact: args.layers_to_compact.unwrap_or(from_file.layers_to_compact),
        },
    };
    let report =
        rebuild::compact(&options).with_context(|| format!("failed to compact {:?}", args.bootstrap))?;
    if let (Some(report), Some(path)) = (&report, &args.output_json) {
        Report::new(&report.bootstrap, &report.blobs, report.version, report.compressor.name())
            .write(path)?;
    }
    Ok(())
}
