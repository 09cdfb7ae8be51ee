//! What was asked of stores, and how long that took.
//!
//! Mounts with the same store share it, so a store has a name of its own, and `rafsd_store_info` says which mounts use it.

use super::{Text, seconds};
use rafs::reader::{EngineMetrics, STORE_LATENCY_BUCKETS_MS, StoreMetrics};

/// A store's label: what kind it is, and enough of its identity to tell it from others. Nothing of its configuration.
fn label(store: &StoreMetrics) -> String {
    match store.store.split_once(' ') {
        // Without an identity it is known by where it lies in memory, which is nobody's business.
        None | Some(("at", _)) => "local".to_owned(),
        Some((kind, hash)) => format!("{kind}-{}", hash.get(..12).unwrap_or(hash)),
    }
}

/// Stores by label; those that share one are taken together.
fn by_label(stores: &[StoreMetrics]) -> Vec<(String, StoreMetrics)> {
    let mut all: Vec<(String, StoreMetrics)> = Vec::new();
    for store in stores {
        let name = label(store);
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => sum.add(store),
            None => all.push((name, store.clone())),
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// The families of stores. `used` are mount paths and identities of their stores.
pub(super) fn stores(text: &mut Text, metrics: &EngineMetrics, used: &[(&str, String)]) {
    text.family(
        "rafsd_fetch_amplification_ratio",
        "gauge",
        "Stored bytes fetched on demand for each byte of the units that somebody read.",
    );
    text.sample("rafsd_fetch_amplification_ratio", &[], format!("{:.4}", metrics.amplification()));
    text.family("rafsd_store_info", "gauge", "Which store a mount reads from.");
    for (mount, identity) in used {
        let store = label(&StoreMetrics { store: identity.clone(), ..StoreMetrics::default() });
        text.sample("rafsd_store_info", &[("mount", mount), ("store", &store)], 1);
    }
    let stores = by_label(&metrics.stores);
    type Value = fn(&StoreMetrics) -> u64;
    let families: [(&str, &str, &str, Value); 4] = [
        ("rafsd_store_requests_total", "counter", "Ranges asked of a store.", |s| s.requests),
        (
            "rafsd_store_prefetch_requests_total",
            "counter",
            "Ranges asked of a store that nobody waited for.",
            |s| s.prefetch_requests,
        ),
        ("rafsd_store_requests_in_flight", "gauge", "Ranges that a store has not answered.", |s| s.in_flight),
        ("rafsd_store_delivered_bytes_total", "counter", "Bytes of complete answers of a store.", |s| {
            s.bytes
        }),
    ];
    for (name, kind, help, value) in families {
        text.family(name, kind, help);
        for (store, metrics) in &stores {
            text.sample(name, &[("store", store)], value(metrics));
        }
    }
    text.family("rafsd_store_request_errors_total", "counter", "Ranges that a store did not give, by class.");
    for (store, metrics) in &stores {
        for (class, count) in [
            ("missing", metrics.missing),
            ("transient", metrics.transient),
            ("corrupt", metrics.corrupt),
            ("denied", metrics.denied),
        ] {
            text.sample("rafsd_store_request_errors_total", &[("store", store), ("class", class)], count);
        }
    }
    let name = "rafsd_store_request_duration_seconds";
    text.family(name, "histogram", "How long a range took to come, retries included.");
    for (store, metrics) in &stores {
        let mut sum = 0u64;
        let bounds = STORE_LATENCY_BUCKETS_MS.iter().map(|ms| seconds(ms.saturating_mul(1000)));
        let bounds = bounds.chain(std::iter::once("+Inf".to_owned()));
        for (bound, count) in bounds.zip(metrics.latency) {
            sum = sum.saturating_add(count);
            text.sample(&format!("{name}_bucket"), &[("store", store), ("le", &bound)], sum);
        }
        text.sample(&format!("{name}_sum"), &[("store", store)], seconds(metrics.latency_us));
        text.sample(&format!("{name}_count"), &[("store", store)], sum);
    }
}
