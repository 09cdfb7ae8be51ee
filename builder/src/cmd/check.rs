//! `rafs-image check`.
//!
//! Owns: its flags and what it prints. Does not own: checking.

use super::json::Report;
use super::place::PlaceArgs;
use crate::blobs;
use anyhow::{Context as _, bail};
use rafs::image::{BlobInfo, CheckOptions, Image};
use rafs::layout::blob::BlobFeatures;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Check an image.
///
/// Reads the whole of the metadata: tables, every directory, inode, extended attribute and chunk reference,
/// in v5 the inode digests. With --blob-dir or a backend also every chunk of every blob. Says where the first fault is.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Bootstrap to check, or a blob with an inlined one
    #[arg(required_unless_present = "bootstrap_flag", conflicts_with = "bootstrap_flag")]
    bootstrap: Option<PathBuf>,

    /// Older form of the positional argument
    #[arg(short = 'B', long = "bootstrap", value_name = "FILE", id = "bootstrap_flag")]
    bootstrap_flag: Option<PathBuf>,

    #[command(flatten)]
    place: PlaceArgs,

    /// Threads that verify data [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Print every name with its attributes and chunks
    #[arg(short = 'v', long)]
    verbose: bool,

    /// Write a report for programs to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let Some(path) = args.bootstrap.as_ref().or(args.bootstrap_flag.as_ref()) else {
        bail!("say which bootstrap to check");
    };
    let failed = || format!("failed to check bootstrap {path:?}");
    let image = Image::open(path).with_context(failed)?;
    image.check_with(CheckOptions { inode_digests: true }).with_context(failed)?;
    if let Some(place) = args.place.place()? {
        let threads = args.threads.or_else(|| std::thread::available_parallelism().ok());
        let read =
            blobs::verify(&image, path, &place, threads.unwrap_or(NonZeroUsize::MIN)).with_context(failed)?;
        tracing::info!("{} chunks with {} bytes are what the image says", read.chunks, read.bytes);
    }
    if let Some(json) = &args.output_json {
        let ids: Vec<String> = image.blobs().iter().map(|blob| blob.id.clone()).collect();
        Report::new(path, &ids, image.version(), image.compressor().name()).write_compact(json)?;
    }
    let mut text = "RAFS filesystem metadata is valid, referenced data blobs: \n".to_owned();
    for blob in image.blobs() {
        describe(blob, &mut text)?;
    }
    let mut stdout = std::io::stdout().lock();
    if args.verbose {
        crate::inspect::list_all(&image, &mut stdout).with_context(failed)?;
    }
    stdout.write_all(text.as_bytes())?;
    Ok(())
}

fn describe(blob: &BlobInfo, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "\t {}: {}, compressed size {}, uncompressed size {}, chunk size: {}, chunk count: {}, features: {}",
        blob.index,
        blob.id,
        blob.compressed_size,
        blob.uncompressed_size,
        blob.chunk_size,
        blob.chunk_count.unwrap_or(0),
        feature_words(blob.features),
    )
}

/// Feature bits as the reference names them, in its order.
fn feature_words(features: BlobFeatures) -> String {
    const WORDS: [(BlobFeatures, &str); 12] = [
        (BlobFeatures::ALIGNED, "aligned"),
        (BlobFeatures::BATCH, "batch"),
        (BlobFeatures::CAP_TAR_TOC, "cap_toc"),
        (BlobFeatures::INLINED_CHUNK_DIGEST, "chunk-digest"),
        (BlobFeatures::CHUNK_INFO_V2, "chunk-v2"),
        (BlobFeatures::INLINED_FS_META, "fs-meta"),
        (BlobFeatures::SEPARATE, "separate"),
        (BlobFeatures::HAS_TAR_HEADER, "tar-header"),
        (BlobFeatures::HAS_TOC, "toc"),
        (BlobFeatures::ZRAN, "zran"),
        (BlobFeatures::ENCRYPTED, "encrypted"),
        (BlobFeatures::IS_CHUNKDICT_GENERATED, "is-chunkdict-generated"),
    ];
    let words: Vec<&str> =
        WORDS.iter().filter(|(bit, _)| features.contains(*bit)).map(|(_, word)| *word).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_in_the_order_clients_know() {
        let plain = BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC;
        assert_eq!(feature_words(plain), "aligned cap_toc");
        assert_eq!(feature_words(BlobFeatures::HAS_TOC | BlobFeatures::BATCH), "batch toc");
    }
}
