//! A system call of FUSE mode that no safe interface has: a second descriptor on a mount's device.
//!
//! Owns: the call. Does not own: when it is made.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, u32)`.
const DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

/// A descriptor of `/dev/fuse` that takes requests of the same mount as `of`, with a list of its own of those that wait
/// for a reply: threads with one each do not meet at one lock.
///
/// # Errors
///
/// That of open(2) and ioctl(2).
pub(super) fn clone_device(of: impl AsFd) -> io::Result<OwnedFd> {
    let new = super::kernel_mount::open_device()?;
    let old = of.as_fd().as_raw_fd().cast_unsigned();
    // SAFETY: the kernel reads one u32, which lives on until the call returns.
    let done = unsafe { libc::ioctl(new.as_raw_fd(), DEV_IOC_CLONE, &raw const old) };
    if done == 0 { Ok(new) } else { Err(io::Error::last_os_error()) }
}
