//! The cache files of one blob, shared by all who read it.
//!
//! Owns: opening them, whom they are shared with, their length, what is known to be damaged, durability. Does not own:
//! what one image has verified of them (`view`), how chunks are kept (`keep`), or taken away (`evict`).

mod evict;
mod keep;
mod reference;
#[cfg(test)]
mod tests;
mod view;

pub use keep::CachedChunk;
pub use view::CacheView;

use super::space::blocks;
use super::{AtomicBitmap, CacheDir, CacheError, ChunkMap, MapOrigin, lease};
use crate::store::is_safe_object_name;
use rustix::fs::SeekFrom;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Instant;
use view::Bits;

/// Cache files of one blob. Chunks are read through a [`CacheView`], one for each image: what one image's digests have
/// verified says nothing to another image.
pub struct BlobCache {
    /// Whose limit it keeps to.
    dir: Option<Arc<CacheDir>>,
    /// A share of the data file is held: bytes may be taken away when nobody else holds one.
    leased: bool,
    /// Where the search for cold chunks goes on.
    hand: AtomicU32,
    evicted: AtomicU64,
    /// There may be bytes that the map says nothing about.
    unknown_bytes: AtomicBool,
    data: File,
    /// Of the data file in its directory.
    name: Option<String>,
    path: String,
    len: u64,
    chunk_count: u32,
    map: Option<ChunkMap>,
    views: Mutex<Vec<Weak<Bits>>>,
    /// Changes before bytes that a view may be reading do.
    epoch: AtomicU64,
    /// Held for reading while chunks are written and made ready, for writing while they are taken away.
    taking_away: RwLock<()>,
    /// Found damaged in the file by this process: not to be looked at again until kept anew.
    bad: AtomicBitmap,
    writable: bool,
    /// There was data before there was a map: any chunk may be there.
    unmapped_data: bool,
    /// Somebody says it is complete, so that holes are data, too.
    complete: bool,
    dirty: AtomicBool,
    written: AtomicU64,
    paused_until: Mutex<Option<Instant>>,
    /// It has been said that images disagree.
    disagreement_said: AtomicBool,
}

impl fmt::Debug for BlobCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobCache").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What [`BlobCache::new`] puts together.
struct Files {
    data: File,
    map: Option<ChunkMap>,
    name: Option<String>,
    path: String,
}

impl BlobCache {
    fn new(dir: Option<Arc<CacheDir>>, files: Files, len: u64, chunk_count: u32) -> Self {
        Self {
            dir,
            leased: false,
            hand: AtomicU32::new(0),
            evicted: AtomicU64::new(0),
            unknown_bytes: AtomicBool::new(false),
            data: files.data,
            name: files.name,
            path: files.path,
            len,
            chunk_count,
            map: files.map,
            views: Mutex::default(),
            epoch: AtomicU64::new(0),
            taking_away: RwLock::new(()),
            bad: AtomicBitmap::new(chunk_count),
            writable: false,
            unmapped_data: false,
            complete: false,
            dirty: AtomicBool::new(false),
            written: AtomicU64::new(0),
            paused_until: Mutex::new(None),
            disagreement_said: AtomicBool::new(false),
        }
    }

    /// Opens or makes the cache files of a blob that has `chunk_count` chunks in `len` bytes of uncompressed
    /// address space.
    ///
    /// # Errors
    /// The files cannot be had, or others use them whose image has another layout: use [`unnamed`](Self::unnamed).
    pub fn open(
        dir: &Arc<CacheDir>,
        blob_id: &str,
        len: u64,
        chunk_count: u32,
    ) -> Result<Arc<Self>, CacheError> {
        if !is_safe_object_name(blob_id) {
            return Err(CacheError::BadName(blob_id.into()));
        }
        let name = format!("{blob_id}.blob.data");
        let (data, writable) = dir.open_file(&name, true)?;
        let path = dir.path_of(&name);
        let leased = match lease::share(&data) {
            Ok(true) => true,
            Ok(false) => return Err(CacheError::InUse { path }),
            Err(error) => {
                tracing::debug!(%error, file = path, "no locks here: chunks are not taken away");
                false
            }
        };
        let found_len = data.metadata().map_err(file_error(&path, "examine it"))?.len();
        if found_len < len && writable {
            data.set_len(len).map_err(file_error(&path, "set its length"))?;
        }
        // Others do not come before the map is as it should be.
        let alone = !leased || lease::alone(&data).unwrap_or(false);
        let map = ChunkMap::open(dir, blob_id, chunk_count, alone, found_len == 0);
        if leased && alone {
            lease::share_again(&data);
        }
        let (map, origin) = map?;
        let fresh = origin == MapOrigin::New;
        if writable && !map.is_writable() {
            let path = dir.path_of(&format!("{blob_id}.chunk_map"));
            let source = io::ErrorKind::PermissionDenied.into();
            return Err(CacheError::File { path, action: "write to it", source });
        }
        let mut unmapped_data = fresh && found_len > 0;
        if fresh && let Some(bits) = reference::bits(dir, blob_id, chunk_count) {
            map.seed(&bits)?;
            unmapped_data = false;
        }
        let files = Files { data, map: Some(map), name: Some(name), path };
        let mut cache = Self::new(Some(Arc::clone(dir)), files, len, chunk_count);
        cache.leased = leased && writable;
        cache.writable = writable;
        cache.unmapped_data = unmapped_data;
        cache.unknown_bytes = AtomicBool::new(found_len > 0);
        Ok(cache.registered(dir))
    }

    /// Cache files without a name, for an image that cannot share those of its blob: nobody else sees them, and they end
    /// with this process.
    ///
    /// # Errors
    /// The directory does not take them.
    pub fn unnamed(dir: &Arc<CacheDir>, len: u64, chunk_count: u32) -> Result<Arc<Self>, CacheError> {
        let (data, path) = dir.unnamed_file()?;
        data.set_len(len).map_err(file_error(&path, "set its length"))?;
        let map = ChunkMap::unnamed(dir, chunk_count)?;
        let leased = lease::share(&data).unwrap_or(false);
        let files = Files { data, map: Some(map), name: None, path };
        let mut cache = Self::new(Some(Arc::clone(dir)), files, len, chunk_count);
        cache.leased = leased;
        cache.writable = true;
        Ok(cache.registered(dir))
    }

    fn registered(self, dir: &CacheDir) -> Arc<Self> {
        let cache = Arc::new(self);
        dir.register(&cache);
        // What was here before may be more than is allowed now.
        dir.keep_to_limit();
        cache
    }

    /// A complete data file that somebody else made; each chunk still has to be verified. Nothing is written to it.
    #[must_use]
    pub fn of_complete_file(data: File, path: String, len: u64, chunk_count: u32) -> Self {
        let files = Files { data, map: None, name: None, path };
        let mut cache = Self::new(None, files, len, chunk_count);
        cache.unmapped_data = true;
        cache.complete = true;
        cache
    }

    /// A view for the image of this name, in which no chunk is ready yet.
    #[must_use]
    pub fn view(self: &Arc<Self>, image: &str) -> CacheView {
        let bits = Arc::new(Bits::new(self.chunk_count, image));
        let mut views = self.views();
        views.retain(|view| view.strong_count() > 0);
        views.push(Arc::downgrade(&bits));
        CacheView::new(Arc::clone(self), bits)
    }

    fn views(&self) -> MutexGuard<'_, Vec<Weak<Bits>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while chunks are written or made ready.
    fn nothing_is_taken_away(&self) -> RwLockReadGuard<'_, ()> {
        self.taking_away.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while chunks are taken away.
    fn nothing_is_written(&self) -> RwLockWriteGuard<'_, ()> {
        self.taking_away.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether more than one image is read through it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.views().iter().filter(|view| view.strong_count() > 0).count() > 1
    }

    /// Whether bytes of ready chunks stay as they are: nothing is taken away to keep to a limit, and no other image
    /// writes the file.
    #[must_use]
    pub fn is_steady(&self) -> bool {
        !self.dir.as_ref().is_some_and(|dir| dir.is_limited()) && !self.is_shared()
    }

    /// Makes a chunk unready for all.
    fn unready(&self, chunk: u32) {
        for view in self.views().iter().filter_map(Weak::upgrade) {
            view.clear(chunk);
        }
    }

    /// The blob's id, when the file is in a cache directory.
    pub(super) fn blob_id(&self) -> Option<&str> {
        self.name.as_deref()?.strip_suffix(".blob.data")
    }

    /// Bytes that the data takes on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        blocks(&self.data)
    }

    /// Bytes that have been taken away so far.
    #[must_use]
    pub fn evicted_bytes(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Whether the data file still is the one in the directory: clients delete cache files of images they think unused.
    #[must_use]
    pub fn is_still_in(&self, dir: &CacheDir) -> bool {
        self.name.as_ref().is_some_and(|name| dir.still_has(name, &self.data))
    }

    /// A number that changes whenever bytes of ready chunks are about to. Bytes read between two equal answers, after
    /// their chunk was found ready, are what they should be.
    #[inline]
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Uncompressed address space and number of chunks, as it was opened with.
    #[must_use]
    pub fn dimensions(&self) -> (u64, u32) {
        (self.len, self.chunk_count)
    }

    /// The data file.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    /// Path of the data file, for messages.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the file may hold a chunk that has not been verified yet, whatever it is.
    #[must_use]
    pub fn is_claimed(&self, chunk: u32, uncompressed_offset: u64) -> bool {
        if chunk >= self.chunk_count || self.bad.get(chunk) {
            return false;
        }
        self.map.as_ref().is_some_and(|map| map.is_live(chunk))
            || (self.unmapped_data && (self.complete || self.has_data_at(uncompressed_offset)))
    }

    /// Whether a claim comes from a map, and so from a process that had verified the chunk.
    #[must_use]
    pub fn is_mapped(&self, chunk: u32) -> bool {
        self.map.as_ref().is_some_and(|map| map.is_live(chunk))
    }

    /// Number of chunks that the map claims; all of them for a file that came complete. Reads the map.
    #[must_use]
    pub fn mapped_count(&self) -> u64 {
        if self.complete {
            return self.chunk_count.into();
        }
        let bits = self.map.as_ref().and_then(|map| map.live_bits().ok()).unwrap_or_default();
        let count: u64 = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
        count.min(self.chunk_count.into())
    }

    fn has_data_at(&self, offset: u64) -> bool {
        // A file system that knows no holes reports data everywhere: verification decides then.
        rustix::fs::seek(&self.data, SeekFrom::Data(offset)).is_ok_and(|at| at == offset)
    }

    /// Reads plain bytes of a claimed or ready chunk.
    ///
    /// # Errors
    /// The file is shorter than it should be, or cannot be read.
    pub fn read(&self, uncompressed_offset: u64, plain: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(plain, uncompressed_offset)
    }

    /// The data file turned out to be shorter than it was: somebody else cut it. All that was verified may be gone,
    /// and must not look like zeros once the file grows again.
    fn reject_all(&self) {
        // What is being written now may be cut off, too.
        let _nothing_is_written = self.nothing_is_written();
        for view in self.views().iter().filter_map(Weak::upgrade) {
            view.clear_all();
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.writable
            && self.data.metadata().is_ok_and(|meta| meta.len() < self.len)
            && let Err(error) = self.data.set_len(self.len)
        {
            tracing::warn!(%error, file = %self.path, "cut cache file keeps its length");
        }
    }

    /// Bytes written since the last [`make_durable`](Self::make_durable).
    #[must_use]
    pub fn unsynced_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Makes what has been kept so far survive a crash of the host.
    ///
    /// # Errors
    /// A file cannot be synced or written.
    pub fn make_durable(&self) -> Result<(), CacheError> {
        if self.name.is_none() || !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.written.store(0, Ordering::Relaxed);
        let result = self.map.as_ref().map_or(Ok(()), |map| map.make_durable(&self.data));
        if result.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        result
    }
}

fn file_error(path: &str, action: &'static str) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError::File { path, action, source }
}
