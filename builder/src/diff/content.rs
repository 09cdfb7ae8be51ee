//! Contents of files: as lists of pieces with digests, and as bytes.
//!
//! Owns: cutting files of a directory like the other side's chunks, comparing lists, comparing bytes where lists say
//! nothing. Does not own: which files are compared.

use super::side::{Directory, Node, Side, corrupt};
use crate::blobs::{Blobs, FileData};
use crate::error::BuildError;
use crate::source::Expected;
use crate::source::extents::Extents;
use crate::study::{ChunkFacts, ContentKey, zeros};
use rafs::codec::{self, Digest, Digester};
use rafs::image::{ChunkRef, Chunks};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes compared at a time.
const BLOCK: usize = 1 << 20;

/// How files of a directory are cut and named: as the other side, an image, does it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) chunk_size: u32,
    pub(super) digester: Digester,
}

/// One piece of a file.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) digest: Option<(Digester, Digest)>,
    /// An image's piece: its chunk.
    pub(super) chunk: Option<ChunkRef>,
}

impl Piece {
    pub(super) fn key(&self) -> Option<ContentKey> {
        self.digest.as_ref().map(|(digester, digest)| ContentKey::new(*digester, digest))
    }
}

/// What comparing two lists of pieces says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Same,
    Different,
    /// The lists do not tell: they were cut or digested in different ways.
    Unknown,
}

/// Pieces of one file, in order.
pub(super) enum Pieces<'a, 'f> {
    None,
    Image(&'f ChunkFacts<'a>, Chunks<'a>),
    File(Box<CutFile<'f>>),
}

impl<'a, 'f> Pieces<'a, 'f> {
    /// Of the regular file `node` at `path`; `buffer` then holds the bytes of a directory's latest piece.
    pub(super) fn new(
        side: &'f mut Side<'a>,
        facts: Option<&'f ChunkFacts<'a>>,
        cut: Cut,
        path: &[u8],
        node: &Node,
        buffer: &'f mut Vec<u8>,
    ) -> Result<Self, BuildError> {
        match (side, node, facts) {
            (Side::Image(image), Node::Image(inode), Some(facts)) => {
                let chunks = image.chunks(inode, 0, inode.size).map_err(|e| corrupt(image, e))?;
                Ok(Self::Image(facts, chunks))
            }
            (Side::Directory(dir), _, _) => {
                Ok(Self::File(Box::new(CutFile::open(dir, path, node, cut, buffer)?)))
            }
            _ => Ok(Self::None),
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Piece>, BuildError> {
        match self {
            Self::None => Ok(None),
            Self::Image(facts, chunks) => {
                let Some(chunk) = chunks.next() else { return Ok(None) };
                let chunk = chunk.map_err(|e| corrupt(facts.image(), e))?;
                Ok(Some(Piece {
                    offset: chunk.file_offset,
                    len: chunk.uncompressed_size,
                    digest: facts.of(&chunk).digest,
                    chunk: Some(chunk),
                }))
            }
            Self::File(file) => file.next(),
        }
    }

    /// Bytes of the latest piece, of a directory's file.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::File(file) => Some(file.buffer.as_slice()),
            _ => None,
        }
    }
}

/// A file of a directory that is read piece by piece.
pub(super) struct CutFile<'f> {
    file: OwnedFd,
    shown: std::path::PathBuf,
    expected: Expected,
    cut: Cut,
    extents: Extents,
    offset: u64,
    /// Digest of a whole piece of zeros, once there was one.
    zeros: Option<Digest>,
    buffer: &'f mut Vec<u8>,
}

impl<'f> CutFile<'f> {
    fn open(
        dir: &mut Directory,
        path: &[u8],
        node: &Node,
        cut: Cut,
        buffer: &'f mut Vec<u8>,
    ) -> Result<Self, BuildError> {
        let file = dir.file(path)?;
        let shown = dir.shown(path);
        let (mtime_sec, mtime_nsec) = node.mtime();
        let expected = Expected { size: node.size(), mtime_sec, mtime_nsec };
        expected.check(file.as_fd()).map_err(|e| e.at(&shown))?;
        let stat = rustix::fs::fstat(&file).map_err(BuildError::io("stat", &shown))?;
        let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let extents = Extents::new(expected.size, stored);
        Ok(Self { file, shown, expected, cut, extents, offset: 0, zeros: None, buffer })
    }

    fn next(&mut self) -> Result<Option<Piece>, BuildError> {
        let left = self.expected.size - self.offset;
        if left == 0 {
            self.expected.check(self.file.as_fd()).map_err(|e| e.at(&self.shown))?;
            return Ok(None);
        }
        let len = u32::try_from(left).map_or(self.cut.chunk_size, |left| left.min(self.cut.chunk_size));
        let offset = self.offset;
        self.offset += u64::from(len);
        self.buffer.clear();
        self.buffer.resize(len as usize, 0);
        let digest = if self.extents.is_hole(self.file.as_fd(), offset, u64::from(len)) {
            if len == self.cut.chunk_size {
                *self.zeros.get_or_insert_with(|| zeros(self.cut.digester, len))
            } else {
                zeros(self.cut.digester, len)
            }
        } else {
            read_exact(&self.file, self.buffer, offset, &self.shown)?;
            codec::digest(self.cut.digester, self.buffer)
        };
        Ok(Some(Piece { offset, len, digest: Some((self.cut.digester, digest)), chunk: None }))
    }
}

fn read_exact(
    file: &OwnedFd,
    buffer: &mut [u8],
    offset: u64,
    shown: &std::path::Path,
) -> Result<(), BuildError> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => {
                let reason = format!("it ends at byte {}", offset + done as u64);
                return Err(BuildError::Changed { path: shown.to_path_buf(), reason });
            }
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(BuildError::io("read", shown)(e)),
        }
    }
    Ok(())
}

/// Compares one piece with its counterpart.
pub(super) fn compare(a: Option<&Piece>, b: Option<&Piece>, same_place: bool) -> Verdict {
    match (a, b) {
        (None, None) => Verdict::Same,
        (Some(a), Some(b)) if (a.offset, a.len) == (b.offset, b.len) => match (&a.digest, &b.digest) {
            _ if same_place => Verdict::Same,
            (Some(a), Some(b)) if a.0 == b.0 => {
                if a.1 == b.1 {
                    Verdict::Same
                } else {
                    Verdict::Different
                }
            }
            _ => Verdict::Unknown,
        },
        _ => Verdict::Unknown,
    }
}

/// Plain bytes of a file, one block after the other.
pub(super) enum Bytes<'a, 'f> {
    Image {
        data: FileData<'f>,
        chunks: Chunks<'a>,
        path: Vec<u8>,
        size: u64,
        at: u64,
        next: Option<ChunkRef>,
    },
    File(CutFile<'f>),
}

impl<'a, 'f> Bytes<'a, 'f> {
    /// Of the file `node` at `path`; an image's are read from `blobs`.
    pub(super) fn new(
        side: &mut Side<'a>,
        blobs: Option<&'f Blobs<'a>>,
        path: &[u8],
        node: &Node,
        buffer: &'f mut Vec<u8>,
    ) -> Result<Self, BuildError> {
        match (side, node) {
            (Side::Image(image), Node::Image(inode)) => {
                let Some(blobs) = blobs else {
                    return Err(BuildError::Options(format!(
                        "{}: the two sides do not cut or digest files alike, so contents must be read: say where the \
                         blobs are (--blob-dir)",
                        image.name()
                    )));
                };
                let chunks = image.chunks(inode, 0, inode.size).map_err(|e| corrupt(image, e))?;
                Ok(Self::Image {
                    data: FileData::new(blobs),
                    chunks,
                    path: path.to_vec(),
                    size: inode.size,
                    at: 0,
                    next: None,
                })
            }
            (Side::Directory(dir), _) => {
                let cut =
                    Cut { chunk_size: u32::try_from(BLOCK).unwrap_or(1 << 20), digester: Digester::Blake3 };
                Ok(Self::File(CutFile::open(dir, path, node, cut, buffer)?))
            }
            _ => Err(BuildError::Options("a side does not hold its own entry".to_owned())),
        }
    }

    /// Replaces `out` with the next bytes. `false`: the end.
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, BuildError> {
        out.clear();
        match self {
            Self::File(file) => {
                let more = file.next()?.is_some();
                if more {
                    out.extend_from_slice(file.buffer);
                }
                Ok(more)
            }
            Self::Image { data, chunks, path, size, at, next } => {
                if next.is_none() {
                    *next = chunks
                        .next()
                        .transpose()
                        .map_err(|e| BuildError::Image { path: shown(path), reason: e.to_string() })?;
                }
                // What no chunk covers is a hole.
                let end = next.map_or(*size, |chunk| chunk.file_offset.min(*size));
                if *at < end {
                    let len = usize::try_from(end - *at).map_or(BLOCK, |n| n.min(BLOCK));
                    out.resize(len, 0);
                    *at += len as u64;
                    return Ok(true);
                }
                let Some(chunk) = next.take() else { return Ok(false) };
                let user = || crate::study::Shown(path).to_string();
                let plain = data
                    .read(&chunk, &user)
                    .map_err(|e| BuildError::Image { path: shown(path), reason: e.to_string() })?;
                let left = usize::try_from(size.saturating_sub(*at)).unwrap_or(usize::MAX);
                let plain = &plain[..plain.len().min(left)];
                out.extend_from_slice(plain);
                *at += plain.len() as u64;
                Ok(true)
            }
        }
    }
}

fn shown(path: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    std::ffi::OsStr::from_bytes(path).into()
}

/// Whether two files hold the same bytes.
pub(super) fn same_bytes(mut a: Bytes<'_, '_>, mut b: Bytes<'_, '_>) -> Result<bool, BuildError> {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let (mut x, mut y) = (0, 0);
    loop {
        if x == left.len() {
            x = 0;
            a.next(&mut left)?;
        }
        if y == right.len() {
            y = 0;
            b.next(&mut right)?;
        }
        let len = (left.len() - x).min(right.len() - y);
        if len == 0 {
            return Ok(left.len() == x && right.len() == y);
        }
        if left[x..x + len] != right[y..y + len] {
            return Ok(false);
        }
        x += len;
        y += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, len: u32, digest: Option<(Digester, u8)>) -> Piece {
        let digest = digest.map(|(digester, fill)| (digester, [fill; 32]));
        Piece { offset, len, digest, chunk: None }
    }

    #[test]
    fn lists_are_compared_only_where_they_can_be() {
        use Digester::{Blake3, Sha256};
        let one = piece(0, 5, Some((Blake3, 1)));
        for (other, expected) in [
            (piece(0, 5, Some((Blake3, 1))), Verdict::Same),
            (piece(0, 5, Some((Blake3, 2))), Verdict::Different),
            (piece(0, 5, Some((Sha256, 1))), Verdict::Unknown),
            (piece(0, 4, Some((Blake3, 1))), Verdict::Unknown),
            (piece(0, 5, None), Verdict::Unknown),
        ] {
            assert_eq!(compare(Some(&one), Some(&other), false), expected, "{other:?}");
        }
        assert_eq!(compare(Some(&one), Some(&piece(0, 5, Some((Sha256, 2)))), true), Verdict::Same);
        assert_eq!(compare(None, None, false), Verdict::Same);
        assert_eq!(compare(Some(&one), None, false), Verdict::Unknown);
    }
}
