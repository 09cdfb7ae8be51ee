//! Hostile guests and front-ends against one `rafsd` process, which must survive them all unchanged.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

use guest_tests::frontend::Options;
use guest_tests::hostile::health::Health;
use guest_tests::hostile::{Target, run};
use guest_tests::support::daemon::Daemon;
use guest_tests::support::image::corpus;

fn attack(case: &str, event_idx: bool, seeds: std::ops::Range<u64>) {
    let cases = corpus().unwrap();
    let case = cases.iter().find(|c| c.name == case).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let cache_dir = cache.path().to_str().unwrap();
    let daemon =
        Daemon::rafsd(&case.image.bootstrap, &case.image.blobs, 2, &["--cache-dir", cache_dir]).unwrap();
    let options = Options { queues: 2, memory_mib: 64, event_idx, queue_size: 256, ..Options::default() };
    let log = || {
        let log = daemon.process.output();
        log[log.len().saturating_sub(4000)..].to_owned()
    };
    let (health, nodes) = Health::first(daemon.process.id(), &daemon.socket, &options).unwrap();
    let target = Target { socket: &daemon.socket, options: options.clone(), nodes };
    for seed in seeds {
        if let Err(failure) = run(&target, seed, 120) {
            panic!("{failure}\ndaemon's log ends:\n{}", log());
        }
        if let Err(e) = health.check(&daemon.socket, &options) {
            panic!("after seed {seed}: {e:#}\ndaemon's log ends:\n{}", log());
        }
    }
}

#[test]
fn v5_survives_with_event_idx() {
    attack("v5-zstd-blake3", true, 1..4);
}

#[test]
fn v6_survives_without_event_idx() {
    attack("v6-zstd-blake3", false, 11..14);
}
