//! System calls that neither std nor rustix has: file handles, locks of open files, a thread's file-system identity.
//!
//! Owns: these calls, each behind a safe function. Does not own: when they are made.
//!
//! Unsafe code is here because the kernel fills buffers of ours (file handles, locks), and because identity and umask
//! belong to a thread, which no safe interface offers.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

thread_local! {
    /// Whether this thread has a umask of its own, which is 0.
    static OWN_UMASK: Cell<bool> = const { Cell::new(false) };
}

/// Makes what this thread creates have exactly the mode it asks for. A umask belongs to the process until a thread
/// takes one for itself.
pub(super) fn no_umask() {
    OWN_UMASK.with(|own| {
        if !own.get() {
            // SAFETY: no pointers; from here on this thread has a root, working directory and umask of its own,
            // all of them as they were. Nothing here depends on the process sharing them.
            if unsafe { libc::unshare(libc::CLONE_FS) } == 0 {
                rustix::process::umask(rustix::fs::Mode::empty());
            }
            own.set(true);
        }
    });
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
    pub(super) fn of(uid: u32, gid: u32) -> Self {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        if uid == 0 && gid == 0 {
            return Self(None);
        }
        let old = set_identity(uid, gid);
        if uid != 0
            && let Ok(mut sets) = capabilities(None)
        {
            let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::MKNOD;
            sets.effective |= kept & sets.permitted;
            let _ = set_capabilities(None, sets);
        }
        Self(Some(old))
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
