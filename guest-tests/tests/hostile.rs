//! Hostile guests and front-ends against one `rafsd` process, which must survive them all unchanged.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

use guest_tests::frontend::Options;
use guest_tests::hostile::health::Health;
use guest_tests::hostile::{Target, run};
use guest_tests::support::served::Served;

fn attack(case: &str, event_idx: bool, seeds: std::ops::Range<u64>) {
    let served = Served::case(case, 2).unwrap();
    let daemon = &served.daemon;
    let options = Options { queues: 2, memory_mib: 64, event_idx, queue_size: 256, ..Options::default() };
    let (health, nodes) = Health::first(daemon.process.id(), &daemon.socket, &options).unwrap();
    let target = Target { socket: &daemon.socket, options: options.clone(), nodes };
    for seed in seeds {
        if let Err(failure) = run(&target, seed, 120) {
            panic!("{failure}\ndaemon's log ends:\n{}", served.log());
        }
        if let Err(e) = health.check(&daemon.socket, &options) {
            panic!("after seed {seed}: {e:#}\ndaemon's log ends:\n{}", served.log());
        }
    }
}

#[test]
fn v5_survives_with_event_idx() {
    attack("v5-zstd-blake3", true, 1..7);
}

#[test]
fn v6_survives_without_event_idx() {
    attack("v6-zstd-blake3", false, 11..17);
}
