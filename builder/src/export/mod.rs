//! `export --block`: an image as one disk image that the kernel mounts as EROFS.
//!
//! Owns: the layout of the disk image. Does not own: hash trees (`verity`), reading blobs.

mod verity;

use crate::blobs::{BlobDataError, BlobPlace, Blobs};
use crate::error::BuildError;
use crate::output::Output;
use rafs::image::{FsVersion, Image};
use rafs::layout::SuperFlags;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use verity::HashTree;

/// The disk image ends at a multiple of this many bytes, and so does the hash tree's unit.
const ALIGNMENT: u64 = 4096;
/// Zeros are written this many bytes at a time.
const ZEROS: usize = 64 << 10;

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Bootstrap of a v6 image.
    pub bootstrap: PathBuf,
    /// Where the blobs are.
    pub blobs: BlobPlace,
    /// File to write.
    pub output: PathBuf,
    /// Append a dm-verity hash tree.
    pub verity: bool,
}

/// What is needed to set up dm-verity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerityInfo {
    /// Bytes of a data block: 4096, or 512 for images over a tar archive.
    pub data_block_size: u32,
    /// Data blocks before the hash tree.
    pub data_blocks: u64,
    /// Byte offset of the hash tree.
    pub hash_offset: u64,
    /// Root hash, hexadecimal.
    pub root_hash: String,
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The bootstrap cannot be used, or the output not be written.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] BlobDataError),
    /// v5 is no EROFS.
    #[error("only RAFS v6 images are EROFS file systems: convert this v5 image first")]
    NotV6,
}

/// Writes the disk image: the bootstrap, and each blob's plain data where its device slot says.
///
/// # Errors
/// What went wrong, and where.
pub fn export(options: &ExportOptions) -> Result<Option<VerityInfo>, ExportError> {
    let image = crate::layer::open(&options.bootstrap)?;
    if image.version() != FsVersion::V6 {
        return Err(ExportError::NotV6);
    }
    let blobs = Blobs::open(&image, &options.bootstrap, &options.blobs)?;
    let data_block = if image.flags().contains(SuperFlags::TARFS_MODE) { 512 } else { 4096 };
    let mut disk = Disk {
        output: Output::create(&options.output)?,
        at: 0,
        tree: options.verity.then(|| HashTree::new(data_block)),
    };
    disk.bootstrap(&image, &options.bootstrap)?;
    for blob in blobs.iter() {
        let start = u64::from(blob.info.mapped_blkaddr) * u64::from(image.block_size());
        if start < disk.at {
            let reason = format!("blob {} would lie over what is before it", blob.info.id);
            return Err(BuildError::Image { path: options.bootstrap.clone(), reason }.into());
        }
        disk.pad_to(start)?;
        blobs.copy_plain::<ExportError, BuildError>(blob, &mut |offset, plain| {
            disk.pad_to(start + offset)?;
            disk.write(plain)
        })?;
        disk.pad_to(start + blob.info.uncompressed_size)?;
    }
    let end = disk.at.next_multiple_of(ALIGNMENT);
    disk.pad_to(end)?;
    let info = match disk.tree.take() {
        None => None,
        Some(tree) => {
            let data_blocks = end / u64::from(data_block);
            let (root, levels) = tree.finish();
            for level in levels {
                disk.write(&level)?;
            }
            Some(VerityInfo {
                data_block_size: data_block,
                data_blocks,
                hash_offset: end,
                root_hash: hex::encode(root),
            })
        }
    };
    disk.output.commit()?;
    Ok(info)
}

struct Disk {
    output: Output,
    at: u64,
    tree: Option<HashTree>,
}

impl Disk {
    fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.at += bytes.len() as u64;
        if let Some(tree) = &mut self.tree {
            tree.update(bytes);
        }
        self.output.write(bytes)
    }

    fn pad_to(&mut self, offset: u64) -> Result<(), BuildError> {
        let zeros = [0; ZEROS];
        while self.at < offset {
            let now = usize::try_from(offset - self.at).map_or(ZEROS, |left| left.min(ZEROS));
            self.write(&zeros[..now])?;
        }
        Ok(())
    }

    fn bootstrap(&mut self, image: &Image, path: &std::path::Path) -> Result<(), ExportError> {
        let mut file = File::open(path).map_err(BuildError::io("open", path))?;
        let size = file.metadata().map_err(BuildError::io("stat", path))?.len();
        if size != image.bootstrap_size() {
            let reason =
                "the bootstrap lies inside a blob: give the bootstrap as a file of its own".to_owned();
            return Err(BuildError::Image { path: path.to_path_buf(), reason }.into());
        }
        let mut buffer = vec![0; ZEROS];
        loop {
            let n = file.read(&mut buffer).map_err(BuildError::io("read", path))?;
            if n == 0 {
                return Ok(());
            }
            self.write(&buffer[..n])?;
        }
    }
}
