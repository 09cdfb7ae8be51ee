//! Event descriptors of a front-end: those we write to, and which ones are good enough to be watched.
//!
//! Owns: the write that interrupts a guest, without waiting where that can be told beforehand. Does not own: when one is
//! due.
//!
//! The descriptor is shared with the front-end, flags included, so O_NONBLOCK is its to set and not ours.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use std::fs::File;
use std::os::fd::AsFd;

/// A descriptor that tells the front-end of something.
#[derive(Debug)]
pub(super) struct Call {
    file: File,
    /// Writing waits while its counter is full, which a front-end that never reads it can make it.
    blocking: bool,
}

impl Call {
    /// Takes a descriptor as the front-end sent it.
    pub(super) fn new(file: File) -> Self {
        let blocking = rustix::fs::fcntl_getfl(&file).map_or(true, |flags| !flags.contains(OFlags::NONBLOCK));
        Self { file, blocking }
    }

    /// Tells. A counter that is full says already all there is to say. Waits only for a front-end that fills its counter
    /// between the look and the write, or makes a descriptor blocking that was not when it was sent.
    pub(super) fn signal(&self) {
        if self.blocking {
            let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if !matches!(poll(&mut fds, Some(&now)), Ok(1)) {
                return;
            }
        }
        let _ = rustix::io::write(&self.file, &1u64.to_ne_bytes());
    }
}

/// Whether a descriptor may be watched together with those of other guests: asking it whether it is ready must not ask
/// somebody else, as it would with a file of a FUSE mount. Anonymous files (event descriptors) and pipes pass.
pub(super) fn is_watchable(file: &File) -> bool {
    let Ok(stat) = rustix::fs::fstat(file.as_fd()) else { return false };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => true,
        // An epoll descriptor is one too, and would ask what it watches.
        FileType::Unknown => {
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
            std::fs::read_link(path).map_or(true, |name| name.as_os_str() == "anon_inode:[eventfd]")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, epoll, eventfd};
    use std::os::fd::OwnedFd;

    #[test]
    fn a_full_counter_is_not_waited_for() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let file = File::from(eventfd(0, flags).unwrap());
            rustix::io::write(&file, &(u64::MAX - 2).to_ne_bytes()).unwrap();
            let call = Call::new(file);
            for _ in 0..3 {
                call.signal();
            }
            let mut counter = [0; 8];
            rustix::io::read(&call.file, &mut counter).unwrap();
            assert_eq!(u64::from_ne_bytes(counter), u64::MAX - 1);
            let after = rustix::fs::fcntl_getfl(&call.file).unwrap().contains(OFlags::NONBLOCK);
            assert_eq!(after, flags.contains(EventfdFlags::NONBLOCK), "the front-end's flag was changed");
        }
    }

    #[test]
    fn only_what_answers_by_itself_is_watched() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(is_watchable(&File::from(OwnedFd::from(reader))));
        assert!(is_watchable(&File::from(eventfd(0, EventfdFlags::empty()).unwrap())));
        assert!(!is_watchable(&tempfile::tempfile().unwrap()));
        assert!(!is_watchable(&File::open("/dev/zero").unwrap()));
        assert!(!is_watchable(&File::from(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap())));
    }
}
