//! Numbers of a store.

use crate::failure::{Failure, Kind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends of the latency buckets, milliseconds; the last bucket has no end.
pub const LATENCY_BUCKETS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];

/// Counts since the start of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Ranges asked for by the reader.
    pub fetches: u64,
    /// Ranges delivered.
    pub fetched: u64,
    /// HTTP tries for them.
    pub tries: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Failed tries: in time, or by a broken connection.
    pub failed_transient: u64,
    /// Failed tries: not there.
    pub failed_missing: u64,
    /// Failed tries: not allowed.
    pub failed_denied: u64,
    /// Failed tries: answers that make no sense.
    pub failed_wrong: u64,
    /// Deliveries by latency, see [`LATENCY_BUCKETS_MS`].
    pub latency: [u64; LATENCY_BUCKETS_MS.len() + 1],
}

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    fetches: AtomicU64,
    fetched: AtomicU64,
    tries: AtomicU64,
    bytes: AtomicU64,
    transient: AtomicU64,
    missing: AtomicU64,
    denied: AtomicU64,
    wrong: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS_MS.len() + 1],
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Metrics {
    pub fn fetch(&self) {
        add(&self.fetches, 1);
    }

    pub fn try_made(&self) {
        add(&self.tries, 1);
    }

    pub fn received(&self, bytes: usize) {
        add(&self.bytes, u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    pub fn try_failed(&self, failure: &Failure) {
        add(
            match failure.kind {
                Kind::Transient => &self.transient,
                Kind::Missing => &self.missing,
                Kind::Denied | Kind::Final => &self.denied,
                Kind::Wrong => &self.wrong,
            },
            1,
        );
    }

    pub fn delivered(&self, took: Duration) {
        add(&self.fetched, 1);
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BUCKETS_MS.iter().position(|&end| ms <= end).unwrap_or(LATENCY_BUCKETS_MS.len());
        if let Some(bucket) = self.latency.get(bucket) {
            add(bucket, 1);
        }
    }

    pub fn counters(&self) -> NetCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetCounters {
            fetches: read(&self.fetches),
            fetched: read(&self.fetched),
            tries: read(&self.tries),
            bytes: read(&self.bytes),
            failed_transient: read(&self.transient),
            failed_missing: read(&self.missing),
            failed_denied: read(&self.denied),
            failed_wrong: read(&self.wrong),
            latency: self.latency.each_ref().map(read),
        }
    }
}
