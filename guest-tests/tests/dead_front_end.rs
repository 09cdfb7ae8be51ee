//! Locks of a shared directory when the machine that holds them is gone: kept as long as the front-end's process lives, which
//! may come back with the same guest, and dropped when it has ended.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guest_tests::frontend::client::Client;
use guest_tests::frontend::device::Options;
use guest_tests::frontend::fuse::{Body, op};
use guest_tests::support::api::ApiDaemon;
use guest_tests::support::process::Process;
use guest_tests::support::wait::until;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const WRITE: u32 = 1;
const UNLOCKED: u32 = 2;

/// fuse_lk_in: the whole file.
fn lk_in(owner: u64, kind: u32) -> Vec<u8> {
    Body::new().u64(0).u64(owner).u64(0).u64(u64::MAX >> 1).u32(kind).u32(1).u32(0).u32(0).done()
}

fn connect(socket: &Path) -> Client {
    Client::connect(socket, &Options { memory_mib: 64, ..Options::default() }).unwrap()
}

/// Takes a write lock on all of `name`.
fn lock(guest: &mut Client, name: &[u8]) {
    let node = guest.resolve(name).unwrap().node;
    guest.call(op::SETLK, node, &lk_in(7, WRITE), 0).unwrap();
}

/// Whether somebody else holds a lock on `name`.
fn is_locked(guest: &mut Client, name: &[u8]) -> bool {
    let node = guest.resolve(name).unwrap().node;
    let found = guest.call(op::GETLK, node, &lk_in(7, WRITE), 24).unwrap();
    u32::from_le_bytes(found[16..20].try_into().unwrap()) != UNLOCKED
}

#[test]
#[ignore = "the process behind the test below"]
fn front_end_process() {
    let Some(socket) = std::env::var_os("FRONT_END_SOCKET").map(PathBuf::from) else { return };
    let mut guest = connect(&socket);
    lock(&mut guest, b"/theirs");
    std::fs::write(socket.with_extension("locked"), "").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn locks_go_with_the_process_of_the_front_end() {
    let shared = tempfile::tempdir().unwrap();
    for name in ["ours", "theirs"] {
        std::fs::write(shared.path().join(name), [0; 100]).unwrap();
    }
    let dir = shared.path().to_str().unwrap();
    let daemon = ApiDaemon::start(&["--sock", "other.sock", "--shared-dir", dir]).unwrap();
    let mut looks_on = daemon.guest("other.sock").unwrap();

    // This process lives: what a guest of it holds stays when it hangs up, and it may come back.
    let mut here = daemon.guest("fs.sock").unwrap();
    lock(&mut here, b"/ours");
    drop(here);
    until("the end to be noticed", || daemon.process.output().contains("front-end left"));
    assert!(is_locked(&mut looks_on, b"/ours"));

    // Another machine on the same socket begins with nothing, and locks.
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "front_end_process", "--ignored", "--nocapture"]);
    command.env("FRONT_END_SOCKET", daemon.path("fs.sock"));
    let mut process = Process::spawn(&mut command, &daemon.path("front-end")).unwrap();
    until("the other process's lock", || daemon.path("fs.locked").exists());
    assert!(is_locked(&mut looks_on, b"/theirs") && !is_locked(&mut looks_on, b"/ours"));

    // It dies, without a word to its guest's file system.
    process.kill().unwrap();
    until("a dead machine's lock to be dropped", || !is_locked(&mut looks_on, b"/theirs"));
    lock(&mut looks_on, b"/theirs");
    // The socket is as good as ever.
    let mut next = daemon.guest("fs.sock").unwrap();
    assert!(is_locked(&mut next, b"/theirs"));
}
