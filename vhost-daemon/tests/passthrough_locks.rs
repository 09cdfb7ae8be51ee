//! POSIX locks and those of flock(2) in a directory that is passed through, between guests and with the host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests")]

mod common;
#[path = "common/shared.rs"]
mod shared;

use rafsd::fuse::abi::{FileLock, FlushIn, InterruptIn, LkIn, op};
use rafsd::mounts::PassthroughOptions;
use shared::{Guest, Shared, half, word};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use zerocopy::IntoBytes;

fn lock(fh: u64, owner: u64, kind: i32, (start, end): (u64, u64), flags: u32) -> LkIn {
    let lock = FileLock { start, end, kind: kind.cast_unsigned(), pid: 1 };
    LkIn { fh, owner, lock, flags, padding: 0 }
}

#[test]
fn guests_and_the_host_see_each_others_posix_locks() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("db"), [0; 100]).unwrap();
    let (one, other) = (shared.guest(), shared.guest());
    let (here, there) = (shared.node(&one, "db"), shared.node(&other, "db"));
    // Owners are the guests' own numbers: both call theirs 5.
    let set =
        |guest: &Guest, node, kind, range| guest.call(op::SETLK, node, lock(0, 5, kind, range, 0).as_bytes());
    assert_eq!(set(&one, here, libc::F_WRLCK, (10, 19)), 0);
    assert_eq!(set(&other, there, libc::F_WRLCK, (19, 30)), -libc::EAGAIN, "the last byte is taken");
    assert_eq!(set(&other, there, libc::F_WRLCK, (20, 30)), 0);
    let held = other.ask(op::GETLK, there, lock(0, 5, libc::F_RDLCK, (0, 15), 0).as_bytes());
    assert_eq!((word(&held, 0), word(&held, 8), half(&held, 16)), (10, 19, libc::F_WRLCK.cast_unsigned()));
    // Nothing of a guest's own is in its way.
    let own = one.ask(op::GETLK, here, lock(0, 5, libc::F_RDLCK, (0, 15), 0).as_bytes());
    assert_eq!(half(&own, 16), libc::F_UNLCK.cast_unsigned());
    // A close of any descriptor in the guest drops the owner's locks.
    let flush = FlushIn { fh: 0, unused: 0, padding: 0, lock_owner: 5 };
    assert_eq!(one.call(op::FLUSH, here, flush.as_bytes()), 0);
    assert_eq!(set(&other, there, libc::F_WRLCK, (0, 19)), 0);
    // A guest that is gone holds nothing.
    assert_eq!(set(&one, here, libc::F_RDLCK, (0, 1)), -libc::EAGAIN);
    other.call(op::DESTROY, 0, &[]);
    assert_eq!(other.fs.usage(), (0, 0, 0));
    assert_eq!(set(&one, here, libc::F_RDLCK, (0, 99)), 0);
    assert_eq!(set(&one, here, 77, (0, 99)), -libc::EINVAL);
    assert_eq!(set(&one, here, libc::F_RDLCK, (9, 3)), -libc::EINVAL);
}

#[test]
fn guests_see_each_others_flocks_where_that_is_wanted() {
    let shared = Shared::new(PassthroughOptions { flocks: true, ..PassthroughOptions::default() });
    fs::write(shared.path("f"), "").unwrap();
    let (one, other) = (shared.guest(), shared.guest());
    let (here, there) = (shared.node(&one, "f"), shared.node(&other, "f"));
    let (mine, theirs) = (one.open(here, libc::O_RDONLY), other.open(there, libc::O_RDONLY));
    let flock = |guest: &Guest, node, fh, kind| {
        guest.call(op::SETLK, node, lock(fh, 1, kind, (0, u64::MAX >> 1), 1).as_bytes())
    };
    assert_eq!(flock(&one, here, mine, libc::F_RDLCK), 0);
    assert_eq!(flock(&other, there, theirs, libc::F_RDLCK), 0, "shared");
    assert_eq!(flock(&other, there, theirs, libc::F_WRLCK), -libc::EAGAIN);
    assert_eq!(flock(&one, here, mine, libc::F_UNLCK), 0);
    assert_eq!(flock(&other, there, theirs, libc::F_WRLCK), 0);
    let host = File::open(shared.path("f")).unwrap();
    assert!(rustix::fs::flock(&host, rustix::fs::FlockOperation::NonBlockingLockShared).is_err());
    other.call(op::DESTROY, 0, &[]);
    rustix::fs::flock(&host, rustix::fs::FlockOperation::NonBlockingLockShared).unwrap();
    assert_eq!(flock(&one, here, 77, libc::F_RDLCK), -libc::EBADF);
}

/// A request with its own `unique`.
fn message(unique: u64, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = common::request(opcode, node, body);
    message[8..16].copy_from_slice(&unique.to_ne_bytes());
    message
}

#[test]
fn a_lock_that_was_waited_for_stays_when_another_thread_closes_the_file() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("f"), "").unwrap();
    let (one, other) = (shared.guest(), shared.guest());
    let (here, there) = (shared.node(&one, "f"), shared.node(&other, "f"));
    let all = (0, u64::MAX >> 1);
    let set = |kind| other.call(op::SETLK, there, lock(0, 9, kind, all, 0).as_bytes());
    assert_eq!(set(libc::F_WRLCK), 0);
    let before = one.ring.given_back();
    one.send(1, &message(77, op::SETLKW, here, lock(0, 5, libc::F_WRLCK, all, 0).as_bytes()));
    assert_eq!(one.ring.given_back(), before, "it waits");
    let flush = FlushIn { fh: 0, unused: 0, padding: 0, lock_owner: 5 };
    assert_eq!(one.call(op::FLUSH, here, flush.as_bytes()), 0);
    assert_eq!(set(libc::F_UNLCK), 0);
    one.wait_for(before.wrapping_add(2));
    assert_eq!(one.ring.reply_header(1).1, 0);
    assert_eq!(set(libc::F_WRLCK), -libc::EAGAIN, "the guest was told that it has the lock");
    assert_eq!(one.call(op::FLUSH, here, flush.as_bytes()), 0);
    assert_eq!(set(libc::F_WRLCK), 0);
}

#[test]
fn an_interrupt_is_heard_before_and_while_a_lock_waits() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("f"), "").unwrap();
    let (one, other) = (shared.guest(), shared.guest());
    let (here, there) = (shared.node(&one, "f"), shared.node(&other, "f"));
    let all = (0, u64::MAX >> 1);
    assert_eq!(other.call(op::SETLK, there, lock(0, 9, libc::F_WRLCK, all, 0).as_bytes()), 0);
    let wait = |unique| {
        one.send(1, &message(unique, op::SETLKW, here, lock(0, 5, libc::F_WRLCK, all, 0).as_bytes()));
    };
    // INTERRUPT has no reply: its place is given back as it is.
    let interrupt =
        |unique| one.send(2, &message(unique | 1, op::INTERRUPT, 0, InterruptIn { unique }.as_bytes()));
    let begun = one.ring.given_back();
    wait(100);
    interrupt(100);
    one.wait_for(begun.wrapping_add(2));
    assert_eq!(one.ring.reply_header(1), (16, -libc::EINTR, 100));
    // Another thread was quicker with the second than this one with the first.
    interrupt(102);
    wait(102);
    one.wait_for(begun.wrapping_add(4));
    assert_eq!(one.ring.reply_header(1), (16, -libc::EINTR, 102));
    // And it is forgotten with the one that it was about.
    wait(102);
    assert_eq!(one.ring.given_back(), begun.wrapping_add(4), "it waits");
}

#[test]
fn read_locks_open_nothing_for_writing_and_move_along_when_a_write_lock_does() {
    let shared = Shared::new(PassthroughOptions::default());
    let program = shared.path("program");
    fs::copy("/bin/true", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (one, other) = (shared.guest(), shared.guest());
    let (here, there) = (shared.node(&one, "program"), shared.node(&other, "program"));
    let set =
        |guest: &Guest, node, kind, range| guest.call(op::SETLK, node, lock(0, 5, kind, range, 0).as_bytes());
    assert_eq!(set(&one, here, libc::F_RDLCK, (0, 9)), 0);
    assert_eq!(set(&one, here, libc::F_RDLCK, (100, u64::MAX >> 1)), 0);
    one.ask(op::GETLK, here, lock(0, 5, libc::F_WRLCK, (0, 9), 0).as_bytes());
    other.ask(op::GETLK, there, lock(0, 5, libc::F_WRLCK, (0, 9), 0).as_bytes());
    assert!(Command::new(&program).status().unwrap().success(), "it can be run");
    assert_eq!(set(&one, here, libc::F_WRLCK, (5, 7)), 0);
    assert_eq!(
        Command::new(&program).status().unwrap_err().raw_os_error(),
        Some(libc::ETXTBSY),
        "it is open for writing now"
    );
    for range in [(0, 4), (8, 9), (100, 100), (1 << 40, 1 << 40)] {
        assert_eq!(set(&other, there, libc::F_WRLCK, range), -libc::EAGAIN, "{range:?}");
        assert_eq!(set(&other, there, libc::F_RDLCK, range), 0, "{range:?}");
    }
    assert_eq!(set(&other, there, libc::F_RDLCK, (5, 5)), -libc::EAGAIN);
    assert_eq!(set(&other, there, libc::F_WRLCK, (10, 99)), 0, "and no more than that");
}

#[test]
fn a_write_lock_behind_many_read_locks_takes_nobodys_time() {
    let shared = Shared::new(PassthroughOptions::default());
    let guest = shared.guest();
    // All of them through a descriptor that reads alone, or one that writes: that needs no other for the write lock.
    for (name, flags, answer) in [("r", libc::O_RDONLY, -libc::ENOLCK), ("w", libc::O_RDWR, 0)] {
        fs::write(shared.path(name), "").unwrap();
        let node = shared.node(&guest, name);
        let fh = guest.open(node, flags);
        let set = |kind, at| guest.call(op::SETLK, node, lock(fh, 5, kind, (at, at), 0).as_bytes());
        for n in 0..300 {
            assert_eq!(set(libc::F_RDLCK, 2 * n), 0);
        }
        assert_eq!(set(libc::F_WRLCK, 1000), answer, "{name}");
        let other = shared.guest();
        let there = shared.node(&other, name);
        let held = other.call(op::SETLK, there, lock(0, 5, libc::F_WRLCK, (598, 598), 0).as_bytes());
        assert_eq!(held, -libc::EAGAIN, "the read locks are kept");
    }
}

#[test]
fn guests_do_not_hear_who_holds_a_lock_on_the_host() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("f"), "").unwrap();
    let guest = shared.guest();
    let node = shared.node(&guest, "f");
    // This process; it loses the lock as soon as the daemon, which here is the same process, closes the file.
    let host = File::options().write(true).open(shared.path("f")).unwrap();
    rustix::fs::fcntl_lock(&host, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let held = guest.ask(op::GETLK, node, lock(0, 5, libc::F_RDLCK, (0, 15), 0).as_bytes());
    assert_eq!((half(&held, 16), half(&held, 20)), (libc::F_WRLCK.cast_unsigned(), 0));
}

#[test]
fn a_guest_locks_so_many_ranges_and_no_more() {
    const FILES: u64 = 100;
    let shared = Shared::new(PassthroughOptions::default());
    let (one, other) = (shared.guest(), shared.guest());
    let nodes: Vec<u64> = (0..FILES)
        .map(|n| {
            fs::write(shared.path(&n.to_string()), "").unwrap();
            shared.node(&one, &n.to_string())
        })
        .collect();
    let set = |kind, node, range| one.call(op::SETLK, node, lock(0, 5, kind, range, 0).as_bytes());
    let mut held = 0;
    let refused = 'full: loop {
        for node in &nodes {
            let answer = set(libc::F_RDLCK, *node, (held, held));
            if answer != 0 {
                break 'full answer;
            }
        }
        // Not beside one another, or the kernel would make one of two.
        held += 2;
        assert!(held < 1000, "there is no end");
    };
    assert_eq!((refused, held), (-libc::ENOLCK, 2 * 327));
    // Others may, and the same one when it has dropped some.
    let there = shared.node(&other, "0");
    assert_eq!(other.call(op::SETLK, there, lock(0, 5, libc::F_RDLCK, (0, 0), 0).as_bytes()), 0);
    for node in &nodes[1..] {
        assert_eq!(set(libc::F_UNLCK, *node, (0, u64::MAX >> 1)), 0);
    }
    let begun = std::time::Instant::now();
    while set(libc::F_RDLCK, nodes[0], (5000, 5000)) != 0 {
        assert!(begun.elapsed().as_secs() < 30, "they are gone");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
