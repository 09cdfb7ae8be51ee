//! Where the bootstrap is inside the file that was named.
//!
//! Owns: telling v5 from v6, tar headers and table of contents at the tail of a blob, unpacking. Does not
//! own: what is inside the bootstrap (v5, v6).

use super::bytes::{table, until_nul, view};
use super::error::{Defect, ImageError};
use super::map::Bytes;
use crate::layout::tar::{TAR_HEADER_SIZE, TAR_MAGIC, TarHeader};
use crate::layout::toc::{
    COMPRESSOR_MASK, COMPRESSOR_NONE, COMPRESSOR_ZSTD, NAME_BOOT, NAME_TOC, TOC_SIZE_MAX, TocEntry,
};
use crate::layout::{v5, v6};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use zerocopy::FromBytes;

/// Most bytes an inlined bootstrap may unpack to (blob.md section 14).
const INLINED_SIZE_MAX: u64 = 1 << 30;
/// Bytes at the start of a file that tell v5 from v6.
const HEAD_SIZE: u64 = v5::SUPERBLOCK_SIZE as u64;
/// Smallest v6 bootstrap.
const V6_SIZE_MIN: usize = 4096;

/// Version of a bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsVersion {
    /// RAFS v5: a format of its own.
    V5,
    /// RAFS v6: EROFS with extra tables.
    V6,
}

impl std::fmt::Display for FsVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V5 => "5",
            Self::V6 => "6",
        })
    }
}

/// A bootstrap that was found.
pub(crate) struct Located {
    /// Its bytes.
    pub(crate) bytes: Bytes,
    /// What its superblock says.
    pub(crate) version: FsVersion,
    /// True when it lay inside a blob.
    pub(crate) inlined: bool,
}

/// Opens the file `path` and finds the bootstrap in it.
///
/// # Errors
/// [`ImageError`] of every kind.
pub(crate) fn at_path(path: &Path) -> Result<(Located, std::fs::Metadata), ImageError> {
    let name = path.display().to_string();
    let io = |source| ImageError::Io { name: name.clone(), action: "open", source };
    // Looked at first: opening a fifo would wait for a writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(io(not_a_file()));
    }
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    Ok((in_file(&file, &name)?, meta))
}

fn not_a_file() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")
}

/// Finds the bootstrap in an open file called `name`.
///
/// # Errors
/// [`ImageError`] of every kind.
pub(crate) fn in_file(file: &File, name: &str) -> Result<Located, ImageError> {
    let io = |action| move |source| ImageError::Io { name: name.to_owned(), action, source };
    let invalid = |defect| ImageError::Invalid { name: name.to_owned(), defect };
    let meta = file.metadata().map_err(io("read"))?;
    if !meta.is_file() {
        return Err(io("open")(not_a_file()));
    }
    let size = meta.len();
    let head = read(file, 0, size.min(HEAD_SIZE)).map_err(io("read"))?;
    if let Some(version) = detect(&head).map_err(invalid)? {
        let bytes = Bytes::map(file, 0, size).map_err(io("map"))?;
        return Ok(Located { bytes, version, inlined: false });
    }
    let fetch = |offset, len| read(file, offset, len).map_err(io("read"));
    let part =
        inlined(size, fetch, name)?.ok_or_else(|| ImageError::NotRafs { name: name.to_owned(), size })?;
    let bytes = match part {
        Part::Raw { offset, size, digest } => {
            let bytes = Bytes::map(file, offset, size).map_err(io("map"))?;
            if let Some(digest) = digest {
                verify(bytes.as_slice(), &digest).map_err(invalid)?;
            }
            bytes
        }
        Part::Unpacked(bytes) => Bytes::Owned(bytes),
    };
    unwrapped(bytes).map_err(invalid)
}

/// A bootstrap that lay inside a blob.
fn unwrapped(bytes: Bytes) -> Result<Located, Defect> {
    let version = detect(bytes.as_slice())?.ok_or(Defect::Inlined("it has no superblock"))?;
    Ok(Located { bytes, version, inlined: true })
}

/// Finds the bootstrap in `bytes`, the whole content of a file called `name`.
///
/// # Errors
/// [`ImageError`] of every kind but `Io`.
pub(crate) fn in_bytes(bytes: Vec<u8>, name: &str) -> Result<Located, ImageError> {
    let invalid = |defect| ImageError::Invalid { name: name.to_owned(), defect };
    if let Some(version) = detect(&bytes).map_err(invalid)? {
        return Ok(Located { bytes: Bytes::Owned(bytes), version, inlined: false });
    }
    let size = bytes.len() as u64;
    let fetch = |offset, len| {
        super::bytes::slice(&bytes, offset, len)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| invalid(Defect::Inlined("its position is outside the file")))
    };
    let part =
        inlined(size, fetch, name)?.ok_or_else(|| ImageError::NotRafs { name: name.to_owned(), size })?;
    let bytes = match part {
        Part::Raw { offset, size, digest } => {
            let part = fetch(offset, size)?;
            if let Some(digest) = digest {
                verify(&part, &digest).map_err(invalid)?;
            }
            part
        }
        Part::Unpacked(bytes) => bytes,
    };
    unwrapped(Bytes::Owned(bytes)).map_err(invalid)
}

fn read(file: &File, offset: u64, len: u64) -> std::io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// What the first bytes of a bootstrap say (rafs-v5.md section 1); `None` when they are something else.
fn detect(head: &[u8]) -> Result<Option<FsVersion>, Defect> {
    let size = head.len() as u64;
    if let Some(sb) = view::<v5::SuperBlock>(head, 0).filter(|sb| sb.magic.get() == v5::MAGIC) {
        let (value, expected) =
            (u64::from(sb.version.get()), "0x500: rebuild the image with a current builder");
        if sb.version.get() != v5::VERSION {
            return Err(Defect::Field { field: "the v5 superblock's version", value, expected });
        }
        if head.len() < v5::SUPERBLOCK_SIZE {
            return Err(Defect::Truncated { what: "the superblock", end: HEAD_SIZE, size });
        }
        return Ok(Some(FsVersion::V5));
    }
    let v6 = view::<v6::SuperBlock>(head, v6::SUPERBLOCK_OFFSET as u64);
    if v6.is_some_and(|sb| sb.magic.get() == v6::MAGIC) {
        if head.len() < V6_SIZE_MIN {
            return Err(Defect::Truncated { what: "the superblock area", end: V6_SIZE_MIN as u64, size });
        }
        return Ok(Some(FsVersion::V6));
    }
    Ok(None)
}

/// An inlined bootstrap.
enum Part {
    /// Stored as it is, at `offset`, with its sha256 when a table of contents says it.
    Raw { offset: u64, size: u64, digest: Option<[u8; 32]> },
    /// Was stored compressed; verified.
    Unpacked(Vec<u8>),
}

/// Looks for a bootstrap at the tail of a blob of `size` bytes that `fetch(offset, len)` reads from.
fn inlined(
    size: u64,
    fetch: impl Fn(u64, u64) -> Result<Vec<u8>, ImageError>,
    name: &str,
) -> Result<Option<Part>, ImageError> {
    let invalid = |what| ImageError::Invalid { name: name.to_owned(), defect: Defect::Inlined(what) };
    let header_size = TAR_HEADER_SIZE as u64;
    let Some(data_end) = size.checked_sub(header_size) else { return Ok(None) };
    let Some(header) = parse_tar_header(&fetch(data_end, header_size)?) else { return Ok(None) };
    let start = data_end.checked_sub(header.size);
    if header.name == NAME_BOOT.as_bytes() {
        let offset = start.ok_or_else(|| invalid("its tar header says more bytes than the file has"))?;
        return Ok(Some(Part::Raw { offset, size: header.size, digest: None }));
    }
    if header.name != NAME_TOC.as_bytes() {
        return Ok(None);
    }
    let toc_offset = start.ok_or_else(|| invalid("the table of contents is larger than the file"))?;
    if header.size > TOC_SIZE_MAX {
        return Err(invalid("the table of contents is larger than 1 MiB"));
    }
    let toc = fetch(toc_offset, header.size)?;
    let entries = table::<TocEntry>(&toc, 0, header.size)
        .ok_or_else(|| invalid("the table of contents is no multiple of 128 bytes"))?;
    let Some(entry) = entries.iter().find(|e| until_nul(&e.name) == NAME_BOOT.as_bytes()) else {
        return Ok(None);
    };
    let (offset, stored, plain) =
        (entry.offset.get(), entry.compressed_size.get(), entry.uncompressed_size.get());
    if offset.checked_add(stored).is_none_or(|end| end > toc_offset) {
        return Err(invalid("the table of contents puts it outside the file"));
    }
    if plain > INLINED_SIZE_MAX || stored > INLINED_SIZE_MAX {
        return Err(invalid("it is larger than 1 GiB"));
    }
    match entry.compressor.get() & COMPRESSOR_MASK {
        COMPRESSOR_NONE => Ok(Some(Part::Raw { offset, size: stored, digest: Some(entry.digest) })),
        COMPRESSOR_ZSTD => {
            let capacity = usize::try_from(plain).map_err(|_| invalid("it is larger than 1 GiB"))?;
            // `bulk` reserves `capacity` without touching it and never writes more.
            let bytes = zstd::bulk::decompress(&fetch(offset, stored)?, capacity).map_err(|_| {
                invalid("its zstd frame does not unpack to the size in the table of contents")
            })?;
            if bytes.len() != capacity {
                return Err(invalid("its zstd frame does not unpack to the size in the table of contents"));
            }
            verify(&bytes, &entry.digest)
                .map_err(|defect| ImageError::Invalid { name: name.to_owned(), defect })?;
            Ok(Some(Part::Unpacked(bytes)))
        }
        _ => Err(invalid("its compressor in the table of contents is neither none nor zstd")),
    }
}

fn verify(bytes: &[u8], digest: &[u8; 32]) -> Result<(), Defect> {
    if Sha256::digest(bytes).as_slice() == digest {
        return Ok(());
    }
    Err(Defect::Inlined("its sha256 differs from the table of contents"))
}

struct Section {
    name: Vec<u8>,
    size: u64,
}

/// Name and size in a tar header whose magic and checksum are right.
fn parse_tar_header(bytes: &[u8]) -> Option<Section> {
    let header = TarHeader::ref_from_bytes(bytes).ok()?;
    if header.magic != TAR_MAGIC {
        return None;
    }
    let field = u64::from(b' ') * header.checksum.len() as u64;
    let all: u64 = bytes.iter().map(|b| u64::from(*b)).sum();
    let own: u64 = header.checksum.iter().map(|b| u64::from(*b)).sum();
    if octal(&header.checksum)? != all - own + field {
        return None;
    }
    Some(Section { name: until_nul(&header.name).to_vec(), size: octal(&header.size)? })
}

/// Octal digits up to a NUL or space, spaces before them allowed.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    if text.starts_with('+') {
        return None;
    }
    u64::from_str_radix(text, 8).ok()
}
