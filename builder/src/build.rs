//! `create`: from a source to a blob and a bootstrap.
//!
//! Owns: the steps and their order, names of outputs, the report. Does not own: any of the steps.

use crate::blobs::BlobPlace;
use crate::error::BuildError;
use crate::external::{self, External};
use crate::layer::{self, ChunkPool, Compatible, Dictionary, Layer, overlay};
use crate::options::{ImageOptions, PrefetchPolicy, Version, WhiteoutSpec};
use crate::output::Output;
use crate::pack::{self, BlobFile, Chunk, ChunkInfoTable, ChunkTable, NewBlob, PackSettings, Packed, Tail};
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
    /// A tar archive, plain or gzip, whose data stays in it (v6). The blob is a small one with chunk metadata.
    TarReference(PathBuf),
    /// A plain tar archive whose data is read in place (v6). No blob is written.
    Tarfs(PathBuf),
    /// The index of an eStargz layer, which stays where it is (v6). No blob is written.
    StargzIndex(StargzLayer),
}

/// An eStargz layer, by its index.
#[derive(Clone, Debug, Default)]
pub struct StargzLayer {
    /// The index, `stargz.index.json`.
    pub index: PathBuf,
    /// Bytes of the layer, when they are known.
    pub size: Option<u64>,
    /// Where the layer may be, to compute digests that the index does not have.
    pub place: Option<BlobPlace>,
    /// Where to write the chunk info for a cache (`ID.blob.meta`), if at all.
    pub chunk_meta: Option<PathBuf>,
}

impl SourceKind {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Tar(path) | Self::TarReference(path) | Self::Tarfs(path) => path,
            Self::StargzIndex(layer) => &layer.index,
        }
    }
}

/// Where the data blob goes.
#[derive(Clone, Debug)]
pub enum BlobTarget {
    /// To this file; a FIFO or device is written through, in order.
    File(PathBuf),
    /// Into this directory, named by its id. A file that is there under that name is kept.
    Directory(PathBuf),
    /// Into this directory as cache files, plain: `ID.blob.data` and (v6) `ID.blob.meta`. Needs compressor none.
    CacheDirectory(PathBuf),
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

impl BootstrapTarget {
    /// The file to write to; `None` where it goes into the blob.
    pub(crate) fn output(&self) -> Result<Option<Output>, BuildError> {
        match self {
            Self::File(path) => Output::create(path).map(Some),
            Self::Directory(path) => Output::create_in(path).map(Some),
            Self::Inline => Ok(None),
        }
    }

    /// Gives what was written its name; `digest`: sha256 in hex.
    pub(crate) fn commit(&self, output: Output, digest: &str) -> Result<PathBuf, BuildError> {
        match self {
            Self::Directory(_) => output.commit_named(digest),
            Self::File(_) | Self::Inline => output.commit(),
        }
    }
}

/// What to build, and where to.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Shape of the image.
    pub image: ImageOptions,
    /// Where entries and data come from.
    pub source: SourceKind,
    /// Where data goes; `None` for sources whose data stays where it is.
    pub blob: Option<BlobTarget>,
    /// Where metadata goes.
    pub bootstrap: BootstrapTarget,
    /// Name of the blob in the image, in place of its sha256; at most 64 bytes.
    pub blob_id: Option<String>,
    /// A lower image that the source is laid over.
    pub parent: Option<PathBuf>,
    /// A bootstrap whose chunks may be referred to.
    pub chunk_dict: Option<PathBuf>,
    /// v6: end the blob with a table of contents and give it a digest array.
    pub toc: bool,
    /// Bytes of zeros before the chunk data in the blob.
    pub data_offset: u64,
    /// File for the metadata of external files (see [`ImageOptions::attributes`]) when the bootstrap is inlined; else it
    /// stays empty.
    pub external_blob: Option<PathBuf>,
}

/// What was built.
#[derive(Clone, Debug, Default)]
pub struct CreateReport {
    /// The bootstrap's path; empty when it is inlined.
    pub bootstrap: PathBuf,
    /// Ids in the blob table, in table order.
    pub blobs: Vec<String>,
    /// The bootstrap of external files; empty when there is none, or it is inlined.
    pub external_bootstrap: PathBuf,
    /// Ids of the blobs that hold external files.
    pub external_blobs: Vec<String>,
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
    progress.set_at(options.source.path());
    if let SourceKind::Tarfs(path) = &options.source {
        return crate::build_tarfs::create(options, path, progress);
    }
    if let SourceKind::TarReference(path) = &options.source {
        return crate::build_ref::create(options, path, progress);
    }
    if let SourceKind::StargzIndex(layer) = &options.source {
        return crate::build_stargz::create(options, layer);
    }
    let image = &options.image;
    image.check()?;
    let mut report = CreateReport::default();
    let start = Instant::now();
    let Some(target) = &options.blob else {
        return Err(BuildError::Options(
            "both --blob and --blob-dir are missing: say where the data blob goes".to_owned(),
        ));
    };
    let mut blob = BlobFile::new(match target {
        BlobTarget::File(path) => Output::create(path)?,
        BlobTarget::Directory(path) | BlobTarget::CacheDirectory(path) => Output::create_in(existing(path)?)?,
    });
    write_gap(&mut blob, options.data_offset)?;
    let bootstrap = match &options.bootstrap {
        BootstrapTarget::File(path) => Some(Output::create(path)?),
        BootstrapTarget::Directory(path) => Some(Output::create_in(existing(path)?)?),
        BootstrapTarget::Inline => None,
    };
    let base = Base::load(options)?;
    let (mut source, mut tree) = open_source(options, progress)?;
    let key = image.encrypt.then(crate::secret::new_key).transpose()?;
    let settings = PackSettings {
        cipher: key.clone(),
        first_blob: base.blob_count()?,
        start: options.data_offset,
        ..PackSettings::new(image)
    };
    let Base { lower, known, references, dictionary_blobs } = base;
    let shift = references.len() as u64;
    let known = (known, references);
    let (packed, chunks) = pack::run(settings, known, source.as_mut(), &mut tree, &mut blob, progress)?;
    drop(source);
    let packing = start.elapsed();
    report.seconds.insert("dump_blob", packing.as_secs_f64());
    report.deduplicated_bytes = packed.deduplicated;
    report.blob_uncompressed_size = packed.uncompressed_end;
    let external = External::take(&mut tree, &image.attributes, options)?;
    let mut parent_blobs = Vec::new();
    if let Some(mut lower) = lower {
        overlay(&mut lower.tree, &tree, image.whiteout_spec, shift)?;
        tree = lower.tree;
        parent_blobs = lower.blobs;
    }
    let order = Order::new(&mut tree)?;
    report.entries = order.numbered.len() as u64;
    let mut tail = Tail::new(features(options), key.as_ref());
    let mut own = own_blob(options, &packed, &chunks, key, &mut blob, &mut tail)?;
    let mut blobs = blob_table(parent_blobs, &packed.new_blobs, &dictionary_blobs, own.as_ref());
    if bootstrap.is_none() {
        if own.is_none() {
            // An empty section, so that the file does not begin like a bootstrap that stands alone.
            tail.end_data(&mut blob, 0)?;
        }
        let model = model(image, &tree, &order, &chunks, &packed, &blobs);
        tail.bootstrap(&mut blob, |sink| model.write(sink))?;
    }
    let has_blob = packed.chunk_count > 0 || bootstrap.is_none();
    let (toc_size, toc_digest) = if has_blob { tail.finish(&mut blob)? } else { (0, [0; 32]) };
    let id = options.blob_id.clone().unwrap_or_else(|| blob.id());
    if let Some(own) = &mut own {
        own.id.clone_from(&id);
        (own.toc_size, own.toc_digest, own.compressed_size) = (toc_size, toc_digest, blob.position());
        if let Some(entry) = blobs.get_mut(own.index.as_usize()) {
            entry.clone_from(own);
        }
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
    match external {
        Some(external) => {
            let written = external.write(options)?;
            (report.external_bootstrap, report.external_blobs) = (written.bootstrap, written.blobs);
        }
        None => external::write_empty(options)?,
    }
    let blob = blob.into_output()?;
    match (target, &own) {
        (BlobTarget::CacheDirectory(dir), Some(own)) => {
            let chunks: Vec<&Chunk> = chunks.iter().filter(|chunk| chunk.blob == own.index.0).collect();
            crate::cache_files::write(dir, &blob, &chunks, own)?;
        }
        _ => commit_blob(target, blob, has_blob.then_some(&id))?,
    }
    report.bootstrap = match (&options.bootstrap, bootstrap) {
        (target, Some((output, digest))) => target.commit(output, &digest)?,
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
        tarfs: false,
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
    let mut image = options.image.clone();
    if options.parent.is_some() {
        // Markers have something to act on: the source keeps them until the trees are laid over each other.
        image.whiteout_spec = WhiteoutSpec::None;
    }
    match &options.source {
        SourceKind::Directory(path) => {
            let (source, tree) = DirectorySource::open(path, &image, progress.clone())?;
            Ok((Box::new(source), tree))
        }
        SourceKind::Tar(path)
        | SourceKind::TarReference(path)
        | SourceKind::Tarfs(path)
        | SourceKind::StargzIndex(StargzLayer { index: path, .. }) => {
            let (source, tree) = TarSource::open(path, &image, progress.clone())?;
            Ok((Box::new(source), tree))
        }
    }
}

/// Zeros before the data, where whoever asked for them will put something else.
fn write_gap(blob: &mut BlobFile, size: u64) -> Result<(), BuildError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut left = size;
    while left > 0 {
        let now = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        blob.write(&ZEROS[..now])?;
        left -= now as u64;
    }
    Ok(())
}

fn existing(dir: &Path) -> Result<&Path, BuildError> {
    if dir.is_dir() {
        Ok(dir)
    } else {
        Err(BuildError::Options(format!("directory to store blobs does not exist: {dir:?}")))
    }
}

/// What a build starts from: a parent image and a dictionary.
pub(crate) struct Base {
    /// The parent, whose chunks are in `known`.
    pub lower: Option<Layer>,
    /// Chunks that can be referred to.
    pub known: ChunkTable,
    /// References of the parent's files.
    pub references: Vec<u32>,
    /// Blobs of the dictionary.
    pub dictionary_blobs: Vec<BlobInfo>,
}

impl Base {
    /// Loads what the options name.
    pub(crate) fn load(options: &CreateOptions) -> Result<Self, BuildError> {
        let image = &options.image;
        let target = Compatible::of_options(image);
        let mut pool = ChunkPool::default();
        let mut lower = None;
        if let Some(path) = &options.parent {
            let parent = layer::open(path)?;
            if let Some(reason) = Compatible::of(&parent).difference(&target) {
                return Err(BuildError::Inconsistent { path: path.clone(), reason });
            }
            lower = Some(Layer::load(&parent, path, 0, &mut pool)?);
        }
        let dictionary = match &options.chunk_dict {
            Some(path) => Dictionary::load(path, &target, image.digester)?,
            None => Dictionary::default(),
        };
        let dictionary_blobs = dictionary.blobs.clone();
        let same_digester = |chunk: &Chunk| {
            let blobs = lower.as_ref().map_or(&[][..], |lower| &lower.blobs);
            blobs.get(chunk.blob as usize).is_some_and(|blob| blob.digester == image.digester)
        };
        let known = ChunkTable::new(pool.chunks, same_digester, dictionary);
        Ok(Self { lower, known, references: pool.references, dictionary_blobs })
    }

    /// Blobs of the parent.
    pub(crate) fn blob_count(&self) -> Result<u32, BuildError> {
        let count = self.lower.as_ref().map_or(0, |lower| lower.blobs.len());
        u32::try_from(count).map_err(|_| BuildError::Limit { what: "blobs", limit: u64::from(u32::MAX) })
    }
}

/// The parent's blobs, then those that the build added, in the order of first use.
pub(crate) fn blob_table(
    parent: Vec<BlobInfo>,
    new_blobs: &[NewBlob],
    dictionary: &[BlobInfo],
    own: Option<&BlobInfo>,
) -> Vec<BlobInfo> {
    let mut blobs = parent;
    let new = new_blobs.iter().filter_map(|blob| match blob {
        NewBlob::Own => own,
        NewBlob::Dictionary(at) => dictionary.get(*at as usize),
    });
    blobs.extend(new.cloned());
    for (at, blob) in (0..).zip(&mut blobs) {
        blob.index = BlobIndex(at);
    }
    blobs
}

/// Writes the sections between chunk data and bootstrap, and makes the own entry of the blob table. Its id, ToC and
/// size are those that an inlined bootstrap must have (blob.md section 6); for others they are set later.
fn own_blob(
    options: &CreateOptions,
    packed: &Packed,
    chunks: &[Chunk],
    key: Option<CipherKey>,
    blob: &mut BlobFile,
    tail: &mut Tail,
) -> Result<Option<BlobInfo>, BuildError> {
    let Some(index) = packed.own_blob else { return Ok(None) };
    let chunks = || chunks.iter().filter(|chunk| chunk.blob == index);
    let image = &options.image;
    tail.end_data(blob, packed.uncompressed_end)?;
    let mut chunk_info = None;
    if image.version == Version::V6 {
        let table = if features(options).contains(BlobFeatures::CHUNK_INFO_V2) {
            ChunkInfoTable::v2(chunks(), &packed.batches, key.is_some())?
        } else {
            ChunkInfoTable::v1(chunks())?
        };
        chunk_info = Some(tail.chunk_info(blob, &table, image.compressor)?);
    }
    tail.digests(blob, chunks())?;
    let prefetch_size = if image.prefetch_policy == PrefetchPolicy::Blob { packed.prefetch_size } else { 0 };
    Ok(Some(BlobInfo {
        index: BlobIndex(index),
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
    }))
}

fn commit_blob(target: &BlobTarget, output: Output, id: Option<&String>) -> Result<(), BuildError> {
    match (target, id) {
        // Without data there is no blob; a file that was asked for by name is there and empty.
        (BlobTarget::File(_), _) => output.commit().map(drop),
        (BlobTarget::Directory(_), Some(id)) => output.commit_named(id).map(drop),
        (BlobTarget::Directory(_), None) | (BlobTarget::CacheDirectory(_), _) => Ok(()),
    }
}
