//! Who uses a data file: a lock between open files, in this process or others.
//!
//! Everybody who reads a data file holds it shared. Who wants to take bytes away must hold it alone, which it gets only
//! when nobody else has the file open, and without letting go of its share in between. That needs the locks of open file
//! descriptions (`F_OFD_SETLK`), which `rustix` does not offer.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// How often, and how long apart, a share is tried: somebody may be taking bytes away at the moment.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Takes a share of `file`. `Ok(false)`: somebody has it alone and does not let go.
///
/// # Errors
/// This file system knows no such locks.
pub(super) fn share(file: &File) -> io::Result<bool> {
    for _ in 0..TRIES {
        if lock(file, libc::F_RDLCK)? {
            return Ok(true);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(false)
}

/// Gets `file` alone, or keeps the share it has.
///
/// # Errors
/// As [`share`].
pub(super) fn alone(file: &File) -> io::Result<bool> {
    lock(file, libc::F_WRLCK)
}

/// Goes back from [`alone`] to a share.
pub(super) fn share_again(file: &File) {
    if let Err(error) = lock(file, libc::F_RDLCK) {
        tracing::warn!(%error, "the lock of a cache file stays exclusive");
    }
}

fn lock(file: &File, kind: i32) -> io::Result<bool> {
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(io::Error::other)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(io::Error::other)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the kernel only reads the structure, which lives
    // on this stack frame.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_is_for_the_only_user() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (a, b) = (open(), open());
        assert!(share(&a).unwrap() && share(&b).unwrap());
        assert!(!alone(&a).unwrap() && !alone(&b).unwrap(), "both keep their shares");
        drop(b);
        assert!(alone(&a).unwrap());
        let c = open();
        assert!(!lock(&c, libc::F_RDLCK).unwrap());
        share_again(&a);
        assert!(share(&c).unwrap());
    }
}
