//! `rafs-image create`.
//!
//! Owns: its flags, how they combine, its report. Does not own: building.

use super::json::{Report, Trace};
use super::progress::Bar;
use super::{chunk_dict, interrupt, prefetch, size};
use crate::build::{self, BlobTarget, BootstrapTarget, CreateOptions, CreateReport, SourceKind};
use crate::options::{ChunkSize, ImageOptions, Version, WhiteoutSpec};
use crate::progress::Progress;
use anyhow::{Context as _, bail};
use clap::builder::PossibleValue;
use rafs::codec::{Compressor, Digester};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

/// Make an image from a directory or a tar archive.
///
/// Writes a data blob and a bootstrap that refers to it. Nothing appears under its final name before it is
/// complete. The same input gives the same bytes, whatever the number of threads.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  Build a v6 image into a directory, the blob named by its sha256:
    rafs-image create --bootstrap image.boot --blob-dir blobs rootfs/
  The same as v5, with lz4 and 64 KiB chunks:
    rafs-image create -v 5 --compressor lz4_block --chunk-size 0x10000 -B image.boot -D blobs rootfs/
  A layer from a pipe, in one pass:
    zcat layer.tar.gz | rafs-image create --type tar-rafs -B layer.boot -D blobs /dev/stdin
  Let a guest find the shell's data first:
    printf '/bin\\n/lib\\n' | rafs-image create --prefetch-policy fs -B image.boot -D blobs rootfs/")]
pub(super) struct CreateArgs {
    /// Directory, file, FIFO or character device (/dev/stdin) to make the image from
    source: PathBuf,

    /// What SOURCE is
    #[arg(
        short = 't',
        long = "type",
        alias = "source-type",
        value_name = "TYPE",
        default_value = "dir-rafs"
    )]
    kind: SourceType,

    /// File to write the bootstrap (metadata) to
    #[arg(short = 'B', long, value_name = "FILE", required_unless_present_any = ["blob_dir", "blob_inline_meta"])]
    bootstrap: Option<PathBuf>,

    /// Existing directory to write the blob to, named by its id; without --bootstrap also the bootstrap, named by its sha256
    #[arg(short = 'D', long, value_name = "DIR", conflicts_with = "blob")]
    blob_dir: Option<PathBuf>,

    /// File or FIFO to write the blob to
    #[arg(short = 'b', long, value_name = "FILE")]
    blob: Option<PathBuf>,

    /// Put the bootstrap into the blob, behind the data
    #[arg(long, alias = "inline-bootstrap", conflicts_with_all = ["bootstrap", "blob_id"])]
    blob_inline_meta: bool,

    /// Extra parts of the blob: `blob-toc` is a table of contents at its end (v6)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    features: Vec<FeatureArg>,

    /// Lay the source over this image; the result refers to its blobs too
    #[arg(long, value_name = "FILE")]
    parent_bootstrap: Option<PathBuf>,

    /// Refer to chunks of this image where they are the same (`bootstrap=FILE` or `FILE`)
    #[arg(long, value_name = "FILE", value_parser = chunk_dict::parse)]
    chunk_dict: Option<PathBuf>,

    /// Name of the blob in the image, at most 64 bytes [default: sha256 of the blob]
    #[arg(long, value_name = "ID")]
    blob_id: Option<String>,

    /// Bytes in a chunk: a power of two from 0x1000 to 0x1000000
    #[arg(long, value_name = "SIZE", default_value = "0x100000", value_parser = size::parse)]
    chunk_size: u64,

    /// v6: compress chunks of files smaller than half of this together; 0, or a power of two up to the chunk size
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size::parse)]
    batch_size: u64,

    /// v6: encrypt the blob (AES-128-XTS) with a new key that only the bootstrap holds
    #[arg(short = 'E', long)]
    encrypt: bool,

    /// How chunks are stored
    #[arg(long, value_name = "NAME", default_value = "zstd")]
    compressor: CompressorArg,

    /// How chunks are named and verified
    #[arg(long, value_name = "NAME", default_value = "blake3")]
    digester: DigesterArg,

    /// RAFS version of the image
    #[arg(short = 'v', long, value_name = "VERSION", default_value = "6")]
    fs_version: VersionArg,

    /// v5: start every chunk at a multiple of 4096 in the cache file (v6 always does)
    #[arg(long)]
    aligned_chunk: bool,

    /// Store no owners, so that images of different users' copies of a tree are the same
    #[arg(long)]
    repeatable: bool,

    /// Which entries mark deletions in lower layers; without a lower layer they are dropped
    #[arg(long, value_name = "SPEC", default_value = "oci")]
    whiteout_spec: WhiteoutArg,

    /// What to do for the paths that standard input lists, one a line: `fs` records them, `blob` (v5) makes them a leading range of the blob; both store their data first
    #[arg(long, value_name = "POLICY", default_value = "none")]
    prefetch_policy: prefetch::PolicyArg,

    /// Threads that read, digest and compress [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Write a report for programs to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,

    /// Accepted for compatibility; a build is always checked
    #[arg(long, hide = true)]
    disable_check: bool,
}

/// Kinds of sources that are built, and names of those that are not.
#[derive(Clone, Copy, Debug)]
enum SourceType {
    Directory,
    Tar,
    TarGz,
    Estargz,
    Reference,
    EstargzReference,
    Tarfs,
}

impl clap::ValueEnum for SourceType {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Directory,
            Self::Tar,
            Self::TarGz,
            Self::Estargz,
            Self::Reference,
            Self::EstargzReference,
            Self::Tarfs,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Directory => {
                PossibleValue::new("dir-rafs").alias("directory").help("a directory tree (also: directory)")
            }
            Self::Tar => PossibleValue::new("tar-rafs").help("a tar archive; gzip and zstd are recognised"),
            Self::TarGz => PossibleValue::new("targz-rafs").help("the same"),
            Self::Estargz => PossibleValue::new("estargz-rafs").help("the same, for eStargz layers"),
            Self::Reference => PossibleValue::new("targz-ref")
                .help("a tar.gz layer that stays as it is; the blob is an index into it"),
            Self::EstargzReference => PossibleValue::new("estargz-ref").help("the same, for eStargz layers"),
            Self::Tarfs => PossibleValue::new("tar-tarfs")
                .help("a plain tar archive that is read in place; no blob is written"),
        })
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum CompressorArg {
    None,
    #[value(name = "lz4_block")]
    Lz4Block,
    Zstd,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum DigesterArg {
    Blake3,
    Sha256,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum VersionArg {
    #[value(name = "5")]
    V5,
    #[value(name = "6")]
    V6,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum WhiteoutArg {
    Oci,
    Overlayfs,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum FeatureArg {
    BlobToc,
}

/// Runs the command.
pub(super) fn run(args: &CreateArgs, bar: &Bar) -> anyhow::Result<()> {
    let options = args.options()?;
    let progress = Arc::new(Progress::default());
    interrupt::watch(&progress)?;
    let shown = bar.show(&progress);
    let report = build::create(&options, &progress).context("failed to build the image")?;
    drop(shown);
    if let Some(path) = &args.output_json {
        write_json(&options, &report, path)?;
    }
    tracing::info!(
        "successfully built RAFS filesystem: \nmeta blob path: {}\ndata blob size: {:#x}\ndata blobs: {:?}",
        report.bootstrap.display(),
        report.blob_size,
        report.blobs,
    );
    Ok(())
}

impl CreateArgs {
    fn options(&self) -> anyhow::Result<CreateOptions> {
        let (prefetch_policy, prefetch_patterns) = prefetch::read(self.prefetch_policy)?;
        let source = match self.kind {
            SourceType::Directory => SourceKind::Directory(self.source.clone()),
            SourceType::Tarfs => SourceKind::Tarfs(self.source.clone()),
            SourceType::Reference | SourceType::EstargzReference => {
                SourceKind::TarReference(self.source.clone())
            }
            SourceType::Tar | SourceType::TarGz | SourceType::Estargz => SourceKind::Tar(self.source.clone()),
        };
        let blob = match (self.kind, &self.blob, &self.blob_dir) {
            (SourceType::Tarfs, Some(_), _) => {
                bail!("--blob cannot be used with --type tar-tarfs, which writes no blob")
            }
            (SourceType::Tarfs, None, _) => None,
            (_, Some(file), _) => Some(BlobTarget::File(file.clone())),
            (_, None, Some(dir)) => Some(BlobTarget::Directory(dir.clone())),
            (_, None, None) => bail!("both --blob and --blob-dir are missing: say where the data blob goes"),
        };
        let bootstrap = match (&self.bootstrap, &self.blob_dir) {
            _ if self.blob_inline_meta => BootstrapTarget::Inline,
            (Some(file), _) => BootstrapTarget::File(file.clone()),
            (None, Some(dir)) => BootstrapTarget::Directory(dir.clone()),
            (None, None) => bail!("both --bootstrap and --blob-dir are missing: say where the metadata goes"),
        };
        let mut image = ImageOptions {
            version: match self.fs_version {
                VersionArg::V5 => Version::V5,
                VersionArg::V6 => Version::V6,
            },
            compressor: match self.compressor {
                CompressorArg::None => Compressor::None,
                CompressorArg::Lz4Block => Compressor::Lz4Block,
                CompressorArg::Zstd => Compressor::Zstd,
            },
            digester: match self.digester {
                DigesterArg::Blake3 => Digester::Blake3,
                DigesterArg::Sha256 => Digester::Sha256,
            },
            chunk_size: ChunkSize::new(self.chunk_size)?,
            aligned_chunk: self.aligned_chunk,
            batch_size: match self.batch_size {
                0 => None,
                bytes => Some(ChunkSize::new(bytes).context("--batch-size")?),
            },
            encrypt: self.encrypt,
            repeatable: self.repeatable,
            whiteout_spec: match self.whiteout_spec {
                WhiteoutArg::Oci => WhiteoutSpec::Oci,
                WhiteoutArg::Overlayfs => WhiteoutSpec::Overlayfs,
                WhiteoutArg::None => WhiteoutSpec::None,
            },
            prefetch_policy,
            prefetch_patterns,
            ..ImageOptions::default()
        };
        if matches!(self.kind, SourceType::Tarfs) {
            (image.compressor, image.digester) = (Compressor::None, Digester::Sha256);
        }
        if matches!(self.kind, SourceType::Reference | SourceType::EstargzReference) {
            (image.compressor, image.digester) = (Compressor::Gzip, Digester::Sha256);
        }
        if let Some(threads) = self.threads {
            image.threads = threads;
        }
        let blob_id = self.blob_id.clone().map(checked_id).transpose()?;
        Ok(CreateOptions {
            image,
            source,
            blob,
            bootstrap,
            blob_id,
            parent: self.parent_bootstrap.clone().filter(|path| !path.as_os_str().is_empty()),
            chunk_dict: self.chunk_dict.clone(),
            toc: self.features.contains(&FeatureArg::BlobToc),
        })
    }
}

/// Blob ids become file names: no separators, nothing that means another directory.
fn checked_id(id: String) -> anyhow::Result<String> {
    if id.is_empty() || id.len() > 64 || id.contains(['/', '\0']) || id == "." || id == ".." {
        bail!("--blob-id {id:?}: an id has 1 to 64 bytes, no slash, and is not . or ..");
    }
    if id.starts_with("sha256:") {
        bail!("--blob-id {id:?}: leave out the prefix sha256:");
    }
    Ok(id)
}

fn write_json(options: &CreateOptions, report: &CreateReport, path: &std::path::Path) -> anyhow::Result<()> {
    let mut json =
        Report::new(&report.bootstrap, &report.blobs, options.image.version, options.image.compressor.name());
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    json.trace = Trace {
        consumed_time: report.seconds.clone(),
        registered_events: [
            ("blob_uncompressed_size", report.blob_uncompressed_size.into()),
            ("dedup_uncompressed_size", report.deduplicated_bytes.into()),
            ("load_from_directory", report.entries.into()),
            ("euid", ids.0.to_string().into()),
            ("egid", ids.1.to_string().into()),
        ]
        .into(),
    };
    json.write(path)
}
