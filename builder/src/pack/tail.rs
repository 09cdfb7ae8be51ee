//! What follows the chunk data in a blob: sections, their tar headers, the table of contents (blob.md 4 to 11).
//!
//! Owns: the order of sections and their entries in the table of contents. Does not own: the contents of chunk
//! info tables and bootstraps.

use super::blob_file::BlobFile;
use super::chunk::Chunk;
use super::chunk_info;
use crate::error::BuildError;
use crate::write::Sink;
use rafs::codec::{Cipher, CipherKey, Compressor, Digest};
use rafs::image::ChunkInfoLocation;
use rafs::layout::blob::BlobFeatures;
use rafs::layout::tar::{TAR_HEADER_SIZE, TAR_MAGIC, TarHeader};
use rafs::layout::toc::{
    COMPRESSOR_LZ4_BLOCK, COMPRESSOR_NONE, COMPRESSOR_ZSTD, NAME_BLOB, NAME_BOOT, NAME_DIGEST, NAME_META,
    NAME_META_HEADER, NAME_TOC, TocEntry,
};
use sha2::{Digest as _, Sha256};
use std::io::Write;
use zerocopy::{FromZeros, IntoBytes};

/// Level of an inlined bootstrap's zstd frame.
const ZSTD_LEVEL: i32 = 3;

/// Writes sections and remembers them.
#[derive(Debug)]
pub(crate) struct Tail {
    features: BlobFeatures,
    cipher: Option<Cipher>,
    entries: Vec<TocEntry>,
}

struct Section {
    name: &'static str,
    compressor: Compressor,
    digest: Digest,
    offset: u64,
    compressed_size: u64,
    uncompressed_size: u64,
}

impl Tail {
    /// For a blob with `features`, encrypted with `key`.
    pub(crate) fn new(features: BlobFeatures, key: Option<&CipherKey>) -> Self {
        Self { features, cipher: key.map(Cipher::new), entries: Vec::new() }
    }

    fn has(&self, feature: BlobFeatures) -> bool {
        self.features.contains(feature)
    }

    fn note(&mut self, section: Section) {
        let mut entry = TocEntry::new_zeroed();
        entry.compressor = match section.compressor {
            Compressor::Zstd => COMPRESSOR_ZSTD,
            Compressor::Lz4Block => COMPRESSOR_LZ4_BLOCK,
            Compressor::None | Compressor::Gzip => COMPRESSOR_NONE,
        }
        .into();
        entry.name[..section.name.len()].copy_from_slice(section.name.as_bytes());
        entry.digest = section.digest;
        entry.offset = section.offset.into();
        entry.compressed_size = section.compressed_size.into();
        entry.uncompressed_size = section.uncompressed_size.into();
        self.entries.push(entry);
    }

    /// Ends the chunk data, which fills the blob up to here.
    pub(crate) fn end_data(&mut self, blob: &mut BlobFile, uncompressed_size: u64) -> Result<(), BuildError> {
        if !self.has(BlobFeatures::HAS_TAR_HEADER) {
            return Ok(());
        }
        let compressed_size = blob.position();
        blob.write(tar_header(NAME_BLOB, compressed_size)?.as_bytes())?;
        let (compressor, digest) = (Compressor::None, blob.digest());
        self.note(Section {
            name: NAME_BLOB,
            compressor,
            digest,
            offset: 0,
            compressed_size,
            uncompressed_size,
        });
        Ok(())
    }

    /// v6: the chunk info table and its header.
    pub(crate) fn chunk_info(
        &mut self,
        blob: &mut BlobFile,
        table: &chunk_info::Table,
        compressor: Compressor,
    ) -> Result<ChunkInfoLocation, BuildError> {
        let written = chunk_info::write(blob, table, compressor, self.features, self.cipher.as_ref())?;
        let location = written.location;
        self.note(Section {
            name: NAME_META,
            compressor: location.compressor,
            digest: Sha256::digest(table.bytes()).into(),
            offset: location.offset,
            compressed_size: location.compressed_size,
            uncompressed_size: location.uncompressed_size,
        });
        let header_size = written.header.len() as u64;
        self.note(Section {
            name: NAME_META_HEADER,
            compressor: Compressor::None,
            digest: Sha256::digest(&written.header).into(),
            offset: location.offset + location.compressed_size,
            compressed_size: header_size,
            uncompressed_size: header_size,
        });
        if self.has(BlobFeatures::HAS_TAR_HEADER) {
            blob.write(tar_header(NAME_META, location.compressed_size + header_size)?.as_bytes())?;
        }
        Ok(location)
    }

    /// The digest array, when there is to be one.
    pub(crate) fn digests<'a>(
        &mut self,
        blob: &mut BlobFile,
        chunks: impl Iterator<Item = &'a Chunk>,
    ) -> Result<(), BuildError> {
        if !self.has(BlobFeatures::INLINED_CHUNK_DIGEST) {
            return Ok(());
        }
        let offset = blob.position();
        let mut hasher = Sha256::new();
        for chunk in chunks {
            hasher.update(chunk.digest);
            blob.write_unhashed(&chunk.digest)?;
        }
        let size = blob.position() - offset;
        let (compressor, digest) = (Compressor::None, hasher.finalize().into());
        self.note(Section {
            name: NAME_DIGEST,
            compressor,
            digest,
            offset,
            compressed_size: size,
            uncompressed_size: size,
        });
        blob.write(tar_header(NAME_DIGEST, size)?.as_bytes())
    }

    /// The bootstrap, which `write` puts into a sink.
    pub(crate) fn bootstrap(
        &mut self,
        blob: &mut BlobFile,
        write: impl FnOnce(&mut dyn Sink) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        let offset = blob.position();
        let compressor = if self.has(BlobFeatures::HAS_TOC) { Compressor::Zstd } else { Compressor::None };
        let mut sink = BlobSink { blob, encoder: None, hasher: Sha256::new(), size: 0 };
        if compressor == Compressor::Zstd {
            sink.encoder = Some(
                zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).map_err(|e| sink.refused(&e))?,
            );
        }
        write(&mut sink)?;
        let (digest, uncompressed_size) = sink.finish()?;
        let compressed_size = blob.position() - offset;
        self.note(Section {
            name: NAME_BOOT,
            compressor,
            digest,
            offset,
            compressed_size,
            uncompressed_size,
        });
        blob.write(tar_header(NAME_BOOT, compressed_size)?.as_bytes())
    }

    /// The table of contents, when there is to be one. Returns its size and digest, or zeros.
    pub(crate) fn finish(self, blob: &mut BlobFile) -> Result<(u32, Digest), BuildError> {
        if !self.has(BlobFeatures::HAS_TOC) {
            return Ok((0, [0; 32]));
        }
        let mut bytes = self.entries.as_bytes().to_vec();
        let header = tar_header(NAME_TOC, bytes.len() as u64)?;
        bytes.extend_from_slice(header.as_bytes());
        blob.write(&bytes)?;
        let size = u32::try_from(bytes.len()).unwrap_or_default();
        Ok((size, Sha256::digest(&bytes).into()))
    }
}

/// The header that follows a section of `size` bytes (blob.md section 5).
fn tar_header(name: &str, size: u64) -> Result<TarHeader, BuildError> {
    // 11 octal digits.
    const LIMIT: u64 = (1 << 33) - 1;
    if size > LIMIT {
        return Err(BuildError::Limit {
            what: "bytes in one section of a blob with tar headers",
            limit: LIMIT,
        });
    }
    let mut header = TarHeader::new_zeroed();
    header.name[..name.len()].copy_from_slice(name.as_bytes());
    header.size[..11].copy_from_slice(format!("{size:011o}").as_bytes());
    header.mtime[..11].copy_from_slice(b"00000000000");
    header.checksum = [b' '; 8];
    header.typeflag = b'0';
    header.magic = TAR_MAGIC;
    let sum: u32 = header.as_bytes().iter().map(|b| u32::from(*b)).sum();
    header.checksum[..7].copy_from_slice(format!("{sum:07o}").as_bytes());
    header.checksum[7] = 0;
    debug_assert_eq!(size_of::<TarHeader>(), TAR_HEADER_SIZE);
    Ok(header)
}

/// Puts a bootstrap into a blob, raw or as one zstd frame.
struct BlobSink<'a> {
    blob: &'a mut BlobFile,
    encoder: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    hasher: Sha256,
    size: u64,
}

impl BlobSink<'_> {
    fn refused(&self, error: &std::io::Error) -> BuildError {
        BuildError::Compress { path: self.blob.path(), reason: error.to_string() }
    }

    fn finish(mut self) -> Result<(Digest, u64), BuildError> {
        if let Some(encoder) = self.encoder.take() {
            let rest = encoder.finish().map_err(|e| self.refused(&e))?;
            self.blob.write(&rest)?;
        }
        Ok((self.hasher.finalize().into(), self.size))
    }
}

impl Sink for BlobSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        let Some(encoder) = &mut self.encoder else { return self.blob.write(bytes) };
        if let Err(e) = encoder.write_all(bytes) {
            return Err(BuildError::Compress { path: self.blob.path(), reason: e.to_string() });
        }
        self.blob.write(encoder.get_ref())?;
        encoder.get_mut().clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tar_header_is_the_one_in_the_corpus() {
        let header = tar_header(NAME_TOC, 512).unwrap();
        assert_eq!(&header.checksum, b"0006255\0");
        assert_eq!(&header.size, b"00000001000\0");
        tar_header(NAME_BLOB, 1 << 33).unwrap_err();
    }
}
