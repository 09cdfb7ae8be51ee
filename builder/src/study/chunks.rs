//! What a chunk is recognised by, and how many bytes of its blob it takes.
//!
//! Owns: digests and stored sizes for chunks of both versions, with estimates where the metadata has no figure.
//! Does not own: the data.

use rafs::blob::{self, DigestIndex};
use rafs::codec::{self, Digest, Digester};
use rafs::image::{ChunkRef, FsVersion, Image};
use rafs::layout::blob::BlobFeatures;
use rafs::layout::chunk::{ChunkFlags, ChunkRecord};

/// What a chunk holds, short enough to keep millions: half of its digest, marked with the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContentKey(u128);

impl ContentKey {
    /// For a digest.
    pub(crate) fn new(digester: Digester, digest: &Digest) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        // Two algorithms never give the same digest for anything; the mark keeps it that way for hostile tables.
        Self(u128::from_le_bytes(half) ^ u128::from(digester.number()) << 126)
    }
}

impl From<ContentKey> for u128 {
    fn from(key: ContentKey) -> Self {
        key.0
    }
}

/// What the image says of one chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fact {
    /// Digest of its plain bytes; `None` where the image has none (TARFS, external data).
    pub digest: Option<(Digester, Digest)>,
    /// Bytes in the blob file.
    pub stored: u64,
    /// False: `stored` is this chunk's share of what several chunks take together.
    pub exact: bool,
}

impl Fact {
    /// The digest in short.
    pub(crate) fn key(&self) -> Option<ContentKey> {
        self.digest.as_ref().map(|(digester, digest)| ContentKey::new(*digester, digest))
    }
}

/// How stored sizes of one blob are found.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// Every chunk: records hold no usable sizes (zran).
    all: bool,
    /// Stored bytes of chunks without a size of their own, together.
    stored: u64,
    /// Their plain bytes, together.
    plain: u64,
}

/// Answers for the chunks of one image. Takes 8 bytes a chunk.
#[derive(Debug)]
pub(crate) struct ChunkFacts<'a> {
    image: &'a Image,
    index: DigestIndex,
    shares: Vec<Share>,
}

impl<'a> ChunkFacts<'a> {
    /// Reads the chunk table once.
    pub(crate) fn new(image: &'a Image) -> Self {
        let index = match image.version() {
            FsVersion::V5 => DigestIndex::default(),
            FsVersion::V6 => DigestIndex::new(image.chunk_table(), image.blobs().len()),
        };
        let mut shares: Vec<Share> = image
            .blobs()
            .iter()
            .map(|blob| Share {
                all: blob.features.contains(BlobFeatures::ZRAN),
                stored: blob::data_size(blob),
                plain: 0,
            })
            .collect();
        for record in image.chunk_table() {
            let blob = record.blob_index.get() as usize;
            let Some(share) = shares.get_mut(blob) else { continue };
            if share.all || !has_size(record) {
                share.plain = share.plain.saturating_add(u64::from(record.uncompressed_size.get()));
            } else {
                share.stored = share.stored.saturating_sub(u64::from(record.compressed_size.get()));
            }
        }
        Self { image, index, shares }
    }

    /// The image.
    pub(crate) fn image(&self) -> &'a Image {
        self.image
    }

    /// What is known of `chunk`, which is this image's.
    pub(crate) fn of(&self, chunk: &ChunkRef) -> Fact {
        let plain = u64::from(chunk.uncompressed_size);
        let raw = Fact { digest: None, stored: plain, exact: true };
        let Some(blob) = self.image.blobs().get(chunk.blob.as_usize()) else { return raw };
        if blob.features.contains(BlobFeatures::TARFS) {
            return raw;
        }
        let owned;
        let record = match self.image.version() {
            FsVersion::V5 => {
                owned = self.image.chunk_record(chunk);
                owned.as_ref()
            }
            FsVersion::V6 => self.index.find(self.image.chunk_table(), chunk.blob, chunk.chunk),
        };
        let Some(record) = record else { return Fact { exact: false, ..raw } };
        let digest = (record.digest != [0; 32]).then_some((blob.digester, record.digest));
        let share = self.shares.get(chunk.blob.as_usize()).copied().unwrap_or_default();
        if !share.all && has_size(record) {
            return Fact { digest, stored: u64::from(record.compressed_size.get()), exact: true };
        }
        let stored = (u128::from(share.stored) * u128::from(plain)).checked_div(u128::from(share.plain));
        let stored = stored.and_then(|n| u64::try_from(n).ok()).unwrap_or(plain);
        Fact { digest, stored, exact: false }
    }
}

/// Chunks of a batch share one stored form; their records say nothing of it.
fn has_size(record: &ChunkRecord) -> bool {
    record.flags.get() & ChunkFlags::BATCH.bits() == 0 && record.compressed_size.get() != 0
}

/// Digest of `len` zeros.
pub(crate) fn zeros(digester: Digester, len: u32) -> Digest {
    codec::digest(digester, &vec![0; len as usize])
}
