//! `compact`: unused data goes, small blobs become one (build-rules.md section 13).
//!
//! Owns: what is known of the blobs, the new blob table. Does not own: the decision (`plan`), moving data (`mover`).

use super::mover::{Mover, Shape};
use super::plan::{BlobUse, Kind, Plan};
use super::{CompactSettings, Loaded, RebuildError, RebuildReport, write_bootstrap};
use crate::blobs::{BlobPlace, Blobs};
use crate::error::BuildError;
use crate::layer::Dictionary;
use crate::options::Version;
use crate::output::Output;
use rafs::blob::{UnitId, is_legacy_stargz};
use rafs::ids::BlobIndex;
use rafs::image::BlobInfo;
use rafs::layout::blob::BlobFeatures;
use std::collections::HashMap;
use std::path::PathBuf;

/// What to compact, and where to.
#[derive(Clone, Debug)]
pub struct CompactOptions {
    /// Bootstrap of the image.
    pub bootstrap: PathBuf,
    /// Where the new bootstrap goes.
    pub output: PathBuf,
    /// Where new blobs go, each under its id, and where old ones are looked for first.
    pub blob_dir: PathBuf,
    /// Where else old blobs are.
    pub backend: Option<BlobPlace>,
    /// Blobs of this image are kept as they are, and its chunks are preferred.
    pub chunk_dict: Option<PathBuf>,
    /// When blobs are compacted.
    pub settings: CompactSettings,
}

/// Compacts an image. `None`: there was nothing to do, and nothing was written. New blobs are complete before the
/// bootstrap that refers to them appears; old ones are left for whoever knows which other images use them.
///
/// # Errors
/// What went wrong, and at which file.
pub fn compact(options: &CompactOptions) -> Result<Option<RebuildReport>, RebuildError> {
    let mut loaded = Loaded::open(&options.bootstrap)?;
    let old_blobs = std::mem::take(&mut loaded.layer.blobs);
    let least = options.settings.layers_to_compact;
    if (old_blobs.len() as u64) < least {
        tracing::info!(
            "{} blobs are fewer than {least} (--layers-to-compact): nothing to do",
            old_blobs.len()
        );
        return Ok(None);
    }
    if loaded.image.v5_chunk_indexes_missing() && old_blobs.len() > 1 {
        let reason =
            "its chunks have no numbers (an old builder made it): build it anew to compact it".to_owned();
        return Err(BuildError::Image { path: options.bootstrap.clone(), reason }.into());
    }
    let dictionary = match &options.chunk_dict {
        Some(path) => Dictionary::load(path, &loaded.layer.compatible, loaded.layer.compatible.digester)?,
        None => Dictionary::default(),
    };
    let mut blobs = old_blobs.clone();
    let borrowed = borrow(&mut loaded, &mut blobs, &dictionary);
    let mut places = vec![BlobPlace::Directory(options.blob_dir.clone())];
    places.extend(options.backend.clone());
    let place = BlobPlace::FirstOf(places);
    let uses = uses(&loaded, &blobs, &dictionary, options, &place)?;
    let plan = Plan::new(&uses, &options.settings);
    if plan.is_empty() && !borrowed {
        tracing::info!("every blob is used well and large enough: nothing to do");
        return Ok(None);
    }
    let output = Output::create(&options.output)?;
    let mut new = Vec::new();
    for group in &plan.groups {
        new.push(rebuild(&mut loaded, &blobs, group, &uses, options, &place)?);
    }
    let infos: Vec<&BlobInfo> = new.iter().map(|(_, info)| info).collect();
    let table = renumber(&mut loaded, &blobs, &plan, &infos);
    let bootstrap = write_bootstrap(&mut loaded, &table, output)?;
    let mut new_blobs = Vec::new();
    for (output, info) in new {
        new_blobs.push(output.commit_named(&info.id)?);
    }
    tracing::info!(
        "{} blobs became {}: {} dropped, {} made",
        blobs.len(),
        table.len(),
        plan.dropped.len(),
        new_blobs.len()
    );
    Ok(Some(RebuildReport {
        bootstrap: bootstrap.commit()?,
        blobs: table.iter().map(|blob| blob.id.clone()).collect(),
        new_blobs,
        version: loaded.layer.compatible.version,
        compressor: loaded.layer.compatible.compressor,
    }))
}

/// Points chunks that the dictionary has at its copies. Whether there was any.
fn borrow(loaded: &mut Loaded, blobs: &mut Vec<BlobInfo>, dictionary: &Dictionary) -> bool {
    let mut any = false;
    for chunk in &mut loaded.pool.chunks {
        let Some(own) = blobs.get(chunk.blob as usize) else { continue };
        if dictionary.has_blob(&own.id) || own.digester != loaded.layer.compatible.digester {
            continue;
        }
        // A stargz blob must keep the records of all of its chunks.
        let Some(known) =
            dictionary.find(&chunk.digest, chunk.uncompressed_size).filter(|_| !is_legacy_stargz(own))
        else {
            continue;
        };
        let Some(source) = dictionary.blobs.get(known.blob as usize) else { continue };
        let at = blobs.iter().position(|blob| blob.id == source.id).unwrap_or_else(|| {
            blobs.push(source.clone());
            blobs.len() - 1
        });
        *chunk = crate::pack::Chunk {
            blob: u32::try_from(at).unwrap_or(u32::MAX),
            position: chunk.position,
            ..*known
        };
        any = true;
    }
    any
}

/// What is known of each blob.
fn uses(
    loaded: &Loaded,
    blobs: &[BlobInfo],
    dictionary: &Dictionary,
    options: &CompactOptions,
    place: &BlobPlace,
) -> Result<Vec<BlobUse>, RebuildError> {
    let mut uses: Vec<BlobUse> = blobs
        .iter()
        .map(|blob| BlobUse {
            file_size: blob.compressed_size,
            data_size: rafs::blob::data_size(blob),
            used_bytes: 0,
            used: false,
            kind: None,
        })
        .collect();
    for (blob, usage) in blobs.iter().zip(&mut uses) {
        if !dictionary.has_blob(&blob.id) {
            usage.kind = kind(blob, loaded);
        }
    }
    let batches = |blob: &BlobInfo| blob.features.contains(BlobFeatures::BATCH);
    let open = Blobs::open_some(&loaded.image, &options.bootstrap, place, &|blob| {
        batches(blob) && uses.get(blob.index.as_usize()).is_some_and(|usage| usage.kind.is_some())
    })?;
    let mut units = HashMap::new();
    for chunk in &loaded.pool.chunks {
        let Some(usage) = uses.get_mut(chunk.blob as usize) else { continue };
        usage.used = true;
        match open.get(chunk.blob as usize) {
            // Members of a batch are stored once together.
            Some(blob) => {
                let (unit, _) = blob.unit_for(&chunk.record(0))?;
                if !matches!(unit.id, UnitId::Batch(_)) || units.insert((chunk.blob, unit.id), ()).is_none() {
                    usage.used_bytes += u64::from(unit.stored_size);
                }
            }
            None => usage.used_bytes += u64::from(chunk.compressed_size),
        }
        if let Some(kind) = &mut usage.kind
            && !chunk.uncompressed_offset.is_multiple_of(4096)
        {
            kind.aligned = false;
        }
    }
    Ok(uses)
}

/// What a blob must share with others to be put together with them. `None`: it stays as it is.
fn kind(blob: &BlobInfo, loaded: &Loaded) -> Option<Kind> {
    let fixed = BlobFeatures::ZRAN
        | BlobFeatures::TARFS
        | BlobFeatures::EXTERNAL
        | BlobFeatures::SEPARATE
        | BlobFeatures::IS_SEPARATED_WITH_PREFETCH_FILES;
    if blob.features.intersects(fixed) || is_legacy_stargz(blob) {
        return None;
    }
    let mut features = BlobFeatures::CAP_TAR_TOC;
    features.set(BlobFeatures::ALIGNED, loaded.layer.compatible.version == Version::V6);
    features |= blob.features & (BlobFeatures::CHUNK_INFO_V2 | BlobFeatures::BATCH | BlobFeatures::ENCRYPTED);
    Some(Kind {
        compressor: blob.compressor,
        digester: blob.digester,
        cipher: blob.cipher.clone(),
        features,
        aligned: true,
    })
}

/// Makes one blob of a group. In the pool its chunks get their new places, but keep the number of their old blob.
fn rebuild(
    loaded: &mut Loaded,
    blobs: &[BlobInfo],
    group: &[usize],
    uses: &[BlobUse],
    options: &CompactOptions,
    place: &BlobPlace,
) -> Result<(Output, BlobInfo), RebuildError> {
    let Loaded { image, layer, pool, .. } = loaded;
    let open =
        Blobs::open_some(image, &options.bootstrap, place, &|blob| group.contains(&blob.index.as_usize()))?;
    let Some(kind) = group.first().and_then(|at| uses[*at].kind.clone()) else {
        return Err(BuildError::Options("a group of blobs that cannot be moved".to_owned()).into());
    };
    let shape = Shape {
        version: layer.compatible.version,
        compressor: kind.compressor,
        digester: kind.digester,
        key: kind.cipher,
        features: kind.features,
        aligned: kind.aligned,
        chunk_size: layer.compatible.chunk_size,
    };
    let mut mover = Mover::new(&options.blob_dir, shape)?;
    for at in group {
        let wanted: Vec<usize> =
            (0..pool.chunks.len()).filter(|n| pool.chunks[*n].blob as usize == *at).collect();
        let Some(source) = open.get(*at) else {
            let reason = format!("blob {} is of another image", blobs[*at].id);
            return Err(BuildError::Image { path: options.bootstrap.clone(), reason }.into());
        };
        mover.move_all(source, &mut pool.chunks, &wanted)?;
    }
    Ok(mover.finish()?)
}

/// The new blob table: what stays, and the new blobs, each in the place of the first of its group.
fn renumber(loaded: &mut Loaded, blobs: &[BlobInfo], plan: &Plan, new: &[&BlobInfo]) -> Vec<BlobInfo> {
    let mut table: Vec<BlobInfo> = Vec::new();
    let mut index: Vec<Option<u32>> = vec![None; blobs.len()];
    for at in 0..blobs.len() {
        if plan.dropped.contains(&at) {
            continue;
        }
        let group = plan.groups.iter().position(|members| members.contains(&at));
        let first = group.and_then(|n| plan.groups[n].first().copied());
        if let Some(first) = first.filter(|first| *first != at) {
            index[at] = index[first];
            continue;
        }
        index[at] = u32::try_from(table.len()).ok();
        let mut entry = group.map_or_else(|| blobs[at].clone(), |n| new[n].clone());
        entry.index = BlobIndex(index[at].unwrap_or(u32::MAX));
        table.push(entry);
    }
    for chunk in &mut loaded.pool.chunks {
        chunk.blob = index.get(chunk.blob as usize).copied().flatten().unwrap_or(u32::MAX);
    }
    table
}
