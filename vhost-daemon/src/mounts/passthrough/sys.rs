//! System calls that neither std nor rustix has: file handles, locks of open files, a thread's file-system identity, errors
//! of close(2).
//!
//! Owns: these calls, each behind a safe function. Does not own: when they are made.
//!
//! Unsafe code is here because the kernel fills buffers of ours (file handles, locks), and because identity and umask
//! belong to a thread, which no safe interface offers.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Once;

/// Largest file handle, bytes (`MAX_HANDLE_SZ`).
const HANDLE_MAX: usize = 128;

/// Names an inode without holding a descriptor (name_to_handle_at(2)).
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct FileHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileHandle").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// `struct file_handle` with its bytes.
#[repr(C)]
struct RawHandle {
    head: libc::file_handle,
    bytes: [u8; HANDLE_MAX],
}

impl FileHandle {
    /// The handle of what `fd` names.
    ///
    /// # Errors
    ///
    /// That of name_to_handle_at(2); `EOPNOTSUPP` where the file system has none.
    pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut raw = RawHandle {
            head: libc::file_handle { handle_bytes: 128, handle_type: 0, f_handle: [] },
            bytes: [0; HANDLE_MAX],
        };
        let mut mount = 0;
        // SAFETY: the path is a NUL-terminated constant; the kernel writes at most `handle_bytes` bytes behind the
        // head, which `bytes` has room for, and one int.
        let done = unsafe {
            libc::name_to_handle_at(
                fd.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let len = usize::try_from(raw.head.handle_bytes).unwrap_or(HANDLE_MAX);
        let bytes = raw.bytes.get(..len).ok_or(io::ErrorKind::InvalidData)?.into();
        Ok(Self { kind: raw.head.handle_type, bytes })
    }

    /// Opens what the handle names, on the mount that `mount` is on.
    ///
    /// # Errors
    ///
    /// That of open_by_handle_at(2); `ESTALE` when it is gone.
    pub(super) fn open(&self, mount: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
        let mut raw = RawHandle {
            head: libc::file_handle {
                handle_bytes: u32::try_from(self.bytes.len()).map_err(|_| io::ErrorKind::InvalidData)?,
                handle_type: self.kind,
                f_handle: [],
            },
            bytes: [0; HANDLE_MAX],
        };
        raw.bytes.get_mut(..self.bytes.len()).ok_or(io::ErrorKind::InvalidData)?.copy_from_slice(&self.bytes);
        // SAFETY: the kernel reads the head and `handle_bytes` bytes behind it, all of which are there.
        let fd = unsafe {
            libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut raw).cast(), flags | libc::O_CLOEXEC)
        };
        // SAFETY: a descriptor that was just opened and that nobody else knows.
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
    }
}

/// One lock, as fcntl(2) has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// `F_RDLCK`, `F_WRLCK`, `F_UNLCK`.
    pub(super) kind: i16,
    pub(super) start: i64,
    /// Bytes; 0 is to the end of the file.
    pub(super) len: i64,
    pub(super) pid: i32,
}

/// `F_OFD_SETLK` or `F_OFD_GETLK`: locks that belong to the open file.
///
/// # Errors
///
/// That of fcntl(2); `EAGAIN` when somebody else holds it.
pub(super) fn ofd_lock(fd: BorrowedFd<'_>, set: bool, range: Range) -> io::Result<Range> {
    let mut lock = libc::flock {
        l_type: range.kind,
        l_whence: 0,
        l_start: range.start,
        l_len: range.len,
        // Must be 0 for locks of open files.
        l_pid: 0,
    };
    let command = if set { libc::F_OFD_SETLK } else { libc::F_OFD_GETLK };
    // SAFETY: the kernel reads and writes one `struct flock`.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Range { kind: lock.l_type, start: lock.l_start, len: lock.l_len, pid: lock.l_pid })
}

/// The locks that an open file of this process holds (`F_OFD_SETLK`).
///
/// # Errors
///
/// That of reading /proc; `InvalidData` for a line that is not understood.
pub(super) fn held_ranges(fd: BorrowedFd<'_>) -> io::Result<Vec<Range>> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let lines =
        info.lines().filter_map(|line| line.strip_prefix("lock:")).filter(|line| line.contains("OFDLCK"));
    lines.map(|line| range_in(line).ok_or_else(|| io::ErrorKind::InvalidData.into())).collect()
}

/// `1: OFDLCK ADVISORY READ -1 08:01:4711 0 EOF`, as in /proc/locks.
fn range_in(line: &str) -> Option<Range> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let kind = match fields.next()? {
        "READ" => libc::F_RDLCK,
        "WRITE" => libc::F_WRLCK,
        _ => return None,
    };
    let start: i64 = fields.nth(2)?.parse().ok()?;
    let len = match fields.next()? {
        "EOF" => 0,
        last => last.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)?,
    };
    Some(Range { kind: i16::try_from(kind).ok()?, start, len, pid: 0 })
}

thread_local! {
    /// Whether this thread has a umask of its own.
    static OWN_UMASK: Cell<bool> = const { Cell::new(false) };
}

/// The umask of a guest's process, on this thread, for as long as this value lives. Afterwards it is the daemon's again: what
/// else the thread makes, or threads do that it starts, has nothing to do with the guest.
pub(super) struct Umask(Option<rustix::fs::Mode>);

impl Umask {
    /// Of the process for which something is created: where a directory has a default ACL the host leaves the umask out. A
    /// umask belongs to the process until a thread takes one for itself.
    pub(super) fn of(umask: u32) -> Self {
        static ONCE: Once = Once::new();
        let is_own = OWN_UMASK.with(|own| {
            // SAFETY: no pointers; from here on this thread has a root, working directory and umask of its own, all of them
            // as they were. Nothing here depends on the process sharing them.
            if !own.get() && unsafe { libc::unshare(libc::CLONE_FS) } == 0 {
                own.set(true);
            }
            own.get()
        });
        if !is_own {
            let error = io::Error::last_os_error();
            ONCE.call_once(|| {
                tracing::warn!(
                    "threads cannot have a umask of their own ({error}): what guests make has the modes that this daemon's \
                     umask leaves; allow unshare(2), or start it with umask 0"
                );
            });
            return Self(None);
        }
        Self(Some(rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask & 0o777))))
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        if let Some(umask) = self.0 {
            rustix::process::umask(umask);
        }
    }
}

/// Closes a duplicate of `fd`: some file systems say only then what became of writes (NFS, CIFS, FUSE).
///
/// # Errors
///
/// That of close(2).
pub(super) fn close_duplicate(fd: BorrowedFd<'_>) -> io::Result<()> {
    let duplicate = rustix::io::fcntl_dupfd_cloexec(fd, 0)?.into_raw_fd();
    // SAFETY: the descriptor was just made, its owner gave it up, and it is used no more whatever close(2) says.
    match unsafe { libc::close(duplicate) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the identity that this thread has towards file systems; returns the one it had.
fn set_identity(uid: u32, gid: u32) -> (u32, u32) {
    // SAFETY: no pointers. Both calls change this thread alone and answer the former value.
    let (old_gid, old_uid) = unsafe { (libc::setfsgid(gid), libc::setfsuid(uid)) };
    (old_uid.cast_unsigned(), old_gid.cast_unsigned())
}

/// A guest's user for as long as this value lives, on this thread.
pub(super) struct Identity(Option<(u32, u32)>);

impl Identity {
    /// Becomes `uid` and `gid`; keeps the right to enter any directory: the guest's kernel has checked permissions,
    /// and knows groups that this side does not.
    ///
    /// # Errors
    ///
    /// `EINVAL` for nobody's numbers; `EPERM` where this daemon may not become that user.
    pub(super) fn of(uid: u32, gid: u32) -> io::Result<Self> {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        if uid == u32::MAX || gid == u32::MAX {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if uid == 0 && gid == 0 {
            return Ok(Self(None));
        }
        let identity = Self(Some(set_identity(uid, gid)));
        // These calls do not say whether they did anything. Nobody's numbers change nothing and answer what there is.
        if set_identity(u32::MAX, u32::MAX) != (uid, gid) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        if uid != 0
            && let Ok(mut sets) = capabilities(None)
        {
            let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::MKNOD;
            sets.effective |= kept & sets.permitted;
            let _ = set_capabilities(None, sets);
        }
        Ok(identity)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if let Some((uid, gid)) = self.0 {
            set_identity(uid, gid);
        }
    }
}

/// Runs `f` without the right to keep setuid and setgid bits: the kernel then clears them on write and truncation, as
/// it does for a user.
pub(super) fn killing_suidgid<T>(kill: bool, f: impl FnOnce() -> T) -> T {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    struct Restore(CapabilitySets);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = set_capabilities(None, self.0);
        }
    }
    let _restore = kill.then(|| capabilities(None).ok()).flatten().map(|sets| {
        let mut less = sets;
        less.effective -= CapabilitySet::FSETID;
        let _ = set_capabilities(None, less);
        Restore(sets)
    });
    f()
}
