//! `create --type targz-ref`: an image over an archive that stays as it is (blob.md section 9).
//!
//! Owns: chunks that point into the archive, the meta blob. Does not own: reading the archive.

use crate::build::{self, Base, BlobTarget, BootstrapTarget, CreateOptions, CreateReport};
use crate::error::BuildError;
use crate::layer::{KnownChunks, Referred, overlay};
use crate::options::Version;
use crate::output::Output;
use crate::pack::{BlobFile, Chunk, ChunkInfoTable, Tail};
use crate::progress::Progress;
use crate::source::{Reference, ReferenceChunk, TarSource};
use crate::tree::{Order, Tree};
use crate::write::{self, FileSink, Model};
use rafs::codec::{Compressor, Digester};
use rafs::ids::BlobIndex;
use rafs::image::{BlobInfo, MetaBlob};
use rafs::layout::blob::{BlobFeatures, ChunkInfoV2, ChunkInfoV2Flags};
use rafs::layout::chunk::ChunkFlags;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ALIGNMENT: u64 = 4096;

/// Builds the image for the archive `path`.
pub(crate) fn create(
    options: &CreateOptions,
    path: &Path,
    progress: &Arc<Progress>,
) -> Result<CreateReport, BuildError> {
    let image = &options.image;
    let refuse = |what: &str| {
        Err(BuildError::Options(format!("images that refer to an archive cannot be made with {what}")))
    };
    if image.version != Version::V6 {
        return refuse("--fs-version 5");
    }
    if image.encrypt || image.batch_size.is_some() {
        return refuse("--encrypt or --batch-size: the data is not stored anew");
    }
    if options.blob_id.is_some() {
        return refuse("--blob-id: the id is the archive's sha256");
    }
    if options.data_offset > 0 {
        return refuse("--blob-offset: the data is in the archive");
    }
    let Some(target) = &options.blob else {
        return Err(BuildError::Options(
            "both --blob and --blob-dir are missing: say where the meta blob goes".to_owned(),
        ));
    };
    let mut blob = BlobFile::new(match target {
        BlobTarget::File(path) => Output::create(path)?,
        BlobTarget::Directory(path) => Output::create_in(path)?,
        BlobTarget::CacheDirectory(_) => return refuse("--blob-cache-dir: the data is in the archive"),
    });
    let bootstrap = options.bootstrap.output()?;
    let (source, mut tree) = TarSource::open_indexed(path, image, progress.clone())?;
    let base = Base::load(options)?;
    let first_blob = base.blob_count()?;
    let Base { lower, known, references, dictionary_blobs } = base;
    let shift = references.len() as u64;
    let known = KnownChunks::new(known, references, first_blob);
    let (chunks, reference) = read(source, &mut tree, known)?;
    let mut parent_blobs = Vec::new();
    if let Some(mut lower) = lower {
        overlay(&mut lower.tree, &tree, image.whiteout_spec, shift)?;
        tree = lower.tree;
        parent_blobs = lower.blobs;
    }
    let order = Order::new(&mut tree)?;
    let features = features(options, &reference);
    let mut tail = Tail::new(features, None);
    let mut own = own_blob(options, &chunks, &reference, features, &mut blob, &mut tail)?;
    let table = |own: Option<&BlobInfo>| {
        build::blob_table(parent_blobs.clone(), &chunks.referred.new_blobs, &dictionary_blobs, own)
    };
    let model = |blobs: &[BlobInfo], sink: &mut dyn write::Sink| {
        Model {
            version: Version::V6,
            tree: &tree,
            order: &order,
            chunks: &chunks.referred.chunks,
            references: &chunks.referred.references,
            blobs,
            compressor: Compressor::Gzip,
            digester: Digester::Sha256,
            chunk_size: image.chunk_size,
            explicit_ids: !image.repeatable,
            tarfs: false,
            prefetch: write::prefetch_nodes(&tree, &order, image.prefetch_policy, &image.prefetch_patterns),
        }
        .write(sink)
    };
    let has_blob = own.is_some() || bootstrap.is_none();
    if bootstrap.is_none() {
        if own.is_none() {
            // An empty section, so that the file does not begin like a bootstrap that stands alone.
            tail.end_data(&mut blob, 0)?;
        }
        tail.bootstrap(&mut blob, |sink| model(&table(own.as_ref()), sink))?;
    }
    let (toc_size, toc_digest) = if has_blob { tail.finish(&mut blob)? } else { (0, [0; 32]) };
    let meta_id = blob.id();
    if let Some(own) = &mut own {
        (own.toc_size, own.toc_digest) = (toc_size, toc_digest);
        own.meta_blob = Some(MetaBlob::Named { id: meta_id.clone(), size: blob.position() });
    }
    let mut report = CreateReport {
        blobs: table(own.as_ref()).iter().map(|blob| blob.id.clone()).collect(),
        blob_size: blob.position(),
        blob_uncompressed_size: chunks.uncompressed_end,
        entries: order.numbered.len() as u64,
        ..CreateReport::default()
    };
    let bootstrap = bootstrap
        .map(|output| {
            let mut sink = FileSink::new(output);
            model(&table(own.as_ref()), &mut sink)?;
            sink.finish()
        })
        .transpose()?;
    let output = blob.into_output()?;
    match target {
        BlobTarget::File(_) => drop(output.commit()?),
        BlobTarget::Directory(_) if has_blob => drop(output.commit_named(&meta_id)?),
        BlobTarget::Directory(_) | BlobTarget::CacheDirectory(_) => {}
    }
    report.bootstrap = match (&options.bootstrap, bootstrap) {
        (target, Some((output, digest))) => target.commit(output, &digest)?,
        (_, None) => PathBuf::new(),
    };
    Ok(report)
}

/// Chunks of the archive.
#[derive(Default)]
struct Chunks {
    infos: Vec<ChunkInfoV2>,
    uncompressed_end: u64,
    /// Index of the archive in the blob table, once it has a chunk.
    blob: Option<u32>,
    referred: Referred,
}

fn read(source: TarSource, tree: &mut Tree, known: KnownChunks) -> Result<(Chunks, Reference), BuildError> {
    let known = RefCell::new(known);
    let mut chunks = Chunks::default();
    let reference =
        source.refer(tree, &mut |digest, len| known.borrow().contains(digest, len), &mut |found| {
            let mut known = known.borrow_mut();
            if known.refer(&found.digest, found.len, found.position)? {
                return Ok(());
            }
            let blob = known.own_blob()?;
            known.store(chunks.add(&found, blob)?)
        })?;
    chunks.referred = known.into_inner().finish();
    Ok((chunks, reference))
}

fn too_many() -> BuildError {
    let limit = u64::from(rafs::layout::v6::CHUNKS_MAX);
    BuildError::Limit { what: "chunks in one blob (use a larger chunk size)", limit }
}

impl Chunks {
    /// The chunks of the archive, in the order of their numbers.
    fn own(&self) -> impl Iterator<Item = &Chunk> {
        self.referred.chunks.iter().filter(|chunk| Some(chunk.blob) == self.blob)
    }

    fn add(&mut self, found: &ReferenceChunk, blob: u32) -> Result<Chunk, BuildError> {
        let index = u32::try_from(self.infos.len()).ok().filter(|n| *n < rafs::layout::v6::CHUNKS_MAX);
        let index = index.ok_or_else(too_many)?;
        self.blob = Some(blob);
        let mut flags = ChunkFlags::HAS_CRC32;
        flags.set(ChunkFlags::COMPRESSED, found.context.is_some());
        let chunk = Chunk {
            digest: found.digest,
            compressed_offset: found.stored_offset,
            uncompressed_offset: self.uncompressed_end,
            compressed_size: found.stored_size,
            uncompressed_size: found.len,
            crc32c: found.crc32c,
            index,
            blob,
            position: found.position,
            flags,
        };
        let (flags, data) = match found.context {
            Some((context, offset)) => (
                ChunkInfoV2Flags::COMPRESSED | ChunkInfoV2Flags::ZRAN,
                u64::from(context) << 32 | u64::from(offset),
            ),
            // A CRC of 0 cannot be told from none.
            None if found.crc32c == 0 => (ChunkInfoV2Flags::empty(), 0),
            None => (ChunkInfoV2Flags::HAS_CRC32, u64::from(found.crc32c)),
        };
        self.infos.push(ChunkInfoTable::v2_entry(&chunk, found.stored_offset, flags, data)?);
        self.uncompressed_end = (self.uncompressed_end + u64::from(found.len)).next_multiple_of(ALIGNMENT);
        Ok(chunk)
    }
}

fn features(options: &CreateOptions, reference: &Reference) -> BlobFeatures {
    let inline = matches!(options.bootstrap, BootstrapTarget::Inline);
    let mut features = BlobFeatures::CAP_TAR_TOC
        | BlobFeatures::ALIGNED
        | BlobFeatures::CHUNK_INFO_V2
        | BlobFeatures::SEPARATE;
    features.set(BlobFeatures::ZRAN, reference.contexts.is_some());
    features.set(BlobFeatures::HAS_TOC | BlobFeatures::INLINED_CHUNK_DIGEST, options.toc);
    features.set(BlobFeatures::INLINED_FS_META, inline);
    features.set(BlobFeatures::HAS_TAR_HEADER, inline || options.toc);
    features
}

fn own_blob(
    options: &CreateOptions,
    chunks: &Chunks,
    reference: &Reference,
    features: BlobFeatures,
    blob: &mut BlobFile,
    tail: &mut Tail,
) -> Result<Option<BlobInfo>, BuildError> {
    if chunks.infos.is_empty() {
        return Ok(None);
    }
    let (contexts, dictionaries) = match &reference.contexts {
        Some((contexts, dictionaries)) => (&contexts[..], &dictionaries[..]),
        None => (&[][..], &[][..]),
    };
    let table = ChunkInfoTable::v2_with_contexts(&chunks.infos, contexts, dictionaries);
    let chunk_info = tail.chunk_info(blob, &table, Compressor::Zstd)?;
    tail.digests(blob, chunks.own())?;
    Ok(Some(BlobInfo {
        index: BlobIndex(0),
        id: reference.id.clone(),
        features,
        compressor: Compressor::Gzip,
        digester: Digester::Sha256,
        cipher: None,
        chunk_size: options.image.chunk_size.get(),
        chunk_count: u32::try_from(chunks.infos.len()).ok(),
        compressed_size: reference.size,
        uncompressed_size: chunks.uncompressed_end,
        chunk_info: Some(chunk_info),
        toc_size: 0,
        toc_digest: [0; 32],
        meta_blob: None,
        prefetch_size: 0,
        mapped_blkaddr: 0,
    }))
}
