//! `merge`: bootstraps of layers to one bootstrap (build-rules.md section 8).
//!
//! Owns: ids and sizes of the layers' blobs, the final blob table. Does not own: laying trees over each other.

use super::{ChunkPool, Compatible, Dictionary, Layer, load, overlay};
use crate::error::BuildError;
use crate::options::{ChunkSize, PrefetchPolicy, Version, WhiteoutSpec};
use crate::output::Output;
use crate::prefetch::Patterns;
use crate::tree::{Attributes, Order, S_IFDIR, Tree};
use crate::write::{self, FileSink, Model};
use rafs::codec::{Compressor, Digest};
use rafs::ids::BlobIndex;
use rafs::image::{BlobInfo, Image, MetaBlob};
use rafs::layout::blob::BlobFeatures;
use std::path::{Path, PathBuf};

/// What is known of a layer's own blob that its bootstrap does not say.
#[derive(Clone, Debug, Default)]
pub struct OwnBlob {
    /// Name of the object that holds the data.
    pub original_id: Option<String>,
    /// sha256 of the RAFS blob, hexadecimal.
    pub digest: Option<String>,
    /// Bytes of the RAFS blob.
    pub size: Option<u64>,
    /// sha256 of its table of contents.
    pub toc_digest: Option<Digest>,
    /// Bytes of its table of contents.
    pub toc_size: Option<u32>,
}

/// What to merge, and where to.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    /// Bootstraps, or blobs with inlined ones, the lowest layer first.
    pub layers: Vec<PathBuf>,
    /// One for each layer.
    pub own_blobs: Vec<OwnBlob>,
    /// An image below all layers.
    pub parent: Option<PathBuf>,
    /// The dictionary that the layers were built with.
    pub chunk_dict: Option<PathBuf>,
    /// What is done for `prefetch_patterns`.
    pub prefetch_policy: PrefetchPolicy,
    /// Absolute paths.
    pub prefetch_patterns: Patterns,
    /// The bootstrap to write; with `named_by_digest` the directory to write it to.
    pub bootstrap: PathBuf,
    /// Name the bootstrap by its sha256.
    pub named_by_digest: bool,
}

/// What was merged.
#[derive(Clone, Debug)]
pub struct MergeReport {
    /// The bootstrap's path.
    pub bootstrap: PathBuf,
    /// Ids in the blob table, in table order.
    pub blobs: Vec<String>,
    /// Format of the image.
    pub version: Version,
    /// Compressor of the superblock.
    pub compressor: Compressor,
}

/// Merges layers into one bootstrap.
///
/// # Errors
/// [`BuildError::Inconsistent`] when the layers do not go together; else what went wrong at which file.
pub fn merge(options: &MergeOptions) -> Result<MergeReport, BuildError> {
    let mut merge =
        Merge { options, pool: ChunkPool::default(), blobs: Vec::new(), dictionary: Dictionary::default() };
    let images = options
        .layers
        .iter()
        .map(|path| Ok((path, load::open(path)?)))
        .collect::<Result<Vec<_>, BuildError>>()?;
    let (Some((_, first)), Some((_, last))) = (images.first(), images.last()) else {
        return Err(BuildError::Options("there is nothing to merge".to_owned()));
    };
    let target = match &options.chunk_dict {
        Some(path) => Compatible::of(&load::open(path)?),
        None => Compatible::of(first),
    };
    if let Some(path) = &options.chunk_dict {
        merge.dictionary = Dictionary::load(path, &target, target.digester)?;
    }
    let mut tree = Tree::new(Attributes { mode: S_IFDIR | 0o755, ..Attributes::default() });
    if let Some(path) = &options.parent {
        let image = load::open(path)?;
        let layer = merge.load(&image, path, &target)?;
        merge.blobs.extend(layer.blobs);
        // Nothing is below it: its markers, if it has such, are names like others.
        overlay(&mut tree, &layer.tree, WhiteoutSpec::None, 0)?;
    }
    for ((path, image), own) in images.iter().zip(&options.own_blobs) {
        let mut layer = merge.load(image, path, &target)?;
        merge.name_own_blob(path, image, own, &mut layer.blobs)?;
        merge.blobs.extend(layer.blobs);
        overlay(&mut tree, &layer.tree, WhiteoutSpec::Oci, 0)?;
    }
    merge.write(tree, last)
}

struct Merge<'a> {
    options: &'a MergeOptions,
    pool: ChunkPool,
    blobs: Vec<BlobInfo>,
    dictionary: Dictionary,
}

impl Merge<'_> {
    fn load(&mut self, image: &Image, path: &Path, target: &Compatible) -> Result<Layer, BuildError> {
        let first = u32::try_from(self.blobs.len()).unwrap_or(u32::MAX);
        let layer = Layer::load(image, path, first, &mut self.pool)?;
        match layer.compatible.difference(target) {
            Some(reason) => Err(BuildError::Inconsistent { path: path.to_path_buf(), reason }),
            None => Ok(layer),
        }
    }

    /// Gives the layer's own blob the id it is stored under.
    fn name_own_blob(
        &self,
        path: &Path,
        image: &Image,
        own: &OwnBlob,
        blobs: &mut [BlobInfo],
    ) -> Result<(), BuildError> {
        let mut others = blobs.iter_mut().filter(|blob| !self.dictionary.has_blob(&blob.id));
        let Some(blob) = others.next() else { return Ok(()) };
        if others.next().is_some() {
            let reason =
                "it has several blobs of its own: a layer to merge may have one, the others must be of the \
                          chunk dictionary"
                    .to_owned();
            return Err(BuildError::Image { path: path.to_path_buf(), reason });
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = name.split('.').next().unwrap_or_default();
        let stored =
            &image.blobs().iter().find(|b| b.index == blob.index).map(|b| b.id.clone()).unwrap_or_default();
        blob.id = match &own.original_id {
            Some(id) => id.clone(),
            // A file that was not named after its blob says nothing of it.
            None if !is_digest(stem) && is_digest(stored) => stored.clone(),
            None => stem.to_owned(),
        };
        if blob.id.is_empty() || blob.id.len() > 64 {
            let reason = format!("its blob would be called {:?}, an id has 1 to 64 bytes", blob.id);
            return Err(BuildError::Image { path: path.to_path_buf(), reason });
        }
        if blob.features.contains(BlobFeatures::SEPARATE) {
            let known = match &blob.meta_blob {
                Some(MetaBlob::Named { id, size }) => (id.clone(), *size),
                _ => (String::new(), 0),
            };
            let (id, size) = (own.digest.clone().unwrap_or(known.0), own.size.unwrap_or(known.1));
            blob.meta_blob = Some(MetaBlob::Named { id, size });
        } else {
            if let Some(digest) = &own.digest {
                blob.id.clone_from(digest);
            }
            blob.compressed_size = own.size.unwrap_or(blob.compressed_size);
        }
        blob.toc_digest = own.toc_digest.unwrap_or(blob.toc_digest);
        blob.toc_size = own.toc_size.unwrap_or(blob.toc_size);
        Ok(())
    }

    fn write(mut self, mut tree: Tree, last: &Image) -> Result<MergeReport, BuildError> {
        let order = Order::new(&mut tree)?;
        let last = Compatible::of(last);
        let chunk_size = ChunkSize::new(u64::from(last.chunk_size))?;
        self.renumber(&tree, &order, chunk_size)?;
        let options = self.options;
        let model = Model {
            version: last.version,
            tree: &tree,
            order: &order,
            chunks: &self.pool.chunks,
            references: &self.pool.references,
            blobs: &self.blobs,
            compressor: last.compressor,
            digester: last.digester,
            chunk_size,
            explicit_ids: last.explicit_ids,
            tarfs: last.tarfs,
            prefetch: write::prefetch_nodes(
                &tree,
                &order,
                options.prefetch_policy,
                &options.prefetch_patterns,
            ),
        };
        let output = if options.named_by_digest {
            Output::create_in(&options.bootstrap)?
        } else {
            Output::create(&options.bootstrap)?
        };
        let mut sink = FileSink::new(output);
        model.write(&mut sink)?;
        let (output, digest) = sink.finish()?;
        let bootstrap =
            if options.named_by_digest { output.commit_named(&digest)? } else { output.commit()? };
        let blobs = self.blobs.iter().map(|blob| blob.id.clone()).collect();
        Ok(MergeReport { bootstrap, blobs, version: last.version, compressor: last.compressor })
    }

    /// Keeps the blobs that files use, in the order of first use; the same blob in two layers is one.
    fn renumber(&mut self, tree: &Tree, order: &Order, chunk_size: ChunkSize) -> Result<(), BuildError> {
        let mut new_index: Vec<Option<u32>> = vec![None; self.blobs.len()];
        let mut kept: Vec<BlobInfo> = Vec::new();
        for id in order.numbered.iter().filter(|id| tree.node(**id).is_file()) {
            let owner = tree.owner(*id);
            let start = usize::try_from(owner.first_chunk).unwrap_or(usize::MAX);
            let count = usize::try_from(chunk_size.chunks(owner.attributes.size)).unwrap_or(usize::MAX);
            for chunk in self.pool.references.iter().skip(start).take(count) {
                let blob = self.pool.chunks[*chunk as usize].blob as usize;
                if new_index[blob].is_none() {
                    let known = kept.iter().position(|other| other.id == self.blobs[blob].id);
                    let at = known.unwrap_or_else(|| {
                        kept.push(self.blobs[blob].clone());
                        kept.len() - 1
                    });
                    new_index[blob] = u32::try_from(at).ok();
                }
            }
        }
        for (at, blob) in (0..).zip(&mut kept) {
            blob.index = BlobIndex(at);
        }
        for chunk in &mut self.pool.chunks {
            // Chunks of blobs that nothing uses get a number that no blob has.
            chunk.blob = new_index[chunk.blob as usize].unwrap_or(u32::MAX);
        }
        self.blobs = kept;
        Ok(())
    }
}

fn is_digest(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())
}
