//! A directory behind a virtqueue: what waits for a disk or a lock leaves the ring's worker and is answered from
//! elsewhere, and no name leads out of the directory.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::request;
use rafsd::fuse::abi::{FallocateIn, FileLock, FsyncIn, GetattrIn, LkIn, SetattrIn, WriteIn, fattr, op};
use rafsd::mounts::{Passthrough, PassthroughBackend, PassthroughOptions};
use rafsd::virtio::Harness;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

fn harness(dir: &Path) -> Harness<Passthrough> {
    Harness::new(PassthroughBackend::open(dir, PassthroughOptions::default()).unwrap().alone()).unwrap()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends one request in place 0 and returns the error of its answer, 0 for none.
fn call(harness: &Harness<Passthrough>, opcode: u32, node: u64, body: &[u8]) -> i32 {
    harness.prepare(0, &request(opcode, node, body), 4096 + 16, 0).unwrap();
    harness.announce(1).unwrap();
    harness.worker().serve();
    until("an answer", || harness.given_back() == harness.announced());
    harness.reply_header(0).1
}

/// Node of a file in the directory.
fn look_up(harness: &Harness<Passthrough>, name: &str) -> u64 {
    assert_eq!(call(harness, op::LOOKUP, 1, format!("{name}\0").as_bytes()), 0);
    u64::from_ne_bytes(harness.reply_payload(0, 8).try_into().unwrap())
}

#[test]
fn writes_and_syncs_are_answered_by_threads_that_may_wait() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "....").unwrap();
    let harness = harness(dir.path());
    let node = look_up(&harness, "f");
    let data: Vec<u8> = (0..3000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let write =
        |size| WriteIn { fh: 0, offset: 5, size, write_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
    assert_eq!(call(&harness, op::WRITE, node, &[write(3000).as_bytes(), &data].concat()), 0);
    let written = fs::read(dir.path().join("f")).unwrap();
    assert_eq!((&written[..5], &written[5..]), (&b"....\0"[..], data.as_slice()));
    // A size that the payload does not have, an end that no file has.
    assert_eq!(call(&harness, op::WRITE, node, &[write(3001).as_bytes(), &data].concat()), -libc::EINVAL);
    let far = WriteIn { offset: u64::MAX - 1, ..write(1) };
    assert_eq!(call(&harness, op::WRITE, node, &[far.as_bytes(), b"x"].concat()), -libc::EFBIG);
    let fsync = FsyncIn { fh: 0, fsync_flags: 0, padding: 0 };
    assert_eq!(call(&harness, op::FSYNC, node, fsync.as_bytes()), 0);
    let fallocate = FallocateIn { fh: 0, offset: 0, length: 9000, mode: 0, padding: 0 };
    assert_eq!(call(&harness, op::FALLOCATE, node, fallocate.as_bytes()), 0);
    assert_eq!(fs::metadata(dir.path().join("f")).unwrap().len(), 9000);
    let mut setattr = [0; size_of::<SetattrIn>()];
    setattr[..4].copy_from_slice(&fattr::SIZE.to_ne_bytes());
    setattr[16..24].copy_from_slice(&7u64.to_ne_bytes());
    assert_eq!(call(&harness, op::SETATTR, node, &setattr), 0);
    assert_eq!(fs::metadata(dir.path().join("f")).unwrap().len(), 7);
    // Handles that were never given out, nodes that nobody looked up.
    let stranger = WriteIn { fh: 77, ..write(1) };
    assert_eq!(call(&harness, op::WRITE, node, &[stranger.as_bytes(), b"x"].concat()), -libc::EBADF);
    assert_eq!(call(&harness, op::WRITE, 1 << 56 | 99, &[write(1).as_bytes(), b"x"].concat()), -libc::ESTALE);
}

#[test]
fn a_lock_that_waits_delays_nothing_and_comes_when_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "content").unwrap();
    let harness = harness(dir.path());
    let node = look_up(&harness, "f");
    let lock = |owner| LkIn {
        fh: 0,
        owner,
        lock: FileLock { start: 0, end: i64::MAX.cast_unsigned(), kind: 1, pid: 1 },
        flags: 0,
        padding: 0,
    };
    assert_eq!(call(&harness, op::SETLK, node, lock(1).as_bytes()), 0);
    assert_eq!(call(&harness, op::SETLK, node, lock(2).as_bytes()), -libc::EAGAIN);
    harness.prepare(1, &request(op::SETLKW, node, lock(2).as_bytes()), 16, 0).unwrap();
    harness.announce_heads([16]).unwrap();
    harness.worker().serve();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(harness.given_back().wrapping_add(1), harness.announced(), "the lock is not free");
    let getattr = GetattrIn { flags: 0, dummy: 0, fh: 0 };
    harness.prepare(0, &request(op::GETATTR, node, getattr.as_bytes()), 120, 0).unwrap();
    harness.announce(1).unwrap();
    harness.worker().serve();
    assert_eq!(harness.given_back().wrapping_add(1), harness.announced(), "GETATTR waits for a lock");
    let unlock = LkIn { lock: FileLock { kind: 2, ..lock(1).lock }, ..lock(1) };
    harness.prepare(0, &request(op::SETLK, node, unlock.as_bytes()), 16, 0).unwrap();
    harness.announce(1).unwrap();
    harness.worker().serve();
    until("the lock", || harness.given_back() == harness.announced());
    assert_eq!(harness.reply_header(1).1, 0);
    assert_eq!(call(&harness, op::SETLK, node, lock(1).as_bytes()), -libc::EAGAIN, "owner 2 has it now");
}

#[test]
fn no_name_leads_out() {
    let outer = tempfile::tempdir().unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    let dir = outer.path().join("shared");
    fs::create_dir_all(dir.join("sub")).unwrap();
    std::os::unix::fs::symlink("../secret", dir.join("link")).unwrap();
    std::os::unix::fs::symlink("..", dir.join("up")).unwrap();
    let harness = harness(&dir);
    for name in ["../secret", "sub/..", "/etc/passwd", "sub/../../secret"] {
        assert_eq!(call(&harness, op::LOOKUP, 1, format!("{name}\0").as_bytes()), -libc::EINVAL, "{name}");
        assert_eq!(call(&harness, op::UNLINK, 1, format!("{name}\0").as_bytes()), -libc::EINVAL, "{name}");
    }
    assert_eq!(call(&harness, op::LOOKUP, 1, b"..\0"), -libc::ESTALE);
    assert_eq!(call(&harness, op::UNLINK, 1, b"..\0"), -libc::EINVAL);
    // Symlinks are nodes of their own, and nothing is opened through them.
    let link = look_up(&harness, "link");
    assert_eq!(call(&harness, op::OPEN, link, &[0; 8]), -libc::ENXIO);
    let up = look_up(&harness, "up");
    assert_eq!(call(&harness, op::LOOKUP, up, b"secret\0"), -libc::ENOTDIR);
    // Nor is anything that does something when it is opened.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let fifo = look_up(&harness, "fifo");
    assert_eq!(call(&harness, op::OPEN, fifo, &[0; 8]), -libc::ENXIO);
    assert!(File::open(outer.path().join("secret")).is_ok_and(|file| file.metadata().is_ok()));
}
