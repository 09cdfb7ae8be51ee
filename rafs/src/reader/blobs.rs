//! One blob as the reader sees it: the file its ready chunks are read from, and the way to its missing ones.

use super::engine::{CacheKey, Hub};
use super::numbering::Numbering;
use super::readahead::Ahead;
use super::{ReadError, request::Piece};
use crate::blob::{BlobError, ChunkTable, Member, Unit, UnitId};
use crate::cache::{AtomicBitmap, BlobCache, CacheDir, CacheView};
use crate::codec::Digest;
use crate::ids::{BlobIndex, ChunkIndex};
use crate::image::{BlobInfo, ChunkRef, FsVersion, Image};
use crate::layout::DIGEST_SIZE;
use crate::layout::blob::BlobFeatures;
use crate::store::{ErrorClass, Store, StoreError};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Most chunks of a blob that get bitmaps: 16 MiB of them. v6 stops at 2^24.
const BITMAP_CHUNKS_MAX: u32 = 1 << 27;

/// State of one blob.
pub(super) struct BlobState {
    pub index: BlobIndex,
    /// Blob id.
    pub id: Arc<str>,
    /// Stands for this blob as this image sees it.
    pub view: u64,
    /// Stands for this blob of this store, for whatever image.
    pub shared: Arc<u64>,
    /// What to fetch ahead of readers.
    pub ahead: Ahead,
    access: OnceLock<Access>,
    opening: Mutex<()>,
    source: Mutex<SourceState>,
    /// The first table, for positions of raw chunks in the blob file.
    table: OnceLock<Arc<ChunkTable>>,
    /// The blob's own chunk digests, one behind the other, where the image has none.
    digests: OnceLock<Vec<u8>>,
    /// A chunk info table from the cache directory has been found wanting.
    pub distrust_cached_table: AtomicBool,
}

/// Where plain bytes of ready chunks are read from.
pub(super) struct Access {
    kind: Kind,
    /// Of chunks that carry no numbers.
    numbering: Option<Numbering>,
    chunk_count: u32,
}

enum Kind {
    /// The tar of a TARFS blob: always ready, in place.
    Tar { file: File, path: String },
    /// A file of the uncompressed address space.
    Cache(CacheView),
    /// The blob file itself, for its raw chunks.
    Raw { file: File, path: String, ready: AtomicBitmap },
    /// Nothing: every read goes to the store, or to the memory cache.
    Memory,
}

/// Where missing chunks come from.
#[derive(Clone)]
pub(super) enum Source {
    /// v6: the chunk info table of the blob.
    Table(Arc<ChunkTable>),
    /// v5: the chunk records of the image.
    Records,
    /// A file in the store that holds the uncompressed address space, `ID.blob.data`.
    Plain(Arc<str>),
    /// TARFS: the tar, in place.
    Tar,
}

/// Progress of finding the [`Source`].
pub(super) enum SourceState {
    Idle,
    /// On its way; these wait for it.
    Loading(Vec<Piece>),
    Ready(Source),
}

/// What a v5 image without extended blob table says about a blob, by its chunk records.
#[derive(Debug, Default)]
pub(super) struct V5Summary {
    /// Highest chunk index + 1.
    pub count: u64,
    /// End of the uncompressed address space.
    pub end: u64,
    /// Uncompressed offsets of the chunks in order; only when the records carry no indexes.
    pub offsets: Vec<u64>,
}

impl V5Summary {
    /// One summary a blob; walks all records once.
    pub fn of_image(image: &Image) -> Vec<Self> {
        let mut blobs: Vec<Self> = Vec::new();
        blobs.resize_with(image.blobs().len(), Self::default);
        let renumber = image.v5_chunk_indexes_missing();
        image.for_each_chunk_record(&mut |record| {
            let Some(blob) = blobs.get_mut(BlobIndex(record.blob_index.get()).as_usize()) else { return };
            let start = record.uncompressed_offset.get();
            blob.count = blob.count.max(u64::from(record.index.get()) + 1);
            blob.end = blob.end.max(start.saturating_add(record.uncompressed_size.get().into()));
            if renumber {
                blob.offsets.push(start);
            }
        });
        for blob in &mut blobs {
            if renumber {
                blob.offsets.sort_unstable();
                blob.offsets.dedup();
                blob.count = u64::try_from(blob.offsets.len()).unwrap_or(u64::MAX);
            }
        }
        blobs
    }
}

impl BlobState {
    pub fn new(info: &BlobInfo, view: u64, shared: Arc<u64>) -> Self {
        Self {
            index: info.index,
            id: info.id.as_str().into(),
            view,
            shared,
            ahead: Ahead::default(),
            access: OnceLock::new(),
            opening: Mutex::new(()),
            source: Mutex::new(SourceState::Idle),
            table: OnceLock::new(),
            digests: OnceLock::new(),
            distrust_cached_table: AtomicBool::new(false),
        }
    }

    /// Keeps the blob's own chunk digests.
    pub fn set_digests(&self, digests: Vec<u8>) {
        let _ = self.digests.set(digests);
    }

    /// Whether the blob's own digests have been loaded.
    pub fn has_digests(&self) -> bool {
        self.digests.get().is_some()
    }

    /// The blob's own digest of a chunk.
    pub fn digest(&self, chunk: ChunkIndex) -> Option<Digest> {
        let start = chunk.as_usize().checked_mul(DIGEST_SIZE)?;
        self.digests.get()?.get(start..)?.first_chunk().copied()
    }

    pub fn source(&self) -> MutexGuard<'_, SourceState> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source, when it has been found.
    pub fn known_source(&self) -> Option<Source> {
        match &*self.source() {
            SourceState::Ready(source) => Some(source.clone()),
            SourceState::Idle | SourceState::Loading(_) => None,
        }
    }

    /// Nobody is looking for the source.
    pub fn is_idle(&self) -> bool {
        matches!(&*self.source(), SourceState::Idle)
    }

    /// Sets the source and takes those who wait for it.
    pub fn set_source(&self, source: Source) -> Vec<Piece> {
        if let Source::Table(table) = &source {
            let _ = self.table.set(Arc::clone(table));
        }
        match std::mem::replace(&mut *self.source(), SourceState::Ready(source)) {
            SourceState::Loading(pieces) => pieces,
            SourceState::Idle | SourceState::Ready(_) => Vec::new(),
        }
    }

    /// The source is not to be had, or not to be trusted: the next read looks for it again.
    pub fn forget_source(&self) -> Vec<Piece> {
        let mut state = self.source();
        match std::mem::replace(&mut *state, SourceState::Idle) {
            SourceState::Loading(pieces) => pieces,
            SourceState::Idle | SourceState::Ready(_) => Vec::new(),
        }
    }

    /// What ready chunks are read from, if that has been opened.
    #[inline]
    pub fn access(&self) -> Option<&Access> {
        self.access.get()
    }

    /// What ready chunks are read from; opens it when that has not been done. `Err`: the blob is not there now.
    pub fn open(&self, context: &OpenContext<'_>) -> Result<&Access, StoreError> {
        if let Some(access) = self.access.get() {
            return Ok(access);
        }
        let _one_at_a_time = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if self.access.get().is_none() {
            let access = context.open()?;
            let _ = self.access.set(access);
        }
        self.access.get().ok_or_else(|| StoreError {
            class: ErrorClass::Transient,
            object: context.info.id.clone(),
            range: None,
            reason: "could not be opened".into(),
        })
    }

    /// Number of a chunk in bitmaps and flights.
    #[inline]
    pub fn number(&self, access: &Access, chunk: &ChunkRef) -> Option<u32> {
        match &access.numbering {
            None => Some(chunk.chunk.0),
            Some(numbering) => numbering.number(chunk.uncompressed_offset),
        }
    }

    /// The file and position of a ready chunk, and the [epoch](Access::epoch) from before it was found ready.
    pub fn ready(&self, image: &Image, chunk: &ChunkRef) -> Option<(BorrowedFd<'_>, u64, u64)> {
        self.find(image, chunk, false)
    }

    /// As [`ready`](Self::ready), only for chunks that have been read before. So the first read of each chunk comes by
    /// the fetch threads, who keep track of that, and later ones need not.
    #[inline]
    pub fn hot(&self, image: &Image, chunk: &ChunkRef) -> Option<(BorrowedFd<'_>, u64, u64)> {
        self.find(image, chunk, true)
    }

    #[inline]
    fn find(&self, image: &Image, chunk: &ChunkRef, hot: bool) -> Option<(BorrowedFd<'_>, u64, u64)> {
        let access = self.access.get()?;
        match &access.kind {
            Kind::Cache(cache) => {
                let epoch = cache.epoch();
                let number = self.number(access, chunk)?;
                let (at, size) = (chunk.uncompressed_offset, chunk.uncompressed_size);
                let found =
                    if hot { cache.is_hot(number, at, size) } else { cache.is_ready(number, at, size) };
                found.then(|| (cache.file(), chunk.uncompressed_offset, epoch))
            }
            Kind::Tar { file, .. } => Some((file.as_fd(), chunk.uncompressed_offset, 0)),
            Kind::Raw { file, ready, .. } => {
                let ready = ready.get(self.number(access, chunk)?);
                ready.then(|| Some((file.as_fd(), self.raw_position(image, chunk)?, 0))).flatten()
            }
            Kind::Memory => None,
        }
    }

    /// Where a raw chunk lies in the blob file.
    fn raw_position(&self, image: &Image, chunk: &ChunkRef) -> Option<u64> {
        match self.table.get() {
            Some(table) => Some(table.chunk(chunk.chunk).ok()?.compressed_offset),
            None => Some(image.chunk_record(chunk)?.compressed_offset.get()),
        }
    }

    /// A raw chunk of the blob file has been verified; `source` is where its position came from.
    pub fn set_raw_ready(&self, access: &Access, source: &Source, number: u32) -> bool {
        let Kind::Raw { ready, .. } = &access.kind else { return false };
        let same_positions = match (source, self.table.get()) {
            (Source::Table(used), Some(kept)) => Arc::ptr_eq(used, kept),
            (Source::Records, None) => true,
            _ => false,
        };
        if same_positions {
            ready.set(number);
        }
        same_positions
    }
}

impl Access {
    /// Nothing is fetched for it beside what is asked for: it is here already, or cannot be kept.
    pub fn is_local(&self) -> bool {
        matches!(self.kind, Kind::Tar { .. } | Kind::Raw { .. })
    }

    /// Number that changes before bytes of ready chunks do. Files that are not ours do not change, as far as we know.
    #[inline]
    pub fn epoch(&self) -> u64 {
        match &self.kind {
            Kind::Cache(cache) => cache.epoch(),
            Kind::Tar { .. } | Kind::Raw { .. } | Kind::Memory => 0,
        }
    }

    /// Whether bytes of ready chunks stay as they are for as long as this is open.
    pub fn is_steady(&self) -> bool {
        match &self.kind {
            Kind::Cache(cache) => cache.is_steady(),
            Kind::Tar { .. } | Kind::Raw { .. } => true,
            Kind::Memory => false,
        }
    }

    /// Number of chunks; 0 where that is not known.
    pub fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// Chunks of this image have numbers that other images of the same blob need not share.
    pub fn has_own_numbers(&self) -> bool {
        self.numbering.is_some()
    }

    /// The cache of the blob, if it has one.
    pub fn cache(&self) -> Option<&CacheView> {
        match &self.kind {
            Kind::Cache(cache) => Some(cache),
            _ => None,
        }
    }

    /// The file that ready chunks are read from.
    #[inline]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Cache(cache) => Some(cache.file()),
            Kind::Tar { file, .. } | Kind::Raw { file, .. } => Some(file.as_fd()),
            Kind::Memory => None,
        }
    }

    /// Its path, for messages.
    pub fn path(&self) -> &str {
        match &self.kind {
            Kind::Cache(cache) => cache.path(),
            Kind::Tar { path, .. } | Kind::Raw { path, .. } => path,
            Kind::Memory => "memory",
        }
    }

    /// A ready chunk could not be read from the file. True: it is not ready any more, and can be fetched. False for files
    /// that are not ours, where nothing better can be had.
    pub fn unready(&self, number: u32) -> bool {
        match &self.kind {
            Kind::Cache(cache) => {
                cache.reject_all();
                cache.reject_unreadable(number);
                true
            }
            Kind::Raw { ready, .. } => {
                ready.clear_all();
                true
            }
            Kind::Tar { .. } | Kind::Memory => false,
        }
    }
}

/// What is needed to open the [`Access`] of a blob.
pub(super) struct OpenContext<'a> {
    pub hub: &'a Hub,
    /// The image's name, for messages.
    pub image: &'a str,
    pub version: FsVersion,
    pub info: &'a BlobInfo,
    pub store: &'a dyn Store,
    pub cache_dir: Option<&'a Arc<CacheDir>>,
    /// v5 images that do not say enough.
    pub summary: Option<&'a V5Summary>,
}

impl OpenContext<'_> {
    fn open(&self) -> Result<Access, StoreError> {
        let info = self.info;
        let (len, count) = self.dimensions();
        let access = |kind| {
            let offsets = self.summary.map(|s| s.offsets.as_slice()).filter(|o| !o.is_empty());
            let chunk_count = u32::try_from(count).ok().filter(|&n| n <= BITMAP_CHUNKS_MAX).unwrap_or(0);
            Ok(Access { kind, numbering: offsets.map(Numbering::new), chunk_count })
        };
        if info.features.contains(BlobFeatures::TARFS) {
            return match self.store.local_file(&info.id) {
                Some(file) => access(Kind::Tar { file: file?, path: info.id.clone() }),
                None => access(Kind::Memory),
            };
        }
        let Some(count) = u32::try_from(count).ok().filter(|&n| n <= BITMAP_CHUNKS_MAX) else {
            tracing::warn!(blob = %info.id, count, "too many chunks to keep track of: nothing is cached");
            return access(Kind::Memory);
        };
        if let Some(dir) = self.cache_dir {
            let key = self.cache_key(len, count);
            let shared = self.hub.cache_file(dir, &info.id, key, self.image);
            let cache = shared.or_else(|error| match self.hub.own_cache_file(dir, len, count) {
                Ok(own) => {
                    tracing::warn!(%error, blob = %info.id, image = self.image, "cached for this image and run alone");
                    Ok(own)
                }
                // Why the proper one cannot be had says what to do.
                Err(_) => Err(error),
            });
            match cache {
                Ok(cache) => return access(Kind::Cache(cache.view(self.image))),
                Err(error) => tracing::warn!(%error, blob = %info.id,
                    "its data is not cached, each read asks the store: correct that, or name another work_dir, and mount again"),
            }
        }
        let name = plain_file_name(&info.id);
        if let Some(Ok(file)) = self.store.local_file(&name)
            && file.metadata().is_ok_and(|meta| meta.len() >= len)
        {
            let cache = BlobCache::of_complete_file(file, name, len, count);
            return access(Kind::Cache(Arc::new(cache).view(self.image)));
        }
        match self.store.local_file(&info.id) {
            Some(file) => {
                access(Kind::Raw { file: file?, path: info.id.clone(), ready: AtomicBitmap::new(count) })
            }
            None => access(Kind::Memory),
        }
    }

    /// What two images must agree on to use one cache file: otherwise the one's chunks lie across the other's.
    fn cache_key(&self, len: u64, chunks: u32) -> CacheKey {
        let info = self.info;
        let layout = BlobFeatures::ALIGNED
            | BlobFeatures::CHUNK_INFO_V2
            | BlobFeatures::ZRAN
            | BlobFeatures::SEPARATE
            | BlobFeatures::BATCH
            | BlobFeatures::ENCRYPTED;
        let chunk_info = match self.version {
            FsVersion::V5 => None,
            FsVersion::V6 => {
                let meta = info.meta_blob.clone();
                info.chunk_info.map(|table| (table, meta, info.features & layout, info.cipher.clone()))
            }
        };
        CacheKey { len, chunks, compressor: info.compressor, chunk_info }
    }

    /// Bytes of the uncompressed address space, and number of chunks.
    fn dimensions(&self) -> (u64, u64) {
        match (self.info.chunk_count, self.summary) {
            (Some(count), None) => (self.info.uncompressed_size, count.into()),
            (_, Some(summary)) => (self.info.uncompressed_size.max(summary.end), summary.count),
            (None, None) => (self.info.uncompressed_size, 0),
        }
    }
}

/// Name of the file that holds a blob's uncompressed address space.
pub(super) fn plain_file_name(id: &str) -> String {
    format!("{id}.blob.data")
}

/// Name of the file that holds a blob's plain chunk info table.
pub(super) fn table_file_name(id: &str) -> String {
    format!("{id}.blob.meta")
}

impl Source {
    /// Object of the store that its units are read from.
    pub fn object(&self, info: &BlobInfo) -> Arc<str> {
        match self {
            Self::Plain(name) => Arc::clone(name),
            Self::Table(_) | Self::Records | Self::Tar => info.id.as_str().into(),
        }
    }

    /// The unit to fetch for a chunk whose number is `number`.
    pub fn unit(
        &self,
        image: &Image,
        info: &BlobInfo,
        chunk: &ChunkRef,
        number: u32,
    ) -> Result<Unit, ReadError> {
        let mismatch = || ReadError::Mismatch { blob: info.id.clone(), chunk: chunk.chunk };
        match self {
            Self::Table(table) => {
                let entry = table.chunk(chunk.chunk)?;
                if entry.uncompressed_offset != chunk.uncompressed_offset
                    || entry.uncompressed_size != chunk.uncompressed_size
                {
                    return Err(mismatch());
                }
                Ok(table.unit_of(chunk.chunk)?)
            }
            Self::Records => {
                let record = image.chunk_record(chunk).ok_or_else(mismatch)?;
                let mut unit = Unit::of_record(info, &record)?;
                unit.chunk = ChunkIndex(number);
                unit.id = UnitId::Chunk(unit.chunk);
                Ok(unit)
            }
            Self::Plain(_) => {
                let (at, len) = (chunk.uncompressed_offset, chunk.uncompressed_size);
                Ok(Unit::of_plain_file(ChunkIndex(number), at, len))
            }
            Self::Tar => {
                // Chunk numbers of TARFS images mean nothing; positions do, in 512-byte blocks.
                let block = u32::try_from(chunk.uncompressed_offset / 512).map_err(|_| mismatch())?;
                let (at, len) = (chunk.uncompressed_offset, chunk.uncompressed_size);
                Ok(Unit::of_plain_file(ChunkIndex(block), at, len))
            }
        }
    }

    /// The chunks in a decoded unit that was fetched for `chunk`.
    pub fn members(&self, unit: &Unit, chunk: &ChunkRef) -> Vec<Member> {
        match self {
            Self::Table(table) => table.cut(unit.id).collect(),
            Self::Records | Self::Plain(_) | Self::Tar => vec![Member {
                chunk: unit.chunk,
                range: 0..usize::try_from(unit.plain_size).unwrap_or(0),
                uncompressed_offset: chunk.uncompressed_offset,
                crc32c: None,
            }],
        }
    }

    /// Decodes a unit.
    pub fn decode(
        &self,
        info: &BlobInfo,
        unit: &Unit,
        stored: &[u8],
        scratch: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<(), BlobError> {
        let table = match self {
            Self::Table(table) => Some(&**table),
            Self::Records | Self::Plain(_) | Self::Tar => None,
        };
        unit.decode(info, table, stored, scratch, plain)
    }
}
