//! Reads from afar through virtqueues: how many round trips they take, what goes on meanwhile, and what is counted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::fuse::read_in;
use guest_tests::support::afar::{Afar, READ, connect, tail};
use std::collections::HashSet;
use std::time::Duration;

const GETATTR: u32 = 3;

/// Waits until `done` says so.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what} does not come");
}

#[test]
fn eight_cold_reads_are_one_round_trip_and_delay_nothing_hot() {
    for version in [5, 6] {
        let afar = Afar::of_version(version);
        let cache = tempfile::tempdir().unwrap();
        let (daemon, _dir) = afar.daemon(cache.path(), 30, 0);
        let mut client = connect(&daemon);
        let mut node = |n: usize| client.resolve(afar.files[n].0.as_bytes()).unwrap().node;
        // Files of eight places in the blob, and one that is hot.
        let cold: Vec<(usize, u64)> = (0..8).map(|n| 100 - n * 12).map(|n| (n, node(n))).collect();
        let hot = node(119);
        let len = |n: usize| u32::try_from(afar.files[n].1.len().min(4096)).unwrap();
        for _ in 0..3 {
            client.read(hot, 0, 0, len(119)).unwrap();
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
            assert_eq!(client.read(hot, 0, 0, len(119)).unwrap(), afar.files[119].1[..len(119) as usize]);
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
