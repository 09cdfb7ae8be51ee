//! READDIR and READDIRPLUS of a directory on the host.
//!
//! Owns: the walk, and that a reference is taken for each node that a guest is told of and for no other. Cookies are
//! those of the host's file system. Does not own: the layout of replies.

use super::Passthrough;
use super::inodes::{Inode, ROOT};
use crate::fuse::abi::{Attr, NAME_MAX};
use crate::fuse::{PlusEntry, PlusSink, attr};
use crate::mounts::INODE_MASK;
use fuse_backend_rs::api::filesystem::DirEntry;
use rustix::fs::{AtFlags, FileType, RawDir, SeekFrom};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::PoisonError;

/// Bytes of host entries read at once. A listing that ends inside of them reads the rest again: larger is not better.
const BUFFER: usize = 8192;

/// An entry as the host has it.
struct HostEntry<'a> {
    name: &'a CStr,
    ino: u64,
    cookie: u64,
    kind: u32,
}

impl Passthrough {
    /// Calls `f` with each entry from `offset` on until it says false.
    fn walk(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        mut f: impl FnMut(&Inode, HostEntry<'_>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let dir = self.directory(node)?;
        let file = self.file(&dir, handle, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let _one_at_a_time = file.listing.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::seek(&file.fd, SeekFrom::Start(offset))?;
        let mut buf = [MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(file.fd.as_fd(), &mut buf);
        let mut first = true;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if first => return Err(error.into()),
                Err(_) => break,
            };
            // FUSE has no room for longer ones (FAT, NTFS and CIFS may have them), and nobody can look them up.
            if entry.file_name().count_bytes() > NAME_MAX {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => kind_of(file.fd.as_fd(), entry.file_name()),
                known => d_type(known.as_raw_mode()),
            };
            let host = HostEntry {
                name: entry.file_name(),
                ino: entry.ino(),
                cookie: entry.next_entry_cookie(),
                kind,
            };
            if !f(&dir, host)? {
                break;
            }
            first = false;
        }
        Ok(())
    }

    pub(super) fn list_names(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.walk(node, handle, offset, |dir, entry| {
            let ino = self.shown_entry(dir, &entry);
            let name = entry.name.to_bytes();
            Ok(add(DirEntry { ino, offset: entry.cookie, type_: entry.kind, name })? > 0)
        })
    }

    pub(super) fn list_with_attributes(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        sink: &mut dyn PlusSink,
    ) -> io::Result<()> {
        let valid_secs = self.options.timeout.as_secs();
        self.walk(node, handle, offset, |dir, entry| {
            let name = entry.name.to_bytes();
            let plain = PlusEntry {
                name,
                cookie: entry.cookie,
                kind: entry.kind,
                node: 0,
                generation: 0,
                attr: Attr { ino: self.shown_entry(dir, &entry), ..Attr::default() },
                valid_secs: 0,
            };
            if matches!(name, b"." | b"..") {
                return Ok(sink.add(&plain));
            }
            // An entry that vanished meanwhile, or may not be looked at, is listed by its name alone.
            let Ok((inode, stat)) = self.inodes.look_up(&self.proc, dir, entry.name) else {
                return Ok(sink.add(&plain));
            };
            let added = sink.add(&PlusEntry {
                node: self.node(inode.number),
                generation: self.options.place.generation.into(),
                attr: attr(&self.stat(&inode, &stat), self.flags_of(&inode)),
                valid_secs,
                ..plain
            });
            if !added {
                self.inodes.forget(inode.number, 1);
            }
            Ok(added)
        })
    }

    /// The number of an entry: that of its node, where it can be told without a lookup.
    fn shown_entry(&self, dir: &Inode, entry: &HostEntry<'_>) -> u64 {
        let itself = matches!(entry.name.to_bytes(), b".") || (dir.number == ROOT && entry.name == c"..");
        let number = if itself { dir.number } else { self.inodes.shown(dir, entry.ino) };
        Passthrough::shown(self, number & INODE_MASK)
    }
}

/// Type of an entry where the host's file system does not say.
fn kind_of(dir: std::os::fd::BorrowedFd<'_>, name: &CStr) -> u32 {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| d_type(stat.st_mode))
}

/// `DT_` from `S_IFMT`.
fn d_type(mode: u32) -> u32 {
    (mode & libc::S_IFMT) >> 12
}
