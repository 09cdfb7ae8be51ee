//! READDIR and READDIRPLUS payloads, written entry by entry into the reply.
//!
//! Owns: the layout of entries and the "does the next one fit" question. Does not own: where entries
//! come from.

use super::abi::{Attr, Dirent, EntryOut};
use super::guest_fs::{PlusEntry, PlusSink};
use super::reply::{HEADER, ReplyBuf};
use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use std::time::Duration;
use zerocopy::{Immutable, IntoBytes};

/// Longest name with its padding, bytes; heads are multiples of 8.
const NAME_ROOM: usize = 256;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PlainHead {
    dirent: Dirent,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PlusHead {
    entry: EntryOut,
    dirent: Dirent,
}

/// Bytes of the longest entry.
const ENTRY_ROOM: usize = size_of::<PlusHead>() + NAME_ROOM;

/// Fills a reply with directory entries until the next one does not fit.
pub(super) struct DirentWriter<'a, R: ReplyBuf + ?Sized> {
    reply: &'a mut R,
    /// Each entry is put together here and copied to the guest in one go.
    entry: [u8; ENTRY_ROOM],
    used: usize,
    room: usize,
    refused: bool,
}

impl<'a, R: ReplyBuf + ?Sized> DirentWriter<'a, R> {
    /// A writer for at most `size` bytes of payload.
    pub(super) fn new(reply: &'a mut R, size: u32) -> Self {
        let capacity = reply.capacity().saturating_sub(HEADER);
        let room = usize::try_from(size).unwrap_or(usize::MAX).min(capacity);
        Self { reply, entry: [0; ENTRY_ROOM], used: 0, room, refused: false }
    }

    /// Bytes of payload so far. `None` when not even the first entry fitted: a reply without entries
    /// would read as the end of the directory (guest-view.md section 3).
    pub(super) fn finish(self) -> Option<usize> {
        (self.used > 0 || !self.refused).then_some(self.used)
    }

    /// Adds a READDIR entry; 0 means that it did not fit.
    pub(super) fn plain(&mut self, entry: &DirEntry<'_>) -> usize {
        self.put(&PlainHead { dirent: dirent(entry) }, entry.name)
    }

    #[inline]
    fn put<H: IntoBytes + Immutable>(&mut self, head: &H, name: &[u8]) -> usize {
        let head = head.as_bytes();
        let end = head.len() + name.len();
        let len = end.next_multiple_of(8);
        let fits = name.len() <= NAME_ROOM && len <= self.room - self.used;
        let Some(entry) = self.entry.get_mut(..len).filter(|_| fits) else {
            self.refused = true;
            return 0;
        };
        let (to_head, rest) = entry.split_at_mut(head.len());
        let (to_name, padding) = rest.split_at_mut(name.len());
        to_head.copy_from_slice(head);
        to_name.copy_from_slice(name);
        padding.fill(0);
        self.reply.put(HEADER + self.used, entry);
        self.used += len;
        len
    }
}

impl<R: ReplyBuf + ?Sized> PlusSink for DirentWriter<'_, R> {
    #[inline]
    fn add(&mut self, entry: &PlusEntry<'_>) -> bool {
        let namelen = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
        let head = PlusHead {
            entry: EntryOut {
                nodeid: entry.node,
                generation: entry.generation,
                entry_valid: entry.valid_secs,
                attr_valid: entry.valid_secs,
                entry_valid_nsec: 0,
                attr_valid_nsec: 0,
                attr: entry.attr,
            },
            dirent: Dirent { ino: entry.attr.ino, off: entry.cookie, namelen, file_type: entry.kind },
        };
        self.put(&head, entry.name) > 0
    }
}

fn dirent(entry: &DirEntry<'_>) -> Dirent {
    Dirent {
        ino: entry.ino,
        off: entry.offset,
        namelen: u32::try_from(entry.name.len()).unwrap_or(u32::MAX),
        file_type: entry.type_,
    }
}

/// The wire form of an entry.
pub(super) fn entry_out(entry: &Entry) -> EntryOut {
    EntryOut {
        nodeid: entry.inode,
        generation: entry.generation,
        entry_valid: entry.entry_timeout.as_secs(),
        attr_valid: entry.attr_timeout.as_secs(),
        entry_valid_nsec: entry.entry_timeout.subsec_nanos(),
        attr_valid_nsec: entry.attr_timeout.subsec_nanos(),
        attr: attr(&entry.attr, entry.attr_flags),
    }
}

/// Seconds and nanoseconds of a timeout.
pub(super) fn split_timeout(timeout: Duration) -> (u64, u32) {
    (timeout.as_secs(), timeout.subsec_nanos())
}

/// The wire form of a node's attributes. Times before 1970 keep their bit pattern, which is how the
/// protocol carries them.
#[must_use]
pub fn attr(stat: &libc::stat64, flags: u32) -> Attr {
    Attr {
        ino: stat.st_ino,
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        atime: stat.st_atime.cast_unsigned(),
        mtime: stat.st_mtime.cast_unsigned(),
        ctime: stat.st_ctime.cast_unsigned(),
        atimensec: nanoseconds(stat.st_atime_nsec),
        mtimensec: nanoseconds(stat.st_mtime_nsec),
        ctimensec: nanoseconds(stat.st_ctime_nsec),
        mode: stat.st_mode,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: rdev(stat.st_rdev),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        flags,
    }
}

/// A device number as the wire has it: the kernel's own 32-bit form, minor 0..7, major 8..19, minor 20..31.
fn rdev(dev: u64) -> u32 {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}

fn nanoseconds(n: i64) -> u32 {
    u32::try_from(n).unwrap_or(0)
}
