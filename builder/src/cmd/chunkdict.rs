//! `rafs-image chunkdict`.
//!
//! Owns: its flags. Does not own: making a dictionary.

use super::json::Report;
use super::prefetch;
use crate::rebuild::{self, ChunkDictOptions};
use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;

/// Make chunk dictionaries, which images refer to for what they share.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = false)]
pub(super) struct ChunkdictArgs {
    #[command(subcommand)]
    command: Option<ChunkdictCommand>,
}

#[derive(Debug, Subcommand)]
enum ChunkdictCommand {
    /// Make a dictionary of what several images share
    Generate(GenerateArgs),
}

/// Make a dictionary of what several images share.
///
/// A chunk is in it if it occurs in two or more of the images, by digest and size; it is the first image's that has it.
/// Pass the dictionary to `create`, `merge` or `compact` as --chunk-dict bootstrap=FILE.
#[derive(Debug, clap::Args)]
struct GenerateArgs {
    /// Bootstraps of the images
    #[arg(required = true)]
    sources: Vec<PathBuf>,

    /// File to write the dictionary to
    #[arg(short = 'B', long, value_name = "FILE", required_unless_present = "blob_dir")]
    bootstrap: Option<PathBuf>,

    /// Directory to write it to, as `chunkdict`, when --bootstrap is not given
    #[arg(short = 'D', long, value_name = "DIR")]
    blob_dir: Option<PathBuf>,

    /// Accepted for compatibility: the work is done in memory, no database is written
    #[arg(long, value_name = "URL", default_value = "sqlite:///home/runner/output/database.db")]
    database: String,

    /// Accepted for compatibility: a dictionary has no files to prefetch
    #[arg(long, value_name = "POLICY", default_value = "none")]
    prefetch_policy: prefetch::PolicyArg,

    /// Accepted for compatibility: no data is read
    #[arg(short = 'C', long, value_name = "FILE", hide = true)]
    config: Option<PathBuf>,

    /// Accepted for compatibility; see --log-level
    #[arg(short = 'v', long)]
    verbose: bool,

    /// Write a report for programs to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

#[derive(Parser)]
#[command(name = "rafs-image chunkdict")]
struct Usage {
    #[command(flatten)]
    args: ChunkdictArgs,
}

/// Runs the command.
pub(super) fn run(args: &ChunkdictArgs) -> anyhow::Result<()> {
    let Some(ChunkdictCommand::Generate(args)) = &args.command else {
        write!(std::io::stdout(), "{}", Usage::command().render_help())?;
        return Ok(());
    };
    if !args.database.starts_with("sqlite://") {
        bail!("--database {:?}: only sqlite:// is known (and nothing is written to it)", args.database);
    }
    // Whoever feeds the list may wait for it to be taken.
    prefetch::read(args.prefetch_policy)?;
    let output = match (&args.bootstrap, &args.blob_dir) {
        (Some(file), _) => file.clone(),
        (None, Some(dir)) => dir.join("chunkdict"),
        (None, None) => bail!("both --bootstrap and --blob-dir are missing: say where the dictionary goes"),
    };
    let options = ChunkDictOptions { images: args.sources.clone(), output };
    let report = rebuild::generate_chunk_dict(&options).context("failed to make the dictionary")?;
    if let Some(path) = &args.output_json {
        Report::new(&report.bootstrap, &report.blobs, report.version, report.compressor.name())
            .write(path)?;
    }
    Ok(())
}
