//! FUSE mode on this machine's kernel: images and directories mounted by the library itself.
//!
//! Needs /dev/fuse and the right to mount; without them nothing can be shown and the tests say so.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests")]

mod common;

use common::corpus;
use rafsd::daemon::{Daemon, FsKind, Identity, MountConfig, MountRequest, StartupConfig, Transport, Version};
use rafsd::fusedev::{FailoverPolicy, FuseMount, FuseOptions, is_mounted};
use rafsd::mounts::MountPath;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// A mount that is gone when the test is over, however it ends.
struct Mounted {
    daemon: Arc<Daemon>,
    fuse: Arc<FuseMount>,
    dir: TempDir,
}

impl Mounted {
    /// Mounts `requests` on a new directory; `None` where this machine does not allow it.
    fn new(requests: &[MountRequest], writable: bool) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: no /dev/fuse, or not root");
            return None;
        }
        let identity = Identity { version: Version::of_build(), id: None, supervisor: None };
        let daemon = Arc::new(Daemon::new(identity).unwrap());
        for request in requests {
            daemon.mount(request).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let options = FuseOptions {
            mountpoint: dir.path().to_owned(),
            threads: 4,
            writable,
            failover: FailoverPolicy::Resend,
            supervisor: None,
            upgrade: false,
        };
        let fuse = FuseMount::new(&daemon, options, || {}).unwrap();
        fuse.mount().unwrap();
        daemon.set_transport(Arc::clone(&fuse) as _);
        Some(Self { daemon, fuse, dir })
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.fuse.unmount();
        self.daemon.shutdown();
        assert!(!is_mounted(self.dir.path()));
    }
}

/// A copy of a case's blobs: cache files are kept beside them, and the corpus stays as it is.
fn blobs(case: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for blob in fs::read_dir(corpus(case).join("blobs")).unwrap() {
        let blob = blob.unwrap();
        fs::copy(blob.path(), dir.path().join(blob.file_name())).unwrap();
    }
    dir
}

fn image(case: &str, blobs: &TempDir, path: &str) -> MountRequest {
    let startup = StartupConfig { localfs_dir: Some(blobs.path().to_owned()), ..StartupConfig::default() };
    MountRequest {
        path: MountPath::parse(path).unwrap(),
        kind: FsKind::Rafs,
        source: corpus(case).join("bootstrap"),
        config: MountConfig::Startup(startup),
        prefetch_files: Vec::new(),
    }
}

fn directory(dir: &Path, path: &str) -> MountRequest {
    MountRequest {
        path: MountPath::parse(path).unwrap(),
        kind: FsKind::Passthrough,
        source: dir.to_owned(),
        config: MountConfig::Text(String::new()),
        prefetch_files: Vec::new(),
    }
}

/// Runs a script in `dir`; its output must be complete in a minute.
fn script(dir: &Path, text: &str) -> String {
    let out = Command::new("timeout")
        .args(["120", "sh", "-c", text])
        .current_dir(dir)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{:?}\n{text}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    text
}

#[test]
fn an_image_reads_like_its_files() {
    let files = blobs("v6-large-files");
    let Some(mounted) = Mounted::new(&[image("v6-large-files", &files, "/")], false) else { return };
    let image = common::mount("v6-large-files", tempfile::tempdir().unwrap().path());
    let (name, size) = common::largest(&image);
    let path = mounted.path(&String::from_utf8(name).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), size);
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len() as u64, size);
    let file = File::open(&path).unwrap();
    for offset in [0, 4095, size / 2 + 1, size - 1] {
        let mut part = vec![0; usize::try_from((size - offset).min(100_000)).unwrap()];
        file.read_exact_at(&mut part, offset).unwrap();
        let at = usize::try_from(offset).unwrap();
        assert_eq!(part, whole[at..at + part.len()]);
    }
    assert_eq!(File::create(mounted.path("new")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    let options = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = options.lines().find(|l| l.contains(&*mounted.dir.path().to_string_lossy())).unwrap();
    assert!(line.starts_with("rafs "), "{line}");
    for option in
        ["ro", "nosuid", "nodev", "noatime", "default_permissions", "allow_other", "max_read=1052672"]
    {
        assert!(line.split([' ', ',']).any(|o| o == option), "{option} is not in {line}");
    }
}

#[test]
fn mounts_come_and_go_below_a_mount() {
    let Some(mounted) = Mounted::new(&[], false) else { return };
    assert_eq!(fs::read_dir(mounted.dir.path()).unwrap().count(), 0);
    let files = blobs("v5-zstd-blake3");
    for _ in 0..3 {
        mounted.daemon.mount(&image("v5-zstd-blake3", &files, "/a/b")).unwrap();
        let names: Vec<_> =
            fs::read_dir(mounted.path("a/b")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(names.len() > 5, "{names:?}");
        assert_eq!(fs::metadata(mounted.path("a/b/sizes/f4097")).unwrap().len(), 4097);
        fs::read(mounted.path("a/b/sizes/f4097")).unwrap();
        mounted.daemon.umount(&MountPath::parse("/a/b").unwrap()).unwrap();
        // The kernel was told: no time-out has to pass.
        assert_eq!(
            fs::metadata(mounted.path("a/b/sizes/f4097")).unwrap_err().raw_os_error(),
            Some(libc::ENOENT)
        );
    }
    // Nobody waits for RELEASE, so it may still be on its way.
    let begun = std::time::Instant::now();
    while !mounted.fuse.inflight().unwrap().is_empty() {
        assert!(begun.elapsed().as_secs() < 30, "a request stays in flight");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_name_in_use_is_gone_for_good_when_its_directory_comes_back() {
    let files = blobs("v5-zstd-blake3");
    let at = |path: &str| image("v5-zstd-blake3", &files, path);
    let Some(mounted) = Mounted::new(&[], false) else { return };
    for _ in 0..3 {
        mounted.daemon.mount(&at("/b/c")).unwrap();
        let held = File::open(mounted.path("b/c/sizes/f4097")).unwrap();
        held.metadata().unwrap();
        mounted.daemon.umount(&MountPath::parse("/b/c").unwrap()).unwrap();
        mounted.daemon.mount(&at("/b/d")).unwrap();
        let former = fs::metadata(mounted.path("b/c/sizes/f4097")).map(|status| status.ino());
        assert_eq!(former.unwrap_err().raw_os_error(), Some(libc::ENOENT));
        drop(held);
        mounted.daemon.umount(&MountPath::parse("/b/d").unwrap()).unwrap();
    }
}

#[test]
fn another_root_is_seen_at_once() {
    let (files, others) = (blobs("v5-zstd-blake3"), blobs("v6-zstd-blake3"));
    let Some(mounted) = Mounted::new(&[image("v5-zstd-blake3", &files, "/a")], false) else { return };
    if kernel() < (6, 16) {
        eprintln!("skipped: this kernel cannot be told");
        return;
    }
    let names = || -> BTreeSet<_> {
        fs::read_dir(mounted.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let below = names();
    assert_eq!(below.len(), 1);
    assert_eq!(fs::metadata(mounted.path("sizes")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    let root = MountPath::root();
    for _ in 0..3 {
        mounted.daemon.mount(&image("v5-zstd-blake3", &files, "/")).unwrap();
        assert!(names().len() > 5);
        let inode = fs::metadata(mounted.path("sizes/f4097")).unwrap().ino();
        fs::read(mounted.path("sizes/f4097")).unwrap();
        mounted.daemon.remount(&image("v6-zstd-blake3", &others, "/")).unwrap();
        assert_ne!(fs::metadata(mounted.path("sizes/f4097")).unwrap().ino(), inode, "the former's file");
        assert!(names().len() > 5);
        mounted.daemon.umount(&root).unwrap();
        assert_eq!(names(), below);
        assert_eq!(fs::metadata(mounted.path("sizes/f4097")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(fs::metadata(mounted.path("a/sizes/f4097")).unwrap().len(), 4097);
    }
}

/// Version of the kernel.
fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut parts = release.split(['.', '-']).map_while(|part| part.parse().ok());
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Everything a shared directory is used for, in the same way on the directory itself.
const CHANGES: &str = r#"
    set -e
    umask 027
    mkdir -p d/e; echo one > d/a; echo two >> d/a; cat d/a
    ln d/a d/hard; ln -s a d/sym; ln -s /nowhere/at/all d/dangling; readlink d/dangling
    mkfifo d/fifo; mknod d/white c 0 0; mknod d/tty c 5 1
    stat -c '%n %F %a %h %s %t:%T' d d/a d/hard d/sym d/fifo d/white d/tty
    mv d/hard d/e/moved; mv -T d/e d/f; ls -a d d/f
    chmod 4755 d/a; chown 12:34 d/a; stat -c '%a %u %g' d/a; chmod 6755 d/a; stat -c %a d/a
    truncate -s 100000 d/a; stat -c %s d/a; fallocate -l 200000 d/g; stat -c %s d/g
    fallocate -p -o 0 -l 65536 d/g; fallocate -p -o 65536 -l 131072 -n d/g
    dd if=/dev/urandom of=d/big bs=1M count=5 2>/dev/null; cp --reflink=never d/big d/copy; cmp d/big d/copy
    touch -d '2001-02-03 04:05:06.789 UTC' d/big; stat -c %y d/big | cut -c1-23
    touch -h -d '1960-01-01 UTC' d/sym; stat -c %Y d/sym
    setfattr -n user.k -v value d/a; setfattr -n trusted.overlay.opaque -v y d/f; getfattr -d -m - d/a d/f
    setfattr -x user.k d/a; getfattr -d -m - d/a
    (flock -n 9 && echo locked; flock -n d/lock true || echo busy) 9> d/lock
    rm -rf d/f d/fifo d/white d/tty; rmdir d/a 2>&1 | sed 's/.*: //' ; rm d/copy; ls -A d
    i=0; while [ $i -lt 300 ]; do echo $i > d/file-$i; i=$((i+1)); done; ls d | wc -l; cat d/file-* | sort -n | tail -1
    tar -C d -cf t.tar .; mkdir out; tar -C out -xf t.tar; diff -r d out && echo same; rm -rf out d; ls -A
"#;

#[test]
fn a_directory_can_be_changed_like_the_directory_itself() {
    let tools = ["setfattr", "getfattr", "flock", "fallocate"];
    if tools.iter().any(|tool| !Path::new("/usr/bin").join(tool).exists()) {
        eprintln!("skipped: {tools:?} are not all installed");
        return;
    }
    let (plain, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(mounted) = Mounted::new(&[directory(shared.path(), "/")], true) else { return };
    assert_eq!(script(mounted.dir.path(), CHANGES), script(plain.path(), CHANGES));
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 1, "only t.tar is left on the host");
}

/// An ACL as the kernel has it: user 1234 and the mask may do `named`, group and others `rest`.
fn acl(named: u16, rest: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries =
        [(1u16, 7u16, NOBODY), (2, named, 1234), (4, rest, NOBODY), (16, named, NOBODY), (32, rest, NOBODY)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[test]
fn acls_are_obeyed_inherited_and_changed() {
    let (plain, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [plain.path(), shared.path()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.join("secret"), "text").unwrap();
        std::os::unix::fs::chown(dir.join("secret"), Some(0), Some(2000)).unwrap();
        fs::create_dir(dir.join("d")).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        let access = rustix::fs::setxattr(dir.join("secret"), "system.posix_acl_access", &acl(4, 0), flags);
        if access.is_err() {
            eprintln!("skipped: the directory for temporary files has no ACLs");
            return;
        }
        rustix::fs::setxattr(dir.join("d"), "system.posix_acl_default", &acl(7, 5), flags).unwrap();
    }
    let Some(mounted) = Mounted::new(&[directory(shared.path(), "/")], true) else { return };
    let reads = |dir: &Path, uid, gid| {
        let out = Command::new("cat").arg(dir.join("secret")).uid(uid).gid(gid).output().unwrap();
        out.stdout == b"text"
    };
    // Natively, and by way of the mount: mode bits alone would let the group read, whose bits are the ACL's mask.
    for dir in [plain.path(), mounted.dir.path()] {
        assert!(!reads(dir, 3000, 2000), "the group may not");
        assert!(reads(dir, 1234, 3000), "who is named may");
        assert!(!reads(dir, 3000, 3000), "others may not");
    }
    // The umask has no say where there is a default ACL, and has one elsewhere.
    let make = "umask 077; : > d/f; mkdir d/g; mknod d/p p; : > f; mkdir g; stat -c '%n %a' d/f d/g d/p f g; \
                chmod 640 secret; stat -c %a secret";
    assert_eq!(script(mounted.dir.path(), make), script(plain.path(), make));
    for dir in [plain.path(), mounted.dir.path()] {
        assert!(reads(dir, 1234, 3000), "{}", dir.display());
    }
    // Set and taken away through the mount.
    let secret = mounted.path("secret");
    rustix::fs::removexattr(&secret, "system.posix_acl_access").unwrap();
    assert!(!reads(mounted.dir.path(), 1234, 3000));
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&secret, "system.posix_acl_access", &acl(4, 0), flags).unwrap();
    assert!(reads(mounted.dir.path(), 1234, 3000) && reads(shared.path(), 1234, 3000));
}

#[test]
fn an_overlay_works_with_upper_and_work_directories_inside() {
    let shared = tempfile::tempdir().unwrap();
    for dir in ["upper", "work"] {
        fs::create_dir(shared.path().join(dir)).unwrap();
    }
    let files = blobs("v6-zstd-blake3");
    let requests = [image("v6-zstd-blake3", &files, "/image"), directory(shared.path(), "/shared")];
    let Some(mounted) = Mounted::new(&requests, true) else { return };
    let merged = tempfile::tempdir().unwrap();
    let text = format!(
        r#"
        set -e
        mount -t overlay overlay -o lowerdir={m}/image,upperdir={m}/shared/upper,workdir={m}/shared/work,index=off {to}
        trap 'cd /; umount {to}' EXIT
        cd {to}
        before=$(sha256sum < sizes/f4097); echo more >> sizes/f4097; tail -c 5 sizes/f4097
        rm -rf names; mkdir names; ls -A names | wc -l; rm sizes/f1; [ ! -e sizes/f1 ] && echo removed
        mv sizes/f4096 moved; stat -c %s moved; mv sizes renamed-or-copied; ls renamed-or-copied | wc -l
        mkdir -p build; cd build; echo 'all: a b' > Makefile
        i=0; while [ $i -lt 100 ]; do echo "int f$i;" > f$i.c; i=$((i+1)); done
        cat f*.c | sha256sum; cd ..; tar -cf - build | tar -tf - | wc -l; rm -rf build; [ ! -e build ] && echo gone
        "#,
        m = mounted.dir.path().display(),
        to = merged.path().display()
    );
    let out = script(Path::new("/"), &text);
    assert!(out.contains("more\n") && out.contains("removed\n") && out.contains("gone\n"), "{out}");
    let upper = shared.path().join("upper");
    let whiteout = fs::symlink_metadata(upper.join("renamed-or-copied")).is_ok();
    assert!(whiteout, "{out}");
    let opaque = rustix::fs::lgetxattr(upper.join("names"), "trusted.overlay.opaque", &mut [0; 8][..]);
    assert_eq!(opaque, Ok(1), "the removed and made directory hides the image's");
    assert_eq!(
        fs::symlink_metadata(upper.join("sizes")).unwrap().mode() & libc::S_IFMT,
        libc::S_IFCHR,
        "a whiteout"
    );
}

#[test]
fn a_large_tree_costs_a_bounded_number_of_descriptors() {
    let shared = tempfile::tempdir().unwrap();
    for dir in 0..20 {
        let dir = shared.path().join(dir.to_string());
        fs::create_dir(&dir).unwrap();
        for file in 0..500 {
            File::create(dir.join(file.to_string())).unwrap();
        }
    }
    let Some(mounted) = Mounted::new(&[directory(shared.path(), "/")], true) else { return };
    assert_eq!(script(mounted.dir.path(), "find . -type f -links 1 -newermt 2000-01-01 | wc -l"), "10000\n");
    let open = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 8192 + 200, "{open} descriptors");
    // What is held by handle or descriptor can be read, removed, and read while removed.
    for dir in 0..20 {
        let path = mounted.path(&format!("{dir}/499"));
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        file.write_all(b"content").unwrap();
        fs::remove_file(&path).unwrap();
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }
}
