//! A place where `rafsd fuse` mounts, daemons on it, and how one takes over from another.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use super::api::{call, wait_for_state};
use super::binaries::ours;
use super::process::Process;
use super::supervisor::{Kept, Supervisor};

/// When a mount is torn down under a test that hangs.
const WATCHDOG: Duration = Duration::from_secs(100);

/// Whether this machine lets us mount; says so if not.
#[must_use]
#[allow(clippy::print_stderr, reason = "a test that shows nothing must say so")]
pub fn possible() -> bool {
    let possible = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !possible {
        eprintln!("skipped: no /dev/fuse, or not root");
    }
    possible
}

/// A directory with a mountpoint, sockets and logs. What is mounted goes with it.
#[derive(Debug)]
pub struct FuseHost {
    dir: TempDir,
}

impl FuseHost {
    /// An empty one.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mountpoint = dir.path().join("mnt");
        std::fs::create_dir(&mountpoint)?;
        // Whoever reads from a mount that nobody serves cannot even be killed. If all else fails, the mount is.
        std::thread::spawn(move || {
            std::thread::sleep(WATCHDOG);
            let _ = unmount(&mountpoint, UnmountFlags::FORCE | UnmountFlags::DETACH);
        });
        Ok(Self { dir })
    }

    /// A path beside the mountpoint.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The mountpoint.
    #[must_use]
    pub fn mountpoint(&self) -> PathBuf {
        self.path("mnt")
    }

    /// Whether something is mounted there.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn is_mounted(&self) -> Result<bool> {
        let mountpoint = self.mountpoint();
        let table = std::fs::read_to_string("/proc/self/mounts")?;
        Ok(table.lines().any(|line| line.split(' ').nth(1) == mountpoint.to_str()))
    }

    /// Ends the mount and whoever waits for it.
    pub fn abort(&self) {
        let _ = unmount(self.mountpoint(), UnmountFlags::FORCE | UnmountFlags::DETACH);
    }

    /// A daemon with its API on socket `api`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, api: &str, more: &[&str]) -> Result<Process> {
        let mut command = Command::new(ours("rafsd")?);
        command.arg("--mountpoint").arg(self.mountpoint()).arg("--apisock").arg(self.path(api));
        command.args(["--log-level", "debug"]).args(more);
        Process::spawn(&mut command, &self.path(&format!("{api}.log")))
    }

    /// The same, with the supervisor's socket on its command line, ready to take over.
    ///
    /// # Errors
    /// When it does not come as far as INIT.
    pub fn start_successor(&self, api: &str, more: &[&str]) -> Result<Process> {
        let successor = self.start_supervised(api, more)?;
        wait_for_state(&self.path(api), "INIT")?;
        Ok(successor)
    }

    /// The same, as the first of its kind.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_supervised(&self, api: &str, more: &[&str]) -> Result<Process> {
        let socket = self.path("supervisor");
        let socket = socket.to_string_lossy();
        self.start(api, &[&["--id", "d1", "--supervisor", &socket], more].concat())
    }

    /// The supervisor of those daemons.
    #[must_use]
    pub fn supervisor(&self) -> Supervisor {
        Supervisor::new(&self.path("supervisor"))
    }

    /// PUT without a body: status and answer.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn put(&self, api: &str, path: &str) -> Result<(u16, String)> {
        call(&self.path(api), "PUT", path, "")
    }

    /// PUT that must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn done(&self, api: &str, path: &str) -> Result<()> {
        let (status, body) = self.put(api, path)?;
        ensure!(status == 204 && body.is_empty(), "PUT {path} on {api}: {status} {body}");
        Ok(())
    }

    /// Has a daemon save itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn save(&self, api: &str) -> Result<Kept> {
        let waiting = self.supervisor().expect_save()?;
        self.done(api, "/api/v1/daemon/fuse/sendfd")?;
        waiting.join().map_err(|_| anyhow::anyhow!("the supervisor panicked"))?
    }

    /// Has a successor take over what was kept; what it answered.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn offer(&self, api: &str, kept: &Kept) -> Result<(u16, String)> {
        let giving = self.supervisor().offer(kept)?;
        let answer = self.put(api, "/api/v1/daemon/fuse/takeover")?;
        let _ = giving.join();
        Ok(answer)
    }

    /// The same; it must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn take_over(&self, api: &str, kept: &Kept) -> Result<()> {
        let (status, body) = self.offer(api, kept)?;
        ensure!(status == 204, "take-over on {api}: {status} {body}");
        wait_for_state(&self.path(api), "READY")
    }

    /// Has a successor serve what it took over.
    ///
    /// # Errors
    /// When it does not.
    pub fn serve(&self, api: &str) -> Result<()> {
        self.done(api, "/api/v1/daemon/start")?;
        wait_for_state(&self.path(api), "RUNNING")
    }
}

impl Drop for FuseHost {
    fn drop(&mut self) {
        // What a failed test left.
        let _ = unmount(self.mountpoint(), UnmountFlags::DETACH);
    }
}
