//! What no local file system does, below a directory that is passed through: one says only at close(2) that it had no room for
//! what was written, as NFS does, and has a name longer than FUSE can carry in a reply, as FAT may.
//!
//! Needs /dev/fuse and the right to mount; without them nothing can be shown and the tests say so.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests")]

mod common;
#[path = "common/shared.rs"]
mod shared;

use rafsd::fuse::abi::{
    Attr, AttrOut, Dirent, EntryOut, FlushIn, InHeader, InitOut, OpenOut, OutHeader, ReadIn, WriteIn,
    WriteOut, op,
};
use rafsd::mounts::PassthroughOptions;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use shared::{ROOT, Shared, word};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;
use zerocopy::{FromBytes, IntoBytes};

/// Node of its only file, `f`.
const FILE: u64 = 2;

/// A listing: `f`, a long name, `g`.
fn listing() -> Vec<u8> {
    let mut all = Vec::new();
    for (off, name) in (1..).zip([vec![b'f'], vec![b'x'; 300], vec![b'g']]) {
        let head = Dirent { ino: 1 + off, off, namelen: u32::try_from(name.len()).unwrap(), file_type: 8 };
        all.extend_from_slice(head.as_bytes());
        all.extend_from_slice(&name);
        all.resize(all.len().next_multiple_of(8), 0);
    }
    all
}

/// Serves one file that takes all writes and fails each FLUSH with EDQUOT; how many of those came.
fn serve(device: &OwnedFd) -> u32 {
    let mut request = vec![0; 1 << 20];
    let mut flushes = 0;
    while let Ok(len) = rustix::io::read(device, &mut request) {
        let (header, body) = InHeader::read_from_prefix(&request[..len]).unwrap();
        let mode = if header.nodeid == FILE { libc::S_IFREG | 0o644 } else { libc::S_IFDIR | 0o755 };
        let attr = |ino, mode| Attr { ino, mode, nlink: 1, blksize: 4096, ..Attr::default() };
        let answer: Result<Vec<u8>, i32> = match header.opcode {
            op::INIT => {
                let out = InitOut { major: 7, minor: 31, max_write: 65_536, ..InitOut::default() };
                Ok(out.as_bytes().to_vec())
            }
            op::LOOKUP if body == b"f\0" => {
                let attr = attr(FILE, libc::S_IFREG | 0o644);
                let out = EntryOut {
                    nodeid: FILE,
                    generation: 1,
                    entry_valid: 0,
                    attr_valid: 0,
                    entry_valid_nsec: 0,
                    attr_valid_nsec: 0,
                    attr,
                };
                Ok(out.as_bytes().to_vec())
            }
            op::LOOKUP => Err(libc::ENOENT),
            op::GETATTR => {
                let attr = attr(header.nodeid, mode);
                Ok(AttrOut { attr_valid: 0, attr_valid_nsec: 0, dummy: 0, attr }.as_bytes().to_vec())
            }
            op::OPEN | op::OPENDIR => Ok(OpenOut { fh: 1, open_flags: 0, backing_id: 0 }.as_bytes().to_vec()),
            op::WRITE => {
                let (write, _) = WriteIn::read_from_prefix(body).unwrap();
                Ok(WriteOut { size: write.size, padding: 0 }.as_bytes().to_vec())
            }
            op::FLUSH => {
                flushes += 1;
                Err(libc::EDQUOT)
            }
            op::READDIR => {
                let (read, _) = ReadIn::read_from_prefix(body).unwrap();
                Ok(if read.offset == 0 { listing() } else { Vec::new() })
            }
            op::RELEASE | op::RELEASEDIR => Ok(Vec::new()),
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => continue,
            _ => Err(libc::ENOSYS),
        };
        let (error, payload) = answer.map_or_else(|errno| (-errno, Vec::new()), |payload| (0, payload));
        let len = u32::try_from(16 + payload.len()).unwrap();
        let head = OutHeader { len, error, unique: header.unique };
        // The request may have been interrupted.
        let _ = rustix::io::write(device, &[head.as_bytes(), &payload].concat());
    }
    flushes
}

/// The file system, mounted.
struct Odd {
    server: Option<JoinHandle<u32>>,
    path: std::path::PathBuf,
}

impl Odd {
    fn mount(path: &Path) -> Option<Self> {
        let mounted = Self::try_mount(path);
        if mounted.is_none() {
            eprintln!("skipped: no /dev/fuse, or no right to mount");
        }
        mounted
    }

    fn try_mount(path: &Path) -> Option<Self> {
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        rustix::mount::mount("odd", path, "fuse", MountFlags::empty(), options.as_c_str()).ok()?;
        Some(Self { server: Some(std::thread::spawn(move || serve(&device))), path: path.to_owned() })
    }

    /// Ends it; how many FLUSHes came.
    fn end(&mut self) -> u32 {
        rustix::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::FORCE).unwrap();
        self.server.take().unwrap().join().unwrap()
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        // What a failed test left.
        if self.server.is_some() {
            self.end();
        }
    }
}

#[test]
fn a_close_hears_what_came_of_the_writes() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut odd) = Odd::mount(dir.path()) else { return };
    let shared = Shared::on(dir, PassthroughOptions::default());
    let guest = shared.guest();
    let node = word(&guest.ask(op::LOOKUP, ROOT, b"f\0"), 0);
    let flush = |fh| {
        let body = FlushIn { fh, unused: 0, padding: 0, lock_owner: 5 };
        guest.call(op::FLUSH, node, body.as_bytes())
    };
    let read = guest.open(node, libc::O_RDONLY);
    assert_eq!(flush(read), 0, "nothing comes of what is only read");
    let written = guest.open(node, libc::O_WRONLY);
    let write =
        WriteIn { fh: written, offset: 0, size: 4, write_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
    assert_eq!(guest.call(op::WRITE, node, &[write.as_bytes(), b"data"].concat()), 0);
    assert_eq!(flush(written), -libc::EDQUOT);
    assert_eq!(flush(written), -libc::EDQUOT, "each descriptor of the guest hears it");
    guest.call(op::DESTROY, 0, &[]);
    assert!(odd.end() >= 2);
}

#[test]
fn a_name_that_is_too_long_ends_no_listing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut odd) = Odd::mount(dir.path()) else { return };
    let shared = Shared::on(dir, PassthroughOptions::default());
    let guest = shared.guest();
    let fh = word(&guest.ask(op::OPENDIR, ROOT, &[0; 8]), 0);
    for opcode in [op::READDIR, op::READDIRPLUS] {
        let body = ReadIn { fh, offset: 0, size: 4096, read_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
        let mut rest = &guest.ask(opcode, ROOT, body.as_bytes())[..];
        let mut names = Vec::new();
        while !rest.is_empty() {
            if opcode == op::READDIRPLUS {
                rest = &rest[size_of::<EntryOut>()..];
            }
            let (head, behind) = Dirent::read_from_prefix(rest).unwrap();
            let len = usize::try_from(head.namelen).unwrap();
            names.push(String::from_utf8_lossy(&behind[..len]).into_owned());
            rest = &behind[len.next_multiple_of(8)..];
        }
        assert_eq!(names, ["f", "g"], "opcode {opcode}");
    }
    guest.call(op::DESTROY, 0, &[]);
    odd.end();
}
