//! The front-end against an independent daemon: what it reads of a directory is what the host's kernel shows.
//!
//! This is the test of the test tool. It needs virtiofsd and so is no part of `make test`.

use std::time::Duration;

use guest_tests::frontend::Client;
use guest_tests::frontend::device::{Options, Shape};
use guest_tests::frontend::walk::{WalkOptions, walk};
use guest_tests::support::daemon::Daemon;
use guest_tests::tree::generate::{TreeOptions, generate};
use guest_tests::tree::{Ignore, compare, host};

#[test]
#[ignore = "needs virtiofsd: make test-peer builds it"]
fn walks_what_the_host_shows() {
    let source = tempfile::tempdir().unwrap();
    generate(source.path(), TreeOptions { big_dir: 1500, ..TreeOptions::default() }).unwrap();
    let daemon =
        Daemon::virtiofsd(source.path()).unwrap().expect("virtiofsd is not installed: make bench-peer");
    let want = host::describe(source.path(), 1 << 20, &["security.selinux"]).unwrap();
    assert!(want.len() > 1600);
    let base = Options { timeout: Duration::from_secs(20), ..Options::default() };
    let guests = [
        base.clone(),
        Options { event_idx: false, shape: Shape::Whole, ..base.clone() },
        Options { indirect: false, queue_size: 128, ..base.clone() },
        Options { busy: true, shape: Shape::Scattered, ..base },
    ];
    for (i, options) in guests.iter().enumerate() {
        // The peer serves one front-end in its life.
        let other;
        let socket = if i == 0 {
            &daemon.socket
        } else {
            other = Daemon::virtiofsd(source.path()).unwrap().unwrap();
            &other.socket
        };
        let mut client = Client::connect(socket, options).unwrap();
        let walked = WalkOptions { read_size: [131_072, 4096, 65536, 1 << 20][i], ..WalkOptions::default() };
        let got = walk(&mut client, walked).unwrap();
        let differences = compare(&want, &got, Ignore::default());
        assert!(differences.is_empty(), "{options:?}\n{}", differences.join("\n"));
        client.unmount().unwrap();
    }
}
