//! The engine: what all readers of a program share. Fetch threads, memory, the timer, flights, open cache files.
//!
//! Does not own: what a job does (`core`, `fetch`, `tables`), or an image.

use super::budget::Budget;
use super::core::{Core, Job, LogLimit};
use super::fetch::{Group, Permit};
use super::flights::Flights;
use super::line::Line;
use super::metrics::{EngineMetrics, Metrics};
use super::queue::Queue;
use super::request::Request;
use super::{ReadError, Reader, ReaderError, ReaderOptions};
use crate::cache::{BlobCache, CacheDir, CacheError, UnitLru};
use crate::codec::{CipherKey, Compressor};
use crate::image::{ChunkInfoLocation, Image, MetaBlob};
use crate::layout::blob::BlobFeatures;
use crate::store::Store;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often written chunks become durable.
const SYNC_PERIOD: Duration = Duration::from_secs(30);
/// How soon a request whose sink was busy at its deadline is looked at again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Requests that are watched before those that ended are looked for.
const WATCHED_MIN: usize = 256;

/// How an [`Engine`] works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads that decode and verify, at least 1. Default: processors, up to 4.
    pub workers: usize,
    /// Bytes of buffers for chunks on their way. A single unit larger than that still passes, alone. Blobs without a
    /// cache file keep decoded units in memory up to as many bytes again. Default 32 MiB.
    pub memory_limit: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { workers: processors.min(4), memory_limit: 32 << 20 }
    }
}

/// Fetch threads and shared state for any number of [`Reader`]s. Make one for a program: readers of the same or of
/// overlapping images then fetch a chunk once, and share cache files and memory. Ends with the last reader.
pub struct Engine {
    pub(super) hub: Arc<Hub>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub fn new(options: EngineOptions) -> Result<Arc<Self>, ReaderError> {
        let engine =
            Arc::new(Self { hub: Arc::new(Hub::new(options.memory_limit)), threads: Mutex::default() });
        for n in 0..options.workers.max(1) {
            let hub = Arc::clone(&engine.hub);
            engine.spawn(format!("rafs-fetch-{n}"), move || work(&hub))?;
        }
        let hub = Arc::clone(&engine.hub);
        engine.spawn("rafs-timer".into(), move || keep_time(&hub))?;
        Ok(engine)
    }

    fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), ReaderError> {
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(ReaderError::Threads)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// A reader of `image`. A blob that is away is no error here (see [`Reader::check_blobs`]); a cache directory that
    /// cannot be used is a warning.
    ///
    /// Readers of the same bootstrap file, store and cache directory share what they know of the image. Stores are the
    /// same when they are one object, or say so ([`Store::identity`]). `workers` and `memory_limit` of the options are
    /// the engine's own.
    #[must_use]
    pub fn open(
        self: &Arc<Self>,
        image: Arc<Image>,
        store: Arc<dyn Store>,
        options: ReaderOptions,
    ) -> Reader {
        let core = self.hub.core(image, store, &options);
        Reader::of(Arc::clone(self), core, options, false)
    }

    /// What it did so far.
    #[must_use]
    pub fn metrics(&self) -> EngineMetrics {
        let mut metrics = self.hub.metrics.snapshot();
        let open: u64 = self.hub.cache_files().iter().map(|cache| cache.evicted_bytes()).sum();
        metrics.evicted_bytes = open;
        metrics
    }

    /// Ends all reads of all readers, stops the threads, and makes what is cached durable. A second call does nothing.
    pub fn shutdown(&self) {
        let hub = &self.hub;
        let jobs = hub.queue.close();
        hub.fail_all(|_| true);
        hub.deadline_set.notify_all();
        let this = std::thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            // The last reader may go away in a completion, on a thread of ours: it cannot wait for itself.
            if thread.thread().id() != this {
                let _ = thread.join();
            }
        }
        drop(hub.budget.clear());
        drop(jobs);
        for core in hub.cores() {
            for state in &core.blobs {
                drop(state.forget_source());
            }
        }
        drop(hub.flights.cancel_all());
        hub.sync();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Work for a fetch thread.
#[allow(clippy::large_enum_variant, reason = "nearly all of it is of the large kind")]
pub(super) enum Work {
    /// Of an image.
    Of(Arc<Core>, Job),
    /// Bring the `durable` bitmaps up to date.
    Sync,
}

/// What fetch threads share.
pub(super) struct Hub {
    pub queue: Queue<Work>,
    pub budget: Budget<Group>,
    pub lru: UnitLru,
    pub log_limit: LogLimit,
    pub flights: Flights,
    deadlines: Mutex<Deadlines>,
    deadline_set: Condvar,
    registry: Mutex<Registry>,
    caches: Mutex<HashMap<CacheName, KnownCache>>,
    /// Cache files that one image has for itself.
    own_caches: Mutex<Vec<Weak<BlobCache>>>,
    sync_queued: AtomicBool,
    last_id: AtomicU64,
    pub metrics: Metrics,
    demand_in_flight: AtomicU64,
    /// What is on its way, and guesses that wait for room there.
    pub line: Arc<Line>,
}

/// Directory (device, inode) and blob id.
type CacheName = ((u64, u64), String);

/// Cache files that are open.
struct KnownCache {
    key: CacheKey,
    /// The image that they were opened for.
    image: String,
    cache: Weak<BlobCache>,
}

/// Requests by deadline.
#[derive(Default)]
struct Deadlines {
    by_time: BTreeMap<(Instant, u64), Weak<Request>>,
    last: u64,
    /// Number of them at which those that are over are looked for.
    sweep_at: usize,
}

/// What readers may share.
#[derive(Default)]
struct Registry {
    cores: Vec<Weak<Core>>,
    dirs: HashMap<PathBuf, Weak<CacheDir>>,
    blobs: HashMap<(String, String), Weak<u64>>,
}

/// What a blob's images must agree on to share its cache file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CacheKey {
    pub len: u64,
    pub chunks: u32,
    pub compressor: Compressor,
    /// v6: where the chunk info is, and so all positions.
    pub chunk_info: Option<(ChunkInfoLocation, Option<MetaBlob>, BlobFeatures, Option<CipherKey>)>,
}

impl Hub {
    fn new(memory_limit: usize) -> Self {
        Self {
            queue: Queue::new(),
            budget: Budget::new(memory_limit),
            lru: UnitLru::new(memory_limit),
            log_limit: LogLimit::new(),
            flights: Flights::default(),
            deadlines: Mutex::default(),
            deadline_set: Condvar::new(),
            registry: Mutex::default(),
            caches: Mutex::default(),
            own_caches: Mutex::default(),
            sync_queued: AtomicBool::new(false),
            last_id: AtomicU64::new(0),
            metrics: Metrics::default(),
            demand_in_flight: AtomicU64::new(0),
            line: Arc::default(),
        }
    }

    /// Requests on their way that somebody waits for.
    pub fn demand_in_flight(&self) -> u64 {
        self.demand_in_flight.load(Ordering::Relaxed)
    }

    pub fn demand_sent(&self, demand: bool) {
        self.demand_in_flight.fetch_add(demand.into(), Ordering::Relaxed);
    }

    pub fn demand_over(&self, demand: bool) {
        self.demand_in_flight.fetch_sub(demand.into(), Ordering::Relaxed);
    }

    /// A number that nothing else has.
    pub fn new_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cores(&self) -> Vec<Arc<Core>> {
        self.registry().cores.iter().filter_map(Weak::upgrade).collect()
    }

    /// The fetch side of an image: one that is there already, or a new one.
    pub fn core(
        self: &Arc<Self>,
        image: Arc<Image>,
        store: Arc<dyn Store>,
        options: &ReaderOptions,
    ) -> Arc<Core> {
        let store_key = store.identity().unwrap_or_else(|| format!("at {:p}", Arc::as_ptr(&store)));
        let cache_dir = options.cache_dir.as_deref().and_then(|path| self.cache_dir(path));
        if let Some(dir) = &cache_dir {
            dir.limit_to(options.cache_limit);
        }
        let dir_key = cache_dir.as_ref().map(|dir| dir.identity());
        let mut registry = self.registry();
        registry.cores.retain(|core| core.strong_count() > 0);
        let same = registry.cores.iter().filter_map(Weak::upgrade).find(|core| {
            core.verify == options.verify
                && core.store_key == store_key
                && core.cache_dir.as_ref().map(|dir| dir.identity()) == dir_key
                && core.image.is_same(&image)
        });
        if let Some(core) = same {
            return core;
        }
        registry.blobs.retain(|_, id| id.strong_count() > 0);
        let shared = image.blobs().iter().map(|info| {
            let key = (store_key.clone(), info.id.clone());
            registry.blobs.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
                let id = Arc::new(self.new_id());
                registry.blobs.insert(key, Arc::downgrade(&id));
                id
            })
        });
        let shared: Vec<Arc<u64>> = shared.collect();
        let core =
            Arc::new(Core::new(Arc::clone(self), image, store, store_key, options.verify, cache_dir, shared));
        registry.cores.push(Arc::downgrade(&core));
        core
    }

    fn cache_dir(&self, path: &Path) -> Option<Arc<CacheDir>> {
        let mut registry = self.registry();
        registry.dirs.retain(|_, dir| dir.strong_count() > 0);
        if let Some(dir) = registry.dirs.get(path).and_then(Weak::upgrade)
            && dir.is_still_at(path)
        {
            return Some(dir);
        }
        let dir = CacheDir::open(path)
            .inspect_err(|error| tracing::warn!(%error, "serving without cache files"))
            .ok()
            .map(Arc::new)?;
        let same = registry.dirs.values().filter_map(Weak::upgrade).find(|d| d.identity() == dir.identity());
        let dir = same.unwrap_or(dir);
        registry.dirs.insert(path.to_owned(), Arc::downgrade(&dir));
        Some(dir)
    }

    /// The cache files of a blob, opened once for all who read it. `image` is who asks.
    pub fn cache_file(
        &self,
        dir: &Arc<CacheDir>,
        blob_id: &str,
        key: CacheKey,
        image: &str,
    ) -> Result<Arc<BlobCache>, CacheError> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|_, known| known.cache.strong_count() > 0);
        let name = (dir.identity(), blob_id.to_owned());
        if let Some(known) = caches.get(&name)
            && let Some(cache) = known.cache.upgrade()
            && cache.is_still_in(dir)
        {
            if known.key == key {
                return Ok(cache);
            }
            return Err(CacheError::Conflict { blob: blob_id.into(), with: known.image.clone() });
        }
        let cache = BlobCache::open(dir, blob_id, key.len, key.chunks)?;
        caches.insert(name, KnownCache { key, image: image.into(), cache: Arc::downgrade(&cache) });
        Ok(cache)
    }

    /// Cache files for one image alone, as long as it is read.
    pub fn own_cache_file(
        &self,
        dir: &Arc<CacheDir>,
        len: u64,
        chunks: u32,
    ) -> Result<Arc<BlobCache>, CacheError> {
        let cache = BlobCache::unnamed(dir, len, chunks)?;
        let mut own = self.own_caches.lock().unwrap_or_else(PoisonError::into_inner);
        own.retain(|cache| cache.strong_count() > 0);
        own.push(Arc::downgrade(&cache));
        Ok(cache)
    }

    /// All cache files that are open.
    pub fn cache_files(&self) -> Vec<Arc<BlobCache>> {
        let caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.own_caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.values().map(|known| &known.cache).chain(own.iter()).filter_map(Weak::upgrade).collect()
    }

    /// The durable step for every blob.
    pub fn sync(&self) {
        self.sync_queued.store(false, Ordering::Release);
        for cache in self.cache_files() {
            if let Err(error) = cache.make_durable() {
                tracing::warn!(%error, "cached chunks may not survive a crash of the host");
            }
        }
    }

    /// Asks for the durable step when much has been written since the last one.
    pub fn sync_if_much_is_dirty(&self, unsynced: u64) {
        const MUCH: u64 = 256 << 20;
        if unsynced >= MUCH && !self.sync_queued.swap(true, Ordering::AcqRel) {
            drop(self.queue.push_idle(Work::Sync));
        }
    }

    /// Starts groups that waited for memory.
    pub fn admitted(self: &Arc<Self>, groups: Vec<(super::budget::Admitted, Group)>) {
        for (admitted, mut group) in groups {
            let core = group.admit(Permit::new(self, admitted));
            core.push(Job::Start(group));
        }
    }

    fn deadlines(&self) -> MutexGuard<'_, Deadlines> {
        self.deadlines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a request ends at its deadline.
    pub fn watch(&self, request: &Arc<Request>) {
        let mut deadlines = self.deadlines();
        if deadlines.by_time.len() >= deadlines.sweep_at.max(WATCHED_MIN) {
            deadlines.by_time.retain(|_, r| r.upgrade().is_some_and(|r| !r.is_over()));
            deadlines.sweep_at = deadlines.by_time.len().saturating_mul(2);
        }
        deadlines.last = deadlines.last.wrapping_add(1);
        let key = (request.deadline, deadlines.last);
        deadlines.by_time.insert(key, Arc::downgrade(request));
        if deadlines.by_time.first_key_value().is_some_and(|(first, _)| *first == key) {
            self.deadline_set.notify_one();
        }
    }

    /// Ends requests that `whose` picks, with [`ReadError::Shutdown`].
    pub fn fail_all(&self, whose: impl Fn(&Request) -> bool) {
        let requests: Vec<_> = self.deadlines().by_time.values().filter_map(Weak::upgrade).collect();
        for request in requests.into_iter().filter(|request| whose(request)) {
            request.fail(ReadError::Shutdown);
        }
    }
}

/// A fetch thread.
fn work(hub: &Arc<Hub>) {
    while let Some(work) = hub.queue.pop() {
        // A panic ends what the job was about (tickets and requests see to that), never the thread.
        let run = AssertUnwindSafe(|| match work {
            Work::Of(core, job) => core.run(job),
            Work::Sync => hub.sync(),
        });
        if catch_unwind(run).is_err() {
            tracing::error!("a fetch job failed with a panic; its reads end with an error");
        }
    }
}

/// The timer thread: deadlines, and the durable step now and then.
fn keep_time(hub: &Arc<Hub>) {
    let mut next_sync = Instant::now().checked_add(SYNC_PERIOD);
    while !hub.queue.is_closed() {
        let now = Instant::now();
        if next_sync.is_some_and(|at| now >= at) {
            next_sync = now.checked_add(SYNC_PERIOD);
            drop(hub.queue.push_idle(Work::Sync));
        }
        let mut wait = next_sync.map_or(SYNC_PERIOD, |at| at.saturating_duration_since(now));
        let mut due = Vec::new();
        let mut deadlines = hub.deadlines();
        while let Some(first) = deadlines.by_time.first_entry() {
            let at = first.key().0;
            match first.get().upgrade() {
                Some(request) if at > now && !request.is_over() => {
                    wait = wait.min(at.saturating_duration_since(now));
                    break;
                }
                request => {
                    due.extend(request.filter(|_| at <= now));
                    first.remove();
                }
            }
        }
        drop(deadlines);
        for request in due {
            if !request.try_fail(ReadError::Deadline(request.owner.patience)) {
                let mut deadlines = hub.deadlines();
                deadlines.last = deadlines.last.wrapping_add(1);
                let key = (now, deadlines.last);
                deadlines.by_time.insert(key, Arc::downgrade(&request));
                wait = BUSY_PAUSE;
            }
        }
        let deadlines = hub.deadlines();
        if !hub.queue.is_closed() {
            drop(hub.deadline_set.wait_timeout(deadlines, wait));
        }
    }
}
