//! Interrupting a thread that waits in a system call, for which there is no safe interface.
//!
//! Owns: the signal that does it. Does not own: who is interrupted, and when.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

/// Nobody else sends it.
const SIGNAL: i32 = libc::SIGUSR2;

extern "C" fn nothing(_signal: i32) {}

/// Makes [`thread`] interrupt system calls instead of ending the process. May be called any number of times.
///
/// # Errors
///
/// That of sigaction(2).
pub(crate) fn allow() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one: no flags (so system calls are not begun again), empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
    // SAFETY: `action` lives until the call returns; its handler does nothing, which is safe at any moment.
    let done = unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Interrupts the system call that a thread is in. One that is about to enter its next is missed: repeat until it ends.
pub(crate) fn thread(thread: &JoinHandle<()>) {
    // SAFETY: the handle is not joined yet, so the thread's id is valid, whether it still runs or not.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGNAL) };
}
