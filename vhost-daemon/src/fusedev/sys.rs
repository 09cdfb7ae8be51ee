//! System calls of FUSE mode that no safe interface has: a second descriptor on a mount's device, and waking a thread
//! that waits in read(2).
//!
//! Owns: these calls. Does not own: when they are made.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, u32)`.
const DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;
/// Wakes a thread out of read(2). Nobody else sends it.
const WAKE: i32 = libc::SIGUSR2;

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

extern "C" fn nothing(_signal: i32) {}

/// Makes [`wake`] interrupt system calls instead of ending the process.
///
/// # Errors
///
/// That of sigaction(2).
pub(super) fn allow_waking() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one: no flags (so system calls are not begun again), empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
    // SAFETY: `action` lives until the call returns; its handler does nothing, which is safe at any moment.
    let done = unsafe { libc::sigaction(WAKE, &raw const action, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Interrupts the system call that a thread is in. One that is about to enter its next is missed: repeat until it ends.
pub(super) fn wake(thread: &JoinHandle<()>) {
    // SAFETY: the handle is not joined yet, so the thread's id is valid, whether it still runs or not.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), WAKE) };
}
