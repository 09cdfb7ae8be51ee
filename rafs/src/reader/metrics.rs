//! Numbers of an engine. Counting costs a read that hits nothing that other threads could feel.

use crate::lanes::{LANES, Lane};
use crate::store::ErrorClass;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Upper ends of the latency buckets, milliseconds; the last bucket has no end.
pub const STORE_LATENCY_BUCKETS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];

/// Upper ends, exclusive, of the classes that deliveries are counted in by size, bytes; the last class has no end.
pub const STORE_SIZE_CLASSES: [u64; 7] =
    [1 << 10, 4 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 1 << 20];

/// What an [`Engine`](super::Engine) did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineMetrics {
    /// Reads that were ready when they were planned.
    pub hits: u64,
    /// Bytes of these.
    pub hit_bytes: u64,
    /// Reads that were handed to the fetch threads.
    pub fetched_reads: u64,
    /// Bytes of these.
    pub fetched_read_bytes: u64,
    /// Reads of the fetch threads that have not ended.
    pub waiting: u64,
    /// Reads that ended with an error: no answer in time.
    pub failed_deadline: u64,
    /// Reads that ended with an error of the store, of the image, or of its data.
    pub failed_other: u64,
    /// Units that a reader had to wait for.
    pub misses: u64,
    /// Stored bytes of units that somebody read.
    pub wanted_bytes: u64,
    /// Plain bytes that were fetched beside what was asked for.
    pub guessed_bytes: u64,
    /// Stored bytes that prefetch asked for.
    pub prefetched_bytes: u64,
    /// Units whose data did not match its digest.
    pub damaged_units: u64,
    /// Bytes that were taken away from cache files in use to stay below their limit.
    pub evicted_bytes: u64,
    /// Units that were served but not cached in a file.
    pub uncached_units: u64,
    /// One for each store in use.
    pub stores: Vec<StoreMetrics>,
}

impl EngineMetrics {
    /// Stored bytes asked of stores on demand, for each byte of what somebody read; 1.0 when nothing was fetched.
    #[must_use]
    pub fn amplification(&self) -> f64 {
        let asked: u64 = self.stores.iter().map(|s| s.bytes).sum();
        let demanded = asked.saturating_sub(self.prefetched_bytes);
        if self.wanted_bytes == 0 { 1.0 } else { demanded as f64 / self.wanted_bytes as f64 }
    }
}

/// What was asked of one store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreMetrics {
    /// [`Store::identity`](crate::store::Store::identity), or a text of its own.
    pub store: String,
    /// Ranges asked for.
    pub requests: u64,
    /// Of them, those that nobody waited for.
    pub prefetch_requests: u64,
    /// Requests without an answer yet.
    pub in_flight: u64,
    /// Stored bytes delivered.
    pub bytes: u64,
    /// Failed: not there.
    pub missing: u64,
    /// Failed: something between us and the store.
    pub transient: u64,
    /// Failed: not as it should be.
    pub corrupt: u64,
    /// Failed: not allowed.
    pub denied: u64,
    /// Deliveries by latency, see [`STORE_LATENCY_BUCKETS_MS`].
    pub latency: [u64; STORE_LATENCY_BUCKETS_MS.len() + 1],
    /// Sum of all latencies, microseconds.
    pub latency_us: u64,
    /// The same by size of what was delivered, see [`STORE_SIZE_CLASSES`].
    pub sizes: [SizeMetrics; STORE_SIZE_CLASSES.len() + 1],
}

impl StoreMetrics {
    /// Adds what was asked of another store; the name stays.
    pub fn add(&mut self, more: &Self) {
        let pairs = [
            (&mut self.requests, more.requests),
            (&mut self.prefetch_requests, more.prefetch_requests),
            (&mut self.in_flight, more.in_flight),
            (&mut self.bytes, more.bytes),
            (&mut self.missing, more.missing),
            (&mut self.transient, more.transient),
            (&mut self.corrupt, more.corrupt),
            (&mut self.denied, more.denied),
            (&mut self.latency_us, more.latency_us),
        ];
        let latencies = self.latency.iter_mut().zip(more.latency);
        let sizes = self.sizes.iter_mut().zip(&more.sizes).flat_map(|(sum, more)| {
            let of_class = sum.latency.iter_mut().zip(more.latency);
            of_class.chain([(&mut sum.latency_us, more.latency_us)])
        });
        for (sum, more) in pairs.into_iter().chain(latencies).chain(sizes) {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Deliveries of one class of sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeMetrics {
    /// By latency, see [`STORE_LATENCY_BUCKETS_MS`].
    pub latency: [u64; STORE_LATENCY_BUCKETS_MS.len() + 1],
    /// Sum of latencies, microseconds.
    pub latency_us: u64,
}

/// What one [`Reader`](super::Reader) did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReaderMetrics {
    /// Reads that were handed to the fetch threads: not everything they need was ready.
    pub fetched_reads: u64,
    /// Those of them for which some chunks were ready, and others not.
    pub partial_reads: u64,
    /// Stored bytes that its prefetch asked for.
    pub prefetched_bytes: u64,
    /// Times that its prefetch asked.
    pub prefetches: u64,
    /// When its last prefetch began.
    pub prefetch_began: Option<SystemTime>,
    /// When all that it asked for had been answered.
    pub prefetch_ended: Option<SystemTime>,
}

/// What is here of one blob of a [`Reader`](super::Reader)'s image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptBlob<'a> {
    /// The blob.
    pub id: &'a str,
    /// Chunks that are in its cache file.
    pub chunks: u64,
    /// Nothing of it is missing there, or it is a file of this machine.
    pub complete: bool,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Counters that a few threads use each, a cache line apart.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Hits {
    hits: AtomicU64,
    hit_bytes: AtomicU64,
}

/// Counters of an engine.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    hits: [Hits; LANES],
    fetched_reads: AtomicU64,
    fetched_read_bytes: AtomicU64,
    ended_reads: AtomicU64,
    failed_deadline: AtomicU64,
    failed_other: AtomicU64,
    pub misses: AtomicU64,
    pub wanted_bytes: AtomicU64,
    pub guessed_bytes: AtomicU64,
    pub prefetched_bytes: AtomicU64,
    pub damaged_units: AtomicU64,
    pub uncached_units: AtomicU64,
    stores: Mutex<Vec<Arc<StoreCounters>>>,
}

impl Metrics {
    /// A read was ready.
    #[inline]
    pub fn hit(&self, bytes: u32) {
        let lane = Lane::mine();
        if let Some(mine) = self.hits.get(lane.index()) {
            lane.add(&mine.hits, 1);
            lane.add(&mine.hit_bytes, bytes.into());
        }
    }

    /// A read is handed over.
    pub fn read(&self, bytes: u64) {
        add(&self.fetched_reads, 1);
        add(&self.fetched_read_bytes, bytes);
    }

    /// It is over.
    pub fn read_over(&self, error: Option<&super::ReadError>) {
        add(&self.ended_reads, 1);
        match error {
            None => {}
            Some(super::ReadError::Deadline(_)) => add(&self.failed_deadline, 1),
            Some(_) => add(&self.failed_other, 1),
        }
    }

    pub fn count(&self, counter: impl Fn(&Self) -> &AtomicU64, n: impl Into<u64>) {
        add(counter(self), n.into());
    }

    /// The counters of a store.
    pub fn store(&self, name: &str) -> Arc<StoreCounters> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of stores that are gone go too.
        stores.retain(|s| Arc::strong_count(s) > 1 || s.name == name);
        if let Some(store) = stores.iter().find(|s| s.name == name) {
            return Arc::clone(store);
        }
        let store = Arc::new(StoreCounters { name: name.to_owned(), ..StoreCounters::default() });
        stores.push(Arc::clone(&store));
        store
    }

    pub fn snapshot(&self) -> EngineMetrics {
        let stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let fetched_reads = get(&self.fetched_reads);
        EngineMetrics {
            hits: self.hits.iter().map(|l| get(&l.hits)).sum(),
            hit_bytes: self.hits.iter().map(|l| get(&l.hit_bytes)).sum(),
            fetched_reads,
            fetched_read_bytes: get(&self.fetched_read_bytes),
            waiting: fetched_reads.saturating_sub(get(&self.ended_reads)),
            failed_deadline: get(&self.failed_deadline),
            failed_other: get(&self.failed_other),
            misses: get(&self.misses),
            wanted_bytes: get(&self.wanted_bytes),
            guessed_bytes: get(&self.guessed_bytes),
            prefetched_bytes: get(&self.prefetched_bytes),
            damaged_units: get(&self.damaged_units),
            evicted_bytes: 0,
            uncached_units: get(&self.uncached_units),
            stores: stores.iter().map(|s| s.snapshot()).collect(),
        }
    }
}

/// Counters of one store.
#[derive(Debug, Default)]
pub(super) struct StoreCounters {
    name: String,
    requests: AtomicU64,
    prefetch_requests: AtomicU64,
    answered: AtomicU64,
    bytes: AtomicU64,
    missing: AtomicU64,
    transient: AtomicU64,
    corrupt: AtomicU64,
    denied: AtomicU64,
    sizes: [SizeCounters; STORE_SIZE_CLASSES.len() + 1],
}

/// Deliveries of one class of sizes.
#[derive(Debug, Default)]
struct SizeCounters {
    latency: [AtomicU64; STORE_LATENCY_BUCKETS_MS.len() + 1],
    latency_us: AtomicU64,
}

impl SizeCounters {
    fn delivered(&self, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = STORE_LATENCY_BUCKETS_MS.iter().position(|&end| ms <= end);
        if let Some(bucket) = self.latency.get(bucket.unwrap_or(STORE_LATENCY_BUCKETS_MS.len())) {
            add(bucket, 1);
        }
        add(&self.latency_us, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    fn snapshot(&self) -> SizeMetrics {
        SizeMetrics { latency: self.latency.each_ref().map(get), latency_us: get(&self.latency_us) }
    }
}

/// Counters of one reader.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub fetched_reads: AtomicU64,
    pub partial_reads: AtomicU64,
    pub prefetched_bytes: AtomicU64,
    pub prefetches: AtomicU64,
    prefetch: Mutex<(Option<SystemTime>, Option<SystemTime>)>,
}

impl Usage {
    pub fn prefetch_begins(&self) {
        *self.prefetch.lock().unwrap_or_else(PoisonError::into_inner) = (Some(SystemTime::now()), None);
    }

    pub fn prefetch_is_over(&self) {
        self.prefetch.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(SystemTime::now());
    }

    /// What was counted here; nothing of caches.
    pub fn snapshot(&self) -> ReaderMetrics {
        let (prefetch_began, prefetch_ended) = *self.prefetch.lock().unwrap_or_else(PoisonError::into_inner);
        ReaderMetrics {
            fetched_reads: get(&self.fetched_reads),
            partial_reads: get(&self.partial_reads),
            prefetched_bytes: get(&self.prefetched_bytes),
            prefetches: get(&self.prefetches),
            prefetch_began,
            prefetch_ended,
        }
    }
}

impl StoreCounters {
    /// A range is asked for.
    pub fn asked(&self, prefetch: bool) {
        add(&self.requests, 1);
        add(&self.prefetch_requests, u64::from(prefetch));
    }

    /// An answer has come: so many bytes, or why not.
    pub fn answered(&self, result: Result<usize, ErrorClass>, took: Duration) {
        add(&self.answered, 1);
        let counter = match result {
            Ok(bytes) => {
                let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                let class = STORE_SIZE_CLASSES.iter().position(|&end| bytes < end);
                if let Some(class) = self.sizes.get(class.unwrap_or(STORE_SIZE_CLASSES.len())) {
                    class.delivered(took);
                }
                return add(&self.bytes, bytes);
            }
            Err(ErrorClass::Missing) => &self.missing,
            Err(ErrorClass::Transient) => &self.transient,
            Err(ErrorClass::Corrupt) => &self.corrupt,
            Err(ErrorClass::Denied) => &self.denied,
        };
        add(counter, 1);
    }

    fn snapshot(&self) -> StoreMetrics {
        let requests = get(&self.requests);
        let sizes = self.sizes.each_ref().map(SizeCounters::snapshot);
        let mut latency = [0; STORE_LATENCY_BUCKETS_MS.len() + 1];
        for class in &sizes {
            latency.iter_mut().zip(class.latency).for_each(|(sum, count)| *sum += count);
        }
        StoreMetrics {
            store: self.name.clone(),
            requests,
            prefetch_requests: get(&self.prefetch_requests),
            in_flight: requests.saturating_sub(get(&self.answered)),
            bytes: get(&self.bytes),
            missing: get(&self.missing),
            transient: get(&self.transient),
            corrupt: get(&self.corrupt),
            denied: get(&self.denied),
            latency,
            latency_us: sizes.iter().map(|class| class.latency_us).sum(),
            sizes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let metrics = Metrics::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..100).for_each(|_| metrics.hit(10)));
            }
        });
        let store = metrics.store("a");
        assert!(Arc::ptr_eq(&store, &metrics.store("a")));
        store.asked(false);
        store.asked(true);
        store.answered(Ok(1000), Duration::from_millis(7));
        store.answered(Err(ErrorClass::Denied), Duration::ZERO);
        metrics.count(|m| &m.wanted_bytes, 500u32);
        let got = metrics.snapshot();
        assert_eq!((got.hits, got.hit_bytes), (2000, 20_000));
        let store = &got.stores[0];
        assert_eq!((store.requests, store.prefetch_requests, store.in_flight), (2, 1, 0));
        assert_eq!((store.bytes, store.denied, store.latency[3], store.latency_us), (1000, 1, 1, 7000));
        assert_eq!((store.sizes[0].latency[3], store.sizes[0].latency_us), (1, 7000));
        assert_eq!(store.sizes[1..], [SizeMetrics::default(); STORE_SIZE_CLASSES.len()]);
        assert!((got.amplification() - 2.0).abs() < f64::EPSILON);
    }
}
