//! Reads every chunk of every blob and compares it with what the image says.
//!
//! Owns: the parallel walk, naming the file that uses a bad chunk. Does not own: metadata checks, which
//! `rafs::image` has.

use super::units::Units;
use super::{BlobDataError, BlobPlace, Blobs, Buffers, OpenBlob};
use rafs::ids::{BlobIndex, ChunkIndex};
use rafs::image::{FileKind, Image};
use rafs::layout::toc::NAME_BLOB;
use sha2::{Digest as _, Sha256};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Bytes of a section that are hashed at a time.
const SECTION_BUFFER: usize = 1 << 20;

/// What a verification read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Chunks that matched.
    pub chunks: u64,
    /// Their plain bytes.
    pub bytes: u64,
}

/// Verifies the data of `image`, whose bootstrap is the file `bootstrap`: sizes, chunk info, tables of contents,
/// and every chunk's digest, with `threads` threads.
///
/// # Errors
/// The first fault found; for a chunk with the path of a file that uses it.
pub fn verify(
    image: &Image,
    bootstrap: &Path,
    place: &BlobPlace,
    threads: NonZeroUsize,
) -> Result<VerifyReport, BlobDataError> {
    let blobs = Blobs::open(image, bootstrap, place)?;
    let mut report = VerifyReport::default();
    for blob in blobs.iter() {
        verify_sections(blob)?;
        let units = Units::of(&blobs, blob)?;
        let found = Pass {
            blobs: &blobs,
            blob,
            units: &units,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            chunks: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
        .run(threads)?;
        report.chunks += found.chunks;
        report.bytes += found.bytes;
    }
    Ok(report)
}

/// Compares the sections of a blob with its table of contents. Chunk data is covered chunk by chunk.
fn verify_sections(blob: &OpenBlob<'_>) -> Result<(), BlobDataError> {
    let Some(toc) = &blob.toc else { return Ok(()) };
    // The sections of a SEPARATE blob lie in another file, whose tables were parsed already.
    if blob.info.meta_blob.is_some() || blob.info.cipher.is_some() {
        return Ok(());
    }
    for item in toc.items() {
        if item.name == NAME_BLOB || item.compressor != rafs::codec::Compressor::None {
            continue;
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; SECTION_BUFFER];
        let mut at = item.range.start;
        while at < item.range.end {
            let now =
                usize::try_from(item.range.end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            blob.object.read_exact_at(&mut buffer[..now], at).map_err(BlobDataError::io(
                &blob.info.id,
                "read",
                &blob.path,
            ))?;
            hasher.update(&buffer[..now]);
            at += now as u64;
        }
        if hasher.finalize()[..] != item.digest {
            return Err(BlobDataError::Section { blob: blob.info.id.clone(), section: item.name.clone() });
        }
    }
    Ok(())
}

struct Pass<'a> {
    blobs: &'a Blobs<'a>,
    blob: &'a OpenBlob<'a>,
    units: &'a Units,
    next: AtomicUsize,
    stop: AtomicBool,
    chunks: AtomicU64,
    bytes: AtomicU64,
}

impl Pass<'_> {
    fn run(&self, threads: NonZeroUsize) -> Result<VerifyReport, BlobDataError> {
        let error = Mutex::new(None);
        let work = || {
            if let Err(e) = self.work() {
                self.stop.store(true, Relaxed);
                error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.get().min(self.units.len()) {
                // Without this thread the others do its work.
                let spawned = std::thread::Builder::new().name("verify".to_owned()).spawn_scoped(scope, work);
                if let Err(e) = spawned {
                    tracing::warn!("verifying with fewer threads: cannot start one more ({e})");
                    break;
                }
            }
            work();
        });
        match error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(VerifyReport { chunks: self.chunks.load(Relaxed), bytes: self.bytes.load(Relaxed) }),
        }
    }

    fn work(&self) -> Result<(), BlobDataError> {
        let mut buffers = Buffers::default();
        while !self.stop.load(Relaxed) {
            let n = self.next.fetch_add(1, Relaxed);
            if n >= self.units.len() {
                break;
            }
            let unit = self.units.get(n, self.blobs, self.blob)?;
            if let Err(e) = self.blob.read_unit(&unit.unit, &mut buffers) {
                return Err(self.bad(unit.unit.chunk, e.to_string()));
            }
            for (chunk, range, expected) in unit.chunks {
                let plain = buffers.plain.get(range).filter(|plain| expected.matches(plain));
                let Some(plain) = plain else {
                    return Err(
                        self.bad(chunk, "its bytes do not have the digest that the image gives".to_owned())
                    );
                };
                self.chunks.fetch_add(1, Relaxed);
                self.bytes.fetch_add(plain.len() as u64, Relaxed);
            }
        }
        Ok(())
    }

    fn bad(&self, chunk: ChunkIndex, reason: String) -> BlobDataError {
        let user = first_user(self.blobs.image, self.blob.index(), chunk);
        let user = user.unwrap_or_else(|| "no file of this image".to_owned());
        BlobDataError::Chunk { blob: self.blob.info.id.clone(), chunk: chunk.0, user, reason }
    }
}

/// Path of the first file, in the order of a walk, that has the chunk.
fn first_user(image: &Image, blob: BlobIndex, chunk: ChunkIndex) -> Option<String> {
    let root = image.inode(image.root()).ok()?;
    let mut pending = vec![(root, String::new())];
    while let Some((inode, path)) = pending.pop() {
        if inode.kind == FileKind::Regular {
            let mut chunks = image.chunks(&inode, 0, inode.size).ok()?.flatten();
            if chunks.any(|c| c.blob == blob && c.chunk == chunk) {
                return Some(path);
            }
        } else if inode.kind == FileKind::Directory {
            let first = pending.len();
            for entry in image.read_dir(&inode, 0).ok()?.flatten() {
                if !matches!(entry.name, b"." | b"..") {
                    let path = format!("{path}/{}", String::from_utf8_lossy(entry.name));
                    pending.extend(image.inode(entry.number).ok().map(|inode| (inode, path)));
                }
            }
            pending[first..].reverse();
        }
    }
    None
}
