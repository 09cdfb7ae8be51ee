//! Reads from afar through virtqueues: how many round trips they take, what goes on meanwhile, and what is counted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::fuse::read_in;
use guest_tests::support::afar::{Afar, READ, connect, tail};
use guest_tests::support::api::Connection;
use guest_tests::support::daemon::Daemon;
use guest_tests::support::wait::until;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

const GETATTR: u32 = 3;

#[test]
fn eight_cold_reads_are_one_round_trip_and_delay_nothing_hot() {
    for version in [5, 6] {
        let afar = Afar::of_version(version);
        let cache = tempfile::tempdir().unwrap();
        let (daemon, _dir) = afar.daemon(cache.path(), 30, 0);
        let mut client = connect(&daemon);
        let mut node = |n: usize| client.resolve(afar.files[n].0.as_bytes()).unwrap().node;
        // Files of eight places in the blob, and one that is hot: the last of all, in a directory that has none of the others.
        // To a daemon that gets no processor the server is far away, and it fetches what is next to a file that is read.
        let cold = [100, 88, 64, 52, 40, 28, 16, 4].map(|n| (n, node(n)));
        let hot = node(97);
        let len = |n: usize| u32::try_from(afar.files[n].1.len().min(4096)).unwrap();
        for _ in 0..3 {
            client.read(hot, 0, 0, len(97)).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        afar.server.forget_records();
        afar.server.set(|s| s.held = true);
        let mut uniques = HashSet::new();
        for (n, node) in &cold {
            let body = read_in(0, 0, len(*n));
            uniques.insert(client.session.submit(1, READ, *node, &body, Some(len(*n))).unwrap());
        }
        client.session.flush().unwrap();
        // The server has answered nothing, so whatever it is asked belongs to the first round trip.
        let demand = || afar.server.records().iter().filter(|r| r.method == "GET").count();
        until("the eighth request", || demand() >= 8);
        for _ in 0..500 {
            assert_eq!(client.read(hot, 0, 0, len(97)).unwrap(), afar.files[97].1[..len(97) as usize]);
            client.call(GETATTR, hot, &[0; 16], 104).unwrap();
        }
        assert_eq!(client.session.in_flight(), 8, "a cold one was answered by a server that answers nothing");
        let asked = demand();
        afar.server.set(|s| s.held = false);
        while !uniques.is_empty() {
            let done = client.session.next_done().unwrap();
            assert!(done.errno == 0 && uniques.remove(&done.unique), "{}", tail(&daemon));
            client.session.release(done);
        }
        let again: Vec<_> = afar.server.records().into_iter().skip(asked).filter(|r| r.status == 0).collect();
        println!("v{version}: {asked} requests at once, {} behind them", demand() - asked);
        assert!(again.len() <= 8, "{again:?}");
        client.unmount().unwrap();
    }
}

/// Families and samples of a page of metrics; panics on what Prometheus would not take.
fn metrics(socket: &Path) -> BTreeMap<String, f64> {
    let page = Connection::open(socket).unwrap().call("GET", "/metrics", None).unwrap();
    assert_eq!(page.status, 200);
    let (mut kinds, mut samples) = (BTreeMap::new(), BTreeMap::new());
    for line in page.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let name = sample.split('{').next().unwrap();
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(kinds.contains_key(name) || kinds.contains_key(family), "{name} has no type");
        assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{sample} twice");
    }
    samples
}

/// The sum of the samples whose name and labels contain all of these.
fn sum(samples: &BTreeMap<String, f64>, parts: &[&str]) -> f64 {
    let wanted = samples.iter().filter(|(name, _)| parts.iter().all(|part| name.contains(part)));
    wanted.map(|(_, value)| value).sum()
}

#[test]
fn what_stores_and_caches_do_is_counted() {
    let afar = Afar::new();
    let dir = tempfile::tempdir().unwrap();
    let config = afar.config(dir.path(), &dir.path().join("cache"), 2, 0);
    let api = dir.path().join("api");
    let daemon =
        Daemon::rafsd_with(&afar.image.bootstrap, &config, &["--apisock", api.to_str().unwrap()]).unwrap();
    let before = metrics(&api);
    let families = [
        "rafsd_store_requests_total",
        "rafsd_store_delivered_bytes_total",
        "rafsd_store_request_duration_seconds_bucket",
        "rafsd_store_request_duration_seconds_sum",
        "rafsd_store_request_duration_seconds_count",
        "rafsd_store_bytes_total",
        "rafsd_store_fetches_total",
        "rafsd_cache_misses_total",
        "rafsd_wanted_bytes_total",
        "rafsd_fetched_reads_total",
    ];
    afar.server.set(|s| s.latency = Duration::from_millis(15));
    assert_eq!(afar.read_at_random(&daemon, 200, 1), 0);
    let after = metrics(&api);
    for family in families {
        assert!(sum(&after, &[family]) > sum(&before, &[family]), "{family} stands still: {after:#?}");
    }
    // Nothing comes faster than the server answers; each answer is in one bucket.
    let bucket = |samples: &_, le: &str| sum(samples, &["request_duration_seconds_bucket", le]);
    assert_eq!(bucket(&after, "le=\"0.010000\"}"), bucket(&before, "le=\"0.010000\"}"));
    assert_eq!(bucket(&after, "le=\"+Inf\""), sum(&after, &["rafsd_store_request_duration_seconds_count"]));
    assert!(sum(&after, &["rafsd_fetch_amplification_ratio"]) >= 1.0);
    assert_eq!(sum(&after, &["rafsd_store_info", "mount=\"/\""]), 1.0);
    assert_eq!(sum(&after, &["rafsd_reads_waiting"]), 0.0);

    afar.assert_all(&daemon, "all of it");
    let (all, twice) = (metrics(&api), {
        afar.assert_all(&daemon, "all of it, again");
        metrics(&api)
    });
    for family in ["rafsd_cache_hits_total", "rafsd_cache_hit_bytes_total"] {
        assert!(sum(&twice, &[family]) > sum(&all, &[family]), "{family}");
    }
    assert_eq!(sum(&twice, &["rafsd_store_requests_total"]), sum(&all, &["rafsd_store_requests_total"]));
    drop(daemon);

    // Errors by class, and reads that wait.
    std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
    let api = dir.path().join("api2");
    let daemon =
        Daemon::rafsd_with(&afar.image.bootstrap, &config, &["--apisock", api.to_str().unwrap()]).unwrap();
    assert_eq!(afar.read_at_random(&daemon, 5, 3), 0);
    for (status, class) in [(404, "missing"), (403, "denied"), (503, "transient")] {
        afar.server.set(|s| s.always = Some((status, Vec::new())));
        let before = metrics(&api);
        assert!(afar.read_at_random(&daemon, 60, u64::from(status)) > 0);
        let after = metrics(&api);
        let label = format!("class=\"{class}\"");
        for family in ["rafsd_store_request_errors_total", "rafsd_store_errors_total"] {
            let moved = sum(&after, &[family, &label]) - sum(&before, &[family, &label]);
            assert!(moved > 0.0, "{status} is not counted as {class} in {family}");
        }
    }
    let failed = metrics(&api);
    assert!(sum(&failed, &["rafsd_reads_failed"]) > 0.0);
}
