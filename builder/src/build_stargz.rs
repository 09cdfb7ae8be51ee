//! `create --type estargztoc-ref`: an image over an eStargz layer of which only the index is at hand (build-rules.md
//! section 10).
//!
//! Owns: where the layer's chunks are said to be, the `.blob.meta` file. Does not own: the index.

use crate::blobs::{BlobPlace, Object};
use crate::build::{self, Base, CreateOptions, CreateReport, StargzLayer};
use crate::error::BuildError;
use crate::layer::{KnownChunks, Referred, overlay};
use crate::options::Version;
use crate::output::Output;
use crate::pack::{Chunk, ChunkInfoTable, NewBlob};
use crate::source::stargz::{self, IndexedChunk, NO_DIGEST};
use crate::tree::Order;
use crate::write::{self, FileSink, Model};
use rafs::codec::{self, Compressor, Digest, Digester};
use rafs::ids::BlobIndex;
use rafs::image::{BlobInfo, ChunkInfoLocation};
use rafs::layout::blob::BlobFeatures;
use rafs::layout::chunk::ChunkFlags;
use std::path::{Path, PathBuf};

const ALIGNMENT: u64 = 4096;

/// Builds the image for the layer that `layer` describes.
pub(crate) fn create(options: &CreateOptions, layer: &StargzLayer) -> Result<CreateReport, BuildError> {
    let id = check(options)?;
    let image = &options.image;
    let Some(bootstrap) = options.bootstrap.output()? else {
        return refuse("--blob-inline-meta: no blob is written");
    };
    let index = stargz::read(&layer.index)?;
    let base = Base::load(options)?;
    let first_blob = base.blob_count()?;
    let Base { lower, known, references, dictionary_blobs } = base;
    let shift = references.len() as u64;
    let mut packer = Packer {
        known: KnownChunks::new(known, references, first_blob),
        places: Places::new(index.all_chunks(), layer, &id)?,
        chunk_size: image.chunk_size.get(),
        index: &layer.index,
        uncompressed_end: 0,
        count: 0,
        unverified: 0,
    };
    let mut tree = stargz::make_tree(&index, &layer.index, image.repeatable, &mut |tree, node, chunks| {
        tree.node_mut(node).first_chunk = packer.known.reference_count() - shift;
        packer.file(chunks)
    })?;
    if packer.unverified > 0 {
        tracing::warn!(
            "{} chunks have no digest in the index: what is read from them cannot be verified (give the layer with \
             --blob-dir to have their digests computed)",
            packer.unverified
        );
    }
    let (count, uncompressed_end) = (packer.count, packer.uncompressed_end);
    let layer_size = packer.places.end;
    let Referred { chunks, references, new_blobs } = packer.known.finish();
    let mut parent_blobs = Vec::new();
    if let Some(mut lower) = lower {
        overlay(&mut lower.tree, &tree, image.whiteout_spec, shift)?;
        tree = lower.tree;
        parent_blobs = lower.blobs;
    }
    let order = Order::new(&mut tree)?;
    let own = new_blobs.contains(&NewBlob::Own).then(|| BlobInfo {
        index: BlobIndex(0),
        id: id.clone(),
        features: BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC,
        compressor: Compressor::Gzip,
        digester: Digester::Sha256,
        cipher: None,
        chunk_size: image.chunk_size.get(),
        chunk_count: Some(count),
        compressed_size: layer_size,
        uncompressed_size: uncompressed_end,
        chunk_info: Some(ChunkInfoLocation {
            offset: 0,
            compressed_size: 16 * u64::from(count),
            uncompressed_size: 16 * u64::from(count),
            compressor: Compressor::None,
        }),
        toc_size: 0,
        toc_digest: [0; 32],
        meta_blob: None,
        prefetch_size: 0,
        mapped_blkaddr: 0,
    });
    let blobs = build::blob_table(parent_blobs, &new_blobs, &dictionary_blobs, own.as_ref());
    let model = Model {
        version: Version::V6,
        tree: &tree,
        order: &order,
        chunks: &chunks,
        references: &references,
        blobs: &blobs,
        compressor: Compressor::Gzip,
        digester: Digester::Sha256,
        chunk_size: image.chunk_size,
        explicit_ids: !image.repeatable,
        tarfs: false,
        prefetch: write::prefetch_nodes(&tree, &order, image.prefetch_policy, &image.prefetch_patterns),
    };
    let mut sink = FileSink::new(bootstrap);
    model.write(&mut sink)?;
    let (output, digest) = sink.finish()?;
    if let (Some(path), Some(own)) = (&layer.chunk_meta, blobs.iter().find(|blob| blob.id == id)) {
        let table = ChunkInfoTable::v1(chunks.iter().filter(|chunk| chunk.blob == own.index.0))?;
        write_chunk_meta(path, &table, own)?;
    }
    Ok(CreateReport {
        bootstrap: options.bootstrap.commit(output, &digest)?,
        blobs: blobs.iter().map(|blob| blob.id.clone()).collect(),
        blob_size: own.as_ref().map_or(0, |own| own.compressed_size),
        blob_uncompressed_size: uncompressed_end,
        entries: order.numbered.len() as u64,
        ..CreateReport::default()
    })
}

fn refuse<T>(what: &str) -> Result<T, BuildError> {
    Err(BuildError::Options(format!("images of a stargz index cannot be made with {what}")))
}

/// The blob's id, when the options fit.
fn check(options: &CreateOptions) -> Result<String, BuildError> {
    let image = &options.image;
    if image.version != Version::V6 {
        return refuse("--fs-version 5");
    }
    if image.encrypt || image.batch_size.is_some() || options.toc {
        return refuse("--encrypt, --batch-size or --features blob-toc: no data is stored anew");
    }
    if options.blob.is_some() {
        return refuse("--blob: the blob is the layer as it is");
    }
    match &options.blob_id {
        Some(id) => Ok(id.clone()),
        None => refuse("no --blob-id: give the id (sha256) of the layer"),
    }
}

/// Where the chunks of the layer are.
struct Places {
    /// Every offset at which something begins, ascending.
    starts: Vec<u64>,
    /// Where the layer ends, as far as is known; at least the end of the last chunk.
    end: u64,
    end_is_known: bool,
    layer: Option<(PathBuf, Box<dyn Object>)>,
}

impl Places {
    fn new(chunks: &[IndexedChunk], layer: &StargzLayer, id: &str) -> Result<Self, BuildError> {
        let mut starts: Vec<u64> = chunks.iter().map(|chunk| chunk.offset).collect();
        starts.sort_unstable();
        starts.dedup();
        let opened = layer.place.as_ref().and_then(|place| open(place, id));
        let actual = match &opened {
            Some((path, object)) => Some(object.size().map_err(BuildError::io("stat", path))?),
            None => None,
        };
        if let (Some(said), Some(actual)) = (layer.size, actual)
            && said != actual
        {
            return Err(BuildError::Options(format!(
                "--blob-data-size is {said:#x}, the layer {id} has {actual:#x} bytes"
            )));
        }
        let size = actual.or(layer.size);
        if let (Some(size), Some(last)) = (size, starts.last())
            && *last >= size
        {
            let reason = format!(
                "it has a chunk at {last}, the layer has {size} bytes: it is the index of another one"
            );
            return Err(BuildError::Source { path: layer.index.clone(), reason });
        }
        let mut places = Self { starts, end: size.unwrap_or(0), end_is_known: size.is_some(), layer: opened };
        if size.is_none() {
            places.end = chunks
                .iter()
                .map(|chunk| chunk.offset + u64::from(places.stored_size(chunk)))
                .max()
                .unwrap_or(0);
        }
        Ok(places)
    }

    /// Bytes that a reader should take for a chunk: up to what follows it, or what it can take at most.
    fn stored_size(&self, chunk: &IndexedChunk) -> u32 {
        let plain = u64::from(chunk.len);
        let most = plain + 151 + 5 * (plain / 16384);
        let next = self.starts.partition_point(|start| *start <= chunk.offset);
        let end = self.starts.get(next).copied().or_else(|| self.end_is_known.then_some(self.end));
        let size = end.map_or(most, |end| most.min(end.saturating_sub(chunk.offset)));
        // A version 1 chunk info with equal sizes would say that the chunk is raw.
        let size = if size == plain { size + 1 } else { size };
        u32::try_from(size).unwrap_or(u32::MAX).max(1)
    }

    /// The digest of a chunk, from its bytes. `None`: the layer is not at hand.
    fn digest(&self, chunk: &IndexedChunk) -> Result<Option<Digest>, BuildError> {
        let Some((path, object)) = &self.layer else { return Ok(None) };
        let left = self.end.saturating_sub(chunk.offset);
        let len = u64::from(self.stored_size(chunk)).min(left);
        let mut stored = vec![0; usize::try_from(len).unwrap_or_default()];
        object.read_exact_at(&mut stored, chunk.offset).map_err(BuildError::io("read", path))?;
        let mut plain = vec![0; chunk.len as usize];
        codec::gunzip_prefix(&stored, &mut plain).map_err(|e| BuildError::Source {
            path: path.clone(),
            reason: format!("the index says that a chunk is at {}: {e}", chunk.offset),
        })?;
        Ok(Some(codec::digest(Digester::Sha256, &plain)))
    }
}

/// The layer, where it is at hand.
fn open(place: &BlobPlace, id: &str) -> Option<(PathBuf, Box<dyn Object>)> {
    match place.open(id) {
        (path, Ok(object)) => Some((path, object)),
        (path, Err(e)) => {
            tracing::info!("the layer is not read: {path:?}: {e}");
            None
        }
    }
}

struct Packer<'a> {
    known: KnownChunks,
    places: Places,
    chunk_size: u32,
    index: &'a Path,
    uncompressed_end: u64,
    count: u32,
    unverified: u64,
}

impl Packer<'_> {
    /// Takes the chunks of one file.
    fn file(&mut self, chunks: &[IndexedChunk]) -> Result<(), BuildError> {
        for (position, chunk) in (0u32..).zip(chunks) {
            let last = chunks.len() - 1 == position as usize;
            let misplaced = chunk.file_offset != u64::from(position) * u64::from(self.chunk_size);
            if misplaced || chunk.len > self.chunk_size || (!last && chunk.len != self.chunk_size) {
                let made_with = chunks.first().map_or(0, |first| first.len);
                let reason = format!(
                    "files are cut into chunks of {made_with:#x} bytes there, the image's have {:#x}: give the index's \
                     chunk size with --chunk-size",
                    self.chunk_size
                );
                return Err(BuildError::Source { path: self.index.to_path_buf(), reason });
            }
            self.chunk(chunk, position)?;
        }
        Ok(())
    }

    fn chunk(&mut self, chunk: &IndexedChunk, position: u32) -> Result<(), BuildError> {
        let mut digest = chunk.digest;
        if digest == NO_DIGEST {
            match self.places.digest(chunk)? {
                Some(computed) => digest = computed,
                None => self.unverified += 1,
            }
        }
        if self.known.refer(&digest, chunk.len, position)? {
            return Ok(());
        }
        let limit = rafs::layout::v6::CHUNKS_MAX;
        if self.count >= limit {
            let what = "chunks in one blob (use a larger chunk size)";
            return Err(BuildError::Limit { what, limit: u64::from(limit) });
        }
        let stored = Chunk {
            digest,
            compressed_offset: chunk.offset,
            uncompressed_offset: self.uncompressed_end,
            compressed_size: self.places.stored_size(chunk),
            uncompressed_size: chunk.len,
            crc32c: 0,
            index: self.count,
            blob: self.known.own_blob()?,
            position,
            flags: ChunkFlags::COMPRESSED,
        };
        self.count += 1;
        self.uncompressed_end = (self.uncompressed_end + u64::from(chunk.len)).next_multiple_of(ALIGNMENT);
        let end = chunk.offset + u64::from(stored.compressed_size);
        self.places.end = self.places.end.max(end);
        self.known.store(stored)
    }
}

/// Writes the chunk info in the form of a cache's `ID.blob.meta`: the table, padded, and its header.
fn write_chunk_meta(path: &Path, table: &ChunkInfoTable, own: &BlobInfo) -> Result<(), BuildError> {
    let mut output = Output::create(path)?;
    output.write(&table.cache_file(own))?;
    output.commit().map(drop)
}
