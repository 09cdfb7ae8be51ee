//! `create`: from a source to a blob and a bootstrap.
//!
//! Owns: the steps and their order, names of outputs, the report. Does not own: any of the steps.

use crate::error::BuildError;
use crate::options::{ImageOptions, PrefetchPolicy, Version};
use crate::output::Output;
use crate::pack::{self, BlobFile, Chunk, ChunkInfoTable, PackSettings, Packed, Tail};
use crate::progress::Progress;
use crate::source::{DirectorySource, Source, TarSource};
use crate::tree::{Order, Tree};
use crate::write::{self, FileSink, Model};
use rafs::ids::BlobIndex;
use rafs::image::{BlobInfo, CipherKey};
use rafs::layout::blob::BlobFeatures;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What the id of a blob is made of in a bootstrap inside that blob.
const UNKNOWN_ID: &str = "x";

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
    /// Into the blob, behind its data.
    Inline,
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
    /// v6: end the blob with a table of contents and give it a digest array.
    pub toc: bool,
}

/// What was built.
#[derive(Clone, Debug, Default)]
pub struct CreateReport {
    /// The bootstrap's path; empty when it is inlined.
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
    if options.toc && options.image.version == Version::V5 {
        return Err(BuildError::Options("a table of contents (blob-toc) needs RAFS v6".to_owned()));
    }
    let image = &options.image;
    image.check()?;
    let mut report = CreateReport::default();
    let start = Instant::now();
    let mut blob = BlobFile::new(match &options.blob {
        BlobTarget::File(path) => Output::create(path)?,
        BlobTarget::Directory(path) => Output::create_in(existing(path)?)?,
    });
    let bootstrap = match &options.bootstrap {
        BootstrapTarget::File(path) => Some(Output::create(path)?),
        BootstrapTarget::Directory(path) => Some(Output::create_in(existing(path)?)?),
        BootstrapTarget::Inline => None,
    };
    let (mut source, mut tree) = open_source(options, progress)?;
    let key = image.encrypt.then(crate::secret::new_key).transpose()?;
    let settings = PackSettings { cipher: key.clone(), ..PackSettings::new(image) };
    let (packed, chunks) = pack::run(settings, source.as_mut(), &mut tree, &mut blob, progress)?;
    drop(source);
    let packing = start.elapsed();
    report.seconds.insert("dump_blob", packing.as_secs_f64());
    report.deduplicated_bytes = packed.deduplicated;
    report.blob_uncompressed_size = packed.uncompressed_end;
    let order = Order::new(&mut tree)?;
    report.entries = order.numbered.len() as u64;
    let mut tail = Tail::new(features(options), key.as_ref());
    let mut blobs = blob_table(options, &packed, &chunks, key, &mut blob, &mut tail)?;
    if bootstrap.is_none() {
        let model = model(image, &tree, &order, &chunks, &packed, &blobs);
        tail.bootstrap(&mut blob, |sink| model.write(sink))?;
    }
    let has_blob = packed.chunk_count > 0 || bootstrap.is_none();
    let (toc_size, toc_digest) = if has_blob { tail.finish(&mut blob)? } else { (0, [0; 32]) };
    let id = options.blob_id.clone().unwrap_or_else(|| blob.id());
    if let Some(own) = blobs.last_mut() {
        own.id.clone_from(&id);
        (own.toc_size, own.toc_digest, own.compressed_size) = (toc_size, toc_digest, blob.position());
    }
    report.blob_size = blob.position();
    report.blobs = blobs.iter().map(|info| info.id.clone()).collect();
    let bootstrap = bootstrap
        .map(|output| {
            let mut sink = FileSink::new(output);
            model(image, &tree, &order, &chunks, &packed, &blobs).write(&mut sink)?;
            sink.finish()
        })
        .transpose()?;
    report.seconds.insert("dump_bootstrap", (start.elapsed() - packing).as_secs_f64());
    commit_blob(options, blob.into_output()?, has_blob.then_some(&id))?;
    report.bootstrap = match (&options.bootstrap, bootstrap) {
        (BootstrapTarget::Directory(_), Some((output, digest))) => output.commit_named(&digest)?,
        (_, Some((output, _))) => output.commit()?,
        (_, None) => PathBuf::new(),
    };
    report.seconds.insert("total_build", start.elapsed().as_secs_f64());
    Ok(report)
}

fn model<'a>(
    image: &ImageOptions,
    tree: &'a Tree,
    order: &'a Order,
    chunks: &'a [Chunk],
    packed: &'a Packed,
    blobs: &'a [BlobInfo],
) -> Model<'a> {
    Model {
        version: image.version,
        tree,
        order,
        chunks,
        references: &packed.references,
        blobs,
        compressor: image.compressor,
        digester: image.digester,
        chunk_size: image.chunk_size,
        explicit_ids: !image.repeatable,
        prefetch: write::prefetch_nodes(tree, order, image.prefetch_policy, &image.prefetch_patterns),
    }
}

/// Feature bits of the new blob.
fn features(options: &CreateOptions) -> BlobFeatures {
    let inline = matches!(options.bootstrap, BootstrapTarget::Inline);
    let mut features = BlobFeatures::CAP_TAR_TOC;
    features.set(BlobFeatures::ALIGNED, options.image.version == Version::V6);
    features.set(BlobFeatures::HAS_TOC | BlobFeatures::INLINED_CHUNK_DIGEST, options.toc);
    let (batch, encrypt) = (options.image.batch_size.is_some(), options.image.encrypt);
    features.set(BlobFeatures::CHUNK_INFO_V2, batch || encrypt);
    features.set(BlobFeatures::BATCH, batch);
    features.set(BlobFeatures::ENCRYPTED, encrypt);
    features.set(BlobFeatures::INLINED_FS_META, inline);
    features.set(BlobFeatures::HAS_TAR_HEADER, inline || options.toc);
    features
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

/// Writes the sections between chunk data and bootstrap, and makes the blob table. The own entry's id, ToC and
/// size are those that an inlined bootstrap must have (blob.md section 6); for others they are set later.
fn blob_table(
    options: &CreateOptions,
    packed: &Packed,
    chunks: &[Chunk],
    key: Option<CipherKey>,
    blob: &mut BlobFile,
    tail: &mut Tail,
) -> Result<Vec<BlobInfo>, BuildError> {
    if packed.chunk_count == 0 {
        return Ok(Vec::new());
    }
    let image = &options.image;
    tail.end_data(blob, packed.uncompressed_end)?;
    let mut chunk_info = None;
    if image.version == Version::V6 {
        let table = if features(options).contains(BlobFeatures::CHUNK_INFO_V2) {
            ChunkInfoTable::v2(chunks.iter(), &packed.batches, key.is_some())?
        } else {
            ChunkInfoTable::v1(chunks.iter())?
        };
        chunk_info = Some(tail.chunk_info(blob, &table, image.compressor)?);
    }
    tail.digests(blob, chunks.iter())?;
    let prefetch_size = if image.prefetch_policy == PrefetchPolicy::Blob { packed.prefetch_size } else { 0 };
    Ok(vec![BlobInfo {
        index: BlobIndex(0),
        id: UNKNOWN_ID.repeat(64),
        features: features(options),
        compressor: image.compressor,
        digester: image.digester,
        cipher: key,
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
