//! Attributes of the host's files as guests see them.
//!
//! Owns: which field goes where. Does not own: where a file is found.

use super::Passthrough;
use super::inodes::{Inode, stat_fd};
use crate::fuse::abi;
use crate::mounts::rafs_mount::empty_stat;
use rustix::fs::{Statx, StatxFlags};
use std::io;
use std::os::fd::AsFd;

impl Passthrough {
    pub(super) fn stat(&self, inode: &Inode, from: &Statx) -> libc::stat64 {
        let mut stat = empty_stat();
        stat.st_ino = self.shown(inode.number);
        stat.st_mode = u32::from(from.stx_mode);
        stat.st_nlink = u64::from(from.stx_nlink);
        stat.st_uid = from.stx_uid;
        stat.st_gid = from.stx_gid;
        stat.st_rdev = libc::makedev(from.stx_rdev_major, from.stx_rdev_minor);
        stat.st_size = i64::try_from(from.stx_size).unwrap_or(i64::MAX);
        stat.st_blksize = i64::from(from.stx_blksize);
        stat.st_blocks = i64::try_from(from.stx_blocks).unwrap_or(i64::MAX);
        (stat.st_mtime, stat.st_mtime_nsec) = (from.stx_mtime.tv_sec, i64::from(from.stx_mtime.tv_nsec));
        (stat.st_atime, stat.st_atime_nsec) = (from.stx_atime.tv_sec, i64::from(from.stx_atime.tv_nsec));
        (stat.st_ctime, stat.st_ctime_nsec) = (from.stx_ctime.tv_sec, i64::from(from.stx_ctime.tv_nsec));
        stat
    }

    /// Attributes of a node, through its open file if there is one.
    pub(super) fn stat_node(&self, inode: &Inode, handle: Option<u64>) -> io::Result<Statx> {
        match handle.map(|handle| self.files.get(handle, inode)) {
            Some(Ok(file)) => stat_fd(file.fd.as_fd()),
            _ => stat_fd(inode.fd()?.as_fd()),
        }
    }

    /// What STATX answers.
    pub(super) fn statx_of(&self, node: u64, handle: Option<u64>) -> io::Result<abi::Statx> {
        let inode = self.inode(node)?;
        let from = self.stat_node(&inode, handle)?;
        let time =
            |t: rustix::fs::StatxTimestamp| abi::SxTime { sec: t.tv_sec, nsec: t.tv_nsec, reserved: 0 };
        Ok(abi::Statx {
            mask: from.stx_mask & (StatxFlags::BASIC_STATS | StatxFlags::BTIME).bits(),
            blksize: from.stx_blksize,
            attributes: from.stx_attributes.bits(),
            nlink: from.stx_nlink,
            uid: from.stx_uid,
            gid: from.stx_gid,
            mode: from.stx_mode,
            ino: self.shown(inode.number),
            size: from.stx_size,
            blocks: from.stx_blocks,
            attributes_mask: from.stx_attributes_mask.bits(),
            atime: time(from.stx_atime),
            btime: time(from.stx_btime),
            ctime: time(from.stx_ctime),
            mtime: time(from.stx_mtime),
            rdev_major: from.stx_rdev_major,
            rdev_minor: from.stx_rdev_minor,
            ..abi::Statx::default()
        })
    }
}
