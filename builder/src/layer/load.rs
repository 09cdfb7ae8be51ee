//! An image's tree, chunks and blobs in the builder's form.
//!
//! Owns: the walk over a bootstrap. Does not own: what becomes of the result. Bootstraps are foreign: what the
//! image library calls corrupt ends the build with the path of the entry.

use super::Compatible;
use crate::error::BuildError;
use crate::pack::Chunk;
use crate::tree::{Attributes, NodeId, ROOT, Tree};
use rafs::blob::DigestIndex;
use rafs::image::{BlobInfo, ChunkRef, FileKind, FsVersion, Image, Inode, InodeError, MetaBlob};
use rafs::layout::blob::BlobFeatures;
use rafs::layout::chunk::{ChunkFlags, ChunkRecord};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Chunks of all images that were loaded, and references of their files to them.
#[derive(Debug, Default)]
pub(crate) struct ChunkPool {
    /// The chunks.
    pub chunks: Vec<Chunk>,
    /// Chunks of files, as positions in `chunks`.
    pub references: Vec<u32>,
}

/// One image in the builder's form. Its chunks and references went to the pool.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Its tree; regular files refer to the pool.
    pub tree: Tree,
    /// Its blob table. Entries have the features they have as parts of another image.
    pub blobs: Vec<BlobInfo>,
    /// What others must agree with.
    pub compatible: Compatible,
    /// What its prefetch table names, in order.
    pub prefetch: Vec<NodeId>,
}

/// Opens the bootstrap at `path`.
pub(crate) fn open(path: &Path) -> Result<Image, BuildError> {
    Image::open(path).map_err(|e| BuildError::Image { path: path.to_path_buf(), reason: e.to_string() })
}

impl Layer {
    /// Loads `image`, which was opened from `path`. Chunks get blob indexes from `first_blob` on.
    pub(crate) fn load(
        image: &Image,
        path: &Path,
        first_blob: u32,
        pool: &mut ChunkPool,
    ) -> Result<Self, BuildError> {
        let mut loader = Loader {
            image,
            path,
            first_blob,
            pool,
            digests: match image.version() {
                FsVersion::V5 => DigestIndex::default(),
                FsVersion::V6 => DigestIndex::new(image.chunk_table(), image.blobs().len()),
            },
            addresses: HashMap::new(),
            names: HashMap::new(),
            directories: HashSet::new(),
            prefetch: image.prefetch_list().into_iter().map(|number| (number.0, None)).collect(),
        };
        let tree = loader.tree()?;
        loader.rest_of_stargz_blobs()?;
        let blobs = image.blobs().iter().map(|blob| as_part(blob, image, path)).collect();
        let named = image.prefetch_list().into_iter();
        let prefetch = named.filter_map(|number| loader.prefetch.get(&number.0).copied().flatten()).collect();
        Ok(Self { tree, blobs, compatible: Compatible::of(image), prefetch })
    }
}

/// A blob entry as it is in the table of another image: the bootstrap inside it is no longer this image's.
pub(crate) fn as_part(blob: &BlobInfo, image: &Image, path: &Path) -> BlobInfo {
    let mut blob = blob.clone();
    if !blob.features.contains(BlobFeatures::INLINED_FS_META) {
        return blob;
    }
    blob.features.remove(BlobFeatures::INLINED_FS_META);
    // The blob could not know its own size when its bootstrap was written. Where the bootstrap was read from the
    // blob itself, its size is there to see.
    let stored = image.bootstrap_size();
    let file_size = std::fs::metadata(path).map_or(0, |meta| meta.len());
    let inlined = file_size != stored;
    if let Some(MetaBlob::BootstrapFile { id }) = &blob.meta_blob {
        blob.meta_blob = Some(MetaBlob::Named { id: id.clone(), size: if inlined { file_size } else { 0 } });
    } else if inlined && file_size > blob.compressed_size {
        blob.compressed_size = file_size;
    }
    blob
}

struct Loader<'a> {
    image: &'a Image,
    path: &'a Path,
    first_blob: u32,
    pool: &'a mut ChunkPool,
    digests: DigestIndex,
    /// Position in the pool by blob and chunk; v5 images without chunk indexes: by blob and compressed offset.
    addresses: HashMap<(u32, u64), u32>,
    /// First node of every regular file with several names.
    names: HashMap<u64, NodeId>,
    directories: HashSet<u64>,
    /// First node of every inode in the prefetch table.
    prefetch: HashMap<u64, Option<NodeId>>,
}

impl Loader<'_> {
    fn corrupt(&self, entry: &[u8], reason: impl std::fmt::Display) -> BuildError {
        let reason = format!("{:?}: {reason}", String::from_utf8_lossy(entry));
        BuildError::Image { path: self.path.to_path_buf(), reason }
    }

    fn tree(&mut self) -> Result<Tree, BuildError> {
        let image = self.image;
        let root = image.inode(image.root()).map_err(|e| self.corrupt(b"/", e))?;
        let mut tree = Tree::new(Attributes::default());
        let attributes = self.attributes(&mut tree, &root).map_err(|e| self.corrupt(b"/", e))?;
        tree.node_mut(ROOT).attributes = attributes;
        self.note_prefetch(&root, ROOT);
        let mut pending = vec![(root, ROOT)];
        while let Some((dir, node)) = pending.pop() {
            if !self.directories.insert(dir.number.0) {
                return Err(self.corrupt(&tree.path(node), "the directory has two names"));
            }
            let entries = image.read_dir(&dir, 0).map_err(|e| self.corrupt(&tree.path(node), e))?;
            for entry in entries {
                let entry = entry.map_err(|e| self.corrupt(&tree.path(node), e))?;
                if matches!(entry.name, b"." | b"..") {
                    continue;
                }
                let inode = image.inode(entry.number).map_err(|e| self.corrupt(entry.name, e))?;
                let child = self.add(&mut tree, node, entry.name, &inode)?;
                if inode.kind == FileKind::Directory {
                    pending.push((inode, child));
                }
            }
        }
        Ok(tree)
    }

    fn add(
        &mut self,
        tree: &mut Tree,
        parent: NodeId,
        name: &[u8],
        inode: &Inode,
    ) -> Result<NodeId, BuildError> {
        let attributes = self.attributes(tree, inode).map_err(|e| self.corrupt(name, e))?;
        let node = tree.add(parent, name, attributes)?;
        self.note_prefetch(inode, node);
        match inode.kind {
            FileKind::Symlink => {
                let target = self.image.read_link(inode).map_err(|e| self.corrupt(name, e))?;
                tree.set_target(node, &target)?;
            }
            FileKind::Regular => {
                if inode.nlink > 1 {
                    let owner = *self.names.entry(inode.number.0).or_insert(node);
                    if owner != node {
                        tree.set_owner(node, owner);
                        return Ok(node);
                    }
                }
                tree.node_mut(node).first_chunk = self.pool.references.len() as u64;
                self.chunks(inode, name)?;
            }
            _ => {}
        }
        Ok(node)
    }

    fn note_prefetch(&mut self, inode: &Inode, node: NodeId) {
        if let Some(first) = self.prefetch.get_mut(&inode.number.0) {
            first.get_or_insert(node);
        }
    }

    fn attributes(&self, tree: &mut Tree, inode: &Inode) -> Result<Attributes, String> {
        let text = |e: InodeError| e.to_string();
        let mut pairs = Vec::new();
        for xattr in self.image.xattrs(inode).map_err(text)? {
            let xattr = xattr.map_err(text)?;
            pairs.push(([xattr.prefix, xattr.suffix].concat(), xattr.value.to_vec()));
        }
        Ok(Attributes {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            mtime_sec: inode.mtime_sec,
            mtime_nsec: inode.mtime_nsec,
            size: if inode.kind == FileKind::Regular { inode.size } else { 0 },
            xattrs: tree.intern_xattrs(&mut pairs).map_err(|e| e.to_string())?,
        })
    }

    /// Chunks of legacy stargz blobs that no file uses: readers make the chunk info of such a blob from the records of
    /// the image, so they must stay.
    fn rest_of_stargz_blobs(&mut self) -> Result<(), BuildError> {
        let image = self.image;
        for record in image.chunk_table() {
            let blob = image.blobs().get(record.blob_index.get() as usize);
            let key = (record.blob_index.get(), u64::from(record.index.get()));
            if blob.is_some_and(rafs::blob::is_legacy_stargz) && !self.addresses.contains_key(&key) {
                let position = record.file_offset.get() / u64::from(image.chunk_size());
                self.push(Chunk {
                    uncompressed_size: record.uncompressed_size.get(),
                    uncompressed_offset: record.uncompressed_offset.get(),
                    index: record.index.get(),
                    blob: self.first_blob + record.blob_index.get(),
                    position: u32::try_from(position).unwrap_or_default(),
                    ..stored_part(record)
                })?;
            }
        }
        Ok(())
    }

    fn push(&mut self, chunk: Chunk) -> Result<u32, BuildError> {
        let at = u32::try_from(self.pool.chunks.len())
            .map_err(|_| BuildError::Limit { what: "chunks in all layers", limit: u64::from(u32::MAX) })?;
        self.pool.chunks.push(chunk);
        Ok(at)
    }

    /// References of a file, with the chunks that no earlier file had.
    fn chunks(&mut self, inode: &Inode, name: &[u8]) -> Result<(), BuildError> {
        let image = self.image;
        let expected = inode.size.div_ceil(u64::from(image.chunk_size()));
        let mut count = 0;
        for chunk in image.chunks(inode, 0, inode.size).map_err(|e| self.corrupt(name, e))? {
            let chunk = chunk.map_err(|e| self.corrupt(name, e))?;
            let at = self.chunk(&chunk, count, name)?;
            self.pool.references.push(at);
            count += 1;
        }
        if u64::from(count) == expected {
            Ok(())
        } else {
            Err(self.corrupt(name, "its chunks do not cover it, which no builder of today writes"))
        }
    }

    fn chunk(&mut self, chunk: &ChunkRef, position: u32, name: &[u8]) -> Result<u32, BuildError> {
        let image = self.image;
        let record = image
            .chunk_record(chunk)
            .or_else(|| self.digests.find(image.chunk_table(), chunk.blob, chunk.chunk).copied());
        let by_offset = image.version() == FsVersion::V5 && image.v5_chunk_indexes_missing();
        let address = match &record {
            Some(record) if by_offset => record.compressed_offset.get(),
            _ => u64::from(chunk.chunk.0),
        };
        let key = (chunk.blob.0, address);
        if let Some(known) = self.addresses.get(&key) {
            return Ok(*known);
        }
        let tarfs = image
            .blobs()
            .get(chunk.blob.as_usize())
            .is_some_and(|b| b.features.contains(BlobFeatures::TARFS));
        let record = match record {
            _ if tarfs => ChunkRecord::default(),
            Some(record) if record.uncompressed_offset.get() == chunk.uncompressed_offset => record,
            _ => {
                return Err(
                    self.corrupt(name, format!("chunk {} has no record in the chunk table", chunk.chunk))
                );
            }
        };
        let at = self.push(Chunk {
            uncompressed_offset: chunk.uncompressed_offset,
            uncompressed_size: chunk.uncompressed_size,
            index: chunk.chunk.0,
            blob: self.first_blob + chunk.blob.0,
            position,
            ..stored_part(&record)
        })?;
        self.addresses.insert(key, at);
        Ok(at)
    }
}

/// A chunk as its record has it; what places it in an image is for the caller to say.
pub(crate) fn stored_part(record: &ChunkRecord) -> Chunk {
    Chunk {
        digest: record.digest,
        compressed_offset: record.compressed_offset.get(),
        uncompressed_offset: record.uncompressed_offset.get(),
        compressed_size: record.compressed_size.get(),
        uncompressed_size: record.uncompressed_size.get(),
        crc32c: record.crc32c.get(),
        index: record.index.get(),
        blob: record.blob_index.get(),
        position: 0,
        flags: ChunkFlags::from_bits_truncate(record.flags.get()),
    }
}
