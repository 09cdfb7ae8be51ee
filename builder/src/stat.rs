//! `stat`: numbers about one image, or about a set of images and one more (nydus-image-cli.md section 6).
//!
//! Owns: counting. Does not own: tables and JSON. A chunk is the same as another if digest and plain size are.

use crate::error::BuildError;
use rafs::blob::DigestIndex;
use rafs::codec::Digest;
use rafs::image::{FileKind, Image};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Numbers about an image, or about several together. All sizes are bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImageStat {
    /// Directories.
    pub dirs: u64,
    /// Regular files, each inode once.
    pub files: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// References of files to chunks.
    pub chunks: u64,
    /// Sizes of the files.
    pub file_size: u64,
    /// Stored bytes of what they refer to. A member of a batch counts as nothing: its record does not say.
    pub comp_size: u64,
    /// Plain bytes of that.
    pub uncomp_size: u64,
    /// Bytes that rounding every chunk up to 4096 adds.
    pub padding_size: u64,
    /// Chunks by size: up to 4 KiB, 8 KiB, ... 512 KiB, and all larger ones.
    pub chunk_sizes: [u64; 9],
    /// Files by size: empty ones, then those of `n` bits at place `n`; the last place has all larger ones.
    pub file_sizes: Vec<u64>,
    /// References to chunks that were referred to before, in this image or in one that was counted earlier.
    pub dedup_chunks: u64,
    /// Their stored bytes.
    pub dedup_comp_size: u64,
    /// Their plain bytes.
    pub dedup_uncomp_size: u64,
    /// Distinct chunks that no image counted earlier has.
    pub own_chunks: u64,
    /// Their stored bytes.
    pub own_comp_size: u64,
    /// Their plain bytes.
    pub own_uncomp_size: u64,
    /// Distinct chunks that an image counted earlier has too.
    pub ref_chunks: u64,
    /// Their stored bytes.
    pub ref_comp_size: u64,
    /// Their plain bytes.
    pub ref_uncomp_size: u64,
}

/// Places in [`ImageStat::file_sizes`].
const FILE_SIZES: usize = 45;

/// What `stat` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// Whether several images were compared.
    pub dedup_enabled: bool,
    /// Whether there is a target image.
    pub target_enabled: bool,
    /// The image, or all images of the directory together.
    pub base_image: ImageStat,
    /// The target, compared with the base.
    pub target_image: ImageStat,
}

/// What to look at.
#[derive(Clone, Debug)]
pub enum StatBase {
    /// One bootstrap.
    Bootstrap(PathBuf),
    /// Every bootstrap in a directory: regular files without an extension. Other files are passed over.
    Directory(PathBuf),
}

#[derive(Default)]
struct Counter {
    /// Every chunk so far, by digest and plain size, with the number of the image it was first seen in.
    known: HashMap<(Digest, u32), usize>,
    images: usize,
}

/// Counts.
///
/// # Errors
/// A bootstrap that was named cannot be read or is corrupt, or the directory has none.
pub fn stat(base: &StatBase, target: Option<&Path>) -> Result<Stat, BuildError> {
    let mut counter = Counter::default();
    let mut stat = Stat { target_enabled: target.is_some(), ..Stat::default() };
    stat.base_image.file_sizes = vec![0; FILE_SIZES];
    stat.target_image.file_sizes = vec![0; FILE_SIZES];
    match base {
        StatBase::Bootstrap(path) => counter.add(path, &crate::layer::open(path)?, &mut stat.base_image)?,
        StatBase::Directory(dir) => {
            stat.dedup_enabled = true;
            for path in candidates(dir, target)? {
                match Image::open(&path) {
                    Ok(image) => counter.add(&path, &image, &mut stat.base_image)?,
                    Err(e) => tracing::debug!("{path:?} is passed over: {e}"),
                }
            }
            if counter.images == 0 {
                let reason =
                    "there is no bootstrap in it (files with an extension are passed over)".to_owned();
                return Err(BuildError::Source { path: dir.clone(), reason });
            }
        }
    }
    if let Some(target) = target {
        counter.add(target, &crate::layer::open(target)?, &mut stat.target_image)?;
    }
    Ok(stat)
}

fn candidates(dir: &Path, target: Option<&Path>) -> Result<Vec<PathBuf>, BuildError> {
    let target = target.and_then(|target| std::fs::canonicalize(target).ok());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(BuildError::io("list", dir))? {
        let path = entry.map_err(BuildError::io("list", dir))?.path();
        let is_target = target.is_some() && std::fs::canonicalize(&path).ok() == target;
        if path.is_file() && path.extension().is_none() && !is_target {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

impl Counter {
    fn add(&mut self, path: &Path, image: &Image, stat: &mut ImageStat) -> Result<(), BuildError> {
        let corrupt = |reason: String| BuildError::Image { path: path.to_path_buf(), reason };
        image.check().map_err(|e| corrupt(e.to_string()))?;
        let number = self.images;
        self.images += 1;
        let digests = DigestIndex::new(image.chunk_table(), image.blobs().len());
        let mut seen_inodes = HashSet::new();
        let mut seen_chunks = HashSet::new();
        let root = image.inode(image.root()).map_err(|e| corrupt(e.to_string()))?;
        let mut pending = vec![root];
        while let Some(inode) = pending.pop() {
            match inode.kind {
                FileKind::Directory => {
                    stat.dirs += 1;
                    let entries = image.read_dir(&inode, 0).map_err(|e| corrupt(e.to_string()))?;
                    for entry in entries {
                        let entry = entry.map_err(|e| corrupt(e.to_string()))?;
                        if !matches!(entry.name, b"." | b"..") {
                            pending.push(image.inode(entry.number).map_err(|e| corrupt(e.to_string()))?);
                        }
                    }
                    continue;
                }
                FileKind::Symlink => stat.symlinks += 1,
                _ => {}
            }
            if inode.kind != FileKind::Regular || !seen_inodes.insert(inode.number) {
                continue;
            }
            stat.files += 1;
            stat.file_size += inode.size;
            let bits = usize::try_from(u64::BITS - inode.size.leading_zeros()).unwrap_or_default();
            stat.file_sizes[bits.min(FILE_SIZES - 1)] += 1;
            for chunk in image.chunks(&inode, 0, inode.size).map_err(|e| corrupt(e.to_string()))? {
                let chunk = chunk.map_err(|e| corrupt(e.to_string()))?;
                let record = image
                    .chunk_record(&chunk)
                    .or_else(|| digests.find(image.chunk_table(), chunk.blob, chunk.chunk).copied());
                let plain = chunk.uncompressed_size;
                let stored = record.map_or(plain, |record| record.compressed_size.get());
                let (plain_size, stored_size) = (u64::from(plain), u64::from(stored));
                stat.chunks += 1;
                stat.comp_size += stored_size;
                stat.uncomp_size += plain_size;
                stat.padding_size += plain_size.next_multiple_of(4096) - plain_size;
                let class = plain.next_power_of_two().trailing_zeros().saturating_sub(12);
                stat.chunk_sizes[usize::try_from(class).unwrap_or(8).min(8)] += 1;
                // Without a digest a chunk is itself and nothing else.
                let digest = record.map(|record| record.digest).filter(|digest| *digest != Digest::default());
                let earlier = digest.and_then(|digest| self.known.get(&(digest, plain)).copied());
                if earlier.is_some() {
                    stat.dedup_chunks += 1;
                    stat.dedup_comp_size += stored_size;
                    stat.dedup_uncomp_size += plain_size;
                } else if let Some(digest) = digest {
                    self.known.insert((digest, plain), number);
                }
                let first_here = digest.is_none_or(|digest| seen_chunks.insert((digest, plain)));
                if first_here && earlier.is_some_and(|earlier| earlier != number) {
                    stat.ref_chunks += 1;
                    stat.ref_comp_size += stored_size;
                    stat.ref_uncomp_size += plain_size;
                } else if first_here {
                    stat.own_chunks += 1;
                    stat.own_comp_size += stored_size;
                    stat.own_uncomp_size += plain_size;
                }
            }
        }
        Ok(())
    }
}
