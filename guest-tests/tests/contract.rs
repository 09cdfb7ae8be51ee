//! What a guest is told about a RAFS image: values, limits and negotiation, where they are not just an errno.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

mod common;

use std::collections::BTreeMap;

use common::{both, check, connect, errno, nodes};
use guest_tests::frontend::client::{ROOT, init};
use guest_tests::frontend::device::{Device, Shape};
use guest_tests::frontend::fuse::{
    ATTR_OUT, Body, DirEntry, Fields, INIT_EXT, INIT_FLAGS, InitOut, MAX_PAGES, WRITEBACK_CACHE, forget_in,
    getattr_in, getxattr_in, init_in, listxattr_in, op, parse_attr_out, read_in,
};
use guest_tests::frontend::{Client, Options, Session};
use guest_tests::support::served::Served;
use sha2::{Digest, Sha256};

const ENXIO: i32 = 6;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ERANGE: i32 = 34;
const ENODATA: i32 = 61;
const EPROTO: i32 = 71;

#[test]
fn reads_at_the_limits() {
    both(|f| {
        let mut client = connect(f);
        let n = nodes(&mut client);
        let node = n["reg"];
        let whole = client.read(node, 0, 0, 1 << 20).unwrap();
        assert_eq!(whole.len(), 4097);
        for (offset, size) in [(0, 1), (1, 4096), (4095, 2), (4096, 4096), (4000, 1 << 20), (17, 0)] {
            let want = &whole[offset..(offset + size as usize).min(4097)];
            assert_eq!(client.read(node, 0, offset as u64, size).unwrap(), want, "{offset}+{size}");
        }
        for offset in [4097, 4098, 1 << 20, 1 << 40, i64::MAX as u64 - 4096] {
            assert_eq!(client.read(node, 0, offset, 4096).unwrap(), b"", "at {offset}");
        }
        for offset in [u64::MAX, u64::MAX - 4095] {
            assert_eq!(
                errno(client.call(op::READ, node, &read_in(0, offset, 8192), 8192)),
                EINVAL,
                "at {offset}"
            );
        }
        assert_eq!(client.read(n["empty"], 0, 0, 4096).unwrap(), b"");
        // More asked for than there is room for, and more than any guest may ask.
        for (size, room) in [(8192, 4096), (u32::MAX, 4096), (1 << 30, 0)] {
            assert_eq!(
                errno(client.call(op::READ, node, &read_in(0, 0, size), room)),
                EINVAL,
                "{size} into {room}"
            );
        }
        client.unmount().unwrap();
    });
}

#[test]
fn names_xattrs_statfs_lseek_access() {
    both(|f| {
        let mut client = connect(f);
        let n = nodes(&mut client);
        // A missing name is a success with node 0, so that the guest remembers it.
        let missing = client.lookup(n["dir"], b"no such name").unwrap();
        assert_eq!((missing.node, missing.entry_valid > 0), (0, true));
        assert_ne!(client.lookup(n["dir"], &[b'n'; 255]).unwrap().node, 0);
        assert_eq!(client.lookup(n["dir"], b".").unwrap().node, n["dir"]);
        assert_eq!(client.lookup(n["dir"], b"..").unwrap().attr.ino, client.getattr(ROOT).unwrap().ino);

        let xattrs = n["xattrs"];
        let mut names = client.listxattr(xattrs).unwrap();
        names.sort();
        let want: Vec<Vec<u8>> = f.case.expected[b"/xa/user".as_slice()].xattrs.keys().cloned().collect();
        assert_eq!(names, want);
        for (name, value) in &f.case.expected[b"/xa/user".as_slice()].xattrs {
            assert_eq!(&client.getxattr(xattrs, name).unwrap(), value, "{}", name.escape_ascii());
        }
        assert!(client.listxattr(n["fifo"]).unwrap().is_empty());
        let longest = client.getxattr(xattrs, b"user.longer.name").unwrap();
        let short = u32::try_from(longest.len() - 1).unwrap();
        check(
            &mut client,
            vec![
                ("missing".to_owned(), op::GETXATTR, xattrs, getxattr_in(64, b"user.none"), 64, &[ENODATA]),
                (
                    "missing, size".to_owned(),
                    op::GETXATTR,
                    xattrs,
                    getxattr_in(0, b"user.none"),
                    8,
                    &[ENODATA],
                ),
                (
                    "small".to_owned(),
                    op::GETXATTR,
                    xattrs,
                    getxattr_in(short, b"user.longer.name"),
                    4096,
                    if short == 0 { &[0] } else { &[ERANGE] },
                ),
                ("small list".to_owned(), op::LISTXATTR, xattrs, listxattr_in(3), 4096, &[ERANGE]),
            ],
        );

        let st = client.statfs(ROOT).unwrap();
        assert_eq!((st.bsize, st.frsize, st.namelen), (4096, 4096, 255));
        assert_eq!((st.bfree, st.bavail, st.ffree), (0, 0, 0));
        assert!(st.files >= 60 && st.blocks > 0, "{st:?}");

        let lseek = |offset: u64, whence: u32| Body::new().u64(0).u64(offset).u32(whence).u32(0).done();
        let (data, hole) = (3, 4);
        let mut seek = |offset, whence| {
            client
                .call(op::LSEEK, n["reg"], &lseek(offset, whence), 8)
                .map(|b| Fields::new(&b).u64().unwrap())
        };
        assert_eq!(seek(5, data).unwrap(), 5);
        assert_eq!(seek(5, hole).unwrap(), 4097);
        assert_eq!(seek(4097, data).unwrap_err().errno(), Some(ENXIO));
        assert_eq!(seek(9000, hole).unwrap_err().errno(), Some(ENXIO));

        let access = |mask: u32| Body::new().u32(mask).u32(0).done();
        check(
            &mut client,
            vec![
                ("R_OK".to_owned(), op::ACCESS, n["reg"], access(4), 16, &[0]),
                ("F_OK".to_owned(), op::ACCESS, n["reg"], access(0), 16, &[0]),
                ("W_OK".to_owned(), op::ACCESS, n["reg"], access(2), 16, &[EROFS]),
                ("X_OK of 0644".to_owned(), op::ACCESS, n["reg"], access(1), 16, &[EACCES]),
            ],
        );
        // No reply, but the descriptors come back, on any ring.
        client.forget(n["reg"], 1).unwrap();
        client.forget(u64::MAX, u64::MAX).unwrap();
        let two = Body::new().u32(2).u32(0).u64(n["reg"]).u64(1).u64(77).u64(1).done();
        let lie = Body::new().u32(u32::MAX).u32(0).u64(1).done();
        for body in [two, lie, Vec::new(), forget_in(1)] {
            let unique = client.session.submit(1, op::BATCH_FORGET, 0, &body, None).unwrap();
            client.session.flush().unwrap();
            let done = client.session.wait_for(unique).unwrap();
            client.session.release(done);
        }
        client.unmount().unwrap();
    });
}

#[test]
fn attributes_and_directories() {
    both(|f| {
        let mut client = connect(f);
        let n = nodes(&mut client);
        let root = client.getattr(ROOT).unwrap();
        assert_eq!(root.ino >> 56, 1, "the first mount's inode numbers begin with 1 << 56: {:#x}", root.ino);
        for (kind, node) in &n {
            let attr = client.getattr(*node).unwrap();
            assert_eq!(attr.blksize, 4096, "{kind}");
            assert_eq!((attr.atime, attr.ctime), (attr.mtime, attr.mtime), "{kind}");
            assert_eq!((attr.atime_ns, attr.ctime_ns), (attr.mtime_ns, attr.mtime_ns), "{kind}");
            if *kind != "root" {
                assert_eq!(attr.ino, *node, "{kind}");
            }
            if !matches!(*kind, "char" | "block") {
                assert_eq!(attr.rdev, 0, "{kind}");
            }
        }
        for (size, plus) in [300, 512, 4096, 32768].into_iter().flat_map(|s| [(s, false), (s + 128, true)]) {
            let list = client.list(n["dir"], size, plus).unwrap();
            let mut names: Vec<&[u8]> = list.iter().map(|e| e.name.as_slice()).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "each name once");
            let dots: Vec<u64> =
                list.iter().filter(|e| e.name == b"." || e.name == b"..").map(|e| e.ino).collect();
            assert_eq!(dots.len(), 2);
            assert!(dots.contains(&n["dir"]) && dots.contains(&root.ino), "{dots:x?}");
            for e in &list {
                assert!(e.next != 0 && e.next < 1 << 63, "cookie {:#x}", e.next);
                assert!(e.entry.is_none_or(|entry| entry.attr.ino == e.ino && entry.node != 0), "{e:?}");
            }
            // Any cookie leads to the same rest, also in the middle and in a new session.
            let middle = list.len() / 2;
            let rest = connect_again(&mut client, n["dir"], list[middle].next, plus);
            assert_eq!(rest, list[middle + 1..]);
        }
        for cookie in [1 << 40, (1 << 63) - 1, u64::MAX, 1 << 62, 0x1234_5678_9abc] {
            assert_eq!(client.readdir(n["dir"], 0, cookie, 4096, false).unwrap(), [], "cookie {cookie:#x}");
        }
        client.unmount().unwrap();
    });
}

fn connect_again(client: &mut Client, node: u64, cookie: u64, plus: bool) -> Vec<DirEntry> {
    // INIT once more, as after a reboot: cookies must not depend on what a session did before.
    init(&mut client.session, 7, 38, INIT_FLAGS, 0).unwrap();
    client.readdir(node, 0, cookie, 32768, plus).unwrap()
}

#[test]
fn init_negotiation() {
    let f = Served::case("v6-zstd-blake3", 2).unwrap();
    let raw = || {
        let options = Options { memory_mib: 64, shape: Shape::Whole, ..Options::default() };
        Session::new(Device::connect(&f.daemon.socket, &options).unwrap())
    };
    let mut s = raw();
    let out = init(&mut s, 7, 38, u32::MAX, u32::MAX).unwrap();
    assert_eq!((out.major, out.minor), (7, 38));
    assert_eq!(out.flags & WRITEBACK_CACHE, 0, "WRITEBACK_CACHE loses write errors on a read-only image");
    assert_ne!(out.flags & MAX_PAGES, 0);
    assert_ne!(out.flags & INIT_EXT, 0);
    assert_eq!((out.max_pages, out.max_write, out.time_gran), (256, 1 << 20, 1));
    drop(s);

    // Only what was offered is answered.
    let mut s = raw();
    let out = init(&mut s, 7, 45, 1 | MAX_PAGES, u32::MAX).unwrap();
    assert_eq!((out.flags & !(1 | MAX_PAGES), out.flags2), (0, 0), "{out:?}");
    drop(s);

    // A newer major version is told ours, and then speaks it.
    let mut s = raw();
    let body = s.call(1, op::INIT, 0, &init_in(8, 0, 0, 0), 64).unwrap();
    assert_eq!(Fields::new(&body).u32().unwrap(), 7);
    assert_eq!(init(&mut s, 7, 38, INIT_FLAGS, 0).map(|o: InitOut| o.major).unwrap(), 7);
    drop(s);

    // Too old, and nonsense.
    for (major, minor, want) in [(7, 26, EPROTO), (7, 0, EPROTO), (6, 0, EPROTO), (0, 0, EPROTO)] {
        let mut s = raw();
        assert_eq!(errno(s.call(1, op::INIT, 0, &init_in(major, minor, 0, 0), 64)), want, "{major}.{minor}");
    }
    // 16 bytes are INIT's body before 7.36.
    let mut s = raw();
    let out = s.call(1, op::INIT, 0, &init_in(7, 31, INIT_FLAGS, 0)[..16], 64).unwrap();
    assert_eq!(InitOut::parse(&out).unwrap().minor, 31);
    // A reboot: INIT again without DESTROY.
    let mut client = Client::mount(s).unwrap();
    assert_eq!(init(&mut client.session, 7, 38, INIT_FLAGS, 0).unwrap().minor, 38);
    client.getattr(ROOT).unwrap();
    client.unmount().unwrap();

    // A front-end that reconnects under a living guest sends no INIT: what the guest asks is served.
    let mut s = raw();
    let attr = parse_attr_out(&s.call(1, op::GETATTR, ROOT, &getattr_in(), ATTR_OUT).unwrap()).unwrap();
    drop(s);
    let mut client = connect(&f);
    assert_eq!(client.getattr(ROOT).unwrap(), attr);
    client.unmount().unwrap();
}

/// 1 MiB reads, many in flight on several rings, in every shape a driver may choose.
#[test]
fn long_reads_in_every_shape() {
    let f = Served::case("v6-large-files", 2).unwrap();
    for (shape, indirect, queue_size) in [
        (Shape::Pages, true, 1024),
        (Shape::Scattered, true, 1024),
        (Shape::Whole, false, 128),
        (Shape::Pages, false, 1024),
    ] {
        let options = Options { queues: 2, shape, indirect, queue_size, ..Options::default() };
        let mut client = Client::connect(&f.daemon.socket, &options).unwrap();
        let (path, entry) = f.case.expected.iter().max_by_key(|(_, e)| e.size).unwrap();
        let size = entry.size.unwrap();
        let node = client.resolve(path).unwrap().node;
        let mut asked = BTreeMap::new();
        for turn in 0..(size >> 20) {
            let ring = client.ring();
            let body = read_in(0, turn << 20, 1 << 20);
            let unique = client.session.submit(ring, op::READ, node, &body, Some(1 << 20)).unwrap();
            asked.insert(unique, turn);
        }
        client.session.flush().unwrap();
        let mut parts = BTreeMap::new();
        while !asked.is_empty() {
            let done = client.session.next_done().unwrap();
            let turn = asked.remove(&done.unique).unwrap();
            parts.insert(turn, client.session.take(done).unwrap());
        }
        let mut all: Vec<u8> = parts.into_values().flatten().collect();
        all.extend(client.read(node, 0, all.len() as u64, 1 << 20).unwrap());
        assert_eq!(Some(hex::encode(Sha256::digest(&all))), entry.sha256, "{shape:?}");
        client.unmount().unwrap();
    }
}
