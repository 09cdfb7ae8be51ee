//! `optimize`: copies of what is wanted first, in one blob of their own (build-rules.md section 14).
//!
//! Owns: which chunks are copied, and pointing files at the copies. Does not own: how they are stored (`mover`).

use super::mover::{Mover, Shape};
use super::{Loaded, PrefetchFiles, RebuildError, RebuildReport, find, write_bootstrap};
use crate::blobs::{BlobPlace, Blobs};
use crate::error::BuildError;
use crate::options::Version;
use crate::output::Output;
use rafs::codec::Compressor;
use rafs::ids::BlobIndex;
use rafs::image::BlobInfo;
use rafs::layout::blob::BlobFeatures;
use rafs::trace::Trace;
use std::collections::HashMap;
use std::path::PathBuf;

/// What to optimize, and where to.
#[derive(Clone, Debug)]
pub struct OptimizeOptions {
    /// Bootstrap of the image.
    pub bootstrap: PathBuf,
    /// Where its blobs are.
    pub place: BlobPlace,
    /// What is wanted first, in that order.
    pub wanted: WantedFirst,
    /// Where the new blob goes, under its id.
    pub blob_dir: PathBuf,
    /// Where the new bootstrap goes.
    pub output: PathBuf,
}

/// What is wanted first.
#[derive(Clone, Debug)]
pub enum WantedFirst {
    /// Files, or parts of them.
    Files(PrefetchFiles),
    /// Chunks, as a daemon recorded them. Those that the image does not have are passed over.
    Trace(Trace),
}

/// Makes the blob and the bootstrap; the blob is the last of the blob table.
///
/// # Errors
/// What went wrong, and at which file; also when no listed file has data in the image.
pub fn optimize(options: &OptimizeOptions) -> Result<RebuildReport, RebuildError> {
    let mut loaded = Loaded::open(&options.bootstrap)?;
    let mut blobs = std::mem::take(&mut loaded.layer.blobs);
    let wanted = match &options.wanted {
        WantedFirst::Files(files) => of_files(&loaded, files),
        WantedFirst::Trace(trace) => of_trace(&loaded, &blobs, trace),
    };
    let mut uses = vec![false; blobs.len()];
    for at in &wanted {
        let chunk = loaded.pool.chunks[loaded.pool.references[*at] as usize];
        if let Some(used) = uses.get_mut(chunk.blob as usize) {
            *used = true;
        }
    }
    let Loaded { image, layer, pool, .. } = &mut loaded;
    let open = Blobs::open_some(image, &options.bootstrap, &options.place, &|blob| {
        uses.get(blob.index.as_usize()) == Some(&true)
    })?;
    let output = Output::create(&options.output)?;
    let compatible = &layer.compatible;
    let v6 = compatible.version == Version::V6;
    // What is secret stays so: copies of encrypted chunks are encrypted, with a key of their own.
    let secret = open.iter().any(|blob| blob.info.cipher.is_some());
    let key = secret.then(crate::secret::new_key).transpose()?;
    let mut features = BlobFeatures::CAP_TAR_TOC | BlobFeatures::IS_SEPARATED_WITH_PREFETCH_FILES;
    features.set(BlobFeatures::ALIGNED, v6);
    features.set(BlobFeatures::ENCRYPTED | BlobFeatures::CHUNK_INFO_V2, secret);
    let shape = Shape {
        version: compatible.version,
        compressor: if v6 && compatible.compressor == Compressor::Gzip {
            Compressor::Zstd
        } else {
            compatible.compressor
        },
        digester: compatible.digester,
        key,
        features,
        aligned: v6,
        chunk_size: compatible.chunk_size,
    };
    let own = u32::try_from(blobs.len()).unwrap_or(u32::MAX);
    let mut mover = Mover::new(&options.blob_dir, shape)?;
    let mut copies: HashMap<u32, u32> = HashMap::new();
    for at in wanted {
        let old = pool.references[at];
        if let Some(copy) = copies.get(&old) {
            pool.references[at] = *copy;
            continue;
        }
        let chunk = pool.chunks[old as usize];
        let Some(source) = open.get(chunk.blob as usize) else { continue };
        let mut copy = mover.copy(source, &chunk)?;
        copy.blob = own;
        let number = u32::try_from(pool.chunks.len())
            .map_err(|_| BuildError::Limit { what: "chunks in one image", limit: u64::from(u32::MAX) })?;
        pool.chunks.push(copy);
        copies.insert(old, number);
        pool.references[at] = number;
    }
    if mover.len() == 0 {
        let reason = "no file of the list has data in it: there is nothing to put into a blob".to_owned();
        return Err(BuildError::Image { path: options.bootstrap.clone(), reason }.into());
    }
    drop(open);
    let count = mover.len();
    let (blob, mut info) = mover.finish()?;
    info.index = BlobIndex(own);
    let id = info.id.clone();
    blobs.push(info);
    let bootstrap = write_bootstrap(&mut loaded, &blobs, output)?;
    let new_blobs = vec![blob.commit_named(&id)?];
    tracing::info!("{count} chunks were copied to blob {id}");
    Ok(RebuildReport {
        bootstrap: bootstrap.commit()?,
        blobs: blobs.iter().map(|blob| blob.id.clone()).collect(),
        new_blobs,
        version: loaded.layer.compatible.version,
        compressor: loaded.layer.compatible.compressor,
    })
}

/// Positions in the reference list of what is wanted, in order.
fn of_files(loaded: &Loaded, files: &PrefetchFiles) -> Vec<usize> {
    let chunk_size = u64::from(loaded.layer.compatible.chunk_size);
    let mut wanted = Vec::new();
    for file in &files.files {
        let path = &file.path;
        let node = find(loaded, path).map(|id| loaded.layer.tree.owner(id));
        let Some(node) = node.filter(|node| node.is_file()) else {
            tracing::warn!("{path:?} is no file of the image: skipped");
            continue;
        };
        let first = usize::try_from(node.first_chunk).unwrap_or(usize::MAX);
        for position in 0..node.attributes.size.div_ceil(chunk_size) {
            let at = usize::try_from(position).ok().and_then(|n| first.checked_add(n));
            let chunk = at.and_then(|at| Some((at, loaded.pool.references.get(at)?)));
            let Some((at, chunk)) = chunk else { break };
            let len = loaded.pool.chunks[*chunk as usize].uncompressed_size;
            if file.wants(position * chunk_size, len) {
                wanted.push(at);
            }
        }
    }
    wanted
}

/// The same for the chunks of a trace: all references to each of them.
fn of_trace(loaded: &Loaded, blobs: &[BlobInfo], trace: &Trace) -> Vec<usize> {
    let numbers: HashMap<&str, u32> = (0..).zip(blobs).map(|(at, blob)| (blob.id.as_str(), at)).collect();
    let mut ranks: HashMap<(u32, u32, u64), usize> = HashMap::new();
    for (rank, chunk) in trace.chunks.iter().enumerate() {
        if let Some(blob) = numbers.get(&*chunk.blob) {
            ranks.entry((*blob, chunk.chunk, chunk.uncompressed_offset)).or_insert(rank);
        }
    }
    let ranked = loaded.pool.references.iter().enumerate().filter_map(|(at, chunk)| {
        let chunk = loaded.pool.chunks.get(*chunk as usize)?;
        ranks.get(&(chunk.blob, chunk.index, chunk.uncompressed_offset)).map(|rank| (*rank, at))
    });
    let mut wanted: Vec<(usize, usize)> = ranked.collect();
    wanted.sort_unstable();
    wanted.into_iter().map(|(_, at)| at).collect()
}
