//! Dispatch: one request in, one reply out (or a promise of one).
//!
//! Owns: which opcode means which call, and that every request that wants a reply gets one, whatever is
//! wrong with it; the requests that only read. Does not own: changes (`write_side`), open files and locks
//! (`file_side`), transports, file systems, what was agreed ([`Session`]).

use super::abi::{self, op};
use super::dirents::{DirentWriter, attr, entry_out, split_timeout};
use super::guest_fs::{GuestFs, ReadAt, ReadStart};
use super::init::{Agreed, InitLimits, Session};
use super::reply::{self, HEADER, ReplyBuf};
use super::request::Request;
use crate::log_limit::LogLimit;
use fuse_backend_rs::api::filesystem::{Context, FsOptions, GetxattrReply, ListxattrReply};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Larger reads and listings than any guest agrees on in INIT, bytes: they take their time, and so another thread's.
const LONG_READ: u32 = 2 << 20;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered: so many bytes of the reply buffer are used. 0 for requests without a reply.
    Replied(usize),
    /// Answered later, through the parked reply.
    Parked,
    /// Nothing was done: a thread that may wait is to call [`Server::handle_waiting`] with the same request.
    Blocks,
}

/// One guest's view of a file system, with what was agreed with that guest.
#[derive(Debug)]
pub struct Server<F> {
    pub(super) fs: Arc<F>,
    session: Session,
    limits: InitLimits,
    /// A file system without handles answers FLUSH with ENOSYS, which ends them.
    pub(super) on_this_host: bool,
    inits: AtomicU64,
    log: LogLimit,
}

/// How a handler ended, before it is turned into a reply.
pub(super) enum Answer {
    /// The reply is in place, so many bytes.
    Ready(usize),
    /// No reply is wanted.
    Silent,
    Parked,
    Blocks,
}

pub(super) type Handled = Result<Answer, i32>;

impl<F: GuestFs> Server<F> {
    /// A server for one guest.
    #[must_use]
    pub fn new(fs: Arc<F>, limits: InitLimits) -> Self {
        Self {
            fs,
            session: Session::default(),
            limits,
            on_this_host: false,
            inits: AtomicU64::new(0),
            log: LogLimit::default(),
        }
    }

    /// The client is the kernel of this host. It is told, where no open file needs it, that FLUSH is not wanted: it asks
    /// once instead of at each close. Process ids mean something to it.
    #[must_use]
    pub fn on_this_host(self) -> Self {
        Self { on_this_host: true, ..self }
    }

    /// What was agreed with the guest, for a successor.
    #[must_use]
    pub fn agreed(&self) -> Agreed {
        self.session.agreed()
    }

    /// Goes on with what a predecessor agreed on with the guest.
    pub fn adopt(&self, agreed: Agreed) {
        self.session.adopt(agreed);
    }

    /// How often a guest began: another number is another guest, or one that has nothing left of before.
    #[must_use]
    pub fn inits(&self) -> u64 {
        self.inits.load(Ordering::Acquire)
    }

    /// The guest is gone or was reset: what was agreed with it no longer holds.
    pub fn end_session(&self) {
        if self.session.end() {
            self.fs.destroy();
        }
    }

    /// Handles one request. `head` is its first bytes (up to [`REQUEST_HEAD_MAX`](super::REQUEST_HEAD_MAX)),
    /// `total` the length of its whole readable part. Never waits for a disk, unless the file system's metadata does.
    pub fn handle<R: ReplyBuf>(&self, head: &[u8], total: usize, reply: &mut R) -> Outcome {
        self.handle_either(head, total, reply, false)
    }

    /// The same on a thread that may wait; never answers [`Outcome::Blocks`].
    pub fn handle_waiting<R: ReplyBuf>(&self, head: &[u8], total: usize, reply: &mut R) -> Outcome {
        self.handle_either(head, total, reply, true)
    }

    #[inline]
    fn handle_either<R: ReplyBuf>(
        &self,
        head: &[u8],
        total: usize,
        reply: &mut R,
        may_wait: bool,
    ) -> Outcome {
        let request = match Request::parse(head, total) {
            Ok(request) => request,
            Err((unique, errno)) => return Outcome::Replied(reply::error(reply, unique, errno)),
        };
        let unique = request.header.unique;
        match self.dispatch(&request, reply, may_wait) {
            Ok(Answer::Ready(used)) => Outcome::Replied(used),
            Ok(Answer::Silent) => Outcome::Replied(0),
            Ok(Answer::Parked) => Outcome::Parked,
            Ok(Answer::Blocks) => Outcome::Blocks,
            Err(errno) => Outcome::Replied(reply::error(reply, unique, errno)),
        }
    }

    fn dispatch<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R, may_wait: bool) -> Handled {
        match request.header.opcode {
            op::READ => self.read(request, reply, may_wait),
            op::LOOKUP => self.lookup(request, reply),
            op::GETATTR => self.getattr(request, reply),
            op::READDIRPLUS => self.readdirplus(request, reply, may_wait),
            op::READDIR => self.readdir(request, reply, may_wait),
            op::FORGET | op::BATCH_FORGET => Ok(self.forget(request, reply)),
            op::INTERRUPT => Ok(self.interrupt(request)),
            op::READLINK => self.readlink(request, reply),
            op::GETXATTR => self.getxattr(request, reply),
            op::LISTXATTR => self.listxattr(request, reply),
            op::OPEN => self.open(request, reply),
            op::OPENDIR => self.opendir(request, reply),
            op::FLUSH if self.on_this_host && self.fs.stateless_open() => Err(libc::ENOSYS),
            op::RELEASE | op::RELEASEDIR | op::FLUSH | op::FSYNC | op::FSYNCDIR | op::SYNCFS => {
                self.file_op(request, reply, may_wait)
            }
            op::STATFS => self.statfs(request, reply),
            op::ACCESS => self.access(request, reply),
            op::LSEEK => self.lseek(request, reply),
            op::INIT => self.init(request, reply),
            op::DESTROY => {
                self.end_session();
                Ok(empty(request, reply))
            }
            op::WRITE => self.write(request, reply, may_wait),
            op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::SETXATTR
            | op::REMOVEXATTR
            | op::CREATE
            | op::FALLOCATE => self.change(request, reply, may_wait),
            op::TMPFILE | op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 if !self.fs.stateless_open() => {
                self.change(request, reply, may_wait)
            }
            op::GETLK | op::SETLK | op::SETLKW => self.lock(request, reply),
            op::STATX if !self.fs.stateless_open() => self.statx(request, reply),
            _ => Err(libc::ENOSYS),
        }
    }

    fn init<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let asked: abi::InitIn = request.body()?;
        self.inits.fetch_add(1, Ordering::AcqRel);
        // A second INIT without DESTROY means that the guest rebooted.
        self.end_session();
        let (answer, up) =
            self.session.negotiate(&asked, request.init_flags2(), self.limits, self.fs.wanted_flags())?;
        if up {
            self.fs.init(FsOptions::all()).map_err(|e| errno(&e))?;
            self.log.info(|| {
                format!(
                    "the client speaks FUSE {}.{}, agreed on {}.{} with flags {:#x}",
                    asked.major,
                    asked.minor,
                    answer.major,
                    answer.minor,
                    u64::from(answer.flags2) << 32 | u64::from(answer.flags)
                )
            });
        }
        Ok(ready(request, reply, &answer))
    }

    fn lookup<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let name = request.name()?;
        let entry = self.fs.lookup(&context(request), request.header.nodeid, name);
        let entry = entry.map_err(|e| errno(&e))?;
        Ok(ready(request, reply, &entry_out(&entry)))
    }

    fn getattr<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let body: abi::GetattrIn = request.body()?;
        let node = request.header.nodeid;
        let handle = (body.flags & abi::GETATTR_FH != 0).then_some(body.fh);
        let (stat, timeout) = self.fs.getattr(&context(request), node, handle).map_err(|e| errno(&e))?;
        let (attr_valid, attr_valid_nsec) = split_timeout(timeout);
        let attr = attr(&stat, self.fs.attr_flags(node));
        Ok(ready(request, reply, &abi::AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr }))
    }

    fn read<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R, may_wait: bool) -> Handled {
        let body: abi::ReadIn = request.body()?;
        let header = &request.header;
        if body.offset.checked_add(u64::from(body.size)).is_none() {
            return Err(libc::EINVAL);
        }
        if reply.capacity() < HEADER {
            return Ok(Answer::Silent);
        }
        if !may_wait && is_long(body.size, reply) {
            return Ok(Answer::Blocks);
        }
        let read =
            ReadAt { node: header.nodeid, handle: body.fh, offset: body.offset, size: body.size, may_wait };
        let started = self.fs.start_read(&context(request), &read, reply);
        match started.map_err(|e| errno(&e))? {
            ReadStart::Done(n) => Ok(Answer::Ready(reply::header(reply, header.unique, HEADER + n))),
            ReadStart::Parked => Ok(Answer::Parked),
            ReadStart::Blocks => Ok(Answer::Blocks),
        }
    }

    fn readdir<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R, may_wait: bool) -> Handled {
        let body: abi::ReadIn = request.body()?;
        if !may_wait && is_long(body.size, reply) {
            return Ok(Answer::Blocks);
        }
        let mut writer = DirentWriter::new(reply, body.size);
        self.fs
            .readdir(
                &context(request),
                request.header.nodeid,
                body.fh,
                body.size,
                body.offset,
                &mut |entry| Ok(writer.plain(&entry)),
            )
            .map_err(|e| errno(&e))?;
        let len = writer.finish().ok_or(libc::EINVAL)?;
        Ok(Answer::Ready(reply::header(reply, request.header.unique, HEADER + len)))
    }

    fn readdirplus<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R, may_wait: bool) -> Handled {
        let body: abi::ReadIn = request.body()?;
        if !may_wait && is_long(body.size, reply) {
            return Ok(Answer::Blocks);
        }
        let mut writer = DirentWriter::new(reply, body.size);
        self.fs
            .list_plus(&context(request), request.header.nodeid, body.fh, body.offset, &mut writer)
            .map_err(|e| errno(&e))?;
        let len = writer.finish().ok_or(libc::EINVAL)?;
        Ok(Answer::Ready(reply::header(reply, request.header.unique, HEADER + len)))
    }

    fn readlink<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let target = self.fs.readlink(&context(request), request.header.nodeid);
        let target = target.map_err(|e| errno(&e))?;
        Ok(Answer::Ready(reply::bytes(reply, request.header.unique, &target, libc::EINVAL)))
    }

    fn getxattr<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let body: abi::GetxattrIn = request.body()?;
        let name = request.name_behind::<abi::GetxattrIn>()?;
        let answer = self.fs.getxattr(&context(request), request.header.nodeid, name, body.size);
        Ok(match answer.map_err(|e| self.xattr_errno(&e))? {
            GetxattrReply::Count(n) => ready(request, reply, &count(n)),
            GetxattrReply::Value(v) => {
                Answer::Ready(reply::bytes(reply, request.header.unique, &v, libc::ERANGE))
            }
        })
    }

    fn listxattr<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let body: abi::GetxattrIn = request.body()?;
        let answer = self.fs.listxattr(&context(request), request.header.nodeid, body.size);
        Ok(match answer.map_err(|e| self.xattr_errno(&e))? {
            ListxattrReply::Count(n) => ready(request, reply, &count(n)),
            ListxattrReply::Names(v) => {
                Answer::Ready(reply::bytes(reply, request.header.unique, &v, libc::ERANGE))
            }
        })
    }

    fn open<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let body: abi::OpenIn = request.body()?;
        let opened = self.fs.open(&context(request), request.header.nodeid, body.flags, body.open_flags);
        let (handle, options, _) = opened.map_err(|e| errno(&e))?;
        if handle.is_none() && self.fs.stateless_open() && self.session.no_open() {
            return Err(libc::ENOSYS);
        }
        // What has no handle has nothing to flush either.
        let noflush = if handle.is_none() { abi::fopen::NOFLUSH } else { 0 };
        let (fh, open_flags) = (handle.unwrap_or(0), options.bits() | noflush);
        Ok(ready(request, reply, &abi::OpenOut { fh, open_flags, backing_id: 0 }))
    }

    fn opendir<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let body: abi::OpenIn = request.body()?;
        let opened = self.fs.opendir(&context(request), request.header.nodeid, body.flags);
        let (handle, options) = opened.map_err(|e| errno(&e))?;
        if handle.is_none() && self.fs.stateless_open() && self.session.no_opendir() {
            return Err(libc::ENOSYS);
        }
        let (fh, open_flags) = (handle.unwrap_or(0), options.bits());
        Ok(ready(request, reply, &abi::OpenOut { fh, open_flags, backing_id: 0 }))
    }

    fn statfs<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let st = self.fs.statfs(&context(request), request.header.nodeid).map_err(|e| errno(&e))?;
        let answer = abi::StatfsOut {
            blocks: st.f_blocks,
            bfree: st.f_bfree,
            bavail: st.f_bavail,
            files: st.f_files,
            ffree: st.f_ffree,
            bsize: u32::try_from(st.f_bsize).unwrap_or(4096),
            namelen: u32::try_from(st.f_namemax).unwrap_or(255),
            frsize: u32::try_from(st.f_frsize).unwrap_or(4096),
            ..abi::StatfsOut::default()
        };
        Ok(ready(request, reply, &answer))
    }

    fn access<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let body: abi::AccessIn = request.body()?;
        self.fs.access(&context(request), request.header.nodeid, body.mask).map_err(|e| errno(&e))?;
        Ok(empty(request, reply))
    }

    fn lseek<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let body: abi::LseekIn = request.body()?;
        let found =
            self.fs.lseek(&context(request), request.header.nodeid, body.fh, body.offset, body.whence);
        let offset = found.map_err(|e| errno(&e))?;
        Ok(ready(request, reply, &abi::LseekOut { offset }))
    }

    /// A guest remembers ENOSYS for the whole connection; where other mounts have xattrs it must not hear it.
    fn xattr_errno(&self, error: &io::Error) -> i32 {
        match errno(error) {
            libc::ENOSYS if !self.fs.stateless_open() => libc::EOPNOTSUPP,
            errno => errno,
        }
    }
}

pub(super) fn ready<R: ReplyBuf, T: zerocopy::IntoBytes + zerocopy::Immutable>(
    request: &Request<'_>,
    reply: &mut R,
    payload: &T,
) -> Answer {
    Answer::Ready(reply::whole(reply, request.header.unique, payload))
}

/// Whether a reply of up to `size` bytes is one for a thread of its guest's own.
fn is_long<R: ReplyBuf>(size: u32, reply: &R) -> bool {
    size > LONG_READ && reply.capacity() > usize::try_from(LONG_READ).unwrap_or(usize::MAX)
}

pub(super) fn empty<R: ReplyBuf>(request: &Request<'_>, reply: &mut R) -> Answer {
    Answer::Ready(reply::header(reply, request.header.unique, HEADER))
}

fn count(size: u32) -> abi::GetxattrOut {
    abi::GetxattrOut { size, padding: 0 }
}

pub(super) fn context(request: &Request<'_>) -> Context {
    let header = &request.header;
    Context { uid: header.uid, gid: header.gid, pid: header.pid.cast_signed() }
}

/// The errno of a file system's error; EIO for one that has none.
pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
