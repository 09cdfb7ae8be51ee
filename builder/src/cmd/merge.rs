//! `rafs-image merge`.
//!
//! Owns: its flags, the lists that come one value a layer. Does not own: merging.

use super::backend::ConfigFile;
use super::json::Report;
use super::{chunk_dict, prefetch};
use crate::layer::{self, MergeOptions, OwnBlob};
use crate::options::PrefetchPolicy;
use anyhow::{Context as _, bail};
use rafs::codec::Digest;
use std::path::PathBuf;

/// Merge bootstraps of layers into one.
///
/// Layers come lowest first. Whiteouts and opaque directories take effect; the result refers to the blobs whose
/// chunks are still in use. Unless --original-blob-ids or --blob-digests say it, the blob of a layer is known by the
/// name of its bootstrap file, up to the first dot.
#[derive(Debug, clap::Args)]
pub(super) struct MergeArgs {
    /// Bootstraps, or blobs with inlined ones, lowest layer first
    #[arg(required = true)]
    sources: Vec<PathBuf>,

    /// File to write the merged bootstrap to
    #[arg(short = 'B', long, value_name = "FILE", required_unless_present = "blob_dir")]
    bootstrap: Option<PathBuf>,

    /// Existing directory to write the merged bootstrap to, named by its sha256
    #[arg(short = 'D', long, value_name = "DIR")]
    blob_dir: Option<PathBuf>,

    /// An image below all layers
    #[arg(long, value_name = "FILE")]
    parent_bootstrap: Option<PathBuf>,

    /// The dictionary that the layers were built with (`bootstrap=FILE` or `FILE`)
    #[arg(long, value_name = "FILE", value_parser = chunk_dict::parse)]
    chunk_dict: Option<PathBuf>,

    /// Record the paths that standard input lists, one a line
    #[arg(long, value_name = "POLICY", default_value = "none")]
    prefetch_policy: prefetch::PolicyArg,

    /// sha256 of each layer's RAFS blob, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    blob_digests: Vec<String>,

    /// Id of each layer's data blob
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    original_blob_ids: Vec<String>,

    /// Bytes of each layer's RAFS blob
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    blob_sizes: Vec<String>,

    /// sha256 of each layer's table of contents
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    blob_toc_digests: Vec<String>,

    /// Bytes of each layer's table of contents
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    blob_toc_sizes: Vec<String>,

    /// Configuration file that names a backend. It is checked; merging reads no data, and ids come from file names
    #[arg(short = 'C', long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Write a report for programs to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &MergeArgs) -> anyhow::Result<()> {
    if let Some(file) = &args.config {
        ConfigFile::load(file)?;
    }
    let (prefetch_policy, prefetch_patterns) = prefetch::read(args.prefetch_policy)?;
    let (bootstrap, named_by_digest) = match (&args.bootstrap, &args.blob_dir) {
        (Some(file), _) => (file.clone(), false),
        (None, Some(dir)) => (dir.clone(), true),
        (None, None) => bail!("both --bootstrap and --blob-dir are missing: say where the metadata goes"),
    };
    let options = MergeOptions {
        layers: args.sources.clone(),
        own_blobs: args.own_blobs()?,
        parent: args.parent_bootstrap.clone().filter(|path| !path.as_os_str().is_empty()),
        chunk_dict: args.chunk_dict.clone(),
        prefetch_policy: match prefetch_policy {
            PrefetchPolicy::None => PrefetchPolicy::None,
            // There is no data whose order could change.
            PrefetchPolicy::Fs | PrefetchPolicy::Blob => PrefetchPolicy::Fs,
        },
        prefetch_patterns,
        bootstrap,
        named_by_digest,
    };
    let report = layer::merge(&options)?;
    if let Some(path) = &args.output_json {
        let json = Report::new(&report.bootstrap, &report.blobs, report.version, report.compressor.name());
        json.write(path)?;
    }
    tracing::info!(
        "merged {} layers: {}\ndata blobs: {:?}",
        args.sources.len(),
        report.bootstrap.display(),
        report.blobs
    );
    Ok(())
}

impl MergeArgs {
    fn own_blobs(&self) -> anyhow::Result<Vec<OwnBlob>> {
        let count = self.sources.len();
        let mut own = vec![OwnBlob::default(); count];
        for (list, what) in [
            (&self.blob_digests, "blob digest"),
            (&self.original_blob_ids, "original blob id"),
            (&self.blob_sizes, "blob size"),
            (&self.blob_toc_digests, "blob toc digest"),
            (&self.blob_toc_sizes, "blob toc size"),
        ] {
            if !list.is_empty() && list.len() != count {
                bail!("number of {what} entries {} doesn't match number of sources {count}", list.len());
            }
        }
        for (blob, text) in own.iter_mut().zip(&self.blob_digests) {
            digest(text).context("--blob-digests")?;
            blob.digest = Some(text.trim().to_owned());
        }
        for (blob, text) in own.iter_mut().zip(&self.original_blob_ids) {
            blob.original_id = Some(text.trim().to_owned());
        }
        for (blob, text) in own.iter_mut().zip(&self.blob_sizes) {
            blob.size =
                Some(text.trim().parse().with_context(|| format!("--blob-sizes: {text:?} is no size"))?);
        }
        for (blob, text) in own.iter_mut().zip(&self.blob_toc_digests) {
            blob.toc_digest = Some(digest(text).context("--blob-toc-digests")?);
        }
        for (blob, text) in own.iter_mut().zip(&self.blob_toc_sizes) {
            blob.toc_size =
                Some(text.trim().parse().with_context(|| format!("--blob-toc-sizes: {text:?} is no size"))?);
        }
        Ok(own)
    }
}

fn digest(text: &str) -> anyhow::Result<Digest> {
    let mut digest = Digest::default();
    hex::decode_to_slice(text.trim(), &mut digest)
        .with_context(|| format!("{text:?} is no sha256 in hexadecimal"))?;
    Ok(digest)
}
