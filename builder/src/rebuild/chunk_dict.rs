//! `chunkdict generate`: what several images share.
//!
//! Owns: which chunks a dictionary has. Does not own: its use (`layer::Dictionary`).
//!
//! The rule: a chunk is in the dictionary if it occurs in two or more of the images (same digest algorithm, digest and
//! plain size). It is the one of the first image that has it; of several there, the one that is stored first. Chunks of
//! encrypted blobs stay out, since whoever refers to one needs its key, and so do chunks whose blob cannot be read from
//! chunk records alone: tars, external data, legacy stargz layers.

use super::{RebuildError, RebuildReport};
use crate::error::BuildError;
use crate::layer::{Compatible, as_part, stored_part};
use crate::options::{ChunkSize, Version};
use crate::output::Output;
use crate::pack::Chunk;
use crate::tree::{Attributes, Order, ROOT, S_IFDIR, S_IFREG, Tree};
use crate::write::{FileSink, Model};
use rafs::codec::{Digest, Digester};
use rafs::ids::BlobIndex;
use rafs::image::{BlobInfo, Image};
use rafs::layout::blob::BlobFeatures;
use rafs::layout::chunk::ChunkRecord;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

/// Name of the one file of a dictionary.
const FILE: &[u8] = b"chunkdict";

/// What a dictionary is made of, and where it goes.
#[derive(Clone, Debug)]
pub struct ChunkDictOptions {
    /// Bootstraps of images.
    pub images: Vec<PathBuf>,
    /// The dictionary to write: a bootstrap.
    pub output: PathBuf,
}

/// A chunk that occurs, and in how many images.
struct Found {
    chunk: Chunk,
    images: u32,
    /// The image that was looked at last.
    last: usize,
}

/// Makes a dictionary.
///
/// # Errors
/// [`BuildError::Inconsistent`] when the images do not go together; else what went wrong at which file.
pub fn generate_chunk_dict(options: &ChunkDictOptions) -> Result<RebuildReport, RebuildError> {
    let mut target: Option<Compatible> = None;
    let mut blobs: Vec<BlobInfo> = Vec::new();
    let mut found: HashMap<(Digester, Digest, u32), Found> = HashMap::new();
    for (number, path) in options.images.iter().enumerate() {
        let image = crate::layer::open(path)?;
        image.check().map_err(|e| BuildError::Image { path: path.clone(), reason: e.to_string() })?;
        let own = Compatible::of(&image);
        let target = target.get_or_insert(own);
        if let Some(reason) = own.difference(target) {
            return Err(BuildError::Inconsistent { path: path.clone(), reason }.into());
        }
        let numbers: Vec<Option<u32>> = image
            .blobs()
            .iter()
            .map(|blob| usable(blob).then(|| number_of(&mut blobs, as_part(blob, &image, path))))
            .collect();
        for_each_record(&image, &mut |record| {
            let chunk = stored_part(record);
            let Some(Some(blob)) = numbers.get(chunk.blob as usize) else { return };
            let digester = image.blobs()[chunk.blob as usize].digester;
            if chunk.digest == Digest::default() || chunk.uncompressed_size == 0 {
                return;
            }
            let chunk = Chunk { blob: *blob, ..chunk };
            match found.entry((digester, chunk.digest, chunk.uncompressed_size)) {
                Entry::Vacant(free) => {
                    free.insert(Found { chunk, images: 1, last: number });
                }
                Entry::Occupied(mut known) => {
                    let known = known.get_mut();
                    let key = |chunk: &Chunk| (chunk.blob, chunk.index);
                    if known.last != number {
                        known.images += 1;
                        known.last = number;
                    } else if known.images == 1 && key(&chunk) < key(&known.chunk) {
                        known.chunk = chunk;
                    }
                }
            }
        });
    }
    let Some(target) = target else {
        return Err(BuildError::Options("there is no image to make a dictionary of".to_owned()).into());
    };
    let mut chunks: Vec<Chunk> =
        found.into_values().filter(|found| found.images > 1).map(|found| found.chunk).collect();
    chunks.sort_unstable_by_key(|chunk| (chunk.blob, chunk.index, chunk.compressed_offset));
    let blobs = keep_used(blobs, &mut chunks);
    let bootstrap = write(&target, &chunks, &blobs, options)?;
    tracing::info!("{} chunks of {} blobs occur in two or more images", chunks.len(), blobs.len());
    Ok(RebuildReport {
        bootstrap,
        blobs: blobs.iter().map(|blob| blob.id.clone()).collect(),
        new_blobs: Vec::new(),
        version: target.version,
        compressor: target.compressor,
    })
}

fn usable(blob: &BlobInfo) -> bool {
    let unusable = BlobFeatures::TARFS | BlobFeatures::EXTERNAL;
    !blob.features.intersects(unusable) && blob.cipher.is_none() && !rafs::blob::is_legacy_stargz(blob)
}

/// The number of a blob among `blobs`; the same blob of two images is one.
fn number_of(blobs: &mut Vec<BlobInfo>, blob: BlobInfo) -> u32 {
    let at = blobs.iter().position(|other| other.id == blob.id).unwrap_or_else(|| {
        blobs.push(blob);
        blobs.len() - 1
    });
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn for_each_record(image: &Image, take: &mut dyn FnMut(&ChunkRecord)) {
    match image.version() {
        Version::V5 => image.for_each_chunk_record(take),
        Version::V6 => image.chunk_table().iter().for_each(take),
    }
}

/// Numbers anew those blobs that chunks are in.
fn keep_used(blobs: Vec<BlobInfo>, chunks: &mut [Chunk]) -> Vec<BlobInfo> {
    let mut kept: Vec<BlobInfo> = Vec::new();
    let mut numbers: Vec<Option<u32>> = vec![None; blobs.len()];
    for chunk in chunks {
        let at = chunk.blob as usize;
        if numbers[at].is_none() {
            let number = u32::try_from(kept.len()).unwrap_or(u32::MAX);
            let features = blobs[at].features | BlobFeatures::IS_CHUNKDICT_GENERATED;
            kept.push(BlobInfo { index: BlobIndex(number), features, ..blobs[at].clone() });
            numbers[at] = Some(number);
        }
        chunk.blob = numbers[at].unwrap_or(u32::MAX);
    }
    kept
}

fn write(
    target: &Compatible,
    chunks: &[Chunk],
    blobs: &[BlobInfo],
    options: &ChunkDictOptions,
) -> Result<PathBuf, BuildError> {
    let mut tree = Tree::new(Attributes { mode: S_IFDIR | 0o755, ..Attributes::default() });
    // Every chunk is a piece of the file: it is as long as if they all had the full size.
    let size = chunks.len() as u64 * u64::from(target.chunk_size);
    let node = tree.add(ROOT, FILE, Attributes { mode: S_IFREG | 0o444, size, ..Attributes::default() })?;
    tree.node_mut(node).first_chunk = 0;
    let order = Order::new(&mut tree)?;
    let references: Vec<u32> = (0..).take(chunks.len()).collect();
    let model = Model {
        version: target.version,
        tree: &tree,
        order: &order,
        chunks,
        references: &references,
        blobs,
        compressor: target.compressor,
        digester: target.digester,
        chunk_size: ChunkSize::new(u64::from(target.chunk_size))?,
        explicit_ids: target.explicit_ids,
        tarfs: false,
        prefetch: Vec::new(),
    };
    let mut sink = FileSink::new(Output::create(&options.output)?);
    model.write(&mut sink)?;
    sink.finish()?.0.commit()
}
