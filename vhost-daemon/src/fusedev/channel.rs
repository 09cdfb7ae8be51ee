//! One request and its reply on `/dev/fuse`.
//!
//! Owns: the device's descriptors, buffers, and replies that come later. A reply goes to the descriptor that its
//! request came from. Does not own: threads.

use super::pages::{self, Lent, Pages};
use crate::daemon::Inflight;
use crate::fuse::abi::{InHeader, OutHeader};
use crate::fuse::{ParkedRead, ReadIo, ReplyBuf};
use crate::log_limit::LogLimit;
use rustix::io::ReadWriteFlags;
use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use zerocopy::IntoBytes;

const HEADER: usize = size_of::<OutHeader>();
/// Largest READ and WRITE, bytes (INIT agrees on it).
const IO_MAX: usize = 1 << 20;
/// Bytes of a request: the largest WRITE and a page for its header.
const REQUEST_MAX: usize = IO_MAX + 4096;
/// Bytes of a reply.
const REPLY_MAX: usize = IO_MAX + HEADER;
/// `FUSE_NOTIFY_INVAL_INODE`: attributes and pages of a node are to be forgotten.
const NOTIFY_INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_INVAL_ENTRY`: a name is to be forgotten.
const NOTIFY_INVAL_ENTRY: i32 = 3;
/// `FUSE_NOTIFY_RESEND`: the kernel sends again what it has no reply to.
const NOTIFY_RESEND: i32 = 7;
/// `FUSE_NOTIFY_INC_EPOCH`: all names are to be forgotten.
const NOTIFY_INC_EPOCH: i32 = 8;

/// Replies that are still to come, and to what.
#[derive(Debug, Default)]
pub(super) struct Later {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: HashMap<u64, Inflight>,
    last: u64,
}

impl Later {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that wait.
    pub(super) fn requests(&self) -> Vec<Inflight> {
        self.waiting().requests.values().copied().collect()
    }

    fn add(&self, request: Inflight) -> u64 {
        let mut waiting = self.waiting();
        waiting.last += 1;
        let ticket = waiting.last;
        waiting.requests.insert(ticket, request);
        ticket
    }

    /// Waits until there are none, for `limit` at most; returns how many are left.
    pub(super) fn drain(&self, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        let mut guard = self.waiting();
        loop {
            let count = guard.requests.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if count == 0 || left.is_zero() {
                return count;
            }
            guard = self.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn remove(&self, ticket: u64) {
        self.waiting().requests.remove(&ticket);
        self.changed.notify_all();
    }
}

/// A descriptor of the device.
#[derive(Debug)]
pub(super) struct Channel {
    fd: OwnedFd,
    later: Arc<Later>,
    log: LogLimit,
}

/// What came of waiting for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A request of so many bytes.
    Request(usize),
    /// Woken for another reason.
    Nothing,
    /// The mount is gone.
    Unmounted,
}

impl Channel {
    pub(super) fn new(fd: OwnedFd, later: Arc<Later>) -> Self {
        Self { fd, later, log: LogLimit::default() }
    }

    /// Waits for a request.
    ///
    /// # Errors
    ///
    /// That of read(2), for what does not pass.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(n) if n >= size_of::<InHeader>() => Ok(Received::Request(n)),
            Ok(n) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{n} bytes are no request"))),
            // ENOENT: the request was taken back before it was read.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::NOENT) => {
                Ok(Received::Nothing)
            }
            Err(rustix::io::Errno::NODEV | rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED) => {
                Ok(Received::Unmounted)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a reply. A request that nobody waits for any more is no error.
    pub(super) fn reply(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match rustix::io::write(&self.fd, bytes) {
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV) => {}
            Err(error) => {
                self.log.warn(|| format!("the kernel refused a reply ({error}); its request gets EIO"));
                let Some(unique) = bytes.get(8..16).and_then(|b| b.try_into().ok()) else { return };
                let header = OutHeader { len: 16, error: -libc::EIO, unique: u64::from_ne_bytes(unique) };
                let _ = rustix::io::write(&self.fd, header.as_bytes());
            }
        }
    }

    /// Writes a reply whose payload is lent. One whose file was cut meanwhile has failed: the kernel answered EIO.
    fn reply_lent(&self, head: &[u8], payload: &[Lent]) {
        match pages::send(self.fd.as_fd(), head, payload) {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
            Err(error) => {
                self.log
                    .warn(|| format!("the kernel did not take the bytes of a read ({error}); it gets EIO"));
            }
        }
    }

    /// Makes the kernel send again every request that was read and not answered.
    ///
    /// # Errors
    ///
    /// `EINVAL` from kernels before 6.9.
    pub(super) fn resend(device: BorrowedFd<'_>) -> io::Result<()> {
        let header = OutHeader { len: 16, error: NOTIFY_RESEND, unique: 0 };
        rustix::io::write(device, header.as_bytes())?;
        Ok(())
    }
}

impl Channel {
    /// Makes the kernel forget the name `name` in directory `parent`, and what is below it.
    pub(super) fn forget_entry(device: BorrowedFd<'_>, parent: u64, name: &[u8]) {
        let total = HEADER + 16 + name.len() + 1;
        let (Ok(len), Ok(namelen)) = (u32::try_from(total), u32::try_from(name.len())) else { return };
        let header = OutHeader { len, error: NOTIFY_INVAL_ENTRY, unique: 0 };
        let mut message = Vec::with_capacity(total);
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(&parent.to_ne_bytes());
        message.extend_from_slice(&namelen.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(name);
        message.push(0);
        // ENOENT: the kernel keeps nothing of it.
        let _ = rustix::io::write(device, &message);
    }

    /// Makes the kernel forget attributes and pages of `node`.
    pub(super) fn forget_node(device: BorrowedFd<'_>, node: u64) {
        let header = OutHeader { len: 40, error: NOTIFY_INVAL_INODE, unique: 0 };
        let mut message = Vec::with_capacity(40);
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(&node.to_ne_bytes());
        // From the first byte to the last.
        message.extend_from_slice(&[0; 16]);
        // ENOENT: the kernel keeps nothing of it.
        let _ = rustix::io::write(device, &message);
    }

    /// Makes the kernel ask again for every name that it knows.
    ///
    /// # Errors
    ///
    /// `EINVAL` from kernels before 6.16.
    pub(super) fn forget_names(device: BorrowedFd<'_>) -> io::Result<()> {
        let header = OutHeader { len: 16, error: NOTIFY_INC_EPOCH, unique: 0 };
        rustix::io::write(device, header.as_bytes())?;
        Ok(())
    }
}

/// What is known of a request, which came just now.
pub(super) fn inflight(request: &[u8]) -> Inflight {
    let long =
        |at: usize| request.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let opcode = request.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let timestamp_secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    Inflight { inode: long(16), opcode, unique: long(8), timestamp_secs }
}

/// The buffers of one thread.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) request: Vec<u8>,
    reply: Vec<u8>,
    pages: Arc<Pages>,
    lent: Vec<Lent>,
}

impl Buffers {
    pub(super) fn new(pages: Arc<Pages>) -> Self {
        Self { request: vec![0; REQUEST_MAX], reply: vec![0; REPLY_MAX], pages, lent: Vec::new() }
    }

    /// A reply to the request whose `len` bytes are in the buffer.
    pub(super) fn reply_to<'a>(
        &'a mut self,
        channel: &'a Arc<Channel>,
        len: usize,
    ) -> (&'a [u8], FuseReply<'a>) {
        let request = self.request.get(..len).unwrap_or_default();
        let unique = request.get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        self.lent.clear();
        let (pages, lent) = (&*self.pages, &mut self.lent);
        (request, FuseReply { channel, unique, request, buf: &mut self.reply, pages, lent })
    }

    /// Sends the reply, of which `len` bytes are used; none are for requests without one.
    pub(super) fn send(&mut self, channel: &Channel, len: usize) {
        let lent = std::mem::take(&mut self.lent);
        let head = self.reply.get(..HEADER).unwrap_or_default();
        // What was lent before an error came up is not sent.
        if !lent.is_empty() && len == HEADER.saturating_add(pages::total(&lent)) {
            channel.reply_lent(head, &lent);
        } else {
            channel.reply(self.reply(len));
        }
        self.lent = lent;
        self.lent.clear();
    }

    /// The first bytes of the reply.
    pub(super) fn reply(&self, len: usize) -> &[u8] {
        self.reply.get(..len).unwrap_or_default()
    }
}

/// A reply that is being put together.
pub(super) struct FuseReply<'a> {
    channel: &'a Arc<Channel>,
    unique: u64,
    request: &'a [u8],
    buf: &'a mut Vec<u8>,
    pages: &'a Pages,
    lent: &'a mut Vec<Lent>,
}

impl FuseReply<'_> {
    fn payload(&mut self, at: usize, len: usize) -> &mut [u8] {
        let end = HEADER.saturating_add(at).saturating_add(len).min(self.buf.len());
        self.buf.get_mut(HEADER.saturating_add(at)..end).unwrap_or_default()
    }

    /// An error in place of whatever was put together.
    pub(super) fn error(&mut self, errno: i32) -> usize {
        self.put(0, OutHeader { len: 16, error: -errno, unique: self.unique }.as_bytes());
        HEADER
    }
}

fn pread(buf: &mut [u8], file: BorrowedFd<'_>, offset: u64, flags: ReadWriteFlags) -> io::Result<usize> {
    Ok(rustix::io::preadv2(file, &mut [IoSliceMut::new(buf)], offset, flags)?)
}

impl ReadIo for FuseReply<'_> {
    fn room(&self) -> usize {
        self.buf.len().saturating_sub(HEADER)
    }

    fn read_nowait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
        match pread(self.payload(at, len), file, offset, ReadWriteFlags::NOWAIT) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP | libc::EINTR)) => {
                Ok(0)
            }
            other => other,
        }
    }

    fn read_wait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
        pread(self.payload(at, len), file, offset, ReadWriteFlags::empty())
    }

    fn lend(&mut self, file: BorrowedFd<'_>, offset: u64, len: usize) -> bool {
        let lent = self.pages.lend(self.lent, file, offset, len);
        if !lent {
            self.lent.clear();
        }
        lent
    }

    fn zero(&mut self, at: usize, len: usize) {
        self.payload(at, len).fill(0);
    }

    fn park(&mut self) -> Option<Box<dyn ParkedRead>> {
        let ticket = self.channel.later.add(inflight(self.request));
        let buf = vec![0; HEADER];
        Some(Box::new(Parked {
            channel: Arc::clone(self.channel),
            unique: self.unique,
            ticket,
            buf,
            answered: false,
        }))
    }
}

impl ReplyBuf for FuseReply<'_> {
    fn capacity(&self) -> usize {
        self.buf.len()
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        if let Some(to) = self.buf.get_mut(at..at.saturating_add(data.len())) {
            to.copy_from_slice(data);
        }
    }

    fn request_bytes(&mut self, at: usize, to: &mut [u8]) -> usize {
        let from = self.request.get(at..).unwrap_or_default();
        let n = from.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..n), from.get(..n)) {
            to.copy_from_slice(from);
        }
        n
    }

    fn write_request(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: Option<u64>,
    ) -> io::Result<usize> {
        let end = at.saturating_add(len).min(self.request.len());
        let data = self.request.get(at..end).unwrap_or_default();
        Ok(match offset {
            Some(offset) => rustix::io::pwrite(file, data, offset)?,
            None => rustix::io::pwritev2(file, &[IoSlice::new(data)], 0, ReadWriteFlags::APPEND)?,
        })
    }
}

/// A reply that comes later.
struct Parked {
    channel: Arc<Channel>,
    unique: u64,
    ticket: u64,
    buf: Vec<u8>,
    answered: bool,
}

impl Parked {
    fn room(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        let end = HEADER.checked_add(at)?.checked_add(len).filter(|end| *end <= REPLY_MAX)?;
        if self.buf.len() < end {
            self.buf.resize(end, 0);
        }
        self.buf.get_mut(HEADER + at..end)
    }

    fn answer(&mut self, result: Result<usize, i32>) {
        if std::mem::replace(&mut self.answered, true) {
            return;
        }
        let (len, error) = match result {
            Ok(n) => (HEADER.saturating_add(n).min(REPLY_MAX), 0),
            Err(errno) => (HEADER, -errno),
        };
        self.buf.resize(len, 0);
        let header = OutHeader { len: u32::try_from(len).unwrap_or(16), error, unique: self.unique };
        if let Some(head) = self.buf.get_mut(..HEADER) {
            head.copy_from_slice(header.as_bytes());
        }
        self.channel.reply(&self.buf);
        self.channel.later.remove(self.ticket);
    }
}

impl ParkedRead for Parked {
    fn fill(&mut self, at: usize, data: &[u8]) {
        if let Some(to) = self.room(at, data.len()) {
            to.copy_from_slice(data);
        }
    }

    fn fill_from(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<()> {
        let to = self.room(at, len).ok_or(io::ErrorKind::InvalidInput)?;
        let mut done = 0;
        while done < len {
            let rest = to.get_mut(done..).unwrap_or_default();
            match pread(rest, file, offset + done as u64, ReadWriteFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, result: Result<usize, i32>) {
        self.answer(result);
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.answer(Err(libc::EIO));
    }
}

/// The device's descriptors for `threads` threads: one each, or, when a successor is to find the requests on their way,
/// the same for all. The kernel fails what was read from a descriptor that is closed, so requests survive this process
/// only on a descriptor that a supervisor holds too.
pub(super) fn channels(
    device: BorrowedFd<'_>,
    threads: usize,
    shared: bool,
    later: &Arc<Later>,
) -> io::Result<Vec<Arc<Channel>>> {
    let first = Arc::new(Channel::new(device.try_clone_to_owned()?, Arc::clone(later)));
    let mut all = vec![Arc::clone(&first)];
    while all.len() < threads {
        let another = if shared { None } else { super::sys::clone_device(&first.fd).ok() };
        all.push(match another {
            Some(fd) => Arc::new(Channel::new(fd, Arc::clone(later))),
            None => Arc::clone(&first),
        });
    }
    Ok(all)
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
