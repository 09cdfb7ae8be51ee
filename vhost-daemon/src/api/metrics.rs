//! `GET /metrics...` in the contract's JSON.

use crate::daemon::Mounted;
use crate::mounts::{CLASSES, OPS, OpTotals};
use rafs::reader::{EngineMetrics, STORE_LATENCY_BUCKETS_MS, SizeMetrics};
use serde_json::{Value, json};
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

/// Counters of the store behind a mount; mounts of the same store share them.
pub(super) fn backend(mounted: &Mounted, engine: &EngineMetrics) -> Value {
    let store = engine.stores.iter().find(|store| store.store == mounted.store).cloned().unwrap_or_default();
    let errors = [store.transient, store.missing, store.denied, store.corrupt].iter().sum::<u64>();
    json!({
        "backend_type": mounted.config.as_ref().map_or("", |config| config.backend.kind()),
        "read_count": store.requests.saturating_sub(store.in_flight),
        "read_errors": errors,
        "read_amount_total": store.bytes,
        "read_cumulative_latency_millis_total": store.latency_us / 1000,
        "read_cumulative_latency_millis_dist": store.sizes.map(|size| size.latency_us / 1000),
        "read_count_block_size_dist": store.sizes.map(|size| size.latency.iter().sum::<u64>()),
        "read_latency_sizes_dist": store.sizes.map(|size| latencies(&size)),
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

/// The cache behind a mount, and what the mount had of it.
pub(super) fn blobcache(mounted: &Mounted) -> Value {
    let dir = mounted.config.as_ref().and_then(|config| config.cache.dir.as_deref());
    let reader = mounted.backend.as_rafs().map(crate::mounts::RafsMount::reader);
    let files: Vec<String> = match (dir, reader) {
        (Some(_), Some(reader)) => {
            reader.image().blobs().iter().map(|blob| format!("{}.blob.data", blob.id)).collect()
        }
        _ => Vec::new(),
    };
    let did = reader.map(|reader| reader.metrics()).unwrap_or_default();
    let prefetch = mounted.config.as_ref().map(|config| &config.rafs.prefetch);
    let reads = mounted.backend.counters().totals().hits[4];
    let since_epoch = |time: Option<SystemTime>| {
        time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default()
    };
    let (begin, end) = (since_epoch(did.prefetch_began), since_epoch(did.prefetch_ended));
    json!({
        "underlying_files": files,
        "store_path": dir.map(|dir| dir.display().to_string()).unwrap_or_default(),
        "partial_hits": did.partial_reads,
        "whole_hits": reads.saturating_sub(did.fetched_reads),
        "total": reads,
        "entries_count": did.cached_chunks,
        "prefetch_data_amount": did.prefetched_bytes,
        "prefetch_requests_count": did.prefetches,
        "prefetch_workers": prefetch.filter(|p| p.enable).map_or(0, |p| p.threads),
        "prefetch_unmerged_chunks": 0,
        "prefetch_cumulative_time_millis": end.saturating_sub(begin).as_millis(),
        "prefetch_begin_time_secs": begin.as_secs(),
        "prefetch_begin_time_millis": begin.subsec_millis(),
        "prefetch_end_time_secs": end.as_secs(),
        "prefetch_end_time_millis": end.subsec_millis(),
        "buffered_backend_size": 0,
        "data_all_ready": did.complete,
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
