//! `create`: from a source to a blob and a bootstrap.
//!
//! Owns: the steps and their order, names of outputs, the report. Does not own: any of the steps.

use crate::error::BuildError;
use crate::options::{ImageOptions, PrefetchPolicy, Version};
use crate::output::Output;
use crate::pack::{self, BlobFile, Chunk, PackSettings, Packed};
use crate::progress::Progress;
use crate::source::{DirectorySource, Source, TarSource};
use crate::tree::{Order, Tree};
use crate::write::{self, FileSink, Model};
use rafs::ids::BlobIndex;
use rafs::image::BlobInfo;
use rafs::layout::blob::BlobFeatures;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What an image is made of.
#[derive(Clone, Debug)]
pub enum SourceKind {
    /// A directory tree.
    Directory(PathBuf),
    /// A tar archive in a file, FIFO or character device; plain, gzip or zstd.
    Tar(PathBuf),
}

/// Where the data blob goes.
#[derive(Clone, Debug)]
pub enum BlobTarget {
    /// To this file; a FIFO or device is written through, in order.
    File(PathBuf),
    /// Into this directory, named by its id. A file that is there under that name is kept.
    Directory(PathBuf),
}

/// Where the bootstrap goes.
#[derive(Clone, Debug)]
pub enum BootstrapTarget {
    /// To this file.
    File(PathBuf),
    /// Into this directory, named by the sha256 of its bytes.
    Directory(PathBuf),
}

/// What to build, and where to.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Shape of the image.
    pub image: ImageOptions,
    /// Where entries and data come from.
    pub source: SourceKind,
    /// Where data goes.
    pub blob: BlobTarget,
    /// Where metadata goes.
    pub bootstrap: BootstrapTarget,
    /// Name of the blob in the image, in place of its sha256; at most 64 bytes.
    pub blob_id: Option<String>,
}

/// What was built.
#[derive(Clone, Debug, Default)]
pub struct CreateReport {
    /// The bootstrap's path.
    pub bootstrap: PathBuf,
    /// Ids in the blob table, in table order.
    pub blobs: Vec<String>,
    /// Bytes of the new blob file; 0 when no data was stored.
    pub blob_size: u64,
    /// Bytes of the new blob's uncompressed address space.
    pub blob_uncompressed_size: u64,
    /// Plain bytes that needed no room because an equal chunk was there.
    pub deduplicated_bytes: u64,
    /// Names in the tree, the root included.
    pub entries: u64,
    /// Seconds by step.
    pub seconds: BTreeMap<&'static str, f64>,
}

/// Builds an image.
///
/// Nothing appears under a final name before everything is complete, and then the blob comes first: a
/// bootstrap that can be seen has its blob.
///
/// # Errors
/// The first thing that went wrong, with the path it was at.
pub fn create(options: &CreateOptions, progress: &Arc<Progress>) -> Result<CreateReport, BuildError> {
    let image = &options.image;
    let mut report = CreateReport::default();
    let start = Instant::now();
    let mut blob = BlobFile::new(match &options.blob {
        BlobTarget::File(path) => Output::create(path)?,
        BlobTarget::Directory(path) => Output::create_in(existing(path)?)?,
    });
    let bootstrap = match &options.bootstrap {
        BootstrapTarget::File(path) => Output::create(path)?,
        BootstrapTarget::Directory(path) => Output::create_in(existing(path)?)?,
    };
    let (mut source, mut tree) = open_source(options, progress)?;
    let settings = PackSettings::new(image);
    let (packed, chunks) = pack::run(settings, source.as_mut(), &mut tree, &mut blob, progress)?;
    drop(source);
    let packing = start.elapsed();
    report.seconds.insert("dump_blob", packing.as_secs_f64());
    report.deduplicated_bytes = packed.deduplicated;
    let order = Order::new(&mut tree)?;
    report.entries = order.numbered.len() as u64;
    let blobs = finish_blob(options, &packed, &chunks, &mut blob)?;
    if let Some(info) = blobs.last() {
        report.blob_size = info.compressed_size;
        report.blob_uncompressed_size = info.uncompressed_size;
    }
    report.blobs = blobs.iter().map(|info| info.id.clone()).collect();
    let model = Model {
        version: image.version,
        tree: &tree,
        order: &order,
        chunks: &chunks,
        references: &packed.references,
        blobs: &blobs,
        compressor: image.compressor,
        digester: image.digester,
        chunk_size: image.chunk_size,
        explicit_ids: !image.repeatable,
        prefetch: write::prefetch_nodes(&tree, &order, image.prefetch_policy, &image.prefetch_patterns),
    };
    let mut sink = FileSink::new(bootstrap);
    model.write(&mut sink)?;
    let (bootstrap, bootstrap_digest) = sink.finish()?;
    report.seconds.insert("dump_bootstrap", (start.elapsed() - packing).as_secs_f64());
    commit_blob(options, blob.into_output(), report.blobs.last())?;
    report.bootstrap = match &options.bootstrap {
        BootstrapTarget::File(_) => bootstrap.commit()?,
        BootstrapTarget::Directory(_) => bootstrap.commit_named(&bootstrap_digest)?,
    };
    report.seconds.insert("total_build", start.elapsed().as_secs_f64());
    Ok(report)
}

fn open_source(
    options: &CreateOptions,
    progress: &Arc<Progress>,
) -> Result<(Box<dyn Source>, Tree), BuildError> {
    match &options.source {
        SourceKind::Directory(path) => {
            let (source, tree) = DirectorySource::open(path, &options.image, progress.clone())?;
            Ok((Box::new(source), tree))
        }
        SourceKind::Tar(path) => {
            let (source, tree) = TarSource::open(path, &options.image, progress.clone())?;
            Ok((Box::new(source), tree))
        }
    }
}

fn existing(dir: &Path) -> Result<&Path, BuildError> {
    if dir.is_dir() {
        Ok(dir)
    } else {
        Err(BuildError::Options(format!("directory to store blobs does not exist: {dir:?}")))
    }
}

/// Writes what follows the chunk data and makes the blob table.
fn finish_blob(
    options: &CreateOptions,
    packed: &Packed,
    chunks: &[Chunk],
    blob: &mut BlobFile,
) -> Result<Vec<BlobInfo>, BuildError> {
    if packed.chunk_count == 0 {
        return Ok(Vec::new());
    }
    let image = &options.image;
    let mut features = BlobFeatures::CAP_TAR_TOC;
    let mut chunk_info = None;
    if image.version == Version::V6 {
        features |= BlobFeatures::ALIGNED;
        chunk_info = Some(pack::write_chunk_info(blob, chunks.iter(), image.compressor, features)?);
    }
    let id = options.blob_id.clone().unwrap_or_else(|| blob.id());
    let prefetch_size = if image.prefetch_policy == PrefetchPolicy::Blob { packed.prefetch_size } else { 0 };
    Ok(vec![BlobInfo {
        index: BlobIndex(0),
        id,
        features,
        compressor: image.compressor,
        digester: image.digester,
        cipher: None,
        chunk_size: image.chunk_size.get(),
        chunk_count: Some(packed.chunk_count),
        compressed_size: blob.position(),
        uncompressed_size: packed.uncompressed_end,
        chunk_info,
        toc_size: 0,
        toc_digest: [0; 32],
        meta_blob: None,
        // The field has 32 bits; a reader takes it as a hint, so the largest value stands for more.
        prefetch_size: u32::try_from(prefetch_size).unwrap_or(u32::MAX),
        mapped_blkaddr: 0,
    }])
}

fn commit_blob(options: &CreateOptions, output: Output, id: Option<&String>) -> Result<(), BuildError> {
    match (&options.blob, id) {
        // Without data there is no blob; a file that was asked for by name is there and empty.
        (BlobTarget::File(_), _) => output.commit().map(drop),
        (BlobTarget::Directory(_), Some(id)) => output.commit_named(id).map(drop),
        (BlobTarget::Directory(_), None) => Ok(()),
    }
}
