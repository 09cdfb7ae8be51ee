//! `GET /metrics...` in the contract's JSON.

use crate::daemon::Mounted;
use crate::mounts::{CLASSES, OPS, OpTotals};
use rafs::reader::{EngineMetrics, ReaderMetrics, STORE_LATENCY_BUCKETS_MS, SizeMetrics, StoreMetrics};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Upper bounds of the classes of backend latencies, milliseconds, inclusive; the last class has none.
const BACKEND_MS: [u64; CLASSES - 1] = [1, 20, 50, 100, 500, 1000, 2000];

/// File-system counters of one mount.
pub(super) fn fs(mounted: &Mounted) -> Value {
    let totals: OpTotals = mounted.backend.counters().totals();
    let rafs = mounted.config.as_ref().map(|config| &config.rafs);
    json!({
        "files_account_enabled": rafs.is_some_and(|r| r.iostats_files),
        "access_pattern_enabled": rafs.is_some_and(|r| r.access_pattern),
        "record_latest_read_files_enabled": rafs.is_some_and(|r| r.latest_read_files),
        "measure_latency": true,
        "id": mounted.path.as_str(),
        "nr_opens": totals.hits[2].saturating_sub(totals.hits[3]),
        "data_read": totals.read_bytes,
        "block_count_read": totals.sizes,
        "fop_hits": totals.hits,
        "fop_errors": totals.errors,
        "fop_cumulative_latency_total": totals.micros,
        "read_latency_dist": totals.latencies,
    })
}

/// Counters of the stores behind the mounts of one id; mounts of the same store share them.
pub(super) fn backend(mounts: &[&Mounted], engine: &EngineMetrics) -> Value {
    let used = |store: &&StoreMetrics| mounts.iter().any(|mounted| mounted.store == store.store);
    let mut sum = StoreMetrics::default();
    engine.stores.iter().filter(used).for_each(|store| sum.add(store));
    let kind = mounts.first().and_then(|mounted| mounted.config.as_ref());
    let errors: u64 = [sum.transient, sum.missing, sum.denied, sum.corrupt].iter().sum();
    json!({
        "backend_type": kind.map_or("", |config| config.backend.kind()),
        "read_count": sum.requests.saturating_sub(sum.in_flight),
        "read_errors": errors,
        "read_amount_total": sum.bytes,
        "read_cumulative_latency_millis_total": sum.latency_us / 1000,
        "read_cumulative_latency_millis_dist": sum.sizes.map(|class| class.latency_us / 1000),
        "read_count_block_size_dist": sum.sizes.map(|class| class.latency.iter().sum::<u64>()),
        "read_latency_sizes_dist": sum.sizes.map(|class| latencies(&class)),
    })
}

/// Latencies in the contract's classes, each counted at the upper end of its bucket.
fn latencies(size: &SizeMetrics) -> [u64; CLASSES] {
    let mut dist = [0; CLASSES];
    for (at, count) in size.latency.iter().enumerate() {
        let upper = STORE_LATENCY_BUCKETS_MS.get(at).copied().unwrap_or(u64::MAX);
        let class = BACKEND_MS.iter().position(|bound| upper <= *bound).unwrap_or(CLASSES - 1);
        if let Some(class) = dist.get_mut(class) {
            *class += count;
        }
    }
    dist
}

/// The cache behind the mounts of one id, which they share, and what they had of it. A blob of several mounts is counted
/// once.
pub(super) fn blobcache(mounts: &[&Mounted]) -> Value {
    let of_cache = |mounted: &Mounted| mounted.config.as_ref().and_then(|config| config.cache.dir.clone());
    let dir = mounts.iter().find_map(|mounted| of_cache(mounted));
    let mut blobs: BTreeMap<(Option<PathBuf>, String), (u64, bool)> = BTreeMap::new();
    let (mut total, mut did) = (0_u64, Vec::new());
    for mounted in mounts {
        total = total.saturating_add(mounted.backend.counters().totals().hits[4]);
        let Some(reader) = mounted.backend.as_rafs().map(crate::mounts::RafsMount::reader) else { continue };
        did.push(reader.metrics());
        for kept in reader.kept() {
            // The cache file is the same for all; who has not read of it yet knows nothing of it.
            let blob = blobs.entry((of_cache(mounted), kept.id.to_owned())).or_default();
            *blob = (blob.0.max(kept.chunks), blob.1 || kept.complete);
        }
    }
    let files: BTreeSet<String> =
        blobs.keys().filter(|(dir, _)| dir.is_some()).map(|(_, id)| format!("{id}.blob.data")).collect();
    let sum = |of: fn(&ReaderMetrics) -> u64| {
        did.iter().fold(0_u64, |sum, metrics| sum.saturating_add(of(metrics)))
    };
    let prefetch = mounts.iter().filter_map(|mounted| mounted.config.as_ref()).map(|c| &c.rafs.prefetch);
    let workers = prefetch.filter(|p| p.enable).map(|p| p.threads).max();
    let since_epoch = |time: Option<SystemTime>| {
        time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default()
    };
    let begin = since_epoch(did.iter().filter_map(|did| did.prefetch_began).min());
    let end = since_epoch(did.iter().filter_map(|did| did.prefetch_ended).max());
    json!({
        "underlying_files": files,
        "store_path": dir.map(|dir| dir.display().to_string()).unwrap_or_default(),
        "partial_hits": sum(|did| did.partial_reads),
        "whole_hits": total.saturating_sub(sum(|did| did.fetched_reads)),
        "total": total,
        "entries_count": blobs.values().fold(0_u64, |sum, (chunks, _)| sum.saturating_add(*chunks)),
        "prefetch_data_amount": sum(|did| did.prefetched_bytes),
        "prefetch_requests_count": sum(|did| did.prefetches),
        "prefetch_workers": workers.unwrap_or(0),
        "prefetch_unmerged_chunks": 0,
        "prefetch_cumulative_time_millis": end.saturating_sub(begin).as_millis(),
        "prefetch_begin_time_secs": begin.as_secs(),
        "prefetch_begin_time_millis": begin.subsec_millis(),
        "prefetch_end_time_secs": end.as_secs(),
        "prefetch_end_time_millis": end.subsec_millis(),
        "buffered_backend_size": 0,
        "data_all_ready": blobs.values().all(|(_, complete)| *complete),
    })
}

/// Counters of each file that was read, or the inode numbers read since the last call.
pub(super) fn files(mounted: &Mounted, latest: bool) -> Value {
    let stats = mounted.backend.as_rafs().and_then(crate::mounts::RafsMount::file_stats);
    if latest {
        let ranges = stats.map(|stats| stats.take_latest()).unwrap_or_default();
        return json!(
            ranges.into_iter().map(|(a, b)| if a == b { vec![a] } else { vec![a, b] }).collect::<Vec<_>>()
        );
    }
    let mut out = serde_json::Map::new();
    for (inode, file) in stats.map(|stats| stats.files()).unwrap_or_default() {
        let mut hits = [0u64; OPS];
        let mut errors = [0u64; OPS];
        hits[4] = file.reads;
        errors[4] = file.errors;
        out.insert(
            inode.to_string(),
            json!({
                "total_fops": file.reads,
                "data_read": file.bytes,
                "block_count_read": file.sizes,
                "fop_hits": hits,
                "fop_errors": errors,
            }),
        );
    }
    Value::Object(out)
}

/// When each file was first read, and how often.
pub(super) fn pattern(mounted: &Mounted) -> Value {
    let stats = mounted.backend.as_rafs().and_then(crate::mounts::RafsMount::file_stats);
    let mut list: Vec<_> = stats.map(|stats| stats.files()).unwrap_or_default();
    list.sort_by_key(|(_, file)| file.first);
    Value::Array(
        list.into_iter()
            .map(|(inode, file)| {
                let first = file.first.duration_since(UNIX_EPOCH).unwrap_or_default();
                json!({"ino": inode, "nr_read": file.reads, "first_access_time_secs": first.as_secs(),
                    "first_access_time_nanos": first.subsec_nanos()})
            })
            .collect(),
    )
}
