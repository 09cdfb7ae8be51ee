//! A new blob of chunks that are stored elsewhere already.
//!
//! Owns: reading stored chunks, verifying them, giving them new places, the sections behind them. Does not own: which
//! chunks, whose images.

use super::RebuildError;
use crate::blobs::{BlobDataError, Buffers, OpenBlob};
use crate::error::BuildError;
use crate::options::Version;
use crate::output::Output;
use crate::pack::{BatchPlace, Batches, BlobFile, CHUNK_ALIGNMENT, Chunk, ChunkInfoTable, Tail};
use rafs::blob::UnitId;
use rafs::codec::{self, Cipher, CipherKey, Compressor, Digester};
use rafs::ids::BlobIndex;
use rafs::image::BlobInfo;
use rafs::layout::blob::{BatchContext, BlobFeatures};
use rafs::layout::chunk::ChunkFlags;
use std::path::Path;
use zerocopy::FromZeros;

/// What the new blob will be like.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub version: Version,
    pub compressor: Compressor,
    pub digester: Digester,
    pub key: Option<CipherKey>,
    pub features: BlobFeatures,
    /// Whether uncompressed offsets are multiples of 4096.
    pub aligned: bool,
    pub chunk_size: u32,
}

/// The new blob while it is written.
pub(super) struct Mover {
    shape: Shape,
    cipher: Option<Cipher>,
    blob: BlobFile,
    chunks: Vec<Chunk>,
    batches: Batches,
    uncompressed_end: u64,
    buffers: Buffers,
    scratch: Vec<u8>,
}

impl Mover {
    /// A blob that will be in `dir` under its id.
    pub(super) fn new(dir: &Path, shape: Shape) -> Result<Self, BuildError> {
        Ok(Self {
            cipher: shape.key.as_ref().map(Cipher::new),
            shape,
            blob: BlobFile::new(Output::create_in(dir)?),
            chunks: Vec::new(),
            batches: Batches::default(),
            uncompressed_end: 0,
            buffers: Buffers::default(),
            scratch: Vec::new(),
        })
    }

    /// Chunks it has.
    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Moves the chunks of `source` among `pool` that `wanted` names, as they are stored, in the order they are stored
    /// in. In the pool they get their new places; their blob is set by the caller.
    pub(super) fn move_all(
        &mut self,
        source: &OpenBlob<'_>,
        pool: &mut [Chunk],
        wanted: &[usize],
    ) -> Result<(), RebuildError> {
        let mut places = Vec::with_capacity(wanted.len());
        for at in wanted {
            let (unit, range) = source.unit_for(&pool[*at].record(0))?;
            places.push((unit, range, *at));
        }
        places.sort_by_key(|(unit, range, _)| (unit.stored_offset, range.start));
        let mut rest = &places[..];
        while let Some((unit, ..)) = rest.first() {
            // Members of a batch lie behind each other and are stored as one.
            let batch = matches!(unit.id, UnitId::Batch(_));
            let count =
                if batch { rest.iter().take_while(|(other, ..)| other.id == unit.id).count() } else { 1 };
            let (members, others) = rest.split_at(count);
            source.read_unit(unit, &mut self.buffers)?;
            let start = self.blob.position();
            for (_, range, at) in members {
                let old = pool[*at];
                self.check(source, &old, range)?;
                let mut new =
                    Chunk { index: self.next_index()?, uncompressed_offset: self.uncompressed_end, ..old };
                if batch {
                    let context = u32::try_from(self.batches.contexts.len()).unwrap_or(u32::MAX);
                    let offset = u32::try_from(range.start).unwrap_or(u32::MAX);
                    self.batches.places.push(BatchPlace { chunk: new.index, start, context, offset });
                } else {
                    new.compressed_offset = start;
                    new.compressed_size = u32::try_from(self.buffers.stored.len()).unwrap_or(u32::MAX);
                    if source.is_plain() {
                        new.flags.remove(ChunkFlags::COMPRESSED);
                    }
                }
                self.place(new);
                pool[*at] = new;
            }
            if batch {
                let mut context = BatchContext::new_zeroed();
                context.compressed_size = u32::try_from(self.buffers.stored.len()).unwrap_or_default().into();
                context.uncompressed_size =
                    u32::try_from(self.buffers.plain.len()).unwrap_or_default().into();
                self.batches.contexts.push(context);
            }
            self.blob.write(&self.buffers.stored)?;
            rest = others;
        }
        Ok(())
    }

    /// Adds a copy of the chunk `old` of `source`: as it is stored where that fits into this blob, else stored anew.
    pub(super) fn copy(&mut self, source: &OpenBlob<'_>, old: &Chunk) -> Result<Chunk, RebuildError> {
        let (unit, range) = source.unit_for(&old.record(0))?;
        source.read_unit(&unit, &mut self.buffers)?;
        self.check(source, old, &range)?;
        let index = self.next_index()?;
        let Buffers { stored, plain, .. } = &mut self.buffers;
        let plain = plain.get(range).unwrap_or_default();
        let digest = if source.info.digester == self.shape.digester && old.digest != [0; 32] {
            old.digest
        } else {
            codec::digest(self.shape.digester, plain)
        };
        let same = matches!(unit.id, UnitId::Chunk(_))
            && source.info.compressor == self.shape.compressor
            && source.info.cipher.is_none()
            && self.cipher.is_none()
            && !source.is_plain()
            && !rafs::blob::is_legacy_stargz(source.info);
        let mut flags = ChunkFlags::HAS_CRC32;
        if same {
            flags.set(ChunkFlags::COMPRESSED, old.flags.contains(ChunkFlags::COMPRESSED));
        } else {
            // There is no encoder for gzip: such chunks stay raw.
            let smaller = self.shape.compressor != Compressor::Gzip
                && codec::compress(self.shape.compressor, plain, &mut self.scratch)
                    .map_err(|e| BuildError::Compress { path: self.blob.path(), reason: e.to_string() })?;
            flags.set(ChunkFlags::COMPRESSED, smaller);
            flags.set(ChunkFlags::ENCRYPTED, self.cipher.is_some());
            let form = if smaller { &self.scratch[..] } else { plain };
            match &self.cipher {
                Some(cipher) => cipher.encrypt(form, stored),
                None => {
                    stored.clear();
                    stored.extend_from_slice(form);
                }
            }
        }
        let new = Chunk {
            digest,
            compressed_offset: self.blob.position(),
            uncompressed_offset: self.uncompressed_end,
            compressed_size: u32::try_from(stored.len()).unwrap_or(u32::MAX),
            uncompressed_size: old.uncompressed_size,
            crc32c: codec::crc32c(plain),
            index,
            blob: 0,
            position: old.position,
            flags,
        };
        self.blob.write(stored)?;
        self.place(new);
        Ok(new)
    }

    /// The finished blob, still to be committed, and its entry in the blob table.
    pub(super) fn finish(mut self) -> Result<(Output, BlobInfo), BuildError> {
        let Shape { version, compressor, digester, key, features, chunk_size, .. } = self.shape;
        let mut tail = Tail::new(features, key.as_ref());
        tail.end_data(&mut self.blob, self.uncompressed_end)?;
        let mut chunk_info = None;
        if version == Version::V6 {
            let table = if features.contains(BlobFeatures::CHUNK_INFO_V2) {
                ChunkInfoTable::v2(self.chunks.iter(), &self.batches, key.is_some())?
            } else {
                ChunkInfoTable::v1(self.chunks.iter())?
            };
            chunk_info = Some(tail.chunk_info(&mut self.blob, &table, compressor)?);
        }
        let info = BlobInfo {
            index: BlobIndex(0),
            id: self.blob.id(),
            features,
            compressor,
            digester,
            cipher: key,
            chunk_size,
            chunk_count: u32::try_from(self.chunks.len()).ok(),
            compressed_size: self.blob.position(),
            uncompressed_size: self.uncompressed_end,
            chunk_info,
            toc_size: 0,
            toc_digest: [0; 32],
            meta_blob: None,
            prefetch_size: 0,
            mapped_blkaddr: 0,
        };
        Ok((self.blob.into_output()?, info))
    }

    fn next_index(&self) -> Result<u32, BuildError> {
        let limit = rafs::layout::v6::CHUNKS_MAX;
        u32::try_from(self.chunks.len()).ok().filter(|n| *n < limit).ok_or_else(|| BuildError::Limit {
            what: "chunks in one blob (use a larger chunk size)",
            limit: limit.into(),
        })
    }

    fn place(&mut self, chunk: Chunk) {
        self.uncompressed_end += u64::from(chunk.uncompressed_size);
        if self.shape.aligned {
            self.uncompressed_end = self.uncompressed_end.next_multiple_of(CHUNK_ALIGNMENT);
        }
        self.chunks.push(chunk);
    }

    /// Whether the unit that was read has the bytes of `chunk` in `range`.
    fn check(
        &self,
        source: &OpenBlob<'_>,
        chunk: &Chunk,
        range: &std::ops::Range<usize>,
    ) -> Result<(), BlobDataError> {
        let plain = self.buffers.plain.get(range.clone());
        let right = plain.is_some_and(|plain| {
            plain.len() == chunk.uncompressed_size as usize
                && (chunk.digest == [0; 32] || codec::digest(source.info.digester, plain) == chunk.digest)
        });
        if right {
            return Ok(());
        }
        Err(BlobDataError::Chunk {
            blob: source.info.id.clone(),
            chunk: chunk.index,
            user: "this image".to_owned(),
            reason: "its bytes do not have the digest that the image gives".to_owned(),
        })
    }
}
