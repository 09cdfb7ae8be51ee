//! What came as a mount's device from a supervisor, looked at before anything is read from it.
//!
//! Owns: the question whether a descriptor is the device of the mount at a path. Does not own: the mount.

use super::kernel_mount;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// Device number of `/dev/fuse` (Linux, Documentation/admin-guide/devices.txt).
const DEV_FUSE: (u32, u32) = (10, 229);

/// Why a descriptor is not the device of a mount.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DeviceError {
    /// Something else.
    #[error(
        "the descriptor that the supervisor sent is {0}, not /dev/fuse: it has to give back the one that `sendfd` gave it"
    )]
    Other(String),
    /// Nobody can be served through it any more.
    #[error(
        "the mount is gone: it was unmounted or aborted after its state was saved; unmount {0} if it is still there, and \
         start a new daemon"
    )]
    Gone(String),
    /// The mount is not where it is looked for.
    #[error(
        "the device that the supervisor sent is of another mount than the one on {0}: start with the --mountpoint of the \
         daemon whose state it is, where that is mounted"
    )]
    Elsewhere(String),
}

/// Makes sure that `device` is that of the mount on `path`, and that the mount is there. Returns the mount's connection.
/// `saved` is what the predecessor said its connection was: only newer kernels tell.
pub(super) fn check(device: BorrowedFd<'_>, path: &Path, saved: Option<u32>) -> Result<u32, DeviceError> {
    let other = |what: &str| DeviceError::Other(what.to_owned());
    let stat = rustix::fs::fstat(device).map_err(|e| other(&format!("unreadable ({e})")))?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice if number == DEV_FUSE => {}
        FileType::CharacterDevice => {
            return Err(other(&format!("character device {}:{}", number.0, number.1)));
        }
        FileType::RegularFile => return Err(other("a regular file")),
        FileType::Fifo => return Err(other("a pipe")),
        FileType::Socket => return Err(other("a socket")),
        FileType::Directory => return Err(other("a directory")),
        _ => return Err(other("something else")),
    }
    let shown = || path.display().to_string();
    let mut fds = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    let looked = poll(&mut fds, Some(&no_wait));
    let [fd] = &fds;
    // The device says so when it is not, or no longer, that of a mount.
    if looked.is_err() || fd.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
        return Err(DeviceError::Gone(shown()));
    }
    let here = kernel_mount::connection(path).ok_or_else(|| DeviceError::Elsewhere(shown()))?;
    match connection_of(device).or(saved) {
        Some(its) if its != here => Err(DeviceError::Elsewhere(shown())),
        _ => Ok(here),
    }
}

/// The connection of a device, where the kernel says it.
fn connection_of(device: BorrowedFd<'_>) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn only_the_device_of_a_mount_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        for (fd, name) in [
            (file.as_fd(), "a regular file"),
            (pipe.as_fd(), "a pipe"),
            (socket.as_fd(), "a socket"),
            (null.as_fd(), "character device 1:3"),
        ] {
            assert_eq!(check(fd, dir.path(), Some(1)), Err(DeviceError::Other(name.to_owned())));
        }
        // One that is not mounted, where it can be opened at all.
        if let Ok(device) = kernel_mount::open_device() {
            let gone = DeviceError::Gone(dir.path().display().to_string());
            assert_eq!(check(device.as_fd(), dir.path(), None), Err(gone));
        }
    }
}
