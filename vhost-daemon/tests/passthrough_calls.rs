//! What a guest may do with a directory that is passed through, request by request behind a virtqueue: the calls that
//! overlayfs, package managers and databases make.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests")]

mod common;
#[path = "common/shared.rs"]
mod shared;

use rafsd::fuse::abi::{
    CopyFileRangeIn, CreateIn, FallocateIn, GetxattrIn, InitIn, MkdirIn, Rename2In, SetxattrExtIn,
    SetxattrIn, StatxIn, WriteIn, op,
};
use rafsd::mounts::PassthroughOptions;
use shared::{Guest, ROOT, Shared, half, word};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use zerocopy::IntoBytes;

fn write(fh: u64, size: u32, write_flags: u32) -> WriteIn {
    WriteIn { fh, offset: 0, size, write_flags, lock_owner: 0, flags: 0, padding: 0 }
}

#[test]
fn a_file_without_a_name_is_written_and_gets_one() {
    let shared = Shared::new(PassthroughOptions::default());
    let guest = shared.guest();
    let flags = (libc::O_RDWR | libc::O_TMPFILE).cast_unsigned();
    let body = CreateIn { flags, mode: 0o100_640, umask: 0, open_flags: 0 };
    let made = guest.ask(op::TMPFILE, ROOT, &[body.as_bytes(), b"name\0"].concat());
    let (node, handle) = (word(&made, 0), word(&made, 128));
    assert_eq!(fs::read_dir(shared.dir.path()).unwrap().count(), 0);
    assert_eq!(guest.call(op::WRITE, node, &[write(handle, 4, 0).as_bytes(), b"data"].concat()), 0);
    guest.ask(op::LINK, ROOT, &[&node.to_ne_bytes()[..], b"named\0"].concat());
    assert_eq!(fs::read(shared.path("named")).unwrap(), b"data");
    assert_eq!(fs::metadata(shared.path("named")).unwrap().permissions().mode() & 0o7777, 0o640);
}

#[test]
fn what_is_appended_and_what_is_written_back_each_land_in_their_place() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("log"), "first.").unwrap();
    let guest = shared.guest();
    let node = shared.node(&guest, "log");
    let handle = guest.open(node, libc::O_RDWR | libc::O_APPEND);
    let appends = |flags| WriteIn { flags: libc::O_APPEND.cast_unsigned(), ..write(handle, 4, flags) };
    // Somebody else was faster: the guest's offset is old.
    assert_eq!(guest.call(op::WRITE, node, &[appends(0).as_bytes(), b"last"].concat()), 0);
    assert_eq!(fs::read(shared.path("log")).unwrap(), b"first.last");
    // A page of a mapping goes back through whatever handle there is.
    let back = appends(rafsd::fuse::abi::WRITE_CACHE);
    assert_eq!(guest.call(op::WRITE, node, &[back.as_bytes(), b"FIRS"].concat()), 0);
    assert_eq!(guest.call(op::WRITE, node, &[write(handle, 4, 1).as_bytes(), b"Firs"].concat()), 0);
    assert_eq!(fs::read(shared.path("log")).unwrap(), b"First.last");
}

#[test]
fn guests_look_for_themselves_whether_files_changed() {
    let shared = Shared::new(PassthroughOptions::default());
    let guest = shared.guest();
    let (auto, explicit) = (1 << 12, 1 << 25);
    let init = InitIn { major: 7, minor: 38, max_readahead: 0, flags: auto | explicit };
    assert_eq!(half(&guest.ask(op::INIT, 0, init.as_bytes()), 12) & (auto | explicit), auto);
}

#[test]
fn statx_tells_the_time_of_birth() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("f"), "12345").unwrap();
    let guest = shared.guest();
    let node = shared.node(&guest, "f");
    let body = StatxIn { getattr_flags: 0, reserved: 0, fh: 0, sx_flags: 0, sx_mask: 0xfff };
    let out = guest.ask(op::STATX, node, body.as_bytes());
    // Behind valid times, flags and spares: mask, blksize, attributes, nlink, uid, gid, mode, ino, size.
    let stat = &out[32..];
    assert_eq!(half(stat, 0) & 0x7ff, 0x7ff, "all of the basic fields");
    let ino = 1 << 56 | 1 << 48 | fs::metadata(shared.path("f")).unwrap().ino();
    assert_eq!((word(stat, 32), word(stat, 40)), (ino, 5), "inode number and size");
    let born = fs::metadata(shared.path("f")).unwrap().created();
    match born {
        Ok(born) => {
            assert_ne!(half(stat, 0) & 0x800, 0, "the host knows it, so the guest does");
            let seconds = born.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            assert_eq!(word(stat, 80), seconds);
        }
        Err(_) => assert_eq!(half(stat, 0) & 0x800, 0, "what the host does not know is not told"),
    }
}

#[test]
fn a_range_is_copied_on_the_host() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("from"), "0123456789").unwrap();
    fs::write(shared.path("to"), "..........").unwrap();
    let guest = shared.guest();
    let (from, to) = (shared.node(&guest, "from"), shared.node(&guest, "to"));
    let copy = |len, flags| CopyFileRangeIn {
        fh_in: guest.open(from, libc::O_RDONLY),
        off_in: 2,
        nodeid_out: to,
        fh_out: guest.open(to, libc::O_RDWR),
        off_out: 1,
        len,
        flags,
    };
    let out = guest.ask(op::COPY_FILE_RANGE, from, copy(5, 0).as_bytes());
    assert_eq!(half(&out, 0), 5);
    assert_eq!(fs::read(shared.path("to")).unwrap(), b".23456....");
    let out = guest.ask(op::COPY_FILE_RANGE, from, copy(1 << 40, 0).as_bytes());
    assert_eq!(half(&out, 0), 8, "to the end of the file");
    assert_eq!(guest.call(op::COPY_FILE_RANGE, from, copy(5, 1).as_bytes()), -libc::EINVAL);
    assert_eq!(guest.call(op::COPY_FILE_RANGE, 99, copy(5, 0).as_bytes()), -libc::ENOENT);
}

#[test]
fn setuid_goes_when_the_guest_says_so() {
    let shared = Shared::new(PassthroughOptions::default());
    let guest = shared.guest();
    let mode = |name: &str| fs::metadata(shared.path(name)).unwrap().permissions().mode() & 0o7777;
    let file = |name: &str| {
        fs::write(shared.path(name), "....").unwrap();
        fs::set_permissions(shared.path(name), fs::Permissions::from_mode(0o6755)).unwrap();
        shared.node(&guest, name)
    };
    let node = file("kept");
    assert_eq!(guest.call(op::WRITE, node, &[write(0, 1, 0).as_bytes(), b"x"].concat()), 0);
    if mode("kept") != 0o6755 {
        eprintln!("skipped: this process may not keep setuid bits itself");
        return;
    }
    let node = file("dropped");
    assert_eq!(guest.call(op::WRITE, node, &[write(0, 1, 1 << 2).as_bytes(), b"x"].concat()), 0);
    assert_eq!(mode("dropped"), 0o755);
    // The right to keep them is back for the next request.
    assert_eq!(
        guest.call(op::WRITE, shared.node(&guest, "kept"), &[write(0, 1, 0).as_bytes(), b"x"].concat()),
        0
    );
    assert_eq!(mode("kept"), 0o6755);
}

#[test]
fn setuid_goes_with_what_other_users_allocate_and_copy() {
    let shared = Shared::new(PassthroughOptions::default());
    let guest = shared.guest();
    let mode = |name: &str| fs::metadata(shared.path(name)).unwrap().permissions().mode() & 0o7777;
    let file = |name: &str| {
        fs::write(shared.path(name), "....").unwrap();
        fs::set_permissions(shared.path(name), fs::Permissions::from_mode(0o6777)).unwrap();
        shared.node(&guest, name)
    };
    let from = file("from");
    let allocate = FallocateIn { fh: 0, offset: 0, length: 8, mode: 0, padding: 0 };
    let copy =
        |to| CopyFileRangeIn { fh_in: 0, off_in: 0, nodeid_out: to, fh_out: 0, off_out: 0, len: 4, flags: 0 };
    for (user, left) in [((0, 0), 0o6777), ((3001, 3001), 0o777)] {
        let node = file(&format!("allocated by {}", user.0));
        assert_eq!(guest.call_as(user, op::FALLOCATE, node, allocate.as_bytes()), 0);
        assert_eq!(mode(&format!("allocated by {}", user.0)), left);
        let node = file(&format!("copied by {}", user.0));
        assert_eq!(guest.call_as(user, op::COPY_FILE_RANGE, from, copy(node).as_bytes()), 0);
        assert_eq!(mode(&format!("copied by {}", user.0)), left);
    }
}

#[test]
fn what_nobody_makes_is_not_made_as_root() {
    let shared = Shared::new(PassthroughOptions::default());
    let guest = shared.guest();
    let body = [MkdirIn { mode: 0o755, umask: 0o022 }.as_bytes(), b"d\0"].concat();
    for user in [(u32::MAX, 0), (0, u32::MAX)] {
        assert_eq!(guest.call_as(user, op::MKDIR, ROOT, &body), -libc::EINVAL);
    }
    assert!(!shared.path("d").exists());
    assert_eq!(guest.call_as((1234, 4321), op::MKDIR, ROOT, &body), 0);
    let made = fs::metadata(shared.path("d")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1234, 4321, 0o755));
}

#[test]
fn the_way_up_is_found_as_long_as_it_is_inside() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::create_dir_all(shared.path("a/b")).unwrap();
    let guest = shared.guest();
    let a = shared.node(&guest, "a");
    let b = word(&guest.ask(op::LOOKUP, a, b"b\0"), 0);
    assert_eq!(word(&guest.ask(op::LOOKUP, b, b"..\0"), 0), a);
    assert_eq!(word(&guest.ask(op::LOOKUP, a, b"..\0"), 0), ROOT);
    assert_eq!(guest.call(op::LOOKUP, ROOT, b"..\0"), -libc::ESTALE);
    let elsewhere = tempfile::tempdir_in(shared.dir.path().parent().unwrap()).unwrap();
    fs::rename(shared.path("a"), elsewhere.path().join("a")).unwrap();
    assert_eq!(guest.call(op::LOOKUP, b, b"..\0"), -libc::ESTALE);
    assert_eq!(guest.call(op::LOOKUP, a, b"..\0"), -libc::ESTALE);
}

#[test]
fn nodes_and_handles_of_a_former_daemon_are_not_those_of_the_next() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("f"), "").unwrap();
    let seen = || {
        let guest = shared.guest();
        let node = shared.node(&guest, "f");
        (node, guest.open(node, libc::O_RDONLY))
    };
    let (former, next) = (seen(), seen());
    assert!(former.0 != next.0 && former.1 != next.1, "{former:?} {next:?}");
    let stale = shared.guest();
    let node = shared.node(&stale, "f");
    assert_eq!(stale.call(op::GETATTR, former.0, &[0; 16]), -libc::ESTALE);
    // A guest that forgets what the former told it loses nothing of this one.
    stale.send(1, &common::request(op::FORGET, former.0, &1000u64.to_ne_bytes()));
    assert_eq!(stale.call(op::GETATTR, node, &[0; 16]), 0);
    let body = rafsd::fuse::abi::ReadIn {
        fh: former.1,
        offset: 0,
        size: 1,
        read_flags: 0,
        lock_owner: 0,
        flags: 0,
        padding: 0,
    };
    assert_eq!(stale.call(op::READ, node, body.as_bytes()), -libc::EBADF);
}

#[test]
fn an_acl_set_by_somebody_else_takes_the_setgid_bit_along() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("f"), "").unwrap();
    fs::set_permissions(shared.path("f"), fs::Permissions::from_mode(0o2755)).unwrap();
    let guest = shared.guest();
    let node = shared.node(&guest, "f");
    let long = |setxattr_flags| {
        let body = SetxattrExtIn { size: 1, flags: 0, setxattr_flags, padding: 0 };
        [body.as_bytes(), b"user.a\0x"].concat()
    };
    let mode = || fs::metadata(shared.path("f")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(guest.call(op::SETXATTR, node, &long(0)), 0);
    assert_eq!(mode(), 0o2755);
    assert_eq!(guest.call(op::SETXATTR, node, &long(1)), 0);
    assert_eq!(mode(), 0o755);
    // The short form, of guests that know no other; neither form with a value of another length.
    let short = |value: &[u8]| {
        let body = SetxattrIn { size: 1, flags: 0 };
        [body.as_bytes(), b"user.b\0", value].concat()
    };
    assert_eq!(guest.call(op::SETXATTR, node, &short(b"y")), 0);
    assert_eq!(guest.call(op::SETXATTR, node, &short(b"")), -libc::EINVAL);
    let names = guest.ask(op::LISTXATTR, node, GetxattrIn { size: 1000, padding: 0 }.as_bytes());
    assert!(names.ends_with(b"user.a\0user.b\0"), "{names:?}");
}

fn rename(guest: &Guest, from: &str, to: &str, flags: u32) -> i32 {
    let body = Rename2In { newdir: ROOT, flags, padding: 0 };
    let names = format!("{from}\0{to}\0");
    guest.call(op::RENAME2, ROOT, &[body.as_bytes(), names.as_bytes()].concat())
}

#[test]
fn names_are_exchanged_kept_and_whited_out() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("a"), "a").unwrap();
    fs::write(shared.path("b"), "b").unwrap();
    let guest = shared.guest();
    let read = |name| fs::read_to_string(shared.path(name)).unwrap();
    assert_eq!(rename(&guest, "a", "b", libc::RENAME_NOREPLACE), -libc::EEXIST);
    assert_eq!(rename(&guest, "a", "b", libc::RENAME_EXCHANGE), 0);
    assert_eq!((read("a"), read("b")), ("b".to_owned(), "a".to_owned()));
    match rename(&guest, "a", "c", libc::RENAME_WHITEOUT) {
        0 => {
            let left = fs::symlink_metadata(shared.path("a")).unwrap();
            assert!(left.file_type().is_char_device() && left.rdev() == 0, "a whiteout is left");
        }
        e => assert_eq!(e, -libc::EINVAL, "only where the host's file system has none"),
    }
    assert_eq!(rename(&guest, "b", "../out", 0), -libc::EINVAL);
    assert_eq!(rename(&guest, "b", "x", 1 << 30), -libc::EINVAL);
}

#[test]
fn ranges_are_allocated_kept_in_size_punched_and_zeroed() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("f"), vec![7; 20_000]).unwrap();
    let guest = shared.guest();
    let node = shared.node(&guest, "f");
    let fallocate = |mode: i32, offset, length| {
        let mode = mode.cast_unsigned();
        let body = FallocateIn { fh: 0, offset, length, mode, padding: 0 };
        guest.call(op::FALLOCATE, node, body.as_bytes())
    };
    let size = || fs::metadata(shared.path("f")).unwrap().len();
    assert_eq!((fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, 50_000), size()), (0, 20_000));
    assert_eq!((fallocate(0, 0, 30_000), size()), (0, 30_000));
    assert_eq!(fallocate(libc::FALLOC_FL_PUNCH_HOLE, 0, 4096), -libc::EOPNOTSUPP, "wants KEEP_SIZE");
    assert_eq!(fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 100, 1000), 0);
    let bytes = fs::read(shared.path("f")).unwrap();
    assert_eq!((bytes[99], bytes[100], bytes[1099], bytes[1100]), (7, 0, 0, 7));
    let zero = fallocate(libc::FALLOC_FL_ZERO_RANGE, 2000, 10);
    assert!(zero == 0 || zero == -libc::EOPNOTSUPP, "{zero}");
    assert_eq!(fallocate(0, u64::MAX, 2), -libc::EINVAL);
    assert_eq!(fallocate(0, 0, 0), -libc::EINVAL);
}

#[test]
fn xattrs_are_set_listed_replaced_and_removed() {
    let shared = Shared::new(PassthroughOptions::default());
    fs::write(shared.path("f"), "").unwrap();
    let guest = shared.guest();
    let node = shared.node(&guest, "f");
    let set = |name: &str, value: &[u8], flags: i32| {
        let head = SetxattrIn { size: u32::try_from(value.len()).unwrap(), flags: flags.cast_unsigned() };
        let body = [head.as_bytes(), name.as_bytes(), b"\0", value].concat();
        guest.call(op::SETXATTR, node, &body)
    };
    let get = |name: &str, size| {
        let head = GetxattrIn { size, padding: 0 };
        [head.as_bytes(), name.as_bytes(), b"\0"].concat()
    };
    if set("user.a", b"one", 0) == -libc::EOPNOTSUPP {
        eprintln!("skipped: the host's file system has no xattrs");
        return;
    }
    assert_eq!(set("user.a", b"two", libc::XATTR_CREATE), -libc::EEXIST);
    assert_eq!(set("user.b", b"two", libc::XATTR_REPLACE), -libc::ENODATA);
    assert_eq!(guest.ask(op::GETXATTR, node, &get("user.a", 100)), b"one");
    assert_eq!(half(&guest.ask(op::GETXATTR, node, &get("user.a", 0)), 0), 3, "its length");
    assert_eq!(guest.call(op::GETXATTR, node, &get("user.a", 2)), -libc::ERANGE);
    // Longer than the part of a request that is handed over at once.
    let long = vec![b'x'; 3000];
    assert_eq!(set("user.long", &long, libc::XATTR_CREATE), 0);
    assert_eq!(guest.ask(op::GETXATTR, node, &get("user.long", 4000)), long);
    let names = guest.ask(op::LISTXATTR, node, GetxattrIn { size: 1000, padding: 0 }.as_bytes());
    assert!(names.split(|b| *b == 0).any(|name| name == b"user.long"), "{names:?}");
    assert_eq!(guest.call(op::REMOVEXATTR, node, b"user.a\0"), 0);
    assert_eq!(guest.call(op::GETXATTR, node, &get("user.a", 100)), -libc::ENODATA);
}

#[test]
fn a_hundred_thousand_files_need_few_descriptors() {
    const FILES: u32 = 100_000;
    let options = PassthroughOptions { fd_budget: 64, ..PassthroughOptions::default() };
    // In memory, where so many files are made and removed quickly.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let shared = Shared::on(dir, options);
    for n in 0..FILES {
        File::create(shared.path(&n.to_string())).unwrap();
    }
    let guest = shared.guest();
    for n in 0..FILES {
        assert_eq!(guest.call(op::LOOKUP, ROOT, format!("{n}\0").as_bytes()), 0, "{n}");
    }
    let (nodes, descriptors, _) = guest.fs.usage();
    assert_eq!(nodes, FILES as usize);
    if descriptors > 64 {
        eprintln!("skipped: the host's file system has no handles, or they may not be opened");
        return;
    }
    // One that is held by a handle can be written.
    let node = shared.node(&guest, "99999");
    assert_eq!(guest.call(op::WRITE, node, &[write(0, 4, 0).as_bytes(), b"data"].concat()), 0);
    let mut data = [0; 4];
    File::open(shared.path("99999")).unwrap().read_exact_at(&mut data, 0).unwrap();
    assert_eq!(&data, b"data");
    guest.call(op::DESTROY, 0, &[]);
    assert_eq!(guest.fs.usage(), (0, 0, 0));
    assert!(Path::new("/proc/self/fd").read_dir().unwrap().count() < 500);
}
