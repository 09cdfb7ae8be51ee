//! `rafs-image create`.
//!
//! Owns: its flags, its report. Does not own: how flags combine (`options`), building.

mod options;

use super::json::{Report, Trace};
use super::progress::Bar;
use super::values::{CompressorArg, DigesterArg, FeatureArg, SourceType, VersionArg, WhiteoutArg};
use super::{backend::BackendArgs, chunk_dict, interrupt, prefetch, size};
use crate::build::{self, CreateOptions, CreateReport};
use crate::progress::Progress;
use crate::rebuild;
use anyhow::Context as _;
use options::Wanted;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
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

    /// File or FIFO for the metadata of external files (see --attributes) when the bootstrap goes into the blob
    #[arg(long, value_name = "FILE", requires = "attributes")]
    external_blob: Option<PathBuf>,

    /// File with attributes of paths, as in .gitattributes: files with type=external stay in the blob that blob_id,
    /// chunk_size, chunk_0_compressed_offset and compressed_size name, and go to an image of their own
    #[arg(long, value_name = "FILE")]
    attributes: Option<PathBuf>,

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

    /// Size of the layer, hexadecimal; for estargztoc-ref [default: derived from the index]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_hex)]
    blob_data_size: Option<u64>,

    /// Also write the chunk info to FILE, as a cache keeps it (ID.blob.meta); for estargztoc-ref
    #[arg(long, value_name = "FILE")]
    blob_meta: Option<PathBuf>,

    /// File offset at which the data starts in the blob; what is before it is zeros
    #[arg(long, value_name = "BYTES", default_value = "0", hide = true)]
    blob_offset: u64,

    /// Existing directory to write cache files to in place of a blob: ID.blob.data and ID.blob.meta
    #[arg(long, value_name = "DIR", conflicts_with_all = ["blob", "blob_dir", "blob_inline_meta", "compressor", "encrypt", "batch_size"])]
    blob_cache_dir: Option<PathBuf>,

    #[command(flatten)]
    backend: BackendArgs,

    /// Configuration file of rafsd or nydusd with a backend; or, older form, the numbers of a compaction of the parent
    #[arg(short = 'C', long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Bytes in a chunk: a power of two from 0x1000 to 0x1000000 [default: 0x100000; estargztoc-ref: 0x400000]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    chunk_size: Option<u64>,

    /// v6: compress chunks of files smaller than half of this together; 0, or a power of two up to the chunk size
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size::parse)]
    batch_size: u64,

    /// v6: encrypt the blob (AES-128-XTS) with a new key that only the bootstrap holds
    #[arg(short = 'E', long)]
    encrypt: bool,

    /// How chunks are stored [default: zstd]
    #[arg(long, value_name = "NAME")]
    compressor: Option<CompressorArg>,

    /// How chunks are named and verified [default: blake3]
    #[arg(long, value_name = "NAME")]
    digester: Option<DigesterArg>,

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

    /// End only when all outputs have reached the disk, so that a power failure does not take them
    #[arg(long)]
    sync: bool,

    /// Write a report for programs to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,

    /// Accepted for compatibility; chunks always have a CRC-32C
    #[arg(long, hide = true)]
    crc: bool,

    /// Accepted for compatibility; a build is always checked
    #[arg(long, hide = true)]
    disable_check: bool,
}

/// Runs the command.
pub(super) fn run(args: &CreateArgs, bar: &Bar) -> anyhow::Result<()> {
    let Wanted { build: mut options, compact } = args.wanted()?;
    if let Some(compact) = compact
        && let Some(report) = rebuild::compact(&compact).context("failed to compact the parent image")?
    {
        tracing::info!("the parent image is now {:?}", report.bootstrap);
        options.parent = Some(report.bootstrap);
    }
    let progress = Arc::new(Progress::default());
    interrupt::watch(&progress)?;
    let shown = bar.show(&progress);
    let report = build::create(&options, &progress).context("failed to build the image")?;
    drop(shown);
    if let Some(path) = &args.output_json {
        write_json(&options, &report, path)?;
    }
    if args.sync {
        args.sync_outputs()?;
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
    /// Waits for the disks behind all outputs. One wait for everything costs less than one a file.
    fn sync_outputs(&self) -> anyhow::Result<()> {
        let files = [&self.bootstrap, &self.blob, &self.external_blob, &self.output_json];
        let parent = |file: &PathBuf| file.parent().map(Path::to_path_buf);
        let dirs = [&self.blob_dir, &self.blob_cache_dir].into_iter().flatten().cloned();
        for mut dir in files.into_iter().flatten().filter_map(parent).chain(dirs) {
            if dir.as_os_str().is_empty() {
                dir.push(".");
            }
            let opened = std::fs::File::open(&dir);
            opened
                .and_then(|opened| Ok(rustix::fs::syncfs(opened)?))
                .with_context(|| format!("--sync: wait for the disk of {}", dir.display()))?;
        }
        Ok(())
    }
}

fn write_json(options: &CreateOptions, report: &CreateReport, path: &std::path::Path) -> anyhow::Result<()> {
    let mut json =
        Report::new(&report.bootstrap, &report.blobs, options.image.version, options.image.compressor.name());
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    json.external_bootstrap = report.external_bootstrap.to_string_lossy().into_owned();
    json.external_blobs = &report.external_blobs;
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
