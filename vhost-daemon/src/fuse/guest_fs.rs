//! What the dispatcher asks of a file system, beyond fuse-backend-rs's `FileSystem`.
//!
//! Owns: the [`GuestFs`] trait, which can say "will be ready", and the two sides of a READ that is
//! answered later. Does not own: any implementation.

use super::abi::Attr;
use fuse_backend_rs::api::filesystem::{Context, FileSystem};
use std::io;
use std::os::fd::BorrowedFd;

/// How a READ ended in the ring worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStart {
    /// This many payload bytes are in place.
    Done(usize),
    /// The read was parked: its [`ParkedRead`] answers it.
    Parked,
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

    /// Fills `len` payload bytes from `at` on with zeros.
    fn zero(&mut self, at: usize, len: usize);

    /// Takes the reply out of the worker's hands. What it returns answers the request, now or later;
    /// dropped without an answer, it answers EIO. `None` if the transport cannot park (then the read
    /// must be finished in place).
    fn park(&mut self) -> Option<Box<dyn ParkedRead>>;
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
    /// Node id.
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

/// A file system that guests can be served from. Metadata calls are those of `FileSystem`; the methods
/// here are what that trait cannot express.
pub trait GuestFs: FileSystem<Inode = u64, Handle = u64> + Send + Sync {
    /// Starts a READ of `size` bytes at `offset`. A part that is ready is read in place through `io`;
    /// a read with any part that is not is parked as a whole, so that the worker never waits.
    ///
    /// # Errors
    ///
    /// The errno for the guest.
    fn start_read(
        &self,
        ctx: &Context,
        inode: u64,
        offset: u64,
        size: u32,
        io: &mut dyn ReadIo,
    ) -> io::Result<ReadStart>;

    /// Lists a directory with attributes from cookie `offset` on. `FileSystem::readdirplus` says the same
    /// by way of two larger structures, which is half the cost of an entry.
    ///
    /// # Errors
    ///
    /// The errno for the guest, only when nothing was added.
    fn list_plus(&self, ctx: &Context, inode: u64, offset: u64, sink: &mut dyn PlusSink) -> io::Result<()>;

    /// Whether OPEN and OPENDIR of this file system need no handle and may be answered with ENOSYS, so
    /// that guests stop sending them.
    fn stateless_open(&self) -> bool;

    /// `fuse_attr` flags of a node, for GETATTR replies, which `FileSystem::getattr` cannot carry.
    fn attr_flags(&self, _inode: u64) -> u32 {
        0
    }
}
