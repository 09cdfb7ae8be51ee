//! Requests that change something: from the wire to a [`Change`] and back.
//!
//! Owns: decoding of changes, and that a read-only node answers EROFS before anything else is looked at. Does not own:
//! what a change does.

use super::abi::{self, fattr, op};
use super::change::{Change, Changed, CreateFile, NewNode, SetAttr, SetTime};
use super::dirents::{attr, entry_out, split_timeout};
use super::guest_fs::{GuestFs, WriteAt};
use super::reply::{Payload, ReplyBuf};
use super::request::Request;
use super::server::{Answer, Handled, Server, context, empty, errno, ready};
use std::ffi::CStr;

/// Longest body that is copied as a whole, bytes: a name and the largest xattr value (`XATTR_SIZE_MAX`), with some room.
const BODY_MAX: usize = 65_536 + 4096;
/// Bytes of the request header.
const HEADER: usize = size_of::<abi::InHeader>();
/// Longest target of a symlink, bytes (`PATH_MAX` without its NUL).
const TARGET_MAX: usize = 4095;

impl<F: GuestFs> Server<F> {
    pub(super) fn write<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R, may_wait: bool) -> Handled {
        let node = request.header.nodeid;
        if self.fs.read_only(node) {
            return Err(libc::EROFS);
        }
        let body: abi::WriteIn = request.body()?;
        let base = HEADER + size_of::<abi::WriteIn>();
        let payload = usize::try_from(request.header.len).unwrap_or(0).saturating_sub(base);
        if usize::try_from(body.size).map_or(true, |size| size > payload) {
            return Err(libc::EINVAL);
        }
        if body.offset.checked_add(u64::from(body.size)).is_none_or(|end| end > i64::MAX.cast_unsigned()) {
            return Err(libc::EFBIG);
        }
        if !may_wait {
            return Ok(Answer::Blocks);
        }
        // Others may have appended since the guest looked. Pages that are written back belong where they were.
        let appends =
            body.flags & libc::O_APPEND.cast_unsigned() != 0 && body.write_flags & abi::WRITE_CACHE == 0;
        let write = WriteAt {
            node,
            handle: body.fh,
            offset: (!appends).then_some(body.offset),
            size: body.size,
            kill_suidgid: body.write_flags & abi::WRITE_KILL_SUIDGID != 0,
        };
        let written = self.fs.write_file(&context(request), &write, &mut Payload { transport: reply, base });
        let size = written.map_err(|e| errno(&e))?;
        Ok(ready(request, reply, &abi::WriteOut { size, padding: 0 }))
    }

    pub(super) fn change<R: ReplyBuf>(
        &self,
        request: &Request<'_>,
        reply: &mut R,
        may_wait: bool,
    ) -> Handled {
        // The node of a copy is the one that is read; all others are to be changed.
        let copies = matches!(request.header.opcode, op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64);
        if !copies && self.fs.read_only(request.header.nodeid) {
            return Err(libc::EROFS);
        }
        if request.is_truncated() {
            let len = usize::try_from(request.header.len).unwrap_or(usize::MAX).saturating_sub(HEADER);
            if len > BODY_MAX {
                return Err(if request.header.opcode == op::SETXATTR { libc::E2BIG } else { libc::EINVAL });
            }
            let mut body = vec![0; len];
            if reply.request_bytes(HEADER, &mut body) != len {
                return Err(libc::EINVAL);
            }
            return self.change_whole(&request.with_body(&body), reply, may_wait);
        }
        self.change_whole(request, reply, may_wait)
    }

    /// A change whose whole body is at hand.
    fn change_whole<R: ReplyBuf>(&self, request: &Request<'_>, reply: &mut R, may_wait: bool) -> Handled {
        let change = decode(request)?;
        let (node, other) = change.nodes();
        if self.fs.read_only(node) || (moves(&change) && other.is_some_and(|n| self.fs.read_only(n))) {
            return Err(libc::EROFS);
        }
        if change.may_block() && !may_wait {
            return Ok(Answer::Blocks);
        }
        let changed = self.fs.change(&context(request), &change).map_err(|e| errno(&e))?;
        Ok(match changed {
            Changed::Done => empty(request, reply),
            Changed::Entry(entry) => ready(request, reply, &entry_out(&entry)),
            Changed::Created(entry, fh, open_flags) => {
                let open = abi::OpenOut { fh, open_flags, backing_id: 0 };
                ready(request, reply, &abi::CreateOut { entry: entry_out(&entry), open })
            }
            Changed::Attr(stat, timeout) => {
                let (attr_valid, attr_valid_nsec) = split_timeout(timeout);
                let attr = attr(&stat, self.fs.attr_flags(node));
                ready(request, reply, &abi::AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr })
            }
            Changed::Copied(n) if request.header.opcode == op::COPY_FILE_RANGE_64 => {
                ready(request, reply, &abi::LseekOut { offset: n })
            }
            Changed::Copied(n) => {
                let size = u32::try_from(n).unwrap_or(u32::MAX);
                ready(request, reply, &abi::WriteOut { size, padding: 0 })
            }
        })
    }
}

/// Whether the change writes to both of its nodes.
fn moves(change: &Change<'_>) -> bool {
    matches!(change, Change::Rename(..) | Change::Link(..))
}

fn decode<'a>(request: &Request<'a>) -> Result<Change<'a>, i32> {
    let node = request.header.nodeid;
    let here = |name| NewNode { dir: node, name };
    Ok(match request.header.opcode {
        op::SETATTR => Change::SetAttr(node, setattr(&request.body()?)),
        op::MKNOD => {
            let body: abi::MknodIn = request.body()?;
            Change::Mknod(here(request.name_behind::<abi::MknodIn>()?), body.mode, body.rdev, body.umask)
        }
        op::MKDIR => {
            let body: abi::MkdirIn = request.body()?;
            Change::Mkdir(here(request.name_behind::<abi::MkdirIn>()?), body.mode, body.umask)
        }
        op::SYMLINK => {
            let name = request.name()?;
            let rest = request.behind::<()>()?.get(name.count_bytes() + 1..).unwrap_or_default();
            Change::Symlink(here(name), target(rest)?)
        }
        op::UNLINK => Change::Unlink(here(request.name()?)),
        op::RMDIR => Change::Rmdir(here(request.name()?)),
        op::RENAME => {
            let body: abi::RenameIn = request.body()?;
            let (from, to) = request.names_behind::<abi::RenameIn>()?;
            Change::Rename(here(from), NewNode { dir: body.newdir, name: to }, 0)
        }
        op::RENAME2 => {
            let body: abi::Rename2In = request.body()?;
            let (from, to) = request.names_behind::<abi::Rename2In>()?;
            Change::Rename(here(from), NewNode { dir: body.newdir, name: to }, body.flags)
        }
        op::LINK => {
            let body: abi::LinkIn = request.body()?;
            Change::Link(body.oldnodeid, here(request.name_behind::<abi::LinkIn>()?))
        }
        op::CREATE => {
            let body: abi::CreateIn = request.body()?;
            Change::Create(here(request.name_behind::<abi::CreateIn>()?), create(&body))
        }
        op::TMPFILE => Change::Tmpfile(node, create(&request.body()?)),
        op::FALLOCATE => {
            let body: abi::FallocateIn = request.body()?;
            let abi::FallocateIn { fh: handle, offset, length, mode, .. } = body;
            Change::Fallocate { node, handle, mode, offset, length }
        }
        op::SETXATTR => set_xattr(request)?,
        op::REMOVEXATTR => Change::RemoveXattr(node, request.name()?),
        op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => {
            let body: abi::CopyFileRangeIn = request.body()?;
            if body.flags != 0 {
                return Err(libc::EINVAL);
            }
            // The older reply has 32 bits for the length.
            let most = if request.header.opcode == op::COPY_FILE_RANGE { 0x7fff_f000 } else { u64::MAX };
            Change::Copy {
                from: (node, body.fh_in, body.off_in),
                to: (body.nodeid_out, body.fh_out, body.off_out),
                len: body.len.min(most),
            }
        }
        _ => return Err(libc::ENOSYS),
    })
}

fn create(body: &abi::CreateIn) -> CreateFile {
    let kill_suidgid = body.open_flags & abi::OPEN_KILL_SUIDGID != 0;
    CreateFile { mode: body.mode, umask: body.umask, flags: body.flags, kill_suidgid }
}

/// SETXATTR in either form. Its length says which it is, so that a guest whose INIT went to another daemon is understood:
/// read as the short one, the name of the long one begins with flags, has two bytes at most, and ends too early.
fn set_xattr<'a>(request: &Request<'a>) -> Result<Change<'a>, i32> {
    let body: abi::SetxattrIn = request.body()?;
    let size = usize::try_from(body.size).map_err(|_| libc::E2BIG)?;
    let fits = |name: &CStr, behind: &'a [u8]| -> Option<&'a [u8]> {
        let value = behind.get(name.count_bytes() + 1..)?;
        (value.len() == size).then_some(value)
    };
    let (node, flags) = (request.header.nodeid, body.flags);
    let behind = request.behind::<abi::SetxattrIn>()?;
    if let Ok(name) = request.name_behind::<abi::SetxattrIn>()
        && let Some(value) = fits(name, behind)
    {
        return Ok(Change::SetXattr { node, name, value, flags, kill_sgid: false });
    }
    let body: abi::SetxattrExtIn = request.body()?;
    let name = request.name_behind::<abi::SetxattrExtIn>()?;
    let value = fits(name, request.behind::<abi::SetxattrExtIn>()?).ok_or(libc::EINVAL)?;
    let kill_sgid = body.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
    Ok(Change::SetXattr { node, name, value, flags, kill_sgid })
}

fn target(bytes: &[u8]) -> Result<&CStr, i32> {
    match CStr::from_bytes_until_nul(bytes) {
        Ok(target) if target.is_empty() => Err(libc::EINVAL),
        Ok(target) if target.count_bytes() > TARGET_MAX => Err(libc::ENAMETOOLONG),
        Ok(target) => Ok(target),
        Err(_) => Err(libc::EINVAL),
    }
}

fn setattr(body: &abi::SetattrIn) -> SetAttr {
    let has = |bit: u32| body.valid & bit != 0;
    let time = |at, now, sec: u64, nsec| match (has(now), has(at)) {
        (true, _) => SetTime::Now,
        (false, true) => SetTime::At(sec.cast_signed(), nsec),
        (false, false) => SetTime::Keep,
    };
    SetAttr {
        mode: has(fattr::MODE).then_some(body.mode),
        uid: has(fattr::UID).then_some(body.uid),
        gid: has(fattr::GID).then_some(body.gid),
        size: has(fattr::SIZE).then_some(body.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, body.atime, body.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, body.mtime, body.mtimensec),
        handle: has(fattr::FH).then_some(body.fh),
        kill_suidgid: has(fattr::KILL_SUIDGID),
    }
}
