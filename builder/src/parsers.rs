//! Every parser of archives with nothing around it, for fuzz targets: any bytes in, what was understood out.
//!
//! Owns: the entry points. Does not own: parsing.

use crate::error::BuildError;
use crate::options::{ChunkSize, ImageOptions};
use crate::progress::Progress;
use crate::source::tar::inflate::Inflater;
use crate::source::tar::{Stream, TarSource};
use crate::source::{Source as _, Task};
use crate::tree::Tree;
use rafs::codec::{self, Digest, Digester};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// What a reader of archives understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Archive {
    /// Names in the tree, the root included.
    pub entries: usize,
    /// sha256 and length of every piece of data, in order.
    pub pieces: Vec<(Digest, u32)>,
}

fn options(chunk_size: u32) -> Result<ImageOptions, BuildError> {
    Ok(ImageOptions { chunk_size: ChunkSize::new(u64::from(chunk_size))?, ..ImageOptions::default() })
}

fn open(
    bytes: Vec<u8>,
    chunk_size: u32,
    make: fn(Box<dyn Read + Send>) -> io::Result<Stream>,
) -> Result<(TarSource, Tree), BuildError> {
    let progress = Arc::new(Progress::default());
    TarSource::read_from(io::Cursor::new(bytes), Path::new("fuzz"), &options(chunk_size)?, progress, make)
}

/// Reads an archive, plain or compressed, as `create --type tar-rafs` does.
///
/// # Errors
/// When it is damaged.
pub fn read(bytes: Vec<u8>, chunk_size: u32) -> Result<Archive, BuildError> {
    let (mut source, mut tree) = open(bytes, chunk_size, Stream::new)?;
    let mut archive = Archive::default();
    let mut task = Task::default();
    while source.fill(&mut tree, &mut task)? {
        let mut rest = task.buffered();
        for piece in &task.pieces {
            let (data, next) = rest.split_at(piece.len as usize);
            archive.pieces.push((codec::digest(Digester::Sha256, data), piece.len));
            rest = next;
        }
        task.clear();
    }
    archive.entries = tree.len();
    Ok(archive)
}

/// The same as `create --type targz-ref` reads it.
///
/// # Errors
/// When it is damaged, or neither plain nor gzip.
pub fn refer(bytes: Vec<u8>, chunk_size: u32) -> Result<Archive, BuildError> {
    let (source, mut tree) = open(bytes, chunk_size, Stream::indexed)?;
    let mut archive = Archive::default();
    source.refer(&mut tree, &mut |_, _| false, &mut |chunk| {
        archive.pieces.push((chunk.digest, chunk.len));
        Ok(())
    })?;
    archive.entries = tree.len();
    Ok(archive)
}

/// The same as `create --type tar-tarfs` reads it: where the data of files is, and how much.
///
/// # Errors
/// When it is damaged or compressed.
pub fn index(bytes: Vec<u8>, chunk_size: u32) -> Result<Vec<(u64, u64)>, BuildError> {
    let (source, mut tree) = open(bytes, chunk_size, Stream::new)?;
    Ok(source.index(&mut tree)?.positions)
}

/// Inflates a gzip file, up to `most` bytes of it, with the inflater that knows where blocks begin.
///
/// # Errors
/// When it is damaged.
pub fn inflate(bytes: &[u8], most: u64) -> io::Result<Vec<u8>> {
    let mut inflater = Inflater::new(bytes);
    let mut out = Vec::new();
    let mut buffer = [0; 8192];
    while (out.len() as u64) < most {
        // Asking for the boundary at every step is what an index does.
        let boundary = inflater.boundary();
        debug_assert!(boundary.out_offset <= out.len() as u64 && boundary.dictionary.len() <= 32 << 10);
        let n = inflater.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        out.extend_from_slice(&buffer[..n]);
    }
    Ok(out)
}
