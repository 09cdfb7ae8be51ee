//! The cached chunks of one blob: data file and map, shared by all who read the blob, and what of it each of them has
//! verified.

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
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

/// How long nothing is written after a failure such as a full disk.
const WRITE_PAUSE: Duration = Duration::from_secs(30);
/// The reference's map file: header, then one bit a chunk (blob.md section 13).
const REFERENCE_HEADER: usize = 4096;
const REFERENCE_MAGICS: [(usize, u32); 3] = [(0, 0x424d_4150), (4, 1), (8, 0x434d_4150)];
const REFERENCE_ALL_READY: u32 = 0x4d4d_4150;

/// A verified chunk to be kept.
#[derive(Clone, Copy, Debug)]
pub struct CachedChunk<'a> {
    /// Its index in the blob.
    pub chunk: u32,
    /// Where it belongs in the uncompressed address space.
    pub uncompressed_offset: u64,
    /// Its plain bytes.
    pub plain: &'a [u8],
}

/// Tells where a chunk lies in the uncompressed address space, and how many bytes belong to it alone; `None` when that is
/// not known.
pub type Extents = Box<dyn Fn(u32) -> Option<(u64, u64)> + Send + Sync>;

/// What one image knows of the chunks in a cache file.
#[derive(Debug)]
struct Bits {
    /// Verified.
    ready: AtomicBitmap,
    /// Verified, and read not long ago.
    hot: AtomicBitmap,
}

impl Bits {
    /// In this order: [`touch`](Self::touch) looks again after it has set the other bit.
    fn clear(&self, chunk: u32) {
        self.ready.clear(chunk);
        self.hot.clear(chunk);
    }

    fn clear_all(&self) {
        self.ready.clear_all();
        self.hot.clear_all();
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

/// Cache files of one blob. Chunks are read through a [`CacheView`], one for each image: what one image's digests have
/// verified says nothing to another image.
pub struct BlobCache {
    /// Whose limit it keeps to.
    dir: Option<Arc<CacheDir>>,
    /// A share of the data file is held: bytes may be taken away when nobody else holds one.
    leased: bool,
    extents: OnceLock<Extents>,
    /// Where the search for cold chunks goes on.
    hand: AtomicU32,
    evicted: AtomicU64,
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
}

impl fmt::Debug for BlobCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobCache").field("path", &self.path).finish_non_exhaustive()
    }
}

impl BlobCache {
    /// Opens or makes the cache files of a blob that has `chunk_count` chunks in `len` bytes of uncompressed
    /// address space.
    ///
    /// # Errors
    /// No data file can be had: the caller serves without one.
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
        let file_error = |action| {
            let path = path.clone();
            move |source| CacheError::File { path, action, source }
        };
        let leased = match lease::share(&data) {
            Ok(true) => true,
            Ok(false) => return Err(CacheError::InUse { path }),
            Err(error) => {
                tracing::debug!(%error, file = path, "no locks here: chunks are not taken away");
                false
            }
        };
        let found_len = data.metadata().map_err(file_error("examine it"))?.len();
        if found_len < len && writable {
            data.set_len(len).map_err(file_error("set its length"))?;
        }
        let map = match ChunkMap::open(dir, blob_id, chunk_count) {
            Ok(found) => Some(found),
            Err(error) => {
                // Without a map nothing survives this process, but the data file still serves it.
                tracing::warn!(%error, "chunk map not used: cached chunks will not survive a restart");
                None
            }
        };
        let fresh = map.as_ref().is_none_or(|(_, origin)| *origin == MapOrigin::New);
        let mut unmapped_data = fresh && found_len > 0;
        if let Some((map, MapOrigin::New)) = &map
            && let Some(bits) = reference_bits(dir, blob_id, chunk_count)
        {
            map.seed(&bits)?;
            unmapped_data = false;
        }
        let cache = Arc::new(Self {
            dir: Some(Arc::clone(dir)),
            leased: leased && writable,
            extents: OnceLock::new(),
            hand: AtomicU32::new(0),
            evicted: AtomicU64::new(0),
            data,
            name: Some(name),
            path,
            len,
            chunk_count,
            map: map.map(|(map, _)| map),
            views: Mutex::default(),
            epoch: AtomicU64::new(0),
            taking_away: RwLock::new(()),
            bad: AtomicBitmap::new(chunk_count),
            writable,
            unmapped_data,
            complete: false,
            dirty: AtomicBool::new(false),
            written: AtomicU64::new(0),
            paused_until: Mutex::new(None),
        });
        dir.register(&cache);
        Ok(cache)
    }

    /// A complete data file that somebody else made; each chunk still has to be verified. Nothing is written to it.
    #[must_use]
    pub fn of_complete_file(data: File, path: String, len: u64, chunk_count: u32) -> Self {
        Self {
            dir: None,
            leased: false,
            extents: OnceLock::new(),
            hand: AtomicU32::new(0),
            evicted: AtomicU64::new(0),
            data,
            name: None,
            path,
            len,
            chunk_count,
            map: None,
            views: Mutex::default(),
            epoch: AtomicU64::new(0),
            taking_away: RwLock::new(()),
            bad: AtomicBitmap::new(chunk_count),
            writable: false,
            unmapped_data: true,
            complete: true,
            dirty: AtomicBool::new(false),
            written: AtomicU64::new(0),
            paused_until: Mutex::new(None),
        }
    }

    /// A view for one image, in which no chunk is ready yet.
    #[must_use]
    pub fn view(self: &Arc<Self>) -> CacheView {
        let bits =
            Bits { ready: AtomicBitmap::new(self.chunk_count), hot: AtomicBitmap::new(self.chunk_count) };
        let bits = Arc::new(bits);
        let mut views = self.views();
        views.retain(|view| view.strong_count() > 0);
        views.push(Arc::downgrade(&bits));
        CacheView { cache: Arc::clone(self), bits }
    }

    fn views(&self) -> MutexGuard<'_, Vec<Weak<Bits>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Makes a chunk unready for all; says whether it was ready for any.
    fn unready(&self, chunk: u32) -> bool {
        let mut any = false;
        for view in self.views().iter().filter_map(Weak::upgrade) {
            any |= view.ready.get(chunk);
            view.clear(chunk);
        }
        any
    }

    /// Tells it where chunks lie, so that cold ones can be taken away. The first who knows is believed.
    pub fn set_extents(&self, extents: Extents) {
        if self.extents.set(extents).is_ok()
            && let Some(dir) = &self.dir
        {
            // What was here before may be more than is allowed now.
            dir.keep_to_limit();
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

    /// Takes chunks away until `wanted` bytes are free, if nobody else has the file open. Those that were read since the
    /// last time lose their mark; with `marked` they go too.
    pub(super) fn evict(&self, wanted: u64, marked: bool) {
        if !self.leased || !lease::alone(&self.data).unwrap_or(false) {
            return;
        }
        {
            let _nothing_is_written = self.taking_away.write().unwrap_or_else(PoisonError::into_inner);
            match self.evict_alone(wanted, marked) {
                Ok(freed) => drop(self.evicted.fetch_add(freed, Ordering::Relaxed)),
                Err(error) => tracing::warn!(%error, "cold chunks stay"),
            }
        }
        lease::share_again(&self.data);
    }

    fn evict_alone(&self, wanted: u64, marked: bool) -> Result<u64, CacheError> {
        let (Some(extents), Some(map)) = (self.extents.get(), &self.map) else { return Ok(0) };
        let live = map.live_bits()?;
        let views: Vec<_> = self.views().iter().filter_map(Weak::upgrade).collect();
        let is_live = |chunk: u32| {
            live.get((chunk / 8) as usize).is_some_and(|byte| byte >> (chunk % 8) & 1 == 1)
                || views.iter().any(|view| view.ready.get(chunk))
        };
        let (mut victims, mut freed) = (Vec::new(), 0u64);
        let first = self.hand.load(Ordering::Relaxed).min(self.chunk_count);
        for chunk in (first..self.chunk_count).chain(0..first) {
            if freed >= wanted {
                break;
            }
            self.hand.store(chunk.saturating_add(1), Ordering::Relaxed);
            let live = is_live(chunk);
            if !live && !marked {
                continue;
            }
            let mut hot = false;
            for view in &views {
                hot |= view.hot.get(chunk);
                view.hot.clear(chunk);
            }
            if hot && !marked {
                continue;
            }
            if let Some((offset, len)) = extents(chunk)
                // Written, but a crash or a race came before the map: nobody else would ever find it.
                && (live || self.has_data_at(offset))
            {
                victims.push((chunk, offset, len));
                freed = freed.saturating_add(len);
            }
        }
        if victims.is_empty() {
            return Ok(0);
        }
        let numbers: Vec<u32> = victims.iter().map(|(chunk, ..)| *chunk).collect();
        map.clear_for_good(&numbers)?;
        for chunk in numbers {
            self.unready(chunk);
        }
        // From here on nobody begins to read them, and who has begun notices that this has changed.
        self.epoch.fetch_add(1, Ordering::SeqCst);
        use rustix::fs::FallocateFlags as Flags;
        for (_, offset, len) in victims {
            let punch =
                || rustix::fs::fallocate(&self.data, Flags::PUNCH_HOLE | Flags::KEEP_SIZE, offset, len);
            rustix::io::retry_on_intr(punch).map_err(|errno| CacheError::File {
                path: self.path.clone(),
                action: "free a part of it",
                source: errno.into(),
            })?;
        }
        Ok(freed)
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

    /// Whether the file may hold a chunk that has not been verified yet.
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

    /// A claimed or ready chunk is damaged: forget it.
    fn reject(&self, chunk: u32) {
        self.unready(chunk);
        self.bad.set(chunk);
        if let Some(map) = &self.map
            && let Err(error) = map.clear(chunk)
        {
            tracing::debug!(%error, "damaged chunk stays in the map; it will be verified again");
        }
    }

    /// The data file turned out to be shorter than it was: somebody else cut it. All that was verified may be gone,
    /// and must not look like zeros once the file grows again.
    fn reject_all(&self) {
        // What is being written now may be cut off, too.
        let _nothing_is_written = self.taking_away.write().unwrap_or_else(PoisonError::into_inner);
        for view in self.views().iter().filter_map(Weak::upgrade) {
            view.clear_all();
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.writable
            && let Err(error) = self.data.set_len(self.len)
        {
            tracing::warn!(%error, file = %self.path, "cut cache file keeps its length");
        }
    }

    fn paused(&self) -> MutexGuard<'_, Option<Instant>> {
        self.paused_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`CacheView::keep`], whose bits `bits` are.
    fn keep(&self, chunks: &[CachedChunk<'_>], bits: &Bits) -> Result<bool, CacheError> {
        let mut paused = self.paused();
        if !self.writable || paused.is_some_and(|until| Instant::now() < until) {
            return Ok(false);
        }
        *paused = None;
        drop(paused);
        let bytes =
            chunks.iter().map(|c| u64::try_from(c.plain.len()).unwrap_or(u64::MAX).saturating_add(4096));
        let room = self.dir.as_ref().map(|dir| dir.room(bytes.fold(0, u64::saturating_add)));
        if matches!(room, Some(None)) {
            return Ok(false);
        }
        let _nothing_is_taken_away = self.taking_away.read().unwrap_or_else(PoisonError::into_inner);
        if self.is_shared() {
            // Another image may be reading what is there: it has to look again.
            let mut known = false;
            for chunk in chunks {
                known |= self.unready(chunk.chunk);
            }
            if known {
                self.epoch.fetch_add(1, Ordering::SeqCst);
            }
        }
        for chunk in chunks {
            let end = chunk
                .uncompressed_offset
                .checked_add(u64::try_from(chunk.plain.len()).unwrap_or(u64::MAX))
                .filter(|&end| end <= self.len);
            let result = match end {
                Some(_) => self.data.write_all_at(chunk.plain, chunk.uncompressed_offset),
                None => Err(io::Error::other("a chunk lies behind the end of its blob")),
            };
            if let Err(source) = result {
                *self.paused() = Instant::now().checked_add(WRITE_PAUSE);
                return Err(CacheError::File { path: self.path.clone(), action: "write to it", source });
            }
            self.written.fetch_add(u64::try_from(chunk.plain.len()).unwrap_or(0), Ordering::Relaxed);
        }
        let indexes: Vec<u32> = chunks.iter().map(|c| c.chunk).collect();
        let mapped = self.map.as_ref().map_or(Ok(()), |map| map.set_live(&indexes));
        for chunk in chunks {
            self.bad.clear(chunk.chunk);
            bits.ready.set(chunk.chunk);
        }
        self.dirty.store(true, Ordering::Release);
        // The data is there and good; a map that cannot be written only costs a fetch after a restart.
        mapped.map(|()| true)
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
        if !self.dirty.swap(false, Ordering::AcqRel) {
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
    /// Whether a chunk is in the file and has been verified.
    #[inline]
    #[must_use]
    pub fn is_ready(&self, chunk: u32) -> bool {
        self.bits.ready.get(chunk)
    }

    /// Whether a chunk is ready and has been [read](Self::touch) not long ago.
    #[inline]
    #[must_use]
    pub fn is_hot(&self, chunk: u32) -> bool {
        self.bits.hot.get(chunk)
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

    /// A claimed chunk has been read and is as it should be: `epoch` is from before it was read. False when it may have
    /// changed meanwhile.
    pub fn set_ready(&self, chunk: u32, epoch: u64) -> bool {
        let _nothing_is_taken_away = self.cache.taking_away.read().unwrap_or_else(PoisonError::into_inner);
        let same = self.cache.epoch() == epoch;
        if same {
            self.bits.ready.set(chunk);
        }
        same
    }

    /// A claimed or ready chunk is damaged: forget it.
    pub fn reject(&self, chunk: u32) {
        self.cache.reject(chunk);
    }

    /// The data file turned out to be shorter than it was.
    pub fn reject_all(&self) {
        self.cache.reject_all();
    }

    /// Keeps verified chunks: writes them to the data file, then says so in the map, then makes them ready.
    /// `Ok(false)`: the cache is not taking any now (it is read-only, or its disk is full).
    ///
    /// # Errors
    /// The data file could not be written. The cache then takes nothing for half a minute.
    pub fn keep(&self, chunks: &[CachedChunk<'_>]) -> Result<bool, CacheError> {
        self.cache.keep(chunks, &self.bits)
    }
}

/// The bits of the reference daemon's map, when it has left a valid one.
fn reference_bits(dir: &CacheDir, blob_id: &str, chunk_count: u32) -> Option<Vec<u8>> {
    let (file, _) = dir.open_file(&format!("{blob_id}.blob.data.chunk_map"), false).ok()?;
    let bits_len = usize::try_from(chunk_count.div_ceil(8)).ok()?;
    let len = REFERENCE_HEADER.checked_add(bits_len)?;
    if file.metadata().ok()?.len() != u64::try_from(len).ok()? {
        return None;
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?));
    if REFERENCE_MAGICS.iter().any(|&(at, magic)| word(at) != Some(magic)) {
        return None;
    }
    if word(12) == Some(REFERENCE_ALL_READY) {
        return Some(vec![0xff; bits_len]);
    }
    Some(bytes.split_off(REFERENCE_HEADER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Arc<CacheDir>) -> CacheView {
        BlobCache::open(dir, "blob", 3 * 4096, 3).unwrap().view()
    }

    fn chunk(chunk: u32, plain: &[u8]) -> CachedChunk<'_> {
        CachedChunk { chunk, uncompressed_offset: u64::from(chunk) * 4096, plain }
    }

    #[test]
    fn kept_chunks_are_ready_now_and_claimed_later() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
        let cache = open(&dir);
        assert!(!cache.is_claimed(1, 4096));
        assert!(cache.keep(&[chunk(1, b"hello")]).unwrap());
        assert!(cache.is_ready(1) && !cache.is_ready(0));
        assert_eq!(cache.unsynced_bytes(), 5);
        cache.make_durable().unwrap();
        assert_eq!(cache.unsynced_bytes(), 0);
        assert_eq!(std::fs::metadata(tmp.path().join("blob.blob.data")).unwrap().len(), 3 * 4096);
        let again = open(&dir);
        assert!(!again.is_ready(1), "to be verified first");
        assert!(again.is_claimed(1, 4096) && !again.is_claimed(0, 0));
        let mut plain = [0; 5];
        again.read(4096, &mut plain).unwrap();
        assert_eq!(&plain, b"hello");
        again.reject(1);
        assert!(!open(&dir).is_claimed(1, 4096));
    }

    #[test]
    fn data_without_a_map_may_hold_anything_that_is_no_hole() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
        let file = File::create(tmp.path().join("blob.blob.data")).unwrap();
        file.set_len(3 * 4096).unwrap();
        file.write_all_at(&[1; 4096], 4096).unwrap();
        let cache = open(&dir);
        assert!(cache.is_claimed(1, 4096));
        assert!(!cache.is_mapped(1));
        assert!(!cache.is_claimed(3, 3 * 4096));
    }

    #[test]
    fn the_reference_map_seeds_ours() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
        let mut bytes = vec![0; REFERENCE_HEADER + 1];
        for (at, magic) in REFERENCE_MAGICS {
            bytes[at..at + 4].copy_from_slice(&magic.to_le_bytes());
        }
        bytes[REFERENCE_HEADER] = 0b101;
        let path = tmp.path().join("blob.blob.data.chunk_map");
        std::fs::write(&path, &bytes).unwrap();
        let cache = open(&dir);
        assert_eq!([0, 1, 2].map(|i| cache.is_claimed(i, u64::from(i) * 4096)), [true, false, true]);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "never written");
        std::fs::remove_file(tmp.path().join("blob.chunk_map")).unwrap();
        bytes.push(0);
        std::fs::write(&path, &bytes).unwrap();
        assert!(!open(&dir).is_claimed(0, 0), "wrong size");
    }

    #[test]
    fn what_one_image_writes_another_verifies() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
        let one = open(&dir);
        let other = one.cache.view();
        assert!(one.keep(&[chunk(1, b"one")]).unwrap());
        assert!(one.is_ready(1) && !other.is_ready(1) && other.is_claimed(1, 4096));
        let epoch = other.epoch();
        assert!(other.set_ready(1, epoch));
        assert!(one.keep(&[chunk(1, b"two")]).unwrap());
        assert!(one.is_ready(1) && !other.is_ready(1) && other.epoch() != epoch);
        assert!(!other.set_ready(1, epoch), "read before it was written");
        drop(one);
        let epoch = other.epoch();
        assert!(other.keep(&[chunk(1, b"six")]).unwrap() && other.is_ready(1));
        assert_eq!(other.epoch(), epoch, "nobody else is there");
    }

    #[test]
    fn a_limit_is_held_by_taking_cold_chunks_away() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
        const SIZE: u32 = 64 << 10;
        const LIMIT: u64 = 1 << 20;
        dir.limit_to(LIMIT);
        let count = 100;
        let cache = BlobCache::open(&dir, "blob", u64::from(SIZE * count), count).unwrap().view();
        cache.set_extents(Box::new(|chunk| Some((u64::from(chunk * SIZE), SIZE.into()))));
        let plain = vec![7; SIZE as usize];
        let keep = |cache: &CacheView, n: u32| {
            let offset = u64::from(n * SIZE);
            cache.keep(&[CachedChunk { chunk: n, uncompressed_offset: offset, plain: &plain }]).unwrap()
        };
        let before = cache.epoch();
        for n in 0..count {
            assert!(keep(&cache, n), "{n}");
            cache.touch(n);
            assert!(cache.is_hot(n));
            assert!(cache.bytes() <= LIMIT, "{} after {n}", cache.bytes());
            // Read again and again, and so always here.
            if n > 1 {
                assert!(cache.is_ready(n - 1));
            }
        }
        assert_ne!(cache.epoch(), before);
        let here: Vec<u32> = (0..count).filter(|&n| cache.is_ready(n)).collect();
        assert!(here.len() > 8 && !cache.is_ready(0) && !cache.is_claimed(0, 0), "{here:?}");
        assert!(cache.evicted_bytes() > u64::from(SIZE) * 80);
        for &n in &here {
            let mut back = vec![0; SIZE as usize];
            cache.read(u64::from(n * SIZE), &mut back).unwrap();
            assert_eq!(back, plain);
        }
        // Somebody else has the file: nothing may be taken away, so nothing is written beyond the limit.
        let other = Arc::new(CacheDir::open(tmp.path()).unwrap());
        let theirs = BlobCache::open(&other, "blob", u64::from(SIZE * count), count).unwrap().view();
        let refused = (0..20).filter(|&n| !keep(&cache, n)).count();
        assert!(refused > 0 && here.iter().all(|&n| cache.is_ready(n)));
        assert!(dir.list()[0].in_use && matches!(dir.drop_blob("blob"), Err(CacheError::InUse { .. })));
        drop(theirs);
        assert!(keep(&cache, 0) && cache.bytes() <= LIMIT);
        drop(cache);
        assert!(!dir.list()[0].in_use);
        // Files that nobody uses make room for those that somebody does.
        let next = BlobCache::open(&dir, "next", u64::from(SIZE * count), count).unwrap().view();
        for n in 0..8 {
            assert!(keep(&next, n), "{n}");
        }
        assert_eq!(dir.list().len(), 1);
        drop(next);
        dir.drop_blob("next").unwrap();
        assert!(dir.list().is_empty() && dir.drop_blob("next").is_err());
    }

    #[test]
    fn chunks_behind_the_end_and_bad_names_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Arc::new(CacheDir::open(tmp.path()).unwrap());
        let cache = open(&dir);
        cache.keep(&[CachedChunk { chunk: 2, uncompressed_offset: 3 * 4096 - 1, plain: b"ab" }]).unwrap_err();
        assert!(!cache.is_ready(2));
        assert!(!cache.keep(&[chunk(1, b"x")]).unwrap(), "pauses after a failure");
        for bad in ["", "../x", "a/b", "."] {
            assert!(matches!(BlobCache::open(&dir, bad, 1, 1), Err(CacheError::BadName(_))));
        }
    }
}
