//! What the dispatcher asks of a file system, beyond fuse-backend-rs's `FileSystem`.
//!
//! Owns: the [`GuestFs`] trait, and the two sides of a request whose payload is large or that is answered
//! later. Does not own: any implementation, nor what a change is made of ([`super::change`]).

use super::abi::{Attr, Statx};
use super::change::{Change, Changed, FileOp, LockReply, LockRequest};
use fuse_backend_rs::api::filesystem::{Context, FileSystem};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// A READ.
#[derive(Clone, Copy, Debug)]
pub struct ReadAt {
    /// Node.
    pub node: u64,
    /// What OPEN answered; 0 where OPEN is not asked.
    pub handle: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes wanted.
    pub size: u32,
    /// The caller may wait for a disk. If not, a read that would wait is parked or answered [`ReadStart::Blocks`].
    pub may_wait: bool,
}

/// A WRITE.
#[derive(Clone, Copy, Debug)]
pub struct WriteAt {
    /// Node.
    pub node: u64,
    /// What OPEN answered; 0 where OPEN is not asked.
    pub handle: u64,
    /// First byte. `None`: behind the last, wherever that is by then.
    pub offset: Option<u64>,
    /// Bytes; never more than the payload has.
    pub size: u32,
    /// Setuid and setgid bits go.
    pub kill_suidgid: bool,
}

/// How a READ ended in the ring worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStart {
    /// This many payload bytes are in place.
    Done(usize),
    /// The read was parked: its [`ParkedRead`] answers it.
    Parked,
    /// Only a thread that may wait can go on; nothing was done. Never the answer to `may_wait`.
    Blocks,
}

/// The payload of a READ while the ring worker has it.
pub trait ReadIo {
    /// Payload bytes that fit.
    fn room(&self) -> usize;

    /// Reads `len` bytes at `offset` of `file` to payload byte `at` without waiting for a disk
    /// (`RWF_NOWAIT`). Returns the bytes read; fewer than `len` mean that the rest is not in memory.
    ///
    /// # Errors
    ///
    /// That of preadv2(2); `EAGAIN` is not an error but `Ok(0)`.
    fn read_nowait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize>;

    /// The same, waiting for the disk. Fewer than `len` mean the end of the file.
    ///
    /// # Errors
    ///
    /// That of preadv(2).
    fn read_wait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize>;

    /// Puts `len` bytes at `offset` of `file` behind what was lent before, as the payload's whole: they are copied from
    /// the host's page cache when the reply leaves, and not before, so only for files that stay as they are. False where
    /// the transport has no such way or the bytes are not in memory; then nothing is lent, of earlier calls neither.
    fn lend(&mut self, _file: BorrowedFd<'_>, _offset: u64, _len: usize) -> bool {
        false
    }

    /// Fills `len` payload bytes from `at` on with zeros.
    fn zero(&mut self, at: usize, len: usize);

    /// Takes the reply out of the worker's hands. What it returns answers the request, now or later;
    /// dropped without an answer, it answers EIO. `None` if the transport cannot park, or has no room for
    /// more that waits (then the read must be finished in place, or fail).
    fn park(&mut self) -> Option<Box<dyn ParkedRead>>;
}

/// The payload of a WRITE, wherever it lies.
pub trait WriteIo {
    /// Writes payload bytes `at .. at + len` to `offset` of `file`, or to its end, straight from where they are. Returns
    /// the bytes written.
    ///
    /// # Errors
    ///
    /// That of pwritev2(2).
    fn write_to(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: Option<u64>,
    ) -> io::Result<usize>;
}

/// The payload of a READ that is answered later, by whatever thread.
pub trait ParkedRead: Send {
    /// Copies `data` to payload byte `at`. Does nothing once the guest or the front-end is gone.
    fn fill(&mut self, at: usize, data: &[u8]);

    /// Reads `len` bytes at `offset` of `file` to payload byte `at`, waiting for the disk.
    ///
    /// # Errors
    ///
    /// That of preadv(2); `UnexpectedEof` when the file is shorter.
    fn fill_from(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<()>;

    /// Whether anybody still waits for the answer.
    fn is_wanted(&self) -> bool {
        true
    }

    /// Answers the request: with so many bytes of payload, or an errno.
    fn finish(self: Box<Self>, result: Result<usize, i32>);
}

/// A directory entry with its node's attributes, in wire form.
#[derive(Clone, Copy, Debug)]
pub struct PlusEntry<'a> {
    /// Name, at most 255 bytes.
    pub name: &'a [u8],
    /// Cookie behind this entry, never 0.
    pub cookie: u64,
    /// `DT_` type.
    pub kind: u32,
    /// Node id; 0 gives the name only, as READDIR does.
    pub node: u64,
    /// Attributes; `attr.ino` is the entry's inode number too.
    pub attr: Attr,
    /// Generation of the node: another one for the same id tells the guest to drop what it kept of the old.
    pub generation: u64,
    /// How long name and attributes are good, whole seconds.
    pub valid_secs: u64,
}

/// Takes the entries of a listing.
pub trait PlusSink {
    /// Adds an entry; false when it does not fit, which ends the listing.
    fn add(&mut self, entry: &PlusEntry<'_>) -> bool;
}

/// A file system that guests can be served from. Metadata calls are those of `FileSystem`, as are `forget`, `open` and
/// `opendir`; the methods here are what that trait cannot express. What the defaults answer is a read-only file system
/// without handles, so that an image needs to implement the first three alone.
///
/// Node ids may be any number a guest made up, and so may handles.
pub trait GuestFs: FileSystem<Inode = u64, Handle = u64> + Send + Sync {
    /// Starts a READ. A part that is ready is read in place through `io`; a read with any part that is
    /// not is parked as a whole, or [`ReadStart::Blocks`], so that the worker never waits.
    ///
    /// # Errors
    ///
    /// The errno for the guest.
    fn start_read(&self, ctx: &Context, read: &ReadAt, io: &mut dyn ReadIo) -> io::Result<ReadStart>;

    /// Lists a directory with attributes from cookie `offset` on. `FileSystem::readdirplus` says the same
    /// by way of two larger structures, which is half the cost of an entry.
    ///
    /// # Errors
    ///
    /// The errno for the guest, only when nothing was added.
    fn list_plus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        sink: &mut dyn PlusSink,
    ) -> io::Result<()>;

    /// Asked when an answer other than a READ's was made: whether what it was made from is still there. An answer that
    /// is not confirmed reaches no guest.
    ///
    /// # Errors
    ///
    /// The errno for the guest, in the place of the answer.
    fn confirm(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether OPEN and OPENDIR need no handle anywhere on this connection and may be answered with ENOSYS, so that
    /// guests stop sending them. Where it is false no ENOSYS of one mount may reach the guest, which would remember
    /// it for all of them.
    fn stateless_open(&self) -> bool;

    /// `fuse_attr` flags of a node, for GETATTR replies, which `FileSystem::getattr` cannot carry.
    fn attr_flags(&self, _inode: u64) -> u32 {
        0
    }

    /// INIT flags wanted beside those that suit any read-only file system ([`init_flag`](super::abi::init_flag)).
    fn wanted_flags(&self) -> u64 {
        0
    }

    /// Whether every change below or at a node is EROFS, whatever the rest of the request says.
    fn read_only(&self, _node: u64) -> bool {
        true
    }

    /// Changes something (`read_only` said false before).
    ///
    /// # Errors
    ///
    /// The errno for the guest.
    fn change(&self, _ctx: &Context, _change: &Change<'_>) -> io::Result<Changed> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }

    /// Writes to a file, on a thread that may wait. Returns the bytes written.
    ///
    /// # Errors
    ///
    /// The errno for the guest.
    fn write_file(&self, _ctx: &Context, _write: &WriteAt, _io: &mut dyn WriteIo) -> io::Result<u32> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }

    /// Something about an open file. Success for what only a file system with handles could fail at.
    ///
    /// # Errors
    ///
    /// The errno for the guest.
    fn file_op(&self, _ctx: &Context, _node: u64, op: &FileOp) -> io::Result<()> {
        if matches!(op, FileOp::SyncFs) { Err(io::Error::from_raw_os_error(libc::ENOSYS)) } else { Ok(()) }
    }

    /// Whether [`FileOp::Flush`] of that open file may take long.
    fn flush_may_wait(&self, _node: u64, _handle: u64) -> bool {
        false
    }

    /// Looks for, takes or drops a lock. One that has to wait is parked through `io`: nobody's thread waits for it.
    ///
    /// # Errors
    ///
    /// The errno for the guest; `EAGAIN` for a lock somebody else holds.
    fn lock(&self, _ctx: &Context, _lock: &LockRequest, _io: &mut dyn ReadIo) -> io::Result<LockReply> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    /// Nobody waits for the request `unique` any more. Only a lock that waits needs to know.
    fn interrupt(&self, _unique: u64) {}

    /// The guest's machine is gone for good: locks that it holds are dropped and those that it waits for given up. What else
    /// it had stays, as it may have to a guest that is restored from a snapshot.
    fn drop_all_locks(&self) {}

    /// Attributes with those that only STATX has (time of birth). `ENOSYS` lets the dispatcher answer from GETATTR.
    ///
    /// # Errors
    ///
    /// The errno for the guest.
    fn statx(
        &self,
        _ctx: &Context,
        _node: u64,
        _handle: Option<u64>,
        _mask: u32,
    ) -> io::Result<(Statx, Duration)> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
}
