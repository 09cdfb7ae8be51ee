//! Requests about open files, references and locks, and STATX.
//!
//! Owns: their decoding. Does not own: handles, references, locks.

use super::abi::{self, op};
use super::change::{FileOp, LockReply, LockRequest, LockVerb};
use super::dirents::split_timeout;
use super::guest_fs::GuestFs;
use super::reply::{self, ReplyBuf};
use super::request::Request;
use super::server::{Answer, Handled, Server, context, empty, errno, ready};
use zerocopy::FromBytes;

/// Bytes of the request header.
const HEADER: usize = size_of::<abi::InHeader>();
/// `STATX_BASIC_STATS`.
const BASIC_STATS: u32 = 0x7ff;
/// Most nodes of one BATCH_FORGET: 1 MiB of them, which is as much as a request of Linux can have. What a guest says
/// beyond is not looked at, since it could say it without end.
const FORGETS_MAX: usize = 65_536;

impl<F: GuestFs> Server<F> {
    /// FORGET and BATCH_FORGET, which have no reply whatever they say.
    pub(super) fn forget<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Answer {
        let ctx = context(request);
        if request.header.opcode == op::FORGET {
            if let Ok(body) = request.body::<abi::ForgetIn>() {
                self.fs.forget(&ctx, request.header.nodeid, body.nlookup);
            }
            return Answer::Silent;
        }
        let Ok(body) = request.body::<abi::BatchForgetIn>() else { return Answer::Silent };
        let mut at = HEADER + size_of::<abi::BatchForgetIn>();
        let mut buf = [0; 64 * size_of::<abi::ForgetOne>()];
        let mut left = usize::try_from(body.count).unwrap_or(usize::MAX).min(FORGETS_MAX);
        while left > 0 {
            let wanted = left.saturating_mul(size_of::<abi::ForgetOne>()).min(buf.len());
            let Some(part) = buf.get_mut(..wanted) else { break };
            let got = reply.request_bytes(at, part);
            let Some(part) = buf.get(..got) else { break };
            let mut items = part.chunks_exact(size_of::<abi::ForgetOne>());
            let mut count = 0;
            for item in &mut items {
                if let Ok(one) = abi::ForgetOne::read_from_bytes(item) {
                    self.fs.forget(&ctx, one.nodeid, one.nlookup);
                }
                count += 1;
            }
            if count == 0 {
                break;
            }
            left -= count;
            at += count * size_of::<abi::ForgetOne>();
        }
        Answer::Silent
    }

    pub(super) fn interrupt(&self, request: &Request<'_>) -> Answer {
        if let Ok(body) = request.body::<abi::InterruptIn>() {
            self.fs.interrupt(body.unique);
        }
        Answer::Silent
    }

    pub(super) fn file_op<R: ReplyBuf>(
        &self,
        request: &Request<'_>,
        reply: &mut R,
        may_wait: bool,
    ) -> Handled {
        let node = request.header.nodeid;
        let file_op = match request.header.opcode {
            op::FLUSH => {
                let body: abi::FlushIn = request.body()?;
                FileOp::Flush { handle: body.fh, owner: body.lock_owner }
            }
            op::RELEASE | op::RELEASEDIR => {
                let body: abi::ReleaseIn = request.body()?;
                let owner = |bit| (body.release_flags & bit != 0).then_some(body.lock_owner);
                if request.header.opcode == op::RELEASEDIR {
                    FileOp::ReleaseDir { handle: body.fh }
                } else {
                    let (flock, posix) = (owner(abi::RELEASE_FLOCK_UNLOCK), owner(abi::RELEASE_FLUSH));
                    FileOp::Release { handle: body.fh, flock, posix }
                }
            }
            op::SYNCFS => FileOp::SyncFs,
            opcode => {
                let body: abi::FsyncIn = request.body()?;
                let data = body.fsync_flags & abi::FSYNC_DATA != 0;
                FileOp::Fsync { handle: body.fh, data, dir: opcode == op::FSYNCDIR }
            }
        };
        let slow = match file_op {
            FileOp::Fsync { .. } | FileOp::SyncFs => true,
            FileOp::Flush { handle, .. } => !may_wait && self.fs.flush_may_wait(node, handle),
            FileOp::Release { .. } | FileOp::ReleaseDir { .. } => false,
        };
        if slow && !may_wait && !self.fs.read_only(node) {
            return Ok(Answer::Blocks);
        }
        self.fs.file_op(&context(request), node, &file_op).map_err(|e| errno(&e))?;
        Ok(empty(request, reply))
    }

    pub(super) fn lock<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let header = &request.header;
        if self.fs.stateless_open() {
            return Err(libc::ENOSYS);
        }
        let body: abi::LkIn = request.body()?;
        let lock = LockRequest {
            unique: header.unique,
            node: header.nodeid,
            handle: body.fh,
            owner: body.owner,
            verb: match header.opcode {
                op::GETLK => LockVerb::Get,
                op::SETLK => LockVerb::Set,
                _ => LockVerb::SetWait,
            },
            flock: body.flags & abi::LK_FLOCK != 0,
            lock: body.lock,
        };
        let done = self.fs.lock(&context(request), &lock, reply).map_err(|e| errno(&e))?;
        Ok(match done {
            LockReply::Done => empty(request, reply),
            // A process of the host, which in a machine is nobody or somebody else.
            LockReply::Holder(lock) if !self.on_this_host => {
                ready(request, reply, &abi::FileLock { pid: 0, ..lock })
            }
            LockReply::Holder(lock) => ready(request, reply, &lock),
            LockReply::Parked => Answer::Parked,
        })
    }

    pub(super) fn statx<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R) -> Handled {
        let body: abi::StatxIn = request.body()?;
        let node = request.header.nodeid;
        let handle = (body.getattr_flags & abi::GETATTR_FH != 0).then_some(body.fh);
        let ctx = context(request);
        let (stat, timeout) = match self.fs.statx(&ctx, node, handle, body.sx_mask) {
            Ok(answer) => answer,
            // The guest would remember ENOSYS for mounts that do have it.
            Err(e) if errno(&e) == libc::ENOSYS => {
                let (stat, timeout) = self.fs.getattr(&ctx, node, handle).map_err(|e| errno(&e))?;
                (statx_of(&stat), timeout)
            }
            Err(e) => return Err(errno(&e)),
        };
        let (attr_valid, attr_valid_nsec) = split_timeout(timeout);
        let out = abi::StatxOut { attr_valid, attr_valid_nsec, stat, ..abi::StatxOut::default() };
        Ok(Answer::Ready(reply::whole(reply, request.header.unique, &out)))
    }
}

/// The basic fields of STATX from what GETATTR says.
fn statx_of(stat: &libc::stat64) -> abi::Statx {
    let time = |sec: i64, nsec: i64| abi::SxTime { sec, nsec: u32::try_from(nsec).unwrap_or(0), reserved: 0 };
    abi::Statx {
        mask: BASIC_STATS,
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: u16::try_from(stat.st_mode & 0xffff).unwrap_or(0),
        ino: stat.st_ino,
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        rdev_major: libc::major(stat.st_rdev),
        rdev_minor: libc::minor(stat.st_rdev),
        ..abi::Statx::default()
    }
}
