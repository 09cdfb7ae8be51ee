//! `GET /metrics`: everything in Prometheus' text form.

mod stores;

use super::routes::App;
use crate::mounts::{LATENCY_BOUNDS_US, OP_NAMES, Op, OpTotals};
use rafs::reader::EngineMetrics;
use rafs::store::Store as _;
use std::fmt::Write as _;

/// Content type of the text form.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{}\"", if at == 0 { "{" } else { "," }, escaped(value));
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The whole page.
pub(super) fn page(app: &App) -> String {
    let mut text = Text(String::with_capacity(8 << 10));
    let daemon = &app.daemon;
    let version = &daemon.identity().version;
    text.family("rafsd_build_info", "gauge", "The build that runs.");
    let labels = [("version", version.package_ver.as_str()), ("commit", version.git_commit.as_str())];
    text.sample("rafsd_build_info", &labels, 1);
    text.family("rafsd_state", "gauge", "1 for the state the daemon is in.");
    text.sample("rafsd_state", &[("state", &daemon.state().to_string())], 1);
    process(&mut text);
    let mounts = daemon.mounted();
    text.family("rafsd_mounts", "gauge", "File systems that are mounted.");
    text.sample("rafsd_mounts", &[], mounts.len());
    text.family("rafsd_sockets", "gauge", "vhost-user sockets that are served.");
    text.sample("rafsd_sockets", &[], app.devices.as_ref().map_or(0, |devices| devices.list().len()));
    text.family("rafsd_api_connections", "gauge", "Connections to the API.");
    text.sample("rafsd_api_connections", &[], app.connections());
    let totals: Vec<(String, OpTotals)> =
        mounts.iter().map(|m| (m.path.to_string(), m.backend.counters().totals())).collect();
    operations(&mut text, &totals);
    let metrics = daemon.storage().engine().metrics();
    engine(&mut text, &metrics);
    let used: Vec<(&str, String)> =
        mounts.iter().filter_map(|m| Some((m.path.as_str(), m.net.as_ref()?.identity()?))).collect();
    stores::stores(&mut text, &metrics, &used);
    text.family("rafsd_store_fetches_total", "counter", "Ranges asked of the store behind a mount.");
    for mounted in &mounts {
        if let Some(net) = &mounted.net {
            text.sample(
                "rafsd_store_fetches_total",
                &[("mount", mounted.path.as_str())],
                net.counters().fetches,
            );
        }
    }
    text.family("rafsd_store_bytes_total", "counter", "Bytes received from the store behind a mount.");
    for mounted in &mounts {
        if let Some(net) = &mounted.net {
            text.sample("rafsd_store_bytes_total", &[("mount", mounted.path.as_str())], net.counters().bytes);
        }
    }
    text.family("rafsd_store_errors_total", "counter", "Failed tries at the store behind a mount.");
    for mounted in &mounts {
        if let Some(net) = &mounted.net {
            let counters = net.counters();
            for (class, count) in [
                ("transient", counters.failed_transient),
                ("missing", counters.failed_missing),
                ("denied", counters.failed_denied),
                ("wrong", counters.failed_wrong),
            ] {
                let labels = [("mount", mounted.path.as_str()), ("class", class)];
                text.sample("rafsd_store_errors_total", &labels, count);
            }
        }
    }
    text.0
}

/// What the fetch side did, for all mounts together.
fn engine(text: &mut Text, metrics: &EngineMetrics) {
    for (name, kind, help, value) in [
        ("rafsd_cache_hits_total", "counter", "Reads that were ready when they came.", metrics.hits),
        ("rafsd_cache_hit_bytes_total", "counter", "Bytes of reads that were ready.", metrics.hit_bytes),
        ("rafsd_cache_misses_total", "counter", "Units that a read had to wait for.", metrics.misses),
        ("rafsd_fetched_reads_total", "counter", "Reads that went to the fetch side.", metrics.fetched_reads),
        ("rafsd_reads_waiting", "gauge", "Reads that wait for the fetch side.", metrics.waiting),
        (
            "rafsd_reads_failed_deadline_total",
            "counter",
            "Reads without data in time.",
            metrics.failed_deadline,
        ),
        ("rafsd_reads_failed_other_total", "counter", "Reads that failed otherwise.", metrics.failed_other),
        (
            "rafsd_wanted_bytes_total",
            "counter",
            "Stored bytes of units that somebody read.",
            metrics.wanted_bytes,
        ),
        (
            "rafsd_guessed_bytes_total",
            "counter",
            "Bytes fetched beside what was asked for.",
            metrics.guessed_bytes,
        ),
        (
            "rafsd_prefetched_bytes_total",
            "counter",
            "Stored bytes that prefetch asked for.",
            metrics.prefetched_bytes,
        ),
        (
            "rafsd_damaged_units_total",
            "counter",
            "Units that did not match their digest.",
            metrics.damaged_units,
        ),
        (
            "rafsd_evicted_bytes_total",
            "counter",
            "Bytes taken from caches to stay below their limit.",
            metrics.evicted_bytes,
        ),
        ("rafsd_uncached_units_total", "counter", "Units that no cache file took.", metrics.uncached_units),
    ] {
        text.family(name, kind, help);
        text.sample(name, &[], value);
    }
}

fn operations(text: &mut Text, mounts: &[(String, OpTotals)]) {
    text.family("rafsd_operations_total", "counter", "FUSE calls answered, failures included.");
    for (mount, totals) in mounts {
        for (name, count) in OP_NAMES.iter().zip(totals.hits) {
            text.sample("rafsd_operations_total", &[("mount", mount), ("op", name)], count);
        }
    }
    text.family("rafsd_operation_errors_total", "counter", "FUSE calls that failed.");
    for (mount, totals) in mounts {
        for (name, count) in OP_NAMES.iter().zip(totals.errors) {
            text.sample("rafsd_operation_errors_total", &[("mount", mount), ("op", name)], count);
        }
    }
    text.family(
        "rafsd_operation_seconds_total",
        "counter",
        "How long FUSE calls took together; all but reads are sampled.",
    );
    for (mount, totals) in mounts {
        for (name, micros) in OP_NAMES.iter().zip(totals.micros) {
            text.sample("rafsd_operation_seconds_total", &[("mount", mount), ("op", name)], seconds(micros));
        }
    }
    text.family("rafsd_read_bytes_total", "counter", "Bytes that guests read.");
    for (mount, totals) in mounts {
        text.sample("rafsd_read_bytes_total", &[("mount", mount)], totals.read_bytes);
    }
    text.family("rafsd_read_duration_seconds", "histogram", "How long READ took.");
    for (mount, totals) in mounts {
        let mut sum = 0;
        for (bound, count) in LATENCY_BOUNDS_US.iter().zip(totals.latencies) {
            sum += count;
            let labels = [("mount", mount.as_str()), ("le", &seconds(*bound))];
            text.sample("rafsd_read_duration_seconds_bucket", &labels, sum);
        }
        let all: u64 = totals.latencies.iter().sum();
        text.sample("rafsd_read_duration_seconds_bucket", &[("mount", mount), ("le", "+Inf")], all);
        let read = totals.micros[Op::Read as usize];
        text.sample("rafsd_read_duration_seconds_sum", &[("mount", mount)], seconds(read));
        text.sample("rafsd_read_duration_seconds_count", &[("mount", mount)], all);
    }
}

/// Microseconds in Prometheus' unit.
fn seconds(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// What the kernel says of this process.
fn process(text: &mut Text) {
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let kib = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        if let Some(resident) = kib("VmRSS:") {
            text.family("process_resident_memory_bytes", "gauge", "Resident memory.");
            text.sample("process_resident_memory_bytes", &[], resident * 1024);
        }
        if let Some(threads) = kib("Threads:") {
            text.family("process_threads", "gauge", "Threads.");
            text.sample("process_threads", &[], threads);
        }
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        text.family("process_open_fds", "gauge", "Open descriptors.");
        text.sample("process_open_fds", &[], entries.count());
    }
}
