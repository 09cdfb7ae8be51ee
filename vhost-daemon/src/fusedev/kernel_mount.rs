//! The kernel's side: `/dev/fuse`, mount(2), umount2(2), and what /proc and /sys know of a mount.
//!
//! Owns: these. Does not own: requests.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Shown as the mount's source.
const SOURCE: &str = "rafs";
/// Largest READ with its header page, bytes, as the reference says it.
const MAX_READ: u32 = 1_052_672;
/// Read-ahead of the mount, KiB: as large as one request can be.
const READ_AHEAD_KIB: u32 = 1024;
/// How long a FUSE mount that is in our place may take to answer before it counts as one whose daemon ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a mount does not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FuseError {
    /// The directory to mount on.
    #[error("cannot mount on {path}: {source}; it must be an existing directory")]
    Mountpoint {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory is a FUSE mount that nobody serves.
    #[error(
        "cannot mount on {path}: {source}; a FUSE mount whose daemon ended is there: start its successor with the same \
         --apisock, or unmount it (umount -l {path})"
    )]
    Abandoned {
        /// The directory.
        path: PathBuf,
        /// What it answers.
        source: io::Error,
    },
    /// The device.
    #[error(
        "cannot open /dev/fuse: {source}; FUSE mode needs the kernel's fuse module, and root or CAP_SYS_ADMIN"
    )]
    Device {
        /// Why.
        source: io::Error,
    },
    /// mount(2).
    #[error("cannot mount on {path}: {source}; FUSE mode needs CAP_SYS_ADMIN")]
    Mount {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Signals or threads.
    #[error("cannot start serving {path}: {source}")]
    Serve {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Opens the device.
pub(super) fn open_device() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// The mount's own directory, links resolved: that is how the kernel calls it. A mount that is there already is not
/// looked at: whoever looks at one whose daemon died waits for its successor, which may be ourselves.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, FuseError> {
    let failed = |source| FuseError::Mountpoint { path: path.to_owned(), source };
    if let Some(name) = path.file_name() {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or_else(|| Path::new("."));
        let itself = parent.canonicalize().map_err(failed)?.join(name);
        if connection(&itself).is_some() {
            return Ok(itself);
        }
    }
    path.canonicalize().map_err(failed)
}

/// Mounts `device` on `path`, an existing directory. What is mounted there already is covered.
pub(super) fn mount(device: BorrowedFd<'_>, path: &Path, writable: bool) -> Result<(), FuseError> {
    let at_path = |source: io::Error| FuseError::Mountpoint { path: path.to_owned(), source };
    let is_directory = match connection(path) {
        Some(_) => {
            let answer = answers_as_directory(path).map_err(|source| match source.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted => {
                    FuseError::Abandoned { path: path.to_owned(), source }
                }
                _ => at_path(source),
            })?;
            tracing::warn!(
                "{} is a FUSE mount already, of a daemon that answers: it is covered",
                path.display()
            );
            answer
        }
        None => std::fs::metadata(path).map_err(at_path)?.is_dir(),
    };
    if !is_directory {
        return Err(at_path(io::ErrorKind::NotADirectory.into()));
    }
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={MAX_READ}",
        device.as_raw_fd()
    );
    let failed = |source: io::Error| FuseError::Mount { path: path.to_owned(), source };
    let options = CString::new(options).map_err(|e| failed(e.into()))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    if !writable {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount(SOURCE, path, "fuse", flags, options.as_c_str()).map_err(|e| failed(e.into()))
}

/// Whether the FUSE mount on `path` shows a directory, asked of its daemon and not of the kernel's memory. If a supervisor
/// holds the device of a daemon that ended, nobody answers for ever: hence a thread, which ends with this process at the
/// latest.
///
/// # Errors
///
/// What the mount answers; `TimedOut` if it does not.
fn answers_as_directory(path: &Path) -> io::Result<bool> {
    let (answer, answered) = mpsc::channel();
    let asked = path.to_owned();
    std::thread::Builder::new().name("mountpoint".to_owned()).spawn(move || {
        let status = rustix::fs::statx(CWD, &asked, AtFlags::STATX_FORCE_SYNC, StatxFlags::TYPE);
        // Nobody may be listening any more.
        let _ = answer.send(status);
    })?;
    match answered.recv_timeout(PATIENCE) {
        Ok(status) => Ok(FileType::from_raw_mode(status?.stx_mode.into()).is_dir()),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("what is mounted there gives no answer for {} s", PATIENCE.as_secs()),
        )),
    }
}

/// Unmounts what is not in use. False: it is, and is there still.
pub(super) fn unmount(path: &Path) -> bool {
    match rustix::mount::unmount(path, UnmountFlags::empty()) {
        Ok(()) => tracing::info!("unmounted {}", path.display()),
        // EINVAL: somebody else did.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(rustix::io::Errno::BUSY) => return false,
        Err(error) => tracing::error!("cannot unmount {}: {error}", path.display()),
    }
    true
}

/// Takes a mount that is in use out of sight. With `end` whoever uses it gets errors, also where somebody else holds the
/// device and nobody would ever answer; without, it ends with its last user.
pub(super) fn detach(path: &Path, end: bool) {
    let force = if end { UnmountFlags::FORCE } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, UnmountFlags::DETACH | force) {
        Ok(()) if end => {
            tracing::warn!("{} was in use: it is detached, and its users get errors", path.display());
        }
        Ok(()) => tracing::warn!("{} is in use: it is detached", path.display()),
        Err(error) => tracing::error!("cannot detach {}: {error}", path.display()),
    }
}

/// Kind of the file system that covers the FUSE mount of `connection` on `path`: unmounting `path` would unmount that.
pub(super) fn cover(path: &Path, connection: u32) -> Option<String> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    cover_in(&table, path, connection)
}

fn cover_in(table: &[u8], path: &Path, connection: u32) -> Option<String> {
    let on_path: Vec<Mount<'_>> = mounts_in(table).filter(|mount| mount.point == path.as_os_str()).collect();
    let ours = on_path.iter().position(|mount| mount.is_fuse() && mount.minor == Some(connection))?;
    let above = on_path.get(ours + 1)?;
    Some(String::from_utf8_lossy(above.kind).into_owned())
}

/// Minor device number of the topmost FUSE mount on `path`, which names its connection under /sys/fs/fuse.
pub(super) fn connection(path: &Path) -> Option<u32> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    connection_in(&table, path)
}

fn connection_in(table: &[u8], path: &Path) -> Option<u32> {
    mounts_in(table).filter(|mount| mount.is_fuse() && mount.point == path.as_os_str()).last()?.minor
}

/// A line of mountinfo.
struct Mount<'a> {
    point: OsString,
    /// Minor number of its device.
    minor: Option<u32>,
    kind: &'a [u8],
}

impl Mount<'_> {
    fn is_fuse(&self) -> bool {
        self.kind == b"fuse" || self.kind.starts_with(b"fuse.")
    }
}

/// All mounts, in the order in which they were made.
fn mounts_in(table: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    table.split(|b| *b == b'\n').filter_map(|line| {
        // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAGS] - TYPE SOURCE OPTIONS
        let mut fields = line.split(|b| *b == b' ');
        let (device, point) = (fields.nth(2)?, fields.nth(1)?);
        let kind = fields.skip_while(|f| *f != b"-").nth(1).unwrap_or_default();
        let minor = device.split(|b| *b == b':').nth(1).and_then(|b| std::str::from_utf8(b).ok());
        Some(Mount { point: unescape(point), minor: minor.and_then(|minor| minor.parse().ok()), kind })
    })
}

/// Undoes the octal escapes of /proc's mount tables.
fn unescape(text: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|d| *byte == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        let value = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        if let Some(value) = value {
            out.push(value);
            rest = after.get(3..).unwrap_or_default();
        } else {
            out.push(*byte);
            rest = after;
        }
    }
    OsString::from_vec(out)
}

/// Whether a FUSE mount is on `path`, alive or not.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    let resolved = resolve(path).unwrap_or_else(|_| path.to_owned());
    connection(&resolved).is_some()
}

/// Lets the kernel read ahead as much as one request can carry. A wish: without it reads are only smaller.
pub(super) fn read_ahead(connection: u32) {
    let path = format!("/sys/class/bdi/0:{connection}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!("cannot raise {path}: {error}");
    }
}

/// Writes to a control file of the connection (`resend`, `flush`), which only some kernels have.
pub(super) fn control(connection: u32, file: &str) -> io::Result<()> {
    std::fs::write(Path::new("/sys/fs/fuse/connections").join(connection.to_string()).join(file), "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/vda rw\n\
            40 1 0:55 / /mnt/a\\040b ro,nosuid shared:3 master:1 - fuse rafs ro,user_id=0\n\
            41 1 0:56 / /mnt/x rw - fuse.other src rw\n42 1 0:57 / /mnt/x rw - tmpfs tmpfs rw\n\
            43 1 0:58 / /mnt/x rw - fuse rafs rw\n\nnonsense\n1 2\n";
        assert_eq!(connection_in(table, Path::new("/mnt/a b")), Some(55));
        assert_eq!(connection_in(table, Path::new("/mnt/x")), Some(58), "the topmost");
        assert_eq!(connection_in(table, Path::new("/")), None, "no FUSE mount");
        assert_eq!(cover_in(table, Path::new("/mnt/a b"), 55), None);
        assert_eq!(cover_in(table, Path::new("/mnt/x"), 56).as_deref(), Some("tmpfs"));
        assert_eq!(cover_in(table, Path::new("/mnt/x"), 58), None);
        assert_eq!(unescape(b"\\1\\0401\\"), OsString::from("\\1 1\\"));
    }
}
