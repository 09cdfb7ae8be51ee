//! Files whose data is in an external store: an image of their own (build-rules.md section 12).
//!
//! Owns: taking them out of a tree, the second bootstrap with its blobs. Does not own: which files they are
//! (`attributes`), fetching what they refer to.

use crate::attributes::{Attributes, ExternalFile};
use crate::build::{BootstrapTarget, CreateOptions};
use crate::error::BuildError;
use crate::layer::copied;
use crate::options::{ChunkSize, Version};
use crate::output::Output;
use crate::pack::{BlobFile, Chunk, Tail};
use crate::tree::{NodeId, Order, Paths, ROOT, Tree};
use crate::write::{FileSink, Model};
use rafs::codec::Compressor;
use rafs::ids::BlobIndex;
use rafs::image::{BlobInfo, ChunkInfoLocation};
use rafs::layout::blob::BlobFeatures;
use rafs::layout::chunk::ChunkFlags;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

const ALIGNMENT: u64 = 4096;

/// The files that were taken out of a tree.
pub(crate) struct External {
    tree: Tree,
    chunk_size: ChunkSize,
    chunks: Vec<Chunk>,
    references: Vec<u32>,
    blobs: Vec<BlobInfo>,
}

/// What was written for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    /// The bootstrap; empty when it is inlined in the external blob.
    pub bootstrap: PathBuf,
    /// Ids of their blobs.
    pub blobs: Vec<String>,
}

impl External {
    /// Takes the external files out of `tree`. `None`: there is none.
    pub(crate) fn take(
        tree: &mut Tree,
        attributes: &Attributes,
        options: &CreateOptions,
    ) -> Result<Option<Self>, BuildError> {
        let mut files: Vec<(NodeId, Vec<u8>, ExternalFile)> = Vec::new();
        let mut pending = vec![ROOT];
        let mut names: HashMap<NodeId, usize> = HashMap::new();
        while let Some(dir) = pending.pop() {
            for id in tree.children_unsorted(dir) {
                if tree.node(id).is_dir() {
                    pending.push(id);
                } else if tree.node(id).is_file() {
                    *names.entry(tree.node(id).owner).or_default() += 1;
                    let path = tree.path(id);
                    if let Some(file) = attributes.external(&path).map_err(|reason| refused(&path, reason))? {
                        files.push((id, path, file));
                    }
                }
            }
        }
        let Some(chunk_size) = files.first().map(|(.., file)| file.chunk_size) else { return Ok(None) };
        if options.parent.is_some() {
            let reason = "external files cannot be laid over a parent image (--parent-bootstrap)".to_owned();
            return Err(BuildError::Options(reason));
        }
        files.sort_by(|a, b| a.1.cmp(&b.1));
        let mut external = Self {
            tree: Tree::new(Default::default()),
            chunk_size,
            chunks: Vec::new(),
            references: Vec::new(),
            blobs: blobs(&files, options)?,
        };
        let root = copied(&mut external.tree, tree, ROOT, false)?;
        external.tree.node_mut(ROOT).attributes = root;
        let mut paths = Paths::default();
        for (id, path, file) in &files {
            if names.get(&tree.node(*id).owner).is_some_and(|names| *names > 1) {
                return Err(refused(path, "an external file cannot have several names".to_owned()));
            }
            external.add(tree, *id, path, file, &mut paths, options.image.version)?;
            tree.unlink(*id);
        }
        external.number_chunks();
        Ok(Some(external))
    }

    /// Adds a file, with the directories above it.
    fn add(
        &mut self,
        from: &Tree,
        id: NodeId,
        path: &[u8],
        file: &ExternalFile,
        paths: &mut Paths,
        version: Version,
    ) -> Result<(), BuildError> {
        if file.chunk_size != self.chunk_size {
            return Err(refused(path, "its chunk_size is not that of the other external files".to_owned()));
        }
        if version == Version::V6 && !file.offset.is_multiple_of(ALIGNMENT) {
            let reason = format!(
                "chunk_0_compressed_offset {} is no multiple of {ALIGNMENT}, as RAFS v6 needs: use --fs-version 5",
                file.offset
            );
            return Err(refused(path, reason));
        }
        let mut above = Vec::new();
        let mut at = from.node(id).parent;
        while at != ROOT {
            above.push(at);
            at = from.node(at).parent;
        }
        let mut parent = ROOT;
        let mut names: Vec<&[u8]> = Vec::new();
        for dir in above.into_iter().rev() {
            names.push(from.name(dir));
            parent = match paths.find(&self.tree, &names) {
                Some(known) => known,
                None => {
                    let attributes = copied(&mut self.tree, from, dir, false)?;
                    paths.place(&mut self.tree, parent, from.name(dir), attributes)?
                }
            };
        }
        let attributes = copied(&mut self.tree, from, id, false)?;
        let node = paths.place(&mut self.tree, parent, from.name(id), attributes)?;
        self.tree.node_mut(node).first_chunk = self.references.len() as u64;
        let size = attributes.size;
        let end = file.offset.checked_add(size).filter(|end| *end <= file.blob_size);
        if end.is_none() {
            let reason =
                format!("{size} bytes at {} end behind its blob of {} bytes", file.offset, file.blob_size);
            return Err(refused(path, reason));
        }
        let count = self.chunk_size.chunks(size);
        if !file.crcs.is_empty() && file.crcs.len() as u64 != count {
            return Err(refused(path, format!("it has {count} chunks and {} crcs", file.crcs.len())));
        }
        let chunk_size = u64::from(self.chunk_size.get());
        for position in 0..u32::try_from(count).unwrap_or(u32::MAX) {
            let start = u64::from(position) * chunk_size;
            let len = u32::try_from((size - start).min(chunk_size)).unwrap_or_default();
            let crc32c = file.crcs.get(position as usize).copied();
            let mut flags = ChunkFlags::empty();
            flags.set(ChunkFlags::HAS_CRC32, crc32c.is_some());
            let at = u32::try_from(self.chunks.len()).map_err(|_| too_many())?;
            self.chunks.push(Chunk {
                digest: [0; 32],
                compressed_offset: file.offset + start,
                uncompressed_offset: file.offset + start,
                compressed_size: len,
                uncompressed_size: len,
                crc32c: crc32c.unwrap_or(0),
                index: 0,
                blob: file.blob_index,
                position,
                flags,
            });
            self.references.push(at);
        }
        Ok(())
    }

    /// Numbers the chunks of each blob by their place in it.
    fn number_chunks(&mut self) {
        let mut order: Vec<usize> = (0..self.chunks.len()).collect();
        order.sort_by_key(|at| (self.chunks[*at].blob, self.chunks[*at].compressed_offset));
        for at in order {
            let Some(blob) = self.blobs.get_mut(self.chunks[at].blob as usize) else { continue };
            let count = blob.chunk_count.unwrap_or(0);
            self.chunks[at].index = count;
            blob.chunk_count = count.checked_add(1);
        }
        for blob in &mut self.blobs {
            if let Some(location) = &mut blob.chunk_info {
                let size = 16 * u64::from(blob.chunk_count.unwrap_or(0));
                (location.compressed_size, location.uncompressed_size) = (size, size);
            }
        }
    }

    /// Writes the second bootstrap: beside the first one, or into the external blob if that one is inlined too.
    pub(crate) fn write(mut self, options: &CreateOptions) -> Result<Written, BuildError> {
        let order = Order::new(&mut self.tree)?;
        let model = Model {
            version: options.image.version,
            tree: &self.tree,
            order: &order,
            chunks: &self.chunks,
            references: &self.references,
            blobs: &self.blobs,
            compressor: Compressor::None,
            digester: options.image.digester,
            chunk_size: self.chunk_size,
            explicit_ids: !options.image.repeatable,
            tarfs: false,
            prefetch: Vec::new(),
        };
        let to_file = |output: Output| {
            let mut sink = FileSink::new(output);
            model.write(&mut sink)?;
            sink.finish()
        };
        if !matches!(options.bootstrap, BootstrapTarget::Inline) {
            write_empty(options)?;
        }
        let bootstrap = match &options.bootstrap {
            BootstrapTarget::File(path) => {
                to_file(Output::create(&path.with_extension("external"))?)?.0.commit()?
            }
            BootstrapTarget::Directory(dir) => {
                let (output, digest) = to_file(Output::create_in(dir)?)?;
                output.commit_named(&digest)?
            }
            BootstrapTarget::Inline => {
                let Some(path) = &options.external_blob else {
                    let reason =
                        "external files and --blob-inline-meta need --external-blob for their metadata";
                    return Err(BuildError::Options(reason.to_owned()));
                };
                let mut blob = BlobFile::new(Output::create(path)?);
                let mut features = BlobFeatures::CAP_TAR_TOC | BlobFeatures::HAS_TAR_HEADER;
                features.set(BlobFeatures::HAS_TOC, options.toc);
                let mut tail = Tail::new(features, None);
                tail.end_data(&mut blob, 0)?;
                tail.bootstrap(&mut blob, |sink| model.write(sink))?;
                tail.finish(&mut blob)?;
                blob.into_output()?.commit()?;
                PathBuf::new()
            }
        };
        Ok(Written { bootstrap, blobs: self.blobs.iter().map(|blob| blob.id.clone()).collect() })
    }
}

/// Makes the file of `--external-blob`, which holds no data: what is external is stored already.
pub(crate) fn write_empty(options: &CreateOptions) -> Result<(), BuildError> {
    match &options.external_blob {
        Some(path) => Output::create(path)?.commit().map(drop),
        None => Ok(()),
    }
}

fn refused(path: &[u8], reason: String) -> BuildError {
    BuildError::Source { path: String::from_utf8_lossy(path).into_owned().into(), reason }
}

fn too_many() -> BuildError {
    BuildError::Limit { what: "chunks in one image", limit: u64::from(u32::MAX) }
}

/// The blob table: one entry a `blob_index`, without gaps.
fn blobs(
    files: &[(NodeId, Vec<u8>, ExternalFile)],
    options: &CreateOptions,
) -> Result<Vec<BlobInfo>, BuildError> {
    let mut known: BTreeMap<u32, (&str, u64)> = BTreeMap::new();
    for (_, path, file) in files {
        let entry = known.entry(file.blob_index).or_insert((&file.blob_id, file.blob_size));
        if *entry != (file.blob_id.as_str(), file.blob_size) {
            let reason = format!("blob {} has another id or size than for an earlier file", file.blob_index);
            return Err(refused(path, reason));
        }
    }
    let v6 = options.image.version == Version::V6;
    let mut blobs = Vec::new();
    for (expected, (index, (id, size))) in (0..).zip(known) {
        if index != expected {
            return Err(BuildError::Options(format!(
                "no external file has blob_index {expected}: number them from 0"
            )));
        }
        let mut features = BlobFeatures::EXTERNAL | BlobFeatures::CAP_TAR_TOC;
        features.set(BlobFeatures::ALIGNED, v6);
        blobs.push(BlobInfo {
            index: BlobIndex(index),
            id: id.to_owned(),
            features,
            compressor: Compressor::None,
            digester: options.image.digester,
            cipher: None,
            chunk_size: files.first().map_or(0, |(.., file)| file.chunk_size.get()),
            chunk_count: Some(0),
            compressed_size: size,
            uncompressed_size: size.next_multiple_of(ALIGNMENT),
            chunk_info: v6.then_some(ChunkInfoLocation {
                offset: 0,
                compressed_size: 0,
                uncompressed_size: 0,
                compressor: Compressor::None,
            }),
            toc_size: 0,
            toc_digest: [0; 32],
            meta_blob: None,
            prefetch_size: 0,
            mapped_blkaddr: 0,
        });
    }
    Ok(blobs)
}
