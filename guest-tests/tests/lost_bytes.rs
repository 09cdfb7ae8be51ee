//! Files that are mapped and then shortened by who owns them: guest memory and bootstraps. Whoever loses bytes loses his own
//! device or mount; the daemon and all others go on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::client::ROOT;
use guest_tests::frontend::fuse::{ATTR_OUT, getattr_in, op, read_in};
use guest_tests::frontend::walk::{WalkOptions, walk, walk_from};
use guest_tests::frontend::{Client, FrontendError, Options};
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::image::Case;
use guest_tests::support::wait;
use guest_tests::tree::{Ignore, Tree, compare};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const EIO: i32 = 5;
/// Between the rings of a victim and the buffers of its requests.
const GAP: u64 = 1 << 20;

fn options() -> Options {
    Options { queues: 2, memory_mib: 16, queue_size: 64, ..Options::default() }
}

fn errno<T>(result: Result<T, FrontendError>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.errno().unwrap_or_else(|| panic!("{error}")),
    }
}

fn same(expected: &Tree, found: &Tree) {
    let differences = compare(expected, found, Ignore::default());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// A guest whose requests from now on lie `GAP` behind its rings.
fn victim(socket: &Path) -> Client {
    let mut client = Client::connect(socket, &options()).unwrap();
    let gap = usize::try_from(GAP).unwrap();
    for buffer in 0..2 {
        client.session.device.buffers.alloc(gap).unwrap_or_else(|e| panic!("{buffer}: {e}"));
    }
    client
}

/// The file behind a guest's main memory.
fn memory(client: &Client) -> &File {
    &client.session.device.mem.regions()[1].file
}

/// Requests that are there to be taken once they are announced.
fn ask(client: &mut Client, file: u64) {
    for _ in 0..8 {
        client.session.submit(1, op::GETATTR, ROOT, &getattr_in(), Some(ATTR_OUT)).unwrap();
        client.session.submit(1, op::READ, file, &read_in(0, 0, 4096), Some(4096)).unwrap();
    }
}

#[test]
fn a_front_end_that_shortens_its_memory_loses_its_own_device() {
    let daemon = ApiDaemon::start(&["--log-level", "warn"]).unwrap();
    let case = Case::named("v6-zstd-blake3").unwrap();
    assert_eq!(daemon.mount("POST", "/", &case).unwrap(), 204);
    let body = json!({"socket": "other.sock", "queues": 2}).to_string();
    assert_eq!(daemon.call("POST", "/api/v1/sockets", Some(&body)).unwrap().status, 204);
    let (socket, other) = (daemon.path("fs.sock"), daemon.path("other.sock"));
    let mut neighbour = Client::connect(&other, &options()).unwrap();
    let tree = walk(&mut neighbour, WalkOptions::default()).unwrap();
    let (over, walks) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                same(&tree, &walk(&mut neighbour, WalkOptions::default()).unwrap());
                walks.fetch_add(1, Ordering::Relaxed);
            }
        });
        for round in 0..5 {
            // The rings stay, and what they lead to goes.
            let mut client = victim(&socket);
            let file = client.resolve(b"/sizes/f4097").unwrap().node;
            ask(&mut client, file);
            memory(&client).set_len(GAP).unwrap();
            client.session.flush().unwrap();
            let told = format!("round {round}: the loss is told of");
            let before = walks.load(Ordering::Relaxed);
            wait::until(&told, || walks.load(Ordering::Relaxed) > before + 1);
            drop(client);

            // All goes, the rings first of all.
            let mut client = victim(&socket);
            ask(&mut client, file);
            client.session.flush().unwrap();
            memory(&client).set_len(0).unwrap();
            client.session.device.rings[1].kick_now().unwrap();
            client.session.device.rings[2].kick_now().unwrap();
            let before = walks.load(Ordering::Relaxed);
            wait::until(&told, || walks.load(Ordering::Relaxed) > before + 1);
            drop(client);
        }
        over.store(true, Ordering::Relaxed);
    });
    let mut next = Client::connect(&socket, &options()).unwrap();
    same(&tree, &walk(&mut next, WalkOptions::default()).unwrap());
    let log = daemon.process.output();
    assert!(log.contains("bytes of guest memory are gone"), "{} lines of log", log.lines().count());
}

/// A copy of a bootstrap that may be harmed.
fn copy(daemon: &ApiDaemon, case: &Case, name: &str) -> PathBuf {
    let path = daemon.path(name);
    std::fs::copy(&case.image.bootstrap, &path).unwrap();
    path
}

#[test]
fn a_bootstrap_that_is_cut_in_place_ends_its_own_mount() {
    for name in ["v5-zstd-blake3", "v6-zstd-blake3"] {
        let daemon = ApiDaemon::start(&["--log-level", "warn"]).unwrap();
        let case = Case::named(name).unwrap();
        let (cut, sound) = (copy(&daemon, &case, "cut"), copy(&daemon, &case, "sound"));
        let body = |path: &Path| daemon.mount_body(path, &case.image.blobs, "id");
        let mount = |method: &str, at: &str, path: &Path| {
            let target = format!("/api/v1/mount?mountpoint={at}");
            daemon.call(method, &target, Some(&body(path))).unwrap().status
        };
        assert_eq!(mount("POST", "/cut", &cut), 204);
        assert_eq!(mount("POST", "/sound", &sound), 204);
        let mut guest = daemon.guest("fs.sock").unwrap();
        let root = guest.resolve(b"/sound").unwrap().node;
        let tree = walk_from(&mut guest, root, WalkOptions::default()).unwrap();
        let held = guest.resolve(b"/cut/sizes/f4097").unwrap();
        let top = guest.resolve(b"/cut").unwrap().node;
        assert_eq!(guest.read(held.node, 0, 0, 4097).unwrap().len(), 4097);

        let whole = std::fs::read(&cut).unwrap();
        OpenOptions::new().write(true).open(&cut).unwrap().set_len(512).unwrap();
        // Some bytes are in caches of ours, so that not every call has to look; from the first that does none is answered.
        let walked = walk_from(&mut guest, top, WalkOptions::default());
        assert_eq!(errno(walked), EIO, "{name}");
        for _ in 0..2 {
            assert_eq!(errno(guest.getattr(held.node)), EIO, "{name}");
            assert_eq!(errno(guest.read(held.node, 0, 0, 4097)), EIO, "{name}");
            assert_eq!(errno(guest.lookup(top, b"sizes")), EIO, "{name}");
            assert_eq!(errno(guest.lookup(top, b"no such file")), EIO, "{name}");
            assert_eq!(errno(guest.list(top, 4096, true)), EIO, "{name}");
            assert_eq!(errno(guest.list(top, 4096, false)), EIO, "{name}");
            assert_eq!(errno(guest.resolve(b"/cut")), EIO, "{name}");
            // Bytes that come back are not trusted: what was made of those that were not there may be anywhere.
            std::fs::write(&cut, &whole).unwrap();
        }
        same(&tree, &walk_from(&mut guest, root, WalkOptions::default()).unwrap());
        let log = daemon.process.output();
        assert!(log.contains("cut short in place"), "{name}: {} lines of log", log.lines().count());

        // Mounted anew it is there, by either way that clients know.
        if name.starts_with("v5") {
            assert_eq!(mount("PUT", "/cut", &cut), 204);
        } else {
            assert_eq!(daemon.umount("/cut").unwrap(), 204);
            assert_eq!(mount("POST", "/cut", &cut), 204);
        }
        let top = guest.resolve(b"/cut").unwrap().node;
        let found = walk_from(&mut guest, top, WalkOptions::default()).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), tree.keys().collect::<Vec<_>>(), "{name}");
        let file = guest.resolve(b"/cut/sizes/f4097").unwrap().node;
        assert_eq!(guest.read(file, 0, 0, 4097).unwrap().len(), 4097);
    }
}
