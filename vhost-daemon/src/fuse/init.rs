//! INIT: what a guest and this server agree on.
//!
//! Owns: the flags we want, the limits we set, and the agreed result. Does not own: requests other than
//! INIT.

use super::abi::{InitIn, InitOut, VERSION_MAJOR, VERSION_MINOR, VERSION_MINOR_MIN, init_flag};
use std::sync::atomic::{AtomicBool, Ordering};

/// Largest read or write, bytes (guest-view.md section 6).
const IO_SIZE_MAX: u32 = 1 << 20;
const PAGE_SIZE: u32 = 4096;
/// Background requests a guest may have in flight on each request queue.
const BACKGROUND_PER_QUEUE: u16 = 1024;

/// Flags that suit an immutable, stateless file system. WRITEBACK_CACHE is not among them: with it a
/// write to a read-only image would fail too late for the writer to hear of it (guest-view.md section 5).
const WANTED: u64 = init_flag::ASYNC_READ
    | init_flag::EXPORT_SUPPORT
    | init_flag::BIG_WRITES
    | init_flag::DO_READDIRPLUS
    | init_flag::READDIRPLUS_AUTO
    | init_flag::ASYNC_DIO
    | init_flag::NO_OPEN_SUPPORT
    | init_flag::PARALLEL_DIROPS
    | init_flag::MAX_PAGES
    | init_flag::CACHE_SYMLINKS
    | init_flag::NO_OPENDIR_SUPPORT
    | init_flag::EXPLICIT_INVAL_DATA
    | init_flag::INIT_EXT;

/// What the transport adds to the agreement.
#[derive(Clone, Copy, Debug)]
pub struct InitLimits {
    /// Request queues of the device, at least 1.
    pub request_queues: u16,
    /// INIT flags that make sense on this transport alone.
    pub flags: u64,
}

/// What one guest and this server agreed on. It outlives connections: a front-end that comes back with a
/// living guest sends no new INIT, so the defaults are those of a guest that knows ENOSYS for OPEN.
#[derive(Debug)]
pub struct Session {
    initialized: AtomicBool,
    no_open: AtomicBool,
    no_opendir: AtomicBool,
}

/// What of an agreement a successor must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The kernel takes ENOSYS for OPEN to mean "needs no open".
    pub no_open: bool,
    /// The same for OPENDIR.
    pub no_opendir: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            initialized: AtomicBool::new(false),
            no_open: AtomicBool::new(true),
            no_opendir: AtomicBool::new(true),
        }
    }
}

impl Session {
    /// Whether the guest takes ENOSYS for OPEN to mean "needs no open".
    #[must_use]
    pub fn no_open(&self) -> bool {
        self.no_open.load(Ordering::Relaxed)
    }

    /// The same for OPENDIR.
    #[must_use]
    pub fn no_opendir(&self) -> bool {
        self.no_opendir.load(Ordering::Relaxed)
    }

    /// What was agreed on.
    #[must_use]
    pub fn agreed(&self) -> Agreed {
        Agreed { no_open: self.no_open(), no_opendir: self.no_opendir() }
    }

    /// Goes on with what a predecessor agreed on.
    pub fn adopt(&self, agreed: Agreed) {
        self.no_open.store(agreed.no_open, Ordering::Relaxed);
        self.no_opendir.store(agreed.no_opendir, Ordering::Relaxed);
        self.initialized.store(true, Ordering::Release);
    }

    /// Ends the session; returns whether there was one.
    pub fn end(&self) -> bool {
        self.initialized.swap(false, Ordering::AcqRel)
    }

    /// Negotiates; `wanted` are the file system's own flags. Returns the answer and whether the session is now up (a guest with a newer major
    /// version is told ours and asks again).
    ///
    /// # Errors
    ///
    /// `EPROTO` for a version that is too old.
    pub fn negotiate(
        &self,
        asked: &InitIn,
        flags2: u32,
        limits: InitLimits,
        wanted: u64,
    ) -> Result<(InitOut, bool), i32> {
        if asked.major > VERSION_MAJOR {
            let answer = InitOut { major: VERSION_MAJOR, minor: VERSION_MINOR, ..InitOut::default() };
            return Ok((answer, false));
        }
        if asked.major < VERSION_MAJOR || asked.minor < VERSION_MINOR_MIN {
            return Err(libc::EPROTO);
        }
        let mut offered = u64::from(asked.flags);
        if offered & init_flag::INIT_EXT != 0 {
            offered |= u64::from(flags2) << 32;
        }
        let mut agreed = offered & (WANTED | limits.flags | wanted) & !init_flag::WRITEBACK_CACHE;
        if agreed & init_flag::AUTO_INVAL_DATA != 0 {
            // Files that others change: the guest looks for itself, and drops what it has of them.
            agreed &= !init_flag::EXPLICIT_INVAL_DATA;
        }
        self.no_open.store(agreed & init_flag::NO_OPEN_SUPPORT != 0, Ordering::Relaxed);
        self.no_opendir.store(agreed & init_flag::NO_OPENDIR_SUPPORT != 0, Ordering::Relaxed);
        self.initialized.store(true, Ordering::Release);
        let [low, high] = split(agreed);
        let background = BACKGROUND_PER_QUEUE.saturating_mul(limits.request_queues.max(1));
        let answer = InitOut {
            major: VERSION_MAJOR,
            minor: asked.minor.min(VERSION_MINOR),
            max_readahead: asked.max_readahead,
            flags: low,
            max_background: background,
            congestion_threshold: background / 4 * 3,
            max_write: IO_SIZE_MAX,
            time_gran: 1,
            max_pages: u16::try_from(IO_SIZE_MAX / PAGE_SIZE).unwrap_or(u16::MAX),
            flags2: high,
            ..InitOut::default()
        };
        Ok((answer, true))
    }
}

fn split(flags: u64) -> [u32; 2] {
    let bytes = flags.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(request_queues: u16) -> InitLimits {
        InitLimits { request_queues, flags: 0 }
    }

    fn ask(major: u32, minor: u32, flags: u64) -> Result<(InitOut, bool), i32> {
        let [low, high] = split(flags);
        let asked = InitIn { major, minor, max_readahead: 131_072, flags: low };
        Session::default().negotiate(&asked, high, limits(2), 0)
    }

    #[test]
    fn versions() {
        assert_eq!(ask(7, 26, u64::MAX).unwrap_err(), libc::EPROTO);
        assert_eq!(ask(6, 40, u64::MAX).unwrap_err(), libc::EPROTO);
        let (answer, up) = ask(8, 1, u64::MAX).unwrap();
        assert_eq!((answer.major, answer.flags, up), (7, 0, false));
        assert_eq!(ask(7, 31, u64::MAX).unwrap().0.minor, 31);
        assert_eq!(ask(7, 99, u64::MAX).unwrap().0.minor, VERSION_MINOR);
    }

    #[test]
    fn flags_are_the_intersection_and_never_writeback() {
        let (all, _) = ask(7, 41, u64::MAX).unwrap();
        assert_eq!(u64::from(all.flags) & init_flag::WRITEBACK_CACHE, 0);
        assert_eq!(u64::from(all.flags), WANTED & 0xffff_ffff);
        let (none, _) = ask(7, 41, 0).unwrap();
        assert_eq!((none.flags, none.flags2), (0, 0));
        assert_eq!(all.max_pages, 256);
        assert_eq!(all.max_background, 2048);
    }

    #[test]
    fn no_open_follows_the_guest() {
        let session = Session::default();
        let asked = InitIn { major: 7, minor: 38, max_readahead: 0, flags: 0 };
        session.negotiate(&asked, 0, limits(1), 0).unwrap();
        assert!(!session.no_open());
        assert!(!session.no_opendir());
        assert!(session.end());
        assert!(!session.end());
    }
}
