//! `create --type tar-tarfs`: a bootstrap over a tar archive that stays as it is (blob.md section 10).
//!
//! Owns: its only blob entry and its chunk addresses. Does not own: reading the archive.

use crate::build::{CreateOptions, CreateReport};
use crate::error::BuildError;
use crate::options::{ImageOptions, Version};
use crate::pack::Chunk;
use crate::progress::Progress;
use crate::source::{TarIndex, TarSource};
use crate::tree::Order;
use crate::write::{self, FileSink, Model};
use rafs::codec::{Compressor, Digest, Digester};
use rafs::ids::BlobIndex;
use rafs::image::BlobInfo;
use rafs::layout::blob::BlobFeatures;
use rafs::layout::chunk::ChunkFlags;
use std::path::Path;
use std::sync::Arc;

/// Builds the bootstrap for the archive `path`.
pub(crate) fn create(
    options: &CreateOptions,
    path: &Path,
    progress: &Arc<Progress>,
) -> Result<CreateReport, BuildError> {
    let image = &options.image;
    let refuse =
        |what: &str| Err(BuildError::Options(format!("tar-tarfs images cannot be made with {what}")));
    if image.version != Version::V6 {
        return refuse("--fs-version 5");
    }
    if image.encrypt || image.batch_size.is_some() || options.toc {
        return refuse("--encrypt, --batch-size or --features blob-toc: there is no blob of ours");
    }
    if options.parent.is_some() || options.chunk_dict.is_some() {
        return refuse("--parent-bootstrap or --chunk-dict");
    }
    let Some(output) = options.bootstrap.output()? else {
        return refuse("--blob-inline-meta");
    };
    let (source, mut tree) = TarSource::open(path, image, progress.clone())?;
    let index = source.index(&mut tree)?;
    let chunks = chunks(image, &index)?;
    let order = Order::new(&mut tree)?;
    let blobs = if chunks.is_empty() { Vec::new() } else { vec![blob(options, &index, chunks.len())] };
    let references: Vec<u32> = (0..).take(chunks.len()).collect();
    let model = Model {
        version: Version::V6,
        tree: &tree,
        order: &order,
        chunks: &chunks,
        references: &references,
        blobs: &blobs,
        compressor: Compressor::None,
        digester: Digester::Sha256,
        chunk_size: image.chunk_size,
        explicit_ids: !image.repeatable,
        tarfs: true,
        prefetch: write::prefetch_nodes(&tree, &order, image.prefetch_policy, &image.prefetch_patterns),
    };
    let mut sink = FileSink::new(output);
    model.write(&mut sink)?;
    let (output, digest) = sink.finish()?;
    Ok(CreateReport {
        bootstrap: options.bootstrap.commit(output, &digest)?,
        blobs: blobs.iter().map(|blob| blob.id.clone()).collect(),
        blob_size: index.size,
        blob_uncompressed_size: index.size,
        entries: order.numbered.len() as u64,
        ..CreateReport::default()
    })
}

fn chunks(image: &ImageOptions, index: &TarIndex) -> Result<Vec<Chunk>, BuildError> {
    let chunk_size = image.chunk_size.get();
    let mut chunks = Vec::new();
    for (start, size) in &index.positions {
        for position in 0..image.chunk_size.chunks(*size) {
            let offset = position * u64::from(chunk_size);
            let number = u32::try_from(chunks.len()).ok().filter(|n| *n < rafs::layout::v6::CHUNKS_MAX);
            let number = number.ok_or_else(|| BuildError::Limit {
                what: "chunks in one blob (use a larger chunk size)",
                limit: u64::from(rafs::layout::v6::CHUNKS_MAX),
            })?;
            let len = u32::try_from((size - offset).min(u64::from(chunk_size))).unwrap_or(chunk_size);
            chunks.push(Chunk {
                digest: Digest::default(),
                compressed_offset: start + offset,
                uncompressed_offset: start + offset,
                compressed_size: len,
                uncompressed_size: len,
                crc32c: 0,
                index: number,
                blob: 0,
                position: u32::try_from(position).unwrap_or(u32::MAX),
                flags: ChunkFlags::empty(),
            });
        }
    }
    Ok(chunks)
}

fn blob(options: &CreateOptions, index: &TarIndex, chunk_count: usize) -> BlobInfo {
    BlobInfo {
        index: BlobIndex(0),
        id: options.blob_id.clone().unwrap_or_else(|| index.id.clone()),
        features: BlobFeatures::TARFS | BlobFeatures::CAP_TAR_TOC,
        compressor: Compressor::None,
        digester: Digester::Sha256,
        cipher: None,
        chunk_size: options.image.chunk_size.get(),
        chunk_count: u32::try_from(chunk_count).ok(),
        compressed_size: index.size,
        uncompressed_size: index.size,
        chunk_info: None,
        toc_size: 0,
        toc_digest: [0; 32],
        meta_blob: None,
        prefetch_size: 0,
        mapped_blkaddr: 0,
    }
}
