//! The cached chunks of a blob as one image has verified them.

use super::BlobCache;
use super::keep::CachedChunk;
use crate::cache::{Agreement, AtomicBitmap, CacheError, Description};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one image knows of the chunks in a cache file.
#[derive(Debug)]
pub(super) struct Bits {
    /// Verified.
    pub ready: AtomicBitmap,
    /// Verified, and read not long ago.
    pub hot: AtomicBitmap,
    /// Where that was which is ready: an image may say of one chunk that it is in several places.
    pub places: Places,
    /// The image, for messages.
    pub image: Box<str>,
}

impl Bits {
    pub fn new(chunk_count: u32, image: &str) -> Self {
        Self {
            ready: AtomicBitmap::new(chunk_count),
            hot: AtomicBitmap::new(chunk_count),
            places: Places::new(chunk_count),
            image: image.into(),
        }
    }

    /// In this order: [`touch`](Self::touch) looks again after it has set the other bit.
    pub fn clear(&self, chunk: u32) {
        self.ready.clear(chunk);
        self.hot.clear(chunk);
    }

    pub fn clear_all(&self) {
        self.ready.clear_all();
        self.hot.clear_all();
    }

    /// Makes a chunk ready at its place. Those who read another place by its number see the other place.
    pub fn set_ready(&self, chunk: u32, description: &Description) {
        if self.places.set(chunk, description.offset(), description.size()) {
            self.ready.set(chunk);
        }
    }

    fn touch(&self, chunk: u32) {
        if self.ready.get(chunk) && !self.hot.get(chunk) {
            self.hot.set(chunk);
            if !self.ready.get(chunk) {
                self.hot.clear(chunk);
            }
        }
    }
}

/// Places of chunks, 8 bytes each, in pages that are made when needed.
#[derive(Debug)]
pub(super) struct Places(Box<[OnceLock<Box<[AtomicU64]>>]>);

impl Places {
    const PAGE: u32 = 512;

    fn new(chunk_count: u32) -> Self {
        Self((0..chunk_count.div_ceil(Self::PAGE)).map(|_| OnceLock::new()).collect())
    }

    /// A place in one word, for blobs of up to a TiB: nothing beyond is ever ready.
    fn pack(offset: u64, size: u32) -> Option<u64> {
        let size = u64::from(size.checked_sub(1)?);
        (offset >> 40 == 0 && size >> 24 == 0).then_some(offset << 24 | size)
    }

    fn set(&self, chunk: u32, offset: u64, size: u32) -> bool {
        let Some(place) = Self::pack(offset, size) else { return false };
        let Some(page) = self.0.get((chunk / Self::PAGE) as usize) else { return false };
        let page = page.get_or_init(|| (0..Self::PAGE).map(|_| AtomicU64::new(u64::MAX)).collect());
        let Some(word) = page.get((chunk % Self::PAGE) as usize) else { return false };
        word.store(place, Ordering::Release);
        true
    }

    #[inline]
    fn is(&self, chunk: u32, offset: u64, size: u32) -> bool {
        let word = || self.0.get((chunk / Self::PAGE) as usize)?.get()?.get((chunk % Self::PAGE) as usize);
        word().is_some_and(|word| Self::pack(offset, size) == Some(word.load(Ordering::Acquire)))
    }
}

/// The cached chunks of a blob as one image has verified them. A chunk may be read from [`BlobCache::file`] at its
/// uncompressed offset once it is [`ready`](Self::is_ready).
#[derive(Debug)]
pub struct CacheView {
    cache: Arc<BlobCache>,
    bits: Arc<Bits>,
}

impl std::ops::Deref for CacheView {
    type Target = BlobCache;
    fn deref(&self) -> &BlobCache {
        &self.cache
    }
}

impl CacheView {
    pub(super) fn new(cache: Arc<BlobCache>, bits: Arc<Bits>) -> Self {
        Self { cache, bits }
    }

    /// Whether a chunk is in the file and has been verified, at this place and in this size.
    #[inline]
    #[must_use]
    pub fn is_ready(&self, chunk: u32, uncompressed_offset: u64, size: u32) -> bool {
        self.bits.ready.get(chunk) && self.bits.places.is(chunk, uncompressed_offset, size)
    }

    /// Whether a chunk is ready and has been [read](Self::touch) not long ago.
    #[inline]
    #[must_use]
    pub fn is_hot(&self, chunk: u32, uncompressed_offset: u64, size: u32) -> bool {
        self.bits.hot.get(chunk) && self.bits.places.is(chunk, uncompressed_offset, size)
    }

    /// A chunk is being read. Makes it hot if it is ready.
    pub fn touch(&self, chunk: u32) {
        self.bits.touch(chunk);
    }

    /// Number of chunks verified.
    #[must_use]
    pub fn ready_count(&self) -> u64 {
        self.bits.ready.count()
    }

    /// Whether others say of a chunk what this image says. As long as they say anything else, the file does not hold the
    /// chunk for this image.
    #[must_use]
    pub fn agreement(&self, chunk: u32, description: &Description) -> Agreement {
        self.cache.map.as_ref().map_or(Agreement::Unknown, |map| map.agreement(chunk, description))
    }

    /// A claimed chunk has been read and is as it should be: `epoch` is from before it was read. False when it may have
    /// changed meanwhile, or may change without notice, because others say something else of its place.
    pub fn set_ready(&self, chunk: u32, description: &Description, epoch: u64) -> bool {
        self.set_ready_if(chunk, description, || self.cache.epoch() == epoch)
    }

    /// As [`set_ready`](Self::set_ready), for who still has what was read: `plain`. When another chunk's bytes have
    /// changed meanwhile, this one's are looked at again.
    pub fn set_ready_as(&self, chunk: u32, description: &Description, epoch: u64, plain: &[u8]) -> bool {
        self.set_ready_if(chunk, description, || {
            if self.cache.epoch() == epoch {
                return true;
            }
            let mut now = vec![0; plain.len()];
            self.cache.is_claimed(chunk, description.offset())
                && self.cache.read(description.offset(), &mut now).is_ok()
                && now == plain
        })
    }

    fn set_ready_if(
        &self,
        chunk: u32,
        description: &Description,
        is_still_so: impl FnOnce() -> bool,
    ) -> bool {
        let _nothing_is_taken_away = self.cache.nothing_is_taken_away();
        let described = self.cache.describe(&[(chunk, *description)]);
        if described.ok().as_deref() != Some(&[true]) || !is_still_so() {
            return false;
        }
        self.bits.set_ready(chunk, description);
        true
    }

    /// A claimed or ready chunk is not what this image says: forget it, if that is what it should be.
    pub fn reject(&self, chunk: u32, description: &Description) {
        if self.agreement(chunk, description) != Agreement::Other {
            self.cache.reject(chunk);
        }
    }

    /// A chunk that was ready cannot be read: forget it.
    pub fn reject_unreadable(&self, chunk: u32) {
        self.cache.reject(chunk);
    }

    /// The data file turned out to be shorter than it was.
    pub fn reject_all(&self) {
        self.cache.reject_all();
    }

    /// Keeps verified chunks: writes them to the data file, then says so in the map, then makes them ready.
    /// `Ok(false)`: not all of them are kept. The cache is not taking any now (it is read-only, or its disk is full), or
    /// other images say something else of their places.
    ///
    /// # Errors
    /// The data file could not be written. The cache then takes nothing for half a minute.
    pub fn keep(&self, chunks: &[CachedChunk<'_>]) -> Result<bool, CacheError> {
        self.cache.keep(chunks, &self.bits)
    }
}
