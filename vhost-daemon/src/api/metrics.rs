//! `GET /metrics...` in the contract's JSON.

use crate::daemon::Mounted;
use crate::mounts::{CLASSES, OPS, OpTotals};
use rafs::reader::{EngineMetrics, STORE_LATENCY_BUCKETS_MS, StoreMetrics};
use serde_json::{Value, json};

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

/// Counters of the store behind a mount; mounts of the same store share them.
pub(super) fn backend(mounted: &Mounted, engine: &EngineMetrics) -> Value {
    let store = engine.stores.iter().find(|store| store.store == mounted.store).cloned().unwrap_or_default();
    let errors = [store.transient, store.missing, store.denied, store.corrupt].iter().sum::<u64>();
    let none = [0u64; CLASSES];
    let mut by_size = [none; CLASSES];
    // Sizes are not counted apart: all of it stands in the row of the largest.
    by_size[CLASSES - 1] = latencies(&store);
    json!({
        "backend_type": mounted.config.as_ref().map_or("", |config| config.backend.kind()),
        "read_count": store.requests.saturating_sub(store.in_flight),
        "read_errors": errors,
        "read_amount_total": store.bytes,
        "read_cumulative_latency_millis_total": store.latency_us / 1000,
        "read_cumulative_latency_millis_dist": none,
        "read_count_block_size_dist": none,
        "read_latency_sizes_dist": by_size,
    })
}

/// Latencies in the contract's classes, each counted at the upper end of its bucket.
fn latencies(store: &StoreMetrics) -> [u64; CLASSES] {
    let mut dist = [0; CLASSES];
    for (at, count) in store.latency.iter().enumerate() {
        let upper = STORE_LATENCY_BUCKETS_MS.get(at).copied().unwrap_or(u64::MAX);
        let class = BACKEND_MS.iter().position(|bound| upper <= *bound).unwrap_or(CLASSES - 1);
        if let Some(class) = dist.get_mut(class) {
            *class += count;
        }
    }
    dist
}

/// The cache behind a mount. Reads and bytes are counted for the whole daemon, whose mounts share their caches.
pub(super) fn blobcache(mounted: &Mounted, engine: &EngineMetrics) -> Value {
    let cache = mounted.config.as_ref().map(|config| &config.cache);
    let dir = cache.and_then(|cache| cache.dir.as_deref());
    let image = mounted.backend.as_rafs().map(|rafs| rafs.reader().image());
    let files: Vec<String> = match (dir, image) {
        (Some(_), Some(image)) => image.blobs().iter().map(|blob| format!("{}.blob.data", blob.id)).collect(),
        _ => Vec::new(),
    };
    let prefetch = mounted.config.as_ref().map(|config| &config.rafs.prefetch);
    json!({
        "underlying_files": files,
        "store_path": dir.map(|dir| dir.display().to_string()).unwrap_or_default(),
        "partial_hits": 0,
        "whole_hits": engine.hits,
        "total": engine.hits.saturating_add(engine.fetched_reads),
        "entries_count": 0,
        "prefetch_data_amount": engine.prefetched_bytes,
        "prefetch_requests_count": engine.stores.iter().map(|store| store.prefetch_requests).sum::<u64>(),
        "prefetch_workers": prefetch.filter(|p| p.enable).map_or(0, |p| p.threads),
        "prefetch_unmerged_chunks": 0,
        "prefetch_cumulative_time_millis": 0,
        "prefetch_begin_time_secs": 0,
        "prefetch_begin_time_millis": 0,
        "prefetch_end_time_secs": 0,
        "prefetch_end_time_millis": 0,
        "buffered_backend_size": 0,
        "data_all_ready": false,
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
                let first = file.first.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                json!({"ino": inode, "nr_read": file.reads, "first_access_time_secs": first.as_secs(),
                    "first_access_time_nanos": first.subsec_nanos()})
            })
            .collect(),
    )
}
