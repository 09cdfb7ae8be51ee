//! Guests that open files and never close them: each has a share of the daemon's descriptors, and nobody the rest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use guest_tests::frontend::client::{Client, ROOT};
use guest_tests::frontend::fuse::{Body, op};
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::binaries;
use guest_tests::support::image::Case;
use std::os::unix::fs::symlink;
use std::process::Command;

const ENFILE: i32 = 23;
/// Limit of open files of the daemon.
const LIMIT: usize = 1000;
/// For guests together.
const BUDGET: usize = LIMIT / 4 * 3;

/// fuse_lk_in: a read lock on the first byte.
fn lk_in(owner: u64) -> Vec<u8> {
    Body::new().u64(0).u64(owner).u64(0).u64(0).u32(0).u32(1).u32(0).u32(0).done()
}

/// What `more` could do before it got ENFILE.
fn until_refused(mut more: impl FnMut(u64) -> Option<i32>) -> usize {
    for n in 0..u64::try_from(LIMIT).unwrap() {
        if let Some(errno) = more(n) {
            assert_eq!(errno, ENFILE, "the {n}th");
            return usize::try_from(n).unwrap();
        }
    }
    panic!("nothing was refused");
}

fn open(guest: &mut Client, node: u64, handles: &mut Vec<u64>) -> Option<i32> {
    match guest.open(node, 0) {
        Ok(handle) => {
            handles.push(handle);
            None
        }
        Err(error) => error.errno(),
    }
}

/// fuse_create_in and a name.
fn create_in(name: &str) -> Vec<u8> {
    let mut body = Body::new().u32(0x8000 | 2).u32(0o100_644).u32(0).u32(0).done();
    body.extend_from_slice(name.as_bytes());
    body.push(0);
    body
}

#[test]
fn who_never_closes_leaves_descriptors_to_others() {
    let shared = tempfile::tempdir().unwrap();
    for n in 0..LIMIT {
        std::fs::write(shared.path().join(n.to_string()), "data").unwrap();
    }
    symlink("0", shared.path().join("link")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.current_dir(dir.path()).args(["-c", &format!("ulimit -n {LIMIT}; exec \"$@\""), "sh"]);
    command.arg(binaries::ours("rafsd").unwrap()).args(["virtiofs", "--apisock", "api.sock"]);
    command.args([
        "--sock",
        "one.sock",
        "--sock",
        "two.sock",
        "--sock",
        "three.sock",
        "--rlimit-nofile",
        "0",
    ]);
    command.arg("--shared-dir").arg(shared.path());
    let daemon = ApiDaemon::spawn(command, dir).unwrap();

    // One opens files, as many as it may: three quarters of what there is for guests.
    let mut one = daemon.guest("one.sock").unwrap();
    let node = one.resolve(b"/0").unwrap().node;
    let mut handles = Vec::new();
    let first = until_refused(|_| open(&mut one, node, &mut handles));
    assert!((BUDGET * 3 / 4 - 8..=BUDGET * 3 / 4 + 1).contains(&first), "{first}");
    // What could not be opened was not made.
    assert_eq!(one.call(op::CREATE, ROOT, &create_in("unmade"), 144).unwrap_err().errno(), Some(ENFILE));
    assert!(!shared.path().join("unmade").exists());
    // It reads on with what it has, and finds files.
    assert_eq!(one.read(node, handles[0], 0, 4).unwrap(), b"data");
    for n in 0..LIMIT {
        one.resolve(format!("/{n}").as_bytes()).unwrap();
    }
    let link = one.resolve(b"/link").unwrap().node;
    assert_eq!(one.readlink(link).unwrap(), b"0");

    // A second one takes locks for owners without number: three quarters of the rest, or thereabouts.
    let mut two = daemon.guest("two.sock").unwrap();
    let node = two.resolve(b"/1").unwrap().node;
    let second = until_refused(|owner| match two.call(op::SETLK, node, &lk_in(owner), 0) {
        Ok(_) => None,
        Err(error) => error.errno(),
    });
    assert!(second > 50, "{second}");

    // The third works as ever, and so do the API, new mounts and new guests.
    let mut three = daemon.guest("three.sock").unwrap();
    for n in 0..LIMIT {
        let node = three.resolve(format!("/{n}").as_bytes()).unwrap().node;
        let handle = three.open(node, 2).unwrap();
        assert_eq!(three.read(node, handle, 0, 4).unwrap(), b"data");
        three.release(node, handle).unwrap();
    }
    three.call(op::CREATE, ROOT, &create_in("made"), 144).unwrap();
    assert!(shared.path().join("made").exists());
    assert_eq!(daemon.call("GET", "/api/v1/daemon", None).unwrap().status, 200);
    let case = Case::named("v6-zstd-blake3").unwrap();
    assert_eq!(daemon.mount("POST", "/image", &case).unwrap(), 204);

    // Whoever closes may open again.
    let closed = one.resolve(b"/0").unwrap().node;
    for handle in handles.drain(..300) {
        one.release(closed, handle).unwrap();
    }
    let again = until_refused(|_| open(&mut one, closed, &mut handles));
    assert!(again > 20, "{again}");
    drop(one);
    let mut next = daemon.guest("one.sock").unwrap();
    let node = next.resolve(b"/0").unwrap().node;
    let mut handles = Vec::new();
    // A new guest of that socket begins with nothing.
    assert!(until_refused(|_| open(&mut next, node, &mut handles)) > 300);
    let log = daemon.process.output();
    let lines = log.lines().filter(|line| line.contains("--rlimit-nofile")).count();
    assert!((2..60).contains(&lines), "{lines} lines say why");
}
