//! What a guest may do with a directory that is passed through, request by request behind a virtqueue: the calls that
//! overlayfs, package managers and databases make.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests")]

mod common;

use common::request;
use rafsd::fuse::abi::{
    CopyFileRangeIn, CreateIn, FallocateIn, FileLock, FlushIn, GetxattrIn, InitIn, LkIn, OpenIn, Rename2In,
    SetxattrIn, StatxIn, WriteIn, op,
};
use rafsd::mounts::{Passthrough, PassthroughBackend, PassthroughOptions};
use rafsd::virtio::Harness;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use zerocopy::IntoBytes;

/// Node of the root.
const ROOT: u64 = 1;

/// A directory, and what guests see of it.
struct Shared {
    dir: TempDir,
    backend: PassthroughBackend,
}

/// One guest.
struct Guest {
    fs: Arc<Passthrough>,
    ring: Harness<Passthrough>,
}

impl Shared {
    fn new(options: PassthroughOptions) -> Self {
        Self::on(tempfile::tempdir().unwrap(), options)
    }

    fn on(dir: TempDir, options: PassthroughOptions) -> Self {
        let backend = PassthroughBackend::open(dir.path(), options).unwrap();
        Self { dir, backend }
    }

    fn guest(&self) -> Guest {
        let fs = self.backend.alone();
        let guest = Guest { ring: Harness::new(Arc::clone(&fs)).unwrap(), fs };
        let init = InitIn { major: 7, minor: 38, max_readahead: 0, flags: 0 };
        assert_eq!(guest.call(op::INIT, 0, init.as_bytes()), 0);
        guest
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn node(&self, guest: &Guest, name: &str) -> u64 {
        assert_eq!(guest.call(op::LOOKUP, ROOT, format!("{name}\0").as_bytes()), 0, "{name}");
        1 << 56 | 1 << 48 | fs::symlink_metadata(self.path(name)).unwrap().ino()
    }
}

impl Guest {
    fn call(&self, opcode: u32, node: u64, body: &[u8]) -> i32 {
        self.ring.prepare(0, &request(opcode, node, body), 4096 + 16, 0).unwrap();
        self.ring.announce(1).unwrap();
        self.ring.worker().serve();
        let begun = Instant::now();
        while self.ring.given_back() != self.ring.announced() {
            assert!(begun.elapsed() < Duration::from_secs(30), "no answer to opcode {opcode}");
            std::thread::sleep(Duration::from_micros(50));
        }
        self.ring.reply_header(0).1
    }

    /// A request with an answer: its bytes behind the header.
    fn ask(&self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        assert_eq!(self.call(opcode, node, body), 0, "opcode {opcode}");
        let len = usize::try_from(self.ring.reply_header(0).0).unwrap();
        self.ring.reply_payload(0, len - 16)
    }

    fn open(&self, node: u64, flags: i32) -> u64 {
        let body = OpenIn { flags: flags.cast_unsigned(), open_flags: 0 };
        let out = self.ask(op::OPEN, node, body.as_bytes());
        u64::from_ne_bytes(out[..8].try_into().unwrap())
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

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
    assert_eq!((word(stat, 32), word(stat, 40)), (node, 5), "inode number and size");
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
    let mode = |name| fs::metadata(shared.path(name)).unwrap().permissions().mode() & 0o7777;
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
