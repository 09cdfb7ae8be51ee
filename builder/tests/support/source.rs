//! A source tree with every kind of file that Linux has, and sizes and names at every boundary.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub struct Maker {
    root: PathBuf,
}

impl Maker {
    fn path(&self, name: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(name))
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self, name: &[u8], data: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data).unwrap();
        path
    }

    fn xattr(path: &Path, name: &str, value: &[u8]) {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    }

    fn time(path: &Path, sec: i64, nsec: i64) {
        let time = Timespec { tv_sec: sec, tv_nsec: nsec };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Makes the tree in `root`. What needs privileges is left out without them.
pub fn make(root: &Path, entries: usize) {
    let maker = Maker { root: root.to_path_buf() };
    let m = &maker;
    contents(m, entries);
    names(m);
    links(m);
    specials(m);
    attributes(m);
    Maker::xattr(root, "user.root", b"r");
}

fn contents(m: &Maker, entries: usize) {
    for chunk in [0x1000_usize, 0x1_0000, 0x10_0000] {
        for len in [chunk - 1, chunk, chunk + 1, 3 * chunk + 5] {
            m.file(format!("sizes/{len}").as_bytes(), &noise(len as u64, len));
            let text = b"text that shrinks ".repeat(len / 18 + 1);
            m.file(format!("text/{len}").as_bytes(), &text[..len]);
        }
    }
    for len in [0, 1, 2, 511, 512, 513] {
        m.file(format!("sizes/{len}").as_bytes(), &noise(7, len));
    }
    for len in [0x10_0000, 0x20_0000, 0x50_0001] {
        m.file(format!("contiguous/{len}").as_bytes(), &noise(len as u64 + 1, len));
    }
    let block = noise(99, 0x10_0000);
    m.file(b"dup/a", &b"same".repeat(5000));
    m.file(b"dup/b", &b"same".repeat(5000));
    m.file(b"dup/inside", &[&block[..], &noise(98, 0x10_0000), &block].concat());
    for n in 0..entries {
        let name = format!("bigdir/file-{n:05}-{}", "x".repeat(n % 60));
        let data = if n % 3 == 0 { String::new() } else { n.to_string() };
        m.file(name.as_bytes(), data.as_bytes());
    }
    let mut sparse = File::create(m.root.join("sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    sparse.seek(SeekFrom::Start(10 << 20)).unwrap();
    sparse.write_all(b"middle").unwrap();
    sparse.seek(SeekFrom::Start((30 << 20) + 77)).unwrap();
    sparse.write_all(&[b'x'; 5000]).unwrap();
    File::create(m.root.join("hole")).unwrap().set_len((3 << 20) + 9).unwrap();
}

fn names(m: &Maker) {
    let long = [b'n'; 255];
    let names: [&[u8]; 14] = [
        &long,
        b"\xff\xfe\x80bad",
        "\u{fc}n\u{ef}code-\u{65e5}\u{672c}".as_bytes(),
        b"!x",
        b"#x",
        b"+x",
        b"-x",
        b".a",
        b".-",
        b"..b",
        b" space",
        b"new\nline",
        b"\x01",
        b"~",
    ];
    for name in names {
        m.file(&[b"names/", name].concat(), name);
    }
    m.dir("empty/deep/er");
    let deep: Vec<String> = (0..60).map(|n| format!("d{n}")).collect();
    m.dir(&format!("deep/{}", deep.join("/")));
    m.file(format!("deep/{}/leaf", deep.join("/")).as_bytes(), b"leaf");
}

fn links(m: &Maker) {
    // The first name in order is not the one made first.
    let target = m.file(b"zlink/target", &b"hl".repeat(3000));
    fs::hard_link(&target, m.dir("alink").join("other")).unwrap();
    fs::hard_link(&target, m.path(b"zlink/second")).unwrap();
    let empty = m.file(b"zlink/empty", b"");
    fs::hard_link(empty, m.path(b"alink/empty")).unwrap();
    symlink("short", m.path(b"alink/short")).unwrap();
    symlink("t".repeat(100), m.path(b"alink/hundred")).unwrap();
    symlink("long/".repeat(819), m.path(b"alink/longest")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\xfe"), m.path(b"alink/odd")).unwrap();
    // Two names of one symlink become two symlinks.
    fs::hard_link(m.path(b"alink/short"), m.path(b"alink/twin")).unwrap();
}

fn specials(m: &Maker) {
    let dir = m.dir("special");
    let fifo = dir.join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.join("sock")).unwrap());
    if super::is_root() {
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, dir.join("null"), FileType::CharacterDevice, mode, makedev(1, 3)).unwrap();
        let large = makedev(0x123, 0x4_5678);
        mknodat(CWD, dir.join("block"), FileType::BlockDevice, mode, large).unwrap();
    } else {
        println!("not root: no devices, owners, trusted and security attributes in the tree");
    }
}

fn attributes(m: &Maker) {
    for (name, mode) in [("suid", 0o4755), ("sgid", 0o2755), ("none", 0o000), ("all", 0o7777)] {
        let path = m.file(format!("mode/{name}").as_bytes(), name.as_bytes());
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(m.dir("mode/sticky"), Permissions::from_mode(0o1777)).unwrap();
    let many = m.file(b"xattr/many", b"1");
    for n in 0..20 {
        Maker::xattr(&many, &format!("user.n{n}"), &noise(n, usize::try_from(n).unwrap() * 7));
    }
    Maker::xattr(&m.file(b"xattr/empty", b"1"), "user.e", b"");
    Maker::xattr(&m.dir("xattr/dir"), "user.large", &[b'z'; 1500]);
    if super::is_root() {
        privileged(m);
    }
    for (name, sec, nsec) in [
        ("before", -86400 * 365, 1),
        ("nsec", 1_700_000_000, 999_999_999),
        ("zero", 0, 0),
        ("far", 1 << 33, 5),
    ] {
        Maker::time(&m.file(format!("time/{name}").as_bytes(), b"t"), sec, nsec);
    }
    let link = m.path(b"time/link");
    symlink("x", &link).unwrap();
    Maker::time(&link, 12345, 6789);
}

fn privileged(m: &Maker) {
    let own = m.file(b"own/file", b"y");
    std::os::unix::fs::chown(&own, Some(4_000_000_000), Some(65_536)).unwrap();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    Maker::xattr(&own, "security.capability", &capability);
    Maker::xattr(&own, "trusted.binary", b"\0\x01\xff");
    Maker::xattr(&m.path(b"alink/short"), "trusted.onlink", b"v");
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    Maker::xattr(&m.dir("own"), "system.posix_acl_default", &acl);
    Maker::xattr(&m.file(b"own/acl", b"a"), "system.posix_acl_access", &acl);
}
