//! `rafsd ctl live`: what guests read, as it happens.

use super::client::{Client, encoded};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

#[derive(Clone, Copy, Default)]
struct Sample {
    calls: u64,
    reads: u64,
    bytes: u64,
    errors: u64,
}

/// Prints a line for each mount every `every` seconds, `count` times, or for ever if that is 0.
pub(super) fn run(client: &mut Client, out: &mut impl Write, every: u64, count: u64) -> anyhow::Result<()> {
    let mut before = samples(client)?;
    writeln!(out, "{:<32} {:>10} {:>10} {:>12} {:>8}", "mount", "calls/s", "reads/s", "KiB/s", "errors")?;
    let mut printed = 0;
    while count == 0 || printed < count {
        sleep(Duration::from_secs(every));
        let now = samples(client)?;
        for (path, sample) in &now {
            let old = before.get(path).copied().unwrap_or_default();
            let rate = |new: u64, old: u64| new.saturating_sub(old) / every;
            writeln!(
                out,
                "{path:<32} {:>10} {:>10} {:>12} {:>8}",
                rate(sample.calls, old.calls),
                rate(sample.reads, old.reads),
                rate(sample.bytes, old.bytes) / 1024,
                sample.errors.saturating_sub(old.errors)
            )?;
        }
        out.flush()?;
        before = now;
        printed += 1;
    }
    Ok(())
}

fn samples(client: &mut Client) -> anyhow::Result<BTreeMap<String, Sample>> {
    let info = client.json("GET", "/api/v1/daemon", None)?;
    let mut out = BTreeMap::new();
    for (path, mount) in info.get("backend_collection").and_then(Value::as_object).into_iter().flatten() {
        if mount.get("backend_type").and_then(Value::as_str) != Some("Rafs") {
            continue;
        }
        // It may have been unmounted meanwhile.
        let Ok(metrics) = client.json("GET", &format!("/api/v1/metrics?id={}", encoded(path)), None) else {
            continue;
        };
        let list = |key: &str| -> Vec<u64> {
            let items = metrics.get(key).and_then(Value::as_array);
            items.into_iter().flatten().filter_map(Value::as_u64).collect()
        };
        let (hits, errors) = (list("fop_hits"), list("fop_errors"));
        out.insert(
            path.clone(),
            Sample {
                calls: hits.iter().sum(),
                reads: hits.get(4).copied().unwrap_or(0),
                bytes: metrics.get("data_read").and_then(Value::as_u64).unwrap_or(0),
                errors: errors.iter().sum(),
            },
        );
    }
    Ok(out)
}
